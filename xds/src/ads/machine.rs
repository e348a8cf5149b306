//! The client as a machine: what happened and when goes in, what is to be done comes out.
//!
//! Resources come by channels: one stream of all types, streams of one type, files. Each has an end of its own, with what is
//! wanted there and what has come; what has come by all of them is one world, whose order holds whatever brings it.

mod answers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_core::error::ConfigError;
use sixfold_core::metrics::Registry;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;

use self::answers::{Pending, refused};
use super::file;
use super::key::{Channel, Key};
use super::kind::Kind;
use super::peer::{Link, Peer, StreamConfig};
use super::session::{Flavor, Request};
use super::stats::{Stats, Subscription};
use super::update::{Response, UnknownType};
use super::users::Want;
use super::world::{Change, Compile, Static, World};
use crate::rds::Source;

/// What is asked for, and where.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// Who asks.
    pub node: Node,
    /// The stream of all types, if there is one.
    pub ads: Option<StreamConfig>,
    /// The types of which everything is wanted.
    pub wildcards: BTreeMap<Kind, Wildcard>,
    /// Clusters and listeners of the bootstrap, which no source can either change or remove, and what they ask for.
    pub statics: BTreeMap<Key, Static>,
}

/// A type of which everything is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard {
    /// Where it comes from.
    pub source: Source,
    /// How long a start waits for the first response (`initial_fetch_timeout`); `None` is for ever.
    pub within: Option<Duration>,
}

/// Something to be done.
#[derive(Debug)]
pub enum Step<P> {
    /// Open this stream, then say that it is [`Machine::connected`] or [`Machine::disconnected`].
    Connect(Channel),
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

/// A client of control planes and files.
pub struct Machine<C: Compile> {
    world: World<C>,
    peers: BTreeMap<Channel, Peer>,
    /// Where everything of a type comes from.
    wildcards: BTreeMap<Kind, Channel>,
    node: Node,
    registry: Registry,
    random: fastrand::Rng,
    stats: Stats,
    /// What waits for the change that is being applied.
    applying: Option<Vec<Pending>>,
    /// Types whose first response is awaited.
    first: BTreeMap<Kind, First>,
    initialized: bool,
    /// Whether requests have come to be too many since that was asked.
    limited: bool,
    /// How many names were ever wanted of a source. A number of this process, not of a source: one that is no longer wanted
    /// and wanted again, unseen by the reader of files, has another one.
    asked: u64,
}

/// Since when the first response of a type is awaited: until when a start waits for it.
struct First {
    until: Option<Instant>,
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
        let AdsConfig { node, ads, wildcards, statics } = config;
        let until = |within: Option<Duration>| within.and_then(|within| now.checked_add(within));
        let first = wildcards.iter().map(|(kind, wildcard)| (*kind, First { until: until(wildcard.within) }));
        let mut machine = Machine {
            world: World::new(compiler, statics, now),
            peers: BTreeMap::new(),
            wildcards: wildcards.iter().map(|(kind, all)| (*kind, Channel::of(*kind, &all.source))).collect(),
            node,
            registry: registry.clone(),
            random,
            stats: Stats::new(registry, wildcards.iter().map(|(kind, all)| (*kind, &all.source))),
            applying: None,
            first: first.collect(),
            initialized: false,
            limited: false,
            asked: 0,
        };
        if let Some(ads) = ads {
            machine.add_stream(&Channel::Aggregated, ads, now);
        }
        for (kind, channel) in machine.wildcards.clone() {
            if let Some(peer) = machine.peer(&channel, now) {
                peer.session.want_all(kind);
            }
        }
        machine
    }

    fn add_stream(&mut self, channel: &Channel, config: StreamConfig, now: Instant) {
        let random = self.random.fork();
        let peer = Peer::stream(channel, config, self.node.clone(), &self.registry, random, now);
        self.peers.insert(channel.clone(), peer);
    }

    /// The end of a channel, which is made when something is first wanted of it; `None` if it can't be.
    fn peer(&mut self, channel: &Channel, now: Instant) -> Option<&mut Peer> {
        if !self.peers.contains_key(channel) {
            if channel.path().is_some() {
                self.peers.insert(channel.clone(), Peer::file());
            } else {
                let config = self.world.compiler().stream(channel)?;
                self.add_stream(channel, config, now);
            }
        }
        self.peers.get_mut(channel)
    }

    /// What brings a resource.
    fn channel_of(&self, key: &Key) -> Channel {
        let wildcard = self.wildcards.get(&key.kind);
        wildcard.cloned().unwrap_or_else(|| Channel::of(key.kind, &key.source))
    }

