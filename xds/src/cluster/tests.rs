#![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::cluster::{
    Cause, DnsBackoff, DnsFamily, DnsOptions, DnsServers, EdsHealth, HeaderCase, HostConfig, Intervals,
    LoadReports, Metric, OriginalDestination, Policy, Probe, RetryBudget, SubsetFallback, UpstreamProtocol,
};
use sixfold_core::matcher::HeaderTarget;

use super::*;
use crate::rds::Source;
use crate::testing::{context, read};

fn config(fields: &str) -> Result<(ClusterConfig, Vec<HostConfig>)> {
    parts(&context(), &read(&format!("name: c\n{fields}\n")))
}

fn refused(fields: &str) -> String {
    config(fields).expect_err(fields).to_string()
}

const ENDPOINT: &str = "endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}";

#[test]
fn defaults_are_envoys() {
    let (config, hosts) = config("").unwrap();
    assert_eq!(config.connect_timeout, Duration::from_secs(5));
    assert_eq!((config.protocol, &config.balance.policy), (UpstreamProtocol::Http1, &Policy::RoundRobin));
    assert_eq!((config.breaker.max_retries, config.breaker.max_connections), (3, 1024));
    assert_eq!((config.idle_timeout, config.buffer_limit), (Some(Duration::from_secs(3600)), 1 << 20));
    assert_eq!((&config.discovery, hosts.len()), (&Discovery::Static, 0));
    assert_eq!(
        (config.balance.panic_threshold, config.max_host_connections, config.maintenance),
        (50.0, u32::MAX, 0)
    );
    assert_eq!(config.balance.overprovisioning, 140);
}

