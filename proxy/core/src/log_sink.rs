//! Where lines of logs go.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

/// Takes formatted lines; the server implements it with files that a writer thread flushes.
pub trait LogSink: Send + Sync {
    /// Adds one line, its end included. Must not block.
    fn write(&self, line: &[u8]);

    /// Begins to open what it writes to, and does not wait: of many logs none shall wait for another's disk.
    fn start_opening(&self) {}

    /// Opens what it writes to, when the log goes into force. What is open stays as it is. Waits for a disk, and for a
    /// bounded time only.
    ///
    /// # Errors
    /// Why it can't be opened.
    fn open(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Where an access log is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogTarget {
    /// A file, opened for appending and made when it is missing.
    File(std::path::PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogTarget {
    /// Whether it could be opened, as far as that can be told while nothing is made and nothing is kept open: what is
    /// compiled may be dropped again, or only be looked at.
    ///
    /// # Errors
    /// Why not, in the words of [`LogTarget::unopened`].
    pub fn check(&self) -> Result<(), String> {
        let LogTarget::File(path) = self else { return Ok(()) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let checked = match std::fs::metadata(path) {
            // Opening anything else, a FIFO say, may wait.
            Ok(data) if data.is_file() || data.is_dir() => {
                OpenOptions::new().append(true).open(path).map(drop)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folder.map_or(Ok(()), |folder| std::fs::metadata(folder).map(drop))
            }
            Err(error) => Err(error),
        };
        checked.map_err(|error| self.unopened(&error))
    }

    /// What is said of one that can't be opened.
    pub fn unopened(&self, error: &io::Error) -> String {
        format!("can't open {self}: {error}")
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogTarget::File(path) => path.display().fmt(f),
            LogTarget::Stdout => f.write_str("standard output"),
            LogTarget::Stderr => f.write_str("standard error"),
        }
    }
}

/// Makes sinks for sources that compile configuration; equal targets share one.
pub trait MakeSink: Send + Sync {
    /// Begins to ask whether these could be opened, and does not wait: of the logs of one change none shall wait for
    /// another's disk. Nothing is lost by leaving some out.
    fn expect(&self, _targets: &[LogTarget]) {}

    /// The sink of a target, which is opened once it goes into force ([`LogSink::open`]).
    ///
    /// # Errors
    /// Why it could not be, as far as that can be told now ([`LogTarget::check`]) and in bounded time.
    fn sink(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String>;

    /// The sink of a file that is opened with its first line, and whose lines are written as they come: no disk is asked
    /// before, and nobody but the log of the process hears of one that can't be opened (APISIX's file-logger).
    fn opened_late(&self, path: &std::path::Path) -> Arc<dyn LogSink>;
}
