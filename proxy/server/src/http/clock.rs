//! Every deadline of a stream behind one timer.
//!
//! Deadlines are kept as plain moments. The timer is set to the earliest and only ever moved to an earlier
//! one; when it fires too soon, since the deadline has moved on, it is set anew. So a keep-alive connection
//! touches the timer wheel about once in fifteen seconds, not once a request.

use super::stall::{Stalls, Waits};
use crate::deadline::{Limit, YEAR, after};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// `stream_idle_timeout` or the route's `idle_timeout`.
    Idle,
    /// `request_timeout`: the request was not complete in time.
    Request,
    /// `max_stream_duration` of the route or the connection manager.
    MaxStream,
    /// The route's `timeout`.
    Route,
    /// `per_try_timeout`.
    PerTry,
    /// `per_try_idle_timeout`.
    PerTryIdle,
    /// The cluster's `max_stream_duration`.
    ClusterMaxStream,
    /// `timeout.send` of APISIX: the upstream has taken nothing for so long.
    UpstreamWrite,
    /// `timeout.read` of APISIX: the upstream has owed an answer and said nothing for so long.
    UpstreamRead,
    /// nginx's `client_body_timeout`: nothing came of the request's body.
    ClientBody,
    /// nginx's `send_timeout`: the client has taken nothing.
    ClientWrite,
}

impl Expired {
    /// Whether it ends one attempt, after which there may be another.
    pub(crate) fn is_of_attempt(self) -> bool {
        self.is_of_endpoint() || matches!(self, Expired::PerTry | Expired::PerTryIdle)
    }

    /// Whether it is APISIX's `timeout.send` or `timeout.read`: nginx takes it for a failure of the endpoint.
    pub(crate) fn is_of_endpoint(self) -> bool {
        matches!(self, Expired::UpstreamWrite | Expired::UpstreamRead)
    }
}

/// The deadlines of one stream and the timer of its connection.
pub(crate) struct Clock {
    timer: Pin<Box<Sleep>>,
    armed: Instant,
    now: Instant,
    idle: Option<Duration>,
    request: Option<Instant>,
    max_stream: Option<Instant>,
    route: Option<Instant>,
    per_try: Option<Instant>,
    per_try_idle: Option<Duration>,
    cluster_max: Option<Instant>,
    stalls: Stalls,
    progressed: Instant,
    touched: Instant,
    /// The next deadline, unless `changed`: setters come in threes, and one look at the end is enough.
    earliest: Option<Instant>,
    changed: bool,
}

impl Clock {
    /// No deadline.
    pub(crate) fn new() -> Clock {
        let now = Instant::now();
        let far = now + YEAR;
        Clock {
            timer: Box::pin(tokio::time::sleep_until(far)),
            armed: far,
            now,
            idle: None,
            request: None,
            max_stream: None,
            route: None,
            per_try: None,
            per_try_idle: None,
            cluster_max: None,
            stalls: Stalls::default(),
            progressed: now,
            touched: now,
            earliest: None,
            changed: false,
        }
    }

    /// Begins a stream: forgets all deadlines.
    pub(crate) fn restart(&mut self) -> Instant {
        let now = Instant::now();
        self.now = now;
        self.touched = now;
        self.progressed = now;
        self.idle = None;
        self.request = None;
        self.max_stream = None;
        self.route = None;
        self.stalls.restart(None, None);
        self.end_attempt();
        now
    }

    /// Something happened on the stream: idle deadlines start again. Answers the moment.
    pub(crate) fn touch(&mut self) -> Instant {
        let now = Instant::now();
        self.now = now;
        self.touched = now;
        self.progressed = now;
        // Later deadlines are found when the timer fires.
        now
    }

    /// The moment of the last event, without asking the operating system.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Sets the idle timeout; zero is off.
    pub(crate) fn set_idle(&mut self, idle: Option<Duration>) {
        self.idle = idle.filter(|d| !d.is_zero());
        self.changed = true;
    }

