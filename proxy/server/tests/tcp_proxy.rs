//! TCP proxying over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::clock::{StoppedClock, settle};
use common::*;
use parking_lot::Mutex;
use sixfold_core::access_log::{AccessLog, LogSink};
use sixfold_core::cluster::{Address, BreakerLimits, Cluster, ClusterConfig, Clusters, HostConfig, Policy};
use sixfold_core::detached::Nowhere;
use sixfold_core::format::Format;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::listener::{ConnectAttempts, TcpProxy, TcpStats};
use sixfold_core::metrics::Registry;
use sixfold_core::route::{ClusterChoice, HashInput, HashPolicy, WeightedCluster, WeightedClusters};
use sixfold_server::drain::{Drain, DrainStrategy};
use sixfold_server::io::{Io, Socket};
use sixfold_server::tcp_proxy;
use sixfold_server::worker::{Options, Shared, Worker};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const FORMAT: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
                      %BYTES_RECEIVED% %BYTES_SENT% %DOWNSTREAM_LOCAL_CLOSE_REASON%\n";

#[derive(Default)]
struct Lines(Mutex<Vec<u8>>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        self.0.lock().extend_from_slice(line);
    }
}

/// A TCP proxy in this process.
struct Bench {
    clusters: Arc<Clusters>,
    registry: Registry,
    proxy: TcpProxy,
    log: Arc<Lines>,
}

struct Running {
    address: SocketAddr,
    proxy: Arc<TcpProxy>,
    clusters: Arc<Clusters>,
    log: Arc<Lines>,
    drain: Drain,
}

impl Bench {
    /// Passes to the cluster `a`.
    fn new() -> Bench {
        let (clusters, registry, log) =
            (Arc::<Clusters>::default(), Registry::new(), Arc::<Lines>::default());
        let proxy = TcpProxy {
            stat_prefix: "t".into(),
            stats: Arc::new(TcpStats::new(&registry, "tcp.t.")),
            cluster: ClusterChoice::Named(clusters.cell("a")),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_duration: None,
            attempts: ConnectAttempts::Fixed(1),
            hash: Vec::new(),
            metadata_match: Default::default(),
            buffer_limit: 1 << 20,
            access_logs: vec![AccessLog {
                filter: None,
                format: Arc::new(Format::envoy(FORMAT).unwrap()),
                sink: log.clone(),
            }],
        };
        Bench { clusters, registry, proxy, log }
    }

    fn cluster(&mut self, name: &str, hosts: &[SocketAddr], change: impl FnOnce(&mut ClusterConfig)) {
        let mut config = cluster_config(name);
        change(&mut config);
        let hosts = hosts.iter().map(|a| HostConfig::new(Address::Ip(*a))).collect();
        let cluster = Cluster::new(config, hosts, None, &self.registry).unwrap();
        self.clusters.cell(name).swap(Some(cluster));
    }

    async fn serve(self) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new(self.clusters.clone(), self.registry, Arc::new(Nowhere), Options::default());
        let worker = Arc::new(Worker::new(0, Arc::new(shared)));
        let (proxy, drain) = (Arc::new(self.proxy), Drain::new());
        let running =
            Running { address, proxy: proxy.clone(), clusters: self.clusters, log: self.log, drain };
        let drain = running.drain.clone();
        tokio::spawn(async move {
            loop {
                let (socket, remote) = listener.accept().await.unwrap();
                let io = Io::plain(Socket::tcp(socket));
                let connection = connection(remote, address);
                let (proxy, worker, drain) = (proxy.clone(), worker.clone(), drain.clone());
                tokio::spawn(tcp_proxy::serve(io, connection, proxy, worker, drain));
            }
        });
        running
    }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The log once it holds so many lines.
    async fn log(&self, lines: usize) -> String {
        let text = || String::from_utf8(self.log.0.lock().clone()).unwrap();
        eventually(|| text().lines().count() >= lines).await;
        text()
    }

    fn cluster(&self, name: &str) -> Arc<Cluster> {
        self.clusters.find(name).unwrap()
    }
}

async fn eventually(mut probe: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if probe() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never");
}

