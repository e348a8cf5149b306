//! The recorded cases of Envoy's behaviour (`proxy/conformance`), run through this project's binary.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{execute, root, target};
use crate::tools::{build_proxy, python_environment};

#[derive(Debug, Args)]
pub struct Options {
    /// Families, or case ids with * and ?; without any: what expected-pass.txt promises
    cases: Vec<String>,
    /// How many times in a row
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// This binary, started as `BINARY -c FILE`, instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Passed on to the kit: --loose, --no-log, --per-case and so on
    #[arg(last = true)]
    kit: Vec<String>,
}

/// What `expected-pass.txt` says: the families, and the exceptions in the form that the kit's `--except` takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Promise {
    pub families: Vec<String>,
    pub exceptions: Vec<String>,
}

impl Promise {
    /// # Errors
    /// A line is neither a family nor an exception with a reason.
    pub fn parse(text: &str) -> Result<Self> {
        let mut promise = Self { families: Vec::new(), exceptions: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.strip_prefix("- ").map(|rest| rest.trim_start().split_once(char::is_whitespace)) {
                Some(Some((case, _reason))) => promise.exceptions.push(case.to_owned()),
                Some(None) => bail!("line {}: an exception without a reason: {line}", number + 1),
                None if line.contains(char::is_whitespace) => {
                    bail!("line {}: not a family: {line}", number + 1)
                }
                None => promise.families.push(line.to_owned()),
            }
        }
        Ok(promise)
    }

    /// # Errors
    /// The file cannot be read or parsed.
    pub fn load(kit: &Path) -> Result<Self> {
        let file = kit.join("expected-pass.txt");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }
}

/// # Errors
/// A case fails, or the kit cannot be run.
pub fn run(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("no binary {}", binary.display()))?,
        None => envoy_alias(&build_proxy("ci")?)?,
    };
    check(&binary, &options.cases, options.runs, &options.kit)
}

/// All that is promised, `runs` times in a row through a proxy that is already built.
///
/// # Errors
/// A case fails, or the kit cannot be run.
pub fn check_promised(binary: &Path, runs: u32) -> Result<()> {
    check(&envoy_alias(binary)?, &[], runs, &[])
}

/// The kit starts `BINARY -c FILE`; the proxy takes Envoy's command line when it is called by Envoy's name.
fn envoy_alias(binary: &Path) -> Result<PathBuf> {
    let dir = target().join("conformance");
    fs::create_dir_all(&dir)?;
    let alias = dir.join("envoy");
    if alias.symlink_metadata().is_ok() {
        fs::remove_file(&alias)?;
    }
    symlink(binary, &alias)?;
    alias.canonicalize()?;
    Ok(alias)
}

fn check(binary: &Path, cases: &[String], runs: u32, extra: &[String]) -> Result<()> {
    let kit = root().join("proxy/conformance");
    let python = python_environment("conformance", &fs::read_to_string(kit.join("requirements.txt"))?)?;
    let promise = Promise::load(&kit)?;
    for turn in 1..=runs {
        println!("conformance: run {turn} of {runs}");
        let mut command = Command::new(python.join("python"));
        command.current_dir(&kit).env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg(kit.join("oracle.py")).arg("check").arg("--binary").arg(binary);
        if cases.is_empty() {
            promise.exceptions.iter().for_each(|case| {
                command.arg("--except").arg(case);
            });
            command.args(&promise.families);
        } else {
            command.args(cases);
        }
        execute(command.args(extra))
            .context("the proxy differs from the record; the lines above say where")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_promise_has_families_and_exceptions_with_reasons() {
        let promise = Promise::parse("# c\n\ncodec\n- codec.x#0,2  the crate decides\ntcp\n").unwrap();
        assert_eq!(promise.families, ["codec", "tcp"]);
        assert_eq!(promise.exceptions, ["codec.x#0,2"]);
    }

    #[test]
    fn an_exception_without_a_reason_is_refused_by_line() {
        let error = Promise::parse("codec\n- codec.x\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn the_promise_names_families_and_cases_that_exist() {
        let kit = root().join("proxy/conformance");
        let promise = Promise::load(&kit).unwrap();
        for family in &promise.families {
            assert!(kit.join(format!("cases/{family}.yaml")).is_file(), "no family {family}");
        }
        for exception in &promise.exceptions {
            let family = exception.split('.').next().unwrap();
            assert!(promise.families.iter().any(|f| f == family), "{exception} is of no promised family");
            let name = exception.split(['.', '#']).nth(1).unwrap().trim_end_matches('*');
            let cases = fs::read_to_string(kit.join(format!("cases/{family}.yaml"))).unwrap();
            assert!(cases.contains(&format!("- name: {name}")), "no case {exception}");
        }
    }
}