    /// Between two reads of the request's body, and between two writes to the client.
    pub(crate) fn set_client(&mut self, body: Option<Duration>, write: Option<Duration>) {
        self.stalls.restart(body, write);
        self.changed = true;
    }

    /// Takes note of who is waited for, before a wait begins or goes on.
    pub(crate) fn watch(&mut self, waits: Waits) {
        self.changed |= self.stalls.watch(waits);
    }

    /// Until the request is complete.
    pub(crate) fn set_request(&mut self, limit: Option<Duration>) {
        self.request = limit.filter(|d| !d.is_zero()).map(|d| after(self.now, d));
        self.changed = true;
    }

    /// Whole stream, from its start.
    pub(crate) fn set_max_stream(&mut self, start: Instant, limit: Option<Duration>) {
        self.max_stream = limit.filter(|d| !d.is_zero()).map(|d| after(start, d));
        self.changed = true;
    }

    /// The end of a connection that waits for its next stream, in the place of a stream's own.
    pub(crate) fn set_end(&mut self, at: Option<Instant>) {
        self.max_stream = at;
        self.recount();
    }

    /// The route's timeout, from now.
    pub(crate) fn set_route(&mut self, limit: Option<Duration>) {
        self.route = limit.map(|d| after(self.now, d));
        self.changed = true;
    }

    /// What is left of the route's timeout.
    pub(crate) fn route_left(&self) -> Option<Duration> {
        self.route.map(|at| at.saturating_duration_since(self.now))
    }

    /// Deadlines of one attempt; `write` and `read` are APISIX's `timeout.send` and `timeout.read`.
    pub(crate) fn begin_attempt(
        &mut self,
        per_try_idle: Option<Duration>,
        cluster_max: Option<Duration>,
        write: Option<Duration>,
        read: Option<Duration>,
    ) {
        self.progressed = self.now;
        self.per_try_idle = per_try_idle.filter(|d| !d.is_zero());
        self.cluster_max = cluster_max.filter(|d| !d.is_zero()).map(|d| after(self.now, d));
        self.stalls.begin_attempt(write, read);
        self.changed = true;
    }

    /// Starts the attempt's own timeout.
    pub(crate) fn set_per_try(&mut self, limit: Option<Duration>) {
        self.per_try = limit.map(|d| after(self.now, d));
        self.changed = true;
    }

    /// Forgets the deadlines of the attempt.
    pub(crate) fn end_attempt(&mut self) {
        self.per_try = None;
        self.per_try_idle = None;
        self.cluster_max = None;
        self.stalls.end_attempt();
        self.changed = true;
    }

    fn deadlines(&self) -> impl Iterator<Item = (Expired, Option<Instant>)> {
        let own = [
            (Expired::Route, self.route),
            (Expired::PerTry, self.per_try),
            (Expired::PerTryIdle, self.per_try_idle.map(|d| after(self.progressed, d))),
            (Expired::ClusterMaxStream, self.cluster_max),
            (Expired::MaxStream, self.max_stream),
            (Expired::Request, self.request),
            (Expired::Idle, self.idle.map(|d| after(self.touched, d))),
        ];
        own.into_iter().chain(self.stalls.deadlines())
    }

    fn recount(&mut self) {
        self.changed = false;
        self.earliest = self.deadlines().filter_map(|(_, at)| at).min();
    }
}

