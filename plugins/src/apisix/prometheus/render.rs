//! The text that Prometheus reads, written series by series.

use super::metrics::{Buckets, Metrics, Upstreams};
use super::settings::MetricSettings;
use crate::shared::batches;
use sixfold_core::metrics::series::{Labels, SEPARATOR, Series};
use std::io::{self, Write};
use std::time::Instant;

pub(super) const STATUS: [&str; 11] = [
    "code",
    "route",
    "matched_uri",
    "matched_host",
    "service",
    "consumer",
    "node",
    "request_type",
    "request_llm_model",
    "llm_model",
    "response_source",
];

pub(super) const TRAFFIC: [&str; 8] =
    ["type", "route", "service", "consumer", "node", "request_type", "request_llm_model", "llm_model"];

/// Kinds of resources that `etcd_modify_indexes` tells of.
const KINDS: [&str; 8] =
    ["consumers", "global_rules", "protos", "routes", "services", "ssls", "stream_routes", "upstreams"];

/// All kinds of resources.
const RESOURCES: [&str; 13] = [
    "consumer_groups",
    "consumers",
    "credentials",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "protos",
    "routes",
    "secrets",
    "services",
    "ssls",
    "stream_routes",
    "upstreams",
];

/// Every label of the series in which everything is counted that found no room.
const REST: &str = "__rest__";

/// Where the page goes: the names of metrics have a prefix.
pub(super) struct Page<'a> {
    out: &'a mut dyn Write,
    prefix: &'a str,
    /// Labels of the line that is made.
    labels: String,
}

impl Metrics {
    /// Writes all metrics in Prometheus' text format, sorted by name; metrics without a series are left out.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn render(&self, out: &mut dyn Write) -> io::Result<()> {
        let page = &mut Page { out, prefix: &self.settings.prefix, labels: String::new() };
        let settings = &self.settings;
        let head = ("bandwidth", "Total bandwidth in bytes consumed per service in APISIX", "counter");
        page.series(head, &TRAFFIC, &settings.bandwidth, &self.bandwidth, |a, b| *a += b, Page::number)?;
        self.batches(page)?;
        self.configuration(page)?;
        self.store(page)?;
        let head =
            ("http_latency", "HTTP request latency in milliseconds per service in APISIX", "histogram");
        let histogram =
            |page: &mut Page<'_>, name: &str, seen: &Buckets| page.histogram(name, &settings.buckets, seen);
        page.series(head, &TRAFFIC, &settings.latency, &self.latency, Buckets::merge, histogram)?;
        let of = |scope: &str, name: &str| self.statistics.sum(scope, name);
        page.head("http_requests_total", "The total number of client requests", "gauge")?;
        page.line("http_requests_total", &[], of("http.", "downstream_rq_total"))?;
        let head = ("http_status", "HTTP status codes per service in APISIX", "counter");
        page.series(head, &STATUS, &settings.status, &self.status, |a, b| *a += b, Page::number)?;
        self.connections(page)?;
        let name = "nginx_metric_errors_total";
        page.head(name, "Number of values that found no room for a series of their own", "counter")?;
        page.line(name, &[], self.budget.refused())?;
        page.head("node_info", "Info of APISIX node", "gauge")?;
        page.line("node_info", &[("hostname", &self.host), ("version", env!("CARGO_PKG_VERSION"))], 1)?;
        self.render_streams(page)?;
        self.upstreams(page)
    }

    /// Whether nodes take requests, by the checks of their upstreams: `healthy` and `mostly_healthy` do.
    fn upstreams(&self, page: &mut Page<'_>) -> io::Result<()> {
        let Some(Upstreams { clusters, prefix }) = self.upstreams.get() else { return Ok(()) };
        let name = "upstream_status";
        let mut has_head = false;
        for cluster in clusters.all() {
            let Some(checks) = cluster.config.checks.as_ref().filter(|_| is_resource(&cluster.config.name))
            else {
                continue;
            };
            // What stands for one target of probes is told once.
            let mut told = Vec::new();
            let resource = format!("{prefix}/{}", cluster.config.name);
            for member in cluster.hosts.load().iter() {
                let target = checks.target(&member.host);
                if told.contains(&target) {
                    continue;
                }
                if !std::mem::replace(&mut has_head, true) {
                    page.head(name, "Upstream status from health check", "gauge")?;
                }
                let mut port = itoa::Buffer::new();
                let labels = [("name", &*resource), ("ip", &*target.0), ("port", port.format(target.1))];
                page.line(name, &labels, u64::from(member.host.counts().health.is_usable()))?;
                told.push(target);
            }
        }
        Ok(())
    }

    /// What of the configuration is not in force: APISIX tells of that by its log alone.
    fn configuration(&self, page: &mut Page<'_>) -> io::Result<()> {
        let of = |name: &str| self.statistics.sum("apisix_config.", name);
        if of("is_followed") == 0 {
            return Ok(());
        }
        let name = "config_read";
        page.head(name, "Whether the resources could be read when they were looked at last", "gauge")?;
        page.line(name, &[], of("is_read"))?;
        let name = "config_refused_resources";
        page.head(name, "Number of resources whose last value was refused", "gauge")?;
        RESOURCES.iter().try_for_each(|kind| page.line(name, &[("kind", kind)], of(kind)))
    }

    /// The store of resources, where it is one that is written: by the names that etcd has in APISIX.
    fn store(&self, page: &mut Page<'_>) -> io::Result<()> {
        let of = |name: &str| self.statistics.sum("apisix_store.", name);
        if of("is_written") == 0 {
            return Ok(());
        }
        let name = "etcd_modify_indexes";
        page.head(name, "Etcd modify index for APISIX keys", "gauge")?;
        for key in KINDS {
            page.line(name, &[("key", key)], of(key))?;
        }
        for key in ["max_modify_index", "prev_index", "x_etcd_index"] {
            page.line(name, &[("key", key)], of("max_modify_index"))?;
        }
        page.head("etcd_reachable", "Config server etcd reachable from APISIX, 0 is unreachable", "gauge")?;
        page.line("etcd_reachable", &[], of("reachable"))
    }

    /// What waits for loggers' servers, and what was dropped since they took too little: APISIX tells of that by its log
    /// alone.
    fn batches(&self, page: &mut Page<'_>) -> io::Result<()> {
        let shown = self.batches.shown();
        let dropped = self.batches.dropped();
        if dropped > 0 || !shown.is_empty() {
            let name = "batch_process_dropped_entries_total";
            page.head(name, "Number of entries that batch processors have dropped", "counter")?;
            page.line(name, &[], dropped)?;
        }
        if shown.is_empty() {
            return Ok(());
        }
        let name = "batch_process_entries";
        page.head(name, "batch process remaining entries", "gauge")?;
        for batches::Shown { name: of, route, server, entries } in &shown {
            let labels = [("name", &**of), ("route_id", &**route), ("server_addr", &**server)];
            page.line(name, &labels, *entries as u64)?;
        }
        Ok(())
    }

    fn connections(&self, page: &mut Page<'_>) -> io::Result<()> {
        let of = |scope: &str, name: &str| self.statistics.sum(scope, name);
        let accepted = of("listener.", "downstream_cx_total");
        let (active, under_way) =
            (of("listener.", "downstream_cx_active"), of("http.", "downstream_rq_active"));
        let name = "nginx_http_current_connections";
        page.head(name, "Number of HTTP connections", "gauge")?;
        for (state, n) in [
            ("accepted", accepted),
            ("active", active),
            ("handled", accepted),
            ("reading", 0),
            ("waiting", active.saturating_sub(under_way)),
            ("writing", under_way),
        ] {
            page.line(name, &[("state", state)], n)?;
        }
        Ok(())
    }
}

