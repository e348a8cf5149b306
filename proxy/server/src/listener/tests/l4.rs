//! Listeners whose connections go where a table of routes says.

use super::*;
use sixfold_core::cluster::{CountedChecks, Limits};
use sixfold_core::listener::{L4Condition, L4Proxy, L4Route, L4Routes, L4Stats, L4Table, SILENCE, UdpLimits};
use sixfold_core::retry::RetryPolicy;
use sixfold_core::route::{Action, Ids, PathMatch, Route};
use tokio::net::UdpSocket;

/// A proxy over a table that sends everything to one cluster.
fn proxy(fixture: &Fixture, cluster: &str, idle: Duration, udp: UdpLimits) -> Arc<L4Proxy> {
    let table = Arc::new(L4Table::default());
    let ids = Ids { route: "r".into(), ..Ids::default() };
    let route = Route { ids, ..Route::new(PathMatch::Prefix(Box::default(), false), Action::NonForwarding) };
    let to = TcpProxy {
        idle_timeout: Some(idle),
        attempts: ConnectAttempts::OfCluster,
        ..fixture.tcp_proxy(cluster, Vec::new())
    };
    let route = L4Route {
        route: Arc::new(route),
        condition: L4Condition { remote: Some("127.0.0.0/8".parse().unwrap()), ..L4Condition::default() },
        filters: Arc::default(),
        proxy: Arc::new(to),
    };
    drop(table.change(L4Routes::new([Arc::new(route)])).put_in_force());
    Arc::new(L4Proxy {
        address: "127.0.0.1:0".into(),
        routes: table,
        fallback_name: None,
        trusted: Vec::new(),
        stats: Arc::new(TcpStats::new(&fixture.registry, "stream.a.")),
        upstream: Arc::new(L4Stats::new(&fixture.registry, "stream.a.")),
        proxy_protocol: false,
        access_logs: Vec::new(),
        udp,
    })
}

fn udp_listener(fixture: &Fixture, proxy: &Arc<L4Proxy>) -> Listener {
    let addresses = vec![BindAddress::Udp((Ipv4Addr::LOCALHOST, 0).into())];
    Listener { addresses, ..fixture.listener("u", NetworkFilter::Routed(proxy.clone())) }
}

/// Applies a listener of UDP and tells where it is.
async fn open(fixture: &Fixture, listener: Listener) -> SocketAddr {
    fixture.server.apply(upsert(listener)).await.unwrap();
    match fixture.server.addresses()[0].1.first() {
        Some(BindAddress::Udp(address)) => *address,
        other => panic!("{other:?}"),
    }
}

/// An endpoint that answers every datagram with itself.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..n], from).await;
        }
    });
    address
}

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// Whether an answer comes within the time.
async fn answered(socket: &UdpSocket, within: Duration) -> bool {
    socket.send(b"ping").await.unwrap();
    let mut buffer = [0; 16];
    tokio::time::timeout(within, socket.recv(&mut buffer)).await.is_ok_and(|read| read.is_ok())
}

async fn eventually(mut probe: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if probe() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never");
}

#[tokio::test]
async fn sessions_of_udp_are_bounded_and_end_when_nobody_speaks() {
    let fixture = Fixture::start();
    let _cluster = fixture.cluster("a", &[echo().await]).await;
    let limits = UdpLimits { sessions: 1, ..UdpLimits::default() };
    // Longer than all of them take to come.
    let proxy = proxy(&fixture, "a", Duration::from_secs(3), limits);
    let address = open(&fixture, udp_listener(&fixture, &proxy)).await;
    // Whoever comes is served: one for each of four workers at a time, the kernel says which, and others leave for it.
    for _ in 0..12 {
        assert!(answered(&client(address).await, Duration::from_secs(5)).await);
    }
    assert!(proxy.upstream.sessions_displaced().get() >= 8, "{}", proxy.upstream.sessions_displaced().get());
    assert_eq!(proxy.upstream.datagrams_dropped().get(), 0);
    eventually(|| proxy.upstream.sessions_active().get() <= 4).await;
    let worker_connections = || fixture.registry.sum("listener.u.", "downstream_cx_active");
    eventually(|| proxy.upstream.sessions_active().get() == 0 && worker_connections() == 0).await;
    assert!(proxy.stats.idle_timeout().get() >= 1);
    fixture.end().await;
}

