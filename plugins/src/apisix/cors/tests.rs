#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use crate::testing::{build, context, now, plugin, response_header, stream};
use serde_json::{Value, json};
use sixfold_core::stream::Stream;

/// The response to a GET with these headers, from an upstream that has said `Vary: Via`.
fn run(config: Value, headers: &[(&str, &str)]) -> Stream {
    let plugin = plugin("cors", &config);
    let mut s = stream("/", headers);
    assert!(now(plugin.rewrite(&mut s)).is_none());
    s.request.headers.set("origin", b"http://changed");
    s.response.headers.push(b"Vary", b"Via");
    s.response.headers.push(b"Access-Control-Allow-Origin", b"http://upstream");
    now(plugin.header_filter(&mut s));
    s
}

/// The origin that is allowed, and what the response depends on.
fn allowed(config: Value, origin: &str) -> (String, Vec<String>) {
    let headers = [("Origin", origin)];
    let s = run(config, if origin.is_empty() { &[] } else { &headers });
    let vary = s.response.headers.get_all("vary").map(|v| String::from_utf8(v.to_vec()).unwrap()).collect();
    (response_header(&s, "access-control-allow-origin").unwrap_or_default().to_owned(), vary)
}

const UPSTREAMS: &str = "http://upstream";

#[test]
fn by_default_everybody_may_read() {
    let s = run(json!({}), &[]);
    let names = ["origin", "methods", "headers", "credentials"].map(|n| format!("access-control-allow-{n}"));
    let values = names.each_ref().map(|name| response_header(&s, name));
    assert_eq!(values, [Some("*"), Some("*"), Some("*"), None]);
    assert_eq!(response_header(&s, "access-control-max-age"), Some("5"));
    assert_eq!(response_header(&s, "access-control-expose-headers"), None);
    assert_eq!(allowed(json!({}), "http://a"), ("*".to_owned(), vec!["Via".to_owned()]));
    // They are spelled as APISIX spells them.
    let spelled = s.response.headers.wire();
    assert!(memchr::memmem::find(spelled, b"Access-Control-Allow-Methods: *").is_some());
}

#[test]
fn origins_are_listed_or_one_or_all() {
    let of = |origins: &str, origin: &str| allowed(json!({ "allow_origins": origins }), origin).0;
    let list = "http://sub.domain.com,http://sub2.domain.com";
    assert_eq!(of(list, "http://sub2.domain.com"), "http://sub2.domain.com");
    assert_eq!(of(list, "http://sub3.domain.com"), UPSTREAMS);
    assert_eq!(of(list, ""), UPSTREAMS);
    assert_eq!([of("http://a", "http://a"), of("http://a", "http://b")], ["http://a", UPSTREAMS]);
    assert_eq!(of("http://a", ""), UPSTREAMS);
    assert_eq!([of("**", "http://b"), of("**", "")], ["http://b", "*"]);
    assert_eq!([of("null", "null"), of("null", "http://b")], ["null", UPSTREAMS]);
    let (_, vary) = allowed(json!({ "allow_origins": list }), "http://sub3.domain.com");
    assert_eq!(vary, ["Via", "Origin"]);
}

#[test]
fn origins_may_match_patterns() {
    let config =
        || json!({"allow_origins": "http://a", "allow_origins_by_regex": [".*\\.test.com$", "^https:"]});
    assert_eq!(allowed(config(), "http://a.test.com").0, "http://a.test.com");
    assert_eq!(allowed(config(), "https://b").0, "https://b");
    // What is listed beside them does not count.
    assert_eq!([allowed(config(), "http://a").0, allowed(config(), "").0], [UPSTREAMS, UPSTREAMS]);
    // Whether the answer depends on the origin is said by the list alone, as in APISIX.
    let alone = json!({"allow_origins_by_regex": ["test"]});
    assert_eq!(allowed(alone, "http://test"), ("http://test".to_owned(), vec!["Via".to_owned()]));
}

#[test]
fn metadata_that_is_not_there_allows_nothing() {
    let config = json!({"allow_origins_by_metadata": ["key"]});
    assert_eq!(allowed(config, "http://a").0, UPSTREAMS);
    let listed = json!({"allow_origins_by_metadata": ["key"], "allow_origins": "http://a"});
    assert_eq!(allowed(listed, "http://a").0, "http://a");
}

