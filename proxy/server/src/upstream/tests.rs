#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod versions;

use super::pool::LOOK_AGAIN;
use super::*;
use crate::deadline::Deadline;
use crate::io::Socket;
use crate::tls::Unnamed;
use crate::wire::h2_guard::{Guarded, PeerTimeouts};
use sixfold_core::cluster::{
    Address, BreakerLimits, Cluster, ClusterConfig, Clusters, Host, HostConfig, Http2Options, Reasons,
    Resource, UpstreamProtocol,
};
use sixfold_core::connection::Source;
use sixfold_core::metrics::Registry;
use sixfold_core::proxy_protocol::{Told, Version};
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, Pem, ServerContext, ServerSettings, ServerTls,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// An endpoint that counts connections and holds them without a word.
struct Endpoint {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    ever: Arc<AtomicUsize>,
}

impl Endpoint {
    /// Says nothing.
    async fn start() -> Endpoint {
        Endpoint::serving(hold).await
    }

    /// Speaks HTTP/2 with whoever begins with it.
    async fn http2() -> Endpoint {
        Endpoint::serving(|socket| async move {
            if socket.peek(&mut [0]).await.is_ok_and(|n| n > 0) {
                speak_http2(socket).await;
            }
        })
        .await
    }

    /// Speaks HTTP/2 over TLS where that is agreed on, and else says nothing.
    async fn tls() -> Endpoint {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let identity = Identity { chain: Pem::Inline(chain.into()), key: Pem::Inline(key.into()) };
        let settings = ServerSettings {
            identities: vec![identity],
            alpn: vec!["h2".into(), "http/1.1".into()],
            ..ServerSettings::default()
        };
        let tls = ServerTls::single(ServerContext::new(settings).unwrap());
        Endpoint::serving(move |socket| {
            let tls = tls.clone();
            async move {
                let mut limit = Deadline::after(Duration::from_secs(5));
                let accepted =
                    crate::tls::accept(Socket::tcp(socket), &tls, Unnamed::Close, &mut limit).await.unwrap();
                let (options, timeouts) = (Http2Options::default(), PeerTimeouts::default());
                let io = Guarded::server(accepted.io, Vec::new(), &options, timeouts);
                match accepted.info.alpn.as_deref() {
                    Some(b"h2") => speak_http2(io).await,
                    _ => hold(io).await,
                }
            }
        })
        .await
    }

    async fn serving<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, ever) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (open.clone(), ever.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counts.0.fetch_add(1, SeqCst);
                counts.1.fetch_add(1, SeqCst);
                let (served, open) = (serve(socket), counts.0.clone());
                tokio::spawn(async move {
                    served.await;
                    open.fetch_sub(1, SeqCst);
                });
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

async fn hold(mut socket: impl AsyncRead + Unpin) {
    use tokio::io::AsyncReadExt;
    let mut sink = [0; 1024];
    while socket.read(&mut sink).await.is_ok_and(|n| n > 0) {}
}

async fn speak_http2(socket: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut server) = ::h2::server::handshake(socket).await else { return };
    while let Some(Ok((_, mut respond))) = server.accept().await {
        let _ = respond.send_response(http::Response::new(()), true);
    }
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
    take_as(pools, cluster, at, |_| ()).await
}

