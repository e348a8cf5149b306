#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::Ordering::Relaxed;

use prost::Message;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::listener::{FilterChain, Listener, NetworkFilter};
use sixfold_core::model::{Diff, Listeners, Model};
use sixfold_core::plugin::{Chain, Plugin};
use sixfold_core::route::Route;
use sixfold_core::router::{HostRoutes, RouteTable};
use sixfold_xds_api::pb::envoy::config::route::v3::RouteConfiguration;

use super::*;
use crate::listener;
use crate::testing::{begun, context, read, shown};

const ROUTER: &str = "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
/// Keeps state, as far as anybody knows.
const WEB: &str = "{name: web, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}, ";
const WEB_SETTINGS: &str = "typed_per_filter_config: {web: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}";
const OTHER: &str = "{name: other, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}, ";

struct Proxy {
    context: Context,
    model: Model,
    configs: RouteConfigs,
}

impl Proxy {
    fn new() -> Proxy {
        let context = context();
        let model = Model::new(context.compile.clusters.clone(), context.compile.route_tables.clone());
        Proxy { configs: RouteConfigs::new(context.clone()), context, model }
    }

    /// A listener whose chains take clients of 127.0.0.1, 127.0.0.2 and so on, and have these filters before the
    /// router.
    fn listener(&self, name: &str, filters: &[&str]) -> Listener {
        let chains = filters.iter().enumerate().map(|(n, filters)| {
            format!(
                "{{filter_chain_match: {{source_prefix_ranges: [{{address_prefix: 127.0.0.{}, prefix_len: 32}}]}}, \
                 filters: [{{name: hcm, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
                 http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, rds: {{route_config_name: t, \
                 config_source: {{ads: {{}}}}}}, http_filters: [{filters}{ROUTER}]}}}}]}}",
                n + 1
            )
        });
        let chains = chains.collect::<Vec<_>>().join(", ");
        let text = format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{chains}]}}"
        );
        listener::compile(&self.context, &read(&text)).unwrap()
    }

    fn apply_listener(&mut self, listener: Listener) {
        let mut diff = Diff::default();
        assert_eq!(self.configs.complete(&mut diff), []);
        diff.listeners.push((listener.name.clone(), Some(Arc::new(listener))));
        assert_eq!(self.model.apply_detached(diff), []);
    }

    /// A route configuration of one route comes by ADS. Answers how many tables it gave.
    fn bring(&mut self, name: &str, route: &str) -> Result<usize> {
        let mut diff = Diff::default();
        self.configs.update(&Source::Ads, &encoded(name, route), &mut diff)?;
        let tables = diff.route_tables.len();
        assert_eq!(self.model.apply_detached(diff), []);
        Ok(tables)
    }

    fn managers(&self, listener: &str) -> Vec<Arc<HttpConnectionManager>> {
        let listeners = self.model.listeners();
        managers(listeners.iter().find(|l| *l.name == *listener).unwrap())
    }
}

fn encoded(name: &str, route: &str) -> Vec<u8> {
    let table: RouteConfiguration = read(&format!(
        "{{name: {name}, virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, \
         direct_response: {{status: 200}}, {route}}}]}}]}}"
    ));
    table.encode_to_vec()
}

fn managers(listener: &Listener) -> Vec<Arc<HttpConnectionManager>> {
    let of = |chain: &Arc<FilterChain>| match &chain.filter {
        NetworkFilter::Http(manager) => manager.clone(),
        other => panic!("{other:?}"),
    };
    listener.chains.iter().map(of).collect()
}

/// The only route's name and chain.
fn route(manager: &HttpConnectionManager) -> (String, Option<Arc<Chain>>) {
    let table = manager.routes.load().expect("a table");
    let route = table.routes().next().expect("a route");
    (route.name.to_string(), route.chain.clone())
}

fn plugin(chain: &Chain, name: &str) -> Arc<Plugin> {
    chain.members().iter().find(|member| *member.name == *name).expect("a member").plugin.clone()
}

/// A name stood for one table: whichever connection manager's filters it was compiled for, the other got its chains.
#[test]
fn connection_managers_with_different_filters_follow_one_route_configuration() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &["", WEB]));
    let [plain, web] = &proxy.managers("l")[..] else { panic!("two chains") };
    assert!(plain.routes.load().is_none() && web.routes.load().is_none(), "nothing has come yet");
    for name in ["first", "second"] {
        assert_eq!(proxy.bring("t", &format!("name: {name}, {WEB_SETTINGS}")), Ok(2));
        let ((of_plain, no_web), (of_web, with_web)) = (route(plain), route(web));
        assert_eq!((&*of_plain, &*of_web), (name, name));
        assert_eq!(no_web.map(|chain| shown(&chain)), Some(vec![]));
        assert_eq!(with_web.map(|chain| shown(&chain)), Some(vec!["web [Access, Log]".to_owned()]));
    }
}

