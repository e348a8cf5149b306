//! Kong's declarative configuration, imported: what the gateway answers is what Kong's documentation says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use support::echo::{echo, gateway, gateway_beside, started};
use support::{Directory, Response, free_port, output, request};

const NESTED: &str = include_str!("examples/import/kong-nested.yml");
const FLAT: &str = include_str!("examples/import/kong-flat.yml");
const DECK: &str = include_str!("examples/import/kong-deck.yml");

/// Imports a text and answers the exit code, the report and the folder.
fn import(directory: &Directory, text: &str) -> (i32, Value, String) {
    let file = directory.write("kong.yml", text);
    let into = directory.path("gateway");
    let done = output(&["import", "--from", "kong", &file, "--directory", &into, "--output", "json"]);
    let report = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
    let code = done.status.code().unwrap();
    assert!(code < 2, "{}", String::from_utf8_lossy(&done.stderr));
    (code, report, into)
}

fn answers(port: u16, asked: &[(&str, &[&str], u16, &str)]) {
    for (line, headers, status, body) in asked {
        let (method, path) = line.split_once(' ').unwrap();
        let named = headers.iter().any(|header| header.starts_with("Host:"));
        let mut all = vec!["Connection: close"];
        all.extend_from_slice(headers);
        if !named {
            all.push("Host: any.test");
        }
        let Response { status: got, body: found, head } = request(port, method, path, &all).unwrap();
        assert!(got == *status && found.contains(body), "{line} {headers:?}: {got} {found}\n{head}");
    }
}

#[test]
fn nested_entities_answer_as_in_kong() {
    let directory = Directory::new();
    let (echo, port) = (echo(), free_port());
    let text = NESTED.replace("127.0.0.1:8081", &format!("127.0.0.1:{echo}"));
    let (code, report, into) =
        import(&directory, &text.replace("127.0.0.1:8082", &format!("127.0.0.1:{echo}")));
    assert_eq!(code, 0, "{report:#}");
    gateway_beside(&into, &[(8000, port), (8443, free_port())]);
    let _gateway = started(gateway(&into), port);
    let jack: &[&str] = &["X-Api-Key: jacks-key"];
    let upstream = format!("host: 127.0.0.1:{echo}");
    answers(
        port,
        &[
            ("GET /orders", &[], 401, ""),
            ("GET /orders", jack, 200, "/api|x-consumer-username: jack_shop_test|"),
            ("GET /orders/7", jack, 200, "/api/orders/7|"),
            // Two a minute of all of the service.
            ("GET /orders", jack, 429, "API rate limit exceeded"),
            ("POST /ordersx/a?b=c", &["X-Api-Key: jills-key"], 200, "/api/x/a?b=c|"),
            (
                "OPTIONS /orders",
                &["Origin: https://a.partner.test", "Access-Control-Request-Method: GET"],
                200,
                "",
            ),
            ("GET /x", &["Host: hello.test"], 200, "/x|"),
            ("GET /x", &[], 200, &format!("/x|{upstream}")),
            // Two kinds of conditions go before one.
            ("GET /orders", &["X-Version: GAMMA", "X-Secret: s"], 200, "/beta|x-beta: yes|host"),
        ],
    );
    let Response { head, .. } = request(
        port,
        "GET",
        "/orders",
        &["Host: a", "X-Api-Key: jills-key", "Origin: https://shop.test", "Connection: close"],
    )
    .unwrap();
    let head = head.to_ascii_lowercase();
    for line in [
        "ratelimit-limit: 2",
        "access-control-allow-origin: https://shop.test",
        "access-control-allow-credentials: true",
        "x-request-id: ",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
}

#[test]
fn flat_entities_of_the_oldest_format_answer_as_in_kong() {
    let directory = Directory::new();
    let (echo, port) = (echo(), free_port());
    let (code, report, into) = import(&directory, &FLAT.replace("port: 8081", &format!("port: {echo}")));
    assert_eq!(code, 0, "{report:#}");
    gateway_beside(&into, &[(8000, port), (8443, free_port())]);
    let _gateway = started(gateway(&into), port);
    // ann and bob, of whom ann is of the staff.
    let (ann, bob) = ("Authorization: Basic YW5uOnNlY3JldA==", "Authorization: Basic Ym9iOmh1bnRlcjI=");
    answers(
        port,
        &[
            ("GET /users/v12/me", &[], 200, "/users/v12/me|"),
            ("GET /users/x", &[], 200, "/users/x|"),
            ("GET /down", &[], 503, "{\"message\":\"So long and thanks for all the fish!\"}"),
            ("GET /other", &[], 404, ""),
            ("GET /users", &["Host: private.test"], 401, ""),
            ("GET /users", &["Host: private.test", bob], 403, "You cannot consume this service"),
            ("GET /any", &["Host: private.test", ann], 200, "/any|x-consumer-username: ann"),
        ],
    );
}

#[test]
fn what_is_not_taken_over_is_reported_and_guards_stay_closed() {
    let directory = Directory::new();
    let (code, report, into) = import(&directory, DECK);
    assert_eq!(code, 1, "{report:#}");
    let kind = |what: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"].as_str().unwrap().starts_with(what));
        let found = found.unwrap_or_else(|| panic!("no {what} in {report:#}"));
        (found["kind"].as_str().unwrap().to_owned(), found["line"].as_u64().unwrap())
    };
    let line = |text: &str| DECK.lines().position(|line| line.contains(text)).unwrap() as u64 + 1;
    let told = |kind: &str, text: &str| (kind.to_owned(), line(text));
    assert_eq!(kind("service \"secure\": tls_verify"), told("manual", "tls_verify"));
    assert_eq!(kind("plugin proxy-cache of route"), told("unsupported", "proxy-cache"));
    assert_eq!(kind("plugin hmac-auth"), told("manual", "- name: hmac-auth"));
    assert_eq!(
        kind("plugin request-termination of route \"gone\": is off"),
        told("exact", "request-termination, enabled: false")
    );
    assert_eq!(kind("consumer \"ci\": hmacauth_credentials").0, "unsupported");
    let resources = std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap();
    let node = sixfold_core::document::Node::parse_file_text(&resources, "apisix.yaml").unwrap().to_json();
    let routes = node["routes"].as_array().unwrap();
    for closed in ["signed", "scripted", "chained", "both"] {
        let route = routes.iter().find(|route| route["name"] == closed).unwrap();
        assert_eq!(route["plugins"]["mocking"]["response_status"], 403, "{route:#}");
        assert!(route.get("service_id").is_none(), "{route:#}");
    }
    let held = node["consumers"].as_array().unwrap().iter().find(|one| one["username"] == "held").unwrap();
    assert_eq!(held["plugins"]["mocking"]["response_status"], 403, "{held:#}");
    // A variable of decK and one of a vault are variables of the environment.
    assert!(resources.contains("secret: \"$env://DECK_JWT\""), "{resources}");
    assert!(resources.contains("host: \"${{DECK_NO_SUCH_HOST}}\""), "{resources}");
    assert_eq!(kind("service \"elsewhere\": host").0, "manual");
    // Requests without TLS are sent to it, those of a service that is off to nobody.
    assert!(resources.contains("uri: \"https://$host$request_uri\""), "{resources}");
    assert!(!resources.contains("closed-down"), "{resources}");
    // Its rules and its certificate can't be without what is named.
    assert!(resources.contains("count: 1000"), "{resources}");
}

