//! What the tests and the load tests need beside Rust: Debian packages, Python packages, Go programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{execute, find, output, root, target};

/// A program that a chore calls, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
    pub what_for: &'static str,
}

pub const ETCD: Tool = Tool {
    program: "etcd",
    package: "etcd-server",
    what_for: "a store of APISIX's resources, for the tests",
};
pub const REDIS: Tool = Tool {
    program: "redis-server",
    package: "redis-server",
    what_for: "a store of limits' counts, for the tests",
};
pub const PYTHON: Tool = Tool { program: "python3", package: "python3", what_for: "the conformance kit" };
pub const GO: Tool = Tool { program: "go", package: "golang", what_for: "building h2spec" };
pub const NGINX: Tool =
    Tool { program: "nginx", package: "nginx", what_for: "the load tests' upstream and a peer" };
pub const HAPROXY: Tool =
    Tool { program: "haproxy", package: "haproxy", what_for: "a peer of the load tests" };
pub const PROMETHEUS: Tool =
    Tool { program: "prometheus", package: "prometheus", what_for: "asking what dashboards and alerts ask" };
pub const PROMTOOL: Tool =
    Tool { program: "promtool", package: "prometheus", what_for: "reading the files of alerts" };
pub const WRK: Tool = Tool { program: "wrk", package: "wrk", what_for: "HTTP/1 load" };
pub const H2LOAD: Tool =
    Tool { program: "h2load", package: "nghttp2-client", what_for: "load at a fixed rate, HTTP/2 load" };
pub const OPENSSL: Tool =
    Tool { program: "openssl", package: "openssl", what_for: "certificates for the tests" };
pub const IPTABLES: Tool =
    Tool { program: "iptables", package: "iptables", what_for: "redirecting connections as in a pod" };
pub const IPROUTE: Tool =
    Tool { program: "ip", package: "iproute2", what_for: "the loopback of a network namespace" };
pub const VALGRIND: Tool =
    Tool { program: "valgrind", package: "valgrind", what_for: "counting instructions" };
pub const BUILDAH: Tool = Tool { program: "buildah", package: "buildah", what_for: "building images" };
pub const BINUTILS: Tool =
    Tool { program: "objcopy", package: "binutils", what_for: "small binaries in images and packages" };
pub const CURL: Tool = Tool { program: "curl", package: "curl", what_for: "requests of the tests" };
pub const ADDUSER: Tool = Tool { program: "adduser", package: "adduser", what_for: "installing the package" };
pub const DPKG: Tool = Tool { program: "dpkg-deb", package: "dpkg", what_for: "making packages" };
pub const LOGROTATE: Tool =
    Tool { program: "logrotate", package: "logrotate", what_for: "rotating logs as the package does" };
pub const SYSTEMD: Tool =
    Tool { program: "systemd-analyze", package: "systemd", what_for: "looking at the package's unit" };
pub const TASKSET: Tool = Tool { program: "taskset", package: "util-linux", what_for: "pinning to a core" };

/// Sees that all of these programs are here: installs them when that is possible, else says what is missing.
///
/// # Errors
/// Something is missing and cannot be installed; the error names each program, its package and its use.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if can_install() {
        return install(&missing.iter().map(|tool| tool.package).collect::<Vec<_>>());
    }
    let list =
        missing.iter().map(|t| format!("  {} (Debian package {}): {}", t.program, t.package, t.what_for));
    bail!(
        "missing, and only root on Debian can install it from here:\n{}",
        list.collect::<Vec<_>>().join("\n")
    )
}

fn can_install() -> bool {
    let id = Command::new("id").arg("-u").output();
    let root = id.is_ok_and(|out| out.stdout.starts_with(b"0\n"));
    root && find("apt-get").is_some()
}

fn install(packages: &[&str]) -> Result<()> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    };
    execute(apt().args(["update", "-q"]))?;
    execute(apt().args(["install", "-qy", "--no-install-recommends"]).args(packages))
}

