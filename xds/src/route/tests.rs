#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod forwarding;
mod levels;

use std::time::{Duration, Instant};

use sixfold_core::headers::HeaderName;
use sixfold_core::internal_redirect::{InternalRedirect, RedirectPredicate};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::route::{
    Action, ClusterChoice, Decorator, Forward, HashInput, HostRewrite, MirrorHost, PathRewrite, RedirectPath,
    Route,
};
use sixfold_core::router::PathMatch;
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::*;
use crate::filters;
use crate::testing::{context, read, table};

const FILTERS: &str = "http_filters:\n- {name: web, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}\n- {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n";

fn compile_in(context: &Context, yaml: &str) -> Result<RouteTable> {
    let manager: HttpConnectionManager = read(FILTERS);
    let mut faults = Faults::default();
    let (filters, _) = filters::compile(context, &manager.http_filters, "http.s.", &mut faults);
    faults.end(())?;
    table(context, &filters, &read(yaml))
}

fn compile(yaml: &str) -> Result<RouteTable> {
    compile_in(&context(), yaml)
}

/// A table with one virtual host and one route.
fn one_route(route: &str) -> Result<Arc<Route>> {
    let table = compile(&format!("virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]"))?;
    Ok(table.routes().next().cloned().expect("one route"))
}

fn forward(action: &str) -> Forward {
    let route = one_route(&format!("{{match: {{prefix: /a}}, route: {action}}}")).unwrap();
    match Arc::into_inner(route).map(|route| route.action) {
        Some(Action::Forward(forward)) => forward,
        other => panic!("{other:?}"),
    }
}

fn refused(route: &str) -> String {
    let error = one_route(route).expect_err(route).to_string();
    error
        .strip_prefix("virtual_hosts[0].routes[0]")
        .unwrap_or(&error)
        .trim_start_matches(['.', ':', ' '])
        .to_owned()
}

fn refused_action(action: &str) -> String {
    refused(&format!("{{match: {{prefix: /a}}, route: {action}}}"))
}

#[test]
fn paths_are_compiled() {
    let path = |r#match: &str| {
        let route = one_route(&format!("{{match: {match}, non_forwarding_action: {{}}}}")).unwrap();
        format!("{:?}", route.path)
    };
    assert_eq!(path("{prefix: /a}"), format!("{:?}", PathMatch::Prefix(b"/a"[..].into(), false)));
    assert_eq!(
        path("{path: /a, case_sensitive: false}"),
        format!("{:?}", PathMatch::Exact(b"/a"[..].into(), true))
    );
    assert_eq!(path("{safe_regex: {regex: /a+}}"), "Regex(//a+/)");
    assert_eq!(
        path("{path_separated_prefix: /a}"),
        format!("{:?}", PathMatch::SeparatedPrefix(b"/a"[..].into(), false))
    );
    assert_eq!(path("{connect_matcher: {}}"), "Connect");
    assert!(path("{path_match_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/{b}'}}}").starts_with("Template"));
}

#[test]
fn conditions_keep_envoys_order() {
    let route = one_route(
        "{match: {prefix: /, headers: [{name: a}], query_parameters: [{name: q}], cookies: [{name: c, string_match: {exact: x}}], grpc: {}, tls_context: {presented: true}, runtime_fraction: {default_value: {numerator: 1}}}, non_forwarding_action: {}}",
    )
    .unwrap();
    let kinds: Vec<String> = route
        .predicates
        .iter()
        .map(|predicate| format!("{predicate:?}").split(['(', ' ', '{']).next().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["Fraction", "Grpc", "Header", "Query", "Cookie", "Tls"]);
}

#[test]
fn forwarding_has_envoys_defaults() {
    let plain = forward("{cluster: a}");
    assert_eq!(plain.timeouts.request, Some(Duration::from_secs(15)));
    assert_eq!(plain.cluster_not_found, 503);
    assert!(matches!(&plain.cluster, ClusterChoice::Named(cell) if &*cell.name == "a"));
    let off = forward(
        "{cluster: a, timeout: 0s, idle_timeout: 0s, cluster_not_found_response_code: NOT_FOUND, max_grpc_timeout: 0s, priority: HIGH}",
    );
    assert_eq!((off.timeouts.request, off.timeouts.idle), (None, Some(Duration::ZERO)));
    assert_eq!(off.timeouts.max_grpc, Some(Duration::ZERO));
    assert_eq!((off.cluster_not_found, off.high_priority), (404, true));
}

