//! Changes as a delta feed brings them: resources by name, in any order, each compiled alone. Whatever came
//! before, the model must answer as one that started with what is in force now.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::cluster::{Choice, Criteria, Member};
use sixfold_core::connection::Connection;
use sixfold_core::error::ConfigError;
use sixfold_core::listener::NetworkFilter;
use sixfold_core::message::Target;
use sixfold_core::metrics::{Distribution, Value};
use sixfold_core::model::{Diff, Model};
use sixfold_core::route::{Action, ClusterChoice};
use sixfold_core::router::{RouteTable, RouteTableCell};
use sixfold_core::stream::Stream;

use crate::context::is_unknown_cluster;
use crate::rds::{RouteConfigs, Source};
use crate::testing::{context, read, shown};
use crate::{Context, cluster};
use prost::Message;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::listener::Listener;
use sixfold_xds_api::pb::envoy::config::route::v3::RouteConfiguration;

const ROUTER: &str = "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const CLUSTERS: [&str; 5] = ["c0", "c1", "c2", "c3", "c4"];
const WEB: &str = "{name: web, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}";
const WEB_SETTINGS: &str =
    "{\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}";
/// Of a table that must lead to clusters that are there.
const VALIDATED: &str = ", validate_clusters: true";
const TABLES: [&str; 3] = ["t0", "t1", "t2"];
const LISTENERS: [&str; 3] = ["l0", "l1", "l2"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Cluster,
    Table,
    Listener,
}

