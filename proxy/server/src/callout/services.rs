//! Clusters for the hosts of free URIs: as many as fit a bound, the one used longest ago makes room.

use super::failed;
use super::trust::Trust;
use crate::dns::{DnsCache, Question};
use parking_lot::Mutex;
use sixfold_core::cluster::{
    Address, BreakerLimits, Cluster, ClusterCell, ClusterConfig, Clusters, DnsFamily, HostConfig,
};
use sixfold_core::message::Scheme;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{CalloutError, CalloutRequest, Keepalive};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hosts that are remembered. A plugin's URI may hold variables, and so what a client sends.
const MAX_SERVICES: usize = 256;
/// Idle connections that nobody counts are few.
const NO_KEEPALIVE: Keepalive = Keepalive { idle: Duration::ZERO, connections: 0 };

/// The clusters of free URIs.
pub(super) struct Services {
    dns: DnsCache,
    trust: Trust,
    /// Names of their own: nobody else's clusters are meant.
    clusters: Clusters,
    registry: Registry,
    known: Mutex<HashMap<Key, Service>>,
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

struct Service {
    cell: Arc<ClusterCell>,
    used: Instant,
    /// Until when its addresses hold.
    fresh: Option<Instant>,
}

impl Services {
    pub(super) fn new(dns: DnsCache, trust: Trust) -> Services {
        Services {
            dns,
            trust,
            clusters: Clusters::default(),
            registry: Registry::new(),
            known: Mutex::default(),
            most: MAX_SERVICES,
        }
    }

    /// The cluster of a request's URI, its addresses as fresh as DNS wants them.
    pub(super) async fn cluster(
        &self,
        request: &CalloutRequest,
        uri: &http::Uri,
    ) -> Result<Arc<Cluster>, CalloutError> {
        let key = Key::of(request, uri)?;
        let now = Instant::now();
        let (cluster, fresh) = self.find(&key, now)?;
        if fresh {
            return Ok(cluster);
        }
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
        if let Some(service) = self.known.lock().get_mut(&key) {
            service.fresh = Some(until);
        }
        Ok(cluster)
    }

    /// What is known of a service, or a new one; with whether its addresses are fresh.
    fn find(&self, key: &Key, now: Instant) -> Result<(Arc<Cluster>, bool), CalloutError> {
        let mut known = self.known.lock();
        if let Some(service) = known.get_mut(key)
            && let Some(cluster) = service.cell.load()
        {
            service.used = now;
            return Ok((cluster, service.fresh.is_some_and(|until| now < until)));
        }
        if known.len() >= self.most
            && let Some(oldest) = known.iter().min_by_key(|(_, s)| s.used).map(|(key, _)| key.clone())
            && let Some(service) = known.remove(&oldest)
        {
            // Its endpoints leave, and so do their connections on every worker.
            drop(service.cell.swap(None));
            self.clusters.sweep();
        }
        let config = key.config(&self.trust);
        let cell = self.clusters.cell(&config.name);
        let cluster = Cluster::new(config, Vec::new(), None, &self.registry).map_err(failed)?;
        cell.swap(Some(cluster.clone()));
        known.insert(key.clone(), Service { cell, used: now, fresh: None });
        Ok((cluster, false))
    }
}

impl Key {
    fn of(request: &CalloutRequest, uri: &http::Uri) -> Result<Key, CalloutError> {
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(failed(format_args!("'{}' is neither http nor https", request.uri))),
        };
        let host = uri.host().ok_or_else(|| failed(format_args!("'{}' has no host", request.uri)))?;
        let keepalive = request.keepalive.map(|k| (k.idle, k.connections));
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Key { tls, verify: request.verify_tls, host: host.to_ascii_lowercase(), port, keepalive })
    }

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
        ClusterConfig {
            tls: self.tls.then(|| trust.client(self.verify)),
            scheme: if self.tls { Scheme::Https } else { Scheme::Http },
            idle_timeout: Some(kept.idle),
            max_idle: kept.connections,
            breaker: BreakerLimits::UNLIMITED,
            high_breaker: BreakerLimits::UNLIMITED,
            statistics: false,
            // Its request's own time is the bound.
            connect_timeout: Duration::from_secs(60),
            ..ClusterConfig::named(&name)
        }
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
}