#[test]
fn a_file_of_another_kind_is_told_by_what_it_is() {
    let directory = Directory::new();
    for (from, name, text, expected) in [
        (
            "kong",
            "a.yaml",
            "static_resources: {}\n",
            "a.yaml: looks like an Envoy bootstrap; try --from envoy",
        ),
        ("kong", "b.yaml", "routes: []\n#END\n", "b.yaml: looks like APISIX's resources; try --from apisix"),
        (
            "kong",
            "n.conf",
            "http {\n  server { listen 80; }\n}\n",
            "n.conf: looks like nginx.conf; try --from nginx",
        ),
        (
            "nginx",
            "k.yml",
            "_format_version: '3.0'\n",
            "k.yml: looks like Kong's declarative configuration; try --from kong",
        ),
        ("kong", "c.yaml", "other: 1\n", "c.yaml: is not what is expected: Kong's"),
    ] {
        let file = directory.write(name, text);
        let done = output(&["import", "--from", from, &file, "--directory", &directory.path("out")]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    // What is wrong in it has its place.
    let file = directory.write("broken.yml", "_format_version: '3.0'\nservices: [\n");
    let done = output(&["import", "--from", "kong", &file, "--directory", &directory.path("out")]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("broken.yml:"), "{done:?}");
}

/// What validate refuses was written over good files, and that was told as a wrong use.
#[test]
fn what_validate_refuses_takes_the_place_of_nothing() {
    let directory = Directory::new();
    let text = "_format_version: '3.0'\nservices:\n- name: s\n  url: http://127.0.0.1:1\n  routes:\n  - {name: r, paths: [/a], methods: [BREW]}\n";
    let file = directory.write("kong.yml", text);
    std::fs::create_dir(directory.path("gateway")).unwrap();
    let kept =
        ["config.yaml", "apisix.yaml"].map(|name| directory.write(&format!("gateway/{name}"), "# good\n"));
    let into = directory.path("gateway");
    for form in ["text", "json"] {
        let done =
            output(&["import", "--from", "kong", &file, "--directory", &into, "--force", "--output", form]);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(done.status.code(), Some(1), "{said}{done:?}");
        let fault = format!("{into}/refused/apisix.yaml:");
        assert!(said.contains(&fault) && said.contains("BREW") || said.contains("methods"), "{said}");
        assert!(kept.iter().all(|file| std::fs::read_to_string(file).unwrap() == "# good\n"), "{said}");
    }
    let left = std::fs::read_to_string(directory.path("gateway/refused/apisix.yaml")).unwrap();
    assert!(left.contains("BREW"), "{left}");
    // What is right takes their place, and of what was refused nothing is left.
    let file = directory.write("kong.yml", &text.replace("BREW", "GET"));
    let done = output(&["import", "--from", "kong", &file, "--directory", &into, "--force"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(std::fs::read_to_string(&kept[1]).unwrap().contains("GET"));
    assert!(!std::path::Path::new(&directory.path("gateway/refused")).exists());
}

/// Each route looked at all services, all plugins and all that had been told: ten times as many took a hundred times as long.
#[test]
fn many_services_and_routes_take_as_long_as_there_are_many() {
    let directory = Directory::new();
    let took = |count: usize| {
        let mut text = String::from("_format_version: '3.0'\nservices:\n");
        for n in 0..count {
            text += &format!("- {{name: s{n}, url: \"http://127.0.0.1:1\", plugins: [{{name: cors}}]}}\n",);
        }
        text += "routes:\n";
        for n in 0..count {
            text += &format!(
                "- {{name: r{n}, paths: [/p{n}], service: s{n}, plugins: [{{name: prometheus}}]}}\n"
            );
        }
        let file = directory.write("kong.yml", &text);
        let begun = std::time::Instant::now();
        let into = directory.path(&count.to_string());
        let done = output(&["import", "--from", "kong", &file, "--directory", &into, "--output", "json"]);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        begun.elapsed()
    };
    let (few, many) = (took(400), took(4000));
    assert!(many < 40 * few.max(std::time::Duration::from_millis(50)), "{few:?} {many:?}");
}
