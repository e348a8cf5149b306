//! What has come is looked at, put in force and answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_core::error::{ConfigError, MOST_LINES};

use super::{Failure, Machine};
use crate::ads::file;
use crate::ads::inbox::{Item, Merged};
use crate::ads::key::{Channel, Key};
use crate::ads::kind::Kind;
use crate::ads::session::Answer;
use crate::ads::stats::Subscription;
use crate::ads::update::{Content, Resource};
use crate::ads::world::Compile;
use crate::tracker::Event;

/// Responses of a type that are to be answered.
pub(super) struct Pending {
    channel: Channel,
    kind: Kind,
    responses: Vec<(String, String)>,
    faults: Vec<String>,
    /// What was accepted, with its version.
    accepted: Vec<(Arc<str>, String)>,
    /// Names of single resources that are said to be gone.
    gone: Vec<Arc<str>>,
    /// Whether something of it is not as it was.
    changes: bool,
    /// How long it took to take them.
    took: Duration,
}

/// What was taken of a resource.
#[derive(Default)]
struct Taken {
    /// Its version, if it brought one.
    version: Option<String>,
    /// Whether it is not as it was.
    changes: bool,
}

impl Pending {
    /// Nobody is left to answer what has come by a stream.
    pub(super) fn disconnected(&mut self, channel: &Channel) {
        if self.channel == *channel {
            self.responses.clear();
        }
    }

    fn is_of(&self, channel: &Channel, kind: Kind) -> bool {
        self.channel == *channel && self.kind == kind
    }
}

impl<C: Compile> Machine<C> {
    /// The change of the last [`Step::Apply`] is in force, but for these parts.
    pub fn applied(&mut self, failures: Vec<Failure>) {
        let mut pending = self.applying.take().unwrap_or_default();
        let keys: Vec<_> = failures.iter().map(|failure| Key::of_name(failure.kind, &failure.name)).collect();
        let failed: Vec<_> = keys.iter().map(|key| self.world.assigned(key)).collect();
        for (key, version) in self.world.applied(&failed) {
            let channel = self.channel_of(&key);
            pending.iter_mut().filter(|pending| pending.is_of(&channel, key.kind)).for_each(|pending| {
                pending.accepted.retain(|(name, _)| *name != key.name);
            });
            self.know(&key, version);
        }
        for ((failure, key), failed) in failures.into_iter().zip(keys).zip(failed) {
            let fault = format!("{}: {}", key.shown(), failure.reason);
            self.world.compiler().note(&key, Event::Failed(&failure.reason));
            let channel = self.channel_of(&failed);
            match pending.iter_mut().find(|pending| pending.is_of(&channel, key.kind)) {
                Some(pending) => pending.faults.push(fault),
                // What has waited for others was acknowledged when it came.
                None => self.fail_late(&failed, fault),
            }
        }
        pending.into_iter().for_each(|pending| self.answer(pending));
    }

    /// Looks at the responses of one type that have come by one stream, or by all files: hundreds of these are one change,
    /// not one after the other.
    pub(super) fn look_at_next(&mut self, now: Instant) -> Vec<Pending> {
        let waiting = self.peers.iter().filter_map(|(channel, peer)| Some((peer.inbox.first()?, channel)));
        let Some((kind, first)) = waiting.clone().min() else { return Vec::new() };
        let together = |(of, channel): &(Kind, &Channel)| {
            *of == kind && (*channel == first || first.path().is_some() && channel.path().is_some())
        };
        let channels: Vec<Channel> = waiting.filter(together).map(|(_, channel)| channel.clone()).collect();
        channels.iter().filter_map(|channel| self.look(channel, now)).collect()
    }

