#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::document::{Node as DocumentNode, Options};
use sixfold_core::error::Place;
use sixfold_core::listener::NetworkFilter;
use sixfold_core::overload::Least;

use super::*;
use crate::places::place_of;
use crate::testing::process;

const BOOTSTRAP: &str = r#"
node: {id: node-1, cluster: local}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
layered_runtime:
  layers:
  - name: static
    static_layer: {a: {b: 5}, c: {numerator: 3, denominator: MILLION}, d: 1.5}
  - {name: admin, admin_layer: {}}
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - name: first
                match: {prefix: /}
                route:
                  cluster: up
                  retryPolicy: {retryOn: 5xx}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: up
    connect_timeout: 1s
    load_assignment:
      cluster_name: up
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]
"#;

fn refused(from: &str, to: &str) -> String {
    let text = BOOTSTRAP.replacen(from, to, 1);
    assert_ne!(text, BOOTSTRAP, "{from}");
    match load(&text, "envoy.yaml", &process()) {
        Ok(_) => panic!("accepted: {to}"),
        Err(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

#[test]
fn a_bootstrap_becomes_a_diff() {
    let compiled = load(BOOTSTRAP, "envoy.yaml", &process()).unwrap();
    let cluster = compiled.diff.clusters[0].1.as_ref().unwrap();
    assert_eq!((&*cluster.config.name, cluster.hosts.load().total()), ("up", 1));
    let listener = compiled.diff.listeners[0].1.as_ref().unwrap();
    let NetworkFilter::Http(manager) = &listener.chains[0].filter else { panic!("HTTP") };
    let table = manager.routes.load().unwrap();
    assert_eq!(&*table.routes().next().unwrap().name, "first");
    let admin = compiled.admin.unwrap();
    assert_eq!(admin.address, BindAddress::Ip("127.0.0.1:9901".parse().unwrap()));
    let context = compiled.followed.context;
    assert_eq!((context.node.id.as_str(), context.node.cluster.as_str()), ("node-1", "local"));
    assert_eq!(context.runtime.number("a.b", 0.0), 5.0);
    assert_eq!(context.runtime.number("d", 0.0), 1.5, "floats of YAML come as text");
    assert_eq!(context.runtime.share("c"), Some((3, 1_000_000)));
}

#[test]
fn errors_have_file_place_resource_field_and_reason() {
    let cases = [
        (
            "cluster: up\n",
            "cluster: upp\n",
            "envoy.yaml:28:19: listener \"main\": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster: unknown cluster \"upp\"; did you mean \"up\"?",
        ),
        (
            "{retryOn: 5xx}",
            "{retryOn: 5xx, refreshClusterOnRetry: true}",
            "envoy.yaml:29:47: listener \"main\": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.retry_policy.refresh_cluster_on_retry: is not supported",
        ),
        (
            "connect_timeout: 1s",
            "connect_timeout: 0s",
            "envoy.yaml:35:5: cluster \"up\": connect_timeout: must be longer than 0s",
        ),
        (
            "    connect_timeout: 1s",
            "    track_cluster_stats: {}",
            "envoy.yaml:35:5: cluster \"up\": track_cluster_stats: is not supported",
        ),
        ("node:", "flags_path: /x\nnode:", "envoy.yaml:2:1: flags_path: is not supported"),
        (
            "admin_layer: {}",
            "disk_layer: {}",
            "envoy.yaml:8:19: layered_runtime.layers[1].disk_layer: is not supported",
        ),
        (
            "a: {b: 5}",
            "fault: {http: {abort: {abort_percent: 100}}}",
            "envoy.yaml:7:43: layered_runtime.layers[0].static_layer.fault.http.abort.abort_percent: is not supported",
        ),
        (
            "a: {b: 5}",
            "upstream: {use_retry: 0}",
            "envoy.yaml:7:31: layered_runtime.layers[0].static_layer.upstream.use_retry: is not supported",
        ),
        (
            "a: {b: 5}",
            "fault: {http: {delay: {fixed_delay_percent: {numerator: 5}}}}",
            "envoy.yaml:7:43: layered_runtime.layers[0].static_layer.fault.http.delay.fixed_delay_percent: is not supported",
        ),
        (
            "a: {b: 5}",
            "health_check.max_interval: \"10\"",
            "envoy.yaml:7:20: layered_runtime.layers[0].static_layer.health_check.max_interval: is not supported",
        ),
        (
            "a: {b: 5}",
            "a: {b: null}",
            "envoy.yaml:7:24: layered_runtime.layers[0].static_layer.a.b: is no value that a key may have",
        ),
        (
            "address: 127.0.0.1, port_value: 9901",
            "address: localhost, port_value: 9901",
            "envoy.yaml:3:36: admin.address.socket_address.address: \"localhost\" is no IP address",
        ),
        (
            "  clusters:\n",
            "  clusters:\n  - {name: up}\n",
            "envoy.yaml:35:5: cluster \"up\": name: is given twice",
        ),
        (
            "envoy.extensions.filters.http.router.v3.Router",
            "envoy.extensions.filters.http.csrf.v3.CsrfPolicy",
            "envoy.yaml:32:13: listener \"main\": filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: HTTP filter \"envoy.filters.http.router\" of type envoy.extensions.filters.http.csrf.v3.CsrfPolicy is not supported",
        ),
    ];
    for (from, to, expected) in cases {
        assert_eq!(refused(from, to), expected);
    }
}

/// Each as the real Envoy judges it.
#[test]
fn habits_of_users_are_judged_as_by_envoy() {
    let taken = [
        ("http_filters:", "merge_slashes: \"yes\"\n          http_filters:"),
        ("connect_timeout: 1s", "connect_timeout: {seconds: 1}\n    per_connection_buffer_limit_bytes: 0"),
        ("match: {prefix: /}", "match: {prefix: /, headers: [{name: \"x y\", present_match: true}]}"),
        // What these say is so without them.
        (
            "a: {b: 5}",
            "upstream: {use_retry: \"100\", base_retry_backoff_ms: 25}, health_check.min_interval: 1",
        ),
        // What is no number says nothing, and a later layer has the last word.
        (
            "a: {b: 5}",
            "upstream: {use_retry: true, use_http2: \"no\"}, health_check.max_interval: {numerator: 1}",
        ),
        (
            "- {name: admin, admin_layer: {}}",
            "- {name: low, static_layer: {upstream: {use_retry: 0}}}\n  - {name: high, static_layer: {upstream: {use_retry: 100}}}",
        ),
        // Nothing that is answered depends on when statistics go.
        ("static_resources:", "stats_eviction_interval: 10s\nstats_flush_interval: 5s\nstatic_resources:"),
        ("a: {b: 5}", "\"re2.max_program_size.error_level\": \"32768\", outlier_detection.interval_ms: 100"),
    ];
    for (from, to) in taken {
        let text = BOOTSTRAP.replacen(from, to, 1);
        assert_ne!(text, BOOTSTRAP, "{from}");
        assert_eq!(load(&text, "envoy.yaml", &process()).err(), None, "{to}");
    }
    let refused = [
        (
            "  clusters:\n",
            "  secrets: [{name: s}, {name: s}]\n  clusters:\n",
            "secret \"s\": name: is given twice",
        ),
        (
            "- {name: admin, admin_layer: {}}",
            "- {name: static, admin_layer: {}}",
            "layer \"static\" is given twice",
        ),
        ("domains: [\"*\"]", "domains: [\"a\\nb\"]", "domains[0]: \"a\\nb\" holds a NUL or a line break"),
        ("cluster_name: up", "cluster_name: \"\"", "load_assignment.cluster_name: must not be empty"),
    ];
    for (from, to, words) in refused {
        let said = self::refused(from, to);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn faults_are_found_where_the_user_wrote_them() {
    // Keys of maps hold dots, and names may be those of JSON.
    let document = DocumentNode::parse("a.b:\n  someName: [{d.e: {f: 1}}]\n", &Options::default()).unwrap();
    for (path, line, column) in
        [("a.b.some_name[0].d.e.f", 2, 21), ("a.b.some_name[1]", 2, 3), ("a.b[0].someName[0]", 2, 14)]
    {
        assert_eq!(place_of(&document, path), Place::new(line, column), "{path}");
    }
    let said = refused("domains: [\"*\"]", "domains: [\"*\", a.com, A.com]");
    assert!(said.starts_with("envoy.yaml:23:37: ") && said.contains("virtual_hosts[0].domains[2]"), "{said}");
    let said = refused(
        "  clusters:\n",
        "  - address: {socket_address: {address: 127.0.0.1, port_value: 8080}}\n    filter_chains: [{filters: [{name: d, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config}}]}]\n  clusters:\n",
    );
    assert!(
        said.contains("listener \"127.0.0.1:8080\": address: is that of listener \"main\" too"),
        "{said}"
    );
}

/// What pilot-agent 1.31 wrote for a pod with default settings.
#[test]
fn the_bootstrap_of_istios_agent_is_taken() {
    let recorded = include_str!("../../conformance/agent/bootstrap.json");
    let compiled = load(recorded, "envoy-rev.json", &process()).unwrap_or_else(|faults| panic!("{faults:?}"));
    assert_eq!((compiled.diff.listeners.len(), compiled.diff.clusters.len()), (2, 4));
    assert!(compiled.followed.ads.target.is_some());

    assert!(compiled.overload.is_none(), "its limit limits nothing");

    let limited = recorded.replace(
        "\"max_active_downstream_connections\": 2147483647",
        "\"max_active_downstream_connections\": 5",
    );
    let compiled = load(&limited, "envoy-rev.json", &process()).unwrap_or_else(|faults| panic!("{faults:?}"));
    assert_eq!(compiled.overload.and_then(|overload| overload.connections).map(|limit| limit.max), Some(5));
}

/// It was neither taken nor told, and `/runtime` showed it.
#[test]
fn a_limit_of_connections_in_the_runtime_is_for_a_new_start_too() {
    let fixed = |runtime: &str| {
        let text = BOOTSTRAP.replace("d: 1.5}", &format!("d: 1.5{runtime}}}"));
        load(&text, "envoy.yaml", &process()).unwrap_or_else(|faults| panic!("{faults:?}")).fixed
    };
    let limit = |most: u64| fixed(&format!(", overload.global_downstream_max_connections: {most}"));
    assert_eq!(limit(50).changed(&limit(1)), ["overload.global_downstream_max_connections"]);
    assert_eq!(limit(50).changed(&fixed("")), ["overload.global_downstream_max_connections"]);
    assert_eq!(limit(50).changed(&limit(50)), [""; 0]);
    assert_eq!(fixed("").changed(&fixed(", e: 1")), [""; 0]);
}

#[test]
fn what_is_done_under_load_needs_its_monitors() {
    let heap = "{name: heap, typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000}}";
    let connections = |name: &str, most: &str| {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: {most}}}}}"
        )
    };
    let text = |monitors: &str, actions: &str| {
        let manager =
            format!("overload_manager: {{resource_monitors: [{monitors}], actions: [{actions}]}}\n");
        format!("{manager}{BOOTSTRAP}")
    };
    let stop = "name: envoy.overload_actions.stop_accepting_requests, triggers: [{name: heap, threshold: {value: 0.9}}]";
    let slow = "name: envoy.overload_actions.disable_http_keepalive, triggers: [{name: heap, scaled: {scaling_threshold: 0.5, saturation_threshold: 0.9}}]";
    let compiled = load(&text(heap, &format!("{{{stop}}}, {{{slow}}}")), "envoy.yaml", &process());
    let overload = compiled.unwrap_or_else(|faults| panic!("{faults:?}")).overload.unwrap();
    assert_eq!((overload.heaps.len(), overload.actions.len(), overload.refresh.as_secs()), (1, 2, 1));
    let reduce = |factors: &str| {
        let types = "type.googleapis.com/envoy.config.overload.v3";
        format!(
            "{{name: envoy.overload_actions.reduce_timeouts, triggers: [{{name: heap, threshold: {{value: 0.9}}}}], typed_config: {{'@type': {types}.ScaleTimersOverloadActionConfig, timer_scale_factors: [{factors}]}}}}"
        )
    };
    let shrink =
        "{name: envoy.overload_actions.shrink_heap, triggers: [{name: heap, threshold: {value: 0.95}}]}";
    let factors = "{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 2s}, {timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_scale: {value: 10}}";
    let compiled = load(&text(heap, &format!("{shrink}, {}", reduce(factors))), "envoy.yaml", &process());
    let overload = compiled.unwrap_or_else(|faults| panic!("{faults:?}")).overload.unwrap();
    assert_eq!(overload.shrink.as_secs(), 10);
    assert_eq!(
        overload.timers,
        [Some(Least::Time(std::time::Duration::from_secs(2))), Some(Least::Share(0.1)), None]
    );
    for (monitors, actions, words) in [
        (
            heap.to_owned(),
            format!("{{{}}}", stop.replace("name: heap", "name: other")),
            "\"other\" is no monitor",
        ),
        (heap.to_owned(), format!("{{{stop}}}, {{{stop}}}"), "is given twice"),
        (format!("{heap}, {heap}"), String::new(), "is given twice"),
        (
            heap.to_owned(),
            format!("{{{}}}", slow.replace("0.5", "0.9")),
            "must be less than saturation_threshold",
        ),
        (
            heap.to_owned(),
            format!(
                "{{{}}}",
                slow.replace("triggers: [", "triggers: [{name: heap, threshold: {value: 0.9}}, ")
            ),
            "triggers[1].name: has a trigger already",
        ),
        (
            heap.replace(
                "max_heap_size_bytes: 1000",
                "max_heap_size_bytes: 1000, max_heap_size_bytes_runtime: {}",
            ),
            String::new(),
            "typed_config.max_heap_size_bytes_runtime: is not supported",
        ),
        (
            format!("{}, {}", connections("a", "2147483647"), connections("b", "5")),
            String::new(),
            "resource_monitors[1].typed_config: connections are limited by another monitor already",
        ),
        (
            heap.to_owned(),
            format!("{{{}}}", stop.replace("stop_accepting_requests", "reset_high_memory_stream")),
            "is not supported",
        ),
        (
            heap.to_owned(),
            format!("{{{}}}", stop.replace("stop_accepting_requests", "reduce_timeouts")),
            "typed_config: is missing",
        ),
        (
            heap.to_owned(),
            reduce("{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE}"),
            "one of min_timeout, min_scale is missing",
        ),
        (
            heap.to_owned(),
            reduce("{timer: HTTP_DOWNSTREAM_CONNECTION_MAX, min_timeout: 1s}"),
            "timer_scale_factors[0].timer: HTTP_DOWNSTREAM_CONNECTION_MAX is not supported",
        ),
        (
            heap.to_owned(),
            reduce(
                "{timer: TRANSPORT_SOCKET_CONNECT, min_timeout: 1s}, {timer: TRANSPORT_SOCKET_CONNECT, min_timeout: 2s}",
            ),
            "timer_scale_factors[1].timer: is given twice",
        ),
    ] {
        let faults = load(&text(&monitors, &actions), "envoy.yaml", &process()).map(drop).unwrap_err();
        assert!(faults.iter().any(|fault| fault.to_string().contains(words)), "{words}: {faults:?}");
    }
}

