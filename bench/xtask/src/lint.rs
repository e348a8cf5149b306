//! `cargo xtask lint`: what needs no test to be seen.

use anyhow::{Context, Result};

use crate::deny;
use crate::process::{cargo, execute};
use crate::report::Report;

/// # Errors
/// A check failed; every check was run all the same.
pub fn run() -> Result<()> {
    let mut report = Report::default();
    report.part("formatting", || {
        execute(cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")
    });
    report.part("dependencies", deny::run);
    report.part("clippy", || {
        let mut command = cargo();
        command.args([
            "clippy",
            "--locked",
            "--profile",
            "ci",
            "--workspace",
            "--features",
            "sixfold/lua",
            "--all-targets",
        ]);
        execute(command.args(["--", "-D", "warnings"]))
    });
    report.finish("cargo xtask lint")
}