#[test]
fn rewrites_are_compiled_and_only_one_is_allowed() {
    assert!(
        matches!(forward("{cluster: a, prefix_rewrite: /b}").path_rewrite.as_deref(), Some(PathRewrite::Prefix(p)) if **p == *b"/b")
    );
    assert!(matches!(
        forward("{cluster: a, regex_rewrite: {pattern: {regex: '^/(.*)$'}, substitution: '/x/\\1'}}")
            .path_rewrite
            .as_deref(),
        Some(PathRewrite::Regex(..))
    ));
    assert!(matches!(
        forward("{cluster: a, path_rewrite: '/x%REQ(y)%'}").path_rewrite.as_deref(),
        Some(PathRewrite::Format(_))
    ));
    assert!(matches!(
        forward("{cluster: a, auto_host_rewrite: true}").host_rewrite.as_deref(),
        Some(HostRewrite::Endpoint)
    ));
    assert!(forward("{cluster: a, auto_host_rewrite: false}").host_rewrite.is_none());
    assert_eq!(
        refused_action("{cluster: a, prefix_rewrite: /b, path_rewrite: /c}"),
        "route.path_rewrite: must not be given together with prefix_rewrite"
    );
    assert_eq!(
        refused_action("{cluster: a, regex_rewrite: {pattern: {regex: a}, substitution: '\\1'}}"),
        "route.regex_rewrite.substitution: substitution refers to group 1 of 0"
    );
    assert!(refused_action("{cluster: a, path_rewrite: '%BOGUS%'}").starts_with("route.path_rewrite: "));
    let template = "path_match_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/{b}'}}";
    assert_eq!(
        refused(&format!("{{match: {{{template}}}, route: {{cluster: a, prefix_rewrite: /b}}}}")),
        "route.prefix_rewrite: can't be used with path_match_policy"
    );
    let rewrite = |text: &str| {
        format!(
            "{{match: {{{template}}}, route: {{cluster: a, path_rewrite_policy: {{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '{text}'}}}}}}}}"
        )
    };
    assert!(one_route(&rewrite("/c/{b}")).is_ok());
    assert!(refused(&rewrite("/c/{d}")).starts_with("route.path_rewrite_policy.typed_config: "));
}

#[test]
fn weighted_clusters_sum_up() {
    let weighted = forward(
        "{weighted_clusters: {header_name: x-r, clusters: [{name: a, weight: 1, host_rewrite_literal: h, request_headers_to_remove: [z]}, {cluster_header: x-c, weight: 0}]}}",
    );
    let ClusterChoice::Weighted(weighted) = weighted.cluster else { panic!("weighted") };
    assert_eq!((weighted.total, weighted.clusters.len()), (1, 2));
    assert_eq!(weighted.random_header, Some(HeaderTarget::of_request("x-r")));
    assert_eq!(weighted.clusters[0].host_rewrite.as_deref(), Some("h"));
    assert_eq!(
        refused_action("{weighted_clusters: {clusters: [{name: a, weight: 0}]}}"),
        "route.weighted_clusters.clusters: the sum of the weights must be between 1 and 4294967295"
    );
    assert_eq!(
        refused_action("{weighted_clusters: {clusters: [{name: a}]}}"),
        "route.weighted_clusters.clusters[0].weight: is missing"
    );
}

/// Most of these were refused as no header names, and `Host` was looked for among the other headers.
/// One below zero was a weight of 0.
#[test]
fn weights_are_whole_numbers_of_the_runtime() {
    let mut context = context();
    let values = r#"{"w.a": -1, "w.b": "7.5", "w.c": "18446744073709551616"}"#;
    context.runtime = Arc::new(Runtime::new(serde_json::from_str(values).unwrap()));
    let clusters = "[{name: a, weight: 50}, {name: b, weight: 50}, {name: c, weight: 3}]";
    let action = format!("{{weighted_clusters: {{runtime_key_prefix: w, clusters: {clusters}}}}}");
    let table = compile_in(
        &context,
        &format!(
            "virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {action}}}]}}]"
        ),
    );
    let table = table.unwrap();
    let Action::Forward(forward) = &table.routes().next().unwrap().action else { panic!("forwards") };
    let ClusterChoice::Weighted(weighted) = &forward.cluster else { panic!("weighted") };
    let weights: Vec<u64> = weighted.clusters.iter().map(|member| member.weight).collect();
    assert_eq!(weights, [50, 7, 3]);
}

