#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::connection::Connection;
use sixfold_core::listener::{
    ClientBytes, Closing, ConnectAttempts, FilterStep, ListenerFilter, NetworkFilter, SourceType,
};
use sixfold_core::plugin::{Scope, Slot};
use sixfold_core::stream::Stream;

use super::*;
use crate::testing::{context, read};

const DIRECT: &str = "filters: [{name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {inline_string: hi}}}]";

/// A listener of these fields beside the ones that must be there.
fn compiled(fields: &str) -> std::result::Result<Listener, ConfigError> {
    let address = if fields.contains("address:") && !fields.contains("additional") {
        ""
    } else {
        "address: {socket_address: {address: 127.0.0.1, port_value: 80}}"
    };
    let chains = if fields.contains("filter_chain") {
        String::new()
    } else {
        format!("filter_chains: [{{{DIRECT}}}]")
    };
    compile(&context(), &read(&format!("name: l\n{address}\n{chains}\n{fields}\n")))
}

fn refused(fields: &str) -> String {
    let error = compiled(fields).expect_err(fields).to_string();
    error.strip_prefix("listener \"l\": ").expect("names the listener").to_owned()
}

#[test]
fn defaults_are_envoys() {
    let listener = compiled("").unwrap();
    assert_eq!(listener.addresses, [BindAddress::Ip("127.0.0.1:80".parse().unwrap())]);
    assert!(listener.bind && !listener.inbound && !listener.exact_balance);
    assert_eq!(listener.filters_timeout, Some(Duration::from_secs(15)));
    assert!(matches!(&listener.chains[0].filter, NetworkFilter::Direct(bytes) if &bytes[..] == b"hi"));
    let unnamed = compile(
        &context(),
        &read(&format!("address: {{pipe: {{path: /tmp/s}}}}\nfilter_chains: [{{{DIRECT}}}]")),
    )
    .unwrap();
    assert_eq!((&*unnamed.name, &unnamed.addresses[0]), ("/tmp/s", &BindAddress::Unix("/tmp/s".into())));
}

/// A handshake without a timeout of its own could last for ever.
#[test]
fn every_handshake_has_a_timeout() {
    let of = |fields: &str| {
        compiled(&format!("filter_chains: [{{{fields}}}]")).unwrap().chains[0].handshake_timeout
    };
    let http = |idle: &str| {
        format!(
            "filters: [{{name: h, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, common_http_protocol_options: {{{idle}}}, route_config: {{}}, http_filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]"
        )
    };
    let seconds = Duration::from_secs;
    assert_eq!(of(DIRECT), seconds(60));
    assert_eq!(of(&http("")), seconds(60));
    assert_eq!(of(&http("idle_timeout: 2s")), seconds(2));
    assert_eq!(of(&http("idle_timeout: 0s")), seconds(60));
    assert_eq!(of(&format!("transport_socket_connect_timeout: 90s, {DIRECT}")), seconds(90));
}

#[test]
fn matches_and_filters_reach_the_model() {
    let listener = compiled(&format!(
        "traffic_direction: INBOUND\nconnection_balance_config: {{exact_balance: {{}}}}\nbind_to_port: false\nuse_original_dst: true\ntcp_keepalive: {{keepalive_time: 5}}\nlistener_filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}, {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, disallowed_versions: [V1]}}}}]\nfilter_chains: [{{name: a, filter_chain_match: {{destination_port: 8, server_names: [A.test, '*.b.test'], transport_protocol: tls, source_type: EXTERNAL, prefix_ranges: [{{address_prefix: 10.1.1.1, prefix_len: 16}}]}}, {DIRECT}}}]\ndefault_filter_chain: {{{DIRECT}}}"
    ))
    .unwrap();
    assert!(listener.inbound && listener.exact_balance && !listener.bind && listener.use_original_dst);
    assert_eq!(
        listener.listener_filters,
        [
            ListenerFilter::TlsInspector,
            ListenerFilter::ProxyProtocol { optional: false, versions: (false, true), unspecified: false },
            // What is handed over by its original destination must have one.
            ListenerFilter::OriginalDst,
        ]
    );
    let matches = &listener.chains[0].matches;
    assert_eq!(matches.server_names, ["a.test".into(), "*.b.test".into()]);
    assert_eq!((matches.destination_port, matches.source_type), (Some(8), SourceType::External));
    assert_eq!(matches.destination[0].to_string(), "10.1.0.0/16");
    assert!(listener.default_chain.is_some());
    assert_eq!(listener.tcp_keepalive.unwrap().time, Some(Duration::from_secs(5)));
}

