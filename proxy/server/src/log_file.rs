//! Logs in files: workers add lines to buffers, a thread for each file writes them out.
//!
//! A buffer is written once it holds 64 KiB, when the flush interval is over, and at the end. While a disk
//! stalls, buffers grow to a limit and lines beyond it are dropped and counted; a worker never waits, and no
//! other file does. One that does not even open the file in time is told of as one that can't.

mod archive;
mod disk;
mod late;
mod output;
mod rotation;
#[cfg(test)]
mod tests;

pub use output::{Chore, FileStats, Flush, Output};
pub use rotation::Rotation;

use disk::{Asked, Disk, MOST_EXPECTED, Mounted, PATIENCE};
use late::LateFile;
use parking_lot::Mutex;
use sixfold_core::access_log::{LogSink, LogTarget, MakeSink};
use sixfold_core::metrics::Registry;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    /// Those that are opened with their first line.
    late: Mutex<HashMap<PathBuf, Weak<LateFile>>>,
    stats: Arc<FileStats>,
    interval: Duration,
    disk: Arc<dyn Disk>,
    /// Questions that the disk has not answered.
    owed: Arc<AtomicUsize>,
}

impl LogFiles {
    /// No logs yet. `interval` is the time after which lines are written at the latest, 10 s in Envoy
    /// (`--file-flush-interval-msec`).
    pub fn new(interval: Duration, registry: &Registry) -> LogFiles {
        LogFiles::rotating(interval, registry, None)
    }

    /// The same with access logs that are rotated here. What plugins write is not.
    pub fn rotating(interval: Duration, registry: &Registry, rotation: Option<Rotation>) -> LogFiles {
        LogFiles::on(Arc::new(Mounted { rotation }), interval, registry)
    }

    fn on(disk: Arc<dyn Disk>, interval: Duration, registry: &Registry) -> LogFiles {
        let stats = Arc::new(FileStats::new(registry, "filesystem."));
        LogFiles(Arc::new(Inner {
            files: Mutex::default(),
            late: Mutex::default(),
            stats,
            interval,
            disk,
            owed: Arc::default(),
        }))
    }

    /// The log of a target, made when nobody has it.
    fn file(&self, target: &LogTarget) -> Arc<LogFile> {
        let mut files = self.0.files.lock();
        if let Some(file) = files.get(target).and_then(Weak::upgrade) {
            return file;
        }
        files.retain(|_, file| file.strong_count() > 0);
        let file = LogFile::new(target, &self.0);
        files.insert(target.clone(), Arc::downgrade(&file));
        file
    }

    fn all(&self) -> Vec<Arc<LogFile>> {
        self.0.files.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn all_late(&self) -> Vec<Arc<LateFile>> {
        self.0.late.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Opens every file anew, after they were moved away (`SIGUSR1`, `POST /reopen_logs`).
    pub fn reopen(&self) {
        self.all().iter().filter_map(|file| file.output.get()).for_each(Output::reopen);
        self.all_late().iter().filter_map(|file| file.output()).for_each(Output::reopen);
    }

    /// Writes what is left; waits at most 2 s for all files, since a disk may stall.
    pub fn shutdown(&self) {
        let deadline = Instant::now() + LAST_WRITE;
        let (files, late) = (self.all(), self.all_late());
        let late = late.iter().filter_map(|file| file.output());
        for output in files.iter().filter_map(|file| file.output.get()).chain(late) {
            // A file that does not finish in time loses its last lines.
            let _ = output.flush(deadline);
        }
    }
}

impl MakeSink for LogFiles {
    fn expect(&self, targets: &[LogTarget]) {
        for file in targets.iter().map(|target| self.file(target)) {
            if file.output.get().is_none() && self.0.owed.load(Relaxed) < MOST_EXPECTED {
                // Who waits for it is told what is wrong.
                let _ = file.ask(&file.checking, LogFile::check);
            }
        }
    }

    fn sink(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        let file = self.file(target);
        if file.output.get().is_none() {
            file.answer_to(file.ask(&file.checking, LogFile::check))?;
        }
        Ok(file)
    }

    fn opened_late(&self, path: &Path) -> Arc<dyn LogSink> {
        let mut late = self.0.late.lock();
        if let Some(file) = late.get(path).and_then(Weak::upgrade) {
            return file;
        }
        late.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(LateFile::new(path, self.0.stats.clone()));
        late.insert(path.to_owned(), Arc::downgrade(&file));
        file
    }
}

/// An access log. It is closed, and writes nothing, until it goes into force.
struct LogFile {
    target: LogTarget,
    flush: Flush,
    stats: Arc<FileStats>,
    disk: Arc<dyn Disk>,
    owed: Arc<AtomicUsize>,
    /// Whether it could be opened.
    checking: Mutex<Option<Arc<Asked>>>,
    /// That it be opened.
    opening: Mutex<Option<Arc<Asked>>>,
    output: OnceLock<Output>,
    this: Weak<LogFile>,
}

impl LogFile {
    fn new(target: &LogTarget, files: &Inner) -> Arc<LogFile> {
        Arc::new_cyclic(|this| LogFile {
            target: target.clone(),
            flush: Flush::Within(files.interval),
            stats: files.stats.clone(),
            disk: files.disk.clone(),
            owed: files.owed.clone(),
            checking: Mutex::default(),
            opening: Mutex::default(),
            output: OnceLock::new(),
            this: this.clone(),
        })
    }

    /// Asks the disk, unless that is being done or was with success. The question keeps the log, so that whoever asks
    /// for the same target again finds what it waits for.
    fn ask(
        &self,
        asked: &Mutex<Option<Arc<Asked>>>,
        question: fn(&LogFile) -> Result<(), String>,
    ) -> Result<Arc<Asked>, String> {
        let mut asked = asked.lock();
        if let Some(before) = asked.as_ref().filter(|before| !before.has_failed()) {
            return Ok(before.clone());
        }
        let Some(file) = self.this.upgrade() else { return Err("nobody has it".to_owned()) };
        let new = Asked::start(&self.owed, move || question(&file))?;
        Ok(asked.insert(new).clone())
    }

    /// Waits for the disk.
    fn answer_to(&self, asked: Result<Arc<Asked>, String>) -> Result<(), String> {
        let unopened = |reason: &str| Err(format!("can't open {}: {reason}", self.target));
        match asked.map(|asked| asked.wait()) {
            Ok(Some(answer)) => answer,
            Ok(None) => unopened(&format!("its disk does not answer in {} s", PATIENCE.as_secs())),
            Err(reason) => unopened(&reason),
        }
    }

    fn check(&self) -> Result<(), String> {
        self.disk.check(&self.target)
    }

    fn start_writing(&self) -> Result<(), String> {
        let output = self.disk.open(&self.target, self.flush, self.stats.clone())?;
        // Nobody else sets it.
        let _ = self.output.set(output);
        Ok(())
    }
}

impl LogSink for LogFile {
    fn write(&self, line: &[u8]) {
        if let Some(output) = self.output.get() {
            output.write(line);
        }
    }

    fn start_opening(&self) {
        // Who waits for it is told what is wrong.
        let _ = self.ask(&self.opening, LogFile::start_writing);
    }

    fn open(&self) -> Result<(), String> {
        self.answer_to(self.ask(&self.opening, LogFile::start_writing))
    }
}
