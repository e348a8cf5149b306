//! The machine with real resources and a real model.
#![allow(clippy::unwrap_used, clippy::panic)]

mod extensions;
mod files;
mod secrets;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prost::{Message, Name};
use sixfold_core::model::Model;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::pb::envoy::config::route::v3::RouteConfiguration;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::*;
use crate::ads::Static;
use crate::ads::{
    AdsConfig, BackoffConfig, Flavor, HOLD, LINGER, Machine, Request, Response, Step, StreamConfig, Wildcard,
};
use crate::testing::{context, read};

const ROUTER: &str = "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

/// A filter that does nothing.
const IDLE: &str = "{name: web, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}";

struct Proxy {
    machine: Machine<Resources>,
    model: Model,
    context: Context,
    now: Instant,
    nonce: usize,
}

impl Proxy {
    fn new() -> Proxy {
        let mut proxy = Proxy::with_clusters_of(Source::Ads);
        assert_eq!(proxy.asked(), ["+", "+"]);
        proxy
    }

    fn with_clusters_of(clusters: Source) -> Proxy {
        let (context, now) = (context(), Instant::now());
        let stream = StreamConfig {
            flavor: Flavor::Delta,
            node_always: false,
            backoff: BackoffConfig::default(),
            rate: None,
        };
        let all = |source| Wildcard { source, within: None };
        let config = AdsConfig {
            node: Node::default(),
            ads: Some(stream),
            wildcards: BTreeMap::from([(Kind::Cluster, all(clusters)), (Kind::Listener, all(Source::Ads))]),
            statics: BTreeMap::from([(
                Key::of_name(Kind::Cluster, &"static".into()),
                Static::InForce(Asks::default()),
            )]),
        };
        let random = fastrand::Rng::with_seed(1);
        let machine = Machine::new(
            config,
            Resources::new(context.clone()),
            &context.compile.build.metrics,
            random,
            now,
        );
        let model = Model::new(context.compile.clusters.clone(), context.compile.route_tables.clone());
        let mut proxy = Proxy { machine, model, context, now, nonce: 0 };
        assert!(matches!(proxy.machine.step(now), Step::Connect(_)));
        proxy.machine.connected(&Channel::Aggregated);
        proxy
    }

    /// Brings resources of a type and takes others away; answers what was asked of the control plane then.
    fn bring<M: Message + Name + Default>(
        &mut self,
        resources: &[(&str, &str)],
        removed: &[&str],
    ) -> Vec<String> {
        let resources = resources.iter().map(|(name, text)| resource::<M>(name, text));
        self.bring_all::<M>(resources.collect(), removed)
    }

    fn bring_all<M: Name>(&mut self, resources: Vec<Resource>, removed: &[&str]) -> Vec<String> {
        self.receive::<M>(resources, removed);
        self.work();
        self.asked()
    }

