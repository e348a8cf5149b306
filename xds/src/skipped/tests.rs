//! What becomes of the extensions that Istio's control plane sends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::error::ConfigError;

use super::*;
use crate::testing::{context, read};
use crate::{cluster, listener};

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str =
    "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const FILE: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// An extension, without settings as far as that is valid.
fn extension(config: &str) -> String {
    format!("{{name: x, typed_config: {{'@type': type.googleapis.com/{config}}}}}")
}

/// The same of a type that nobody has a definition of: TypedStruct says its name.
fn wrapped(config: &str) -> String {
    format!(
        "{{name: x, typed_config: {{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/{config}}}}}"
    )
}

fn compile_listener(filters: &str, fields: &str) -> Result<(), ConfigError> {
    let text = format!(
        "name: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}\nfilter_chains: [{{filters: [{filters}]}}]\n{fields}"
    );
    listener::compile(&context(), &read(&text)).map(drop)
}

fn compile_manager(filters: &str, fields: &str) -> Result<(), ConfigError> {
    let manager = format!(
        "{{name: h, typed_config: {{'@type': {MANAGER}, stat_prefix: s, route_config: {{name: r}}, http_filters: [{filters}{ROUTER}], {fields}}}}}"
    );
    compile_listener(&manager, "")
}

fn compile_cluster(fields: &str) -> Result<(), ConfigError> {
    cluster::compile(&context(), &read(&format!("name: c\n{fields}")), true).map(drop)
}

const DIRECT: &str = "{name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config}}";

/// Compiles the extension where it stands.
fn compile(place: &str, extension: &str) -> Result<(), ConfigError> {
    match place {
        "HTTP filter" => compile_manager(&format!("{extension}, "), ""),
        "network filter" => compile_listener(&format!("{extension}, {DIRECT}"), ""),
        "listener filter" => compile_listener(DIRECT, &format!("listener_filters: [{extension}]")),
        "transport socket" => compile_cluster(&format!("transport_socket: {extension}")),
        "filter of clusters" => compile_cluster(&format!("filters: [{extension}]")),
        "access log" => compile_manager("", &format!("access_log: [{extension}]")),
        "access log filter" => compile_manager(
            "",
            &format!(
                "access_log: [{{name: f, filter: {{extension_filter: {extension}}}, typed_config: {{'@type': {FILE}, path: /dev/null}}}}]"
            ),
        ),
        place => panic!("where is a {place}?"),
    }
}

/// Whoever relied on the list would be told that all is well while a policy was not held.
#[test]
fn what_is_said_to_be_refused_is_refused_by_name() {
    for (place, config) in REFUSED {
        let compiled = compile(place, &extension(config));
        let error = compiled.expect_err(&format!("{place} {config}")).to_string();
        let by_field = error.ends_with(": is not supported");
        assert!(error.contains(config) || by_field, "{place} {config}: {error}");
    }
}

#[test]
fn what_is_said_to_be_left_out_is_taken() {
    for (place, config, loss) in skipped() {
        assert!(is_skipped(place, "x", config));
        let told = left_out();
        assert!(
            told.iter().any(|line| line.contains(config) && line.ends_with(loss)),
            "{config} in {told:?}"
        );
    }
    assert!(!is_skipped("HTTP filter", "x", "stats.PluginConfig"));
    let unknown = compile("HTTP filter", &wrapped("stats.Other")).unwrap_err().to_string();
    assert!(unknown.ends_with("HTTP filter \"x\" of type stats.Other is unknown"), "{unknown}");
}

#[test]
fn filters_of_clusters_are_known_by_their_type() {
    let taken = |filter: &str| compile("filter of clusters", filter).map_err(|error| error.to_string());
    let exchange = wrapped("envoy.tcp.metadataexchange.config.MetadataExchange");
    let with = exchange
        .replace("MetadataExchange}", "MetadataExchange, value: {protocol: p, enable_discovery: true}}");
    assert_eq!(taken(&with), Ok(()));
    let place = "cluster \"c\": filters[0].typed_config";
    assert_eq!(taken(&exchange), Err(format!("{place}.protocol: must not be empty")));
    let twice = compile("filter of clusters", &format!("{with}, {with}")).unwrap_err().to_string();
    assert_eq!(twice, "cluster \"c\": filters[1]: there can be one exchange of metadata");
    let other = taken(&extension("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")).unwrap_err();
    assert!(other.starts_with("cluster \"c\": filters[0]") && other.ends_with("is not supported"), "{other}");
}
