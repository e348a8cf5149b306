//! What the control plane has sent, what of it is in force, and in which order it comes into force.
//!
//! Nothing goes into force before what it names: a cluster waits for its endpoints, routes for the clusters that
//! warm up, a listener for its routes. Nothing goes before what names it: a cluster that the control plane has
//! removed stays while routes still lead there. Both waits have an end, so that one resource that never comes
//! holds up no other for long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_core::error::ConfigError;

use super::kind::Kind;
use super::users::Users;

/// How long routes and listeners wait for clusters that warm up. Envoy does not wait at all and answers 503 meanwhile;
/// longer than this the other routes of the table shall not be held back for the sake of one.
pub const HOLD: Duration = Duration::from_secs(5);
/// How long a removed cluster that is still named stays after the control plane has said its last: it removes
/// clusters before it sends the routes that no longer name them.
pub const LINGER: Duration = Duration::from_secs(1);
/// How long it stays however much the control plane has to say.
pub const LINGER_MAX: Duration = Duration::from_secs(10);

/// In which order resources come into force: what others wait for before them.
const ORDER: [Kind; 6] =
    [Kind::Endpoints, Kind::Secret, Kind::Extension, Kind::Cluster, Kind::Routes, Kind::Listener];

/// A resource by kind and name.
pub(super) type Key = (Kind, Arc<str>);

/// Compiles single resources. Nothing that is in force changes by it.
pub trait Compile {
    /// A compiled resource.
    type Part;

    /// Compiles one.
    ///
    /// # Errors
    /// The field and the reason; what the resource was before stays.
    fn compile(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        value: &[u8],
    ) -> Result<Compiled<Self::Part>, ConfigError>;

    /// A resource is gone.
    fn forget(&mut self, kind: Kind, name: &Arc<str>);
}

/// A compiled resource, and what it asks for.
#[derive(Debug, Clone)]
pub struct Compiled<P> {
    /// Itself.
    pub part: P,
    /// The others.
    pub asks: Asks,
}

/// Other resources that one names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asks {
    /// Resources to subscribe to, without which it is not fit for use.
    pub needs: Vec<Need>,
    /// Clusters that it leads to. They come by themselves, or do not.
    pub clusters: Vec<Arc<str>>,
}

/// A resource to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// How long to wait for it before going on without (`initial_fetch_timeout`); `None` is for ever.
    pub within: Option<Duration>,
}

/// A resource that goes into force, or out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<P> {
    /// Its type.
    pub kind: Kind,
    /// Its name; for endpoints that of the cluster that gets them.
    pub name: Arc<str>,
    /// `None` removes; a cluster whose endpoints have not come in time has none.
    pub part: Option<P>,
}

pub(super) struct World<C: Compile> {
    compiler: C,
    /// Resources of the bootstrap: the control plane can neither change nor remove them.
    statics: BTreeSet<Key>,
    resources: BTreeMap<Key, Resource<C::Part>>,
    users: Users,
    /// Those that have a candidate.
    waiting: BTreeSet<Key>,
    /// Removed clusters that are still in force, and since when.
    lingering: BTreeMap<Arc<str>, Instant>,
    /// Clusters in force to be given their endpoints.
    due: BTreeSet<Arc<str>>,
    /// To be taken out of force.
    removals: Vec<Key>,
    /// When resources with a time to live are gone.
    expiries: BTreeSet<(Instant, Key)>,
    /// When the control plane has said something last.
    heard: Option<Instant>,
}

struct Resource<P> {
    /// What was accepted last, when it is not in force yet.
    next: Option<Version<P>>,
    /// What is in force.
    live: Option<Version<P>>,
    expires: Option<Instant>,
    /// Whether putting it in force has failed: the same again is then a change.
    failed: bool,
}

struct Version<P> {
    /// As it was sent.
    value: Arc<[u8]>,
    /// Until it is in force; of endpoints until a cluster has them.
    part: Option<P>,
    asks: Asks,
    /// When it, or the first candidate that it takes the place of, began to wait.
    since: Instant,
}

