//! sixfold as an APISIX gateway: the files it is given, and the process.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cases::{ROUTES, Table};
use super::peers::{PROXY_CORE, pinned};
use crate::process::{Background, free_port};

/// A gateway that runs on the proxy's core, with its files in a folder of its own.
#[derive(Debug)]
pub(super) struct Gateway {
    pub port: u16,
    pub dir: PathBuf,
    pub process: Background,
}

impl Gateway {
    /// `sixfold run` with an apisix.yaml.
    ///
    /// # Errors
    /// It does not start, or does not listen within a minute.
    pub(super) fn start(sixfold: &Path, dir: PathBuf, workers: u32, resources: &str) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("apisix.yaml"), resources)?;
        let mut command = pinned(PROXY_CORE);
        command.arg(sixfold).args(["run", "-c"]).arg(dir.join("config.yaml"));
        Self::spawn(&mut command, dir, workers)
    }

    /// The program that keeps the same resources in memory and takes changes of them as lines of its standard
    /// input.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub(super) fn in_memory(program: &Path, dir: PathBuf, upstream: u16) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut command = pinned(PROXY_CORE);
        command.arg(program).arg(dir.join("config.yaml")).args([ROUTES.to_string(), upstream.to_string()]);
        Self::spawn(command.stdin(Stdio::piped()), dir, 1)
    }

    fn spawn(command: &mut Command, dir: PathBuf, workers: u32) -> Result<Self> {
        let port = free_port()?;
        fs::write(dir.join("config.yaml"), config(port, workers, &dir))?;
        command.stdout(File::create(dir.join("stdout.log"))?).stderr(File::create(dir.join("stderr.log"))?);
        let mut process = Background::spawn(command)?;
        process
            .wait_for_port(port, Duration::from_secs(60))
            .with_context(|| format!("see {}", dir.display()))?;
        Ok(Self { port, dir, process })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A file with the URLs of all routes, as load generators read it.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn urls_of_all_routes(&self) -> Result<PathBuf> {
        let file = self.dir.join("urls.txt");
        let url = |n: usize| self.url(&Table::path_of(n)) + "\n";
        fs::write(&file, (1..=ROUTES).map(url).collect::<String>())?;
        Ok(file)
    }
}

/// A config.yaml that APISIX takes as well.
pub(super) fn config(port: u16, workers: u32, dir: &Path) -> String {
    format!(
        "apisix:\n  node_listen:\n    - ip: 127.0.0.1\n      port: {port}\n  enable_control: false\n  ssl:\n    enable: false\n\
         nginx_config:\n  worker_processes: {workers}\n  http:\n    access_log: {}/access.log\n\
         plugin_attr:\n  prometheus:\n    enable_export_server: false\n\
         deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: yaml\n",
        dir.display()
    )
}

/// An apisix.yaml of routes that each bring an upstream; that of `changed` has another port.
pub(super) fn routes(upstream: u16, changed: Option<(usize, u16)>) -> String {
    routes_to(|n| changed.filter(|(which, _)| *which == n).map_or(upstream, |(_, port)| port))
}

/// An apisix.yaml of routes that each bring an upstream, the n-th at this port.
pub(super) fn routes_to(port_of: impl Fn(usize) -> u16) -> String {
    let mut text = "routes:\n".to_owned();
    for n in 1..=ROUTES {
        let port = port_of(n);
        let _ = write!(
            text,
            "  - id: {n}\n    uri: /svc/{n}/*\n    upstream:\n      type: roundrobin\n      nodes:\n        \"127.0.0.1:{port}\": 1\n"
        );
    }
    text + "#END\n"
}
