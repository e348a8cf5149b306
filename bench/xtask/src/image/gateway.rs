//! The gateway's image.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Architecture, BuildContext, Store};
use crate::needs::{self, NAMESPACES};
use crate::process::{execute, root};
use crate::report::Outcome;
use crate::tools::{BINUTILS, BUILDAH, IPROUTE, PYTHON, ensure};

const FOLDER: &str = "deploy/images/gateway";

/// The most that the shipped image may have, in bytes.
const MOST: u64 = 40_000_000;

#[derive(Debug, Args)]
pub struct Options {
    /// The name of the image; `-ARCHITECTURE` is put behind it where another than this machine's is asked for
    #[arg(long, default_value = "localhost/sixfold-gateway:latest")]
    tag: String,
    #[command(flatten)]
    binary: super::Binary,
    /// Start what is in it as a container would, with no image to keep
    #[arg(long)]
    check: bool,
}

/// # Errors
/// buildah is missing and cannot be installed, the proxy does not compile, or Debian's packages cannot be had.
pub fn run(options: &Options) -> Result<()> {
    let (proxy, architecture) = options.binary.ready(&[])?;
    if options.check {
        return check(&proxy, options.binary.profile == "release");
    }
    let suffix = if architecture == Architecture::native() {
        String::new()
    } else {
        format!("-{}", architecture.name())
    };
    build(&proxy, architecture, &format!("{}{suffix}", options.tag), &[]).map(drop)
}

/// Builds it and gives the size of what is in it, in bytes.
fn build(proxy: &Path, architecture: Architecture, tag: &str, storage: &[String]) -> Result<u64> {
    let context = BuildContext::new(proxy, architecture)?;
    let made = context.0.join("root");
    fs::create_dir_all(&made).and_then(|()| fs::create_dir_all(context.0.join("empty")))?;
    let script = root().join(FOLDER).join("root.sh");
    execute(Command::new("sh").arg(script).arg(architecture.name()).arg(&made))
        .context("the root of the image is made from Debian's packages, on Debian")?;
    fs::copy(root().join(FOLDER).join("config.yaml"), context.0.join("config.yaml"))?;
    super::build(FOLDER, &context, architecture, tag, &[], storage)?;
    let size = size(&context.0)?;
    println!("image: {size} bytes");
    Ok(size)
}

/// The bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        sum += if kind.is_dir() { size(&entry.path())? } else { kind.len() };
    }
    Ok(sum)
}

/// Builds the image and starts what is in it as a container would: as its user, with a root that is read only. `shipped` is a
/// binary as it is released, whose image has a size to keep.
///
/// # Errors
/// The image cannot be built, is too large, or does not serve.
pub fn check(proxy: &Path, shipped: bool) -> Result<()> {
    ensure(&[BUILDAH, BINUTILS, PYTHON, IPROUTE])?;
    let store = Store::new()?;
    let size = build(proxy, Architecture::native(), "localhost/gateway:1", &store.options())?;
    if shipped && size > MOST {
        bail!("the image has {size} bytes; {MOST} is the most");
    }
    let config = store.folder.join("inspected.json");
    fs::write(&config, store.buildah(&["inspect", "--type", "image", "localhost/gateway:1"])?)?;
    let mounted = store.mounted("localhost/gateway:1")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "python3", "-B"]);
    command.arg(root().join(FOLDER).join("check.py")).arg(mounted).arg(config);
    execute(&mut command).context("the image does not serve; the lines above say where")
}

/// [`check`] of a binary of the tests, as root with namespaces; without them it is skipped.
///
/// # Errors
/// Those of [`check`].
pub fn check_where_possible(proxy: &Path) -> Result<Outcome> {
    needs::with(&[NAMESPACES], || check(proxy, false))
}