/// A resource by name, and its text; `None` takes it away.
type Change = ((Kind, &'static str), Option<String>);

/// A model and what its control plane has sent.
struct Feed {
    context: Context,
    model: Model,
    routes: RouteConfigs,
    /// Asks for every table, so that none is forgotten.
    cells: Vec<Arc<RouteTableCell>>,
    /// Clusters that tables may lead to which must.
    known: BTreeSet<&'static str>,
    /// Whether those that must are compared with the first of their name.
    compares: bool,
    /// The last text of each resource that was not refused.
    taken: BTreeMap<(Kind, &'static str), String>,
}

impl Feed {
    fn new() -> Feed {
        let context = context();
        let model = Model::new(context.compile.clusters.clone(), context.compile.route_tables.clone());
        let asking = TABLES.iter().map(|name| {
            let listener =
                crate::listener::compile(&context, &read(&listener("asks", 80, &by_name(name), ROUTER)));
            manager(&listener.unwrap()).routes.clone()
        });
        let (cells, routes) = (asking.collect(), RouteConfigs::new(context.clone()));
        Feed {
            context,
            model,
            routes,
            cells,
            known: BTreeSet::new(),
            compares: false,
            taken: BTreeMap::new(),
        }
    }

    fn know(&mut self, cluster: &'static str, is_known: bool) {
        if is_known {
            self.known.insert(cluster);
            self.context.sent_clusters.add(&cluster.into());
        } else {
            self.known.remove(cluster);
            self.context.sent_clusters.remove(cluster);
        }
    }

    /// Whether a table would be taken if nothing of it had come before.
    fn takes_at_first(&self, name: &'static str, text: &str) -> bool {
        let mut first = Feed::new();
        self.known.iter().copied().for_each(|cluster| first.know(cluster, true));
        let mut routes = first.routes.clone();
        first.add(&mut Diff::default(), &mut routes, Kind::Table, name, Some(text)).is_ok()
    }

    /// Applies everything of a response that compiles, and answers what does not.
    fn apply(&mut self, changes: Vec<Change>) -> Vec<ConfigError> {
        let (mut diff, mut refused) = (Diff::default(), Vec::new());
        let mut routes = self.routes.clone();
        for ((kind, name), text) in changes {
            let added = self.add(&mut diff, &mut routes, kind, name, text.as_deref());
            if let Some(text) = text.as_ref().filter(|text| self.compares && text.contains(VALIDATED))
                && self.taken.get(&(kind, name)) != Some(text)
            {
                assert_eq!(added.is_ok(), self.takes_at_first(name, text), "{text}: {added:?}");
            }
            match added {
                Ok(()) => {
                    if kind == Kind::Cluster {
                        self.know(name, text.is_some());
                    }
                    match text {
                        Some(text) => drop(self.taken.insert((kind, name), text)),
                        None => drop(self.taken.remove(&(kind, name))),
                    }
                }
                Err(error) => refused.push(error),
            }
        }
        assert_eq!(routes.complete(&mut diff), []);
        self.routes = routes;
        assert_eq!(self.model.apply_detached(diff), []);
        refused
    }

    fn add(
        &self,
        diff: &mut Diff,
        routes: &mut RouteConfigs,
        kind: Kind,
        name: &str,
        text: Option<&str>,
    ) -> Result<(), ConfigError> {
        let context = &self.context;
        let compiled = |text| cluster::compile(context, &read(text), true);
        match kind {
            Kind::Cluster => diff.clusters.push((name.into(), text.map(compiled).transpose()?)),
            Kind::Table => {
                let table: Option<RouteConfiguration> = text.map(read);
                // Nobody can take one away.
                routes.update(&Source::Ads, &table.unwrap().encode_to_vec(), diff)?;
            }
            Kind::Listener => {
                let listener = text.map(|text| crate::listener::compile(context, &read(text)).map(Arc::new));
                diff.listeners.push((name.into(), listener.transpose()?));
            }
        }
        Ok(())
    }

    /// Compiles everything of a response, and drops it again.
    fn consider(&self, changes: &[Change]) {
        let (mut diff, mut routes) = (Diff::default(), self.routes.clone());
        for ((kind, name), text) in changes {
            // Whether it is refused makes no difference here.
            let _ = self.add(&mut diff, &mut routes, *kind, name, text.as_deref());
        }
        routes.complete(&mut diff);
    }

    /// Statistics that are not zero.
    fn statistics(&self) -> Vec<String> {
        let zero = |value: &Value| {
            matches!(
                value,
                Value::Counter(0) | Value::Gauge(0) | Value::Histogram(Distribution { count: 0, .. })
            )
        };
        let samples = self.context.compile.metrics().samples().into_iter().filter(|s| !zero(&s.value));
        samples.map(|s| format!("{}: {:?}", s.name, s.value)).collect()
    }

    /// Everything that requests could notice.
    fn shown(&self) -> Vec<String> {
        let clusters = self.context.compile.clusters.all();
        let mut all: Vec<String> = clusters.iter().map(|c| shown_cluster(c)).collect();
        for cell in &self.cells {
            all.push(format!("table {}: {:?}", cell.key.name, cell.load().map(|table| answers(&table))));
        }
        for listener in self.model.listeners() {
            let answers = manager(&listener).routes.load().map(|table| answers(&table));
            all.push(format!("{} {:?}: {answers:?}", listener.name, listener.addresses));
        }
        all
    }
}

fn shown_cluster(cluster: &sixfold_core::cluster::Cluster) -> String {
    let show = |m: &Arc<Member>| {
        format!("{} x{} {:?} {:?} {}", m.host.label, m.weight, m.locality(), m.health(), m.host.is_removed())
    };
    let hosts: Vec<_> = cluster.hosts.load().iter().map(show).collect();
    let gauges =
        [cluster.stats.membership_total(), cluster.stats.membership_healthy()].map(|gauge| gauge.get());
    let chosen = chosen(cluster);
    format!("{} {:?} {hosts:?} {gauges:?} {chosen:?}", cluster.config.name, cluster.config.connect_timeout)
}

/// Which endpoints a few requests get. Every balancer here chooses by the hash.
fn chosen(cluster: &sixfold_core::cluster::Cluster) -> Vec<String> {
    let choose = |n: u64| {
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let choice = Choice {
            worker: 0,
            hash: Some(hash),
            random: hash,
            attempt: 0,
            tried: &[],
            predicates: &[],
            host_attempts: 1,
            previous_priorities: None,
            subset: Criteria::NONE,
            destination: None,
        };
        cluster.balancer.choose(&choice).map_or_else(|| "none".to_owned(), |m| m.host.label.to_string())
    };
    (0..16).map(choose).collect()
}

/// Which route and cluster each of a few requests gets.
fn answers(table: &RouteTable) -> Vec<String> {
    let address = "127.0.0.1:1".parse().unwrap();
    let connection = Arc::new(Connection::plain(address, address));
    let answer = |path: &&str| {
        let mut stream = Stream::new(connection.clone());
        stream.reset(std::time::Instant::now());
        stream.request.authority = b"a.test".to_vec();
        stream.request.target = Target::new(path.as_bytes());
        let found = table.find(&mut stream)?;
        let route = found.route?;
        let cluster = match &route.action {
            Action::Forward(forward) => match &forward.cluster {
                ClusterChoice::Named(cell) => {
                    format!("{}: {:?}", cell.name, cell.load().as_deref().map(shown_cluster))
                }
                _ => panic!("one cluster"),
            },
            _ => "answered".to_owned(),
        };
        let chain = route.chain.as_deref().map(shown);
        Some(format!("{path} by {} of {}, {chain:?}: {cluster}", route.name, found.virtual_host.name))
    };
    let paths = ["/", "/0", "/1", "/2", "/0/1"];
    paths.iter().map(|path| answer(path).unwrap_or_else(|| format!("{path} by none"))).collect()
}

fn random_routes(rng: &mut fastrand::Rng) -> String {
    let routes: Vec<String> = (0..rng.usize(1..4))
        .map(|nth| {
            let action = match rng.usize(..6) {
                5 => format!("direct_response: {{status: {}}}", rng.u16(200..210)),
                // Some name a cluster that has not come, or has gone.
                at => format!("route: {{cluster: {}}}", CLUSTERS[at]),
            };
            // Some have settings for a filter, which only some of the listeners have.
            let settings = if rng.bool() {
                format!("typed_per_filter_config: {{web: {WEB_SETTINGS}}}, ")
            } else {
                String::new()
            };
            format!(
                "{{name: r{nth}, match: {{prefix: \"/{}\"}}, {settings}{action}}}",
                ["", "0", "1", "0/1"][rng.usize(..4)]
            )
        })
        .collect();
    let domain = if rng.bool() { "a.test" } else { "*" };
    format!("virtual_hosts: [{{name: v, domains: [\"{domain}\"], routes: [{}]}}]", routes.join(", "))
}

fn random_text(kind: Kind, name: &str, rng: &mut fastrand::Rng) -> String {
    match kind {
        Kind::Cluster => format!(
            "{{name: {name}, connect_timeout: {}s, lb_policy: RING_HASH, \
             common_lb_config: {{healthy_panic_threshold: {{}}}}, load_assignment: {{cluster_name: {name}, \
             endpoints: [{{locality: {{zone: z{}}}, lb_endpoints: [{}]}}]}}}}",
            rng.u8(1..3),
            rng.u8(1..3),
            (0..rng.usize(1..4)).map(|_| random_endpoint(rng)).collect::<Vec<_>>().join(", "),
        ),
        Kind::Table => {
            let validated = if rng.bool() { VALIDATED } else { "" };
            format!("{{name: {name}, {}{validated}}}", random_routes(rng))
        }
        Kind::Listener => {
            let routes = match rng.usize(..5) {
                own @ 3.. => format!("route_config: {{name: t{}, {}}}", own - 3, random_routes(rng)),
                by_name => self::by_name(TABLES[by_name]),
            };
            let filters = if rng.bool() { format!("{WEB}, {ROUTER}") } else { ROUTER.to_owned() };
            listener(name, rng.u16(8000..8003), &routes, &filters)
        }
    }
}

fn by_name(table: &str) -> String {
    format!("rds: {{route_config_name: {table}, config_source: {{ads: {{}}}}}}")
}

fn listener(name: &str, port: u16, routes: &str, filters: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [\
         {{name: hcm, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, {routes}, http_filters: [{filters}]}}}}]}}]}}"
    )
}

