//! What is shared, and what is bounded.
use super::*;
use tokio::io::AsyncReadExt;

/// Each asked by itself: so many questions in every lifetime of the record.
#[tokio::test]
async fn clusters_with_one_name_ask_once() {
    const CLUSTERS: usize = 300;
    let server = Server::start(v4(60), NXDOMAIN).await;
    let discoverer = discoverer(&server);
    let strict = |refresh| Discovery::StrictDns(options(refresh));
    let new = |_| {
        let cluster = cluster(strict(60_000), vec![name()], None);
        (discoverer.start(&cluster).unwrap(), cluster)
    };
    let (firsts, clusters): (Vec<_>, Vec<_>) = (0..CLUSTERS).map(new).unzip();
    for first in firsts {
        first.await.unwrap();
    }
    assert!(clusters.iter().all(|cluster| labels(cluster) == ["10.0.0.1:80", "10.0.0.2:80"]));
    assert_eq!(server.asked(A), 1);
    // What is known needs no question, and it is there at once.
    let late = cluster(strict(60_000), vec![name()], None);
    let mut first = discoverer.start(&late).unwrap();
    assert_eq!((labels(&late).len(), first.try_recv(), server.asked(A)), (2, Ok(()), 1));
    // The shortest interval that anybody wants counts, and all hear of what it brings.
    server.say.lock().0 = Say::Addresses(vec!["10.0.0.7"], 60);
    let hurried = cluster(strict(20), vec![name()], None);
    discoverer.start(&hurried).unwrap().await.unwrap();
    until("told all", || clusters.iter().all(|cluster| labels(cluster) == ["10.0.0.7:80"])).await;
    let counts =
        |cluster: &Cluster| (cluster.stats.update_attempt().get(), cluster.stats.update_success().get());
    until("counted", || counts(&clusters[0]).1 > 1).await;
    drop(hurried);
    // Every look-up counts for every cluster.
    let (attempts, successes) = counts(&clusters[0]);
    assert!(attempts >= successes && (successes as usize) < CLUSTERS, "{attempts} {successes}");
    // Another family, other servers: other questions.
    let asked = server.asked(A);
    let servers = Arc::new(DnsServers { addresses: vec![server.address], ..DnsServers::default() });
    for different in [
        DnsOptions { family: DnsFamily::All, ..options(60_000) },
        DnsOptions { servers: Some(servers), ..options(60_000) },
    ] {
        let cluster = cluster(Discovery::StrictDns(different), vec![name()], None);
        discoverer.start(&cluster).unwrap().await.unwrap();
    }
    assert!(server.asked(A) >= asked + 2);
}

#[tokio::test]
async fn look_ups_share_a_question_and_its_answer() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cache = server.cache();
    let question = asks("a.test.", DnsFamily::V4Only);
    let all = (0..100).map(|_| cache.look_up(&question));
    let answers = futures_util::future::join_all(all).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().addresses.len() == 2));
    cache.look_up(&asks("A.TEST.", DnsFamily::V4Only)).await.unwrap();
    assert_eq!((server.asked(A), cache.0.known()), (1, (1, 1)));
    // A cluster that comes needs none.
    let cluster = cluster(Discovery::StrictDns(options(60_000)), vec![name()], None);
    Discoverer::new(cache.clone()).start(&cluster).unwrap().await.unwrap();
    assert_eq!((labels(&cluster).len(), server.asked(A), cache.0.known()), (2, 1, (1, 0)));
}

#[tokio::test]
async fn failures_are_remembered_for_a_moment_too() {
    // A time that no clock can tell was a panic, and nobody asked again.
    for (say, min_ttl) in [(SERVFAIL, Duration::from_secs(60)), (NXDOMAIN, Duration::MAX)] {
        let server = Server::start(say, NXDOMAIN).await;
        let config = ResolverConfig { min_ttl, ..server.config() };
        let cache = cache(config);
        let question = asks("a.test.", DnsFamily::V4Only);
        let first = cache.look_up(&question).await.map(|answer| answer.addresses.len());
        let asked = server.asked(A);
        let second = cache.look_up(&question).await.map(|answer| answer.addresses.len());
        assert_eq!((&first, server.asked(A)), (&second, asked));
    }
}