#[test]
fn a_header_may_be_any_that_envoy_looks_up() {
    for (name, target) in [
        (":authority", HeaderTarget::Authority),
        ("Host", HeaderTarget::Authority),
        (":PATH", HeaderTarget::Path),
        (":method", HeaderTarget::Method),
        (":scheme", HeaderTarget::Scheme),
        (":status", HeaderTarget::Impossible),
        ("no name", HeaderTarget::Impossible),
    ] {
        let choice = forward(&format!("{{cluster_header: '{name}'}}")).cluster;
        assert!(matches!(choice, ClusterChoice::Header(found, _) if *found == target), "{name}");
        let rewrite = forward(&format!("{{cluster: a, host_rewrite_header: '{name}'}}"));
        let rewrite = rewrite.options.host_rewrite.as_deref();
        assert!(matches!(rewrite, Some(HostRewrite::Header(found)) if *found == target), "{name}");
        let weighted = forward(&format!(
            "{{weighted_clusters: {{header_name: '{name}', clusters: [{{cluster_header: '{name}', weight: 1}}]}}}}"
        ));
        let ClusterChoice::Weighted(weighted) = weighted.cluster else { panic!("weighted") };
        let member = &weighted.clusters[0].cluster;
        assert!(matches!(member, ClusterChoice::Header(found, _) if **found == target), "{name}");
        assert_eq!(weighted.random_header, Some(target.clone()), "{name}");
        let hash =
            forward(&format!("{{cluster: a, hash_policy: [{{header: {{header_name: '{name}'}}}}]}}")).options;
        assert!(matches!(&hash.hash[0].input, HashInput::Header(found, None) if *found == target), "{name}");
    }
    let retry = "{cluster: a, retry_policy: {retriable_headers: [{name: ':status'}, {name: Host}, {name: no name}], rate_limited_retry_back_off: {reset_headers: [{name: no name}]}}}";
    let retry = forward(retry).options.retry.clone().unwrap();
    let targets: Vec<_> = retry.response_headers.iter().map(|matcher| matcher.target.clone()).collect();
    let host = HeaderTarget::Header(HeaderName::new("host").unwrap());
    assert_eq!(targets, [HeaderTarget::Status, host, HeaderTarget::Impossible]);
    assert_eq!(retry.rate_limited.as_ref().unwrap().headers, [(HeaderTarget::Impossible, false)]);
}

#[test]
fn upgrades_and_hashes() {
    let action = forward(
        "{cluster: a, upgrade_configs: [{upgrade_type: WebSocket, enabled: false}], hash_policy: [{header: {header_name: ':path'}, terminal: true}, {cookie: {name: c, ttl: 0s}}, {connection_properties: {source_ip: false}}]}",
    );
    assert_eq!(action.upgrades[0], ("websocket".into(), false));
    assert_eq!((action.hash.len(), action.hash[0].terminal), (2, true));
    assert_eq!(
        refused_action("{cluster: a, upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]}"),
        "route.upgrade_configs[1].upgrade_type: \"A\" is given twice"
    );
    assert_eq!(
        refused_action("{cluster: a, upgrade_configs: [{upgrade_type: a, connect_config: {}}]}"),
        "route.upgrade_configs[0].connect_config: is for the upgrade type CONNECT alone"
    );
}

#[test]
fn operations_have_names() {
    let of = |decorator: &str| {
        one_route(&format!("{{match: {{prefix: /}}, decorator: {decorator}, non_forwarding_action: {{}}}}"))
    };
    let named = |propagate| Decorator { operation: "shop:80/*".into(), propagate };
    assert_eq!(of("{operation: 'shop:80/*'}").unwrap().decorator(), Some(&named(true)));
    assert_eq!(of("{operation: 'shop:80/*', propagate: false}").unwrap().decorator(), Some(&named(false)));
    assert!(one_route("{match: {prefix: /}, non_forwarding_action: {}}").unwrap().rare.is_none());
    assert_eq!(
        refused("{match: {prefix: /}, decorator: {}, non_forwarding_action: {}}"),
        "decorator.operation: must not be empty"
    );
}

#[test]
fn routes_say_how_they_are_traced() {
    let of =
        |tracing: &str| format!("{{match: {{prefix: /}}, tracing: {tracing}, non_forwarding_action: {{}}}}");
    assert!(one_route(&of("{overall_sampling: {}}")).unwrap().tracing().is_some());
    assert!(one_route("{match: {prefix: /}, non_forwarding_action: {}}").unwrap().tracing().is_none());
    assert_eq!(refused(&of("{operation: a}")), "tracing.operation: is not supported");
}

#[test]
fn redirects_and_direct_responses() {
    let action = |text: &str| {
        let route = one_route(&format!("{{match: {{prefix: /}}, {text}}}")).unwrap();
        Arc::into_inner(route).unwrap().action
    };
    let Action::Redirect(redirect) = action(
        "redirect: {https_redirect: true, prefix_rewrite: /b, response_code: PERMANENT_REDIRECT, port_redirect: 8443}",
    ) else {
        panic!("redirect")
    };
    assert_eq!(
        (redirect.status, redirect.scheme.as_deref(), redirect.port),
        (308, Some("https"), Some(8443))
    );
    assert!(matches!(redirect.path, RedirectPath::Prefix(prefix) if &*prefix == b"/b"));
    let Action::Direct(direct) = action("direct_response: {status: 418, body: {inline_string: tea}}") else {
        panic!("direct")
    };
    assert_eq!((direct.status, &direct.body[..]), (418, &b"tea"[..]));
    assert_eq!(
        refused("{match: {prefix: /}, direct_response: {status: 600}}"),
        "direct_response.status: must be a status code between 200 and 599, not 600"
    );
    let big = format!(
        "{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {}}}}}}}",
        "x".repeat(4097)
    );
    assert_eq!(refused(&big), "direct_response.body: has 4097 bytes, more than the limit of 4096");
    assert_eq!(
        refused("{match: {prefix: /}, redirect: {port_redirect: 65536}}"),
        "redirect.port_redirect: 65536 is no port number"
    );
}

