//! One changed route of 5,000 in an apisix.yaml, while requests flow: how long until it is live, and what the other
//! requests notice.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cases::{ROUTES, Table};
use super::load::{Latency, at_rate};
use super::measure::Bench;
use super::peers::{LOAD_CORE, PROXY_CORE, pinned};
use super::stats::Estimate;
use super::upstream::{OTHER_ANSWER, Upstream};
use crate::process::{Background, free_port};

const CHANGES: u32 = 25;
const CHANGED: usize = 3_000;
const RATE: u32 = 2_000;
/// Between two changes; a file watcher must not see them as one.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct Change {
    /// Milliseconds from the rename of the file to the first answer by the new route
    pub live: Estimate,
    steady: Latency,
    changing: Latency,
}

impl Change {
    pub(super) fn one_line(&self) -> String {
        format!(
            "one changed route of {ROUTES}: live after {:.1} ms, p99 {:.0} us (without changes {:.0} us)",
            self.live.median, self.changing.p99, self.steady.p99
        )
    }

    pub(super) fn section(&self) -> String {
        let Estimate { median, low, high } = self.live;
        let mut text = format!(
            "\n## One changed route of 5,000\n\nThe {CHANGED}th route of an apisix.yaml is sent to another upstream and \
             back, {CHANGES} times, the file replaced by a rename, at {RATE} requests/s to the first route. Live means \
             that a request on an open connection is answered by the new upstream; counted from the rename.\n\n\
             - Live after {median:.1} ms ({low:.1}-{high:.1}).\n\n\
             | requests to an unchanged route | p50 us | p99 us |\n| --- | ---: | ---: |\n"
        );
        for (name, latency) in [("no changes", self.steady), ("during the changes", self.changing)] {
            let _ = writeln!(text, "| {name} | {:.0} | {:.0} |", latency.p50, latency.p99);
        }
        text
    }
}

/// # Errors
/// The proxy does not start, a request fails, or a change does not become live.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Change> {
    let dir = bench.dir.join("change");
    fs::create_dir_all(&dir)?;
    let port = free_port()?;
    fs::write(dir.join("config.yaml"), config(port, &dir))?;
    let tables = [routes(bench.upstream, bench.upstream.http1), routes(bench.upstream, bench.upstream.other)];
    replace(&dir, &tables[0])?;
    let mut command = pinned(PROXY_CORE);
    command.arg(&bench.programs.sixfold).args(["run", "-c"]).arg(dir.join("config.yaml"));
    command.stdout(File::create(dir.join("stdout.log"))?).stderr(File::create(dir.join("stderr.log"))?);
    let mut proxy = Background::spawn(&mut command)?;
    proxy.wait_for_port(port, Duration::from_secs(30)).with_context(|| format!("see {}", dir.display()))?;

    let seconds = (PAUSE * (CHANGES + 4)).as_secs() as u32;
    let url = format!("http://127.0.0.1:{port}{}", Table::path_of(1));
    let load = |dir: &Path| {
        let mut command = pinned(LOAD_CORE);
        command.args(["h2load", "-t1", "--h1"]);
        at_rate(&mut command, &url, RATE, 40, seconds, dir)
    };
    let steady = load(&dir)?;
    let (changing, live) = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load(&dir));
        let live = change_again_and_again(&dir, port, &tables);
        let Ok(changing) = load.join() else { bail!("the load's thread ended early") };
        Ok((changing?, live?))
    })?;
    Ok(Change { live: Estimate::of(&live).context("no change was made")?, steady, changing })
}

fn change_again_and_again(dir: &Path, port: u16, tables: &[String; 2]) -> Result<Vec<f64>> {
    let mut client = Client::connect(port)?;
    let mut live = Vec::new();
    for (turn, table) in tables.iter().rev().cycle().take(CHANGES as usize).enumerate() {
        sleep(PAUSE);
        let renamed = replace(dir, table)?;
        while client.answered_by_other()? != (turn % 2 == 0) {
            if renamed.elapsed() > Duration::from_secs(10) {
                bail!("change {turn} was not live within 10 s; see {}", dir.display());
            }
        }
        live.push(renamed.elapsed().as_secs_f64() * 1e3);
    }
    Ok(live)
}

/// Puts the file in its place in one step, and says when.
fn replace(dir: &Path, text: &str) -> Result<Instant> {
    let new = dir.join("new.yaml");
    fs::write(&new, text)?;
    let now = Instant::now();
    fs::rename(&new, dir.join("apisix.yaml"))?;
    Ok(now)
}

fn config(port: u16, dir: &Path) -> String {
    format!(
        "apisix:\n  node_listen:\n    - ip: 127.0.0.1\n      port: {port}\n  enable_control: false\n  ssl:\n    enable: false\n\
         nginx_config:\n  worker_processes: 1\n  http:\n    access_log: {}/access.log\n\
         deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: yaml\n",
        dir.display()
    )
}

fn routes(upstream: &Upstream, changed: u16) -> String {
    let mut text = "routes:\n".to_owned();
    for n in 1..=ROUTES {
        let port = if n == CHANGED { changed } else { upstream.http1 };
        let _ = write!(
            text,
            "  - id: {n}\n    uri: /svc/{n}/*\n    upstream:\n      type: roundrobin\n      nodes:\n        \"127.0.0.1:{port}\": 1\n"
        );
    }
    text + "#END\n"
}

/// One open connection that asks for the changed route.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream })
    }

    /// Whether the answer is that of the other upstream. Both answers are small and have a length.
    fn answered_by_other(&mut self) -> Result<bool> {
        write!(self.stream, "GET {} HTTP/1.1\r\nHost: bench\r\n\r\n", Table::path_of(CHANGED))?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = self.stream.read(&mut piece)?;
            answer.extend_from_slice(piece.get(..read).unwrap_or_default());
            let text = String::from_utf8_lossy(&answer);
            if read == 0 || !(text.starts_with("HTTP/1.1 200") || "HTTP/1.1 200".starts_with(&*text)) {
                bail!("not a good answer: {text}");
            }
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && body.ends_with('\n')
            {
                return Ok(body == OTHER_ANSWER);
            }
        }
    }
}
