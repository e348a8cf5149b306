//! What came by itself, to be shown: as it was sent, what the control plane calls it, and since when it is so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sixfold_xds_api::wire;

use crate::ads::{Key, Kind};

/// Bytes of refused resources that are kept, over all of them: of what goes beyond, only the reason is.
const MAX_REFUSED_BYTES: usize = 4 << 20;
/// Bytes of a refused resource's version and of its reason that are kept.
const MAX_TEXT: usize = 4 << 10;
/// Refused resources of which no good one has ever come that are kept.
const MAX_REFUSED: usize = 1024;
/// Field numbers of a listener's `filter_chains`, `default_filter_chain` and `filter_chain_matcher`.
const CHAINS: [u32; 3] = [3, 25, 32];
/// Listeners that were removed or replaced and are kept while they drain.
const MAX_DRAINING: usize = 64;

/// What becomes of a resource.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A version was accepted and waits to go into force.
    Accepted {
        /// As it was sent.
        value: &'a Arc<[u8]>,
        /// What the control plane calls it.
        version: &'a str,
    },
    /// The last that was accepted has come again under another name.
    Renamed(&'a str),
    /// What was accepted is in force.
    InForce,
    /// What was accepted does not go into force any more.
    Withdrawn,
    /// It could not be put in force: what was before is again, if there was anything.
    Reverted(Option<(&'a Arc<[u8]>, &'a str)>),
    /// Why it could not be.
    Failed(&'a str),
    /// A version was refused.
    Refused {
        /// As it was sent.
        value: &'a [u8],
        /// What the control plane calls it.
        version: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// What was wrong with it last is past: all were told of anew, and it was not.
    Forgiven,
    /// There is no such resource any more.
    Gone,
    /// Endpoints were taken for a cluster that count only for a time.
    Expiring,
    /// That time is over.
    Stale,
    /// The control plane says that there are no endpoints for a cluster.
    Unassigned,
}

/// A version of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// As it was sent.
    pub value: Arc<[u8]>,
    /// What the control plane calls it.
    pub version: Arc<str>,
    /// When it was accepted.
    pub at: SystemTime,
}

/// A version that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As it was sent, unless that is too much to keep.
    pub value: Option<Arc<[u8]>>,
    /// What the control plane calls it.
    pub version: Arc<str>,
    /// When it was refused.
    pub at: SystemTime,
    /// Why.
    pub reason: String,
}

/// What there is of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// What is in force.
    pub active: Option<Sent>,
    /// What was accepted and waits.
    pub waiting: Option<Sent>,
    /// What came last, if that was refused.
    pub refused: Option<Refusal>,
}

/// All resources that came by themselves. Who shows them takes what there is at one moment; nothing is copied but
/// references.
#[derive(Debug, Default)]
pub struct Tracker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Tracked>,
    /// What the control plane calls all of a type together.
    versions: BTreeMap<Kind, String>,
    refused_bytes: usize,
    /// Entries of which nothing good has come.
    refused_alone: usize,
    /// Listeners that were removed or replaced, oldest first.
    draining: VecDeque<Draining>,
    /// How long a listener drains.
    drain_time: Duration,
}

/// A listener that drains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    /// Its name.
    pub name: Arc<str>,
    /// What was in force.
    pub sent: Sent,
    until: Instant,
}

impl Tracker {
    /// Notes what becomes of a resource.
    pub fn note(&self, key: &Key, event: Event<'_>) {
        // Endpoints are shown as they are in their clusters.
        if key.kind != Kind::Endpoints {
            self.0.lock().note(key.clone(), event);
        }
    }

    /// Forgets what was wrong with the resources of a kind but for those that are told of anew.
    pub fn forgive(&self, kind: Kind, is_told: impl Fn(&str) -> bool) {
        let mut state = self.0.lock();
        let is_past = |(key, tracked): &(&Key, &Tracked)| {
            key.kind == kind && tracked.refused.is_some() && !is_told(&key.name)
        };
        let past: Vec<Key> = state.entries.iter().filter(is_past).map(|(key, _)| key.clone()).collect();
        past.into_iter().for_each(|key| state.note(key, Event::Forgiven));
    }

    /// Notes what the control plane calls all of a type together.
    pub fn note_version(&self, kind: Kind, version: &str) {
        version.clone_into(self.0.lock().versions.entry(kind).or_default());
    }

    /// Says how long a listener drains that is removed from now on; before that it is no time.
    pub fn set_drain_time(&self, time: Duration) {
        self.0.lock().drain_time = time;
    }