    fn receive<M: Name>(&mut self, resources: Vec<Resource>, removed: &[&str]) {
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            type_url: M::type_url(),
            nonce: self.nonce.to_string(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.machine.received(&Channel::Aggregated, Response::Delta(response), self.now).unwrap();
    }

    /// Brings a listener that can't be bound.
    fn bring_in_vain(&mut self, name: &str, text: &str) {
        self.receive::<ProtoListener>(vec![resource::<ProtoListener>(name, text)], &[]);
        let Step::Apply(batch) = self.machine.step(self.now) else { panic!("nothing is tried") };
        let _never_applied = self.machine.compiler().diff(batch);
        let reason = "cannot bind".to_owned();
        self.machine.applied(vec![Failure { kind: Kind::Listener, name: name.into(), reason }]);
        self.work();
    }

    fn work(&mut self) {
        while let Step::Apply(batch) = self.machine.step(self.now) {
            let errors = self.model.apply_detached(self.machine.compiler().diff(batch));
            self.machine.applied(failures(errors));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.work();
    }

    /// What is asked for and no longer, and answers: `ok`, or why not.
    fn asked(&mut self) -> Vec<String> {
        let requests = std::iter::from_fn(|| self.machine.next_request(&Channel::Aggregated, self.now));
        let shown = requests.map(|request| {
            let Request::Delta(request) = request else { panic!("delta") };
            match (request.error_detail, request.response_nonce.is_empty()) {
                (Some(error), _) => error.message,
                (None, false) => "ok".to_owned(),
                (None, true) => {
                    let gone = request.resource_names_unsubscribe.iter().map(|name| format!("-{name}"));
                    format!("+{}{}", request.resource_names_subscribe.join("+"), gone.collect::<String>())
                }
            }
        });
        shown.collect()
    }

    fn hosts(&self, cluster: &str) -> Option<usize> {
        self.context.compile.clusters.find(cluster).map(|cluster| cluster.hosts.load().total())
    }

    fn listeners(&self) -> Vec<String> {
        self.model.listeners().iter().map(|listener| listener.name.to_string()).collect()
    }

    /// The first route's cluster of a table in force.
    fn leads_to(&self, table: &str) -> Option<String> {
        let table = self.context.compile.route_tables.of_name(table).first()?.load()?;
        let mut clusters = BTreeSet::new();
        named_by(&table, &mut clusters);
        Some(clusters.into_iter().collect::<Vec<_>>().join("+"))
    }
}

fn resource<M: Message + Name + Default>(name: &str, text: &str) -> Resource {
    let resource = Some(any::pack(&read::<M>(text)));
    Resource { name: name.to_owned(), resource, ..Resource::default() }
}

fn eds(name: &str) -> String {
    format!(
        "{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}}}}}"
    )
}

fn endpoints(name: &str, ports: &[u16]) -> String {
    let endpoints = ports.iter().map(|port| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    });
    format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}",
        endpoints.collect::<Vec<_>>().join(", ")
    )
}

fn routes(name: &str, cluster: &str) -> String {
    format!(
        "{{name: {name}, virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
    )
}

fn listener(name: &str, routes: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: \
         [{{name: hcm, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, rds: {{route_config_name: {routes}, \
         config_source: {{ads: {{}}, initial_fetch_timeout: 0s}}}}, http_filters: [{ROUTER}]}}}}]}}]}}"
    )
}

/// Filters, the last of them the router, in place of the router alone.
fn with_filters(listener: &str, filters: &str) -> String {
    listener.replace(ROUTER, &format!("{filters}, {ROUTER}"))
}

/// A filter of JSON that goes with no settings of routes if it is `alone`.
fn json_filter(name: &str, own: &str) -> String {
    format!("{{name: {name}, typed_config: {{{JSON}, value: {{{own}}}}}}}")
}

const JSON: &str =
    "\"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/test.Json";

fn routes_saying(settings: &str) -> String {
    routes("r", "a").replace("routes:", &format!("typed_per_filter_config: {{{settings}}}, routes:"))
}

/// It was accepted, and in force without any routes: every request was answered with 404.
#[test]
fn a_listener_whose_filters_do_not_go_with_the_routes_it_names_is_refused() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes_saying(&format!("js: {{{JSON}, value: {{}}}}")))], &[]);
    let before = (proxy.model.listeners()[0].clone(), proxy.leads_to("r"));
    assert_eq!(before.1.as_deref(), Some("a"));
    let bad = with_filters(&listener("l", "r"), &json_filter("js", "alone: true"));
    let answer = proxy.bring::<ProtoListener>(&[("l", &bad)], &[]);
    assert_eq!(
        answer,
        [
            "listener \"l\": the routes that it names don't go with its HTTP filters: route configuration \"r\": virtual_hosts[0].typed_per_filter_config.js.value.alone: is not"
        ]
    );
    assert!(Arc::ptr_eq(&before.0, &proxy.model.listeners()[0]));
    assert_eq!(proxy.leads_to("r"), before.1);
    // Filters that go with them are in force with the same routes, also of another type than that of the settings.
    for filters in [json_filter("js", ""), IDLE.replace("name: web", "name: js")] {
        let good = with_filters(&listener("l", "r"), &filters);
        assert_eq!(proxy.bring::<ProtoListener>(&[("l", &good)], &[]), ["ok"], "{filters}");
        let listeners = proxy.model.listeners();
        let NetworkFilter::Http(manager) = &listeners[0].chains[0].filter else { panic!() };
        assert!(manager.routes.load().is_some(), "{filters}");
    }
}

