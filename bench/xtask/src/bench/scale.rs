//! A sidecar in a large mesh: how long until it is ready, what that takes, and what one changed endpoint takes.
//!
//! `xds/conformance/tools/scale.py` is the control plane: it makes what istiod sends to a sidecar of 1,000 services.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::client::{self, Client};
use super::measure::Bench;
use super::peers::{LOAD_CORE, Peer, pinned, with_bootstrap};
use super::procfs;
use super::stats::Estimate;
use super::upstream::OTHER_ANSWER;
use crate::process::{Background, free_port, root};
use crate::tools::python_environment;

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether it is ready.
const LOOK: Duration = Duration::from_millis(5);
/// What it still does after it is ready is part of the start, and is over by then.
const REST: Duration = Duration::from_secs(1);
/// Starts of each proxy, at most: they differ little, and take a quarter of a minute each.
const STARTS: u32 = 3;
/// From one change to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What one proxy took.
#[derive(Debug)]
pub(super) struct Scale {
    pub peer: Peer,
    /// Milliseconds from the start of the process until `/ready` says so
    pub ready: Estimate,
    /// CPU milliseconds until it is ready and has come to rest
    pub cpu: Estimate,
    /// Resident megabytes then
    pub resident: Estimate,
    /// Milliseconds from one changed endpoint's leaving the control plane until a request is answered by it
    pub live: Estimate,
    /// CPU milliseconds of such a change
    pub change: Estimate,
}

/// One start of one proxy.
struct Turn {
    ready: f64,
    cpu: f64,
    resident: f64,
    live: Vec<f64>,
    change: f64,
}

/// The control plane, on the load's core.
struct Plane {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Changes so far.
    changes: u32,
    _process: Background,
}

/// # Errors
/// A proxy or the control plane does not start, or a change does not become live.
pub(super) fn measure(bench: &Bench<'_>, peers: &[Peer]) -> Result<Vec<Scale>> {
    let peers: Vec<Peer> =
        [Peer::Sixfold, Peer::Envoy].into_iter().filter(|peer| peers.contains(peer)).collect();
    let mut turns: Vec<Vec<Turn>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.effort.rounds.min(STARTS) {
        for (peer, turns) in peers.iter().zip(&mut turns) {
            let dir = bench.dir.join(format!("scale-{}-{round}", peer.name()));
            fs::create_dir_all(&dir)?;
            let turn = turn(bench, *peer, &dir).with_context(|| format!("see {}", dir.display()))?;
            turns.push(turn);
        }
    }
    let rows = peers.into_iter().zip(turns).map(|(peer, turns)| Scale::of(peer, &turns));
    rows.collect()
}

fn turn(bench: &Bench<'_>, peer: Peer, dir: &Path) -> Result<Turn> {
    let (admin, probe) = (free_port()?, free_port()?);
    let file = dir.join("bootstrap.yaml");
    let ports = [bench.upstream.http1, bench.upstream.other];
    let mut plane = Plane::start(dir, &file, ports, admin, probe)?;
    let mut command = with_bootstrap(peer, &bench.programs.sixfold, &bench.programs.envoy, &file);
    command.stdout(File::create(dir.join("stdout.log"))?).stderr(File::create(dir.join("stderr.log"))?);

    let begun = Instant::now();
    let process = Background::spawn(&mut command)?;
    wait_until_ready(admin, begun)?;
    let ready = begun.elapsed().as_secs_f64() * 1e3;
    sleep(REST);
    let cpu = procfs::cpu_micros(process.id())? / 1e3;
    let resident = procfs::resident_megabytes(process.id())?;
    let live = live(&mut plane, probe, bench.effort.changes)?;
    // Envoy flushes its statistics every five seconds: as long as so many changes take.
    let change = cpu_of_change(&mut plane, process.id(), 2 * bench.effort.changes)?;
    Ok(Turn { ready, cpu, resident, live, change })
}

fn wait_until_ready(admin: u16, begun: Instant) -> Result<()> {
    while begun.elapsed() < LIMIT {
        if client::status(admin, "/ready").is_ok_and(|status| status == 200) {
            return Ok(());
        }
        sleep(LOOK);
    }
    bail!("not ready within {LIMIT:?}")
}