/// Reads until the connection ends, in whatever way.
async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut all)).await;
    let _ = read.expect("not closed in 10 s");
    all
}

/// An endpoint that says its name and then everything it hears; it counts its connections.
async fn echo(name: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let _ = socket.write_all(name.as_bytes()).await;
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let (up, _) = echo("tcp:").await;
    let mut bench = Bench::new();
    bench.cluster("a", &[up], |_| {});
    let proxy = bench.serve().await;
    let mut client = proxy.connect().await;
    client.write_all(b"\0\x01\xff").await.unwrap();
    let mut got = [0; 7];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"tcp:\0\x01\xff");
    let cluster = proxy.cluster("a");
    let host = cluster.hosts.load().iter().next().unwrap().host.clone();
    assert_eq!((cluster.stats.upstream_cx_active().get(), host.active_connections.load(SeqCst)), (1, 1));
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(proxy.log(1).await, "0 - a 1 3 7 -\n");
    let stats = &proxy.proxy.stats;
    assert_eq!((stats.downstream_cx_total().get(), stats.downstream_cx_rx_bytes_total().get()), (1, 3));
    assert_eq!(stats.downstream_cx_tx_bytes_total().get(), 7);
    let stats = &cluster.stats;
    assert_eq!((stats.upstream_cx_total().get(), stats.upstream_cx_active().get()), (1, 0));
    assert_eq!((stats.upstream_cx_tx_bytes_total().get(), stats.upstream_cx_rx_bytes_total().get()), (3, 7));
    assert_eq!((stats.upstream_rq_total().get(), stats.upstream_rq_active().get()), (1, 0));
    assert_eq!((stats.upstream_cx_destroy().get(), stats.upstream_cx_destroy_remote().get()), (1, 1));
    assert_eq!((host.active_connections.load(SeqCst), host.active_requests.load(SeqCst)), (0, 0));
}

/// So much at once that it goes by the kernel alone, in both directions, with a few bytes now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_passes_both_ways_unchanged() {
    let (up, _) = echo("").await;
    for limit in [1 << 20, 1 << 10] {
        let mut bench = Bench::new();
        bench.proxy.buffer_limit = limit;
        bench.cluster("a", &[up], |_| {});
        let proxy = bench.serve().await;
        let sent: Vec<u8> = (0..8_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let client = proxy.connect().await;
        let (mut read, mut write) = client.into_split();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                for (index, piece) in sent.chunks(1_000_000).enumerate() {
                    write.write_all(piece).await.unwrap();
                    if index % 3 == 0 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                write.shutdown().await.unwrap();
            }
        });
        let mut got = Vec::new();
        tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut got)).await.unwrap().unwrap();
        writing.await.unwrap();
        assert!(got == sent, "{} bytes of {} came", got.len(), sent.len());
        assert_eq!(proxy.log(1).await, "0 - a 1 8000003 8000003 -\n");
    }
}

#[tokio::test]
async fn failures_close_the_client_without_a_word() {
    let mut bench = Bench::new();
    let proxy = bench.serve().await;
    assert_eq!(rest(&mut proxy.connect().await).await, b"");
    assert_eq!(proxy.log(1).await, "0 NC - 0 0 0 tcp_initializion_failure:3\n");
    assert_eq!(proxy.proxy.stats.downstream_cx_no_route().get(), 1);

    bench = Bench::new();
    bench.cluster("a", &[], |_| {});
    let proxy = bench.serve().await;
    assert_eq!(rest(&mut proxy.connect().await).await, b"");
    assert_eq!(proxy.log(1).await, "0 UH a 0 0 0 tcp_initializion_failure:1\n");
    assert_eq!(proxy.cluster("a").stats.upstream_cx_none_healthy().get(), 1);

    bench = Bench::new();
    bench.cluster("a", &[nobody()], |_| {});
    let proxy = bench.serve().await;
    assert_eq!(rest(&mut proxy.connect().await).await, b"");
    assert_eq!(proxy.log(1).await, "0 UF,URX a 1 0 0 tcp_initializion_failure:0\n");
    let stats = &proxy.cluster("a").stats;
    assert_eq!((stats.upstream_cx_connect_fail().get(), stats.upstream_cx_active().get()), (1, 0));
}

