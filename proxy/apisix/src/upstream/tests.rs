#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::resource::Kind;
use crate::{schema, testing};

fn upstream(mut value: Value) -> Upstream {
    schema::resource(Kind::Upstream).validate(&mut value).unwrap();
    serde_json::from_value(value).unwrap()
}

fn compiled(value: Value) -> (ClusterConfig, Vec<HostConfig>) {
    compiled_with("", value)
}

fn compiled_with(config: &str, value: Value) -> (ClusterConfig, Vec<HostConfig>) {
    let config = Config::standalone(config, &testing::environment()).unwrap();
    compile(&"upstreams/1".into(), &upstream(value), None, &config, &Shared::default()).unwrap()
}

fn faults(value: Value) -> Vec<String> {
    let violations = check(&upstream(value));
    violations.into_iter().map(|v| format!("{}: {}", schema::display_path(&v.path), v.message)).collect()
}

#[test]
fn nodes_become_endpoints_with_turned_priorities() {
    let (config, hosts) = compiled(json!({"scheme": "https", "nodes": [
        {"host": "10.0.0.1", "weight": 2},
        {"host": "10.0.0.2", "port": 8443, "weight": 0, "priority": -5, "metadata": {"a": 1}},
        {"host": "[::1]", "weight": 1, "priority": 7},
    ]}));
    let shown: Vec<_> = hosts.iter().map(|h| (h.address.to_string(), h.weight, h.priority)).collect();
    assert_eq!(
        shown,
        [
            ("10.0.0.1:443".to_owned(), 2, 1),
            ("10.0.0.2:8443".to_owned(), 0, 2),
            ("[::1]:443".to_owned(), 1, 0),
        ]
    );
    assert_eq!(config.discovery, Discovery::Static);
    assert_eq!(config.retry.as_ref().unwrap().num_retries, 2);
    assert_eq!(hosts[1].metadata.get("apisix"), Some(&json!({"a": 1})));
}

#[test]
fn names_are_resolved() {
    let (config, hosts) = compiled(json!({"nodes": {"Example.COM": 1, "10.0.0.1:81": 1}}));
    assert!(matches!(config.discovery, Discovery::StrictDns(_)));
    assert_eq!(hosts[0].address, Address::Name("example.com".to_owned(), 80));
    assert_eq!((&*hosts[0].hostname, &*hosts[1].hostname), ("Example.COM", ""));
}

#[test]
fn a_service_of_dns_is_a_name_that_its_own_servers_are_asked_for() {
    let own = "discovery: {dns: {servers: ['127.0.0.1:1053', '10.0.0.1']}}";
    let service = json!({"service_name": "orders.example:8080", "discovery_type": "dns"});
    let (config, hosts) = compiled_with(own, service.clone());
    assert_eq!(hosts[0].address, Address::Name("orders.example".to_owned(), 8080));
    let Discovery::StrictDns(dns) = &config.discovery else { panic!("not by DNS") };
    let servers: Vec<SocketAddr> = vec!["127.0.0.1:1053".parse().unwrap(), "10.0.0.1:53".parse().unwrap()];
    assert_eq!(dns.servers.as_ref().unwrap().addresses, servers);
    let named = compiled_with(own, json!({"nodes": {"orders.example:8080": 1}})).0;
    let Discovery::StrictDns(dns) = &named.discovery else { panic!("not by DNS") };
    assert_eq!(dns.servers, None, "nodes are asked for where everybody asks");
    assert!(matches!(&compiled(service).0.discovery, Discovery::StrictDns(dns) if dns.servers.is_none()));
}

