//! APISIX's status server and the server that Prometheus reads.

use crate::admin::{Lifecycle, State};
use crate::surface::{Answer, Query, Reply};
use http::StatusCode;
use parking_lot::RwLock;
use std::io::{self, Write};
use std::sync::Arc;

/// What the status server says: whether configuration has arrived. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<RwLock<Result<(), String>>>);

impl Default for Readiness {
    /// Not ready: no worker has received configuration.
    fn default() -> Readiness {
        Readiness(Arc::new(RwLock::new(Err("worker id: 0 has not received configuration".to_owned()))))
    }
}

impl Readiness {
    /// Says that configuration is there, or why it is not.
    pub fn set(&self, state: Result<(), String>) {
        *self.0.write() = state;
    }

    /// Whether configuration is there, and in force.
    pub fn is_ready(&self) -> bool {
        self.0.read().is_ok()
    }
}

/// Answers `/status` and `/status/ready` (apisix `status`, 127.0.0.1:7085 by default).
#[derive(Debug)]
pub struct StatusServer {
    /// Whether configuration has arrived.
    pub readiness: Readiness,
    /// Whether the process is about to end: then it is not ready any more.
    pub lifecycle: Lifecycle,
}

impl Answer for StatusServer {
    fn at_once(&self, query: &Query) -> Option<Reply> {
        let ok = || Reply::json(StatusCode::OK, "{\"status\":\"ok\"}");
        Some(match query.path.as_str() {
            "/status" => ok(),
            "/status/ready" if self.lifecycle.get() == State::Draining => unready("the gateway is ending"),
            "/status/ready" => match &*self.readiness.0.read() {
                Ok(()) => ok(),
                Err(error) => unready(error),
            },
            _ => Reply::json(StatusCode::NOT_FOUND, "{\"error_msg\":\"404 Route Not Found\"}"),
        })
    }

    fn answer(&self, query: &Query) -> Reply {
        self.at_once(query).unwrap_or_else(|| Reply::text(StatusCode::NOT_FOUND, ""))
    }
}

fn unready(error: &str) -> Reply {
    let body = serde_json::json!({"status": "error", "error": error}).to_string();
    Reply::json(StatusCode::SERVICE_UNAVAILABLE, body)
}

/// Writes what Prometheus reads.
pub type Exporter = Arc<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync>;

/// Serves one page of metrics (`plugin_attr.prometheus.export_addr` and `export_uri`: 127.0.0.1:9091 and
/// `/apisix/prometheus/metrics` by default).
pub struct MetricsServer {
    /// Path of the page.
    pub path: String,
    /// Writes it.
    pub exporter: Exporter,
}

impl Answer for MetricsServer {
    fn at_once(&self, query: &Query) -> Option<Reply> {
        let body = "{\"error_msg\":\"404 Route Not Found\"}";
        (query.path != self.path).then(|| Reply::json(StatusCode::NOT_FOUND, body))
    }

    fn answer(&self, _: &Query) -> Reply {
        let exporter = self.exporter.clone();
        Reply {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Reply::written(move |out| exporter(out))
        }
    }
}
