#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use crate::testing::{Alone, build, context, now, plugin, stream};
use serde_json::{Value, json};
use sixfold_core::plugin::BuildContext;

/// Status and Location; `None` where the request passes.
fn ask(
    plugin: &Alone,
    method: http::Method,
    target: &str,
    headers: &[(&str, &str)],
) -> Option<(u16, String)> {
    let mut s = stream(target, headers);
    s.request.method = method;
    let reply = now(plugin.rewrite(&mut s))?;
    Some((reply.status, reply.headers.get_str("location").unwrap_or_default().to_owned()))
}

fn get(config: Value, target: &str) -> Option<(u16, String)> {
    ask(&plugin("redirect", &config), http::Method::GET, target, &[("x-a", "1 2")])
}

fn to(location: &str) -> Option<(u16, String)> {
    Some((302, location.to_owned()))
}

#[test]
fn uris_are_templates() {
    for (uri, location) in [
        ("/new", "/new"),
        ("/test$uri/$arg_a", "/test/old/1"),
        ("$uri/test/add", "/old/test/add"),
        ("https://${host}:444${uri}x", "https://example.com:444/oldx"),
        ("/test$$uri", "/test$/old"),
        ("/test\\$uri", "/test\\$uri"),
        ("/test\\a\\\\$uri", "/testa\\$uri"),
        ("/$none/${none}/$", "///$"),
        ("/${uri/x", "/${uri/x"),
        ("/a?b=$http_x_a", "/a?b=1 2"),
    ] {
        assert_eq!(get(json!({ "uri": uri }), "/old?a=1"), to(location), "{uri}");
    }
    assert_eq!(get(json!({"uri": "/n", "ret_code": 307}), "/"), Some((307, "/n".to_owned())));
}

#[test]
fn uris_are_encoded_and_get_the_query() {
    let encoded = json!({"uri": "/a b?c d", "encode_uri": true});
    assert_eq!(get(encoded, "/"), to("/a%20b?c d"));
    let appended = |uri: &str| json!({"uri": uri, "append_query_string": true});
    assert_eq!(get(appended("/n"), "/old?a=1&b"), to("/n?a=1&b"));
    assert_eq!(get(appended("/n?c"), "/old?a=1"), to("/n?c&a=1"));
    assert_eq!([get(appended("/n"), "/old"), get(appended("/n"), "/old?")], [to("/n"), to("/n")]);
    // No client adds a header of its own.
    let split =
        ask(&plugin("redirect", &json!({"uri": "/$http_x"})), http::Method::GET, "/", &[("x", "a\r\nb: c")]);
    assert_eq!(split, to("/a%0D%0Ab: c"));
}

#[test]
fn paths_are_substituted_where_they_match() {
    let config = || json!({"regex_uri": ["^/test/(.*)/(.*)", "http://x.com/$2/$1"]});
    assert_eq!(get(config(), "/test/a/b?q=1"), to("http://x.com/b/a"));
    assert_eq!(get(config(), "/other"), None);
    let mut appended = config();
    appended["append_query_string"] = true.into();
    assert_eq!(get(appended, "/test/a/b?q=1"), to("http://x.com/b/a?q=1"));
}

#[test]
fn requests_without_tls_are_sent_to_it() {
    let with = |ports: &[u16], attributes: Value| BuildContext {
        tls_ports: ports.into(),
        attributes: std::sync::Arc::new(attributes),
        ..context()
    };
    let at = |context: &BuildContext, method: &str, headers: &[(&str, &str)]| {
        let plugin = build("redirect", &json!({"http_to_https": true, "ret_code": 307}), context).unwrap();
        ask(&plugin, method.parse().unwrap(), "/a?b", headers)
    };
    let moved = |code: u16, to: &str| Some((code, to.to_owned()));
    let alone = with(&[443], Value::Null);
    assert_eq!(at(&alone, "GET", &[]), moved(301, "https://example.com/a?b"));
    assert_eq!(at(&alone, "HEAD", &[]), moved(301, "https://example.com/a?b"));
    assert_eq!(at(&alone, "POST", &[]), moved(308, "https://example.com/a?b"));
    assert_eq!(at(&with(&[], Value::Null), "GET", &[]), moved(301, "https://example.com/a?b"));
    assert_eq!(at(&with(&[9443], Value::Null), "GET", &[]), moved(301, "https://example.com:9443/a?b"));
    let attribute = with(&[9443], json!({"https_port": 8443}));
    assert_eq!(at(&attribute, "GET", &[]), moved(301, "https://example.com:8443/a?b"));
    assert_eq!(
        at(&with(&[9443], json!({"https_port": 0})), "GET", &[]),
        moved(301, "https://example.com/a?b")
    );
    // Whoever is trusted says what the client came by.
    assert_eq!(at(&alone, "GET", &[("X-Forwarded-Proto", "https")]), None);
    assert_eq!(at(&alone, "GET", &[("X-Forwarded-Proto", "http")]), moved(301, "https://example.com/a?b"));
    // Several ports: one of them.
    let seen: std::collections::BTreeSet<_> =
        (0..100).filter_map(|_| at(&with(&[1, 2], Value::Null), "GET", &[])).collect();
    assert_eq!(seen.len(), 2);
    assert_eq!(get(json!({"http_to_https": false}), "/"), None);
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config| build("redirect", &config, &context()).err().unwrap();
    let both = error(json!({"http_to_https": true, "append_query_string": true}));
    assert_eq!(both, "only one of `http_to_https` and `append_query_string` can be configured.");
    let regex = error(json!({"regex_uri": ["(", "x"]}));
    assert!(regex.starts_with("regex_uri: invalid regex_uri ((, x), err:"), "{regex}");
}
