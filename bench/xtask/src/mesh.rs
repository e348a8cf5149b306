//! Recorded control planes (`xds/conformance`): this project's binary as the sidecars and gateways of a mesh, under
//! the configuration that a real istiod sent, against what Envoy answered under the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::needs::{self, NAMESPACES, NAT};
use crate::process::{execute, root};
use crate::report::Outcome;
use crate::tools::{IPROUTE, IPTABLES, OPENSSL, build_proxy, ensure, python_environment};

#[derive(Debug, Args)]
pub struct Options {
    /// Scenarios; without any: those of expected-pass.txt
    scenarios: Vec<String>,
    /// Over one protocol instead of both
    #[arg(long)]
    protocol: Option<Protocol>,
    /// How many times in a row
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// This binary, started as `BINARY -c FILE`, instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Passed on to the kit: --only REGEX, --no-log, --keep, --verbose and so on
    #[arg(last = true)]
    kit: Vec<String>,
}

/// How resources come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Delta,
    Sotw,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Sotw => "sotw",
        }
    }
}

/// # Errors
/// An answer differs, or the kit cannot be run.
pub fn run(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("no binary {}", binary.display()))?,
        None => build_proxy("ci")?,
    };
    check(&binary, options)
}

/// All that is promised, once, through a proxy that is already built, where connections can be redirected.
///
/// # Errors
/// An answer differs, or the kit cannot be run.
pub fn check_promised(binary: &Path) -> Result<Outcome> {
    let options = Options { scenarios: Vec::new(), protocol: None, runs: 1, binary: None, kit: Vec::new() };
    needs::with(&[NAMESPACES, NAT], || check(binary, &options))
}

fn check(binary: &Path, options: &Options) -> Result<()> {
    ensure(&[IPROUTE, IPTABLES, OPENSSL])?;
    let kit = root().join("xds/conformance");
    let python = python_environment("mesh", &fs::read_to_string(kit.join("requirements.txt"))?)?;
    let promised = promised(&fs::read_to_string(kit.join("expected-pass.txt"))?);
    let scenarios = if options.scenarios.is_empty() { &promised } else { &options.scenarios };
    let both = [Protocol::Delta, Protocol::Sotw];
    let protocols = options.protocol.as_ref().map_or(&both[..], std::slice::from_ref);
    for turn in 1..=options.runs {
        for protocol in protocols {
            println!("mesh: run {turn} of {} over {}", options.runs, protocol.name());
            let mut command = Command::new(python.join("python"));
            command.current_dir(kit.join("tools")).env("PYTHONDONTWRITEBYTECODE", "1");
            // Without the extensions of Istio that the Envoy of the records has not: where they act its answers are others.
            command.args(["traffic.py", "check", "--protocol", protocol.name()]);
            command.arg("--binary").arg(binary).args(&options.kit);
            for scenario in scenarios {
                let folder = kit.join("scenarios").join(scenario);
                if !folder.is_dir() {
                    bail!("no scenario {}", folder.display());
                }
                command.arg(folder);
            }
            execute(&mut command).context("the proxy differs from Envoy; the lines above say where")?;
        }
    }
    Ok(())
}

/// The scenarios of `expected-pass.txt`, one a line.
fn promised(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_there() {
        let kit = root().join("xds/conformance");
        let text = fs::read_to_string(kit.join("expected-pass.txt")).unwrap_or_default();
        let promised = promised(&text);
        assert!(!promised.is_empty());
        for scenario in promised {
            assert!(kit.join("scenarios").join(&scenario).join("expected.json").is_file(), "{scenario}");
        }
    }
}
