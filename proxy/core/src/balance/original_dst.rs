//! Endpoints that are found by being asked for: wherever a connection was meant to go (Envoy's ORIGINAL_DST clusters).

use crate::cluster::{Balancer, Choice, HostSet, Member};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Destinations that are remembered. Whoever asks for more, as a scan of an address range does, gets endpoints that
/// nobody shares and that are forgotten with their last connection.
const MAX_DESTINATIONS: usize = 1 << 16;

/// Parts of the memory, each with a lock: workers rarely meet.
const PARTS: usize = 16;

/// The endpoints of destinations, each from its first connection until nobody has needed it for a while.
pub(super) struct OriginalDst {
    parts: [RwLock<HashMap<SocketAddr, Known>>; PARTS],
    hasher: RandomState,
    total: AtomicUsize,
    /// How often endpoints that nobody needs are forgotten.
    cleanup: Duration,
    cleaned: Mutex<Instant>,
}

struct Known {
    member: Arc<Member>,
    /// Whether it was chosen since the last look.
    used: AtomicBool,
}

impl OriginalDst {
    /// Nothing is known yet.
    pub(super) fn new(cleanup: Duration) -> OriginalDst {
        OriginalDst {
            parts: Default::default(),
            // Clients choose destinations, so they must not be able to make them collide.
            hasher: RandomState::new(),
            total: AtomicUsize::new(0),
            cleanup,
            cleaned: Mutex::new(Instant::now()),
        }
    }

    fn part(&self, destination: SocketAddr) -> &RwLock<HashMap<SocketAddr, Known>> {
        &self.parts[self.hasher.hash_one(destination) as usize % PARTS]
    }

    fn find(&self, destination: SocketAddr) -> Option<Arc<Member>> {
        let part = self.part(destination).read();
        let known = part.get(&destination)?;
        // Most find it set, and a worker that writes takes the line away from the others.
        if !known.used.load(Relaxed) {
            known.used.store(true, Relaxed);
        }
        Some(known.member.clone())
    }

    fn remember(&self, destination: SocketAddr) -> Arc<Member> {
        let mut part = self.part(destination).write();
        // Another worker may have been here in between.
        if let Some(known) = part.get(&destination) {
            return known.member.clone();
        }
        let member = Member::of_destination(destination);
        if self.total.load(Relaxed) >= MAX_DESTINATIONS {
            member.host.set_removed(true);
            return member;
        }
        self.total.fetch_add(1, Relaxed);
        part.insert(destination, Known { member: member.clone(), used: AtomicBool::new(true) });
        member
    }

    /// Forgets what was not chosen since the last look and has no connection.
    fn forget(&self) {
        for part in &self.parts {
            part.write().retain(|_, known| {
                let host = &known.member.host;
                let busy =
                    || host.active_connections.load(Relaxed) > 0 || host.active_requests.load(Relaxed) > 0;
                let stays = known.used.swap(false, Relaxed) || busy();
                if !stays {
                    self.total.fetch_sub(1, Relaxed);
                }
                stays
            });
        }
    }
}

impl Balancer for OriginalDst {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>> {
        let destination = choice.destination?;
        Some(self.find(destination).unwrap_or_else(|| self.remember(destination)))
    }

    fn found(&self, shown: &HostSet, now: Instant) -> Option<Vec<Arc<Member>>> {
        {
            let mut cleaned = self.cleaned.lock();
            if now.saturating_duration_since(*cleaned) >= self.cleanup {
                *cleaned = now;
                self.forget();
            }
        }
        let mut all: Vec<Arc<Member>> = Vec::with_capacity(self.total.load(Relaxed));
        for part in &self.parts {
            all.extend(part.read().values().map(|known| known.member.clone()));
        }
        all.sort_unstable_by_key(|member| member.host.id);
        let same = all.len() == shown.total() && shown.iter().zip(&all).all(|(a, b)| Arc::ptr_eq(a, b));
        (!same).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::request;
    use super::*;
    use crate::cluster::{Cluster, ClusterConfig, Discovery, OriginalDestination, Policy};
    use crate::metrics::Registry;

    const CLEANUP: Duration = Duration::from_secs(5);

    fn to(port: u16) -> Choice<'static> {
        Choice { destination: Some(SocketAddr::from(([10, 0, 0, 1], port))), ..request() }
    }

