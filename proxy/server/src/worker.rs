//! Workers: one thread each, with its own runtime, pools and timers. A connection stays on its worker.

use crate::drain::{Drain, DrainStrategy};
use crate::upstream::Pools;
use sixfold_core::cluster::Clusters;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::Callout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What belongs to one worker.
pub struct Worker {
    /// Its number from 0.
    pub index: usize,
    /// Upstream connections.
    pub pools: Pools,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Downstream connections it serves now.
    pub connections: AtomicUsize,
}

/// What all workers share.
pub struct Shared {
    /// Cluster names.
    pub clusters: Arc<Clusters>,
    /// Statistics.
    pub metrics: Registry,
    /// Drain of the whole process.
    pub drain: Drain,
    /// Requests to services beside the upstreams.
    pub callout: Arc<dyn Callout>,
    /// As started.
    pub options: Options,
    /// `POST /healthcheck/fail`: responses carry `connection: close` and
    /// `x-envoy-immediate-health-check-fail`.
    pub health_failed: AtomicBool,
    connection_ids: AtomicU64,
}

/// How the server was started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of workers.
    pub concurrency: usize,
    /// Time that old listeners and filter chains get, 600 s by default (`--drain-time-s`).
    pub drain_time: Duration,
    /// How responses tell clients to go (`--drain-strategy`).
    pub drain_strategy: DrainStrategy,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            drain_time: Duration::from_secs(600),
            drain_strategy: DrainStrategy::Gradual,
        }
    }
}

impl Shared {
    /// The shared part of a server.
    pub fn new(
        clusters: Arc<Clusters>,
        metrics: Registry,
        callout: Arc<dyn Callout>,
        options: Options,
    ) -> Shared {
        Shared {
            clusters,
            metrics,
            drain: Drain::new(),
            callout,
            options,
            health_failed: AtomicBool::new(false),
            connection_ids: AtomicU64::new(1),
        }
    }

    /// The number of the next connection, from 1.
    pub fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Relaxed)
    }
}

impl Worker {
    /// Worker number `index`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Worker {
        Worker { index, pools: Pools::default(), shared, connections: AtomicUsize::new(0) }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "worker {}", self.index)
    }
}
