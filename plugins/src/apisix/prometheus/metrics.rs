//! What is counted of requests, and under which labels.

use super::disabled::{DisabledLabels, Labels};
use super::settings::Settings;
use crate::shared::batches::All;
use sixfold_core::cluster::Clusters;
use sixfold_core::format::{Format, Variable};
use sixfold_core::metrics::Registry;
use sixfold_core::metrics::series::{SEPARATOR, Series, SeriesBudget};
use sixfold_core::stream::Stream;
use std::cell::RefCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

/// Bytes that all series may take together. What clients send may become a label by `extra_labels`.
const MOST_BYTES: usize = 64 << 20;

/// Longest key buffer that a thread keeps.
const KEPT_KEY: usize = 16 << 10;

/// The metrics of the process.
pub struct Metrics {
    pub(super) settings: Settings,
    pub(super) statistics: Registry,
    pub(super) batches: Arc<All>,
    pub(super) budget: Arc<SeriesBudget>,
    pub(super) status: Series<u64>,
    pub(super) latency: Series<Buckets>,
    pub(super) bandwidth: Series<u64>,
    /// Whether streams have ever been counted: then what listeners count of them is shown too.
    pub(super) streams: AtomicBool,
    pub(super) stream_connections: Series<u64>,
    pub(super) stream_status: Series<u64>,
    /// Name of the machine.
    pub(super) host: String,
    /// Where the health of nodes is from.
    pub(super) upstreams: OnceLock<Upstreams>,
}

/// The clusters that APISIX's upstreams have become.
pub(super) struct Upstreams {
    pub(super) clusters: Arc<Clusters>,
    /// What the names of resources begin with.
    pub(super) prefix: String,
}

/// A histogram: counts a bucket, the last one without a bound; and the sum.
#[derive(Clone, Default)]
pub(super) struct Buckets {
    pub(super) counts: Vec<u64>,
    pub(super) sum: f64,
}

/// What is to be counted of a request.
pub(super) struct Observation<'a> {
    status: u16,
    route: &'a str,
    service: &'a str,
    uri: &'a str,
    host: &'a str,
    request_ms: f64,
    upstream_ms: Option<f64>,
    ingress: u64,
    egress: u64,
}

thread_local! {
    static KEYS: RefCell<Keys> = const { RefCell::new(Keys { key: Vec::new(), shared: Vec::new() }) };
}

/// Where keys are made.
struct Keys {
    key: Vec<u8>,
    /// What those of latency and bandwidth have in common, made once for a request.
    shared: Vec<u8>,
}

static CONSUMER: LazyLock<Variable> = LazyLock::new(|| Variable::parse("consumer_name"));
static NODE: LazyLock<Variable> = LazyLock::new(|| Variable::parse("balancer_ip"));
static SOURCE: LazyLock<Variable> = LazyLock::new(|| Variable::parse("response_source"));
static REQUEST_MODEL: LazyLock<Variable> = LazyLock::new(|| Variable::parse("request_llm_model"));
static MODEL: LazyLock<Variable> = LazyLock::new(|| Variable::parse("llm_model"));

impl Observation<'_> {
    /// What a request that has ended says.
    pub(super) fn of(stream: &Stream, prefer_name: bool) -> Observation<'_> {
        let route = stream.route.as_deref();
        let ids = route.map(|r| &r.ids);
        let named = |name: &'_ Arc<str>| prefer_name && !name.is_empty();
        let route_label = route.map_or("", |r| if named(&r.name) { &r.name } else { &r.ids.route });
        let service =
            ids.map_or("", |ids| if named(&ids.service_name) { &ids.service_name } else { &ids.service });
        let end = stream.timing.downstream_tx_end.unwrap_or_else(Instant::now);
        let upstream = stream.upstream.tried.iter().filter_map(|t| t.response_ms()).sum::<u32>();
        Observation {
            status: stream.response.status,
            route: route_label,
            service,
            // A plugin may have rewritten the path.
            uri: ids.map_or("", |ids| {
                ids.matched_uri(stream.var("uri").unwrap_or_else(|| stream.request.target.path()))
            }),
            host: ids.map_or("", |ids| {
                ids.matched_host(stream.var("host").unwrap_or_else(|| stream.request.host()))
            }),
            request_ms: end.saturating_duration_since(stream.timing.start).as_secs_f64() * 1000.0,
            upstream_ms: (!stream.upstream.tried.is_empty()).then(|| f64::from(upstream)),
            ingress: stream.bytes.traffic.received,
            egress: stream.bytes.traffic.sent,
        }
    }
}

impl Metrics {
    pub(super) fn new(settings: Settings, statistics: Registry, batches: Arc<All>) -> Metrics {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let budget = SeriesBudget::new(MOST_BYTES);
        let buckets = (settings.buckets.len() + 1) * size_of::<u64>();
        Metrics {
            status: Series::new(budget.clone(), 0, settings.status.expire),
            latency: Series::new(budget.clone(), buckets, settings.latency.expire),
            bandwidth: Series::new(budget.clone(), 0, settings.bandwidth.expire),
            streams: AtomicBool::new(false),
            stream_connections: Series::new(budget.clone(), 0, None),
            stream_status: Series::new(budget.clone(), 0, None),
            host: host.trim_end().to_owned(),
            upstreams: OnceLock::new(),
            settings,
            statistics,
            batches,
            budget,
        }
    }

