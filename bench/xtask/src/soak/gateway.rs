//! The gateways under load, and what they show of themselves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::http;
use crate::process::{Background, free_port};

/// The key of the Admin API.
const KEY: &str = "soak-soak-soak-soak";

/// Where its resources are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// apisix.yaml beside its config.yaml
    File,
    /// The embedded store, written by the Admin API
    Admin,
}

#[derive(Debug)]
pub(super) struct Gateway {
    pub name: &'static str,
    pub port: u16,
    pub tls: u16,
    pub dir: PathBuf,
    admin: u16,
    metrics: u16,
    sixfold: PathBuf,
    process: Background,
}

/// What must be as it was when all clients are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gauges {
    /// Name, value
    pub values: Vec<(String, i64)>,
}

impl Gateway {
    /// # Errors
    /// It does not start.
    pub(super) fn start(sixfold: &Path, dir: &Path, name: &'static str, kind: Kind) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let (port, tls, admin, metrics) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let deployment = match kind {
            Kind::File => "role: data_plane\n  role_data_plane: {config_provider: yaml}".to_owned(),
            Kind::Admin => format!(
                "role: traditional\n  role_traditional: {{config_provider: embedded}}\n  \
                 admin: {{admin_listen: {{ip: 127.0.0.1, port: {admin}}}, admin_key: [{{name: admin, key: {KEY}, role: admin}}]}}"
            ),
        };
        let text = format!(
            "apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  enable_control: false\n  \
             ssl: {{enable: true, listen: [{{ip: 127.0.0.1, port: {tls}}}]}}\n\
             nginx_config:\n  worker_processes: 2\n  http: {{access_log: {}/access.log}}\n\
             plugin_attr:\n  prometheus: {{export_addr: {{ip: 127.0.0.1, port: {metrics}}}}}\n\
             deployment:\n  {deployment}\n",
            dir.display()
        );
        fs::write(dir.join("config.yaml"), text)?;
        if kind == Kind::File {
            fs::write(dir.join("apisix.yaml"), "routes: []\n#END\n")?;
        }
        let process = spawn(sixfold, &dir, port)?;
        Ok(Self { name, port, tls, dir, admin, metrics, sixfold: sixfold.to_owned(), process })
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It does not end in time, or not well.
    pub(super) fn end(&mut self, limit: Duration) -> Result<()> {
        let status =
            self.process.end(limit)?.with_context(|| format!("{}: no end in {limit:?}", self.name))?;
        if !status.success() {
            bail!("{}: {status}", self.name);
        }
        Ok(())
    }

    /// Starts it again, at the same ports.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.sixfold, &self.dir, self.port)?;
        Ok(())
    }

    /// Replaces apisix.yaml.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn put_file(&self, text: &str) -> Result<()> {
        let new = self.dir.join("new.yaml");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.dir.join("apisix.yaml"))?)
    }

    /// Asks the Admin API, and wants one of these statuses.
    ///
    /// # Errors
    /// It answers otherwise, or not at all.
    pub(super) fn admin(&self, method: &str, path: &str, body: &str, wanted: &[u16]) -> Result<()> {
        let path = format!("/apisix/admin/{path}");
        let answer = http::call(self.admin, method, &path, &format!("X-API-KEY: {KEY}\r\n"), body)?;
        if !answer.status().is_some_and(|status| wanted.contains(&status)) {
            bail!("{method} {path}: {} {}", answer.head, String::from_utf8_lossy(&answer.body));
        }
        Ok(())
    }

    /// Connections, requests in flight and descriptors.
    ///
    /// # Errors
    /// The page of metrics is not answered, or the process is gone.
    pub(super) fn gauges(&self) -> Result<Gauges> {
        let page = http::call(self.metrics, "GET", "/apisix/prometheus/metrics", "", "")?;
        let mut values = connections(&String::from_utf8_lossy(&page.body))?;
        values.push(("descriptors".to_owned(), descriptors(self.id())?));
        Ok(Gauges { values })
    }
}

fn spawn(sixfold: &Path, dir: &Path, port: u16) -> Result<Background> {
    let mut command = Command::new(sixfold);
    command.arg("run").arg("-c").arg(dir.join("config.yaml"));
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let mut process = Background::spawn(command.stdout(log.try_clone()?).stderr(log))?;
    process.wait_for_port(port, Duration::from_secs(30)).with_context(|| format!("see {}", dir.display()))?;
    Ok(process)
}

/// The gauges of connections on a page of metrics: open ones, those whose request is read, answered, or not there yet.
fn connections(page: &str) -> Result<Vec<(String, i64)>> {
    let states = ["active", "reading", "writing", "waiting"];
    let values = states.map(|state| {
        let start = format!("apisix_nginx_http_current_connections{{state=\"{state}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&start));
        let value = value.with_context(|| format!("no gauge of connections {state}"))?.trim().parse()?;
        Ok((format!("connections {state}"), value))
    });
    values.into_iter().collect()
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> Result<i64> {
    let dir = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&dir).with_context(|| dir.clone())?.count() as i64)
}

impl Gauges {
    /// What did not return to the start, one line each. Descriptors may have become fewer.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let pairs = self.values.iter().zip(&now.values);
        let gone_up = pairs.filter(|((name, start), (_, end))| match name.as_str() {
            "descriptors" => end > start,
            _ => end != start,
        });
        gone_up
            .map(|((name, start), (_, end))| format!("{name}: {start} at the start, {end} at the end"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn gauges(active: i64, descriptors: i64) -> Gauges {
        Gauges {
            values: vec![("connections active".to_owned(), active), ("descriptors".to_owned(), descriptors)],
        }
    }

    #[test]
    fn what_has_not_returned_is_named() {
        let start = gauges(0, 40);
        assert_eq!(start.differences(&gauges(0, 40)), [""; 0]);
        assert_eq!(start.differences(&gauges(0, 38)), [""; 0]);
        assert_eq!(start.differences(&gauges(0, 41)), ["descriptors: 40 at the start, 41 at the end"]);
        assert_eq!(start.differences(&gauges(-1, 40)), ["connections active: 0 at the start, -1 at the end"]);
    }

    #[test]
    fn gauges_are_found_on_a_page_of_metrics() {
        let line = |state: &str, value: i64| {
            format!("apisix_nginx_http_current_connections{{state=\"{state}\"}} {value}\n")
        };
        let page = line("accepted", 9)
            + &line("active", 3)
            + &line("reading", 0)
            + &line("waiting", 1)
            + &line("writing", 2);
        let found: Vec<i64> = connections(&page).unwrap().into_iter().map(|(_, value)| value).collect();
        assert_eq!(found, [3, 0, 2, 1]);
        assert!(connections("").is_err());
    }

    #[test]
    fn this_process_has_descriptors() {
        assert!(descriptors(std::process::id()).unwrap() >= 3);
    }
}