/// Names that requests bring are the clients' to choose.
#[tokio::test]
async fn names_on_demand_are_bounded_and_forgotten() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cache = server.cache();
    let known = cluster(Discovery::StrictDns(options(60_000)), vec![name()], None);
    Discoverer::new(cache.clone()).start(&known).unwrap().await.unwrap();
    for nth in 0..1100 {
        cache.look_up(&asks(&format!("n{nth}.test."), DnsFamily::V4Only)).await.unwrap();
    }
    assert_eq!(cache.0.known(), (1025, 1024));
    let asked = server.asked(A);
    cache.look_up(&asks("n1099.test.", DnsFamily::V4Only)).await.unwrap();
    assert_eq!(server.asked(A), asked, "the youngest are kept");
    cache.look_up(&asks("n0.test.", DnsFamily::V4Only)).await.unwrap();
    assert_eq!(server.asked(A), asked + 1);

    let brief = Server::start(v4(1), NXDOMAIN).await.cache();
    drop(brief.look_up(&asks("a.test.", DnsFamily::V4Only)).await);
    until("forgotten", || brief.0.known() == (0, 0)).await;
}

#[tokio::test]
async fn silent_names_of_clients_hold_up_nobody_else() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cache = cache(slow(&server));
    let asking: Vec<_> = (0..1024)
        .map(|nth| {
            let cache = cache.clone();
            let question = asks(&format!("silent{nth}.test."), DnsFamily::V4Only);
            tokio::spawn(async move { cache.look_up(&question).await })
        })
        .collect();
    until("as many as may", || server.asked(A) == 32).await;
    // All places for such names are taken by those that are being asked for.
    let error = cache.look_up(&asks("other.test.", DnsFamily::V4Only)).await.unwrap_err();
    assert_eq!(error, DnsError::Busy("other.test.".into()));
    let cluster = cluster(Discovery::StrictDns(options(60_000)), vec![name()], None);
    Discoverer::new(cache.clone()).start(&cluster).unwrap().await.unwrap();
    assert_eq!((labels(&cluster).len(), server.asked(A)), (2, 33));
    asking.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Its servers are waited for, and nobody's turn ends.
fn slow(server: &Server) -> ResolverConfig {
    let long = Duration::from_secs(60);
    ResolverConfig { timeout: long, turn: long, ..server.config() }
}

/// A cluster of so many names that nobody answers for.
fn silent(names: usize) -> Arc<Cluster> {
    let named = |nth: usize| HostConfig::new(Address::Name(format!("silent{nth}.test."), 80));
    cluster(Discovery::StrictDns(options(20)), (0..names).map(named).collect(), None)
}

#[tokio::test]
async fn questions_for_clusters_are_bounded() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cluster = silent(400);
    let _first = Discoverer::new(cache(slow(&server))).start(&cluster).unwrap();
    until("as many as may", || server.asked(A) == 128).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.asked(A), 128);
}

/// They shared their places with those that answer, and each kept one for 30 s: a name that answers was asked for
/// again, or for the first time, when all before it had given up.
#[tokio::test]
async fn silent_names_of_clusters_hold_up_nobody_else() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let turn = Duration::from_millis(20);
    let discoverer =
        Discoverer::new(cache(ResolverConfig { timeout: Duration::from_secs(60), turn, ..server.config() }));
    let good = cluster(Discovery::StrictDns(options(20)), vec![name()], None);
    discoverer.start(&good).unwrap().await.unwrap();
    let silent = silent(600);
    let _first = discoverer.start(&silent).unwrap();
    let seen = |name: &str| server.asked.lock().iter().filter(|(asked, _)| asked.starts_with(name)).count();
    // None gives up in less than 30 s while there is room for it.
    until("all are asked for", || seen("silent") >= 600).await;
    let before = seen("a.test");
    until("it is asked for as if they were not there", || seen("a.test") > before + 10).await;
    let other = HostConfig::new(Address::Name("b.test.".into(), 80));
    let late = cluster(Discovery::StrictDns(options(20)), vec![other], None);
    let _first = discoverer.start(&late).unwrap();
    // On a busy machine an answer may take longer than such a turn.
    until("a new name is answered", || labels(&late).len() == 2).await;
}