#[test]
fn endpoints_of_eds_have_a_name_and_a_time_to_come_in() {
    let of = |fields: &str| {
        let value = read(&format!("name: c\ntype: EDS\neds_cluster_config: {{{fields}}}\n"));
        let config = parts(&context(), &value).unwrap().0;
        let Assigned { source, name, within } = eds(&context(), &value).unwrap().unwrap();
        assert_eq!(source, Source::Ads);
        ((name, within), config.discovery.clone(), config.eds_service_name)
    };
    let fifteen = Duration::from_secs(15);
    assert_eq!(of("eds_config: {ads: {}}"), (("c".into(), Some(fifteen)), Discovery::Eds(fifteen), None));
    let named = "service_name: s, eds_config: {ads: {}, initial_fetch_timeout: 0s}";
    assert_eq!(of(named), (("s".into(), None), Discovery::Eds(Duration::MAX), Some("s".into())));
    // The disk is asked once, by who wants to know where they come from.
    let value = read("name: c\ntype: EDS\neds_cluster_config: {eds_config: {path: /none/eds.yaml}}\n");
    assert!(parts(&context(), &value).is_ok());
    let error = eds(&context(), &value).err().unwrap().to_string();
    assert!(error.starts_with("eds_cluster_config.eds_config.path: /none/eds.yaml: No such file"), "{error}");
    // They are counted with the rest of what the cluster counts.
    let scopes = |fields: &str| {
        let value = read(&format!(
            "name: c\ntype: EDS\neds_cluster_config: {{service_name: s, eds_config: {{ads: {{}}}}}}\n{fields}\n"
        ));
        let asks = crate::ads::Asks::of_cluster(&context(), &value).unwrap();
        asks.scopes
            .into_iter()
            .map(|(key, scope)| (key.name.to_string(), scope.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(scopes(""), [("s".to_owned(), "cluster.c.".to_owned())]);
    assert_eq!(scopes("alt_stat_name: 'x;.'"), [("s".to_owned(), "cluster.x;.".to_owned())]);
    assert_eq!(scopes("alt_stat_name: 'x://y:1'"), [("s".to_owned(), "cluster.x_y_1.".to_owned())]);
    let name = "endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.test, port_value: 1}}}}]}]";
    let error = assigned(&read(&format!("cluster_name: c\n{name}\n"))).unwrap_err().to_string();
    assert!(error.starts_with("endpoints: \"a.test:1\" is no IP address"), "{error}");
}

/// Each of them counted, so that an endpoint that was named twice got twice the requests, and a retry the address that had
/// just failed.
#[test]
fn an_endpoint_that_comes_twice_is_one_where_its_assignment_comes_by_itself() {
    let endpoint = |port: u16| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let (a, b) = (endpoint(1), endpoint(2));
    let localities = format!(
        "endpoints: [{{locality: {{zone: x}}, lb_endpoints: [{a}, {a}, {b}]}}, {{priority: 1, locality: {{zone: y}}, lb_endpoints: [{b}, {a}]}}]"
    );
    let (assignment, _) = assigned(&read(&format!("cluster_name: c\n{localities}\n"))).unwrap();
    let shown: Vec<_> =
        assignment.hosts.iter().map(|host| (host.address.to_string(), host.priority)).collect();
    assert_eq!(shown, [("127.0.0.1:1".to_owned(), 0), ("127.0.0.1:2".to_owned(), 0)]);
    let (_, hosts) = config(&format!("load_assignment: {{cluster_name: c, {localities}}}")).unwrap();
    assert_eq!(hosts.len(), 5, "a cluster of fixed addresses has them all, as in Envoy");
}

/// It was taken for all, and no request went through.
#[test]
fn more_than_all_requests_cannot_be_dropped() {
    let policy =
        |share: &str| format!("policy: {{drop_overloads: [{{category: x, drop_percentage: {{{share}}}}}]}}");
    let reason = "policy.drop_overloads[0].drop_percentage: must be at most 100%, not 101 of 100";
    let too_much = policy("numerator: 101");
    let error = assigned(&read(&format!("cluster_name: c\n{too_much}\n"))).unwrap_err();
    assert_eq!(error.to_string(), reason);
    assert_eq!(
        refused(&format!("load_assignment: {{cluster_name: c, {too_much}}}")),
        format!("load_assignment.{reason}")
    );
    let all = policy("numerator: 1000000, denominator: MILLION");
    let (config, _) = config(&format!("load_assignment: {{cluster_name: c, {all}}}")).unwrap();
    assert_eq!(config.balance.drop_overload, 1_000_000);
}

#[test]
fn endpoints_carry_what_balancers_need() {
    let (config, hosts) = config(&format!(
        "load_assignment: {{cluster_name: c, policy: {{overprovisioning_factor: 100}}, endpoints: [{{priority: 1, load_balancing_weight: 7, locality: {{zone: z}}, lb_endpoints: [{{health_status: DRAINING, load_balancing_weight: 3, metadata: {{filter_metadata: {{envoy.lb: {{canary: true}}}}}}, {ENDPOINT}}}]}}]}}"
    ))
    .unwrap();
    assert_eq!(config.balance.overprovisioning, 100);
    let host = &hosts[0];
    assert_eq!(
        (host.priority, host.weight, host.locality_weight, host.health),
        (1, 3, Some(7), EdsHealth::Draining)
    );
    assert_eq!(
        (&*host.locality.as_ref().unwrap().zone, host.address.to_string().as_str()),
        ("z", "127.0.0.1:80")
    );
    assert_eq!(host.metadata.get("envoy.lb").unwrap()["canary"], true);
}

#[test]
fn names_need_dns() {
    let named = "load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: up.test, port_value: 80}}}}]}]}";
    let (config, hosts) =
        config(&format!("type: STRICT_DNS\ndns_lookup_family: V4_ONLY\nrespect_dns_ttl: true\n{named}"))
            .unwrap();
    assert!(
        matches!(&config.discovery, Discovery::StrictDns(dns) if dns.respect_ttl && dns.family == DnsFamily::V4Only)
    );
    assert_eq!((&hosts[0].address, &*hosts[0].hostname), (&Address::Name("up.test".into(), 80), "up.test"));
    assert_eq!(
        refused(named),
        "load_assignment.endpoints: \"up.test:80\" is no IP address; a name needs type STRICT_DNS"
    );
    assert_eq!(
        refused("type: LOGICAL_DNS"),
        "load_assignment.endpoints: LOGICAL_DNS needs exactly one endpoint, not 0"
    );
}

const CARES: &str = "name: n, typed_config: {'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";
const RESOLVER: &str = "{socket_address: {address: 192.0.2.53, port_value: 5353}}";

/// A cluster of type STRICT_DNS without endpoints.
fn dns(fields: &str) -> DnsOptions {
    match config(&format!("type: STRICT_DNS\n{fields}")).unwrap().0.discovery.clone() {
        Discovery::StrictDns(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_asked_for_as_often_as_the_cluster_says() {
    assert_eq!(dns(""), DnsOptions { refresh: Duration::from_secs(5), ..DnsOptions::default() });
    let options =
        dns("dns_refresh_rate: 60s\ndns_jitter: 0.1s\ndns_failure_refresh_rate: {base_interval: 2s}");
    assert_eq!((options.refresh, options.jitter), (Duration::from_secs(60), Duration::from_millis(100)));
    let backoff = DnsBackoff { base: Duration::from_secs(2), max: Duration::from_secs(20) };
    assert_eq!(options.failure, Some(backoff));
    for (fields, reason) in [
        ("{}", "base_interval: is missing"),
        ("{base_interval: 0s}", "base_interval: must be longer than 0s"),
        ("{base_interval: 0.001s}", "base_interval: must be longer than 0.001s"),
        ("{base_interval: 2s, max_interval: 1s}", "max_interval: must not be shorter than base_interval"),
    ] {
        let refused = refused(&format!("type: STRICT_DNS\ndns_failure_refresh_rate: {fields}"));
        assert_eq!(refused, format!("dns_failure_refresh_rate.{reason}"));
    }
}

#[test]
fn names_are_asked_of_whom_the_cluster_says() {
    let asked = |fields: &str| dns(fields).servers.map(|servers| DnsServers::clone(&servers));
    let addresses = vec!["192.0.2.53:5353".parse().unwrap()];
    let servers = DnsServers { addresses, search: true, ..DnsServers::default() };
    let tcp = DnsServers { tcp_only: true, ..servers.clone() };
    assert_eq!(asked(&format!("typed_dns_resolver_config: {{{CARES}}}}}")), None, "the process's");
    assert_eq!(asked(&format!("dns_resolvers: [{RESOLVER}]")), Some(servers.clone()));
    assert_eq!(
        asked(&format!("dns_resolvers: [{RESOLVER}]\nuse_tcp_for_dns_lookups: true")),
        Some(tcp.clone())
    );
    let resolution = format!(
        "dns_resolution_config: {{resolvers: [{RESOLVER}], dns_resolver_options: {{no_default_search_domain: true}}}}"
    );
    assert_eq!(asked(&resolution), Some(DnsServers { search: false, ..servers.clone() }));
    let cares = format!(
        "{resolution}\ntyped_dns_resolver_config: {{{CARES}, resolvers: [{RESOLVER}], use_resolvers_as_fallback: true, rotate_nameservers: true, query_timeout_seconds: 2, query_tries: 3, dns_resolver_options: {{use_tcp_for_dns_lookups: true}}}}}}"
    );
    let (timeout, tries) = (Some(Duration::from_secs(2)), Some(3));
    assert_eq!(asked(&cares), Some(DnsServers { fallback: true, rotate: true, timeout, tries, ..tcp }));
    assert_eq!(
        refused(&format!("type: STRICT_DNS\ntyped_dns_resolver_config: {{{CARES}, query_tries: 0}}}}")),
        "typed_dns_resolver_config.typed_config.query_tries: must be at least 1, not 0"
    );
    // What the bootstrap says is for those that say nothing.
    let context = Context { dns_servers: Some(Arc::new(servers.clone())), ..context() };
    let named = parts(&context, &read("name: c\ntype: STRICT_DNS\n")).unwrap().0.discovery.clone();
    assert!(matches!(named, Discovery::StrictDns(dns) if dns.servers.as_deref() == Some(&servers)));
}

#[test]
fn dns_is_a_type_of_its_own_too() {
    let custom = |fields: &str| {
        config(&format!(
            "cluster_type: {{name: envoy.cluster.dns, typed_config: {{'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, {fields}}}}}\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{{ENDPOINT}}}]}}]}}"
        ))
        .unwrap()
        .0
        .discovery
        .clone()
    };
    let Discovery::StrictDns(options) = custom(
        "dns_refresh_rate: 7s, respect_dns_ttl: true, dns_min_refresh_rate: 3s, dns_lookup_family: V4_PREFERRED, dns_jitter: 1s",
    ) else {
        panic!("strict")
    };
    let seconds = [options.refresh, options.min_ttl, options.jitter].map(|time| time.as_secs());
    assert_eq!((seconds, options.respect_ttl, options.family), ([7, 3, 1], true, DnsFamily::V4Preferred));
    assert!(matches!(custom("all_addresses_in_single_endpoint: true"), Discovery::LogicalDns(_)));
    assert_eq!(
        refused("cluster_type: {name: envoy.clusters.redis}"),
        "cluster_type: \"envoy.clusters.redis\" is not supported"
    );
}

#[test]
fn policies_old_and_new() {
    let policy = |fields: &str| config(fields).unwrap().0.balance.clone();
    assert_eq!(
        policy("type: STRICT_DNS\nlb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 10, hash_function: MURMUR_HASH_2}\ncommon_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}").policy,
        Policy::RingHash { min_size: 10, max_size: 8 << 20, murmur: true, use_hostname: true }
    );
    assert_eq!(
        policy("lb_policy: MAGLEV").policy,
        Policy::Maglev { table_size: 65_537, use_hostname: false }
    );
    assert_eq!(
        policy("lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 5}").policy,
        Policy::LeastRequest { choices: 5, full_scan: false, bias: 1.0 }
    );
    let new = |config: &str| {
        format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: n, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{config}}}}}}}]}}"
        )
    };
    assert_eq!(policy(&new("random.v3.Random")).policy, Policy::Random);
    assert_eq!(
        policy(&new("least_request.v3.LeastRequest, selection_method: FULL_SCAN")).policy,
        Policy::LeastRequest { choices: 2, full_scan: true, bias: 1.0 }
    );
    let slow = policy(&new(
        "round_robin.v3.RoundRobin, slow_start_config: {slow_start_window: 10s, aggression: {default_value: 2.0, runtime_key: k}}",
    ));
    assert_eq!(slow.slow_start, Some((Duration::from_secs(10), 2.0, 10.0)));
    let none = policy(&new(
        "round_robin.v3.RoundRobin, slow_start_config: {slow_start_window: 10s, aggression: {default_value: 0, runtime_key: k}}",
    ));
    assert_eq!(none.slow_start, Some((Duration::from_secs(10), 0.0, 10.0)));
    let wrr = policy(&new(
        "wrr_locality.v3.WrrLocality, endpoint_picking_policy: {policies: [{typed_extension_config: {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}",
    ));
    assert!(wrr.locality_weighted);
    assert!(policy("common_lb_config: {locality_weighted_lb_config: {}}").locality_weighted);
    assert!(
        refused(&new("pick_first.v3.PickFirst")).ends_with("pick_first.v3.PickFirst is not supported"),
        "{}",
        refused(&new("pick_first.v3.PickFirst"))
    );
}

