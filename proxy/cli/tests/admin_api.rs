//! The Admin API, the control API and the embedded store of the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::gateway::{Gateway, Ports, ask_on, call, route, start};
use support::{Directory, LIMIT, get};

#[test]
fn a_route_is_written_served_changed_and_outlives_the_process() {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let mut gateway = Gateway::start(&directory, ports);
    assert_eq!(gateway.ask("PUT", "/routes/1", &route("/one", "first")).status, 201);
    gateway.until_status("/one", 200);
    assert_eq!(get(ports.http, "/one").unwrap().body, "first");
    assert_eq!(gateway.ask("PATCH", "/routes/1", &route("/two", "second")).status, 200);
    gateway.until_status("/one", 404);
    // How long a write takes, and how long it then is until it is in force.
    let mut taken = Vec::new();
    for n in 0..20 {
        let path = format!("/n{n}");
        let start = Instant::now();
        assert_eq!(gateway.ask("PUT", "/routes/1", &route(&path, "x")).status, 200);
        let written = start.elapsed();
        taken.push((gateway.until_status(&path, 200), written));
    }
    taken.sort();
    eprintln!("written in {:?}, in force {:?} after (medians of 20)", taken[10].1, taken[10].0);
    let shown = gateway.ask("GET", "/routes/1", "");
    assert!(shown.head.contains("server: apisix/3.18.0\r\n"), "{}", shown.head);
    assert!(shown.head.contains("x-api-version: v3\r\n"), "{}", shown.head);
    let key = gateway.key.clone();
    drop(gateway);
    let mut gateway = Gateway::start(&directory, ports);
    assert_eq!(gateway.key, key, "it is made once");
    gateway.until_status("/n19", 200);
    assert_eq!(gateway.ask("GET", "/routes/1", "").body, shown.body);
    assert_eq!(
        gateway.ask("DELETE", "/routes/1", "").body,
        "{\"deleted\":\"1\",\"key\":\"/apisix/routes/1\"}\n"
    );
    gateway.until_status("/n19", 404);
    // Another process can't have the store.
    let other = Directory::new();
    std::os::unix::fs::symlink(directory.path("data"), other.path("data")).unwrap();
    other.write("config.yaml", &Ports::free().config("role: traditional"));
    let mut second = start(&other);
    assert_eq!(second.wait(), 1);
    let errors = second.errors();
    assert!(errors.contains("deployment.role_traditional.config_provider: can't open"), "{errors}");
    assert!(errors.contains("another process has it open"), "{errors}");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
}

/// Bodies were read before keys were looked at.
#[test]
fn who_has_no_key_is_turned_away_before_the_body() {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let _gateway = Gateway::start(&directory, ports);
    let mut client = TcpStream::connect(("127.0.0.1", ports.admin)).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
        .write_all(b"PUT /apisix/admin/routes/1 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{")
        .unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 401");
}

