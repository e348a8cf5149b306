//! Every deadline of a stream behind one timer.
//!
//! Deadlines are kept as plain moments. The timer is set to the earliest and only ever moved to an earlier
//! one; when it fires too soon, since the deadline has moved on or gone, it is set anew. So a keep-alive connection
//! touches the timer wheel about once in fifteen seconds, not once a request, and deadlines are only compared as a
//! whole when it fires.

use super::stall::{Stalls, Waits};
use crate::deadline::{Limit, YEAR, after, poll_timer};
use sixfold_core::hcm::ConnectionTimeouts;
use sixfold_core::overload::{Overload, Timer as Shortens};
use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, Sleep};

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// `stream_idle_timeout` or the route's `idle_timeout`.
    Idle,
    /// `request_headers_timeout`: the request's head was not complete in time.
    Head,
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
    now: Instant,
    idle: Option<Duration>,
    /// What makes the idle timeout shorter.
    load: Option<Arc<Overload>>,
    /// As which it does.
    shortens: Shortens,
    request: Option<Instant>,
    /// That is when its head is to be complete.
    of_head: bool,
    max_stream: Option<Instant>,
    route: Option<Instant>,
    per_try: Option<Instant>,
    per_try_idle: Option<Duration>,
    cluster_max: Option<Instant>,
    stalls: Stalls,
    progressed: Instant,
    touched: Instant,
    /// Something was waited for since the time was asked for.
    stale: bool,
    /// No deadline is earlier: the earliest that was set since the timer fired, perhaps gone by now.
    earliest: Instant,
    /// Whom the timer wakes, and that it has not been moved since it was told.
    waiting: Option<Waker>,
}

impl Clock {
    /// No deadline.
    pub(crate) fn new() -> Clock {
        let now = Instant::now();
        let far = now + YEAR;
        Clock {
            timer: Box::pin(tokio::time::sleep_until(far)),
            now,
            idle: None,
            load: None,
            shortens: Shortens::StreamIdle,
            request: None,
            of_head: false,
            max_stream: None,
            route: None,
            per_try: None,
            per_try_idle: None,
            cluster_max: None,
            stalls: Stalls::default(),
            progressed: now,
            touched: now,
            stale: false,
            earliest: far,
            waiting: None,
        }
    }

    /// Begins a stream: forgets all deadlines.
    pub(crate) fn restart(&mut self) -> Instant {
        let now = self.touch();
        self.forget();
        now
    }

    fn forget(&mut self) {
        (self.idle, self.load) = (None, None);
        self.request = None;
        self.max_stream = None;
        self.route = None;
        self.stalls.restart(None, None);
        self.end_attempt();
    }

    /// [`Clock::restart`] at the end of the stream before.
    pub(crate) fn restart_at_last(&mut self) -> Instant {
        let now = self.touch_if_waited();
        self.forget();
        now
    }

    /// Something happened on the stream: idle deadlines start again. Answers the moment.
    pub(crate) fn touch(&mut self) -> Instant {
        let now = Instant::now();
        self.now = now;
        self.touched = now;
        self.progressed = now;
        self.stale = false;
        // Later deadlines are found when the timer fires.
        now
    }

    /// The same for what came together with the event before: the time is asked for again only if something was waited
    /// for in between.
    pub(crate) fn touch_if_waited(&mut self) -> Instant {
        if self.stale { self.touch() } else { self.now }
    }

    /// The moment of the last event, without asking the operating system.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Sets the idle timeout; zero is off.
    pub(crate) fn set_idle(&mut self, idle: Option<Duration>) {
        self.idle = idle.filter(|d| !d.is_zero());
        self.load = None;
        self.heed(self.idle.map(|d| after(self.touched, d)));
    }

    /// Sets the idle timeout, which becomes shorter under load as this timer does; zero is off.
    pub(crate) fn set_idle_under(
        &mut self,
        idle: Option<Duration>,
        timer: Shortens,
        overload: Option<&Arc<Overload>>,
    ) {
        self.set_idle(idle);
        let shortened =
            overload.zip(self.idle).and_then(|(load, idle)| Some((load, load.shortened(timer, idle)?)));
        if let Some((load, time)) = shortened {
            (self.load, self.shortens) = (Some(load.clone()), timer);
            self.heed(Some(after(self.touched, time.least)));
        }
    }

