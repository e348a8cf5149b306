#![allow(clippy::unwrap_used, deprecated)]
use super::*;
use crate::testing::{self, stream};
use prost::Message;
use sixfold_core::hash::request_hash;
use sixfold_core::route::{HashInput, HashPolicy};
use sixfold_xds_api::pb::envoy::config::core::v3::SubstitutionFormatString;
use sixfold_xds_api::pb::envoy::config::core::v3::substitution_format_string::Format as Text;

fn value(key: &str, factory: &str, text: &str) -> FilterStateValue {
    let format = Some(Text::TextFormat(text.to_owned()));
    FilterStateValue {
        key: Some(Key::ObjectKey(key.to_owned())),
        factory_key: factory.to_owned(),
        value: Some(Value::FormatString(SubstitutionFormatString { format, ..Default::default() })),
        ..FilterStateValue::default()
    }
}

/// What is left of the values for a request of `user`: keys, texts, and whether they are hashed.
async fn left(values: Vec<FilterStateValue>, user: &str) -> Vec<(String, String, bool)> {
    let key = |value: &FilterStateValue| match &value.key {
        Some(Key::ObjectKey(key)) => key.clone(),
        None => unreachable!(),
    };
    let mut keys: Vec<String> = values.iter().map(key).collect();
    keys.dedup();
    let config = Config { on_request_headers: values, ..Config::default() };
    let filter = testing::filter(&factory(), &config.encode_to_vec(), &[]).unwrap();
    let mut stream = stream("/", &[("x-user", user)]);
    filter.access(&mut stream).await;
    let text = |object: &FilterObject| {
        let hashed = HashInput::FilterState((&*object.key).into());
        let policy = [HashPolicy { input: hashed, terminal: false }];
        (object.key.to_string(), String::from_utf8_lossy(&object.value).into_owned(), policy)
    };
    let objects: Vec<_> = keys.iter().filter_map(|key| stream.filter_object(key)).map(text).collect();
    objects.into_iter().map(|(k, v, p)| (k, v, request_hash(&p, &mut stream).0.is_some())).collect()
}

#[tokio::test]
async fn texts_are_left_and_those_that_are_hashable_are_hashed() {
    let of = |key: &str, text: &str, hashed| (key.to_owned(), text.to_owned(), hashed);
    let both = vec![
        value("envoy.hashable_string", "", "%REQ(x-user)%"),
        value("mine", "envoy.string", "a-%REQ(x-user)%"),
        value("yours", "envoy.hashable_string", "b"),
        value("yours", "envoy.hashable_string", "c"),
    ];
    assert_eq!(
        left(both, "alice").await,
        [of("envoy.hashable_string", "alice", true), of("mine", "a-alice", false), of("yours", "c", true)]
    );
    let stays = FilterStateValue { read_only: true, ..value("k", "envoy.string", "first") };
    let empty = FilterStateValue { skip_if_empty: true, ..value("e", "envoy.string", "%REQ(x-user)%") };
    assert_eq!(
        left(vec![stays, value("k", "envoy.string", "second"), empty], "").await,
        [of("k", "first", false)]
    );
}

/// What the filter itself says was left to no request of a route that has settings.
#[tokio::test]
async fn every_level_leaves_its_own() {
    let config =
        |values, clear_route_cache| Config { on_request_headers: values, clear_route_cache }.encode_to_vec();
    let of = |key, text| value(key, "envoy.string", text);
    let own = config(vec![of("a", "own"), of("b", "own"), of("c", "own")], false);
    let levels = [config(vec![of("b", "host"), of("c", "host")], true), config(vec![of("c", "route")], true)];
    let filter = testing::filter(&factory(), &own, &levels).unwrap();
    let mut stream = stream("/", &[]);
    filter.access(&mut stream).await;
    let left = ["a", "b", "c"].map(|key| stream.filter_object(key).unwrap().value.to_vec());
    assert_eq!(left, [&b"own"[..], b"host", b"route"]);
}

#[test]
fn an_unknown_factory_is_refused() {
    let built = |value| {
        let config = Config { on_request_headers: vec![value], ..Config::default() };
        testing::filter(&factory(), &config.encode_to_vec(), &[]).map(|_| ()).unwrap_err()
    };
    assert_eq!(built(value("x", "", "a")), "on_request_headers[0].object_key: there is no factory \"x\"");
    assert_eq!(built(value("x", "y", "a")), "on_request_headers[0].factory_key: there is no factory \"y\"");
}
