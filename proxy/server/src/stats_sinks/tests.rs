#![allow(clippy::unwrap_used)]
use super::*;
use parking_lot::Mutex;
use sixfold_core::cluster::{Address as HostAddress, Cluster, ClusterConfig, Clusters, HostConfig};
use sixfold_core::export::Here;
use sixfold_core::metrics::statsd::{Lines, Tags};
use sixfold_core::stats_sink::Address;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram};

sixfold_core::stat_block! {
    /// For the test.
    pub struct TestStats { counters: [hits, misses], gauges: [open], histograms: [time] }
}

fn lines(tags: Tags) -> Lines {
    Lines { prefix: "envoy".to_owned(), tags }
}

fn nothing() -> Refresh {
    Arc::new(|| ())
}

const SOON: When = When::Every(Duration::from_millis(20));

fn begin(registry: &Registry, lines: Lines, to: Target, when: When) -> Option<Sender<()>> {
    let sinks = Sinks { all: vec![Sink::Statsd { lines, to }], when };
    start(sinks, registry, &Arc::default(), &nothing(), &Here::default())
}

async fn datagram(socket: &UdpSocket) -> String {
    let mut buffer = [0; 2048];
    let received = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await;
    String::from_utf8(buffer[..received.unwrap().unwrap()].to_vec()).unwrap()
}

#[tokio::test]
async fn each_line_is_a_datagram_unless_several_fit() {
    let registry = Registry::new();
    let stats = TestStats::new(&registry, "t.");
    stats.hits().add(3);
    stats.misses().inc();
    stats.open().inc();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = Address::Ip(socket.local_addr().unwrap());
    begin(&registry, lines(Tags::InName), Target::Datagrams { to, bytes: 0 }, SOON);
    let first = [datagram(&socket).await, datagram(&socket).await, datagram(&socket).await];
    assert_eq!(first, ["envoy.t.hits:3|c", "envoy.t.misses:1|c", "envoy.t.open:1|g"]);
    assert_eq!(datagram(&socket).await, "envoy.t.hits:0|c", "it has not changed since");
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = Address::Ip(socket.local_addr().unwrap());
    begin(&registry, lines(Tags::DogStatsd), Target::Datagrams { to, bytes: 40 }, SOON);
    assert_eq!(datagram(&socket).await, "envoy.t.hits:3|c\nenvoy.t.misses:1|c");
    assert_eq!(datagram(&socket).await, "envoy.t.open:1|g");
}

#[test]
fn datagrams_are_as_long_as_they_may_be_and_lines_are_whole() {
    let pack = |most: usize, lines: &[&str]| {
        let mut packed = statsd::Packed::new(most);
        lines.iter().for_each(|line| packed.add(line));
        packed.each().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let all = ["aaaa", "bb", "c", "dddddddddd", "e"];
    assert_eq!(pack(0, &all), all);
    assert_eq!(pack(7, &all), ["aaaa\nbb", "c", "dddddddddd", "e"]);
    assert_eq!(pack(9, &all), ["aaaa\nbb\nc", "dddddddddd", "e"]);
    assert_eq!(pack(100, &all), [all.join("\n")]);
}

#[tokio::test]
async fn unix_sockets_get_datagrams_too_also_when_they_come_later() {
    let registry = Registry::new();
    let stats = TestStats::new(&registry, "t.");
    stats.hits().inc();
    let path = std::env::temp_dir().join(format!("sixfold-statsd-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let flushes = Arc::new(AtomicUsize::new(0));
    let count = flushes.clone();
    let refresh: Refresh = Arc::new(move || _ = count.fetch_add(1, SeqCst));
    let to = Target::Datagrams { to: Address::Unix(path.clone()), bytes: 0 };
    let sinks = Sinks { all: vec![Sink::Statsd { lines: lines(Tags::InName), to }], when: SOON };
    start(sinks, &registry, &Arc::default(), &refresh, &Here::default());
    // The second begins when the first is over, which nobody heard.
    while flushes.load(SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"envoy.t.hits:0|c");
    let _ = std::fs::remove_file(&path);
}

#[tokio::test]
async fn a_connection_is_kept_and_opened_again_when_the_service_has_closed_it() {
    let registry = Registry::new();
    let stats = TestStats::new(&registry, "t.");
    stats.hits().add(2);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let clusters = Arc::<Clusters>::default();
    let host = HostConfig::new(HostAddress::Ip(listener.local_addr().unwrap()));
    let cluster = Cluster::new(ClusterConfig::named("s"), vec![host], None, &Registry::new()).unwrap();
    clusters.cell("s").swap(Some(cluster.clone()));
    begin(&registry, lines(Tags::InName), Target::Cluster(clusters.cell("s")), SOON);
    for first in ["envoy.t.hits:2|c", "envoy.t.hits:0|c"] {
        let mut heard = BufReader::new(listener.accept().await.unwrap().0).lines();
        assert_eq!(heard.next_line().await.unwrap().unwrap(), first);
        assert_eq!(heard.next_line().await.unwrap().unwrap(), "envoy.t.hits:0|c", "by the same connection");
    }
    assert_eq!(cluster.stats.upstream_cx_total().get(), 2);
    assert!(cluster.stats.upstream_cx_tx_bytes_total().get() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stands_still_holds_up_nobody() {
    let registry = Registry::new();
    let stats = TestStats::new(&registry, "t.");
    stats.hits().inc();
    struct Counts(Arc<AtomicUsize>);
    impl StatsSink for Counts {
        fn flush<'a>(
            &'a mut self,
            _: &'a sixfold_core::metrics::flush::Flush,
        ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
            self.0.fetch_add(1, SeqCst);
            Box::pin(async {})
        }
    }
    struct Stands;
    impl StatsSink for Stands {
        fn flush<'a>(
            &'a mut self,
            _: &'a sixfold_core::metrics::flush::Flush,
        ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
            Box::pin(tokio::time::sleep(PATIENCE))
        }
    }
    let told = Arc::new(AtomicUsize::new(0));
    let all = vec![Sink::Called(Box::new(Stands)), Sink::Called(Box::new(Counts(told.clone())))];
    start(
        Sinks { all, when: When::Every(Duration::from_secs(1)) },
        &registry,
        &Arc::default(),
        &nothing(),
        &Here::default(),
    );
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    assert_eq!(told.load(SeqCst), 10);
}

#[tokio::test]
async fn where_somebody_has_to_ask_nobody_is_told_before() {
    let (registry, refreshed) = (Registry::new(), Arc::new(Mutex::new(0)));
    let stats = TestStats::new(&registry, "t.");
    stats.hits().inc();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = Target::Datagrams { to: Address::Ip(socket.local_addr().unwrap()), bytes: 0 };
    let sinks = Sinks { all: vec![Sink::Statsd { lines: lines(Tags::InName), to }], when: When::Asked };
    let count = refreshed.clone();
    let refresh: Refresh = Arc::new(move || *count.lock() += 1);
    let asked = start(sinks, &registry, &Arc::default(), &refresh, &Here::default()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*refreshed.lock(), 0);
    asked.send_replace(());
    assert_eq!(datagram(&socket).await, "envoy.t.hits:1|c");
    assert_eq!(*refreshed.lock(), 1);
    let nobody = Sinks { all: Vec::new(), when: When::Asked };
    assert!(start(nobody, &registry, &Arc::default(), &nothing(), &Here::default()).is_none());
}
