//! Listeners over real sockets, with four workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chains;
mod changes;
mod closing;
mod filters;
mod l4;
mod tcp;
mod tls;
mod waiting;

use crate::admin::Lifecycle;
use crate::drain::DrainStrategy;
use crate::server::Server;
use crate::worker::Options;
use bytes::Bytes;
use parking_lot::Mutex;
use sixfold_core::access_log::{AccessLog, LineFormat, LogSink};
use sixfold_core::cluster::{Address, Cluster, ClusterConfig, Clusters, HostConfig};
use sixfold_core::detached::Nowhere;
use sixfold_core::listener::{
    BindAddress, ConnectAttempts, ConnectionFilter, FilterChain, FilterChainMatch, FilterChains, Listener,
    ListenerFilter, ListenerStats, NetworkFilter, SocketRights, TcpProxy, TcpStats,
};
use sixfold_core::metrics::Registry;
use sixfold_core::model::{Diff, Model};
use sixfold_core::route::ClusterChoice;
use sixfold_core::stream::Stream;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A server with four workers.
pub(super) struct Fixture {
    pub(super) server: Server,
    pub(super) registry: Registry,
    pub(super) clusters: Arc<Clusters>,
}

impl Fixture {
    pub(super) fn start() -> Fixture {
        Fixture::start_with(&options())
    }

    /// The same with some of [`options`].
    pub(super) fn start_with(options: &Options) -> Fixture {
        let (registry, model) = (Registry::new(), Arc::new(Model::default()));
        let clusters = model.clusters().clone();
        let server =
            Server::start(options.clone(), registry.clone(), model, Arc::new(Nowhere), Lifecycle::default())
                .unwrap();
        Fixture { server, registry, clusters }
    }

    /// A listener on a port of the system's choice that does one thing with every connection.
    pub(super) fn listener(&self, name: &str, filter: NetworkFilter) -> Listener {
        listener(&self.registry, name, filter)
    }

    /// Applies a listener and tells where it listens.
    pub(super) async fn apply(&self, listener: Listener) -> SocketAddr {
        let name = listener.name.clone();
        self.server.apply(upsert(listener)).await.unwrap();
        self.address(&name)
    }