/// What is wrong in itself is no matter of the filters that there are: it was let in, and broke the next listener.
#[test]
fn routes_are_refused_for_their_settings_whatever_filters_there_are() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]);
    let answer = proxy.bring::<RouteConfiguration>(
        &[("r", &routes_saying(&format!("js: {{{JSON}, value: {{bad: true}}}}")))],
        &[],
    );
    assert!(answer[0].contains("typed_per_filter_config.js.value.bad"), "{answer:?}");
    let old = routes("r", "a").replace("routes:", "cors: {max_age: wrong}, routes:");
    let answer = proxy.bring::<RouteConfiguration>(&[("r", &old)], &[]);
    assert!(answer[0].ends_with("virtual_hosts[0].cors.max_age: is wrong"), "{answer:?}");
}

/// Nothing of it was counted.
#[test]
fn what_becomes_of_endpoints_is_counted_by_their_cluster() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("a", &eds("a"))], &[]);
    proxy.bring::<ClusterLoadAssignment>(
        &[("a", "{cluster_name: a, policy: {endpoint_stale_after: 5s}, endpoints: [{lb_endpoints: [{endpoint: {address: \
           {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}")],
        &[],
    );
    let stats = proxy.context.compile.clusters.find("a").unwrap().stats.clone();
    let counts = || [stats.assignment_timeout_received().get(), stats.assignment_stale().get()];
    let version = proxy.context.compile.build.metrics.sum("cluster.a.", "version");
    assert_eq!((version, counts()), (xxhash_rust::xxh64::xxh64(b"", 0), [1, 0]));
    proxy.pass(Duration::from_secs(5));
    assert_eq!((proxy.hosts("a"), counts()), (Some(0), [1, 1]));
}

/// Each was in the message, however many there were.
#[test]
fn of_many_faults_an_answer_has_the_first() {
    let mut proxy = Proxy::new();
    let names: Vec<String> = (0..150).map(|number| format!("c{number:03}")).collect();
    let bad = |name: &String| format!("{{name: {name}, connect_timeout: 0s}}");
    let texts: Vec<String> = names.iter().map(bad).collect();
    let clusters: Vec<_> =
        names.iter().zip(&texts).map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let answer = proxy.bring::<ProtoCluster>(&clusters, &[]).remove(0);
    assert!(answer.contains("cluster \"c099\"") && !answer.contains("c100"), "{answer}");
    assert!(answer.ends_with("; and 50 more"), "{answer}");
}

#[test]
fn a_world_comes_into_force_from_its_clusters_to_its_listeners() {
    let mut proxy = Proxy::new();
    assert_eq!(proxy.bring::<ProtoCluster>(&[("c", &eds("c"))], &[]), ["+c", "ok"]);
    assert_eq!(proxy.hosts("c"), None, "it waits for its endpoints");
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]), ["+r", "ok"]);
    assert_eq!(proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "c"))], &[]), ["ok"]);
    assert_eq!((proxy.listeners().len(), proxy.machine.is_initialized()), (0, false));
    assert_eq!(proxy.bring::<ClusterLoadAssignment>(&[("c", &endpoints("c", &[1, 2]))], &[]), ["ok"]);
    assert_eq!((proxy.hosts("c"), proxy.leads_to("r").as_deref()), (Some(2), Some("c")));
    assert_eq!((proxy.listeners(), proxy.machine.is_initialized()), (vec!["l".to_owned()], true));
    // An update of endpoints needs nothing else, and the same again is no change.
    proxy.bring::<ClusterLoadAssignment>(&[("c", &endpoints("c", &[1, 2, 3]))], &[]);
    assert_eq!(proxy.hosts("c"), Some(3));
    let before = proxy.context.compile.clusters.find("c").unwrap();
    proxy.bring::<ProtoCluster>(&[("c", &eds("c"))], &[]);
    assert!(Arc::ptr_eq(&before, &proxy.context.compile.clusters.find("c").unwrap()), "compiled again");
    // A cluster that changes keeps the endpoints it has: nobody sends them again.
    let other = eds("c").replace("type: EDS", "type: EDS, connect_timeout: 3s");
    assert_eq!(proxy.bring::<ProtoCluster>(&[("c", &other)], &[]), ["ok"]);
    assert_eq!(proxy.hosts("c"), Some(3));
    assert!(!Arc::ptr_eq(&before, &proxy.context.compile.clusters.find("c").unwrap()));
}

