//! Changes of 5,000 routes while requests flow: how long until one is live when it comes by a file and when it comes
//! from within the process, and what the requests notice of a thousand a second.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::apisix::{Gateway, routes};
use super::cases::{ROUTES, Table};
use super::client::Client;
use super::load::{Latency, at_rate};
use super::measure::Bench;
use super::peers::{LOAD_CORE, pinned};
use super::stats::Estimate;
use super::upstream::OTHER_ANSWER;
use crate::process::Background;

/// The route that is changed.
const CHANGED: usize = 3_000;
/// Requests a second while routes change.
const RATE: u32 = 2_000;
const CLIENTS: u32 = 40;
/// Between two changes; a file watcher must not see them as one.
const PAUSE: Duration = Duration::from_millis(300);
/// Changes a second in a storm of them.
const STORM_RATE: u32 = 1_000;
/// From one changed route to the next; it has no divisor in common with the number of routes.
const STEP: usize = 7_919;
/// How many of the routes are asked in a storm.
const ASKED: usize = 50;

/// Who tells the gateway of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A file that is renamed into place
    File,
    /// A caller in the process
    Process,
}

#[derive(Debug)]
pub(super) struct Change {
    pub by: By,
    /// Milliseconds from the change to the first answer by the new upstream
    pub live: Estimate,
    steady: Latency,
    changing: Latency,
}

/// A thousand changes a second, for some seconds.
#[derive(Debug)]
pub(super) struct Storm {
    pub changes: u32,
    /// Seconds that they took
    pub seconds: f64,
    steady: Latency,
    changing: Latency,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Process => "process",
        }
    }
}

impl Change {
    pub(super) fn one_line(&self) -> String {
        format!(
            "one changed route of {ROUTES}, by {}: live after {:.1} ms, p99 {:.0} us (without changes {:.0} us)",
            self.by.name(),
            self.live.median,
            self.changing.p99,
            self.steady.p99
        )
    }

    pub(super) fn section(&self) -> String {
        let Estimate { median, low, high } = self.live;
        let (title, how) = match self.by {
            By::File => ("by a file", "an apisix.yaml is replaced by a rename; counted from the rename"),
            By::Process => (
                "from within the process",
                "a program hands the route to the store in memory of the gateway that runs in it, told by a line of its \
                 standard input; counted from that",
            ),
        };
        format!(
            "\n## One changed route of 5,000, {title}\n\nThe {CHANGED}th route is sent to another upstream and back, \
             again and again, at {RATE} requests/s to the first route: {how}. Live means that a request on an open \
             connection is answered by the new upstream.\n\n- Live after {median:.1} ms ({low:.1}-{high:.1}).\n\n{}",
            latencies("requests to an unchanged route", self.steady, self.changing)
        )
    }
}

impl Storm {
    /// p99 of the requests during the changes by that without.
    pub(super) fn slower(&self) -> f64 {
        self.changing.p99 / self.steady.p99
    }

    pub(super) fn one_line(&self) -> String {
        format!(
            "{} changes in {:.1} s: p99 {:.0} us (without changes {:.0} us)",
            self.changes, self.seconds, self.changing.p99, self.steady.p99
        )
    }

    pub(super) fn section(&self) -> String {
        format!(
            "\n## A thousand changes a second\n\n{} changes from within the process in {:.1} s, here and there among the 5,000 routes, \
             at {RATE} requests/s over the first {ASKED} of them. No request failed, and the last change was live.\n\n{}",
            self.changes,
            self.seconds,
            latencies("requests", self.steady, self.changing)
        )
    }
}

fn latencies(of: &str, steady: Latency, changing: Latency) -> String {
    let mut text = format!("| {of} | p50 us | p99 us |\n| --- | ---: | ---: |\n");
    for (name, latency) in [("no changes", steady), ("during the changes", changing)] {
        let _ = writeln!(text, "| {name} | {:.0} | {:.0} |", latency.p50, latency.p99);
    }
    text
}

/// Sends the changed route to one of two upstreams.
enum Door {
    File { dir: PathBuf, tables: [String; 2] },
    Process { input: ChildStdin, ports: [u16; 2] },
}

impl Door {
    fn by_file(bench: &Bench<'_>, dir: PathBuf) -> Self {
        let [one, other] = ports(bench);
        Self::File { dir, tables: [routes(one, None), routes(one, Some((CHANGED, other)))] }
    }

    fn into_process(bench: &Bench<'_>, process: &mut Background) -> Result<Self> {
        let input = process.take_stdin().context("no standard input")?;
        Ok(Self::Process { input, ports: ports(bench) })
    }

    /// Makes the change, and says when.
    fn send(&mut self, route: usize, to_other: bool) -> Result<Instant> {
        let which = usize::from(to_other);
        match self {
            Self::File { dir, tables } => {
                let new = dir.join("new.yaml");
                fs::write(&new, &tables[which])?;
                let now = Instant::now();
                fs::rename(&new, dir.join("apisix.yaml"))?;
                Ok(now)
            }
            Self::Process { input, ports } => {
                let line = format!("{route} {}\n", ports[which]);
                let now = Instant::now();
                input.write_all(line.as_bytes())?;
                Ok(now)
            }
        }
    }
}