#[test]
fn what_must_be_refused_is_refused_by_name() {
    let cases = [
        ("{route: {cluster: a}}", "match: is missing"),
        (
            "{match: {}, route: {cluster: a}}",
            "match: one of prefix, path, safe_regex, connect_matcher, path_separated_prefix, path_match_policy is missing",
        ),
        (
            "{match: {prefix: /}}",
            "one of route, redirect, direct_response, filter_action, non_forwarding_action is missing",
        ),
        (
            "{match: {prefix: /}, route: {}}",
            "route: one of cluster, cluster_header, weighted_clusters, cluster_specifier_plugin, inline_cluster_specifier_plugin is missing",
        ),
        ("{match: {prefix: /}, filter_action: {}}", "filter_action: is not supported"),
        (
            "{match: {path_separated_prefix: /a/}, route: {cluster: a}}",
            "match.path_separated_prefix: \"/a/\" must hold no \"?\" or \"#\" and must not end in \"/\"",
        ),
        (
            "{match: {prefix: /, dynamic_metadata: [{filter: f, value: {present_match: true}}]}, route: {cluster: a}}",
            "match.dynamic_metadata[0].path: is missing",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a, rate_limits: [{}]}}",
            "route.rate_limits[0].actions: must not be empty",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a, internal_redirect_policy: {response_headers_to_copy: [':path']}}}",
            "route.internal_redirect_policy.response_headers_to_copy[0]: \":path\": pseudo headers and host may not be copied",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a, internal_redirect_policy: {predicates: [{name: p, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.Route}}]}}}",
            "route.internal_redirect_policy.predicates[0].typed_config: internal redirect predicate \"p\" of type envoy.config.route.v3.Route is not supported",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b}, {}]}}",
            "route.request_mirror_policies[1].cluster: must not be empty",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, request_headers_mutations: [{remove: host}, {remove_on_match: {}}]}]}}",
            "route.request_mirror_policies[0].request_headers_mutations[0].remove: \"host\": pseudo headers and host may not be changed here (and 1 more fault)",
        ),
        (
            "{match: {prefix: /}, route: {cluster_specifier_plugin: x}}",
            "route.cluster_specifier_plugin: is not supported",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a}, per_request_buffer_limit_bytes: 1, request_body_buffer_limit: 1}",
            "per_request_buffer_limit_bytes: must not be given together with request_body_buffer_limit",
        ),
        (
            "{match: {safe_regex: {regex: '('}}, route: {cluster: a}}",
            "match.safe_regex.regex: invalid regex '(': unclosed group",
        ),
    ];
    for (route, expected) in cases {
        assert_eq!(refused(route), expected, "{route}");
    }
}

#[test]
fn tables_are_refused_as_a_whole() {
    let refused = |yaml: &str| compile(yaml).expect_err(yaml).to_string();
    let host = |name: &str, domain: &str| format!("{{name: {name}, domains: ['{domain}']}}");
    assert!(
        refused(&format!("virtual_hosts: [{}, {}]", host("a", "x.test"), host("b", "X.test")))
            .contains("test")
    );
    assert!(compile(&format!("virtual_hosts: [{}, {}]", host("a", "*"), host("b", "*"))).is_err());
    // Names are for statistics, and Envoy takes them twice.
    compile(&format!("virtual_hosts: [{}, {}]", host("a", "x"), host("a", "y"))).unwrap();
    assert_eq!(refused("virtual_hosts: [{name: a}]"), "virtual_hosts[0].domains: must not be empty");
    assert_eq!(refused("vhds: {}"), "vhds: is not supported");
    assert_eq!(
        refused("virtual_hosts: [{name: a, domains: [a], virtual_clusters: [{name: c}]}]"),
        "virtual_hosts[0].virtual_clusters[0].headers: must not be empty"
    );
    assert_eq!(
        refused(
            "virtual_hosts: [{name: a, domains: [a], matcher: {}, routes: [{match: {prefix: /}, non_forwarding_action: {}}]}]"
        ),
        "virtual_hosts[0].matcher: must not be given together with routes"
    );
    assert_eq!(
        refused("virtual_hosts: [{name: a, domains: [a], matcher: {matcher_list: {}}}]"),
        "virtual_hosts[0].matcher.matcher_list.matchers: must not be empty"
    );
}

