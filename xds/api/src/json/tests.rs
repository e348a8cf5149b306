#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action, route_match};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::{Any, BytesValue, Timestamp, UInt32Value};
use sixfold_core::document::Options;

use super::*;
use crate::any::{struct_to_json, unpack};
use crate::load_bootstrap;

fn read<M: Message + Default + Name>(yaml: &str) -> Result<M, ConfigError> {
    message_from_node(&Node::parse(yaml, &Options { wide_numbers_as_text: true, ..Options::default() })?)
}

fn refused<M: Message + Default + Name>(yaml: &str) -> String {
    read::<M>(yaml).err().expect(yaml).to_string()
}

const BOOTSTRAP: &str = r#"
node: {id: one, cluster: c}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  listeners:
  - name: main
    address: {socketAddress: {address: 0.0.0.0, portValue: 8080}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: HTTP1
          stream_idle_timeout: 0.25s
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: up, timeout: 15s}
  clusters:
  - name: up
    type: 1
    lb_policy: RING_HASH
    connect_timeout: 1.5s
    per_connection_buffer_limit_bytes: 32768
"#;

#[test]
fn a_bootstrap_is_read() {
    let bootstrap = load_bootstrap(BOOTSTRAP, "envoy.yaml").unwrap();
    let resources = bootstrap.static_resources.unwrap();
    let cluster = &resources.clusters[0];
    assert_eq!((cluster.name.as_str(), cluster.lb_policy), ("up", 2));
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 500_000_000);
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 32768);
    let filter = &resources.listeners[0].filter_chains[0].filters[0];
    let Some(envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any)) =
        &filter.config_type
    else {
        panic!("typed config")
    };
    let manager: HttpConnectionManager = unpack(any).unwrap();
    assert_eq!(manager.codec_type, 1);
    assert_eq!(manager.stream_idle_timeout.unwrap().nanos, 250_000_000);
}

#[test]
fn json_and_yaml_agree() {
    let node = Node::parse(BOOTSTRAP, &Options::default()).unwrap();
    let json = node.to_json().to_string();
    assert_eq!(
        load_bootstrap(&json, "envoy.json").unwrap(),
        load_bootstrap(BOOTSTRAP, "envoy.yaml").unwrap()
    );
}

#[test]
fn errors_have_file_place_path_and_reason() {
    let cases = [
        (
            "            stat_prefix: ingress",
            "            stat_prefx: ingress",
            "envoy.yaml:14:11: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefx: unknown field of envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager; did you mean \"stat_prefix\"?",
        ),
        (
            "  - name: up\n",
            "  - name: off\n",
            "envoy.yaml:29:11: static_resources.clusters[0].name: must be a string, not the boolean false",
        ),
        (
            "codec_type: HTTP1",
            "codec_type: HTTP7",
            "envoy.yaml:15:23: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.codec_type: unknown value \"HTTP7\" of envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.CodecType; did you mean \"HTTP1\"?",
        ),
        (
            "connect_timeout: 1.5s",
            "connect_timeout: 1500ms",
            "envoy.yaml:32:22: static_resources.clusters[0].connect_timeout: \"1500ms\" is no duration, it must be seconds like \"15s\" or \"0.25s\"",
        ),
        (
            "http.router.v3.Router}",
            "http.router.v3.Ruter}",
            "envoy.yaml:19:37: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.@type: unknown type \"envoy.extensions.filters.http.router.v3.Ruter\"; did you mean \"envoy.extensions.filters.http.router.v3.Router\"?",
        ),
        (
            "{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}",
            "{start_child_span: true}",
            "envoy.yaml:19:27: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: \"@type\" is missing",
        ),
        (
            "per_connection_buffer_limit_bytes: 32768",
            "per_connection_buffer_limit_bytes: 4294967296",
            "envoy.yaml:33:40: static_resources.clusters[0].per_connection_buffer_limit_bytes: 4294967296 does not fit u32",
        ),
        (
            "match: {prefix: /}",
            "match: {prefix: /, path: /a}",
            "envoy.yaml:26:36: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.path: \"prefix\" is given too, and only one of them may be",
        ),
    ];
    for (from, to, expected) in cases {
        let text = BOOTSTRAP.replace(from.trim_start(), to.trim_start());
        assert_ne!(text, BOOTSTRAP, "{from}");
        assert_eq!(load_bootstrap(&text, "envoy.yaml").unwrap_err().to_string(), expected, "{to}");
    }
    assert_eq!(load_bootstrap("", "e.yaml").unwrap_err().to_string(), "e.yaml:1:1: the document is empty");
    assert_eq!(
        load_bootstrap("[]", "e.json").unwrap_err().to_string(),
        "e.json:1:1: must be an object, not an array"
    );
}