fn ports(bench: &Bench<'_>) -> [u16; 2] {
    [bench.upstream.http1, bench.upstream.other]
}

/// # Errors
/// The gateway does not start, a request fails, or a change does not become live.
pub(super) fn measure(bench: &Bench<'_>, by: By) -> Result<Change> {
    let dir = bench.dir.join(format!("change-by-{}", by.name()));
    let (gateway, mut door) = start(bench, by, dir)?;
    let seconds = (PAUSE * (bench.effort.changes + 4)).as_secs() as u32;
    let url = gateway.url(&Table::path_of(1));
    let load = || load(&[&url], seconds, &gateway.dir);
    let steady = load()?;
    let (changing, live) = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(load);
        let live = change_again_and_again(&gateway, &mut door, bench.effort.changes);
        let Ok(changing) = load.join() else { bail!("the load's thread ended early") };
        Ok((changing?, live?))
    })?;
    Ok(Change { by, live: Estimate::of(&live).context("no change was made")?, steady, changing })
}

fn start(bench: &Bench<'_>, by: By, dir: PathBuf) -> Result<(Gateway, Door)> {
    match by {
        By::File => {
            let text = routes(bench.upstream.http1, None);
            let gateway = Gateway::start(&bench.programs.sixfold, dir.clone(), 1, &text)?;
            Ok((gateway, Door::by_file(bench, dir)))
        }
        By::Process => {
            let program = &bench.programs.gateway_in_memory;
            let mut gateway = Gateway::in_memory(program, dir, bench.upstream.http1)?;
            let door = Door::into_process(bench, &mut gateway.process)?;
            Ok((gateway, door))
        }
    }
}

fn load(urls: &[&str], seconds: u32, dir: &Path) -> Result<Latency> {
    let mut command = pinned(LOAD_CORE);
    command.args(["h2load", "-t1", "--h1"]);
    at_rate(&mut command, urls, RATE, CLIENTS, seconds, dir)
}

fn change_again_and_again(gateway: &Gateway, door: &mut Door, changes: u32) -> Result<Vec<f64>> {
    let mut client = Client::connect(gateway.port)?;
    let mut live = Vec::new();
    for turn in 0..changes {
        sleep(PAUSE);
        let to_other = turn % 2 == 0;
        let sent = door.send(CHANGED, to_other)?;
        wait_until_live(&mut client, CHANGED, to_other)
            .with_context(|| format!("change {turn}; see {}", gateway.dir.display()))?;
        live.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(live)
}

fn wait_until_live(client: &mut Client, route: usize, by_other: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answer = client.get(&Table::path_of(route))?;
        if answer.status != 200 {
            bail!("not a good answer: {answer:?}");
        }
        if (answer.body == OTHER_ANSWER) == by_other {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("not live within 10 s");
        }
    }
}

/// # Errors
/// The gateway does not start, a request fails, or the last change does not become live.
pub(super) fn storm(bench: &Bench<'_>) -> Result<Storm> {
    let (gateway, mut door) = start(bench, By::Process, bench.dir.join("storm"))?;
    let urls: Vec<String> = (1..=ASKED).map(|n| gateway.url(&Table::path_of(n))).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let seconds = bench.effort.storm;
    let load = || load(&urls, seconds, &gateway.dir);
    let steady = load()?;
    let changes = STORM_RATE * seconds;
    let (changing, took) = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(load);
        let took = change_all(&mut door, changes);
        let Ok(changing) = load.join() else { bail!("the load's thread ended early") };
        Ok((changing?, took?))
    })?;
    let (route, to_other) = nth_change(changes - 1);
    wait_until_live(&mut Client::connect(gateway.port)?, route, to_other)?;
    Ok(Storm { changes, seconds: took.as_secs_f64(), steady, changing })
}

/// Each route once, here and there among the others, all of them to one upstream; then all of them to the other.
fn nth_change(n: u32) -> (usize, bool) {
    let n = n as usize;
    (n * STEP % ROUTES + 1, (n / ROUTES).is_multiple_of(2))
}

fn change_all(door: &mut Door, changes: u32) -> Result<Duration> {
    let begun = Instant::now();
    for n in 0..changes {
        let due = begun + Duration::from_secs(1) * n / STORM_RATE;
        sleep(due.saturating_duration_since(Instant::now()));
        let (route, to_other) = nth_change(n);
        door.send(route, to_other)?;
    }
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_changes_each_route_and_then_changes_it_back() {
        for (first, to_other) in [(0, true), (5_000, false)] {
            let mut routes: Vec<usize> = (first..first + 5_000).map(|n| nth_change(n).0).collect();
            routes.sort_unstable();
            assert_eq!(routes, (1..=ROUTES).collect::<Vec<_>>());
            assert_eq!([nth_change(first).1, nth_change(first + 4_999).1], [to_other; 2]);
        }
    }
}
