//! APISIX's batch processor (apisix/utils/batch-processor.lua): entries are gathered until they are many, until no more
//! come, or until the first has waited long enough, and are sent together; what is not taken is sent again some times.
//!
//! Workers add entries to buffers of their own. How many may be on their way, and how many bytes, has a bound: what comes
//! beyond is dropped and counted.

use super::shards::{HEAD, Shards};
use super::{Background, Batch, Ending, Unfinished};
use crate::deadline::after;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

/// Bytes of entries that may be on their way, over all batches of a processor.
const MOST_BYTES: usize = 64 << 20;
/// Batches that are sent at the same time.
const MOST_SENT: usize = 16;
/// How often it is said that entries were dropped.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The fields that the schema of every logger that sends batches has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchRules {
    /// What it is called in logs and metrics.
    pub name: Box<str>,
    /// `batch_max_size`: so many entries are sent at once.
    pub max_size: usize,
    /// `inactive_timeout`: fewer are sent when none has come for so long.
    pub inactive: Duration,
    /// `buffer_duration`: fewer are sent when the first has waited for so long.
    pub duration: Duration,
    /// `max_retry_count`: how often a batch that was not taken is sent again.
    pub retries: u32,
    /// `retry_delay`
    pub retry_delay: Duration,
}

crate::stat_block! {
    /// Statistics of entries, under the prefix of what sends them.
    pub struct BatchStats { counters: [entries_processed, entries_dropped], gauges: [], histograms: [] }
}

/// What has become of a batch; an error says why it was not taken.
pub type Delivery = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Sends batches.
pub trait Deliver: Send + Sync {
    /// Sends one. Several may be under way.
    fn deliver(&self, batch: &Arc<Batch>) -> Delivery;

    /// Has people told what is wrong with the processor of that name.
    fn tell(&self, name: &str, trouble: Trouble<'_>);
}

/// What is wrong with a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble<'a> {
    /// So many entries found no room.
    Discarded(u64),
    /// A batch was not taken, and why.
    NotTaken(&'a str),
    /// A batch was sent so often, and is dropped.
    GivenUp(u32),
}

/// Gathers entries. Dropping it sends what is left.
pub struct BatchProcessor {
    state: Arc<State>,
    background: Arc<dyn Background>,
    started: OnceLock<()>,
}

struct State {
    rules: BatchRules,
    deliver: Box<dyn Deliver>,
    shards: Shards,
    /// Entries that no batch has taken yet. What a batch takes may be counted off before it was counted.
    gathered: AtomicIsize,
    /// Entries, and their bytes, of which nobody knows yet what becomes of them.
    pending: AtomicUsize,
    pending_bytes: AtomicUsize,
    /// Entries that were dropped and that nobody has told of yet.
    untold: AtomicU64,
    wake: Notify,
    closed: AtomicBool,
    ending: Ending,
    places: Semaphore,
    stats: BatchStats,
}

impl BatchProcessor {
    /// One that counts in `stats`. Its task begins with the first entry.
    pub fn new(
        background: Arc<dyn Background>,
        rules: BatchRules,
        stats: BatchStats,
        deliver: Box<dyn Deliver>,
    ) -> BatchProcessor {
        let state = State {
            rules: BatchRules { max_size: rules.max_size.max(1), ..rules },
            deliver,
            shards: Shards::new(),
            gathered: AtomicIsize::new(0),
            pending: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            untold: AtomicU64::new(0),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            ending: background.ending(),
            places: Semaphore::new(MOST_SENT),
            stats,
        };
        BatchProcessor { state: Arc::new(state), background, started: OnceLock::new() }
    }

    /// Adds an entry, unless `most` are on their way already; then it is dropped and counted. Never waits.
    pub fn push(&self, entry: &[u8], most: usize) {
        self.started.get_or_init(|| {
            let unfinished = self.state.ending.hold();
            self.background.spawn(Box::pin(run(self.state.clone(), self.background.clone(), unfinished)));
        });
        self.state.add(entry, most);
    }

    /// Entries that wait for a batch: APISIX's gauge `batch_process_entries`.
    pub fn gathered(&self) -> usize {
        usize::try_from(self.state.gathered.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// What it goes by.
    pub fn rules(&self) -> &BatchRules {
        &self.state.rules
    }
}

impl Drop for BatchProcessor {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        self.state.wake.notify_one();
    }
}

impl State {
    fn add(&self, entry: &[u8], most: usize) {
        let bytes = HEAD + entry.len();
        let entries = self.pending.fetch_add(1, Ordering::Relaxed) + 1;
        let all_bytes = self.pending_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if entries > most || all_bytes > MOST_BYTES || self.shards.add(entry, MOST_BYTES).is_none() {
            self.finished(1, bytes);
            self.stats.entries_dropped().inc();
            // The task tells of it: who drops is in a hurry.
            if self.untold.fetch_add(1, Ordering::Relaxed) == 0 {
                self.wake.notify_one();
            }
            return;
        }
        let gathered = self.gathered.fetch_add(1, Ordering::AcqRel) + 1;
        // The first begins a wait, and the last one of a batch ends it.
        if gathered == 1 || gathered == self.most_gathered() {
            self.wake.notify_one();
        }
    }