#[tokio::test]
async fn sessions_that_are_used_stay_when_others_want_their_places() {
    let fixture = Fixture::start();
    let _cluster = fixture.cluster("a", &[echo().await]).await;
    let limits = UdpLimits { sessions: 3, ..UdpLimits::default() };
    let proxy = proxy(&fixture, "a", SILENCE, limits);
    let address = open(&fixture, udp_listener(&fixture, &proxy)).await;
    let used = client(address).await;
    for _ in 0..24 {
        // Of the others each speaks once, and has no session behind it for long.
        assert!(answered(&used, Duration::from_secs(5)).await);
        client(address).await.send(b"ping").await.unwrap();
    }
    eventually(|| proxy.stats.downstream_cx_total().get() == 25).await;
    assert!(proxy.upstream.sessions_displaced().get() >= 25 - 12);
    assert!(answered(&used, Duration::from_secs(5)).await);
    assert_eq!(proxy.stats.downstream_cx_total().get(), 25, "it is the session that it had");
    fixture.end().await;
}

#[tokio::test]
async fn sessions_of_all_workers_have_one_bound() {
    let fixture = Fixture::start_with(&Options { udp_sessions: 2, ..options() });
    let _cluster = fixture.cluster("a", &[echo().await]).await;
    let proxy = proxy(&fixture, "a", SILENCE, UdpLimits::default());
    let mut listener = udp_listener(&fixture, &proxy);
    listener.addresses.push(BindAddress::Udp((Ipv4Addr::LOCALHOST, 0).into()));
    let address = open(&fixture, listener).await;
    let Some(BindAddress::Udp(other)) = fixture.server.addresses()[0].1.get(1).cloned() else { panic!() };
    for _ in 0..16 {
        assert!(answered(&client(address).await, Duration::from_secs(5)).await);
    }
    // Two, and one for each of the other workers.
    eventually(|| proxy.upstream.sessions_active().get() <= 5).await;
    assert_eq!(proxy.upstream.datagrams_dropped().get(), 0);
    // Who asks at another address is not shut out by them.
    assert!(answered(&client(other).await, Duration::from_secs(5)).await);
    fixture.end().await;
}

/// Checks that count failures to connect, and send nothing.
fn checks(ends_count: bool) -> CountedChecks {
    let passive = Limits { tcp_failures: 2, ..Limits::default() };
    CountedChecks { passive, ends_count, ..CountedChecks::default() }
}

/// Failed connections that are counted for the only node of a cluster after one connection of a client.
async fn failures_of(fixture: &Fixture, checks: CountedChecks, retries: u32, datagram: bool) -> u8 {
    let gone = match datagram {
        true => client("127.0.0.1:9".parse().unwrap()).await.local_addr().unwrap(),
        false => crate::nobody::nobody(),
    };
    let mut config = cluster_config("a");
    config.profile = sixfold_core::hcm::Profile::Apisix;
    config.checks = Some(Arc::new(checks));
    config.retry = Some(Arc::new(RetryPolicy { num_retries: retries, ..RetryPolicy::default() }));
    let cluster = fixture.cluster_of(config, &[gone]).await;
    let proxy = proxy(fixture, "a", SILENCE, UdpLimits::default());
    if datagram {
        let address = open(fixture, udp_listener(fixture, &proxy)).await;
        assert!(!answered(&client(address).await, Duration::from_millis(50)).await);
    } else {
        let listener = fixture.listener("t", NetworkFilter::Routed(proxy.clone()));
        let mut client = TcpStream::connect(fixture.apply(listener).await).await.unwrap();
        let _ = client.read(&mut [0]).await;
    }
    eventually(|| {
        proxy.stats.downstream_cx_total().get() == 1 && proxy.upstream.sessions_active().get() == 0
    })
    .await;
    let hosts = cluster.hosts.load();
    hosts.iter().next().unwrap().host.counts().tcp_failures
}

