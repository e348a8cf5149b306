//! Draining: telling connections that they should come to an end.
//!
//! Drains form a tree: the process, its listeners, their filter chains. Starting one starts all below it.

use parking_lot::Mutex;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How responses tell clients to go (`--drain-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainStrategy {
    /// With a probability that grows to one over the drain time.
    #[default]
    Gradual,
    /// At once.
    Immediate,
}

/// One node of the tree. Cloning shares it.
#[derive(Clone)]
pub struct Drain(Arc<Inner>);

struct Inner {
    /// Moment it started in milliseconds since `epoch`, plus one; 0 before.
    started: AtomicU64,
    /// Length of the drain time in milliseconds; 0 for at once.
    window: AtomicU64,
    /// When what is left is closed by force, in the same measure; 0 for never.
    deadline: AtomicU64,
    epoch: Instant,
    changed: Notify,
    children: Mutex<Vec<Weak<Inner>>>,
    connections: AtomicUsize,
    parent: Option<Drain>,
    idle: Notify,
    /// Tasks of connections that must hear of the beginning.
    wakers: Mutex<Wakers>,
}

/// Wakers by a number that stays theirs.
#[derive(Default)]
struct Wakers {
    all: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Wakers {
    fn insert(&mut self, waker: Waker) -> usize {
        match self.free.pop() {
            Some(at) if at < self.all.len() => {
                self.all[at] = Some(waker);
                at
            }
            _ => {
                self.all.push(Some(waker));
                self.all.len() - 1
            }
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(slot) = self.all.get_mut(at) {
            *slot = None;
            self.free.push(at);
        }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain::new()
    }
}

impl Drain {
    /// The root of a tree.
    pub fn new() -> Drain {
        Drain::under(None, Instant::now())
    }

    fn under(parent: Option<Drain>, epoch: Instant) -> Drain {
        Drain(Arc::new(Inner {
            started: AtomicU64::new(0),
            window: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            epoch,
            changed: Notify::new(),
            children: Mutex::default(),
            connections: AtomicUsize::new(0),
            parent,
            idle: Notify::new(),
            wakers: Mutex::default(),
        }))
    }

    /// A node below this one; it drains when this one does.
    pub fn child(&self) -> Drain {
        let child = Drain::under(Some(self.clone()), self.0.epoch);
        let mut children = self.0.children.lock();
        child.0.window.store(self.0.window.load(Relaxed), Relaxed);
        child.0.deadline.store(self.0.deadline.load(Relaxed), Relaxed);
        child.0.started.store(self.0.started.load(Relaxed), Relaxed);
        children.retain(|c| c.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        child
    }

    fn now(&self) -> u64 {
        self.0.epoch.elapsed().as_millis() as u64
    }

    /// Starts draining here and below. After `time` all that is left is closed by force; `None` never
    /// forces. Where it drains already, the stricter of both holds: clients are told to go as soon as either says, and
    /// what is left ends at the sooner deadline.
    pub fn start(&self, strategy: DrainStrategy, time: Option<Duration>) {
        let now = self.now();
        let millis = time.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let window = if strategy == DrainStrategy::Gradual { millis.unwrap_or(0) } else { 0 };
        self.begin(now + 1, window, millis.map_or(0, |t| now.saturating_add(t).saturating_add(1)));
    }

    fn begin(&self, started: u64, window: u64, deadline: u64) {
        let children: Vec<_> = {
            let children = self.0.children.lock();
            let (before, deadlines) =
                (self.0.started.load(Relaxed), [self.0.deadline.load(Relaxed), deadline]);
            if before == 0 {
                self.0.window.store(window, Relaxed);
                self.0.started.store(started, Relaxed);
            } else {
                // What was told goes on from where it began, to the sooner end.
                let end = started.saturating_add(window).saturating_sub(before);
                self.0.window.fetch_min(end, Relaxed);
            }
            let sooner = deadlines.into_iter().filter(|deadline| *deadline != 0).min().unwrap_or(0);
            self.0.deadline.store(sooner, Relaxed);
            children.iter().filter_map(Weak::upgrade).collect()
        };
        self.0.changed.notify_waiters();
        self.0.wakers.lock().all.iter().flatten().for_each(Waker::wake_by_ref);
        children.into_iter().for_each(|c| Drain(c).begin(started, window, deadline));
    }

    /// Whether draining has begun.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.0.started.load(Relaxed) != 0
    }

    /// Whether this response should tell the client to go: with `connection: close` or a GOAWAY.
    #[inline]
    pub fn should_close(&self) -> bool {
        let started = self.0.started.load(Relaxed);
        started != 0 && self.drawn(started)
    }

    fn drawn(&self, started: u64) -> bool {
        let window = self.0.window.load(Relaxed);
        let elapsed = (self.now() + 1).saturating_sub(started);
        window == 0 || elapsed >= window || fastrand::u64(..window) < elapsed
    }

    /// Waits until draining has begun.
    pub async fn started(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_draining() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until what is left must be closed by force.
    pub async fn expired(&self) {
        loop {
            // Before the deadline is read: a change right after it must not be missed.
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let deadline = self.0.deadline.load(Relaxed);
            if deadline == 0 {
                changed.await;
                continue;
            }
            let left = deadline.saturating_sub(self.now() + 1);
            if left == 0 {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(left)) => {}
                () = changed => {}
            }
        }
    }

    /// Counts a connection here and above for as long as the guard lives.
    pub fn connection(&self) -> ConnectionGuard {
        let mut node = Some(self);
        while let Some(drain) = node {
            drain.0.connections.fetch_add(1, Relaxed);
            node = drain.0.parent.as_ref();
        }
        ConnectionGuard { drain: self.clone(), waker: None }
    }

    /// Whether both are the same node.
    pub fn is(&self, other: &Drain) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Connections here and below.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Waits until no connection is left here and below.
    pub async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.connections() == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "drain of {} connections, begun: {}", self.connections(), self.is_draining())
    }
}

/// The beginning of a drain, for a task that waits for it again and again beside other things.
pub(crate) struct Beginning<'d, F> {
    drain: &'d Drain,
    started: Pin<&'d mut F>,
    /// Whom `started` wakes: it need not be told again.
    told: Option<Waker>,
}

impl<'d, F: Future<Output = ()>> Beginning<'d, F> {
    /// `started` is [`Drain::started`] of that drain.
    pub(crate) fn new(drain: &'d Drain, started: Pin<&'d mut F>) -> Beginning<'d, F> {
        Beginning { drain, started, told: None }
    }

    /// Whether it has come; if not, whoever asks is woken when it does.
    pub(crate) fn has_come(&mut self, cx: &mut Context<'_>) -> bool {
        if self.drain.is_draining() {
            return true;
        }
        if self.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) {
            return false;
        }
        self.told = Some(cx.waker().clone());
        self.started.as_mut().poll(cx).is_ready()
    }
}

/// A connection that counts in a [`Drain`].
#[derive(Debug)]
pub struct ConnectionGuard {
    drain: Drain,
    /// Who is told of the beginning, and the number of that.
    waker: Option<(usize, Waker)>,
}

impl ConnectionGuard {
    /// Has the task of this waker told of the beginning, and no other.
    fn tell(&mut self, waker: &Waker) {
        if self.waker.as_ref().is_some_and(|(_, told)| told.will_wake(waker)) {
            return;
        }
        let mut wakers = self.drain.0.wakers.lock();
        if let Some((before, _)) = self.waker.take() {
            wakers.remove(before);
        }
        self.waker = Some((wakers.insert(waker.clone()), waker.clone()));
    }

    /// Drives the connection's work; `None` when it has to be closed by force before it ends. While nothing
    /// drains this costs one load a wake-up.
    pub async fn serve<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut expired: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            self.tell(cx.waker());
            if self.drain.is_draining() {
                let drain = &self.drain;
                let wait = expired.get_or_insert_with(|| {
                    let drain = drain.clone();
                    Box::pin(async move { drain.expired().await })
                });
                return wait.as_mut().poll(cx).map(|()| None);
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if let Some((at, _)) = self.waker {
            self.drain.0.wakers.lock().remove(at);
        }
        let mut node = Some(&self.drain);
        while let Some(drain) = node {
            if drain.0.connections.fetch_sub(1, Relaxed) == 1 {
                drain.0.idle.notify_waiters();
            }
            node = drain.0.parent.as_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn who_has_asked_once_hears_of_the_beginning() {
        let drain = Drain::new();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move {
                let started = pin!(drain.started());
                let mut beginning = Beginning::new(&drain, started);
                let mut asked = 0;
                poll_fn(|cx| {
                    asked += 1;
                    // Asked again by the same task, it still knows whom to wake.
                    let come = beginning.has_come(cx) || beginning.has_come(cx);
                    if come { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                asked
            }
        });
        tokio::task::yield_now().await;
        drain.start(DrainStrategy::Immediate, None);
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn a_start_reaches_every_node_below_and_nothing_beside() {
        let root = Drain::new();
        let (one, two) = (root.child(), root.child());
        let chain = one.child();
        let waiter = tokio::spawn({
            let chain = chain.clone();
            async move { chain.started().await }
        });
        tokio::task::yield_now().await;
        one.start(DrainStrategy::Immediate, None);
        waiter.await.unwrap();
        assert!(chain.should_close() && one.should_close());
        assert!(!two.is_draining() && !root.is_draining());
        assert!(one.child().is_draining());
    }

    #[tokio::test]
    async fn the_deadline_ends_the_wait_and_may_come_later() {
        let drain = Drain::new();
        drain.start(DrainStrategy::Gradual, None);
        assert!(tokio::time::timeout(Duration::from_millis(30), drain.expired()).await.is_err());
        drain.start(DrainStrategy::Gradual, Some(Duration::from_millis(20)));
        tokio::time::timeout(Duration::from_secs(5), drain.expired()).await.unwrap();
    }

    // The first call's way of telling held for good: clients heard of the end of the process once in a hundred answers.
    #[test]
    fn the_stricter_of_two_drains_holds() {
        let second = Duration::from_secs(1);
        let left = |drain: &Drain| drain.0.deadline.load(Relaxed).saturating_sub(drain.now() + 1);
        let listener = Drain::new();
        let chain = listener.child();
        chain.start(DrainStrategy::Gradual, Some(600 * second));
        listener.start(DrainStrategy::Immediate, Some(5 * second));
        for drain in [&listener, &chain] {
            assert!((0..1000).all(|_| drain.should_close()));
            assert!(left(drain) <= 5000);
        }
        // A gentler one changes nothing.
        listener.start(DrainStrategy::Gradual, Some(600 * second));
        assert!(chain.should_close() && left(&chain) <= 5000);
        listener.start(DrainStrategy::Immediate, None);
        assert!(left(&chain) <= 5000);
        // Of two gradual ones the one that ends sooner.
        let drain = Drain::new();
        drain.start(DrainStrategy::Gradual, Some(600 * second));
        drain.start(DrainStrategy::Gradual, Some(second / 50));
        std::thread::sleep(second / 20);
        assert!((0..1000).all(|_| drain.should_close()));
    }

    // The first waker alone was told: work that had moved to another task was not dropped.
    #[tokio::test]
    async fn the_task_that_drives_a_connection_last_hears_of_the_beginning() {
        let drain = Drain::new();
        let mut serving = Box::pin(drain.connection().serve(std::future::pending::<()>()));
        assert!(futures_util::FutureExt::now_or_never(&mut serving).is_none());
        let serving = tokio::spawn(serving);
        tokio::task::yield_now().await;
        drain.start(DrainStrategy::Immediate, Some(Duration::from_millis(1)));
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap(), None);
    }

    #[test]
    fn gradual_draining_closes_a_growing_share() {
        let drain = Drain::new();
        drain.start(DrainStrategy::Gradual, Some(Duration::from_secs(1000)));
        let closed = (0..1000).filter(|_| drain.should_close()).count();
        assert!(closed < 100, "{closed} of 1000 right after the start");
    }

    #[tokio::test]
    async fn connections_count_up_the_tree() {
        let root = Drain::new();
        let guard = root.child().child().connection();
        assert_eq!(root.connections(), 1);
        let idle = tokio::spawn({
            let root = root.clone();
            async move { root.idle().await }
        });
        tokio::task::yield_now().await;
        drop(guard);
        idle.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_outlives_the_deadline_is_dropped() {
        let drain = Drain::new();
        let work = |millis| {
            let guard = drain.child().connection();
            let work = async move { tokio::time::sleep(Duration::from_millis(millis)).await };
            tokio::spawn(guard.serve(work))
        };
        let (short, long) = (work(1), work(60_000));
        assert_eq!(short.await.unwrap(), Some(()));
        assert_eq!(drain.connections(), 1);
        drain.start(DrainStrategy::Immediate, Some(Duration::from_millis(10)));
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), long).await.unwrap().unwrap(), None);
        assert_eq!(drain.connections(), 0);
    }
}
