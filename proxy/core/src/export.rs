//! Records on their way to a service that collects them: logs, spans, statistics.
//!
//! A worker copies a record into a buffer of its own and goes on. A task beside the request path takes what has gathered and
//! sends it, a batch at a time; what it can't send in time is dropped and counted.

mod batch;
mod ending;
mod shards;

pub use batch::{BatchProcessor, BatchRules, BatchStats, Deliver, Delivery, Trouble};
pub use ending::{Ending, Unfinished};

use crate::access_log::LogSink;
use parking_lot::Mutex;
use shards::{HEAD, Shards};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes that may wait to be sent, over all buffers of an exporter, as long as that leaves each of them [`LEAST_ROOM`].
const MOST_WAITING: usize = 4 << 20;
/// Bytes that each worker may have waiting, however many there are.
const LEAST_ROOM: usize = 256 << 10;

/// A task that runs until it is done.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks on a thread beside the request path, from which requests can be sent to services.
pub trait Background: Send + Sync {
    /// Starts a task. It is dropped with the process. One that belongs to a configuration must end with it: it holds what it
    /// works for weakly.
    fn spawn(&self, task: Task);

    /// The end of the process, before which what has gathered is sent. By default nobody says when it comes.
    fn ending(&self) -> Ending {
        Ending::default()
    }
}

/// Runs nothing: where nobody sends anything.
#[derive(Debug, Default)]
pub struct Nowhere;

impl Background for Nowhere {
    fn spawn(&self, _: Task) {}
}

/// Runs tasks on the runtime of whoever starts them, and none where there is no runtime: for tests, and where a
/// request is only looked at.
#[derive(Default)]
pub struct Here(Ending);

impl Background for Here {
    fn spawn(&self, task: Task) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }

    fn ending(&self) -> Ending {
        self.0.clone()
    }
}

/// Sends batches, one after the other.
pub trait Ship: Send {
    /// Sends a batch; a service that does not take it in time, or at all, does not get it.
    fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>>;
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shipped {
    /// The service has it.
    Taken,
    /// It is lost.
    Lost,
}

crate::stat_block! {
    /// Statistics of records, under the prefix of what sends them.
    pub struct ExportStats { counters: [logs_written, logs_dropped], gauges: [], histograms: [] }
}

/// When what has gathered is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// So much time after the last batch, at the latest.
    pub interval: Duration,
    /// As soon as the records of one worker have so many bytes; 0 sends each at once.
    pub bytes: usize,
}

/// Records that were taken together.
#[derive(Debug, Default)]
pub struct Batch(Vec<u8>);

impl Batch {
    /// The records, each worker's in the order in which they came.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (head, behind) = rest.split_first_chunk::<HEAD>()?;
            let (record, behind) = behind.split_at_checked(u32::from_le_bytes(*head) as usize)?;
            rest = behind;
            Some(record)
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes, with what tells the records apart.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds the records of another one behind these.
    fn append(&mut self, other: Batch) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else {
            self.0.extend_from_slice(&other.0);
        }
    }

    /// Takes the first `most` records out; all if there are no more.
    fn split(&mut self, most: usize) -> Batch {
        let end: usize = self.records().take(most).map(|record| HEAD + record.len()).sum();
        if end >= self.0.len() {
            return std::mem::take(self);
        }
        let rest = self.0.split_off(end);
        Batch(std::mem::replace(&mut self.0, rest))
    }
}

/// The way out for records. Dropping it sends what is left.
pub struct Exporter {
    queue: Arc<Queue>,
    background: Arc<dyn Background>,
    ship: Mutex<Option<Box<dyn Ship>>>,
    started: OnceLock<()>,
}

struct Queue {
    shards: Shards,
    /// Bytes that each of them may have.
    room: usize,
    pace: Pace,
    wake: Notify,
    closed: AtomicBool,
    ending: Ending,
    stats: ExportStats,
}

impl Exporter {
    /// One that counts in `stats`. Its task begins with the first record.
    pub fn new(
        background: Arc<dyn Background>,
        pace: Pace,
        stats: ExportStats,
        ship: Box<dyn Ship>,
    ) -> Exporter {
        let shards = Shards::new();
        let queue = Queue {
            room: (MOST_WAITING / shards.len().max(1)).max(LEAST_ROOM),
            shards,
            pace,
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            ending: background.ending(),
            stats,
        };
        Exporter {
            queue: Arc::new(queue),
            background,
            ship: Mutex::new(Some(ship)),
            started: OnceLock::new(),
        }
    }