    /// Notes for the session of a resource's channel which version of it is known.
    fn know(&mut self, key: &Key, version: Option<String>) {
        let channel = self.channel_of(key);
        if let Some(peer) = self.peers.get_mut(&channel) {
            peer.session.know(key.kind, &key.name, version);
        }
    }

    /// What could not be put in force of what was acknowledged is told later.
    fn fail_late(&mut self, key: &Key, fault: String) {
        if self.world.is_static(key) {
            // Those who send others of its type have not sent it.
            return tracing::error!("{fault}");
        }
        let channel = self.channel_of(key);
        match self.peers.get_mut(&channel) {
            Some(peer) if matches!(peer.link, Link::Up) => {
                peer.late.entry(key.kind).or_default().push(fault);
            }
            Some(peer) if matches!(peer.link, Link::File) => refused(&channel, &fault),
            _ => {}
        }
    }

    /// What is to be done now. Ask again after every event and after having done it.
    pub fn step(&mut self, now: Instant) -> Step<C::Part> {
        if self.applying.is_some() {
            return Step::Wait(self.limited_until());
        }
        self.give_up_waiting(now);
        loop {
            let pending = self.look_at_next(now);
            let batch = self.world.settle(now);
            self.stats.warm(self.world.warming());
            self.pass_on_wants(now);
            for key in self.world.take_late() {
                self.stats.of_key(&key).for_each(Subscription::timed_out);
            }
            for (key, error) in self.world.take_faults() {
                self.fail_late(&key, error.in_resource(key.shown()).to_string());
            }
            if !batch.is_empty() {
                self.applying = Some(pending);
                return Step::Apply(batch);
            }
            if pending.is_empty() {
                break;
            }
            pending.into_iter().for_each(|pending| self.answer(pending));
        }
        self.refuse_late();
        self.initialized |= self.first.is_empty() && self.world.is_settled();
        // Not before all that has come is known: a new stream begins with what the client has, and what the other
        // side does not hear of then it will never take away.
        for (channel, peer) in &mut self.peers {
            if peer.reconnect_at().is_some_and(|until| until <= now) {
                peer.link = Link::Opening;
                return Step::Connect(channel.clone());
            }
        }
        let first = self.first.values().filter_map(|first| first.until);
        let reconnect = self.peers.values().filter_map(Peer::reconnect_at);
        let waits = first.chain(reconnect).chain(self.world.deadline(now)).chain(self.limited_until());
        Step::Wait(waits.min())
    }

    /// When a request may be sent that waits for others to be less: also while a change is being applied.
    pub(super) fn limited_until(&self) -> Option<Instant> {
        self.peers.values().filter_map(Peer::limited_until).min()
    }

    /// What compiles resources.
    pub fn compiler(&mut self) -> &mut C {
        self.world.compiler()
    }

    /// Clusters and listeners of another bootstrap are in force, or about to be, in place of those of the last.
    pub fn set_statics(&mut self, statics: BTreeMap<Key, Static>, now: Instant) {
        for key in self.world.set_statics(statics, now) {
            // What was acknowledged of that name was passed over.
            self.know(&key, None);
        }
        self.ask_again();
    }

    /// Has files read again whose routes were refused: the clusters that they lead to, or the filters that they are for, may
    /// have come. Envoy reads them when who asks for them begins, which it does not before it has its clusters.
    fn ask_again(&mut self) {
        for peer in self.peers.values_mut().filter(|peer| peer.refused.is_some()) {
            self.asked += 1;
            peer.asked = self.asked;
        }
    }

    /// Whether a channel is still wanted: one that nobody asks for anything more is to be closed.
    pub fn has(&self, channel: &Channel) -> bool {
        self.peers.contains_key(channel)
    }

    /// Which protocol is spoken by a stream.
    pub fn flavor(&self, channel: &Channel) -> Flavor {
        self.peers.get(channel).map_or(Flavor::State, |peer| peer.session.flavor())
    }

    /// The files that are wanted, each with a number: when that is another one the file is to be read again, changed or
    /// not.
    pub fn files(&self) -> BTreeMap<Channel, u64> {
        let files = self.peers.iter().filter(|(channel, _)| channel.path().is_some());
        files.map(|(channel, peer)| (channel.clone(), peer.asked)).collect()
    }

    /// The next message of a stream, when it has room for one.
    pub fn next_request(&mut self, channel: &Channel, now: Instant) -> Option<Request> {
        let (request, limited) = self.peers.get_mut(channel)?.next_request(now);
        self.limited |= limited;
        request
    }

    /// Whether a request has come to wait for others to be less since this was asked, so that [`Machine::step`] waits for
    /// something else.
    pub fn take_limited(&mut self) -> bool {
        std::mem::take(&mut self.limited)
    }