    /// Has the page tell of the nodes of upstreams with checks, by the names of resources below `prefix`. The first call
    /// counts.
    pub fn tell_of_upstreams(&self, clusters: Arc<Clusters>, prefix: String) {
        // There is one gateway in a process, which has one store.
        let _ = self.upstreams.set(Upstreams { clusters, prefix });
    }

    /// Counts a request.
    pub(super) fn record(&self, seen: &Observation<'_>, stream: &Stream, disabled: Option<&DisabledLabels>) {
        let of = |labels: fn(&DisabledLabels) -> Labels| disabled.map(labels).unwrap_or_default();
        let (status, latency, bandwidth) = (of(|d| d.status), of(|d| d.latency), of(|d| d.bandwidth));
        KEYS.with_borrow_mut(|Keys { key, shared }| {
            let now = Instant::now();
            shared.clear();
            client_and_node(shared, stream);
            self.status_key(key, seen, shared, stream);
            status.take_out(key);
            self.status.touch(key, now, |n| *n += 1);

            let apisix = (seen.request_ms - seen.upstream_ms.unwrap_or(0.0)).max(0.0);
            let start = shared.len();
            text(shared, seen.route.as_bytes());
            text(shared, seen.service.as_bytes());
            shared.rotate_left(start);
            let latencies = [
                ("request", Some(seen.request_ms)),
                ("upstream", seen.upstream_ms),
                ("apisix", Some(apisix)),
            ];
            for (kind, value) in latencies {
                let Some(value) = value else { continue };
                traffic_key(key, kind, shared, stream, &self.settings.latency.extra);
                latency.take_out(key);
                let bounds = &self.settings.buckets;
                self.latency.touch(key, now, |buckets| buckets.add(bounds, value));
            }
            for (kind, value) in [("ingress", seen.ingress), ("egress", seen.egress)] {
                traffic_key(key, kind, shared, stream, &self.settings.bandwidth.extra);
                bandwidth.take_out(key);
                self.bandwidth.touch(key, now, |n| *n += value);
            }
            key.shrink_to(KEPT_KEY);
            shared.shrink_to(KEPT_KEY);
        });
    }

    fn status_key(&self, key: &mut Vec<u8>, seen: &Observation<'_>, client_and_node: &[u8], stream: &Stream) {
        key.clear();
        let code = seen.status;
        key.extend([code / 100, code / 10 % 10, code % 10].map(|digit| b'0' + (digit % 10) as u8));
        text(key, seen.route.as_bytes());
        text(key, seen.uri.as_bytes());
        text(key, seen.host.as_bytes());
        text(key, seen.service.as_bytes());
        key.extend_from_slice(client_and_node);
        variable(key, &SOURCE, stream);
        extra(key, &self.settings.status.extra, stream);
    }
}

impl Buckets {
    fn add(&mut self, bounds: &[f64], value: f64) {
        self.counts.resize(bounds.len() + 1, 0);
        let at = bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }
}

fn traffic_key(key: &mut Vec<u8>, kind: &str, shared: &[u8], stream: &Stream, labels: &[(String, Format)]) {
    key.clear();
    key.extend_from_slice(kind.as_bytes());
    key.extend_from_slice(shared);
    extra(key, labels, stream);
}

/// `consumer`, `node`, `request_type`, `request_llm_model`, `llm_model`
fn client_and_node(key: &mut Vec<u8>, stream: &Stream) {
    variable(key, &CONSUMER, stream);
    variable(key, &NODE, stream);
    text(key, stream.var("request_type").unwrap_or(b"traditional_http"));
    variable(key, &REQUEST_MODEL, stream);
    variable(key, &MODEL, stream);
}

/// The endpoint that a stream went to last, with its port; empty where there was none.
pub(super) fn node_of(stream: &Stream) -> String {
    stream.upstream.member.as_ref().map(|member| member.host.address.to_string()).unwrap_or_default()
}

pub(super) fn text(key: &mut Vec<u8>, value: &[u8]) {
    key.push(SEPARATOR);
    let start = key.len();
    key.extend_from_slice(value);
    no_separator(key, start);
}

fn variable(key: &mut Vec<u8>, variable: &Variable, stream: &Stream) {
    key.push(SEPARATOR);
    let start = key.len();
    variable.write(stream, key);
    no_separator(key, start);
}

fn extra(key: &mut Vec<u8>, labels: &[(String, Format)], stream: &Stream) {
    for (_, format) in labels {
        key.push(SEPARATOR);
        let start = key.len();
        format.write_value(stream, key);
        no_separator(key, start);
    }
}

/// What a client sends need not be UTF-8, and must not end a label.
fn no_separator(key: &mut [u8], start: usize) {
    if memchr::memchr(SEPARATOR, key.get(start..).unwrap_or_default()).is_none() {
        return;
    }
    for byte in key.iter_mut().skip(start).filter(|b| **b == SEPARATOR) {
        *byte = b'?';
    }
}
