#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::panic)]
use super::*;
use crate::shared::jwt::Token;
use crate::shared::jwt::tests::{Signer, set_of};
use crate::testing::{self, Alone, context_with, finish, now, request_header, stream};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{
    Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, CalloutStreamFuture,
};
use sixfold_core::stream::FilterObject;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use tokio::sync::Notify;

/// A set of keys where it does not matter which.
const KEYS: &str = r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#;

/// The filter's message from JSON, with these keys in the place of `KEYS`.
fn config(mut value: Value, keys: &str) -> Vec<u8> {
    fn fill(value: &mut Value, keys: &str) {
        match value {
            Value::String(text) if text == "KEYS" => *text = keys.to_owned(),
            Value::Array(items) => items.iter_mut().for_each(|item| fill(item, keys)),
            Value::Object(members) => members.values_mut().for_each(|member| fill(member, keys)),
            _ => {}
        }
    }
    fill(&mut value, keys);
    testing::message::<JwtAuthentication>(value).encode_to_vec()
}

fn filter(value: Value, keys: &str) -> Alone {
    testing::filter(&factory(), &config(value, keys), &[]).unwrap()
}

fn refused(value: Value) -> String {
    testing::filter(&factory(), &config(value, KEYS), &[]).err().unwrap()
}

/// One provider with these members, and a rule that wants it everywhere.
fn one(members: Value) -> Value {
    let mut provider = json!({"issuer": "i", "local_jwks": {"inline_string": "KEYS"}});
    provider.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    json!({
        "providers": {"p": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
    })
}

fn claims(more: Value) -> Value {
    let mut claims = json!({"iss": "i", "sub": "jack"});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn metadata<'a>(stream: &'a Stream, key: &str) -> Option<&'a Value> {
    stream.metadata.iter().find(|(_, of, _)| &**of == key).map(|(_, _, value)| value)
}

#[test]
fn a_good_token_passes_and_leaves_what_was_asked_for() {
    let signer = Signer::new("ES256");
    let members = json!({
        "forward_payload_header": "x-payload", "pad_forward_payload_header": true,
        "claim_to_headers": [
            {"header_name": "x-sub", "claim_name": "sub"}, {"header_name": "x-role", "claim_name": "a.role"},
            {"header_name": "x-line", "claim_name": "line"}, {"header_name": "x-list", "claim_name": "list"},
        ],
        "payload_in_metadata": "payload", "header_in_metadata": "header",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
    });
    let filter = filter(one(members), &set_of(&[signer.jwk()]));
    let said =
        claims(json!({"a": {"role": "admin"}, "line": "a\r\nx-evil: 1", "list": ["b"], "scope": "r  w"}));
    let token = signer.token(&said);
    let bearer = bearer(&token);
    let headers = [
        ("authorization", &*bearer),
        ("x-sub", "eve"),
        ("X_SUB", "eve"),
        ("x-role", "root"),
        ("x-line", "eve"),
    ];
    let mut s = stream("/?a=b", &headers);
    assert!(now(filter.access(&mut s)).is_none());
    assert_eq!((request_header(&s, "x-sub"), request_header(&s, "x-role")), (Some("jack"), Some("admin")));
    // What can't be the value of a header is none, and so is what looks like the header to others.
    assert_eq!((request_header(&s, "x-line"), request_header(&s, "x_sub")), (None, None));
    assert_eq!(request_header(&s, "x-list"), Some("WyJiIl0="));
    let payload = request_header(&s, "x-payload").unwrap();
    assert_eq!((payload.trim_end_matches('='), payload.len() % 4), (token.split('.').nth(1).unwrap(), 0));
    assert_eq!(request_header(&s, "authorization"), None);
    assert_eq!(metadata(&s, "header"), Some(&json!({"alg": "ES256"})));
    assert_eq!(metadata(&s, "payload").unwrap()["scope"], json!(["r", "w"]));
}

/// As of Envoy 1.40, which takes a set of no bytes and no other that is none.
#[test]
fn without_keys_no_token_is_good() {
    let value = one(json!({"local_jwks": {"inline_string": ""}, "failed_status_in_metadata": "failure"}));
    let filter = filter(value, "");
    let bearer = bearer(&Signer::new("HS256").token(&claims(json!({}))));
    let mut s = stream("/", &[("authorization", &bearer)]);
    let reply = now(filter.access(&mut s)).unwrap();
    assert_eq!((reply.status, &reply.body[..]), (401, &b"Jwks doesn't have any valid public key"[..]));
    assert_eq!(metadata(&s, "failure").unwrap()["code"], 31);
}