    /// Adds a record; one that finds no room is dropped and counted.
    pub fn push(&self, record: &[u8]) {
        self.started.get_or_init(|| self.start());
        self.queue.add(record);
    }

    fn start(&self) {
        if let Some(ship) = self.ship.lock().take() {
            let unfinished = self.queue.ending.hold();
            self.background.spawn(Box::pin(run(self.queue.clone(), ship, unfinished)));
        }
    }
}

impl LogSink for Exporter {
    fn write(&self, line: &[u8]) {
        self.push(line);
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::Release);
        self.queue.wake.notify_one();
    }
}

impl Queue {
    fn add(&self, record: &[u8]) {
        let Some((before, after)) = self.shards.add(record, self.room) else {
            return self.stats.logs_dropped().inc();
        };
        // Only the record that crosses the mark wakes the task.
        let mark = self.pace.bytes.max(1);
        if before < mark && after >= mark {
            self.wake.notify_one();
        }
    }
}

async fn run(queue: Arc<Queue>, mut ship: Box<dyn Ship>, _unfinished: Unfinished) {
    loop {
        // Read first, by a load that what was added before the drop is seen after: that is sent.
        let closed = queue.closed.load(Ordering::Acquire) || queue.ending.has_begun();
        let batch = queue.shards.take();
        if !batch.is_empty() {
            let count = batch.records().count() as u64;
            match ship.ship(batch).await {
                Shipped::Taken => queue.stats.logs_written().add(count),
                Shipped::Lost => queue.stats.logs_dropped().add(count),
            }
        }
        if closed {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(queue.pace.interval) => {}
            () = queue.wake.notified() => {}
            () = queue.ending.begun() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::Registry;

    /// Keeps what it is told to run.
    #[derive(Default)]
    struct Later(Mutex<Vec<Task>>);

    impl Background for Later {
        fn spawn(&self, task: Task) {
            self.0.lock().push(task);
        }
    }

    #[derive(Clone, Default)]
    struct Service(Arc<Mutex<Vec<Vec<String>>>>);

    impl Ship for Service {
        fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>> {
            let texts = batch.records().map(|record| String::from_utf8_lossy(record).into_owned());
            let texts: Vec<String> = texts.collect();
            let lost = texts.iter().any(|text| text == "bad");
            self.0.lock().push(texts);
            Box::pin(async move { if lost { Shipped::Lost } else { Shipped::Taken } })
        }
    }

    fn exporter(pace: Pace) -> (Exporter, Service, Arc<Later>, ExportStats) {
        let (service, background) = (Service::default(), Arc::new(Later::default()));
        let stats = ExportStats::new(&Registry::new(), "x.");
        let exporter = Exporter::new(background.clone(), pace, stats.clone(), Box::new(service.clone()));
        (exporter, service, background, stats)
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_gathered_is_sent_after_a_while_or_once_it_is_much() {
        let pace = Pace { interval: Duration::from_secs(1), bytes: 20 };
        let (exporter, service, background, stats) = exporter(pace);
        assert!(background.0.lock().is_empty(), "nothing runs for nothing");
        exporter.push(b"one");
        let task = tokio::spawn(background.0.lock().pop().unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*service.0.lock(), [["one"]]);
        exporter.push(b"two");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(service.0.lock().len(), 1);
        exporter.push(b"three is longer");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(service.0.lock()[1], ["two", "three is longer"]);
        exporter.push(b"bad");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!((stats.logs_written().get(), stats.logs_dropped().get()), (3, 1));
        exporter.push(b"last");
        drop(exporter);
        task.await.unwrap();
        assert_eq!(service.0.lock()[3], ["last"]);
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let (exporter, _, _, stats) = exporter(Pace { interval: Duration::from_secs(1), bytes: 0 });
        let record = vec![7; 100 << 10];
        (0..1000).for_each(|_| exporter.push(&record));
        let waiting = exporter.queue.shards.waiting();
        assert!(waiting <= MOST_WAITING.max(LEAST_ROOM * exporter.queue.shards.len()));
        let kept = exporter.queue.shards.take().records().count() as u64;
        assert_eq!(stats.logs_dropped().get() + kept, 1000);
        assert!(Batch(vec![9, 0, 0, 0, 1]).records().next().is_none());
    }
}
