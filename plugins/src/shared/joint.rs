//! Work that several requests wait for and that belongs to none of them: whoever comes first has it begun, and it goes on
//! when that request goes away.

use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::watch;

/// Work that is on its way, with the place for what it comes to.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One kind of work, of which one is on its way at a time.
pub(crate) struct Joint<T> {
    under_way: Mutex<Option<watch::Receiver<Option<T>>>>,
}

impl<T> Default for Joint<T> {
    fn default() -> Joint<T> {
        Joint { under_way: Mutex::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Joint<T> {
    /// What the work that is on its way comes to. When there is none, what is `known` by now, or else the outcome of new work,
    /// which `spawn` has to run to its end. `None` if that gives it up.
    pub(crate) async fn join<F>(
        &self,
        known: impl FnOnce() -> Option<T>,
        begin: impl FnOnce() -> F,
        spawn: impl FnOnce(Work),
    ) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut end = {
            let mut under_way = self.under_way.lock();
            match under_way.as_ref().filter(|end| end.borrow().is_none() && end.has_changed().is_ok()) {
                Some(end) => end.clone(),
                None => {
                    if let Some(known) = known() {
                        return Some(known);
                    }
                    let (sender, end) = watch::channel(None);
                    let work = begin();
                    spawn(Box::pin(async move { drop(sender.send_replace(Some(work.await))) }));
                    *under_way = Some(end.clone());
                    end
                }
            }
        };
        end.wait_for(Option::is_some).await.ok()?.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::task::{Context, Waker};
    use std::time::Duration;

    /// Work that takes a second.
    async fn slow(begun: Arc<AtomicU32>) -> u32 {
        let number = begun.fetch_add(1, Relaxed) + 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
        number
    }

    fn run(work: Work) {
        tokio::spawn(work);
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_when_whoever_began_it_goes_away() {
        let (joint, begun) = (Joint::default(), Arc::new(AtomicU32::new(0)));
        let join = || joint.join(|| None, || slow(begun.clone()), run);
        let start = tokio::time::Instant::now();
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(200), join()).await.is_err());
        }
        assert_eq!(tokio::join!(join(), join()), (Some(1), Some(1)));
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(join().await, Some(2), "it is over");
    }

    #[tokio::test]
    async fn what_is_known_is_not_done_and_what_is_given_up_has_no_outcome() {
        let (joint, begun) = (Joint::default(), Arc::new(AtomicU32::new(0)));
        assert_eq!(joint.join(|| Some(7), || slow(begun.clone()), run).await, Some(7));
        assert_eq!(joint.join(|| None, || slow(begun.clone()), drop).await, None);
        let kept = Mutex::new(None);
        let mut waits = pin!(joint.join(|| None, || slow(begun.clone()), |work| *kept.lock() = Some(work)));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(begun.load(Relaxed), 0);
        *kept.lock() = None;
        assert_eq!(waits.await, None);
    }
}