/// What a filter keeps is kept for one connection manager (Envoy makes a FilterConfig for each), and for all its routes
/// that do not configure the filter themselves.
#[test]
fn a_filter_that_keeps_something_is_one_for_each_connection_manager() {
    let mut proxy = Proxy::new();
    let filters = format!("{OTHER}{WEB}");
    proxy.apply_listener(proxy.listener("l", &[&filters, &filters]));
    proxy.bring("t", WEB_SETTINGS).unwrap();
    let managers = proxy.managers("l");
    let instances: Vec<_> = managers.iter().map(|manager| plugin(&manager.chain, "other")).collect();
    assert!(!Arc::ptr_eq(&instances[0], &instances[1]), "one for both");
    for (manager, instance) in managers.iter().zip(&instances) {
        let chain = route(manager).1.unwrap();
        assert!(Arc::ptr_eq(&plugin(&chain, "other"), instance), "the route's is another");
        assert!(
            !Arc::ptr_eq(&plugin(&chain, "web"), &plugin(&manager.chain, "web")),
            "the route has its own"
        );
    }
}

#[test]
fn connection_managers_share_a_table_when_their_filters_keep_nothing() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &["", "", WEB, WEB]));
    proxy.apply_listener(proxy.listener("m", &[""]));
    assert_eq!(proxy.bring("t", ""), Ok(3));
    let (l, m) = (proxy.managers("l"), proxy.managers("m"));
    assert!(Arc::ptr_eq(&l[0].routes, &l[1].routes) && Arc::ptr_eq(&l[0].routes, &m[0].routes));
    assert!(!Arc::ptr_eq(&l[2].routes, &l[3].routes));
}

/// A listener that is compiled again has the tables and the instances of its chains that stay: no route is compiled for
/// it, and no limit begins anew.
#[test]
fn a_chain_that_stays_finds_its_table_and_its_filters_again() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &[WEB, ""]));
    proxy.bring("t", "name: r").unwrap();
    let before = proxy.managers("l");
    let changed = proxy.listener("l", &[WEB, OTHER]);
    let after = managers(&changed);
    assert!(Arc::ptr_eq(&before[0].routes, &after[0].routes));
    assert!(Arc::ptr_eq(&before[0].chain, &after[0].chain));
    // The other has its table before it is in force.
    assert!(after[1].routes.load().is_none());
    proxy.apply_listener(changed);
    assert_eq!(route(&after[1]).0, "r");
}

/// Tables of connection managers that had gone were kept for ever, and compiled with every update.
#[test]
fn the_table_of_a_listener_that_has_gone_goes_too() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &[WEB]));
    proxy.bring("t", "").unwrap();
    let table = Arc::downgrade(&proxy.managers("l")[0].routes.load().unwrap());
    let filters = Arc::downgrade(&proxy.context.filter_lists.known.lock().held().next().unwrap());
    assert_eq!(proxy.configs.wanted_by_ads().len(), 1);
    let gone = Diff { listeners: vec![("l".into(), None)], ..Diff::default() };
    assert_eq!(proxy.model.apply_detached(gone), []);
    assert_eq!((proxy.model.sweep(), table.strong_count(), filters.strong_count()), (0, 0, 0));
    assert!(proxy.configs.wanted_by_ads().is_empty() && proxy.context.compile.route_tables.is_empty());
    assert_eq!(proxy.bring("t", "name: again"), Ok(0), "nobody asks");
    proxy.configs.forget_unwanted();
    proxy.apply_listener(proxy.listener("l", &[WEB]));
    assert!(proxy.managers("l")[0].routes.load().is_none(), "its source has to bring it again");
    assert_eq!(proxy.bring("t", "name: again"), Ok(1));
}

