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
use sixfold_core::fast_hash::FastMap;

use super::file::{Origin, placed};
use super::key::{Channel, Key};
use super::kind::Kind;
use super::peer::StreamConfig;
use super::users::{Count, Users, Want};
use crate::rds::Source;
use crate::tracker::Event;

mod extensions;
mod settle;
mod statics;
mod waits;

pub use self::statics::Static;
use self::statics::note;

/// How long routes and listeners wait for clusters that warm up. Envoy does not wait at all and answers 503 meanwhile;
/// longer than this the other routes of the table shall not be held back for the sake of one.
pub const HOLD: Duration = Duration::from_secs(5);
/// How long a removed cluster that is still named stays after the control plane has said its last: it removes
/// clusters before it sends the routes that no longer name them.
pub const LINGER: Duration = Duration::from_secs(1);
/// How long it stays however much the control plane has to say.
pub const LINGER_MAX: Duration = Duration::from_secs(10);

/// Compiles single resources. Nothing that is in force changes by it.
pub trait Compile {
    /// A compiled resource.
    type Part;

    /// Compiles one.
    ///
    /// # Errors
    /// The field and the reason; what the resource was before stays.
    fn compile(&mut self, key: &Key, value: &[u8]) -> Result<Compiled<Self::Part>, ConfigError>;

    /// These values of a kind are to be compiled next, unless they are known: what of it takes time may begin for all of
    /// them.
    fn expect<'a>(&mut self, _kind: Kind, _values: impl Iterator<Item = &'a [u8]>) {}

    /// There is no such resource, of a kind whose last good one stays: the control plane says so, or has not said
    /// anything for as long as it may be waited for. Nobody need wait for it.
    fn missing(&mut self, _key: &Key) {}

    /// Whether an extension that was compiled last fits all that name it. One that does not is what it was before.
    fn decide(&mut self, _key: &Key, _fits: bool) {}

    /// What was compiled last begins to wait for what it needs, or for its turn.
    fn waits(&self, _part: &Self::Part) {}

    /// What becomes of a resource, for who shows it.
    fn note(&self, _key: &Key, _event: Event<'_>) {}

    /// All resources of a kind are told of anew: what was wrong with those that are not among them is past.
    fn forgive(&self, _kind: Kind, _is_told: &dyn Fn(&str) -> bool) {}

    /// What the control plane calls all of a type together.
    fn note_version(&self, _kind: Kind, _version: &str) {}

    /// How a stream from another source than the one of all types is spoken with; `None` if there is none such.
    fn stream(&self, _channel: &Channel) -> Option<StreamConfig> {
        None
    }

    /// Whether a resource that others look after need not be waited for; `None` is one that comes by a channel.
    fn elsewhere(&self, _key: &Key) -> Option<bool> {
        None
    }

    /// A resource is gone.
    fn forget(&mut self, key: &Key);
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
    /// After so long without news of it, it counts for nothing (`endpoint_stale_after`); `None` is never.
    pub stale_after: Option<Duration>,
    /// Under which prefixes of statistics its needs are counted, of those that are counted one by one.
    pub scopes: BTreeMap<Key, Arc<str>>,
}

/// A resource to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Its type.
    pub kind: Kind,
    /// Where it comes from.
    pub source: Source,
    /// Its name.
    pub name: Arc<str>,
    /// How long to wait for it before going on without (`initial_fetch_timeout`); `None` is for ever.
    pub within: Option<Duration>,
}

impl Need {
    pub(super) fn key(&self) -> Key {
        Key::new(self.kind, &self.source, &self.name)
    }
}

/// A resource that goes into force, or out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<P> {
    /// Its type.
    pub kind: Kind,
    /// Where it comes from.
    pub source: Source,
    /// Its name; for endpoints that of the cluster that gets them.
    pub name: Arc<str>,
    /// `None` removes; a cluster whose endpoints have not come in time has none.
    pub part: Option<P>,
}

