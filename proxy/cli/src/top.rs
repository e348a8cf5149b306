//! `sixfold top`: what a running proxy is doing, by its statistics, looked at again and again.

use crate::Failure;
use crate::arguments::TopOptions;
use crate::fetch;
use sixfold_apisix::config::EnvVars;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Rows of a table; the busiest are shown.
const MOST_ROWS: usize = 20;

/// Moves to the first line and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Values by the name of what they are about, of one moment.
struct Sample {
    at: Instant,
    values: BTreeMap<Key, f64>,
}

/// A kind of thing, its name, and a column.
type Key = (&'static str, String, &'static str);

/// A column: what it is called, and whether it is what came in a second, or what there is now.
struct Column {
    name: &'static str,
    title: &'static str,
    is_rate: bool,
}

const fn rate(name: &'static str, title: &'static str) -> Column {
    Column { name, title, is_rate: true }
}

const fn now(name: &'static str, title: &'static str) -> Column {
    Column { name, title, is_rate: false }
}

/// Tables with their columns. Columns of Envoy's are the ends of its statistics' names.
const TABLES: [(&str, &[Column]); 4] = [
    ("listener", &[rate("downstream_cx_total", "connections/s"), now("downstream_cx_active", "open")]),
    (
        "http",
        &[
            rate("downstream_rq_total", "requests/s"),
            rate("downstream_rq_5xx", "5xx/s"),
            now("downstream_rq_active", "active"),
        ],
    ),
    (
        "cluster",
        &[
            rate("upstream_rq_total", "requests/s"),
            rate("upstream_rq_5xx", "5xx/s"),
            now("upstream_rq_active", "active"),
            now("upstream_cx_active", "open"),
            now("membership_healthy", "healthy"),
            now("membership_total", "endpoints"),
        ],
    ),
    (
        "route",
        &[rate("all", "requests/s"), rate("4xx", "4xx/s"), rate("5xx", "5xx/s"), now("all", "requests")],
    ),
];

/// Where statistics are read.
enum Source {
    /// `/stats` of an administration.
    Admin(String),
    /// The page of metrics of a gateway, at this path.
    Metrics(String, String),
}

/// Shows tables until it is told to end, or has shown as many as it shall.
///
/// # Errors
/// A proxy that does not answer.
pub(crate) fn run(options: &TopOptions) -> Result<(), Failure> {
    let source = source(options)?;
    let interval = Duration::from_secs_f64(options.interval.clamp(0.05, 3600.0));
    let mut out = std::io::stdout();
    let is_terminal = out.is_terminal();
    // Without a terminal somebody wants one look.
    let mut left = options.count.or((!is_terminal).then_some(1));
    let mut before = source.sample()?;
    while left != Some(0) {
        std::thread::sleep(interval);
        let after = source.sample()?;
        let shown = shown(&before, &after);
        write!(out, "{}{shown}", if is_terminal { CLEAR } else { "" })?;
        out.flush()?;
        before = after;
        left = left.map(|left| left.saturating_sub(1));
    }
    Ok(())
}

fn source(options: &TopOptions) -> Result<Source, Failure> {
    match (&options.admin, &options.config) {
        (Some(address), _) => Ok(Source::Admin(address.clone())),
        (None, Some(path)) => {
            let config = sixfold_apisix::load_config(path, &EnvVars::Process)?;
            let reason = "plugin_attr.prometheus.enable_export_server is off: there is nobody to ask";
            let none = || Failure::new(format!("{}: {reason}", path.display()));
            let page = config.metrics.ok_or_else(none)?;
            Ok(Source::Metrics(fetch::reachable(page.address).to_string(), page.path))
        }
        (None, None) => Err(Failure::new("one of --config and --admin is needed")),
    }
}

impl Source {
    fn sample(&self) -> Result<Sample, Failure> {
        let (address, target) = match self {
            Source::Admin(address) => (address, "/stats"),
            Source::Metrics(address, path) => (address, path.as_str()),
        };
        let told = |reason: String| Failure::new(format!("{address}: {reason}"));
        let answer = fetch::get(address, target, &[]).map_err(told)?;
        if answer.status != 200 {
            return Err(told(format!("{target} answers {}", answer.status)));
        }
        let mut values = BTreeMap::new();
        for line in answer.body.lines() {
            match self {
                Source::Admin(_) => statistic(line, &mut values),
                Source::Metrics(..) => metric(line, &mut values),
            }
        }
        Ok(Sample { at: Instant::now(), values })
    }
}

