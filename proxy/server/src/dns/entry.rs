//! A question that is asked once for all who want its answer.

use super::cache::Inner;
use super::pace::Pace;
use super::resolver::{Resolver, Said, Standing};
use super::{Answer, DnsError, Question, ResolverConfig};
use crate::deadline::after;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Whoever is told of every answer.
pub(super) trait Subscriber: Send + Sync {
    /// The question was sent.
    fn asked(&self);

    /// An answer has come, or none; `tag` is what was subscribed with.
    fn answered(self: Arc<Self>, tag: usize, reading: &Reading);
}

/// A subscription.
pub(super) struct Member {
    pub(super) number: u64,
    pub(super) tag: usize,
    pub(super) subscriber: Weak<dyn Subscriber>,
}

/// What became of the last question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// None has ended yet.
    Unasked,
    /// There are addresses, for so long.
    Answered(Option<Duration>),
    /// The name has none.
    Empty,
    /// Nobody knows.
    Failed(DnsError),
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) outcome: Outcome,
    /// Those of the last answer that had some, in the server's order; none once the name has been without for a while.
    pub(super) addresses: Arc<[IpAddr]>,
    /// The same in an order that does not turn; the same list for as long as they are the same addresses.
    pub(super) sorted: Arc<[IpAddr]>,
    /// Whether the name has been said for a while to have none.
    pub(super) gone: bool,
    /// Until when all that is good.
    pub(super) until: Instant,
}

impl Reading {
    /// What was known before somebody asks for the first time.
    fn unasked() -> Reading {
        let none: Arc<[IpAddr]> = Arc::default();
        Reading {
            outcome: Outcome::Unasked,
            addresses: none.clone(),
            sorted: none,
            gone: false,
            until: Instant::now(),
        }
    }

    /// Whether nobody needs to ask: for those who ask once.
    pub(super) fn is_fresh(&self) -> bool {
        self.outcome != Outcome::Unasked && Instant::now() < self.until
    }

    /// The answer for those who ask once: addresses that were known serve on while nobody knows better.
    pub(super) fn answer(&self) -> Result<Answer, DnsError> {
        match &self.outcome {
            Outcome::Failed(error) if self.addresses.is_empty() => Err(error.clone()),
            _ => Ok(Answer { addresses: self.addresses.clone(), until: self.until }),
        }
    }
}

/// A question and all that is known of it.
pub(super) struct Entry {
    pub(super) question: Question,
    /// Whom to ask; another one when the system's servers change.
    pub(super) resolver: ArcSwap<Resolver>,
    reading: watch::Sender<Reading>,
    /// Something has changed for the task that sleeps.
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A question is under way.
    asking: bool,
    /// Somebody needs one at once.
    wanted: bool,
    /// It is no longer in the cache.
    forgotten: bool,
    asked_at: Option<Instant>,
    /// Questions that failed since the last that did not.
    failures: u32,
    /// When the name was first said to have no address any more.
    empty_since: Option<Instant>,
    /// Subscribers by what they want of the time between questions: mostly all want the same.
    groups: Vec<Group>,
}

/// Those to be told, with their tags.
type Subscribers = Vec<(usize, Arc<dyn Subscriber>)>;

struct Group {
    pace: Pace,
    due: Instant,
    members: Vec<Member>,
}

/// What the task of an entry does next.
enum Next {
    Ask,
    /// It is due then.
    Sleep(Instant),
    /// Nobody subscribes to it; it is forgotten then.
    Linger(Instant),
    End,
}

impl Entry {
    pub(super) fn new(question: Question, resolver: Arc<Resolver>) -> Entry {
        Entry {
            question,
            resolver: ArcSwap::new(resolver),
            reading: watch::Sender::new(Reading::unasked()),
            wake: Notify::new(),
            state: Mutex::new(State { wanted: true, ..State::default() }),
        }
    }

    /// What is known now.
    pub(super) fn reading(&self) -> Reading {
        self.reading.borrow().clone()
    }

    /// Hears of the next answer.
    pub(super) fn listen(&self) -> watch::Receiver<Reading> {
        self.reading.subscribe()
    }

    /// Asks at once, unless that is being done.
    pub(super) fn want(&self) {
        let mut state = self.state.lock();
        if !state.asking {
            state.wanted = true;
            self.wake.notify_one();
        }
    }

    /// Tells `member` of every answer from now on; gives what is known, unless a question is about to be asked or
    /// under way, which the member has asked too. Its subscriber must be held by the caller.
    pub(super) fn join(&self, pace: Pace, member: Member) -> Option<Reading> {
        let mut state = self.state.lock();
        let reading = self.reading();
        if state.asking
            && let Some(subscriber) = member.subscriber.upgrade()
        {
            subscriber.asked();
        }
        // Nobody waits for the next time of others when nothing is known.
        state.wanted |= !state.asking && reading.addresses.is_empty() && !reading.is_fresh();
        match state.groups.iter_mut().find(|group| group.pace == pace) {
            Some(group) => group.members.push(member),
            None => {
                let at = state.asked_at.unwrap_or_else(Instant::now);
                let due = at + pace.wait(&reading.outcome, state.failures);
                state.groups.push(Group { pace, due, members: vec![member] });
            }
        }
        self.wake.notify_one();
        (!state.asking && !state.wanted).then_some(reading)
    }

