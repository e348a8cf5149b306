//! One case: its peers run at once, each idle while another is under load, and take turns.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::cases::Table;
use super::super::client::Client;
use super::super::measure::Effort;
use super::super::peers::{LOAD_CORE, Peer, Running, pinned};
use super::super::procfs;
use super::super::scripted::{Ask, Script, Tool};
use super::super::stats::Estimate;
use super::super::upstream::{ANSWER, Upstream};
use super::Programs;
use super::cases::PairCase;
use super::configs::start;

const CONNECTIONS: u32 = 64;

/// What is the same for all cases.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    pub programs: &'a Programs,
    pub upstream: &'a Upstream,
    pub effort: Effort,
    pub dir: &'a Path,
    pub tool: Tool,
}

/// Of one turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rate: f64,
    cpu: f64,
    p50: f64,
    p99: f64,
}

/// Of all turns at one load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    /// Requests a second
    pub rate: Estimate,
    /// CPU microseconds a request, user and system, the whole process
    pub cpu: Estimate,
    /// Microseconds, as the tool gives them for each turn
    pub p50: Estimate,
    pub p99: Estimate,
    /// Ours by this peer's requests a second and CPU a request, turn by turn
    pub rate_ratio: Estimate,
    pub cpu_ratio: Estimate,
}

#[derive(Debug)]
pub(super) struct Row {
    pub peer: Peer,
    /// As fast as it goes
    pub full: Figures,
    /// At a rate that all carry
    pub equal: Figures,
}

#[derive(Debug)]
pub(super) struct PairResult {
    pub case: &'static PairCase,
    pub rows: Vec<Row>,
    /// Requests a second of the equal load
    pub rate: u32,
    pub load_average: f64,
}

impl Pairs<'_> {
    /// # Errors
    /// A peer does not start, or an answer is missing or wrong.
    pub(super) fn case(&self, case: &'static PairCase, chosen: &[Peer]) -> Result<PairResult> {
        let peers = case.peers().iter().filter(|peer| chosen.contains(peer));
        let begin = |peer: &Peer| start(*peer, case, self.programs, self.upstream, self.dir);
        let running = peers.map(begin).collect::<Result<Vec<_>>>()?;
        for proxy in &running {
            answers(proxy, case).with_context(|| format!("{}, {}", case.name, proxy.peer.name()))?;
        }
        sleep(Duration::from_secs(1)); // what they still do after they listen
        let full = self.turns(case, &running, None)?;
        let slowest = full.iter().map(|turns| median(turns, |turn| turn.rate)).fold(f64::INFINITY, f64::min);
        let rate = equal_rate(slowest);
        let equal = self.turns(case, &running, Some(rate))?;
        let (ours_full, ours_equal) = (ours(&running, &full), ours(&running, &equal));
        let rows = running.iter().zip(full.iter().zip(&equal)).map(|(proxy, (full, equal))| {
            let full = Figures::of(full, ours_full)?;
            Ok(Row { peer: proxy.peer, full, equal: Figures::of(equal, ours_equal)? })
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        rows.iter().for_each(|row| println!("  {}", row.one_line(rate)));
        Ok(PairResult { case, rows, rate, load_average: procfs::load_average()? })
    }

    /// The turns of each peer at one load.
    fn turns(&self, case: &PairCase, running: &[Running], rate: Option<u32>) -> Result<Vec<Vec<Turn>>> {
        let mut turns = vec![Vec::new(); running.len()];
        for _ in 0..self.effort.rounds {
            for (proxy, turns) in running.iter().zip(&mut turns) {
                let turn = self.turn(case, proxy, rate);
                turns.push(turn.with_context(|| format!("{}, {}", case.name, proxy.peer.name()))?);
            }
        }
        Ok(turns)
    }

    fn turn(&self, case: &PairCase, proxy: &Running, rate: Option<u32>) -> Result<Turn> {
        let target = proxy.target();
        let ask = Ask {
            script: case.script,
            target: &target,
            route: case.route,
            rate,
            connections: CONNECTIONS,
            seconds: self.effort.seconds,
            fresh: false,
        };
        let before = procfs::cpu_micros(proxy.id())?;
        let seen = self.tool.run(&self.programs.fetched.k6, &ask, pinned(LOAD_CORE), self.dir)?;
        let used = procfs::cpu_micros(proxy.id())? - before;
        Ok(Turn { rate: seen.rate, cpu: used / seen.requests, p50: seen.latency.p50, p99: seen.latency.p99 })
    }
}

/// Sees that the route of the case gives the right answer before it is measured, and that the next one does not.
fn answers(proxy: &Running, case: &PairCase) -> Result<()> {
    let host = match case.script {
        Script::Gateway => "bench",
        Script::Sidecar => "server.default.svc.cluster.local:9080",
    };
    let mut client = Client::connect(proxy.port)?;
    let right = client.get_of(host, &Table::path_of(case.route))?;
    let wrong = client.get_of(host, &Table::path_of(2))?;
    if right.status != 200 || right.body != ANSWER || wrong.status != 200 || wrong.body == ANSWER {
        bail!("route {}: {right:?}; route 2: {wrong:?}", case.route);
    }
    Ok(())
}

fn ours<'t>(running: &[Running], turns: &'t [Vec<Turn>]) -> &'t [Turn] {
    let found = running.iter().zip(turns).find(|(proxy, _)| proxy.peer == Peer::Sixfold);
    found.map(|(_, turns)| turns.as_slice()).unwrap_or_default()
}

