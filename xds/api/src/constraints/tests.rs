#![allow(clippy::unwrap_used)]

use prost::Name;
use sixfold_core::document::{Node, Options};

use super::*;
use crate::json::encode_node;
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;

fn found<M: Name>(yaml: &str) -> Vec<String> {
    let node = Node::parse(yaml, &Options::default()).unwrap();
    let bytes = encode_node(&M::full_name(), &node).unwrap();
    faults(&M::full_name(), &bytes).iter().map(ToString::to_string).collect()
}

#[test]
fn faults_are_listed_with_their_fields() {
    let table = r#"
virtual_hosts:
- name: ""
  domains: []
  routes:
  - match: {prefix: /, headers: [{present_match: true}]}
    route: {cluster: "", hash_policy: [{}]}
  - route: {cluster: a, weighted_clusters: ~, retry_policy: {retry_back_off: {base_interval: 0s}}}
    request_headers_to_add: [{header: {key: "a\nb"}}]
"#;
    assert_eq!(
        found::<RouteConfiguration>(table),
        [
            "virtual_hosts[0].name: must not be empty",
            "virtual_hosts[0].routes[0].match.headers[0].name: must not be empty",
            "virtual_hosts[0].routes[0].route.cluster: must not be empty",
            "virtual_hosts[0].routes[0].route.hash_policy[0]: one of header, cookie, connection_properties, query_parameter, filter_state is missing",
            "virtual_hosts[0].routes[1].route.retry_policy.retry_back_off.base_interval: must be more than 0s, not 0s",
            "virtual_hosts[0].routes[1].request_headers_to_add[0].header.key: \"a\\nb\" holds a NUL or a line break",
            "virtual_hosts[0].routes[1].match: is missing",
            "virtual_hosts[0].domains: must not be empty",
        ]
    );
}

#[test]
fn wrappers_numbers_and_messages_in_any_are_looked_at() {
    assert_eq!(found::<Cluster>("{name: a, connect_timeout: 1s}"), [] as [&str; 0]);
    assert_eq!(
        found::<Cluster>(
            "{name: a, ring_hash_lb_config: {minimum_ring_size: 9000000}, transport_socket: {name: '', typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: \"s\", max_session_keys: 1, common_tls_context: {tls_certificate_sds_secret_configs: [{name: ''}]}}}}"
        ),
        [
            "ring_hash_lb_config.minimum_ring_size: must be at most 8388608, not 9000000",
            "transport_socket.name: must not be empty",
            "transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].name: must not be empty",
        ]
    );
    assert_eq!(
        found::<Cluster>("{name: a, connect_timeout: -1s, load_assignment: {endpoints: [{priority: 129}]}}"),
        [
            "connect_timeout: must be more than 0s, not -1s",
            "load_assignment.endpoints[0].priority: must be at most 128, not 129",
            "load_assignment.cluster_name: must not be empty",
        ]
    );
    assert_eq!(
        found::<Listener>("max_connections_to_accept_per_socket_event: 0"),
        ["max_connections_to_accept_per_socket_event: must be more than 0, not 0"]
    );
}

#[test]
fn maps_are_looked_at_by_their_keys() {
    assert_eq!(
        found::<Bootstrap>("{layered_runtime: {layers: [{name: '', static_layer: {a: 1}}]}}"),
        ["layered_runtime.layers[0].name: must not be empty"]
    );
    assert_eq!(
        found::<RouteConfiguration>(
            "{virtual_hosts: [{name: v, domains: ['*'], typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, max_active_faults: 1, headers: [{name: ''}]}}}]}"
        ),
        ["virtual_hosts[0].typed_per_filter_config.f.headers[0].name: must not be empty"]
    );
}

#[test]
fn numbers_of_enums_that_are_not_defined_are_faults() {
    // response_code = 9, which the JSON mapping would not write.
    let found: Vec<String> = faults("envoy.config.route.v3.RedirectAction", &[0x18, 0x09])
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "response_code: 9 is no value of envoy.config.route.v3.RedirectAction.RedirectResponseCode; expected one of MOVED_PERMANENTLY, FOUND, SEE_OTHER, TEMPORARY_REDIRECT, PERMANENT_REDIRECT"
        ]
    );
}

#[test]
fn garbage_has_no_faults_and_many_are_cut() {
    for length in 0..40u8 {
        let bytes: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37) ^ length).collect();
        faults("envoy.config.listener.v3.Listener", &bytes);
    }
    assert!(faults("no.such.Type", b"\x0a").is_empty());
    let many = vec![r#"{"name": "", "domains": ["*"]}"#; 1000].join(", ");
    assert_eq!(found::<RouteConfiguration>(&format!("{{virtual_hosts: [{many}]}}")).len(), MAX_FAULTS);
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        // Cluster.load_assignment's own tag is of no matter: any message that may nest would do.
        deep.splice(0..0, [0x0a, 0x02]);
    }
    faults("envoy.config.rbac.v3.Permission", &deep);
}

/// What the definitions of all types ask can be decoded, and known kinds of rules are in them.
#[test]
fn every_rule_of_the_table_is_read() {
    let (mut rules, mut required) = (0, 0);
    for index in 0..TypeSchema::count() {
        let schema = TypeSchema::at(index);
        for field in schema.fields() {
            if !field.rules.is_empty() {
                rules += 1;
                FieldRules::decode(field.rules).unwrap();
            }
            required += usize::from(field.oneof_required);
        }
    }
    assert!(rules > 1000 && required > 200, "{rules} rules, {required} members of required oneofs");
}
