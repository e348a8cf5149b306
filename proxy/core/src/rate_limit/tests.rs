#![allow(clippy::unwrap_used)]
use super::*;
use crate::cluster::Clusters;
use crate::route::{ClusterChoice, Forward, PathMatch, Route};
use crate::stream::fixture::stream;
use serde_json::json;

/// A request whose route leads to the cluster `c`.
fn routed(target: &str, headers: &[(&str, &str)]) -> Stream {
    let mut stream = stream(target, headers);
    let choice = ClusterChoice::Named(Clusters::default().cell("c"));
    let path = PathMatch::Prefix(b"/"[..].into(), false);
    let mut route = Route::new(path, RouteAction::Forward(Forward::to(choice)));
    route.metadata.insert("m", json!({"of": "route"}));
    stream.route = Some(Arc::new(route));
    stream
}

fn described(actions: Vec<LimitAction>, stream: &Stream) -> Option<Vec<String>> {
    let policy = LimitPolicy { actions: actions.into(), ..LimitPolicy::default() };
    let descriptor = policy.describe(stream)?;
    Some(descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect())
}

fn header(name: &str, skip_if_absent: bool) -> LimitAction {
    LimitAction::RequestHeader { header: HeaderTarget::of_request(name), key: "h".into(), skip_if_absent }
}

fn query(name: &str, skip_if_absent: bool) -> LimitAction {
    LimitAction::QueryParameter { name: name.as_bytes().into(), key: "q".into(), skip_if_absent }
}

fn text(condition: LimitCondition, value: &str, default: &str) -> LimitAction {
    LimitAction::Text {
        condition,
        key: "t".into(),
        value: Format::envoy(value).unwrap(),
        default: default.into(),
    }
}

#[test]
fn entries_stand_in_the_order_of_their_actions() {
    let s = routed("/p?u=a%20b", &[("x-user", "bob"), ("x-user", "eve")]);
    let actions = vec![
        LimitAction::SourceCluster("me".into()),
        LimitAction::DestinationCluster,
        header("x-user", false),
        query("u", false),
        LimitAction::RemoteAddress,
        LimitAction::MaskedRemoteAddress { v4: 16, v6: 64 },
        text(LimitCondition::Always, "%REQ(x-user)%", ""),
    ];
    let wanted = [
        "source_cluster=me",
        "destination_cluster=c",
        "h=bob",
        "q=a b",
        "remote_address=10.1.2.3",
        "masked_remote_address=10.1.0.0/16",
        "t=bob",
    ];
    assert_eq!(described(actions, &s).unwrap(), wanted);
}

/// Each entry had its key and value copied for each request, be they of the configuration.
#[test]
fn what_stands_somewhere_is_not_copied() {
    let mut s = routed("/p?u=a", &[("x-user", "bob")]);
    s.metadata.push(("n".into(), "k".into(), json!("v")));
    let path = ["n".into(), "k".into()].into();
    let (source, key, default) = (MetadataSource::Dynamic, "m".into(), "".into());
    let actions = [
        LimitAction::SourceCluster("me".into()),
        LimitAction::DestinationCluster,
        header("x-user", false),
        query("u", false),
        text(LimitCondition::Always, "fixed", ""),
        text(LimitCondition::Always, "", "default"),
        LimitAction::Metadata { source, path, key, default, skip_if_absent: false },
    ];
    let policy = LimitPolicy { actions: actions.into(), ..LimitPolicy::default() };
    let entries = policy.describe(&s).unwrap().entries;
    assert_eq!(entries.len(), 7);
    for entry in entries {
        assert!(matches!(entry, (_, Cow::Borrowed(_))), "{entry:?}");
    }
}

#[test]
fn what_is_missing_drops_the_descriptor_or_itself() {
    let s = routed("/p", &[("x-user", "bob")]);
    assert_eq!(described(vec![header("x-user", false), header("x-none", false)], &s), None);
    assert_eq!(described(vec![header("x-user", false), query("u", false)], &s), None);
    let skips = vec![header("x-user", false), header("x-none", true), query("u", true)];
    assert_eq!(described(skips, &s).unwrap(), ["h=bob"]);
    assert_eq!(described(vec![header("x-none", true)], &s), None, "nothing is left");
    assert_eq!(described(vec![LimitAction::DestinationCluster], &stream("/", &[])), None);
}

