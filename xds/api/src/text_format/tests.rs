#![allow(clippy::unwrap_used)]
use super::*;
use crate::json::message_from_node;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::Message;
use sixfold_core::document::Options;

fn node(yaml: &str) -> Node {
    Node::parse(yaml, &Options::default()).unwrap()
}

const TEXT: &str = r#"
# A comment.
version_info: "a\t" 'b' ; nonce: "\303\251\x41\u00e9"
resources {
  [type.googleapis.com/envoy.config.cluster.v3.Cluster]: <
    name: "c", connect_timeout { seconds: 5 nanos: 500000000 }
    lb_policy: RING_HASH
    type: STATIC
    ring_hash_lb_config: { minimum_ring_size { value: 0x10 } }
    circuit_breakers { thresholds: [{ max_connections { value: 7 } }, { priority: HIGH }] }
    upstream_connection_options { set_local_interface_name_on_upstream_connections: true }
    metadata { filter_metadata { key: "k" value { fields { key: "n" value { number_value: -1.5f } } } } }
  >
}
"#;

#[test]
fn text_says_what_yaml_says() {
    let yaml = "
version_info: \"a\\tb\"
nonce: \"éAé\"
resources:
- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: c
  connect_timeout: 5.5s
  lb_policy: RING_HASH
  type: STATIC
  ring_hash_lb_config: {minimum_ring_size: 16}
  circuit_breakers: {thresholds: [{max_connections: 7}, {priority: HIGH}]}
  upstream_connection_options: {set_local_interface_name_on_upstream_connections: true}
  metadata: {filter_metadata: {k: {n: -1.5}}}
";
    let of = |bytes: &[u8]| {
        let response = DiscoveryResponse::decode(bytes).unwrap();
        let cluster = Cluster::decode(response.resources[0].value.as_slice()).unwrap();
        (DiscoveryResponse { resources: Vec::new(), ..response }, cluster)
    };
    let text = encode_text("envoy.service.discovery.v3.DiscoveryResponse", TEXT).unwrap();
    let yaml: DiscoveryResponse = message_from_node(&node(yaml)).unwrap();
    assert_eq!(of(&text), of(&yaml.encode_to_vec()));
}

#[test]
fn numbers_are_those_of_the_text_form() {
    let cases = [
        (Kind::Int32, "010", "8"),
        (Kind::Int32, "-010", "-8"),
        (Kind::Uint32, "0X1f", "31"),
        (Kind::Uint32, "0", "0"),
        (Kind::Double, "-inf", "-Infinity"),
        (Kind::Double, "1.5F", "1.5"),
        (Kind::Float, "1e3f", "1e3"),
        (Kind::Float, "0.5", "0.5"),
        (Kind::Bool, "1", "1"),
        (Kind::Bool, "t", "true"),
        (Kind::Int32, "-0", "0"),
        (Kind::Double, "-.5", "-.5"),
    ];
    for (kind, word, expected) in cases {
        assert_eq!(meant(kind, word).unwrap(), expected, "{word}");
    }
    let refused = [(Kind::Uint32, "-0"), (Kind::Uint64, "-0"), (Kind::Bool, "-0"), (Kind::Double, "+1.5")];
    for (kind, word) in refused.into_iter().chain([(Kind::Float, "--1"), (Kind::Int64, "--1")]) {
        assert!(meant(kind, word).is_err(), "{word}");
    }
}

/// Each as Envoy 1.40 reads it. A sign belonged to its number, and halves of pairs were no characters.
#[test]
fn signs_are_tokens_and_surrogates_come_in_pairs() {
    let read = |text: &str| {
        let bytes = encode_text("envoy.config.cluster.v3.Cluster", text).unwrap();
        Cluster::decode(bytes.as_slice()).unwrap()
    };
    let cluster = read("name: \"c\\ud83d\\ude00!\" connect_timeout { nanos: - # five\n 5 seconds: -1 }");
    assert_eq!(cluster.name, "c\u{1f600}!");
    assert_eq!(cluster.connect_timeout.map(|time| (time.seconds, time.nanos)), Some((-1, -5)));
    assert_eq!(read("name: \"\\501\"").name, "A", "more than a byte");
    assert_eq!(read("name: \"\\U0000d83d\\ude00\"").name, "\u{1f600}");
}