/// Of one that had never been in force nothing was shown, and of another that what is in force drains.
#[test]
fn a_listener_that_cannot_be_bound_is_shown_with_why() {
    let mut proxy = Proxy::new();
    proxy.context.tracker.set_drain_time(Duration::from_secs(3600));
    let shown = |proxy: &Proxy| {
        let all = proxy.context.tracker.of(Kind::Listener);
        let tracked = all.into_iter().find(|(key, _)| *key.name == *"l").map(|(_, tracked)| tracked);
        tracked.map(|tracked| (tracked.active.is_some(), tracked.refused.map(|refused| refused.reason)))
    };
    let rds = "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0s}}";
    let good = listener("l", "r").replace(rds, "route_config: {name: r}");
    let other = good.replace("port_value: 80", "port_value: 81");
    let why = || Some("cannot bind".to_owned());
    proxy.bring_in_vain("l", &other);
    assert_eq!((shown(&proxy), proxy.listeners().len()), (Some((false, why())), 0));
    proxy.bring::<ProtoListener>(&[("l", &good)], &[]);
    assert_eq!((shown(&proxy), proxy.listeners().len()), (Some((true, None)), 1));
    proxy.bring_in_vain("l", &other);
    assert_eq!((shown(&proxy), proxy.context.tracker.draining()), (Some((true, why())), Vec::new()));
    proxy.bring::<ProtoListener>(&[], &["l"]);
    assert_eq!((shown(&proxy), proxy.context.tracker.draining().len()), (None, 1));
    // What was never good is forgotten with it.
    proxy.bring_in_vain("l", &other);
    proxy.bring::<ProtoListener>(&[], &["l"]);
    assert_eq!(shown(&proxy), None);
}

/// They were taken, and every request was answered with 503.
#[test]
fn a_listener_with_routes_of_its_own_must_know_their_clusters() {
    let mut proxy = Proxy::new();
    let own = |cluster: &str| {
        let rds = "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0s}}";
        listener("l", "r").replace(rds, &format!("route_config: {}", routes("r", cluster)))
    };
    proxy.bring::<ProtoCluster>(&[("known", "{name: known}")], &[]);
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &own("known"))], &[]), ["ok"]);
    let said = proxy.bring::<ProtoListener>(&[("l", &own("knwon"))], &[]).concat();
    assert!(said.contains("unknown cluster \"knwon\"; did you mean \"known\"?"), "{said}");
    // One of the bootstrap is as good.
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &own("sds"))], &[]), ["ok"]);
}

#[test]
fn routes_wait_for_clusters_that_warm_up_but_not_for_ever() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("a", "{name: a}")], &[]);
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a"));
    proxy.bring::<ProtoCluster>(&[("b", &eds("b"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "b"))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a"), "b has no endpoints yet");
    proxy.pass(HOLD);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("b"));
    // A cluster of which nothing was ever heard is not waited for.
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "unknown"))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("unknown"));
}

