//! One log's way out: a bounded buffer for each worker, and a thread that writes them.
//!
//! Whoever has a line copies it into its own buffer and goes on. What can stall (a disk, a pipe that nobody
//! reads, a FIFO without a reader) stalls the output's thread alone: not the worker, and not another output.

use super::rotation::{Identity, Rotation, Rotator, identity};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use sixfold_core::access_log::{LogSink, LogTarget};
use sixfold_core::metrics;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Bytes in a worker's buffer that make the writer write before the interval is over (Envoy: 64 KiB).
pub(super) const FLUSH_AT: usize = 64 << 10;

/// Bytes that may wait to be written, over all buffers of an output, as long as that leaves each of them
/// [`LEAST_ROOM`].
pub(super) const MOST_WAITING: usize = 4 << 20;

/// Bytes that each worker may have waiting, however many there are.
const LEAST_ROOM: usize = 1 << 20;

sixfold_core::stat_block! {
    /// Statistics under `filesystem.`, as Envoy names them; `write_dropped` is ours.
    pub struct FileStats {
        counters: [
            flushed_by_timer, reopen_failed, write_buffered, write_completed, write_failed, write_dropped,
        ],
        gauges: [write_total_buffered], histograms: [],
    }
}

/// When an output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// As soon as there is a line. It is the log of the process, which says nothing of itself.
    AtOnce,
    /// As soon as there is a line, of any other log; a file is opened with the first.
    Soon,
    /// After this time at the latest, or once much has gathered.
    Within(Duration),
}

/// What the writer calls after each write; it answers in how much time it wants to be called again.
pub type Chore = Box<dyn FnMut() -> Option<Duration> + Send>;

/// A log's way out. Dropping it writes what is left and closes it.
pub struct Output(Arc<Shared>);

/// What the output and its thread share.
struct Shared {
    target: LogTarget,
    /// One for each worker behind one for all other threads.
    buffers: Box<[Buffer]>,
    /// Bytes that a buffer holds at most.
    room: usize,
    flush: Flush,
    /// Set until the writer has opened the target anew.
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Set until the writer begins its next round; a token of `unpark` alone may be taken by whatever else
    /// parks on the writer's thread.
    woken: AtomicBool,
    /// Lines that found no room and that nobody has told of yet.
    dropped: AtomicU64,
    rounds: Mutex<Rounds>,
    round_done: Condvar,
    writer: OnceLock<Thread>,
    stats: Arc<FileStats>,
}

/// On a cache line of its own, so that workers do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Buffer(Mutex<Vec<u8>>);

/// How often the writer has looked at all buffers.
#[derive(Default)]
struct Rounds {
    begun: u64,
    done: u64,
}

impl Output {
    /// Starts the thread of an output, called `name`. A file is opened here, so that one that can't be opened
    /// is an error; a FIFO is opened by the thread, since that waits for a reader.
    ///
    /// # Errors
    /// When the target can't be opened or the thread not be started.
    pub fn start(
        name: &str,
        target: &LogTarget,
        flush: Flush,
        stats: Arc<FileStats>,
        chore: Option<Chore>,
    ) -> io::Result<Output> {
        let file = if is_fifo(target) { None } else { Some(open(target)?.0) };
        Self::with_file(name, target, file, flush, stats, chore)
    }

    /// [`Output::start`] of a log that is rotated.
    ///
    /// # Errors
    /// As of [`Output::start`].
    pub(super) fn rotating(
        name: &str,
        target: &LogTarget,
        flush: Flush,
        stats: Arc<FileStats>,
        rotation: Option<Rotation>,
    ) -> io::Result<Output> {
        let opened = if is_fifo(target) { None } else { Some(open(target)?) };
        let (file, identity) = opened.unzip();
        let mut rotator = rotation.and_then(|rotation| Rotator::new(rotation, target, Timestamp::now()));
        rotator.iter_mut().for_each(|rotator| rotator.opened(identity.flatten()));
        Self::begin(name, target, (file, rotator), flush, stats, None)
    }

