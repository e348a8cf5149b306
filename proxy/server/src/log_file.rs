//! Logs in files: workers add lines to buffers, a thread for each file writes them out.
//!
//! A buffer is written once it holds 64 KiB, when the flush interval is over, and at the end. While a disk
//! stalls, buffers grow to a limit and lines beyond it are dropped and counted; a worker never waits, and no
//! other file does.

mod output;
#[cfg(test)]
mod tests;

pub use output::{Chore, FileStats, Flush, Output};

use parking_lot::Mutex;
use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::metrics::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long the end of the process waits for the last lines to be written.
pub const LAST_WRITE: Duration = Duration::from_secs(2);

/// All access logs of the process. Cloning shares them.
#[derive(Clone)]
pub struct LogFiles(Arc<Inner>);

struct Inner {
    /// Closed once no configuration holds it any more.
    files: Mutex<HashMap<LogTarget, Weak<Output>>>,
    stats: Arc<FileStats>,
    interval: Duration,
}

impl LogFiles {
    /// No logs yet. `interval` is the time after which lines are written at the latest, 10 s in Envoy
    /// (`--file-flush-interval-msec`).
    pub fn new(interval: Duration, registry: &Registry) -> LogFiles {
        let stats = Arc::new(FileStats::new(registry, "filesystem."));
        LogFiles(Arc::new(Inner { files: Mutex::default(), stats, interval }))
    }

    fn all(&self) -> Vec<Arc<Output>> {
        self.0.files.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Opens every file anew, after they were moved away (`SIGUSR1`, `POST /reopen_logs`).
    pub fn reopen(&self) {
        self.all().iter().for_each(|file| file.reopen());
    }

    /// Writes what is left; waits at most 2 s for all files, since a disk may stall.
    pub fn shutdown(&self) {
        let deadline = Instant::now() + LAST_WRITE;
        for file in self.all() {
            // A file that does not finish in time loses its last lines.
            let _ = file.flush(deadline);
        }
    }
}

impl OpenLog for LogFiles {
    fn open(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        let mut files = self.0.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = files.get(target).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let flush = Flush::Within(self.0.interval);
        let file = Output::start("access-log", target, flush, self.0.stats.clone(), None)
            .map_err(|e| format!("can't open {}: {e}", output::name(target)))?;
        let file = Arc::new(file);
        files.insert(target.clone(), Arc::downgrade(&file));
        Ok(file)
    }
}
