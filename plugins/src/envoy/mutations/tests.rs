#![allow(clippy::unwrap_used, deprecated)]
use super::*;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::RegexMatcher;
use sixfold_xds_api::pb::google::protobuf::BoolValue;

fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

fn regex(text: &str) -> Option<RegexMatcher> {
    Some(RegexMatcher { regex: text.to_owned(), ..RegexMatcher::default() })
}

#[test]
fn rules_say_what_may_be_changed() {
    use Verdict::{Allowed, Ignored, Refused};
    let judged = |rules: HeaderMutationRules| {
        let rules = Rules::new(&rules).unwrap();
        [":method", "host", ":path", "x-envoy-a", "x-a"].map(|name| rules.judge(name))
    };
    let none = HeaderMutationRules::default();
    assert_eq!(judged(none.clone()), [Ignored, Ignored, Allowed, Ignored, Allowed]);
    let all = HeaderMutationRules { allow_all_routing: yes(), allow_envoy: yes(), ..none.clone() };
    assert_eq!(judged(all), [Allowed; 5]);
    let system = HeaderMutationRules { disallow_system: yes(), disallow_is_error: yes(), ..none.clone() };
    assert_eq!(judged(system), [Refused, Refused, Refused, Refused, Allowed]);
    let one = HeaderMutationRules { disallow_all: yes(), allow_expression: regex("x-a"), ..none.clone() };
    assert_eq!(judged(one), [Ignored, Ignored, Ignored, Ignored, Allowed]);
    let but_one =
        HeaderMutationRules { disallow_expression: regex("x-.*"), allow_envoy: yes(), ..none.clone() };
    assert_eq!(judged(but_one), [Ignored, Ignored, Allowed, Ignored, Ignored]);
    let bad = HeaderMutationRules { allow_expression: regex("("), ..none };
    assert!(Rules::new(&bad).map(drop).unwrap_err().to_string().starts_with("allow_expression.regex: "));
}

#[test]
fn actions_mean_what_they_say() {
    let lines = |change: Change| {
        let mut headers = Headers::new();
        headers.append("x-there", b"old");
        change.apply(&mut headers);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect::<Vec<_>>()
    };
    let change = |name: &str, action, joins| Change { action, joins, ..Change::set(name, b"new") };
    use AppendAction::*;
    for (there, missing, action, joins) in [
        (&["x-there: old", "x-there: new"][..], true, AppendIfExistsOrAdd, false),
        (&["x-there: old,new"], false, AppendIfExistsOrAdd, true),
        (&["x-there: old"], true, AddIfAbsent, false),
        (&["x-there: new"], true, OverwriteIfExistsOrAdd, false),
        (&["x-there: new"], false, OverwriteIfExists, false),
    ] {
        assert_eq!(lines(change("x-there", action, joins)), there, "{action:?}");
        assert_eq!(lines(change("x-other", action, joins)).len(), 1 + usize::from(missing), "{action:?}");
    }
}

#[test]
fn what_no_message_can_have_is_not_written() {
    let mut head = RequestHead::default();
    head.target.set(b"/a");
    for (name, value) in [
        ("x a", "1"),
        ("x-a", "1\r\nx-b: 2"),
        ("", "1"),
        (":path", "/a b"),
        (":path", "a"),
        (":method", "G T"),
        (":method", "CONNECT"),
        (":scheme", "ftp"),
        (":status", "200"),
        (":path", "/#"),
    ] {
        Change::set(name, value.as_bytes()).apply_to_request(&mut head);
    }
    assert!(head.headers.is_empty() && head.target.full() == b"/a" && head.method == Method::GET);
    for (name, value) in
        [(":path", "/b?c"), (":method", "PUT"), ("Host", "h"), (":scheme", "https"), ("X-A", "1")]
    {
        Change::set(name, value.as_bytes()).apply_to_request(&mut head);
    }
    assert_eq!(
        (head.target.full(), head.method.as_str(), &*head.authority),
        (&b"/b?c"[..], "PUT", &b"h"[..])
    );
    assert_eq!((head.scheme, head.headers.get_str("x-a")), (Scheme::Https, Some("1")));
    remove(&mut head.headers, "X-A");
    assert!(head.headers.is_empty());
}

#[test]
fn options_of_a_service_are_read() {
    let option = |append: Option<bool>, append_action| HeaderValueOption {
        header: Some(HeaderValue { key: "X-A".into(), value: "1".into(), raw_value: Vec::new() }),
        append: append.map(|value| BoolValue { value }),
        append_action,
        ..HeaderValueOption::default()
    };
    let read = |append, action| {
        let change = Change::of(option(append, action))?;
        assert_eq!(change.name, "x-a");
        Some(change.action)
    };
    assert_eq!(read(None, 0), Some(AppendAction::AppendIfExistsOrAdd));
    assert_eq!(read(Some(true), 0), Some(AppendAction::AppendIfExistsOrAdd));
    assert_eq!(read(Some(false), 0), Some(AppendAction::OverwriteIfExistsOrAdd));
    assert_eq!(read(None, 1), Some(AppendAction::AddIfAbsent));
    assert_eq!(read(None, 3), Some(AppendAction::OverwriteIfExists));
    assert_eq!(read(None, 99), None);
}
