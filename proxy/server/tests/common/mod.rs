//! A proxy in this process: one listener, one route table, upstreams played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub)]

pub mod clock;
mod nobody;

#[allow(unused_imports)]
pub use nobody::nobody;
use parking_lot::Mutex;
use sixfold_core::access_log::{AccessLog, LogSink};
use sixfold_core::cluster::*;
use sixfold_core::connection::Connection;
use sixfold_core::detached::Nowhere;
use sixfold_core::hcm::*;
use sixfold_core::headers::HeaderRules;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::Chain;
use sixfold_core::retry::RetryPolicy;
use sixfold_core::route::*;
use sixfold_core::router::{HostRoutes, RouteTableCell, TableKey, TableOptions, VirtualHostOptions};
use sixfold_server::drain::Drain;
use sixfold_server::http::{self, Manager};
use sixfold_server::io::{Io, Socket};
use sixfold_server::worker::{Options, Shared, Worker};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An access log in memory.
#[derive(Debug, Default)]
pub struct Lines(pub Mutex<Vec<String>>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        self.0.lock().push(String::from_utf8_lossy(line).into_owned());
    }
}

/// Waits until something holds.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("not in 10 s");
}

/// What a test changes about the proxy.
pub struct Setup {
    pub clusters: Arc<Clusters>,
    pub registry: Registry,
    pub stats: Arc<HttpStats>,
    pub routes: Vec<Arc<Route>>,
    /// Where the table is, for tests that replace it.
    pub table: Arc<RouteTableCell>,
    pub timeouts: ConnectionTimeouts,
    pub chain: Arc<Chain>,
    pub profile: Profile,
    pub buffer_limit: usize,
    pub max_body: Option<u64>,
    pub codec: CodecType,
    pub header_rules: HeaderRules,
    pub http1: ServerHttp1,
    pub http2: Http2Options,
    pub path: PathOptions,
    pub client_address: ClientAddress,
    pub upgrades: Box<[(Box<str>, bool)]>,
    pub access_logs: Vec<AccessLog>,
    pub local_reply: LocalReplyConfig,
    /// Of the virtual host that all routes are in.
    pub host: VirtualHostOptions,
    pub options: Options,
}

impl Setup {
    pub fn new() -> Setup {
        let registry = Registry::new();
        Setup {
            clusters: Arc::default(),
            stats: Arc::new(HttpStats::new(&registry, "http.t.")),
            registry,
            routes: Vec::new(),
            table: RouteTableCell::new(TableKey::named("t"), None),
            timeouts: ConnectionTimeouts::default(),
            chain: Chain::empty(),
            profile: Profile::Envoy,
            buffer_limit: 1 << 20,
            max_body: None,
            codec: CodecType::Auto,
            header_rules: HeaderRules::ENVOY,
            http1: ServerHttp1::default(),
            http2: Http2Options::default(),
            path: PathOptions::default(),
            client_address: ClientAddress {
                internal_ranges: vec!["10.0.0.0/8".parse().unwrap()],
                ..ClientAddress::default()
            },
            upgrades: Box::new([]),
            access_logs: Vec::new(),
            local_reply: LocalReplyConfig::default(),
            host: VirtualHostOptions::default(),
            options: Options::default(),
        }
    }

    /// A cluster of these endpoints.
    pub fn cluster(&mut self, name: &str, hosts: &[SocketAddr], change: impl FnOnce(&mut ClusterConfig)) {
        let mut config = cluster_config(name);
        config.profile = self.profile;
        change(&mut config);
        let hosts = hosts.iter().map(|a| HostConfig::new(Address::Ip(*a))).collect();
        let cluster = Cluster::new(config, hosts, None, &self.registry).unwrap();
        self.clusters.cell(name).swap(Some(cluster));
    }

    /// A route for a prefix.
    pub fn route(&mut self, prefix: &str, cluster: &str, change: impl FnOnce(&mut ForwardOptions)) {
        let mut options = forward_options();
        change(&mut options);
        let to = ClusterChoice::Named(self.clusters.cell(cluster));
        let forward = Forward { options: options.into(), ..Forward::to(to) };
        self.routes.push(Arc::new(route(prefix, Action::Forward(forward))));
    }

    /// What serves a connection.
    pub fn build(self) -> (Arc<HttpConnectionManager>, Arc<Worker>) {
        self.table.swap(Some(Arc::new(table_of(self.host, self.routes))));
        let hcm = Arc::new(HttpConnectionManager {
            profile: self.profile,
            stat_prefix: "t".into(),
            stats: self.stats,
            codec: self.codec,
            routes: self.table,
            chain: self.chain,
            http1: self.http1,
            http2: self.http2,
            header_rules: self.header_rules,
            path: self.path,
            client_address: self.client_address,
            headers: EdgeHeaders::default(),
            timeouts: self.timeouts,
            upgrades: self.upgrades,
            access_logs: self.access_logs,
            local_reply: self.local_reply,
            router: RouterOptions::default(),
            first_table: None,
            max_requests_per_connection: None,
            buffer_limit: self.buffer_limit,
            max_body: self.max_body,
            show_upstream_status: false,
            charset: None,
            tracing: None,
        });
        let shared = Shared::new(self.clusters, self.registry, Arc::new(Nowhere), self.options);
        (hcm, Arc::new(Worker::new(0, Arc::new(shared))))
    }

