//! `/clusters`: every cluster's limits and endpoints (server/admin/clusters_handler.cc).

use super::Admin;
use super::commands::{bad, json};
use crate::surface::{Query, Reply};
use regex::Regex;
use serde_json::{Value, json as object};
use sixfold_core::cluster::{Address, BreakerLimits, Cluster, EdsHealth, Locality, Member, Reasons};
use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn clusters(admin: &Admin, query: &Query) -> Reply {
    let filter = match query.get("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(_) => return bad("Invalid re2 regex".to_owned()),
    };
    let mut clusters = admin.clusters.all();
    clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.config.name)));
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = clusters.iter().map(|cluster| status(cluster)).collect();
        return json(&object!({ "cluster_statuses": statuses }));
    }
    Reply::written(move |out| clusters.iter().try_for_each(|cluster| lines(out, cluster)))
}

fn lines(out: &mut dyn Write, cluster: &Cluster) -> io::Result<()> {
    let config = &cluster.config;
    let name = &config.name;
    writeln!(out, "{name}::observability_name::{}", config.observability_name)?;
    if let Some(outliers) = &cluster.outliers {
        let rates = outliers.averages();
        for (origin, [average, threshold]) in ["", "local_origin_"].into_iter().zip(rates) {
            writeln!(out, "{name}::outlier::{origin}success_rate_average::{average}")?;
            writeln!(out, "{name}::outlier::{origin}success_rate_ejection_threshold::{threshold}")?;
        }
    }
    for (priority, limits) in [("default", &config.breaker), ("high", &config.high_breaker)] {
        for (key, value) in thresholds(limits) {
            writeln!(out, "{name}::{priority}_priority::{key}::{value}")?;
        }
    }
    writeln!(out, "{name}::added_via_api::{}", config.added_via_api)?;
    if let Some(service) = &config.eds_service_name {
        writeln!(out, "{name}::eds_service_name::{service}")?;
    }
    for member in cluster.hosts.load().iter() {
        for (key, value) in host_values(cluster, member) {
            writeln!(out, "{name}::{}::{key}::{value}", member.host.label)?;
        }
    }
    Ok(())
}

