//! The image that takes the place of Istio's proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use super::{Architecture, BuildContext, Store};
use crate::needs::{self, NAMESPACES};
use crate::process::{execute, output, root};
use crate::report::Outcome;
use crate::tools::{BINUTILS, BUILDAH, OPENSSL, ensure, python_environment};

/// What is put into the base, beside the folder's own Containerfile.
const FOLDER: &str = "deploy/images/sidecar";

/// What Envoy's binary in Istio's image has as well: meshes' own filters are mostly written in it.
const FEATURES: [&str; 1] = ["lua"];

#[derive(Debug, Args)]
pub struct Options {
    /// The proxy image of the release of Istio that is used
    #[arg(long, default_value = "docker.io/istio/proxyv2:1.31.0")]
    base: String,
    /// The name of the image
    #[arg(long, default_value = "localhost/proxyv2:1.31.0-sixfold")]
    tag: String,
    #[command(flatten)]
    binary: super::Binary,
    /// Build it on a base of its own and start it as Istio's agent does, with no image to keep
    #[arg(long)]
    check: bool,
}

/// # Errors
/// buildah is missing and cannot be installed, the proxy does not compile, or the base cannot be had.
pub fn run(options: &Options) -> Result<()> {
    let (proxy, architecture) = options.binary.ready(&FEATURES)?;
    if options.check {
        return check(&proxy);
    }
    build(&proxy, architecture, &options.base, &options.tag, &[])
}

fn build(proxy: &Path, architecture: Architecture, base: &str, tag: &str, storage: &[String]) -> Result<()> {
    let context = BuildContext::new(proxy, architecture)?;
    let base = ["--build-arg".to_owned(), format!("BASE={base}")];
    super::build(FOLDER, &context, architecture, tag, &base, storage)
}

/// Builds the image on a base made from nothing, which needs no registry, and starts it as pilot-agent does: under its
/// command line, bootstrap and sockets, with a recorded control plane behind them.
///
/// # Errors
/// The image cannot be built, or what was started does not answer the agent as Envoy does.
pub fn check(proxy: &Path) -> Result<()> {
    ensure(&[BUILDAH, BINUTILS, OPENSSL])?;
    let kit = root().join("xds/conformance");
    let python = python_environment("mesh", &fs::read_to_string(kit.join("requirements.txt"))?)?;
    let store = Store::new()?;
    let base = base(&store, proxy)?;
    build(proxy, Architecture::native(), &base, "localhost/checked:1", &store.options())?;
    let mounted = store.mounted("localhost/checked:1")?;
    let mut agent = Command::new(python.join("python"));
    agent.current_dir(kit.join("tools")).env("PYTHONDONTWRITEBYTECODE", "1").arg("agent.py").arg(mounted);
    execute(agent.arg(kit.join("scenarios/bookinfo")).arg("productpage"))
        .context("the image does not do what the agent wants of it; the lines above say where")
}

/// [`check`] as root with network namespaces; without them it is skipped, as the recorded meshes are.
///
/// # Errors
/// Those of [`check`].
pub fn check_where_possible(proxy: &Path) -> Result<Outcome> {
    needs::with(&[NAMESPACES], || check(proxy))
}

/// An image of the libraries that the binary needs and a file in Envoy's place that is none.
fn base(store: &Store, proxy: &Path) -> Result<String> {
    let container = store.buildah(&["from", "scratch"])?;
    let root = PathBuf::from(store.buildah(&["mount", &container])?);
    let libraries = output(Command::new("ldd").arg(proxy))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        copy_into(&root, Path::new(library))?;
    }
    let envoy = root.join("usr/local/bin/envoy");
    fs::create_dir_all(root.join("usr/local/bin")).and_then(|()| fs::write(&envoy, "replaced"))?;
    fs::create_dir_all(root.join("tmp"))?;
    store.buildah(&["commit", "--quiet", &container, "localhost/base:1"])?;
    Ok("localhost/base:1".to_owned())
}

fn copy_into(root: &Path, file: &Path) -> Result<()> {
    let place = root.join(file.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("a file has a folder")?)?;
    fs::copy(file, &place).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    /// The image had none, while everything that is tested has it: a listener with a script was refused in pods alone.
    #[test]
    fn the_image_has_lua_as_envoys_has() {
        assert!(super::FEATURES.contains(&"lua"));
    }
}
