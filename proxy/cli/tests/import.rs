//! What `sixfold import` makes of nginx.conf answers as nginx does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use support::echo::{echo, gateway_beside, started};
use support::{Directory, Response, free_port, output, request};

fn nginx_conf(listen: u16, echo: u16) -> String {
    format!(
        r#"
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  limit_req_zone $binary_remote_addr zone=slow:1m rate=1r/m;
  upstream shop {{ server 127.0.0.1:{echo} weight=3; server 127.0.0.1:1 backup; }}
  server {{
    listen 127.0.0.1:{listen} default_server;
    server_name _;
    location = /health {{ return 200 "fine\n"; }}
    location = /old {{ return 301 http://new.test/books; }}
    location /shop/ {{ proxy_set_header X-Shop yes; proxy_pass http://shop; }}
    location /cut/ {{ proxy_pass http://127.0.0.1:{echo}/in/; }}
    location = /one {{ proxy_pass http://127.0.0.1:{echo}/two; }}
    location /rewritten/ {{ rewrite ^/rewritten/(.*)$ /r/$1 break; proxy_pass http://shop; }}
    location ^~ /final/ {{ return 200 final; }}
    location ~ \.php$ {{ return 200 "first expression"; }}
    location ~* \.PHP$ {{ return 200 "second expression"; }}
    location /prefix {{ return 200 prefix; }}
    location /prefix/longer {{ return 200 longer; }}
    location /limited/ {{ limit_req zone=slow; limit_req_status 429; proxy_pass http://shop; }}
    location /denied/ {{ deny all; proxy_pass http://shop; }}
    location /host/ {{ proxy_set_header Host $http_host; proxy_pass http://shop; }}
  }}
  include servers/*.conf;
}}
"#
    )
}

fn ask(port: u16, host: &str, path: &str) -> (u16, String, Option<String>) {
    let Response { status, head, body } =
        request(port, "GET", path, &[&format!("Host: {host}"), "Connection: close"]).expect(path);
    // nginx names itself in a location that it makes.
    let own = format!("http://{}:{port}", host.to_ascii_lowercase());
    let location = head.lines().find_map(|line| line.strip_prefix("location: "));
    let location = location.map(|location| location.strip_prefix(&own).unwrap_or(location).to_owned());
    // What nginx and we say of errors and redirects is not one.
    let body = if status == 200 { body } else { String::new() };
    (status, body, location)
}

#[test]
fn both_answer_the_same_requests_alike() {
    let directory = Directory::new();
    let (theirs, ours, echo) = (free_port(), free_port(), echo());
    let conf = directory.write("nginx.conf", &nginx_conf(theirs, echo));
    std::fs::create_dir(directory.path("servers")).unwrap();
    let server = |name: &str, text: &str| {
        format!(
            "server {{ listen 127.0.0.1:{theirs}; server_name {name}; location / {{ return 200 {text}; }} }}\n"
        )
    };
    directory.write("servers/a.conf", &server("a.test", "exact"));
    directory.write("servers/b.conf", &server("*.b.test", "wildcard"));
    directory.write("servers/ignored.txt", "nonsense");
    let into = directory.path("gateway");
    let done = output(&["import", "--from", "nginx", &conf, "--directory", &into]);
    let report = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{report}{}", String::from_utf8_lossy(&done.stderr));
    assert!(report.contains("exact        ") && report.contains("0 manual, 0 unsupported\n"), "{report}");

    let config = gateway_beside(&into, &[(theirs, ours)]);
    let mut command = Command::new("nginx");
    command.args(["-p", directory.0.to_str().unwrap(), "-c", &conf]);
    let _nginx = started(command, theirs);
    let _gateway = started(support::echo::gateway(&into), ours);
    let paths = [
        "/health",
        "/old",
        "/shop/books?a=b",
        "/shop/",
        "/shop",
        "/cut?a=b",
        "/cut/x/y",
        "/one",
        "/rewritten/x",
        "/final/a.php",
        "/a.php",
        "/prefix/a.php",
        "/prefix/longer/a.PHP",
        "/prefix",
        "/prefixed",
        "/prefix/longer",
        "/denied/x",
        "/host/x",
        "/nowhere",
        "/",
        "/limited/a",
        "/limited/a",
        "/health/",
    ];
    for (host, path) in paths.iter().map(|path| ("other.test", *path)).chain([
        ("a.test", "/x"),
        ("x.b.test", "/health"),
        ("b.test", "/health"),
        ("A.test", "/"),
    ]) {
        assert_eq!(ask(ours, host, path), ask(theirs, host, path), "{host} {path}\n{config}");
    }
}

#[test]
fn what_is_left_to_do_is_reported_with_its_line() {
    let directory = Directory::new();
    let conf = directory.write(
        "site.conf",
        "server {\n  listen 80;\n  root /var/www;\n  location / {\n    auth_basic x;\n    proxy_pass http://$backend;\n  }\n}\n",
    );
    let into = directory.path("out");
    let done = output(&["import", "--from", "nginx", &conf, "--directory", &into, "--output", "json"]);
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{report:#}");
    let found = |line: u64| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["line"] == line).unwrap()["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!([found(2), found(3), found(5), found(6)], ["exact", "unsupported", "manual", "manual"]);
    // Whom nginx asks for a password is not let in without one.
    let resources = std::fs::read_to_string(directory.path("out/apisix.yaml")).unwrap();
    assert!(resources.contains("response_status: 403") && !resources.contains("upstream"), "{resources}");
    // What is there is not overwritten unasked; what is no nginx.conf is not imported.
    assert_eq!(output(&["import", "--from", "nginx", &conf, "--directory", &into]).status.code(), Some(2));
    let broken = directory.write("broken.conf", "server {\n  listen 80\n}\n");
    let done = output(&["import", "--from", "nginx", &broken, "--directory", &directory.path("b")]);
    assert_eq!(done.status.code(), Some(1));
    assert!(!std::path::Path::new(&directory.path("b")).exists());
    assert!(String::from_utf8_lossy(&done.stderr).contains("broken.conf:3:1: unexpected \"}\""), "{done:?}");
    // Only who uses it wrongly is told so by 2.
    let none =
        output(&["import", "--from", "nginx", &directory.path("none.conf"), "--directory", &into, "--force"]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}

/// Paths and what nginx 1.22 answers there.
type Verdicts = &'static [(&'static str, u16)];

/// Names of servers, and what stands in them.
const WHO_IS_LET_IN: &[(&str, &str, Verdicts)] = &[
    (
        "some.test",
        "allow 127.0.0.0/8; deny all;
         location / { ECHO }
         location /none/ { deny all; ECHO }
         location /all/ { allow all; ECHO }
         location /others/ { deny 10.0.0.0/8; ECHO }",
        &[("/x", 200), ("/none/x", 403), ("/all/x", 200), ("/others/x", 200)],
    ),
    (
        "none.test",
        "deny all;
         location / { ECHO }
         location /all/ { allow all; ECHO }
         location /some/ { allow 127.0.0.1; ECHO }",
        &[("/x", 403), ("/all/x", 200), ("/some/x", 200)],
    ),
    (
        "all.test",
        "allow all;
         location / { ECHO }
         location /none/ { deny all; ECHO }
         location /others/ { allow 10.0.0.0/8; deny all; ECHO }",
        &[("/x", 200), ("/none/x", 403), ("/others/x", 403)],
    ),
    ("http.test", "location / { ECHO } location /all/ { allow all; ECHO }", &[("/x", 403), ("/all/x", 200)]),
    (
        "within.test",
        "allow all;
         location /a/ { ECHO location /a/admin/ { deny all; ECHO } }
         location /b/ { ECHO location ~ admin { location ~ admin/x { internal; ECHO } ECHO } }
         location /c/ { return 200; location /c/admin/ { if ($arg_a = b) { return 403; } deny all; ECHO } }
         location /d/ { ECHO location /d/open/ { auth_basic off; ECHO } }",
        &[("/a/admin/x", 403), ("/b/admin/x", 404), ("/c/admin/x", 403), ("/d/x", 200), ("/d/open/x", 200)],
    ),
];

/// `allow` and `deny` were passed on each by itself, though they are one list; locations within others had their requests
/// answered as those around them.
#[test]
fn nobody_is_let_in_whom_nginx_keeps_out() {
    let directory = Directory::new();
    let (theirs, ours, echo) = (free_port(), free_port(), echo());
    let servers = WHO_IS_LET_IN.iter().map(|(name, text, _)| {
        let text = text.replace("ECHO", &format!("proxy_pass http://127.0.0.1:{echo};"));
        format!("server {{ listen 127.0.0.1:{theirs}; server_name {name}; {text} }}\n")
    });
    let servers: String = servers.collect();
    let conf = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; deny all;\n{servers}}}\n"
    );
    let conf = directory.write("nginx.conf", &conf);
    let into = directory.path("gateway");
    let done = output(&["import", "--from", "nginx", &conf, "--directory", &into]);
    let report = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{report}{}", String::from_utf8_lossy(&done.stderr));

    // Private keys and passwords are written into them.
    for file in ["config.yaml", "apisix.yaml"] {
        let mode =
            std::fs::metadata(directory.path(&format!("gateway/{file}"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }

    gateway_beside(&into, &[(theirs, ours)]);
    let mut command = Command::new("nginx");
    command.args(["-p", directory.0.to_str().unwrap(), "-c", &conf]);
    let _nginx = started(command, theirs);
    let _gateway = started(support::echo::gateway(&into), ours);
    for (name, _, verdicts) in WHO_IS_LET_IN {
        for (path, verdict) in *verdicts {
            assert_eq!(ask(theirs, name, path).0, *verdict, "nginx: {name} {path}");
            // What nginx has no file for is there for nobody, too.
            let allowed = if *verdict == 404 { 403 } else { *verdict };
            assert_eq!(ask(ours, name, path).0, allowed, "{name} {path}\n{report}");
        }
    }
    assert!(
        report.contains("manual") && report.contains("let in nobody, nor to what is around it"),
        "{report}"
    );
}
