//! `cargo xtask lint`: what needs no test to be seen.

use anyhow::{Context, Result};

use crate::deny;
use crate::process::{cargo, execute};

/// # Errors
/// The first check that fails.
pub fn run() -> Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    deny::run()?;
    execute(cargo().args([
        "clippy",
        "--locked",
        "--profile",
        "ci",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}