const OPTIONS: &str = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, ";

#[test]
fn protocols_and_breakers() {
    let (http2, _) = config(&format!("{OPTIONS}explicit_http_config: {{http2_protocol_options: {{max_concurrent_streams: 3}}}}, common_http_protocol_options: {{idle_timeout: 0s, max_requests_per_connection: 2, max_stream_duration: 4s}}}}}}")).unwrap();
    assert_eq!((http2.protocol, http2.http2.max_concurrent_streams), (UpstreamProtocol::Http2, 3));
    assert_eq!((http2.idle_timeout, http2.max_requests_per_connection), (None, Some(2)));
    assert_eq!(http2.max_stream_duration, Some(Duration::from_secs(4)));
    let (http1, _) = config(&format!("{OPTIONS}explicit_http_config: {{http_protocol_options: {{enable_trailers: true, header_key_format: {{proper_case_words: {{}}}}}}}}}}}}")).unwrap();
    assert!(http1.http1.enable_trailers && http1.http1.header_case == HeaderCase::ProperCase);
    assert_eq!(config("http2_protocol_options: {}").unwrap().0.protocol, UpstreamProtocol::Http2);
    let (breakers, _) = config("circuit_breakers: {thresholds: [{max_connections: 1, retry_budget: {budget_percent: {value: 25}}}, {priority: HIGH, max_retries: 9}]}").unwrap();
    assert_eq!(breakers.breaker.retry_budget, Some(RetryBudget { percent: 25.0, min_concurrency: 3 }));
    assert_eq!((breakers.breaker.max_connections, breakers.high_breaker.max_retries), (1, 9));
}

