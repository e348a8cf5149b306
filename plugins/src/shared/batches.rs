//! Batch processors of the loggers: one for all instances of a plugin that are configured alike, which outlives changes of
//! other resources.

use super::logger::{EntrySink, LoggerMetadata, MAX_PENDING};
use parking_lot::Mutex;
use serde::Deserialize;
use sixfold_core::export::{BatchProcessor, BatchRules, BatchStats, Deliver, Trouble};
use sixfold_core::format::Variable;
use sixfold_core::plugin::{BuildContext, SharedState};
use sixfold_core::stream::Stream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::Duration;

/// The fields of a logger's configuration that say how its entries are gathered (apisix/utils/batch-processor.lua).
#[derive(Debug, Deserialize)]
pub(crate) struct BatchConfig {
    name: String,
    pub(crate) batch_max_size: usize,
    inactive_timeout: u64,
    buffer_duration: u64,
    max_retry_count: u32,
    retry_delay: u64,
}

impl BatchConfig {
    fn rules(&self) -> BatchRules {
        BatchRules {
            name: self.name.as_str().into(),
            max_size: self.batch_max_size,
            inactive: Duration::from_secs(self.inactive_timeout),
            duration: Duration::from_secs(self.buffer_duration),
            retries: self.max_retry_count,
            retry_delay: Duration::from_secs(self.retry_delay),
        }
    }
}

/// The way out of a logger that sends batches.
pub(crate) struct Batches(Arc<Known>);

/// A processor, and what metrics call it.
struct Known {
    processor: BatchProcessor,
    /// Route and address of the first request that it has an entry of.
    labels: OnceLock<(Box<str>, Box<str>)>,
    stats: BatchStats,
    all: Arc<All>,
}

/// All batch processors of the process.
#[derive(Default)]
pub(crate) struct All {
    known: Mutex<Vec<Weak<Known>>>,
    /// Entries that were dropped by those that are gone.
    dropped: AtomicU64,
}

/// What metrics say of a batch processor.
pub(crate) struct Shown {
    pub(crate) name: Box<str>,
    pub(crate) route: Box<str>,
    pub(crate) server: Box<str>,
    /// Entries that wait for a batch.
    pub(crate) entries: usize,
}

static ROUTE: LazyLock<Variable> = LazyLock::new(|| Variable::parse("route_id"));
static SERVER: LazyLock<Variable> = LazyLock::new(|| Variable::parse("server_addr"));

impl Batches {
    /// The processor of a plugin's instances with this configuration, made when there is none.
    pub(crate) fn new(
        key: &str,
        config: &BatchConfig,
        deliver: Box<dyn Deliver>,
        context: &BuildContext,
    ) -> Batches {
        let all = all(&context.shared);
        let known = context.shared.get_or_insert(key, || {
            let stats = BatchStats::new(&context.metrics, "batch_processor.");
            let background = context.background.clone();
            Known {
                processor: BatchProcessor::new(background, config.rules(), stats.clone(), deliver),
                labels: OnceLock::new(),
                stats,
                all: all.clone(),
            }
        });
        all.add(&known);
        Batches(known)
    }
}

impl EntrySink for Batches {
    const UNROUTED: Option<&'static str> = Some("no-matched");

    fn meet(&self, stream: &Stream) {
        self.0.labels.get_or_init(|| {
            let text = |variable: &Variable| {
                let value = variable.get(stream).unwrap_or_default();
                String::from_utf8_lossy(&value).into()
            };
            (text(&ROUTE), text(&SERVER))
        });
    }

    fn take(&self, entry: &[u8], metadata: Option<&LoggerMetadata>) {
        self.0.processor.push(entry, metadata.map_or(MAX_PENDING, |metadata| metadata.max_pending));
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.all.dropped.fetch_add(self.stats.entries_dropped().get(), Relaxed);
    }
}

/// Writes a line about a processor.
pub(crate) fn tell(name: &str, trouble: Trouble<'_>) {
    match trouble {
        Trouble::Discarded(entries) => tracing::error!(
            entries,
            "Batch Processor[{name}] max pending entries limit exceeded. discarding entry."
        ),
        Trouble::NotTaken(reason) => {
            tracing::error!("Batch Processor[{name}] failed to process entries: {reason}");
        }
        Trouble::GivenUp(count) => {
            tracing::error!(
                "Batch Processor[{name}] exceeded the max_retry_count[{count}] dropping the entries"
            );
        }
    }
}

/// Those that share this state.
pub(crate) fn all(state: &SharedState) -> Arc<All> {
    state.get_or_insert("batch processors", All::default)
}

impl All {
    fn add(&self, processor: &Arc<Known>) {
        let mut known = self.known.lock();
        known.retain(|one| one.strong_count() > 0);
        if !known.iter().any(|one| one.as_ptr() == Arc::as_ptr(processor)) {
            known.push(Arc::downgrade(processor));
        }
    }

    /// Those that have met a request of a route, and how many entries wait in each.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        let live = self.live();
        let shown = live.iter().filter(|one| one.processor.rules().max_size > 1).filter_map(|one| {
            let (route, server) = one.labels.get().filter(|(route, _)| !route.is_empty())?;
            let (name, entries) = (one.processor.rules().name.clone(), one.processor.gathered());
            Some(Shown { name, route: route.clone(), server: server.clone(), entries })
        });
        shown.collect()
    }

    /// Entries that were dropped since the process began.
    pub(crate) fn dropped(&self) -> u64 {
        let live: u64 = self.live().iter().map(|one| one.stats.entries_dropped().get()).sum();
        live + self.dropped.load(Relaxed)
    }

    fn live(&self) -> Vec<Arc<Known>> {
        self.known.lock().iter().filter_map(Weak::upgrade).collect()
    }
}
