//! The figures that this project sets itself, held against a run.

use std::fmt::Write;

use super::change::By;
use super::memory::Held;
use super::peers::Peer;
use super::report::Report;
use super::scale::Scale;

/// The case, the peer, and the most that our CPU a request may be of the peer's.
const RATIOS: &[(&str, Peer, f64)] = &[
    ("one", Peer::Nginx, 0.95),
    ("one", Peer::TcpForward, 1.30),
    ("one", Peer::Envoy, 0.36),
    // What was reached before: they may not get worse.
    ("prefix-3000", Peer::Envoy, 0.129),
    ("exact-3000", Peer::Envoy, 0.137),
    ("regex-3000", Peer::Envoy, 0.062),
    ("header", Peer::Envoy, 0.072),
    ("h2c", Peer::Envoy, 1.0 / 2.5),
    ("tls", Peer::Envoy, 1.0 / 2.5),
    ("h2c", Peer::Haproxy, 1.2),
    ("grpc", Peer::Haproxy, 1.2),
];

/// Cases of long bodies, and the most that our CPU a request may be of Envoy's and of HAProxy's.
const BODIES: &[&str] = &[
    "body",
    "body-1m",
    "upload",
    "upload-1m",
    "body-tls",
    "body-1m-tls",
    "upload-tls",
    "upload-1m-tls",
    "body-h2",
    "body-1m-h2",
    "upload-h2",
    "upload-1m-h2",
];
const OF_BODIES: [(Peer, f64); 2] = [(Peer::Envoy, 0.8), (Peer::Haproxy, 1.1)];

/// Every ratio that is a goal, as in [`RATIOS`].
fn ratios() -> impl Iterator<Item = (&'static str, Peer, f64)> {
    let bodies = BODIES.iter().flat_map(|name| OF_BODIES.map(|(peer, most)| (*name, peer, most)));
    RATIOS.iter().copied().chain(bodies)
}

/// The case, and the most resident megabytes after 100,000 requests over all routes.
const MEGABYTES: &[(&str, f64)] = &[
    ("one", 15.0),
    ("prefix-3000", 30.0),
    ("exact-3000", 30.0),
    ("header", 30.0),
    ("regex-3000", 30.0),
    ("wild-regex-3000", 45.0),
];

/// What an APISIX gateway holds, and the most resident megabytes with it once all of it was asked for.
const HELD: &[(Held, f64)] = &[
    (Held::Upstreams { workers: 1 }, 35.0),
    (Held::Upstreams { workers: 4 }, 40.0),
    (Held::Keys(1_000_000), 100.0),
];

/// The most milliseconds until one changed route of 5,000 is live, by who tells of it.
const LIVE: &[(By, f64, &str)] =
    &[(By::File, 15.0, "by a file"), (By::Process, 5.0, "from within the process")];

/// The most that p99 may be with a thousand changes a second of that without, and seconds that the changes of ten
/// seconds may take.
const STORM: (f64, f64) = (2.0, 10.1);

/// A figure of a sidecar among 1,000 services.
type Figure = fn(&Scale) -> f64;

/// The most that such a sidecar may take of what Envoy takes.
const OF_ENVOY: &[(&str, f64, Figure)] = &[
    ("ms until a sidecar among 1,000 services is ready", 0.40, |row| row.ready.median),
    ("CPU until then", 0.40, |row| row.cpu.median),
    ("resident memory then", 0.40, |row| row.resident.median),
    ("CPU of one changed endpoint of 5,000", 0.10, |row| row.change.median),
];

/// The most milliseconds until one changed endpoint of 5,000 is live.
const ENDPOINT_LIVE: f64 = 5.0;

/// The most that our CPU a request from one sidecar to another may be of Envoy's.
const SIDECARS: f64 = 0.40;

/// A filter, and the most nanoseconds that it may add to a request.
const FILTERS: &[(&str, f64)] = &[
    ("rbac-paths", 1_000.0),
    ("rbac-principals", 1_000.0),
    ("rbac-one-path", 1_000.0),
    ("rbac-namespaces", 1_000.0),
    ("rbac-addresses", 1_000.0),
    ("jwt", 15_000.0),
    ("jwt-cache", 15_000.0),
    ("limit", 300.0),
    ("limit-descriptors", 300.0),
    ("limit-values", 300.0),
    ("gateway", 1_500.0),
    ("limit-count", 1_000.0),
    ("jwt-auth", 5_000.0),
    ("key-auth", 300.0),
];

