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
use sixfold_core::access_log::{LogSink, LogTarget, MakeSink};
use sixfold_core::metrics::Registry;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How long the end of the process waits for the last lines to be written.
pub const LAST_WRITE: Duration = Duration::from_secs(2);

/// All access logs of the process. Cloning shares them.
#[derive(Clone)]
pub struct LogFiles(Arc<Inner>);

struct Inner {
    /// Closed once no configuration holds it any more.
    files: Mutex<HashMap<LogTarget, Weak<LogFile>>>,
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

    fn all(&self) -> Vec<Arc<LogFile>> {
        self.0.files.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Opens every file anew, after they were moved away (`SIGUSR1`, `POST /reopen_logs`).
    pub fn reopen(&self) {
        self.all().iter().filter_map(|file| file.output.get()).for_each(Output::reopen);
    }

    /// Writes what is left; waits at most 2 s for all files, since a disk may stall.
    pub fn shutdown(&self) {
        let deadline = Instant::now() + LAST_WRITE;
        for output in self.all().iter().filter_map(|file| file.output.get()) {
            // A file that does not finish in time loses its last lines.
            let _ = output.flush(deadline);
        }
    }
}

impl MakeSink for LogFiles {
    fn sink(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        target.check()?;
        let mut files = self.0.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = files.get(target).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = Arc::new(LogFile {
            target: target.clone(),
            interval: self.0.interval,
            stats: self.0.stats.clone(),
            output: OnceLock::new(),
            opening: Mutex::new(()),
        });
        files.insert(target.clone(), Arc::downgrade(&file));
        Ok(file)
    }
}

/// An access log. It is closed, and writes nothing, until it goes into force.
struct LogFile {
    target: LogTarget,
    interval: Duration,
    stats: Arc<FileStats>,
    output: OnceLock<Output>,
    /// One at a time opens it.
    opening: Mutex<()>,
}

impl LogSink for LogFile {
    fn write(&self, line: &[u8]) {
        if let Some(output) = self.output.get() {
            output.write(line);
        }
    }

    fn open(&self) -> Result<(), String> {
        let _one = self.opening.lock();
        if self.output.get().is_some() {
            return Ok(());
        }
        let flush = Flush::Within(self.interval);
        let output = Output::start("access-log", &self.target, flush, self.stats.clone(), None)
            .map_err(|error| self.target.unopened(&error))?;
        // Nobody else has set it.
        let _ = self.output.set(output);
        Ok(())
    }
}
