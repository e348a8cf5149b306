//! Istio's own messages, which `envoy-types` does not have. Their Rust side is `src/istio_pb.rs`.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, MessageOptions,
    OneofDescriptorProto,
};

/// A message: its full name with a leading dot; its oneof, if all fields belong to one; and its fields. A type with `*` before it
/// is a list.
type Message = (&'static str, &'static str, &'static [(&'static str, i32, &'static str)]);

const MESSAGES: [Message; 14] = [
    (
        ".io.istio.http.peer_metadata.Config",
        "",
        &[
            ("downstream_discovery", 1, "*.io.istio.http.peer_metadata.Config.DiscoveryMethod"),
            ("upstream_discovery", 2, "*.io.istio.http.peer_metadata.Config.DiscoveryMethod"),
            ("downstream_propagation", 3, "*.io.istio.http.peer_metadata.Config.PropagationMethod"),
            ("upstream_propagation", 4, "*.io.istio.http.peer_metadata.Config.PropagationMethod"),
            ("shared_with_upstream", 5, "bool"),
            ("additional_labels", 6, "*string"),
        ],
    ),
    (".io.istio.http.peer_metadata.Config.Baggage", "", &[]),
    (".io.istio.http.peer_metadata.Config.WorkloadDiscovery", "", &[]),
    (".io.istio.http.peer_metadata.Config.IstioHeaders", "", &[("skip_external_clusters", 1, "bool")]),
    (
        ".io.istio.http.peer_metadata.Config.DiscoveryMethod",
        "method_specifier",
        &[
            ("baggage", 1, ".io.istio.http.peer_metadata.Config.Baggage"),
            ("workload_discovery", 2, ".io.istio.http.peer_metadata.Config.WorkloadDiscovery"),
            ("istio_headers", 3, ".io.istio.http.peer_metadata.Config.IstioHeaders"),
        ],
    ),
    (
        ".io.istio.http.peer_metadata.Config.PropagationMethod",
        "method_specifier",
        &[("istio_headers", 1, ".io.istio.http.peer_metadata.Config.IstioHeaders")],
    ),
    (
        ".stats.PluginConfig",
        "",
        &[
            ("disable_host_header_fallback", 6, "bool"),
            ("tcp_reporting_duration", 7, ".google.protobuf.Duration"),
            ("metrics", 8, "*.stats.MetricConfig"),
            ("definitions", 9, "*.stats.MetricDefinition"),
            ("reporter", 10, ".stats.Reporter"),
            ("rotation_interval", 11, ".google.protobuf.Duration"),
            ("graceful_deletion_interval", 12, ".google.protobuf.Duration"),
        ],
    ),
    (
        ".stats.MetricConfig",
        "",
        &[
            ("dimensions", 1, "*.stats.MetricConfig.DimensionsEntry"),
            ("name", 2, "string"),
            ("tags_to_remove", 3, "*string"),
            ("match", 4, "string"),
            ("drop", 5, "bool"),
        ],
    ),
    (MAP_ENTRY, "", &[("key", 1, "string"), ("value", 2, "string")]),
    (
        ".stats.MetricDefinition",
        "",
        &[("name", 1, "string"), ("value", 2, "string"), ("type", 3, ".stats.MetricType")],
    ),
    (
        ".envoy.tcp.metadataexchange.config.MetadataExchange",
        "",
        &[("protocol", 1, "string"), ("enable_discovery", 2, "bool"), ("additional_labels", 3, "*string")],
    ),
    (
        ".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "",
        &[("alpn_override", 1, "*.istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride")],
    ),
    (
        ".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride",
        "",
        &[
            ("upstream_protocol", 1, ".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.Protocol"),
            ("alpn_override", 2, "*string"),
        ],
    ),
    (
        ".xds.type.v3.TypedStruct",
        "",
        // With the same fields as `udpa.type.v1.TypedStruct`; `envoy-types` leaves both out.
        &[("type_url", 1, "string"), ("value", 2, ".google.protobuf.Struct")],
    ),
];

/// The one message that is an entry of a map.
const MAP_ENTRY: &str = ".stats.MetricConfig.DimensionsEntry";

const ENUMS: [(&str, &[&str]); 3] = [
    (".stats.Reporter", &["UNSPECIFIED", "SERVER_GATEWAY"]),
    (".stats.MetricType", &["COUNTER", "GAUGE", "HISTOGRAM"]),
    (".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.Protocol", &["HTTP10", "HTTP11", "HTTP2"]),
];

/// The messages by the scope that they are in.
pub(crate) fn messages() -> Vec<(&'static str, DescriptorProto)> {
    let message = |(full_name, oneof, fields): Message| {
        let (scope, name) = full_name.rsplit_once('.').unwrap_or_default();
        let field = |(name, number, kind): &(&str, i32, &str)| field(name, *number, kind, !oneof.is_empty());
        let options =
            (full_name == MAP_ENTRY).then(|| MessageOptions { map_entry: Some(true), ..Default::default() });
        let oneof = (!oneof.is_empty())
            .then(|| OneofDescriptorProto { name: Some(oneof.to_owned()), ..Default::default() });
        let message = DescriptorProto {
            name: Some(name.to_owned()),
            field: fields.iter().map(field).collect(),
            oneof_decl: oneof.into_iter().collect(),
            options,
            ..Default::default()
        };
        (scope, message)
    };
    MESSAGES.into_iter().map(message).collect()
}

/// The enums by their full names.
pub(crate) fn enums() -> Vec<(&'static str, EnumDescriptorProto)> {
    let of = |(full_name, names): (&'static str, &[&str])| {
        let value = |(number, name): (i32, &&str)| EnumValueDescriptorProto {
            name: Some((*name).to_owned()),
            number: Some(number),
            options: None,
        };
        let value = (0..).zip(names).map(value).collect();
        (full_name, EnumDescriptorProto { value, ..Default::default() })
    };
    ENUMS.into_iter().map(of).collect()
}

fn field(name: &str, number: i32, kind: &str, in_oneof: bool) -> FieldDescriptorProto {
    let (single, label) = match kind.strip_prefix('*') {
        Some(single) => (single, Label::Repeated),
        None => (kind, Label::Optional),
    };
    let of = match single {
        "bool" => Type::Bool,
        "string" => Type::String,
        _ if ENUMS.iter().any(|(known, _)| *known == single) => Type::Enum,
        _ => Type::Message,
    };
    let mut camel = String::new();
    for (at, word) in name.split('_').enumerate() {
        let (first, rest) = word.split_at(1);
        camel.push_str(&if at == 0 { first.to_owned() } else { first.to_uppercase() });
        camel.push_str(rest);
    }
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        json_name: Some(camel),
        number: Some(number),
        label: Some(label as i32),
        r#type: Some(of as i32),
        type_name: single.starts_with('.').then(|| single.to_owned()),
        oneof_index: in_oneof.then_some(0),
        ..Default::default()
    }
}