/// Milliseconds of each change, seen by requests on an open connection.
fn live(plane: &mut Plane, probe: u16, changes: u32) -> Result<Vec<f64>> {
    let mut client = Client::connect(probe)?;
    let mut found = Vec::new();
    for _ in 0..changes {
        sleep(PAUSE);
        let sent = plane.change()?;
        let step = plane.changes;
        let begun = Instant::now();
        loop {
            let answer = client.get("/")?;
            if answer.status != 200 {
                bail!("change {step}: not a good answer: {answer:?}");
            }
            if (answer.body == OTHER_ANSWER) == (step % 2 == 1) {
                break;
            }
            if begun.elapsed() > LIMIT {
                bail!("change {step} was not live within {LIMIT:?}");
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        found.push((now - sent) * 1e3);
    }
    Ok(found)
}

/// CPU milliseconds of a change while there are no requests; what the proxy does at rest is taken off.
fn cpu_of_change(plane: &mut Plane, id: u32, changes: u32) -> Result<f64> {
    let idle = procfs::run_micros(id)?;
    sleep(PAUSE * changes);
    let begun = procfs::run_micros(id)?;
    for _ in 0..changes {
        plane.change()?;
        sleep(PAUSE);
    }
    let used = procfs::run_micros(id)? - begun - (begun - idle);
    Ok(used / 1e3 / f64::from(changes))
}

impl Plane {
    fn start(dir: &Path, file: &Path, answers: [u16; 2], admin: u16, probe: u16) -> Result<Self> {
        let kit = root().join("xds/conformance");
        let python = python_environment("mesh", &fs::read_to_string(kit.join("requirements.txt"))?)?;
        let mut command = pinned(LOAD_CORE);
        command
            .arg(python.join("python"))
            .arg(kit.join("tools/scale.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg("--bootstrap").arg(file).arg("--answers").arg(format!("{},{}", answers[0], answers[1]));
        command.arg("--admin").arg(admin.to_string()).arg("--probe").arg(probe.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(dir.join("plane.log"))?);
        let mut process = Background::spawn(&mut command)?;
        let input = process.take_stdin().context("no standard input")?;
        let output = BufReader::new(process.take_stdout().context("no standard output")?);
        let mut plane = Plane { input, output, changes: 0, _process: process };
        plane.line("serving")?;
        Ok(plane)
    }

    /// Has one endpoint be another, which answers what odd changes ask for, or the first again. Answers when, in seconds of
    /// the time of day.
    fn change(&mut self) -> Result<f64> {
        self.changes += 1;
        writeln!(self.input, "step {}", self.changes)?;
        Ok(self.line("sent")?.trim().parse()?)
    }

    fn line(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let rest = line.strip_prefix(word).with_context(|| format!("the control plane says {line:?}"))?;
        Ok(rest.to_owned())
    }
}

impl Scale {
    fn of(peer: Peer, turns: &[Turn]) -> Result<Self> {
        let of = |what: fn(&Turn) -> f64| {
            Estimate::of(&turns.iter().map(what).collect::<Vec<_>>()).context("no turn was measured")
        };
        let live: Vec<f64> = turns.iter().flat_map(|turn| turn.live.iter().copied()).collect();
        Ok(Self {
            peer,
            ready: of(|turn| turn.ready)?,
            cpu: of(|turn| turn.cpu)?,
            resident: of(|turn| turn.resident)?,
            live: Estimate::of(&live).context("no change was made")?,
            change: of(|turn| turn.change)?,
        })
    }

    pub(super) fn one_line(&self) -> String {
        format!(
            "a mesh of 1,000 services, {}: ready after {:.0} ms, {:.0} ms of CPU, {:.1} MB; one endpoint: live after {:.1} ms, \
             {:.2} ms of CPU",
            self.peer.name(),
            self.ready.median,
            self.cpu.median,
            self.resident.median,
            self.live.median,
            self.change.median
        )
    }
}

/// A table of what was measured; empty when nothing was.
pub(super) fn section(rows: &[Scale]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = "\n## A sidecar among 1,000 services\n\nOver ADS (delta), made by `xds/conformance/tools/scale.py` in the shapes of a real istiod: 2,184 clusters \
                    with a TLS context each, whose secrets come by SDS, 5,000 endpoints, 155 listeners, three route tables with 490 VirtualServices. \
                    CPU is that of the process until it has come to rest; a changed endpoint is one of 5,000, live when a request on an open \
                    connection is answered by it.\n\n\
                    | proxy | ready ms | CPU ms | resident MB | endpoint live ms | its CPU ms |\n\
                    | --- | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            row.peer.name(),
            row.ready.shown(0),
            row.cpu.shown(0),
            row.resident.shown(1),
            row.live.shown(1),
            row.change.shown(2)
        );
    }
    text
}
