//! What the process says of itself.

use super::Admin;
use super::commands::json;
use crate::surface::{Query, Reply};
use serde_json::json as object;
use sixfold_core::format::TimeFormat;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of memory that the process holds; 0 where the system does not say.
pub(super) fn resident_bytes() -> u64 {
    const PAGE: u64 = 4096;
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * PAGE)
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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let all: Vec<_> = admin
        .control
        .certificates()
        .into_iter()
        .map(|certificate| {
            let names: Vec<_> =
                certificate.names.iter().map(|(kind, name)| object!({ (*kind): name })).collect();
            object!({
                "ca_cert": [],
                "cert_chain": [{
                    "path": certificate.path,
                    "serial_number": certificate.serial,
                    "subject_alt_names": names,
                    "days_until_expiration": ((certificate.not_after - now) / 86_400).max(0).to_string(),
                    "valid_from": moment(certificate.not_before),
                    "expiration_time": moment(certificate.not_after),
                }],
            })
        })
        .collect();
    json(&object!({ "certificates": all }))
}

fn moment(second: i64) -> String {
    let mut out = Vec::new();
    if let Ok(format) = TimeFormat::utc("%Y-%m-%dT%H:%M:%SZ") {
        format.write_seconds(second, &mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}
