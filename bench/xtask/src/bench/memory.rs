//! Resident memory of sixfold as an APISIX gateway: what routes with upstreams of their own take, and what the keys of
//! a limit do.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use super::apisix::{Gateway, routes};
use super::cases::{ROUTES, Table};
use super::client::Client;
use super::load;
use super::measure::Bench;
use super::procfs;

/// What is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// 5,000 routes that each bring an upstream, in a process with so many workers
    Upstreams { workers: u32 },
    /// So many keys of one limit-count
    Keys(usize),
}

/// Megabytes (10^6 bytes).
#[derive(Debug)]
pub(super) struct Resident {
    pub held: Held,
    /// Before the first request
    pub idle: f64,
    /// After one request to each route, or by each key
    pub after: f64,
}

impl Held {
    pub(super) fn title(self) -> String {
        match self {
            Self::Upstreams { workers: 1 } => "5,000 routes with an upstream each, 1 worker".to_owned(),
            Self::Upstreams { workers } => {
                format!("5,000 routes with an upstream each, {workers} workers")
            }
            Self::Keys(keys) => format!("limit-count, {keys} keys"),
        }
    }
}

/// # Errors
/// The gateway does not start, a request fails, or a key is not counted.
pub(super) fn measure(bench: &Bench<'_>, held: Held) -> Result<Resident> {
    match held {
        Held::Upstreams { workers } => {
            let dir = bench.dir.join(format!("upstreams-{workers}"));
            let text = routes(bench.upstream.http1, None);
            let gateway = Gateway::start(&bench.programs.sixfold, dir, workers, &text)?;
            let idle = idle(&gateway)?;
            // One request a route, by one client: more would leave more connections open than the upstream has.
            load::visit(&gateway.urls_of_all_routes()?, ROUTES, 1)?;
            resident(&gateway, held, idle)
        }
        Held::Keys(keys) => {
            let text = limited(bench.upstream.http1);
            let gateway = Gateway::start(&bench.programs.sixfold, bench.dir.join("keys"), 1, &text)?;
            let idle = idle(&gateway)?;
            let file = gateway.dir.join("urls.txt");
            write_keys(&file, keys, &gateway)?;
            load::visit(&file, keys, 1)?;
            let resident = resident(&gateway, held, idle)?;
            // Each key may come once, so one that comes again tells whether it was kept.
            let mut client = Client::connect(gateway.port)?;
            for n in [1, keys / 2, keys] {
                let status = client.get(&path_with_key(n))?.status;
                if status != REJECTED {
                    bail!("key {n} of {keys} was forgotten: {status}");
                }
            }
            Ok(resident)
        }
    }
}

/// What a key gets that comes too often.
const REJECTED: u16 = 429;

fn limited(upstream: u16) -> String {
    format!(
        "routes:\n  - id: 1\n    uri: /svc/1/*\n    plugins:\n      limit-count:\n        count: 1\n        time_window: 3600\n        \
         key: arg_key\n        rejected_code: {REJECTED}\n    upstream:\n      type: roundrobin\n      nodes:\n        \
         \"127.0.0.1:{upstream}\": 1\n#END\n"
    )
}

fn path_with_key(n: usize) -> String {
    format!("{}?key=user-{n:07}", Table::path_of(1))
}

fn write_keys(file: &Path, keys: usize, gateway: &Gateway) -> Result<()> {
    let mut text = String::new();
    for n in 1..=keys {
        let _ = writeln!(text, "{}", gateway.url(&path_with_key(n)));
    }
    Ok(fs::write(file, text)?)
}

fn idle(gateway: &Gateway) -> Result<f64> {
    sleep(Duration::from_secs(1)); // what it still does after it listens is not idle memory
    procfs::resident_megabytes(gateway.process.id())
}

fn resident(gateway: &Gateway, held: Held, idle: f64) -> Result<Resident> {
    Ok(Resident { held, idle, after: procfs::resident_megabytes(gateway.process.id())? })
}

/// A table of all that was measured; empty when nothing was.
pub(super) fn section(rows: &[Resident]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = "\n## Resident memory as an APISIX gateway\n\n`sixfold run`, idle and after one request to each route, or with each key. \
                    Each route that was asked keeps a connection to its upstream. Megabytes of 10^6 bytes.\n\n\
                    | what | idle MB | after MB |\n| --- | ---: | ---: |\n"
        .to_owned();
    for Resident { held, idle, after } in rows {
        let _ = writeln!(text, "| {} | {idle:.1} | {after:.1} |", held.title());
    }
    text
}
