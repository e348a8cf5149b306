#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

mod cache;
mod clusters;
mod resolver;

use parking_lot::Mutex;
use sixfold_core::cluster::{Address, Cluster, ClusterConfig, Discovery, DnsBackoff, DnsOptions, HostConfig};
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
                log.lock().push((name.clone(), kind));
                let say = if kind == A { said.lock().0.clone() } else { said.lock().1.clone() };
                if !name.starts_with("silent")
                    && let Some(answer) = answer(&buf[..end], kind, &say)
                {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Server { address, hold_empty: Duration::from_secs(3600), say, asked }
    }

    fn config(&self) -> ResolverConfig {
        ResolverConfig {
            servers: vec![self.address],
            // Whoever is to give up sooner says so.
            timeout: Duration::from_secs(3),
            attempts: 0,
            hold_empty: self.hold_empty,
            hosts_file: None,
            ..ResolverConfig::default()
        }
    }

    fn cache(&self) -> DnsCache {
        cache(self.config())
    }

    fn asked(&self, kind: u16) -> usize {
        self.asked.lock().iter().filter(|(_, k)| *k == kind).count()
    }
}

fn cache(config: ResolverConfig) -> DnsCache {
    DnsCache::on(tokio::runtime::Handle::current(), config, None)
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
    // `cut` is too long for UDP.
    let cut = if question[12..].starts_with(b"\x03cut") { 0x83 } else { 0x81 };
    out[2..12].copy_from_slice(&[cut, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
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

fn asks(name: &str, family: DnsFamily) -> Question {
    Question::new(name, family, None)
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

fn cluster(discovery: Discovery, endpoints: Vec<HostConfig>, previous: Option<&Cluster>) -> Arc<Cluster> {
    let mut config = ClusterConfig::named("dns");
    config.discovery = discovery;
    Cluster::new(config, endpoints, previous, &Registry::new()).unwrap()
}

fn name() -> HostConfig {
    HostConfig { weight: 3, ..HostConfig::new(Address::Name("a.test.".into(), 80)) }
}

fn options(refresh_ms: u64) -> DnsOptions {
    DnsOptions {
        refresh: Duration::from_millis(refresh_ms),
        family: DnsFamily::V4Only,
        ..DnsOptions::default()
    }
}

fn labels(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.load().iter().map(|m| m.host.label.to_string()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    // A busy machine takes many times what a quiet one does.
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn discoverer(server: &Server) -> Discoverer {
    Discoverer::new(server.cache())
}