fn manager(listener: &Listener) -> &HttpConnectionManager {
    let NetworkFilter::Http(manager) = &listener.chains[0].filter else { panic!("HTTP") };
    manager
}

fn random_endpoint(rng: &mut fastrand::Rng) -> String {
    format!(
        "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.{}, port_value: 80}}}}}}, \
         load_balancing_weight: {}, health_status: {}}}",
        rng.u8(1..5),
        rng.u8(1..4),
        ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "DEGRADED"][rng.usize(..5)],
    )
}

/// Makes the text of a good resource one that must be refused.
fn broken(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Cluster => text.replacen("connect_timeout: ", "connect_timeout: -", 1),
        Kind::Table => text.replacen("domains: [", "domains: [\"dup\", \"dup\", ", 1).replace(VALIDATED, ""),
        Kind::Listener => text.replacen("stat_prefix: s", "stat_prefix: ''", 1),
    }
}

/// One to six resources, each at most once, in any order; some of them broken. Answers how many.
fn random_changes(rng: &mut fastrand::Rng) -> (Vec<Change>, usize) {
    let kinds = [(Kind::Cluster, &CLUSTERS[..]), (Kind::Table, &TABLES), (Kind::Listener, &LISTENERS)];
    let mut names: Vec<(Kind, &'static str)> =
        kinds.iter().flat_map(|(kind, names)| names.iter().map(|name| (*kind, *name))).collect();
    rng.shuffle(&mut names);
    names.truncate(rng.usize(1..=6));
    let mut bad = 0;
    let changes = names.into_iter().map(|(kind, name)| {
        let text = match rng.u8(..8) {
            0 | 1 if kind != Kind::Table => None,
            2 => {
                bad += 1;
                Some(broken(kind, &random_text(kind, name, rng)))
            }
            _ => Some(random_text(kind, name, rng)),
        };
        ((kind, name), text)
    });
    (changes.collect(), bad)
}

#[test]
fn changes_one_after_the_other_lead_where_a_fresh_start_leads() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut feed = Feed { compares: true, ..Feed::new() };
        let (mut states, mut misled) = (BTreeSet::new(), 0);
        for step in 0..150 {
            let (changes, bad) = random_changes(&mut rng);
            let mut refused = feed.apply(changes);
            let all = refused.len();
            refused.retain(|error| !error.clone().into_all().iter().all(is_unknown_cluster));
            misled += all - refused.len();
            assert_eq!(refused.len(), bad, "seed {seed}, step {step}: {refused:?}");
            let mut fresh = Feed::new();
            // A table stays when a cluster of its has gone.
            CLUSTERS.into_iter().for_each(|cluster| fresh.know(cluster, true));
            let all = feed.taken.iter().map(|(key, text)| (*key, Some(text.clone())));
            assert!(fresh.apply(all.collect()).is_empty());
            assert_eq!(feed.shown(), fresh.shown(), "seed {seed}, step {step}");
            states.insert(feed.shown());
        }
        assert!(states.len() > 100, "hardly anything changes: {} states", states.len());
        assert!(misled > 10, "hardly any table is refused for a cluster that is not there: {misled}");
        assert_eq!(feed.model.sweep(), 0, "seed {seed}: what was replaced is kept");
        // Those that are asked for at all times, and one for each listener at most.
        assert!(feed.context.compile.route_tables.len() <= TABLES.len() + LISTENERS.len(), "seed {seed}");
    }
}