    /// Starts serving; answers the address and what can drain it.
    pub async fn serve(self) -> (SocketAddr, Drain) {
        let (hcm, worker) = self.build();
        serve(hcm, worker).await
    }
}

/// Serves every connection to the address that it answers.
pub async fn serve(hcm: Arc<HttpConnectionManager>, worker: Arc<Worker>) -> (SocketAddr, Drain) {
    let (manager, drain) = (Manager::new(hcm), Drain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let draining = drain.clone();
    tokio::spawn(async move {
        loop {
            let (socket, remote) = listener.accept().await.unwrap();
            let connection = connection(remote, local);
            let io = Io::plain(Socket::tcp(socket));
            let (manager, worker, drain) = (manager.clone(), worker.clone(), draining.clone());
            tokio::spawn(http::serve(io, connection, manager, worker, drain));
        }
    });
    (local, drain)
}

/// A table of these routes for all hosts.
pub fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    table_of(VirtualHostOptions::default(), routes)
}

fn table_of(options: VirtualHostOptions, routes: Vec<Arc<Route>>) -> RouteTable {
    let host = HostRoutes::new("all", options, routes);
    RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap()
}

/// A plain connection that was just accepted.
pub fn connection(remote: SocketAddr, local: SocketAddr) -> Arc<Connection> {
    Arc::new(Connection::plain(remote, local))
}

pub fn cluster_config(name: &str) -> ClusterConfig {
    let mut config = ClusterConfig::named(name);
    config.max_idle = 100;
    config
}

pub fn forward(cell: Arc<ClusterCell>) -> Forward {
    Forward { options: forward_options().into(), ..Forward::to(ClusterChoice::Named(cell)) }
}

fn forward_options() -> ForwardOptions {
    let timeouts = Timeouts { request: Some(Duration::from_secs(15)), ..Timeouts::default() };
    ForwardOptions { timeouts, ..ForwardOptions::default() }
}

pub fn route(prefix: &str, action: Action) -> Route {
    Route::new(PathMatch::Prefix(prefix.as_bytes().into(), false), action)
}

/// A route that the proxy answers itself.
pub fn direct(prefix: &str, body: bytes::Bytes) -> Arc<Route> {
    let direct = DirectResponse { status: 200, body, body_format: None };
    Arc::new(route(prefix, Action::Direct(direct.into())))
}

pub fn retry(on: &str, retries: u32) -> Option<Arc<RetryPolicy>> {
    Some(Arc::new(RetryPolicy {
        on: sixfold_core::retry::RetryOn::parse(on).0,
        num_retries: retries,
        base_interval: Duration::from_millis(1),
        max_interval: Duration::from_millis(2),
        ..RetryPolicy::default()
    }))
}

/// An upstream that answers every request head with what `answer` gives for its number and text. An empty
/// answer closes the connection.
pub struct Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
}

pub async fn upstream(answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, asked, answer) = (connections.clone(), requests.clone(), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            opened.fetch_add(1, SeqCst);
            let (asked, answer) = (asked.clone(), answer.clone());
            tokio::spawn(async move {
                while let Some(request) = read_message(&mut socket).await {
                    let reply = answer(asked.fetch_add(1, SeqCst), &request);
                    if reply.is_empty() || socket.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Upstream { address, connections, requests }
}

/// Reads one message with a Content-Length, chunks, or no body; `None` at the end of the connection.
pub async fn read_message(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0u8; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes.clone()).unwrap().to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        while !bytes.ends_with(b"0\r\n\r\n") {
            if socket.read(&mut byte).await.ok()? == 0 {
                break;
            }
            bytes.push(byte[0]);
        }
    } else if let Some(at) = head.find("content-length: ") {
        let length: usize = head[at + 16..].split("\r\n").next().unwrap().trim().parse().unwrap();
        let mut body = vec![0; length];
        let got = socket.read_exact(&mut body).await;
        if got.is_ok() {
            bytes.extend(body);
        }
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// Sends one request on a new connection and reads its response.
pub async fn ask(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), read_message(&mut socket))
        .await
        .expect("no response in 10 s")
        .expect("closed without a response")
}

/// Sends a request and reads to the end of the connection.
pub async fn whole(proxy: SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    let read = client.read_to_string(&mut response);
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
    response
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
}
