//! `cargo xtask soak`: gateways under load while their configuration changes, upstreams die, certificates rotate, clients
//! leave and processes drain. Nothing may be lost, and nothing may be kept.

mod churn;
mod clients;
mod gateway;
mod http;
mod slope;
mod upstream;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::churn::{Certificates, Places, ROUTES, by_admin, by_file, drain, fresh, kill, pause, wait_for};
use self::clients::{Client, Door, Tally, leave};
use self::gateway::{Gateway, Gauges, Kind};
use self::slope::slope;
use self::upstream::{ANSWER, Upstream};
use crate::bench::procfs::resident_megabytes;
use crate::bench::scripted::{Ask, Script};
use crate::process::{Background, target};
use crate::tools::{OPENSSL, WRK, build_proxy, ensure};

/// How fast resident memory may grow, in megabytes a minute.
const SLOPE: f64 = 0.5;
/// Megabytes that it may grow by at all: an allocator takes memory in steps, and one of them is a slope in a short run.
const STEP: f64 = 2.0;
/// Before memory is looked at: buffers, pools and caches get as large as the load makes them.
const WARM_UP: Duration = Duration::from_secs(45);
/// How long gauges have to return.
const RETURN: Duration = Duration::from_secs(30);
/// Own clients of each gateway.
const CLIENTS: usize = 4;

#[derive(Debug, Args)]
pub struct Options {
    /// How long, after three quarters of a minute in which everything gets as large as it will be
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// This binary instead of a release build
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// # Errors
/// A program is missing, or something was lost or kept.
pub fn run(options: &Options) -> Result<()> {
    let sixfold = match &options.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("no binary {}", binary.display()))?,
        None => build_proxy("release")?,
    };
    check(&sixfold, options.minutes)
}

