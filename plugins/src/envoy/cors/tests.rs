#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, now, response_header, stream};
use prost::Message;
use sixfold_core::cluster::Clusters;
use sixfold_core::plugin::Chain;
use sixfold_core::route::{ClusterChoice, DirectResponse, Forward, Route};
use sixfold_core::router::PathMatch;
use sixfold_xds_api::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::StringMatcher as ProtoString;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::pb::google::protobuf::BoolValue;
use std::sync::Arc;

#[test]
fn the_type_is_the_messages() {
    assert_eq!(factory().config_type, "envoy.extensions.filters.http.cors.v3.Cors");
    assert_eq!(factory().override_type.unwrap(), "envoy.extensions.filters.http.cors.v3.CorsPolicy");
}

fn policy(origins: &[&str]) -> CorsPolicy {
    let exact = |text: &&str| ProtoString {
        match_pattern: Some(MatchPattern::Exact((*text).into())),
        ..Default::default()
    };
    CorsPolicy { allow_origin_string_match: origins.iter().map(exact).collect(), ..CorsPolicy::default() }
}

fn build(levels: &[CorsPolicy]) -> Result<Alone, String> {
    let levels: Vec<Vec<u8>> = levels.iter().map(Message::encode_to_vec).collect();
    testing::filter(&factory(), &[], &levels)
}

fn filter(levels: &[CorsPolicy]) -> Alone {
    build(levels).unwrap()
}

fn route(action: Action) -> Arc<Route> {
    Arc::new(Route {
        chain: Some(Chain::empty()),
        ..Route::new(PathMatch::Prefix(b"/"[..].into(), false), action)
    })
}

fn forward() -> Action {
    Action::Forward(Forward::to(ClusterChoice::Named(Clusters::default().cell("a"))))
}

fn request(method: &str, headers: &[(&str, &str)]) -> Stream {
    let mut s = stream("/", headers);
    s.request.method = method.parse().unwrap();
    s.route = Some(route(forward()));
    s
}

const PREFLIGHT: [(&str, &str); 2] =
    [("origin", "https://ok.test"), ("access-control-request-method", "PUT")];

#[test]
fn preflights_are_answered() {
    let all = CorsPolicy {
        allow_methods: "GET, POST".into(),
        allow_headers: "*".into(),
        expose_headers: "x-e".into(),
        max_age: "60".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..policy(&["*"])
    };
    let headers = [&PREFLIGHT[..], &[("access-control-request-headers", "x-1, x-2")]].concat();
    let reply = now(filter(&[all]).access(&mut request("OPTIONS", &headers))).unwrap();
    assert_eq!((reply.status, reply.body.len(), &*reply.details), (200, 0, "cors_response"));
    for (name, value) in [
        ("origin", "https://ok.test"),
        ("methods", "GET, POST"),
        ("headers", "x-1, x-2"),
        ("credentials", "true"),
    ] {
        let name = format!("access-control-allow-{name}");
        assert_eq!(reply.headers.get_str(name.as_str()), Some(value));
    }
    assert_eq!(reply.headers.get_str("access-control-max-age"), Some("60"));
    let star = CorsPolicy { allow_methods: "*".into(), allow_headers: "*".into(), ..policy(&["*"]) };
    let reply = now(filter(&[star]).access(&mut request("OPTIONS", &PREFLIGHT))).unwrap();
    let allowed = ["methods", "headers"].map(|name| format!("access-control-allow-{name}"));
    let allowed = allowed.map(|name| reply.headers.get_str(name.as_str()).map(str::to_owned));
    assert_eq!(allowed, ["PUT", ""].map(|value| Some(value.to_owned())));
}

#[test]
fn preflights_of_others_go_on_or_get_an_answer_without_origin() {
    let others = policy(&["https://other.test"]);
    assert!(now(filter(std::slice::from_ref(&others)).access(&mut request("OPTIONS", &PREFLIGHT))).is_none());
    let keeps = CorsPolicy { forward_not_matching_preflights: Some(BoolValue { value: false }), ..others };
    let reply =
        now(filter(std::slice::from_ref(&keeps)).access(&mut request("OPTIONS", &PREFLIGHT))).unwrap();
    assert_eq!((reply.status, reply.headers.len()), (200, 0));
    // What else the policy says was left out.
    let says = CorsPolicy {
        allow_methods: "GET".into(),
        max_age: "60".into(),
        expose_headers: "x-e".into(),
        ..keeps
    };
    let reply = now(filter(&[says]).access(&mut request("OPTIONS", &PREFLIGHT))).unwrap();
    assert!(!reply.headers.contains("access-control-expose-headers"));
    let headers = |name: &str| reply.headers.get_str(name).map(str::to_owned);
    assert_eq!(headers("access-control-allow-methods").as_deref(), Some("GET"));
    assert_eq!(
        (headers("access-control-max-age").as_deref(), headers("access-control-allow-origin")),
        (Some("60"), None)
    );
}

