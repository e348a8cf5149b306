//! The client as a machine: what happened and when goes in, what is to be done comes out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_core::error::ConfigError;
use sixfold_core::metrics::Registry;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;

use super::backoff::{Backoff, BackoffConfig};
use super::inbox::{Inbox, Item, Merged};
use super::kind::Kind;
use super::session::{Answer, Flavor, Request, Session};
use super::stats::Stats;
use super::update::{Content, Resource, Response, UnknownType};
use super::world::{Asks, Change, Compile, World};
use crate::tracker::Event;

/// How a control plane is asked, and for what.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// Which protocol is spoken.
    pub flavor: Flavor,
    /// Who asks.
    pub node: Node,
    /// Sends the node with every message (unless `set_node_on_first_message_only`).
    pub node_always: bool,
    /// The types of which everything is wanted, and how long a start waits for the first response of each
    /// (`initial_fetch_timeout`); `None` is for ever.
    pub wildcards: BTreeMap<Kind, Option<Duration>>,
    /// Between streams.
    pub backoff: BackoffConfig,
    /// Clusters and listeners of the bootstrap, which the control plane can neither change nor remove, and what they
    /// ask it for.
    pub statics: BTreeMap<(Kind, Arc<str>), Asks>,
}

/// Something to be done.
#[derive(Debug)]
pub enum Step<P> {
    /// Open a stream, then say that it is [`Machine::connected`] or [`Machine::disconnected`].
    Connect,
    /// Put these in force together, then say [`Machine::applied`].
    Apply(Vec<Change<P>>),
    /// Nothing until something happens, or until then.
    Wait(Option<Instant>),
}

/// A change that could not be put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// What is wrong.
    pub reason: String,
}

/// A client of one control plane.
pub struct Machine<C: Compile> {
    session: Session,
    world: World<C>,
    inbox: Inbox,
    link: Link,
    backoff: Backoff,
    stats: Stats,
    /// What waits for the change that is being applied.
    applying: Option<Vec<Pending>>,
    /// What could not be put in force although it was acknowledged: to be told with the next answer of its type.
    late: BTreeMap<Kind, Vec<String>>,
    /// Types whose first response is awaited.
    first: BTreeMap<Kind, First>,
    initialized: bool,
}

enum Link {
    Down { until: Instant },
    Opening,
    Up,
}

/// Since when the first response of a type is awaited: until when a start waits for it.
struct First {
    until: Option<Instant>,
}

/// Responses of a type that are to be answered.
struct Pending {
    kind: Kind,
    responses: Vec<(String, String)>,
    faults: Vec<String>,
    /// What was accepted, with its version.
    accepted: BTreeMap<Arc<str>, String>,
}

impl<C: Compile> Machine<C> {
    /// A client that has not connected yet. `random` jitters its waits.
    pub fn new(
        config: AdsConfig,
        compiler: C,
        registry: &Registry,
        random: fastrand::Rng,
        now: Instant,
    ) -> Machine<C> {
        let AdsConfig { flavor, node, node_always, wildcards, backoff, statics } = config;
        let mut session = Session::new(flavor, node, node_always);
        wildcards.keys().for_each(|kind| session.want_all(*kind));
        let first =
            |within: Option<Duration>| First { until: within.and_then(|within| now.checked_add(within)) };
        Machine {
            session,
            world: World::new(compiler, statics, now),
            inbox: Inbox::default(),
            link: Link::Down { until: now },
            backoff: Backoff::new(backoff, random),
            stats: Stats::new(registry),
            applying: None,
            late: BTreeMap::new(),
            first: wildcards.into_iter().map(|(kind, within)| (kind, first(within))).collect(),
            initialized: false,
        }
    }

