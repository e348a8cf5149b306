//! Where Istio's metrics are kept: one store for the process, whatever listener counts.

use super::labels::{LABELS, name};
use sixfold_core::metrics::series::{Labels, Series, SeriesBudget};
use sixfold_core::metrics::{LabelSet, Labelled, LabelledSample, Registry, Tally, Value};
use sixfold_core::plugin::BuildContext;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A metric. Its number is its place in [`METRICS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    Requests,
    RequestDuration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

impl Metric {
    /// Those of requests, as places in [`METRICS`].
    pub(super) const HTTP: std::ops::Range<usize> = 0..6;
    /// Those of connections.
    pub(super) const TCP: std::ops::Range<usize> = 6..10;
}

/// Their names in the configuration; on the page `istio_` stands before them.
pub(super) const METRICS: [(Metric, &str); 10] = [
    (Metric::Requests, "requests_total"),
    (Metric::RequestDuration, "request_duration_milliseconds"),
    (Metric::RequestBytes, "request_bytes"),
    (Metric::ResponseBytes, "response_bytes"),
    (Metric::RequestMessages, "request_messages_total"),
    (Metric::ResponseMessages, "response_messages_total"),
    (Metric::TcpOpened, "tcp_connections_opened_total"),
    (Metric::TcpClosed, "tcp_connections_closed_total"),
    (Metric::TcpSent, "tcp_sent_bytes_total"),
    (Metric::TcpReceived, "tcp_received_bytes_total"),
];

/// Envoy's namespace of these statistics.
const NAMESPACE: &str = "istiocustom";
/// Bytes of all series. A peer in the mesh may call itself what it likes, so that their number needs a bound: this is room for
/// some ten thousand of them.
const MAX_BYTES: usize = 32 << 20;
/// Series that were not counted for so long give their room to others that find none. Before that they are kept: Istio's own
/// expire only where a mesh asks for it (`rotation_interval` is 0 by default).
const IDLE: Duration = Duration::from_secs(3600);
/// What the labels of a series take, roughly.
const LABEL_BYTES: usize = 2 << 10;
/// The value of every label of what found no room.
const REST: &str = "__rest__";

/// Which metrics a series has, and their labels.
#[derive(Debug)]
pub(super) struct About(pub(super) Vec<(Metric, LabelSet)>);

/// What is counted of requests.
#[derive(Default)]
pub(super) struct Http {
    pub(super) about: Option<Arc<About>>,
    pub(super) requests: u64,
    pub(super) duration: Tally,
    pub(super) request_bytes: Tally,
    pub(super) response_bytes: Tally,
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

impl Http {
    fn add(&mut self, other: &Http) {
        self.about = self.about.take().or_else(|| other.about.clone());
        self.requests += other.requests;
        self.duration.add(&other.duration);
        self.request_bytes.add(&other.request_bytes);
        self.response_bytes.add(&other.response_bytes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }

    fn value(&self, metric: Metric) -> Option<Value> {
        Some(match metric {
            Metric::Requests => Value::Counter(self.requests),
            Metric::RequestDuration => Value::Histogram(self.duration.distribution()),
            Metric::RequestBytes => Value::Histogram(self.request_bytes.distribution()),
            Metric::ResponseBytes => Value::Histogram(self.response_bytes.distribution()),
            Metric::RequestMessages => Value::Counter(self.request_messages),
            Metric::ResponseMessages => Value::Counter(self.response_messages),
            _ => return None,
        })
    }
}

/// What is counted of connections.
#[derive(Default)]
pub(super) struct Tcp {
    pub(super) about: Option<Arc<About>>,
    pub(super) opened: u64,
    pub(super) closed: u64,
    /// Bytes to clients.
    pub(super) sent: u64,
    /// Bytes from clients.
    pub(super) received: u64,
}

impl Tcp {
    fn add(&mut self, other: &Tcp) {
        self.about = self.about.take().or_else(|| other.about.clone());
        self.opened += other.opened;
        self.closed += other.closed;
        self.sent += other.sent;
        self.received += other.received;
    }

    fn value(&self, metric: Metric) -> Option<Value> {
        Some(Value::Counter(match metric {
            Metric::TcpOpened => self.opened,
            Metric::TcpClosed => self.closed,
            Metric::TcpSent => self.sent,
            Metric::TcpReceived => self.received,
            _ => return None,
        }))
    }
}

/// Istio's metrics of this process.
pub(super) struct Store {
    pub(super) http: Series<Http>,
    pub(super) tcp: Series<Tcp>,
    /// Labels of `istio_build`.
    build: LabelSet,
    shown: OnceLock<()>,
}

impl Store {
    /// The process's store; it lasts while a filter holds it.
    pub(super) fn of(context: &BuildContext) -> Arc<Store> {
        let store = context.shared.get_or_insert("istio statistics", || Store::new(context));
        store.shown.get_or_init(|| Store::show(&store, &context.metrics));
        store
    }

    fn new(context: &BuildContext) -> Store {
        let version = context.node.metadata.get("ISTIO_VERSION").and_then(|version| version.as_str());
        let version = version.filter(|version| !version.is_empty()).unwrap_or("unknown");
        let build = [("component", "proxy"), ("tag", version)];
        let budget = SeriesBudget::new(MAX_BYTES);
        Store {
            http: Series::new(budget.clone(), LABEL_BYTES, Some(IDLE)).while_there_is_room(),
            tcp: Series::new(budget, LABEL_BYTES, Some(IDLE)).while_there_is_room(),
            build: build.map(|(label, value)| (label.into(), value.into())).into(),
            shown: OnceLock::new(),
        }
    }

    fn show(store: &Arc<Store>, registry: &Registry) {
        let weak: std::sync::Weak<Store> = Arc::downgrade(store);
        registry.register_labelled(weak);
    }
}

impl Labelled for Store {
    fn list(&self, show: &mut dyn FnMut(LabelledSample)) {
        let rest: LabelSet = (0..LABELS.len()).map(|label| (name(label), REST.into())).collect();
        let now = Instant::now();
        // Several keys may come to the same labels: where some were left out, or a cluster changed.
        let mut sums: BTreeMap<(Metric, LabelSet), Value> = BTreeMap::new();
        let mut add = |metric: Metric, labels: &LabelSet, value: Value| {
            sums.entry((metric, labels.clone())).and_modify(|sum| sum.add(&value)).or_insert(value);
        };
        self.http.each(now, Http::add, |labels, counts| match (labels, &counts.about) {
            (Labels::Values(_), Some(about)) => {
                for (metric, labels) in &about.0 {
                    counts.value(*metric).into_iter().for_each(|value| add(*metric, labels, value));
                }
            }
            _ => METRICS.iter().for_each(|(metric, _)| {
                counts.value(*metric).into_iter().for_each(|value| add(*metric, &rest, value));
            }),
        });
        self.tcp.each(now, Tcp::add, |labels, counts| match (labels, &counts.about) {
            (Labels::Values(_), Some(about)) => {
                for (metric, labels) in &about.0 {
                    counts.value(*metric).into_iter().for_each(|value| add(*metric, labels, value));
                }
            }
            _ => METRICS.iter().for_each(|(metric, _)| {
                counts.value(*metric).into_iter().for_each(|value| add(*metric, &rest, value));
            }),
        });
        let sample = |family: &str, labels, value| LabelledSample {
            namespace: NAMESPACE,
            family: format!("istio_{family}").into(),
            labels,
            value,
        };
        show(sample("build", self.build.clone(), Value::Gauge(1)));
        for ((metric, labels), value) in sums {
            let family = METRICS.get(metric as usize).map_or("", |(_, family)| family);
            show(sample(family, labels, value));
        }
    }
}
