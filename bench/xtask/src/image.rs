//! `cargo xtask image`: images by buildah, without a daemon: the gateway's, and the one that takes the place of Istio's proxy.

pub mod gateway;
pub mod sidecar;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::process::{execute, output, root, target};
use crate::symbols;
use crate::tools::{BINUTILS, BUILDAH, build_proxy_for, ensure};

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    image: Image,
}

#[derive(Debug, Subcommand)]
enum Image {
    /// The gateway's image, from the binary and the libraries that it needs
    Gateway(gateway::Options),
    /// The image that takes the place of Istio's proxy
    Sidecar(sidecar::Options),
}

/// # Errors
/// buildah is missing and cannot be installed, the proxy does not compile, or the base cannot be had.
pub fn run(options: &Options) -> Result<()> {
    match &options.image {
        Image::Gateway(options) => gateway::run(options),
        Image::Sidecar(options) => sidecar::run(options),
    }
}

/// The architecture of an image, as Debian and OCI call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub fn native() -> Architecture {
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::Amd64 }
    }

    /// As Debian and OCI call it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// What the compiler and binutils call it.
    pub fn machine(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64",
            Architecture::Arm64 => "aarch64",
        }
    }
}

/// The binary of an image, and what the image is for.
#[derive(Debug, Args)]
struct Binary {
    /// What the image is for; another than this machine's needs a cross compiler and the target's standard library
    /// (deploy/images/gateway/README.md)
    #[arg(long, value_enum)]
    arch: Option<Architecture>,
    /// The cargo profile of the binary
    #[arg(long, default_value = "release")]
    profile: String,
    /// This binary instead of one that is built now
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl Binary {
    /// The binary, built with these features where it is not given, with what every image takes at hand.
    fn ready(&self, features: &[&str]) -> Result<(PathBuf, Architecture)> {
        ensure(&[BUILDAH, BINUTILS])?;
        Ok((self.build(features)?, self.architecture()))
    }

    fn architecture(&self) -> Architecture {
        self.arch.unwrap_or_else(Architecture::native)
    }

    fn build(&self, features: &[&str]) -> Result<PathBuf> {
        if let Some(binary) = &self.binary {
            return Ok(binary.clone());
        }
        let architecture = self.architecture();
        let triple = format!("{}-unknown-linux-gnu", architecture.machine());
        let other = (architecture != Architecture::native()).then_some(&*triple);
        build_proxy_for(&self.profile, features, other)
    }
}

/// Images of one check, apart from those of the machine; gone when it is over.
struct Store {
    folder: PathBuf,
}

impl Store {
    fn new() -> Result<Store> {
        let folder = std::env::temp_dir().join(format!("sixfold-images-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Store { folder })
    }

    fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let options = [format!("--root={folder}/images"), format!("--runroot={folder}/run")];
        options.into_iter().chain(["--storage-driver=vfs".to_owned()]).collect()
    }

    fn buildah(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new("buildah").args(self.options()).args(arguments))
            .map(|text| text.trim().to_owned())
    }

    fn mounted(&self, image: &str) -> Result<PathBuf> {
        let container = self.buildah(&["from", image])?;
        self.buildah(&["mount", &container]).map(PathBuf::from)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Mounts of containers go with them.
        let _ = self.buildah(&["rm", "--all"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A folder that an image is built from: the binary without its symbols, and the license. The symbols are beside it, in
/// `target/image/debug`.
struct BuildContext(PathBuf);

impl BuildContext {
    fn new(proxy: &Path, architecture: Architecture) -> Result<BuildContext> {
        let folder = target().join("image").join(std::process::id().to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let context = BuildContext(folder.canonicalize()?);
        let debug = target().join("image/debug");
        let split = symbols::split(proxy, &context.0, &debug, architecture)?;
        println!("symbols: {}", split.debug.display());
        fs::copy(root().join("LICENSE"), context.0.join("LICENSE")).context("cannot copy LICENSE")?;
        Ok(context)
    }
}

impl Drop for BuildContext {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds the image of a Containerfile in `folder` for an architecture. `storage` are options of buildah that say where images are kept.
fn build(
    folder: &str,
    context: &BuildContext,
    architecture: Architecture,
    tag: &str,
    more: &[String],
    storage: &[String],
) -> Result<()> {
    let mut command = Command::new("buildah");
    // The format that has health checks.
    command
        .args(storage)
        .args(["build", "--isolation", "chroot", "--format", "docker", "--tag", tag])
        .args(more);
    command.arg("--platform").arg(format!("linux/{}", architecture.name()));
    command.arg("--file").arg(root().join(folder).join("Containerfile")).arg(&context.0);
    execute(&mut command)
}
