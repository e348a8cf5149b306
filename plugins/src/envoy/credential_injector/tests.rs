#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{self, Alone, context_with, finish, message, now, request_header, stream};
use bytes::Bytes;
use serde_json::{Value, json};
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::CalloutResponse;
use std::time::Duration;

const GENERIC: &str = "type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic";
const OAUTH2: &str = "type.googleapis.com/envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2";

fn config(members: Value, credential: Value) -> Vec<u8> {
    let mut config = json!({"credential": {"name": "c", "typed_config": credential}});
    config.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    message::<Config>(config).encode_to_vec()
}

fn filter_in(members: Value, credential: Value, context: &BuildContext) -> Result<Alone, String> {
    testing::filter_in(&factory(), &config(members, credential), &[], context)
}

#[test]
fn a_secret_is_injected_where_nothing_is() {
    let (context, secrets) = testing::with_secrets(testing::context(), &[("s", "abc\r\n")]);
    let credential = json!({"@type": GENERIC, "credential": {"name": "s"}, "header_value_prefix": "Bearer "});
    let filter = filter_in(json!({}), credential.clone(), &context).unwrap();
    let over = filter_in(json!({"overwrite": true}), credential, &context).unwrap();
    for (filter, own, expected) in
        [(&filter, None, "Bearer abc"), (&filter, Some("own"), "own"), (&over, Some("own"), "Bearer abc")]
    {
        let headers: Vec<_> = own.iter().map(|own| ("authorization", *own)).collect();
        let mut s = stream("/", &headers);
        assert!(now(filter.access(&mut s)).is_none());
        assert_eq!(request_header(&s, "authorization"), Some(expected));
    }
    // Another secret in its place is seen by the next request.
    secrets["s"].replace(b"def".as_slice().into());
    let mut s = stream("/", &[]);
    assert!(now(filter.access(&mut s)).is_none());
    assert_eq!(request_header(&s, "authorization"), Some("Bearer def"));
    let count = |name: &str| context.metrics.sum("credential_injector.", name);
    assert_eq!((count("injected"), count("already_exists"), count("failed")), (3, 1, 0));
}

#[test]
fn requests_are_refused_without_a_credential_unless_they_need_none() {
    for text in ["", "\n", "a\nb"] {
        let (context, _) = testing::with_secrets(testing::context(), &[("s", text)]);
        let credential = json!({"@type": GENERIC, "credential": {"name": "s"}, "header": "x-key"});
        let filter = filter_in(json!({}), credential.clone(), &context).unwrap();
        let reply = now(filter.access(&mut stream("/", &[]))).unwrap();
        assert_eq!((reply.status, &reply.body[..]), (401, &b"Failed to inject credential."[..]));
        let members = json!({"allow_request_without_credential": true});
        let filter = filter_in(members, credential, &context).unwrap();
        let mut s = stream("/", &[]);
        assert!(now(filter.access(&mut s)).is_none() && !s.request.headers.contains("x-key"));
    }
}

fn client(more: Value) -> Value {
    let mut value = json!({
        "@type": OAUTH2, "token_endpoint": {"uri": "https://as/token", "cluster": "c", "timeout": "1s"},
        "client_credentials": {"client_id": "me", "client_secret": {"name": "s"}},
        "scopes": ["a", "b c"], "endpoint_params": [{"name": "audience", "value": "x y"}],
        "token_fetch_retry_interval": "1s",
    });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

#[tokio::test]
async fn a_token_is_fetched_beside_requests() {
    let body = json!({"access_token": "tok", "expires_in": 3600}).to_string();
    let answer = CalloutResponse { status: 200, headers: Headers::new(), body: Bytes::from(body) };
    let (context, service) = context_with(Some(answer));
    let (mut context, _) = testing::with_secrets(context, &[("s", "shh")]);
    context.local_address = Some(std::net::IpAddr::from([192, 0, 2, 2]));
    let filter = filter_in(json!({}), client(json!({})), &context).unwrap();
    let mut s = stream("/", &[]);
    assert!(finish(filter.access(&mut s)).await.is_none());
    assert_eq!(request_header(&s, "authorization"), Some("Bearer tok"));
    let asked = service.asked.lock().pop().unwrap();
    for (name, value) in
        [("x-envoy-internal", "true"), ("x-forwarded-for", "192.0.2.2"), ("user-agent", "Go-browser")]
    {
        assert_eq!(asked.headers.get_str(name), Some(value), "{name}");
    }
    assert_eq!(asked.headers.get_str("authorization"), Some("Basic bWU6c2ho"));
    let form = "grant_type=client_credentials&scope=a%20b%20c&audience=x%20y";
    assert_eq!((asked.method.as_str(), &asked.body[..]), ("POST", form.as_bytes()));
    // Another instance of the same has the same token, and at once; one for something else has its own.
    let again = filter_in(json!({"overwrite": true}), client(json!({})), &context).unwrap();
    let mut s = stream("/", &[]);
    assert!(now(again.access(&mut s)).is_none());
    assert_eq!(request_header(&s, "authorization"), Some("Bearer tok"));
    assert!(service.asked.lock().is_empty());
    let other = filter_in(json!({}), client(json!({"scopes": ["d"]})), &context).unwrap();
    assert_eq!(finish(other.access(&mut stream("/", &[]))).await.unwrap().status, 401);
    let count = |name: &str| context.metrics.sum("credential_injector.oauth2.", name);
    assert_eq!((count("token_requested"), count("token_fetched")), (2, 1));
}

/// A configuration that was refused told the client's secret to the server that it named.
#[tokio::test]
async fn no_server_is_told_a_secret_before_the_filter_is_in_force() {
    let (context, service) = context_with(None);
    let (context, _) = testing::with_secrets(context, &[("s", "shh")]);
    let cluster = Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &context.metrics).unwrap();
    context.clusters.cell("c").swap(Some(cluster));
    let config = config(json!({}), client(json!({})));
    let built = || testing::built_in(&factory(), &config, &[], &context).unwrap();
    let held = built();
    drop(built());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(service.asked.lock().len(), 0);
    let filter = Alone::new(held);
    assert_eq!(finish(filter.access(&mut stream("/", &[]))).await.unwrap().status, 401);
    assert_eq!(service.asked.lock().len(), 1);
}

#[tokio::test]
async fn a_server_without_a_token_refuses() {
    let (context, _) = context_with(None);
    let (context, _) = testing::with_secrets(context, &[("s", "shh")]);
    let filter = filter_in(json!({}), client(json!({})), &context).unwrap();
    assert_eq!(finish(filter.access(&mut stream("/", &[]))).await.unwrap().status, 401);
}

#[test]
fn what_is_wrong_is_told_at_its_field() {
    let (context, _) = testing::with_secrets(testing::context(), &[("s", "x")]);
    let error = |credential| filter_in(json!({}), credential, &context).err().unwrap();
    let generic = |more: &str, value: Value| {
        let mut credential = json!({"@type": GENERIC, "credential": {"name": "s"}});
        credential[more] = value;
        error(credential)
    };
    assert!(generic("credential", json!({"name": "t"})).starts_with("credential.typed_config.credential: "));
    assert!(generic("header", json!("a b")).starts_with("credential.typed_config.header: "));
    assert!(
        generic("header_value_prefix", json!("\n"))
            .starts_with("credential.typed_config.header_value_prefix")
    );
    let unknown = error(json!({"@type": "type.googleapis.com/google.protobuf.Empty"}));
    assert!(unknown.starts_with("credential.typed_config: injected credential"), "{unknown}");
    assert!(error(client(json!({"token_endpoint": null}))).ends_with("token_endpoint: is missing"));
}
