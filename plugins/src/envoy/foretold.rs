//! What every filter says of a request that nobody has sent.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::testing;
use sixfold_core::document::{Node, Options};
use sixfold_core::plugin::{FilterConfig, Plugin};
use sixfold_xds_api::json;

/// Types under `envoy.extensions.filters.http`, or others, with a configuration that has the filter look at requests, where it
/// can.
const FILTERS: [(&str, &str); 35] = [
    (
        "adaptive_concurrency.v3.AdaptiveConcurrency",
        "{gradient_controller_config: {concurrency_limit_params: {concurrency_update_interval: 1s}, min_rtt_calc_params: {interval: 1s}}}",
    ),
    ("admission_control.v3.AdmissionControl", "{success_criteria: {}}"),
    ("api_key_auth.v3.ApiKeyAuth", "{key_sources: [{header: x-key}], credentials: [{key: k, client: c}]}"),
    (
        "bandwidth_limit.v3.BandwidthLimit",
        "{stat_prefix: a, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 9}",
    ),
    ("basic_auth.v3.BasicAuth", "{users: {inline_string: 'jack:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M='}}"),
    ("buffer.v3.Buffer", "{max_request_bytes: 10}"),
    (
        "compressor.v3.Compressor",
        "{compressor_library: {name: gzip, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}}",
    ),
    ("cors.v3.Cors", "{}"),
    (
        "credential_injector.v3.CredentialInjector",
        "{credential: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic, credential: {name: client}}}}",
    ),
    ("csrf.v3.CsrfPolicy", "{filter_enabled: {default_value: {numerator: 100}}}"),
    ("custom_response.v3.CustomResponse", "{}"),
    (
        "decompressor.v3.Decompressor",
        "{decompressor_library: {name: gzip, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip}}}",
    ),
    ("ext_authz.v3.ExtAuthz", "{transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: c}}}"),
    ("ext_proc.v3.ExternalProcessor", "{grpc_service: {envoy_grpc: {cluster_name: c}}}"),
    (
        "fault.v3.HTTPFault",
        "{abort: {http_status: 503, percentage: {numerator: 5}}, delay: {fixed_delay: 2s, percentage: {numerator: 1}}}",
    ),
    ("grpc_http1_bridge.v3.Config", "{}"),
    ("grpc_json_transcoder.v3.GrpcJsonTranscoder", "{proto_descriptor_bin: ''}"),
    ("grpc_stats.v3.FilterConfig", "{}"),
    ("grpc_web.v3.GrpcWeb", "{}"),
    ("header_mutation.v3.HeaderMutation", "{mutations: {request_mutations: [{remove: a}]}}"),
    ("header_to_metadata.v3.Config", "{request_rules: [{header: a, on_header_present: {key: k}}]}"),
    (
        "health_check.v3.HealthCheck",
        "{pass_through_mode: false, headers: [{name: ':path', string_match: {exact: /h}}]}",
    ),
    ("jwt_authn.v3.JwtAuthentication", "{}"),
    (
        "local_ratelimit.v3.LocalRateLimit",
        "{stat_prefix: a, token_bucket: {max_tokens: 7, fill_interval: 1s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}",
    ),
    ("lua.v3.Lua", "{default_source_code: {inline_string: 'function envoy_on_request(handle) end'}}"),
    (
        "oauth2.v3.OAuth2",
        "{config: {token_endpoint: {cluster: c, uri: 'http://a/token', timeout: 1s}, authorization_endpoint: 'http://a/', \
         credentials: {client_id: me, token_secret: {name: client}, hmac_secret: {name: hmac}}, redirect_uri: 'http://b/', \
         redirect_path_matcher: {path: {exact: /}}, signout_path: {path: {exact: /out}}}}",
    ),
    ("on_demand.v3.OnDemand", "{}"),
    (
        "ratelimit.v3.RateLimit",
        "{domain: d, rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: c}}}}",
    ),
    ("rbac.v3.RBAC", "{rules: {}}"),
    (
        "set_filter_state.v3.Config",
        "{on_request_headers: [{object_key: a, factory_key: envoy.string, format_string: {text_format_source: {inline_string: b}}}]}",
    ),
    ("set_metadata.v3.Config", "{metadata: [{metadata_namespace: a, value: {b: c}}]}"),
    (
        "stateful_session.v3.StatefulSession",
        "{session_state: {name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState, name: x-host}}}",
    ),
    ("io.istio.http.peer_metadata.Config", "{downstream_discovery: [{istio_headers: {}}]}"),
    (
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "{alpn_override: [{upstream_protocol: HTTP11, alpn_override: [a]}]}",
    ),
    ("stats.PluginConfig", "{}"),
];

fn built(kind: &str, config: &str) -> Plugin {
    let registry = crate::registry();
    let factory = registry.filter(kind).unwrap_or_else(|| panic!("{kind}"));
    let node = Node::parse(config, &Options::default()).unwrap();
    let config = json::encode_node(kind, &node).unwrap_or_else(|error| panic!("{kind}: {error}"));
    let (context, _) = testing::with_secrets(testing::context(), &[("client", "c"), ("hmac", "h")]);
    let given = FilterConfig { config: &config, ..FilterConfig::default() };
    factory.build(&given, &context).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

fn whole(short: &str) -> String {
    let is_whole = short.starts_with("io.") || short.starts_with("istio.") || short.starts_with("stats.");
    if is_whole { short.to_owned() } else { format!("envoy.extensions.filters.http.{short}") }
}

/// One that meets requests and says nothing would leave people without an answer what it does with theirs.
#[test]
fn every_filter_that_meets_requests_says_what_it_would_do() {
    let registry = crate::registry();
    for kind in registry.filter_types() {
        if registry.filter(kind).unwrap().json {
            continue;
        }
        let known = FILTERS.iter().find(|(short, _)| whole(short) == *kind);
        let (_, config) = known.unwrap_or_else(|| panic!("no configuration of {kind} is tried"));
        let plugin = built(kind, config);
        let says = plugin.is_judge() || plugin.foretell(&testing::routed("/", &[])).is_some();
        assert!(says || !plugin.meets_requests(), "{kind}");
    }
}

#[test]
fn what_depends_on_chance_or_on_other_requests_is_told_in_words() {
    let told = |short: &str| {
        let (_, config) = FILTERS.iter().find(|(known, _)| *known == short).unwrap();
        built(&whole(short), config).foretell(&testing::routed("/", &[])).unwrap()
    };
    assert_eq!(
        told("fault.v3.HTTPFault"),
        ["holds it for 2000 ms: 1 of 100 requests", "answers 503 (fault_filter_abort): 5 of 100 requests"]
    );
    assert_eq!(
        told("local_ratelimit.v3.LocalRateLimit"),
        ["answers 429 (local_rate_limited) once a bucket of 7 tokens is empty"]
    );
    assert_eq!(
        told("buffer.v3.Buffer"),
        ["holds a body until all of it has come, and answers 413 to more than 10 bytes"]
    );
    assert_eq!(
        told("bandwidth_limit.v3.BandwidthLimit"),
        ["lets 9 KiB of bodies pass a second, of all requests together"]
    );
    assert!(told("admission_control.v3.AdmissionControl")[0].starts_with("answers 503 ("));
    assert!(told("adaptive_concurrency.v3.AdaptiveConcurrency")[0].starts_with("answers 503 ("));
}
