//! Access logs in files: workers add lines to a buffer, one thread writes the buffers out.
//!
//! A buffer is written once it holds 64 KiB, when the flush interval is over, and at the end. While the disk
//! stalls, buffers grow to a limit and lines beyond it are dropped and counted; a worker never waits.

use parking_lot::Mutex;
use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::metrics::Registry;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::Duration;

/// Bytes that make the writer write before the interval is over (Envoy: 64 KiB).
const FLUSH_AT: usize = 64 << 10;

/// Bytes a file may have waiting; lines beyond are dropped.
const MOST_WAITING: usize = 4 << 20;

/// How long the end of the process waits for the last lines to be written.
const LAST_WRITE: Duration = Duration::from_secs(2);

sixfold_core::stat_block! {
    /// Statistics under `filesystem.`, as Envoy names them; `write_dropped` is ours.
    pub struct FileStats {
        counters: [
            flushed_by_timer, reopen_failed, write_buffered, write_completed, write_failed, write_dropped,
        ],
        gauges: [], histograms: [],
    }
}

/// All log files of the process. Cloning shares them.
#[derive(Clone)]
pub struct LogFiles(Arc<Inner>);

struct Inner {
    files: Mutex<HashMap<LogTarget, Arc<LogFile>>>,
    stats: Arc<FileStats>,
    writer: Thread,
    stop: Arc<AtomicBool>,
    stopped: Mutex<mpsc::Receiver<()>>,
}

/// One file, or standard output.
struct LogFile {
    target: LogTarget,
    waiting: Mutex<Vec<u8>>,
    output: Mutex<Box<dyn Write + Send>>,
    /// Set until the writer has opened the file anew.
    reopen: AtomicBool,
    writer: Thread,
    stats: Arc<FileStats>,
}

