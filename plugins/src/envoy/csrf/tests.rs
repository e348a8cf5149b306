#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{self, Alone, message, now, stream};
use prost::Message;
use serde_json::{Value, json};

fn share(percent: u32) -> Value {
    json!({"default_value": {"numerator": percent}})
}

fn filter_in(config: Value, context: &BuildContext) -> Alone {
    testing::filter_in(&factory(), &message::<CsrfPolicy>(config).encode_to_vec(), &[], context).unwrap()
}

fn passes(filter: &Alone, method: &str, headers: &[(&str, &str)]) -> bool {
    let mut s = stream("/", headers);
    s.request.method = method.parse().unwrap();
    let reply = now(filter.access(&mut s));
    let expected = (403, b"Invalid origin".to_vec(), "csrf_origin_mismatch".into());
    assert!(reply.as_ref().is_none_or(|r| (r.status, r.body.to_vec(), r.details.clone()) == expected));
    reply.is_none()
}

#[test]
fn what_changes_something_must_come_from_the_host() {
    let context = testing::context();
    let config = json!({"filter_enabled": share(100), "additional_origins": [{"suffix": ".friend.com"}]});
    let filter = filter_in(config, &context);
    for (headers, valid) in [
        (vec![("origin", "https://example.com")], true),
        (vec![("origin", "http://example.com/")], true),
        (vec![("referer", "https://example.com/a/b?c")], true),
        (vec![("origin", "https://a.friend.com")], true),
        (vec![("origin", "https://friend.com")], false),
        (vec![("origin", "https://example.com:8443")], false),
        (vec![("origin", "https://example.com.evil.com")], false),
        (vec![("origin", "null"), ("referer", "https://example.com/")], false),
        (vec![("origin", "")], false),
        (vec![], false),
    ] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(passes(&filter, method, &headers), valid, "{method} {headers:?}");
        }
        assert!(passes(&filter, "GET", &headers) && passes(&filter, "OPTIONS", &headers));
    }
    let count = |name: &str| context.metrics.sum("csrf.", name);
    assert_eq!(
        (count("request_valid"), count("request_invalid"), count("missing_source_origin")),
        (16, 12, 12)
    );
}

#[test]
fn shares_decide_who_is_looked_at() {
    let wrong = [("origin", "https://evil.com")];
    let context = testing::context();
    let off = filter_in(json!({"filter_enabled": share(0)}), &context);
    assert!(passes(&off, "POST", &wrong));
    assert_eq!(context.metrics.sum("csrf.", "request_invalid"), 0);
    let shadow = filter_in(json!({"filter_enabled": share(0), "shadow_enabled": share(100)}), &context);
    assert!(passes(&shadow, "POST", &wrong));
    assert_eq!(context.metrics.sum("csrf.", "request_invalid"), 1);
    let both = filter_in(json!({"filter_enabled": share(100), "shadow_enabled": share(100)}), &context);
    assert!(!passes(&both, "POST", &wrong));
}

#[test]
fn the_policy_of_a_route_holds_whole() {
    let policy = |origin: &str, percent| {
        let config = json!({"filter_enabled": share(percent), "additional_origins": [{"exact": origin}]});
        message::<CsrfPolicy>(config).encode_to_vec()
    };
    let filter = testing::filter(&factory(), &policy("a.com", 100), &[policy("b.com", 100)]).unwrap();
    assert!(passes(&filter, "POST", &[("origin", "https://b.com")]));
    assert!(!passes(&filter, "POST", &[("origin", "https://a.com")]));
    let error = testing::filter(&factory(), &CsrfPolicy::default().encode_to_vec(), &[]).err().unwrap();
    assert_eq!(error, "filter_enabled: is missing");
}
