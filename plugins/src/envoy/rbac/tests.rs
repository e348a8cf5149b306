#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::testing::{self, Alone, now, stream};
use prost::Message;
use sixfold_core::plugin::FilterConfig;
use sixfold_xds_api::pb::envoy::config::rbac::v3::permission::Rule;
use sixfold_xds_api::pb::envoy::config::rbac::v3::principal::Identifier;
use sixfold_xds_api::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac as ProtoRules};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::path_matcher;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::{
    PathMatcher, StringMatcher, string_matcher::MatchPattern,
};

/// Rules whose only policy, `p`, is about one path.
fn about(path: &str, action: i32) -> ProtoRules {
    let path = StringMatcher { match_pattern: Some(MatchPattern::Exact(path.into())), ..Default::default() };
    let path = PathMatcher { rule: Some(path_matcher::Rule::Path(path)) };
    let policy = Policy {
        permissions: vec![Permission { rule: Some(Rule::UrlPath(path)) }],
        principals: vec![Principal { identifier: Some(Identifier::Any(true)) }],
        ..Policy::default()
    };
    ProtoRules { action, policies: [("p".to_owned(), policy)].into(), ..ProtoRules::default() }
}

const ALLOW: i32 = 0;
const DENY: i32 = 1;
const LOG: i32 = 2;

fn filter(config: &ProtoRbac, overrides: &[RbacPerRoute], context: &BuildContext) -> Alone {
    let (config, overrides) =
        (config.encode_to_vec(), overrides.iter().map(Message::encode_to_vec).collect::<Vec<_>>());
    let overrides: Vec<&[u8]> = overrides.iter().map(Vec::as_slice).collect();
    Alone::new(
        factory()
            .build(&FilterConfig { config: &config, overrides: &overrides, superseded: false }, context)
            .unwrap(),
    )
}

/// What is answered to a request for a path, and what the rules say of it beside.
fn answer(filter: &Alone, path: &str) -> (Option<(u16, String)>, Vec<String>) {
    let mut stream = stream(path, &[]);
    let reply = now(filter.access(&mut stream)).map(|reply| (reply.status, reply.details.to_string()));
    (reply, stream.metadata.iter().map(|(space, key, value)| format!("{space} {key} {value}")).collect())
}

#[test]
fn requests_are_denied_and_counted() {
    let context = BuildContext { scope: "http.h.".into(), ..testing::context() };
    let denied = |policy: &str| Some((403, format!("rbac_access_denied_matched_policy[{policy}]")));
    let config = ProtoRbac {
        rules: Some(about("/a", DENY)),
        rules_stat_prefix: "own_".into(),
        shadow_rules_stat_prefix: "shadow_".into(),
        ..Default::default()
    };
    let deny = filter(&config, &[], &context);
    assert_eq!(answer(&deny, "/a?b").0, denied("p"));
    assert_eq!(answer(&deny, "/b").0, None);
    let counted = || ["allowed", "denied"].map(|name| context.metrics.sum("http.h.rbac.own_", name));
    assert_eq!(counted(), [1, 1]);
    let of_route = ProtoRbac {
        rules: Some(about("/b", DENY)),
        rules_stat_prefix: "route_".into(),
        shadow_rules: Some(about("/b", DENY)),
        shadow_rules_stat_prefix: "route_".into(),
        ..Default::default()
    };
    let of_route = filter(&config, &[RbacPerRoute { rbac: Some(of_route) }], &context);
    assert_eq!(answer(&of_route, "/b").0, denied("p"));
    assert_eq!(counted(), [1, 2], "under the filter's own prefix");
    assert_eq!(context.metrics.sum("http.h.rbac.shadow_", "shadow_denied"), 1, "so are those that only say");
    let allow = filter(&ProtoRbac { rules: Some(about("/a", ALLOW)), ..Default::default() }, &[], &context);
    assert_eq!((answer(&allow, "/a").0, answer(&allow, "/b").0), (None, denied("none")));
    let log = filter(&ProtoRbac { rules: Some(about("/a", LOG)), ..Default::default() }, &[], &context);
    assert_eq!(answer(&log, "/a"), (None, vec!["envoy.common access_log_hint true".to_owned()]));
    assert_eq!(answer(&log, "/b").1, ["envoy.common access_log_hint false"]);
}

#[test]
fn shadow_rules_only_say_what_they_would_do() {
    let context = BuildContext { scope: "http.h.".into(), ..testing::context() };
    let config = ProtoRbac {
        shadow_rules: Some(about("/a", DENY)),
        shadow_rules_stat_prefix: "dry_".into(),
        ..Default::default()
    };
    let shadow = filter(&config, &[], &context);
    let told = |rest: &str| format!("envoy.filters.http.rbac dry_shadow_{rest}");
    let expected = vec![told("effective_policy_id \"p\""), told("engine_result \"denied\"")];
    assert_eq!(answer(&shadow, "/a"), (None, expected));
    assert_eq!(answer(&shadow, "/b").1, [told("engine_result \"allowed\"")]);
    let counted =
        ["shadow_allowed", "shadow_denied"].map(|name| context.metrics.sum("http.h.rbac.dry_.", name));
    assert_eq!(counted, [1, 1]);
}

#[test]
fn the_most_specific_configuration_holds_whole() {
    let context = testing::context();
    let deny = |path: &str| ProtoRbac { rules: Some(about(path, DENY)), ..Default::default() };
    let own = |rbac| RbacPerRoute { rbac };
    let of_route = filter(&deny("/a"), &[own(Some(deny("/b"))), own(Some(deny("/c")))], &context);
    let denies = |filter: &Alone| ["/a", "/b", "/c"].map(|path| answer(filter, path).0.is_some());
    assert_eq!(denies(&of_route), [false, false, true]);
    assert_eq!(denies(&filter(&deny("/a"), &[own(None)], &context)), [false; 3]);
    assert_eq!(denies(&filter(&ProtoRbac::default(), &[], &context)), [false; 3]);
}

#[test]
fn each_policy_is_counted_where_that_is_asked_for() {
    let context = BuildContext { scope: "http.h.".into(), ..testing::context() };
    let config = ProtoRbac {
        rules: Some(about("/a", ALLOW)),
        rules_stat_prefix: "own".into(),
        shadow_rules: Some(about("/a", DENY)),
        track_per_rule_stats: true,
        ..Default::default()
    };
    let counted = filter(&config, &[], &context);
    for path in ["/a", "/a", "/b"] {
        answer(&counted, path);
    }
    let sum = |prefix: &str, name| context.metrics.sum(prefix, name);
    assert_eq!(["allowed", "denied"].map(|name| sum("http.h.rbac.own.policy.p.", name)), [2, 0]);
    // Those of all together, and of the policy below them.
    assert_eq!(["allowed", "denied"].map(|name| sum("http.h.rbac.own.", name)), [2 + 2, 1]);
    assert_eq!(sum("http.h.rbac.policy.p.", "shadow_denied"), 2);
}
