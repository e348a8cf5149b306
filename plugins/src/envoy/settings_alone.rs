//! Settings of routes for filters that the listener does not have.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::testing;
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::FilterFactory;
use sixfold_xds_api::json;

/// Types of settings under `envoy.extensions.filters.http`, with some that are good, and some that are not where a message
/// of the type can be wrong at all.
const SETTINGS: [(&str, &str, Option<&str>); 24] = [
    ("api_key_auth.v3.ApiKeyAuthPerRoute", "{allowed_clients: [a]}", Some("{key_sources: [{}]}")),
    (
        "bandwidth_limit.v3.BandwidthLimit",
        "{stat_prefix: a, enable_mode: REQUEST, limit_kbps: 1}",
        Some("{stat_prefix: a, enable_mode: REQUEST}"),
    ),
    (
        "basic_auth.v3.BasicAuthPerRoute",
        "{users: {inline_string: 'jack:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M='}}",
        Some("{users: {inline_string: jack}}"),
    ),
    ("buffer.v3.BufferPerRoute", "{disabled: true}", Some("{buffer: {max_request_bytes: 0}}")),
    (
        "compressor.v3.CompressorPerRoute",
        "{overrides: {response_direction_config: {}}}",
        Some(
            "{overrides: {compressor_library: {name: l, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}}",
        ),
    ),
    ("cors.v3.CorsPolicy", "{}", Some("{allow_origin_string_match: [{safe_regex: {regex: (}}]}")),
    ("csrf.v3.CsrfPolicy", "{filter_enabled: {default_value: {numerator: 1}}}", Some("{}")),
    (
        "custom_response.v3.CustomResponse",
        "{}",
        Some(
            "{custom_response_matcher: {on_no_match: {action: {name: a, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}}}",
        ),
    ),
    (
        "ext_authz.v3.ExtAuthzPerRoute",
        "{check_settings: {context_extensions: {a: b}}}",
        Some("{check_settings: {grpc_service: {envoy_grpc: {}}}}"),
    ),
    (
        "ext_proc.v3.ExtProcPerRoute",
        "{overrides: {failure_mode_allow: true}}",
        Some("{overrides: {grpc_service: {envoy_grpc: {}}}}"),
    ),
    ("fault.v3.HTTPFault", "{}", Some("{abort: {http_status: 2, percentage: {numerator: 1}}}")),
    (
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "{proto_descriptor_bin: ''}",
        Some("{proto_descriptor: /nope, services: [a]}"),
    ),
    (
        "header_mutation.v3.HeaderMutationPerRoute",
        "{mutations: {request_mutations: [{remove: a}]}}",
        Some("{mutations: {request_mutations: [{append: {header: {key: a, value: '%NOPE%'}}}]}}"),
    ),
    (
        "header_to_metadata.v3.Config",
        "{request_rules: [{header: a, on_header_present: {key: k}}]}",
        Some("{request_rules: [{header: a}]}"),
    ),
    // A requirement that the filter does not have is told to each request.
    ("jwt_authn.v3.PerRouteConfig", "{requirement_name: none}", None),
    (
        "local_ratelimit.v3.LocalRateLimit",
        "{stat_prefix: a, token_bucket: {max_tokens: 1, fill_interval: 1s}}",
        Some("{stat_prefix: a}"),
    ),
    ("lua.v3.LuaPerRoute", "{disabled: true}", Some("{source_code: {inline_string: 'function ('}}")),
    (
        "oauth2.v3.OAuth2PerRoute",
        "{config: {token_endpoint: {cluster: c, uri: 'http://a/token', timeout: 1s}, authorization_endpoint: 'http://a/', \
         credentials: {client_id: me, token_secret: {name: client}, hmac_secret: {name: hmac}}, redirect_uri: 'http://b/', \
         redirect_path_matcher: {path: {exact: /}}, signout_path: {path: {exact: /out}}}}",
        Some("{}"),
    ),
    ("on_demand.v3.PerRouteConfig", "{}", Some("{odcds: {source: {ads: {}}}}")),
    ("ratelimit.v3.RateLimitPerRoute", "{domain: d}", Some("{rate_limits: [{}]}")),
    (
        "rbac.v3.RBACPerRoute",
        "{}",
        Some(
            "{rbac: {rules: {policies: {p: {permissions: [{url_path: {path: {safe_regex: {regex: '['}}}}], principals: [{any: true}]}}}}}",
        ),
    ),
    ("set_filter_state.v3.Config", "{}", Some("{on_request_headers: [{}]}")),
    ("set_metadata.v3.Config", "{metadata: [{metadata_namespace: a}]}", None),
    ("stateful_session.v3.StatefulSessionPerRoute", "{disabled: true}", Some("{}")),
];

fn checked(factory: &FilterFactory, kind: &str, settings: &str) -> Result<(), ConfigError> {
    let node = Node::parse(settings, &Options::default()).unwrap();
    let (context, _) = testing::with_secrets(testing::context(), &[("client", "c"), ("hmac", "h")]);
    factory.check_settings(&json::encode_node(kind, &node).unwrap(), &context)
}

/// Filters of Envoy 1.40 that ask for all levels (`getAllPerFilterConfig`), and ours that lays levels over each other. Of every
/// other the most specific level counts alone, also where that is of another type.
#[test]
fn filters_that_read_all_levels_are_known() {
    let registry = crate::registry();
    let factories = registry.filter_types().filter_map(|kind| registry.filter(kind));
    let all = factories.filter(|factory| factory.reads_all_levels && !factory.json);
    let short = |kind: &str| kind.rsplit('.').nth(2).unwrap().to_owned();
    assert_eq!(
        all.map(|factory| short(&factory.config_type)).collect::<Vec<_>>(),
        ["cors", "custom_response", "ext_authz", "ext_proc", "header_mutation", "set_filter_state"]
    );
}

/// Envoy looks at them by their type. They were looked at by nobody until a listener came that had the filter, which was
/// then without any routes.
#[test]
fn settings_of_every_filter_are_looked_at_without_it() {
    let registry = crate::registry();
    let factories = registry.filter_types().filter_map(|kind| registry.filter(kind));
    for factory in factories.filter(|factory| !factory.json) {
        let Some(kind) = factory.override_type.as_deref() else { continue };
        let short = kind.strip_prefix("envoy.extensions.filters.http.").unwrap();
        let known = SETTINGS.iter().find(|(known, ..)| *known == short);
        let (_, good, bad) = known.unwrap_or_else(|| panic!("no settings of {kind} are tried"));
        assert_eq!(checked(factory, kind, good).err(), None, "{kind}");
        if let Some(bad) = bad {
            assert!(checked(factory, kind, bad).is_err(), "{kind}");
        }
    }
}
