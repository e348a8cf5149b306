//! wrk and k6 with the scripts of `bench/wrk` and `bench/k6`, which look at each answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, str};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Deserialize;

use super::load::Latency;
use crate::process::{output, root};

/// What makes the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    Wrk,
    K6,
}

/// Whose 5,000 routes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// APISIX's routes, `/svc/N/*`
    Gateway,
    /// Those of one service behind a client's sidecar
    Sidecar,
}

/// What is asked, of whom, how often.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub script: Script,
    /// Scheme and authority
    pub target: &'a str,
    /// Which route, from 1
    pub route: usize,
    /// Requests a second; as fast as it goes without
    pub rate: Option<u32>,
    pub connections: u32,
    pub seconds: u32,
    /// A new connection for each request; wrk alone can do it
    pub fresh: bool,
}

/// What a tool saw, and found right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    pub requests: f64,
    /// Requests a second
    pub rate: f64,
    pub latency: Latency,
}

impl Tool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::K6 => "k6",
        }
    }

    /// Makes the load with a command that begins with `command`, such as one that stays on a core. Files are written to
    /// `dir`.
    ///
    /// # Errors
    /// The tool fails, or an answer was missing or wrong.
    pub(super) fn run(self, k6: &Path, ask: &Ask<'_>, mut command: Command, dir: &Path) -> Result<Seen> {
        match self {
            Self::Wrk => {
                command.arg("wrk");
                parse_wrk(&output(ask.wrk(&mut command))?)
            }
            Self::K6 => {
                let summary = dir.join("k6.json");
                command.arg(k6).args(["run", "--quiet", "--no-usage-report", "--no-color"]);
                output(ask.k6(command.arg("--summary-export").arg(&summary)))?;
                parse_k6(&fs::read_to_string(&summary)?)
            }
        }
    }
}

impl Script {
    fn file(self, tool: Tool) -> PathBuf {
        let name = match self {
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
        };
        match tool {
            Tool::Wrk => root().join("bench/wrk").join(name).with_extension("lua"),
            Tool::K6 => root().join("bench/k6").join(name).with_extension("js"),
        }
    }
}

impl Ask<'_> {
    /// Adds wrk's arguments behind its name.
    pub(crate) fn wrk<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.args(["-t1", "--timeout", "10s"]);
        command.args([format!("-c{}", self.connections), format!("-d{}s", self.seconds)]);
        command.arg("-s").arg(Script::file(self.script, Tool::Wrk)).arg(self.target);
        command.env("ROUTE", self.route.to_string());
        match self.rate {
            Some(rate) => command.env("RATE", rate.to_string()),
            None => command.env_remove("RATE"),
        };
        command.env_remove("EXPECT").env("FRESH", if self.fresh { "1" } else { "" })
    }

    /// Adds k6's arguments behind `run`.
    fn k6<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let mut set = |name: &str, value: String| {
            command.arg("-e").arg(format!("{name}={value}"));
        };
        set("TARGET", self.target.to_owned());
        set("ROUTE", self.route.to_string());
        set("RATE", self.rate.unwrap_or(0).to_string());
        set("CONNECTIONS", self.connections.to_string());
        set("SECONDS", self.seconds.to_string());
        command.arg(Script::file(self.script, Tool::K6))
    }
}

/// The last line that `bench/wrk/common.lua` prints.
#[derive(Deserialize)]
struct WrkLine {
    requests: f64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

fn parse_wrk(text: &str) -> Result<Seen> {
    let line = text.lines().rfind(|line| line.starts_with('{')).context("wrk's script printed nothing")?;
    let WrkLine { requests, seconds, p50_us, p99_us } = serde_json::from_str(line)?;
    Ok(Seen { requests, rate: requests / seconds, latency: Latency { p50: p50_us, p99: p99_us } })
}

#[derive(Deserialize)]
struct K6Summary {
    metrics: K6Metrics,
}

#[derive(Deserialize)]
struct K6Metrics {
    http_reqs: K6Counter,
    http_req_duration: K6Trend,
}

#[derive(Deserialize)]
struct K6Counter {
    count: f64,
    rate: f64,
}

#[derive(Deserialize)]
struct K6Trend {
    /// Milliseconds, as all that k6 measures
    med: f64,
    #[serde(rename = "p(99)")]
    p99: f64,
}

fn parse_k6(text: &str) -> Result<Seen> {
    let K6Metrics { http_reqs, http_req_duration: times } =
        serde_json::from_str::<K6Summary>(text).context("k6's summary")?.metrics;
    let latency = Latency { p50: times.med * 1e3, p99: times.p99 * 1e3 };
    Ok(Seen { requests: http_reqs.count, rate: http_reqs.rate, latency })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_line_of_wrk_is_what_the_script_saw() {
        let text = "  100 requests in 2.00s, 1MB read\n{\"requests\":100,\"seconds\":2.000000,\"p50_us\":182,\"p99_us\":5149}\n";
        let latency = Latency { p50: 182.0, p99: 5_149.0 };
        assert_eq!(parse_wrk(text).unwrap(), Seen { requests: 100.0, rate: 50.0, latency });
        assert!(parse_wrk("  100 requests in 2.00s\n").is_err());
    }

    #[test]
    fn k6_counts_in_milliseconds() {
        let text = r#"{"metrics":{"http_reqs":{"count":9,"rate":4.5},"http_req_duration":{"med":0.25,"p(99)":1.5}}}"#;
        let latency = Latency { p50: 250.0, p99: 1_500.0 };
        assert_eq!(parse_k6(text).unwrap(), Seen { requests: 9.0, rate: 4.5, latency });
    }

    #[test]
    fn every_script_is_there_and_has_the_target() {
        for script in [Script::Gateway, Script::Sidecar] {
            for tool in [Tool::Wrk, Tool::K6] {
                assert!(script.file(tool).is_file(), "{script:?} {tool:?}");
            }
            let ask = Ask {
                script,
                target: "http://127.0.0.1:1",
                route: 5_000,
                rate: Some(100),
                connections: 8,
                seconds: 3,
                fresh: true,
            };
            let mut command = Command::new("wrk");
            ask.wrk(&mut command);
            assert!(command.get_args().any(|word| word == "http://127.0.0.1:1"));
            assert!(
                command.get_envs().any(|(name, value)| name == "ROUTE" && value.is_some_and(|v| v == "5000"))
            );
            let mut command = Command::new("k6");
            assert!(ask.k6(&mut command).get_args().any(|word| word == "RATE=100"));
        }
    }
}