/// A table that a bootstrap's runtime had gone into stayed as the first bootstrap had made it.
#[test]
fn another_bootstrap_compiles_what_is_known_again() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &["", WEB]));
    let route = "typed_per_filter_config: {}, name: r";
    assert_eq!(proxy.bring("t", route), Ok(2));
    let before = proxy.managers("l")[0].routes.load().unwrap();
    proxy.configs.set_context(proxy.context.clone());
    let mut diff = Diff::default();
    assert_eq!((proxy.configs.renew(&mut diff), diff.route_tables.len()), (vec![], 2));
    assert_eq!(proxy.model.apply_detached(diff), []);
    assert!(!Arc::ptr_eq(&before, &proxy.managers("l")[0].routes.load().unwrap()));
    let mut diff = Diff::default();
    assert_eq!((proxy.configs.renew(&mut diff), diff.is_empty()), (vec![], true), "once");
    // What its source brings again as it was counts too.
    proxy.configs.set_context(proxy.context.clone());
    assert_eq!(proxy.bring("t", route), Ok(2));
    assert!(proxy.configs.renew(&mut diff).is_empty() && diff.is_empty());
}

/// Opens listeners whose name it likes.
struct Likes(&'static str);

impl Listeners for Likes {
    fn prepare(&mut self, _: &[Arc<str>], coming: &[Arc<Listener>]) -> Vec<(Arc<str>, String)> {
        let refused = coming.iter().filter(|listener| &*listener.name != self.0);
        refused.map(|listener| (listener.name.clone(), "in use".to_owned())).collect()
    }

    fn abandon(&mut self, _: &[Arc<str>]) {}

    async fn remove(&mut self, _: &[Arc<str>]) {}

    async fn upsert(&mut self, _: Arc<Listener>) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// Filters of listeners that were refused, or were only compiled, began to fetch tokens.
#[tokio::test]
async fn filters_begin_with_the_listener_and_the_table_that_go_into_force() {
    let mut proxy = Proxy::new();
    let begun = begun(&proxy.context.compile.build.shared);
    let count = || begun.load(Relaxed);
    let applied = async |proxy: &mut Proxy, name: &str| {
        let mut diff = Diff::default();
        assert_eq!(proxy.configs.complete(&mut diff), []);
        diff.listeners.push((name.into(), Some(Arc::new(proxy.listener(name, &[WEB])))));
        proxy.model.apply(diff, &mut Likes("good")).await.len()
    };
    assert_eq!((applied(&mut proxy, "bad").await, count()), (1, 0), "it is not in force");
    assert_eq!((applied(&mut proxy, "good").await, count()), (0, 1));
    let mut diff = Diff::default();
    proxy.configs.update(&Source::Ads, &encoded("t", WEB_SETTINGS), &mut diff).unwrap();
    assert_eq!(count(), 1, "the routes' filter is compiled");
    assert_eq!(proxy.model.apply(diff, &mut Likes("good")).await, []);
    assert_eq!(count(), 2);
}

#[test]
fn what_is_refused_leaves_the_last_good_version() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &["", WEB]));
    assert_eq!(proxy.bring("t", "name: good"), Ok(2));
    assert_eq!(proxy.bring("t", "name: good"), Ok(0), "it is as it was");
    let error = proxy.bring("t", "name: bad, response_headers_to_remove: ['a b']").unwrap_err();
    assert_eq!(
        error.to_string(),
        "route configuration \"t\": virtual_hosts[0].routes[0].response_headers_to_remove[0]: \"a b\" is no header name"
    );
    assert!(proxy.managers("l").iter().all(|manager| route(manager).0 == "good"));
    assert_eq!(proxy.bring("t", "name: good"), Ok(0), "the bad one is not remembered");
    assert_eq!(proxy.bring("t", "name: better"), Ok(2));
}

/// A table of two virtual hosts with routes of these names; the second host takes `domain`.
fn hosts(first: &[&str], second: &[&str], domain: &str, table: &str) -> Vec<u8> {
    let routes = |names: &[&str]| -> String {
        let route = |name: &&str| {
            format!("{{name: {name}, match: {{prefix: /{name}}}, direct_response: {{status: 200}}}}")
        };
        names.iter().map(route).collect::<Vec<_>>().join(", ")
    };
    let (first, second) = (routes(first), routes(second));
    let table: RouteConfiguration = read(&format!(
        "{{name: t, {table} virtual_hosts: [{{name: a, domains: [a.test], routes: [{first}]}}, \
         {{name: b, domains: [{domain}], routes: [{second}]}}]}}"
    ));
    table.encode_to_vec()
}

