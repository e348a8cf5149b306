//! What the control thread and the end of the server do while names or workers do not answer.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::dns::ResolverConfig;
use sixfold_core::access_log::{AccessLog, LineFormat, LogSink};
use sixfold_core::cluster::{
    Address, Cluster, ClusterConfig, Clusters, Discovery, DnsFamily, DnsOptions, HostConfig,
};
use sixfold_core::detached::Nowhere;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::listener::{
    BindAddress, FilterChain, FilterChainMatch, FilterChains, Listener, NetworkFilter, SocketRights,
};
use sixfold_core::router::{RouteTable, TableKey, TableOptions};
use sixfold_core::stream::Stream;
use sixfold_core::tls::{ClientContext, ClientSettings, ClientTls};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc as std_mpsc;
use std::time::Instant;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What the old control thread waited for one silent name: nothing here may come near it.
const SILENCE: Duration = Duration::from_secs(5);

struct Fixture {
    server: Server,
    registry: Registry,
    clusters: Arc<Clusters>,
    /// A DNS server that says nothing.
    _silent: UdpSocket,
}

impl Fixture {
    fn start() -> Fixture {
        let (registry, model) = (Registry::new(), Arc::new(Model::default()));
        let options = Options { concurrency: 2, ..Options::default() };
        let (callout, lifecycle) = (Arc::new(Nowhere), Lifecycle::default());
        let clusters = model.clusters().clone();
        let server = Server::start(options, registry.clone(), model, callout, lifecycle).unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = ResolverConfig {
            servers: vec![silent.local_addr().unwrap()],
            timeout: Duration::from_secs(60),
            hosts_file: None,
            ..ResolverConfig::default()
        };
        server.set_dns(DnsCache::start(config).unwrap());
        Fixture { server, registry, clusters, _silent: silent }
    }

    fn cluster(&self, name: &str, address: Address, weight: u32) -> Arc<Cluster> {
        let dns = DnsOptions { respect_ttl: true, family: DnsFamily::V4Only, ..DnsOptions::default() };
        let mut config = ClusterConfig::named(name);
        config.discovery = Discovery::StrictDns(dns);
        let endpoints = vec![HostConfig { weight, ..HostConfig::new(address) }];
        let previous = self.clusters.find(name);
        Cluster::new(config, endpoints, previous.as_deref(), &self.registry).unwrap()
    }

    fn listener(&self, name: &str) -> Listener {
        Listener {
            name: name.into(),
            addresses: vec![BindAddress::Ip((Ipv4Addr::LOCALHOST, 0).into())],
            bind: true,
            listener_filters: Vec::new(),
            filters_timeout: None,
            continue_on_timeout: false,
            chains: FilterChains::one(direct()),
            default_chain: None,
            use_original_dst: false,
            access_logs: Vec::new(),
            socket: SocketRights::default(),
            exact_balance: false,
            spared: Default::default(),
            metadata: Arc::default(),
            backlog: 16,
            tcp_keepalive: None,
            inbound: false,
            stats: Arc::new(sixfold_core::listener::ListenerStats::new(&self.registry, "listener.l.")),
            shape: 1,
        }
    }
}

fn direct() -> FilterChain {
    FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        handshake_timeout: Duration::from_secs(15),
        filters: Arc::default(),
        metadata: Arc::default(),
        filter: NetworkFilter::Direct("hello".into()),
        fingerprint: 1,
    }
}

fn silent() -> Address {
    Address::Name("a.test.".into(), 80)
}

fn known(port: u16) -> Address {
    Address::Ip(([127, 0, 0, 1], port).into())
}

fn clusters(list: Vec<Arc<Cluster>>) -> Diff {
    let clusters = list.into_iter().map(|c| (c.config.name.clone(), Some(c))).collect();
    Diff { clusters, ..Diff::default() }
}

fn table() -> (TableKey, Option<Arc<RouteTable>>) {
    let table = RouteTable::apisix("t", TableOptions::default(), Default::default());
    (TableKey::named("t"), Some(Arc::new(table)))
}

