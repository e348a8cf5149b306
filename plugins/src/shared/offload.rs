//! Work on whole bodies, beside the workers.
//!
//! Decoding or searching a body of megabytes takes longer than a worker may be held. One thread does it for all of
//! them, one body after the other; workers wait for it as for an upstream.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use tokio::sync::{mpsc, oneshot};

/// Bodies that wait for the thread; what comes beyond waits for a place.
const QUEUE: usize = 64;

type Work = Box<dyn FnOnce() + Send>;

/// What `work` comes to; `None` if there is no thread for it, or it panicked. Who drops the future before the
/// work has begun takes it back.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let work: Work = Box::new(move || {
        if !answer.is_closed() {
            let _ = answer.send(work());
        }
    });
    queue()?.send(work).await.ok()?;
    answered.await.ok()
}

/// The thread is started by the first that needs it.
fn queue() -> Option<&'static mpsc::Sender<Work>> {
    static QUEUED: OnceLock<Option<mpsc::Sender<Work>>> = OnceLock::new();
    let start = || {
        let (sender, mut receiver) = mpsc::channel::<Work>(QUEUE);
        let go_on = move || {
            while let Some(work) = receiver.blocking_recv() {
                // The next body is not to suffer for it; who waits sees that there is no answer.
                let _ = catch_unwind(AssertUnwindSafe(work));
            }
        };
        let started = std::thread::Builder::new().name("bodies".to_owned()).spawn(go_on);
        started.inspect_err(|error| tracing::error!(%error, "no thread for bodies")).ok().map(|_| sender)
    };
    QUEUED.get_or_init(start).as_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    #[tokio::test]
    async fn work_is_done_elsewhere_and_a_panic_ends_it_alone() {
        let here = std::thread::current().id();
        assert_eq!(super::run(move || std::thread::current().id() != here).await, Some(true));
        assert_eq!(super::run(|| -> u8 { panic!("of a test") }).await, None);
        assert_eq!(super::run(|| 1).await, Some(1));
    }
}