#[test]
fn routes_keep_their_order_and_oneofs() {
    let table: RouteConfiguration = read(
        "virtual_hosts:\n- name: v\n  domains: [a]\n  routes:\n  - {match: {path: /x}, redirect: {https_redirect: true}}\n  - {match: {safe_regex: {regex: /y}}, route: {weighted_clusters: {clusters: [{name: a, weight: 3}]}}}\n",
    )
    .unwrap();
    let routes = &table.virtual_hosts[0].routes;
    let path = |index: usize| routes[index].r#match.as_ref().unwrap().path_specifier.as_ref().unwrap();
    assert!(matches!(path(0), route_match::PathSpecifier::Path(path) if path == "/x"));
    assert!(matches!(path(1), route_match::PathSpecifier::SafeRegex(regex) if regex.regex == "/y"));
    assert!(matches!(routes[0].action, Some(route::Action::Redirect(_))));
    let Some(route::Action::Route(action)) = &routes[1].action else { panic!("route") };
    let Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else {
        panic!()
    };
    assert_eq!(weighted.clusters[0].weight.as_ref().unwrap().value, 3);
}

#[test]
fn maps_structs_and_repeated_scalars() {
    let metadata: Metadata =
        read("filter_metadata: {envoy.lb: {a: 1, b: [true, ~, {c: x}], d: 1.5}}").unwrap();
    let json = struct_to_json(metadata.filter_metadata["envoy.lb"].clone());
    assert_eq!(
        json,
        serde_json::json!({"a": 1, "b": [true, null, {"c": "x"}], "d": "1.5"}),
        "YAML floats are text"
    );
    let policy: envoy_types::pb::envoy::config::route::v3::RetryPolicy =
        read("retriable_status_codes: [502, 503, \"504\"]").unwrap();
    assert_eq!(policy.retriable_status_codes, [502, 503, 504]);
    assert_eq!(
        refused::<Metadata>("filter_metadata: {a: ~}"),
        "1:22: filter_metadata.a: must be a value, not null"
    );
}

#[test]
fn nulls_are_absent() {
    let cluster: Cluster = read("name: a\nconnect_timeout: ~\nlb_policy:\n").unwrap();
    assert_eq!(cluster, Cluster { name: "a".into(), ..Cluster::default() });
    let table: RouteConfiguration = read("internal_only_headers: [~, x]").unwrap();
    assert_eq!(table.internal_only_headers, ["", "x"], "in a list it is the type's default");
}

/// What protobuf's C++ parser takes in its lenient mode, which is Envoy's, and users write.
#[test]
fn the_liberties_of_envoys_parser_are_taken() {
    let cluster: Cluster = read(
        "type: strict_dns\nlb_policy: Ring_Hash\nignore_health_on_host_removal: \"TRUE\"\nconnect_timeout: {seconds: 60, nanos: 5}\nper_connection_buffer_limit_bytes: {value: 7}\nload_assignment: {endpoints: {lb_endpoints: [[{}], {}]}}\n",
    )
    .unwrap();
    assert_eq!(cluster.lb_policy, 2);
    assert_eq!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(1)));
    assert!(cluster.ignore_health_on_host_removal);
    assert_eq!(cluster.connect_timeout.map(|time| (time.seconds, time.nanos)), Some((60, 5)));
    assert_eq!(cluster.per_connection_buffer_limit_bytes, Some(UInt32Value { value: 7 }));
    assert_eq!(cluster.load_assignment.unwrap().endpoints[0].lb_endpoints.len(), 2, "lists in a list");
    let table: RouteConfiguration = read("virtual_hosts: {domains: \"*\", name: v}").unwrap();
    assert_eq!(table.virtual_hosts[0].domains, ["*"]);
    // A duration is no number, and names of enums are not looked for with dashes.
    assert!(refused::<Cluster>("connect_timeout: 5").contains("must be a duration"));
    assert!(refused::<Cluster>("type: strict-dns").contains("did you mean \"STRICT_DNS\"?"));
    let twice = BOOTSTRAP.replace("type: 1\n", "type: 1\n    type: 2\n");
    let cluster = load_bootstrap(&twice, "e.yaml").unwrap().static_resources.unwrap().clusters.remove(0);
    assert_eq!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(2)), "the last one counts");
}

#[test]
fn well_known_types_in_any() {
    let any: Any = read("{\"@type\": type.googleapis.com/google.protobuf.UInt32Value, value: 7}").unwrap();
    assert_eq!(unpack::<UInt32Value>(&any).unwrap().value, 7);
    assert_eq!(
        refused::<Any>("{\"@type\": type.googleapis.com/google.protobuf.Duration, valu: 7s}"),
        "1:57: valu: unknown field; the content of google.protobuf.Duration stands in \"value\""
    );
    assert_eq!(
        refused::<Any>("{\"@type\": google.protobuf.Duration}"),
        "1:11: @type: \"google.protobuf.Duration\" is no type URL, it must hold a \"/\""
    );
    assert_eq!(read::<Any>("{}").unwrap(), Any::default());
}

