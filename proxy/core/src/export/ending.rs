//! The end of the process, as those hear of it who have something to send before it.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::Notify;

/// The end of the process. Cloning shares it.
#[derive(Clone, Default)]
pub struct Ending(Arc<Inner>);

#[derive(Default)]
struct Inner {
    has_begun: AtomicBool,
    begins: Notify,
    /// Those that are waited for.
    left: Mutex<usize>,
    one_less: Condvar,
}

/// Somebody whom the end of the process waits for, as long as this lives.
pub struct Unfinished(Ending);

impl Ending {
    /// Has the end wait for the caller.
    pub fn hold(&self) -> Unfinished {
        *self.0.left.lock() += 1;
        Unfinished(self.clone())
    }

    /// Whether it has begun: what gathers is to be sent now.
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Acquire)
    }

    /// Ends when it begins. It may be dropped at any time.
    pub async fn begun(&self) {
        let begins = self.0.begins.notified();
        if !self.has_begun() {
            begins.await;
        }
    }

    /// Begins it, and waits until nobody is left or until `deadline`: a service may not answer. Tells whether all have
    /// finished.
    pub fn finish(&self, deadline: Instant) -> bool {
        self.0.has_begun.store(true, Ordering::Release);
        self.0.begins.notify_waiters();
        let mut left = self.0.left.lock();
        while *left > 0 {
            if self.0.one_less.wait_until(&mut left, deadline).timed_out() {
                return *left == 0;
            }
        }
        true
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        *self.0.0.left.lock() -= 1;
        self.0.0.one_less.notify_all();
    }
}
