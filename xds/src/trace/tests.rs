#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use sixfold_core::runtime::Runtime;

use super::*;
use crate::testing::{context, read};

fn sampling(values: &str, fields: &str) -> [String; 3] {
    let runtime = Arc::new(Runtime::new(serde_json::from_str(values).unwrap()));
    let context = Context { runtime, ..context() };
    let tracing = super::compile(&context, &read(fields), SpanKind::Server, true).unwrap();
    shares(&tracing.sampling)
}

/// An object of both counted for nothing, and a fraction was kept.
#[test]
fn keys_of_the_runtime_are_shares() {
    let fields = "random_sampling: {value: 12.5}";
    assert_eq!(sampling("{}", fields), ["10000 of 10000", "1250 of 10000", "10000 of 10000"]);
    let values = r#"{"tracing.client_enabled": "1.9",
        "tracing.random_sampling": {"numerator": 3, "denominator": "TEN_THOUSAND"}, "tracing.global_enabled": true}"#;
    assert_eq!(sampling(values, fields), ["1 of 100", "3 of 10000", "10000 of 10000"]);
}

fn shares(Sampling { client, random, overall }: &Sampling) -> [String; 3] {
    [client, random, overall].map(|share| share.to_string())
}

#[test]
fn routes_have_shares_of_their_own() {
    let of = |values: &str, fields: &str| {
        let runtime = Arc::new(Runtime::new(serde_json::from_str(values).unwrap()));
        let tracing = of_route(&Context { runtime, ..context() }, &read(fields));
        tracing.map(|tracing| shares(&tracing.sampling)).map_err(|error| error.to_string())
    };
    let fields = "{random_sampling: {numerator: 5, denominator: MILLION}, client_sampling: {}}";
    let all = "100 of 100";
    assert_eq!(of("{}", fields).unwrap(), ["0 of 100", "5 of 1000000", all]);
    let values = r#"{"tracing.random_sampling": 3}"#;
    assert_eq!(of(values, fields).unwrap(), ["0 of 100", "3 of 100", all], "a key of the runtime goes first");
    assert_eq!(of("{}", "{}").unwrap(), [all; 3]);
    let error = of("{}", "custom_tags: [{tag: a}]").unwrap_err();
    assert!(error.starts_with("custom_tags[0]"), "{error}");
}

fn refused(kind: &str, fields: &str) -> String {
    let provider = format!(
        "{{name: p, typed_config: {{'@type': type.googleapis.com/envoy.config.trace.v3.{kind}, {fields}}}}}"
    );
    provider_error(&provider)
}

fn provider_error(text: &str) -> String {
    provider(&context(), &read(text)).map(drop).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_with_collectors_is_told_by_its_field() {
    let grpc = "grpc_service: {envoy_grpc: {cluster_name: sds}}";
    let http = "http_service: {http_uri: {uri: 'http://a/', cluster: sds, timeout: 1s}}";
    let zipkin = "collector_cluster: sds, collector_endpoint: /a, collector_endpoint_version: HTTP_JSON";
    for (kind, fields, expected) in [
        (
            "OpenTelemetryConfig",
            format!("{grpc}, {http}"),
            "http_service: must not be given together with grpc_service",
        ),
        (
            "OpenTelemetryConfig",
            http.replace(
                "http_uri",
                "request_headers_to_add: [{header: {key: a, value: \"x\\u0001\"}}], http_uri",
            ),
            "http_service.request_headers_to_add[0].header.value: must not hold control characters",
        ),
        (
            "OpenTelemetryConfig",
            grpc.replace(
                "envoy_grpc",
                "initial_metadata: [{key: a, value: b}, {key: a, value: \"x\\u0001\"}], envoy_grpc",
            ),
            "grpc_service.initial_metadata[1].value: must not hold control characters",
        ),
        (
            "ZipkinConfig",
            zipkin.replace("HTTP_JSON", "HTTP_PROTO"),
            "collector_endpoint_version: HTTP_PROTO is not supported",
        ),
        // It was made a part of the host.
        (
            "ZipkinConfig",
            zipkin.replace(", collector_endpoint_version: HTTP_JSON", ""),
            "collector_endpoint_version: must be HTTP_JSON",
        ),
        ("ZipkinConfig", zipkin.replace(": sds", ": none"), "collector_cluster: unknown cluster \"none\""),
        (
            "ZipkinConfig",
            "collector_endpoint_version: HTTP_JSON, collector_service: {http_uri: {uri: 'http://a/', cluster: none, timeout: 1s}}".to_owned(),
            "collector_service.http_uri.cluster: unknown cluster \"none\"",
        ),
        ("ZipkinConfig", zipkin.replace("/a", "api/v2/spans"), "collector_endpoint: must begin with /"),
        ("ZipkinConfig", zipkin.replace("/a", "'@other/'"), "collector_endpoint: must begin with /"),
    ] {
        assert_eq!(refused(kind, &fields), format!("typed_config.{expected}"), "{fields}");
    }
}

// Each connection manager had a tracer of its own, with a stream and 4 MiB.
#[test]
fn equal_configurations_have_one_tracer() {
    let context = context();
    let tracer = |name: &str| {
        let text = format!(
            "{{name: p, typed_config: {{'@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, \
             grpc_service: {{envoy_grpc: {{cluster_name: sds}}}}, service_name: {name}}}}}"
        );
        provider(&context, &read(&text)).unwrap()
    };
    let first = tracer("a");
    assert!(Arc::ptr_eq(&first, &tracer("a")));
    assert!(!Arc::ptr_eq(&first, &tracer("b")));
    let before = Arc::downgrade(&first);
    drop(first);
    assert!(before.upgrade().is_none(), "it is there for who uses it alone");
}
