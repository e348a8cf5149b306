//! The endpoints of a cluster at one moment.

use super::stats::ZonePlace;
use super::{
    Address, ClusterConfig, EdsHealth, EndpointCheck, Health, Host, HostConfig, LoadPolicy, Locality, Reasons,
};
use crate::fast_hash::{FastMap, FastSet};
use crate::metadata::Metadata;
use crate::tls::ClientTls;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// An endpoint as one [`HostSet`] has it: what is configured of it now, and the host that it is.
///
/// Nothing that is configured here ever changes: a new weight makes a new member of a new set, so that a set which is
/// never put in force changes nothing.
#[derive(Debug, Clone)]
pub struct Member {
    /// The host, which sets before and after this one may have too.
    pub host: Arc<Host>,
    /// Load balancing weight; 0 for nodes of APISIX that take no turns.
    pub weight: u32,
    /// Priority level, 0 is preferred.
    pub priority: u32,
    /// Region, zone, sub-zone; `None` where nothing is said of it.
    pub locality: Option<Arc<Locality>>,
    /// Apart from whether it has one, in which they are smaller than an option of both.
    locality_weight: u32,
    locality_is_weighted: bool,
    canary: bool,
    pub(super) zone_place: ZonePlace,
    /// Metadata by namespace.
    pub metadata: Metadata,
    /// TLS towards it where its cluster has several, see [`super::Cluster::tls_of`].
    pub(super) tls: Option<Arc<ClientTls>>,
    /// What discovery says of its health.
    pub discovery: EdsHealth,
    /// How its checks differ from those of the cluster's others.
    pub check: Option<Arc<EndpointCheck>>,
}

impl Member {
    fn new(host: Arc<Host>, config: HostConfig, tls: Option<Arc<ClientTls>>) -> Member {
        // By name: the address and the name are the host's.
        let HostConfig {
            address: _,
            hostname: _,
            weight,
            priority,
            locality,
            locality_weight,
            metadata,
            health,
            check,
        } = config;
        Member {
            host,
            weight,
            priority,
            locality,
            locality_weight: locality_weight.unwrap_or_default(),
            locality_is_weighted: locality_weight.is_some(),
            canary: is_canary(&metadata),
            zone_place: ZonePlace::default(),
            metadata,
            tls,
            discovery: health,
            check,
        }
    }

    /// An endpoint that nothing is configured of.
    pub(crate) fn of_destination(destination: SocketAddr) -> Arc<Member> {
        let config = HostConfig::new(Address::Ip(destination));
        Arc::new(Member::new(
            Arc::new(Host::new(config.address.clone(), config.hostname.clone())),
            config,
            None,
        ))
    }

    fn is(&self, config: &HostConfig, tls: Option<&Arc<ClientTls>>) -> bool {
        let HostConfig {
            address,
            hostname,
            weight,
            priority,
            locality,
            locality_weight,
            metadata,
            health,
            check,
        } = config;
        self.host.address == *address
            && self.host.hostname == *hostname
            && self.weight == *weight
            && self.priority == *priority
            && self.locality == *locality
            && self.locality_weight() == *locality_weight
            && self.metadata == *metadata
            && self.discovery == *health
            && self.check == *check
            && self.is_spoken_to_by(tls)
    }

    fn is_spoken_to_by(&self, tls: Option<&Arc<ClientTls>>) -> bool {
        self.tls.as_ref().map(Arc::as_ptr) == tls.map(Arc::as_ptr)
    }

    fn of(&self, host: Arc<Host>) -> Member {
        Member { host, ..self.clone() }
    }

    /// Weight of its locality; `None` when localities carry none.
    pub fn locality_weight(&self) -> Option<u32> {
        self.locality_is_weighted.then_some(self.locality_weight)
    }

    /// Region, zone, sub-zone.
    pub fn locality(&self) -> &Locality {
        self.locality.as_deref().unwrap_or(Locality::unknown())
    }

    /// Everything against it: what checkers found, and what discovery says.
    pub fn reasons(&self) -> Reasons {
        self.host.reasons()
            | match self.discovery {
                EdsHealth::Unknown | EdsHealth::Healthy => Reasons::empty(),
                EdsHealth::Unhealthy | EdsHealth::Timeout => Reasons::DISCOVERY,
                EdsHealth::Draining => Reasons::DRAINING,
                EdsHealth::Degraded => Reasons::DEGRADED_DISCOVERY,
            }
    }

    /// How it counts now.
    pub fn health(&self) -> Health {
        self.reasons().health()
    }

    /// Whether `envoy.lb` metadata marks it as a canary.
    pub fn is_canary(&self) -> bool {
        self.canary
    }
}