    pub(super) fn address(&self, name: &str) -> SocketAddr {
        let all = self.server.addresses();
        let (_, bound) = all.iter().find(|(n, _)| **n == *name).unwrap();
        match bound.first() {
            Some(BindAddress::Ip(address)) => *address,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn tcp_proxy(&self, cluster: &str, logs: Vec<AccessLog>) -> TcpProxy {
        TcpProxy {
            stat_prefix: "t".into(),
            stats: Arc::new(TcpStats::new(&self.registry, "tcp.t.")),
            cluster: ClusterChoice::Named(self.clusters.cell(cluster)),
            idle_timeout: None,
            max_duration: None,
            attempts: ConnectAttempts::Fixed(1),
            hash: Vec::new(),
            metadata_match: Default::default(),
            buffer_limit: 1 << 20,
            access_logs: logs,
        }
    }

    /// A cluster of these endpoints under `name`.
    pub(super) async fn cluster(&self, name: &str, endpoints: &[SocketAddr]) -> Arc<Cluster> {
        self.cluster_of(cluster_config(name), endpoints).await
    }

    /// The same of what is configured.
    pub(super) async fn cluster_of(&self, config: ClusterConfig, endpoints: &[SocketAddr]) -> Arc<Cluster> {
        let name = config.name.clone();
        let hosts = endpoints.iter().map(|e| HostConfig::new(Address::Ip(*e))).collect();
        let cluster = Cluster::new(config, hosts, None, &self.registry).unwrap();
        let diff = Diff { clusters: vec![(name, Some(cluster.clone()))], ..Diff::default() };
        self.server.apply(diff).await.unwrap();
        cluster
    }

    /// Ends the server so that no thread outlives its test.
    pub(super) async fn end(self) {
        self.server.shutdown(Duration::ZERO).await;
    }
}

/// Those of tests, which change them.
pub(super) fn options() -> Options {
    Options {
        concurrency: 4,
        drain_time: Duration::from_millis(300),
        drain_strategy: DrainStrategy::Immediate,
        ..Options::default()
    }
}

/// See [`Fixture::listener`].
pub(super) fn listener(registry: &Registry, name: &str, filter: NetworkFilter) -> Listener {
    let chain = chain("only", FilterChainMatch::default(), 1, filter);
    Listener {
        name: name.into(),
        addresses: vec![BindAddress::Ip((Ipv4Addr::LOCALHOST, 0).into())],
        bind: true,
        listener_filters: Vec::new(),
        filters_timeout: Some(Duration::from_secs(15)),
        continue_on_timeout: false,
        chains: FilterChains::one(chain),
        default_chain: None,
        use_original_dst: false,
        access_logs: Vec::new(),
        socket: SocketRights::default(),
        exact_balance: false,
        spared: Default::default(),
        metadata: Arc::default(),
        backlog: 1024,
        tcp_keepalive: None,
        inbound: false,
        stats: Arc::new(ListenerStats::new(registry, &format!("listener.{name}."))),
        shape: 1,
    }
}

pub(super) fn upsert(listener: Listener) -> Diff {
    Diff { listeners: vec![(listener.name.clone(), Some(Arc::new(listener)))], ..Diff::default() }
}

pub(super) fn removal(name: &str) -> Diff {
    Diff { listeners: vec![(name.into(), None)], ..Diff::default() }
}

pub(super) fn chain(
    name: &str,
    matches: FilterChainMatch,
    fingerprint: u64,
    filter: NetworkFilter,
) -> FilterChain {
    FilterChain {
        name: name.into(),
        matches,
        tls: None,
        handshake_timeout: Duration::from_secs(60),
        filters: Arc::default(),
        metadata: Arc::default(),
        filter,
        fingerprint,
    }
}

/// The listener with filters before the last one of its only chain.
pub(super) fn behind(listener: Listener, filters: Vec<Arc<dyn ConnectionFilter>>) -> Listener {
    let NetworkFilter::Tcp(proxy) = &listener.chains[0].filter else { panic!("a TCP proxy") };
    let filter = NetworkFilter::Tcp(proxy.clone());
    let chain = chain("only", FilterChainMatch::default(), 1, filter);
    Listener { chains: FilterChains::one(FilterChain { filters: filters.into(), ..chain }), ..listener }
}

pub(super) fn says(text: &'static str) -> NetworkFilter {
    NetworkFilter::Direct(Bytes::from_static(text.as_bytes()))
}

fn cluster_config(name: &str) -> ClusterConfig {
    let mut config = ClusterConfig::named(name);
    (config.idle_timeout, config.max_idle) = (None, 16);
    config
}

/// Keeps what is logged.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<String>>>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        self.0.lock().push(String::from_utf8_lossy(line).into_owned());
    }
}

struct Shown<F>(F);

impl<F: Fn(&Stream) -> String + Send + Sync> LineFormat for Shown<F> {
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        out.extend(self.0(stream).into_bytes());
    }
}

impl Lines {
    /// An access log whose lines are what `show` makes of a stream.
    pub(super) fn log(&self, show: impl Fn(&Stream) -> String + Send + Sync + 'static) -> AccessLog {
        AccessLog { filter: None, format: Arc::new(Shown(show)), sink: Arc::new(self.clone()) }
    }

    /// Waits for `n` lines.
    pub(super) async fn wait(&self, n: usize) -> Vec<String> {
        eventually(|| self.0.lock().len() >= n).await;
        self.0.lock().clone()
    }
}

/// Waits until something holds.
pub(super) async fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came to hold");
}

/// Echoes what each of its connections says until they end.
pub(super) async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Says something over a connection that echoes, and hears it again.
pub(super) async fn ping(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> bool {
    let mut back = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && matches!(
            tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut back)).await,
            Ok(Ok(_)) if &back == b"ping"
        )
}

/// Everything a connection says after `bytes` were sent to it, until it is closed.
pub(super) async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset instead of an end is an answer too: none.
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await.expect("the connection is closed");
    String::from_utf8(answer).unwrap()
}

/// Connects from a thread of its own and reads all that is said.
pub(super) fn read_blocking(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn proxy_protocol(optional: bool) -> Vec<ListenerFilter> {
    vec![ListenerFilter::ProxyProtocol { optional, versions: (true, true), unspecified: false }]
}