/// One name without an answer held up start, changes and the end by 5 s each.
#[tokio::test]
async fn a_silent_name_holds_up_nothing_else() {
    let fixture = Fixture::start();
    let (server, start) = (&fixture.server, Instant::now());
    let first = clusters(vec![fixture.cluster("silent", silent(), 1), fixture.cluster("known", known(1), 1)]);
    let listeners = vec![("l".into(), Some(Arc::new(fixture.listener("l"))))];
    server.apply(Diff { listeners, route_tables: vec![table()], ..first }).await.unwrap();
    assert!(fixture.clusters.find("known").is_some() && fixture.clusters.find("silent").is_none());
    assert_eq!((server.addresses().len(), server.model().listeners().len()), (1, 1));
    for weight in 2..6 {
        let again = vec![
            fixture.cluster("silent", silent(), weight),
            fixture.cluster("known", known(weight as u16), 1),
        ];
        server.apply(clusters(again)).await.unwrap();
        let known = fixture.clusters.find("known").unwrap();
        assert_eq!(*known.hosts.load().iter().next().unwrap().host.label, format!("127.0.0.1:{weight}"));
    }
    server.shutdown(Duration::ZERO).await;
    assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
}

/// The addresses that a name had serve on, with what the change says of them, and at once.
#[tokio::test]
async fn a_name_that_was_answered_before_needs_no_answer() {
    let fixture = Fixture::start();
    let (server, start) = (&fixture.server, Instant::now());
    let before = fixture.cluster("c", silent(), 1);
    before.update_hosts(vec![HostConfig { hostname: "a.test.".into(), ..HostConfig::new(known(80)) }]);
    fixture.clusters.cell("c").swap(Some(before));
    let after = fixture.cluster("c", silent(), 7);
    server.apply(Diff { route_tables: vec![table()], ..clusters(vec![after]) }).await.unwrap();
    let counted = ["cluster_added", "cluster_modified"].map(|n| fixture.registry.sum("cluster_manager.", n));
    assert_eq!(counted, [0, 1]);
    let member = fixture.clusters.find("c").unwrap().hosts.load().iter().next().unwrap().clone();
    assert_eq!((&*member.host.label, member.weight), ("127.0.0.1:80", 7));
    server.shutdown(Duration::ZERO).await;
    assert!(start.elapsed() < SILENCE);
}

/// Its last answers were that the gateway was ending, where another process went on with it.
#[tokio::test]
async fn nobody_is_told_of_an_end_that_another_process_goes_on_after() {
    for (is_handed_over, last) in [(true, State::Live), (false, State::Draining)] {
        let fixture = Fixture::start();
        let server = &fixture.server;
        server.lifecycle().set(State::Live);
        match is_handed_over {
            true => server.shutdown_beside(Duration::ZERO, Vec::new(), || ()).await,
            false => server.shutdown(Duration::ZERO).await,
        }
        assert_eq!(server.lifecycle().get(), last);
    }
}

/// Changes are applied in their order, also behind one that waits for its clusters.
#[tokio::test]
async fn a_change_that_waits_is_not_overtaken() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let waits =
        Diff { route_tables: vec![table()], ..clusters(vec![fixture.cluster("silent", silent(), 1)]) };
    let waits = Diff {
        clusters: [waits.clusters, clusters(vec![fixture.cluster("c", known(1), 1)]).clusters].concat(),
        ..waits
    };
    let behind = clusters(vec![fixture.cluster("c", known(2), 1)]);
    let (first, second) = tokio::join!(biased; server.apply(waits), server.apply(behind));
    assert!(first.is_ok() && second.is_ok());
    let label = fixture.clusters.find("c").unwrap().hosts.load().iter().next().unwrap().host.label.clone();
    assert_eq!(&*label, "127.0.0.1:2");
    server.shutdown(Duration::ZERO).await;
}