fn thresholds(limits: &BreakerLimits) -> [(&'static str, u32); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

fn host_values(cluster: &Cluster, member: &Member) -> Vec<(&'static str, String)> {
    let host = &member.host;
    let [external, local] = success_rates(cluster, member)
        .map(|rate| rate.map_or_else(|| "-1".to_owned(), |rate| rate.to_string()));
    vec![
        ("cx_active", host.active_connections.load(Relaxed).to_string()),
        ("cx_connect_fail", host.failed_connections.load(Relaxed).to_string()),
        ("cx_total", host.total_connections.load(Relaxed).to_string()),
        ("rq_active", host.active_requests.load(Relaxed).to_string()),
        ("rq_error", host.failed_requests.load(Relaxed).to_string()),
        ("rq_pending_active", host.pending_requests.load(Relaxed).to_string()),
        ("rq_success", host.succeeded_requests.load(Relaxed).to_string()),
        ("rq_timeout", host.timed_out_requests.load(Relaxed).to_string()),
        ("rq_total", host.total_requests.load(Relaxed).to_string()),
        ("hostname", host.hostname.to_string()),
        ("health_flags", health_flags(member.reasons())),
        ("weight", cluster.weight_of(member).to_string()),
        ("region", member.locality().region.to_string()),
        ("zone", member.locality().zone.to_string()),
        ("sub_zone", member.locality().sub_zone.to_string()),
        ("canary", member.is_canary().to_string()),
        ("priority", member.priority.to_string()),
        ("success_rate", external),
        ("local_origin_success_rate", local),
    ]
}

fn success_rates(cluster: &Cluster, member: &Member) -> [Option<f64>; 2] {
    cluster.outliers.as_ref().map(|outliers| outliers.success_rates(&member.host)).unwrap_or_default()
}

/// Envoy's names of the reasons, in its order, and their fields in the JSON form. What discovery says has one
/// field for all of it there.
const FLAGS: [(Reasons, &str, Option<&str>); 8] = [
    (Reasons::ACTIVE_CHECK, "/failed_active_hc", Some("failed_active_health_check")),
    (Reasons::EJECTED, "/failed_outlier_check", Some("failed_outlier_check")),
    (Reasons::DISCOVERY, "/failed_eds_health", None),
    (Reasons::DEGRADED_CHECK, "/degraded_active_hc", Some("failed_active_degraded_check")),
    (Reasons::DEGRADED_DISCOVERY, "/degraded_eds_health", None),
    (Reasons::PENDING_CHECK, "/pending_active_hc", Some("pending_active_hc")),
    (Reasons::DRAINING, "/eds_status_draining", None),
    (Reasons::EXCLUDED_CHECK, "/excluded_via_immediate_hc_fail", Some("excluded_via_immediate_hc_fail")),
];

fn health_flags(reasons: Reasons) -> String {
    let set: String =
        FLAGS.iter().filter(|(one, ..)| reasons.contains(*one)).map(|(_, text, _)| *text).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

fn status(cluster: &Cluster) -> Value {
    let config = &cluster.config;
    let breakers =
        [("DEFAULT", &config.breaker), ("HIGH", &config.high_breaker)].map(|(priority, limits)| {
            // Here and below: as in the JSON form of protobuf, what is a default is left out.
            let mut breaker =
                if priority == "DEFAULT" { object!({}) } else { object!({ "priority": priority }) };
            for (key, value) in thresholds(limits) {
                breaker[key] = value.into();
            }
            breaker
        });
    let hosts: Vec<Value> = cluster.hosts.load().iter().map(|member| host_status(cluster, member)).collect();
    let mut status = object!({
        "name": config.name,
        "circuit_breakers": {"thresholds": breakers},
        "observability_name": config.observability_name,
    });
    let thresholds = cluster.outliers.iter().flat_map(|outliers| outliers.averages());
    for (origin, [_, threshold]) in ["", "local_origin_"].into_iter().zip(thresholds) {
        if threshold > 0.0 {
            status[format!("{origin}success_rate_ejection_threshold")] = object!({ "value": threshold });
        }
    }
    if !hosts.is_empty() {
        status["host_statuses"] = hosts.into();
    }
    if config.added_via_api {
        status["added_via_api"] = true.into();
    }
    if let Some(service) = &config.eds_service_name {
        status["eds_service_name"] = service.as_ref().into();
    }
    status
}

fn host_status(cluster: &Cluster, member: &Member) -> Value {
    let host = &member.host;
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
    let numbers: Vec<Value> = host_values(cluster, member)
        .into_iter()
        .filter(|(key, _)| key.starts_with("cx_") || key.starts_with("rq_"))
        .map(|(key, value)| {
            let mut number = object!({ "name": key });
            if key.ends_with("active") {
                number["type"] = "GAUGE".into();
            }
            if value != "0" {
                number["value"] = value.into();
            }
            number
        })
        .collect();
    let discovered = match member.discovery {
        EdsHealth::Unknown | EdsHealth::Healthy => "HEALTHY",
        EdsHealth::Unhealthy => "UNHEALTHY",
        EdsHealth::Draining => "DRAINING",
        EdsHealth::Timeout => "TIMEOUT",
        EdsHealth::Degraded => "DEGRADED",
    };
    let mut health = object!({ "eds_health_status": discovered });
    let reasons = member.reasons();
    for (_, _, field) in FLAGS.iter().filter(|(one, ..)| reasons.contains(*one)) {
        if let Some(field) = field {
            health[*field] = true.into();
        }
    }
    let mut status = object!({
        "address": address,
        "stats": numbers,
        "health_status": health,
        "locality": {},
    });
    let Locality { region, zone, sub_zone } = member.locality();
    for (key, text) in [("region", region), ("zone", zone), ("sub_zone", sub_zone)] {
        if !text.is_empty() {
            status["locality"][key] = text.as_ref().into();
        }
    }
    if !host.hostname.is_empty() {
        status["hostname"] = host.hostname.as_ref().into();
    }
    for (key, number) in [("weight", cluster.weight_of(member)), ("priority", member.priority)] {
        if number != 0 {
            status[key] = number.into();
        }
    }
    for (key, rate) in
        ["success_rate", "local_origin_success_rate"].into_iter().zip(success_rates(cluster, member))
    {
        if let Some(rate) = rate {
            status[key] = object!({ "value": rate });
        }
    }
    status
}
