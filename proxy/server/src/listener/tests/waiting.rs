//! Clients that say nothing yet while the listener that they have come to changes.

use super::*;

/// A listener that waits for a client's first bytes, which answers so.
fn listener(fixture: &Fixture, name: &str, text: &'static str, fingerprint: u64) -> Listener {
    Listener {
        listener_filters: vec![ListenerFilter::HttpInspector],
        filters_timeout: None,
        chains: FilterChains::one(chain("only", FilterChainMatch::default(), fingerprint, says(text))),
        ..fixture.listener(name, says(text))
    }
}

/// Clients whose first bytes the listener waits for.
async fn silent(address: SocketAddr, stats: &ListenerStats, opening: &[u8]) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(opening).await.unwrap();
        clients.push(client);
    }
    eventually(|| stats.downstream_pre_cx_active().get() == 8).await;
    clients
}

/// What a client hears once it has said something.
async fn hears(client: &mut TcpStream) -> String {
    client.write_all(b"\0").await.unwrap();
    let mut heard = String::new();
    let reading = client.read_to_string(&mut heard);
    // A reset is an answer too: none.
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it ends");
    heard
}

/// They were served by the chains of before, and those that waited for longer than these drained were closed.
#[tokio::test]
async fn the_chain_is_one_of_those_in_force_when_the_first_bytes_come() {
    for time in [Duration::from_millis(100), Duration::from_secs(60)] {
        let fixture = Fixture::start_with(&Options { drain_time: time, ..options() });
        let config = listener(&fixture, "a", "old", 1);
        let stats = config.stats.clone();
        let address = fixture.apply(config).await;
        let mut clients = silent(address, &stats, b"").await;
        fixture.apply(Listener { stats, ..listener(&fixture, "a", "new", 2) }).await;
        if time < Duration::from_secs(1) {
            tokio::time::sleep(3 * time).await;
        }
        for client in &mut clients {
            assert_eq!(hears(client).await, "new");
        }
        fixture.end().await;
    }
}

#[tokio::test]
async fn it_is_so_where_connections_are_handed_over() {
    let fixture = Fixture::start();
    let front = Listener {
        listener_filters: proxy_protocol(false),
        use_original_dst: true,
        ..fixture.listener("front", says("front"))
    };
    let address = fixture.apply(front).await;
    let hidden = |text, fingerprint, stats: Option<Arc<ListenerStats>>| {
        let of = listener(&fixture, "hidden", text, fingerprint);
        let addresses = vec![BindAddress::Ip(([10, 0, 0, 1], 80).into())];
        Listener { bind: false, addresses, stats: stats.unwrap_or_else(|| of.stats.clone()), ..of }
    };
    let config = hidden("old", 1, None);
    let stats = config.stats.clone();
    fixture.server.apply(upsert(config)).await.unwrap();
    let mut clients = silent(address, &stats, b"PROXY TCP4 1.2.3.4 10.0.0.1 1111 80\r\n").await;
    fixture.server.apply(upsert(hidden("new", 2, Some(stats)))).await.unwrap();
    for client in &mut clients {
        assert_eq!(hears(client).await, "new");
    }
    fixture.end().await;
}

/// They stayed for as long as they said nothing, with the configuration of before.
#[tokio::test]
async fn a_listener_that_goes_takes_them_along() {
    for removed in [true, false] {
        let fixture = Fixture::start();
        let config = listener(&fixture, "a", "old", 1);
        let stats = config.stats.clone();
        let address = fixture.apply(config).await;
        let mut clients = silent(address, &stats, b"").await;
        let diff = match removed {
            true => removal("a"),
            false => upsert(Listener { shape: 2, ..listener(&fixture, "a", "new", 1) }),
        };
        fixture.server.apply(diff).await.unwrap();
        for client in &mut clients {
            let end = tokio::time::timeout(Duration::from_secs(10), client.read(&mut [0; 1])).await;
            assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
        }
        eventually(|| stats.downstream_pre_cx_active().get() == 0).await;
        fixture.end().await;
    }
}