/// The first fault of a route, virtual host, connection manager, chain, listener or cluster hid the others.
#[test]
fn all_faults_of_one_part_are_listed() {
    let text = BOOTSTRAP
        .replacen("match: {prefix: /}", "match: {safe_regex: {regex: '('}, headers: [{name: a, safe_regex_match: {regex: ')'}}]}\n                request_headers_to_add: [{header: {key: ':a', value: x}}, {header: {key: b, value: '%NOPE%'}}]\n                per_request_buffer_limit_bytes: 1\n                request_body_buffer_limit: 1", 1)
        .replacen("domains: [\"*\"]", "domains: [\"*\"]\n              rate_limits: [{actions: [{generic_key: {}}]}]", 1)
        .replacen("http_filters:", "forward_proto_config: {}\n          codec_type: HTTP3\n          upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]\n          http_filters:", 1)
        .replacen("filter_chains:", "tcp_fast_open_queue_length: 1\n    enable_mptcp: true\n    filter_chains:", 1)
        .replacen("connect_timeout: 1s", "connect_timeout: 1s\n    lb_subset_config: {subset_selectors: [{}]}\n    track_timeout_budgets: true\n    http_protocol_options: {send_fully_qualified_url: true}", 1);
    let errors = load(&text, "envoy.yaml", &process()).err().unwrap();
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for words in [
        "listener \"main\": tcp_fast_open_queue_length: is not supported",
        "listener \"main\": enable_mptcp: is not supported",
        "typed_config.forward_proto_config: is not supported",
        "typed_config.codec_type: HTTP3 is not supported",
        "upgrade_configs[1].upgrade_type: \"A\" is given twice",
        "virtual_hosts[0].rate_limits[0].actions[0].generic_key.descriptor_value: must not be empty",
        "routes[0].match.safe_regex.regex: invalid regex '('",
        "routes[0].match.headers[0].safe_regex_match.regex: invalid regex ')'",
        "request_headers_to_add[0].header.key: \":a\"",
        "request_headers_to_add[1].header.value: operator NOPE: is not known",
        "routes[0].per_request_buffer_limit_bytes: must not be given together",
        "cluster \"up\": lb_subset_config.subset_selectors[0].keys: must not be empty",
        "cluster \"up\": track_timeout_budgets: is not supported",
        "cluster \"up\": http_protocol_options.send_fully_qualified_url: is not supported",
    ] {
        assert_eq!(all.iter().filter(|fault| fault.contains(words)).count(), 1, "{words} in {all:#?}");
    }
    assert!(errors.iter().all(|error| error.place.is_some()), "{all:#?}");
    assert!(errors.is_sorted_by_key(|error| error.place), "{all:#?}");
}

