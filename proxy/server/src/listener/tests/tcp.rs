//! TCP proxying.

use super::*;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::listener::{ConnectionRbac, RbacSettings};
use sixfold_core::rbac::{Action, Condition, Policy, Rules};
use sixfold_core::route::{WeightedCluster, WeightedClusters};

fn flags(stream: &Stream) -> String {
    let mut out = Vec::new();
    stream.flags.write_short(&mut out);
    let cluster = stream.upstream.cluster.as_ref().map_or("-", |c| &c.config.name);
    format!("{} {cluster}", String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let cluster = fixture.cluster("echo", &[echo().await]).await;
    let log = lines.log(|s| format!("{} {} {}", flags(s), s.bytes.request_body, s.bytes.response_body));
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", vec![log])));
    let address = fixture.apply(fixture.listener("a", proxy)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let sent = vec![7u8; 3 << 20];
    let (mut read, mut write) = client.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let reading = read.read_to_end(&mut got);
    let (_, n) = tokio::join!(writing, reading);
    assert_eq!(n.unwrap(), sent.len());
    assert!(got == sent);
    assert_eq!(lines.wait(1).await, [format!(" echo {0} {0}", 3 << 20)]);
    assert_eq!(cluster.stats.upstream_cx_total().get(), 1);
    eventually(|| cluster.stats.upstream_cx_active().get() == 0).await;
    // Its one request is under way until then.
    assert_eq!(ends(&cluster), [1, 0, 1, 1]);
    fixture.end().await;
}

#[tokio::test]
async fn failures_close_the_client_and_raise_their_flags() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let log = || vec![lines.log(flags)];
    let nowhere = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("nowhere", log())));
    let address = fixture.apply(fixture.listener("a", nowhere)).await;
    assert_eq!(exchange(address, b"hello").await, "");
    assert_eq!(lines.wait(1).await[0], "NC -");

    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let cluster = fixture.cluster("dead", &[closed]).await;
    let dead = TcpProxy { attempts: ConnectAttempts::Fixed(3), ..fixture.tcp_proxy("dead", log()) };
    let address = fixture.apply(fixture.listener("b", NetworkFilter::Tcp(Arc::new(dead)))).await;
    assert_eq!(exchange(address, b"hello").await, "");
    assert_eq!(lines.wait(2).await[1], "UF,URX dead");
    assert_eq!(cluster.stats.upstream_cx_connect_fail().get(), 3);
    assert_eq!(cluster.stats.upstream_cx_connect_attempts_exceeded().get(), 1);

    fixture.cluster("empty", &[]).await;
    let empty = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("empty", log())));
    let address = fixture.apply(fixture.listener("c", empty)).await;
    assert_eq!(exchange(address, b"hello").await, "");
    assert_eq!(lines.wait(3).await[2], "UH empty");
    fixture.end().await;
}

#[tokio::test]
async fn silence_closes_it() {
    let fixture = Fixture::start();
    fixture.cluster("echo", &[echo().await]).await;
    let proxy =
        TcpProxy { idle_timeout: Some(Duration::from_millis(200)), ..fixture.tcp_proxy("echo", Vec::new()) };
    let stats = proxy.stats.clone();
    let address = fixture.apply(fixture.listener("a", NetworkFilter::Tcp(Arc::new(proxy)))).await;
    assert_eq!(exchange(address, b"hello").await, "hello");
    assert_eq!(stats.idle_timeout().get(), 1);
    fixture.end().await;
}

#[tokio::test]
async fn weights_spread_connections_over_clusters() {
    let fixture = Fixture::start();
    let (one, two) =
        (fixture.cluster("one", &[echo().await]).await, fixture.cluster("two", &[echo().await]).await);
    let member = |name, weight| WeightedCluster {
        cluster: ClusterChoice::Named(fixture.clusters.cell(name)),
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
        metadata_match: Default::default(),
        chain: None,
    };
    let clusters = WeightedClusters {
        clusters: [member("one", 1), member("two", 1)].into(),
        total: 2,
        random_header: None,
        use_hash: false,
    };
    let proxy = TcpProxy {
        cluster: ClusterChoice::Weighted(Box::new(clusters)),
        ..fixture.tcp_proxy("", Vec::new())
    };
    let address = fixture.apply(fixture.listener("a", NetworkFilter::Tcp(Arc::new(proxy)))).await;
    for _ in 0..40 {
        let mut client = TcpStream::connect(address).await.unwrap();
        assert!(ping(&mut client).await);
    }
    let (first, second) = (one.stats.upstream_cx_total().get(), two.stats.upstream_cx_total().get());
    assert_eq!(first + second, 40);
    assert!(first > 3 && second > 3, "{first} and {second}");
    fixture.end().await;
}

