#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::hcm::{Detection, ForwardClientCert, ServerHeader};

use super::*;
use crate::testing::{context, read};
use prost::Message;
use sixfold_core::runtime::Runtime;

/// A connection manager of these fields beside the ones that must be there.
fn manager(fields: &str) -> Result<HttpConnectionManager> {
    manager_in(&context(), fields)
}

fn manager_in(context: &Context, fields: &str) -> Result<HttpConnectionManager> {
    let rest = "http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
    let routes = if fields.contains("rds:") { "" } else { "route_config: {}" };
    let prefix = if fields.contains("stat_prefix") { "" } else { "stat_prefix: s" };
    let filters = if fields.contains("http_filters") { "" } else { rest };
    let manager: ProtoManager = read(&format!("{prefix}\n{filters}\n{routes}\n{fields}\n"));
    compile(
        context,
        &manager.encode_to_vec(),
        ChainPlace { chain: 1, buffer_limit: 1 << 20, outbound: false },
    )
}

fn refused(fields: &str) -> String {
    manager(fields).expect_err(fields).to_string()
}

#[test]
fn defaults_are_envoys() {
    let manager = manager("").unwrap();
    assert_eq!(&*manager.headers.server_name, "envoy");
    assert!(manager.headers.generate_request_id && !manager.path.normalize && !manager.path.merge_slashes);
    assert!(!manager.path.cut_fragment);
    assert_eq!(manager.timeouts.stream_idle, Some(Duration::from_secs(300)));
    assert_eq!(manager.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!((manager.timeouts.request, manager.codec), (None, CodecType::Auto));
    assert_eq!(manager.headers.xfcc, ForwardClientCert::Sanitize);
    assert!(manager.client_address.internal_ranges.is_empty(), "nothing is internal by default");
}

/// Every bootstrap of Istio's agent has this key, and requests with a fragment were refused all the same.
#[test]
fn a_runtime_key_lets_fragments_through() {
    for value in [serde_json::json!(false), serde_json::json!("false")] {
        let mut context = context();
        context.runtime = Arc::new(Runtime::new([(REJECT_FRAGMENT.to_owned(), value)].into()));
        assert!(manager_in(&context, "").unwrap().path.cut_fragment);
    }
}

/// It was read as a boolean: 100 was off.
#[test]
fn paths_are_normalised_where_the_runtime_says_so_in_percent() {
    let normalizes = |value: serde_json::Value, fields: &str| {
        let mut context = context();
        let key = "http_connection_manager.normalize_path".to_owned();
        context.runtime = Arc::new(Runtime::new([(key, value)].into()));
        manager_in(&context, fields).unwrap().path.normalize
    };
    assert!(normalizes(serde_json::json!(100), "") && normalizes(serde_json::json!("100"), ""));
    assert!(!normalizes(serde_json::json!(0), "") && !normalizes(serde_json::json!(true), ""));
    assert!(!normalizes(serde_json::json!(100), "normalize_path: false"));
}

#[test]
fn fields_reach_the_model() {
    let manager = manager(
        "codec_type: HTTP2\nserver_name: gw\nserver_header_transformation: PASS_THROUGH\nnormalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD\nstrip_any_host_port: true\nuse_remote_address: true\nxff_num_trusted_hops: 2\ninternal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}\nupgrade_configs: [{upgrade_type: WebSocket}]\nstream_idle_timeout: 0s\nrequest_timeout: 5s\nadd_user_agent: true\nforward_client_cert_details: APPEND_FORWARD\nset_current_client_cert_details: {uri: true}\nproxy_status_config: {use_node_id: true}\nlocal_reply_config: {mappers: [{filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 500, runtime_key: k}}}}, status_code: 502, headers_to_add: [{header: {key: a, value: b}}]}]}",
    )
    .unwrap();
    assert_eq!((manager.codec, &*manager.headers.server_name), (CodecType::Http2, "gw"));
    assert_eq!(manager.headers.server, ServerHeader::PassThrough);
    assert!(manager.path.normalize && manager.path.merge_slashes && manager.path.strip_any_port);
    assert_eq!(manager.path.escaped_slashes, EscapedSlashes::UnescapeAndForward);
    assert_eq!((manager.client_address.use_remote_address, manager.client_address.trusted_hops), (true, 2));
    assert_eq!(manager.client_address.internal_ranges[0].to_string(), "10.0.0.0/8");
    assert_eq!(manager.upgrades[0], ("websocket".into(), true));
    assert_eq!(
        (manager.timeouts.stream_idle, manager.timeouts.request),
        (None, Some(Duration::from_secs(5)))
    );
    assert_eq!(manager.headers.add_user_agent, Some(("local".into(), "node".into())));
    assert!(manager.headers.xfcc_details.uri && !manager.headers.xfcc_details.subject);
    assert_eq!(&*manager.headers.proxy_status.unwrap().name, "node");
    assert_eq!(manager.local_reply.mappers[0].status, Some(502));
}

/// Nothing would forward; Envoy takes it and leaves requests without an answer.
#[test]
fn without_any_filter_no_request_has_a_route() {
    let routes = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: a}}]}]}";
    let table = |filters: &str| {
        let manager: ProtoManager = read(&format!("stat_prefix: s\n{filters}\n{routes}\n"));
        let place = ChainPlace { chain: 1, buffer_limit: 1 << 20, outbound: false };
        compile(&context(), &manager.encode_to_vec(), place).unwrap().routes.load().unwrap()
    };
    let router = "http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
    assert_eq!(table(router).routes().count(), 1);
    assert_eq!(table("http_filters: []").routes().count(), 0);
}

