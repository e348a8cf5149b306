//! Work on whole bodies, beside the workers.
//!
//! Decoding or searching a body of megabytes takes longer than a worker may be held. Two threads do it for all of them,
//! one body after the other: one for what is short, one for what is long, so that nobody waits for a body of 64 MiB
//! but those whose own is long. Workers wait for them as for an upstream.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use tokio::sync::{mpsc, oneshot};

/// Bodies that wait for a thread; what comes beyond waits for a place.
const QUEUE: usize = 64;

/// Bytes of a body that count as short: a few milliseconds of searching.
pub const SHORT: usize = 1 << 20;

type Work = Box<dyn FnOnce() + Send>;

/// Whose turn the work takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Up to [`SHORT`] bytes.
    Short,
    /// More.
    Long,
}

impl Lane {
    /// That of a body of so many bytes.
    pub fn of(length: usize) -> Lane {
        if length <= SHORT { Lane::Short } else { Lane::Long }
    }
}

/// What `work` comes to; `None` if there is no thread for it, or it panicked. Who drops the future before the
/// work has begun takes it back.
pub async fn run<T: Send + 'static>(lane: Lane, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let work: Work = Box::new(move || {
        if !answer.is_closed() {
            let _ = answer.send(work());
        }
    });
    queue(lane)?.send(work).await.ok()?;
    answered.await.ok()
}

/// The thread is started by the first that needs it.
fn queue(lane: Lane) -> Option<&'static mpsc::Sender<Work>> {
    static LANES: [OnceLock<Option<mpsc::Sender<Work>>>; 2] = [OnceLock::new(), OnceLock::new()];
    let (queued, name) = match lane {
        Lane::Short => (&LANES[0], "bodies"),
        Lane::Long => (&LANES[1], "long-bodies"),
    };
    queued.get_or_init(|| start(name)).as_ref()
}

fn start(name: &str) -> Option<mpsc::Sender<Work>> {
    let (sender, mut receiver) = mpsc::channel::<Work>(QUEUE);
    let go_on = move || {
        while let Some(work) = receiver.blocking_recv() {
            // The next body is not to suffer for it; who waits sees that there is no answer.
            let _ = catch_unwind(AssertUnwindSafe(work));
        }
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(go_on);
    started.ok().map(|_| sender)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_a_panic_ends_it_alone() {
        let here = std::thread::current().id();
        for lane in [Lane::Short, Lane::Long] {
            assert_eq!(run(lane, move || std::thread::current().id() != here).await, Some(true));
            assert_eq!(run(lane, || -> u8 { panic!("of a test") }).await, None);
            assert_eq!(run(lane, || 1).await, Some(1));
        }
    }
}
