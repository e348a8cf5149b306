//! `cargo xtask bench`: sixfold beside Envoy, nginx, HAProxy and a TCP forwarder.
//!
//! The proxy under load has one core to itself; the load generator and the upstream share the other. The figure to
//! trust is CPU time a request, from /proc: requests a second fall when the machine is busy, CPU time hardly does.

mod apisix;
mod cases;
mod change;
mod client;
mod envoy;
mod filters;
mod goals;
mod instructions;
mod load;
mod measure;
mod memory;
mod others;
mod pairs;
mod peers;
mod plot;
pub(crate) mod procfs;
mod report;
mod scale;
pub(crate) mod scripted;
mod sidecar;
mod stats;
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use self::cases::{CASES, Case};
use self::change::By;
use self::measure::{Bench, Effort};
use self::memory::Held;
use self::peers::{Peer, Programs};
use self::report::Report;
use self::scripted::Tool;
use self::upstream::Upstream;
use crate::process::{output, root, target};
use crate::tools::{H2LOAD, HAPROXY, NGINX, OPENSSL, PYTHON, TASKSET, VALGRIND, WRK, ensure};

/// Arrival rate of the k6 case: k6 itself takes most of a core at 12,000 requests a second.
const K6_RATE: u32 = 2_000;

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only these cases; `memory`, `upstreams`, `keys`, `change`, `storm`, `scale`,
    /// `sidecar`, `filters` and `k6` are cases too
    #[arg(long = "case")]
    cases: Vec<String>,
    /// Only these peers; with `--tool` those that take turns with sixfold, Envoy if none is named
    #[arg(long, visible_alias = "peer", value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Run the scripts of `bench/wrk` or `bench/k6` on 5,000 routes, at full speed and at equal load; the cases are then
    /// `gateway-1`, `gateway-3000`, `gateway-5000` and `sidecar-1`, `sidecar-3000`, `sidecar-5000`
    #[arg(long, value_enum)]
    tool: Option<Tool>,
    /// An installed APISIX (the folder with `apisix/cli/apisix.lua`), a peer of the gateway's cases
    #[arg(long, value_name = "PREFIX", requires = "tool")]
    apisix: Option<PathBuf>,
    /// Write the tables and plots of `--tool` into this folder instead of `target/bench`
    #[arg(long, value_name = "FOLDER", requires = "tool")]
    into: Option<PathBuf>,
    /// Two short turns instead of seven longer ones: to see that everything works, not to measure
    #[arg(long)]
    quick: bool,
    /// Turns that each peer has in each case
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Seconds that a turn takes
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// This binary instead of a release build
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Instructions of a route lookup and of a whole request, counted by callgrind
    RouterInstructions,
    /// Instructions that the filters of a mesh's sidecars add to a request, counted by callgrind
    FilterInstructions,
}

/// # Errors
/// A program is missing, does not start, or a request fails.
pub fn run(options: &Options) -> Result<()> {
    match options.other {
        Some(Other::RouterInstructions) => {
            ensure(&[VALGRIND, NGINX, H2LOAD, OPENSSL, TASKSET])?;
            return instructions::run();
        }
        Some(Other::FilterInstructions) => {
            ensure(&[VALGRIND])?;
            return filters::instructions();
        }
        None => {}
    }
    if let Some(tool) = options.tool {
        return pairs::run(options, tool);
    }
    ensure(&[NGINX, HAPROXY, WRK, H2LOAD, OPENSSL, PYTHON, TASKSET])?;
    peers::two_cores()?;
    peers::stay_on_load_core()?;
    let programs = Programs::new(build(options.binary.as_deref())?)?;
    let dir = target().join("bench");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let upstream = Upstream::start(&dir, Some(&programs.grpc_upstream))?;
    let bench = Bench { programs: &programs, upstream: &upstream, effort: effort(options), dir: &dir };
    let report = measure_all(&bench, options)?;

    // Only a whole run may replace the report that is committed.
    let whole =
        !options.quick && options.cases.is_empty() && options.peers.is_empty() && options.binary.is_none();
    let place = if whole { root().join("bench") } else { dir };
    fs::write(place.join("RESULTS.md"), report.markdown(whole))?;
    fs::write(place.join("results.svg"), plot::svg(&report.cases))?;
    println!("written: {}", place.join("RESULTS.md").display());
    Ok(())
}