#[test]
fn the_key_is_made_said_once_and_kept() {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let mut gateway = Gateway::start(&directory, ports);
    assert_eq!(gateway.key.len(), 32);
    let denied =
        call(ports.admin, "edd1c9f034335f136f87ad84b625c8f1", "GET", "/apisix/admin/routes", "").unwrap();
    let text = "{\"error_msg\":\"failed to check token\",\"description\":\"wrong apikey\"}\n";
    assert_eq!((denied.status, denied.body.as_str()), (401, text));
    let mut outputs = Vec::new();
    for _ in 0..2 {
        gateway.process.signal("TERM");
        assert_eq!(gateway.process.wait(), 0);
        let mut output = String::new();
        gateway.process.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(!gateway.process.errors().contains(&gateway.key), "it is not in the log");
        outputs.push(output.contains(&gateway.key));
        gateway = Gateway::start(&directory, ports);
    }
    assert_eq!(outputs, [true, false]);
    use std::os::unix::fs::PermissionsExt;
    for (name, mode) in [("data", 0o700), ("data/admin-key", 0o600), ("data/resources.redb", 0o600)] {
        let found = std::fs::metadata(directory.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
}

/// The lines of docs/reference/admin-api.md, and what they answer.
#[test]
fn the_examples_of_the_page_work() {
    let page = include_str!("../../../docs/reference/admin-api.md");
    let (_, rest) = page.split_once("```sh test=proxy/cli/tests/admin_api.rs\n").unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let mut gateway = Gateway::start(&directory, ports);
    let mut answers = Vec::new();
    for line in lines.lines().filter_map(|line| line.strip_prefix("curl ")) {
        let words = words(&line.replace("$KEY", &gateway.key));
        let after = |flag: &str| {
            let at = words.iter().position(|word| word == flag)?;
            words.get(at + 1).cloned()
        };
        let url = words.iter().find(|word| word.starts_with("http://")).unwrap();
        let (port, path) = url.strip_prefix("http://127.0.0.1:").unwrap().split_once('/').unwrap();
        let port = match port {
            "9180" => ports.admin,
            "9080" => ports.http,
            _ => ports.control,
        };
        let method = after("-X").unwrap_or_else(|| "GET".to_owned());
        let key = after("-H").map_or(String::new(), |header| header.split_once(": ").unwrap().1.to_owned());
        let ask =
            || call(port, &key, &method, &format!("/{path}"), &after("-d").unwrap_or_default()).unwrap();
        let mut answer = ask();
        if port == ports.http {
            let wanted = if answers.len() < 3 { "hi" } else { "hello" };
            answer = gateway
                .process
                .until("what was written", || Some(ask()).filter(|answer| answer.body == wanted));
        }
        answers.push((answer.status, line.to_owned()));
    }
    assert!(answers.len() >= 10);
    for (status, line) in &answers {
        assert!([200, 201].contains(status), "{status}: {line}");
    }
}

/// The words that a shell makes of a line, but for its variables.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, ' ') => words.push(String::new()),
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// What was answered is there, and of what was not nothing is there in part.
#[test]
fn a_kill_in_the_middle_of_writes_loses_nothing_that_was_answered() {
    const WRITERS: usize = 8;
    const EACH: usize = 125;
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let gateway = Gateway::start(&directory, ports);
    let (answered, key) = (AtomicUsize::new(0), gateway.key.clone());
    let process = gateway.process.0.id().to_string();
    let kept: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (answered, key) = (&answered, &key);
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(("127.0.0.1", ports.admin)).unwrap();
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    for n in 0..EACH {
                        let target = format!("/apisix/admin/routes/{writer}-{n}");
                        let body = route(&format!("/{writer}/{n}"), &"x".repeat(n * 20));
                        match ask_on(&mut stream, key, "PUT", &target, &body) {
                            Some(answer) => assert_eq!(answer.status, 201, "{}", answer.body),
                            None => return n,
                        }
                        answered.fetch_add(1, SeqCst);
                    }
                    EACH
                })
            })
            .collect();
        let start = Instant::now();
        while answered.load(SeqCst) < WRITERS * EACH / 2 {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
        let rate = answered.load(SeqCst) as f64 / start.elapsed().as_secs_f64();
        eprintln!("{rate:.0} writes a second by {WRITERS} clients");
        assert!(std::process::Command::new("kill").args(["-KILL", &process]).status().unwrap().success());
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(kept.iter().any(|count| *count < EACH), "it was killed before the last write");
    drop(gateway);
    let mut gateway = Gateway::start(&directory, ports);
    for (writer, count) in kept.iter().enumerate() {
        for n in 0..EACH {
            let answer = gateway.ask("GET", &format!("/routes/{writer}-{n}"), "");
            match answer.status {
                200 => {
                    assert!(answer.body.contains(&format!("\"{}\"", "x".repeat(n * 20))), "{}", answer.body)
                }
                // The one whose answer did not arrive may be there or not.
                404 => assert!(n >= *count, "{writer}-{n} was answered"),
                status => panic!("{status}: {}", answer.body),
            }
            assert!(answer.status == 404 || n <= *count);
        }
        if *count > 0 {
            gateway.until_status(&format!("/{writer}/{}", count - 1), 200);
        }
    }
}