impl LogFiles {
    /// Starts the writer. `interval` is the time after which lines are written at the latest, 10 s in Envoy
    /// (`--file-flush-interval-msec`).
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(interval: Duration, registry: &Registry) -> io::Result<LogFiles> {
        let stats = Arc::new(FileStats::new(registry, "filesystem."));
        let stop = Arc::new(AtomicBool::new(false));
        let (hand_over, take) = mpsc::channel::<LogFiles>();
        let (say_stopped, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("access-log".into()).spawn({
            let stop = stop.clone();
            move || {
                let Ok(files) = take.recv() else { return };
                while !stop.load(Relaxed) {
                    files.write_waiting();
                    thread::park_timeout(interval);
                }
                files.write_waiting();
                // Nobody waits for it when the process ends in another way.
                let _ = say_stopped.send(());
            }
        })?;
        let files = LogFiles(Arc::new(Inner {
            files: Mutex::default(),
            stats,
            writer: thread.thread().clone(),
            stop,
            stopped: Mutex::new(stopped),
        }));
        // The writer waits for this; it can't be gone.
        let _ = hand_over.send(files.clone());
        Ok(files)
    }

    fn write_waiting(&self) {
        let files: Vec<_> = self.0.files.lock().values().cloned().collect();
        for file in &files {
            file.write_out();
        }
        drop(files);
        // A file that no configuration holds any more is closed once it is written.
        self.0.files.lock().retain(|_, file| Arc::strong_count(file) > 1 || !file.waiting.lock().is_empty());
    }

    /// Opens every file anew, after they were moved away (`SIGUSR1`, `POST /reopen_logs`).
    pub fn reopen(&self) {
        self.0.files.lock().values().for_each(|file| file.reopen.store(true, Relaxed));
        self.0.writer.unpark();
    }

    /// Writes what is left and stops the writer; waits at most 2 s, since a disk may stall.
    pub fn shutdown(&self) {
        self.0.stop.store(true, Relaxed);
        self.0.writer.unpark();
        // A writer that does not finish in time loses its last lines.
        let _ = self.0.stopped.lock().recv_timeout(LAST_WRITE);
    }
}

impl OpenLog for LogFiles {
    fn open(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        let mut files = self.0.files.lock();
        if let Some(file) = files.get(target) {
            return Ok(file.clone());
        }
        let file = Arc::new(LogFile {
            target: target.clone(),
            waiting: Mutex::default(),
            output: Mutex::new(open(target).map_err(|e| format!("can't open {}: {e}", name(target)))?),
            reopen: AtomicBool::new(false),
            writer: self.0.writer.clone(),
            stats: self.0.stats.clone(),
        });
        files.insert(target.clone(), file.clone());
        Ok(file)
    }
}

fn open(target: &LogTarget) -> io::Result<Box<dyn Write + Send>> {
    Ok(match target {
        LogTarget::File(path) => {
            let file: File = OpenOptions::new().append(true).create(true).open(path)?;
            Box::new(file)
        }
        LogTarget::Stdout => Box::new(io::stdout()),
        LogTarget::Stderr => Box::new(io::stderr()),
    })
}

fn name(target: &LogTarget) -> String {
    match target {
        LogTarget::File(path) => path.display().to_string(),
        LogTarget::Stdout => "standard output".to_owned(),
        LogTarget::Stderr => "standard error".to_owned(),
    }
}

impl LogSink for LogFile {
    fn write(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let before = waiting.len();
        if before + line.len() > MOST_WAITING {
            drop(waiting);
            return self.stats.write_dropped.inc();
        }
        waiting.extend_from_slice(line);
        let after = waiting.len();
        drop(waiting);
        self.stats.write_buffered.inc();
        // Only the line that crosses the mark wakes the writer.
        if before < FLUSH_AT && after >= FLUSH_AT {
            self.writer.unpark();
        }
    }
}

impl LogFile {
    fn write_out(&self) {
        let mut output = self.output.lock();
        // Lines from before the call to reopen belong to the old file.
        let lines = std::mem::take(&mut *self.waiting.lock());
        if !lines.is_empty() {
            if lines.len() < FLUSH_AT {
                self.stats.flushed_by_timer.inc();
            }
            match output.write_all(&lines).and_then(|()| output.flush()) {
                Ok(()) => self.stats.write_completed.inc(),
                Err(error) => {
                    self.stats.write_failed.inc();
                    tracing::warn!(target = %name(&self.target), %error, "can't write access log");
                }
            }
        }
        if self.reopen.swap(false, Relaxed) {
            match open(&self.target) {
                Ok(file) => *output = file,
                Err(error) => {
                    self.stats.reopen_failed.inc();
                    tracing::warn!(target = %name(&self.target), %error, "can't reopen access log");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sixfold-log-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn wait_for(path: &Path, text: &str) {
        let start = Instant::now();
        while std::fs::read_to_string(path).unwrap_or_default() != text {
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", std::fs::read_to_string(path));
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn lines_are_written_by_interval_by_size_and_at_the_end() {
        let path = directory("write").join("a.log");
        let files = LogFiles::start(Duration::from_secs(3600), &Registry::new()).unwrap();
        let sink = files.open(&LogTarget::File(path.clone())).unwrap();
        sink.write(b"first\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "written before the interval");
        let long = format!("{}\n", "x".repeat(FLUSH_AT));
        sink.write(long.as_bytes());
        wait_for(&path, &format!("first\n{long}"));
        sink.write(b"last\n");
        files.shutdown();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("x\nlast\n"));

        let path = path.with_file_name("b.log");
        let files = LogFiles::start(Duration::from_millis(5), &Registry::new()).unwrap();
        files.open(&LogTarget::File(path.clone())).unwrap().write(b"soon\n");
        wait_for(&path, "soon\n");
    }

    #[test]
    fn reopening_goes_on_in_a_new_file() {
        let path = directory("reopen").join("a.log");
        let files = LogFiles::start(Duration::from_millis(5), &Registry::new()).unwrap();
        let sink = files.open(&LogTarget::File(path.clone())).unwrap();
        sink.write(b"old\n");
        wait_for(&path, "old\n");
        let moved = path.with_extension("1");
        std::fs::rename(&path, &moved).unwrap();
        files.reopen();
        wait_for(&path, "");
        let start = Instant::now();
        while !path.exists() {
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(2));
        }
        sink.write(b"new\n");
        wait_for(&path, "new\n");
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "old\n");
    }

    #[test]
    fn equal_targets_share_a_file_and_bad_ones_are_refused() {
        let files = LogFiles::start(Duration::from_secs(1), &Registry::new()).unwrap();
        let target = LogTarget::File(directory("share").join("a.log"));
        let (one, two) = (files.open(&target).unwrap(), files.open(&target).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        let error = files.open(&LogTarget::File("/does/not/exist.log".into())).err().unwrap();
        assert!(error.starts_with("can't open /does/not/exist.log: "), "{error}");
    }

    /// An output that never finishes.
    struct Stalled;

    impl Write for Stalled {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                thread::park();
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_disk_drops_lines_and_blocks_nobody() {
        let registry = Registry::new();
        let files = LogFiles::start(Duration::from_millis(1), &registry).unwrap();
        let target = LogTarget::File(directory("stall").join("a.log"));
        let sink = files.open(&target).unwrap();
        *files.0.files.lock()[&target].output.lock() = Box::new(Stalled);
        let line = [b'x'; 1 << 16];
        let start = Instant::now();
        // The writer takes the first buffer; the next one fills up.
        for _ in 0..2 * (MOST_WAITING / line.len()) + 8 {
            sink.write(&line);
        }
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(files.0.stats.write_dropped.get() >= 8);
        assert!(files.0.files.lock()[&target].waiting.lock().len() <= MOST_WAITING);
    }
}
