//! Clusters for the hosts of free URIs: as many as fit a bound, the one used longest ago makes room.

use super::trust::Trust;
use super::{failed, unaskable};
use crate::dns::{DnsCache, Question};
use parking_lot::Mutex;
use sixfold_core::cluster::{
    Address, BreakerLimits, Cluster, ClusterCell, ClusterConfig, ClusterPolicy, Clusters, DnsFamily,
    HostConfig,
};
use sixfold_core::hcm::Profile;
use sixfold_core::message::Scheme;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{CalloutError, CalloutRequest, ConnectRequest, Keepalive, VerifyTls};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Hosts that are remembered. A plugin's URI may hold variables, and so what a client sends.
const MAX_SERVICES: usize = 256;
/// Idle connections that nobody counts are few.
const NO_KEEPALIVE: Keepalive = Keepalive { idle: Duration::ZERO, connections: 0 };

/// Services that a worker finds again without asking the others.
const REMEMBERED: usize = 16;
/// How exactly it is known when a service was used.
const TICK: Duration = Duration::from_secs(1);

/// The clusters of free URIs.
pub(super) struct Services {
    /// Tells them from those of another `Services` in what a thread remembers.
    number: u64,
    born: Instant,
    dns: DnsCache,
    trust: Trust,
    /// Names of their own: nobody else's clusters are meant.
    clusters: Clusters,
    registry: Registry,
    known: Mutex<HashMap<Key, Arc<Service>>>,
    most: usize,
}

/// What makes a host of URIs a service of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    tls: bool,
    verify: bool,
    host: String,
    port: u16,
    keepalive: Option<(Duration, usize)>,
}

/// A [`Key`] as a request spells it.
pub(super) struct Asked<'a> {
    tls: bool,
    verify: bool,
    host: &'a str,
    port: u16,
    keepalive: Option<(Duration, usize)>,
}

struct Service {
    key: Key,
    cluster: Arc<Cluster>,
    cell: Arc<ClusterCell>,
    /// When it was asked for last, in microseconds since the birth of its `Services`: of those
    /// that were made in one burst too the oldest makes room.
    used: AtomicU64,
    /// Until when its addresses hold, in the same; 0 before it has any.
    fresh: AtomicU64,
    /// It made room for another.
    gone: AtomicBool,
}

thread_local! {
    /// Services that this thread asked last, the latest first: most plugins ask one or two, so that neither a lock nor
    /// a text is needed to find them.
    static RECENT: RefCell<Vec<(u64, Arc<Service>)>> = const { RefCell::new(Vec::new()) };
}

impl Services {
    pub(super) fn new(dns: DnsCache, trust: Trust) -> Services {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Services {
            number: NUMBER.fetch_add(1, Relaxed),
            born: Instant::now(),
            dns,
            trust,
            clusters: Clusters::default(),
            registry: Registry::new(),
            known: Mutex::default(),
            most: MAX_SERVICES,
        }
    }

    /// The cluster of a service, its addresses as fresh as DNS wants them.
    pub(super) async fn cluster(&self, asked: Asked<'_>) -> Result<Arc<Cluster>, CalloutError> {
        let now = Instant::now();
        let service = self.find(&asked, now)?;
        let cluster = &service.cluster;
        if self.since_birth(now) < service.fresh.load(Relaxed) {
            return Ok(cluster.clone());
        }
        let key = &service.key;
        let question = Question::new(&key.host, DnsFamily::V4Preferred, None);
        let until = match self.dns.look_up(&question).await {
            Ok(answer) if !answer.addresses.is_empty() => {
                let host = key.host.trim_start_matches('[').trim_end_matches(']');
                let endpoint = |ip| HostConfig {
                    hostname: host.into(),
                    ..HostConfig::new(Address::Ip(SocketAddr::new(ip, key.port)))
                };
                cluster.update_hosts(answer.addresses.iter().copied().map(endpoint).collect());
                answer.until.into_std()
            }
            // What is known serves on while nobody answers.
            Ok(_) | Err(_) if cluster.hosts.load().total() > 0 => now + Duration::from_secs(1),
            Ok(_) => return Err(failed(format_args!("'{}' has no address", key.host))),
            Err(error) => return Err(failed(error)),
        };
        service.fresh.store(self.since_birth(until), Relaxed);
        Ok(cluster.clone())
    }