/// Copies went nowhere until it had come.
#[test]
fn routes_wait_for_the_clusters_of_their_mirrors() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("a", "{name: a}"), ("b", &eds("b"))], &[]);
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]);
    let mirrored = routes("r", "a, request_mirror_policies: [{cluster: b}]");
    proxy.bring::<RouteConfiguration>(&[("r", &mirrored)], &[]);
    assert_eq!(proxy.leads_to("r"), None, "b has no endpoints yet");
    proxy.bring::<ClusterLoadAssignment>(&[("b", &endpoints("b", &[1]))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a+b"));
}

/// They were in force with whatever came next.
#[test]
fn first_routes_wait_for_their_clusters_whatever_else_comes() {
    let mut proxy = Proxy::new();
    let waits = listener("l", "r").replace("initial_fetch_timeout: 0s", "initial_fetch_timeout: 3s");
    proxy.bring::<ProtoListener>(&[("l", &waits)], &[]);
    proxy.pass(Duration::from_secs(3));
    assert_eq!((proxy.listeners().len(), proxy.leads_to("r")), (1, None));
    proxy.bring::<ProtoCluster>(&[("b", &eds("b"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "b"))], &[]);
    proxy.bring::<ProtoCluster>(&[("a", "{name: a}")], &[]);
    assert_eq!((proxy.hosts("a"), proxy.leads_to("r")), (Some(0), None));
    proxy.bring::<ClusterLoadAssignment>(&[("b", &endpoints("b", &[1]))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("b"));
    // Who comes later to what is in force has it at once.
    let second = listener("m", "r").replace("http_filters: [", &format!("http_filters: [{IDLE}, "));
    proxy.bring::<ProtoListener>(&[("m", &second)], &[]);
    let cells = proxy.context.compile.route_tables.of_name("r");
    assert_eq!((cells.len(), cells.iter().all(|cell| cell.load().is_some())), (2, true));
}

/// Control planes remove a cluster before they send the routes that no longer lead there: requests got 503 between.
#[test]
fn a_removed_cluster_stays_until_its_routes_have_gone() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("a", "{name: a}"), ("b", &eds("b"))], &[]);
    proxy.bring::<ClusterLoadAssignment>(&[("b", &endpoints("b", &[1]))], &[]);
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "b"))], &[]);
    assert_eq!(proxy.bring::<ProtoCluster>(&[], &["b"]), ["+-b", "ok"]);
    // What is said of its endpoints now is said of something that is no more.
    proxy.bring::<ClusterLoadAssignment>(&[("b", "{cluster_name: b}")], &[]);
    assert_eq!(proxy.hosts("b"), Some(1));
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    assert_eq!((proxy.hosts("b"), proxy.leads_to("r").as_deref()), (None, Some("a")));
    // Routes that go on leading to one that is gone do not keep it.
    proxy.bring::<ProtoCluster>(&[], &["a"]);
    assert_eq!(proxy.hosts("a"), Some(0));
    proxy.pass(LINGER);
    assert_eq!(proxy.hosts("a"), None);
}

#[test]
fn what_is_refused_is_named_and_holds_nothing_else_back() {
    let mut proxy = Proxy::new();
    let bad = "{name: bad, connect_timeout: -1s}";
    let answers = proxy.bring::<ProtoCluster>(&[("a", "{name: a}"), ("bad", bad), ("x", "{name: y}")], &[]);
    let expected = "cluster \"bad\": connect_timeout: must be more than 0s, not -1s; \
                    cluster \"x\": name: is \"y\" in a resource that comes as \"x\"";
    assert_eq!(answers, [expected]);
    assert_eq!((proxy.hosts("a"), proxy.hosts("bad"), proxy.hosts("y")), (Some(0), None, None));
    let rejected =
        |proxy: &Proxy| proxy.context.compile.build.metrics.sum("cluster_manager.cds.", "update_rejected");
    let taken =
        |proxy: &Proxy| proxy.context.compile.build.metrics.sum("cluster_manager.cds.", "update_success");
    assert_eq!((rejected(&proxy), taken(&proxy)), (1, 0));
    // What is the bootstrap's is not the control plane's.
    assert_eq!(proxy.bring::<ProtoCluster>(&[("static", bad)], &["static"]), ["ok"]);
    assert_eq!((rejected(&proxy), taken(&proxy)), (1, 1));
}

/// The server held such a listener back once more, for as long again.
#[test]
fn a_listener_waits_once_for_routes_that_do_not_come() {
    let mut proxy = Proxy::new();
    let waits = listener("l", "r").replace("initial_fetch_timeout: 0s", "initial_fetch_timeout: 3s");
    proxy.bring::<ProtoListener>(&[("l", &waits)], &[]);
    let cell = proxy.context.compile.route_tables.of_name("r").remove(0);
    proxy.pass(Duration::from_secs(2));
    assert!(proxy.listeners().is_empty() && cell.is_awaited());
    proxy.pass(Duration::from_secs(1));
    assert!(proxy.listeners().len() == 1 && !cell.is_awaited());
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a"));
}
