//! Settings of TLS that are made of secrets which come by themselves.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::Notify;

/// The secrets of one place, and who waits for the first of them.
pub struct Awaited {
    /// How long a cluster or listener waits before it goes on without (Envoy's `initial_fetch_timeout`); `None` is for
    /// ever.
    pub limit: Option<Duration>,
    /// Handshakes that there were no secrets for.
    not_ready: Box<dyn Fn() + Send + Sync>,
    /// Whoever brings them.
    owner: Arc<dyn Any + Send + Sync>,
    /// Nothing is waited for any more.
    over: AtomicBool,
    changes: Notify,
}

impl Awaited {
    /// Secrets that `owner` brings, who lives as long as the place does. `not_ready` is called for each handshake that
    /// fails for want of them.
    pub fn new<T: Any + Send + Sync>(
        owner: Arc<T>,
        limit: Option<Duration>,
        not_ready: impl Fn() + Send + Sync + 'static,
    ) -> Awaited {
        let (over, changes) = (AtomicBool::new(false), Notify::new());
        Awaited { limit, not_ready: Box::new(not_ready), owner, over, changes }
    }

    /// Whoever brings the secrets, if it is of that type.
    pub fn owner<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.owner.downcast_ref()
    }

    /// Whether they have not come yet and may still be waited for.
    pub fn is_awaited(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Ends once they have come. It may be dropped at any time.
    pub async fn first(&self) {
        let changed = self.changes.notified();
        if self.is_awaited() {
            changed.await;
        }
    }

    /// They have come, or what came can't be used.
    pub fn end(&self) {
        self.over.store(true, SeqCst);
        self.changes.notify_waiters();
    }

    /// Counts a handshake that fails for want of them.
    pub fn count_not_ready(&self) {
        (self.not_ready)();
    }
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Awaited")
    }
}