    fn most_gathered(&self) -> isize {
        isize::try_from(self.rules.max_size).unwrap_or(isize::MAX)
    }

    /// Entries of which it is known what has become of them.
    fn finished(&self, entries: usize, bytes: usize) {
        self.pending.fetch_sub(entries, Ordering::Relaxed);
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn tell_of_dropped(&self) {
        let entries = self.untold.swap(0, Ordering::Relaxed);
        if entries > 0 {
            self.deliver.tell(&self.rules.name, Trouble::Discarded(entries));
        }
    }
}

/// What the task of a processor has gathered.
#[derive(Default)]
struct Gathered {
    entries: Batch,
    count: usize,
    /// When the first of them came.
    since: Option<Instant>,
    /// When it is looked whether any have come since the last look.
    look_at: Option<Instant>,
    /// How many have.
    come: usize,
}

impl Gathered {
    fn add(&mut self, entries: Batch, rules: &BatchRules, now: Instant) {
        let count = entries.records().count();
        if count == 0 {
            return;
        }
        self.entries.append(entries);
        self.count += count;
        self.come += count;
        if self.since.is_none() {
            (self.since, self.look_at) = (Some(now), Some(after(now, rules.inactive)));
            // The one that began the wait.
            self.come -= 1;
        }
    }

    /// Takes a batch out.
    fn split(&mut self, most: usize, rules: &BatchRules, now: Instant) -> (Batch, usize) {
        let count = self.count.min(most);
        let batch = self.entries.split(most);
        self.count -= count;
        let is_left = self.count > 0;
        (self.since, self.look_at) = (is_left.then_some(now), is_left.then_some(after(now, rules.inactive)));
        self.come = self.count.saturating_sub(1);
        (batch, count)
    }

    /// Whether those that there are have waited long enough: none has come for a while, or the first came long ago.
    fn is_due(&mut self, rules: &BatchRules, now: Instant) -> bool {
        let (Some(since), Some(look_at)) = (self.since, self.look_at) else { return false };
        if now < look_at {
            return false;
        }
        let is_due = self.come == 0 || now - since >= rules.duration;
        (self.come, self.look_at) = (0, Some(after(now, rules.inactive)));
        is_due
    }
}

async fn run(state: Arc<State>, background: Arc<dyn Background>, _unfinished: Unfinished) {
    let rules = &state.rules;
    let mut gathered = Gathered::default();
    let mut told: Option<Instant> = None;
    loop {
        // Read first, by a load that what was added before the drop is seen after: that is sent.
        let closed = state.closed.load(Ordering::Acquire) || state.ending.has_begun();
        let now = Instant::now();
        gathered.add(state.shards.take(), rules, now);
        let is_due = closed || gathered.is_due(rules, now);
        while gathered.count >= rules.max_size || (is_due && gathered.count > 0) {
            let (batch, count) = gathered.split(rules.max_size, rules, now);
            state.gathered.fetch_sub(isize::try_from(count).unwrap_or(isize::MAX), Ordering::AcqRel);
            // From here on, and not from its first turn: the end must not come in between.
            let unfinished = state.ending.hold();
            background.spawn(Box::pin(send(state.clone(), batch, count, unfinished)));
        }
        if closed {
            return state.tell_of_dropped();
        }
        if told.is_none_or(|told| now - told >= TELL_EVERY) && state.untold.load(Ordering::Relaxed) > 0 {
            told = Some(now);
            state.tell_of_dropped();
        }
        if state.gathered.load(Ordering::Acquire) >= state.most_gathered() {
            continue;
        }
        // Who has dropped one wakes this once; what was dropped since is told of later.
        let tell_at = told.filter(|_| state.untold.load(Ordering::Relaxed) > 0).map(|told| told + TELL_EVERY);
        let wait_until = gathered.look_at.into_iter().chain(tell_at).min();
        tokio::select! {
            () = state.wake.notified() => {}
            () = state.ending.begun() => {}
            () = sleep_until(wait_until.unwrap_or(now)), if wait_until.is_some() => {}
        }
    }
}

/// Sends a batch until it is taken, or was sent often enough.
async fn send(state: Arc<State>, batch: Batch, count: usize, _unfinished: Unfinished) {
    let (rules, bytes, batch) = (&state.rules, batch.bytes(), Arc::new(batch));
    let name = &rules.name;
    let mut failures = 0;
    loop {
        let delivered = {
            let _place = state.places.acquire().await;
            state.deliver.deliver(&batch).await
        };
        let Err(reason) = delivered else {
            state.stats.entries_processed().add(count as u64);
            break;
        };
        state.deliver.tell(name, Trouble::NotTaken(&reason));
        failures += 1;
        if failures > rules.retries {
            state.deliver.tell(name, Trouble::GivenUp(failures));
            state.stats.entries_dropped().add(count as u64);
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(rules.retry_delay) => {}
            () = state.ending.begun() => {}
        }
    }
    state.finished(count, bytes);
}

#[cfg(test)]
mod tests;