/// A Python virtual environment under `target/` with these packages; gives its `bin` folder.
/// `requirements` is the text of a requirements file; the environment is made anew when it changes.
///
/// # Errors
/// Python has no `venv`, or the packages cannot be installed.
pub fn python_environment(name: &str, requirements: &str) -> Result<PathBuf> {
    let place = target().join("python").join(name);
    let stamp = place.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == requirements) {
        return Ok(place.join("bin"));
    }
    ensure(&[PYTHON])?;
    ensure_venv_module()?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    execute(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
    let wanted = place.join("wanted.txt");
    fs::write(&wanted, requirements)?;
    let pip = place.join("bin/pip");
    execute(
        Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&wanted),
    )?;
    fs::rename(wanted, stamp)?; // last, so that a half-made environment is not taken for a whole one
    Ok(place.join("bin"))
}

/// Debian keeps `ensurepip` in a package of its own.
fn ensure_venv_module() -> Result<()> {
    let probe = Command::new("python3").args(["-c", "import venv, ensurepip"]).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    if can_install() {
        return install(&["python3-venv"]);
    }
    bail!(
        "python3 has no venv module, and only root on Debian can install it from here: package python3-venv"
    )
}

/// A Go program under `target/tools`, built on first use with the versions that the `go.mod` in `folder` fixes.
///
/// # Errors
/// Go is missing, or the build fails.
pub fn go_program(name: &str, package: &str, folder: &Path) -> Result<PathBuf> {
    let place = target().join("tools");
    let program = place.join(name);
    if !program.is_file() {
        ensure(&[GO])?;
        let go = find("go").context("go was just found")?;
        let mut command = Command::new(go);
        command.current_dir(folder).args(["build", "-o"]).arg(absolute(&place)?.join(name)).arg(package);
        execute(&mut command)?;
    }
    Ok(program)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path)?;
    Ok(path.canonicalize()?)
}

/// A certificate for `localhost` with its key (`cert.pem`, `key.pem` in `dir`), valid for two days.
///
/// # Errors
/// openssl is missing or fails.
pub fn self_signed(dir: &Path) -> Result<()> {
    ensure(&[OPENSSL])?;
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    command.arg("-keyout").arg(dir.join("key.pem")).arg("-out").arg(dir.join("cert.pem"));
    output(command.stderr(Stdio::null()))?;
    Ok(())
}

/// How cargo is asked for the proxy.
fn build_arguments(profile: &str, features: &[&str], triple: Option<&str>) -> Vec<String> {
    let tested: &[&str] = if profile == "ci" { &["lua"] } else { &[] };
    let features: BTreeSet<&str> = features.iter().chain(tested).copied().collect();
    let each = features.into_iter().flat_map(|feature| ["--features", feature]);
    let target = triple.into_iter().flat_map(|triple| ["--target", triple]);
    let asked = ["build", "--locked", "--package", "sixfold", "--profile", profile];
    asked.into_iter().chain(each).chain(target).map(str::to_owned).collect()
}

/// Builds the proxy with this cargo profile and gives the path of the binary. What is tested has every feature that is off
/// by default and has recorded cases; what is measured is what is shipped.
///
/// # Errors
/// It does not compile.
pub fn build_proxy(profile: &str) -> Result<PathBuf> {
    build_proxy_for(profile, &[], None)
}

/// The same with features that are off by default, for this machine or for another one that is named by its target
/// triple: `aarch64-unknown-linux-gnu`.
///
/// # Errors
/// It does not compile: the cross compiler or the target's standard library may be missing.
pub fn build_proxy_for(profile: &str, features: &[&str], triple: Option<&str>) -> Result<PathBuf> {
    execute(crate::process::cargo().args(build_arguments(profile, features, triple)))?;
    let place = triple.map_or_else(target, |triple| target().join(triple));
    let binary = place.join(profile).join("sixfold");
    binary.canonicalize().with_context(|| format!("no {} in {}", binary.display(), root().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_asked_for_once_and_what_is_tested_has_them_all() {
        let features = |profile, features: &[&str]| {
            let arguments = build_arguments(profile, features, None);
            let at = arguments.iter().position(|argument| argument == "--features");
            at.map(|at| arguments[at + 1..].join(" "))
        };
        assert_eq!(features("release", &[]), None);
        assert_eq!(features("release", &["lua"]).as_deref(), Some("lua"));
        assert_eq!(features("ci", &[]).as_deref(), Some("lua"));
        assert_eq!(features("ci", &["lua"]).as_deref(), Some("lua"));
        let other = build_arguments("release", &["lua"], Some("aarch64-unknown-linux-gnu"));
        assert!(other.ends_with(&["--target".to_owned(), "aarch64-unknown-linux-gnu".to_owned()]));
    }
}