#[tokio::test]
async fn each_attempt_takes_another_host() {
    let (up, _) = echo("up").await;
    // A policy that draws at random may draw a tried host again, so only round robin is sure.
    let mut bench = Bench::new();
    let hosts = [nobody(), up, nobody()];
    bench.cluster("a", &hosts, |c| c.balance.policy = Policy::RoundRobin);
    bench.proxy.attempts = ConnectAttempts::Fixed(3);
    let proxy = bench.serve().await;
    for _ in 0..8 {
        let mut client = proxy.connect().await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, b"up");
    }
    let log = proxy.log(8).await;
    assert!(log.lines().all(|l| l.starts_with("0 - a 1 ") || l.starts_with("0 UF a ")), "{log}");
}

#[tokio::test]
async fn connecting_ends_with_the_cluster_s_timeout() {
    // Nobody accepts here, and the queue is full.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let connect = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(100), connect).await {
            Ok(socket) => waiting.push(socket.unwrap()),
            Err(_) => break,
        }
    }
    let mut bench = Bench::new();
    bench.cluster("a", &[address], |c| c.connect_timeout = Duration::from_millis(50));
    let proxy = bench.serve().await;
    assert_eq!(rest(&mut proxy.connect().await).await, b"");
    assert_eq!(proxy.log(1).await, "0 UF,URX a 1 0 0 tcp_initializion_failure:0\n");
    assert_eq!(proxy.cluster("a").stats.upstream_cx_connect_timeout().get(), 1);
}

#[tokio::test]
async fn the_circuit_breaker_limits_connections() {
    let (up, _) = echo("hi").await;
    let mut bench = Bench::new();
    let breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() };
    bench.cluster("a", &[up], |c| c.breaker = breaker);
    let proxy = bench.serve().await;
    let mut first = proxy.connect().await;
    first.read_exact(&mut [0; 2]).await.unwrap();
    assert_eq!(rest(&mut proxy.connect().await).await, b"");
    assert_eq!(proxy.log(1).await, "0 UO a 0 0 0 tcp_initializion_failure:2\n");
    assert_eq!(proxy.cluster("a").stats.upstream_cx_overflow().get(), 1);
    first.shutdown().await.unwrap();
    rest(&mut first).await;
    proxy.log(2).await;
    proxy.connect().await.read_exact(&mut [0; 2]).await.unwrap();
}

#[tokio::test]
async fn a_side_that_has_said_all_still_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = Bench::new();
    bench.cluster("a", &[listener.local_addr().unwrap()], |_| {});
    let proxy = bench.serve().await;
    // The client ends first.
    let mut client = proxy.connect().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut up = listener.accept().await.unwrap().0;
    assert_eq!(rest(&mut up).await, b"question");
    up.write_all(b"the answer").await.unwrap();
    drop(up);
    assert_eq!(rest(&mut client).await, b"the answer");
    // The endpoint ends first.
    let mut client = proxy.connect().await;
    let mut up = listener.accept().await.unwrap().0;
    up.write_all(b"bye").await.unwrap();
    up.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"bye");
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut up).await, b"still here");
    assert_eq!(proxy.log(2).await, "0 - a 1 8 10 -\n0 - a 1 10 3 -\n");
    let stats = &proxy.cluster("a").stats;
    assert_eq!((stats.upstream_cx_destroy_remote().get(), stats.upstream_cx_destroy_local().get()), (1, 1));
}

