//! Stream routes as resources.

use super::*;
use sixfold_core::listener::{L4Route, L4Subject};

const CONFIG: &str = "apisix: {proxy_mode: 'http&stream', stream_proxy: {tcp: [9100], udp: [9100]}}\n";

const STREAMS: &str = "\
stream_routes:
  - {id: a, server_port: 9100, remote_addr: 10.0.0.0/8, upstream_id: 1}
  - {id: b, service_id: s}
  - {id: c, sni: A.test, upstream: {nodes: {'127.0.0.1:82': 1}, timeout: {connect: 1, send: 2, read: 3}}}
services:
  - {id: s, name: service, upstream: {type: chash, key: remote_addr, nodes: {'127.0.0.1:81': 1}}}
upstreams:
  - {id: 1, retries: 2, nodes: {'127.0.0.1:80': 1}}
#END
";

fn route(source: &TextSource, id: &str) -> Arc<L4Route> {
    source.stream_route(id).unwrap().clone()
}

/// The id of the route in force for a client, and its cluster.
fn found(source: &TextSource, name: Option<&str>, remote: &str) -> String {
    let subject = L4Subject {
        server_name: name,
        remote: remote.parse().unwrap(),
        local: "127.0.0.1:9100".parse().unwrap(),
    };
    let found = source.stream_table().find(&subject);
    found.map(|route| route.route.ids.route.to_string()).unwrap_or_default()
}

fn apply(source: &mut TextSource, text: &str) -> Vec<String> {
    let diff = update(source, text);
    let touched = touched(&diff);
    if let Some(change) = diff.l4 {
        drop(change.put_in_force());
    }
    touched
}

#[test]
fn stream_routes_are_linked_with_what_they_refer_to() {
    let mut source = testing::source(CONFIG);
    let touched = apply(&mut source, STREAMS);
    for expected in [
        "+listener stream/0.0.0.0:9100",
        "+listener stream/0.0.0.0:9100/udp",
        "+services/s",
        "+stream_routes/c",
        "+upstreams/1",
    ] {
        assert!(touched.iter().any(|name| name == expected), "{expected} is not in {touched:?}");
    }
    assert_eq!(found(&source, None, "10.1.1.1:1"), "a");
    assert_eq!(found(&source, None, "11.1.1.1:1"), "b");
    assert_eq!(found(&source, Some("a.test"), "10.1.1.1:1"), "c");
    let (b, c) = (route(&source, "b"), route(&source, "c"));
    assert_eq!((&*b.route.ids.service, &*b.route.ids.service_name, b.proxy.hash.len()), ("s", "service", 1));
    assert_eq!(b.proxy.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(c.proxy.idle_timeout, Some(Duration::from_secs(3)));
    let ClusterChoice::Named(cell) = &c.proxy.cluster else { panic!() };
    assert_eq!(&*cell.name, "stream_routes/c");
}

#[test]
fn a_change_touches_the_routes_that_hang_on_it() {
    let mut source = testing::source(CONFIG);
    apply(&mut source, STREAMS);
    let before = ["a", "b", "c"].map(|id| route(&source, id));
    let same = |source: &TextSource| {
        let now = ["a", "b", "c"].map(|id| route(source, id));
        before.iter().zip(&now).map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
    };
    // Nodes are the cluster's.
    assert_eq!(apply(&mut source, &STREAMS.replace("127.0.0.1:80", "127.0.0.1:90")), ["+upstreams/1"]);
    assert_eq!(same(&source), [true, true, true]);
    // What a route knows of its upstream, its service's name, its condition.
    apply(&mut source, &STREAMS.replace("{id: 1,", "{id: 1, timeout: {connect: 1, send: 1, read: 1},"));
    assert_eq!(same(&source), [false, true, true]);
    apply(&mut source, &STREAMS.replace("name: service", "name: other"));
    assert_eq!(&*route(&source, "b").route.ids.service_name, "other");
    apply(&mut source, &STREAMS.replace("A.test", "b.test"));
    assert_eq!((same(&source)[2], found(&source, Some("b.test"), "10.1.1.1:1").as_str()), (false, "c"));
    // One that is gone leaves its connections to the others.
    apply(
        &mut source,
        &STREAMS.replace("  - {id: a, server_port: 9100, remote_addr: 10.0.0.0/8, upstream_id: 1}\n", ""),
    );
    assert!(source.stream_route("a").is_none());
    assert_eq!(found(&source, None, "10.1.1.1:1"), "b");
}

#[test]
fn a_wrong_stream_route_keeps_its_last_good_value() {
    let mut source = testing::source(CONFIG);
    apply(&mut source, STREAMS);
    let wrong = STREAMS.replace("remote_addr: 10.0.0.0/8", "remote_addr: '10.0.0.0/33'");
    let update = source.change(resources(&wrong));
    let told = update.map(|_| String::new()).unwrap_or_else(|errors| errors[0].to_string());
    assert!(told.contains("stream route \"a\": remote_addr:"), "{told}");
    assert_eq!(found(&source, None, "10.1.1.1:1"), "a");
    // Without streams they are read, and take part in nothing.
    let mut source = testing::source("");
    let diff = self::update(&mut source, STREAMS);
    assert!(diff.l4.is_none() && source.stream_route("a").is_none());
}

/// A list said nothing of them: whoever follows one ran all of them.
#[test]
fn a_list_of_plugins_is_about_those_of_streams_too() {
    let text = |list: &str| {
        format!(
            "{list}stream_routes: [{{id: a, plugins: {{seal: {{}}}}, upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}]\n#END\n"
        )
    };
    let told = |list: &str| {
        let changed = testing::source(CONFIG).change(resources(&text(list)));
        changed.err().map(|errors| errors[0].to_string())
    };
    assert_eq!(told(""), None);
    assert_eq!(told("plugins: [{name: seal, stream: true}]\n"), None);
    let refused = told("plugins: [{name: seal}]\n").unwrap();
    assert!(refused.contains("stream route \"a\": plugins.seal: unknown plugin [seal]"), "{refused}");
}

/// They were taken in silence where nothing listens for them.
#[test]
fn routes_of_streams_without_an_address_are_warned_of() {
    let text = "stream_routes:\n  - {id: a, upstream: {nodes: {'127.0.0.1:1': 1}}}\n#END\n";
    let warned = |config: &str| testing::source(config).update(resources(text)).unwrap().warnings.len();
    assert_eq!((warned("apisix: {enable_ipv6: false}"), warned(CONFIG), warned("")), (1, 0, 0));
}