    fn idle_end(&self) -> Option<Instant> {
        let idle = self.idle?;
        let shortened = self.load.as_ref().and_then(|load| load.shortened(self.shortens, idle));
        Some(after(self.touched, shortened.map_or(idle, |time| time.now)))
    }

    /// When the load is to be looked at again, for it may make the idle timeout shorter.
    fn look_again(&self) -> Option<Instant> {
        let time = self.load.as_ref()?.shortened(self.shortens, self.idle?)?;
        Some(after(self.touched, time.least).max(after(self.now, time.again)))
    }

    /// Between two reads of the request's body, and between two writes to the client.
    pub(crate) fn set_client(&mut self, body: Option<Duration>, write: Option<Duration>) {
        self.stalls.restart(body, write);
    }

    /// Takes note of who is waited for, before a wait begins or goes on.
    pub(crate) fn watch(&mut self, waits: Waits) {
        if self.stalls.watch(waits) {
            self.stalls.deadlines().into_iter().for_each(|(_, at)| self.heed(at));
        }
    }

    /// Sets what bounds a stream from `start`, the moment of its first byte, whatever comes of it. Setting it again changes
    /// nothing.
    pub(crate) fn begin_stream(
        &mut self,
        start: Instant,
        timeouts: &ConnectionTimeouts,
        overload: Option<&Arc<Overload>>,
    ) {
        self.set_idle_under(timeouts.stream_idle, Shortens::StreamIdle, overload);
        self.set_max_stream(start, timeouts.max_stream);
        self.set_client(timeouts.body, timeouts.send);
    }

    /// Until the request is complete, from its first byte.
    pub(crate) fn set_request(&mut self, start: Instant, limit: Option<Duration>) {
        self.request = limit.filter(|d| !d.is_zero()).map(|d| after(start, d));
        self.of_head = false;
        self.heed(self.request);
    }

    /// The request is complete.
    pub(crate) fn end_request(&mut self) {
        self.request = None;
    }

    /// Until the request's head is complete, where the request is not to be so sooner.
    pub(crate) fn bound_head(&mut self, start: Instant, limit: Duration) {
        let at = after(start, limit);
        if self.request.is_none_or(|request| at < request) {
            (self.request, self.of_head) = (Some(at), true);
            self.heed(self.request);
        }
    }

    /// The head is complete, which is an event of the stream.
    pub(crate) fn end_head(&mut self) {
        self.end_request();
        self.touch_if_waited();
    }

    /// Whole stream, from its start.
    pub(crate) fn set_max_stream(&mut self, start: Instant, limit: Option<Duration>) {
        self.max_stream = limit.filter(|d| !d.is_zero()).map(|d| after(start, d));
        self.heed(self.max_stream);
    }

    /// The end of a connection that waits for its next stream, in the place of a stream's own.
    pub(crate) fn set_end(&mut self, at: Option<Instant>) {
        self.max_stream = at;
        self.heed(at);
    }

    /// The route's timeout, from now.
    pub(crate) fn set_route(&mut self, limit: Option<Duration>) {
        self.route = limit.map(|d| after(self.now, d));
        self.heed(self.route);
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
        self.heed(self.per_try_idle.map(|d| after(self.progressed, d)));
        self.heed(self.cluster_max);
    }

    /// Starts the attempt's own timeout.
    pub(crate) fn set_per_try(&mut self, limit: Option<Duration>) {
        self.per_try = limit.map(|d| after(self.now, d));
        self.heed(self.per_try);
    }

    /// Forgets the deadlines of the attempt.
    pub(crate) fn end_attempt(&mut self) {
        self.per_try = None;
        self.per_try_idle = None;
        self.cluster_max = None;
        self.stalls.end_attempt();
    }

    /// Nothing more is waited for of upstreams: the timeouts of the route and of its attempts bound nothing that follows
    /// (source/common/router/router.cc `Filter::onUpstreamComplete`).
    pub(crate) fn end_upstream(&mut self) {
        self.route = None;
        self.end_attempt();
    }

    /// A deadline has been heeded: what is answered for it must not meet it again. Idle time starts with each event anyhow.
    pub(crate) fn settle(&mut self, which: Expired) {
        match which {
            Expired::MaxStream => self.max_stream = None,
            Expired::Head | Expired::Request => self.end_request(),
            _ => {}
        }
    }