/// A connection for a request that differs from others.
async fn take_as(
    pools: &Pools,
    cluster: &Arc<Cluster>,
    at: usize,
    change: impl FnOnce(&mut Wanted<'_>),
) -> Result<Checkout, UpstreamError> {
    let host = cluster.hosts.load_full().iter().nth(at).unwrap().host.clone();
    let mut wanted = wanted(cluster, &host);
    change(&mut wanted);
    match pools.take_ready(&wanted)? {
        Some(found) => Ok(found),
        None => pools.take_new(&wanted).await,
    }
}

fn wanted<'a>(cluster: &'a Arc<Cluster>, host: &'a Arc<Host>) -> Wanted<'a> {
    Wanted {
        cluster,
        host,
        tls: cluster.config.tls.as_ref(),
        server_name: None,
        offer: None,
        client: Client::default(),
        downstream_http2: false,
        timeout: Duration::from_secs(2),
        high: false,
        raw: false,
        now: Instant::now(),
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

/// Such a connection shows its client's address to the endpoint.
#[tokio::test]
async fn requests_of_other_clients_get_connections_of_their_own() {
    let endpoint = Endpoint::start().await;
    let cluster = cluster(&[endpoint.address], |_| {});
    let pools = Pools::default();
    let of = async |last: u8| {
        let ip = [127, 0, 0, last].into();
        take_as(&pools, &cluster, 0, |w| w.client.source = Some(Source { ip, mark: 0 })).await
    };
    let first = match of(2).await {
        // Addresses are lent to those who may administrate the network.
        Err(UpstreamError::Connect(why)) if why.contains("not permitted") => {
            eprintln!("skipped: no CAP_NET_ADMIN ({why})");
            return;
        }
        first => first.unwrap(),
    };
    pools.give_back(first, Instant::now());
    let other = of(3).await.unwrap();
    assert!(other.connect_ms.is_some(), "not the connection that shows another client's address");
    assert_eq!(of(2).await.unwrap().connect_ms, None);
    assert!(take(&pools, &cluster, 0).await.unwrap().connect_ms.is_some(), "nor one that shows any");
}

/// The same as far as nothing is lent.
#[tokio::test]
async fn a_connection_that_shows_no_client_is_none_for_a_request_that_is_to_show_its_own() {
    let endpoint = Endpoint::start().await;
    let cluster = cluster(&[endpoint.address], |_| {});
    let pools = Pools::default();
    let first = take(&pools, &cluster, 0).await.unwrap();
    pools.give_back(first, Instant::now());
    let host = cluster.hosts.load_full().iter().next().unwrap().host.clone();
    let ip = [127, 0, 0, 2].into();
    let client = Client { source: Some(Source { ip, mark: 0 }), told: None };
    let of_client = Wanted { client, ..wanted(&cluster, &host) };
    assert!(pools.take_ready(&of_client).unwrap().is_none());
    assert!(pools.take_ready(&wanted(&cluster, &host)).unwrap().is_some(), "it is there for others");
}

/// Whom an endpoint is told of it is told once, at a connection's beginning.
#[tokio::test]
async fn what_an_endpoint_was_told_of_one_client_it_was_not_told_of_another() {
    let endpoint = Endpoint::start().await;
    let cluster = cluster(&[endpoint.address], |_| {});
    let pools = Pools::default();
    let of = async |version, port: u16| {
        let (from, to) = (([1, 2, 3, 4], port).into(), ([5, 6, 7, 8], 80).into());
        take_as(&pools, &cluster, 0, |w| w.client.told = Some(Told { version, from, to })).await.unwrap()
    };
    pools.give_back(of(Version::V2, 1).await, Instant::now());
    assert!(of(Version::V2, 2).await.connect_ms.is_some(), "another client");
    assert!(of(Version::V1, 1).await.connect_ms.is_some(), "told in another way");
    assert!(take(&pools, &cluster, 0).await.unwrap().connect_ms.is_some(), "nobody's");
    assert_eq!(of(Version::V2, 1).await.connect_ms, None);
}

/// They stayed open, and were used again once it was well.
#[tokio::test]
async fn connections_to_an_endpoint_that_was_found_ill_carry_no_further_request() {
    for http2 in [false, true] {
        let endpoint = if http2 { Endpoint::http2().await } else { Endpoint::start().await };
        let cluster = cluster(&[endpoint.address], |config| {
            if http2 {
                config.protocol = UpstreamProtocol::Http2;
            }
        });
        let host = cluster.hosts.load_full().iter().next().unwrap().host.clone();
        let pools = Pools::default();
        let first = take(&pools, &cluster, 0).await.unwrap();
        pools.give_back(first, Instant::now());
        for reason in [Reasons::EJECTED, Reasons::ACTIVE_CHECK] {
            let busy = take(&pools, &cluster, 0).await.unwrap();
            assert_eq!(busy.connect_ms, None);
            assert!(host.set_reason(reason, true) && host.set_reason(reason, false));
            let next = take(&pools, &cluster, 0).await.unwrap();
            assert!(next.connect_ms.is_some());
            pools.give_back(busy, Instant::now());
            pools.give_back(next, Instant::now());
            endpoint.open(1).await;
        }
        host.set_reason(Reasons::EJECTED, true);
        pools.sweep();
        endpoint.open(0).await;
    }
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

/// One connection, by the endpoint's limit or by the cluster's, for requests of both versions.
fn one_connection(config: &mut ClusterConfig, of_host: bool) {
    config.protocol = UpstreamProtocol::Downstream;
    match of_host {
        true => config.max_host_connections = 1,
        false => config.breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() },
    }
}

/// Requests of one version, or of none, that come one after the other.
const KINDS: [(bool, bool); 6] =
    [(true, false), (false, false), (true, false), (false, true), (true, false), (false, false)];

/// An HTTP/2 connection without a stream kept its place: over HTTP/1 requests waited until their time was over, over
/// HTTP/2 with another server name they were refused. Closing each for the other would open one for each request.
#[tokio::test]
async fn kinds_that_take_turns_keep_a_connection_each() {
    for of_host in [false, true] {
        let endpoint = Endpoint::http2().await;
        let cluster = cluster(&[endpoint.address], |config| one_connection(config, of_host));
        let pools = Pools::default();
        for (http2, raw) in KINDS {
            let taken = take_as(&pools, &cluster, 0, |w| (w.downstream_http2, w.raw) = (http2, raw));
            let taken = tokio::time::timeout(Duration::from_secs(5), taken).await.expect("it waits").unwrap();
            assert_eq!(taken.stream.is_http2(), http2);
            pools.give_back(taken, Instant::now());
        }
        endpoint.open(3).await;
        assert_eq!((endpoint.ever.load(SeqCst), cluster.breaker.count(Resource::Connections)), (3, 3));
    }
}

/// As in Envoy, whose pools are one for each kind.
#[tokio::test]
async fn a_kind_without_a_connection_gets_one_whatever_others_have() {
    let endpoint = Endpoint::http2().await;
    let cluster = cluster(&[endpoint.address], |config| one_connection(config, false));
    let pools = Pools::default();
    let mut taken = Vec::new();
    for (http2, raw) in &KINDS[1..4] {
        let next = take_as(&pools, &cluster, 0, |w| (w.downstream_http2, w.raw) = (*http2, *raw));
        taken.push(tokio::time::timeout(Duration::from_secs(5), next).await.expect("it waits").unwrap());
    }
    assert_eq!(cluster.breaker.count(Resource::Connections), 3);
    // A second one waits for the first of its kind, or for any that is idle.
    let (pools, cluster) = (&pools, &cluster);
    let second = take(pools, cluster, 0);
    tokio::pin!(second);
    assert!(tokio::time::timeout(Duration::from_millis(1500), &mut second).await.is_err());
    pools.give_back(taken.remove(0), Instant::now());
    assert_eq!(second.await.unwrap().connect_ms, None);
}

/// Each look of a request that waits closed the idle connection of another kind, though that made no room for it.
#[tokio::test]
async fn requests_that_wait_leave_connections_of_other_kinds() {
    for of_host in [false, true] {
        let endpoint = Endpoint::http2().await;
        let cluster = cluster(&[endpoint.address], |config| one_connection(config, of_host));
        let (pools, cluster) = (&Pools::default(), &cluster);
        let first = take(pools, cluster, 0).await.unwrap();
        let shared = async || take_as(pools, cluster, 0, |w| w.downstream_http2 = true).await.unwrap();
        drop(shared().await);
        let second = take(pools, cluster, 0);
        tokio::pin!(second);
        let looks = LOOK_AGAIN * 5 / 2;
        assert!(tokio::time::timeout(looks, &mut second).await.is_err());
        assert_eq!(shared().await.connect_ms, None, "the shared connection stayed");
        pools.give_back(first, Instant::now());
        assert_eq!(second.await.unwrap().connect_ms, None, "nothing was wrong with the first");
        assert_eq!(endpoint.ever.load(SeqCst), 2);
    }
}

/// The time ran from the beginning of the last stream, and nobody counted its end.
#[tokio::test]
async fn a_shared_connection_is_idle_from_the_end_of_its_last_stream() {
    let endpoint = Endpoint::http2().await;
    let cluster = cluster(&[endpoint.address], |config| {
        config.protocol = UpstreamProtocol::Http2;
        config.idle_timeout = Some(Duration::from_secs(2));
    });
    let pools = Pools::default();
    let first = take(&pools, &cluster, 0).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    drop(first);
    pools.sweep();
    assert_eq!(take(&pools, &cluster, 0).await.unwrap().connect_ms, None);
    assert_eq!(cluster.stats.upstream_cx_idle_timeout().get(), 0);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    pools.sweep();
    endpoint.open(0).await;
    assert_eq!(cluster.stats.upstream_cx_idle_timeout().get(), 1);
    assert_eq!(endpoint.ever.load(SeqCst), 1);
}

/// Only those of HTTP/1 counted.
#[tokio::test]
async fn shared_connections_without_streams_count_among_the_idle_ones() {
    let mut endpoints = Vec::new();
    for _ in 0..10 {
        endpoints.push(Endpoint::http2().await);
    }
    let addresses: Vec<_> = endpoints.iter().map(|e| e.address).collect();
    let cluster = cluster(&addresses, |config| config.protocol = UpstreamProtocol::Http2);
    let pools = Pools::with_max_idle(8);
    let busy = take(&pools, &cluster, 0).await.unwrap();
    for at in 1..10 {
        drop(take(&pools, &cluster, at).await.unwrap());
    }
    pools.sweep();
    for (at, endpoint) in endpoints.iter().enumerate() {
        endpoint.open(usize::from(!(1..3).contains(&at))).await;
    }
    drop(busy);
}

/// It counted twice over `auto_config`.
#[tokio::test]
async fn a_request_that_waits_counts_once() {
    let endpoint = Endpoint::start().await;
    for protocol in [UpstreamProtocol::Auto, UpstreamProtocol::Http1] {
        let cluster = cluster(&[endpoint.address], |config| {
            config.protocol = protocol;
            config.breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() };
        });
        let (pools, pending) = (Pools::default(), cluster.stats.upstream_rq_pending_active());
        let first = take(&pools, &cluster, 0).await.unwrap();
        assert_eq!(pending.get(), 0);
        let second = take(&pools, &cluster, 0);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut second).await.is_err());
        let set = cluster.hosts.load_full();
        let of_host = &set.iter().next().unwrap().host.pending_requests;
        assert_eq!((pending.get(), of_host.load(SeqCst)), (1, 1));
        drop(first);
        second.await.unwrap();
        assert_eq!((pending.get(), of_host.load(SeqCst)), (0, 0));
    }
}