/// What a start waits for came by a change that waited behind it.
#[tokio::test]
async fn endpoints_that_a_change_waits_for_come_before_their_turn() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let mut config = ClusterConfig::named("eds");
    config.discovery = Discovery::Eds(Duration::from_secs(60));
    let eds = Cluster::new(config, Vec::new(), None, &fixture.registry).unwrap();
    let first = Diff { route_tables: vec![table()], ..clusters(vec![eds]) };
    let (change, waits) = change(first, Duration::from_secs(60));
    server.ask(Control::Apply(change)).await;
    // Clusters that it says nothing of do not wait for it, one that goes does.
    server.apply(clusters(vec![fixture.cluster("c", known(1), 1)])).await.unwrap();
    assert!(fixture.clusters.find("c").is_some() && fixture.clusters.find("eds").is_none());
    let goes = Diff { clusters: vec![("c".into(), None)], ..Diff::default() };
    let (change, gone) = self::change(goes, Duration::ZERO);
    server.ask(Control::Apply(change)).await;
    let endpoints = vec![("eds".into(), vec![HostConfig::new(known(2))].into())];
    let listeners = vec![("l".into(), Some(Arc::new(fixture.listener("l"))))];
    assert!(fixture.clusters.find("c").is_some());
    server.apply(Diff { endpoints, listeners, ..Diff::default() }).await.unwrap();
    assert_eq!(waits.await.unwrap(), []);
    assert_eq!(gone.await.unwrap(), []);
    let total = fixture.clusters.find("eds").map(|cluster| cluster.hosts.load().total());
    assert_eq!(
        (total, fixture.clusters.find("c").is_none(), server.model().listeners().len()),
        (Some(1), true, 1)
    );
    server.shutdown(Duration::ZERO).await;
}

fn endpoints(cluster: &str, port: u16) -> Diff {
    Diff { endpoints: vec![(cluster.into(), vec![HostConfig::new(known(port))].into())], ..Diff::default() }
}

/// A change that waited put its secrets over those that had come in the meantime.
#[tokio::test]
async fn secrets_do_not_wait_and_the_last_of_them_stays() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let tls = ClientTls::new(None);
    let context = || ClientContext::new(ClientSettings::default()).unwrap();
    let contexts = |of: &Arc<ClientContext>| vec![tls.change(of.clone())];
    let shown = || tls.context().unwrap();
    let (first, second, third) = (context(), context(), context());
    let cell = server.model().route_tables().cell(&TableKey::named("t"));
    let waits = Diff {
        route_tables: vec![table()],
        contexts: contexts(&first),
        ..clusters(vec![fixture.cluster("silent", silent(), 1)])
    };
    let behind = Diff { contexts: contexts(&second), ..clusters(vec![fixture.cluster("c", known(2), 1)]) };
    let last = async {
        server.apply(Diff { contexts: contexts(&third), ..Diff::default() }).await.unwrap();
        assert!(Arc::ptr_eq(&shown(), &third) && cell.load().is_none(), "secrets wait");
    };
    let (one, two, ()) = tokio::join!(biased; server.apply(waits), server.apply(behind), last);
    assert!(one.is_ok() && two.is_ok() && cell.load().is_some());
    assert!(Arc::ptr_eq(&shown(), &third));
    server.shutdown(Duration::ZERO).await;
}

/// Endpoints that came while a change was held waited behind it, and it for them.
#[tokio::test]
async fn endpoints_do_not_wait_for_a_change_that_is_held() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let eds = |name: &str| {
        let mut config = ClusterConfig::named(name);
        config.discovery = Discovery::Eds(Duration::MAX);
        Cluster::new(config, Vec::new(), None, &fixture.registry).unwrap()
    };
    let label = |name: &str| {
        let cluster = fixture.clusters.find(name)?;
        let hosts = cluster.hosts.load();
        hosts.iter().next().map(|member| member.host.label.to_string())
    };
    let serves = eds("serves");
    server
        .apply(Diff { endpoints: endpoints("serves", 1).endpoints, ..clusters(vec![serves]) })
        .await
        .unwrap();
    let cell = server.model().route_tables().cell(&TableKey::named("t"));
    let waits = vec![fixture.cluster("silent", silent(), 1), eds("new")];
    let missing = endpoints("missing", 1).endpoints;
    let waits = Diff { route_tables: vec![table()], endpoints: missing, ..clusters(waits) };
    let come = async {
        server.apply(endpoints("serves", 2)).await.unwrap();
        server.apply(endpoints("new", 3)).await.unwrap();
        assert!(cell.load().is_none());
        assert_eq!(
            (label("serves").unwrap(), label("new").unwrap()),
            ("127.0.0.1:2".into(), "127.0.0.1:3".into())
        );
    };
    let (held, ()) = tokio::join!(biased; server.apply(waits), come);
    assert_eq!(held.unwrap_err()[0].to_string(), "endpoints \"missing\": there is no cluster of this name");
    assert!(cell.load().is_some());
    server.shutdown(Duration::ZERO).await;
}