    /// Looks at the responses of one type that have come by a channel.
    fn look(&mut self, channel: &Channel, now: Instant) -> Option<Pending> {
        let peer = self.peers.get_mut(channel)?;
        let (kind, Merged { items, whole, responses, .. }) = peer.inbox.take()?;
        let begun = Instant::now();
        let mut faults = peer.late.remove(&kind).unwrap_or_default();
        let key = |name: &Arc<str>| Key::new(kind, channel.source(), name);
        let is_first = self.first.remove(&kind).is_some();
        let lacking = peer.lacking(kind, |name| items.contains_key(name));
        if kind == Kind::Secret || channel.path().is_some() {
            // A response holds what there is of what was asked for. Elsewhere than in Envoy, one that is missing keeps
            // nobody waiting until its time is over. A file holds what there is, whatever was asked for.
            for name in &lacking {
                self.world.missing(&key(name));
                if kind == Kind::Routes
                    && let Some(found) = items.keys().next().filter(|found| !found.is_empty())
                {
                    let origin = items.values().find_map(Item::origin);
                    let fault = file::misnamed(found, name, origin);
                    self.refuse_all(kind, [key(name)], &fault);
                    faults.push(fault.to_string());
                }
            }
        }
        if kind == Kind::Routes && channel.path().is_none() {
            for name in &lacking {
                self.stats.of_key(&key(name)).for_each(Subscription::came_empty);
            }
        }
        let mut gone = false;
        if whole {
            let absent = self.world.names(kind).into_iter().filter(|name| !items.contains_key(name));
            let absent: Vec<_> = absent.collect();
            gone = !absent.is_empty();
            absent.iter().for_each(|name| self.remove(&key(name), now));
            self.world.compiler().forgive(kind, &|name| items.contains_key(name));
        }
        let (accepted, took, changes) = (Vec::new(), Duration::ZERO, gone);
        let (channel_of, gone) = (channel.clone(), Vec::new());
        let mut pending =
            Pending { channel: channel_of, kind, responses, faults, accepted, gone, changes, took };
        self.world.expect(kind, items.values().filter_map(Item::value));
        for (name, item) in items {
            let key = key(&name);
            match item {
                Item::Gone => {
                    pending.changes = true;
                    self.remove(&key, now);
                    pending.gone.push(name);
                }
                Item::Is(resource) => match self.take(channel, &key, resource, now) {
                    Ok(Taken { version, changes }) => {
                        pending.changes |= changes;
                        pending.accepted.extend(version.map(|version| (name, version)));
                        if let Some(peer) = self.peers.get_mut(channel) {
                            peer.refused = None;
                        }
                    }
                    Err(error) => self.refuse(&key, error, &mut pending),
                },
            }
        }
        if matches!(kind, Kind::Cluster | Kind::Extension | Kind::Listener) && (is_first || pending.changes) {
            self.ask_again();
        }
        pending.took = begun.elapsed();
        Some(pending)
    }

    /// A file is wrong as a whole: each that is asked of it is refused for that. Where it holds all there are of a kind, none of
    /// what was wrong in it before is told any more.
    pub(super) fn refuse_all(
        &mut self,
        kind: Kind,
        keys: impl IntoIterator<Item = Key>,
        fault: &ConfigError,
    ) {
        let reason = fault.to_string();
        if kind.is_wildcard() {
            self.world.compiler().forgive(kind, &|_| false);
        }
        for key in keys {
            self.stats.of_key(&key).for_each(Subscription::refused);
            let refused = Event::Refused { value: &[], version: "", reason: &reason };
            self.world.compiler().note(&key, refused);
            self.world.missing(&key);
        }
    }

    /// A resource can't be taken. Routes of a file are tried again, and that is told once: not before the first clusters
    /// have come, which they may lead to.
    fn refuse(&mut self, key: &Key, error: ConfigError, pending: &mut Pending) {
        let all = error.in_resource(key.shown()).into_all();
        let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
        let is_early = self.first.contains_key(&Kind::Cluster);
        let peer = self.peers.get_mut(&pending.channel);
        if let Some(peer) = peer.filter(|_| key.kind == Kind::Routes && pending.channel.path().is_some()) {
            let told = std::mem::take(&mut peer.refused);
            let is_told = told.as_ref() == Some(&all);
            peer.refused = Some(if is_early { Vec::new() } else { all.clone() });
            if is_early || is_told {
                return;
            }
        }
        self.stats.of_key(key).for_each(Subscription::refused);
        self.world.missing(key);
        pending.faults.append(&mut all);
    }

