#![allow(clippy::unwrap_used)]
use crate::testing::{chain_of, context, known, message_of, pass, request_header, stream};
use serde_json::{Value, json};
use sixfold_core::plugin::{BuildContext, Chain};
use std::sync::Arc;

fn consumers() -> BuildContext {
    known(
        context(),
        "key-auth",
        &[
            ("jack", json!({"key": "auth-one"}), None),
            ("ann", json!({"key": "a b+c"}), Some("second")),
            ("nobody", json!(null), None),
        ],
    )
}

fn chain(config: &Value, context: &BuildContext) -> Arc<Chain> {
    chain_of(&[("key-auth", config)], context)
}

/// What a client is refused with, or whom it is taken for.
fn answer(config: &Value, target: &str, headers: &[(&str, &str)]) -> Result<String, String> {
    let mut s = stream(target, headers);
    let chain = chain(config, &consumers());
    match pass(&chain, &mut s) {
        Some(reply) => Err(message_of(&reply)),
        None => Ok(request_header(&s, "x-consumer-username").unwrap().to_owned()),
    }
}

#[test]
fn keys_are_in_the_header_or_in_the_query() {
    let plain = || json!({});
    let jack = Ok("jack".to_owned());
    assert_eq!(answer(&plain(), "/", &[("apikey", "auth-one")]), jack);
    assert_eq!(answer(&plain(), "/?apikey=auth-one", &[]), jack);
    assert_eq!(answer(&plain(), "/?apikey=a+b%2Bc", &[]), Ok("ann".to_owned()));
    let named = json!({"header": "X-Key", "query": "k"});
    assert_eq!(answer(&named, "/?k=auth-one", &[]), jack);
    assert_eq!(answer(&named, "/", &[("x-key", "auth-one")]), jack);
    let missing = Err("Missing API key in request".to_owned());
    let invalid = Err("Invalid API key in request".to_owned());
    assert_eq!(answer(&plain(), "/", &[]), missing);
    // A header that is there is the one that counts.
    assert_eq!(answer(&plain(), "/?apikey=auth-one", &[("apikey", "x")]), invalid);
    for query in ["/?apikey", "/?apikey=", "/?apikey=auth-one&apikey=auth-one", "/?apikey=AUTH-ONE"] {
        assert_eq!(answer(&plain(), query, &[]), invalid, "{query}");
    }
}

#[test]
fn a_refusal_says_how_to_authenticate() {
    let chain = chain(&json!({"realm": "my place"}), &consumers());
    let reply = pass(&chain, &mut stream("/", &[])).unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (401, &b"{\"message\":\"Missing API key in request\"}\n"[..])
    );
    assert_eq!(reply.headers.get_str("www-authenticate"), Some("apikey realm=\"my place\""));
}

#[test]
fn upstreams_are_told_who_it_is_and_by_which_credential() {
    let chain = chain(&json!({}), &consumers());
    let said =
        [("X-Consumer-Username", "eve"), ("x_credential_identifier", "eve"), ("X-Consumer-Custom-ID", "eve")];
    let told = |key: &str| {
        let mut s = stream("/", &said);
        s.request.headers.push(b"apikey", key.as_bytes());
        assert!(pass(&chain, &mut s).is_none());
        let all = s.request.headers.iter().filter(|(name, _)| name.starts_with(b"X"));
        all.map(|(name, value)| [name, b"=", value].concat())
            .map(|all| String::from_utf8(all).unwrap())
            .collect()
    };
    let of_jack: Vec<String> = told("auth-one");
    assert_eq!(of_jack, ["X-Consumer-Username=jack", "X-Consumer-Custom-ID=id-of-jack"]);
    let of_ann: Vec<String> = told("a b+c");
    assert_eq!(
        of_ann,
        ["X-Consumer-Username=ann", "X-Credential-Identifier=second", "X-Consumer-Custom-ID=id-of-ann"]
    );
}

/// What is hidden is the credential that was used; both, where neither was good.
#[test]
fn credentials_can_be_hidden() {
    let left = |config: Value, target: &str, headers: &[(&str, &str)]| {
        let mut s = stream(target, headers);
        assert!(pass(&chain(&config, &consumers()), &mut s).is_none());
        let header = request_header(&s, "apikey").map(str::to_owned);
        (header, String::from_utf8(s.request.target.full().to_vec()).unwrap())
    };
    let (good, hide) = ([("apikey", "auth-one")], json!({"hide_credentials": true}));
    assert_eq!(left(json!({}), "/?a=1", &good), (Some("auth-one".into()), "/?a=1".into()));
    assert_eq!(left(hide.clone(), "/?apikey=x", &good), (None, "/?apikey=x".into()));
    assert_eq!(left(hide, "/?a=1&apikey=auth-one&b", &[]), (None, "/?a=1&b".into()));
    let anonymous = json!({"hide_credentials": true, "anonymous_consumer": "nobody"});
    assert_eq!(left(anonymous, "/?apikey=x&a", &[("apikey", "y")]), (None, "/?a".into()));
}

#[test]
fn who_has_not_authenticated_is_the_anonymous_consumer() {
    let anonymous = json!({"anonymous_consumer": "nobody"});
    for headers in [&[][..], &[("apikey", "bad")]] {
        assert_eq!(answer(&anonymous, "/", headers), Ok("nobody".to_owned()));
    }
    assert_eq!(answer(&anonymous, "/", &[("apikey", "auth-one")]), Ok("jack".to_owned()));
    let gone = json!({"anonymous_consumer": "gone"});
    assert_eq!(answer(&gone, "/", &[]), Err("Invalid user authorization".to_owned()));
}