/// Each change of a cluster left the idle connections of the TLS before open beside those of the new one.
#[tokio::test]
async fn connections_of_tls_that_was_replaced_are_closed_when_idle() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let endpoint = Endpoint::tls().await;
        let make = |previous: Option<&Cluster>, tls: &Arc<ClientTls>| {
            let mut config = ClusterConfig { tls: Some(tls.clone()), ..ClusterConfig::named("a") };
            config.protocol = protocol;
            let hosts = vec![HostConfig::new(Address::Ip(endpoint.address))];
            Cluster::new(config, hosts, previous, &Registry::new()).unwrap()
        };
        let tls = || ClientTls::new(Some(ClientContext::new(ClientSettings::default()).unwrap()));
        let (cell, pools) = (Clusters::default().cell("a"), Pools::default());
        let (first, same, other) = (tls(), tls(), tls());
        let mut now = make(None, &first);
        drop(first);
        for (tls, opened) in [(same.clone(), 2), (same, 2), (other, 3)] {
            cell.swap(Some(now.clone()));
            let taken = take(&pools, &now, 0).await.unwrap();
            pools.give_back(taken, Instant::now());
            now = make(Some(&now), &tls);
            cell.swap(Some(now.clone()));
            pools.sweep();
            let taken = take(&pools, &now, 0).await.unwrap();
            assert_eq!(endpoint.ever.load(SeqCst), opened, "{protocol:?}");
            pools.give_back(taken, Instant::now());
            pools.sweep();
            endpoint.open(1).await;
        }
    }
}