    /// Takes a resource.
    fn take(
        &mut self,
        channel: &Channel,
        key: &Key,
        resource: Resource,
        now: Instant,
    ) -> Result<Taken, ConfigError> {
        let Resource { name: _, version, content, ttl, origin } = resource;
        let wants = self.peers.get(channel).is_some_and(|peer| peer.session.wants(key.kind, &key.name));
        let mut taken = Taken::default();
        match content {
            Content::Fault(fault) => {
                let fault = file::placed(origin.as_ref(), *fault);
                let reason = fault.to_string();
                let refused = Event::Refused { value: &[], version: &version, reason: &reason };
                if wants && !key.name.is_empty() {
                    self.world.compiler().note(key, refused);
                }
                return Err(fault);
            }
            Content::Heartbeat => {}
            Content::Value(_) if !wants => return Ok(taken),
            Content::Value(value) => {
                taken.changes = self.world.accept(key, &version, value, origin.as_ref(), now)?;
                taken.version = Some(version);
            }
        }
        if taken.changes {
            self.stats.of_key(key).for_each(Subscription::reloaded);
        }
        self.world.set_ttl(key, ttl, now);
        Ok(taken)
    }

    fn remove(&mut self, key: &Key, now: Instant) {
        self.world.remove(key, now);
        self.know(key, None);
    }

    /// What was accepted is known from now on, what was refused is not; both are told.
    pub(super) fn answer(&mut self, pending: Pending) {
        let Pending { channel, kind, mut responses, faults, accepted, gone, changes, took } = pending;
        let error = (!faults.is_empty()).then(|| joined(&faults));
        if let Some(error) = &error {
            refused(&channel, error);
        }
        let last = responses.pop();
        let version = last.as_ref().map(|(_, version)| version.as_str());
        match self.stats.of(kind) {
            Some(stats) if error.is_some() => stats.refused(),
            Some(stats) => {
                stats.taken(version.unwrap_or_default(), took);
                if changes {
                    stats.reloaded();
                }
            }
            None => {}
        }
        if let Some(version) = version {
            self.world.compiler().note_version(kind, version);
        }
        let is_gone = gone.iter().map(|name| (name, true));
        for (name, is_gone) in accepted.iter().map(|(name, _)| (name, false)).chain(is_gone) {
            let (key, version) = (Key::new(kind, channel.source(), name), version.unwrap_or_default());
            // That there is none is an answer as any other, and counted as one.
            self.stats.of_key(&key).for_each(|stats| stats.taken(version, took));
            match kind {
                Kind::Endpoints if is_gone => self.world.tell_unassigned(&key),
                Kind::Endpoints => self.world.tell_assigned(&key),
                _ => {}
            }
        }
        let Some(peer) = self.peers.get_mut(&channel) else { return };
        for (name, version) in accepted {
            if peer.session.wants(kind, &name) {
                peer.session.know(kind, &name, Some(version));
            }
        }
        let earlier = responses.into_iter().map(|response| (response, None));
        for ((nonce, version), error) in earlier.chain(last.map(|response| (response, error))) {
            peer.session.answer(Answer { kind, nonce, version, error });
        }
    }

    /// Refuses what was acknowledged before it was tried, by the last response of its type.
    pub(super) fn refuse_late(&mut self) {
        for peer in self.peers.values_mut().filter(|peer| !peer.late.is_empty()) {
            for (kind, faults) in std::mem::take(&mut peer.late) {
                self.stats.of(kind).into_iter().for_each(Subscription::refused);
                peer.session.refuse(kind, joined(&faults));
            }
        }
    }
}

/// What is wrong with what has come together, as many faults as the log gets of one change and the number of the others: a
/// control plane that sends thousands of bad ones gets no message of megabytes for each.
fn joined(faults: &[String]) -> String {
    let told = faults.iter().take(MOST_LINES).map(String::as_str).collect::<Vec<_>>().join("; ");
    match faults.len().saturating_sub(MOST_LINES) {
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}

/// Says in the log what is wrong in what has come by a channel.
pub(super) fn refused(channel: &Channel, error: &str) {
    tracing::warn!("refused of {channel}, the last good ones stay: {error}");
}