/// # Errors
/// As [`run`].
pub fn check(sixfold: &Path, minutes: u32) -> Result<()> {
    ensure(&[WRK, OPENSSL])?;
    let soak = Soak::begin(sixfold, &fresh(&target().join("soak"))?)?;
    let outcome = soak.run(WARM_UP, Duration::from_secs(60) * minutes)?;
    println!("{}", outcome.report());
    let faults = outcome.faults();
    if !faults.is_empty() {
        bail!("soak:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

struct Soak {
    dir: PathBuf,
    mortal: Vec<Upstream>,
    stable: Upstream,
    certificates: Certificates,
    file: Gateway,
    admin: Gateway,
    drained: Gateway,
    /// Of the first two, before any load
    gauges: [Gauges; 2],
}

/// What happened.
#[derive(Debug, Default)]
struct Outcome {
    /// What, how often
    events: Vec<(&'static str, u64)>,
    asked: u64,
    lost: u64,
    reasons: Vec<String>,
    /// Of each gateway what has not returned
    kept: Vec<String>,
    /// Of each gateway megabytes at the first and last look, and megabytes a minute
    memory: Vec<(&'static str, f64, f64, f64)>,
}

impl Soak {
    fn begin(sixfold: &Path, dir: &Path) -> Result<Self> {
        let mortal = (0..3).map(|_| Upstream::start()).collect::<Result<Vec<_>>>()?;
        let stable = Upstream::start()?;
        let places = Places { mortal: &mortal, stable: &stable };
        let certificates = Certificates::make(dir)?;
        let file = Gateway::start(sixfold, dir, "by-file", Kind::File)?;
        let drained = Gateway::start(sixfold, dir, "drained", Kind::File)?;
        let admin = Gateway::start(sixfold, dir, "by-admin", Kind::Admin)?;
        for gateway in [&file, &drained] {
            gateway.put_file(&places.file(0))?;
            wait_for(gateway, 0)?;
        }
        places.put_all(&admin)?;
        wait_for(&admin, 0)?;
        certificates.put(&admin, 0)?;
        sleep(Duration::from_secs(3)); // the connections of all this are gone
        let gauges = [file.gauges()?, admin.gauges()?];
        Ok(Self { dir: dir.to_owned(), mortal, stable, certificates, file, admin, drained, gauges })
    }

    fn run(self, warm_up: Duration, time: Duration) -> Result<Outcome> {
        let Self { dir, mortal, stable, certificates, file, admin, drained, gauges } = self;
        let dir = dir.as_path();
        let places = Places { mortal: &mortal, stable: &stable };
        let (stop, tally, open, door) =
            (AtomicBool::new(false), Tally::default(), Door::open(), Door::open());
        // Done before all others are told to stop.
        let seconds = (warm_up + time).as_secs().saturating_sub(3) as u32;
        let whole = Load { name: "requests by wrk", rate: 1_000, fresh: false, seconds };
        let handshakes = Load { name: "handshakes by wrk", rate: 50, fresh: true, seconds };
        let rotation = (time / 12).clamp(Duration::from_secs(5), Duration::from_secs(60));
        let drained_port = drained.port;
        let mut outcome = thread::scope(|scope| -> Result<Outcome> {
            let (stop, tally) = (&stop, &tally);
            let stopper = Stopper(stop); // whatever ends this, all others end, too
            let plain = format!("http://127.0.0.1:{}", file.port);
            let tls = format!("https://localhost:{}", admin.tls);
            let loads = [
                (whole.name, scope.spawn(move || wrk(&plain, whole, dir, stop))),
                (handshakes.name, scope.spawn(move || wrk(&tls, handshakes, dir, stop))),
            ];
            let works: Vec<(&'static str, ScopedJoinHandle<'_, Result<u64>>)> = vec![
                ("changes by file", scope.spawn(|| by_file(&file, &places, stop))),
                ("changes by the Admin API", scope.spawn(|| by_admin(&admin, &places, stop))),
                ("deaths of upstreams", scope.spawn(|| kill(&mortal, stop))),
                ("certificates", scope.spawn(|| certificates.rotate(&admin, rotation, stop))),
                ("clients that left", scope.spawn(|| Ok(leave(file.port, stop)))),
                ("clients that left the other", scope.spawn(|| Ok(leave(admin.port, stop)))),
                ("drains", scope.spawn(|| drain(drained, &door, stop))),
            ];
            let gateways = [
                ("by-file", file.port, &open),
                ("by-admin", admin.port, &open),
                ("drained", drained_port, &door),
            ];
            for (name, port, door) in gateways {
                for which in 0..CLIENTS {
                    let client = Client { name, port, door, tally, stop, requests: requests(which) };
                    scope.spawn(move || client.run());
                }
            }
            let memory = watch([&file, &admin], warm_up, time, &works)?;
            drop(stopper);
            let mut outcome = Outcome { memory, ..Outcome::default() };
            for (name, work) in works {
                outcome.events.push((name, joined(work).with_context(|| name.to_owned())?));
            }
            for (name, load) in loads {
                match joined(load) {
                    Ok(requests) => outcome.events.push((name, requests)),
                    Err(error) => tally.lose(format!("{name}: {error:#}")),
                }
            }
            Ok(outcome)
        })?;
        outcome.asked = tally.asked.load(Ordering::Relaxed);
        outcome.lost = tally.lost.load(Ordering::Relaxed);
        outcome.reasons = tally.reasons();
        for (gateway, start) in [&file, &admin].into_iter().zip(&gauges) {
            outcome.kept.extend(kept(gateway, start)?);
        }
        Ok(outcome)
    }
}

/// Tells all threads to stop when it goes.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn joined(work: ScopedJoinHandle<'_, Result<u64>>) -> Result<u64> {
    match work.join() {
        Ok(done) => done,
        Err(_) => bail!("its thread ended early"),
    }
}

/// Load by wrk, which looks at each answer. Gives how many there were; none of those of a run that is broken off.
fn wrk(target: &str, load: Load, dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let Load { name, rate, fresh, seconds } = load;
    let ask =
        Ask { script: Script::Gateway, target, route: 1, rate: Some(rate), connections: 16, seconds, fresh };
    let file = dir.join(name);
    let mut command = Command::new("wrk");
    let mut process = Background::spawn(ask.wrk(&mut command).stdout(File::create(&file)?))?;
    let status = loop {
        if let Some(status) = process.status()? {
            break status;
        }
        if !pause(stop, Duration::from_millis(100)) {
            return Ok(0);
        }
    };
    let text = fs::read_to_string(&file)?;
    let line = text.lines().rfind(|line| line.starts_with('{'));
    let (true, Some(line)) = (status.success(), line) else { bail!("{status}: {text}") };
    let seen: serde_json::Value = serde_json::from_str(line)?;
    seen["requests"].as_u64().context("wrk's script told no requests")
}

/// What wrk does.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    /// Requests a second
    rate: u32,
    /// A new connection for each
    fresh: bool,
    seconds: u32,
}

/// What one of the own clients asks, in turn.
fn requests(which: usize) -> Vec<String> {
    let mut requests: Vec<String> = (0..20)
        .map(|n| {
            format!("GET /svc/{}/api HTTP/1.1\r\nHost: soak\r\n\r\n", (n * 37 + which * 11) % ROUTES + 1)
        })
        .collect();
    let body = ANSWER.repeat(2_000);
    requests.push(format!(
        "POST /stable/ HTTP/1.1\r\nHost: soak\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    requests
}

/// Looks at memory once a second, as long as all others work.
fn watch(
    gateways: [&Gateway; 2],
    warm_up: Duration,
    time: Duration,
    works: &[(&'static str, ScopedJoinHandle<'_, Result<u64>>)],
) -> Result<Vec<(&'static str, f64, f64, f64)>> {
    let never = AtomicBool::new(false);
    let begun = Instant::now();
    let mut samples = [Vec::new(), Vec::new()];
    while begun.elapsed() < warm_up + time {
        pause(&never, Duration::from_secs(1));
        if works.iter().any(|(_, work)| work.is_finished()) {
            break; // with an error, which is told when it is joined
        }
        if begun.elapsed() < warm_up {
            continue;
        }
        for (gateway, samples) in gateways.iter().zip(&mut samples) {
            let megabytes = resident_megabytes(gateway.id()).with_context(|| gateway.name)?;
            samples.push((begun.elapsed().as_secs_f64() / 60.0, megabytes));
        }
    }
    let of = |(gateway, samples): (&&Gateway, &Vec<(f64, f64)>)| {
        let first = samples.first().map_or(f64::NAN, |sample| sample.1);
        let last = samples.last().map_or(f64::NAN, |sample| sample.1);
        (gateway.name, first, last, slope(samples).unwrap_or(f64::NAN))
    };
    Ok(gateways.iter().zip(&samples).map(of).collect())
}

/// What has not returned to the start some time after the last client has gone.
fn kept(gateway: &Gateway, start: &Gauges) -> Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let differences = start.differences(&gateway.gauges()?);
        if differences.is_empty() || begun.elapsed() > RETURN {
            return Ok(differences.into_iter().map(|line| format!("{}: {line}", gateway.name)).collect());
        }
        sleep(Duration::from_millis(500));
    }
}

impl Outcome {
    /// What must not be.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.kept.clone();
        if self.lost > 0 {
            faults.push(format!("{} of {} requests were lost, such as:", self.lost, self.asked));
            faults.extend(self.reasons.iter().map(|reason| format!("  {reason}")));
        }
        let grows = self
            .memory
            .iter()
            .filter(|(_, first, last, slope)| slope.is_nan() || (*slope > SLOPE && last - first > STEP));
        faults.extend(grows.map(|(name, first, last, slope)| {
            format!(
                "{name}: resident memory grows by {slope:.2} MB a minute, from {first:.1} to {last:.1} MB"
            )
        }));
        faults
    }

    fn report(&self) -> String {
        let mut text = format!("{} requests by clients of its own, {} lost\n", self.asked, self.lost);
        for (what, count) in &self.events {
            let _ = writeln!(text, "{count} {what}");
        }
        for (name, first, last, slope) in &self.memory {
            let _ = writeln!(text, "{name}: {first:.1} MB, at the end {last:.1} MB, {slope:+.3} MB a minute");
        }
        let kept = if self.kept.is_empty() { "all returned" } else { "not all returned" };
        text + "connections, requests in flight and descriptors: " + kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_gauges_and_growth_are_faults() {
        let memory = |slope: f64| vec![("by-file", 20.0, 22.1, slope)];
        let good = Outcome { asked: 10, memory: memory(0.49), ..Outcome::default() };
        assert_eq!(good.faults(), [""; 0]);
        assert!(good.report().contains("all returned"));
        let lost =
            Outcome { asked: 10, lost: 1, reasons: vec!["by-file: 502".to_owned()], ..Outcome::default() };
        assert_eq!(lost.faults(), ["1 of 10 requests were lost, such as:", "  by-file: 502"]);
        let kept = Outcome { kept: vec!["x: 0, 1".to_owned()], ..Outcome::default() };
        assert_eq!(kept.faults(), ["x: 0, 1"]);
        let grown = Outcome { memory: memory(0.51), ..Outcome::default() };
        assert_eq!(
            grown.faults(),
            ["by-file: resident memory grows by 0.51 MB a minute, from 20.0 to 22.1 MB"]
        );
        let step = Outcome { memory: vec![("by-file", 20.0, 21.9, 1.2)], ..Outcome::default() };
        assert_eq!(step.faults(), [""; 0]);
        assert_eq!(Outcome { memory: memory(f64::NAN), ..Outcome::default() }.faults().len(), 1);
    }
}