fn effort(options: &Options) -> Effort {
    if options.quick { Effort::quick() } else { Effort::whole(options.rounds, options.seconds) }
}

/// The proxy as it is shipped: the release profile.
fn build(binary: Option<&Path>) -> Result<PathBuf> {
    if let Some(binary) = binary {
        return binary.canonicalize().with_context(|| format!("no binary {}", binary.display()));
    }
    crate::tools::build_proxy("release")
}

/// Which code is measured: the commit, `-dirty` if files of it were changed.
fn code(binary: Option<&Path>) -> String {
    if let Some(binary) = binary {
        return format!("that of `{}`", binary.display());
    }
    let mut describe = Command::new("git");
    describe.current_dir(root()).args(["describe", "--always", "--dirty", "--exclude=*"]);
    output(&mut describe)
        .map_or_else(|_| "unknown".to_owned(), |commit| format!("commit `{}`", commit.trim()))
}

fn measure_all(bench: &Bench<'_>, options: &Options) -> Result<Report> {
    let wanted = |name: &str| options.cases.is_empty() || options.cases.iter().any(|case| case == name);
    let peers = [Peer::Sixfold, Peer::Envoy, Peer::Nginx, Peer::Haproxy, Peer::TcpForward];
    let peers = if options.peers.is_empty() { peers.to_vec() } else { options.peers.clone() };
    let mut report = Report::begin(bench.effort, bench.programs.versions(), code(options.binary.as_deref()))?;
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        println!("{}", case.title);
        let result = bench.case(case, &peers)?;
        for row in &result.rows {
            println!("  {}", report::one_line(row));
        }
        report.cases.push(result);
    }
    if wanted("k6") {
        println!("latency by k6 at {K6_RATE} requests/s");
        report.k6 = bench.k6(named("one")?, &peers, K6_RATE)?;
    }
    if wanted("memory") {
        for case in ["one", "prefix-3000", "exact-3000", "header", "regex-3000", "wild-regex-3000"] {
            let case = named(case)?;
            for peer in [Peer::Sixfold, Peer::Envoy].into_iter().filter(|peer| peers.contains(peer)) {
                let (idle, after) = bench.memory(case, peer)?;
                println!("memory, {} {}: {idle:.1} -> {after:.1} MB", peer.name(), case.name);
                report.memory.push((case, peer, idle, after));
            }
        }
    }
    if wanted("sidecar") {
        report.sidecars = sidecar::measure(bench, &peers)?;
        report.sidecars.iter().for_each(|row| println!("{}", row.one_line()));
    }
    if wanted("scale") {
        report.scale = scale::measure(bench, &peers)?;
        report.scale.iter().for_each(|row| println!("{}", row.one_line()));
    }
    if wanted("filters") && peers.contains(&Peer::Sixfold) {
        report.filters = filters::measure()?;
        report.filters.iter().for_each(|cost| println!("{}", cost.one_line()));
    }
    if peers.contains(&Peer::Sixfold) {
        measure_gateway(bench, &mut report, wanted)?;
    }
    report.end()?;
    Ok(report)
}

/// What is measured of sixfold as an APISIX gateway, and of no peer.
fn measure_gateway(bench: &Bench<'_>, report: &mut Report, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for (name, held) in [
        ("upstreams", Held::Upstreams { workers: 1 }),
        ("upstreams", Held::Upstreams { workers: 4 }),
        ("keys", Held::Keys(bench.effort.keys)),
    ] {
        if wanted(name) {
            let row = memory::measure(bench, held)?;
            println!("memory, {}: {:.1} -> {:.1} MB", held.title(), row.idle, row.after);
            report.resident.push(row);
        }
    }
    if wanted("change") {
        for by in [By::File, By::Process] {
            let change = change::measure(bench, by)?;
            println!("{}", change.one_line());
            report.changes.push(change);
        }
    }
    if wanted("storm") {
        let storm = change::storm(bench)?;
        println!("{}", storm.one_line());
        report.storm = Some(storm);
    }
    Ok(())
}

fn named(name: &str) -> Result<&'static Case> {
    CASES.iter().find(|case| case.name == name).with_context(|| format!("no case {name}"))
}
