#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as ValueError};
use serde::forward_to_deserialize_any;
use serde_json::json;

use super::*;
use crate::schema;

/// Takes the names of a struct's fields from the call that serde's derive makes.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = ValueError;
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ValueError> {
        Err(serde::de::Error::custom("only structs"))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ValueError> {
        self.0.extend(fields);
        Err(serde::de::Error::custom("names taken"))
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn assert_agrees<T: DeserializeOwned>(kind: Kind, pointer: &str) {
    let mut names = Vec::new();
    assert!(T::deserialize(FieldNames(&mut names)).is_err());
    let schema = schema::resource(kind).source();
    let properties = schema.pointer(&format!("{pointer}/properties")).and_then(Value::as_object);
    let properties = properties.unwrap_or_else(|| panic!("{kind}: no properties at '{pointer}'"));
    let of_type: BTreeSet<&str> = names.into_iter().collect();
    let of_schema: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
    assert_eq!(of_type, of_schema, "{kind}{pointer}");
}

#[test]
fn types_and_schemas_have_the_same_fields() {
    assert_agrees::<Route>(Kind::Route, "");
    assert_agrees::<Timeout>(Kind::Route, "/properties/timeout");
    assert_agrees::<Service>(Kind::Service, "");
    assert_agrees::<Consumer>(Kind::Consumer, "");
    assert_agrees::<ConsumerGroup>(Kind::ConsumerGroup, "");
    assert_agrees::<Credential>(Kind::Credential, "");
    assert_agrees::<GlobalRule>(Kind::GlobalRule, "");
    assert_agrees::<PluginConfig>(Kind::PluginConfig, "");
    assert_agrees::<Proto>(Kind::Proto, "");
    assert_agrees::<Ssl>(Kind::Ssl, "");
    assert_agrees::<ClientVerification>(Kind::Ssl, "/properties/client");
    assert_agrees::<StreamRoute>(Kind::StreamRoute, "");
    assert_agrees::<StreamProtocol>(Kind::StreamRoute, "/properties/protocol");
    assert_agrees::<ProtocolLogger>(Kind::StreamRoute, "/properties/protocol/properties/logger/items");
    assert_agrees::<ProtocolMetric>(Kind::StreamRoute, "/properties/protocol/properties/metric");
    for (kind, at) in [(Kind::Upstream, ""), (Kind::Route, "/properties/upstream")] {
        let below = |path: &str| format!("{at}/properties/{path}");
        assert_agrees::<Upstream>(kind, at);
        assert_agrees::<Node>(kind, &below("nodes/anyOf/1/items"));
        assert_agrees::<UpstreamTls>(kind, &below("tls"));
        assert_agrees::<KeepalivePool>(kind, &below("keepalive_pool"));
        assert_agrees::<DiscoveryArgs>(kind, &below("discovery_args"));
        assert_agrees::<HealthCheck>(kind, &below("checks"));
        assert_agrees::<ActiveCheck>(kind, &below("checks/properties/active"));
        assert_agrees::<ActiveHealthy>(kind, &below("checks/properties/active/properties/healthy"));
        assert_agrees::<ActiveUnhealthy>(kind, &below("checks/properties/active/properties/unhealthy"));
        assert_agrees::<PassiveCheck>(kind, &below("checks/properties/passive"));
        assert_agrees::<PassiveHealthy>(kind, &below("checks/properties/passive/properties/healthy"));
        assert_agrees::<PassiveUnhealthy>(kind, &below("checks/properties/passive/properties/unhealthy"));
    }
}

/// Validates and reads, as configuration does.
fn read<T: DeserializeOwned>(kind: Kind, mut value: Value) -> Result<T, String> {
    schema::resource(kind).validate(&mut value).map_err(text)?;
    serde_json::from_value(value).map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[test]
fn a_small_route_has_every_default() {
    let route: Route = read(
        Kind::Route,
        json!({"id": 7, "uri": "/a/*", "upstream": {"nodes": {"127.0.0.1:1980": 1}, "checks": {"active": {}}}}),
    )
    .unwrap();
    assert_eq!(route.id, Some(Id::from("7")));
    assert!(route.status);
    assert_eq!(route.priority, 0);
    assert_eq!(route.paths().collect::<Vec<_>>(), ["/a/*"]);
    let upstream = route.upstream.unwrap();
    assert_eq!(upstream.balancer, "roundrobin");
    assert_eq!(
        (upstream.scheme, upstream.pass_host, upstream.hash_on),
        (Scheme::Http, PassHost::Pass, HashOn::Vars)
    );
    let active = upstream.checks.unwrap().active.unwrap();
    assert_eq!((active.probe, active.timeout, active.concurrency), (ProbeType::Http, 1.0, 10));
    assert!(active.healthy.is_none());
}

#[test]
fn whole_numbers_may_have_a_fraction_of_zero() {
    let upstream: Upstream =
        read(Kind::Upstream, json!({"nodes": [{"host": "a", "port": 80.0, "weight": 1.0}], "retries": 2.0}))
            .unwrap();
    assert_eq!(upstream.retries, Some(2));
    let node = Node { host: "a".to_owned(), port: Some(80), weight: 1, priority: 0, metadata: None };
    assert_eq!(upstream.nodes.unwrap().to_list().unwrap(), [node]);
}

#[test]
fn nodes_of_the_map_form() {
    let nodes = |value: Value| {
        let upstream: Upstream = read(Kind::Upstream, json!({ "nodes": value })).unwrap();
        upstream.nodes.unwrap().to_list().map(|nodes| {
            nodes.into_iter().map(|node| (node.host, node.port, node.weight)).collect::<Vec<_>>()
        })
    };
    assert_eq!(
        nodes(json!({"a.com": 1, "1.2.3.4:80": 2})).unwrap(),
        [("a.com".to_owned(), None, 1), ("1.2.3.4".to_owned(), Some(80), 2),]
    );
    assert_eq!(
        nodes(json!({"[::1]:80": 1, "[::2]": 3})).unwrap(),
        [("[::1]".to_owned(), Some(80), 1), ("[::2]".to_owned(), None, 3),]
    );
    assert_eq!(nodes(json!({"a.com:0": 1})).unwrap_err(), "invalid port 0");
    assert_eq!(nodes(json!({"a.com:65536": 1})).unwrap_err(), "invalid port 65536");
    // Without brackets no port is told from the address.
    assert_eq!(nodes(json!({"::1:80": 1})).unwrap(), [("::1:80".to_owned(), None, 1)]);
}

#[test]
fn sections_and_kinds_find_each_other() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Credential) {
        assert_eq!(Kind::from_section(kind.section()), Some(kind));
    }
    assert_eq!(Kind::from_section("credentials"), None);
}
