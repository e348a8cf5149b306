#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::stream::fixture::stream;
use serde_json::json;

#[track_caller]
fn check(rule: Value, target: &str, want: bool) {
    let expr = Expr::new(&rule).unwrap();
    assert_eq!(expr.eval(&stream(target, &[("X-Id", "7"), ("x-tag", "Blue")])), Ok(want), "{rule}");
}

#[test]
fn equality_converts_only_when_the_right_side_is_a_number() {
    check(json!([["arg_a", "==", "1"]]), "/?a=1", true);
    check(json!([["arg_a", "==", 1]]), "/?a=1", true);
    check(json!([["arg_a", "==", 1]]), "/?a=1.0", true);
    check(json!([["arg_a", "==", "1"]]), "/?a=1.0", false);
    check(json!([["arg_a", "==", 1]]), "/?a=x", false);
    check(json!([["arg_a", "~=", 1]]), "/?a=x", true);
    check(json!([["arg_a", "~=", 1]]), "/?a=1", false);
    check(json!([["arg_a", "~=", "1"]]), "/?a=2", true);
    check(json!([["arg_a", "==", true]]), "/?a=true", false);
    check(json!([["http_x_tag", "==", "Blue"]]), "/", true);
}

#[test]
fn null_asks_for_absence() {
    check(json!([["arg_a", "==", null]]), "/", true);
    check(json!([["arg_a", "==", null]]), "/?a=", false);
    check(json!([["arg_a", "~=", null]]), "/?a=1", true);
    check(json!([["arg_a", "=="]]), "/", true);
    check(json!([["arg_a", "!", "==", null]]), "/", false);
}

#[test]
fn order_needs_numbers_on_both_sides() {
    for (op, below, same, above) in [
        (">", false, false, true),
        (">=", false, true, true),
        ("<", true, false, false),
        ("<=", true, true, false),
    ] {
        check(json!([["arg_a", op, 10]]), "/?a=9.5", below);
        check(json!([["arg_a", op, "10"]]), "/?a=10", same);
        check(json!([["arg_a", op, 10]]), "/?a=0x0b", above);
        check(json!([["arg_a", op, 10]]), "/?a=inf", false);
        check(json!([["arg_a", op, "x"]]), "/?a=1", false);
        check(json!([["arg_a", op, 10]]), "/", false);
    }
}

#[test]
fn patterns_search_and_may_look_around() {
    check(json!([["arg_a", "~~", "[a-z]+"]]), "/?a=1b2", true);
    check(json!([["arg_a", "~~", "^[a-z]+$"]]), "/?a=1b2", false);
    check(json!([["arg_a", "~~", "ABC"]]), "/?a=abc", false);
    check(json!([["arg_a", "~*", "ABC"]]), "/?a=xabc", true);
    check(json!([["arg_a", "~~", "x"]]), "/", false);
    check(json!([["arg_a", "~~", "^(?!admin).*$"]]), "/?a=user", true);
    check(json!([["arg_a", "~~", "^(?!admin).*$"]]), "/?a=admin1", false);
    check(json!([["arg_a", "~~", r"(.)\1"]]), "/?a=abb", true);
}

#[test]
fn a_pattern_that_backtracks_too_long_is_an_error_of_evaluation() {
    let expr = Expr::new(&json!([["arg_a", "~~", r"^(?:(a|aa)\1?)+$"]])).unwrap();
    let target = format!("/?a={}b", "a".repeat(60));
    assert!(expr.eval(&stream(&target, &[])).is_err());
}

#[test]
fn membership_is_strict() {
    check(json!([["arg_a", "in", ["1", "2"]]]), "/?a=2", true);
    check(json!([["arg_a", "IN", [1, 2]]]), "/?a=2", false);
    check(json!([["arg_a", "in", "2"]]), "/?a=2", false);
    check(json!([["arg_a", "!", "in", ["1"]]]), "/?a=2", true);
    check(json!([["arg_a", "has", "x"]]), "/?a=[%22x%22,3]", true);
    check(json!([["arg_a", "has", 3]]), "/?a=[%22x%22,3]", true);
    check(json!([["arg_a", "has", "y"]]), "/?a=[%22x%22]", false);
    check(json!([["arg_a", "has", "x"]]), "/?a=x", false);
}

#[test]
fn addresses_match_single_ones_and_networks() {
    check(json!([["remote_addr", "ipmatch", "10.0.0.0/8"]]), "/", true);
    check(json!([["remote_addr", "ipmatch", ["::1", "10.1.2.3"]]]), "/", true);
    check(json!([["remote_addr", "ipmatch", ["10.1.2.4"]]]), "/", false);
    check(json!([["arg_a", "ipmatch", ["10.1.2.4"]]]), "/", false);
}

#[test]
fn logic_nests_and_turns_round() {
    let a = json!(["arg_a", "==", "1"]);
    let b = json!(["arg_b", "==", "1"]);
    for (op, both, one, none) in [
        ("AND", true, false, false),
        ("or", true, true, false),
        ("!AND", false, true, true),
        ("!OR", false, false, true),
    ] {
        check(json!([op, a, b]), "/?a=1&b=1", both);
        check(json!([op, a, b]), "/?b=1", one);
        check(json!([op, a, b]), "/", none);
    }
    check(json!([["OR", a, b], ["http_x_id", 7.to_string()]]), "/?b=1", true);
    check(json!([["OR", a, ["AND", b, ["arg_c", ">", 1]]]]), "/?b=1&c=2", true);
    check(json!([[a, b]]), "/?a=1", false);
    check(json!([]), "/", true);
}

