//! A log that is opened with its first line, by the thread that writes it.

use super::{FileStats, Flush, Output};
use sixfold_core::access_log::{LogSink, LogTarget};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A file that plugins write. A file that can't be opened is tried again with each line.
pub(super) struct LateFile {
    target: LogTarget,
    stats: Arc<FileStats>,
    /// There once it has begun; `None` where there is no thread for it.
    output: OnceLock<Option<Output>>,
}

impl LateFile {
    /// One that has not begun: what names it may be refused.
    pub(super) fn new(path: &Path, stats: Arc<FileStats>) -> LateFile {
        LateFile { target: LogTarget::File(path.to_owned()), stats, output: OnceLock::new() }
    }

    /// Its way out, if it has begun.
    pub(super) fn output(&self) -> Option<&Output> {
        self.output.get()?.as_ref()
    }

    fn begun(&self) -> Option<&Output> {
        let start = || {
            let output =
                Output::with_file("plugin-log", &self.target, None, Flush::Soon, self.stats.clone(), None);
            output
                .inspect_err(|error| tracing::error!(log = %self.target, %error, "no thread for a log"))
                .ok()
        };
        self.output.get_or_init(start).as_ref()
    }
}

impl LogSink for LateFile {
    fn write(&self, line: &[u8]) {
        match self.begun() {
            Some(output) => output.write(line),
            None => self.stats.write_dropped().inc(),
        }
    }

    /// Starts its thread: a first line that waited for that would be late for whoever looks.
    fn start_opening(&self) {
        self.begun();
    }
}
