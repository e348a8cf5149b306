//! `cargo xtask fuzz`: every target of `proxy/fuzz` under cargo-fuzz, for a while each.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::process::{cargo, execute, root, target};
use crate::report::Report;

#[derive(Debug, Args)]
pub struct Options {
    /// Targets; all by default
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

#[derive(Deserialize)]
struct Manifest {
    bin: Vec<Binary>,
}

#[derive(Deserialize)]
struct Binary {
    name: String,
}

/// # Errors
/// A target found an input that fails, or cargo-fuzz cannot be had.
pub fn run(options: &Options) -> Result<()> {
    let nightly =
        Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).stdout(Stdio::null()).status();
    if !nightly.is_ok_and(|status| status.success()) {
        bail!("fuzzing needs a nightly compiler: rustup toolchain install nightly");
    }
    if !target().join("tools/bin/cargo-fuzz").is_file() {
        let place = target().join("tools");
        execute(cargo().args(["install", "--locked", "cargo-fuzz", "--root"]).arg(place))?;
    }
    let mut report = Report::default();
    for name in
        targets()?.into_iter().filter(|name| options.targets.is_empty() || options.targets.contains(name))
    {
        report.part(&name, || fuzz(&name, options.seconds));
    }
    report.finish("cargo xtask fuzz")
}

fn targets() -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("proxy/fuzz/Cargo.toml"))
        .context("cannot read proxy/fuzz/Cargo.toml")?;
    let manifest: Manifest = toml::from_str(&text).context("proxy/fuzz/Cargo.toml")?;
    Ok(manifest.bin.into_iter().map(|binary| binary.name).collect())
}

/// New inputs go to a folder of their own, so that the corpus in the tree changes only by hand.
fn fuzz(name: &str, seconds: u32) -> Result<()> {
    let found = target().join("fuzz-found").join(name);
    fs::create_dir_all(&found)?;
    let mut command = Command::new(target().join("tools/bin/cargo-fuzz"));
    // `cargo xtask` sets the stable toolchain for its children; cargo-fuzz must get its own.
    command.current_dir(root()).env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO");
    command
        .args(["run", "--fuzz-dir", "proxy/fuzz", name])
        .arg(found.canonicalize()?)
        .arg(root().join("proxy/fuzz/corpus").join(name));
    execute(command.args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_target_has_a_corpus() {
        let targets = targets().unwrap();
        assert!(targets.len() > 1, "{targets:?}");
        for name in targets {
            let corpus = root().join("proxy/fuzz/corpus").join(&name);
            assert!(corpus.read_dir().is_ok_and(|mut files| files.next().is_some()), "no corpus for {name}");
        }
    }
}
