//! `cargo xtask bench router-instructions`: user-space instructions counted by callgrind, which do not depend on what
//! else the machine does. First those of a lookup alone, then those of a whole request with 1 route and with 5,000.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cases::{CASES, Case};
use super::envoy::bootstrap;
use super::load;
use super::peers::bench_program;
use super::upstream::Upstream;
use crate::process::{Background, free_port, output, target};
use crate::tools::build_proxy;

const REQUESTS: usize = 2_000;

/// Lookups in the longer of two runs; the shorter has half, and the difference has no start in it.
const LOOKUPS: u32 = 20_000;

/// # Errors
/// A program fails, or a request does.
pub(super) fn run() -> Result<()> {
    lookups()?;
    let binary = build_proxy("release")?;
    let dir = target().join("instructions");
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let upstream = Upstream::start(&dir, Some(&bench_program("grpc-upstream")?))?;
    let mut with_one = None;
    println!("user-space instructions a request, {REQUESTS} requests of each case");
    for name in [
        "one",
        "prefix-1",
        "prefix-3000",
        "prefix-5000",
        "exact-3000",
        "regex-3000",
        "wild-regex-3000",
        "header",
    ] {
        let case = CASES.iter().find(|case| case.name == name).with_context(|| format!("no case {name}"))?;
        let count = count(case, &binary, &upstream, &dir)?;
        let one = *with_one.get_or_insert(count);
        println!("{name:16} {count:8.0}  {:+.1} % of the request with 1 route", (count / one - 1.0) * 100.0);
    }
    Ok(())
}

fn lookups() -> Result<()> {
    let program = bench_program("router-lookups")?;
    let file = target().join("router-lookups.callgrind");
    println!("instructions a lookup");
    println!("{:12} {:>8} {:>8} {:>8} {:>8}", "table", "of 1", "1st", "3,000th", "5,000th");
    for table in ["Prefix", "Exact", "Regex", "WildRegex", "Header"] {
        let mut line = format!("{table:12}");
        for (routes, n) in [(1, 1), (5_000, 1), (5_000, 3_000), (5_000, 5_000)] {
            let count = |lookups: u32| -> Result<f64> {
                let mut command = Command::new("valgrind");
                command.args(["--tool=callgrind", "--quiet"]);
                command.arg(format!("--callgrind-out-file={}", file.display()));
                command.arg(&program).arg(table).args([routes, n, lookups].map(|number| number.to_string()));
                output(&mut command)?;
                total(&fs::read_to_string(&file)?)
            };
            let difference = count(LOOKUPS)? - count(LOOKUPS / 2)?;
            line += &format!(" {:8.0}", difference / f64::from(LOOKUPS / 2));
        }
        println!("{line}");
    }
    Ok(())
}

fn count(case: &Case, binary: &Path, upstream: &Upstream, dir: &Path) -> Result<f64> {
    let port = free_port()?;
    let file = dir.join(format!("{}.json", case.name));
    fs::write(&file, bootstrap(case, port, upstream, dir)?.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).arg(format!(
        "--callgrind-out-file={}/{}.%p",
        dir.display(),
        case.name
    ));
    command.arg(binary).arg("envoy").arg("-c").arg(file).args(["--concurrency", "1", "--log-level", "error"]);
    let mut proxy = Background::spawn(&mut command)?;
    proxy.wait_for_port(port, Duration::from_secs(120))?;

    let uris = dir.join("uris.txt");
    fs::write(&uris, format!("http://127.0.0.1:{port}{}\n", case.path))?;
    load::visit(&uris, 500, 8)?; // connections, first-use compilation, caches
    sleep(Duration::from_millis(500));
    control(proxy.id(), "--zero")?;
    load::visit(&uris, REQUESTS, 8)?;
    control(proxy.id(), "--dump")?;
    let dumped = newest_dump(dir, &format!("{}.{}", case.name, proxy.id()))?;
    Ok(total(&fs::read_to_string(dumped)?)? / REQUESTS as f64)
}

fn control(pid: u32, what: &str) -> Result<()> {
    output(Command::new("callgrind_control").arg(what).arg(pid.to_string())).map(drop)
}

/// Dumps are numbered from 1 behind the name; the one on request is the last.
fn newest_dump(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut found = None;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(number) = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.')) else {
            continue;
        };
        let number: u32 = number.parse().unwrap_or_default();
        if found.as_ref().is_none_or(|(newest, _)| number > *newest) {
            found = Some((number, entry.path()));
        }
    }
    found.map(|(_, path)| path).with_context(|| format!("callgrind wrote no dump {name}"))
}

/// The number behind `totals:` (or `summary:`) in a callgrind dump.
pub(super) fn total(text: &str) -> Result<f64> {
    let line =
        text.lines().rev().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    match line {
        Some(number) => Ok(number.trim().parse()?),
        None => bail!("no total in the dump"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_total_stands_near_the_end() {
        assert_eq!(total("summary: 5\nfn=x\n1 2\n\ntotals: 12345\n").unwrap(), 12_345.0);
        assert!(total("fn=x\n").is_err());
    }
}