/// Listeners of every sidecar have them, and were refused for it.
#[test]
fn filters_may_be_off_for_some_ports() {
    let of = |condition: &str| {
        let listener = compiled(&format!(
            "max_connections_to_accept_per_socket_event: 1\nlistener_filters: [{{name: o, filter_disabled: {condition}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}}}]"
        ));
        let filter = listener.unwrap().listener_filters.remove(0);
        let destination = |port: u16| Some(std::net::SocketAddr::from(([10, 0, 0, 1], port)));
        [79, 80, 81, 90].map(|port: u16| filter.for_destination(destination(port)).is_some())
    };
    let (eighty, ninety) =
        ("{destination_port_range: {start: 80, end: 81}}", "{destination_port_range: {start: 90, end: 91}}");
    assert_eq!(of(eighty), [true, false, true, true]);
    assert_eq!(of(&format!("{{not_match: {eighty}}}")), [false, true, false, false]);
    assert_eq!(of(&format!("{{or_match: {{rules: [{eighty}, {ninety}]}}}}")), [true, false, true, false]);
    let either = format!("{{not_match: {{or_match: {{rules: [{eighty}, {ninety}]}}}}}}");
    assert_eq!(
        of(&format!("{{and_match: {{rules: [{{any_match: true}}, {either}]}}}}")),
        [false, true, false, true]
    );
}

#[test]
fn network_filters_are_known_by_the_type_inside_of_a_typed_struct() {
    let chain = |config: &str| {
        let filters =
            DIRECT.replace("filters: [", &format!("filters: [{{name: i, typed_config: {config}}}, "));
        compiled(&format!("filter_chains: [{{{filters}}}]"))
    };
    let rbac = "{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, value: {stat_prefix: tcp}}";
    assert!(matches!(chain(rbac).unwrap().chains[0].filter, NetworkFilter::Direct(_)));
    let unknown = rbac.replace("RBAC,", "Other,");
    let reason = "network filter \"i\" of type envoy.extensions.filters.network.rbac.v3.Other is unknown";
    assert!(chain(&unknown).unwrap_err().to_string().ends_with(reason));
}