pub(super) struct World<C: Compile> {
    compiler: C,
    /// Resources of the bootstrap: the control plane can neither change nor remove them.
    statics: BTreeSet<Key>,
    /// Those of them that are put in force here.
    late_statics: BTreeSet<Key>,
    /// A change of one asks for it a dozen times.
    resources: FastMap<Key, Box<Resource<C::Part>>>,
    users: Users,
    /// Those that have a candidate.
    waiting: BTreeSet<Key>,
    /// Removed clusters that are still in force, or that never were and a candidate still leads to, and since when.
    lingering: BTreeMap<Arc<str>, Instant>,
    /// Needs that nothing good has come for, and need not be waited for: the control plane has answered.
    denied: BTreeSet<Key>,
    /// Route configurations that the control plane said there are none of, and that have not come since.
    withheld: BTreeSet<Key>,
    /// Extensions that have gone, and what could not be made without them.
    faults: Vec<(Key, ConfigError)>,
    /// Route configurations and endpoints that have not come in time.
    late: Vec<Key>,
    /// Put in force by the last batch, while that is being applied.
    applying: Vec<Key>,
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
    /// What is in force, or is being put there.
    live: Option<Version<P>>,
    /// What is in force until that is, and goes on if it can't be.
    before: Option<Version<P>>,
    expires: Option<Instant>,
}

struct Version<P> {
    /// As it was sent.
    value: Arc<[u8]>,
    /// What the control plane calls it.
    version: String,
    /// Until it is in force; of endpoints until a cluster has them.
    part: Option<P>,
    asks: Asks,
    /// When it, or the first candidate that it takes the place of, began to wait.
    since: Instant,
}

/// A compiled resource, and what those become that have it compiled into them.
type Tried<P> = (Compiled<P>, Vec<(Key, Version<P>)>);

impl<P> Resource<P> {
    fn new() -> Resource<P> {
        Resource { next: None, live: None, before: None, expires: None }
    }

    /// The last that was accepted.
    fn last_mut(&mut self) -> Option<&mut Version<P>> {
        self.next.as_mut().or(self.live.as_mut())
    }
}

impl<C: Compile> World<C> {
    /// Nothing has come yet; `statics` are in force.
    pub(super) fn new(compiler: C, statics: BTreeMap<Key, Static>, now: Instant) -> World<C> {
        let mut world = World {
            compiler,
            statics: BTreeSet::new(),
            late_statics: BTreeSet::new(),
            resources: FastMap::default(),
            users: Users::default(),
            waiting: BTreeSet::new(),
            lingering: BTreeMap::new(),
            denied: BTreeSet::new(),
            withheld: BTreeSet::new(),
            faults: Vec::new(),
            late: Vec::new(),
            applying: Vec::new(),
            due: BTreeSet::new(),
            removals: Vec::new(),
            expiries: BTreeSet::new(),
            heard: None,
        };
        world.set_statics(statics, now);
        world
    }

    pub(super) fn compiler(&mut self) -> &mut C {
        &mut self.compiler
    }

    /// The control plane has said something.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Names that are wanted from now on, or no longer.
    pub(super) fn take_wants(&mut self) -> Vec<Want> {
        self.users.take_wants()
    }

    /// Where resources are counted from now on, or no longer.
    pub(super) fn take_counts(&mut self) -> Vec<Count> {
        self.users.take_counts()
    }

