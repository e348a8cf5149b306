//! A gateway, a sidecar with its control plane, and a Prometheus that scrapes them while there is traffic.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Query, dashboards, rules};
use crate::process::{Background, execute, free_port, root, target};
use crate::tools::{PROMETHEUS, PROMTOOL, ensure};

/// How long every query may take to have an answer: some scrapes, a second apart.
const LIMIT: Duration = Duration::from_secs(90);

/// A key of the Admin API of the gateway under test.
const KEY: &str = "of-this-test-alone";

/// Ports by the names that the templates have for them.
struct Ports(Vec<(&'static str, u16)>);

impl Ports {
    fn free() -> Result<Self> {
        let names = [
            "GATEWAY",
            "STREAM",
            "STREAM_AWAY",
            "METRICS",
            "ADMIN_API",
            "STATUS",
            "CONTROL",
            "SIDECAR_TCP",
            "SIDECAR",
            "ENVOY_ADMIN",
            "XDS",
            "UPSTREAM",
            "PROMETHEUS",
            "NOBODY",
        ];
        Ok(Self(names.into_iter().map(|name| Ok((name, free_port()?))).collect::<Result<_>>()?))
    }

    fn of(&self, name: &str) -> u16 {
        self.0.iter().find(|(known, _)| *known == name).map_or(0, |(_, port)| *port)
    }

    fn fill(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (name, port)| text.replace(&format!("@{name}@"), &port.to_string()))
    }
}

/// Every query of dashboards and alerts has an answer, and every metric of the gateway's page is on its dashboard.
///
/// # Errors
/// Names the queries, or the metrics.
pub fn check(binary: &Path) -> Result<()> {
    ensure(&[PROMETHEUS, PROMTOOL])?;
    let deploy = root().join("deploy/prometheus");
    let groups = rules::GROUPS.iter().map(|group| deploy.join(format!("{}.yaml", group.name)));
    execute(Command::new("promtool").args(["check", "rules"]).args(groups))?;
    execute(Command::new("promtool").args(["check", "config"]).arg(deploy.join("prometheus.yaml")))?;

    let folder = fresh_folder()?;
    let alerts: usize = rules::GROUPS.iter().map(|group| group.alerts.len()).sum();
    let tests = include_str!("testbed/rules-test.yaml").replace("@RULES@", &deploy.display().to_string());
    fs::write(folder.join("rules-test.yaml"), tests.replace("@ALERTS@", &alerts.to_string()))?;
    execute(Command::new("promtool").args(["test", "rules"]).arg(folder.join("rules-test.yaml")))?;

    let ports = Ports::free()?;
    let mut running = start(binary, &folder, &ports)?;
    configure(&ports)?;
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| traffic(&ports, &done));
        let result = prometheus(&folder, &ports, &mut running).and_then(|()| ask(&ports));
        done.store(true, Ordering::Relaxed);
        result
    });
    result.and_then(|()| shown(&ports))
}

fn fresh_folder() -> Result<PathBuf> {
    let folder = target().join("monitoring");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("resources"))?;
    Ok(folder.canonicalize()?)
}

/// The control plane, the sidecar and the gateway.
fn start(binary: &Path, folder: &Path, ports: &Ports) -> Result<Vec<Background>> {
    let files = [
        ("config.yaml", include_str!("testbed/config.yaml")),
        ("sidecar.yaml", include_str!("testbed/sidecar.yaml")),
        ("resources/mesh.yaml", include_str!("testbed/mesh.yaml")),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), ports.fill(text))?;
    }
    let xds = ["xds", "serve", "resources", "--listen", &format!("127.0.0.1:{}", ports.of("XDS"))]
        .map(str::to_owned);
    let envoy = ["envoy", "-c", "sidecar.yaml"].map(str::to_owned);
    let gateway = ["run", "-c", "config.yaml"].map(str::to_owned);
    let programs: [(&[String], &[&str]); 3] = [
        (&xds, &["XDS"]),
        (&envoy, &["SIDECAR", "SIDECAR_TCP", "UPSTREAM"]),
        (&gateway, &["GATEWAY", "STREAM", "ADMIN_API"]),
    ];
    let mut running = Vec::new();
    for (arguments, open) in programs {
        let log =
            fs::File::create(folder.join(format!("{}.log", arguments.first().map_or("", String::as_str))))?;
        let mut command = Command::new(binary);
        command.current_dir(folder).args(arguments).stdout(log.try_clone()?).stderr(log);
        let mut program = Background::spawn(&mut command)?;
        for port in open {
            program
                .wait_for_port(ports.of(port), Duration::from_secs(20))
                .with_context(|| format!("{arguments:?}"))?;
        }
        running.push(program);
    }
    Ok(running)
}

/// What the gateway is to have: routes that answer and one that can't, a logger whose server is away, a stream.
fn configure(ports: &Ports) -> Result<()> {
    for line in include_str!("testbed/resources.txt").lines() {
        let (path, body) = line.split_once(' ').context("a line of resources.txt without a body")?;
        let answer =
            exchange(ports.of("ADMIN_API"), "PUT", &format!("/apisix/admin/{path}"), &ports.fill(body))?;
        if !(answer.starts_with("HTTP/1.1 20") || answer.starts_with("HTTP/1.0 20")) {
            bail!("{path}: {answer}");
        }
    }
    Ok(())
}

fn traffic(ports: &Ports, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        for (port, path) in [
            ("GATEWAY", "/"),
            ("GATEWAY", "/logged"),
            ("GATEWAY", "/away"),
            ("STREAM", "/"),
            ("STREAM_AWAY", "/"),
            ("SIDECAR", "/"),
            ("SIDECAR", "/ill"),
            ("SIDECAR_TCP", "/"),
        ] {
            let _ = client(ports.of(port), path);
        }
        sleep(Duration::from_millis(100));
    }
}

