//! Limits of a cluster that is updated, and the connections of its version before.

use super::*;

/// The next version of a cluster, in force, with so many connections allowed; `None` for any number.
fn next(
    endpoint: &Endpoint,
    previous: Option<&Arc<Cluster>>,
    protocol: UpstreamProtocol,
    limit: Option<u32>,
) -> Arc<Cluster> {
    let breaker = limit.map_or(BreakerLimits::UNLIMITED, |max_connections| BreakerLimits {
        max_connections,
        ..BreakerLimits::default()
    });
    let mut config = ClusterConfig::named("a");
    (config.breaker, config.protocol) = (breaker, protocol);
    let hosts = vec![HostConfig::new(Address::Ip(endpoint.address))];
    let cluster = Cluster::new(config, hosts, previous.map(|c| &**c), &Registry::new()).unwrap();
    Clusters::default().cell("a").swap(Some(cluster.clone()));
    cluster
}

/// Takes so many connections at once.
async fn take_all(pools: &Pools, cluster: &Arc<Cluster>, count: usize) -> Vec<Checkout> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(take(pools, cluster, 0).await.unwrap());
    }
    taken
}

fn give_all_back(pools: &Pools, taken: Vec<Checkout>) {
    taken.into_iter().for_each(|checkout| pools.give_back(checkout, Instant::now()));
}

/// Each update of a cluster allowed as many connections again, beside those there were.
#[tokio::test]
async fn a_limit_holds_over_the_versions_of_a_cluster() {
    let http1 = UpstreamProtocol::Http1;
    let (endpoint, pools) = (Endpoint::start().await, Pools::default());
    let mut cluster = next(&endpoint, None, http1, Some(2));
    for _ in 0..3 {
        let taken = take_all(&pools, &cluster, 2).await;
        cluster = next(&endpoint, Some(&cluster), http1, Some(2));
        let third = take(&pools, &cluster, 0);
        assert!(tokio::time::timeout(Duration::from_millis(50), third).await.is_err(), "it has to wait");
        give_all_back(&pools, taken);
    }
    assert_eq!((endpoint.ever.load(SeqCst), cluster.breaker.count(Resource::Connections)), (2, 2));
}

/// Connections of a time without limits stayed beside those that were counted.
#[tokio::test]
async fn connections_that_were_not_counted_go_when_the_next_version_counts_them() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let shares = protocol == UpstreamProtocol::Http2;
        let endpoint = if shares { Endpoint::http2().await } else { Endpoint::start().await };
        let pools = Pools::default();
        let first = next(&endpoint, None, protocol, None);
        let taken = take_all(&pools, &first, 3).await;
        endpoint.open(if shares { 1 } else { 3 }).await;
        let before = endpoint.ever.load(SeqCst);
        give_all_back(&pools, taken);
        let second = next(&endpoint, Some(&first), protocol, Some(5));
        let taken = take_all(&pools, &second, 1).await;
        endpoint.open(1).await;
        assert_eq!(
            (endpoint.ever.load(SeqCst), second.breaker.count(Resource::Connections)),
            (before + 1, 1)
        );
        give_all_back(&pools, taken);
        take_all(&pools, &second, 1).await;
        assert_eq!(endpoint.ever.load(SeqCst), before + 1, "it is kept");
    }
}

/// A lower limit held for new connections alone; and later on what was idle kept all others from having any.
#[tokio::test]
async fn connections_beyond_a_limit_that_has_come_down_go() {
    let http1 = UpstreamProtocol::Http1;
    for idle in [true, false] {
        let (endpoint, pools) = (Endpoint::start().await, Pools::default());
        let first = next(&endpoint, None, http1, Some(3));
        let mut taken = take_all(&pools, &first, 3).await;
        endpoint.open(3).await;
        let second = next(&endpoint, Some(&first), http1, Some(1));
        if idle {
            give_all_back(&pools, std::mem::take(&mut taken));
        }
        let own = take_all(&pools, &second, 1).await;
        give_all_back(&pools, taken);
        give_all_back(&pools, own);
        for _ in 0..3 {
            give_all_back(&pools, take_all(&pools, &second, 1).await);
        }
        endpoint.open(1).await;
        assert_eq!(endpoint.ever.load(SeqCst), 4, "idle: {idle}");
        assert!(second.breaker.count(Resource::Connections) <= 1);
    }
}