    /// Takes a subscriber away; tells whether that was the last.
    pub(super) fn leave(&self, number: u64) -> bool {
        let mut state = self.state.lock();
        for group in &mut state.groups {
            if let Some(at) = group.members.iter().position(|member| member.number == number) {
                group.members.swap_remove(at);
            }
        }
        state.groups.retain(|group| !group.members.is_empty());
        let last = state.groups.is_empty();
        if last {
            self.wake.notify_one();
        }
        last
    }

    /// Ends its task unless somebody needs it, or its answer is good and that is not to be given up `early`: for a
    /// cache that forgets it.
    pub(super) fn forget(&self, early: bool) -> bool {
        let mut state = self.state.lock();
        let needed = state.asking || state.wanted || !state.groups.is_empty();
        if needed || !early && self.reading.borrow().is_fresh() {
            return false;
        }
        state.forgotten = true;
        self.wake.notify_one();
        true
    }

    /// Asks, and asks again when it is time, until nobody needs it any more.
    pub(super) async fn run(self: Arc<Entry>, cache: Weak<Inner>) {
        loop {
            let woken = self.wake.notified();
            let next = self.next();
            let (until, subscribed) = match next {
                Next::End => return,
                Next::Ask => {
                    let Some(cache) = cache.upgrade() else { return };
                    self.ask(&cache).await;
                    continue;
                }
                Next::Sleep(until) => (until, true),
                Next::Linger(until) => (until, false),
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => match cache.upgrade() {
                    Some(_) if subscribed => self.want(),
                    Some(cache) => cache.forget(&self),
                    None => return,
                },
                () = woken => {}
            }
        }
    }

    fn next(&self) -> Next {
        let state = self.state.lock();
        match state.groups.iter().map(|group| group.due).min() {
            _ if state.forgotten => Next::End,
            _ if state.wanted => Next::Ask,
            Some(due) => Next::Sleep(due),
            None => Next::Linger(self.reading.borrow().until),
        }
    }

    async fn ask(&self, cache: &Inner) {
        let subscribers = {
            let mut state = self.state.lock();
            (state.asking, state.wanted) = (true, false);
            state.subscribers()
        };
        let standing = match self.reading().outcome {
            _ if subscribers.is_empty() => Standing::OnDemand,
            Outcome::Unasked | Outcome::Failed(_) => Standing::Unproven,
            Outcome::Answered(_) | Outcome::Empty => Standing::Proven,
        };
        for (_, subscriber) in subscribers {
            subscriber.asked();
        }
        let hosts = cache.hosts();
        let counts = cache.counts();
        counts.resolve_total().inc();
        let pending = counts.pending_resolutions().raise();
        let said = self.resolver.load_full().resolve(&self.question, standing, &hosts).await;
        drop(pending);
        match &said {
            Ok(said) if said.addresses.is_empty() => counts.not_found().inc(),
            Ok(_) => {}
            Err(_) => counts.get_addr_failure().inc(),
        }
        let (reading, subscribers) = self.record(said, cache.config());
        if let Outcome::Failed(error) = &reading.outcome {
            tracing::warn!(%error, clusters = subscribers.len(), "DNS look-up failed, its addresses stay as they are");
        }
        for (tag, subscriber) in subscribers {
            subscriber.answered(tag, &reading);
        }
    }

    fn record(&self, said: Result<Said, DnsError>, config: &ResolverConfig) -> (Reading, Subscribers) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let before = self.reading();
        let mut next = Reading { until: after(now, config.min_ttl), ..before };
        match said {
            Ok(Said { addresses, ttl }) if !addresses.is_empty() => {
                next.take(addresses);
                next.outcome = Outcome::Answered(ttl);
                next.until = after(now, ttl.unwrap_or(config.min_ttl));
                (state.failures, state.empty_since) = (0, None);
            }
            Ok(Said { ttl, .. }) => {
                let since = *state.empty_since.get_or_insert(now);
                next.gone = now.duration_since(since) >= config.hold_empty;
                if next.gone {
                    next.take(Vec::new());
                }
                next.outcome = Outcome::Empty;
                next.until = after(now, ttl.unwrap_or(config.min_ttl));
                // For those who take it for a failure.
                state.failures = state.failures.saturating_add(1);
            }
            Err(error) => {
                next.outcome = Outcome::Failed(error);
                state.failures = state.failures.saturating_add(1);
            }
        }
        state.asking = false;
        state.asked_at = Some(now);
        let failures = state.failures;
        for group in &mut state.groups {
            group.due = now + group.pace.wait(&next.outcome, failures);
        }
        self.reading.send_replace(next.clone());
        (next, state.subscribers())
    }
}

impl Reading {
    fn take(&mut self, addresses: Vec<IpAddr>) {
        self.gone &= addresses.is_empty();
        let mut sorted = addresses.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if *self.sorted != *sorted {
            self.sorted = sorted.into();
        }
        if *self.addresses != *addresses {
            self.addresses = addresses.into();
        }
    }
}

impl State {
    fn subscribers(&self) -> Subscribers {
        let members = self.groups.iter().flat_map(|group| &group.members);
        members.filter_map(|member| Some((member.tag, member.subscriber.upgrade()?))).collect()
    }
}