#[test]
fn clusters_are_validated_when_asked() {
    let mut context = context();
    let table = |cluster: &str, validate: &str| {
        format!(
            "{validate}\nvirtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]"
        )
    };
    let unknown = |name: &str| {
        format!(
            "virtual_hosts[0].routes[0].route.cluster: unknown cluster \"{name}\"; did you mean \"known\"?"
        )
    };
    context.sent_clusters.add(&"known".into());
    // What comes by itself asks for it, and was not heard.
    assert!(compile_in(&context, &table("knwon", "")).is_ok());
    let asked = compile_in(&context, &table("knwon", "validate_clusters: true"));
    assert_eq!(asked.unwrap_err().to_string(), unknown("knwon"));
    // A table within a listener of a control plane was not checked either.
    context.validate_clusters = true;
    assert!(compile_in(&context, &table("known", "")).is_ok());
    assert_eq!(compile_in(&context, &table("knwon", "")).unwrap_err().to_string(), unknown("knwon"));
    assert!(compile_in(&context, &table("other", "validate_clusters: false")).is_ok());
    context.bootstrap_clusters = Arc::new(["other".to_owned()].into());
    assert!(compile_in(&context, &table("other", "")).is_ok());
    context.sent_clusters.remove("known");
    assert!(compile_in(&context, &table("known", "")).is_err());
}

const GRPC_WEB: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";

fn chain_of(overrides: &str) -> Result<Option<Vec<String>>> {
    let route = one_route(&format!(
        "{{match: {{prefix: /}}, non_forwarding_action: {{}}, typed_per_filter_config: {{{overrides}}}}}"
    ))?;
    Ok(route.chain.as_ref().map(|chain| crate::testing::shown(chain)))
}

#[test]
fn filters_take_settings_by_route() {
    assert_eq!(chain_of("").unwrap(), None);
    assert_eq!(chain_of(&format!("web: {{{GRPC_WEB}}}")).unwrap().unwrap(), ["web [Access, Log]"]);
    let config = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
    assert!(chain_of(&format!("web: {{{config}, disabled: true}}")).unwrap().unwrap().is_empty());
    assert_eq!(
        chain_of(&format!("web: {{{config}, config: {{{GRPC_WEB}}}}}")).unwrap().unwrap(),
        ["web [Access, Log]"]
    );
    // Those of another filter's type are passed over, as in Envoy.
    assert_eq!(
        chain_of("web: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute}")
            .unwrap()
            .unwrap(),
        ["web [Access]"]
    );
    assert_eq!(
        chain_of("other: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute}")
            .unwrap()
            .unwrap(),
        ["web [Access]"],
        "settings for a filter that is not there are left alone"
    );
}

/// Envoy finds filters by the types of their settings, in the listener's list or not.
#[test]
fn settings_that_no_filter_takes_are_refused() {
    let said = |overrides: &str| {
        let route = "match: {prefix: /}, non_forwarding_action: {}, typed_per_filter_config";
        refused(&format!("{{{route}: {{{overrides}}}}}")).replace("typed_per_filter_config.", "")
    };
    let of = |kind: &str| format!("'@type': type.googleapis.com/{kind}");
    let of_filter = |kind: &str| of(&format!("envoy.extensions.filters.http.{kind}"));
    let wrapped = |rest: &str| format!("{}{rest}", of("envoy.config.route.v3.FilterConfig"));
    let http = "envoy.extensions.filters.http";
    for (kind, reason) in [
        (
            of_filter("router.v3.Router"),
            format!("no filter takes settings of type {http}.router.v3.Router from routes"),
        ),
        (
            of("google.protobuf.Empty"),
            "no filter takes settings of type google.protobuf.Empty from routes".to_owned(),
        ),
        (
            of_filter("credential_injector.v3.CredentialInjector"),
            format!(
                "the filter of type {http}.credential_injector.v3.CredentialInjector takes no settings from routes"
            ),
        ),
    ] {
        assert_eq!(said(&format!("other: {{{kind}}}")), format!("other: {reason}"));
        let inner = wrapped(&format!(", config: {{{kind}}}"));
        assert_eq!(said(&format!("other: {{{inner}}}")), format!("other.config: {reason}"));
        for passed_over in ["is_optional", "disabled"] {
            let settings = wrapped(&format!(", {passed_over}: true, config: {{{kind}}}"));
            assert!(chain_of(&format!("other: {{{settings}}}")).is_ok());
        }
    }
    let no_users = of_filter("basic_auth.v3.BasicAuthPerRoute");
    assert_eq!(said(&format!("other: {{{no_users}}}")), "other.users: is missing");
    for name in ["web", "other"] {
        assert_eq!(said(&format!("{name}: {{{}}}", wrapped(""))), format!("{name}.config: is missing"));
        assert!(chain_of(&format!("{name}: {{{}}}", wrapped(", config: {}"))).is_ok());
    }
    // A message in which nothing is said fits every type; one of a filter that this binary does not have is passed over.
    assert!(chain_of(&format!("other: {{{}}}", of_filter("compressor.v3.Compressor"))).is_ok());
    assert!(chain_of(&format!("other: {{{}}}", of_filter("aws_lambda.v3.PerRouteConfig"))).is_ok());
    let level = format!("typed_per_filter_config: {{other: {{{}}}}}", of_filter("router.v3.Router"));
    let table = format!("{level}, virtual_hosts: []");
    let host = format!("virtual_hosts: [{{name: v, domains: ['*'], {level}}}]");
    for (text, at) in [(table, ""), (host, "virtual_hosts[0].")] {
        let error = compile(&format!("{{{text}}}")).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{at}typed_per_filter_config.other: ")), "{error}");
    }
}