#[test]
fn texts_are_entries_where_their_condition_holds() {
    let s = routed("/p?a=1", &[("x-user", "bob")]);
    let has = |name: &str| {
        let target = HeaderTarget::of_request(name);
        HeaderMatcher {
            target,
            test: crate::matcher::HeaderMatch::Present(true),
            invert: false,
            missing_is_empty: false,
        }
    };
    let headers =
        |names: &[&str], wanted| LimitCondition::Headers(names.iter().map(|n| has(n)).collect(), wanted);
    let asks = |name: &str, wanted| {
        let test = QueryMatcher { name: name.into(), test: None, present: true };
        LimitCondition::Query(Box::new([test]), wanted)
    };
    let within =
        |network: &str, wanted| LimitCondition::Address(Box::new([network.parse().unwrap()]), wanted);
    for (condition, holds) in [
        (headers(&["x-user"], true), true),
        (headers(&["x-user", "x-none"], true), false),
        (headers(&["x-user", "x-none"], false), true),
        (asks("a", true), true),
        (asks("b", true), false),
        (asks("b", false), true),
        (within("10.0.0.0/8", true), true),
        (within("11.0.0.0/8", true), false),
        (within("11.0.0.0/8", false), true),
    ] {
        let told = format!("{condition:?}");
        assert_eq!(described(vec![text(condition, "v", "")], &s).is_some(), holds, "{told}");
    }
    assert_eq!(described(vec![text(LimitCondition::Always, "", "d")], &s).unwrap(), ["t=d"]);
    assert_eq!(described(vec![text(LimitCondition::Always, "", "")], &s), None);
}

#[test]
fn metadata_gives_texts() {
    let mut s = routed("/", &[]);
    s.metadata.push(("n".into(), "k".into(), json!({"in": "old"})));
    s.metadata.push(("n".into(), "k".into(), json!({"in": "deep", "number": 1})));
    let of = |source, path: &[&str], default: &str, skip_if_absent| LimitAction::Metadata {
        source,
        path: path.iter().map(|key| (*key).into()).collect(),
        key: "m".into(),
        default: default.into(),
        skip_if_absent,
    };
    use MetadataSource::{Dynamic, Route};
    assert_eq!(described(vec![of(Dynamic, &["n", "k", "in"], "", false)], &s).unwrap(), ["m=deep"]);
    assert_eq!(described(vec![of(Route, &["m", "of"], "", false)], &s).unwrap(), ["m=route"]);
    assert_eq!(described(vec![of(Dynamic, &["n", "k", "number"], "", false)], &s), None, "it is no text");
    assert_eq!(described(vec![of(Dynamic, &["n", "none"], "d", false)], &s).unwrap(), ["m=d"]);
    let skips = vec![of(Dynamic, &["n", "none"], "", true), LimitAction::RemoteAddress];
    assert_eq!(described(skips, &s).unwrap(), ["remote_address=10.1.2.3"]);
}

#[test]
fn a_policy_may_bring_its_limit_and_hits() {
    let mut s = routed("/", &[("x-cost", "3")]);
    let policy = |limit, hits| LimitPolicy {
        actions: Box::new([LimitAction::RemoteAddress]),
        limit,
        hits,
        ..LimitPolicy::default()
    };
    let fixed = Limit { requests_per_unit: 5, unit: LimitUnit::Hour };
    let cost = Hits { count: HitCount::Format(Format::envoy("%REQ(x-cost)%").unwrap()), is_negative: true };
    let told = |policy: LimitPolicy, stream: &Stream| {
        let made = policy.describe(stream).unwrap();
        (made.limit, made.hits, made.is_negative)
    };
    let both = policy(Some(LimitOverride::Fixed(fixed)), Some(cost));
    assert_eq!(told(both, &s), (Some(fixed), Some(3), true));
    let dynamic = || LimitOverride::Dynamic(["n".into(), "limit".into()].into());
    assert_eq!(told(policy(Some(dynamic()), None), &s).0, None);
    s.metadata.push(("n".into(), "limit".into(), json!({"requests_per_unit": 7, "unit": "DAY"})));
    let wanted = Limit { requests_per_unit: 7, unit: LimitUnit::Day };
    assert_eq!(told(policy(Some(dynamic()), None), &s).0, Some(wanted));
    s.metadata.push(("n".into(), "limit".into(), json!({"requests_per_unit": -7, "unit": "DAY"})));
    assert_eq!(told(policy(Some(dynamic()), None), &s).0, None);
    let nothing =
        Hits { count: HitCount::Format(Format::envoy("%REQ(x-none)%").unwrap()), is_negative: true };
    assert_eq!(told(policy(None, Some(nothing)), &s), (None, None, false));
}
