//! Envoy's connection_limit filter: connections of a chain at once, over all workers.

use super::{Closing, ConnectionFilter, FilterStep};
use crate::metrics::Registry;
use crate::plugin::Slot;
use crate::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

crate::stat_block! {
    /// Statistics under `connection_limit.PREFIX.`.
    pub struct LimitStats { counters: [limited_connections], gauges: [active_connections], histograms: [] }
}

/// A limit and how much of it is used.
pub struct ConnectionLimit {
    max: u64,
    delay: Duration,
    used: Arc<Used>,
}

struct Used {
    count: AtomicU64,
    stats: LimitStats,
}

impl ConnectionLimit {
    /// Lets `max` connections in at once; others are closed after `delay`.
    pub fn new(registry: &Registry, stat_prefix: &str, max: u64, delay: Duration) -> ConnectionLimit {
        let stats = LimitStats::new(registry, &format!("connection_limit.{stat_prefix}."));
        ConnectionLimit { max, delay, used: Arc::new(Used { count: AtomicU64::new(0), stats }) }
    }
}

impl ConnectionFilter for ConnectionLimit {
    fn on_new_connection(&self, connection: &mut Stream, slot: Slot) -> FilterStep {
        if self.used.count.fetch_add(1, Relaxed) >= self.max {
            self.used.count.fetch_sub(1, Relaxed);
            self.used.stats.limited_connections().inc();
            let reason = "over_connection_limit";
            return FilterStep::Close(Closing { reason, delay: self.delay, ..Closing::default() });
        }
        self.used.stats.active_connections().inc();
        connection.set_state(slot, Place(self.used.clone()));
        FilterStep::Continue
    }
}

impl std::fmt::Debug for ConnectionLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} connections", self.used.count.load(Relaxed), self.max)
    }
}

/// One of the connections that are in.
struct Place(Arc<Used>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Relaxed);
        self.0.stats.active_connections().dec();
    }
}