#[test]
fn detection_extensions() {
    let extension = |config: &str| {
        let fields = format!(
            "original_ip_detection_extensions: [{{name: d, typed_config: {{'@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.{config}}}}}]"
        );
        manager(&fields).map(|manager| manager.client_address.detection.into_iter().next().unwrap())
    };
    assert!(matches!(
        extension("xff.v3.XffConfig, xff_num_trusted_hops: 1").unwrap(),
        Detection::XffHops(1, true)
    ));
    assert!(matches!(
        extension("xff.v3.XffConfig, xff_trusted_cidrs: {cidrs: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, skip_xff_append: false").unwrap(),
        Detection::XffTrusted(ranges, false) if ranges.len() == 1
    ));
    assert!(matches!(
        extension("custom_header.v3.CustomHeaderConfig, header_name: x-real, reject_with_status: {code: Unauthorized}").unwrap(),
        Detection::Header { reject: Some(401), .. }
    ));
    assert_eq!(
        extension("custom_header.v3.CustomHeaderConfig, header_name: 'a b'").unwrap_err().to_string(),
        "original_ip_detection_extensions[0].typed_config.header_name: \"a b\" is no header name"
    );
}

#[test]
fn bad_and_unsupported_fields_are_refused_by_name() {
    for (fields, expected) in [
        ("stat_prefix: ''", "stat_prefix: must not be empty"),
        ("codec_type: HTTP3", "codec_type: HTTP3 is not supported"),
        ("rds: {route_config_name: x}", "rds.config_source: is missing"),
        ("http3_protocol_options: {}", "http3_protocol_options: is not supported"),
        (
            "early_header_mutation_extensions: [{name: a}]",
            "early_header_mutation_extensions: is not supported",
        ),
        ("append_local_overload: true", "append_local_overload: is not supported"),
        ("tracing: {provider: {name: x}}", "tracing.provider.typed_config: is missing"),
        (
            "strip_matching_host_port: true\nstrip_any_host_port: true",
            "strip_matching_host_port: must not be given together with strip_any_host_port",
        ),
        (
            "scheme_header_transformation: {scheme_to_overwrite: ftp}",
            "scheme_header_transformation.scheme_to_overwrite: must be http or https, not \"ftp\"",
        ),
        (
            "request_id_extension: {typed_config: {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, pack_trace_reason: false}}",
            "request_id_extension.typed_config.pack_trace_reason: is not supported",
        ),
        ("request_timeout: -1s", "request_timeout: must not be negative"),
        (
            "upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]",
            "upgrade_configs[1].upgrade_type: \"A\" is given twice",
        ),
        (
            "access_log: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig}}]",
            "access_log[0].typed_config.common_config: is missing",
        ),
        (
            "access_log: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /nowhere/a}}]",
            "access_log[0].typed_config: can't open /nowhere/a: No such file or directory (os error 2)",
        ),
        (
            "access_log: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, grpc_service: {envoy_grpc: {cluster_name: sds}}, common_config: {log_name: l, grpc_service: {envoy_grpc: {cluster_name: sds}}}}}]",
            "access_log[0].typed_config.grpc_service: only one of http_service, grpc_service and common_config.grpc_service may be given",
        ),
        (
            "access_log: [{name: a, filter: {response_flag_filter: {flags: [XX]}}, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]",
            "access_log[0].filter.response_flag_filter.flags: unknown response flag \"XX\"",
        ),
        (
            "set_current_client_cert_details: {issuer: true}",
            "set_current_client_cert_details.issuer: is not supported",
        ),
    ] {
        assert_eq!(refused(fields), expected, "{fields}");
    }
}