    pub(super) fn with_file(
        name: &str,
        target: &LogTarget,
        file: Option<Box<dyn Write + Send>>,
        flush: Flush,
        stats: Arc<FileStats>,
        chore: Option<Chore>,
    ) -> io::Result<Output> {
        Self::begin(name, target, (file, None), flush, stats, chore)
    }

    fn begin(
        name: &str,
        target: &LogTarget,
        (file, rotator): (Option<Box<dyn Write + Send>>, Option<Rotator>),
        flush: Flush,
        stats: Arc<FileStats>,
        chore: Option<Chore>,
    ) -> io::Result<Output> {
        let buffers: Box<[Buffer]> = (0..=metrics::workers()).map(|_| Buffer::default()).collect();
        let shared = Arc::new(Shared {
            target: target.clone(),
            room: (MOST_WAITING / buffers.len()).max(LEAST_ROOM),
            buffers,
            flush,
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            rounds: Mutex::default(),
            round_done: Condvar::new(),
            writer: OnceLock::new(),
            stats,
        });
        let writer = Writer { shared: shared.clone(), file, spare: Vec::new(), chore, rotator };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || writer.run())?;
        // Nobody else sets it.
        let _ = shared.writer.set(thread.thread().clone());
        Ok(Output(shared))
    }

    /// Opens the target anew, after it was moved away.
    pub fn reopen(&self) {
        self.0.reopen.store(true, Relaxed);
        self.0.wake();
    }

    /// Waits until every line that is there now is written, or until `deadline`, since an output may stall.
    pub fn flush(&self, deadline: Instant) -> bool {
        let mut rounds = self.0.rounds.lock();
        // A round that has begun may have passed a buffer already.
        let wanted = rounds.begun + 1;
        self.0.wake();
        while rounds.done < wanted {
            if self.0.round_done.wait_until(&mut rounds, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
        self.0.wake();
    }
}

impl LogSink for Output {
    fn write(&self, line: &[u8]) {
        self.0.add(line);
    }
}

impl Shared {
    fn wake(&self) {
        self.woken.store(true, Release);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Whether any line waits.
    fn has_lines(&self) -> bool {
        self.buffers.iter().any(|buffer| !buffer.0.lock().is_empty())
    }

    fn add(&self, line: &[u8]) {
        let Some(buffer) = self.buffers.get(metrics::shard()).or_else(|| self.buffers.first()) else {
            return;
        };
        let mut waiting = buffer.0.lock();
        let before = waiting.len();
        if before + line.len() > self.room {
            drop(waiting);
            self.dropped.fetch_add(1, Relaxed);
            return self.stats.write_dropped().inc();
        }
        waiting.extend_from_slice(line);
        let after = waiting.len();
        drop(waiting);
        self.stats.write_buffered().inc();
        self.stats.write_total_buffered().add(line.len() as i64);
        // Only the line that crosses the mark wakes the writer.
        let mark = if matches!(self.flush, Flush::Within(_)) { FLUSH_AT } else { 1 };
        if before < mark && after >= mark {
            self.wake();
        }
    }
}

/// What the thread of an output has.
struct Writer {
    shared: Arc<Shared>,
    /// `None` for a FIFO that has no reader yet.
    file: Option<Box<dyn Write + Send>>,
    /// An empty buffer, exchanged for a worker's full one.
    spare: Vec<u8>,
    chore: Option<Chore>,
    rotator: Option<Rotator>,
}

impl Writer {
    fn run(mut self) {
        loop {
            self.shared.woken.swap(false, Acquire);
            // Read first: what was added before the output was dropped is written.
            let stop = self.shared.stop.load(Relaxed);
            self.round();
            if stop {
                return;
            }
            let chore = self.chore.as_mut().and_then(|chore| chore());
            if self.shared.woken.load(Acquire) {
                continue;
            }
            let interval = match self.shared.flush {
                Flush::AtOnce | Flush::Soon => None,
                Flush::Within(interval) => Some(interval),
            };
            match (interval, chore) {
                (None, None) => thread::park(),
                (Some(time), None) | (None, Some(time)) => thread::park_timeout(time),
                (Some(one), Some(other)) => thread::park_timeout(one.min(other)),
            }
        }
    }

    /// Writes every buffer out.
    fn round(&mut self) {
        self.shared.rounds.lock().begun += 1;
        if self.file.is_none() && (self.shared.flush != Flush::Soon || self.shared.has_lines()) {
            self.file = self.opened("open");
        }
        if self.rotator.as_mut().is_some_and(|rotator| rotator.was_moved(Timestamp::now())) {
            self.reopen();
        }
        for index in 0..self.shared.buffers.len() {
            self.write_buffer(index);
        }
        self.tell_of_dropped();
        if self.shared.reopen.swap(false, Relaxed) {
            self.reopen();
        }
        match self.rotator.as_mut().map(|rotator| rotator.rotate(Timestamp::now())) {
            Some(Ok(true)) => self.reopen(),
            Some(Err(error)) => self.complain("rotate", &error),
            Some(Ok(false)) | None => {}
        }
        let mut rounds = self.shared.rounds.lock();
        rounds.done = rounds.begun;
        drop(rounds);
        self.shared.round_done.notify_all();
    }

    /// Goes on with what the path is now; with the old file if that can't be opened.
    fn reopen(&mut self) {
        if self.file.is_none() {
            return;
        }
        if let Some(file) = self.opened("reopen") {
            self.file = Some(file);
        }
    }

    fn write_buffer(&mut self, index: usize) {
        let Some(buffer) = self.shared.buffers.get(index) else { return };
        let mut lines = std::mem::take(&mut self.spare);
        std::mem::swap(&mut lines, &mut *buffer.0.lock());
        if !lines.is_empty() {
            self.write(&lines);
        }
        // What a stall has filled up is not kept for ever.
        lines.clear();
        lines.shrink_to(2 * FLUSH_AT);
        self.spare = lines;
    }

    fn write(&mut self, lines: &[u8]) {
        let stats = &self.shared.stats;
        stats.write_total_buffered().add(-(lines.len() as i64));
        let Some(file) = &mut self.file else { return stats.write_failed().inc() };
        if lines.len() < FLUSH_AT {
            stats.flushed_by_timer().inc();
        }
        match file.write_all(lines).and_then(|()| file.flush()) {
            Ok(()) => stats.write_completed().inc(),
            Err(error) => {
                // A FIFO whose reader has left is opened again, which waits for the next reader. It is closed before
                // anybody can know: a reader that comes in between would find an end where there is none.
                if error.kind() == io::ErrorKind::BrokenPipe && is_fifo(&self.shared.target) {
                    self.file = None;
                }
                stats.write_failed().inc();
                self.complain("write", &error);
            }
        }
    }

    fn opened(&mut self, what: &str) -> Option<Box<dyn Write + Send>> {
        match open(&self.shared.target) {
            Ok((file, identity)) => {
                self.rotator.iter_mut().for_each(|rotator| rotator.opened(identity));
                Some(file)
            }
            Err(error) => {
                self.shared.stats.reopen_failed().inc();
                self.complain(what, &error);
                None
            }
        }
    }

    /// The log of the process says what is wrong with the others, and nothing of itself: that would go on for
    /// ever.
    fn complain(&self, what: &str, error: &io::Error) {
        if self.shared.flush != Flush::AtOnce {
            tracing::warn!(log = %self.shared.target, %error, "can't {what} a log");
        }
    }

    fn tell_of_dropped(&self) {
        let lines = self.shared.dropped.swap(0, Relaxed);
        if lines > 0 {
            let log = &self.shared.target;
            tracing::warn!(%log, lines, "lines of a log were dropped, since it could not be written in time");
        }
    }
}

fn is_fifo(target: &LogTarget) -> bool {
    let LogTarget::File(path) = target else { return false };
    path.metadata().is_ok_and(|data| data.file_type().is_fifo())
}

/// A log that is open, and which file it is.
type Opened = (Box<dyn Write + Send>, Option<Identity>);

fn open(target: &LogTarget) -> io::Result<Opened> {
    Ok(match target {
        LogTarget::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            let identity = identity(&file.metadata()?);
            (Box::new(file), Some(identity))
        }
        LogTarget::Stdout => (Box::new(io::stdout()), None),
        LogTarget::Stderr => (Box::new(io::stderr()), None),
    })
}