fn is_canary(metadata: &Metadata) -> bool {
    metadata.get("envoy.lb").and_then(|m| m.get("canary")).and_then(|v| v.as_bool()).unwrap_or(false)
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct HostSet {
    /// Priority levels from 0; a level without endpoints is empty.
    pub levels: Vec<PriorityLevel>,
    /// What discovery says of all of them, in place of the cluster's own.
    pub policy: Option<LoadPolicy>,
    /// Grows with every change.
    pub version: u64,
    /// Endpoints by address, the first of each, made when one is asked for. Sets of the same endpoints share it.
    pub(super) by_address: Arc<OnceLock<HashMap<SocketAddr, Arc<Member>>>>,
}

/// Some members of a level, in the configuration's order.
pub type Members = Arc<[Arc<Member>]>;

/// The endpoints of one priority, sorted out by health.
#[derive(Debug, Default)]
pub struct PriorityLevel {
    /// All.
    pub members: Members,
    /// Those that take traffic; the same list when all do.
    pub healthy: Members,
    /// Those that help out.
    pub degraded: Members,
    /// Number of those that do not count.
    pub excluded: usize,
    /// Overprovisioning factor in place of the cluster's own, percent.
    pub overprovisioning: Option<u32>,
    /// Of a part of a level: the members that each locality has in the whole, where its weight is shared out by them.
    pub whole: Option<Arc<BTreeMap<Locality, usize>>>,
}

impl PriorityLevel {
    fn sorted_out(members: Members) -> PriorityLevel {
        let of = |health| members.iter().filter(move |m| m.health() == health);
        let those = |health| match of(health).count() {
            0 => Members::default(),
            all if all == members.len() => members.clone(),
            _ => of(health).cloned().collect(),
        };
        PriorityLevel {
            healthy: those(Health::Healthy),
            degraded: those(Health::Degraded),
            excluded: of(Health::Excluded).count(),
            overprovisioning: None,
            whole: None,
            members,
        }
    }

    /// Whether the lists are those that sorting out would make now.
    fn is_sorted_out(&self) -> bool {
        let (mut healthy, mut degraded, mut excluded) = (self.healthy.iter(), self.degraded.iter(), 0);
        let alike = self.members.iter().all(|member| {
            let listed = match member.health() {
                Health::Healthy => healthy.next(),
                Health::Degraded => degraded.next(),
                Health::Unhealthy => return true,
                Health::Excluded => {
                    excluded += 1;
                    return true;
                }
            };
            listed.is_some_and(|listed| Arc::ptr_eq(listed, member))
        });
        alike && healthy.next().is_none() && degraded.next().is_none() && excluded == self.excluded
    }
}

impl HostSet {
    /// Sorts endpoints into levels. Those at an address and name that `before` had are the same hosts; nothing
    /// about them changes by that. Endpoints at one address and name are one host.
    pub fn new(configs: Vec<HostConfig>, before: Option<&HostSet>) -> HostSet {
        HostSet::of_cluster(&ClusterConfig::named(""), configs, before, Reasons::empty())
    }

    /// The same for a cluster, with `reasons` against the hosts that are new.
    pub(super) fn of_cluster(
        cluster: &ClusterConfig,
        configs: Vec<HostConfig>,
        before: Option<&HostSet>,
        reasons: Reasons,
    ) -> HostSet {
        let known: FastMap<_, _> = before.iter().flat_map(|s| s.iter()).map(|m| (key(&m.host), m)).collect();
        let mut fresh: FastMap<_, Arc<Host>> = FastMap::default();
        let mut levels: Vec<Vec<Arc<Member>>> = Vec::new();
        for config in configs {
            let at = config.priority as usize;
            if levels.len() <= at {
                levels.resize_with(at + 1, Vec::new);
            }
            let tls = cluster.own_tls(&config.metadata);
            let host = match known.get(&(&config.address, &*config.hostname)) {
                Some(member) if member.is(&config, tls) => {
                    levels[at].push(Arc::clone(member));
                    continue;
                }
                Some(member) => member.host.clone(),
                None => {
                    let key = (config.address.clone(), config.hostname.clone());
                    let host = fresh.entry(key);
                    let new = || {
                        let host = Host::new(config.address.clone(), config.hostname.clone());
                        let is_checked = config.check.as_ref().is_none_or(|check| !check.disabled);
                        host.set_reason(reasons, is_checked);
                        Arc::new(host)
                    };
                    host.or_insert_with(new).clone()
                }
            };
            let tls = tls.cloned();
            levels[at].push(Arc::new(Member::new(host, config, tls)));
        }
        let levels = levels.into_iter().map(Members::from);
        HostSet::sorted_out(levels, None, before.map_or(1, |s| s.version + 1))
    }

    /// A set of these levels.
    pub(crate) fn sorted_out(
        levels: impl Iterator<Item = Members>,
        policy: Option<LoadPolicy>,
        version: u64,
    ) -> HostSet {
        let overprovisioning = policy.map(|policy| policy.overprovisioning);
        let level = |members| PriorityLevel { overprovisioning, ..PriorityLevel::sorted_out(members) };
        HostSet { levels: levels.map(level).collect(), policy, version, by_address: Arc::default() }
    }

    /// The same endpoints under another policy.
    pub(super) fn under(mut self, policy: Option<LoadPolicy>) -> HostSet {
        self.policy = policy;
        let overprovisioning = policy.map(|policy| policy.overprovisioning);
        self.levels.iter_mut().for_each(|level| level.overprovisioning = overprovisioning);
        self
    }

    /// These endpoints, all of them of one level, in the place of those of `before`.
    pub(crate) fn of_members(members: Vec<Arc<Member>>, before: &HostSet) -> HostSet {
        HostSet::sorted_out([Members::from(members)].into_iter(), before.policy, before.version + 1)
    }

    /// The same endpoints sorted out anew.
    pub fn refreshed(&self) -> HostSet {
        let levels = self.levels.iter().map(|level| level.members.clone());
        let mut set = HostSet::sorted_out(levels, self.policy, self.version + 1);
        set.by_address = self.by_address.clone();
        for (level, before) in set.levels.iter_mut().zip(&self.levels) {
            level.whole.clone_from(&before.whole);
        }
        set
    }

    /// Whether another set has the same endpoints in the same order.
    pub(super) fn is_as(&self, other: &HostSet) -> bool {
        let same = |(a, b): (&PriorityLevel, &PriorityLevel)| {
            a.members.len() == b.members.len()
                && a.members.iter().zip(b.members.iter()).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        self.levels.len() == other.levels.len() && self.levels.iter().zip(&other.levels).all(same)
    }

    /// Whether no endpoint counts otherwise than when they were sorted out.
    pub(crate) fn is_sorted_out(&self) -> bool {
        self.levels.iter().all(PriorityLevel::is_sorted_out)
    }

    /// The same endpoints as members of another cluster.
    pub(super) fn of(&self, cluster: &ClusterConfig) -> HostSet {
        let member = |member: &Arc<Member>| match cluster.own_tls(&member.metadata) {
            tls if member.is_spoken_to_by(tls) => member.clone(),
            tls => Arc::new(Member { tls: tls.cloned(), ..Member::clone(member) }),
        };
        let levels = self.levels.iter().map(|level| level.members.iter().map(member).collect());
        HostSet::sorted_out(levels, self.policy, self.version + 1)
    }

    /// The same endpoints, where `live` has the same address and name with the host it has; `None` when nothing
    /// changes by that.
    pub(super) fn adopting(&self, live: &HostSet) -> Option<HostSet> {
        let live: FastMap<_, _> = live.iter().map(|m| (key(&m.host), &m.host)).collect();
        let other = |m: &Member| live.get(&key(&m.host)).copied().filter(|host| host.id != m.host.id);
        if !self.iter().any(|m| other(m).is_some()) {
            return None;
        }
        let adopted = |m: &Arc<Member>| match other(m) {
            Some(host) => Arc::new(m.of(host.clone())),
            None => m.clone(),
        };
        let levels = self.levels.iter().map(|level| level.members.iter().map(adopted).collect());
        Some(HostSet::sorted_out(levels, self.policy, self.version + 1))
    }

    /// Notes on every host that it is in the cluster in force, and on those that only `before` has that they no
    /// longer are. Tells whether any came or went.
    pub(super) fn mark(&self, before: Option<&HostSet>) -> bool {
        let ids = |set: &HostSet| set.iter().map(|m| m.host.id).collect::<FastSet<u64>>();
        let (now, earlier) = (ids(self), before.map(ids).unwrap_or_default());
        let gone = before.iter().flat_map(|s| s.iter()).filter(|m| !now.contains(&m.host.id));
        gone.for_each(|m| m.host.set_removed(true));
        self.iter().for_each(|m| m.host.set_removed(false));
        now != earlier
    }

    /// All endpoints, level by level.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.levels.iter().flat_map(|l| l.members.iter())
    }

    /// The first endpoint at this address, whatever its health.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&Arc<Member>> {
        let all = self.by_address.get_or_init(|| {
            let mut all = HashMap::with_capacity(self.total());
            for member in self.iter() {
                if let Address::Ip(address) = member.host.address {
                    all.entry(address).or_insert_with(|| member.clone());
                }
            }
            all
        });
        all.get(&address)
    }

    /// Number of endpoints.
    pub fn total(&self) -> usize {
        self.levels.iter().map(|l| l.members.len()).sum()
    }

    /// Number of healthy endpoints.
    pub fn healthy(&self) -> usize {
        self.levels.iter().map(|l| l.healthy.len()).sum()
    }

    /// Number of degraded endpoints.
    pub fn degraded(&self) -> usize {
        self.levels.iter().map(|l| l.degraded.len()).sum()
    }

    /// Number of endpoints that do not count.
    pub fn excluded(&self) -> usize {
        self.levels.iter().map(|l| l.excluded).sum()
    }
}

/// What makes two endpoints the same host.
fn key(host: &Host) -> (&Address, &str) {
    (&host.address, &host.hostname)
}
