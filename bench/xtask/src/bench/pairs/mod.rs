//! `cargo xtask bench --tool wrk|k6`: sixfold and others with 5,000 routes, under the scripts that anybody can run by
//! hand. They take turns, first as fast as it goes, then at a rate that all of them carry.

mod apisix;
mod cases;
mod configs;
mod measure;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use self::apisix::Installed;
use self::cases::{CASES, PairCase};
use self::measure::Pairs;
use self::report::Page;
use super::peers::{self, Fetched, Peer};
use super::scripted::Tool;
use super::upstream::Upstream;
use super::{Options, build, code, effort};
use crate::process::target;
use crate::tools::{HAPROXY, NGINX, OPENSSL, PYTHON, TASKSET, WRK, ensure};

/// Where the programs of this chore are.
#[derive(Debug)]
pub(super) struct Programs {
    pub sixfold: PathBuf,
    pub fetched: Fetched,
    pub apisix: Option<Installed>,
}

/// # Errors
/// A program is missing, does not start, or an answer is missing or wrong.
pub(super) fn run(options: &Options, tool: Tool) -> Result<()> {
    let apisix = options.apisix.as_deref().map(Installed::find).transpose()?;
    let chosen = peers_of(&options.peers, apisix.is_some())?;
    let cases = cases_of(&options.cases, &chosen)?;
    ensure(&[NGINX, HAPROXY, WRK, OPENSSL, PYTHON, TASKSET])?;
    peers::two_cores()?;
    peers::stay_on_load_core()?;
    let programs = Programs { sixfold: build(options.binary.as_deref())?, fetched: Fetched::get()?, apisix };
    let dir = target().join("bench").join(tool.name());
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let upstream = Upstream::start(&dir, None)?;
    let pairs = Pairs { programs: &programs, upstream: &upstream, effort: effort(options), dir: &dir, tool };
    let mut page =
        Page::begin(tool, pairs.effort, programs.versions(&chosen), code(options.binary.as_deref()))?;
    for case in cases {
        println!("{}", case.title());
        page.results.push(pairs.case(case, &chosen)?);
        // After each case, so that a run that is broken off has left what it found.
        page.write(options.into.as_deref().unwrap_or(&dir))?;
    }
    Ok(())
}

/// Who takes turns with sixfold.
fn peers_of(named: &[Peer], has_apisix: bool) -> Result<Vec<Peer>> {
    let mut chosen = if named.is_empty() { vec![Peer::Envoy] } else { named.to_vec() };
    if has_apisix && named.is_empty() {
        chosen.push(Peer::Apisix);
    }
    if chosen.contains(&Peer::Apisix) && !has_apisix {
        bail!(
            "--peer apisix needs --apisix PREFIX, the folder of an installed APISIX such as /usr/local/apisix"
        );
    }
    if chosen.contains(&Peer::TcpForward) {
        bail!("--tool asks for routes, and a TCP forwarder has none");
    }
    if !chosen.contains(&Peer::Sixfold) {
        chosen.insert(0, Peer::Sixfold);
    }
    Ok(chosen)
}

/// The cases that are named, by their whole name or by what is before the dash, and have a peer among the chosen.
fn cases_of(named: &[String], chosen: &[Peer]) -> Result<Vec<&'static PairCase>> {
    let is_named =
        |case: &PairCase, name: &String| case.name == name || case.name.split('-').next() == Some(name);
    if let Some(name) = named.iter().find(|name| !CASES.iter().any(|case| is_named(case, name))) {
        let all: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("--tool has no case {name}; there are {}", all.join(", "));
    }
    let wanted = |case: &&PairCase| named.is_empty() || named.iter().any(|name| is_named(case, name));
    let other = |case: &&PairCase| case.peers().iter().any(|p| *p != Peer::Sixfold && chosen.contains(p));
    let cases: Vec<&PairCase> = CASES.iter().filter(wanted).filter(other).collect();
    if cases.is_empty() {
        bail!("none of the cases has one of these peers");
    }
    Ok(cases)
}

impl Programs {
    /// Of those that take part.
    fn versions(&self, chosen: &[Peer]) -> Vec<(Peer, String)> {
        let mut versions = peers::versions(&self.sixfold, &self.fetched.envoy);
        versions.retain(|(peer, _)| chosen.contains(peer));
        versions.extend(self.apisix.as_ref().map(|apisix| (Peer::Apisix, apisix.version())));
        versions
    }
}

/// A file of a case's, in the folder of one of its peers.
fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = dir.join(name);
    fs::write(&file, text)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn envoy_is_the_peer_and_apisix_needs_a_folder() {
        assert_eq!(peers_of(&[], false).unwrap(), [Peer::Sixfold, Peer::Envoy]);
        assert_eq!(peers_of(&[], true).unwrap(), [Peer::Sixfold, Peer::Envoy, Peer::Apisix]);
        assert_eq!(peers_of(&[Peer::Nginx], true).unwrap(), [Peer::Sixfold, Peer::Nginx]);
        let refused = peers_of(&[Peer::Apisix], false).unwrap_err().to_string();
        assert!(refused.contains("--apisix PREFIX"), "{refused}");
        assert!(peers_of(&[Peer::TcpForward], false).is_err());
    }

    #[test]
    fn cases_are_named_alone_or_together() {
        let names = |named: &[&str], peers: &[Peer]| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            cases_of(&named, peers).map(|cases| cases.iter().map(|case| case.name).collect::<Vec<_>>())
        };
        let both = [Peer::Sixfold, Peer::Envoy];
        assert_eq!(names(&[], &both).unwrap().len(), 6);
        assert_eq!(names(&["gateway-3000"], &both).unwrap(), ["gateway-3000"]);
        assert_eq!(names(&["sidecar"], &both).unwrap(), ["sidecar-1", "sidecar-3000", "sidecar-5000"]);
        assert_eq!(names(&[], &[Peer::Sixfold, Peer::Nginx]).unwrap().len(), 3);
        assert!(names(&["sidecar"], &[Peer::Sixfold, Peer::Nginx]).is_err());
        let refused = names(&["body"], &both).unwrap_err().to_string();
        assert!(refused.contains("gateway-1, "), "{refused}");
    }
}
