//! `cargo xtask image`: the image that takes the place of Istio's proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::mesh;
use crate::process::{execute, output, root, target};
use crate::tools::{BUILDAH, OPENSSL, STRIP, build_proxy, ensure, python_environment};

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
    /// Build it on a base of its own and start it as Istio's agent does, with no image to keep
    #[arg(long)]
    check: bool,
}

/// # Errors
/// buildah is missing and cannot be installed, the proxy does not compile, or the base cannot be had.
pub fn run(options: &Options) -> Result<()> {
    ensure(&[BUILDAH, STRIP])?;
    if options.check {
        return check(&build_proxy(&options.profile)?);
    }
    build(&build_proxy(&options.profile)?, &options.base, &options.tag, &[])
}

/// Builds the image with this binary. `storage` are options of buildah that say where images are kept.
///
/// # Errors
/// The binary cannot be copied, or buildah fails.
pub fn build(proxy: &Path, base: &str, tag: &str, storage: &[String]) -> Result<()> {
    let context = context_of(proxy)?;
    let mut command = Command::new("buildah");
    command.args(storage).args(["build", "--isolation", "chroot", "--build-arg"]).arg(format!("BASE={base}"));
    command.args(["--tag", tag, "--file"]).arg(root().join(FOLDER).join("Containerfile")).arg(&context);
    let built = execute(&mut command);
    fs::remove_dir_all(&context).with_context(|| format!("cannot remove {}", context.display()))?;
    built
}

/// Builds the image on a base made from nothing, which needs no registry, and starts it as pilot-agent does: under its
/// command line, bootstrap and sockets, with a recorded control plane behind them.
///
/// # Errors
/// The image cannot be built, or what was started does not answer the agent as Envoy does.
pub fn check(proxy: &Path) -> Result<()> {
    ensure(&[BUILDAH, STRIP, OPENSSL])?;
    let kit = root().join("xds/conformance");
    let python = python_environment("mesh", &fs::read_to_string(kit.join("requirements.txt"))?)?;
    let store = Store::new()?;
    let base = store.base(proxy)?;
    build(proxy, &base, "localhost/checked:1", &store.options())?;
    let mounted = store.mounted("localhost/checked:1")?;
    let mut agent = Command::new(python.join("python"));
    agent.current_dir(kit.join("tools")).env("PYTHONDONTWRITEBYTECODE", "1").arg("agent.py").arg(mounted);
    execute(agent.arg(kit.join("scenarios/bookinfo")).arg("productpage"))
        .context("the image does not do what the agent wants of it; the lines above say where")
}

/// [`check`] as root with network namespaces; without them it says so and passes, as the recorded meshes do.
///
/// # Errors
/// Those of [`check`].
pub fn check_where_possible(proxy: &Path) -> Result<()> {
    if mesh::can_redirect() {
        return check(proxy);
    }
    println!("image: skipped: it takes root and network namespaces (unshare -n)");
    Ok(())
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

    /// An image of the libraries that the binary needs and a file in Envoy's place that is none.
    fn base(&self, proxy: &Path) -> Result<String> {
        let container = self.buildah(&["from", "scratch"])?;
        let root = PathBuf::from(self.buildah(&["mount", &container])?);
        let libraries = output(Command::new("ldd").arg(proxy))?;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            copy_into(&root, Path::new(library))?;
        }
        let envoy = root.join("usr/local/bin/envoy");
        fs::create_dir_all(root.join("usr/local/bin")).and_then(|()| fs::write(&envoy, "replaced"))?;
        fs::create_dir_all(root.join("tmp"))?;
        self.buildah(&["commit", "--quiet", &container, "localhost/base:1"])?;
        Ok("localhost/base:1".to_owned())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Mounts of containers go with them.
        let _ = self.buildah(&["rm", "--all"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn copy_into(root: &Path, file: &Path) -> Result<()> {
    let place = root.join(file.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("a file has a folder")?)?;
    fs::copy(file, &place).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
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