/// A table of all goals that the run says something about; empty when it says nothing.
pub(super) fn section(report: &Report) -> String {
    let mut lines = String::new();
    for (name, peer, most) in ratios() {
        let case = report.cases.iter().find(|result| result.case.name == name);
        if let Some(row) = case.and_then(|case| case.rows.iter().find(|row| row.peer == peer))
            && !row.ratio.median.is_nan()
        {
            let what = format!("CPU a request, `{name}`, ours / {}", peer.name());
            lines += &line(&what, most, row.ratio.median, 3);
        }
    }
    for (name, most) in MEGABYTES {
        let ours = |(case, peer, _, _): &&(&super::cases::Case, Peer, f64, f64)| {
            case.name == *name && *peer == Peer::Sixfold
        };
        if let Some((_, _, _, after)) = report.memory.iter().find(ours) {
            lines += &line(&format!("resident MB after 100,000 requests, `{name}`"), *most, *after, 1);
        }
    }
    lines += &of_mesh(report);
    lines += &of_gateway(report);
    if lines.is_empty() {
        return lines;
    }
    format!("\n## Goals\n\n| goal | at most | measured | reached |\n| --- | ---: | ---: | --- |\n{lines}")
}

fn of_mesh(report: &Report) -> String {
    let mut lines = String::new();
    for (name, most) in FILTERS {
        if let Some(cost) = report.filters.iter().find(|cost| cost.name == *name) {
            lines += &line(&format!("us a request, {}", cost.title), most / 1e3, cost.nanoseconds / 1e3, 2);
        }
    }
    let theirs = report.sidecars.iter().find(|row| row.peer == Peer::Envoy);
    if let Some(theirs) = theirs.filter(|row| !row.ratio.median.is_nan()) {
        lines += &line("CPU a request, `sidecar`, ours / Envoy", SIDECARS, theirs.ratio.median, 3);
    }
    let of = |peer: Peer| report.scale.iter().find(|row| row.peer == peer);
    let Some(ours) = of(Peer::Sixfold) else { return lines };
    if let Some(theirs) = of(Peer::Envoy) {
        for (what, most, figure) in OF_ENVOY {
            lines += &line(&format!("{what}, ours / Envoy"), *most, figure(ours) / figure(theirs), 3);
        }
    }
    lines += &line("ms until one changed endpoint of 5,000 is live", ENDPOINT_LIVE, ours.live.median, 1);
    lines
}

fn of_gateway(report: &Report) -> String {
    let mut lines = String::new();
    for (held, most) in HELD {
        if let Some(row) = report.resident.iter().find(|row| row.held == *held) {
            // Each route that was asked keeps a connection; the goal is about what is configured.
            let measured = if matches!(held, Held::Keys(_)) { row.after } else { row.idle };
            lines += &line(&format!("resident MB, {}", held.title()), *most, measured, 1);
        }
    }
    for (by, most, how) in LIVE {
        if let Some(change) = report.changes.iter().find(|change| change.by == *by) {
            let what = format!("ms until one changed route of 5,000 is live, {how}");
            lines += &line(&what, *most, change.live.median, 1);
        }
    }
    if let Some(storm) = &report.storm {
        let (slower, seconds) = STORM;
        lines += &line("p99 with 1,000 changes a second / without", slower, storm.slower(), 2);
        lines += &line(&format!("s for {} changes", storm.changes), seconds, storm.seconds, 1);
    }
    lines
}

fn line(what: &str, most: f64, measured: f64, digits: usize) -> String {
    let reached = if measured <= most { "yes".to_owned() } else { format!("no, {:.2}x", measured / most) };
    let mut text = String::new();
    let _ = writeln!(text, "| {what} | {most:.digits$} | {measured:.digits$} | {reached} |");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_or_missed_by_a_factor() {
        assert!(line("x", 20.0, 20.0, 1).ends_with("| 20.0 | 20.0 | yes |\n"));
        assert!(line("x", 20.0, 30.0, 1).ends_with("| 20.0 | 30.0 | no, 1.50x |\n"));
    }

    #[test]
    fn every_goal_is_about_a_case_and_a_peer_of_it() {
        for (name, peer, _) in ratios() {
            let case = super::super::cases::CASES.iter().find(|case| case.name == name);
            assert!(case.is_some_and(|case| case.peers.contains(&peer)), "{name}");
        }
    }
}
