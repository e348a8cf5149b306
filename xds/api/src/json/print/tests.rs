#![allow(clippy::unwrap_used)]

use super::*;
use crate::json::encode_node;
use sixfold_core::document::Node;

fn printed(kind: &str, yaml: &str, mask: &str) -> String {
    let encoded = encode_node(kind, &Node::parse(yaml, &Default::default()).unwrap()).unwrap();
    let mut out = Vec::new();
    Pretty::new(&mut out).message(kind, &encoded, &Mask::parse(mask)).unwrap();
    String::from_utf8(out).unwrap()
}

fn compact(kind: &str, yaml: &str) -> serde_json::Value {
    serde_json::from_str(&printed(kind, yaml, "")).unwrap()
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

/// As Envoy 1.40 prints it.
#[test]
fn fields_are_in_the_order_of_their_numbers_and_defaults_are_left_out() {
    let yaml = "{connect_timeout: 1.5s, name: \"<e>\", ignore_health_on_host_removal: false, \
                eds_cluster_config: {service_name: s, eds_config: {resource_api_version: V3, ads: {}}}, type: EDS, \
                per_connection_buffer_limit_bytes: 0, lb_policy: ROUND_ROBIN}";
    let wanted = r#"{
 "name": "\u003ce\u003e",
 "type": "EDS",
 "eds_cluster_config": {
  "eds_config": {
   "ads": {},
   "resource_api_version": "V3"
  },
  "service_name": "s"
 },
 "connect_timeout": "1.500s",
 "per_connection_buffer_limit_bytes": 0
}
"#;
    assert_eq!(printed(CLUSTER, yaml, ""), wanted);
    let wanted =
        "{\n \"name\": \"\\u003ce\\u003e\",\n \"eds_cluster_config\": {\n  \"service_name\": \"s\"\n }\n}\n";
    assert_eq!(printed(CLUSTER, yaml, "name,eds_cluster_config.service_name"), wanted);
    assert_eq!(printed(CLUSTER, "{}", ""), "{}\n");
}

#[test]
fn every_kind_of_value_is_read_again_as_it_was() {
    let yaml = r#"
name: "a\"\\\n\u0001ä"
metadata: {filter_metadata: {f: {n: ~, b: true, d: 1.25, i: 3, s: x, l: [1, []], o: {}}}}
typed_extension_protocol_options:
  k: {"@type": type.googleapis.com/google.protobuf.UInt32Value, value: 7}
circuit_breakers: {thresholds: [{priority: HIGH, max_requests: 9}]}
common_lb_config: {healthy_panic_threshold: {value: 12.5}, zone_aware_lb_config: {min_cluster_size: "18446744073709551615"}}
load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: h, port_value: 1}}}}], proximity: 0}]}
"#;
    let document = compact(CLUSTER, yaml);
    let node = Node::parse(&document.to_string(), &Default::default()).unwrap();
    assert_eq!(
        encode_node(CLUSTER, &Node::parse(yaml, &Default::default()).unwrap()).unwrap().len(),
        encode_node(CLUSTER, &node).unwrap().len()
    );
    assert_eq!(document["name"], "a\"\\\n\u{1}ä");
    assert_eq!(
        document["metadata"]["filter_metadata"]["f"],
        serde_json::json!({"n": null, "b": true, "d": 1.25, "i": 3, "s": "x", "l": [1, []], "o": {}})
    );
    assert_eq!(document["typed_extension_protocol_options"]["k"]["value"], 7);
    assert_eq!(document["common_lb_config"]["healthy_panic_threshold"]["value"], 12.5);
    let zone = &document["common_lb_config"]["zone_aware_lb_config"];
    assert_eq!(zone["min_cluster_size"], "18446744073709551615");
}

#[test]
fn times_have_as_many_decimals_as_they_need() {
    let shown = |seconds: &str| compact("google.protobuf.Duration", seconds);
    for (given, wanted) in
        [("0s", "0s"), ("-0.5s", "-0.500s"), ("1.000001s", "1.000001s"), ("3.000000001s", "3.000000001s")]
    {
        assert_eq!(shown(given), wanted);
    }
    for time in [
        "1970-01-01T00:00:00Z",
        "2000-02-29T23:59:59.500Z",
        "1969-12-31T00:00:01Z",
        "2026-11-29T15:55:37.785Z",
    ] {
        assert_eq!(compact("google.protobuf.Timestamp", &format!("\"{time}\"")), time);
    }
}

