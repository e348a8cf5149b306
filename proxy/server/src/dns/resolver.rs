//! Asks servers.

use super::files::Names;
use super::{DnsError, Question, ResolverConfig};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as Refused, NetError};
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::rr::{Label, Name, RData, RecordType};
use sixfold_core::cluster::{DnsFamily, DnsServers};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Questions in their turn at once for names that configuration brings, of each [`Standing`]; and as many that have
/// had it and go on.
const CONFIGURED: usize = 128;
/// The same for names that requests bring: clients can't hold up the others.
const ON_DEMAND: usize = 32;
/// Bounds one question, however many servers and search domains there are to be tried.
const LONGEST: Duration = Duration::from_secs(30);

/// What the last question said of a name; of each there may be so many questions at once, so that names nobody
/// answers for hold up no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Configuration names it, and it was answered for.
    Proven,
    /// Configuration names it. It is new, or nobody answered.
    Unproven,
    /// A request has brought it.
    OnDemand,
}

/// What hickory takes from the system: servers with search domains, and options.
pub(super) type System = (hickory_resolver::config::ResolverConfig, ResolverOpts);

/// Asks one set of servers. It keeps no answers.
pub(super) struct Resolver {
    proven: Lane,
    unproven: Lane,
    on_demand: Lane,
    /// See [`ResolverConfig::turn`].
    turn: Duration,
    bounds: Bounds,
}

/// Names of one standing. They have connections of their own: hickory asks by whichever it has, though another name has
/// opened it, and a server may answer over UDP and hang over TCP, which an answer that was cut off leads to.
struct Lane {
    inner: TokioResolver,
    turns: Semaphore,
    /// Of questions whose turn is over and that have no answer yet: a crowd of dead names takes none of the others'.
    late: Semaphore,
}

/// How long answers are good for.
#[derive(Clone, Copy)]
struct Bounds {
    min_ttl: Duration,
    max_ttl: Duration,
    hold_empty: Duration,
}

/// What was said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// In the server's order.
    pub(super) addresses: Vec<IpAddr>,
    /// How long that is good for; `None` where the server says for once only.
    pub(super) ttl: Option<Duration>,
}

impl Resolver {
    /// Asks `servers`, else those of `config`, else the system's.
    pub(super) fn new(
        config: &ResolverConfig,
        servers: Option<&DnsServers>,
        system: &System,
    ) -> Result<Resolver, NetError> {
        let (system, mut options) = (system.0.clone(), system.1.clone());
        let tcp_only = servers.is_some_and(|servers| servers.tcp_only);
        let own: &[SocketAddr] = match servers {
            Some(servers) if servers.fallback && !system.name_servers().is_empty() => &[],
            Some(servers) => &servers.addresses,
            None => &config.servers,
        };
        let (domain, search, found) = system.into_parts();
        let asked = match own.is_empty() {
            true => found.into_iter().map(|server| over(server, tcp_only)).collect(),
            false => own.iter().map(|address| name_server(*address, tcp_only)).collect(),
        };
        let completes = servers.map_or(config.search, |servers| servers.search);
        let (domain, search) = if completes { (domain, search) } else { (None, Vec::new()) };
        let asked = hickory_resolver::config::ResolverConfig::from_parts(domain, search, asked);
        options.timeout = servers.and_then(|servers| servers.timeout).unwrap_or(config.timeout);
        let tries = servers.and_then(|servers| servers.tries);
        options.attempts = tries.map_or(config.attempts, |tries| tries.saturating_sub(1) as usize);
        if servers.is_some_and(|servers| servers.rotate) {
            options.server_ordering_strategy = ServerOrderingStrategy::RoundRobin;
        }
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let lane = |turns| {
            let provider = TokioRuntimeProvider::default();
            let builder = TokioResolver::builder_with_config(asked.clone(), provider);
            let inner = builder.with_options(options.clone()).build()?;
            Ok::<_, NetError>(Lane { inner, turns: Semaphore::new(turns), late: Semaphore::new(turns) })
        };
        Ok(Resolver {
            proven: lane(CONFIGURED)?,
            unproven: lane(CONFIGURED)?,
            on_demand: lane(ON_DEMAND)?,
            turn: config.turn,
            bounds: Bounds {
                min_ttl: config.min_ttl,
                max_ttl: config.max_ttl.max(config.min_ttl),
                hold_empty: config.hold_empty.max(config.min_ttl),
            },
        })
    }

    /// The addresses of a name, from the hosts file or a server. Runs on the cache's own runtime: hickory leaves
    /// tasks there that later questions need.
    pub(super) async fn resolve(
        &self,
        question: &Question,
        standing: Standing,
        hosts: &Names,
    ) -> Result<Said, DnsError> {
        let Question { name, family, .. } = question;
        if let Some(address) = question.literal() {
            return Ok(Said { addresses: vec![address], ttl: Some(self.bounds.max_ttl) });
        }
        if let Some(known) = hosts.get(name.trim_end_matches('.')) {
            return Ok(Said { addresses: of_family(known, *family), ttl: Some(self.bounds.max_ttl) });
        }
        let failed = |reason: String| DnsError::Failed { name: name.clone(), reason };
        let asked = encode(name).map_err(|error| failed(error.to_string()))?;
        let lane = match standing {
            Standing::Proven => &self.proven,
            Standing::Unproven => &self.unproven,
            Standing::OnDemand => &self.on_demand,
        };
        let asking = self.ask_for(&lane.inner, &asked, *family);
        self.in_turn(lane, asking).await.map_err(failed)
    }