impl Limit for Clock {
    type Expired = Expired;

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        loop {
            if self.changed {
                self.recount();
            }
            let Some(earliest) = self.earliest else { return Poll::Pending };
            if earliest < self.armed {
                self.timer.as_mut().reset(earliest);
                self.armed = earliest;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.now = Instant::now();
            let expired = self.deadlines().find(|(_, at)| at.is_some_and(|t| t <= self.now));
            if let Some((which, _)) = expired {
                self.armed = self.now + YEAR;
                self.timer.as_mut().reset(self.armed);
                return Poll::Ready(which);
            }
            self.recount();
            let next = self.earliest.unwrap_or(self.now + YEAR);
            self.timer.as_mut().reset(next);
            self.armed = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn idle_time_starts_again_with_every_event() {
        let mut clock = Clock::new();
        let start = clock.restart();
        clock.set_idle(Some(Duration::from_millis(300)));
        for _ in 0..5 {
            let waited =
                tokio::time::timeout(Duration::from_millis(200), poll_fn(|cx| clock.poll_expired(cx)));
            assert!(waited.await.is_err());
            clock.touch();
        }
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::Idle);
        assert_eq!(start.elapsed().as_millis(), 1300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_beyond_the_clock_is_far_away_and_no_panic() {
        let mut clock = Clock::new();
        let start = clock.restart();
        clock.set_idle(Some(Duration::MAX));
        clock.set_request(Some(Duration::MAX));
        clock.set_max_stream(start, Some(Duration::MAX));
        clock.set_route(Some(Duration::MAX));
        clock.set_client(Some(Duration::MAX), Some(Duration::MAX));
        clock.begin_attempt(
            Some(Duration::MAX),
            Some(Duration::MAX),
            Some(Duration::MAX),
            Some(Duration::MAX),
        );
        clock.watch(Waits { client_body: Some(0), upstream_read: Some(0), ..Waits::default() });
        clock.set_per_try(Some(Duration::MAX));
        let waited = tokio::time::timeout(Duration::from_secs(3600), poll_fn(|cx| clock.poll_expired(cx)));
        assert!(waited.await.is_err());
        assert!(clock.route_left() > Some(Duration::from_secs(3600)));
    }

    /// The shorter of `send` and `read` bounded everything, a slow client's doing too.
    #[tokio::test(start_paused = true)]
    async fn time_runs_for_the_party_that_is_waited_for_and_from_its_last_step() {
        let seconds = |n| Some(Duration::from_secs(n));
        let mut clock = Clock::new();
        let start = clock.restart();
        clock.set_client(seconds(10), seconds(20));
        clock.begin_attempt(None, None, seconds(3), seconds(5));
        // The client is slow: nobody else is charged.
        for done in 0..4 {
            clock.watch(Waits { client_body: Some(done), ..Waits::default() });
            let waited = tokio::time::timeout(Duration::from_secs(9), poll_fn(|cx| clock.poll_expired(cx)));
            assert!(waited.await.is_err(), "{done}");
        }
        // The upstream owes an answer from now on, and asking again is no step.
        let owed = start.elapsed();
        for _ in 0..4 {
            clock.watch(Waits { upstream_read: Some(0), ..Waits::default() });
            let waited = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| clock.poll_expired(cx)));
            assert!(waited.await.is_err());
        }
        clock.watch(Waits { upstream_read: Some(0), ..Waits::default() });
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::UpstreamRead);
        assert_eq!(start.elapsed() - owed, Duration::from_secs(5));
        for (waits, expired) in [
            (Waits { upstream_write: Some(7), ..Waits::default() }, Expired::UpstreamWrite),
            (Waits { client_write: Some(7), ..Waits::default() }, Expired::ClientWrite),
            (Waits { client_body: Some(7), client_write: Some(7), ..Waits::default() }, Expired::ClientBody),
        ] {
            clock.watch(Waits::default());
            clock.watch(waits);
            assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, expired);
        }
        clock.watch(Waits::default());
        let waited = tokio::time::timeout(Duration::from_secs(999), poll_fn(|cx| clock.poll_expired(cx)));
        assert!(waited.await.is_err(), "nobody is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_is_told_by_name() {
        let mut clock = Clock::new();
        clock.restart();
        clock.set_idle(Some(Duration::from_secs(300)));
        clock.set_route(Some(Duration::from_secs(15)));
        clock.begin_attempt(None, None, None, None);
        clock.set_per_try(Some(Duration::from_secs(2)));
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::PerTry);
        clock.end_attempt();
        clock.touch();
        assert_eq!(clock.route_left(), Some(Duration::from_secs(13)));
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::Route);
    }
}