/// A response that is refused as a whole, a dry run, a candidate that a later one overtakes: whatever is compiled
/// and not applied leaves weights, health, choices and statistics as they were.
#[test]
fn what_is_compiled_and_dropped_changes_nothing() {
    for seed in 0..4 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut feed = Feed::new();
        let mut reached = BTreeSet::new();
        for step in 0..40 {
            feed.apply(random_changes(&mut rng).0);
            let before = (feed.shown(), feed.statistics());
            for _ in 0..3 {
                feed.consider(&random_changes(&mut rng).0);
                feed.context.compile.clusters.sweep();
                let (shown, statistics) = (feed.shown(), feed.statistics());
                let changed = |(a, b): &(&String, &String)| a != b;
                assert_eq!(before.0.iter().zip(&shown).find(changed), None, "seed {seed}, step {step}");
                assert_eq!(before.1, statistics, "seed {seed}, step {step}");
            }
            reached.insert(before.0);
        }
        assert!(reached.len() > 30, "hardly anything changes: {} states", reached.len());
    }
}

#[test]
fn a_broken_resource_changes_nothing_else() {
    let mut rng = fastrand::Rng::with_seed(1);
    for (kind, name) in [(Kind::Cluster, "c0"), (Kind::Table, "t0"), (Kind::Listener, "l0")] {
        let mut feed = Feed::new();
        feed.apply(vec![((kind, name), Some(random_text(kind, name, &mut rng)))]);
        let before = feed.shown();
        let refused =
            feed.apply(vec![((kind, name), Some(broken(kind, &random_text(kind, name, &mut rng))))]);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].field.is_some() && !refused[0].reason.is_empty(), "{}", refused[0]);
        assert_eq!(feed.shown(), before);
    }
}

/// A request keeps what it began with, and only then is it dropped.
#[test]
fn what_a_request_holds_outlives_its_change() {
    let mut feed = Feed::new();
    let mut rng = fastrand::Rng::with_seed(2);
    let text = |kind, name, rng: &mut fastrand::Rng| {
        let text = random_text(kind, name, rng).replace(VALIDATED, "");
        ((kind, name), Some(text))
    };
    feed.apply(vec![text(Kind::Cluster, "c0", &mut rng), text(Kind::Table, "t0", &mut rng)]);
    let (table, cluster) = (feed.cells[0].load().unwrap(), feed.context.compile.clusters.find("c0").unwrap());
    let (routes, endpoints) = (answers(&table).len(), chosen(&cluster));
    feed.apply(vec![((Kind::Cluster, "c0"), None), text(Kind::Table, "t0", &mut rng)]);
    assert!(
        !Arc::ptr_eq(&feed.cells[0].load().unwrap(), &table)
            && feed.context.compile.clusters.find("c0").is_none()
    );
    assert_eq!(feed.model.sweep(), 2, "both are held");
    assert_eq!((answers(&table).len(), chosen(&cluster)), (routes, endpoints));
    drop((table, cluster));
    assert_eq!(feed.model.sweep(), 0);
}