    /// Asks when it is the question's turn. Whoever has had it without an answer gives it to another, and goes on aside
    /// as long as there is room: a server that is slow is waited for, and a crowd of names for which nobody answers
    /// holds up the next one for a turn and not for [`LONGEST`].
    async fn in_turn(
        &self,
        lane: &Lane,
        asking: impl Future<Output = Result<Said, NetError>>,
    ) -> Result<Said, String> {
        // They are never closed.
        let turn = lane.turns.acquire().await;
        let mut asking = pin!(asking);
        if let Ok(said) = timeout(self.turn, &mut asking).await {
            return said.map_err(|error| error.to_string());
        }
        let _aside = lane.late.try_acquire().map_err(|_| {
            format!("no answer in {} ms, and as many as may be waited for longer are", self.turn.as_millis())
        })?;
        drop(turn);
        match timeout(LONGEST.saturating_sub(self.turn), asking).await {
            Ok(said) => said.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {} s", LONGEST.as_secs())),
        }
    }

    async fn ask_for(&self, inner: &TokioResolver, name: &Name, family: DnsFamily) -> Result<Said, NetError> {
        let v4 = || self.ask(inner, name, RecordType::A);
        let v6 = || self.ask(inner, name, RecordType::AAAA);
        match family {
            DnsFamily::V4Only => v4().await,
            DnsFamily::V6Only => v6().await,
            DnsFamily::Auto => first(v6().await, v4).await,
            DnsFamily::V4Preferred => first(v4().await, v6).await,
            DnsFamily::All => {
                let (v4, v6) = futures_util::future::join(v4(), v6()).await;
                both(v4, v6)
            }
        }
    }

    async fn ask(&self, inner: &TokioResolver, name: &Name, kind: RecordType) -> Result<Said, NetError> {
        match inner.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::A(a) => Some((IpAddr::V4(a.0), record.ttl)),
                    RData::AAAA(a) => Some((IpAddr::V6(a.0), record.ttl)),
                    _ => None,
                });
                let (addresses, ttls): (Vec<_>, Vec<_>) = records.unzip();
                Ok(Said { addresses, ttl: self.bounds.lifetime(ttls.into_iter().min().unwrap_or(0)) })
            }
            Err(NetError::Dns(Refused::NoRecordsFound(none))) => {
                Ok(Said { addresses: Vec::new(), ttl: Some(self.bounds.of_nothing(none.negative_ttl)) })
            }
            Err(e) => Err(e),
        }
    }
}

/// A name as it is asked for: the bytes of each label as they are, as c-ares and nginx send them; names of hosts that
/// RFC 952 does not allow are usual (`web_service` of docker-compose). Other letters than ASCII's go by IDNA.
fn encode(name: &str) -> Result<Name, ProtoError> {
    let (labels, whole) = match name.strip_suffix('.') {
        Some(labels) => (labels, true),
        None => (name, false),
    };
    let label = |text: &str| match text.is_ascii() {
        true => Label::from_raw_bytes(text.as_bytes()),
        false => Label::from_utf8(text),
    };
    let mut encoded = Name::from_labels(labels.split('.').map(label).collect::<Result<Vec<_>, _>>()?)?;
    encoded.set_fqdn(whole);
    Ok(encoded)
}

impl Bounds {
    /// 0 is no lifetime at all, unless all have the same.
    fn lifetime(self, ttl: u32) -> Option<Duration> {
        let within = Duration::from_secs(u64::from(ttl)).clamp(self.min_ttl, self.max_ttl);
        (ttl > 0 || self.min_ttl == self.max_ttl).then_some(within)
    }

    /// What RFC 2308 says, but not beyond the time that a name without addresses is not believed.
    fn of_nothing(self, ttl: Option<u32>) -> Duration {
        Duration::from_secs(u64::from(ttl.unwrap_or(0))).clamp(self.min_ttl, self.hold_empty)
    }
}

fn name_server(address: SocketAddr, tcp_only: bool) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    over(NameServerConfig::new(address.ip(), true, connections.into()), tcp_only)
}

fn over(mut server: NameServerConfig, tcp_only: bool) -> NameServerConfig {
    if tcp_only {
        server.connections.retain(|connection| matches!(connection.protocol, ProtocolConfig::Tcp));
    }
    server
}

/// Addresses of the hosts file as a server's would be taken.
fn of_family(known: &[IpAddr], family: DnsFamily) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = known.iter().partition(|address| address.is_ipv4());
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::Auto => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
        DnsFamily::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        DnsFamily::All => [v4, v6].concat(),
    }
}

/// The preferred family's answer, or the other one's when it is empty or failed.
async fn first<F>(preferred: Result<Said, NetError>, other: impl FnOnce() -> F) -> Result<Said, NetError>
where
    F: Future<Output = Result<Said, NetError>>,
{
    match preferred {
        Ok(said) if !said.addresses.is_empty() => Ok(said),
        Ok(_) => other().await,
        // Nothing of the other family does not say that the name has no address.
        Err(e) => other().await.ok().filter(|a| !a.addresses.is_empty()).ok_or(e),
    }
}

fn both(v4: Result<Said, NetError>, v6: Result<Said, NetError>) -> Result<Said, NetError> {
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.ttl = match (v4.addresses.is_empty(), v6.addresses.is_empty()) {
                (false, true) => v4.ttl,
                (true, false) => v6.ttl,
                _ => v4.ttl.min(v6.ttl),
            };
            v4.addresses.extend(v6.addresses);
            Ok(v4)
        }
        (Ok(one), Err(e)) | (Err(e), Ok(one)) => {
            if one.addresses.is_empty() {
                Err(e)
            } else {
                Ok(one)
            }
        }
        (Err(e), Err(_)) => Err(e),
    }
}