#[test]
fn bad_and_unsupported_fields_are_refused_by_name() {
    for (fields, expected) in [
        (
            "lb_policy: RING_HASH\ncommon_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}",
            "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing: is for clusters of type STRICT_DNS",
        ),
        (
            "cluster_type: {name: envoy.clusters.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster}}\ncommon_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}",
            "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing: is for clusters of type STRICT_DNS",
        ),
        (
            "load_balancing_policy: {policies: [{typed_extension_config: {name: n, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, oob_reporting_period: -1s}}}]}",
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.oob_reporting_period: must not be negative",
        ),
        ("type: ORIGINAL_DST", "lb_policy: must be CLUSTER_PROVIDED for clusters of type ORIGINAL_DST"),
        ("lb_policy: CLUSTER_PROVIDED", "lb_policy: CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST"),
        (
            "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {http_header_name: x}",
            "original_dst_lb_config.http_header_name: means nothing without use_http_header",
        ),
        (
            "filters: [{name: f, typed_config: {'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: x.Y}}]",
            "filters[0].typed_config: filter \"f\" of type x.Y is unknown",
        ),
        ("type: EDS", "eds_cluster_config: is missing"),
        ("eds_cluster_config: {eds_config: {ads: {}}}", "eds_cluster_config: is for clusters of type EDS"),
        (
            "type: EDS\neds_cluster_config: {eds_config: {ads: {}}}\nload_assignment: {cluster_name: c}",
            "load_assignment: is not for clusters of type EDS",
        ),
        (
            "type: EDS\neds_cluster_config: {eds_config: {api_config_source: {}}}",
            "eds_cluster_config.eds_config.api_config_source.api_type: DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE is not supported",
        ),
        ("cluster_type: {name: x}", "cluster_type: \"x\" is not supported"),
        (
            "cluster_type: {name: x}\nlb_policy: CLUSTER_PROVIDED",
            // Whether it provides one nobody can say.
            "cluster_type: \"x\" is not supported",
        ),
        ("health_checks: [{}]", "health_checks[0].timeout: is missing"),
        (
            "outlier_detection: {base_ejection_time: 9s, max_ejection_time: 8s}",
            "outlier_detection.max_ejection_time: must not be shorter than base_ejection_time",
        ),
        (
            "outlier_detection: {detect_degraded_hosts: true}",
            "outlier_detection.detect_degraded_hosts: is not supported",
        ),
        (
            "load_assignment: {cluster_name: c, policy: {drop_overloads: [{category: x}, {category: y}]}}",
            "load_assignment.policy.drop_overloads: must be one at most, as in Envoy",
        ),
        ("connect_timeout: 0s", "connect_timeout: must be longer than 0s"),
        (
            "lb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 8}",
            "ring_hash_lb_config.minimum_ring_size: must not be larger than maximum_ring_size",
        ),
        (
            "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 100}",
            "maglev_lb_config.table_size: must be a prime number of at most 5000011",
        ),
        (
            // Whether it is a prime was found out first, which took for ever.
            "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 18446744073709551557}",
            "maglev_lb_config.table_size: must be a prime number of at most 5000011",
        ),
        (
            "load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {}}]}]}",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: is missing",
        ),
        (
            "transport_socket: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport}}",
            "transport_socket.typed_config: transport socket \"t\" of type envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport is not supported",
        ),
        (
            "typed_extension_protocol_options: {x: {'@type': type.googleapis.com/envoy.config.route.v3.Route}}",
            "typed_extension_protocol_options.x: is not supported",
        ),
    ] {
        assert_eq!(refused(fields), expected, "{fields}");
    }
}