#[test]
fn connections_are_held_to_rules() {
    let chain = |fields: &str| {
        let rbac = format!(
            "{{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, {fields}}}}}"
        );
        compiled(&format!(
            "filter_chains: [{{{}}}]",
            DIRECT.replace("filters: [", &format!("filters: [{rbac}, "))
        ))
    };
    let rules = "stat_prefix: tcp., rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}";
    let listener = chain(rules).unwrap();
    let asked = |listener: &Listener| {
        let chain = &listener.chains[0];
        assert!(matches!(chain.filter, NetworkFilter::Direct(_)));
        let address = "127.0.0.1:1".parse().unwrap();
        let mut context = Stream::new(Arc::new(Connection::plain(address, address)));
        let slot = Slot::new(0, Scope::Route);
        let (mut received, mut answer) = (b"x".to_vec(), Vec::new());
        let mut bytes = ClientBytes { received: &mut received, end: false, answer: &mut answer };
        (chain.filters[0].on_data(&mut context, slot, &mut bytes), context)
    };
    let closing = |delay| Closing {
        details: "rbac_access_denied_matched_policy[p]".into(),
        reason: "rbac_deny_close",
        delay: Duration::from_millis(delay),
        status: 0,
    };
    assert!(matches!(asked(&listener).0, FilterStep::Close(how) if how == closing(0)));
    let later = chain(&format!("{rules}, delay_deny: 0.5s")).unwrap();
    assert!(matches!(asked(&later).0, FilterStep::Close(how) if how == closing(500)));
    let allow = rules.replace("DENY", "ALLOW");
    let once = chain(&format!(
        "{allow}, {}",
        rules.replace("stat_prefix: tcp., rules", "shadow_rules_stat_prefix: dry_, shadow_rules")
    ));
    let (step, context) = asked(&once.unwrap());
    assert!(matches!(step, FilterStep::Done));
    let noted: Vec<_> =
        context.metadata.iter().map(|(name, key, value)| format!("{name} {key} {value}")).collect();
    assert_eq!(
        noted,
        [
            "envoy.filters.network.rbac dry_shadow_effective_policy_id \"p\"",
            "envoy.filters.network.rbac dry_shadow_engine_result \"denied\""
        ]
    );
    let refused = |fields: &str| chain(fields).unwrap_err().to_string();
    assert!(refused("rules: {}").ends_with("typed_config.stat_prefix: must not be empty"));
    let continuous = chain(&format!("{allow}, enforcement_type: CONTINUOUS")).unwrap();
    assert!(matches!(asked(&continuous).0, FilterStep::Continue));
}

#[test]
fn tcp_proxies() {
    let tcp = |fields: &str| {
        compiled(&format!(
            "filter_chains: [{{filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, {fields}}}}}]}}]"
        ))
    };
    let listener = tcp("cluster: up, idle_timeout: 0s, hash_policy: [{source_ip: {}}]").unwrap();
    let NetworkFilter::Tcp(proxy) = &listener.chains[0].filter else { panic!("TCP") };
    assert_eq!((proxy.idle_timeout, proxy.attempts, proxy.hash.len()), (None, ConnectAttempts::Fixed(1), 1));
    assert_eq!(proxy.buffer_limit, 1 << 20);
    assert!(tcp("weighted_clusters: {clusters: [{name: a, weight: 1}]}").is_ok());
    assert_eq!(
        tcp("cluster: up, tunneling_config: {hostname: x}").unwrap_err().field.unwrap(),
        "filter_chains[0].filters[0].typed_config.tunneling_config"
    );
    assert_eq!(
        tcp("weighted_clusters: {clusters: [{name: a}]}").unwrap_err().field.unwrap(),
        "filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[0].weight"
    );
}

/// They were refused, and Envoy takes them.
#[test]
fn a_chain_without_filters_closes_and_an_empty_server_name_is_any() {
    let listener = compiled("filter_chains: [{}]").unwrap();
    assert!(matches!(&listener.chains[0].filter, NetworkFilter::Direct(bytes) if bytes.is_empty()));
    let chain = |names: &str| format!("{{filter_chain_match: {{server_names: {names}}}, {DIRECT}}}");
    assert!(compiled(&format!("filter_chains: [{}]", chain("['*.*.com', '']"))).is_ok());
    // Both are for every name.
    let same = refused(&format!("filter_chains: [{}, {}]", chain("['']"), chain("[]")));
    assert_eq!(same, "filter_chains: filter chain number 2 has the same match as filter chain number 1");
}

