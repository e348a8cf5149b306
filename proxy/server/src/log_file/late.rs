//! A log that is opened with its first line, by the thread that writes it.

use super::{FileStats, Flush, Output};
use sixfold_core::access_log::{LogSink, LogTarget};
use std::path::Path;
use std::sync::Arc;

/// A file that plugins write. A file that can't be opened is tried again with each line.
pub(super) struct LateFile {
    stats: Arc<FileStats>,
    /// `None` where there is no thread for it.
    output: Option<Output>,
}

impl LateFile {
    /// Starts its thread: a first line that waited for that would be late for whoever looks.
    pub(super) fn new(path: &Path, stats: Arc<FileStats>) -> LateFile {
        let target = LogTarget::File(path.to_owned());
        let output = Output::with_file("plugin-log", &target, None, Flush::Soon, stats.clone(), None);
        let output =
            output.inspect_err(|error| tracing::error!(log = %target, %error, "no thread for a log"));
        LateFile { stats, output: output.ok() }
    }

    /// Its way out.
    pub(super) fn output(&self) -> Option<&Output> {
        self.output.as_ref()
    }
}

impl LogSink for LateFile {
    fn write(&self, line: &[u8]) {
        match &self.output {
            Some(output) => output.write(line),
            None => self.stats.write_dropped().inc(),
        }
    }
}