#[test]
fn the_control_api_and_the_status_page_tell_what_there_is() {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config("role: traditional"));
    let mut gateway = Gateway::start(&directory, ports);
    let control = |method: &str, path: &str| call(ports.control, "", method, path, "").unwrap();
    assert_eq!(control("GET", "/v1/routes").body, "{}\n");
    assert_eq!(gateway.ask("PUT", "/routes/1", &route("/one", "first")).status, 201);
    let upstream = r#"{"nodes":{"example.com:80":1}}"#;
    assert_eq!(gateway.ask("PUT", "/upstreams/u", upstream).status, 201);
    // It shows what is in force, which is a moment after it is kept.
    gateway.process.until("the upstream", || {
        Some(control("GET", "/v1/upstream/u")).filter(|answer| answer.status == 200)
    });
    let routes = control("GET", "/v1/routes");
    assert!(
        routes.body.starts_with("[{\"key\":\"/apisix/routes/1\",\"value\":{\"uri\":\"/one\""),
        "{}",
        routes.body
    );
    assert!(control("GET", "/v1/route/1").body.contains("\"status\":1"), "with its defaults");
    assert!(control("GET", "/v1/upstream/u").body.contains("\"has_domain\":true"));
    let missing = control("GET", "/v1/route/2");
    assert_eq!((missing.status, missing.body.as_str()), (404, "{\"error_msg\":\"route[2] not found\"}\n"));
    for (path, status, body) in [
        ("/v1/healthcheck", 200, "{}\n"),
        ("/v1/healthcheck/routes/1", 404, "{\"error_msg\":\"no checker for routes[1]\"}\n"),
        ("/v1/healthcheck/routes/2", 404, "{\"error_msg\":\"routes[2] not found\"}\n"),
        ("/v1/healthcheck/routes", 404, "{\"error_msg\":\"missing src id for src type routes\"}\n"),
        ("/v1/healthcheck/frobs/1", 400, "{\"error_msg\":\"invalid src type frobs\"}\n"),
        ("/v1/plugin_metadata/x", 404, "{\"error_msg\":\"plugin metadata[x] not found\"}\n"),
    ] {
        let got = control("GET", path);
        assert_eq!((got.status, got.body.as_str()), (status, body), "{path}");
    }
    let schema = control("GET", "/v1/schema").body;
    assert!(schema.contains("\"limit-count\":{\"version\"") && schema.contains("\"main\":{\"consumer\""));
    assert_eq!(control("POST", "/v1/gc").status, 200);
    assert_eq!(control("PUT", "/v1/plugins/reload").body, "done");
    for (method, path) in [("GET", "/v1/gc"), ("GET", "/v1/none"), ("POST", "/v1/routes")] {
        let got = control(method, path);
        assert_eq!((got.status, got.body.contains("<center>openresty</center>")), (404, true), "{path}");
    }
    assert_eq!(get(ports.status, "/status/ready").unwrap().body, "{\"status\":\"ok\"}");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
}