fn median(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    let values: Vec<f64> = turns.iter().map(of).collect();
    Estimate::of(&values).map_or(f64::NAN, |estimate| estimate.median)
}

/// Half of what the slowest peer carries, in two digits.
fn equal_rate(slowest: f64) -> u32 {
    let half = slowest / 2.0;
    let unit = 10f64.powf(half.max(1.0).log10().floor() - 1.0).max(1.0);
    ((half / unit).floor() * unit).max(1.0) as u32
}

impl Figures {
    fn of(turns: &[Turn], ours: &[Turn]) -> Result<Self> {
        let estimate = |values: Vec<f64>| Estimate::of(&values).context("no turn was measured");
        let all = |of: fn(&Turn) -> f64| estimate(turns.iter().map(of).collect());
        let ratio =
            |of: fn(&Turn) -> f64| estimate(ours.iter().zip(turns).map(|(a, b)| of(a) / of(b)).collect());
        Ok(Self {
            rate: all(|turn| turn.rate)?,
            cpu: all(|turn| turn.cpu)?,
            p50: all(|turn| turn.p50)?,
            p99: all(|turn| turn.p99)?,
            rate_ratio: ratio(|turn| turn.rate)?,
            cpu_ratio: ratio(|turn| turn.cpu)?,
        })
    }
}

impl Row {
    fn one_line(&self, rate: u32) -> String {
        format!(
            "{:8} {:>8.0} requests/s, {:6.1} us of CPU; at {rate}/s {:6.1} us, p50 {:.0} us, p99 {:.0} us",
            self.peer.name(),
            self.full.rate.median,
            self.full.cpu.median,
            self.equal.cpu.median,
            self.equal.p50.median,
            self.equal.p99.median
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cases::CASES;
    use super::*;

    /// Two peers, of which sixfold carries four times as much.
    pub(in super::super) fn result() -> PairResult {
        let turn = |rate: f64, cpu: f64| Turn { rate, cpu, p50: 100.0, p99: 900.0 };
        let (ours, theirs) = ([turn(40_000.0, 15.0)], [turn(10_000.0, 60.0)]);
        let row = |peer, turns: &[Turn]| Row {
            peer,
            full: Figures::of(turns, &ours).unwrap(),
            equal: Figures::of(turns, &ours).unwrap(),
        };
        let rows = vec![row(Peer::Sixfold, &ours), row(Peer::Envoy, &theirs)];
        PairResult { case: CASES.get(1).unwrap(), rows, rate: 5_000, load_average: 1.5 }
    }

    #[test]
    fn an_equal_load_is_half_of_what_the_slowest_carries() {
        assert_eq!(equal_rate(5_083.0), 2_500);
        assert_eq!(equal_rate(57_586.0), 28_000);
        assert_eq!(equal_rate(3.0), 1);
        assert_eq!(equal_rate(0.5), 1);
    }

    #[test]
    fn ratios_are_ours_by_theirs() {
        let envoy = &result().rows[1];
        assert!((envoy.full.rate_ratio.median - 4.0).abs() < 1e-9);
        assert!((envoy.equal.cpu_ratio.median - 0.25).abs() < 1e-9);
    }
}
