#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{self, Alone, message, now, request_header, stream};
use prost::Message;
use serde_json::{Value, json};

fn filter_in(config: Value, overrides: &[Value], context: &BuildContext) -> Result<Alone, String> {
    let overrides: Vec<Vec<u8>> =
        overrides.iter().map(|of| message::<ApiKeyAuthPerRoute>(of.clone()).encode_to_vec()).collect();
    testing::filter_in(&factory(), &message::<Config>(config).encode_to_vec(), &overrides, context)
}

fn config() -> Value {
    json!({
        "credentials": [{"key": "k1", "client": "one"}, {"key": "k2", "client": "two"}],
        "key_sources": [{"header": "Authorization"}, {"query": "api key"}, {"cookie": "key"}],
        "forwarding": {"header": "X-Client", "hide_credentials": true},
    })
}

/// Status and details of the answer, if there is one, and what the upstream gets.
fn asked(filter: &Alone, target: &str, headers: &[(&str, &str)]) -> (Option<(u16, String)>, String) {
    let mut s = stream(target, headers);
    let reply = now(filter.access(&mut s)).map(|reply| (reply.status, reply.details.into_owned()));
    let of = |name| request_header(&s, name).unwrap_or("-");
    let target = String::from_utf8_lossy(s.request.target.full());
    (reply, format!("{target} {} {} {}", of("x-client"), of("authorization"), of("cookie")))
}

#[test]
fn keys_are_taken_from_their_places_and_hidden() {
    let context = testing::context();
    let filter = filter_in(config(), &[], &context).unwrap();
    let told = [("x-client", "eve"), ("x_client", "eve")];
    for (target, headers, upstream) in [
        ("/a", vec![("authorization", "Bearer k1")], "/a one - -"),
        ("/a", vec![("authorization", "k2"), told[0], told[1]], "/a two - -"),
        ("/a?x=1&api%20key=k1&y", vec![], "/a?x=1&y one - -"),
        ("/a", vec![("cookie", "a=b; key=\"k2\"; c=d")], "/a two - a=b; c=d"),
        ("/a?api%20key=k2", vec![("authorization", "k1"), ("cookie", "key=k2")], "/a one - -"),
    ] {
        assert_eq!(asked(&filter, target, &headers), (None, upstream.to_owned()), "{target} {headers:?}");
    }
    for headers in [vec![], vec![("authorization", "")], vec![("authorization", "Bearer ")]] {
        assert_eq!(asked(&filter, "/", &headers).0, Some((401, "missing_api_key".to_owned())));
    }
    for key in ["k", "k11", "K1", "Basic k1"] {
        let reply = asked(&filter, "/", &[("authorization", key)]).0;
        assert_eq!(reply, Some((401, "unknown_api_key".to_owned())), "{key}");
    }
    let count = |name: &str| context.metrics.sum("api_key_auth.", name);
    assert_eq!((count("allowed"), count("unauthorized"), count("forbidden")), (5, 7, 0));
}

#[test]
fn routes_override_part_by_part() {
    let context = testing::context();
    let of =
        |route: Value| filter_in(config(), &[json!({"allowed_clients": ["none"]}), route], &context).unwrap();
    let filter = of(json!({"allowed_clients": ["two"], "forwarding": {}}));
    assert_eq!(asked(&filter, "/", &[("authorization", "k2")]), (None, "/ - k2 -".to_owned()));
    let forbidden = asked(&filter, "/", &[("authorization", "k1")]).0;
    assert_eq!(forbidden, Some((403, "client_not_allowed".to_owned())));
    let filter =
        of(json!({"credentials": [{"key": "k3", "client": "three"}], "key_sources": [{"header": "x-key"}]}));
    assert_eq!(asked(&filter, "/", &[("x-key", "k3")]), (None, "/ - - -".to_owned()));
    assert_eq!(asked(&filter, "/", &[("x-key", "k3"), ("x-client", "eve")]).1, "/ - - -");
    assert!(asked(&filter, "/", &[("authorization", "k1")]).0.is_some());
}

#[test]
fn without_keys_or_places_nobody_passes() {
    let context = testing::context();
    let details = |config| asked(&filter_in(config, &[], &context).unwrap(), "/", &[]).0.unwrap().1;
    assert_eq!(details(json!({})), "missing_key_sources");
    assert_eq!(details(json!({"key_sources": [{"header": "a"}]})), "missing_credentials");
}

#[test]
fn what_is_wrong_is_told_at_its_field() {
    let error = |config| filter_in(config, &[], &testing::context()).err().unwrap();
    assert_eq!(
        error(json!({"key_sources": [{}]})),
        "key_sources[0]: one of header, query and cookie is missing"
    );
    let pair = |key: &str, client: &str| json!({"key": key, "client": client});
    let twice = json!({"credentials": [pair("a", "b"), pair("a", "c")]});
    assert_eq!(error(twice), "credentials[1].key: is the key of another client too");
    assert!(error(json!({"credentials": [pair("a", "b\nc")]})).starts_with("credentials[0].client"));
    assert!(error(json!({"forwarding": {"header": "a b"}})).starts_with("forwarding.header"));
}
