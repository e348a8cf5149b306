//! Endpoints of clusters.
use super::*;

#[tokio::test]
async fn endpoints_follow_the_answers() {
    let server = Server { hold_empty: Duration::ZERO, ..Server::start(v4(1), NXDOMAIN).await };
    let fixed = HostConfig::new(Address::Ip(([192, 0, 2, 9], 80).into()));
    let cluster = cluster(Discovery::StrictDns(options(20)), vec![name(), fixed], None);
    assert_eq!(labels(&cluster), ["192.0.2.9:80"]);
    discoverer(&server).start(&cluster).unwrap().await.unwrap();
    assert_eq!(labels(&cluster), ["10.0.0.1:80", "10.0.0.2:80", "192.0.2.9:80"]);
    let first = cluster.hosts.load().iter().next().unwrap().clone();
    assert_eq!((&*first.host.hostname, first.weight), ("a.test.", 3));

    // A turned answer is no change; a new address is, and the other host stays itself.
    let version = cluster.hosts.load().version;
    server.say.lock().0 = Say::Addresses(vec!["10.0.0.2", "10.0.0.1"], 1);
    let asked = server.asked(A);
    until("asked again", || server.asked(A) > asked + 1).await;
    assert_eq!(cluster.hosts.load().version, version);
    server.say.lock().0 = Say::Addresses(vec!["10.0.0.3", "10.0.0.1"], 1);
    until("changed", || labels(&cluster)[1] == "10.0.0.3:80").await;
    assert_eq!(cluster.hosts.load().iter().next().unwrap().host.id, first.host.id);

    // Failures keep what there is; a name that is gone does not.
    server.say.lock().0 = SERVFAIL;
    until("failed", || cluster.stats.update_failure().get() > 1).await;
    assert_eq!(labels(&cluster).len(), 3);
    server.say.lock().0 = NXDOMAIN;
    until("gone", || labels(&cluster) == ["192.0.2.9:80"]).await;
}

/// One NXDOMAIN, or an answer without an address, took all endpoints away at once.
#[tokio::test]
async fn a_name_that_has_lost_its_addresses_keeps_them_for_a_while() {
    for gone in [NXDOMAIN, Say::Addresses(vec![], 0)] {
        let server = Server::start(v4(1), NXDOMAIN).await;
        let discoverer = discoverer(&server);
        let first = cluster(Discovery::StrictDns(options(20)), vec![name()], None);
        discoverer.start(&first).unwrap().await.unwrap();
        server.say.lock().0 = gone;
        until("said so", || first.stats.update_empty().get() > 2).await;
        assert_eq!(labels(&first), ["10.0.0.1:80", "10.0.0.2:80"]);
        // So does a cluster that takes its place meanwhile, and one of which another cache knows nothing.
        let second = cluster(Discovery::StrictDns(options(20)), vec![name()], Some(&first));
        discoverer.start(&second).unwrap().await.unwrap();
        let third = cluster(Discovery::StrictDns(options(20)), vec![name()], Some(&first));
        self::discoverer(&server).start(&third).unwrap().await.unwrap();
        assert_eq!((labels(&second).len(), labels(&third).len()), (2, 2));
        server.say.lock().0 = Say::Addresses(vec!["10.0.0.3"], 1);
        until("back", || labels(&second) == ["10.0.0.3:80"]).await;
    }
}

#[tokio::test]
async fn lifetimes_set_the_pace_when_they_are_respected() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let respects = DnsOptions { respect_ttl: true, ..options(10) };
    let cluster = cluster(Discovery::StrictDns(respects), vec![name()], None);
    discoverer(&server).start(&cluster).unwrap().await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(server.asked(A), 1);
}

#[tokio::test]
async fn logical_dns_takes_one_address() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cluster = cluster(Discovery::LogicalDns(options(60_000)), vec![name()], None);
    discoverer(&server).start(&cluster).unwrap().await.unwrap();
    assert_eq!(labels(&cluster), ["10.0.0.1:80"]);
}

#[tokio::test]
async fn a_first_failure_ends_the_wait_and_keeps_an_older_clusters_endpoints() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let strict = || Discovery::StrictDns(options(60_000));
    let old = cluster(strict(), vec![name()], None);
    discoverer(&server).start(&old).unwrap().await.unwrap();
    server.say.lock().0 = SERVFAIL;
    let new = cluster(strict(), vec![name()], Some(&old));
    discoverer(&server).start(&new).unwrap().await.unwrap();
    assert_eq!(labels(&new), labels(&old));
    let id = |c: &Cluster| c.hosts.load().iter().map(|m| m.host.id).collect::<Vec<_>>();
    assert_eq!(id(&new), id(&old));
}

#[tokio::test]
async fn tasks_end_with_their_cluster() {
    let server = Server::start(v4(1), NXDOMAIN).await;
    let cluster = cluster(Discovery::StrictDns(options(10)), vec![name()], None);
    discoverer(&server).start(&cluster).unwrap().await.unwrap();
    drop(cluster);
    // A question may be under way yet.
    for left in (0..5).rev() {
        let asked = server.asked(A);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if server.asked(A) == asked {
            break;
        }
        assert!(left > 0, "it is asked for ever");
    }
    let fixed = self::cluster(Discovery::Static, vec![], None);
    assert!(discoverer(&server).start(&fixed).is_none());
}

/// Envoy's logical clusters keep their address whatever the servers say, and ask as after a failure.
#[tokio::test]
async fn a_logical_name_never_loses_its_address() {
    let server = Server { hold_empty: Duration::ZERO, ..Server::start(v4(1), NXDOMAIN).await };
    let failure = Some(DnsBackoff { base: Duration::from_millis(40), max: Duration::from_millis(40) });
    let options = DnsOptions { failure, ..options(20) };
    let cluster = cluster(Discovery::LogicalDns(options), vec![name()], None);
    discoverer(&server).start(&cluster).unwrap().await.unwrap();
    server.say.lock().0 = NXDOMAIN;
    until("said so", || cluster.stats.update_failure().get() > 3).await;
    assert_eq!((labels(&cluster), cluster.stats.update_empty().get()), (vec!["10.0.0.1:80".to_owned()], 0));
    server.say.lock().0 = Say::Addresses(vec!["10.0.0.3", "10.0.0.1"], 1);
    until("back", || labels(&cluster) == ["10.0.0.3:80"]).await;
}

/// Endpoints of names that answer do not wait for those that do not.
#[tokio::test]
async fn a_silent_name_of_a_cluster_does_not_hide_the_others() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cache = cache(ResolverConfig { timeout: Duration::from_secs(60), ..server.config() });
    let silent = HostConfig::new(Address::Name("silent.test.".into(), 80));
    let cluster = cluster(Discovery::StrictDns(options(60_000)), vec![silent, name()], None);
    let mut first = Discoverer::new(cache).start(&cluster).unwrap();
    until("the other", || labels(&cluster).len() == 2).await;
    first.try_recv().unwrap_err();
}