/// Resets were passed on as ordinary ends: what was cut off looked whole, and the log said that all went well.
#[tokio::test]
async fn what_a_side_said_before_it_reset_its_connection_reaches_the_other_and_so_does_the_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = Bench::new();
    bench.cluster("a", &[listener.local_addr().unwrap()], |_| {});
    let proxy = bench.serve().await;
    let mut client = proxy.connect().await;
    let mut up = listener.accept().await.unwrap().0;
    up.write_all(b"partial").await.unwrap();
    let mut got = [0; 7];
    client.read_exact(&mut got).await.unwrap();
    up.set_zero_linger().unwrap();
    drop(up);
    assert_eq!(reset(&mut client).await, Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(proxy.log(1).await, "0 UR a 1 0 7 -\n");
    assert_eq!(proxy.cluster("a").stats.upstream_cx_destroy_remote().get(), 1);
    let mut client = proxy.connect().await;
    let mut up = listener.accept().await.unwrap().0;
    client.write_all(b"partial").await.unwrap();
    up.read_exact(&mut got).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(reset(&mut up).await, Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(proxy.log(2).await.lines().last(), Some("0 - a 1 7 0 -"));
}

/// How the connection ends: `None` is well.
async fn reset(connection: &mut TcpStream) -> Option<std::io::ErrorKind> {
    connection.read_to_end(&mut Vec::new()).await.err().map(|error| error.kind())
}

#[tokio::test]
async fn silence_ends_a_connection_and_bytes_of_either_side_put_it_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = Bench::new();
    bench.cluster("a", &[listener.local_addr().unwrap()], |_| {});
    bench.proxy.idle_timeout = Some(Duration::from_millis(300));
    let proxy = bench.serve().await;
    let clock = StoppedClock::new();
    let mut client = proxy.connect().await;
    let mut up = listener.accept().await.unwrap().0;
    settle().await;
    for _ in 0..2 {
        clock.pass(Duration::from_millis(200)).await;
        client.write_all(b"x").await.unwrap();
        settle().await;
        clock.pass(Duration::from_millis(200)).await;
        up.write_all(b"y").await.unwrap();
        settle().await;
    }
    clock.pass(Duration::from_millis(290)).await;
    assert_eq!(proxy.proxy.stats.idle_timeout().get(), 0, "it ended too early");
    clock.pass(Duration::from_millis(20)).await;
    clock.go_on();
    assert_eq!(rest(&mut client).await, b"yy");
    assert_eq!(rest(&mut up).await, b"xx");
    assert_eq!(proxy.log(1).await, "0 - a 1 2 2 tcp_session_idle_timeout\n");
    assert_eq!(proxy.proxy.stats.idle_timeout().get(), 1);
}

#[tokio::test]
async fn the_longest_duration_ends_a_connection_that_is_not_idle() {
    let (up, _) = echo("").await;
    let mut bench = Bench::new();
    bench.cluster("a", &[up], |_| {});
    bench.proxy.max_duration = Some(Duration::from_millis(200));
    let proxy = bench.serve().await;
    let mut client = proxy.connect().await;
    let start = Instant::now();
    let mut byte = [0; 1];
    while client.write_all(b"x").await.is_ok() && matches!(client.read(&mut byte).await, Ok(1)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    let log = proxy.log(1).await;
    assert!(log.starts_with("0 DT a 1 ") && log.ends_with(" max_connection_duration_reached\n"), "{log}");
    assert_eq!(proxy.proxy.stats.max_downstream_connection_duration().get(), 1);
}

#[tokio::test]
async fn draining_closes_what_is_left_when_its_time_is_up() {
    let (up, _) = echo("hi").await;
    let mut bench = Bench::new();
    bench.cluster("a", &[up], |_| {});
    let proxy = bench.serve().await;
    let mut client = proxy.connect().await;
    client.read_exact(&mut [0; 2]).await.unwrap();
    // Its time does not run before the byte is back.
    let clock = StoppedClock::new();
    proxy.drain.start(DrainStrategy::Gradual, Some(Duration::from_millis(200)));
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0; 1]).await.unwrap();
    clock.go_on();
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(proxy.log(1).await, "0 - a 1 1 3 deferred_close_on_drained_connection\n");
}