/// Starts it by deploy/prometheus/prometheus.yaml, with the ports of this test and a scrape each second.
fn prometheus(folder: &Path, ports: &Ports, running: &mut Vec<Background>) -> Result<()> {
    let deploy = root().join("deploy/prometheus");
    let mut config = fs::read_to_string(deploy.join("prometheus.yaml"))?;
    for (shown, here) in [
        ("scrape_interval: 15s", "scrape_interval: 1s".to_owned()),
        ("evaluation_interval: 15s", "evaluation_interval: 1s".to_owned()),
        ("127.0.0.1:9091", format!("127.0.0.1:{}", ports.of("METRICS"))),
        ("127.0.0.1:15000", format!("127.0.0.1:{}", ports.of("ENVOY_ADMIN"))),
    ] {
        if !config.contains(shown) {
            bail!("deploy/prometheus/prometheus.yaml has no {shown}");
        }
        config = config.replace(shown, &here);
    }
    let config = config.replace("- sixfold-", &format!("- {}/sixfold-", deploy.display()));
    fs::write(folder.join("prometheus.yaml"), config)?;
    let port = ports.of("PROMETHEUS");
    let mut command = Command::new("prometheus");
    command
        .current_dir(folder)
        .arg("--config.file=prometheus.yaml")
        .arg("--storage.tsdb.path=data-of-prometheus");
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let log = fs::File::create(folder.join("prometheus.log"))?;
    let mut program = Background::spawn(command.stdout(Stdio::null()).stderr(log))?;
    program.wait_for_port(port, Duration::from_secs(20))?;
    running.push(program);
    let started = Instant::now();
    while !exchange(port, "GET", "/-/ready", "")?.contains(" 200 ") {
        if started.elapsed() > LIMIT {
            bail!("Prometheus is not ready; {} says why", folder.join("prometheus.log").display());
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Asks until everything has an answer.
fn ask(ports: &Ports) -> Result<()> {
    let port = ports.of("PROMETHEUS");
    let mut open: Vec<Query> = dashboards().iter().flat_map(|board| board.queries("1m")).collect();
    for alert in rules::GROUPS.iter().flat_map(|group| group.alerts) {
        let place = || format!("alert {}", alert.name);
        open.push(Query { place: place(), text: alert.value.to_owned() });
        query(port, &alert.expression()).with_context(place)?; // it should fire rarely, and be no error
    }
    let (all, started) = (open.len(), Instant::now());
    loop {
        let mut left = Vec::new();
        for asked in open {
            let answer = query(port, &asked.text).with_context(|| asked.place.clone())?;
            if !has_value(&answer) {
                left.push(asked);
            }
        }
        if left.is_empty() {
            break;
        }
        if started.elapsed() > LIMIT {
            let list = left.iter().map(|query| format!("  {}: {}", query.place, query.text));
            bail!("queries without an answer:\n{}", list.collect::<Vec<_>>().join("\n"));
        }
        open = left;
        sleep(Duration::from_millis(500));
    }
    let groups = json(&exchange(port, "GET", "/api/v1/rules", "")?)?;
    let states = groups.pointer("/data/groups").and_then(Value::as_array).context("no groups of rules")?;
    let rules: Vec<&Value> = states.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    let ill: Vec<&&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
    if !ill.is_empty() || rules.is_empty() {
        bail!("rules that Prometheus can't evaluate: {ill:?}");
    }
    println!(
        "monitoring: {all} queries answered after {:.0} s, {} rules in force",
        started.elapsed().as_secs_f64(),
        rules.len()
    );
    Ok(())
}

/// Every metric of the gateway's page is on its dashboard.
fn shown(ports: &Ports) -> Result<()> {
    let page = exchange(ports.of("METRICS"), "GET", "/apisix/prometheus/metrics", "")?;
    let exposed: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let texts: String =
        dashboards().iter().flat_map(|board| board.queries("1m")).map(|query| query.text).collect();
    let hidden: Vec<_> = exposed.iter().filter(|name| !texts.contains(**name)).collect();
    if exposed.len() < 10 || !hidden.is_empty() {
        bail!("metrics of the gateway that no panel shows: {hidden:?} of {}", exposed.len());
    }
    Ok(())
}

fn query(port: u16, text: &str) -> Result<Value> {
    let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = json(&exchange(port, "GET", &format!("/api/v1/query?query={escaped}"), "")?)?;
    if answer["status"] != "success" {
        bail!("{text}: {answer}");
    }
    Ok(answer)
}

/// Whether some series has a number.
fn has_value(answer: &Value) -> bool {
    let series = answer.pointer("/data/result").and_then(Value::as_array);
    series.is_some_and(|series| {
        series.iter().any(|one| one["value"][1].as_str().is_some_and(|value| value != "NaN"))
    })
}

fn json(answer: &str) -> Result<Value> {
    let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer}"))?;
    serde_json::from_str(body).with_context(|| body.to_owned())
}

/// A request of a client, whose answer is of no interest.
fn client(port: u16, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One exchange over HTTP/1.0, whose answer ends with the connection.
fn exchange(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_without_a_number_is_none() {
        let of = |result: Value| json!({"data": {"result": result}});
        assert!(has_value(&of(json!([{"value": [1, "NaN"]}, {"value": [1, "0"]}]))));
        assert!(!has_value(&of(json!([{"value": [1, "NaN"]}]))));
        assert!(!has_value(&of(json!([]))));
    }
}