#[test]
fn clusters_that_go_where_the_client_was_going() {
    let of = |fields: &str| {
        let (config, hosts) =
            config(&format!("type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\n{fields}")).unwrap();
        assert!(hosts.is_empty());
        (config.discovery.clone(), config.balance.policy.clone())
    };
    let cleanup = |seconds| Policy::OriginalDst { cleanup: Duration::from_secs(seconds) };
    let by_connection = Discovery::OriginalDst(OriginalDestination::default());
    assert_eq!(of(""), (by_connection.clone(), cleanup(5)));
    assert_eq!(of("cleanup_interval: 9223372035s"), (by_connection, cleanup(9_223_372_035)));
    let header = |name: &str| Some(HeaderTarget::of_request(name));
    let named = OriginalDestination { header: header("x-to"), port: Some(9) };
    assert_eq!(
        of("original_dst_lb_config: {use_http_header: true, http_header_name: X-To, upstream_port_override: 9}").0,
        Discovery::OriginalDst(named)
    );
    let usual = OriginalDestination { header: header("x-envoy-original-dst-host"), port: None };
    assert_eq!(of("original_dst_lb_config: {use_http_header: true}").0, Discovery::OriginalDst(usual));
}

#[test]
fn a_cluster_replaces_the_one_of_its_name() {
    let context = context();
    let value = read(&format!(
        "name: c\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{{ENDPOINT}}}]}}]}}"
    ));
    let first = compile(&context, &value, true).unwrap();
    context.compile.clusters.cell("c").swap(Some(first.clone()));
    let second = compile(&context, &value, true).unwrap();
    let id = |cluster: &Cluster| cluster.hosts.load().iter().next().unwrap().host.id;
    assert_eq!(id(&first), id(&second), "endpoints keep their identity");
    assert!(second.config.added_via_api);
    let error = compile(&context, &read("name: bad\nhealth_checks: [{}]"), true).unwrap_err();
    assert_eq!(error.to_string(), "cluster \"bad\": health_checks[0].timeout: is missing");
}

#[test]
fn health_checks_have_envoys_defaults() {
    let base = "timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2";
    let check = |fields: &str| {
        let (config, _) =
            config(&format!("http2_protocol_options: {{}}\nhealth_checks: [{{{base}, {fields}}}]")).unwrap();
        config.health_check.clone().unwrap()
    };
    let http = check("http_health_check: {path: /hc}");
    let seconds = |intervals: &Intervals| {
        let Intervals { healthy, unhealthy, to_healthy, to_unhealthy, no_traffic, no_traffic_healthy } =
            intervals;
        [healthy, unhealthy, to_healthy, to_unhealthy, no_traffic, no_traffic_healthy]
            .map(|time| time.as_secs())
    };
    assert_eq!(seconds(&http.intervals), [5, 5, 5, 5, 60, 60]);
    assert_eq!((http.unhealthy_threshold, http.healthy_threshold, http.reuse_connection), (3, 2, true));
    let Probe::Http(probe) = &http.probe else { panic!("{http:?}") };
    assert_eq!(
        (probe.path.as_str(), &probe.method, probe.expected.clone()),
        ("/hc", &http::Method::GET, vec![200..201])
    );
    let edges = check(
        "unhealthy_interval: 7s, healthy_edge_interval: 2s, no_traffic_interval: 30s, tcp_health_check: {send: {text: '0aFF'}, receive: [{binary: cG9uZw==}]}",
    );
    assert_eq!(seconds(&edges.intervals), [5, 7, 2, 7, 30, 30]);
    assert!(matches!(&edges.probe, Probe::Tcp(tcp) if tcp.send == [0x0A, 0xFF] && tcp.receive == [b"pong"]));
    assert!(
        matches!(&check("grpc_health_check: {service_name: s}").probe, Probe::Grpc(grpc) if grpc.service == "s")
    );
    assert_eq!(http.fingerprint, check("http_health_check: {path: /hc}").fingerprint);
    assert_ne!(http.fingerprint, check("http_health_check: {path: /hd}").fingerprint);
    for (fields, reason) in [
        ("", "one of http_health_check, tcp_health_check, grpc_health_check is missing"),
        ("http_health_check: {}", "http_health_check.path: must not be empty"),
        (
            "http_health_check: {path: /, method: CONNECT}",
            "http_health_check.method: CONNECT is no method of a check",
        ),
        (
            "http_health_check: {path: /, expected_statuses: [{start: 300, end: 200}]}",
            "http_health_check.expected_statuses[0]: must be a range within [100, 600), not [300, 200)",
        ),
        (
            "http_health_check: {path: /, request_headers_to_add: [{header: {key: Host, value: a}}]}",
            "http_health_check.request_headers_to_add[0].header.key: may not be host, which a check has a field of its own for",
        ),
        (
            "http_health_check: {path: /, request_headers_to_remove: [host]}",
            "http_health_check.request_headers_to_remove: may not be host, which a check has a field of its own for",
        ),
        (
            "grpc_health_check: {initial_metadata: [{header: {key: host, value: a}}]}",
            "grpc_health_check.initial_metadata[0].header.key: may not be host, which a check has a field of its own for",
        ),
        (
            "http_health_check: {path: /, send: {text: '00'}}",
            "http_health_check.send: is not for the method GET, which has no body",
        ),
        (
            "http_health_check: {path: /, method: DELETE, send: {text: '00'}}",
            "http_health_check.send: is not for the method DELETE, which has no body",
        ),
        ("tcp_health_check: {send: {text: xyz}}", "tcp_health_check.send: \"xyz\" is not hexadecimal"),
        ("tls_options: {}, tcp_health_check: {}", "tls_options: is not supported"),
    ] {
        let refused = refused(&format!("health_checks: [{{{base}, {fields}}}]"));
        assert_eq!(refused, format!("health_checks[0].{reason}").replace("].one", "]: one"));
    }
}