    /// Names of a kind that were accepted and not removed, in order.
    pub(super) fn names(&self, kind: Kind) -> Vec<Arc<str>> {
        let keys = self.resources.keys().filter(|key| key.kind == kind);
        let keys = keys.filter(|key| !self.statics.contains(key) && !self.lingers(key));
        let mut names: Vec<_> = keys.map(|key| key.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// How many clusters and listeners wait to be put in force.
    pub(super) fn warming(&self) -> (usize, usize) {
        let of = |kind| self.waiting.iter().filter(|key| key.kind == kind).count();
        (of(Kind::Cluster), of(Kind::Listener))
    }

    /// Whether everything that was accepted is in force.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// These values of a kind are to be accepted next.
    pub(super) fn expect<'a>(&mut self, kind: Kind, values: impl Iterator<Item = &'a [u8]>) {
        self.compiler.expect(kind, values);
    }

    /// Takes a resource as it was sent, with where it stands if that is a document; answers whether that is a change, which the bytes that it has already are not.
    pub(super) fn accept(
        &mut self,
        key: &Key,
        version: &str,
        value: Vec<u8>,
        origin: Option<&Origin>,
        now: Instant,
    ) -> Result<bool, ConfigError> {
        if self.statics.contains(key) || !self.is_wanted(key) {
            return Ok(false);
        }
        let lingers = self.lingers(key);
        let last = self.resources.get_mut(key).and_then(|resource| resource.last_mut());
        if let Some(same) = last.filter(|last| *last.value == *value && !lingers) {
            version.clone_into(&mut same.version);
            note(&self.compiler, &self.statics, key, Event::Renamed(version));
            return Ok(false);
        }
        let tried = self.try_on(key, &value, now).map_err(|fault| placed(origin, fault));
        let (Compiled { part, asks }, users) = tried.inspect_err(|error| {
            let reason = error.to_string();
            note(
                &self.compiler,
                &self.statics,
                key,
                Event::Refused { value: &value, version, reason: &reason },
            );
        })?;
        self.denied.remove(key);
        self.withheld.remove(key);
        if lingers {
            self.lingering.remove(&key.name);
        }
        let version = version.to_owned();
        self.wait(key, Version { value: value.into(), version, part: Some(part), asks, since: now });
        users.into_iter().for_each(|(key, version)| self.wait(&key, version));
        Ok(true)
    }

    /// Compiles a resource, and what has it compiled into it.
    fn try_on(&mut self, key: &Key, value: &[u8], now: Instant) -> Result<Tried<C::Part>, ConfigError> {
        let compiled = self.compiler.compile(key, value)?;
        let users = if key.kind == Kind::Extension { self.fit(key, now)? } else { Vec::new() };
        Ok((compiled, users))
    }

    /// Lets a version wait until it is ready, in place of the one that does.
    fn wait(&mut self, key: &Key, mut version: Version<C::Part>) {
        self.users.add(key, &version.asks);
        let resource = self.resources.entry(key.clone()).or_insert_with(|| Box::new(Resource::new()));
        let previous = resource.next.take();
        version.since = previous.as_ref().map_or(version.since, |previous| previous.since);
        let accepted = Event::Accepted { value: &version.value, version: &version.version };
        note(&self.compiler, &self.statics, key, accepted);
        version.part.iter().for_each(|part| self.compiler.waits(part));
        resource.next = Some(version);
        self.waiting.insert(key.clone());
        self.drop_asks(key, previous.map(|previous| previous.asks));
    }

    /// Extensions that have gone and without which something could not be made, which stays what it is.
    pub(super) fn take_faults(&mut self) -> Vec<(Key, ConfigError)> {
        std::mem::take(&mut self.faults)
    }

    /// Route configurations and endpoints without which something has gone on since this was asked.
    pub(super) fn take_late(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.late)
    }