impl Page<'_> {
    pub(super) fn head(&mut self, name: &str, help: &str, kind: &str) -> io::Result<()> {
        let prefix = self.prefix;
        write!(self.out, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}\n")
    }

    /// All series of a metric.
    pub(super) fn series<T: Default>(
        &mut self,
        (name, help, kind): (&str, &str, &str),
        labels: &[&str],
        settings: &MetricSettings,
        series: &Series<T>,
        add: impl Fn(&mut T, &T),
        mut write: impl FnMut(&mut Self, &str, &T) -> io::Result<()>,
    ) -> io::Result<()> {
        // A reader that is gone stops the writing, though not the visit.
        let mut outcome = None;
        series.each(Instant::now(), add, |values, value| {
            if !matches!(outcome, Some(Err(_))) {
                let head = if outcome.is_none() { self.head(name, help, kind) } else { Ok(()) };
                self.set_labels(labels, settings, values);
                outcome = Some(head.and_then(|()| write(self, name, value)));
            }
        });
        outcome.unwrap_or(Ok(()))
    }

    fn set_labels(&mut self, names: &[&str], settings: &MetricSettings, values: &Labels) {
        self.labels.clear();
        let extra = settings.extra.iter().map(|(name, _)| name.as_str());
        let names = names.iter().copied().chain(extra);
        match values {
            Labels::Values(values) => {
                for (name, value) in names.zip(values.split(|byte| *byte == SEPARATOR)) {
                    self.label(name, &String::from_utf8_lossy(value));
                }
            }
            Labels::Rest => names.for_each(|name| self.label(name, REST)),
        }
    }

    fn label(&mut self, name: &str, value: &str) {
        if !self.labels.is_empty() {
            self.labels.push(',');
        }
        self.labels.push_str(name);
        self.labels.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.labels.push_str("\\\\"),
                '"' => self.labels.push_str("\\\""),
                '\n' => self.labels.push_str("\\n"),
                c => self.labels.push(c),
            }
        }
        self.labels.push('"');
    }

    pub(super) fn number(&mut self, name: &str, value: &u64) -> io::Result<()> {
        writeln!(self.out, "{}{name}{{{}}} {value}", self.prefix, self.labels)
    }

    /// A line that is not of a series.
    pub(super) fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) -> io::Result<()> {
        if labels.is_empty() {
            return writeln!(self.out, "{}{name} {value}", self.prefix);
        }
        self.labels.clear();
        labels.iter().for_each(|(name, value)| self.label(name, value));
        self.number(name, &value)
    }

    fn histogram(&mut self, name: &str, bounds: &[f64], seen: &Buckets) -> io::Result<()> {
        let (prefix, labels) = (self.prefix, &self.labels);
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(&seen.counts) {
            below += count;
            writeln!(self.out, "{prefix}{name}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
        }
        let all: u64 = seen.counts.iter().sum();
        writeln!(self.out, "{prefix}{name}_bucket{{{labels},le=\"+Inf\"}} {all}")?;
        writeln!(self.out, "{prefix}{name}_sum{{{labels}}} {}", seen.sum)?;
        writeln!(self.out, "{prefix}{name}_count{{{labels}}} {all}")
    }
}

/// Whether a cluster is that of a resource's own upstream, and not one that a plugin brings.
fn is_resource(cluster: &str) -> bool {
    const SECTIONS: [&str; 4] = ["routes", "stream_routes", "services", "upstreams"];
    cluster.split_once('/').is_some_and(|(section, _)| SECTIONS.contains(&section))
}

impl Buckets {
    fn merge(&mut self, other: &Buckets) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }
}