/// `cluster.NAME.upstream_rq_total: 5`
fn statistic(line: &str, values: &mut BTreeMap<Key, f64>) {
    let Some((name, value)) = line.split_once(": ") else { return };
    let Ok(value) = value.parse::<f64>() else { return };
    for (kind, columns) in TABLES {
        let Some(rest) = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let found = columns
            .iter()
            .find_map(|column| Some((column.name, rest.strip_suffix(column.name)?.strip_suffix('.')?)));
        if let Some((column, whose)) = found {
            values.insert((kind, whose.to_owned(), column), value);
        }
    }
}

/// `apisix_http_status{code="200",route="1",...} 5`
fn metric(line: &str, values: &mut BTreeMap<Key, f64>) {
    let Some(rest) = line.strip_prefix("apisix_http_status{") else { return };
    let Some((labels, value)) = rest.rsplit_once("} ") else { return };
    let Ok(value) = value.trim().parse::<f64>() else { return };
    let label = |name: &str| {
        let mut parts = labels.split(',').filter_map(|label| label.split_once('='));
        parts.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let (Some(route), Some(code)) = (label("route"), label("code")) else { return };
    let class = match code.as_bytes().first() {
        Some(b'4') => Some("4xx"),
        Some(b'5') => Some("5xx"),
        _ => None,
    };
    for column in std::iter::once("all").chain(class) {
        *values.entry(("route", route.clone(), column)).or_default() += value;
    }
}

/// All tables that have something in them; without statistics a line that says so.
fn shown(before: &Sample, after: &Sample) -> String {
    let seconds = after.at.duration_since(before.at).as_secs_f64().max(0.001);
    let mut text = String::new();
    for (kind, columns) in TABLES {
        let value = |name: &str, column: &Column| {
            let key = (kind, name.to_owned(), column.name);
            let value = after.values.get(&key).copied().unwrap_or_default();
            let earlier = before.values.get(&key).copied().unwrap_or_default();
            // What went back has begun anew.
            if column.is_rate { (value - earlier).max(0.0) / seconds } else { value }
        };
        let mut names: Vec<&String> =
            after.values.keys().filter(|(of, ..)| *of == kind).map(|(_, name, _)| name).collect();
        names.dedup();
        let first = columns.first();
        let busy = |name: &String| first.map_or(0.0, |column| value(name, column));
        names.sort_by(|one, other| busy(other).total_cmp(&busy(one)).then_with(|| one.cmp(other)));
        if names.is_empty() {
            continue;
        }
        text.push_str(&format!("{kind:<40}"));
        columns.iter().for_each(|column| text.push_str(&format!(" {:>13}", column.title)));
        text.push('\n');
        for name in names.iter().take(MOST_ROWS) {
            // A name is somebody's text: it shall not steer the terminal.
            let name_shown: String = name.chars().filter(|char| !char.is_control()).take(40).collect();
            text.push_str(&format!("{name_shown:<40}"));
            for column in columns {
                let digits = usize::from(column.is_rate);
                text.push_str(&format!(" {:>13.digits$}", value(name, column)));
            }
            text.push('\n');
        }
        let more = names.len().saturating_sub(MOST_ROWS);
        if more > 0 {
            text.push_str(&format!("and {more} more\n"));
        }
        text.push('\n');
    }
    if text.is_empty() { "no statistics of requests yet\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, lines: &[&str]) -> Sample {
        let mut values = BTreeMap::new();
        for line in lines {
            statistic(line, &mut values);
            metric(line, &mut values);
        }
        Sample { at, values }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_the_busiest_goes_first() {
        let start = Instant::now();
        let before = sample(start, &["cluster.a.b.upstream_rq_total: 10", "cluster.c.upstream_rq_total: 0"]);
        let after = sample(
            start + Duration::from_secs(2),
            &[
                "cluster.a.b.upstream_rq_total: 20",
                "cluster.c.upstream_rq_total: 30",
                "cluster.c.membership_total: 2",
                "apisix_http_status{code=\"200\",route=\"r\"} 4",
                "apisix_http_status{code=\"502\",route=\"r\"} 2",
            ],
        );
        let text = shown(&before, &after);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let rows: Vec<_> = text.lines().map(words).collect();
        assert_eq!(rows.get(1).map(|row| row.join(" ")).as_deref(), Some("c 15.0 0.0 0 0 0 2"));
        assert_eq!(rows.get(2).map(|row| row.join(" ")).as_deref(), Some("a.b 5.0 0.0 0 0 0 0"));
        assert_eq!(rows.get(5).map(|row| row.join(" ")).as_deref(), Some("r 3.0 0.0 1.0 6"));
    }
}