#[test]
fn filters_must_be_known_and_the_router_last() {
    let router = "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
    let filter = |kind: &str, more: &str| {
        format!(
            "{{name: f{more}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{kind}}}}}"
        )
    };
    let web = filter("grpc_web.v3.GrpcWeb", "");
    let lua = filter("lua.v3.Lua", "");
    let optional = filter("lua.v3.Lua", ", is_optional: true");
    let chain = |list: &[&str]| manager(&format!("http_filters: [{}]", list.join(", ")));
    assert_eq!(crate::testing::shown(&chain(&[&web, router]).unwrap().chain), ["f [Access]"]);
    assert!(chain(&[&optional, router]).unwrap().chain.members().is_empty());
    assert_eq!(
        chain(&[&lua, router]).unwrap_err().to_string(),
        "http_filters[0].typed_config: HTTP filter \"f\" of type envoy.extensions.filters.http.lua.v3.Lua is not supported"
    );
    // In a struct, as Istio's users write extensions, it was refused however optional, and not by its name.
    for kind in ["xds.type.v3", "udpa.type.v1"] {
        let of_struct = |more: &str| {
            format!(
                "{{name: myf{more}, typed_config: {{'@type': type.googleapis.com/{kind}.TypedStruct, type_url: a/foo.Bar, value: {{}}}}}}"
            )
        };
        assert!(chain(&[&of_struct(", is_optional: true"), router]).unwrap().chain.members().is_empty());
        assert_eq!(
            chain(&[&of_struct(""), router]).unwrap_err().to_string(),
            "http_filters[0].typed_config.type_url: HTTP filter \"myf\" of type foo.Bar is unknown"
        );
        // It was taken, where the same as itself is refused with all of the listener.
        let compressor =
            of_struct("").replace("foo.Bar", "envoy.extensions.filters.http.compressor.v3.Compressor");
        assert_eq!(
            chain(&[&compressor, router]).unwrap_err().to_string(),
            "http_filters[0].typed_config.value.compressor_library: is missing (HTTP filter \"myf\")"
        );
    }
    assert_eq!(
        chain(&[router, &web]).unwrap_err().to_string(),
        "http_filters[1]: must come before the router, which is the last filter (HTTP filter \"f\")"
    );
    assert_eq!(chain(&[&web, &web, router]).unwrap().chain.members().len(), 2, "Envoy takes a name twice");
    assert_eq!(
        chain(&[&web, &router.replace("name: r", "name: r, disabled: true")]).unwrap_err().to_string(),
        "http_filters[1].disabled: the router, which is the last filter, can't be (HTTP filter \"r\")"
    );
    let off = "{name: f, disabled: true, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}";
    assert!(chain(&[off, router]).unwrap().chain.members().is_empty());
    // What is wrong with it is told all the same.
    let off = crate::testing::injector("name: none").replace("{name: credential", "{name: f, disabled: true");
    assert_eq!(
        chain(&[&off, router]).unwrap_err().to_string(),
        "http_filters[0].typed_config.credential.name: there is no secret \"none\" (HTTP filter \"f\")"
    );
}