#[test]
fn the_short_form_is_equality_in_lower_case() {
    check(json!([["arg_a", "x"]]), "/?a=x", true);
    check(json!([["arg_a", "X"]]), "/?a=X", false);
    check(json!([["arg_a", 5]]), "/?a=5", true);
}

/// Everything was compared as the text that it is in JSON.
#[test]
fn fields_of_bodies_keep_their_types() {
    let mut request = stream("/", &[("content-type", "application/json")]);
    let body = json!({"n": 5, "t": "5", "b": true, "l": [1, "x", false], "z": null, "o": {}});
    request.request_body = Some(body.to_string().into());
    for (rule, want) in [
        (json!(["post_arg.n", "==", 5]), true),
        (json!(["post_arg.n", "==", "5"]), false),
        (json!(["post_arg.n", "~=", "5"]), true),
        (json!(["post_arg.n", ">", 4]), true),
        (json!(["post_arg.n", "~~", "^5$"]), true),
        (json!(["post_arg.n", "in", ["5", 6]]), false),
        (json!(["post_arg.n", "in", ["x", 5]]), true),
        (json!(["post_arg.t", "==", "5"]), true),
        (json!(["post_arg.t", "==", 5]), true),
        (json!(["post_arg.t", "in", [5]]), false),
        (json!(["post_arg.b", "==", true]), true),
        (json!(["post_arg.b", "==", "true"]), false),
        (json!(["post_arg.b", "~=", false]), true),
        (json!(["post_arg.b", "~~", "true"]), false),
        (json!(["post_arg.l", "has", 1]), true),
        (json!(["post_arg.l", "has", "1"]), false),
        (json!(["post_arg.l[*]", "has", false]), true),
        (json!(["post_arg.l", "==", "[1,\"x\",false]"]), false),
        (json!(["post_arg.z", "==", null]), true),
        (json!(["post_arg.o", "==", null]), false),
    ] {
        assert_eq!(Expr::new(&json!([rule])).unwrap().eval(&request), Ok(want), "{rule}");
    }
}

#[test]
fn paths_into_bodies_have_sound_brackets() {
    for (path, sound) in [
        ("a.b", true),
        ("a[*].b[0]['x[y'].c..d", true),
        ("a[?(@.b[0] == 1)].c", true),
        ("a[.b[*].c", false),
        ("a[0", false),
        ("a]0", false),
        ("a['x].b", false),
    ] {
        let made = Expr::new(&json!([[format!("post_arg.{path}"), "==", "x"]]));
        assert_eq!(made.is_ok(), sound, "{path}");
    }
    let error = Expr::new(&json!([["post_arg.a[.b[*].c", "has", "x"]])).unwrap_err();
    assert_eq!(error.to_string(), "invalid expression \"$.a[.b[*].c\"");
}

#[test]
fn refusals_are_worded_as_the_library_words_them() {
    for (rule, words) in [
        (json!(["arg_a", "==", "b"]), "rule should be wrapped inside brackets"),
        (json!(["AND", ["arg_a", "==", "b"]]), "rule too short"),
        (json!([[]]), "rule too short"),
        (json!([{}]), "rule too short"),
        (json!([["arg_a", "*=", "b"]]), "invalid operator '*='"),
        (json!([["arg_a", "x", "==", "b"]]), "bad 'not' expression"),
        (json!([["arg_a"]]), "invalid expression"),
        (json!([["arg_a", null]]), "invalid expression"),
        (json!([["arg_a", "ipmatch", ""]]), "invalid ip address"),
        (json!([["arg_a", "ipmatch", []]]), "invalid ip address"),
        (json!([["arg_a", "ipmatch", ["1.2.3"]]]), "invalid ip address: 1.2.3"),
    ] {
        assert_eq!(Expr::new(&rule).unwrap_err().to_string(), words, "{rule}");
    }
    assert!(Expr::new(&json!([["arg_a", "~~", "("]])).is_err());
    assert!(Expr::new(&json!({})).is_err());
}

/// Each condition read the list anew.
#[test]
fn a_list_is_read_once_while_a_route_is_looked_for() {
    let before = list::READ.get();
    let _scope = Lookup::begin();
    let has = |item: &str| Expr::new(&json!([["arg_a", "has", item]])).unwrap();
    let request = stream("/?a=[\"x\",\"y\"]", &[]);
    let found = ["x", "z", "y", "w"].map(|item| has(item).eval(&request).unwrap());
    assert_eq!((found, list::READ.get() - before), ([true, false, true, false], 1));
    let other = stream("/?a=[\"z\"]", &[]);
    assert_eq!((has("z").eval(&other), has("x").eval(&other)), (Ok(true), Ok(false)));
}

/// After proxy-rewrite they looked at the query that goes to the upstream.
#[test]
fn arguments_are_those_of_the_query_that_came() {
    let mut request = stream("/new?k=1", &[]);
    request.set_var(crate::stream::SENT_ARGS, "k=2");
    let is = |value: &str| Expr::new(&json!([["arg_k", "==", value]])).unwrap().eval(&request);
    assert_eq!((is("1"), is("2")), (Ok(false), Ok(true)));
}