#[test]
fn metadata_allows_origins_under_the_keys_that_a_route_names() {
    let context = context();
    let registry = crate::registry();
    let (_, factory) = registry.apisix("cors").unwrap();
    let told = json!({"allow_origins": {"one": "http://a", "some": "http://b,http://c", "all": "*"}});
    context.metadata.change("cors", factory.read_metadata(&told).unwrap()).put_in_force();
    let of = |keys: &[&str], origins: &str, origin: &str| {
        let config = json!({"allow_origins_by_metadata": keys, "allow_origins": origins});
        let plugin = build("cors", &config, &context).unwrap();
        let mut s = stream("/", &[("Origin", origin)]);
        now(plugin.rewrite(&mut s));
        now(plugin.header_filter(&mut s));
        response_header(&s, "access-control-allow-origin").map(str::to_owned)
    };
    let allowed = |origin: &str| Some(origin.to_owned());
    assert_eq!(of(&["one"], "*", "http://a"), allowed("http://a"));
    assert_eq!(of(&["none", "some"], "*", "http://c"), allowed("http://c"));
    assert_eq!(of(&["one"], "*", "http://b"), None);
    assert_eq!(of(&["all"], "*", "http://d"), allowed("http://d"));
    // Those of the route count beside them.
    assert_eq!(of(&["one"], "http://d", "http://d"), allowed("http://d"));
}

#[test]
fn what_else_is_allowed_is_configured() {
    let config = json!({
        "allow_origins": "**", "allow_methods": "**", "allow_headers": "**", "expose_headers": "ex-a,ex-b",
        "max_age": 50, "allow_credential": true,
    });
    let asked = [("Origin", "http://a"), ("Access-Control-Request-Headers", "req-a,req-b")];
    let s = run(config.clone(), &asked);
    let get = |name: &str| response_header(&s, &format!("access-control-{name}")).map(str::to_owned);
    assert_eq!(get("allow-methods").as_deref(), Some(super::METHODS));
    assert_eq!(get("allow-headers").as_deref(), Some("req-a,req-b"));
    assert_eq!(get("expose-headers").as_deref(), Some("ex-a,ex-b"));
    assert_eq!((get("max-age").as_deref(), get("allow-credentials").as_deref()), (Some("50"), Some("true")));
    // Nothing was asked for.
    assert_eq!(response_header(&run(config, &[]), "access-control-allow-headers"), None);
}

#[test]
fn timing_is_for_those_who_are_allowed_it() {
    let timing = |config: Value, origin: &str| {
        response_header(&run(config, &[("Origin", origin)]), "timing-allow-origin").map(str::to_owned)
    };
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(timing(json!({}), "http://a"), None);
    assert_eq!(timing(json!({"timing_allow_origins": "*"}), "http://a"), text("*"));
    assert_eq!(timing(json!({"timing_allow_origins": "**"}), "http://a"), text("http://a"));
    let one = || json!({"timing_allow_origins": "http://a"});
    assert_eq!([timing(one(), "http://a"), timing(one(), "http://b")], [text("http://a"), None]);
    let pattern = || json!({"timing_allow_origins": "*", "timing_allow_origins_by_regex": ["^http://a"]});
    assert_eq!([timing(pattern(), "http://a.b"), timing(pattern(), "http://b")], [text("http://a.b"), None]);
}

#[test]
fn options_are_answered_before_anything_else() {
    let plugin = plugin("cors", &json!({"allow_origins": "http://a"}));
    let mut s = stream("/", &[("Origin", "http://a")]);
    s.request.method = http::Method::OPTIONS;
    let reply = now(plugin.rewrite(&mut s)).unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    now(plugin.header_filter(&mut s));
    assert_eq!(response_header(&s, "access-control-allow-origin"), Some("http://a"));
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config| build("cors", &config, &context()).err().unwrap();
    let open = json!({"allow_credential": true, "allow_origins": "http://a", "allow_methods": "GET", "allow_headers": "a"});
    assert!(build("cors", &open, &context()).is_ok());
    for field in ["allow_origins", "allow_methods", "allow_headers", "expose_headers", "timing_allow_origins"]
    {
        let mut config = open.clone();
        config[field] = "*".into();
        let said = "you can not set '*' for other option when 'allow_credential' is true";
        assert_eq!(error(config), said, "{field}");
    }
    assert!(error(json!({"allow_origins_by_regex": ["a", "("]})).starts_with("allow_origins_by_regex[1]: "));
    let timing = error(json!({"timing_allow_origins_by_regex": ["("]}));
    assert!(timing.starts_with("timing_allow_origins_by_regex[0]: "), "{timing}");
}
