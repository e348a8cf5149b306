//! The load generators, and what they print.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cases::{Case, Protocol};
use super::peers::{LOAD_CORE, Running, pinned};
use super::stats::quantile;
use super::upstream::Upstream;
use crate::process::output;

/// Connections of wrk, and of h2load at a fixed rate.
const CONNECTIONS: u32 = 64;

/// As many requests as went through in a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Throughput {
    pub requests: f64,
    /// Requests a second
    pub rate: f64,
}

/// Latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// As fast as it goes: wrk with 64 connections, or h2load with 8 connections of 32 streams, 8 where bodies are long. What
/// is sent is sent by h2load.
///
/// # Errors
/// The generator fails, or a request does.
pub(super) fn saturate(
    case: &Case,
    proxy: &Running,
    upstream: &Upstream,
    seconds: u32,
) -> Result<Throughput> {
    let url = proxy.url(case);
    if !case.protocol.is_http2() && case.upload.is_none() {
        return http1(&url, seconds);
    }
    let mut command = pinned(LOAD_CORE);
    command.args(["h2load", "-t1", &format!("-D{seconds}")]);
    match case.protocol {
        Protocol::H2c | Protocol::Grpc => command.args(["-c8", "-m32"]),
        Protocol::H2 => command.args(["-c8", "-m8"]),
        Protocol::Http1 | Protocol::Tls13 => command.args(["--h1", &format!("-c{CONNECTIONS}")]),
    };
    sent(&mut command, case, upstream);
    parse_h2load(&output(command.arg(url))?)
}