    /// A deadline was set. One that goes, or moves on, is found to have done so when the timer fires.
    #[inline]
    fn heed(&mut self, deadline: Option<Instant>) {
        if let Some(at) = deadline
            && at < self.earliest
        {
            self.earliest = at;
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = (Expired, Option<Instant>)> {
        let own = [
            (Expired::Route, self.route),
            (Expired::PerTry, self.per_try),
            (Expired::PerTryIdle, self.per_try_idle.map(|d| after(self.progressed, d))),
            (Expired::ClusterMaxStream, self.cluster_max),
            (Expired::MaxStream, self.max_stream),
            (if self.of_head { Expired::Head } else { Expired::Request }, self.request),
            (Expired::Idle, self.idle_end()),
        ];
        own.into_iter().chain(self.stalls.deadlines())
    }

    fn arm(&mut self, at: Instant) {
        self.timer.as_mut().reset(at);
        self.waiting = None;
    }
}

/// For how long the time of day is told by the clock that only runs forward. A step of the other is noticed after that.
const TOLD: Duration = Duration::from_secs(1);

thread_local! {
    /// A moment on both clocks.
    static DAY: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

/// The time of day at `now`, a moment that has just been asked for: the operating system is asked once a second.
pub(super) fn time_of_day(now: Instant) -> SystemTime {
    let told = DAY.get().and_then(|(at, time)| {
        let since = now.checked_duration_since(at).filter(|since| *since < TOLD)?;
        time.checked_add(since)
    });
    told.unwrap_or_else(|| {
        let time = SystemTime::now();
        DAY.set(Some((now, time)));
        time
    })
}

impl Limit for Clock {
    type Expired = Expired;

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        self.stale = true;
        loop {
            if self.earliest < self.timer.deadline() {
                self.arm(self.earliest);
            }
            // The timer is left alone while it knows whom to wake.
            let knows = self.waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if knows && !self.timer.is_elapsed() {
                return Poll::Pending;
            }
            if poll_timer(self.timer.as_mut(), cx).is_pending() {
                self.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.now = Instant::now();
            let far = self.now + YEAR;
            let deadlines = self.deadlines().filter_map(|(_, at)| at);
            self.earliest = deadlines.chain(self.look_again()).min().unwrap_or(far);
            let expired = self.deadlines().find(|(_, at)| at.is_some_and(|t| t <= self.now));
            if let Some((which, _)) = expired {
                // What it bounds has until the next wait to take it away.
                self.arm(far);
                return Poll::Ready(which);
            }
            self.arm(self.earliest);
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
        clock.set_request(start, Some(Duration::MAX));
        clock.bound_head(start, Duration::MAX);
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

    /// What comes at once has one time; what was waited for has its own.
    #[tokio::test(start_paused = true)]
    async fn the_time_is_asked_for_once_between_two_waits() {
        let mut clock = Clock::new();
        let start = clock.restart();
        clock.set_idle(Some(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((clock.touch_if_waited(), clock.restart_at_last()), (start, start));
        clock.set_idle(Some(Duration::from_secs(10)));
        let waited = tokio::time::timeout(Duration::from_secs(3), poll_fn(|cx| clock.poll_expired(cx)));
        assert!(waited.await.is_err());
        let after = start + Duration::from_secs(4);
        assert_eq!((clock.touch_if_waited(), clock.now()), (after, after));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.restart_at_last(), after);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_day_is_asked_for_once_a_second() {
        let (start, day) = (Instant::now(), SystemTime::now());
        let first = time_of_day(start);
        assert!(first >= day && first <= SystemTime::now());
        let millis = Duration::from_millis;
        assert_eq!(time_of_day(start + millis(999)), first + millis(999));
        // The clock that is paused has gone on by a second, the other has not.
        let asked = time_of_day(start + millis(1000));
        assert!(asked < first + millis(1000) && asked >= first);
        assert_eq!(time_of_day(start + millis(1400)), asked + millis(400));
        // A moment from before is not counted back from it.
        assert!(time_of_day(start) <= SystemTime::now());
    }

    /// The timer is set by what is set, and moved on by what it finds when it fires.
    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_went_leaves_those_behind_it() {
        let mut clock = Clock::new();
        let start = clock.restart();
        clock.set_max_stream(start, Some(Duration::from_secs(30)));
        clock.set_request(start, Some(Duration::from_secs(10)));
        clock.end_request();
        clock.set_route(Some(Duration::from_secs(20)));
        clock.set_per_try(Some(Duration::from_secs(5)));
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::PerTry);
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::PerTry, "nobody took it away");
        clock.end_attempt();
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::Route);
        clock.set_route(None);
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::MaxStream);
        assert_eq!(start.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_and_its_request_have_their_time_from_the_first_byte() {
        let seconds = Duration::from_secs;
        let limits = |idle, request, max_stream| ConnectionTimeouts {
            stream_idle: Some(seconds(idle)),
            request: Some(seconds(request)),
            max_stream: Some(seconds(max_stream)),
            ..ConnectionTimeouts::default()
        };
        for (timeouts, head, expected) in [
            (limits(5, 9, 9), 9, Expired::Idle),
            (limits(9, 5, 9), 9, Expired::Request),
            (limits(9, 9, 5), 9, Expired::MaxStream),
            (limits(9, 9, 9), 5, Expired::Head),
            (limits(0, 0, 0), 5, Expired::Head),
        ] {
            let mut clock = Clock::new();
            let start = clock.restart();
            clock.begin_stream(start, &timeouts, None);
            clock.set_request(start, timeouts.request);
            clock.bound_head(start, seconds(head));
            assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, expected);
            assert_eq!(start.elapsed(), seconds(5), "{expected:?}");
        }
        // A head that is complete has been an event, and its request has what is left.
        let (mut clock, timeouts) = (Clock::new(), limits(5, 7, 0));
        let start = clock.restart();
        clock.begin_stream(start, &timeouts, None);
        clock.bound_head(start, seconds(4));
        assert!(tokio::time::timeout(seconds(3), poll_fn(|cx| clock.poll_expired(cx))).await.is_err());
        clock.end_head();
        clock.begin_stream(start, &timeouts, None);
        clock.set_request(start, timeouts.request);
        assert_eq!(poll_fn(|cx| clock.poll_expired(cx)).await, Expired::Request);
        assert_eq!(start.elapsed(), seconds(7));
    }

    /// A timer that knows a task wakes that one: another that comes to wait must be told too.
    #[tokio::test(start_paused = true)]
    async fn who_waits_last_is_woken() {
        let mut clock = Clock::new();
        clock.restart();
        clock.set_idle(Some(Duration::from_secs(5)));
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(clock.poll_expired(&mut nobody).is_pending());
        let waiting = tokio::spawn(async move { poll_fn(|cx| clock.poll_expired(cx)).await });
        let waited = tokio::time::timeout(Duration::from_secs(6), waiting).await;
        assert!(matches!(waited, Ok(Ok(Expired::Idle))));
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

    /// A connection that was idle when the load came must not wait for the whole of a long timeout.
    #[tokio::test(start_paused = true)]
    async fn the_idle_timeout_becomes_shorter_while_it_runs() {
        use sixfold_core::overload::{Act, Action, Least, Limit, Settings, Threshold, Trigger};
        let settings = Settings {
            refresh: Duration::from_secs(1),
            heaps: vec![Limit { name: "heap".to_owned(), max: 100 }],
            actions: vec![Action {
                act: Act::ReduceTimeouts,
                name: "reduce".to_owned(),
                triggers: vec![Trigger { heap: 0, threshold: Threshold::From(0.9) }],
            }],
            timers: [Some(Least::Time(Duration::from_secs(5))), None, None],
            ..Settings::default()
        };
        let overload = Arc::new(Overload::new(settings, &sixfold_core::metrics::Registry::new()));
        for (loaded_after, expected) in [(None, 600), (Some(20), 21), (Some(0), 5)] {
            overload.update(Some(0));
            let (mut clock, start) = (Clock::new(), Instant::now());
            clock.set_idle_under(Some(Duration::from_secs(600)), Shortens::ConnectionIdle, Some(&overload));
            if let Some(seconds) = loaded_after {
                let overload = overload.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    overload.update(Some(95));
                });
            }
            let expired = std::future::poll_fn(|cx| clock.poll_expired(cx)).await;
            let waited = start.elapsed().as_secs();
            assert_eq!(expired, Expired::Idle);
            assert!((expected..=expected + 1).contains(&waited), "{waited} for {expected}");
        }
    }
}
