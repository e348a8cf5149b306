//! The connections of one worker to one endpoint.

use super::Wanted;
use super::kind::Kind;
use super::kind_pool::KindPool;
use super::queue::Queue;
use sixfold_core::cluster::Host;
use std::collections::HashMap;
use std::iter::once;
use std::sync::Arc;
use tokio::time::Instant;

/// Server names of requests that a worker keeps connections for, to one endpoint. Beyond it the name that was asked for
/// last longest ago gives way, with its idle connections; one with requests under way stays.
const MAX_NAMES: usize = 1024;

/// Connections to one endpoint.
pub(super) struct HostPool {
    host: Arc<Host>,
    /// The HTTP/1 requests that wait for one of them.
    pub(super) queue: Arc<Queue>,
    /// Those whose server name does not depend on the request: a handful.
    plain: Vec<KindPool>,
    /// The others by it. Clients may choose it, so the map's hashing is not for them to foresee.
    named: HashMap<Box<str>, Vec<KindPool>>,
}

impl HostPool {
    pub(super) fn new(host: Arc<Host>) -> HostPool {
        HostPool { host, queue: Arc::default(), plain: Vec::new(), named: HashMap::new() }
    }

    /// The connections that serve a request.
    pub(super) fn kind(&mut self, wanted: &Wanted<'_>) -> &mut KindPool {
        let kinds = match Kind::name_of(wanted) {
            None => &mut self.plain,
            Some(name) => {
                if self.named.len() >= MAX_NAMES && !self.named.contains_key(name) {
                    self.forget_a_name();
                }
                self.named.entry(name.into()).or_default()
            }
        };
        let at = kinds.iter().position(|k| k.kind.serves(wanted));
        let at = at.unwrap_or_else(|| {
            kinds.push(KindPool::new(Kind::of(wanted)));
            kinds.len() - 1
        });
        let kind = &mut kinds[at];
        kind.used = wanted.now;
        kind
    }

    /// The same, unless there are none.
    pub(super) fn existing(&mut self, wanted: &Wanted<'_>) -> Option<&mut KindPool> {
        let kinds = match Kind::name_of(wanted) {
            None => &mut self.plain,
            Some(name) => self.named.get_mut(name)?,
        };
        let kind = kinds.iter_mut().find(|k| k.kind.serves(wanted))?;
        kind.used = wanted.now;
        Some(kind)
    }

    /// The connections of a kind. It is there for as long as a connection of it is.
    pub(super) fn of_kind(&mut self, kind: &Arc<Kind>) -> Option<&mut KindPool> {
        let kinds = match kind.server_name() {
            None => &mut self.plain,
            Some(name) => self.named.get_mut(name)?,
        };
        kinds.iter_mut().find(|k| Arc::ptr_eq(&k.kind, kind))
    }

    fn all(&self) -> impl Iterator<Item = &KindPool> {
        once(&self.plain).chain(self.named.values()).flatten()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KindPool> {
        once(&mut self.plain).chain(self.named.values_mut()).flatten()
    }

    /// Connections without a request.
    pub(super) fn idle(&self) -> usize {
        self.all().map(KindPool::idle).sum()
    }

    /// Since when each of them has had none.
    pub(super) fn ages(&self) -> impl Iterator<Item = Instant> {
        self.all().flat_map(KindPool::ages)
    }

    /// Closes connections that have been idle since `moment` or longer.
    pub(super) fn forget(&mut self, moment: Instant) {
        self.all_mut().for_each(|kind| kind.forget(moment));
    }

    /// Closes the connection that has been idle for longest, and tells whether there was one.
    pub(super) fn close_oldest(&mut self) -> bool {
        let idle = self.all_mut().filter_map(|kind| Some((kind.ages().min()?, kind)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((since, kind)) => kind.forget(since),
            None => return false,
        }
        true
    }

    /// Forgets the name without requests that was asked for last longest ago, if there is one. As many as have
    /// requests stay: it is limits on those that bound them.
    fn forget_a_name(&mut self) {
        let idle = self.named.iter().filter(|(_, kinds)| kinds.iter().all(KindPool::is_at_rest));
        let used = |kinds: &[KindPool]| kinds.iter().map(|k| k.used).max();
        let oldest = idle.min_by_key(|(_, kinds)| used(kinds)).map(|(name, _)| name.clone());
        let kinds = oldest.and_then(|name| self.named.remove(&name));
        kinds.into_iter().flatten().for_each(KindPool::close);
    }

    /// Closes what has had its time; tells whether anything is left.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        let removed = self.host.is_removed();
        let swept = |kind: &mut KindPool| {
            kind.sweep(removed, now);
            kind.is_used()
        };
        self.plain.retain_mut(swept);
        self.named.retain(|_, kinds| {
            kinds.retain_mut(swept);
            !kinds.is_empty()
        });
        // A burst of names does not keep its table.
        if self.named.capacity() > 4 * self.named.len().max(16) {
            self.named.shrink_to_fit();
        }
        !self.plain.is_empty() || !self.named.is_empty() || Arc::strong_count(&self.queue) > 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::h1::Profile;
    use sixfold_core::cluster::{Address, Cluster, ClusterConfig, HostConfig};
    use sixfold_core::metrics::Registry;
    use sixfold_core::tls::ClientTls;
    use std::time::Duration;

    /// A pool, and what asks it with requests that bring a server name along.
    fn asking() -> (HostPool, impl FnMut(&mut HostPool, &str, u64) -> Arc<Kind>) {
        let hosts = vec![HostConfig::new(Address::Ip(([127, 0, 0, 1], 1).into()))];
        let cluster = Cluster::new(ClusterConfig::named("c"), hosts, None, &Registry::new()).unwrap();
        let host = cluster.hosts.load().iter().next().unwrap().host.clone();
        let (tls, start) = (ClientTls::new(None), Instant::now());
        let pool = HostPool::new(host.clone());
        let ask = move |pool: &mut HostPool, name: &str, seconds| {
            let wanted = Wanted {
                cluster: &cluster,
                host: &host,
                tls: Some(&tls),
                server_name: Some(name),
                source: None,
                downstream_http2: false,
                timeout: Duration::from_secs(1),
                high: false,
                raw: false,
                profile: Profile::Envoy,
                now: start + Duration::from_secs(seconds),
            };
            pool.kind(&wanted).kind.clone()
        };
        (pool, ask)
    }

    /// Each name that a client wrote stayed, and each request looked at all of them.
    #[test]
    fn names_without_requests_give_way_to_new_ones() {
        let (mut pool, mut ask) = asking();
        let pool = &mut pool;
        let busy = ask(pool, "busy", 0);
        busy.enter();
        for n in 0..5000 {
            ask(pool, &format!("{n}.test"), n);
            ask(pool, "often", n);
        }
        assert_eq!(pool.named.len(), MAX_NAMES);
        assert!(Arc::ptr_eq(&busy, &ask(pool, "busy", 5000)), "it has a request");
        assert!(pool.named.contains_key("often") && pool.named.contains_key("4999.test"));
        assert!(!pool.named.contains_key("0.test"));
        pool.sweep(Instant::now());
        assert_eq!(pool.named.len(), 1);
    }

    #[test]
    fn names_with_requests_are_as_many_as_there_are() {
        let (mut pool, mut ask) = asking();
        for n in 0..2000 {
            ask(&mut pool, &format!("{n}.test"), n).enter();
        }
        assert_eq!(pool.named.len(), 2000);
    }
}