    /// What is to be done now. Ask again after every event and after having done it.
    pub fn step(&mut self, now: Instant) -> Step<C::Part> {
        if self.applying.is_some() {
            return Step::Wait(None);
        }
        self.give_up_waiting(now);
        loop {
            let pending = self.look(now);
            let batch = self.world.settle(now);
            self.pass_on_wants();
            for ((kind, name), error) in self.world.take_faults() {
                let fault = error.in_resource(format!("{} \"{name}\"", kind.noun())).to_string();
                self.late.entry(kind).or_default().push(fault);
            }
            if !batch.is_empty() {
                self.applying = Some(pending.into_iter().collect());
                return Step::Apply(batch);
            }
            match pending {
                Some(pending) => self.answer(pending),
                None => break,
            }
        }
        self.refuse_late();
        self.initialized |= self.first.is_empty() && self.world.is_settled();
        // Not before all that has come is known: a new stream begins with what the client has, and what the other
        // side does not hear of then it will never take away.
        if let Link::Down { until } = self.link
            && until <= now
        {
            self.link = Link::Opening;
            return Step::Connect;
        }
        let first = self.first.values().filter_map(|first| first.until);
        Step::Wait(first.chain(self.reconnect_at()).chain(self.world.deadline(now)).min())
    }

    /// What compiles resources.
    pub fn compiler(&mut self) -> &mut C {
        self.world.compiler()
    }

    /// Clusters and listeners of another bootstrap are in force, or about to be, in place of those of the last.
    pub fn set_statics(&mut self, statics: BTreeMap<(Kind, Arc<str>), Asks>, now: Instant) {
        for (kind, name) in self.world.set_statics(statics, now) {
            // What was acknowledged of that name was passed over.
            self.session.know(kind, &name, None);
        }
    }

    /// The next message for the control plane, when the stream has room for one.
    pub fn next_request(&mut self) -> Option<Request> {
        self.session.next_request()
    }

    /// Whether responses may come; otherwise the stream is not read, and holds the control plane back.
    pub fn has_room(&self) -> bool {
        self.inbox.has_room() && self.session.has_room()
    }

    /// Whether the first resources are in force, or were waited for long enough: what a start waits for.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// A stream is open.
    pub fn connected(&mut self) {
        self.link = Link::Up;
        self.session.connected();
        self.stats.control_plane.connected_state().set(1);
    }

    /// The stream has ended, or could not be opened. Everything that is in force stays, for as long as it takes.
    /// Answers after how long the next one is opened.
    pub fn disconnected(&mut self, now: Instant) -> Duration {
        let wait = self.backoff.next();
        self.link = Link::Down { until: now + wait };
        self.session.disconnected();
        self.inbox.forget_responses();
        self.late.clear();
        self.applying.iter_mut().flatten().for_each(|pending| pending.responses.clear());
        self.stats.disconnected();
        wait
    }

    /// A response has come.
    ///
    /// # Errors
    /// Of a type that nobody asks for: it is passed over, and not answered.
    pub fn received(&mut self, response: Response, now: Instant) -> Result<(), UnknownType> {
        self.backoff.reset();
        self.world.hear(now);
        let update = response.update()?;
        let names = update.resources.iter().map(|resource| &resource.name);
        self.session.received(update.kind, &update.nonce, names);
        self.inbox.put(update);
        Ok(())
    }

    /// The change of the last [`Step::Apply`] is in force, but for these parts.
    pub fn applied(&mut self, failures: Vec<Failure>) {
        let mut pending = self.applying.take().unwrap_or_default();
        let failed: Vec<_> = failures.iter().map(|failure| (failure.kind, failure.name.clone())).collect();
        for ((kind, name), version) in self.world.applied(&failed) {
            self.session.know(kind, &name, version);
            pending.iter_mut().filter(|pending| pending.kind == kind).for_each(|pending| {
                pending.accepted.remove(&name);
            });
        }
        for Failure { kind, name, reason } in failures {
            let fault = format!("{} \"{name}\": {reason}", kind.noun());
            self.world.compiler().note(kind, &name, Event::Failed(&reason));
            match pending.iter_mut().find(|pending| pending.kind == kind) {
                Some(pending) => pending.faults.push(fault),
                // What has waited for others was acknowledged when it came.
                None if matches!(self.link, Link::Up) => self.late.entry(kind).or_default().push(fault),
                None => {}
            }
        }
        pending.into_iter().for_each(|pending| self.answer(pending));
    }

