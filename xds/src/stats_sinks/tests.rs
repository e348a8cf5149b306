#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::testing::{context, read};

const SINKS: &str = "type.googleapis.com/envoy.config.metrics.v3";
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.stat_sinks";

fn compiled(text: &str) -> std::result::Result<Sinks, String> {
    let context = crate::context::Context {
        bootstrap_clusters: std::sync::Arc::new(["s".to_owned()].into()),
        ..context()
    };
    compile(&context, &read(text)).map_err(|error| error.to_string())
}

fn sink(config: &str) -> std::result::Result<Sink, String> {
    let all = compiled(&format!("stats_sinks: [{{name: x, typed_config: {{{config}}}}}]"))?.all;
    Ok(all.into_iter().next().unwrap())
}

const ADDRESS: &str = "address: {socket_address: {protocol: UDP, address: 127.0.0.1, port_value: 8125}}";

#[test]
fn statsd_gets_lines_in_datagrams_or_over_a_connection() {
    let statsd = |of: &str, fields: &str| match sink(&format!("'@type': {of}, {fields}")) {
        Ok(Sink::Statsd { lines: Lines { prefix, tags }, to }) => Ok((prefix, tags, to)),
        Ok(Sink::Called(_)) => panic!("it is called"),
        Err(error) => Err(error),
    };
    let of_statsd = format!("{SINKS}.StatsdSink");
    let (prefix, tags, to) = statsd(&of_statsd, ADDRESS).unwrap();
    assert_eq!((prefix.as_str(), tags), ("envoy", Tags::InName));
    let local = Address::Ip(([127, 0, 0, 1], 8125).into());
    assert!(matches!(to, Target::Datagrams { to, bytes: 0 } if to == local));
    let (prefix, _, to) = statsd(&of_statsd, "tcp_cluster_name: s, prefix: p").unwrap();
    assert!(prefix == "p" && matches!(to, Target::Cluster(_)));
    let more = format!("{ADDRESS}, max_bytes_per_datagram: 512");
    let (_, tags, to) = statsd(&format!("{SINKS}.DogStatsdSink"), &more).unwrap();
    assert!(tags == Tags::DogStatsd && matches!(to, Target::Datagrams { bytes: 512, .. }));
    let (_, tags, to) =
        statsd(&format!("{EXTENSIONS}.graphite_statsd.v3.GraphiteStatsdSink"), "address: {pipe: {path: /s}}")
            .unwrap();
    assert!(tags == Tags::Graphite && matches!(to, Target::Datagrams { to: Address::Unix(_), .. }));
    let place = "stats_sinks[0].typed_config";
    for (fields, reason) in [
        ("prefix: p", ": one of address, tcp_cluster_name is missing"),
        (
            "tcp_cluster_name: t",
            ".tcp_cluster_name: unknown cluster \"t\" in static_resources; did you mean \"s\"?",
        ),
        (
            "address: {socket_address: {address: a.test, port_value: 1}}",
            ".address.socket_address.address: \"a.test\" is no IP address",
        ),
    ] {
        assert_eq!(statsd(&of_statsd, fields).unwrap_err(), format!("{place}{reason}"));
    }
}

#[test]
fn collectors_and_services_are_called() {
    let grpc = "grpc_service: {envoy_grpc: {cluster_name: s}}";
    let otel = format!("'@type': {EXTENSIONS}.open_telemetry.v3.SinkConfig");
    for config in [
        format!(
            "{otel}, {grpc}, report_counters_as_deltas: true, prefix: p, max_data_points_per_request: 100"
        ),
        format!(
            "{otel}, http_service: {{http_uri: {{uri: 'http://s/v1/metrics', cluster: s, timeout: 1s}}}}"
        ),
        format!(
            "'@type': {SINKS}.MetricsServiceConfig, {grpc}, transport_api_version: V3, histogram_emit_mode: HISTOGRAM"
        ),
    ] {
        assert!(matches!(sink(&config), Ok(Sink::Called(_))), "{config}");
    }
    let place = "stats_sinks[0].typed_config";
    let refused = |config: &str| sink(config).map(drop).unwrap_err();
    assert_eq!(refused(&otel), format!("{place}: one of grpc_service, http_service is missing"));
    assert_eq!(
        refused(&format!("'@type': {SINKS}.MetricsServiceConfig")),
        format!("{place}.grpc_service: is missing")
    );
    for kind in [format!("'@type': {SINKS}.MetricsServiceConfig"), otel] {
        assert_eq!(
            refused(&format!("{kind}, grpc_service: {{envoy_grpc: {{cluster_name: t}}}}")),
            format!(
                "{place}.grpc_service.envoy_grpc.cluster_name: unknown cluster \"t\" in static_resources; did you mean \"s\"?"
            )
        );
    }
    let unknown = "stats sink \"x\" of type envoy.config.metrics.v3.HystrixSink is not supported";
    assert_eq!(refused(&format!("'@type': {SINKS}.HystrixSink")), format!("{place}: {unknown}"));
}

#[test]
fn they_are_told_now_and_then_or_when_somebody_asks() {
    let when = |text: &str| compiled(text).map(|sinks| sinks.when);
    assert_eq!(when("{}"), Ok(When::Every(Duration::from_secs(5))));
    assert_eq!(when("stats_flush_interval: 0.5s"), Ok(When::Every(Duration::from_millis(500))));
    assert_eq!(when("stats_flush_on_admin: true"), Ok(When::Asked));
    let both = "stats_flush_on_admin: must not be given together with stats_flush_interval";
    assert_eq!(when("{stats_flush_interval: 1s, stats_flush_on_admin: true}"), Err(both.to_owned()));
}
