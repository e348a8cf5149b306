//! `cargo xtask package`: the Debian package, and the one of its symbols.
//!
//! By dpkg-deb, which is on every Debian, from the files of `deploy/debian`. cargo-deb makes the same, but would be compiled for minutes
//! wherever a package is made or tested.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::image::Architecture;
use crate::needs::{self, CGROUPS, NAMESPACES};
use crate::process::{execute, output, root, target};
use crate::report::Outcome;
use crate::symbols;
use crate::tools::{ADDUSER, BINUTILS, CURL, DPKG, IPROUTE, LOGROTATE, PYTHON, SYSTEMD, build_proxy, ensure};

const FOLDER: &str = "deploy/debian";

#[derive(Debug, Args)]
pub struct Options {
    /// The cargo profile of the binary
    #[arg(long, default_value = "release")]
    profile: String,
    /// The folder that the packages are written to; target/debian by default
    #[arg(long)]
    out: Option<PathBuf>,
    /// This binary instead of one that is built now
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Install it into a copy of this machine's root, run it and purge it
    #[arg(long)]
    check: bool,
}

/// # Errors
/// The proxy does not compile, or this is no Debian.
pub fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(place);
    let proxy = options.binary.clone().map_or_else(|| build_proxy(&options.profile), Ok)?;
    if options.check {
        check(&proxy, &out)?;
        if let Outcome::Skipped(why) = needs::with(&[CGROUPS], || booted(&proxy, &out))? {
            println!("under systemd: skipped: {why}");
        }
        return Ok(());
    }
    make(&proxy, &out, SMALL).map(drop)
}

/// Options of dpkg-deb for a package that is kept, and for one that is thrown away.
const SMALL: &[&str] = &["-Zxz"];
const QUICK: &[&str] = &["-Zgzip", "-z1"];

/// Writes both packages to a folder and gives the path of the first.
///
/// # Errors
/// Programs of Debian are missing, or the binary can't be run here.
fn make(proxy: &Path, out: &Path, compression: &[&str]) -> Result<PathBuf> {
    ensure(&[DPKG, BINUTILS])?;
    let (tree, debug) = (Tree::new("tree")?, Tree::new("debug")?);
    fs::create_dir_all(tree.0.join("usr/bin"))?;
    let split = symbols::split(
        proxy,
        &tree.0.join("usr/bin"),
        &debug.0.join("usr/lib/debug"),
        Architecture::native(),
    )?;
    let version = version()?;
    let depends = format!("libc6 (>= {}), libgcc-s1", c_library(&split.binary)?);
    for (from, to, mode) in FILES {
        tree.put(to, &fs::read(root().join(FOLDER).join(from))?, *mode)?;
    }
    for (shell, to) in COMPLETIONS {
        tree.put(to, output(Command::new(proxy).args(["completions", shell]))?.as_bytes(), 0o644)?;
    }
    let pages = tree.0.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    execute(Command::new(proxy).arg("man").arg("--directory").arg(&pages))?;
    let pages = fs::read_dir(&pages)?.collect::<Result<Vec<_>, _>>()?;
    execute(Command::new("gzip").arg("-9n").args(pages.iter().map(|page| page.path())))?;
    debug.put(
        "usr/share/doc/sixfold-dbgsym/copyright",
        &fs::read(root().join(FOLDER).join("copyright"))?,
        0o644,
    )?;
    let fill = BTreeMap::from([
        ("VERSION", version),
        ("ARCHITECTURE", Architecture::native().name().to_owned()),
        ("DEPENDS", depends),
    ]);
    debug.pack("control.dbgsym", fill.clone(), out, compression)?;
    tree.pack("control", fill, out, compression)
}

/// Files of `deploy/debian`, where they go, and their modes.
const FILES: &[(&str, &str, u32)] = &[
    ("conffiles", "DEBIAN/conffiles", 0o644),
    ("postinst", "DEBIAN/postinst", 0o755),
    ("prerm", "DEBIAN/prerm", 0o755),
    ("postrm", "DEBIAN/postrm", 0o755),
    ("config.yaml", "etc/sixfold/config.yaml", 0o644),
    ("logrotate", "etc/logrotate.d/sixfold", 0o644),
    ("sixfold.service", "usr/lib/systemd/system/sixfold.service", 0o644),
    ("copyright", "usr/share/doc/sixfold/copyright", 0o644),
];

/// Shells, and where their completions are looked for.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/sixfold"),
    ("zsh", "usr/share/zsh/vendor-completions/_sixfold"),
    ("fish", "usr/share/fish/vendor_completions.d/sixfold.fish"),
];