/// Of lists the first fault hid the others.
#[test]
fn all_faults_of_a_list_are_listed() {
    let listener = "filter_chains:";
    let inspectors = "listener_filters: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster}}, {name: b}]\n    filter_chains:";
    let text = BOOTSTRAP.replacen(listener, inspectors, 1)
        + "overload_manager: {resource_monitors: [{name: ''}, {name: b}]}\nbootstrap_extensions: [{name: c}, {name: d}]\n";
    let errors = load(&text, "envoy.yaml", &process()).err().unwrap();
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for list in ["listener_filters", "resource_monitors", "bootstrap_extensions"] {
        for index in 0..2 {
            let field = format!("{list}[{index}]");
            assert!(all.iter().any(|fault| fault.contains(&field)), "{field}: {all:#?}");
        }
    }
}

/// A filter that is not supported hid what is wrong with routes, and a value of another type what can't be compiled.
#[test]
fn faults_of_filters_and_types_hide_none_of_routes() {
    let text = BOOTSTRAP
        .replace("route_config:\n", "request_timeout: -5s\n          codec_type: FOO\n          route_config:\n")
        .replace("retryPolicy: {retryOn: 5xx}", "timeout: -5s\n                  frob: 1")
        .replace(
            "              - name: first\n",
            "              - {match: {safe_regex: {regex: '('}}, redirect: {path_redirect: 5}}\n              \
             - {match: {prefxi: /a}, route: {cluster: none}}\n              - name: first\n",
        )
        .replace(
            "          http_filters:\n",
            "          http_filters:\n          - {name: lua, typed_config: {\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}\n          - {name: none, typed_config: {\"@type\": \
             type.googleapis.com/none}}\n",
        )
        .replace("type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, strict_check_headers: [a]")
        .replace("connect_timeout: 1s", "connect_timeout: 1s\n    type: NONE");
    let faults = load(&text, "envoy.yaml", &process()).err().unwrap();
    let told: Vec<_> = faults
        .iter()
        .map(|fault| {
            let field = fault.field.as_deref().unwrap_or_default();
            field.rsplit_once("typed_config.").map_or(field, |(_, field)| field).to_owned()
        })
        .collect();
    assert_eq!(
        told,
        [
            "request_timeout",
            "codec_type",
            "route_config.virtual_hosts[0].routes[0].match.safe_regex.regex",
            "route_config.virtual_hosts[0].routes[0].redirect.path_redirect",
            "route_config.virtual_hosts[0].routes[1].match.prefxi",
            "route_config.virtual_hosts[0].routes[1].route.cluster",
            "route_config.virtual_hosts[0].routes[2].route.timeout",
            "route_config.virtual_hosts[0].routes[2].route.frob",
            "http_filters[0].typed_config",
            "@type",
            "strict_check_headers",
            "type",
        ],
        "{faults:#?}"
    );
}

