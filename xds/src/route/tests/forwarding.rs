//! What routes do beside forwarding to their cluster.

use super::*;

/// Where each route's copies go: by the policies of the route, else of its virtual host, else of the table.
#[test]
fn mirrors_are_those_of_the_most_specific_level_that_has_any() {
    let table = |of_table: &str, of_host: &str| {
        let route = |policies: &str| {
            format!("{{match: {{prefix: /}}, route: {{cluster: a, request_mirror_policies: [{policies}]}}}}")
        };
        let routes = [route(""), route("{cluster: of-route}")].join(", ");
        let yaml = format!(
            "{{request_mirror_policies: [{of_table}], virtual_hosts: [{{name: v, domains: ['*'], request_mirror_policies: [{of_host}], routes: [{routes}]}}]}}"
        );
        let table = compile(&yaml).unwrap();
        let names = table.routes().map(|route| match &route.action {
            Action::Forward(forward) => forward
                .mirrors
                .iter()
                .flat_map(|mirrors| mirrors.iter())
                .map(|mirror| match &mirror.cluster {
                    ClusterChoice::Named(cell) => cell.name.to_string(),
                    other => format!("{other:?}"),
                })
                .collect::<Vec<_>>()
                .join(" "),
            other => panic!("{other:?}"),
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(table("", ""), ["", "of-route"]);
    assert_eq!(table("{cluster: of-table}", ""), ["of-table", "of-route"]);
    assert_eq!(table("{cluster: of-table}", "{cluster: one}, {cluster: two}"), ["one two", "of-route"]);
}

#[test]
fn a_mirror_takes_its_share_its_host_and_its_changes() {
    let mirror = |policy: &str| {
        let forward =
            forward(&format!("{{cluster: a, request_mirror_policies: [{{cluster: b, {policy}}}]}}"));
        let policy = &forward.mirrors.as_deref().unwrap()[0];
        format!("{:?} {:?} {}", policy.fraction.is_some(), policy.host, policy.changes.len())
    };
    assert_eq!(mirror("trace_sampled: true"), "false Suffixed 0");
    assert_eq!(mirror("disable_shadow_host_suffix_append: true"), "false Kept 0");
    let literal = mirror("host_rewrite_literal: h, disable_shadow_host_suffix_append: true");
    assert_eq!(literal, format!("false {:?} 0", MirrorHost::Literal(b"h"[..].into())));
    let changes = "request_headers_mutations: [{remove: a}, {append: {header: {key: a, value: b}}}]";
    let shared = mirror(&format!("runtime_fraction: {{default_value: {{numerator: 1}}}}, {changes}"));
    assert_eq!(shared, "true Suffixed 2");
}

#[test]
fn hedging_is_the_routes_or_else_its_hosts() {
    let on = "hedge_policy: {hedge_on_per_try_timeout: true, initial_requests: 2, additional_request_chance: {numerator: 1}}";
    let hedged = |of_host: &str, of_route: &str| {
        let route = format!("{{match: {{prefix: /}}, route: {{cluster: a, {of_route}}}}}");
        let table =
            compile(&format!("virtual_hosts: [{{name: v, domains: ['*'], {of_host}, routes: [{route}]}}]"));
        match &table.unwrap().routes().next().unwrap().action {
            Action::Forward(forward) => forward.hedge_on_per_try_timeout,
            other => panic!("{other:?}"),
        }
    };
    let off = "hedge_policy: {}";
    assert_eq!(
        [hedged("require_tls: NONE", off), hedged(on, "timeout: 1s"), hedged(on, off), hedged(off, on)],
        [false, true, false, true]
    );
}

#[test]
fn internal_redirects_have_a_number_statuses_and_predicates() {
    let policy =
        |action: &str| forward(&format!("{{cluster: a, {action}}}")).options.internal_redirect.clone();
    assert_eq!(policy("timeout: 1s"), None);
    let default = InternalRedirect::default();
    assert_eq!(policy("internal_redirect_policy: {}"), Some(default.clone().into()));
    let older = policy("internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 4");
    assert_eq!(older, Some(InternalRedirect { max: 4, ..default }.into()));
    let of = |kind: &str, fields: &str| {
        format!(
            "{{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.internal_redirect.{kind}, {fields}}}}}"
        )
    };
    let predicates = [
        of("allow_listed_routes.v3.AllowListedRoutesConfig", "allowed_route_names: [a, b]"),
        of("previous_routes.v3.PreviousRoutesConfig", ""),
        of("safe_cross_scheme.v3.SafeCrossSchemeConfig", ""),
    ];
    let all = policy(&format!(
        "internal_redirect_policy: {{max_internal_redirects: 3, redirect_response_codes: [307, 200, 301], predicates: [{}], allow_cross_scheme_redirect: true, response_headers_to_copy: [X-A]}}",
        predicates.join(", ")
    ))
    .unwrap();
    assert_eq!((all.max, all.codes, all.allow_cross_scheme), (3, vec![307, 301], true));
    assert_eq!(all.copied_headers[0].as_str(), "x-a");
    let names = ["a", "b"].map(Into::into).into();
    let expected = [
        RedirectPredicate::AllowedRoutes(names),
        RedirectPredicate::PreviousRoutes,
        RedirectPredicate::SafeCrossScheme,
    ];
    assert_eq!(*all.predicates, expected);
}