/// As fast as it goes over HTTP/1, with or without TLS.
///
/// # Errors
/// The generator fails, or a request does.
pub(super) fn http1(url: &str, seconds: u32) -> Result<Throughput> {
    let mut command = pinned(LOAD_CORE);
    command.args(["wrk", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    command.args(["-H", "x-tenant: 3000", url]);
    parse_wrk(&output(&mut command)?)
}

/// Latency at the case's arrival rate, by h2load: the times of all single requests.
///
/// # Errors
/// The generator fails, or a request does.
pub(super) fn latency(
    case: &Case,
    proxy: &Running,
    upstream: &Upstream,
    seconds: u32,
    dir: &Path,
) -> Result<Latency> {
    let mut command = pinned(LOAD_CORE);
    command.args(["h2load", "-t1"]);
    let clients = match case.protocol {
        Protocol::Http1 | Protocol::Tls13 => {
            command.arg("--h1");
            CONNECTIONS
        }
        Protocol::H2c | Protocol::H2 | Protocol::Grpc => 8,
    };
    sent(&mut command, case, upstream);
    at_rate(&mut command, &[&proxy.url(case)], case.rate, clients, seconds, dir)
}

/// Runs an h2load command that lacks nothing but rate, time and URLs of one server.
pub(super) fn at_rate(
    command: &mut Command,
    urls: &[&str],
    rate: u32,
    clients: u32,
    seconds: u32,
    dir: &Path,
) -> Result<Latency> {
    let log = dir.join("h2load.log");
    let _ = fs::remove_file(&log);
    command.args([format!("-c{clients}"), format!("--rps={}", rate / clients), format!("-D{seconds}")]);
    command.args(["-H", "x-tenant: 3000"]).arg(format!("--log-file={}", log.display())).args(urls);
    parse_h2load(&output(command)?)?;
    let mut times = parse_log(&fs::read_to_string(&log)?)?;
    let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    Ok(Latency {
        p50: p50.context("h2load logged no request")?,
        p99: p99.context("h2load logged no request")?,
    })
}

/// What each request of a case sends.
fn sent(command: &mut Command, case: &Case, upstream: &Upstream) {
    if let Some(bytes) = case.upload {
        command.arg("-d").arg(upstream.body(bytes));
    }
    if case.protocol == Protocol::Grpc {
        command.arg("-d").arg(upstream.message());
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    }
}

/// A number of requests by some clients, each of which cycles through the URIs of a file.
///
/// # Errors
/// The generator fails, or a request does.
pub(super) fn visit(uris: &Path, requests: usize, clients: u32) -> Result<()> {
    let mut command = pinned(LOAD_CORE);
    command.args(["h2load", "--h1", "-t1", &format!("-c{clients}"), "-H", "x-tenant: 3000"]);
    command.args(["-n", &requests.to_string(), "-i"]);
    parse_h2load(&output(command.arg(uris))?).map(drop)
}

fn parse_wrk(text: &str) -> Result<Throughput> {
    for bad in ["Non-2xx or 3xx responses", "Socket errors"] {
        if let Some(line) = text.lines().find(|line| line.contains(bad)) {
            bail!("wrk: {}", line.trim());
        }
    }
    let requests =
        text.lines().find_map(|line| line.trim().split_once(" requests in")).map(|(number, _)| number);
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let (Some(requests), Some(rate)) = (requests, rate) else { bail!("wrk printed no result:\n{text}") };
    Ok(Throughput { requests: requests.trim().parse()?, rate: rate.trim().parse()? })
}

fn parse_h2load(text: &str) -> Result<Throughput> {
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).context("h2load printed no result");
    let number_before = |line: &str, word: &str| -> Result<f64> {
        let part =
            line.split([',', ':']).find(|part| part.trim().ends_with(word)).context("a count is missing")?;
        Ok(part.trim().split(' ').next().unwrap_or_default().parse()?)
    };
    let (requests, statuses) = (line("requests:")?, line("status codes:")?);
    let succeeded = number_before(statuses, "2xx")?;
    let others =
        ["3xx", "4xx", "5xx"].iter().map(|kind| number_before(statuses, kind)).sum::<Result<f64>>()?;
    let failed = number_before(requests, "failed")? + number_before(requests, "timeout")?;
    if others + failed > 0.0 || succeeded == 0.0 {
        bail!("h2load: {requests}; {statuses}");
    }
    let rate = number_before(line("finished in")?, "req/s")?;
    Ok(Throughput { requests: succeeded, rate })
}

/// The third column of h2load's log: microseconds from a request's start to the end of its response.
fn parse_log(text: &str) -> Result<Vec<f64>> {
    let column = |line: &str| line.split('\t').nth(2).and_then(|time| time.parse().ok());
    text.lines().map(|line| column(line).with_context(|| format!("h2load's log: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn wrk_gives_requests_and_rate() {
        let text =
            "Running 3s test @ http://x\n  180331 requests in 3.10s, 30.1MB read\nRequests/sec:  58171.61\n";
        assert_eq!(parse_wrk(text).unwrap(), Throughput { requests: 180_331.0, rate: 58_171.61 });
    }

    #[test]
    fn a_failed_request_spoils_the_run() {
        let text = "  10 requests in 3.10s, 1MB read\n  Non-2xx or 3xx responses: 3\nRequests/sec: 5.0\n";
        assert!(parse_wrk(text).unwrap_err().to_string().contains("Non-2xx"));
        let text = "finished in 1.00s, 9.00 req/s, 1KB/s\nrequests: 10 total, 10 started, 10 done, 9 succeeded, \
                    1 failed, 0 errored, 0 timeout\nstatus codes: 9 2xx, 0 3xx, 0 4xx, 1 5xx\n";
        assert!(parse_h2load(text).unwrap_err().to_string().contains("1 5xx"));
    }

    #[test]
    fn h2load_gives_requests_and_rate() {
        let text = "finished in 3.00s, 24133.33 req/s, 1.2MB/s\nrequests: 72400 total, 72656 started, 72400 done, \
                    72400 succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: 72400 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(parse_h2load(text).unwrap(), Throughput { requests: 72_400.0, rate: 24_133.33 });
    }

    #[test]
    fn a_log_line_has_its_time_in_the_third_column() {
        assert_eq!(
            parse_log("1700000000000000\t200\t153\n1700000000000001\t200\t90\n").unwrap(),
            [153.0, 90.0]
        );
        assert!(parse_log("nonsense\n").is_err());
    }
}