#[tokio::test]
async fn weighted_clusters_get_their_shares() {
    let ((one, ones), (two, twos)) = (echo("1").await, echo("2").await);
    let mut bench = Bench::new();
    bench.cluster("one", &[one], |_| {});
    bench.cluster("two", &[two], |_| {});
    let member = |name: &str, weight| WeightedCluster {
        cluster: ClusterChoice::Named(bench.clusters.cell(name)),
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
        metadata_match: Default::default(),
        chain: None,
    };
    let clusters = Box::new([member("one", 90), member("two", 10), member("never", 0)]);
    bench.proxy.cluster = ClusterChoice::Weighted(Box::new(WeightedClusters {
        clusters,
        total: 100,
        random_header: None,
        use_hash: false,
    }));
    let proxy = bench.serve().await;
    for _ in 0..300 {
        let mut client = proxy.connect().await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await.len(), 1);
    }
    let (ones, twos) = (ones.load(SeqCst), twos.load(SeqCst));
    assert_eq!(ones + twos, 300);
    // Six standard deviations around 30.
    assert!((1..=62).contains(&twos), "{ones} to {twos}");
}

#[tokio::test]
async fn the_client_s_address_chooses_the_endpoint() {
    let mut ups = Vec::new();
    for _ in 0..8 {
        ups.push(echo("x").await);
    }
    let mut bench = Bench::new();
    let addresses: Vec<_> = ups.iter().map(|u| u.0).collect();
    let ring = Policy::RingHash { min_size: 1024, max_size: 8 << 20, murmur: false, use_hostname: false };
    bench.cluster("a", &addresses, |c| c.balance.policy = ring);
    bench.proxy.hash = vec![HashPolicy { input: HashInput::SourceIp, terminal: false }];
    let proxy = bench.serve().await;
    for _ in 0..20 {
        let mut client = proxy.connect().await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, b"x");
    }
    let mut counts: Vec<_> = ups.iter().map(|u| u.1.load(SeqCst)).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 0, 0, 0, 0, 20]);
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    const TOTAL: u64 = 48 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let sending = sent.clone();
    tokio::spawn(async move {
        let mut socket = listener.accept().await.unwrap().0;
        let mut piece = vec![0u8; 64 << 10];
        let mut at = 0;
        while at < TOTAL {
            piece.iter_mut().zip(at..).for_each(|(b, i)| *b = (i % 251) as u8);
            socket.write_all(&piece).await.unwrap();
            at += piece.len() as u64;
            sending.store(at, SeqCst);
        }
    });
    let mut bench = Bench::new();
    bench.cluster("a", &[address], |_| {});
    let proxy = bench.serve().await;
    // Small windows, so that little can wait in the kernel.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut client = socket.connect(proxy.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = sent.load(SeqCst);
    assert!(before < TOTAL / 2, "{before} bytes went somewhere");
    assert!(proxy.proxy.stats.downstream_cx_tx_bytes_buffered().get() <= 256 << 10, "a quarter of the limit");
    let mut piece = vec![0u8; 32 << 10];
    let mut at = 0u64;
    loop {
        let n = client.read(&mut piece).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(piece[..n].iter().zip(at..).all(|(b, i)| *b == (i % 251) as u8), "at {at}");
        at += n as u64;
    }
    assert_eq!(at, TOTAL);
    drop(client);
    assert_eq!(proxy.log(1).await, format!("0 - a 1 0 {TOTAL} -\n"));
    assert_eq!(proxy.proxy.stats.downstream_cx_tx_bytes_buffered().get(), 0);
}

/// splice(2) stops before urgent data as if it were the end of what there is.
#[tokio::test]
async fn urgent_data_neither_stops_a_connection_nor_ends_it() {
    const BEFORE: usize = 1 << 20;
    const BEHIND: usize = 64 << 10;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let came = tokio::spawn(async move { rest(&mut listener.accept().await.unwrap().0).await.len() });
    let mut bench = Bench::new();
    bench.cluster("a", &[address], |_| {});
    let proxy = bench.serve().await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(&vec![b'x'; BEFORE]).await.unwrap();
    let urgent = nix::sys::socket::MsgFlags::MSG_OOB;
    let sent = client.try_io(tokio::io::Interest::WRITABLE, || {
        Ok(nix::sys::socket::send(client.as_raw_fd(), b"!", urgent)?)
    });
    assert_eq!(sent.unwrap(), 1);
    client.write_all(&vec![b'y'; BEHIND]).await.unwrap();
    client.shutdown().await.unwrap();
    let came = tokio::time::timeout(Duration::from_secs(10), came).await.expect("the end has come");
    assert_eq!(came.unwrap(), BEFORE + BEHIND);
}