#[tokio::test]
async fn nodes_that_take_no_stream_are_counted() {
    for (ends_count, retries, datagram, counted) in [
        (false, 0, false, 0),
        (true, 0, false, 1),
        // A node that is tried again was counted before, as APISIX does it.
        (false, 1, false, 1),
        (true, 1, false, 2),
        (true, 0, true, 1),
    ] {
        let fixture = Fixture::start();
        let failures = failures_of(&fixture, checks(ends_count), retries, datagram).await;
        assert_eq!(failures, counted, "{ends_count} {retries} {datagram}");
        fixture.end().await;
    }
}

#[tokio::test]
async fn clients_without_a_route_or_an_endpoint_hold_nothing() {
    let fixture = Fixture::start();
    let gone = client("127.0.0.1:9".parse().unwrap()).await.local_addr().unwrap();
    let _cluster = fixture.cluster("a", &[gone]).await;
    let proxy = proxy(&fixture, "a", SILENCE, UdpLimits::default());
    let address = open(&fixture, udp_listener(&fixture, &proxy)).await;
    // The machine says that nobody is there, which ends the session long before its time.
    let socket = client(address).await;
    assert!(!answered(&socket, Duration::from_millis(50)).await);
    eventually(|| {
        proxy.stats.downstream_cx_total().get() >= 1 && proxy.upstream.sessions_active().get() == 0
    })
    .await;
    drop(proxy.routes.change(L4Routes::default()).put_in_force());
    assert!(!answered(&socket, Duration::from_millis(50)).await);
    eventually(|| proxy.stats.downstream_cx_no_route().get() >= 1).await;
    assert_eq!(proxy.upstream.sessions_active().get(), 0);
    fixture.end().await;
}

#[tokio::test]
async fn nobody_else_gets_a_port_of_udp_and_it_is_free_again() {
    let fixture = Fixture::start();
    let _cluster = fixture.cluster("a", &[echo().await]).await;
    let proxy = proxy(&fixture, "a", SILENCE, UdpLimits::default());
    let address = open(&fixture, udp_listener(&fixture, &proxy)).await;
    assert!(std::net::UdpSocket::bind(address).is_err());
    assert!(answered(&client(address).await, Duration::from_secs(5)).await);
    let other = Fixture::start();
    let taken = Listener { addresses: vec![BindAddress::Udp(address)], ..udp_listener(&other, &proxy) };
    assert!(other.server.apply(upsert(taken)).await.is_err());
    other.end().await;
    fixture.server.apply(removal("u")).await.unwrap();
    fixture.end().await;
    drop(proxy);
    eventually(|| std::net::UdpSocket::bind(address).is_ok()).await;
}

#[tokio::test]
async fn a_session_of_tcp_ends_with_its_endpoint_whoever_stays() {
    let fixture = Fixture::start();
    let endpoint = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _cluster = fixture.cluster("a", &[endpoint.local_addr().unwrap()]).await;
    let proxy = proxy(&fixture, "a", SILENCE, UdpLimits::default());
    let address = fixture.apply(fixture.listener("t", NetworkFilter::Routed(proxy.clone()))).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut accepted, _) = endpoint.accept().await.unwrap();
    eventually(|| proxy.upstream.sessions_active().get() == 1).await;
    accepted.write_all(b"bye").await.unwrap();
    drop(accepted);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"bye");
    // The client has not closed.
    eventually(|| proxy.upstream.sessions_active().get() == 0).await;
    assert_eq!(
        (proxy.upstream.upstream_rx_bytes_total().get(), proxy.stats.downstream_cx_tx_bytes_total().get()),
        (3, 3)
    );
    fixture.end().await;
}
