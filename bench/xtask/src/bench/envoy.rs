//! The Envoy bootstrap of a case. sixfold and Envoy are given the same file.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::cases::{Case, Protocol, Table};
use super::upstream::Upstream;
use crate::process::free_port;

pub(super) const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// Request ids are off, since nginx and HAProxy make none; the access log is on, as with all peers.
///
/// # Errors
/// No port is free for the admin listener.
pub(super) fn bootstrap(case: &Case, port: u16, upstream: &Upstream, dir: &Path) -> Result<Value> {
    let connection_manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "generate_request_id": false,
        "access_log": [{"name": "file", "typed_config": {
            "@type": format!("{EXTENSIONS}.access_loggers.file.v3.FileAccessLog"), "path": dir.join("access.log")}}],
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")}}],
        "route_config": {"name": "bench", "virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": routes(case.table)}]}});
    let mut chain = json!({"filters": [
        {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}]});
    if case.protocol.has_tls() {
        chain["transport_socket"] = tls(case.protocol, upstream);
    }
    Ok(json!({
        "admin": {"address": address(free_port()?)},
        "static_resources": {
            "listeners": [{"name": "bench", "address": address(port), "filter_chains": [chain]}],
            "clusters": [cluster(case.protocol, upstream)]}}))
}

/// Of 127.0.0.1.
pub(super) fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn routes(table: Table) -> Vec<Value> {
    (1..=table.len())
        .map(|n| {
            let matched = match table {
                Table::One => json!({"prefix": "/"}),
                Table::Prefix => json!({"prefix": format!("/svc/{n}/")}),
                Table::Exact => json!({"path": Table::path_of(n)}),
                Table::Regex => json!({"safe_regex": {"regex": format!("/svc/{n}/.*")}}),
                Table::WildRegex => json!({"safe_regex": {"regex": format!("/[a-z]+/{n}/.*")}}),
                Table::Header => json!({"prefix": "/svc/", "headers": [
                    {"name": "x-tenant", "string_match": {"exact": n.to_string()}}]}),
            };
            json!({"match": matched, "route": {"cluster": "upstream", "timeout": "15s"}})
        })
        .collect()
}

fn cluster(protocol: Protocol, upstream: &Upstream) -> Value {
    let port = if protocol == Protocol::Grpc { upstream.http2 } else { upstream.http1 };
    let mut cluster = json!({
        "name": "upstream", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}});
    if protocol == Protocol::Grpc {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    cluster
}

fn tls(protocol: Protocol, upstream: &Upstream) -> Value {
    let alpn = if protocol.is_http2() { "h2" } else { "http/1.1" };
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": [alpn],
            "tls_certificates": [{
                "certificate_chain": {"filename": upstream.certificate()},
                "private_key": {"filename": upstream.key()}}]}}})
}