#[test]
fn simple_responses_get_their_origin() {
    let filter = filter(&[CorsPolicy { expose_headers: "x-e".into(), ..policy(&["https://ok.test"]) }]);
    for (origin, allowed) in [("https://ok.test", Some("https://ok.test")), ("https://no.test", None)] {
        let mut s = request("GET", &[("origin", origin)]);
        assert!(now(filter.access(&mut s)).is_none());
        now(filter.header_filter(&mut s));
        assert_eq!(response_header(&s, "access-control-allow-origin"), allowed);
        assert_eq!(response_header(&s, "access-control-expose-headers").is_some(), allowed.is_some());
    }
    // The upstream's own header is replaced.
    let mut s = request("GET", &[("origin", "https://ok.test")]);
    now(filter.access(&mut s));
    s.response.headers.push(b"access-control-allow-origin", b"*");
    now(filter.header_filter(&mut s));
    assert_eq!(s.response.headers.get_all("access-control-allow-origin").count(), 1);
}

#[test]
fn levels_fill_each_others_gaps() {
    let host =
        CorsPolicy { max_age: "1".into(), allow_methods: "GET".into(), ..policy(&["https://ok.test"]) };
    let own = CorsPolicy { max_age: "2".into(), ..CorsPolicy::default() };
    let reply = now(filter(&[host, own]).access(&mut request("OPTIONS", &PREFLIGHT))).unwrap();
    assert_eq!(reply.headers.get_str("access-control-max-age"), Some("2"));
    assert_eq!(reply.headers.get_str("access-control-allow-methods"), Some("GET"));
}

#[test]
fn it_does_nothing_without_policy_origin_or_upstream() {
    assert!(super::build(ProtoCors::default(), Vec::new(), &testing::context()).unwrap().is_idle());
    let star = filter(&[policy(&["*"])]);
    let mut s = request("OPTIONS", &PREFLIGHT[1..]);
    assert!(now(star.access(&mut s)).is_none());
    let mut s = request("OPTIONS", &PREFLIGHT);
    let direct = DirectResponse { status: 403, body: Default::default(), body_format: None };
    s.route = Some(route(Action::Direct(direct.into())));
    assert!(now(star.access(&mut s)).is_none());
    now(star.header_filter(&mut s));
    assert!(s.response.headers.is_empty());
}

#[test]
fn bad_configurations_are_refused() {
    let empty =
        CorsPolicy { allow_origin_string_match: vec![ProtoString::default()], ..CorsPolicy::default() };
    let error = build(&[empty]).err().unwrap();
    assert!(error.starts_with("allow_origin_string_match"), "{error}");
    let shadow = CorsPolicy { shadow_enabled: Some(Default::default()), ..policy(&["a.com"]) };
    let error = build(&[shadow]).err().unwrap();
    assert_eq!(error, "shadow_enabled.default_value: is missing");
    assert!(testing::filter(&factory(), &[], &[vec![0xFF]]).is_err());
}

/// The filter had no statistics.
#[test]
fn origins_are_counted() {
    let context = sixfold_core::plugin::BuildContext { scope: "http.in.".into(), ..testing::context() };
    let levels = [policy(&["https://ok.test"]).encode_to_vec()];
    let filter = testing::filter_in(&factory(), &[], &levels, &context).unwrap();
    for origin in ["https://ok.test", "https://other.test", "https://ok.test"] {
        assert!(now(filter.access(&mut request("GET", &[("origin", origin)]))).is_none());
    }
    assert!(now(filter.access(&mut request("GET", &[]))).is_none());
    let counted = |name: &str| context.metrics.sum("http.in.cors.", name);
    assert_eq!((counted("origin_valid"), counted("origin_invalid")), (2, 1));
}

/// Keys and shadows were refused, the form of Envoy's own example.
#[test]
fn policies_are_on_by_shares_and_in_the_shadow_only_judged() {
    let runtime = sixfold_core::runtime::Runtime::new([("off".to_owned(), 0.into())].into());
    let context = sixfold_core::plugin::BuildContext {
        scope: "http.in.".into(),
        runtime: Arc::new(runtime),
        ..testing::context()
    };
    let share = |key: &str, numerator| {
        let default_value = Some(FractionalPercent { numerator, denominator: 0 });
        Some(RuntimeFractionalPercent { default_value, runtime_key: key.into() })
    };
    let mut filters = Vec::new();
    let mut answered = |filter_enabled, shadow_enabled| {
        let policy = CorsPolicy { filter_enabled, shadow_enabled, ..policy(&["https://ok.test"]) };
        let filter = testing::filter_in(&factory(), &[], &[policy.encode_to_vec()], &context).unwrap();
        let answered = now(filter.access(&mut request("OPTIONS", &PREFLIGHT))).is_some();
        filters.push(filter);
        answered
    };
    let valid = || context.metrics.sum("http.in.cors.", "origin_valid");
    assert!(answered(share("none", 100), None));
    assert!(!answered(share("off", 100), None));
    assert_eq!(valid(), 1);
    assert!(!answered(share("off", 100), share("", 100)));
    assert_eq!(valid(), 2);
    assert!(!answered(share("off", 100), share("", 0)));
    assert_eq!(valid(), 2);
}
