//! The connections of one worker to one endpoint.

use super::Wanted;
use super::kind::{Client, Kind};
use super::kind_pool::KindPool;
use super::queue::Queue;
use sixfold_core::cluster::Host;
use std::collections::HashMap;
use std::hash::Hash;
use std::iter::once;
use std::sync::Arc;
use tokio::time::Instant;

/// Server names of requests, and addresses of clients, that a worker keeps connections for, to one endpoint. Beyond it the
/// one that was asked for last longest ago gives way, with its idle connections; one with requests under way stays.
const MAX_CHOSEN: usize = 1024;

/// Connections to one endpoint.
pub(super) struct HostPool {
    host: Arc<Host>,
    /// The HTTP/1 requests that wait for one of them.
    pub(super) queue: Arc<Queue>,
    /// Those that are the proxy's own.
    own: Kinds,
    /// The others by the client that they come from, or are said to.
    borrowed: HashMap<Client, Kinds>,
}

/// Connections of one client.
#[derive(Default)]
struct Kinds {
    /// Those whose server name does not depend on the request: a handful.
    plain: Vec<KindPool>,
    /// The others by it. Clients may choose it, so the map's hashing is not for them to foresee.
    named: HashMap<Box<str>, Vec<KindPool>>,
}

impl Kinds {
    /// Those with the server name that a request brings along.
    fn of(&mut self, name: Option<&str>) -> Option<&mut Vec<KindPool>> {
        match name {
            None => Some(&mut self.plain),
            Some(name) => self.named.get_mut(name),
        }
    }

    /// The same, whether or not there are any.
    fn room_for(&mut self, name: Option<&str>) -> &mut Vec<KindPool> {
        let Some(name) = name else { return &mut self.plain };
        if !self.named.contains_key(name) {
            make_room(&mut self.named);
        }
        self.named.entry(name.into()).or_default()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KindPool> {
        once(&mut self.plain).chain(self.named.values_mut()).flatten()
    }

    /// Keeps what `stays`; tells whether anything is left.
    fn retain(&mut self, mut stays: impl FnMut(&mut KindPool) -> bool) -> bool {
        self.plain.retain_mut(&mut stays);
        self.named.retain(|_, kinds| {
            kinds.retain_mut(&mut stays);
            !kinds.is_empty()
        });
        fit(&mut self.named);
        !self.plain.is_empty() || !self.named.is_empty()
    }
}

/// Connections that come and go together.
trait Together {
    fn all(&self) -> impl Iterator<Item = &KindPool>;
    fn into_all(self) -> impl Iterator<Item = KindPool>;
}

impl Together for Vec<KindPool> {
    fn all(&self) -> impl Iterator<Item = &KindPool> {
        self.iter()
    }

    fn into_all(self) -> impl Iterator<Item = KindPool> {
        self.into_iter()
    }
}

impl Together for Kinds {
    fn all(&self) -> impl Iterator<Item = &KindPool> {
        once(&self.plain).chain(self.named.values()).flatten()
    }

    fn into_all(self) -> impl Iterator<Item = KindPool> {
        once(self.plain).chain(self.named.into_values()).flatten()
    }
}

/// Makes room for one more: what has no requests and was asked for last longest ago is forgotten, if there is any. As many
/// as have requests stay: it is limits on those that bound them.
fn make_room<K: Clone + Eq + Hash, V: Together>(chosen: &mut HashMap<K, V>) {
    if chosen.len() < MAX_CHOSEN {
        return;
    }
    let idle = chosen.iter().filter(|(_, pools)| pools.all().all(KindPool::is_at_rest));
    let oldest = idle.min_by_key(|(_, pools)| pools.all().map(|pool| pool.used).max());
    let gone = oldest.map(|(key, _)| key.clone()).and_then(|key| chosen.remove(&key));
    gone.into_iter().flat_map(Together::into_all).for_each(KindPool::close);
}

/// A burst does not keep its table.
fn fit<K: Eq + Hash, V>(chosen: &mut HashMap<K, V>) {
    if chosen.capacity() > 4 * chosen.len().max(16) {
        chosen.shrink_to_fit();
    }
}

impl HostPool {
    pub(super) fn new(host: Arc<Host>) -> HostPool {
        HostPool { host, queue: Arc::default(), own: Kinds::default(), borrowed: HashMap::new() }
    }

