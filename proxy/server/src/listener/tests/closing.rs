//! Opening and closing.

use super::*;
use crate::admin::State;
use crate::server::DrainRequest;
use sixfold_core::model::{ApplyError, ResourceKind};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_says_so() {
    let fixture = Fixture::start();
    let address = fixture.apply(fixture.listener("first", says("first"))).await;
    let second =
        Listener { addresses: vec![BindAddress::Ip(address)], ..fixture.listener("second", says("second")) };
    let errors = fixture.server.apply(upsert(second)).await.unwrap_err();
    let [ApplyError { kind: ResourceKind::Listener, name, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!(&**name, "second");
    let text = errors[0].to_string();
    assert!(text.starts_with(&format!("listener \"second\": {address}: Address already in use")), "{text}");
    assert_eq!(exchange(address, b"").await, "first");

    let other = Fixture::start();
    let stranger = Listener { addresses: vec![BindAddress::Ip(address)], ..other.listener("x", says("x")) };
    assert!(other.server.apply(upsert(stranger)).await.is_err(), "no other server shares the port either");
    other.end().await;
    fixture.end().await;
}

#[tokio::test]
async fn every_worker_accepts_once_a_listener_is_live() {
    let fixture = Fixture::start();
    let listener = Listener { exact_balance: true, ..fixture.listener("a", says("hello")) };
    let address = fixture.apply(listener).await;
    for _ in 0..64 {
        assert_eq!(exchange(address, b"").await, "hello");
    }
    let loads = || -> Vec<_> {
        let peers = fixture.server.shared().peers.get().unwrap();
        peers.iter().map(|p| p.connections.load(Relaxed)).collect()
    };
    // A worker closes its end later than the client does, and counts the connection until then.
    eventually(|| loads() == [0; 4]).await;
    let upstream = echo().await;
    fixture.cluster("echo", &[upstream]).await;
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let listener = Listener { exact_balance: true, ..fixture.listener("b", proxy) };
    let address = fixture.apply(listener).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = TcpStream::connect(address).await.unwrap();
        assert!(ping(&mut client).await);
        clients.push(client);
    }
    assert_eq!(loads(), [10; 4]);
    fixture.end().await;
}

#[tokio::test]
async fn closing_under_load_resets_no_connection() {
    let fixture = Fixture::start();
    let address = fixture.apply(fixture.listener("a", says("hello"))).await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut broken = Vec::new();
                while !stop.load(Relaxed) {
                    match read_blocking(address) {
                        Ok(text) if text == "hello" => {
                            served.fetch_add(1, Relaxed);
                        }
                        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                        other => broken.push(format!("{other:?}")),
                    }
                }
                broken
            })
        })
        .collect();
    eventually(|| served.load(Relaxed) > 200).await;
    fixture.server.apply(removal("a")).await.unwrap();
    let before = served.load(Relaxed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(served.load(Relaxed) <= before + 16, "nothing is accepted after the close");
    stop.store(true, Relaxed);
    for client in clients {
        assert_eq!(client.join().unwrap(), Vec::<String>::new());
    }
    assert_eq!(std::net::TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    fixture.end().await;
}

#[tokio::test]
async fn a_change_of_shape_keeps_the_sockets_and_drains_all() {
    let fixture = Fixture::start_with(&Options { drain_time: Duration::from_secs(3), ..options() });
    let upstream = echo().await;
    fixture.cluster("echo", &[upstream]).await;
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let address = fixture.apply(fixture.listener("a", proxy)).await;
    let mut old = TcpStream::connect(address).await.unwrap();
    assert!(ping(&mut old).await);
    let changed = Listener { shape: 2, ..fixture.listener("a", says("new")) };
    assert_eq!(fixture.apply(changed).await, address);
    assert_eq!(exchange(address, b"").await, "new");
    assert!(ping(&mut old).await, "the old connection has its drain time");
    let closed = tokio::time::timeout(Duration::from_secs(20), old.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    fixture.end().await;
}

#[tokio::test]
async fn a_bad_change_leaves_what_was_there() {
    let fixture = Fixture::start();
    let address = fixture.apply(fixture.listener("a", says("old"))).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = vec![BindAddress::Ip(taken.local_addr().unwrap())];
    let bad = Listener { addresses, shape: 2, ..fixture.listener("a", says("new")) };
    let errors = fixture.server.apply(upsert(bad)).await.unwrap_err();
    assert!(errors[0].to_string().contains("in use"), "{errors:?}");
    assert_eq!(exchange(address, b"").await, "old");
    fixture.end().await;
}

/// Its own socket was in its way, and it stayed where it was.
#[tokio::test]
async fn a_listener_moves_to_an_address_that_takes_in_its_own_and_back() {
    let fixture = Fixture::start();
    let port = fixture.apply(fixture.listener("a", says("first"))).await.port();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let all = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let one = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut moves = vec![BindAddress::Ip(any), BindAddress::Ip(one)];
    match std::net::TcpListener::bind("[::1]:0") {
        Ok(_) => moves.extend([BindAddress::DualStack(all), BindAddress::Ip(any)]),
        Err(_) => eprintln!("no IPv6 here"),
    }
    for ((shape, text), address) in (2..).zip(["1", "2", "3", "4"]).zip(moves) {
        let listener = Listener { addresses: vec![address], shape, ..fixture.listener("a", says(text)) };
        fixture.server.apply(upsert(listener)).await.unwrap();
        assert_eq!(exchange(one, b"").await, text);
    }
    let second =
        Listener { addresses: vec![BindAddress::Ip(one)], ..fixture.listener("second", says("second")) };
    assert!(fixture.server.apply(upsert(second)).await.is_err(), "another's is taken");
    fixture.end().await;
}

#[tokio::test]
async fn draining_can_leave_outbound_listeners_alone() {
    let fixture = Fixture::start();
    fixture.server.lifecycle().set(State::Live);
    let inbound = Listener { inbound: true, ..fixture.listener("in", says("in")) };
    let inbound = fixture.apply(inbound).await;
    let outbound = fixture.apply(fixture.listener("out", says("out"))).await;
    let request = DrainRequest {
        inbound_only: true,
        close_now: true,
        keep_open: false,
        strategy: DrainStrategy::Immediate,
        time: Some(Duration::from_secs(5)),
    };
    fixture.server.drain(request).await;
    assert!(TcpStream::connect(inbound).await.is_err());
    assert_eq!(exchange(outbound, b"").await, "out");
    assert_eq!(fixture.server.lifecycle().get(), State::Live);
    let time = Some(Duration::from_secs(3));
    let graceful = DrainRequest { inbound_only: false, close_now: false, time, ..request };
    fixture.server.drain(graceful).await;
    // Its readiness failed, which Envoy's does not.
    assert_eq!(fixture.server.lifecycle().get(), State::Live);
    assert_eq!(exchange(outbound, b"").await, "out", "sockets stay open for the drain time");
    for _ in 0..1000 {
        if TcpStream::connect(outbound).await.is_err() {
            return fixture.end().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the socket is never closed");
}

#[tokio::test]
async fn unix_sockets_are_served_and_removed() {
    let fixture = Fixture::start();
    let path = std::env::temp_dir().join(format!("sixfold-listener-{}.sock", std::process::id()));
    let listener = Listener {
        addresses: vec![BindAddress::Unix(path.clone())],
        ..fixture.listener("unix", says("hello"))
    };
    fixture.server.apply(upsert(listener)).await.unwrap();
    for _ in 0..8 {
        let mut text = String::new();
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        client.read_to_string(&mut text).await.unwrap_or_default();
        assert_eq!(text, "hello");
    }
    fixture.server.apply(removal("unix")).await.unwrap();
    assert!(!path.exists());
    fixture.end().await;
}

/// A listener that has gone is counted for as long as its connections have.
#[tokio::test]
async fn a_listener_that_drains_is_counted_until_its_time_is_over() {
    let fixture = Fixture::start();
    let draining = || fixture.registry.sum("listener_manager.", "total_listeners_draining");
    fixture.apply(fixture.listener("a", says("a"))).await;
    assert_eq!(draining(), 0);
    fixture.server.apply(removal("a")).await.unwrap();
    assert_eq!(draining(), 1);
    eventually(|| draining() == 0).await;
    fixture.end().await;
}