    /// Listeners that drain.
    pub fn draining(&self) -> Vec<Draining> {
        let mut state = self.0.lock();
        state.end_draining();
        state.draining.iter().cloned().collect()
    }

    /// What the control plane calls all of a type together; empty where it has no name for that.
    pub fn version(&self, kind: Kind) -> String {
        self.0.lock().versions.get(&kind).cloned().unwrap_or_default()
    }

    /// Everything there is of a type.
    pub fn of(&self, kind: Kind) -> Vec<(Key, Tracked)> {
        let state = self.0.lock();
        let of_kind = state.entries.iter().filter(|(key, _)| key.kind == kind);
        of_kind.map(|(key, tracked)| (key.clone(), tracked.clone())).collect()
    }
}

impl Tracked {
    fn is_empty(&self) -> bool {
        self.active.is_none() && self.waiting.is_none() && self.refused.is_none()
    }

    /// Whether what waits is another listener than what is in force.
    fn is_another(&self) -> bool {
        let (Some(active), Some(waiting)) = (&self.active, &self.waiting) else { return false };
        are_others(&active.value, &waiting.value)
    }

    fn is_refused_alone(&self) -> bool {
        self.active.is_none() && self.waiting.is_none() && self.refused.is_some()
    }

    fn refused_bytes(&self) -> usize {
        self.refused.as_ref().and_then(|refused| refused.value.as_ref()).map_or(0, |value| value.len())
    }
}

/// Whether two versions are listeners of which Envoy takes one for such that drains: not if merely their filter chains are
/// others.
fn are_others(one: &[u8], other: &[u8]) -> bool {
    let rest = |value: &[u8]| {
        CHAINS.iter().try_fold(value.to_vec(), |value, field| Some(wire::split(&value, &[*field]).ok()?.rest))
    };
    rest(one) != rest(other)
}

/// As much of a text as is kept.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

impl State {
    fn note(&mut self, key: Key, event: Event<'_>) {
        let mut tracked = self.entries.remove(&key).unwrap_or_default();
        self.refused_bytes -= tracked.refused_bytes();
        self.refused_alone -= usize::from(tracked.is_refused_alone());
        match (key.kind, &event) {
            (Kind::Listener, Event::Gone) => self.begin_draining(&key.name, tracked.active.take()),
            (Kind::Listener, Event::InForce) if tracked.is_another() => {
                self.begin_draining(&key.name, tracked.active.clone());
            }
            (Kind::Listener, Event::Reverted(Some((before, _))))
                if tracked.active.as_ref().is_some_and(|failed| are_others(before, &failed.value)) =>
            {
                self.drain_no_longer(&key.name, before);
            }
            _ => {}
        }
        self.change(key.kind, &mut tracked, event);
        let alone = tracked.is_refused_alone();
        if tracked.is_empty() || alone && self.refused_alone >= MAX_REFUSED {
            return;
        }
        self.refused_bytes += tracked.refused_bytes();
        self.refused_alone += usize::from(alone);
        self.entries.insert(key, tracked);
    }

    fn begin_draining(&mut self, name: &Arc<str>, active: Option<Sent>) {
        self.end_draining();
        let until = Instant::now().checked_add(self.drain_time).filter(|_| !self.drain_time.is_zero());
        if let (Some(sent), Some(until)) = (active, until) {
            if self.draining.len() >= MAX_DRAINING {
                self.draining.pop_front();
            }
            self.draining.push_back(Draining { name: name.clone(), sent, until });
        }
    }

    /// What was about to drain is in force again.
    fn drain_no_longer(&mut self, name: &Arc<str>, value: &Arc<[u8]>) {
        let is_it = |draining: &Draining| draining.name == *name && draining.sent.value == *value;
        if let Some(at) = self.draining.iter().rposition(is_it) {
            self.draining.remove(at);
        }
    }

    fn end_draining(&mut self) {
        let now = Instant::now();
        self.draining.retain(|draining| draining.until > now);
    }