    /// The connections that serve a request.
    pub(super) fn kind(&mut self, wanted: &Wanted<'_>) -> &mut KindPool {
        let kinds = match wanted.client {
            client if client.is_self() => &mut self.own,
            client => {
                if !self.borrowed.contains_key(&client) {
                    make_room(&mut self.borrowed);
                }
                self.borrowed.entry(client).or_default()
            }
        };
        let kinds = kinds.room_for(Kind::name_of(wanted));
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
        let kinds = self.of_client(wanted.client)?.of(Kind::name_of(wanted))?;
        let kind = kinds.iter_mut().find(|k| k.kind.serves(wanted))?;
        kind.used = wanted.now;
        Some(kind)
    }

    /// The connections of a kind. It is there for as long as a connection of it is.
    pub(super) fn of_kind(&mut self, kind: &Arc<Kind>) -> Option<&mut KindPool> {
        let kinds = self.of_client(kind.client())?.of(kind.server_name())?;
        kinds.iter_mut().find(|k| Arc::ptr_eq(&k.kind, kind))
    }

    /// Those of one client.
    fn of_client(&mut self, client: Client) -> Option<&mut Kinds> {
        match client.is_self() {
            true => Some(&mut self.own),
            false => self.borrowed.get_mut(&client),
        }
    }

    fn all(&self) -> impl Iterator<Item = &KindPool> {
        once(&self.own).chain(self.borrowed.values()).flat_map(Kinds::all)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KindPool> {
        once(&mut self.own).chain(self.borrowed.values_mut()).flat_map(Kinds::all_mut)
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

    /// Closes what has had its time; tells whether anything is left.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        let removed = self.host.is_removed();
        let mut stays = |kind: &mut KindPool| {
            kind.sweep(removed, now);
            kind.is_used()
        };
        self.borrowed.retain(|_, kinds| kinds.retain(&mut stays));
        fit(&mut self.borrowed);
        self.own.retain(stays) || !self.borrowed.is_empty() || Arc::strong_count(&self.queue) > 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::cluster::{Address, Cluster, ClusterConfig, HostConfig};
    use sixfold_core::connection::Source;
    use sixfold_core::metrics::Registry;
    use sixfold_core::tls::ClientTls;
    use std::time::Duration;

    /// A pool, and what asks it with requests that bring a server name along, from an address of their own if it is one.
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
                offer: None,
                client: Client { source: name.parse().ok().map(|ip| Source { ip, mark: 0 }), told: None },
                downstream_http2: false,
                timeout: Duration::from_secs(1),
                high: false,
                raw: false,
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
        assert_eq!(pool.own.named.len(), MAX_CHOSEN);
        assert!(Arc::ptr_eq(&busy, &ask(pool, "busy", 5000)), "it has a request");
        assert!(pool.own.named.contains_key("often") && pool.own.named.contains_key("4999.test"));
        assert!(!pool.own.named.contains_key("0.test"));
        pool.sweep(Instant::now());
        assert_eq!(pool.own.named.len(), 1);
    }

    /// Connections that show one client's address carry no other's requests, and each request looked at all of them.
    #[test]
    fn addresses_are_kept_apart_and_give_way_as_names_do() {
        let (mut pool, mut ask) = asking();
        let pool = &mut pool;
        let first = ask(pool, "10.0.0.1", 0);
        first.enter();
        assert!(
            Arc::ptr_eq(&first, &ask(pool, "10.0.0.1", 0)) && !Arc::ptr_eq(&first, &ask(pool, "10.0.0.2", 0))
        );
        for n in 0..5000_u32 {
            ask(pool, &format!("10.1.{}.{}", n >> 8, n & 255), u64::from(n));
        }
        assert_eq!((pool.borrowed.len(), pool.own.named.len()), (MAX_CHOSEN, 0));
        assert!(Arc::ptr_eq(&first, &pool.of_kind(&first).unwrap().kind), "it has a request");
        assert!(pool.borrowed.values().all(|kinds| kinds.named.len() == 1));
        pool.sweep(Instant::now());
        assert_eq!(pool.borrowed.len(), 1);
    }

    #[test]
    fn names_with_requests_are_as_many_as_there_are() {
        let (mut pool, mut ask) = asking();
        for n in 0..2000 {
            ask(&mut pool, &format!("{n}.test"), n).enter();
        }
        assert_eq!(pool.own.named.len(), 2000);
    }
}