/// Whatever changed, every route was compiled again.
#[test]
fn what_has_not_changed_is_taken_over() {
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &["", WEB]));
    let mut bring = |encoded: &[u8]| {
        let mut diff = Diff::default();
        proxy.configs.update(&Source::Ads, encoded, &mut diff).unwrap();
        assert_eq!(proxy.model.apply_detached(diff), []);
        let tables = proxy.managers("l").into_iter().map(|manager| manager.routes.load().unwrap());
        tables.collect::<Vec<_>>()
    };
    // How many routes of each host are those of an earlier table, and whether the host is.
    let kept = |before: &RouteTable, after: &RouteTable| -> Vec<(usize, usize, bool)> {
        let hosts = before.virtual_hosts().iter().zip(after.virtual_hosts());
        let of = |(before, after): (&Arc<HostRoutes>, &Arc<HostRoutes>)| {
            let same = |route: &&Arc<Route>| before.routes().iter().any(|other| Arc::ptr_eq(route, other));
            let kept = after.routes().iter().filter(same).count();
            (kept, after.routes().len(), Arc::ptr_eq(before, after))
        };
        hosts.map(of).collect()
    };
    let first = bring(&hosts(&["x", "y", "z"], &["u"], "b.test", ""));
    assert!(!Arc::ptr_eq(&first[0].virtual_hosts()[0].routes()[0], &first[1].virtual_hosts()[0].routes()[0]));
    // One is changed, one is put in between, two change places.
    let second = bring(&hosts(&["z", "new", "y", "x2"], &["u"], "b.test", ""));
    for (before, after) in first.iter().zip(&second) {
        assert_eq!(kept(before, after), [(2, 4, false), (1, 1, true)]);
        let names: Vec<_> = after.virtual_hosts()[0].routes().iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["z", "new", "y", "x2"]);
    }
    // Another domain is no matter of a route.
    let third = bring(&hosts(&["z", "new", "y", "x2"], &["u"], "c.test", ""));
    assert_eq!(kept(&second[0], &third[0]), [(4, 4, true), (1, 1, false)]);
    // What routes inherit is.
    let settings = format!("{WEB_SETTINGS},");
    let fourth = bring(&hosts(&["z", "new", "y", "x2"], &["u"], "c.test", &settings));
    assert_eq!(kept(&third[1], &fourth[1]), [(0, 4, false), (0, 1, false)]);
    let chains = |table: &RouteTable| table.routes().filter(|route| route.chain.is_some()).count();
    assert_eq!((chains(&third[1]), chains(&fourth[1])), (0, 5));
    let mirrored = format!("request_mirror_policies: [{{cluster: m}}], {settings}");
    let mirrors = bring(&hosts(&["z", "new", "y", "x2"], &["u"], "c.test", &mirrored));
    assert_eq!(kept(&fourth[1], &mirrors[1]), [(0, 4, false), (0, 1, false)]);
    // And so is what another bootstrap compiles by.
    proxy.configs.set_context(proxy.context.clone());
    let mut diff = Diff::default();
    proxy.configs.update(&Source::Ads, &hosts(&["z"], &["u"], "c.test", &settings), &mut diff).unwrap();
    assert_eq!(proxy.model.apply_detached(diff), []);
    let fifth = proxy.managers("l")[1].routes.load().unwrap();
    assert_eq!(kept(&mirrors[1], &fifth), [(0, 1, false), (0, 1, false)]);
}

/// What an update does not bring anew is not looked at again; what it brings is, and the error names its place.
#[test]
fn what_an_update_brings_must_keep_the_rules() {
    let bad = "name: bad, typed_per_filter_config: {}, request_headers_to_add: [{header: {key: \"\"}}]";
    let mut fresh = Proxy::new();
    fresh.apply_listener(fresh.listener("l", &[""]));
    let of_first = fresh.bring("t", bad).unwrap_err().to_string();
    assert!(
        of_first.contains("virtual_hosts[0].routes[0].request_headers_to_add[0].header.key"),
        "{of_first}"
    );
    let mut proxy = Proxy::new();
    proxy.apply_listener(proxy.listener("l", &[""]));
    assert_eq!(proxy.bring("t", "name: good"), Ok(1));
    assert_eq!(proxy.bring("t", bad).unwrap_err().to_string(), of_first);
    let nameless = hosts(&["x"], &["y"], "b.test", "request_headers_to_add: [{header: {key: \"\"}}],");
    let mut diff = Diff::default();
    let error = proxy.configs.update(&Source::Ads, &nameless, &mut diff).unwrap_err();
    assert!(error.to_string().contains("\"t\": request_headers_to_add[0].header.key"), "{error}");
    assert_eq!(proxy.bring("t", "name: good"), Ok(0), "it is as it was");
}
