#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::h1::Profile;
use sixfold_core::cluster::{
    Address, BreakerLimits, Cluster, ClusterConfig, Clusters, HostConfig, Resource, UpstreamProtocol,
};
use sixfold_core::metrics::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// An endpoint that counts connections and holds them without a word.
struct Endpoint {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    ever: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn start() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, ever) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (open.clone(), ever.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counts.0.fetch_add(1, SeqCst);
                counts.1.fetch_add(1, SeqCst);
                tokio::spawn(hold(socket, counts.0.clone()));
            }
        });
        Endpoint { address, open, ever }
    }

    async fn open(&self, wanted: usize) {
        for _ in 0..1000 {
            if self.open.load(SeqCst) == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} connections are open, not {wanted}", self.open.load(SeqCst));
    }
}

async fn hold(mut socket: TcpStream, open: Arc<AtomicUsize>) {
    use tokio::io::AsyncReadExt;
    let mut sink = [0; 1024];
    while socket.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    open.fetch_sub(1, SeqCst);
}

fn cluster(endpoints: &[SocketAddr], change: impl FnOnce(&mut ClusterConfig)) -> Arc<Cluster> {
    let mut config = ClusterConfig::named("a");
    change(&mut config);
    let hosts = endpoints.iter().map(|a| HostConfig::new(Address::Ip(*a))).collect();
    let cluster = Cluster::new(config, hosts, None, &Registry::new()).unwrap();
    // Only what is in force says what has left it.
    Clusters::default().cell("a").swap(Some(cluster.clone()));
    cluster
}

async fn take(pools: &Pools, cluster: &Arc<Cluster>, at: usize) -> Result<Checkout, UpstreamError> {
    let set = cluster.hosts.load_full();
    let host = set.iter().nth(at).unwrap().host.clone();
    let wanted = Wanted {
        cluster,
        host: &host,
        tls: None,
        authority: None,
        downstream_http2: false,
        timeout: Duration::from_secs(2),
        high: false,
        raw: false,
        profile: Profile::Envoy,
        now: Instant::now(),
    };
    match pools.take_ready(&wanted)? {
        Some(found) => Ok(found),
        None => pools.take_new(&wanted).await,
    }
}

// Two idle connections kept each other alive: each held the endpoint that the other was measured by.
#[tokio::test]
async fn connections_to_an_endpoint_that_left_end_when_idle_and_others_when_done() {
    let (gone, stays) = (Endpoint::start().await, Endpoint::start().await);
    let cluster = cluster(&[gone.address, stays.address], |_| {});
    let pools = Pools::default();
    let mut taken = Vec::new();
    for at in [0, 0, 0, 1] {
        taken.push(take(&pools, &cluster, at).await.unwrap());
    }
    let busy = taken.remove(0);
    taken.into_iter().for_each(|checkout| pools.give_back(checkout, Instant::now()));
    pools.sweep();
    gone.open(3).await;
    cluster.update_hosts(vec![HostConfig::new(Address::Ip(stays.address))]);
    pools.sweep();
    gone.open(1).await;
    pools.give_back(busy, Instant::now());
    gone.open(0).await;
    assert_eq!(stays.open.load(SeqCst), 1);
}

#[tokio::test]
async fn idle_connections_have_a_bound_over_all_endpoints_and_the_oldest_go_first() {
    let (first, second) = (Endpoint::start().await, Endpoint::start().await);
    let cluster = cluster(&[first.address, second.address], |_| {});
    let pools = Pools::with_max_idle(8);
    let mut taken = Vec::new();
    for number in 0..9 {
        taken.push(take(&pools, &cluster, usize::from(number >= 3)).await.unwrap());
    }
    let start = Instant::now();
    for (number, checkout) in taken.into_iter().enumerate() {
        pools.give_back(checkout, start + Duration::from_millis(number as u64));
    }
    first.open(1).await;
    second.open(6).await;
}

/// Six requests used to wait for one another, each for a time of its own.
#[tokio::test]
async fn a_connection_to_share_is_dialled_once_and_its_failure_is_everyone_s() {
    let silent = Endpoint::start().await;
    for protocol in [UpstreamProtocol::Http2, UpstreamProtocol::Auto] {
        let before = silent.ever.load(SeqCst);
        let cluster = cluster(&[silent.address], |config| {
            config.protocol = protocol;
            config.breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() };
        });
        let pools = Pools::default();
        let asked: Vec<_> = (0..6)
            .map(|_| {
                let (pools, cluster) = (pools.clone(), cluster.clone());
                tokio::spawn(async move { take(&pools, &cluster, 0).await.map(|_| ()) })
            })
            .collect();
        for asking in asked {
            let taken = asking.await.unwrap();
            match protocol {
                UpstreamProtocol::Http2 => assert_eq!(taken, Err(UpstreamError::ConnectTimeout)),
                // Without TLS nothing is agreed on, which is HTTP/1: they take turns.
                _ => assert_eq!(taken, Ok(())),
            }
        }
        if protocol == UpstreamProtocol::Http2 {
            assert_eq!(silent.ever.load(SeqCst) - before, 1);
            assert_eq!(cluster.breaker.count(Resource::Connections), 0);
        }
    }
}

/// Over HTTP/1 nothing but connections was bounded.
#[tokio::test]
async fn requests_under_way_are_bounded_and_one_that_is_refused_costs_no_connection() {
    let endpoint = Endpoint::start().await;
    let cluster = cluster(&[endpoint.address], |config| {
        config.breaker = BreakerLimits { max_requests: 1, ..BreakerLimits::default() };
    });
    let pools = Pools::default();
    let first = take(&pools, &cluster, 0).await.unwrap();
    // A connection is opened for the second one, as in Envoy, and then left to others; the third would have it.
    for refused in 1..3 {
        assert_eq!(take(&pools, &cluster, 0).await.err(), Some(UpstreamError::Overflow));
        assert_eq!(cluster.stats.upstream_rq_active_overflow().get(), refused);
    }
    pools.give_back(first, Instant::now());
    assert_eq!(cluster.breaker.count(Resource::Requests), 0, "a connection without a request counts none");
    let next = take(&pools, &cluster, 0).await.unwrap();
    assert_eq!((next.connect_ms, cluster.breaker.count(Resource::Requests)), (None, 1));
    drop(next);
    assert_eq!(cluster.breaker.count(Resource::Requests), 0);
    assert_eq!(endpoint.ever.load(SeqCst), 2);
}
