//! One case: all its peers run at once, each idle while another is under load, and take turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cases::{Case, Table};
use super::load::{self, Latency};
use super::peers::{LOAD_CORE, Peer, Programs, Running, pinned};
use super::procfs;
use super::scripted::{Ask, Script, Tool};
use super::stats::Estimate;
use super::upstream::Upstream;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// How many times each peer has its turn
    pub rounds: u32,
    /// How long a turn is
    pub seconds: u32,
    /// How many times one route is changed by each who tells of changes
    pub changes: u32,
    /// How many seconds a storm of changes takes
    pub storm: u32,
    /// How many keys one limit has
    pub keys: usize,
}

impl Effort {
    /// As the figures are made.
    pub(super) fn whole(rounds: u32, seconds: u32) -> Self {
        Self { rounds, seconds, changes: 25, storm: 10, keys: 1_000_000 }
    }

    /// Enough to see that everything works.
    pub(super) fn quick() -> Self {
        Self { rounds: 2, seconds: 1, changes: 5, storm: 2, keys: 100_000 }
    }
}

/// What one peer did in one case.
#[derive(Debug)]
pub(super) struct Row {
    pub peer: Peer,
    /// CPU microseconds a request, user and system, all threads
    pub cpu: Estimate,
    /// Requests a second, as fast as it goes
    pub rate: Estimate,
    /// At the case's arrival rate
    pub latency: Latency,
    /// Resident megabytes before the first request and after the last
    pub idle: f64,
    pub after: f64,
    /// Ours divided by this peer's CPU a request, turn by turn
    pub ratio: Estimate,
}

#[derive(Debug)]
pub(super) struct CaseResult {
    pub case: &'static Case,
    pub rows: Vec<Row>,
    /// The machine's load average when the case ended
    pub load_average: f64,
}

/// What is the same for all cases.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub programs: &'a Programs,
    pub upstream: &'a Upstream,
    pub effort: Effort,
    pub dir: &'a Path,
}

impl Bench<'_> {
    /// # Errors
    /// A peer does not start, or a request fails.
    pub(super) fn case(&self, case: &'static Case, peers: &[Peer]) -> Result<CaseResult> {
        let chosen = case.peers.iter().filter(|peer| peers.contains(peer));
        let start = |peer: &Peer| Running::start(*peer, case, self.programs, self.upstream, self.dir);
        let running = chosen.map(start).collect::<Result<Vec<_>>>()?;
        sleep(Duration::from_secs(1)); // what they still do after they listen is not idle memory
        let idle = running.iter().map(|r| procfs::resident_megabytes(r.id())).collect::<Result<Vec<_>>>()?;

        let mut turns: BTreeMap<Peer, Vec<(f64, f64)>> = BTreeMap::new();
        for _ in 0..self.effort.rounds {
            for proxy in &running {
                let turn = self
                    .turn(case, proxy)
                    .with_context(|| format!("{}, {}", case.name, proxy.peer.name()))?;
                turns.entry(proxy.peer).or_default().push(turn);
            }
        }
        let ours: Vec<f64> = turns.get(&Peer::Sixfold).into_iter().flatten().map(|turn| turn.0).collect();
        let mut rows = Vec::new();
        for (proxy, idle) in running.iter().zip(idle) {
            let turns = turns.get(&proxy.peer).map(Vec::as_slice).unwrap_or_default();
            rows.push(self.row(case, proxy, turns, &ours, idle)?);
        }
        Ok(CaseResult { case, rows, load_average: procfs::load_average()? })
    }

    /// CPU a request and requests a second of one turn.
    fn turn(&self, case: &Case, proxy: &Running) -> Result<(f64, f64)> {
        let before = procfs::cpu_micros(proxy.id())?;
        let done = load::saturate(case, proxy, self.upstream, self.effort.seconds)?;
        let used = procfs::cpu_micros(proxy.id())? - before;
        Ok((used / done.requests, done.rate))
    }

    fn row(
        &self,
        case: &Case,
        proxy: &Running,
        turns: &[(f64, f64)],
        ours: &[f64],
        idle: f64,
    ) -> Result<Row> {
        let cpu: Vec<f64> = turns.iter().map(|turn| turn.0).collect();
        let rate: Vec<f64> = turns.iter().map(|turn| turn.1).collect();
        let ratio: Vec<f64> = ours.iter().zip(&cpu).map(|(ours, theirs)| ours / theirs).collect();
        let none = Estimate { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        Ok(Row {
            peer: proxy.peer,
            cpu: Estimate::of(&cpu).context("no turn was measured")?,
            rate: Estimate::of(&rate).context("no turn was measured")?,
            latency: load::latency(case, proxy, self.upstream, self.effort.seconds, self.dir)?,
            idle,
            after: procfs::resident_megabytes(proxy.id())?,
            ratio: Estimate::of(&ratio).unwrap_or(none),
        })
    }

    /// Latency of the first case's peers at a constant arrival rate, as k6 sees it.
    ///
    /// # Errors
    /// A peer does not start, or a request fails.
    pub(super) fn k6(&self, case: &'static Case, peers: &[Peer], rate: u32) -> Result<Vec<(Peer, Latency)>> {
        let mut found = Vec::new();
        for peer in case.peers.iter().filter(|peer| peers.contains(peer)) {
            let proxy = Running::start(*peer, case, self.programs, self.upstream, self.dir)?;
            let target = proxy.target();
            let ask = Ask {
                script: Script::Gateway,
                target: &target,
                route: 3_000,
                rate: Some(rate),
                connections: 64,
                seconds: self.effort.seconds * 2,
                fresh: false,
            };
            let seen = Tool::K6.run(&self.programs.k6, &ask, pinned(LOAD_CORE), self.dir)?;
            found.push((*peer, seen.latency));
        }
        Ok(found)
    }

    /// Resident megabytes of a fresh process, idle and after 100,000 requests spread over all its routes.
    ///
    /// # Errors
    /// The peer does not start, or a request fails.
    pub(super) fn memory(&self, case: &'static Case, peer: Peer) -> Result<(f64, f64)> {
        let proxy = Running::start(peer, case, self.programs, self.upstream, self.dir)?;
        sleep(Duration::from_secs(1));
        let idle = procfs::resident_megabytes(proxy.id())?;
        let uris = self.dir.join("uris.txt");
        let count = if case.table == Table::Header { 1 } else { case.table.len() };
        let uri = |n: usize| format!("http://127.0.0.1:{}{}\n", proxy.port, Table::path_of(n));
        fs::write(&uris, (1..=count).map(uri).collect::<String>())?;
        load::visit(&uris, 100_000, 8)?;
        Ok((idle, procfs::resident_megabytes(proxy.id())?))
    }
}
