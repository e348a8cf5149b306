//! What the process says of itself.

use super::commands::{bad, json};
use super::{Admin, CertificateStatus, ContextCertificates};
use crate::memory;
use crate::surface::{Query, Reply};
use http::StatusCode;
use serde_json::json as object;
use sixfold_core::format::TimeFormat;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of memory that the process holds; 0 where the system does not say.
pub(super) fn resident_bytes() -> u64 {
    memory::resident().unwrap_or(0)
}

pub(super) fn memory(_: &Admin, _: &Query) -> Reply {
    let bytes = resident_bytes().to_string();
    json(&object!({
        "allocated": bytes,
        "heap_size": bytes,
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": bytes,
    }))
}

/// `/runtime` (server/admin/runtime_handler.cc): each value with what every layer says of it, of which the last counts.
pub(super) fn runtime(admin: &Admin, _: &Query) -> Reply {
    let layers = admin.control.runtime();
    let keys: BTreeSet<&String> = layers.iter().flat_map(|layer| layer.values.keys()).collect();
    let entry = |key: &String| {
        let values: Vec<&str> =
            layers.iter().map(|layer| layer.values.get(key).map_or("", String::as_str)).collect();
        let last = values.iter().rev().find(|value| !value.is_empty()).copied().unwrap_or_default();
        (key.clone(), object!({"layer_values": values, "final_value": last}))
    };
    let entries: serde_json::Map<String, serde_json::Value> = keys.into_iter().map(entry).collect();
    let names: Vec<&String> = layers.iter().map(|layer| &layer.name).collect();
    json(&object!({"layers": names, "entries": entries}))
}

/// `/runtime_modify`. Without an admin layer it answers as Envoy does; with one that nothing is changed, since
/// configuration is compiled with the values of the bootstrap.
pub(super) fn runtime_modify(admin: &Admin, query: &Query) -> Reply {
    if query.parameters.is_empty() {
        let usage = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       or send the parameters as form \
                     values\nuse an empty value to remove a previously added override\n";
        return bad(usage.to_owned());
    }
    let reason = match admin.control.runtime().iter().any(|layer| layer.is_admin) {
        false => "No admin layer specified",
        true => {
            "the admin layer can't be changed while the process runs: configuration is compiled with the values of the \
             bootstrap; give the value to a static_layer of layered_runtime and send SIGHUP\n"
        }
    };
    Reply::text(StatusCode::SERVICE_UNAVAILABLE, reason)
}

pub(super) fn server_info(admin: &Admin, _: &Query) -> Reply {
    let uptime = format!("{}s", admin.started.elapsed().as_secs());
    json(&object!({
        "version": admin.info.version,
        "state": admin.lifecycle.get().as_str(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": admin.info.options,
        "node": admin.info.node,
    }))
}

pub(super) fn certificates(admin: &Admin, _: &Query) -> Reply {
    let shown = |certificate: &CertificateStatus| {
        let names: Vec<_> = certificate.names.iter().map(|(kind, name)| object!({ (*kind): name })).collect();
        object!({
            "path": certificate.path,
            "serial_number": certificate.serial,
            "subject_alt_names": names,
            "days_until_expiration": days_until(certificate.not_after).to_string(),
            "valid_from": moment(certificate.not_before),
            "expiration_time": moment(certificate.not_after),
        })
    };
    let of_context = |context: ContextCertificates| {
        let ContextCertificates { authority, own } = context;
        let (authority, own): (Vec<_>, Vec<_>) =
            (authority.iter().map(shown).collect(), own.iter().map(shown).collect());
        object!({ "ca_cert": authority, "cert_chain": own })
    };
    let all: Vec<_> = admin.control.certificates().into_iter().map(of_context).collect();
    json(&object!({ "certificates": all }))
}

/// Whole days until a moment in Unix seconds, 0 after it.
pub(super) fn days_until(moment: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    u64::try_from((moment - now) / 86_400).unwrap_or(0)
}

fn moment(second: i64) -> String {
    let mut out = Vec::new();
    if let Ok(format) = TimeFormat::utc("%Y-%m-%dT%H:%M:%SZ") {
        format.write_seconds(second, &mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}
