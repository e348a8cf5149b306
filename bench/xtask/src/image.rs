//! `cargo xtask image`: the image that takes the place of Istio's proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{execute, root, target};
use crate::tools::{BUILDAH, STRIP, build_proxy, ensure};

/// What is put into the base, beside the folder's own Containerfile.
const FOLDER: &str = "deploy/images/sidecar";

#[derive(Debug, Args)]
pub struct Options {
    /// The proxy image of the release of Istio that is used
    #[arg(long, default_value = "docker.io/istio/proxyv2:1.31.0")]
    base: String,
    /// The name of the image
    #[arg(long, default_value = "localhost/proxyv2:1.31.0-sixfold")]
    tag: String,
    /// The cargo profile of the binary
    #[arg(long, default_value = "release")]
    profile: String,
}

/// # Errors
/// buildah is missing and cannot be installed, the proxy does not compile, or the base cannot be had.
pub fn run(options: &Options) -> Result<()> {
    ensure(&[BUILDAH, STRIP])?;
    build(&build_proxy(&options.profile)?, &options.base, &options.tag, &[])
}

/// Builds the image with this binary. `storage` are options of buildah that say where images are kept.
///
/// # Errors
/// The binary cannot be copied, or buildah fails.
pub fn build(proxy: &Path, base: &str, tag: &str, storage: &[&str]) -> Result<()> {
    let context = context_of(proxy)?;
    let mut command = Command::new("buildah");
    command.args(storage).args(["build", "--isolation", "chroot", "--build-arg"]).arg(format!("BASE={base}"));
    command.args(["--tag", tag, "--file"]).arg(root().join(FOLDER).join("Containerfile")).arg(&context);
    let built = execute(&mut command);
    fs::remove_dir_all(&context).with_context(|| format!("cannot remove {}", context.display()))?;
    built
}

/// A folder with what the Containerfile copies: the binary without its debugging information, and the license.
fn context_of(proxy: &Path) -> Result<PathBuf> {
    let folder = target().join("image").join(std::process::id().to_string());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let binary = folder.join("sixfold");
    execute(Command::new("strip").arg("--strip-debug").arg("-o").arg(&binary).arg(proxy))?;
    fs::copy(root().join("LICENSE"), folder.join("LICENSE")).context("cannot copy LICENSE")?;
    Ok(folder)
}
