//! Which levels of settings count for a filter where some are of another filter's type.

use super::*;

const WRAPPED: &str = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
const LUA: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute";

/// The chain of a route with these settings for the filter `n` of table, virtual host and route, of which an empty one says
/// nothing.
fn chain(filter: &str, [table_says, host, route]: [&str; 3]) -> Vec<String> {
    let level = |settings: &str| match settings {
        "" => String::new(),
        settings => format!(", typed_per_filter_config: {{n: {{{settings}}}}}"),
    };
    let yaml = format!(
        "{{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, non_forwarding_action: {{}}{}}}]{}}}]{}}}",
        level(route),
        level(host),
        level(table_says)
    );
    let (context, mut faults) = (context(), Faults::default());
    let manager: HttpConnectionManager = read(&format!("http_filters: [{{name: n, {filter}}}]"));
    let (filters, _) = filters::compile(&context, &manager.http_filters, "http.s.", &mut faults);
    let made = table(&context, &filters, &read(&yaml)).unwrap();
    made.routes().find_map(|route| route.chain.as_deref().map(crate::testing::shown)).unwrap()
}

/// Where the host turned an authenticator off, a route with settings of another type left it off; with Envoy the filter's own
/// configuration is in force again.
#[test]
fn settings_of_another_type_put_wider_ones_out_of_force() {
    let filter = format!("typed_config: {{{GRPC_WEB}}}");
    let policy = &*format!("{CORS}.CorsPolicy");
    let in_config = &*format!("{WRAPPED}, config: {{{policy}}}");
    for other in [policy, in_config, LUA] {
        assert_eq!(chain(&filter, ["", GRPC_WEB, other]), ["n [Access]"], "{other}");
        assert_eq!(chain(&filter, [GRPC_WEB, other, ""]), ["n [Access]"], "{other}");
        assert_eq!(chain(&filter, [GRPC_WEB, GRPC_WEB, other]), ["n [Access]"], "{other}");
        // What is narrower still counts.
        assert_eq!(chain(&filter, [GRPC_WEB, other, GRPC_WEB]), ["n [Access, Log]"], "{other}");
        // It is on again where it was off.
        let off = format!("{WRAPPED}, disabled: true");
        assert_eq!(chain(&filter, [GRPC_WEB, &off, other]), ["n [Access]"], "{other}");
    }
}

/// Envoy makes nothing of these, so that wider levels count.
#[test]
fn what_says_nothing_leaves_wider_settings_in_force() {
    let filter = format!("typed_config: {{{GRPC_WEB}}}");
    let unknown = &*format!(
        "{WRAPPED}, is_optional: true, config: {{'@type': type.googleapis.com/google.protobuf.Duration, value: 1s}}"
    );
    let without_settings = &*format!(
        "{WRAPPED}, is_optional: true, config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    );
    let on = &*format!("{WRAPPED}, config: {{}}");
    for nothing in [unknown, without_settings, on] {
        assert_eq!(chain(&filter, ["", GRPC_WEB, nothing]), ["n [Access, Log]"], "{nothing}");
    }
}

#[test]
fn a_filter_that_reads_all_levels_is_told_that_it_is_superseded() {
    let filter = format!("typed_config: {{{CORS}.Cors}}");
    let policy = &*format!("{CORS}.CorsPolicy");
    assert_eq!(chain(&filter, [policy, policy, ""]), ["n [Access, Log, Log]"]);
    assert_eq!(chain(&filter, [policy, GRPC_WEB, policy]), ["n [Access, Log, Log]"]);
    assert_eq!(chain(&filter, [policy, GRPC_WEB, ""]), ["n [Access, Log, HeaderFilter]"]);
    assert_eq!(chain(&filter, ["", GRPC_WEB, ""]), ["n [Access]"]);
}

/// Optional settings are passed over where nobody knows them, and not where their filter takes others of routes.
#[test]
fn optional_settings_of_a_filters_own_type_are_refused() {
    let own = "'@type': type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuth";
    let settings =
        format!("other: {{{WRAPPED}, is_optional: true, config: {{{own}, forward_username_header: a}}}}");
    let route = format!(
        "{{match: {{prefix: /}}, non_forwarding_action: {{}}, typed_per_filter_config: {{{settings}}}}}"
    );
    let http = "envoy.extensions.filters.http.basic_auth.v3";
    assert_eq!(
        refused(&route),
        format!(
            "typed_per_filter_config.other.config: must be of type {http}.BasicAuthPerRoute, as the filter of type {http}.BasicAuth takes, not {http}.BasicAuth"
        )
    );
}