    fn cluster(previous: Option<&Cluster>, port: Option<u16>) -> Arc<Cluster> {
        let mut config = ClusterConfig::named("c");
        config.balance.policy = Policy::OriginalDst { cleanup: CLEANUP };
        config.discovery = Discovery::OriginalDst(OriginalDestination { port, ..Default::default() });
        Cluster::new(config, Vec::new(), previous, &Registry::new()).unwrap()
    }

    #[test]
    fn a_destination_is_one_endpoint_until_nobody_needs_it() {
        let (balancer, mut now) = (OriginalDst::new(CLEANUP), Instant::now());
        assert!(balancer.choose(&request()).is_none(), "it has no destination");
        let first = balancer.choose(&to(1)).unwrap();
        assert_eq!(&*first.host.label, "10.0.0.1:1");
        let second = balancer.choose(&to(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &balancer.choose(&to(1)).unwrap()));
        let mut shown = HostSet::default();
        let mut look = |now| {
            let found = balancer.found(&shown, now);
            if let Some(found) = found {
                shown = HostSet::of_members(found, &shown);
            }
            shown.iter().map(|m| m.host.id).collect::<Vec<_>>()
        };
        assert_eq!(look(now), [first.host.id, second.host.id]);
        second.host.active_connections.fetch_add(1, Relaxed);
        for expected in [2, 1] {
            now += CLEANUP;
            assert_eq!(look(now).len(), expected, "once unused, it is looked at again");
        }
        second.host.active_connections.fetch_sub(1, Relaxed);
        assert_eq!(look(now), [second.host.id], "it is not time");
        assert_eq!(look(now + CLEANUP), [0_u64; 0]);
        assert_ne!(balancer.choose(&to(2)).unwrap().host.id, second.host.id);
    }

    #[test]
    fn beyond_the_bound_endpoints_are_not_remembered() {
        let balancer = OriginalDst::new(CLEANUP);
        balancer.total.store(MAX_DESTINATIONS - 1, Relaxed);
        let kept = balancer.choose(&to(1)).unwrap();
        assert!(!kept.host.is_removed());
        let other = balancer.choose(&to(2)).unwrap();
        assert!(other.host.is_removed(), "its connections end with their requests");
        assert_ne!(other.host.id, balancer.choose(&to(2)).unwrap().host.id);
        assert!(Arc::ptr_eq(&kept, &balancer.choose(&to(1)).unwrap()));
    }

    #[test]
    fn a_cluster_shows_what_was_found_and_its_successor_goes_on_with_it() {
        let first = cluster(None, None);
        let cells = crate::cluster::Clusters::default();
        let cell = cells.cell("c");
        cell.swap(Some(first.clone()));
        let host = first.balancer.choose(&to(1)).unwrap().host.clone();
        first.tend(Instant::now());
        assert_eq!((first.hosts.load().total(), first.stats.membership_total().get()), (1, 1));
        let second = cluster(Some(&first), None);
        let late = first.balancer.choose(&to(2)).unwrap().host.clone();
        cell.swap(Some(second.clone()));
        assert_eq!(second.balancer.choose(&to(1)).unwrap().host.id, host.id);
        assert_eq!(second.balancer.choose(&to(2)).unwrap().host.id, late.id);
        second.tend(Instant::now());
        assert_eq!(second.hosts.load().total(), 2);
        assert!(!host.is_removed() && !late.is_removed());
        // Another port is another destination: nothing is the same.
        let third = cluster(Some(&second), Some(9));
        cell.swap(Some(third.clone()));
        assert!(host.is_removed() && late.is_removed() && third.hosts.load().total() == 0);
    }
}