/// Inline private keys were printed by `/config_dump`.
#[test]
fn secrets_are_hidden_wherever_they_are() {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let tls = format!(
        "{{\"@type\": {kind}.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: \
         {{inline_string: CERT}}, private_key: {{inline_string: KEY}}, password: {{filename: KEY}}}}]}}}}"
    );
    let typed = format!(
        "{{\"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: {kind}.TlsCertificate, \
         value: {{private_key: {{inline_string: KEY}}, ocsp_staple: {{inline_string: OCSP}}}}}}"
    );
    let within = format!(
        "{{\"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: {kind}.DownstreamTlsContext, \
         value: {{common_tls_context: {{custom_handshaker: {{name: n, typed_config: {{\"@type\": {kind}.TlsCertificate, \
         private_key: {{inline_string: KEY}}}}}}}}}}}}"
    );
    let socket = |config: &str| format!("{{transport_socket: {{name: t, typed_config: {config}}}}}");
    let yaml = format!(
        "node: {{id: node}}\nstatic_resources:\n  secrets:\n  - {{name: a, tls_certificate: {{private_key: {{inline_bytes: S0VZ}}}}}}\n  \
         - {{name: b, session_ticket_keys: {{keys: [{{inline_string: KEY}}]}}}}\n  - {{name: c, generic_secret: {{secret: \
         {{inline_string: KEY}}}}}}\n  listeners: [{{filter_chains: [{}, {}, {}]}}]\n",
        socket(&tls),
        socket(&typed),
        socket(&within)
    );
    let bootstrap = compact("envoy.config.bootstrap.v3.Bootstrap", &yaml);
    let text = bootstrap.to_string();
    assert!(!text.contains("KEY") && !text.contains("S0VZ"), "{text}");
    let resources = &bootstrap["static_resources"];
    let redacted_bytes = "W3JlZGFjdGVkXQ==";
    assert_eq!(resources["secrets"][0]["tls_certificate"]["private_key"]["inline_bytes"], redacted_bytes);
    let socket =
        |index: usize| &resources["listeners"][0]["filter_chains"][index]["transport_socket"]["typed_config"];
    let certificate = &socket(0)["common_tls_context"]["tls_certificates"][0];
    assert_eq!(certificate["certificate_chain"]["inline_string"], "CERT", "what is public stays");
    assert_eq!(certificate["password"]["filename"], REDACTED);
    assert_eq!(socket(1)["value"]["ocsp_staple"]["inline_string"], "OCSP");
    assert_eq!(socket(1)["value"]["private_key"]["inline_string"], REDACTED);
    let inner = &socket(2)["value"]["common_tls_context"]["custom_handshaker"]["typed_config"];
    assert_eq!(inner["private_key"]["inline_string"], REDACTED);
    assert!(inner["@type"].as_str().unwrap().ends_with("TlsCertificate"));
}

/// An `Any` whose type nobody knows could hold a key, and one that holds itself has no end.
#[test]
fn unknown_types_and_broken_or_deep_messages_are_cut_off() {
    let mut out = Vec::new();
    Pretty::new(&mut out).any("type.googleapis.com/who.Knows", b"\x0a\x03KEY", &Mask::default()).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "{\n \"@type\": \"type.googleapis.com/who.Knows\"\n}\n");
    let mut out = Vec::new();
    Pretty::new(&mut out).message(CLUSTER, b"\x0a\x01a\xff\xff", &Mask::default()).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "{\n \"name\": \"a\"\n}\n");
    // A list in a list in a list.
    let mut deep = Vec::new();
    for _ in 0..3000 {
        let mut outer = Vec::new();
        prost::encoding::bytes::encode(1, &deep, &mut outer);
        let mut value = Vec::new();
        prost::encoding::bytes::encode(6, &outer, &mut value);
        deep = value;
    }
    let mut out = Vec::new();
    Pretty::new(&mut out).message("google.protobuf.Value", &deep, &Mask::default()).unwrap();
    assert!(String::from_utf8(out).unwrap().contains("null"));
}
