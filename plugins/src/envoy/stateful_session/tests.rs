#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, response_header, stream};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sixfold_core::cluster::{Address, Cluster, ClusterConfig, HostConfig};
use sixfold_core::metrics::Registry;

const COOKIE: &str = "{name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState, cookie: {name: sess, path: /p, ttl: 120s, attributes: [{name: SameSite, value: Lax}]}}}";
const HEADER: &str = "{name: h, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState, name: x-session}}";

fn built(config: &str, levels: &[&str], context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, StatefulSessionPerRoute>(&factory(), config, levels, context)
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// A request answered by this endpoint.
async fn answered(filter: &Alone, mut stream: Stream, by: &str) -> Stream {
    filter.access(&mut stream).await;
    let hosts = vec![HostConfig::new(Address::Ip(at(by)))];
    let cluster = Cluster::new(ClusterConfig::named("c"), hosts, None, &Registry::new()).unwrap();
    stream.upstream.member = cluster.hosts.load().iter().next().cloned();
    filter.header_filter(&mut stream).await;
    stream
}

#[tokio::test]
async fn a_cookie_keeps_a_session_at_its_endpoint() {
    let context = context();
    let filter = built(&format!("{{session_state: {COOKIE}, stat_prefix: s}}"), &[], &context).unwrap();
    let first = answered(&filter, stream("/p/x", &[]), "10.0.0.1:80").await;
    assert_eq!(first.upstream.wanted, None);
    let cookie = response_header(&first, "set-cookie").unwrap();
    let value = cookie.strip_prefix("sess=\"").and_then(|rest| rest.split('"').next()).unwrap();
    assert!(cookie.ends_with("; Max-Age=120; Path=/p; SameSite=Lax; HttpOnly"), "{cookie}");
    let header = format!("a=b; sess=\"{value}\"");
    let next = answered(&filter, stream("/p", &[("cookie", &header)]), "10.0.0.1:80").await;
    assert_eq!(
        next.upstream.wanted.as_deref(),
        Some(&WantedHost { address: Some(at("10.0.0.1:80")), strict: None })
    );
    assert_eq!(response_header(&next, "set-cookie"), None);
    // It has gone elsewhere.
    let moved = answered(&filter, stream("/p", &[("cookie", &header)]), "10.0.0.2:80").await;
    assert!(response_header(&moved, "set-cookie").is_some());
    let counted = ["no_session", "routed", "failed_open"];
    assert_eq!(counted.map(|name| context.metrics.sum("stateful_session.s.", name)), [1, 1, 1]);
}

#[tokio::test]
async fn cookies_of_others_and_of_the_past_are_none() {
    let filter = built(&format!("{{session_state: {COOKIE}}}"), &[], &context()).unwrap();
    let wanted = async |path: &str, content: &[u8]| {
        let cookie = format!("sess={}", STANDARD.encode(content));
        let mut stream = stream(path, &[("cookie", &cookie)]);
        filter.access(&mut stream).await;
        stream.upstream.wanted.map(|wanted| wanted.address)
    };
    assert_eq!(wanted("/p", b"127.0.0.1:21002").await, Some(Some(at("127.0.0.1:21002"))), "the older form");
    assert_eq!(wanted("/p", b"nowhere").await, Some(None));
    for (path, content, why) in [
        ("/px", &b"127.0.0.1:21002"[..], "another path"),
        ("/p", b"\x0a\x0b10.0.0.1:80\x10\x01", "over since 1970"),
    ] {
        assert_eq!(wanted(path, content).await, None, "{why}");
    }
}

#[tokio::test]
async fn a_header_does_too_and_strictly_where_that_is_asked() {
    let filter = built(
        &format!("{{session_state: {HEADER}, strict: true, status_on_strict_destination_not_found: 410}}"),
        &[],
        &context(),
    )
    .unwrap();
    let value = STANDARD.encode("10.0.0.1:80");
    let next = answered(&filter, stream("/", &[("x-session", &value)]), "10.0.0.1:80").await;
    assert_eq!(
        next.upstream.wanted.as_deref(),
        Some(&WantedHost { address: Some(at("10.0.0.1:80")), strict: Some(410) })
    );
    assert_eq!(response_header(&next, "x-session"), None);
    let first = answered(&filter, stream("/", &[]), "10.0.0.1:80").await;
    assert_eq!(response_header(&first, "x-session"), Some(&*value));
}

#[tokio::test]
async fn a_route_turns_it_off_or_has_another_state() {
    let own = format!("{{session_state: {COOKIE}}}");
    let off = built(&own, &["disabled: true"], &context()).unwrap();
    let other =
        built(&own, &[&format!("stateful_session: {{session_state: {HEADER}}}")], &context()).unwrap();
    assert_eq!(response_header(&answered(&off, stream("/p", &[]), "10.0.0.1:80").await, "set-cookie"), None);
    let stream = answered(&other, stream("/p", &[]), "10.0.0.1:80").await;
    assert_eq!(
        (response_header(&stream, "set-cookie"), response_header(&stream, "x-session").is_some()),
        (None, true)
    );
    let refused = |level: &str| built(&own, &[level], &context()).err().unwrap();
    assert_eq!(refused("{}"), "one of disabled and stateful_session is missing");
    assert!(refused("stateful_session: {session_state: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.stateful_session.envelope.v3.EnvelopeSessionState, header: {name: e}}}}").contains("session state \"x\" of type "));
}
