//! The text that Prometheus reads.

use super::metrics::{Buckets, Metrics, SEPARATOR, Series, Shard};
use super::settings::MetricSettings;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use sixfold_core::metrics::Value;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

const STATUS: [&str; 11] = [
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

const TRAFFIC: [&str; 8] =
    ["type", "route", "service", "consumer", "node", "request_type", "request_llm_model", "llm_model"];

impl Metrics {
    /// All metrics in Prometheus' text format, sorted by name.
    pub fn render(&self) -> String {
        let settings = &self.settings;
        let mut families = vec![
            self.family(
                ("bandwidth", "Total bandwidth in bytes consumed per service in APISIX"),
                MetricType::COUNTER,
                &self.merged(&settings.bandwidth, |s| &mut s.bandwidth, |a, b| *a += b),
                |labels, value| counter(label_pairs(&TRAFFIC, &settings.bandwidth, labels), *value as f64),
            ),
            self.family(
                ("http_latency", "HTTP request latency in milliseconds per service in APISIX"),
                MetricType::HISTOGRAM,
                &self.merged(&settings.latency, |s| &mut s.latency, Buckets::merge),
                |labels, value| self.histogram(label_pairs(&TRAFFIC, &settings.latency, labels), value),
            ),
            self.family(
                ("http_status", "HTTP status codes per service in APISIX"),
                MetricType::COUNTER,
                &self.merged(&settings.status, |s| &mut s.status, |a, b| *a += b),
                |labels, value| counter(label_pairs(&STATUS, &settings.status, labels), *value as f64),
            ),
        ];
        families.extend(self.process());
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut out = Vec::new();
        match TextEncoder::new().encode(&families, &mut out) {
            Ok(()) => String::from_utf8(out).unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "metrics can't be written");
                String::new()
            }
        }
    }

    /// The series of all shards together; those that are over are dropped first.
    fn merged<T: Clone + Default>(
        &self,
        settings: &MetricSettings,
        of: fn(&mut Shard) -> &mut Series<T>,
        add: fn(&mut T, &T),
    ) -> BTreeMap<Box<[u8]>, T> {
        let now = Instant::now();
        let mut all = BTreeMap::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let series = of(&mut shard);
            if let Some(expire) = settings.expire {
                series.retain(|_, (_, touched)| now.saturating_duration_since(*touched) < expire);
            }
            for (labels, (value, _)) in series.iter() {
                add(all.entry(labels.clone()).or_default(), value);
            }
        }
        all
    }

    fn family<T>(
        &self,
        (name, help): (&str, &str),
        kind: MetricType,
        series: &BTreeMap<Box<[u8]>, T>,
        metric: impl Fn(&[u8], &T) -> Metric,
    ) -> MetricFamily {
        let metrics = series.iter().map(|(labels, value)| metric(labels, value)).collect();
        self.named(name, help, kind, metrics)
    }

    fn named(&self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(format!("{}{name}", self.settings.prefix));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    fn histogram(&self, labels: Vec<LabelPair>, value: &Buckets) -> Metric {
        let (mut cumulative, mut buckets) = (0, Vec::new());
        for (bound, count) in self.settings.buckets.iter().zip(&value.counts) {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_sample_count(value.counts.iter().sum());
        histogram.set_sample_sum(value.sum);
        histogram.set_bucket(buckets);
        let mut metric = Metric::from_label(labels);
        metric.set_histogram(histogram);
        metric
    }

    /// What does not come from single requests.
    fn process(&self) -> Vec<MetricFamily> {
        let (mut accepted, mut active, mut requests, mut under_way) = (0, 0, 0, 0);
        for sample in self.statistics.samples() {
            let (Value::Counter(n) | Value::Gauge(n)) = sample.value else { continue };
            let is = |scope: &str, name: &str| sample.name.starts_with(scope) && sample.name.ends_with(name);
            if is("listener.", ".downstream_cx_total") {
                accepted += n;
            } else if is("listener.", ".downstream_cx_active") {
                active += n;
            } else if is("http.", ".downstream_rq_total") {
                requests += n;
            } else if is("http.", ".downstream_rq_active") {
                under_way += n;
            }
        }
        let waiting = active.saturating_sub(under_way);
        let states = [
            ("accepted", accepted),
            ("active", active),
            ("handled", accepted),
            ("reading", 0),
            ("waiting", waiting),
            ("writing", under_way),
        ];
        let states = states.map(|(state, n)| gauge(vec![label("state", state)], n as f64));
        let info = vec![label("hostname", &self.host), label("version", env!("CARGO_PKG_VERSION"))];
        vec![
            self.named(
                "nginx_http_current_connections",
                "Number of HTTP connections",
                MetricType::GAUGE,
                states.into(),
            ),
            self.named(
                "http_requests_total",
                "The total number of client requests",
                MetricType::GAUGE,
                vec![gauge(Vec::new(), requests as f64)],
            ),
            self.named("node_info", "Info of APISIX node", MetricType::GAUGE, vec![gauge(info, 1.0)]),
            self.named(
                "nginx_metric_errors_total",
                "Number of requests whose metrics found no room",
                MetricType::COUNTER,
                vec![counter(Vec::new(), self.errors.load(Relaxed) as f64)],
            ),
        ]
    }
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

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn label_pairs(names: &[&str], settings: &MetricSettings, values: &[u8]) -> Vec<LabelPair> {
    let names = names.iter().copied().chain(settings.extra.iter().map(|(name, _)| name.as_str()));
    let values = values.split(|b| *b == SEPARATOR);
    names.zip(values).map(|(name, value)| label(name, &String::from_utf8_lossy(value))).collect()
}

fn counter(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_gauge(gauge);
    metric
}
