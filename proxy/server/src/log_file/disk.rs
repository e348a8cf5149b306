//! What a disk is asked before a log goes into force, each on a thread of its own: whoever asks, the control thread
//! say, waits for a bounded time.

use super::{FileStats, Flush, Output, Rotation};
use parking_lot::{Condvar, Mutex};
use sixfold_core::access_log::LogTarget;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

/// How long a disk has to open a log, or to say that it could. A log of a disk that takes longer can't come into force.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Questions that a disk may owe an answer to. Each is a thread, and so is each name that a control plane sends while
/// a mount hangs.
pub(super) const MOST_OWED: usize = 256;

/// Those of them that are asked ahead of whoever waits for the answer: there is room for the others.
pub(super) const MOST_EXPECTED: usize = MOST_OWED / 2;

/// Where logs are.
pub(super) trait Disk: Send + Sync {
    /// [`LogTarget::check`].
    fn check(&self, target: &LogTarget) -> Result<(), String>;

    /// Opens a log, and starts to write it.
    fn open(&self, target: &LogTarget, flush: Flush, stats: Arc<FileStats>) -> Result<Output, String>;
}

/// Those of this machine.
pub(super) struct Mounted {
    pub(super) rotation: Option<Rotation>,
}

impl Disk for Mounted {
    fn check(&self, target: &LogTarget) -> Result<(), String> {
        target.check()
    }

    fn open(&self, target: &LogTarget, flush: Flush, stats: Arc<FileStats>) -> Result<Output, String> {
        Output::rotating("access-log", target, flush, stats, self.rotation)
            .map_err(|error| target.unopened(&error))
    }
}

/// A question to a disk, whose answer all wait for who ask the same.
pub(super) struct Asked {
    since: Instant,
    answer: Mutex<Option<Result<(), String>>>,
    answered: Condvar,
}

impl Asked {
    /// Asks on a thread of its own, one of those that `owed` counts.
    ///
    /// # Errors
    /// Why it can't be asked.
    pub(super) fn start(
        owed: &Arc<AtomicUsize>,
        ask: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Arc<Asked>, String> {
        let place = Place(owed.clone());
        if owed.fetch_add(1, Relaxed) >= MOST_OWED {
            return Err("the disks of too many other logs do not answer".to_owned());
        }
        let asked =
            Arc::new(Asked { since: Instant::now(), answer: Mutex::default(), answered: Condvar::new() });
        let told = asked.clone();
        let run = move || {
            let answer = ask();
            drop(place);
            *told.answer.lock() = Some(answer);
            told.answered.notify_all();
        };
        let thread = thread::Builder::new().name("access-log".to_owned());
        thread.spawn(run).map_err(|error| format!("no thread: {error}"))?;
        Ok(asked)
    }

    /// The answer; `None` once [`PATIENCE`] has passed since it was asked for the first time, so that who asks again
    /// does not wait again.
    pub(super) fn wait(&self) -> Option<Result<(), String>> {
        let mut answer = self.answer.lock();
        while answer.is_none() {
            if self.answered.wait_until(&mut answer, self.since + PATIENCE).timed_out() {
                break;
            }
        }
        answer.clone()
    }

    /// Whether it was answered with an error.
    pub(super) fn has_failed(&self) -> bool {
        matches!(&*self.answer.lock(), Some(Err(_)))
    }
}

/// One of [`MOST_OWED`].
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