fn with_runtime(values: &str, fields: &str) -> (ClusterConfig, Vec<HostConfig>) {
    let mut context = context();
    context.runtime = Arc::new(Runtime::new(serde_json::from_str(values).unwrap()));
    parts(&context, &read(&format!("name: c\n{fields}\n"))).unwrap()
}

#[test]
fn the_runtime_has_a_say_in_limits_and_maintenance() {
    let values = r#"{"upstream.maintenance_mode.c": 30, "circuit_breakers.c.default.max_connections": 7,
        "circuit_breakers.c.high.max_retries": 9, "circuit_breakers.other.default.max_requests": 1,
        "circuit_breakers.c.default.retry_budget.budget_percent": 12.5}"#;
    let fields =
        "circuit_breakers: {thresholds: [{max_connections: 2, retry_budget: {min_retry_concurrency: 4}}]}";
    let (config, _) = with_runtime(values, fields);
    assert_eq!(
        (config.maintenance, config.breaker.max_connections, config.high_breaker.max_retries),
        (30, 7, 9)
    );
    assert_eq!(config.breaker.max_requests, 1024);
    assert_eq!(config.breaker.retry_budget, Some(RetryBudget { percent: 12.5, min_concurrency: 4 }));
    assert_eq!(with_runtime(r#"{"upstream.maintenance_mode.c": 1000}"#, "").0.maintenance, 100);
    // YAML's texts are numbers too, and what reads as none leaves what is configured.
    let values = r#"{"upstream.maintenance_mode.c": "30", "circuit_breakers.c.default.max_connections": "7.5",
        "circuit_breakers.c.default.max_requests": "nan", "circuit_breakers.c.default.max_retries": -1,
        "circuit_breakers.c.default.retry_budget.budget_percent": "12.5"}"#;
    let (config, _) = with_runtime(values, fields);
    assert_eq!((config.maintenance, config.breaker.max_connections), (30, 7));
    assert_eq!((config.breaker.max_requests, config.breaker.max_retries), (1024, 3));
    assert_eq!(config.breaker.retry_budget.map(|budget| budget.percent), Some(12.5));
}

#[test]
fn endpoints_may_have_a_limit_of_connections_and_no_other() {
    let limit = |given: &str| {
        config(&format!("circuit_breakers: {{per_host_thresholds: [{given}]}}"))
            .map(|(c, _)| c.max_host_connections)
    };
    assert_eq!(limit("{max_connections: 3}").unwrap(), 3);
    assert_eq!(limit("{max_connections: 3}, {max_connections: 4}").unwrap(), 3);
    assert_eq!(limit("{priority: HIGH, max_connections: 3}").unwrap(), u32::MAX);
    let error = limit("{}, {max_requests: 3}").unwrap_err().to_string();
    assert_eq!(error, "circuit_breakers.per_host_thresholds[1].max_requests: is not supported");
}