#[test]
fn refusals_are_those_of_envoy() {
    let signer = Signer::new("HS256");
    let context = testing::context();
    let members = json!({"audiences": ["https://app/"], "failed_status_in_metadata": "failure"});
    let bytes = config(one(members), &set_of(&[signer.jwk()]));
    let filter = testing::filter_in(&factory(), &bytes, &[], &context).unwrap();
    let refusal = |token: Option<String>| {
        let bearer = token.map(|token| bearer(&token));
        let headers: Vec<_> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
        let mut s = stream("/a?b", &headers);
        s.request.headers.append(Known::X_FORWARDED_PROTO, b"https");
        let reply = now(filter.access(&mut s)).unwrap();
        let challenge = reply.headers.get_str("www-authenticate").unwrap().to_owned();
        let failure = metadata(&s, "failure").unwrap()["code"].as_u64().unwrap();
        (reply.status, String::from_utf8(reply.body.to_vec()).unwrap(), reply.details, challenge, failure)
    };
    let realm = "Bearer realm=\"https://example.com/a?b\"";
    let missing = refusal(None);
    assert_eq!((missing.0, &*missing.1, &*missing.3, missing.4), (401, "Jwt is missing", realm, 1));
    assert_eq!(missing.2, "jwt_authn_access_denied{Jwt_is_missing}");
    let invalid = format!("{realm}, error=\"invalid_token\"");
    for (more, status, body, code) in [
        (json!({"aud": "other"}), 403, "Audiences in Jwt are not allowed", 25),
        (json!({"aud": "app", "exp": 1}), 401, "Jwt is expired", 3),
        (json!({"aud": "app", "nbf": 4_102_444_800_u64}), 401, "Jwt not yet valid", 2),
        (json!({"aud": "app", "iss": "x"}), 401, "Jwt issuer is not configured", 24),
    ] {
        let refused = refusal(Some(signer.token(&claims(more))));
        assert_eq!((refused.0, &*refused.1, &*refused.3, refused.4), (status, body, &*invalid, code));
    }
    let good = claims(json!({"aud": "http://app"}));
    let bearer = bearer(&signer.token(&good));
    assert!(now(filter.access(&mut stream("/", &[("authorization", &bearer)]))).is_none());
    let of = |name: &str| context.metrics.sum("jwt_authn.", name);
    assert_eq!((of("allowed"), of("denied")), (1, 5));
}

#[test]
fn claims_have_to_fit_the_provider() {
    let signer = Signer::new("HS256");
    let keys = set_of(&[signer.jwk()]);
    let far = 4_102_444_800_u64;
    for (members, good, bad) in [
        (json!({"subjects": {"prefix": "ja"}}), json!({}), json!({"sub": "eve"})),
        (json!({"require_expiration": true}), json!({"exp": far}), json!({})),
        (json!({"max_lifetime": "4000000000s"}), json!({"exp": far}), json!({})),
        (json!({"max_lifetime": "4000000000s"}), json!({"exp": far}), json!({"exp": far * 4})),
        (json!({"clock_skew_seconds": 4_294_967_295_u32}), json!({"exp": 1}), json!({"nbf": far * 4})),
    ] {
        let filter = filter(one(members.clone()), &keys);
        for (more, passes) in [(good, true), (bad, false)] {
            let bearer = bearer(&signer.token(&claims(more.clone())));
            let refused = now(filter.access(&mut stream("/", &[("authorization", &bearer)])));
            assert_eq!(refused.is_none(), passes, "{members} {more}");
        }
    }
}