/// A log that holds its worker up until the test lets go.
struct Holds {
    held: mpsc::Sender<()>,
    go: Mutex<std_mpsc::Receiver<()>>,
}

impl LineFormat for Holds {
    fn write_line(&self, _: &Stream, _: &mut Vec<u8>) {}
}

impl LogSink for Holds {
    fn write(&self, _: &[u8]) {
        let _ = self.held.try_send(());
        let _ = self.go.lock().recv_timeout(Duration::from_secs(60));
    }
}

/// SIGTERM had no effect for as long as a plugin held one worker up.
#[tokio::test]
async fn a_worker_that_is_held_up_does_not_hold_up_the_end() {
    let fixture = Fixture::start();
    let (server, start) = (&fixture.server, Instant::now());
    let ((held, mut is_held), (let_go, go)) = (mpsc::channel(1), std_mpsc::channel());
    let holds = Arc::new(Holds { held, go: Mutex::new(go) });
    let mut listener = fixture.listener("l");
    let log = AccessLog { filter: None, format: holds.clone(), sink: holds };
    listener.access_logs = vec![log];
    server
        .apply(Diff { listeners: vec![("l".into(), Some(Arc::new(listener)))], ..Diff::default() })
        .await
        .unwrap();
    let BindAddress::Ip(address) = server.addresses()[0].1[0] else { unreachable!() };
    let mut client = TcpStream::connect(address).await.unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();
    is_held.recv().await.unwrap();
    server.shutdown(Duration::ZERO).await;
    assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
    let_go.send(()).unwrap();
}

/// A listener whose routes come by themselves would answer 404 until they are there, and in place of one that serves.
#[tokio::test]
async fn a_listener_waits_for_its_routes_and_the_one_before_it_serves() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let tables = server.model().route_tables();
    let by_itself = |table: &str, first_table: Option<Duration>| {
        let routes = tables.cell(&TableKey::named(table));
        let hcm = crate::http::edge::tests::hcm(Default::default(), Default::default());
        let filter = NetworkFilter::Http(Arc::new(HttpConnectionManager { routes, first_table, ..hcm }));
        let chain = FilterChain { filter, fingerprint: 2, ..direct() };
        Listener { chains: FilterChains::one(chain), ..fixture.listener("l") }
    };
    let change = |listener: Option<Listener>| Diff {
        listeners: vec![("l".into(), listener.map(Arc::new))],
        ..Diff::default()
    };
    let serves_http = || {
        let listeners = server.model().listeners();
        listeners.first().map(|l| matches!(l.chains[0].filter, NetworkFilter::Http(_)))
    };
    server.apply(change(Some(fixture.listener("l")))).await.unwrap();
    server.apply(change(Some(by_itself("t", None)))).await.unwrap();
    assert_eq!((serves_http(), waiting(&fixture)), (Some(false), 1));
    server.apply(Diff { route_tables: vec![table()], ..Diff::default() }).await.unwrap();
    until_warm(server).await;
    assert_eq!((serves_http(), waiting(&fixture)), (Some(true), 0));
    // It comes with its listener, or is there already.
    let with_table = Diff { route_tables: vec![table()], ..change(Some(by_itself("t", None))) };
    server.apply(with_table).await.unwrap();
    assert_eq!(waiting(&fixture), 0);
    // It does not come at all, or can't be used: the listener serves without.
    for (name, limit) in [("late", Some(Duration::from_millis(10))), ("refused", None)] {
        server.apply(change(None)).await.unwrap();
        server.apply(change(Some(by_itself(name, limit)))).await.unwrap();
        if limit.is_none() {
            assert_eq!((serves_http(), waiting(&fixture)), (None, 1));
            tables.cell(&TableKey::named(name)).refuse();
        }
        until_warm(server).await;
        assert_eq!((serves_http(), waiting(&fixture)), (Some(true), 0));
    }
    // One that goes while it waits does not come back.
    server.apply(change(None)).await.unwrap();
    server.apply(change(Some(by_itself("never", None)))).await.unwrap();
    server.apply(change(None)).await.unwrap();
    until_warm(server).await;
    assert_eq!((serves_http(), waiting(&fixture)), (None, 0));
    // One whose address is taken was found out when it had waited, and its source was never told.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = vec![BindAddress::Ip(taken.local_addr().unwrap())];
    let unfit = Listener { addresses, ..by_itself("never", None) };
    let errors = server.apply(change(Some(unfit))).await.unwrap_err();
    assert_eq!((errors.len(), waiting(&fixture)), (1, 0));
    server.shutdown(Duration::ZERO).await;
}

