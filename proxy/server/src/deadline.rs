//! Waiting for peers, always under a deadline.
//!
//! Whatever reads from a peer's connection, writes to it or closes it takes a [`Timed`] context, and only
//! [`within`] and [`poll_within`] make one, from a [`Limit`] that they watch whenever the peer lets us wait. So a wait
//! for a peer that nothing ends does not compile.

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

pub(crate) use sixfold_core::deadline::{YEAR, after};

/// The context of a poll whose wait has a limit.
pub(crate) struct Timed<'w>(Context<'w>);

impl<'w> Deref for Timed<'w> {
    type Target = Context<'w>;

    fn deref(&self) -> &Context<'w> {
        &self.0
    }
}

impl<'w> DerefMut for Timed<'w> {
    fn deref_mut(&mut self) -> &mut Context<'w> {
        &mut self.0
    }
}

/// What ends a wait.
pub(crate) trait Limit {
    /// Which limit it was.
    type Expired;

    /// Ready when the wait is over. Asked after what is waited for was found wanting. Timers are polled by
    /// [`poll_timer`].
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Self::Expired>;
}

/// Polls until ready or until the limit, which the poll gets in hand to move it. What is ready at once comes before a
/// limit that has passed; what became ready while the task waited does not: late is late.
pub(crate) async fn within<L: Limit, T>(
    limit: &mut L,
    mut poll: impl FnMut(&mut L, &mut Timed<'_>) -> Poll<T>,
) -> Result<T, L::Expired> {
    let mut waited = false;
    poll_fn(|cx| {
        if waited && let Poll::Ready(which) = limit.poll_expired(cx) {
            return Poll::Ready(Err(which));
        }
        waited = true;
        poll_within(limit, cx, &mut poll)
    })
    .await
}

/// One poll of [`within`], for those who are polled themselves.
pub(crate) fn poll_within<L: Limit, T>(
    limit: &mut L,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut L, &mut Timed<'_>) -> Poll<T>,
) -> Poll<Result<T, L::Expired>> {
    if let Poll::Ready(done) = poll(limit, &mut Timed(Context::from_waker(cx.waker()))) {
        return Poll::Ready(Ok(done));
    }
    limit.poll_expired(cx).map(Err)
}

/// Polls a timer for a [`Limit`]. A busy connection has used up its task's share of time when it gets here, and the
/// timer must fire all the same.
pub(crate) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(tokio::task::unconstrained(timer)).poll(cx)
}

/// Waits for a future no longer than the limit.
pub(crate) async fn bounded<L: Limit, F: Future>(limit: &mut L, work: F) -> Result<F::Output, L::Expired> {
    let mut work = pin!(work);
    within(limit, |_, cx| work.as_mut().poll(cx)).await
}

/// The deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimedOut;

impl From<TimedOut> for std::io::Error {
    fn from(_: TimedOut) -> std::io::Error {
        std::io::ErrorKind::TimedOut.into()
    }
}

/// One moment by which something must be done. The timer is made when somebody waits.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// In so long.
    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline::at(after(Instant::now(), limit))
    }

    /// At this moment.
    pub(crate) fn at(at: Instant) -> Deadline {
        Deadline { at: Some(at), timer: None }
    }

    /// In so long, where the configuration has a limit. It may have switched it off; whoever waits is then under
    /// another one.
    pub(crate) fn configured(limit: Option<Duration>) -> Deadline {
        limit.map_or(Deadline::unset(), Deadline::after)
    }

    /// Not running yet: it is [set](Deadline::set) when what it bounds begins.
    pub(crate) fn unset() -> Deadline {
        Deadline { at: None, timer: None }
    }

    /// Moves it. The timer stays where it is and is set anew when it fires too soon.
    pub(crate) fn set(&mut self, at: Option<Instant>) {
        if let (Some(at), Some(timer)) = (at, &mut self.timer)
            && at < timer.deadline()
        {
            timer.as_mut().reset(at);
        }
        self.at = at;
    }

    /// Whether there is one.
    pub(crate) fn is_set(&self) -> bool {
        self.at.is_some()
    }
}

impl Limit for Deadline {
    type Expired = TimedOut;

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<TimedOut> {
        loop {
            let Some(at) = self.at else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            ready!(poll_timer(timer.as_mut(), cx));
            if Instant::now() >= at {
                return Poll::Ready(TimedOut);
            }
            timer.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(deadline: &mut Deadline) -> Result<(), TimedOut> {
        within(deadline, |_, _| Poll::Pending).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline_however_that_was_moved() {
        let start = Instant::now();
        let mut deadline = Deadline::after(Duration::from_secs(5));
        assert!(tokio::time::timeout(Duration::from_secs(4), wait(&mut deadline)).await.is_err());
        deadline.set(Some(start + Duration::from_secs(9)));
        assert_eq!(wait(&mut deadline).await, Err(TimedOut));
        assert_eq!(start.elapsed(), Duration::from_secs(9));
        deadline.set(Some(start + Duration::from_secs(100)));
        assert!(tokio::time::timeout(Duration::from_secs(1), wait(&mut deadline)).await.is_err());
        deadline.set(Some(start + Duration::from_secs(20)));
        assert_eq!(wait(&mut deadline).await, Err(TimedOut));
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_at_once_comes_before_a_deadline_that_has_passed_and_late_is_late() {
        let mut deadline = Deadline::after(Duration::ZERO);
        assert_eq!(within(&mut deadline, |_, _| Poll::Ready(7)).await, Ok(7));
        let start = Instant::now();
        let mut soon = Deadline::after(Duration::from_secs(1));
        let late = bounded(&mut soon, tokio::time::sleep(Duration::from_secs(2)));
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((late.await, start.elapsed().as_secs()), (Err(TimedOut), 3));
        assert_eq!(wait(&mut deadline).await, Err(TimedOut));
        let mut far = Deadline::after(Duration::MAX);
        assert!(tokio::time::timeout(Duration::from_secs(3600), wait(&mut far)).await.is_err());
    }

    /// A task that always has something to do uses up its share of time before it comes to the timer.
    #[tokio::test]
    async fn a_busy_task_hears_its_deadline_too() {
        let mut deadline = Deadline::after(Duration::from_millis(20));
        let (give, take) = std::sync::mpsc::channel::<()>();
        drop(take);
        let busy = within(&mut deadline, |_, cx| {
            assert!(give.send(()).is_err());
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), busy).await, Ok(Err(TimedOut)));
    }
}