    /// Looks at the responses of one type.
    fn look(&mut self, now: Instant) -> Option<Pending> {
        let (kind, Merged { items, whole, responses, .. }) = self.inbox.take()?;
        self.first.remove(&kind);
        if whole {
            let absent = self.world.names(kind).into_iter().filter(|name| !items.contains_key(name));
            absent.collect::<Vec<_>>().into_iter().for_each(|name| self.remove(kind, &name, now));
        }
        if kind == Kind::Secret {
            // A response holds what there is of what was asked for. Elsewhere than in Envoy, one that is missing keeps
            // nobody waiting until its time is over.
            let absent = self.session.absent(kind, |name| items.contains_key(name));
            absent.into_iter().for_each(|name| self.world.missing(&(kind, name)));
        }
        let faults = self.late.remove(&kind).unwrap_or_default();
        let mut pending = Pending { kind, responses, faults, accepted: BTreeMap::new() };
        self.world.expect(kind, items.values().filter_map(Item::value));
        for (name, item) in items {
            match item {
                Item::Gone => self.remove(kind, &name, now),
                Item::Is(resource) => match self.take(kind, &name, resource, now) {
                    Ok(version) => {
                        pending.accepted.extend(version.map(|version| (name, version)));
                    }
                    Err(error) => {
                        self.world.deny(&(kind, name.clone()));
                        let place = format!("{} \"{name}\"", kind.noun());
                        let all = error.in_resource(place).into_all();
                        pending.faults.extend(all.iter().map(ToString::to_string));
                    }
                },
            }
        }
        Some(pending)
    }

    /// Takes a resource; answers its version if it brought one.
    fn take(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        resource: Resource,
        now: Instant,
    ) -> Result<Option<String>, ConfigError> {
        let Resource { name: _, version, content, ttl } = resource;
        let version = match content {
            Content::Fault(reason) => return Err(ConfigError::new(reason)),
            Content::Heartbeat => None,
            Content::Value(_) if !self.session.wants(kind, name) => return Ok(None),
            Content::Value(value) => {
                self.world.accept(kind, name, &version, value, now)?;
                Some(version)
            }
        };
        self.world.set_ttl(&(kind, name.clone()), ttl, now);
        Ok(version)
    }

    fn remove(&mut self, kind: Kind, name: &Arc<str>, now: Instant) {
        self.world.remove(kind, name, now);
        self.session.know(kind, name, None);
    }

    /// What was accepted is known from now on, what was refused is not; both are told.
    fn answer(&mut self, pending: Pending) {
        let Pending { kind, mut responses, faults, accepted } = pending;
        for (name, version) in accepted {
            if self.session.wants(kind, &name) {
                self.session.know(kind, &name, Some(version));
            }
        }
        let error = (!faults.is_empty()).then(|| faults.join("; "));
        if let Some(error) = &error {
            tracing::warn!("refused of the control plane's resources, the last good ones stay: {error}");
        }
        self.stats.answered(kind, error.is_some());
        let last = responses.pop();
        if let Some((_, version)) = &last {
            self.world.compiler().note_version(kind, version);
        }
        let earlier = responses.into_iter().map(|response| (response, None));
        for ((nonce, version), error) in earlier.chain(last.map(|response| (response, error))) {
            self.session.answer(Answer { kind, nonce, version, error });
        }
    }

    /// Refuses what was acknowledged before it was tried, by the last response of its type.
    fn refuse_late(&mut self) {
        for (kind, faults) in std::mem::take(&mut self.late) {
            self.stats.answered(kind, true);
            self.session.refuse(kind, faults.join("; "));
        }
    }

    fn pass_on_wants(&mut self) {
        for ((kind, name), wanted) in self.world.take_wants() {
            self.session.want(kind, &name, wanted);
        }
    }

    /// What has not come in time is not waited for, and what has not been confirmed in time is gone.
    fn give_up_waiting(&mut self, now: Instant) {
        let late = |first: &First| first.until.is_some_and(|until| until <= now);
        for (kind, _) in self.first.extract_if(.., |_, first| late(first)) {
            if let Some(stats) = self.stats.of(kind) {
                stats.init_fetch_timeout().inc();
            }
        }
        for (kind, name) in self.world.expire(now) {
            self.session.know(kind, &name, None);
        }
    }

    fn reconnect_at(&self) -> Option<Instant> {
        match self.link {
            Link::Down { until } => Some(until),
            _ => None,
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
