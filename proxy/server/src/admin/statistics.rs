//! `/stats` and `/stats/prometheus`, and the statistics of the process itself.

use super::commands::bad;
use super::{Admin, State, process};
use crate::surface::{Query, Reply};
use parking_lot::Mutex;
use regex::Regex;
use sixfold_core::metrics::Registry;
use sixfold_core::metrics::render::{Form, Histograms, Kind, Page, Selection};
use std::collections::BTreeSet;

sixfold_core::stat_block! {
    /// Under `server.`, as Envoy names them. The version is a number of six hexadecimal digits: major, minor, patch.
    pub struct ServerStats {
        counters: [],
        gauges: [
            live, state, uptime, concurrency, memory_allocated, memory_heap_size, memory_physical_size,
            parent_connections, hot_restart_epoch, days_until_first_cert_expiring, total_connections, version,
        ],
        histograms: [initialization_time_ms],
        zeros: [
            Counter "debug_assertion_failures", Counter "dropped_stat_flushes",
            Counter "envoy_bug_failures", Counter "envoy_notifications", Counter "static_unknown_fields",
            Counter "wip_protos", Counter "main_thread.watchdog_miss", Counter "main_thread.watchdog_mega_miss",
            Gauge "compilation_settings.fips_mode", Gauge "seconds_until_first_ocsp_response_expiring",
            Gauge "stats_recent_lookups",
        ],
    }
}

sixfold_core::stat_block! {
    /// Under `cluster_manager.`, as Envoy names them.
    pub struct ClusterManagerStats {
        counters: [], gauges: [active_clusters], histograms: [],
    }
}

sixfold_core::stat_block! {
    /// Under `runtime.`, as Envoy names them. There are no directories of values, nor any that change while it runs.
    pub struct RuntimeStats {
        counters: [load_success],
        gauges: [num_keys, num_layers],
        histograms: [],
        zeros: [
            Gauge "admin_overrides_active", Counter "deprecated_feature_use",
            Gauge "deprecated_feature_seen_since_process_start", Counter "load_error", Counter "override_dir_exists",
            Counter "override_dir_not_exists",
        ],
    }
}

/// `server.version`.
const VERSION: u64 = part(env!("CARGO_PKG_VERSION_MAJOR")) << 16
    | part(env!("CARGO_PKG_VERSION_MINOR")) << 8
    | part(env!("CARGO_PKG_VERSION_PATCH"));

/// A part of the version of this crate, which cargo has seen to be a number.
const fn part(digits: &str) -> u64 {
    match u8::from_str_radix(digits, 10) {
        Ok(part) => part as u64,
        Err(_) => 0,
    }
}

/// Statistics that are looked up when they are asked for.
pub struct Statistics {
    server: ServerStats,
    clusters: ClusterManagerStats,
    runtime: RuntimeStats,
    /// Whether it is counted how long the start took. A gauge is set by one thread at a time.
    is_start_counted: Mutex<bool>,
}

impl Statistics {
    /// Zeros.
    pub fn new(registry: &Registry) -> Statistics {
        Statistics {
            server: ServerStats::new(registry, "server."),
            clusters: ClusterManagerStats::new(registry, "cluster_manager."),
            runtime: RuntimeStats::new(registry, "runtime."),
            is_start_counted: Mutex::new(false),
        }
    }

    pub(super) fn refresh(&self, admin: &Admin) {
        let mut is_start_counted = self.is_start_counted.lock();
        let (server, memory) = (&self.server, process::resident_bytes());
        server.live().set(u64::from(admin.lifecycle.get() == State::Live));
        server.state().set(admin.lifecycle.get() as u64);
        server.uptime().set(admin.started.elapsed().as_secs());
        server.concurrency().set(admin.concurrency as u64);
        server.parent_connections().set(0);
        server.hot_restart_epoch().set(0);
        server.memory_allocated().set(memory);
        server.memory_heap_size().set(memory);
        server.memory_physical_size().set(memory);
        let expires = admin.control.first_expiry().map(process::days_until);
        server.days_until_first_cert_expiring().set(expires.unwrap_or(u32::MAX.into()));
        server.version().set(VERSION);
        if let Some(took) = admin.lifecycle.initialization().filter(|_| !*is_start_counted) {
            server.initialization_time_ms().record(took.as_millis().try_into().unwrap_or(u64::MAX));
            *is_start_counted = true;
            self.runtime.load_success().inc();
        }
        server.total_connections().set(admin.metrics.sum("listener.", "downstream_cx_active"));
        self.clusters.active_clusters().set(admin.clusters.all().len() as u64);
        let layers = admin.control.runtime();
        let keys: BTreeSet<&String> = layers.iter().flat_map(|layer| layer.values.keys()).collect();
        self.runtime.num_layers().set(layers.len() as u64);
        self.runtime.num_keys().set(keys.len() as u64);
    }
}

pub(super) fn stats(admin: &Admin, query: &Query) -> Reply {
    page(admin, query, query.get("format").unwrap_or("text"))
}

pub(super) fn prometheus(admin: &Admin, query: &Query) -> Reply {
    page(admin, query, "prometheus")
}

fn page(admin: &Admin, query: &Query, format: &str) -> Reply {
    let filter = match query.get("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => return bad(format!("Invalid re2 regex: {error}")),
    };
    let kind = match query.get("type").map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "all") => None,
        Some("counters") => Some(Kind::Counters),
        Some("gauges") => Some(Kind::Gauges),
        Some("histograms") => Some(Kind::Histograms),
        Some("textreadouts") => Some(Kind::TextReadouts),
        Some(_) => return bad("invalid &type= param".to_owned()),
    };
    let histograms = match query.get("histogram_buckets") {
        None | Some("") => None,
        Some("cumulative") => Some(Histograms::Cumulative),
        Some("disjoint") => Some(Histograms::Disjoint),
        Some("detailed") => Some(Histograms::Detailed),
        Some("summary") => Some(Histograms::Summary),
        Some(_) => {
            return bad("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n".to_owned());
        }
    };
    let (invert, used_only) = (query.has("invert_filter"), query.has("usedonly"));
    let texts = query.has("text_readouts");
    let selection = Selection { filter, invert, used_only, kind, histograms, texts };
    let form = match format {
        "json" => Form::Json,
        "prometheus" => Form::Prometheus,
        "text" => Form::Text,
        _ => return bad("usage: /stats?format=(json|prometheus|text)\n\n".to_owned()),
    };
    admin.refresh();
    if let Some(flushes) = admin.flushes.get() {
        flushes.send_replace(());
    }
    let statistics = if used_only { admin.metrics.used() } else { admin.metrics.snapshot() };
    let tags = admin.tags.clone();
    let page = Reply::written(move |out| {
        Page { statistics: &statistics, selection: &selection, rules: &tags }.write(form, out)
    });
    if form == Form::Json { Reply { content_type: "application/json", ..page } } else { page }
}