    fn since_birth(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.born).as_micros()).unwrap_or(u64::MAX)
    }

    /// What is known of a service, or a new one.
    fn find(&self, asked: &Asked<'_>, now: Instant) -> Result<Arc<Service>, CalloutError> {
        let service = match self.recent(asked) {
            Some(service) => service,
            None => {
                let service = self.find_shared(asked)?;
                RECENT.with_borrow_mut(|recent| {
                    recent.retain(|(_, known)| !known.gone.load(Relaxed));
                    recent.truncate(REMEMBERED - 1);
                    recent.insert(0, (self.number, service.clone()));
                });
                service
            }
        };
        // All workers would write it for each request; nobody needs it that exactly.
        let now = self.since_birth(now);
        if now >= service.used.load(Relaxed) + TICK.as_micros() as u64 {
            service.used.store(now, Relaxed);
        }
        Ok(service)
    }

    /// One that this thread has asked lately, and that is still known.
    fn recent(&self, asked: &Asked<'_>) -> Option<Arc<Service>> {
        RECENT.with_borrow_mut(|recent| {
            let is_asked = |(of, service): &(u64, Arc<Service>)| *of == self.number && asked.is(&service.key);
            let at = recent.iter().position(is_asked)?;
            if recent.get(at)?.1.gone.load(Relaxed) {
                recent.remove(at);
                return None;
            }
            recent.get_mut(..=at)?.rotate_right(1);
            recent.first().map(|(_, service)| service.clone())
        })
    }

    fn find_shared(&self, asked: &Asked<'_>) -> Result<Arc<Service>, CalloutError> {
        let key = asked.key();
        let mut known = self.known.lock();
        if let Some(service) = known.get(&key) {
            return Ok(service.clone());
        }
        if known.len() >= self.most
            && let Some(oldest) =
                known.iter().min_by_key(|(_, s)| s.used.load(Relaxed)).map(|(key, _)| key.clone())
            && let Some(service) = known.remove(&oldest)
        {
            // Its endpoints leave, and so do their connections on every worker.
            service.gone.store(true, Relaxed);
            drop(service.cell.swap(None));
            self.clusters.sweep();
        }
        let config = key.config(&self.trust);
        let cell = self.clusters.cell(&config.name);
        let cluster = Cluster::new(config, Vec::new(), None, &self.registry).map_err(failed)?;
        cell.swap(Some(cluster.clone()));
        let used = AtomicU64::new(self.since_birth(Instant::now()));
        let (fresh, gone) = (AtomicU64::new(0), AtomicBool::new(false));
        let service = Arc::new(Service { key: key.clone(), cluster, cell, used, fresh, gone });
        known.insert(key, service.clone());
        Ok(service)
    }
}

impl Asked<'_> {
    /// The service of a request's URI.
    pub(super) fn of<'a>(request: &CalloutRequest, uri: &'a http::Uri) -> Result<Asked<'a>, CalloutError> {
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unaskable(format_args!("'{}' is neither http nor https", request.uri))),
        };
        let host = uri.host().ok_or_else(|| unaskable(format_args!("'{}' has no host", request.uri)))?;
        let keepalive = request.keepalive.map(|k| (k.idle, k.connections));
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Asked { tls, verify: request.verify_tls, host, port, keepalive })
    }

    /// A service that does not speak HTTP.
    pub(super) fn raw(request: ConnectRequest<'_>) -> Asked<'_> {
        let ConnectRequest { host, port, tls, timeout: _ } = request;
        Asked { tls: tls.is_some(), verify: tls == Some(VerifyTls::Yes), host, port, keepalive: None }
    }

    /// Whether it is that service.
    fn is(&self, key: &Key) -> bool {
        (self.tls, self.verify, self.port, self.keepalive) == (key.tls, key.verify, key.port, key.keepalive)
            && self.host.eq_ignore_ascii_case(&key.host)
    }

    fn key(&self) -> Key {
        let &Asked { tls, verify, host, port, keepalive } = self;
        Key { tls, verify, host: host.to_ascii_lowercase(), port, keepalive }
    }
}

impl Key {
    fn config(&self, trust: &Trust) -> ClusterConfig {
        let kept = self.keepalive.map_or(NO_KEEPALIVE, |(idle, connections)| Keepalive { idle, connections });
        let name = format!(
            "{}://{}:{} verify={} idle={:?} kept={}",
            if self.tls { "https" } else { "http" },
            self.host,
            self.port,
            self.verify,
            kept.idle,
            kept.connections,
        );
        let policy = ClusterPolicy {
            scheme: if self.tls { Scheme::Https } else { Scheme::Http },
            idle_timeout: Some(kept.idle),
            max_idle: kept.connections,
            breaker: BreakerLimits::UNLIMITED,
            high_breaker: BreakerLimits::UNLIMITED,
            statistics: false,
            // Envoy's configuration asks clusters alone.
            profile: Profile::Apisix,
            // Its request's own time is the bound.
            connect_timeout: Duration::from_secs(60),
            ..ClusterPolicy::default()
        };
        let tls = self.tls.then(|| trust.client(self.verify));
        ClusterConfig { tls, policy: policy.into(), ..ClusterConfig::named(&name) }
    }
}

#[cfg(test)]
impl Services {
    /// With another bound; and how many there are.
    pub(super) fn with_most(mut self, most: usize) -> Services {
        self.most = most;
        self
    }

    pub(super) fn count(&self) -> usize {
        self.known.lock().len()
    }

    /// As if all other workers were asking for new ones.
    pub(super) fn busy(&self) -> impl Sized + '_ {
        self.known.lock()
    }
}