#[test]
fn times_and_bytes() {
    let seconds = |text: &str| read::<Timestamp>(text).unwrap().seconds;
    assert_eq!(seconds("\"1970-01-01T00:00:00Z\""), 0);
    assert_eq!(seconds("\"2026-11-21T12:34:56+02:00\""), 1_795_257_296);
    assert_eq!(seconds("\"0001-01-01T00:00:00Z\""), -62_135_596_800);
    assert_eq!(read::<Timestamp>("\"2000-02-29T00:00:00.5Z\"").unwrap().nanos, 500_000_000);
    for bad in ["\"2026-13-01T00:00:00Z\"", "\"2026-01-01\"", "\"2026-01-01T00:00:00\"", "7"] {
        assert!(read::<Timestamp>(bad).is_err(), "{bad}");
    }
    for text in ["\"-_8=\"", "\"+/8=\"", "\"+/8\""] {
        assert_eq!(read::<BytesValue>(text).unwrap().value, [0xfb, 0xff], "{text}");
    }
    assert!(refused::<BytesValue>("\"a*\"").contains("is not base64"));
}

#[test]
fn durations_are_strict() {
    use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
    let parsed = |text: &str| read::<ProtoDuration>(text).map(|d| (d.seconds, d.nanos));
    assert_eq!(parsed("\"-1.5s\"").unwrap(), (-1, -500_000_000));
    assert_eq!(parsed("0.000000001s").unwrap(), (0, 1));
    assert_eq!(parsed("315576000000s").unwrap(), (315_576_000_000, 0));
    for bad in ["1", "s", "1.s", ".5s", "1.0000000001s", "+1s", "1m", "1 s", "315576000001s", "--1s"] {
        assert!(parsed(&format!("\"{bad}\"")).is_err(), "{bad}");
    }
}

fn big_bootstrap(routes: usize) -> String {
    let (head, tail) = BOOTSTRAP.split_once("              - match: {prefix: /}\n").unwrap();
    let routes: String = (0..routes)
        .map(|i| {
            format!(
                "              - match:\n                  prefix: \"/service/{i}/\"\n                  headers:\n                  - name: x-tenant\n                    string_match: {{exact: tenant-{i}}}\n                route:\n                  cluster: up\n                  timeout: 15s\n                  retry_policy: {{retry_on: 5xx, num_retries: 2}}\n                request_headers_to_add:\n                - header: {{key: x-route, value: \"{i}\"}}\n"
            )
        })
        .collect();
    format!("{head}{routes}              - match: {{prefix: /}}\n{tail}")
}

/// The time for which this thread has had a processor: what others do on the machine does not count.
fn processor_time() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

/// A generous bound for unoptimised builds; it is about a tenth of that in release. It was one of the time on the wall,
/// which a busy machine took longer for.
#[test]
fn five_thousand_routes_are_read_quickly() {
    let text = big_bootstrap(5000);
    let start = processor_time();
    let bootstrap: Bootstrap = load_bootstrap(&text, "envoy.yaml").unwrap();
    let taken = processor_time() - start;
    println!("{} bytes of YAML in {taken:?}, {} bytes encoded", text.len(), bootstrap.encoded_len());
    assert!(!taken.is_zero() && taken < Duration::from_secs(5), "{taken:?}");
}

/// They were refused, and Envoy takes them.
#[test]
fn odd_forms_that_envoy_takes() {
    let text = BOOTSTRAP.replace("portValue: 8080", "portValue: 8080, port_value: \"0x1F90\"");
    let socket = |text: &str| {
        let listener = &load_bootstrap(text, "e.yaml").unwrap().static_resources.unwrap().listeners[0];
        format!("{:?}", listener.address)
    };
    assert_ne!(text, BOOTSTRAP);
    assert_eq!(socket(&text), socket(BOOTSTRAP));
    let more = format!("{BOOTSTRAP}\n---\nnot: [read\n");
    assert_eq!(socket(&more), socket(BOOTSTRAP));
    let bootstrap =
        load_bootstrap("{\"node\": {\"id\": \"a\", \"client_features\": [\"x\",],},}", "e.json").unwrap();
    assert_eq!(bootstrap.node.unwrap().client_features, ["x"]);
    let lb = |text: &str| {
        load_bootstrap(&format!("static_resources: {{clusters: [{{name: a, lb_policy: {text}}}]}}"), "e.yaml")
    };
    assert_eq!(lb("\"5\"").unwrap().static_resources.unwrap().clusters[0].lb_policy, 5);
    assert!(lb("\"99\"").is_err());
}