impl<P> Resource<P> {
    /// The last that was accepted.
    fn last(&self) -> Option<&Version<P>> {
        self.next.as_ref().or(self.live.as_ref())
    }
}

impl<C: Compile> World<C> {
    /// Nothing has come yet; `statics` are in force.
    pub(super) fn new(compiler: C, statics: BTreeMap<Key, Asks>, now: Instant) -> World<C> {
        let mut world = World {
            compiler,
            statics: statics.keys().cloned().collect(),
            resources: BTreeMap::new(),
            users: Users::default(),
            waiting: BTreeSet::new(),
            lingering: BTreeMap::new(),
            due: BTreeSet::new(),
            removals: Vec::new(),
            expiries: BTreeSet::new(),
            heard: None,
        };
        for (key, asks) in statics {
            world.users.add(&key, &asks);
            let live = Version { value: Arc::default(), part: None, asks, since: now };
            world.resources.insert(key, Resource { live: Some(live), ..Resource::new() });
        }
        world
    }

    pub(super) fn compiler(&self) -> &C {
        &self.compiler
    }

    /// The control plane has said something.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Names that are wanted from now on, or no longer.
    pub(super) fn take_wants(&mut self) -> Vec<(Key, bool)> {
        self.users.take_wants()
    }

    /// Names of a kind that were accepted and not removed.
    pub(super) fn names(&self, kind: Kind) -> Vec<Arc<str>> {
        let of_kind =
            self.resources.range((kind, Arc::from(""))..).take_while(|((other, _), _)| *other == kind);
        let names =
            of_kind.map(|(key, _)| key).filter(|key| !self.statics.contains(key)).map(|(_, name)| name);
        names.filter(|name| !self.lingers(kind, name)).cloned().collect()
    }

    /// Whether everything that was accepted is in force.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a resource as it was sent. The bytes that it has already are no change.
    pub(super) fn accept(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        value: Vec<u8>,
        now: Instant,
    ) -> Result<(), ConfigError> {
        let key = (kind, name.clone());
        if self.statics.contains(&key) || !self.is_wanted(&key) {
            return Ok(());
        }
        let lingers = self.lingers(kind, name);
        let known = self.resources.get(&key);
        if known.and_then(Resource::last).is_some_and(|last| *last.value == *value)
            && !lingers
            && known.is_some_and(|known| !known.failed)
        {
            return Ok(());
        }
        let Compiled { part, asks } = self.compiler.compile(kind, name, &value)?;
        if lingers {
            self.lingering.remove(name);
        }
        self.users.add(&key, &asks);
        let resource = self.resources.entry(key.clone()).or_insert_with(Resource::new);
        resource.failed = false;
        let previous = resource.next.take();
        let since = previous.as_ref().map_or(now, |previous| previous.since);
        resource.next = Some(Version { value: value.into(), part: Some(part), asks, since });
        self.waiting.insert(key.clone());
        self.drop_asks(&key, previous.map(|previous| previous.asks));
        Ok(())
    }

    /// Begins a resource's time to live, or takes it away.
    pub(super) fn set_ttl(&mut self, key: &Key, ttl: Option<Duration>, now: Instant) {
        self.end_ttl(key);
        let Some(resource) = self.resources.get_mut(key) else { return };
        // What would end beyond the clock's range does not end.
        if let Some(expires) = ttl.and_then(|ttl| now.checked_add(ttl)) {
            resource.expires = Some(expires);
            self.expiries.insert((expires, key.clone()));
        }
    }

    fn end_ttl(&mut self, key: &Key) {
        if let Some(expires) = self.resources.get_mut(key).and_then(|resource| resource.expires.take()) {
            self.expiries.remove(&(expires, key.clone()));
        }
    }