    fn change(&self, kind: Kind, tracked: &mut Tracked, event: Event<'_>) {
        let at = SystemTime::now();
        let room = |value: &[u8]| !value.is_empty() && self.refused_bytes + value.len() <= MAX_REFUSED_BYTES;
        match event {
            Event::Accepted { value, version } => {
                tracked.waiting = Some(Sent { value: value.clone(), version: version.into(), at });
                tracked.refused = None;
            }
            Event::Renamed(version) => {
                // As in Envoy what has not changed keeps the version that it came with, unless it is a secret.
                let last = tracked.waiting.as_mut().or(tracked.active.as_mut());
                if let Some(last) = last.filter(|_| kind == Kind::Secret) {
                    last.version = version.into();
                }
                tracked.refused = None;
            }
            Event::InForce => tracked.active = tracked.waiting.take().or(tracked.active.take()),
            Event::Withdrawn => tracked.waiting = None,
            Event::Reverted(before) => {
                let failed = tracked.active.take();
                tracked.active = before.map(|(value, version)| {
                    // When it came is not known any more, but that it is in force now is.
                    Sent { value: value.clone(), version: version.into(), at }
                });
                tracked.refused = failed.map(|Sent { value, version, .. }| {
                    let value = Some(value).filter(|value| room(value));
                    let version = cut(&version).into();
                    Refusal { value, version, at, reason: String::new() }
                });
            }
            Event::Failed(reason) => {
                if let Some(refused) = &mut tracked.refused {
                    cut(reason).clone_into(&mut refused.reason);
                }
            }
            Event::Refused { value, version, reason } => {
                let value = room(value).then(|| value.into());
                let (version, reason) = (cut(version).into(), cut(reason).into());
                tracked.refused = Some(Refusal { value, version, at, reason });
            }
            Event::Forgiven => tracked.refused = None,
            Event::Gone => *tracked = Tracked::default(),
            // They are counted, not shown.
            Event::Expiring | Event::Stale | Event::Unassigned => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn note(tracker: &Tracker, name: &str, event: Event<'_>) {
        tracker.note(&Key::of_name(Kind::Cluster, &name.into()), event);
    }

    fn tracked(tracker: &Tracker, name: &str) -> Option<Tracked> {
        tracker.of(Kind::Cluster).into_iter().find(|(key, _)| *key.name == *name).map(|(_, tracked)| tracked)
    }

    fn versions(tracker: &Tracker, name: &str) -> [Option<String>; 3] {
        let Tracked { active, waiting, refused } = tracked(tracker, name).unwrap_or_default();
        let sent = |sent: Option<Sent>| sent.map(|sent| sent.version.to_string());
        [sent(active), sent(waiting), refused.map(|refused| refused.version.to_string())]
    }

    fn some(versions: [&str; 3]) -> [Option<String>; 3] {
        versions.map(|version| (!version.is_empty()).then(|| version.to_owned()))
    }

    // They had no bound, and those who send choose them.
    #[test]
    fn of_what_is_refused_no_more_text_is_kept_than_a_page() {
        let (tracker, long) = (Tracker::default(), "\u{e9}".repeat(MAX_TEXT));
        note(&tracker, "a", Event::Refused { value: b"x", version: &long, reason: &long });
        let refused = tracked(&tracker, "a").unwrap().refused.unwrap();
        assert_eq!((refused.version.len(), refused.reason.len()), (MAX_TEXT, MAX_TEXT));
        note(&tracker, "a", Event::Failed(&format!("x{long}")));
        assert_eq!(tracked(&tracker, "a").unwrap().refused.unwrap().reason.len(), MAX_TEXT - 1);
    }

    #[test]
    fn a_resource_is_followed_from_its_coming_to_its_end() {
        let (tracker, one, two) =
            (Tracker::default(), Arc::<[u8]>::from(*b"one"), Arc::<[u8]>::from(*b"two"));
        note(&tracker, "a", Event::Accepted { value: &one, version: "1" });
        assert_eq!(versions(&tracker, "a"), some(["", "1", ""]));
        note(&tracker, "a", Event::InForce);
        note(&tracker, "a", Event::Accepted { value: &two, version: "2" });
        assert_eq!(versions(&tracker, "a"), some(["1", "2", ""]));
        note(&tracker, "a", Event::InForce);
        note(&tracker, "a", Event::Reverted(Some((&one, "1"))));
        note(&tracker, "a", Event::Failed("no address"));
        assert_eq!(versions(&tracker, "a"), some(["1", "", "2"]));
        let shown = tracked(&tracker, "a").unwrap();
        assert!(Arc::ptr_eq(&shown.active.unwrap().value, &one), "the bytes are there once");
        assert_eq!(shown.refused.unwrap().reason, "no address");
        note(&tracker, "a", Event::Refused { value: b"x", version: "3", reason: "bad" });
        assert_eq!(versions(&tracker, "a"), some(["1", "", "3"]));
        note(&tracker, "a", Event::Renamed("4"));
        assert_eq!(versions(&tracker, "a"), some(["1", "", ""]), "what is sent again is good again");
        note(&tracker, "a", Event::Accepted { value: &two, version: "5" });
        note(&tracker, "a", Event::Withdrawn);
        assert_eq!(versions(&tracker, "a"), some(["1", "", ""]));
        note(&tracker, "a", Event::Gone);
        assert_eq!(tracked(&tracker, "a"), None);
        tracker.note_version(Kind::Listener, "7");
        assert_eq!(
            (tracker.version(Kind::Listener).as_str(), tracker.version(Kind::Cluster).as_str()),
            ("7", "")
        );
    }

    #[test]
    fn faults_of_what_is_not_told_of_anew_are_past() {
        let (tracker, value) = (Tracker::default(), Arc::<[u8]>::from(*b"one"));
        let refused = Event::Refused { value: b"x", version: "2", reason: "bad" };
        for name in ["a", "b", "c"] {
            note(&tracker, name, refused);
        }
        note(&tracker, "c", Event::Accepted { value: &value, version: "1" });
        note(&tracker, "c", Event::InForce);
        note(&tracker, "c", refused);
        tracker.forgive(Kind::Listener, |_| false);
        tracker.forgive(Kind::Cluster, |name| name == "a");
        assert_eq!((tracked(&tracker, "b"), versions(&tracker, "a")), (None, some(["", "", "2"])));
        assert_eq!(versions(&tracker, "c"), some(["1", "", ""]));
    }

    #[test]
    fn a_removed_listener_is_shown_while_it_drains() {
        let (tracker, value) = (Tracker::default(), Arc::<[u8]>::from(*b"l"));
        let gone = |name: &str| {
            for event in [Event::Accepted { value: &value, version: "1" }, Event::InForce, Event::Gone] {
                tracker.note(&Key::of_name(Kind::Listener, &name.into()), event);
            }
        };
        gone("a");
        assert_eq!(tracker.draining(), [], "it ends at once where nothing drains");
        tracker.set_drain_time(Duration::from_secs(3600));
        gone("b");
        note(&tracker, "c", Event::Gone);
        let draining = tracker.draining();
        assert_eq!((draining.len(), &*draining[0].name, &*draining[0].sent.version), (1, "b", "1"));
        (0..MAX_DRAINING + 3).for_each(|index| gone(&format!("l{index}")));
        assert_eq!((tracker.draining().len(), &*tracker.draining()[0].name), (MAX_DRAINING, "l3"));
        tracker.set_drain_time(Duration::from_nanos(1));
        gone("d");
        assert!(tracker.draining().iter().all(|draining| *draining.name != *"d"));
    }

    #[test]
    fn a_replaced_listener_drains_unless_only_its_chains_have_changed() {
        use prost::Message;
        use sixfold_xds_api::pb::envoy::config::listener::v3::{FilterChain, Listener};
        let tracker = Tracker::default();
        tracker.set_drain_time(Duration::from_secs(3600));
        let replace = |listener: Listener| {
            let (value, key) = (listener.encode_to_vec().into(), Key::of_name(Kind::Listener, &"l".into()));
            tracker.note(&key, Event::Accepted { value: &value, version: "1" });
            tracker.note(&key, Event::InForce);
            tracker.draining().len()
        };
        let first = Listener { name: "l".to_owned(), ..Listener::default() };
        let chains = Listener { filter_chains: vec![FilterChain::default()], ..first.clone() };
        let other = Listener { stat_prefix: "s".to_owned(), ..first.clone() };
        assert_eq!([first, chains, other].map(replace), [0, 0, 1]);
    }

    /// A control plane that is wrong for long, under ever new names.
    #[test]
    fn what_is_kept_of_refused_resources_has_a_bound() {
        let (tracker, big) = (Tracker::default(), vec![0; 1 << 20]);
        for index in 0..MAX_REFUSED + 100 {
            let refused = Event::Refused { value: &big, version: "", reason: "bad" };
            note(&tracker, &format!("c{index}"), refused);
            note(&tracker, "again", refused);
        }
        let all = tracker.of(Kind::Cluster);
        let kept = all.iter().filter(|(_, tracked)| tracked.refused_bytes() > 0).count();
        assert_eq!((all.len(), kept), (MAX_REFUSED, 4));
        for (key, _) in &all {
            note(&tracker, &key.name, Event::Gone);
        }
        let state = tracker.0.lock();
        assert_eq!((state.entries.len(), state.refused_bytes, state.refused_alone), (0, 0, 0));
    }
}