#[test]
fn settings_reach_the_cluster() {
    let (config, _) = compiled(json!({
        "nodes": {"10.0.0.1:80": 1}, "scheme": "grpc", "type": "least_conn", "retries": 4, "retry_timeout": 1.5,
        "timeout": {"connect": 0.5, "send": 1, "read": 2},
        "keepalive_pool": {"size": 5, "idle_timeout": 9, "requests": 7},
    }));
    assert_eq!(config.protocol, UpstreamProtocol::Http2);
    assert_eq!(config.balance.policy, Policy::ApisixLeastConn);
    assert_eq!(config.connect_timeout, Duration::from_millis(500));
    assert_eq!((config.max_idle, config.max_requests_per_connection), (5, Some(7)));
    assert_eq!(config.idle_timeout, Some(Duration::from_secs(9)));
    let retry = config.retry.as_ref().unwrap();
    assert_eq!((retry.num_retries, retry.deadline), (4, Some(Duration::from_millis(1500))));
    assert_eq!(retry.on, RetryOn::NGINX_ERROR_TIMEOUT);
    let (config, _) = compiled(json!({"nodes": {}}));
    assert_eq!((config.max_idle, config.max_requests_per_connection), (320, Some(1000)));
    assert_eq!(
        (config.connect_timeout, config.retry.as_ref().unwrap().num_retries),
        (Duration::from_secs(60), 0)
    );
}

#[test]
fn chash_keys_are_variables_whatever_their_names() {
    let key = |value: Value| Forwarding::of(&upstream(value)).hash_key;
    let chash = |on: &str, key: &str| json!({"nodes": {}, "type": "chash", "hash_on": on, "key": key});
    let variable = |name: &str| Some(HashKey::Variable(name.to_owned()));
    assert_eq!(key(chash("vars", "arg_user")), variable("arg_user"));
    assert_eq!(key(chash("header", "X-User")), variable("http_x_user"));
    assert_eq!(key(chash("cookie", "s-id")), variable("cookie_s-id"));
    assert_eq!(key(chash("vars_combinations", "$host$uri")), Some(HashKey::Template("$host$uri".to_owned())));
    let of_consumer = json!({"nodes": {}, "type": "chash", "hash_on": "consumer"});
    assert_eq!(key(of_consumer), variable("consumer_name"));
    assert_eq!(key(json!({"nodes": {}, "key": "uri"})), None);
}

#[test]
fn what_can_not_be_is_refused_by_name() {
    assert_eq!(faults(json!({"nodes": {"a:80": 1}})), [] as [&str; 0]);
    assert_eq!(faults(json!({"nodes": {}, "type": "fastest"})), [] as [&str; 0]);
    assert_eq!(warnings(&upstream(json!({"nodes": {}, "type": "fastest"}))).len(), 1);
    assert!(warnings(&upstream(json!({"nodes": {}, "type": "ewma"}))).is_empty());
    // As data it is taken; a real APISIX may have the same store.
    let kafka = json!({"nodes": {"127.0.0.1:9092": 1}, "scheme": "kafka", "tls": {"verify": true}});
    assert_eq!(faults(kafka.clone()), [] as [&str; 0]);
    assert!(warnings(&upstream(kafka.clone()))[0].message.ends_with("answered with 503"));
    assert!(compiled(kafka).1.is_empty());
    assert_eq!(faults(json!({"nodes": {}, "type": "chash"})), ["key: missing key"]);
    assert!(
        faults(json!({"nodes": {}, "type": "chash", "key": "color"}))[0]
            .starts_with("key: invalid configuration: failed to match pattern")
    );
    assert!(
        faults(json!({"nodes": {}, "type": "chash", "hash_on": "header", "key": "a b"}))[0]
            .starts_with("key: ")
    );
    assert_eq!(
        faults(json!({"nodes": {}, "pass_host": "rewrite"})),
        ["upstream_host: `upstream_host` can't be empty when `pass_host` is `rewrite`"]
    );
    assert_eq!(faults(json!({"nodes": {"a:99999": 1}})), ["nodes: invalid port 99999"]);
    let node = |host: &str| json!({"nodes": [{"host": host, "port": 81, "weight": 1}]});
    assert_eq!(compiled(node("127.0.0.1:1980")).1[0].address.to_string(), "127.0.0.1:1980");
    for host in ["127.0.0.1:0", "127.0.0.1:x", "a.b:80"] {
        assert_eq!(faults(node(host)), [format!("nodes: invalid host {host}")]);
    }
    assert_eq!(
        faults(json!({"service_name": "a", "discovery_type": "nacos"})),
        ["discovery_type: not supported: service discovery (nacos); dns is"]
    );
    assert_eq!(
        faults(json!({"service_name": "a:0", "discovery_type": "dns"})),
        ["service_name: invalid port 0"]
    );
}