    /// The control plane says that a resource is gone. Only what is asked for as a whole can go so: routes and
    /// endpoints go with what names them, and whatever is said of them, the last that was good stays.
    pub(super) fn remove(&mut self, kind: Kind, name: &Arc<str>, now: Instant) {
        let key = (kind, name.clone());
        if !kind.is_wildcard() || self.statics.contains(&key) || self.lingers(kind, name) {
            return;
        }
        self.end_ttl(&key);
        let Some(resource) = self.resources.get_mut(&key) else { return };
        self.waiting.remove(&key);
        let next = resource.next.take().map(|next| next.asks);
        let live = resource.live.as_mut().map(|live| std::mem::take(&mut live.asks));
        match (kind, live) {
            // Endpoints that are sent for it from now on are those of something that is no more.
            (Kind::Cluster, Some(live)) => {
                self.lingering.insert(name.clone(), now);
                self.drop_asks(&key, Some(live));
            }
            (_, live) => {
                if live.is_some() {
                    self.removals.push(key.clone());
                }
                self.resources.remove(&key);
                self.compiler.forget(kind, name);
                self.drop_asks(&key, live);
            }
        }
        self.drop_asks(&key, next);
    }

    /// Putting a resource in force has failed, what was there before is in use.
    pub(super) fn failed(&mut self, key: &Key) {
        if let Some(resource) = self.resources.get_mut(key) {
            resource.failed = true;
        }
    }