#[test]
fn a_tree_leads_to_chains_by_name() {
    let input = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput}}";
    let act = |name: &str| {
        format!(
            "{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {name}}}}}}}"
        )
    };
    let tree = format!(
        "filter_chain_matcher: {{matcher_tree: {{input: {input}, exact_match_map: {{map: {{10.0.0.1: {}, 10.0.0.2: {}}}}}}}}}",
        act("two"),
        act("nobody")
    );
    let chains = |names: &[&str]| {
        let chains: Vec<_> = names.iter().map(|name| format!("{{name: '{name}', {DIRECT}}}")).collect();
        format!("{tree}\nfilter_chains: [{}]", chains.join(", "))
    };
    let listener = compiled(&chains(&["one", "two"])).unwrap();
    let chosen = |from: &str| {
        let source = Some(from.parse().unwrap());
        let input = sixfold_core::listener::MatchInput { source, ..Default::default() };
        listener.chains.find(&input)
    };
    assert_eq!(["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(chosen), [Some(Some(1)), Some(None), None]);
    assert_eq!(refused(&chains(&["one", "one"])), "filter_chains: two filter chains have the name \"one\"");
    let unnamed =
        "filter_chains: filter chain number 2 needs a name, by which filter_chain_matcher leads to it";
    assert_eq!(refused(&chains(&["one", ""])), unnamed);
}

#[test]
fn fingerprints_follow_the_configuration() {
    let chain = |text: &str| format!("filter_chains: [{{{}}}]", DIRECT.replace("hi", text));
    let of = |fields: &str| {
        let listener = compiled(fields).unwrap();
        (listener.shape, listener.chains[0].fingerprint)
    };
    assert_eq!(of(&chain("a")), of(&chain("a")));
    let (shape, fingerprint) = of(&chain("b"));
    assert_eq!(shape, of(&chain("a")).0, "chains are compared one by one");
    assert_ne!(fingerprint, of(&chain("a")).1);
    assert_ne!(of(&format!("tcp_backlog_size: 5\n{}", chain("a"))).0, shape);
}

#[test]
fn bad_and_unsupported_fields_are_refused_by_name() {
    let chain = |matches: &str| format!("{{filter_chain_match: {{{matches}}}, {DIRECT}}}");
    let two = format!("filter_chains: [{}, {}]", chain("server_names: [a]"), chain("server_names: [b, A]"));
    assert!(refused(&two).starts_with("filter_chains: "), "{}", refused(&two));
    let cases = [
        ("address: {}".to_owned(), "address: one of socket_address, pipe, envoy_internal_address is missing"),
        (
            "address: {socket_address: {address: localhost, port_value: 1}}".to_owned(),
            "address.socket_address.address: \"localhost\" is no IP address",
        ),
        (
            "address: {socket_address: {address: 127.0.0.1, port_value: 70000}}".to_owned(),
            "address.socket_address.port_value: 70000 is no port number",
        ),
        (
            "address: {socket_address: {protocol: UDP, address: 127.0.0.1, port_value: 1}}".to_owned(),
            "address.socket_address.protocol: is not supported",
        ),
        ("filter_chains: []".to_owned(), "filter_chains: must not be empty"),
        ("socket_options: [{name: 1}]".to_owned(), "socket_options: is not supported"),
        ("udp_listener_config: {}".to_owned(), "udp_listener_config: is not supported"),
        (
            format!("filter_chains: [{}]", chain("server_names: ['a.*']")),
            "filter_chains[0].filter_chain_match.server_names: \"a.*\": a wildcard must stand for the first labels, as in \"*.example.com\"",
        ),
        (
            "listener_filters: [{name: o, filter_disabled: {not_match: {or_match: {rules: [{any_match: true}]}}}, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}]".to_owned(),
            "listener_filters[0].filter_disabled.not_match.or_match.rules: must hold at least two rules",
        ),
        (
            "filter_chains: [{filters: [{name: e, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}]}]".to_owned(),
            "filter_chains[0].filters[0].typed_config: network filter \"e\" of type envoy.extensions.filters.network.echo.v3.Echo is not supported",
        ),
        (
            format!("filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}}}, {DIRECT}}}]"),
            "filter_chains[0].transport_socket.typed_config.common_tls_context: holds no certificate",
        ),
        (
            format!("filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: s}}]}}}}}}, {DIRECT}}}]"),
            "filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].name: there is no secret \"s\"",
        ),
    ];
    for (fields, expected) in cases {
        assert_eq!(refused(&fields), expected, "{fields}");
    }
}
