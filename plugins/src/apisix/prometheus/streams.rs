//! What is counted of streams (`stream_log` and `collect_stream_zone_metrics` of apisix/plugins/prometheus/exporter.lua).

use super::metrics::{Metrics, node_of, text};
use super::render::Page;
use super::{Config, shared};
use sixfold_core::error::ConfigError;
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::metrics::Value;
use sixfold_core::plugin::{BuildContext, Slot};
use sixfold_core::stream::Stream;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// What the statistics of a listener for streams begin with, before its address.
const SCOPE: &str = "stream.";

const STATUS: [&str; 3] = ["code", "listen_addr", "node"];

/// Directions, each with the statistic that counts its bytes.
const BANDWIDTH: [(&str, &str, &str); 4] = [
    ("downstream_cx_rx_bytes_total", "ingress", "downstream"),
    ("downstream_cx_tx_bytes_total", "egress", "downstream"),
    ("upstream_tx_bytes_total", "egress", "upstream"),
    ("upstream_rx_bytes_total", "ingress", "upstream"),
];

const ACTIVE: &str = "sessions_active";

pub(super) fn build(
    config: Config,
    context: &BuildContext,
) -> Result<Arc<dyn ConnectionFilter>, ConfigError> {
    let metrics = shared(&context.shared, &context.attributes, &context.metrics)?;
    Ok(Arc::new(PrometheusOfStreams { metrics, prefer_name: config.prefer_name }))
}

/// The plugin as it works on streams.
struct PrometheusOfStreams {
    metrics: Arc<Metrics>,
    prefer_name: bool,
}

impl ConnectionFilter for PrometheusOfStreams {
    /// From now on the page has metrics of streams.
    fn in_force(&self) {
        self.metrics.streams.store(true, Relaxed);
    }

    fn on_close(&self, connection: &mut Stream, _: Slot) {
        self.metrics.record_stream(connection, self.prefer_name);
    }
}

impl std::fmt::Debug for PrometheusOfStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("prometheus")
    }
}

/// The code that metrics have for the end of a stream: one of those that nginx knows. To nginx every end is well once a node
/// was reached, so that the reason of the end says more (`stream_session_reason`).
fn code(stream: &Stream) -> &'static [u8] {
    match stream.response.status {
        200 => match stream.vars.get("stream_session_reason") {
            Some(b"client_error") => b"400",
            Some(b"upstream_error" | b"upstream_timeout") => b"502",
            _ => b"200",
        },
        403 => b"403",
        502 => b"502",
        503 => b"503",
        // What a plugin ends is no success, whatever it says.
        400..500 => b"400",
        _ => b"500",
    }
}

impl Metrics {
    fn record_stream(&self, stream: &Stream, prefer_name: bool) {
        let route = stream.route.as_deref();
        let named = |route: &&sixfold_core::route::Route| prefer_name && !route.name.is_empty();
        let label = route.filter(named).map(|route| &route.name).or_else(|| Some(&route?.ids.route));
        let (now, mut key) = (Instant::now(), Vec::new());
        key.extend_from_slice(label.map_or(&b""[..], |label| label.as_bytes()));
        self.stream_connections.touch(&key, now, |n| *n += 1);
        key.clear();
        key.extend_from_slice(code(stream));
        let listener = &*stream.connection.listener;
        let address = listener.strip_prefix("stream/").unwrap_or(listener);
        text(&mut key, address.trim_end_matches("/udp").as_bytes());
        text(&mut key, node_of(stream).as_bytes());
        self.stream_status.touch(&key, now, |n| *n += 1);
    }

    /// Writes the metrics that stand before `stream_status` and that, sorted by name.
    pub(super) fn render_streams(&self, page: &mut Page<'_>) -> io::Result<()> {
        if !self.streams.load(Relaxed) {
            return Ok(());
        }
        let mut listeners: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for sample in self.statistics.samples() {
            let found = sample.name.strip_prefix(SCOPE).and_then(|name| name.rsplit_once('.'));
            if let (Some((address, name)), Value::Counter(n) | Value::Gauge(n)) = (found, sample.value) {
                listeners.entry(address.to_owned()).or_default().insert(name.to_owned(), n);
            }
        }
        let of = |all: &BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or_default();
        let name = "stream_active_connections";
        page.head(name, "Number of stream sessions currently being proxied per listening address", "gauge")?;
        for (address, all) in &listeners {
            page.line(name, &[("listen_addr", address)], of(all, ACTIVE))?;
        }
        let name = "stream_bandwidth";
        page.head(name, "Total bandwidth in bytes proxied by the stream subsystem in APISIX", "counter")?;
        for (address, all) in &listeners {
            for (statistic, kind, side) in BANDWIDTH {
                let labels = [("listen_addr", address.as_str()), ("type", kind), ("side", side)];
                page.line(name, &labels, of(all, statistic))?;
            }
        }
        let none = &Default::default();
        let head = (
            "stream_connection_total",
            "Total number of connections handled per stream route in APISIX",
            "counter",
        );
        page.series(head, &["route"], none, &self.stream_connections, |a, b| *a += b, Page::number)?;
        let head = ("stream_status", "Status of stream sessions in APISIX", "counter");
        page.series(head, &STATUS, none, &self.stream_status, |a, b| *a += b, Page::number)
    }
}

#[cfg(test)]
mod tests {
    use super::code;
    use crate::testing::stream;

    #[test]
    fn reasons_say_what_nginx_does_not() {
        for (status, reason, is) in [
            (200, "closed", "200"),
            (200, "shutdown", "200"),
            (200, "client_error", "400"),
            (200, "upstream_error", "502"),
            (200, "upstream_timeout", "502"),
            (502, "", "502"),
            (503, "", "503"),
            (401, "", "400"),
            (500, "closed", "500"),
        ] {
            let mut stream = stream("/", &[]);
            stream.response.status = status;
            stream.set_var("stream_session_reason", reason);
            assert_eq!(code(&stream), is.as_bytes(), "{status} {reason}");
        }
    }
}