    /// Removes what has had no news for its time to live. Answers what that was.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Key> {
        let mut gone = Vec::new();
        while let Some((expires, _)) = self.expiries.first()
            && *expires <= now
            && let Some((_, key)) = self.expiries.pop_first()
        {
            if let Some(resource) = self.resources.get_mut(&key) {
                resource.expires = None;
            }
            self.remove(key.0, &key.1, now);
            gone.push(key);
        }
        gone
    }

    /// What goes into force and out of it now, complete in itself.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<Change<C::Part>> {
        let mut batch = Vec::new();
        for kind in ORDER {
            let ready: Vec<Key> = self.waiting.iter().filter(|key| key.0 == kind).cloned().collect();
            for key in ready {
                if self.is_ready(&key, now) {
                    self.put_in_force(&key, &mut batch);
                }
            }
            if kind == Kind::Cluster {
                self.give_endpoints(&mut batch);
            }
        }
        let released: Vec<_> =
            self.lingering.keys().filter(|name| self.is_released(name, now)).cloned().collect();
        for name in released {
            self.lingering.remove(&name);
            let key = (Kind::Cluster, name);
            self.resources.remove(&key);
            self.compiler.forget(key.0, &key.1);
            self.removals.push(key);
        }
        let removed = std::mem::take(&mut self.removals).into_iter();
        batch.extend(removed.map(|(kind, name)| Change { kind, name, part: None }));
        batch
    }

    /// When [`World::settle`] or [`World::expire`] may have more to do though nothing has come: after `now`, for what
    /// has ended by then has been acted on, be it one of several waits of one resource.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let waits = self.waiting.iter().flat_map(|key| self.ends_of_waits(key));
        let lingering = self.lingering.values().map(|removed| self.end_of_lingering(*removed));
        let expiry = self.expiries.first().map(|(expires, _)| *expires);
        waits.chain(lingering).chain(expiry).filter(|end| *end > now).min()
    }

    fn is_wanted(&self, key: &Key) -> bool {
        key.0.is_wildcard() || self.users.has(key)
    }

    fn lingers(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Cluster && self.lingering.contains_key(name)
    }

    /// Whether a candidate has what it needs, or has waited long enough.
    fn is_ready(&self, key: &Key, now: Instant) -> bool {
        let Some(next) = self.resources.get(key).and_then(|resource| resource.next.as_ref()) else {
            return false;
        };
        let come =
            |need: &Need| self.is_there(need) || end_of_need(need, next.since).is_some_and(|end| end <= now);
        let held = now < next.since + HOLD && next.asks.clusters.iter().any(|name| self.is_warming(name));
        next.asks.needs.iter().all(come) && !held
    }

    /// Whether a resource may be used by others: in force, and nothing newer waits to be.
    fn is_there(&self, need: &Need) -> bool {
        let resource = self.resources.get(&(need.kind, need.name.clone()));
        resource.is_some_and(|resource| resource.live.is_some() && resource.next.is_none())
    }

    /// A cluster that comes, and has not yet.
    fn is_warming(&self, name: &Arc<str>) -> bool {
        let resource = self.resources.get(&(Kind::Cluster, name.clone()));
        resource.is_some_and(|resource| resource.live.is_none() && resource.next.is_some())
    }

    /// When the waits of a candidate end.
    fn ends_of_waits(&self, key: &Key) -> impl Iterator<Item = Instant> {
        let next = self.resources.get(key).and_then(|resource| resource.next.as_ref());
        let held = next.filter(|next| next.asks.clusters.iter().any(|name| self.is_warming(name)));
        let needs = next.into_iter().flat_map(|next| {
            let missing = next.asks.needs.iter().filter(|need| !self.is_there(need));
            missing.filter_map(|need| end_of_need(need, next.since))
        });
        needs.chain(held.map(|next| next.since + HOLD))
    }

    fn put_in_force(&mut self, key: &Key, batch: &mut Vec<Change<C::Part>>) {
        let Some(resource) = self.resources.get_mut(key) else { return };
        let Some(mut next) = resource.next.take() else { return };
        self.waiting.remove(key);
        if key.0 == Kind::Endpoints {
            self.due.extend(self.users.of(key).map(|(_, name)| name.clone()));
        } else {
            batch.push(Change { kind: key.0, name: key.1.clone(), part: next.part.take() });
        }
        if key.0 == Kind::Cluster {
            self.due.insert(key.1.clone());
        }
        let previous = resource.live.replace(next);
        self.drop_asks(key, previous.map(|previous| previous.asks));
    }

    /// Gives clusters in force the endpoints that were accepted for them, none if those have not come in time.
    fn give_endpoints(&mut self, batch: &mut Vec<Change<C::Part>>) {
        for name in std::mem::take(&mut self.due) {
            let cluster = self.resources.get(&(Kind::Cluster, name.clone()));
            let Some(live) = cluster.and_then(|cluster| cluster.live.as_ref()) else { continue };
            let need = live.asks.needs.iter().find(|need| need.kind == Kind::Endpoints);
            let Some(need) = need.cloned() else { continue };
            let assignment = self.resources.get_mut(&(Kind::Endpoints, need.name.clone()));
            let part = assignment.and_then(|assignment| assignment.live.as_mut()).and_then(|live| {
                // It was accepted, so it compiles.
                let mut again = || self.compiler.compile(Kind::Endpoints, &need.name, &live.value).ok();
                live.part.take().or_else(|| again().map(|compiled| compiled.part))
            });
            batch.push(Change { kind: Kind::Endpoints, name, part });
        }
    }

    fn is_released(&self, cluster: &Arc<str>, now: Instant) -> bool {
        !self.users.has(&(Kind::Cluster, cluster.clone()))
            || self.lingering.get(cluster).is_some_and(|removed| self.end_of_lingering(*removed) <= now)
    }

    fn end_of_lingering(&self, removed: Instant) -> Instant {
        let heard = self.heard.map_or(removed, |heard| heard.max(removed));
        (heard + LINGER).min(removed + LINGER_MAX)
    }

    /// What a version asked for is not asked for by it any more. What nobody asks for goes.
    fn drop_asks(&mut self, key: &Key, asks: Option<Asks>) {
        let mut unused = asks.map(|asks| self.users.remove(key, &asks)).unwrap_or_default();
        while let Some(key) = unused.pop() {
            self.end_ttl(&key);
            let Some(Resource { next, live, .. }) = self.resources.remove(&key) else { continue };
            self.waiting.remove(&key);
            self.compiler.forget(key.0, &key.1);
            if live.is_some() && key.0 != Kind::Endpoints {
                self.removals.push(key.clone());
            }
            for version in [next, live].into_iter().flatten() {
                unused.extend(self.users.remove(&key, &version.asks));
            }
        }
    }
}

impl<P> Resource<P> {
    fn new() -> Resource<P> {
        Resource { next: None, live: None, expires: None, failed: false }
    }
}

/// When a candidate goes on without a resource.
fn end_of_need(need: &Need, since: Instant) -> Option<Instant> {
    since.checked_add(need.within?)
}
