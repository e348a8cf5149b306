#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use parking_lot::Mutex;
use sixfold_core::cluster::{
    Address, BalanceConfig, BreakerLimits, Cluster, ClusterConfig, Discovery, DnsOptions, HostConfig,
    Http1Options, Http2Options, UpstreamProtocol,
};
use sixfold_core::headers::HeaderRules;
use sixfold_core::message::Scheme;
use sixfold_core::metrics::Registry;
use std::sync::Arc;
use tokio::net::UdpSocket;

/// What the server says to one kind of question.
#[derive(Clone)]
enum Say {
    Addresses(Vec<&'static str>, u32),
    Code(u8),
    Nothing,
}

/// A DNS server on loopback with hand-written answers.
struct Server {
    address: SocketAddr,
    hold_empty: Duration,
    say: Arc<Mutex<(Say, Say)>>,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

const A: u16 = 1;
const AAAA: u16 = 28;

impl Server {
    async fn start(v4: Say, v6: Say) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let say = Arc::new(Mutex::new((v4, v6)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (said, log) = (say.clone(), asked.clone());
        tokio::spawn(async move {
            let mut buf = [0; 1500];
            while let Ok((len, from)) = socket.recv_from(&mut buf).await {
                let (name, kind, end) = question(&buf[..len]);
                log.lock().push((name, kind));
                let say = if kind == A { said.lock().0.clone() } else { said.lock().1.clone() };
                if let Some(answer) = answer(&buf[..end], kind, &say) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Server { address, hold_empty: Duration::from_secs(3600), say, asked }
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(ResolverConfig {
            servers: vec![self.address],
            timeout: Duration::from_millis(300),
            attempts: 0,
            hold_empty: self.hold_empty,
            hosts_file: None,
            ..ResolverConfig::default()
        })
        .unwrap()
    }

    fn asked(&self, kind: u16) -> usize {
        self.asked.lock().iter().filter(|(_, k)| *k == kind).count()
    }
}

fn question(packet: &[u8]) -> (String, u16, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while packet[at] != 0 {
        let len = packet[at] as usize;
        labels.push(String::from_utf8_lossy(&packet[at + 1..at + 1 + len]).into_owned());
        at += 1 + len;
    }
    (labels.join("."), u16::from_be_bytes([packet[at + 1], packet[at + 2]]), at + 5)
}

/// Header and question come back; answers point at the question's name.
fn answer(question: &[u8], kind: u16, say: &Say) -> Option<Vec<u8>> {
    let (code, addresses, ttl) = match say {
        Say::Nothing => return None,
        Say::Code(code) => (*code, vec![], 0),
        Say::Addresses(addresses, ttl) => (0, addresses.clone(), *ttl),
    };
    let mut out = question.to_vec();
    out[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        let data = match address.parse::<IpAddr>().unwrap() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        out.extend([0xC0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|s| s.parse().unwrap()).collect()
}

const NXDOMAIN: Say = Say::Code(3);
const SERVFAIL: Say = Say::Code(2);

fn v4(ttl: u32) -> Say {
    Say::Addresses(vec!["10.0.0.1", "10.0.0.2"], ttl)
}

fn v6() -> Say {
    Say::Addresses(vec!["fd00::1"], 7)
}

#[tokio::test]
async fn families_are_asked_as_they_are_wanted() {
    let both = Server::start(v4(9), v6()).await;
    let only4 = Server::start(v4(9), NXDOMAIN).await;
    let v4_broken = Server::start(SERVFAIL, v6()).await;
    for (server, family, expected) in [
        (&both, DnsFamily::Auto, ips(&["fd00::1"])),
        (&both, DnsFamily::V4Preferred, ips(&["10.0.0.1", "10.0.0.2"])),
        (&both, DnsFamily::V4Only, ips(&["10.0.0.1", "10.0.0.2"])),
        (&both, DnsFamily::V6Only, ips(&["fd00::1"])),
        (&both, DnsFamily::All, ips(&["10.0.0.1", "10.0.0.2", "fd00::1"])),
        (&only4, DnsFamily::Auto, ips(&["10.0.0.1", "10.0.0.2"])),
        (&only4, DnsFamily::V6Only, vec![]),
        (&v4_broken, DnsFamily::V4Preferred, ips(&["fd00::1"])),
        (&v4_broken, DnsFamily::All, ips(&["fd00::1"])),
    ] {
        let answer = server.resolver().resolve("a.test.", family).await.unwrap();
        assert_eq!(answer.addresses, expected, "{family:?}");
    }
    assert_eq!(only4.asked.lock()[0], ("a.test".to_owned(), AAAA));
}

#[tokio::test]
async fn lifetimes_are_kept_within_bounds() {
    for (ttl, seconds) in [(0, 1), (9, 9), (1_000_000, 86_400)] {
        let server = Server::start(v4(ttl), NXDOMAIN).await;
        let answer = server.resolver().resolve("a.test.", DnsFamily::V4Only).await.unwrap();
        assert_eq!(answer.ttl, Duration::from_secs(seconds));
    }
}

#[tokio::test]
async fn a_missing_name_is_an_answer_and_a_failure_is_not() {
    let missing = Server::start(NXDOMAIN, NXDOMAIN).await;
    assert!(missing.resolver().resolve("a.test.", DnsFamily::All).await.unwrap().addresses.is_empty());
    let empty = Server::start(Say::Addresses(vec![], 0), NXDOMAIN).await;
    assert!(empty.resolver().resolve("a.test.", DnsFamily::V4Only).await.unwrap().addresses.is_empty());
    for say in [SERVFAIL, Say::Nothing] {
        let server = Server::start(say, NXDOMAIN).await;
        let error = server.resolver().resolve("a.test.", DnsFamily::V4Preferred).await.unwrap_err();
        assert!(matches!(&error, DnsError::Failed { name, .. } if name == "a.test."), "{error}");
    }
}

#[tokio::test]
async fn addresses_and_the_hosts_file_need_no_server() {
    let server = Server::start(v4(9), v6()).await;
    let dir =
        std::env::temp_dir().join(format!("sixfold-hosts-{}-{}", std::process::id(), server.address.port()));
    std::fs::write(&dir, "192.0.2.7 Known.test\n").unwrap();
    let config = ResolverConfig {
        servers: vec![server.address],
        hosts_file: Some(dir.clone()),
        ..ResolverConfig::default()
    };
    let resolver = Resolver::new(config).unwrap();
    for (name, family, expected) in [
        ("192.0.2.1", DnsFamily::Auto, ips(&["192.0.2.1"])),
        ("[fd00::9]", DnsFamily::V4Only, ips(&["fd00::9"])),
        ("known.test", DnsFamily::V4Preferred, ips(&["192.0.2.7"])),
        ("KNOWN.test.", DnsFamily::Auto, ips(&["192.0.2.7"])),
    ] {
        assert_eq!(resolver.resolve(name, family).await.unwrap().addresses, expected, "{name}");
    }
    assert!(server.asked.lock().is_empty());
    std::fs::remove_file(dir).unwrap();
}

fn cluster(discovery: Discovery, endpoints: Vec<HostConfig>, previous: Option<&Cluster>) -> Arc<Cluster> {
    let config = ClusterConfig {
        name: "dns".into(),
        observability_name: "dns".into(),
        discovery,
        connect_timeout: Duration::from_secs(5),
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        header_rules: HeaderRules::ENVOY,
        tls: None,
        scheme: Scheme::Http,
        idle_timeout: None,
        max_connection_duration: None,
        max_stream_duration: None,
        max_requests_per_connection: None,
        max_idle: 8,
        breaker: BreakerLimits::default(),
        high_breaker: BreakerLimits::default(),
        retry: None,
        buffer_limit: 1 << 20,
        balance: BalanceConfig::default(),
        source_address: None,
        tcp_keepalive: None,
        metadata: serde_json::Map::new(),
        statistics: true,
        drop_overload: 0,
        added_via_api: false,
        labels: std::collections::BTreeMap::new(),
    };
    Cluster::new(config, endpoints, previous, &Registry::new()).unwrap()
}

fn name() -> HostConfig {
    HostConfig { weight: 3, ..HostConfig::new(Address::Name("a.test.".into(), 80)) }
}

fn options(refresh_ms: u64) -> DnsOptions {
    DnsOptions { refresh: Duration::from_millis(refresh_ms), respect_ttl: false, family: DnsFamily::V4Only }
}

fn labels(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.load().iter().map(|m| m.host.label.to_string()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn discoverer(server: &Server) -> Discoverer {
    Discoverer::new(Arc::new(server.resolver()), tokio::runtime::Handle::current())
}

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
        let first = cluster(Discovery::StrictDns(options(20)), vec![name()], None);
        discoverer(&server).start(&first).unwrap().await.unwrap();
        server.say.lock().0 = gone;
        until("said so", || first.stats.update_empty().get() > 2).await;
        assert_eq!(labels(&first), ["10.0.0.1:80", "10.0.0.2:80"]);
        // So does a cluster that takes its place meanwhile.
        let second = cluster(Discovery::StrictDns(options(20)), vec![name()], Some(&first));
        discoverer(&server).start(&second).unwrap().await.unwrap();
        assert_eq!(labels(&second).len(), 2);
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
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = server.asked(A);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.asked(A), asked);
    let fixed = self::cluster(Discovery::Static, vec![], None);
    assert!(discoverer(&server).start(&fixed).is_none());
}
