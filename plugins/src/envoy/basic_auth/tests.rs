#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{self, Alone, message, now, request_header, stream};
use prost::Message;
use serde_json::json;

const USERS: &str =
    "# users\n\njack:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\nann:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA=\n";

fn filter_in(members: Value, overrides: &[Vec<u8>], context: &BuildContext) -> Result<Alone, String> {
    let mut config = json!({"users": {"inline_string": USERS}});
    config.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    testing::filter_in(&factory(), &message::<Config>(config).encode_to_vec(), overrides, context)
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD_NO_PAD.encode(credentials))
}

#[test]
fn users_pass_with_their_passwords() {
    let context = BuildContext { filter: "mine".into(), ..testing::context() };
    let filter = filter_in(json!({"forward_username_header": "X-User"}), &[], &context).unwrap();
    for (credentials, refused) in [
        (Some(basic("jack:test")), None),
        (Some(format!("{}==", basic("ann:pass"))), Some(WRONG)),
        (Some(basic("ann:test2")), Some(WRONG)),
        (Some(basic("eve:test")), Some(WRONG)),
        (Some(basic(":")), Some(WRONG)),
        (Some(basic("jack")), Some(FORMAT)),
        (Some("Basic ".to_owned()), Some(FORMAT)),
        (Some("Basic %".to_owned()), Some(FORMAT)),
        (Some(basic("jack:test").replace("Basic", "basic")), Some(SCHEME)),
        (Some("Bearer x".to_owned()), Some(SCHEME)),
        (None, Some(MISSING)),
    ] {
        let headers: Vec<_> = credentials.iter().map(|value| ("authorization", value.as_str())).collect();
        let mut s = stream("/a?b", &headers);
        s.request.headers.append("x-user", b"eve");
        s.request.headers.append("x_user", b"eve");
        s.request.headers.append(Known::X_FORWARDED_PROTO, b"http");
        let reply = now(filter.access(&mut s));
        let user = refused.is_none().then_some("jack");
        assert_eq!(
            (request_header(&s, "x-user"), request_header(&s, "x_user")),
            (user, None),
            "{credentials:?}"
        );
        assert_eq!(reply.is_some(), refused.is_some(), "{credentials:?}");
        if let (Some(reply), Some(Refusal(body, details))) = (reply, refused) {
            assert_eq!((reply.status, &reply.body[..], &*reply.details), (401, body.as_bytes(), details));
            let challenge = reply.headers.get_str("www-authenticate");
            assert_eq!(challenge, Some("Basic realm=\"http://example.com/a?b\""));
        }
    }
    let count = |name: &str| context.metrics.sum("basic_auth.", name);
    assert_eq!((count("allowed"), count("denied")), (1, 10));
}

#[test]
fn routes_have_users_of_their_own() {
    let of_route = json!({"users": {"inline_string": "ann:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}});
    let of_route = message::<BasicAuthPerRoute>(of_route).encode_to_vec();
    let members = json!({"authentication_header": "x-auth"});
    let filter = filter_in(members, &[of_route], &testing::context()).unwrap();
    let refused = |user: &str| now(filter.access(&mut stream("/", &[("x-auth", &basic(user))]))).is_some();
    assert!(!refused("ann:test") && refused("jack:test"));
}

#[test]
fn others_may_authenticate_where_nobody_says_who_it_is() {
    let context = BuildContext { filter: "mine".into(), ..testing::context() };
    let members = json!({"allow_missing": true, "emit_dynamic_metadata": true});
    let filter = filter_in(members, &[], &context).unwrap();
    for (credentials, passes, metadata) in
        [("Bearer x", true, None), ("Basic x", false, None), (&*basic("jack:test"), true, Some("jack"))]
    {
        let mut s = stream("/", &[("authorization", credentials)]);
        assert_eq!(now(filter.access(&mut s)).is_none(), passes, "{credentials}");
        let told = s.metadata.first().map(|(of, key, value)| (&**of, &**key, value.as_str().unwrap()));
        assert_eq!(told, metadata.map(|user| ("mine", "username", user)));
    }
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let context = testing::context();
    let error = |members: Value| filter_in(members, &[], &context).err().unwrap();
    let users = |text: &str| error(json!({"users": {"inline_string": text}}));
    assert_eq!(users("#\njack"), "users: line 2: is not of the form user:hash");
    assert_eq!(users(""), "users: must not be empty");
    assert_eq!(error(json!({"users": null})), "users: is missing");
    assert_eq!(users(":x"), "users: line 1: user or hash is empty");
    assert_eq!(users("a:$apr1$x"), "users: line 1: \"a\": only hashes of the kind {SHA} are supported");
    assert!(users("a:{SHA}x").contains("the SHA hash has 1 characters"));
    let twice = "a:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\n";
    assert_eq!(users(&twice.repeat(2)), "users: line 2: \"a\" is there twice");
    assert!(error(json!({"allow_missing": true})).starts_with("allow_missing: needs emit_dynamic_metadata"));
    assert!(error(json!({"forward_username_header": "a b"})).starts_with("forward_username_header"));
}
