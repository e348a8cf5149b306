//! Load by wrk (Debian's package of that name) with the script of `bench/wrk`, which looks at every answer.

use std::process::Command;
use std::time::Duration;

/// What is asked, as the `uri` of a route, and the whole answer.
pub const ASKED: (&str, &str) = ("/svc/1/*", "steady");

/// What wrk saw.
pub struct Measured {
    pub requests: u64,
    pub median: Duration,
    pub p99: Duration,
}

/// 16 connections that ask so many times a second together (`RATE` of the environment stands above that; 0 is as fast as it
/// goes), for so long. An answer that is wrong or does not come fails the test.
pub fn wrk(port: u16, rate: u32, time: Duration) -> Measured {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/wrk/gateway.lua");
    let rate = std::env::var("RATE").unwrap_or_else(|_| rate.to_string());
    let mut command = Command::new("wrk");
    command.env("ROUTE", "1").env("EXPECT", ASKED.1).env("RATE", rate);
    command.args(["-t1", "-c16", &format!("-d{}s", time.as_secs()), "-s", script]);
    command.arg(format!("http://127.0.0.1:{port}"));
    let done = command.output().expect("wrk is needed: Debian's package of that name");
    let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{errors}");
    let seen = out.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    let seen: serde_json::Value = serde_json::from_str(seen).unwrap();
    let time = |name: &str| Duration::from_micros(seen[name].as_u64().unwrap());
    Measured { requests: seen["requests"].as_u64().unwrap(), median: time("p50_us"), p99: time("p99_us") }
}