#[test]
fn a_configuration_is_put_as_a_whole_and_then_it_is_ready() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let deployment = "role: traditional\n  role_traditional: {config_provider: yaml}";
    directory.write("config.yaml", &ports.config(deployment));
    let mut gateway = Gateway::start(&directory, ports);
    let ready = || get(ports.status, "/status/ready").unwrap().status;
    assert_eq!(ready(), 503, "nothing was put yet");
    let put = |digest: &str, body: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", ports.admin)).unwrap();
        let head = format!(
            "PUT /apisix/admin/configs HTTP/1.1\r\nHost: a\r\nX-API-KEY: {}\r\nX-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
            gateway.key,
            body.len()
        );
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let routes = |uri: &str| {
        let route = route(uri, "hi").replacen('{', "{\"id\":\"a\",", 1);
        format!(r#"{{"routes":[{route}]}}"#)
    };
    assert_eq!(put("1", &routes("/a")), "202");
    assert_eq!(put("2", r#"{"routes":[{"id":"a","uri":1}]}"#), "400");
    gateway.until_status("/a", 200);
    gateway.process.until("readiness", || (ready() == 200).then_some(()));
    let mut put_again = |digest: &str, body: &str, path: &str, status: u16| {
        let mut stream = TcpStream::connect(("127.0.0.1", ports.admin)).unwrap();
        let head = format!(
            "PUT /apisix/admin/configs HTTP/1.1\r\nHost: a\r\nX-API-KEY: {}\r\nX-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
            gateway.key,
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        gateway.until_status(path, status);
    };
    put_again("3", &routes("/b"), "/b", 200);
    put_again("4", "{}", "/b", 404);
}

/// The store of a gateway was closed to everybody else, running or not.
#[test]
fn the_store_of_a_gateway_is_explained_dumped_and_validated() {
    let directory = Directory::new();
    let ports = Ports::free();
    let config = directory.write("config.yaml", &ports.config(""));
    let gateway = Gateway::start(&directory, ports);
    let route = r#"{"uri":"/a","plugins":{"key-auth":{}},"upstream":{"nodes":{"127.0.0.1:1":1}}}"#;
    assert_eq!(gateway.ask("PUT", "/routes/r", route).status, 201);
    assert_eq!(gateway.ask("PUT", "/consumers", r#"{"username":"jack"}"#).status, 201);
    let credential = r#"{"plugins":{"key-auth":{"key":"one"}}}"#;
    assert_eq!(gateway.ask("PUT", "/consumers/jack/credentials/c", credential).status, 201);
    let said = || {
        let of = |arguments: &[&str]| {
            let output = support::output(&[arguments, &["-c", &config]].concat());
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let explained = of(&["explain", "GET", "http://a.test/a", "-H", "apikey: one"]);
        assert!(explained.contains("consumer      \"jack\" by key-auth"), "{explained}");
        assert!(of(&["validate"]).contains("OK"));
        of(&["dump"])
    };
    let running = said();
    assert!(running.contains("id: \"jack/credentials/c\""), "{running}");
    drop(gateway);
    assert_eq!(said(), running);
}

/// It answered `done`, and 503 where the list of plugins was another.
#[test]
fn lists_of_plugins_and_their_attributes_are_read_again() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = ports.config("role: traditional");
    let of = |attributes: &str, plugins: &str| {
        format!("{}plugins: [{plugins}]\n", config.replace("enable_export_server: false", attributes))
    };
    let first = of("enable_export_server: false, export_uri: /metrics", "prometheus, public-api");
    directory.write("config.yaml", &first);
    let mut gateway = Gateway::start(&directory, ports);
    let page = r#"{"uri":"/shown","plugins":{"public-api":{}}}"#;
    assert_eq!(gateway.ask("PUT", "/routes/1", page).status, 201);
    let unknown = gateway.ask("PUT", "/routes/2", &route("/two", "text"));
    assert!(unknown.status == 400 && unknown.body.contains("unknown plugin [mocking]"), "{unknown:?}");
    gateway.until_status("/shown", 404);
    // What is not written stays: there is no server that shows metrics.
    directory.write("config.yaml", &of("export_uri: /shown", "prometheus, public-api, mocking"));
    assert_eq!(gateway.ask("PUT", "/plugins/reload", "").body, "done");
    gateway.until_status("/shown", 200);
    assert!(gateway.ask("GET", "/plugins/list", "").body.contains("mocking"));
    assert_eq!(gateway.ask("PUT", "/routes/2", &route("/two", "text")).status, 201);
    gateway.until_status("/two", 200);
    // By the other API, with a file that is wrong and then without the plugin.
    let control = |method, path: &str| call(ports.control, "", method, path, "").unwrap();
    directory.write("config.yaml", "plugins: 7\n");
    let refused = control("PUT", "/v1/plugins/reload");
    assert!(refused.status == 503 && refused.body.contains("plugins"), "{refused:?}");
    directory.write("config.yaml", &of("export_uri: /elsewhere", "public-api, mocking"));
    assert_eq!(control("PUT", "/v1/plugins/reload").body, "done");
    gateway.until_status("/shown", 404);
    assert!(!gateway.ask("GET", "/plugins/list", "").body.contains("prometheus"));
    assert_eq!(get(ports.http, "/two").unwrap().body, "text");
}
