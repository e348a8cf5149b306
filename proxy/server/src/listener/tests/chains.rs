//! Listener filters and filter chains.

use super::*;
use sixfold_core::listener::ConnectionLimit;

fn from(source: &str) -> FilterChainMatch {
    FilterChainMatch { source: vec![source.parse().unwrap()], ..FilterChainMatch::default() }
}

async fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_changed_chain_drains_its_own_connections_alone() {
    let fixture = Fixture::start();
    let upstream = echo().await;
    fixture.cluster("echo", &[upstream]).await;
    let listener = |second: u64| {
        let proxy = || NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
        let chains = FilterChains::new(vec![
            Arc::new(chain("one", from("127.0.0.1/32"), 1, proxy())),
            Arc::new(chain("two", from("127.0.0.2/32"), second, proxy())),
        ])
        .unwrap();
        Listener { chains, ..fixture.listener("a", says("")) }
    };
    let address = fixture.apply(listener(2)).await;
    let mut first = connect_from([127, 0, 0, 1], address).await;
    let mut second = connect_from([127, 0, 0, 2], address).await;
    assert!(ping(&mut first).await && ping(&mut second).await);
    assert_eq!(fixture.apply(listener(3)).await, address);
    let closed = tokio::time::timeout(Duration::from_secs(5), second.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert!(ping(&mut first).await, "the other chain's connection lives on");
    let mut third = connect_from([127, 0, 0, 2], address).await;
    assert!(ping(&mut third).await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(ping(&mut first).await && ping(&mut third).await);
    fixture.end().await;
}

#[tokio::test]
async fn without_a_chain_a_connection_is_closed_and_logged() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let nobody = Arc::new(chain("nobody", from("10.0.0.0/8"), 1, says("x")));
    let chains = FilterChains::new(vec![nobody]).unwrap();
    let flags = lines.log(|stream| {
        let mut out = Vec::new();
        stream.flags.write_short(&mut out);
        format!("{} {}", String::from_utf8(out).unwrap(), stream.details.as_deref().unwrap_or_default())
    });
    let listener = Listener { chains, access_logs: vec![flags], ..fixture.listener("a", says("")) };
    let stats = listener.stats.clone();
    let address = fixture.apply(listener).await;
    assert_eq!(exchange(address, b"").await, "");
    assert_eq!(lines.wait(1).await, ["NR filter_chain_not_found"]);
    assert_eq!(stats.no_filter_chain_match().get(), 1);
    assert_eq!(stats.downstream_cx_total().get(), 0, "it never was a connection of the listener");
    fixture.end().await;
}

/// Bytes that filters had looked at counted as read, and the client saw an orderly end.
#[tokio::test]
async fn a_connection_that_nobody_wants_is_reset() {
    let fixture = Fixture::start();
    let named = FilterChainMatch { server_names: vec!["a.test".into()], ..FilterChainMatch::default() };
    let unwanted = Listener {
        listener_filters: vec![ListenerFilter::TlsInspector],
        chains: FilterChains::new(vec![Arc::new(chain("named", named, 1, says("x")))]).unwrap(),
        ..fixture.listener("unwanted", says(""))
    };
    let address = fixture.apply(unwanted).await;
    let refused =
        Listener { listener_filters: proxy_protocol(false), ..fixture.listener("refused", says("")) };
    let other = fixture.apply(refused).await;
    for address in [address, other] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    fixture.end().await;
}

#[tokio::test]
async fn the_proxy_protocol_gives_the_client_address_and_others_are_refused() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let shown = lines.log(|s| {
        format!("{} {} {}", s.connection.remote, s.connection.local, s.connection.direct_remote.ip())
    });
    let listener = Listener {
        listener_filters: proxy_protocol(false),
        access_logs: vec![shown],
        ..fixture.listener("a", says("hello"))
    };
    let stats = listener.stats.clone();
    let address = fixture.apply(listener).await;
    assert_eq!(exchange(address, b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\nrest").await, "hello");
    assert_eq!(lines.wait(1).await, ["1.2.3.4:1111 5.6.7.8:2222 127.0.0.1"]);
    assert_eq!(exchange(address, b"GET / HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(exchange(address, b"PROXY TCP4 1.2.3.4\r\n").await, "");
    // They were errors of a filter, which in Envoy are those of the socket.
    eventually(|| fixture.registry.sum("", "downstream_cx_proxy_proto_error") == 2).await;
    assert_eq!(stats.downstream_listener_filter_error().get(), 0);
    let optional =
        Listener { listener_filters: proxy_protocol(true), shape: 2, ..fixture.listener("a", says("any")) };
    fixture.apply(optional).await;
    assert_eq!(exchange(address, b"GET / HTTP/1.1\r\n\r\n").await, "any");
    // None of that was counted.
    let counted = |name: &str| fixture.registry.sum("proxy_proto.", name);
    assert_eq!((counted("versions.v1.found"), counted("versions.v1.error")), (1, 1));
    assert_eq!((counted("not_found_disallowed"), counted("not_found_allowed")), (1, 1));
    fixture.end().await;
}

#[tokio::test]
async fn http_on_plain_text_chooses_by_version_and_silence_times_out() {
    let fixture = Fixture::start();
    let of = |protocol: &str| FilterChainMatch {
        application_protocols: vec![protocol.into()],
        ..FilterChainMatch::default()
    };
    let listener = |name, time, go_on| Listener {
        listener_filters: vec![ListenerFilter::TlsInspector, ListenerFilter::HttpInspector],
        filters_timeout: Some(time),
        continue_on_timeout: go_on,
        shape: u64::from(go_on),
        chains: FilterChains::new(vec![
            Arc::new(chain("1", of("http/1.1"), 1, says("http/1.1"))),
            Arc::new(chain("2", of("h2c"), 1, says("h2c"))),
        ])
        .unwrap(),
        default_chain: Some(Arc::new(chain("rest", FilterChainMatch::default(), 1, says("other")))),
        ..fixture.listener(name, says(""))
    };
    // Only silence is to meet the shorter one.
    let (long, short) = (Duration::from_secs(15), Duration::from_millis(200));
    let address = fixture.apply(listener("a", long, true)).await;
    assert_eq!(exchange(address, b"GET / HTTP/1.1\r\n").await, "http/1.1");
    assert_eq!(exchange(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, "h2c");
    assert_eq!(exchange(address, b"\x00\x01\x02\x03\x04").await, "other");
    let config = listener("b", short, true);
    let stats = config.stats.clone();
    let silent = fixture.apply(config).await;
    assert_eq!(exchange(silent, b"hel").await, "other");
    assert_eq!(stats.downstream_pre_cx_timeout().get(), 1);
    fixture.apply(listener("b", short, false)).await;
    assert_eq!(exchange(silent, b"hel").await, "");
    fixture.apply(listener("a", long, false)).await;
    assert_eq!(exchange(address, b"GET / HTTP/1.1\r\n").await, "http/1.1");
    fixture.end().await;
}

#[tokio::test]
async fn connections_for_another_listener_are_handed_over() {
    let fixture = Fixture::start();
    // The PROXY protocol stands in for the kernel's redirection: both tell where a client wanted to go.
    let front = Listener {
        listener_filters: proxy_protocol(false),
        use_original_dst: true,
        ..fixture.listener("front", says("front"))
    };
    let address = fixture.apply(front).await;
    let hidden = |name, address: &str, text| Listener {
        // What the first listener's filters left is seen by those of the second.
        listener_filters: vec![ListenerFilter::HttpInspector],
        chains: FilterChains::new(vec![Arc::new(chain(
            "http",
            FilterChainMatch {
                application_protocols: vec!["http/1.1".into()],
                ..FilterChainMatch::default()
            },
            1,
            says(text),
        ))])
        .unwrap(),
        addresses: vec![BindAddress::Ip(address.parse().unwrap())],
        bind: false,
        ..fixture.listener(name, says(text))
    };
    fixture.server.apply(upsert(hidden("exact", "10.0.0.1:80", "exact"))).await.unwrap();
    fixture.server.apply(upsert(hidden("all", "0.0.0.0:80", "all"))).await.unwrap();
    assert_eq!(fixture.address("exact"), "10.0.0.1:80".parse().unwrap(), "it is shown as configured");
    let to = |ip, port| format!("PROXY TCP4 1.2.3.4 {ip} 1111 {port}\r\nGET / HTTP/1.1\r\n").into_bytes();
    assert_eq!(exchange(address, &to("10.0.0.1", 80)).await, "exact");
    assert_eq!(exchange(address, &to("10.0.0.2", 80)).await, "all");
    assert_eq!(exchange(address, &to("10.0.0.2", 81)).await, "front");
    fixture.end().await;
}

#[tokio::test]
async fn a_limit_holds_over_all_workers_and_places_come_back() {
    let fixture = Fixture::start();
    fixture.cluster("echo", &[echo().await]).await;
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let limit = ConnectionLimit::new(&fixture.registry, "c", 3, Duration::from_millis(50));
    let address = fixture.apply(behind(fixture.listener("a", proxy), vec![Arc::new(limit)])).await;
    let mut inside = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(address).await.unwrap();
        assert!(ping(&mut client).await);
        inside.push(client);
    }
    for _ in 0..8 {
        let start = std::time::Instant::now();
        assert_eq!(exchange(address, b"hello").await, "");
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
    inside.pop();
    for _ in 0..200 {
        let mut client = TcpStream::connect(address).await.unwrap();
        if ping(&mut client).await {
            return fixture.end().await;
        }
    }
    panic!("the place never came back");
}
