//! `sixfold top` shows what a proxy is doing: live on a terminal, plain elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use support::output;

/// An administration whose cluster has had 100 requests more each time it is asked.
fn administration() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (asked, mut stream) in listener.incoming().flatten().enumerate() {
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap_or(0);
            assert!(head[..read].starts_with(b"GET /stats HTTP/1.1\r\n"));
            let body = format!(
                "cluster.shop.upstream_rq_total: {}\nlistener.127.0.0.1_80.downstream_cx_active: 7\n",
                asked * 100
            );
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
        }
    });
    address
}

#[test]
fn off_a_terminal_it_is_one_plain_table() {
    let done = output(&["top", "--admin", &administration(), "--interval", "0.1"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{text}");
    assert!(text.starts_with("listener ") && !text.contains('\u{1b}'), "{text}");
    let row = text.lines().find(|line| line.starts_with("shop ")).expect("the cluster");
    let per_second: f64 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((100.0..=1000.0).contains(&per_second), "{row}");
    assert!(text.lines().any(|line| line.starts_with("127.0.0.1_80 ") && line.ends_with(" 7")), "{text}");
}

#[test]
fn on_a_terminal_each_table_takes_the_place_of_the_last() {
    let line = format!(
        "{} top --admin {} --interval 0.1 --count 2",
        env!("CARGO_BIN_EXE_sixfold"),
        administration()
    );
    // script(1) gives a process a terminal of its own.
    let done = Command::new("script").args(["-qec", &line, "/dev/null"]).output().expect("script");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{text}");
    assert_eq!(text.matches("\u{1b}[H\u{1b}[J").count(), 2, "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("shop ")).count(), 2, "{text}");
    // Nor is anything coloured of those that judge.
    let line = format!("{} doctor -c Cargo.toml", env!("CARGO_BIN_EXE_sixfold"));
    let done = Command::new("script").args(["-qec", &line, "/dev/null"]).output().expect("script");
    assert!(!String::from_utf8_lossy(&done.stdout).contains("\u{1b}["));
}

#[test]
fn a_proxy_that_does_not_answer_is_named() {
    let address = format!("127.0.0.1:{}", support::free_port());
    let done = output(&["top", "--admin", &address]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).starts_with(&address));
}