/// Everybody could connect through a chain with rules for connections, which was refused.
#[tokio::test]
async fn who_may_not_connect_is_closed_with_the_first_byte_and_the_log_says_why() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let cluster = fixture.cluster("echo", &[echo().await]).await;
    let log = lines.log(|s| {
        let host = s.upstream.member.is_some();
        format!(
            "{host} {}",
            String::from_utf8(s.var("connection_termination_details").unwrap().to_vec()).unwrap()
        )
    });
    let policy = Policy { permissions: Condition::Always, principals: Condition::Always, condition: None };
    let rules = Rules::new(Action::Deny, [("nobody".into(), policy)].into());
    let settings = RbacSettings { rules: Some(rules), ..RbacSettings::default() };
    let rbac = ConnectionRbac::new(&fixture.registry, "tcp", settings);
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", vec![log])));
    let address = fixture.apply(behind(fixture.listener("a", proxy), vec![Arc::new(rbac)])).await;
    assert_eq!(exchange(address, b"hello").await, "");
    assert_eq!(lines.wait(1).await, ["true rbac_access_denied_matched_policy[nobody]"]);
    assert_eq!(["allowed", "denied"].map(|name| fixture.registry.sum("tcp.rbac.", name)), [0, 1]);
    // Its end was counted twice.
    assert_eq!(ends(&cluster), [1, 1, 0, 1]);
    fixture.end().await;
}

/// Ends of connections to endpoints: all, ours, theirs, and those with a request under way.
fn ends(cluster: &Cluster) -> [u64; 4] {
    let stats = &cluster.stats;
    [
        stats.upstream_cx_destroy(),
        stats.upstream_cx_destroy_local(),
        stats.upstream_cx_destroy_remote(),
        stats.upstream_cx_destroy_with_active_rq(),
    ]
    .map(|ends| ends.get())
}

/// A denied client that said nothing heard neither the endpoint nor its end: it was kept for an hour.
#[tokio::test]
async fn who_may_not_connect_hears_the_endpoint_and_that_it_has_left() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    let greets = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = fixture.cluster("greets", &[greets.local_addr().unwrap()]).await;
    let log = lines.log(|s| {
        let details = s.var("connection_termination_details").unwrap_or(b"-");
        format!("{} {} {}", String::from_utf8_lossy(details), s.bytes.request_body, s.bytes.response_body)
    });
    let policy = Policy { permissions: Condition::Always, principals: Condition::Always, condition: None };
    let rules = Rules::new(Action::Deny, [("nobody".into(), policy)].into());
    let settings = RbacSettings { rules: Some(rules), ..RbacSettings::default() };
    let rbac = ConnectionRbac::new(&fixture.registry, "tcp.", settings);
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("greets", vec![log])));
    let address = fixture.apply(behind(fixture.listener("a", proxy), vec![Arc::new(rbac)])).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut endpoint, _) = greets.accept().await.unwrap();
    endpoint.write_all(b"hello").await.unwrap();
    drop(endpoint);
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
    client.write_all(b"x").await.unwrap();
    assert_eq!(lines.wait(1).await, ["rbac_access_denied_matched_policy[nobody] 1 5"]);
    assert_eq!(ends(&cluster), [1, 1, 0, 1]);
    // The end of what it sends is the first that it says.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.shutdown().await.unwrap();
    let (endpoint, _) = greets.accept().await.unwrap();
    assert_eq!(lines.wait(2).await[1], "rbac_access_denied_matched_policy[nobody] 0 0");
    // One that fails takes the client with it.
    drop(endpoint);
    let _client = TcpStream::connect(address).await.unwrap();
    let (endpoint, _) = greets.accept().await.unwrap();
    eventually(|| cluster.stats.upstream_rq_total().get() == 3).await;
    endpoint.set_zero_linger().unwrap();
    drop(endpoint);
    assert_eq!(lines.wait(3).await[2], "- 0 0");
    assert_eq!(ends(&cluster), [3, 2, 1, 3]);
    fixture.end().await;
}