#[test]
fn tokens_are_found_where_they_may_be_and_taken_out() {
    let signer = Signer::new("HS256");
    let token = signer.token(&claims(json!({})));
    let members = json!({
        "from_headers": [{"name": "X-T", "value_prefix": "tok="}], "from_params": ["t"], "from_cookies": ["c"],
    });
    let filter = filter(one(members), &set_of(&[signer.jwk()]));
    let prefixed = format!("a, tok= {token}");
    let cookie = format!("a=b; c=\"{token}\"");
    let bearer = bearer(&token);
    for (target, headers, left) in [
        ("/", [("x-t", &*prefixed)], Some("/")),
        (&*format!("/?a=%20&t={token}&b"), [("x", "y")], Some("/?a=%20&b")),
        ("/", [("cookie", &*cookie)], Some("/")),
        ("/", [("authorization", &*bearer)], None),
        ("/", [("x-t", &*token)], None),
    ] {
        let mut s = stream(target, &headers);
        assert_eq!(now(filter.access(&mut s)).is_none(), left.is_some(), "{target} {headers:?}");
        assert_eq!(s.request.headers.contains("x-t"), left.is_none() && headers[0].0 == "x-t");
        if let Some(left) = left {
            assert_eq!(s.request.target.full(), left.as_bytes());
        }
    }
    // Of several all must be good: the upstream may take any of them.
    let mut s = stream("/", &[("x-t", &prefixed), ("x-t", "tok=a.b.c")]);
    assert_eq!(now(filter.access(&mut s)).unwrap().status, 401);
}

