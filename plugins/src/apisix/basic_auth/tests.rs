#![allow(clippy::unwrap_used)]
use super::user_and_password;
use crate::testing::{chain_of, context, known, message_of, pass, request_header, stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sixfold_core::plugin::BuildContext;

fn consumers() -> BuildContext {
    let said = |user: &str, password: &str| json!({"username": user, "password": password});
    known(
        context(),
        "basic-auth",
        &[
            ("jack", said("foo", "bar"), None),
            ("ann", said("ann", ""), Some("c")),
            ("nobody", json!(null), None),
        ],
    )
}

fn line(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// What a client is refused with, or whom it is taken for; and what is left of its field.
fn answer(config: &Value, authorization: Option<&str>) -> (Result<String, String>, Option<String>) {
    let headers: Vec<(&str, &str)> = authorization.iter().map(|value| ("authorization", *value)).collect();
    let mut s = stream("/", &headers);
    let refused = pass(&chain_of(&[("basic-auth", config)], &consumers()), &mut s);
    let name = request_header(&s, "x-consumer-username").map(str::to_owned);
    let answer = match refused {
        Some(reply) => {
            assert_eq!(reply.headers.get_str("www-authenticate"), Some("Basic realm=\"basic\""));
            Err(message_of(&reply))
        }
        None => Ok(name.unwrap()),
    };
    (answer, request_header(&s, "authorization").map(str::to_owned))
}

#[test]
fn users_show_their_passwords() {
    let of = |authorization: Option<&str>| answer(&json!({}), authorization).0;
    let error = |text: &str| Err(text.to_owned());
    assert_eq!(of(Some(&line("foo:bar"))), Ok("jack".to_owned()));
    assert_eq!(of(Some(&line("ann:"))), Ok("ann".to_owned()));
    assert_eq!(of(None), error("Missing authorization in request"));
    for malformed in ["", "Basic", "Basic ", "Basic !", "Digest Zm9vOmJhcg==", "Basic Zm9v"] {
        assert_eq!(of(Some(malformed)), error("Invalid authorization in request"), "{malformed}");
    }
    for wrong in ["foo:Bar", "foo:", "Foo:bar", "nobody:", "eve:bar", ":bar"] {
        assert_eq!(of(Some(&line(wrong))), error("Invalid user authorization"), "{wrong}");
    }
}

/// As APISIX reads it, whatever RFC 7617 says.
#[test]
fn a_field_is_read_as_apisix_does() {
    let pair = |user: &str, password: &str| Some((user.as_bytes().to_vec(), password.as_bytes().to_vec()));
    let of = |text: &str| user_and_password(text.as_bytes());
    assert_eq!(of("bASIC Zm9vOmJhcg"), pair("foo", "bar"));
    assert_eq!(of("x basic Zm9vOmJhcg=="), pair("foo", "bar"));
    assert_eq!(of(&line("f o o:b\ta r")), pair("foo", "bar"));
    assert_eq!(of(&line("foo:bar:baz")), pair("foo", "bar"));
    assert_eq!((of("basicZm9vOmJhcg=="), of("basi Zm9vOmJhcg==")), (None, None));
}

#[test]
fn the_field_can_be_hidden() {
    let good = line("foo:bar");
    assert_eq!(answer(&json!({}), Some(&good)), (Ok("jack".into()), Some(good.clone())));
    let hide = json!({"hide_credentials": true, "anonymous_consumer": "nobody"});
    assert_eq!(answer(&hide, Some(&good)), (Ok("jack".into()), None));
    assert_eq!(answer(&hide, Some(&line("foo:x"))), (Ok("nobody".into()), None));
}