    /// Whether responses may come; otherwise the stream is not read, and holds the control plane back.
    pub fn has_room(&self, channel: &Channel) -> bool {
        self.peers.get(channel).is_some_and(|peer| peer.inbox.has_room() && peer.session.has_room())
    }

    /// Whether the first resources are in force, or were waited for long enough: what a start waits for.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// A stream is open.
    pub fn connected(&mut self, channel: &Channel) {
        if let Some(peer) = self.peers.get_mut(channel) {
            peer.connected();
        }
    }

    /// A stream has ended, or could not be opened. Everything that is in force stays, for as long as it takes.
    /// Answers after how long the next one is opened.
    pub fn disconnected(&mut self, channel: &Channel, now: Instant) -> Duration {
        self.stats.failed(channel, &self.wildcards);
        self.applying.iter_mut().flatten().for_each(|pending| pending.disconnected(channel));
        self.peers.get_mut(channel).map(|peer| peer.disconnected(now)).unwrap_or_default()
    }

    /// A response has come by a stream.
    ///
    /// # Errors
    /// Of a type that nobody asks for there: it is passed over, and not answered.
    pub fn received(
        &mut self,
        channel: &Channel,
        response: Response,
        now: Instant,
    ) -> Result<(), UnknownType> {
        let Some(peer) = self.peers.get_mut(channel) else { return Ok(()) };
        peer.backoff.reset();
        self.world.hear(now);
        let update = response.update()?;
        let comes = match channel {
            Channel::Of(kind, _) => update.kind == *kind,
            Channel::Aggregated => {
                !update.kind.is_wildcard() || self.wildcards.get(&update.kind) == Some(channel)
            }
        };
        if !comes {
            return Err(UnknownType(update.kind.type_url().to_owned()));
        }
        if let Some(identifier) = update.control_plane.as_deref().filter(|it| !it.is_empty()) {
            peer.stats.identifier.set(identifier);
        }
        let names = update.resources.iter().map(|resource| &resource.name);
        peer.session.received(update.kind, &update.nonce, names);
        peer.inbox.put(update);
        Ok(())
    }

    /// A file was read, or could not be.
    pub fn read(&mut self, channel: &Channel, content: Result<Vec<u8>, ConfigError>, now: Instant) {
        let (Channel::Of(kind, Source::Path(path)), Some(peer)) = (channel, self.peers.get_mut(channel))
        else {
            return;
        };
        self.world.hear(now);
        let is_read = content.is_ok();
        match content.and_then(|content| file::update(*kind, path, &content)) {
            Ok(update) => peer.inbox.put(update),
            Err(error) => {
                if is_read {
                    // No cluster makes it a better one.
                    peer.refused = None;
                }
                let (error, wanted) =
                    (error.in_file(path.display().to_string()), peer.wanted(*kind, channel.source()));
                refused(channel, &error.to_string());
                self.stats.of(*kind).into_iter().for_each(Subscription::refused);
                self.first.remove(kind);
                self.refuse_all(*kind, wanted, &error);
            }
        }
    }

    fn pass_on_wants(&mut self, now: Instant) {
        for count in self.world.take_counts() {
            self.stats.count(count);
        }
        let wants = self.world.take_wants();
        if wants.is_empty() {
            return;
        }
        for Want { key, wanted } in wants {
            if self.world.compiler().elsewhere(&key).is_some() {
                continue;
            }
            let channel = self.channel_of(&key);
            self.asked += u64::from(wanted);
            let asked = wanted.then_some(self.asked);
            let peer = if wanted { self.peer(&channel, now) } else { self.peers.get_mut(&channel) };
            match peer {
                Some(peer) => peer.want(key.kind, &key.name, asked),
                // What names it was compiled, and the channel with it, by a bootstrap that has gone.
                None if wanted => self.world.missing(&key),
                None => {}
            }
        }
        let wildcards = &self.wildcards;
        self.peers.retain(|channel, peer| {
            *channel == Channel::Aggregated || wildcards.values().any(|of| of == channel) || !peer.is_idle()
        });
    }

    /// What has not come in time is not waited for, and what has not been confirmed in time is gone.
    fn give_up_waiting(&mut self, now: Instant) {
        let late = |first: &First| first.until.is_some_and(|until| until <= now);
        let over = self.first.extract_if(.., |_, first| late(first));
        let over: Vec<Kind> = over.map(|(kind, _)| kind).collect();
        for kind in &over {
            self.stats.of(*kind).into_iter().for_each(Subscription::timed_out);
        }
        if over.contains(&Kind::Cluster) {
            self.ask_again();
        }
        for key in self.world.expire(now) {
            self.know(&key, None);
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