#[test]
fn subsets_are_sorted_and_checked() {
    let fields = "fallback_policy: DEFAULT_SUBSET, default_subset: {stage: prod}, list_as_any: true, \
                  subset_selectors: [{keys: [b, a, b], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [b]}, {keys: [c], single_host_per_subset: true}]";
    let (config, _) = config(&format!("lb_subset_config: {{{fields}}}")).unwrap();
    let old = config.balance.subsets.clone().unwrap();
    assert_eq!(*old.selectors[0].keys, ["a".into(), "b".into()]);
    assert_eq!(old.selectors[0].fallback, Some(SubsetFallback::Keys(["b".into()].into())));
    assert!(old.selectors[1].single_host && old.selectors[1].fallback.is_none() && old.list_as_any);
    let policy = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let inner = format!(
        "{{policies: [{{typed_extension_config: {{name: i, typed_config: {{'@type': {policy}.random.v3.Random}}}}}}]}}"
    );
    let new = format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: s, typed_config: {{'@type': {policy}.subset.v3.Subset, {fields}, subset_lb_policy: {inner}}}}}}}]}}"
    );
    let (config, _) = self::config(&new).unwrap();
    assert_eq!((config.balance.subsets.clone().unwrap(), &config.balance.policy), (old, &Policy::Random));
    assert!(
        self::config("lb_subset_config: {fallback_policy: ANY_ENDPOINT}")
            .unwrap()
            .0
            .balance
            .subsets
            .is_none()
    );
    let selector = |fields: &str| refused(&format!("lb_subset_config: {{subset_selectors: [{{{fields}}}]}}"));
    let at = "lb_subset_config.subset_selectors[0]";
    assert_eq!(
        selector("keys: [a, b], single_host_per_subset: true"),
        format!("{at}.single_host_per_subset: is for one key, not 2")
    );
    for keys in ["[]", "[a]", "[b]"] {
        assert_eq!(
            selector(&format!("keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: {keys}")),
            format!("{at}.fallback_keys_subset: must be some of the selector's keys, and not all of them")
        );
    }
}

#[test]
fn weights_that_endpoints_report_are_envoys_by_default() {
    let of = |fields: &str| {
        config(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, {fields}}}}}}}]}}"
        ))
    };
    let reports = |fields: &str| of(fields).unwrap().0.balance.policy.load_reports().unwrap().clone();
    assert_eq!(reports(""), LoadReports::default());
    let given = reports(
        "blackout_period: 1s, weight_expiration_period: 2s, weight_update_period: 3s, error_utilization_penalty: 0.5, metric_names_for_computing_utilization: [named_metrics.a, nothing]",
    );
    assert_eq!(given.metrics[..], [Metric::of("named_metrics.a").unwrap()]);
    let seconds = |seconds| Duration::from_secs(seconds);
    assert_eq!((given.blackout, given.expiration, given.update), (seconds(1), seconds(2), seconds(3)));
    assert_eq!(given.error_penalty, 0.5);
    let slow = of("slow_start_config: {slow_start_window: 5s}").unwrap().0.balance.slow_start;
    assert_eq!(slow, Some((seconds(5), 1.0, 10.0)));
    let error = of("enable_oob_load_report: true").unwrap_err().to_string();
    assert!(error.contains("enable_oob_load_report: is not supported"), "{error}");
}

#[test]
fn events_of_checks_go_where_it_is_said() {
    let check = |fields: &str| {
        config(&format!(
            "health_checks: [{{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {{}}, {fields}}}]"
        ))
        .map(|(config, _)| config.health_check.clone().unwrap())
    };
    let sink = "name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink, event_log_path: /dev/stdout}";
    let both = check(&format!(
        "event_log_path: /dev/stderr, event_logger: [{{{sink}}}], always_log_health_check_success: true, always_log_health_check_failures: true"
    ))
    .unwrap();
    assert_eq!((both.events.len(), both.log_success, both.log_failures), (2, true, true));
    assert_eq!(both.events[0].cluster(), "c");
    let none = check("").unwrap();
    assert_eq!((none.events.len(), none.log_success), (0, false));
    let error = check("event_log_path: /no/such/folder/log").unwrap_err().to_string();
    assert!(error.starts_with("health_checks[0].event_log_path: can't open /no/such/folder/log"), "{error}");
}