#[test]
fn equal_settings_share_a_chain() {
    let route = |settings: &str| {
        format!(
            "{{match: {{prefix: /}}, non_forwarding_action: {{}}, typed_per_filter_config: {{{settings}}}}}"
        )
    };
    let web = route(&format!("web: {{{GRPC_WEB}}}"));
    let table =
        compile(&format!("virtual_hosts: [{{name: v, domains: ['*'], routes: [{web}, {web}]}}]")).unwrap();
    let chains: Vec<_> = table.routes().map(|route| route.chain.clone().unwrap()).collect();
    assert!(Arc::ptr_eq(&chains[0], &chains[1]));
}

const JSON: &str =
    "'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/test.Json";
const JSON_FILTERS: &str = "http_filters:\n- {name: js, typed_config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/test.Json}}\n";

fn json_chains(yaml: &str) -> Result<RouteTable> {
    let (context, mut faults) = (context(), Faults::default());
    let manager: HttpConnectionManager = read(JSON_FILTERS);
    let (filters, _) = filters::compile(&context, &manager.http_filters, "http.s.", &mut faults);
    table(&context, &filters, &read(yaml))
}

/// Envoy asks the route alone what is said of filters; what virtual hosts and tables say of them counted without one too.
#[test]
fn requests_without_a_route_have_no_chain_of_their_own() {
    let settings = format!("typed_per_filter_config: {{js: {{{GRPC_WEB}}}}}");
    let route = "{match: {path: /a}, non_forwarding_action: {}}";
    let table = json_chains(&format!(
        "virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}], {settings}}}]\n{settings}"
    ));
    let table = table.unwrap();
    let address = ([127, 0, 0, 1], 1).into();
    let connection = Arc::new(sixfold_core::connection::Connection::plain(address, address));
    let found = |path: &str| {
        let mut stream = sixfold_core::stream::Stream::new(connection.clone());
        stream.request.target.set(path.as_bytes());
        stream.request.authority = b"v".to_vec();
        let found = table.find(&mut stream).unwrap();
        let has_route = found.route.is_some();
        (stream.virtual_host, stream.route) = (Some(found.virtual_host), found.route);
        (has_route, sixfold_core::draw::chain(&stream).is_some())
    };
    assert_eq!([found("/a"), found("/b")], [(true, true), (false, false)]);
}

/// Both kinds of struct carry it, in the old place and in a `FilterConfig`; what two routes count is not one.
#[test]
fn a_filter_may_be_configured_by_json() {
    let table = |settings: &str, other: &str| {
        let route = |path: &str, settings: &str| {
            format!(
                "{{name: r, match: {{prefix: {path}}}, non_forwarding_action: {{}}, typed_per_filter_config: {{{settings}}}}}"
            )
        };
        let host = |name: &str, settings: &str| {
            format!("{{name: {name}, domains: [{name}], routes: [{}]}}", route("/", settings))
        };
        json_chains(&format!("virtual_hosts: [{}, {}]", host("a", settings), host("b", other)))
    };
    let of = |kind: &str, value: &str| {
        format!(
            "js: {{'@type': type.googleapis.com/{kind}.TypedStruct, type_url: type.googleapis.com/test.Json, value: {{{value}}}}}"
        )
    };
    let (xds, udpa) = (of("xds.type.v3", "n: 1"), of("udpa.type.v1", "n: 1"));
    let made = table(&xds, &udpa).unwrap();
    let chains: Vec<_> = made.routes().map(|route| route.chain.clone().unwrap()).collect();
    assert_eq!(crate::testing::shown(&chains[0]), ["js [Access]"]);
    assert!(!Arc::ptr_eq(&chains[0].members()[0].plugin, &chains[1].members()[0].plugin));
    let wrapped = "js: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: a/test.Json, value: {bad: true}}}";
    assert_eq!(
        table(&xds, wrapped).unwrap_err().to_string(),
        "virtual_hosts[1].routes[0].typed_per_filter_config.js.config.value.bad: of js/b/r"
    );
    // Of another type there are none: both hosts have the filter's own.
    let others = table(&format!("js: {{{GRPC_WEB}}}"), "").unwrap();
    assert_eq!(
        others.routes().filter_map(|route| route.chain.as_deref()).map(crate::testing::shown).next().unwrap(),
        ["js [Access]"]
    );
    let nobody = xds.replace("js:", "nobody:");
    assert!(table(&nobody, "").is_ok(), "a type that this binary has is known without the filter");
    let nobody = table(&nobody.replace("n: 1", "bad: true"), "").unwrap_err().to_string();
    assert!(
        nobody.starts_with("virtual_hosts[0].routes[0].typed_per_filter_config.nobody.value.bad: "),
        "{nobody}"
    );
    // The rules of what a struct stands for were not asked.
    let lacks = xds
        .replace("test.Json", "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute")
        .replace("n: 1", "");
    assert_eq!(
        table(&lacks, "").unwrap_err().to_string(),
        "virtual_hosts[0].routes[0].typed_per_filter_config.js.value: one of disabled, overrides is missing"
    );
}

