//! A clock that moves only when a test says so: however long the machine stalls, nothing is too late.

use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::Instant;

/// Turns of the scheduler in which everything that can happen now has happened: sockets of this machine are looked
/// at every 61 turns.
const TURNS: usize = 600;

/// A clock that stands still. A blocking task keeps the runtime from moving it whenever only timers are waited for,
/// which it would do although bytes are on their way.
pub struct StoppedClock {
    pub start: Instant,
    _blocker: std::sync::mpsc::Sender<()>,
}

impl StoppedClock {
    #[allow(clippy::disallowed_methods, reason = "only a blocking task stops the clock")]
    pub fn new() -> StoppedClock {
        tokio::time::pause();
        let (_blocker, blocked) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || blocked.recv());
        StoppedClock { start: Instant::now(), _blocker }
    }

    /// Moves on to `at` after the start, millisecond by millisecond.
    pub async fn to(&self, at: Duration) {
        settle().await;
        while self.start.elapsed() < at {
            self.pass(Duration::from_millis(1)).await;
        }
    }

    /// Moves on at once, past all timers on the way.
    pub async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
        settle().await;
    }

    /// Lets the clock move by itself from now on.
    pub fn go_on(self) {
        tokio::time::resume();
    }
}

/// Lets everything happen that can happen now. The clock does not move meanwhile, since there is a task that is ready.
pub async fn settle() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}
