//! The figures that this project sets itself, held against a run.

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

/// A goal, and what a run says of it.
struct Goal {
    what: String,
    most: f64,
    measured: Option<f64>,
    digits: usize,
}

impl Goal {
    fn new(what: impl Into<String>, most: f64, measured: Option<f64>, digits: usize) -> Goal {
        Goal { what: what.into(), most, measured: measured.filter(|measured| !measured.is_nan()), digits }
    }

    fn line(&self) -> String {
        let Goal { what, most, digits, .. } = self;
        let (measured, reached) = match self.measured {
            None => ("-".to_owned(), "not measured".to_owned()),
            Some(measured) if measured <= *most => (format!("{measured:.digits$}"), "yes".to_owned()),
            Some(measured) => (format!("{measured:.digits$}"), format!("no, {:.2}x", measured / most)),
        };
        format!("| {what} | {most:.digits$} | {measured} | {reached} |\n")
    }
}

/// A table of the goals: of a whole run all of them, so that none is missed by not being looked at; else those that it says
/// something about, and nothing where there are none.
pub(super) fn section(report: &Report, whole: bool) -> String {
    let goals = of_requests(report).into_iter().chain(of_mesh(report)).chain(of_gateway(report));
    let lines: String =
        goals.filter(|goal| whole || goal.measured.is_some()).map(|goal| goal.line()).collect();
    if lines.is_empty() {
        return lines;
    }
    format!("\n## Goals\n\n| goal | at most | measured | reached |\n| --- | ---: | ---: | --- |\n{lines}")
}

fn of_requests(report: &Report) -> Vec<Goal> {
    let ratios = ratios().map(|(name, peer, most)| {
        let case = report.cases.iter().find(|result| result.case.name == name);
        let row = case.and_then(|case| case.rows.iter().find(|row| row.peer == peer));
        let what = format!("CPU a request, `{name}`, ours / {}", peer.name());
        Goal::new(what, most, row.map(|row| row.ratio.median), 3)
    });
    let megabytes = MEGABYTES.iter().map(|(name, most)| {
        let ours = |(case, peer, _, _): &&(&super::cases::Case, Peer, f64, f64)| {
            case.name == *name && *peer == Peer::Sixfold
        };
        let after = report.memory.iter().find(ours).map(|(_, _, _, after)| *after);
        Goal::new(format!("resident MB after 100,000 requests, `{name}`"), *most, after, 1)
    });
    ratios.chain(megabytes).collect()
}

fn of_mesh(report: &Report) -> Vec<Goal> {
    let filters = FILTERS.iter().map(|(name, most)| {
        let cost = report.filters.iter().find(|cost| cost.name == *name);
        let what = cost.map_or_else(
            || format!("us a request, `{name}`"),
            |cost| format!("us a request, {}", cost.title),
        );
        Goal::new(what, most / 1e3, cost.map(|cost| cost.nanoseconds / 1e3), 2)
    });
    let mut goals: Vec<Goal> = filters.collect();
    let theirs = report.sidecars.iter().find(|row| row.peer == Peer::Envoy);
    let ratio = theirs.map(|theirs| theirs.ratio.median);
    goals.push(Goal::new("CPU a request, `sidecar`, ours / Envoy", SIDECARS, ratio, 3));
    let of = |peer: Peer| report.scale.iter().find(|row| row.peer == peer);
    let (ours, theirs) = (of(Peer::Sixfold), of(Peer::Envoy));
    for (what, most, figure) in OF_ENVOY {
        let measured = ours.zip(theirs).map(|(ours, theirs)| figure(ours) / figure(theirs));
        goals.push(Goal::new(format!("{what}, ours / Envoy"), *most, measured, 3));
    }
    let live = ours.map(|ours| ours.live.median);
    goals.push(Goal::new("ms until one changed endpoint of 5,000 is live", ENDPOINT_LIVE, live, 1));
    goals
}

fn of_gateway(report: &Report) -> Vec<Goal> {
    let held = HELD.iter().map(|(held, most)| {
        let row = report.resident.iter().find(|row| row.held == *held);
        // Each route that was asked keeps a connection; the goal is about what is configured.
        let measured = row.map(|row| if matches!(held, Held::Keys(_)) { row.after } else { row.idle });
        Goal::new(format!("resident MB, {}", held.title()), *most, measured, 1)
    });
    let live = LIVE.iter().map(|(by, most, how)| {
        let change = report.changes.iter().find(|change| change.by == *by);
        let what = format!("ms until one changed route of 5,000 is live, {how}");
        Goal::new(what, *most, change.map(|change| change.live.median), 1)
    });
    let (storm, (slower, seconds)) = (report.storm.as_ref(), STORM);
    let changes = storm.map_or(10_000, |storm| storm.changes);
    let of_storm = [
        Goal::new("p99 with 1,000 changes a second / without", slower, storm.map(|storm| storm.slower()), 2),
        Goal::new(format!("s for {changes} changes"), seconds, storm.map(|storm| storm.seconds), 1),
    ];
    held.chain(live).chain(of_storm).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bench::measure::Effort;

    #[test]
    fn a_goal_is_reached_or_missed_by_a_factor() {
        let line = |measured| Goal::new("x", 20.0, measured, 1).line();
        assert_eq!(line(Some(20.0)), "| x | 20.0 | 20.0 | yes |\n");
        assert_eq!(line(Some(30.0)), "| x | 20.0 | 30.0 | no, 1.50x |\n");
        assert_eq!(line(Some(f64::NAN)), "| x | 20.0 | - | not measured |\n");
    }

    /// Goals that had come since a run, or whose case was left out of it, were not in its table.
    #[test]
    fn a_whole_run_tells_of_every_goal() {
        let none = Report::begin(Effort::quick(), Vec::new(), String::new()).unwrap();
        let table = section(&none, true);
        for what in [
            "`grpc`, ours / HAProxy",
            "`upload-1m-h2`, ours / Envoy",
            "`key-auth`",
            "`sidecar`",
            "10000 changes",
        ] {
            assert!(
                table.lines().any(|line| line.contains(what) && line.ends_with("| not measured |")),
                "{table}"
            );
        }
        assert_eq!(section(&none, false), "");
    }

    #[test]
    fn every_goal_is_about_a_case_and_a_peer_of_it() {
        for (name, peer, _) in ratios() {
            let case = super::super::cases::CASES.iter().find(|case| case.name == name);
            assert!(case.is_some_and(|case| case.peers.contains(&peer)), "{name}");
        }
    }
}