#[test]
fn requirements_are_combined() {
    let (one, two) = (Signer::new("HS256"), Signer::new("HS384"));
    let provider = |issuer: &str, header: &str, signer: &Signer| {
        json!({
            "issuer": issuer, "from_headers": [{"name": header}],
            "local_jwks": {"inline_string": set_of(&[signer.jwk()])},
        })
    };
    let (p, q) = (json!({"provider_name": "p"}), json!({"provider_name": "q"}));
    let filter_of = |requires: Value| {
        let value = json!({
            "providers": {"p": provider("p", "x-p", &one), "q": provider("q", "x-q", &two)},
            "rules": [{"match": {"prefix": "/"}, "requires": requires}],
        });
        filter(value, "")
    };
    let of = |signer: &Signer, issuer: &str| signer.token(&json!({"iss": issuer}));
    let (good_p, good_q) = (of(&one, "p"), of(&two, "q"));
    let expired = one.token(&json!({"iss": "p", "exp": 1}));
    let list = |items: &[&Value]| json!({"requirements": items});
    let (missing, failed) = (json!({"allow_missing": {}}), json!({"allow_missing_or_failed": {}}));
    type Bodies = [Option<&'static str>; 6];
    let cases: [(&[(&str, &str)], Bodies); 5] = [
        (&[], [Some("Jwt is missing"), Some("Jwt is missing"), None, None, None, None]),
        (&[("x-p", &good_p)], [None, Some("Jwt is missing"), None, None, None, None]),
        (&[("x-p", &good_p), ("x-q", &good_q)], [None; 6]),
        (
            &[("x-p", &expired)],
            [
                Some("Jwt is expired"),
                Some("Jwt is expired"),
                Some("Jwt is expired"),
                None,
                Some("Jwt is expired"),
                None,
            ],
        ),
        (
            &[("x-q", &good_p)],
            [
                Some("Jwt issuer is not configured"),
                Some("Jwt is missing"),
                Some("Jwt issuer is not configured"),
                None,
                Some("Jwt issuer is not configured"),
                None,
            ],
        ),
    ];
    let filters = [
        json!({"requires_any": list(&[&p, &q])}),
        json!({"requires_all": list(&[&p, &q])}),
        json!({"requires_any": list(&[&p, &q, &missing])}),
        json!({"requires_any": list(&[&p, &q, &failed])}),
        missing,
        failed,
    ]
    .map(filter_of);
    for (headers, expected) in cases {
        for (index, (filter, expected)) in filters.iter().zip(expected).enumerate() {
            let reply = now(filter.access(&mut stream("/", headers)));
            let body = reply.map(|reply| String::from_utf8(reply.body.to_vec()).unwrap());
            assert_eq!(body.as_deref(), expected, "{index} {headers:?}");
        }
    }
    let audiences = json!({"provider_and_audiences": {"provider_name": "p", "audiences": ["a"]}});
    let reply = now(filter_of(audiences).access(&mut stream("/", &[("x-p", &good_p)])));
    assert_eq!(reply.unwrap().status, 403);
}

/// Of several tokens that need not be there the first in its places decides, and a wrong one that stands behind it is passed
/// over, as in Envoy; where one is wanted all must be good.
#[test]
fn the_first_of_tokens_that_need_not_be_there_decides() {
    let signer = Signer::new("HS256");
    let good = signer.token(&claims(json!({})));
    let wrong = signer.token(&claims(json!({"exp": 1})));
    let filter_of = |requires: Value| {
        let mut value = one(json!({
            "from_headers": [{"name": "x-t"}], "payload_in_metadata": "payload", "failed_status_in_metadata": "failure",
        }));
        value["rules"][0]["requires"] = requires;
        filter(value, &set_of(&[signer.jwk()]))
    };
    let (p, missing) = (json!({"provider_name": "p"}), json!({"allow_missing": {}}));
    let any = json!({"requires_any": {"requirements": [&p, &missing]}});
    for (requires, first, passes) in [
        (&missing, &good, true),
        (&missing, &wrong, false),
        (&p, &good, false),
        (&any, &good, false),
        (&any, &wrong, false),
    ] {
        let second = if first == &good { &wrong } else { &good };
        let mut s = stream("/", &[("x-t", first), ("x-t", second)]);
        let reply = now(filter_of(requires.clone()).access(&mut s));
        assert_eq!(reply.is_none(), passes, "{requires}");
        assert!(!passes || metadata(&s, "payload").is_some() && metadata(&s, "failure").is_some());
    }
}

/// Tokens that are let through whatever they are: the upstream is told of those that are not good. What a client says by the
/// same header is left, as in Envoy: it says nothing that no header would not say.
#[test]
fn the_upstream_is_told_of_tokens_that_are_not_good() {
    let signer = Signer::new("HS256");
    let mut value = one(json!({"claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}]}));
    value["rules"][0]["requires"] = json!({"extract_only_without_validation": {}});
    let filter = filter(value, &set_of(&[signer.jwk()]));
    let (good, bad) = (signer.token(&claims(json!({}))), Signer::new("HS256").token(&claims(json!({}))));
    for (token, sub, told) in [
        (Some(good), Some("jack"), Some("true")),
        (Some(bad), None, Some("false")),
        (None, None, Some("true")),
    ] {
        let bearer = token.map(|token| bearer(&token));
        let mut headers = vec![("x-jwt-signature-verified", "true"), ("x-sub", "eve")];
        headers.extend(bearer.iter().map(|value| ("authorization", value.as_str())));
        let mut s = stream("/", &headers);
        assert!(now(filter.access(&mut s)).is_none());
        let seen = (request_header(&s, "x-sub"), request_header(&s, "x-jwt-signature-verified"));
        assert_eq!(seen, (sub, told));
    }
}

#[test]
fn rules_filter_state_and_routes_choose_the_requirement() {
    let value = json!({
        "providers": {"p": {"local_jwks": {"inline_string": "KEYS"}}},
        "bypass_cors_preflight": true, "strip_failure_response": true,
        "requirement_map": {"r": {"provider_name": "p"}},
        "filter_state_rules": {"name": "s", "requires": {"on": {"provider_name": "p"}}},
        "rules": [
            {"match": {"path": "/free"}}, {"match": {"prefix": "/name"}, "requirement_name": "r"},
            {"match": {"prefix": "/h", "headers": [{"name": "x-a"}], "query_parameters": [{"name": "q"}]},
             "requires": {"provider_name": "p"}},
        ],
    });
    let bytes = config(value, KEYS);
    let of_route = |specifier| PerRouteConfig { requirement_specifier: Some(specifier) }.encode_to_vec();
    let status = |overrides: &[Vec<u8>], target: &str, headers: &[(&str, &str)], state: &str| {
        let filter = testing::filter(&factory(), &bytes, overrides).unwrap();
        let mut s = stream(target, headers);
        if !state.is_empty() {
            let (key, value) = ("s".into(), state.as_bytes().into());
            s.set_filter_state(FilterObject { key, value, hashable: false, read_only: false });
        }
        now(filter.access(&mut s)).map(|reply| (reply.status, reply.body.len(), reply.headers.len()))
    };
    let bare = Some((401, 0, 0));
    assert_eq!(status(&[], "/free?x", &[], ""), None);
    assert_eq!(status(&[], "/name/x", &[], ""), bare);
    assert_eq!(status(&[], "/h?q=1", &[("x-a", "1")], ""), bare);
    assert_eq!(status(&[], "/h", &[("x-a", "1")], ""), None);
    assert_eq!((status(&[], "/z", &[], "on"), status(&[], "/z", &[], "off")), (bare, None));
    let named = |name: &str| vec![of_route(RequirementSpecifier::RequirementName(name.to_owned()))];
    assert_eq!(status(&named("r"), "/free", &[], ""), bare);
    assert_eq!(status(&named("x"), "/free", &[], ""), Some((403, 0, 0)));
    assert_eq!(status(&[of_route(RequirementSpecifier::Disabled(true))], "/name", &[], "on"), None);
    let filter = testing::filter(&factory(), &bytes, &[]).unwrap();
    let mut preflight = stream("/name", &[("origin", "o"), ("access-control-request-method", "GET")]);
    preflight.request.method = http::Method::OPTIONS;
    assert!(now(filter.access(&mut preflight)).is_none());
}

#[test]
fn what_is_wrong_is_told_at_its_field() {
    let provider = json!({"local_jwks": {"inline_string": "KEYS"}});
    let with = |members: Value| {
        let mut value = json!({"providers": {"p": provider}});
        value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        refused(value)
    };
    let rule = |rule: Value| with(json!({"rules": [rule]}));
    assert_eq!(
        rule(json!({"match": {"prefix": "/"}, "requires": {"provider_name": "q"}})),
        "rules[0].requires.provider_name: there is no provider \"q\""
    );
    assert_eq!(
        rule(json!({"match": {"prefix": "/"}, "requirement_name": "q"})),
        "rules[0].requirement_name: there is no \"q\" in requirement_map"
    );
    assert!(rule(json!({"match": {"safe_regex": {"regex": "("}}})).starts_with("rules[0].match.safe_regex"));
    for (members, field) in [
        (json!({"forward_payload_header": "a b"}), "providers.p.forward_payload_header"),
        (json!({"forward_payload_header": "content-length"}), "providers.p.forward_payload_header"),
        (
            json!({"claim_to_headers": [{"header_name": "Host", "claim_name": "a"}]}),
            "providers.p.claim_to_headers[0].header_name",
        ),
        (json!({"subjects": {}}), "providers.p.subjects"),
        (json!({"local_jwks": {"inline_string": "{}"}}), "providers.p.local_jwks: has no [keys]"),
        (json!({"local_jwks": {"filename": "/nowhere/at/all"}}), "providers.p.local_jwks.filename"),
        (
            json!({"remote_jwks": {"http_uri": {"uri": "no uri", "cluster": "c", "timeout": "1s"}}, "local_jwks": null}),
            "providers.p.remote_jwks.http_uri.uri",
        ),
    ] {
        let mut provider = provider.clone();
        provider.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let error = refused(json!({"providers": {"p": provider}}));
        assert!(error.starts_with(field), "{error}");
    }
}

fn answer(status: u16, body: &str) -> CalloutResponse {
    CalloutResponse { status, headers: Headers::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn remote(members: Value) -> Value {
    let uri = json!({"uri": "https://keys/jwks?a", "cluster": "c", "timeout": "2s"});
    let mut remote = json!({"http_uri": uri});
    remote.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    json!({
        "providers": {"p": {"issuer": "i", "remote_jwks": remote, "jwt_cache_config": {}}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
    })
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_when_they_are_needed_and_kept() {
    let signer = Signer::new("ES256");
    let bearer = bearer(&signer.token(&claims(json!({}))));
    let headers = [("authorization", bearer.as_str())];
    let (context, service) = context_with(Some(answer(200, &set_of(&[signer.jwk()]))));
    let filter = testing::filter_in(&factory(), &config(remote(json!({})), ""), &[], &context).unwrap();
    // Without a token nobody is asked.
    assert_eq!(finish(filter.access(&mut stream("/", &[]))).await.unwrap().status, 401);
    assert!(service.asked.lock().is_empty());
    assert!(finish(filter.access(&mut stream("/", &headers))).await.is_none());
    let asked = service.asked.lock().pop().unwrap();
    assert_eq!(
        (&*asked.uri, asked.method.as_str(), asked.timeout.as_secs()),
        ("https://keys/jwks?a", "GET", 2)
    );
    assert_eq!(asked.cluster.map(|cluster| cluster.name.to_string()).as_deref(), Some("c"));
    // At once from now on, also for another instance of the same provider.
    assert!(now(filter.access(&mut stream("/", &headers))).is_none());
    let again = testing::filter_in(&factory(), &config(remote(json!({})), ""), &[], &context).unwrap();
    assert!(now(again.access(&mut stream("/", &headers))).is_none());
    assert!(service.asked.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_keys_refuses() {
    let signer = Signer::new("ES256");
    let bearer = bearer(&signer.token(&claims(json!({}))));
    for (answered, asked) in [
        (None, 3),
        // After that there is no answer, which is asked for again too.
        (Some(answer(503, "")), 3),
        (Some(answer(404, "{}")), 1),
        (Some(answer(200, "{}")), 1),
        (Some(answer(200, "")), 1),
    ] {
        let (context, service) = context_with(answered);
        let back_off = json!({"base_interval": "0.001s", "max_interval": "0.001s"});
        let policy = json!({"retry_policy": {"num_retries": 2, "retry_back_off": back_off}});
        let filter = testing::filter_in(&factory(), &config(remote(policy), ""), &[], &context).unwrap();
        let reply = finish(filter.access(&mut stream("/", &[("authorization", &bearer)]))).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (401, &b"Jwks remote fetch is failed"[..]));
        assert_eq!(service.asked.lock().len(), asked);
    }
}

/// Keys that are fetched beside requests are there before the first, and again after a failure.
#[tokio::test]
async fn keys_are_fetched_beside_requests() {
    let signer = Signer::new("ES256");
    let bearer = bearer(&signer.token(&claims(json!({}))));
    let headers = [("authorization", bearer.as_str())];
    let (context, service) = context_with(None);
    let cluster = Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &context.metrics).unwrap();
    let cell = context.clusters.cell("c");
    cell.swap(Some(cluster));
    let keys = || Some(answer(200, &set_of(&[signer.jwk()])));
    let (asked, count) =
        (|| service.asked.lock().len() as u64, |name: &str| context.metrics.sum("jwt_authn.", name));
    let until = async |holds: &dyn Fn() -> bool| {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("it does not come");
    };
    let beside = json!({"async_fetch": {"failed_refetch_duration": "0.02s"}});
    let filter = testing::filter_in(&factory(), &config(remote(beside), ""), &[], &context).unwrap();
    until(&|| asked() >= 2).await;
    *service.answer.lock() = keys();
    until(&|| count("jwks_fetch_success") == 1).await;
    // They hold: nobody asks for them, and no request waits.
    let before = asked();
    assert!(now(filter.access(&mut stream("/", &headers))).is_none());
    assert_eq!((asked(), count("jwks_fetch_failed")), (before, before - 1));
    drop(filter);
    // They are fetched anew before they end, for as long as somebody has them.
    let short = json!({"async_fetch": {}, "cache_duration": "0.03s"});
    let filter = testing::filter_in(&factory(), &config(remote(short), ""), &[], &context).unwrap();
    for _ in 0..2 {
        *service.answer.lock() = keys();
        until(&|| service.answer.lock().is_none()).await;
    }
    drop(filter);
    // One may be on its way yet, no more.
    let mut asked = 0;
    while service.answer.lock().is_none() {
        assert!(asked < 3, "nobody is there to ask for them");
        asked += 1;
        *service.answer.lock() = keys();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// A key server that answers once it is told to.
struct Slow {
    keys: String,
    asked: AtomicU32,
    answers: Arc<Notify>,
}

impl Callout for Slow {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        self.asked.fetch_add(1, Relaxed);
        let (keys, answers) = (answer(200, &self.keys), self.answers.clone());
        Box::pin(async move {
            answers.notified().await;
            Ok(keys)
        })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

/// Clients that left in time had everybody else wait for the keys for as long as they came.
#[tokio::test]
async fn the_fetch_goes_on_when_the_client_that_began_it_leaves() {
    let signer = Signer::new("ES256");
    let bearer = bearer(&signer.token(&claims(json!({}))));
    let headers = [("authorization", bearer.as_str())];
    let (asked, answers) = (AtomicU32::new(0), Arc::new(Notify::new()));
    let service = Arc::new(Slow { keys: set_of(&[signer.jwk()]), asked, answers });
    let context = BuildContext { callout: service.clone(), ..testing::context() };
    let filter = testing::filter_in(&factory(), &config(remote(json!({})), ""), &[], &context).unwrap();
    for _ in 0..3 {
        let mut leaves = stream("/", &headers);
        let access = filter.access(&mut leaves);
        let left = tokio::time::timeout(std::time::Duration::from_millis(20), access).await;
        assert!(left.is_err(), "it waits");
    }
    service.answers.notify_one();
    assert!(finish(filter.access(&mut stream("/", &headers))).await.is_none());
    assert_eq!(service.asked.load(Relaxed), 1);
}

/// A configuration that was refused had its keys fetched.
#[tokio::test]
async fn no_keys_are_fetched_beside_requests_before_the_filter_is_in_force() {
    let (context, service) = context_with(None);
    let cluster = Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &context.metrics).unwrap();
    context.clusters.cell("c").swap(Some(cluster));
    let config = config(remote(json!({"async_fetch": {}})), "");
    let built = testing::built_in(&factory(), &config, &[], &context).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(service.asked.lock().len(), 0);
    let _in_force = Alone::new(built);
    for _ in 0..400 {
        if !service.asked.lock().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("nobody fetches them");
}

/// Of two places whose names and prefixes are the same text together, the first was looked at for both.
#[test]
fn places_are_told_apart_by_name_and_prefix() {
    let signer = Signer::new("ES256");
    let places = json!([{"name": "x-a", "value_prefix": "b"}, {"name": "x-ab"}]);
    let value = json!({
        "providers": {"p": {"issuer": "i", "local_jwks": {"inline_string": "KEYS"}, "from_headers": places}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
    });
    let filter = testing::filter(&factory(), &config(value, &set_of(&[signer.jwk()])), &[]).unwrap();
    let token = signer.token(&claims(json!({})));
    for (name, value) in [("x-a", format!("b{token}")), ("x-ab", token)] {
        assert!(now(filter.access(&mut stream("/", &[(name, &value)]))).is_none(), "{name}");
    }
}

/// Where the configuration asks for no cache, statistics tell of none.
#[test]
fn verified_tokens_are_kept_whether_that_is_asked_for_or_not() {
    let signer = Signer::new("ES256");
    let token = signer.token(&claims(json!({})));
    let bearer = bearer(&token);
    let found = |cache: Value| {
        let context = BuildContext { scope: "http.h.".into(), ..testing::context() };
        let providers = json!({"p": {
            "issuer": "i", "local_jwks": {"inline_string": set_of(&[signer.jwk()])}, "jwt_cache_config": cache}});
        let rules = json!([{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}]);
        let config = config(json!({"providers": providers, "rules": rules}), "");
        let filter = testing::filter_in(&factory(), &config, &[], &context).unwrap();
        for _ in 0..3 {
            assert!(now(filter.access(&mut stream("/", &[("authorization", &bearer)]))).is_none());
        }
        ["jwt_cache_hit", "jwt_cache_miss"].map(|name| context.metrics.sum("http.h.jwt_authn.", name))
    };
    assert_eq!((found(json!({})), found(Value::Null)), ([2, 1], [0, 3]));

    let value = json!({"issuer": "i", "local_jwks": {"inline_string": set_of(&[signer.jwk()])}});
    let (value, context) = (testing::message(value), testing::context());
    let provider = Provider::new("p", &value, &context, &JwtStats::new(&context.metrics, "s.")).unwrap();
    assert!(provider.cached(token.as_bytes()).is_none());
    let provider::Ready::Keys(keys) = provider.keys() else { panic!("the keys are there") };
    provider.keep(token.as_bytes(), &Arc::new(Token::parse(token.as_bytes()).unwrap()), &keys);
    assert!(provider.cached(token.as_bytes()).is_some());
}

/// A key that its issuer has withdrawn verified tokens that were in the cache until they ended.
#[tokio::test(start_paused = true)]
async fn cached_tokens_are_verified_again_by_other_keys() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let bearer = bearer(&old.token(&claims(json!({}))));
    let headers = [("authorization", bearer.as_str())];
    let (context, service) = context_with(Some(answer(200, &set_of(&[old.jwk()]))));
    let short = json!({"cache_duration": "0.01s"});
    let filter = testing::filter_in(&factory(), &config(remote(short), ""), &[], &context).unwrap();
    assert!(finish(filter.access(&mut stream("/", &headers))).await.is_none());
    std::thread::sleep(std::time::Duration::from_millis(20));
    *service.answer.lock() = Some(answer(200, &set_of(&[new.jwk()])));
    let reply = finish(filter.access(&mut stream("/", &headers))).await.unwrap();
    assert_eq!(&reply.body[..], b"Jwt verification fails");
}