/// An answer that is cut off is asked for over TCP, and whoever asked next asked by that connection as well, though the
/// server never answers there.
#[tokio::test]
async fn a_server_that_hangs_over_tcp_is_asked_over_udp_for_names_that_answer() {
    // Somebody else may have the port over TCP.
    let (server, listener) = loop {
        let server = Server::start(v4(60), NXDOMAIN).await;
        if let Ok(listener) = tokio::net::TcpListener::bind(server.address).await {
            break (server, listener);
        }
    };
    let over_tcp = Arc::new(Mutex::new(Vec::new()));
    let heard = over_tcp.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 1500];
                while let Ok(len @ 1..) = stream.read(&mut bytes).await {
                    heard.lock().push(String::from_utf8_lossy(&bytes[..len]).into_owned());
                }
            });
        }
    });
    let config = ResolverConfig { timeout: Duration::from_secs(2), ..server.config() };
    let discoverer = Discoverer::new(cache(config));
    let asked = |name: &str| server.asked.lock().iter().filter(|(asked, _)| asked.starts_with(name)).count();
    let good = cluster(Discovery::StrictDns(options(5)), vec![name()], None);
    discoverer.start(&good).unwrap().await.unwrap();
    let silent = silent(20);
    let _first = discoverer.start(&silent).unwrap();
    until("silent", || asked("silent") == 20).await;
    // When these are given up, their connection over UDP is no more; the one over TCP outlives it by a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cut = HostConfig::new(Address::Name("cut.test.".into(), 80));
    let cut = cluster(Discovery::StrictDns(options(5)), vec![cut], None);
    let _first = discoverer.start(&cut).unwrap();
    until("asked over TCP", || over_tcp.lock().iter().any(|asked| asked.contains("cut"))).await;
    until("given up and asked again", || asked("silent") >= 40).await;
    let before = asked("a.test");
    until("asked as ever", || asked("a.test") > before + 10).await;
    assert!(!over_tcp.lock().iter().any(|asked| asked.contains("\u{1}a\u{4}test")));
}

/// A server that takes longer than a turn is waited for.
#[tokio::test]
async fn a_late_answer_counts() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    server.say.lock().0 = Say::Nothing;
    let config = ResolverConfig {
        timeout: Duration::from_millis(100),
        attempts: 100,
        turn: Duration::from_millis(1),
        ..server.config()
    };
    let answers = cache(config);
    let question = asks("a.test.", DnsFamily::V4Only);
    let asking = tokio::spawn(async move { answers.look_up(&question).await });
    until("asked more than once", || server.asked(A) > 1).await;
    server.say.lock().0 = v4(60);
    assert_eq!(asking.await.unwrap().unwrap().addresses.len(), 2);
}

/// Its lifetime is a day: the file could say what it liked.
#[tokio::test]
async fn a_changed_hosts_file_counts_at_once() {
    let server = Server::start(v4(60), NXDOMAIN).await;
    let cache = server.cache();
    let respects = DnsOptions { respect_ttl: true, ..options(60_000) };
    let cluster = cluster(Discovery::StrictDns(respects), vec![name()], None);
    cache.0.set_hosts(files::names(b"192.0.2.1 a.test"));
    Discoverer::new(cache.clone()).start(&cluster).unwrap().await.unwrap();
    assert_eq!(labels(&cluster), ["192.0.2.1:80"]);
    cache.0.set_hosts(files::names(b"192.0.2.1 a.test\n192.0.2.2 A.test b"));
    until("another", || labels(&cluster) == ["192.0.2.1:80", "192.0.2.2:80"]).await;
    assert_eq!(server.asked(A), 0);
    cache.0.set_hosts(files::names(b""));
    until("the server's", || labels(&cluster) == ["10.0.0.1:80", "10.0.0.2:80"]).await;
}

/// The servers of the start were asked for ever.
#[tokio::test]
async fn the_systems_servers_may_change() {
    let (first, second) = (Server::start(SERVFAIL, NXDOMAIN).await, Server::start(v4(60), NXDOMAIN).await);
    let system = |server: &Server| {
        let mut udp = hickory_resolver::config::ConnectionConfig::udp();
        udp.port = server.address.port();
        let ip = server.address.ip();
        let server = hickory_resolver::config::NameServerConfig::new(ip, true, vec![udp]);
        let servers = hickory_resolver::config::ResolverConfig::from_parts(None, vec![], vec![server]);
        (servers, hickory_resolver::config::ResolverOpts::default())
    };
    let cache = cache(ResolverConfig { servers: vec![], ..first.config() });
    cache.0.set_system(system(&first));
    let cluster = cluster(Discovery::StrictDns(options(60_000)), vec![name()], None);
    Discoverer::new(cache.clone()).start(&cluster).unwrap().await.unwrap();
    assert_eq!((labels(&cluster).len(), second.asked(A)), (0, 0));
    cache.0.set_system(system(&second));
    until("asked the new ones", || labels(&cluster).len() == 2).await;
}
