//! `sixfold status` says by its exit code whether a gateway serves; `sixfold man` writes pages for all commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use support::gateway::{Gateway, Ports};
use support::{Directory, free_port, output};

/// Exit code, standard output, standard error.
fn status(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = output(&[&["status"], arguments].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn a_gateway_that_serves_is_ok_and_one_that_does_not_is_named() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = directory.write("config.yaml", &ports.config("role: traditional"));
    let address = format!("127.0.0.1:{}", ports.status);
    let (code, _, errors) = status(&["-c", &config]);
    assert_eq!(code, Some(1));
    assert!(errors.starts_with(&address), "{errors}");
    let mut gateway = Gateway::start(&directory, ports);
    // It listens a moment before it says that it does.
    gateway.process.until("readiness", || (status(&["-c", &config]).0 == Some(0)).then_some(()));
    for arguments in [&["-c", &config][..], &["--address", &address], &["--address", &address, "--live"]] {
        assert_eq!(status(arguments), (Some(0), "ok".to_owned(), String::new()), "{arguments:?}");
    }
    let (code, told, _) = status(&["-c", &config, "--output", "json"]);
    assert_eq!((code, told), (Some(0), format!("{{\"address\":\"{address}\",\"ok\":true,\"reason\":null}}")));
    drop(gateway);
    let (code, told, _) = status(&["-c", &config, "--output", "json"]);
    assert!(code == Some(1) && told.contains("\"ok\":false,\"reason\":\""), "{told}");
}

#[test]
fn what_a_gateway_that_waits_says_is_passed_on() {
    let (directory, mut ports) = (Directory::new(), Ports::free());
    // Nothing has been put to the standalone API yet.
    ports.http = free_port();
    let provider = "role: traditional\n  role_traditional: {config_provider: yaml}";
    let config = directory.write("config.yaml", &ports.config(provider));
    let mut process = support::gateway::start(&directory);
    process.until("the status server", || (status(&["-c", &config, "--live"]).0 == Some(0)).then_some(()));
    let (code, _, errors) = status(&["-c", &config]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("/status/ready answers 503 ") && errors.contains("configuration"), "{errors}");
}

/// It went on to say that it is ready, so that a balancer sent what was then refused.
#[test]
fn a_gateway_that_drains_is_not_ready() {
    let (directory, ports, upstream) =
        (Directory::new(), Ports::free(), TcpListener::bind("127.0.0.1:0").unwrap());
    let config = directory.write("config.yaml", &ports.config("role: traditional"));
    let mut gateway = Gateway::start(&directory, ports);
    let node = upstream.local_addr().unwrap();
    let route = format!(r#"{{"uri":"/slow","upstream":{{"type":"roundrobin","nodes":{{"{node}":1}}}}}}"#);
    assert_eq!(gateway.ask("PUT", "/routes/slow", &route).status, 201);
    // Changes come in their order.
    assert_eq!(gateway.ask("PUT", "/routes/go", &support::gateway::route("/go", "on")).status, 201);
    gateway.until_status("/go", 200);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", ports.http)).unwrap();
    support::send(&mut stream, "GET", "/slow", &[]);
    // Its answer is waited for.
    let (mut held, _) = upstream.accept().unwrap();
    gateway.process.signal("TERM");
    let told = gateway.process.until("the drain", || {
        let (code, _, errors) = status(&["-c", &config]);
        (code == Some(1)).then_some(errors)
    });
    assert!(told.contains("/status/ready answers 503 the gateway is ending"), "{told}");
    assert_eq!(status(&["-c", &config, "--live"]).0, Some(0));
    held.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
    assert_eq!(support::read(&mut stream).map(|answer| answer.body), Some("hi".to_owned()));
    assert_eq!(gateway.process.wait(), 0);
}

#[test]
fn a_status_server_that_is_off_can_not_be_asked() {
    let directory = Directory::new();
    let config = directory.write("config.yaml", "apisix: {status: ~}\n");
    let (code, _, errors) = status(&["-c", &config]);
    assert_eq!((code, errors.contains("apisix.status is off")), (Some(1), true), "{errors}");
}

#[test]
fn the_administration_of_envoys_mode_is_asked_for_ready() {
    for (answer, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.1 {answer}\r\nconnection: close\r\n\r\nDRAINING\n").unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        assert_eq!(status(&["--admin", &address]).0, Some(code), "{answer}");
        assert!(server.join().unwrap().starts_with("GET /ready HTTP/1.1\r\n"));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = Directory::new();
    let done = output(&["man", "--directory", directory.0.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    for name in
        ["sixfold", "sixfold-run", "sixfold-envoy", "sixfold-status", "sixfold-xds-serve", "sixfold-man"]
    {
        let page = std::fs::read_to_string(directory.path(&format!("{name}.1"))).expect(name);
        assert!(page.contains(".TH ") && page.contains(".SH NAME"), "{name}: {page}");
        assert_eq!(page.contains("SIGUSR2"), ["sixfold-run", "sixfold-envoy"].contains(&name), "{name}");
    }
    let page = String::from_utf8(output(&["man", "xds", "serve"]).stdout).unwrap();
    assert!(page.contains("sixfold\\-xds\\-serve") && page.contains("faults"), "{page}");
    assert!(!output(&["man", "nothing"]).status.success());
}