    /// Begins a resource's time to live, or takes it away.
    pub(super) fn set_ttl(&mut self, key: &Key, ttl: Option<Duration>, now: Instant) {
        self.end_ttl(key);
        let Some(resource) = self.resources.get_mut(key) else { return };
        let stale_after = resource.last_mut().and_then(|last| last.asks.stale_after);
        let ttl = ttl.into_iter().chain(stale_after).min();
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

    /// The control plane has no such resource now, or nothing has come of it in time; the last that was good stays.
    pub(super) fn missing(&mut self, key: &Key) {
        self.deny(key);
        self.compiler.missing(key);
    }

    /// The control plane says that a resource is gone. Only what is asked for as a whole can go so, and configurations of
    /// filters: routes, endpoints and secrets go with what names them, and whatever is said of them, the last that was
    /// good stays. Of routes that never came this is no answer, as for Envoy (rds/rds_route_config_subscription.cc): a
    /// listener without them would be put in the place of one that serves.
    pub(super) fn remove(&mut self, key: &Key, now: Instant) {
        if key.kind == Kind::Routes {
            if self.users.has(key) && !self.resources.contains_key(key) {
                self.withheld.insert(key.clone());
            }
            return;
        }
        if !key.kind.is_wildcard() {
            self.missing(key);
        }
        if key.kind == Kind::Extension {
            return self.remove_extension(key, now);
        }
        if !key.kind.is_wildcard() || self.statics.contains(key) || self.lingers(key) {
            return;
        }
        self.end_ttl(key);
        let Some(resource) = self.resources.get_mut(key) else {
            return note(&self.compiler, &self.statics, key, Event::Gone);
        };
        self.waiting.remove(key);
        note(&self.compiler, &self.statics, key, Event::Withdrawn);
        let next = resource.next.take().map(|next| next.asks);
        let live = resource.live.as_mut().map(|live| std::mem::take(&mut live.asks));
        match (key.kind, live) {
            // Endpoints that are sent for it from now on are those of something that is no more.
            (Kind::Cluster, Some(live)) => {
                self.lingering.insert(key.name.clone(), now);
                self.drop_asks(key, Some(live));
            }
            (_, live) => {
                if live.is_some() {
                    self.removals.push(key.clone());
                } else if key.kind == Kind::Cluster {
                    // Who waits for it is about to be told of something else.
                    self.lingering.insert(key.name.clone(), now);
                }
                self.resources.remove(key);
                self.compiler.forget(key);
                self.drop_asks(key, live);
            }
        }
        self.drop_asks(key, next);
    }

    /// The control plane has nothing good for a name: who needs it need not wait.
    pub(super) fn deny(&mut self, key: &Key) {
        if !key.kind.is_wildcard() && self.users.has(key) {
            self.denied.insert(key.clone());
        }
    }

    /// Endpoints go to a cluster under its name, and come under one that it chooses.
    pub(super) fn assigned(&self, key: &Key) -> Key {
        let cluster = self.resources.get(&Key::of_name(Kind::Cluster, &key.name));
        let asks = cluster.filter(|_| key.kind == Kind::Endpoints).and_then(|cluster| cluster.live.as_ref());
        let need = asks.and_then(|live| live.asks.needs.iter().find(|need| need.kind == Kind::Endpoints));
        need.map_or_else(|| key.clone(), Need::key)
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
            match key.kind {
                Kind::Endpoints => self.go_stale(&key),
                _ => self.remove(&key, now),
            }
            gone.push(key);
        }
        gone
    }

    /// Takes the endpoints of an assignment from those that have it. The same again is news.
    fn go_stale(&mut self, key: &Key) {
        let live = self.resources.get_mut(key).and_then(|resource| resource.live.as_mut());
        // Of endpoints whose time to live alone is over the last that was good stays, as when they are removed.
        if let Some(live) = live.filter(|live| live.asks.stale_after.is_some()) {
            (live.value, live.part) = (Arc::default(), None);
            self.due.extend(self.users.of(key).map(|user| user.name.clone()));
            self.tell_users(key, Event::Stale);
        }
    }

    /// Notes for who counts it that endpoints were taken which count only for a time.
    pub(super) fn tell_assigned(&self, key: &Key) {
        let live = self.resources.get(key).and_then(|resource| resource.live.as_ref());
        if live.is_some_and(|live| live.asks.stale_after.is_some()) {
            self.tell_users(key, Event::Expiring);
        }
    }

    /// Notes for who counts it that there are no endpoints of a name.
    pub(super) fn tell_unassigned(&self, key: &Key) {
        self.tell_users(key, Event::Unassigned);
    }

    fn tell_users(&self, key: &Key, event: Event<'_>) {
        self.users.of(key).for_each(|user| self.compiler.note(user, event));
    }

    fn is_wanted(&self, key: &Key) -> bool {
        key.kind.is_wildcard() || self.users.has(key)
    }

    fn lingers(&self, key: &Key) -> bool {
        key.kind == Kind::Cluster && self.lingering.contains_key(&key.name)
    }

    /// What a version asked for is not asked for by it any more. What nobody asks for goes.
    fn drop_asks(&mut self, key: &Key, asks: Option<Asks>) {
        let mut unused = asks.map(|asks| self.users.remove(key, &asks)).unwrap_or_default();
        while let Some(key) = unused.pop() {
            self.end_ttl(&key);
            self.denied.remove(&key);
            self.withheld.remove(&key);
            let Some(resource) = self.resources.remove(&key) else { continue };
            let Resource { next, live, before, expires: _ } = *resource;
            self.waiting.remove(&key);
            self.compiler.forget(&key);
            if live.is_some() && key.kind != Kind::Endpoints {
                self.removals.push(key.clone());
            }
            for version in [next, live, before].into_iter().flatten() {
                unused.extend(self.users.remove(&key, &version.asks));
            }
        }
    }
}