/// What a misspelt field was meant for is not missing, nor are clusters whose list is.
#[test]
fn a_misspelt_field_is_one_fault() {
    for (from, to) in [
        ("stat_prefix: ingress", "stat_prefx: ingress"),
        ("statPrefix: ingress", "statPrefx: ingress"),
        ("  clusters:", "  cluster:"),
        ("- name: up\n", "- nam: up\n"),
        ("virtual_hosts:", "virtual_host:"),
    ] {
        let text = BOOTSTRAP.replacen(
            "stat_prefix",
            if from.starts_with("statP") { "statPrefix" } else { "stat_prefix" },
            1,
        );
        let faults = load(&text.replacen(from, to, 1), "envoy.yaml", &process()).err().unwrap();
        assert_eq!(faults.len(), 1, "{to}: {faults:#?}");
        assert!(faults[0].reason.starts_with("unknown field"), "{faults:?}");
    }
    // Its control plane, its listeners and its local cluster all name clusters.
    let recorded = include_str!("../../conformance/agent/bootstrap.json");
    let managed =
        format!("{{\"cluster_manager\": {{\"local_cluster_name\": \"agent\"}},{}", &recorded.trim()[1..]);
    load(&managed, "envoy-rev.json", &process()).unwrap_or_else(|faults| panic!("{faults:?}"));
    for (from, to) in [("\"clusters\"", "\"cluster\""), ("\"static_resources\"", "\"static_resource\"")] {
        let text = managed.replacen(from, to, 1);
        assert_ne!(text, managed);
        let faults = load(&text, "envoy-rev.json", &process()).err().unwrap();
        let told: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert!(matches!(&*told, [one] if one.contains("unknown field")), "{to}: {told:#?}");
    }
}