/// The faults of a table for a connection manager with these filters.
fn faults_with(http_filters: &str, table_of: &str) -> Vec<String> {
    let (context, mut faults) = (context(), Faults::default());
    let manager: HttpConnectionManager = read(&format!("http_filters: [{http_filters}]"));
    let (filters, _) = filters::compile(&context, &manager.http_filters, "http.s.", &mut faults);
    let fault = table(&context, &filters, &read(table_of)).err();
    fault.into_iter().flat_map(ConfigError::into_all).map(|fault| fault.to_string()).collect()
}

const CORS: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3";

/// It was told of every level below too, and where nothing stands.
#[test]
fn a_fault_of_settings_is_told_by_its_level_alone() {
    let table = |of_table: &str, host: &str, route: &str, action: &str, cluster: &str| {
        let match_ = "match: {prefix: /}";
        let weighted = format!(
            "weighted_clusters: {{clusters: [{{name: c, weight: 1{cluster}}}, {{name: d, weight: 1}}]}}"
        );
        let routes = format!(
            "{{{match_}, route: {{cluster: c}}}}, {{{match_}, route: {{{weighted}{action}}}{route}}}, {{{match_}, non_forwarding_action: {{}}}}"
        );
        format!("{{virtual_hosts: [{{name: v, domains: ['*'], routes: [{routes}]{host}}}]{of_table}}}")
    };
    let typed = format!(", typed_per_filter_config: {{c: {{{CORS}.CorsPolicy, max_age: wrong}}}}");
    let wrapped = format!(
        ", typed_per_filter_config: {{c: {{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {{{CORS}.CorsPolicy, max_age: wrong}}}}}}"
    );
    let old = ", cors: {max_age: wrong}";
    let (host, route) = ("virtual_hosts[0].", "virtual_hosts[0].routes[1].");
    let said = |of: &str| format!("{of}typed_per_filter_config.c.max_age: is wrong");
    for filters in [
        "",
        &format!("{{name: c, typed_config: {{{CORS}.Cors}}}}"),
        &format!("{{name: c, disabled: true, typed_config: {{{CORS}.Cors}}}}"),
    ] {
        for (text, told) in [
            (table(&typed, "", "", "", ""), said("")),
            (table("", &typed, "", "", ""), said(host)),
            (table("", "", &typed, "", ""), said(route)),
            (table("", "", "", "", &typed), said(&format!("{route}route.weighted_clusters.clusters[0]."))),
            (
                table("", &wrapped, "", "", ""),
                format!("{host}typed_per_filter_config.c.config.max_age: is wrong"),
            ),
            (table("", old, "", "", ""), format!("{host}cors.max_age: is wrong")),
            (table("", "", "", old, ""), format!("{route}route.cors.max_age: is wrong")),
        ] {
            assert_eq!(faults_with(filters, &text), [told], "{filters}: {text}");
        }
        // Each level tells its own.
        let mut all = faults_with(filters, &table(&typed, &typed, &typed, old, ""));
        let mut each = [said(""), said(host), said(route), format!("{route}route.cors.max_age: is wrong")];
        all.sort();
        each.sort();
        assert_eq!(all, each, "{filters}");
    }
}