/// A sidecar took traffic of its application before it could serve what came for it.
#[tokio::test]
async fn listeners_of_a_start_open_together() {
    let fixture = Fixture::start();
    let server = &fixture.server;
    let routes = server.model().route_tables().cell(&TableKey::named("t"));
    let hcm = crate::http::edge::tests::hcm(Default::default(), Default::default());
    let filter = NetworkFilter::Http(Arc::new(HttpConnectionManager { routes, first_table: None, ..hcm }));
    let chain = FilterChain { filter, fingerprint: 2, ..direct() };
    let waits = Arc::new(Listener { chains: FilterChains::one(chain), ..fixture.listener("waits") });
    let ready = |name: &str| (name.into(), Some(Arc::new(fixture.listener(name))));
    let names = || server.model().listeners().iter().map(|l| l.name.to_string()).collect::<Vec<_>>();
    let listeners = |list: Vec<_>| Diff { listeners: list, ..Diff::default() };
    server.lifecycle().set(State::Initializing);
    server.apply(listeners(vec![ready("a"), ("waits".into(), Some(waits.clone()))])).await.unwrap();
    assert_eq!((names(), waiting(&fixture)), (vec![], 2));
    server.apply(Diff { route_tables: vec![table()], ..Diff::default() }).await.unwrap();
    until_warm(server).await;
    assert_eq!((names(), waiting(&fixture)), (vec!["a".to_owned(), "waits".to_owned()], 0));
    // Later each goes its own way.
    server.lifecycle().set(State::Live);
    let (key, _) = table();
    server.apply(Diff { route_tables: vec![(key, None)], ..Diff::default() }).await.unwrap();
    server.apply(listeners(vec![("waits".into(), None)])).await.unwrap();
    server.apply(listeners(vec![ready("b"), ("waits".into(), Some(waits))])).await.unwrap();
    assert_eq!((names(), waiting(&fixture)), (vec!["a".to_owned(), "b".to_owned()], 1));
    server.shutdown(Duration::ZERO).await;
}

async fn until_warm(server: &Server) {
    let (done, answer) = oneshot::channel();
    server.ask(Control::Warm(done)).await;
    answer.await.unwrap();
}

/// Listeners that wait, by their gauge, which is set before a later question is answered.
fn waiting(fixture: &Fixture) -> u64 {
    let samples = fixture.registry.samples();
    let gauge = samples.iter().find(|s| s.name == "listener_manager.total_listeners_warming").unwrap();
    match gauge.value {
        metrics::Value::Gauge(n) => n,
        _ => unreachable!("a gauge"),
    }
}