/// Endpoints of a file that is missing were looked for twice, and what is read twice has its fault once.
#[test]
fn a_missing_file_of_endpoints_is_one_fault() {
    let eds = "connect_timeout: 1s\n    type: EDS\n    eds_cluster_config: {eds_config: SOURCE}";
    let text = BOOTSTRAP.split("    load_assignment:").next().unwrap();
    for (source, expected) in [
        (
            "{path: /none/eds.yaml}",
            "eds_cluster_config.eds_config.path: /none/eds.yaml: No such file or directory (os error 2)",
        ),
        (
            "{ads: {}}",
            "eds_cluster_config.eds_config.ads: needs dynamic_resources.ads_config in the bootstrap",
        ),
    ] {
        let text = text.replacen("connect_timeout: 1s", &eds.replace("SOURCE", source), 1);
        let faults = load(&text, "envoy.yaml", &process()).err().unwrap();
        let told: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert!(matches!(&*told, [one] if one.ends_with(expected)), "{told:#?}");
    }
}

// Both were refused, though they ask for what is done anyway.
#[test]
fn what_is_done_anyway_may_be_asked_for() {
    let engine = |kind: &str| {
        format!(
            "default_regex_engine: {{name: e, typed_config: {{'@type': type.googleapis.com/{kind}}}}}\nadmin: "
        )
    };
    let of = |from: &str, to: &str| load(&BOOTSTRAP.replacen(from, to, 1), "envoy.yaml", &process());
    assert!(of("admin: ", &engine("envoy.extensions.regex_engines.v3.GoogleRE2")).is_ok());
    let error = refused("admin: ", &engine("envoy.extensions.filters.http.router.v3.Router"));
    assert!(error.starts_with("envoy.yaml:3:33: default_regex_engine.typed_config: "), "{error}");
    assert!(of("connect_timeout", "ignore_health_on_host_removal: true\n    connect_timeout").is_ok());
    assert!(of("[{lb_endpoints", "[{metadata: {filter_metadata: {a: {b: 1}}}, lb_endpoints").is_ok());
}