/// What is wrong with the filter itself, or with settings only in company, is told once, by who brings it.
#[test]
fn a_fault_of_a_filter_is_not_told_by_its_routes() {
    let js = |own: &str| format!("{{name: js, typed_config: {{{JSON}, value: {{{own}}}}}}}");
    let route = |settings: &str| {
        format!(
            "{{match: {{prefix: /}}, non_forwarding_action: {{}}, typed_per_filter_config: {{{settings}}}}}"
        )
    };
    let said = format!("js: {{{JSON}, value: {{}}}}");
    let host = |settings: &str, routes: &[&str]| {
        let routes = routes.iter().map(|settings| route(settings)).collect::<Vec<_>>().join(", ");
        format!(
            "virtual_hosts: [{{name: v, domains: ['*'], typed_per_filter_config: {{{settings}}}, routes: [{routes}]}}]"
        )
    };
    // Of its own fault the listener tells.
    assert_eq!(faults_with(&js("bad: true"), &host(&said, &["", &said])), [""; 0]);
    let in_company = "typed_per_filter_config.js.value.alone: is not";
    assert_eq!(
        faults_with(&js("alone: true"), &host("", &["", &said])),
        [format!("virtual_hosts[0].routes[1].{in_company}")]
    );
    assert_eq!(
        faults_with(&js("alone: true"), &host(&said, &["", &said])),
        [format!("virtual_hosts[0].{in_company}")]
    );
}

/// Envoy takes both; a name with two types was refused whatever a route said.
#[test]
fn a_name_may_stand_for_filters_of_two_types() {
    let filters =
        format!("{{name: n, typed_config: {{{GRPC_WEB}}}}}, {{name: n, typed_config: {{{CORS}.Cors}}}}");
    let table = |settings: &str| {
        format!(
            "virtual_hosts: [{{name: v, domains: ['*'], routes: [], typed_per_filter_config: {{n: {{{settings}}}}}}}]"
        )
    };
    assert_eq!(faults_with(&filters, &table(&format!("{CORS}.CorsPolicy"))), [""; 0]);
    assert_eq!(faults_with(&filters, &table(GRPC_WEB)), [""; 0]);
    let wrong = faults_with(&filters, &table(&format!("{CORS}.CorsPolicy, max_age: wrong")));
    assert_eq!(wrong, ["virtual_hosts[0].typed_per_filter_config.n.max_age: is wrong"]);
}

/// A generous bound for unoptimised builds on a busy machine; it is about a tenth of that in release.
#[test]
fn five_thousand_routes_compile_quickly() {
    let routes: String = (0..5000)
        .map(|i| format!("  - {{match: {{prefix: /service/{i}/, headers: [{{name: x-tenant, string_match: {{exact: t{i}}}}}]}}, route: {{cluster: c{}, retry_policy: {{retry_on: 5xx}}}}, request_headers_to_add: [{{header: {{key: x, value: '%REQ(y)%'}}}}]}}\n", i % 10))
        .collect();
    let value: RouteConfiguration =
        read(&format!("virtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n{routes}"));
    let context = context();
    let manager: HttpConnectionManager = read(FILTERS);
    let (filters, _) = filters::compile(&context, &manager.http_filters, "http.s.", &mut Faults::default());
    let start = Instant::now();
    let table = table(&context, &filters, &value).unwrap();
    println!("5,000 routes compiled in {:?}", start.elapsed());
    assert_eq!(table.routes().count(), 5000);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn routes_are_led_to_by_a_tree() {
    let route = |name: &str| format!("name: {name}, match: {{prefix: /}}, non_forwarding_action: {{}}");
    let act = |kind: &str, fields: &str| {
        format!(
            "{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/envoy.config.route.v3.{kind}, {fields}}}}}}}"
        )
    };
    let list = format!("routes: [{{{}}}, {{{}}}]", route("two"), route("three"));
    let input = "{name: h, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x}}";
    let host = |on_match: &str| {
        format!(
            "virtual_hosts: [{{name: v, domains: ['*'], matcher: {{matcher_tree: {{input: {input}, exact_match_map: {{map: {{a: {on_match}, b: {}}}}}}}}}}}]",
            act("RouteList", &list)
        )
    };
    let table = compile(&host(&act("Route", &route("one")))).unwrap();
    let mut names: Vec<_> = table.routes().map(|route| route.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["one", "three", "two"]);
    let refused = |on_match: &str| compile(&host(on_match)).expect_err(on_match).to_string();
    let place = "virtual_hosts[0].matcher.matcher_tree.exact_match_map.map.a.action";
    assert_eq!(
        refused(&act("Route", "name: one, match: {prefix: /}")),
        format!(
            "{place}.typed_config: one of route, redirect, direct_response, filter_action, non_forwarding_action is missing"
        )
    );
    assert_eq!(
        refused(&act("RouteList", "routes: [{match: {}, non_forwarding_action: {}}]")),
        format!(
            "{place}.typed_config.routes[0].match: one of prefix, path, safe_regex, connect_matcher, path_separated_prefix, path_match_policy is missing"
        )
    );
    assert_eq!(
        refused(&act("Decorator", "operation: o")),
        format!(
            "{place}.typed_config: action \"a\" of type envoy.config.route.v3.Decorator is not supported"
        )
    );
}
