//! `/clusters`: every cluster's limits and endpoints (server/admin/clusters_handler.cc).

use super::Admin;
use super::commands::json;
use crate::surface::{Query, Reply};
use http::StatusCode;
use serde_json::{Value, json as object};
use sixfold_core::cluster::{Address, BreakerLimits, Cluster, Host, reason};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn clusters(admin: &Admin, query: &Query) -> Reply {
    let clusters = admin.clusters.all();
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = clusters.iter().map(|cluster| status(cluster)).collect();
        return json(&object!({ "cluster_statuses": statuses }));
    }
    let mut text = String::new();
    for cluster in &clusters {
        lines(&mut text, cluster);
    }
    Reply::text(StatusCode::OK, text)
}

fn lines(out: &mut String, cluster: &Cluster) {
    let config = &cluster.config;
    let name = &config.name;
    // Writing to a string never fails.
    let _ = writeln!(out, "{name}::observability_name::{}", config.observability_name);
    for (priority, limits) in [("default", &config.breaker), ("high", &config.high_breaker)] {
        for (key, value) in thresholds(limits) {
            let _ = writeln!(out, "{name}::{priority}_priority::{key}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", config.added_via_api);
    for host in cluster.hosts.load().iter() {
        for (key, value) in host_values(host) {
            let _ = writeln!(out, "{name}::{}::{key}::{value}", host.label);
        }
    }
}

fn thresholds(limits: &BreakerLimits) -> [(&'static str, u32); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

fn host_values(host: &Host) -> Vec<(&'static str, String)> {
    let total = host.total_requests.load(Relaxed);
    let failed = host.failed_requests.load(Relaxed);
    let active = u64::from(host.active_requests.load(Relaxed));
    let succeeded = total.saturating_sub(failed + active);
    vec![
        ("cx_active", host.active_connections.load(Relaxed).to_string()),
        ("cx_connect_fail", host.failed_connections.load(Relaxed).to_string()),
        ("cx_total", host.total_connections.load(Relaxed).to_string()),
        ("rq_active", active.to_string()),
        ("rq_error", failed.to_string()),
        ("rq_pending_active", "0".to_owned()),
        ("rq_success", succeeded.to_string()),
        ("rq_timeout", "0".to_owned()),
        ("rq_total", total.to_string()),
        ("hostname", host.hostname.to_string()),
        ("health_flags", health_flags(host)),
        ("weight", host.weight().to_string()),
        ("region", host.locality.region.to_string()),
        ("zone", host.locality.zone.to_string()),
        ("sub_zone", host.locality.sub_zone.to_string()),
        ("canary", host.is_canary().to_string()),
        ("priority", host.priority.to_string()),
        ("success_rate", "-1".to_owned()),
        ("local_origin_success_rate", "-1".to_owned()),
    ]
}

/// Envoy's names of the reasons, by bit, and the fields of the JSON form.
const FLAGS: [(u32, &str, &str); 5] = [
    (reason::ACTIVE_CHECK, "/failed_active_hc", "failed_active_health_check"),
    (reason::EJECTED, "/failed_outlier_check", "failed_outlier_check"),
    (reason::DISCOVERY, "/failed_eds_health", "eds_health_status"),
    (reason::DEGRADED, "/degraded_eds_health", "failed_active_degraded_check"),
    (reason::PENDING_CHECK, "/pending_active_hc", "pending_active_hc"),
];

fn health_flags(host: &Host) -> String {
    let reasons = host.reasons.load(Relaxed);
    let set: String = FLAGS.iter().filter(|(bit, ..)| reasons & bit != 0).map(|(_, text, _)| *text).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

fn status(cluster: &Cluster) -> Value {
    let config = &cluster.config;
    let breakers =
        [("DEFAULT", &config.breaker), ("HIGH", &config.high_breaker)].map(|(priority, limits)| {
            let mut breaker = object!({ "priority": priority });
            for (key, value) in thresholds(limits) {
                breaker[key] = value.into();
            }
            breaker
        });
    let hosts: Vec<Value> = cluster.hosts.load().iter().map(|host| host_status(host)).collect();
    let mut status = object!({
        "name": config.name,
        "host_statuses": hosts,
        "circuit_breakers": {"thresholds": breakers},
        "observability_name": config.observability_name,
    });
    // As in the JSON form of protobuf, what is false is left out.
    if config.added_via_api {
        status["added_via_api"] = true.into();
    }
    status
}

fn host_status(host: &Host) -> Value {
    let address = match &host.address {
        Address::Ip(a) => {
            object!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}})
        }
        Address::Unix(path) => object!({"pipe": {"path": path.display().to_string()}}),
        Address::Name(name, port) => {
            object!({"socket_address": {"address": name, "port_value": port}})
        }
    };
    // The JSON form has the numbers as a list with their kinds.
    let numbers: Vec<Value> = host_values(host)
        .into_iter()
        .filter(|(key, _)| key.starts_with("cx_") || key.starts_with("rq_"))
        .map(|(key, value)| {
            let gauge = key.ends_with("active");
            object!({"name": key, "value": value, "type": if gauge { "GAUGE" } else { "COUNTER" }})
        })
        .collect();
    let reasons = host.reasons.load(Relaxed);
    let mut health = object!({
        "eds_health_status": if reasons & reason::DRAINING != 0 { "DRAINING" }
            else if reasons & reason::DISCOVERY != 0 { "UNHEALTHY" }
            else if reasons & reason::DEGRADED != 0 { "DEGRADED" }
            else { "HEALTHY" }
    });
    for (bit, _, field) in FLAGS {
        if reasons & bit != 0 && field != "eds_health_status" {
            health[field] = true.into();
        }
    }
    object!({
        "address": address,
        "stats": numbers,
        "health_status": health,
        "weight": host.weight(),
        "hostname": host.hostname,
        "priority": host.priority,
        "locality": {
            "region": host.locality.region, "zone": host.locality.zone, "sub_zone": host.locality.sub_zone,
        },
    })
}