/// The place of each value was counted from the beginning of the text: 800 KB took a quarter of a minute.
#[test]
fn a_long_text_is_read_in_one_pass() {
    let text = "resource_names: \"n\"\n".repeat(200_000);
    let encoded = encode_text("envoy.service.discovery.v3.DiscoveryRequest", &text).unwrap();
    assert_eq!(encoded.len(), 200_000 * 3);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let cases = [
        ("name: c", "1:7: name: must stand within quotes"),
        ("name: \"c\"\nnam: \"d\"", "2:4: nam: unknown field"),
        ("lb_policy: NONE", "lb_policy: unknown value"),
        ("connect_timeout { seconds: x }", "1:28: connect_timeout.seconds: must be an integer"),
        ("connect_timeout { seconds: 1.0 }", "connect_timeout.seconds: must be an integer"),
        ("connect_timeout { seconds: 09 }", "connect_timeout.seconds: must be an integer"),
        ("per_connection_buffer_limit_bytes { value: -0 }", "value: must be an integer"),
        ("common_lb_config { healthy_panic_threshold { value: +1.5 } }", "value: must be a decimal number"),
        ("transport_socket_matches: [{ name: \"m\" },]", "a value is missing behind the comma"),
        ("name: - \"c\"", "name: a name or value is missing"),
        ("name: \"\\ud83d\"", "is no character"),
        ("name: \"\\ud83d\\u0041\"", "is no character"),
        (
            "typed_extension_protocol_options { key: \"a\" value { [google.protobuf.Duration] {} } }",
            "must be an URL: type.googleapis.com/google.protobuf.Duration",
        ),
        ("connect_timeout { seconds: +1 }", "connect_timeout.seconds: must be an integer"),
        ("connect_timeout { seconds: \"1\" }", "1:28: connect_timeout.seconds: must not stand within quotes"),
        ("lb_policy: \"RING_HASH\"", "1:12: lb_policy: must not stand within quotes"),
        ("track_timeout_budgets: yes", "track_timeout_budgets: must be true or false"),
        ("name: \"a\"\nname: \"b\"", "2:5: name: is given twice"),
        ("metadata {} metadata {}", "metadata: is given twice"),
        ("typed_extension_protocol_options { key: \"a\" key: \"b\" }", "key: is given twice"),
        ("name: [\"a\", \"b\"]", "1:7: name: must be one value, not a list"),
        ("metadata [{}]", "metadata: must be one value, not a list"),
        ("type: EDS cluster_type {}", "cluster_type: \"type\" is given too, and only one of them may be"),
        ("common_lb_config { healthy_panic_threshold { value: 010 } }", "value: must be a decimal number"),
        (
            "typed_extension_protocol_options { value { type_url: \"a\" [type.googleapis.com/google.protobuf.Duration] {} } }",
            "an Any holds one message",
        ),
        ("connect_timeout { seconds: 1", "\"}\" is missing"),
        ("name: \"c", "\" is missing"),
        ("[type.googleapis.com/envoy.config.route.v3.Route] {}", "is for a google.protobuf.Any"),
        (
            "metadata {} typed_extension_protocol_options { key: \"a\" value { [type.googleapis.com/google.protobuf.Duration] {} \
             [type.googleapis.com/google.protobuf.Duration] {} } }",
            "an Any holds one message",
        ),
        ("lb_policy RING_HASH", "lb_policy: \":\" is missing"),
        ("name: \"\\q\"", "\"\\q\" stands for nothing"),
    ];
    for (text, reason) in cases {
        let error = encode_text("envoy.config.cluster.v3.Cluster", text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let deep = "metadata { filter_metadata { key: \"x\" value { fields { key: \"y\" value { ".to_owned()
        + &"struct_value { fields { key: \"z\" value { ".repeat(60);
    let error = encode_text("envoy.config.cluster.v3.Cluster", &deep).unwrap_err().to_string();
    assert!(error.contains("nested more than 100 deep"), "{error}");
}