#[test]
fn zone_aware_routing_is_there_with_a_local_cluster() {
    use sixfold_core::cluster::Locality;
    let here = Locality { zone: "z".into(), ..Locality::default() };
    let local = |fields: &str| {
        let context =
            Context { local_cluster: Some("local".into()), locality: Some(here.clone()), ..context() };
        let (config, _) = parts(&context, &read(&format!("name: c\n{fields}\n"))).unwrap();
        let zone = config.balance.zone.clone().unwrap();
        assert_eq!((&*zone.local.name, zone.own.as_ref()), ("local", Some(&here)));
        ((zone.enabled, zone.min_size, zone.force_own, zone.by_weight), config.balance.fail_on_panic)
    };
    assert_eq!(local(""), ((100, 6, None, false), false));
    let older = "common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 70}, min_cluster_size: 2, fail_traffic_on_panic: true}}";
    assert_eq!(local(older), ((70, 2, None, false), true));
    // Cut, not rounded, and as Envoy reckons.
    for (given, expected) in [(0.9, 0), (99.9, 99), (29.0, 28)] {
        let given = older.replace("value: 70", &format!("value: {given}"));
        assert_eq!(local(&given).0.0, expected, "{given}");
    }
    let newer = |fields: &str| {
        local(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin, locality_lb_config: {{zone_aware_lb_config: {{{fields}}}}}}}}}}}]}}"
        ))
    };
    let forced =
        "force_local_zone: {min_size: 3}, locality_basis: HEALTHY_HOSTS_WEIGHT, fail_traffic_on_panic: true";
    assert_eq!(newer(forced), ((100, 6, Some(3), true), true));
    assert_eq!(newer("force_local_zone: {}, min_cluster_size: 1"), ((100, 1, Some(1), false), false));
    let (without, _) = config(older).unwrap();
    assert!(without.balance.zone.is_none() && without.balance.fail_on_panic);
}

/// Those of fields that a key has by itself were left as configured.
#[test]
fn the_runtime_has_a_say_in_outlier_detection() {
    let values = r#"{"outlier_detection.consecutive_5xx": 1, "outlier_detection.max_ejection_percent": 1000,
        "outlier_detection.interval_ms": "250", "outlier_detection.max_ejection_time_jitter_ms": 7,
        "outlier_detection.enforcing_success_rate": 3, "outlier_detection.failure_percentage_threshold": -1}"#;
    let (config, _) = with_runtime(values, "outlier_detection: {consecutive_5xx: 50, interval: 0.5s}");
    let detection = config.outlier_detection.as_ref().unwrap();
    assert_eq!((detection.consecutive_5xx, detection.max_ejected_percent), (1, 100));
    let milliseconds = Duration::from_millis;
    assert_eq!((detection.interval, detection.jitter), (milliseconds(250), milliseconds(7)));
    assert_eq!(detection.enforcing[Cause::SuccessRate as usize], 3);
    assert_eq!((detection.failure_percentage.threshold, detection.consecutive_gateway), (85, 5));
    assert_eq!(detection.base_ejection, milliseconds(30_000));
}

/// It counted with `common_lb_config` alone, with fractions, and a negative one was 0.
#[test]
fn the_runtime_has_a_say_in_panics() {
    let threshold = |values: &str, fields: &str| with_runtime(values, fields).0.balance.panic_threshold;
    let common = "common_lb_config: {healthy_panic_threshold: {value: 33.9}}";
    assert_eq!(threshold("{}", common), 33.0);
    assert_eq!(threshold("{}", &common.replace("33.9", "29")), 28.0);
    for fields in ["", "common_lb_config: {}", common] {
        assert_eq!(threshold(r#"{"upstream.healthy_panic_threshold": 0}"#, fields), 0.0, "{fields}");
    }
    assert_eq!(threshold(r#"{"upstream.healthy_panic_threshold": "33.9"}"#, ""), 33.0);
    assert_eq!(threshold(r#"{"upstream.healthy_panic_threshold": -5}"#, common), 33.0);
}

/// As in Envoy, it needs no budget to take the place of.
#[test]
fn the_runtime_alone_is_a_retry_budget() {
    let values = r#"{"circuit_breakers.c.high.retry_budget.min_retry_concurrency": 9}"#;
    let (config, _) = with_runtime(values, "");
    assert_eq!(config.high_breaker.retry_budget, Some(RetryBudget { percent: 20.0, min_concurrency: 9 }));
    assert_eq!(config.breaker.retry_budget, None);
}

#[test]
fn http2_connections_are_asked_whether_their_upstream_is_there() {
    let config = |given: &str| {
        config(&format!("http2_protocol_options: {{connection_keepalive: {{{given}}}}}"))
            .map(|(config, _)| config.http2.keepalive.unwrap())
    };
    let istio = config("interval: 30s, timeout: 5s").unwrap();
    assert_eq!((istio.interval, istio.timeout), (Some(Duration::from_secs(30)), Duration::from_secs(5)));
    assert_eq!((istio.jitter, istio.idle), (Duration::from_millis(4500), None));
    let idle = config("timeout: 1s, interval_jitter: {value: 20}, connection_idle_interval: 9s").unwrap();
    assert_eq!((idle.interval, idle.jitter, idle.idle), (None, Duration::ZERO, Some(Duration::from_secs(9))));
    for (given, fault) in [
        ("interval: 30s", "timeout"),
        ("interval: 30s, timeout: -1s", "timeout"),
        ("interval: 30s, timeout: 1s, interval_jitter: {value: 101}", "interval_jitter"),
    ] {
        let error = config(given).unwrap_err().to_string();
        assert!(error.contains("connection_keepalive") && error.contains(fault), "{given}: {error}");
    }
}