/// What a package holds, in a folder of its own that goes with it.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Result<Tree> {
        let folder = target().join(format!("debian/{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("DEBIAN"))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Tree(folder.canonicalize()?))
    }

    fn put(&self, place: &str, content: &[u8], mode: u32) -> Result<()> {
        let file = self.0.join(place);
        fs::create_dir_all(file.parent().context("a file has a folder")?)?;
        fs::write(&file, content)?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
    }

    /// Makes the package of a control file whose `@NAMES@` are filled in.
    fn pack(
        &self,
        control: &str,
        mut fill: BTreeMap<&str, String>,
        out: &Path,
        compression: &[&str],
    ) -> Result<PathBuf> {
        fs::create_dir_all(out)?;
        let size = output(Command::new("du").arg("-sk").arg(&self.0))?;
        fill.insert("SIZE", size.split_whitespace().next().unwrap_or("0").to_owned());
        let mut text = fs::read_to_string(root().join(FOLDER).join(control))?;
        for (name, value) in &fill {
            text = text.replace(&format!("@{name}@"), value);
        }
        let name =
            text.lines().find_map(|line| line.strip_prefix("Package: ")).context("a package has a name")?;
        let file = out.join(format!("{name}_{}_{}.deb", fill["VERSION"], fill["ARCHITECTURE"]));
        self.put("DEBIAN/control", text.as_bytes(), 0o644)?;
        let mut command = Command::new("dpkg-deb");
        execute(command.args(["--build", "--root-owner-group"]).args(compression).arg(&self.0).arg(&file))?;
        Ok(file)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn version() -> Result<String> {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml"))?.parse()?;
    let version = manifest.get("workspace").and_then(|w| w.get("package")?.get("version")?.as_str());
    version.map(str::to_owned).context("Cargo.toml has no version")
}

/// The C library that the binary needs at least, by the versions of its symbols.
fn c_library(binary: &Path) -> Result<String> {
    let symbols = output(Command::new("objdump").arg("-T").arg(binary))?;
    newest(&symbols).context("the binary needs no version of the C library")
}

/// The largest `GLIBC_x.y` among dynamic symbols.
fn newest(symbols: &str) -> Option<String> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let text: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let numbers: Vec<u32> = text.split('.').filter_map(|part| part.parse().ok()).collect();
        (!numbers.is_empty()).then_some((numbers, text))
    });
    versions.max().map(|(_, text)| text)
}

/// Makes the package, installs it into a copy of this machine's root, runs what its unit says, rotates its logs, and purges it; then
/// installs, upgrades, removes and disables it in another one.
///
/// # Errors
/// Something of that does not come out right.
pub fn check(proxy: &Path, out: &Path) -> Result<()> {
    ensure(&[PYTHON, IPROUTE, LOGROTATE, CURL, ADDUSER, SYSTEMD])?;
    let package = make(proxy, out, QUICK)?;
    let told = output(Command::new("dpkg-deb").args(["--info"]).arg(&package))?;
    for field in ["Depends: libc6 (>= 2.", "adduser", "postinst", "conffiles"] {
        if !told.contains(field) {
            bail!("{} lacks {field:?}:\n{told}", package.display());
        }
    }
    for script in ["check.py", "scripts.py"] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--propagation", "private", "python3", "-B"]);
        command.arg(root().join(FOLDER).join(script)).arg(package.canonicalize()?);
        execute(&mut command).context("the package is not right; the lines above say where")?;
    }
    Ok(())
}

/// Boots systemd in such a copy, and uses the unit.
///
/// # Errors
/// The unit does not do under systemd what it should.
fn booted(proxy: &Path, out: &Path) -> Result<()> {
    ensure(&[PYTHON, IPROUTE, LOGROTATE, CURL, ADDUSER, SYSTEMD])?;
    let mut command = Command::new("python3");
    let package = make(proxy, out, QUICK)?.canonicalize()?;
    command.arg("-B").arg(root().join(FOLDER).join("booted.py")).arg(package);
    execute(&mut command)
        .context("the unit does not do under systemd what it should; the lines above say where")
}

/// [`check`] as root with namespaces; without them it is skipped.
///
/// # Errors
/// Those of [`check`].
pub fn check_where_possible(proxy: &Path) -> Result<Outcome> {
    needs::with(&[NAMESPACES], || check(proxy, &place()))
}

/// The unit under a systemd, where one can be booted.
///
/// # Errors
/// It does not do what it should.
pub fn booted_where_possible(proxy: &Path) -> Result<Outcome> {
    needs::with(&[NAMESPACES, CGROUPS], || booted(proxy, &place()))
}

/// Where packages are written to, if nobody says.
fn place() -> PathBuf {
    target().join("debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_by_its_numbers() {
        let symbols = " (GLIBC_2.4) memcpy\n (GLIBC_2.34) x\n (GLIBC_2.2.5) y\n (GCC_3.0) z\n GLIBC_PRIVATE";
        assert_eq!(newest(symbols).as_deref(), Some("2.34"));
        assert_eq!(newest("nothing"), None);
    }
}
