//! Hedging: an attempt that is slow goes on beside the next one, and the first good response of any of them is the
//! client's (config/route/v3 HedgePolicy; source/common/router/router.cc `onSoftPerTryTimeout`).
//!
//! A request is hedged when the time of an attempt has passed, which begins to run when the request is complete: what
//! is left to be sent of a slow attempt is in memory. It needs nothing of the exchange until it answers.

use super::after_attempt::{AfterAttempt, Response, decide};
use super::attempt::Attempt;
use super::charge;
use super::clock::Expired;
use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt, guard};
use super::forward::Plan;
use super::outgoing::Outgoing;
use super::retry::{Conditions, Decision, Ending, RetryState};
use crate::deadline::{Deadline, Timed, YEAR, poll_within};
use crate::upstream::{Checkout, HeadEvent, UpstreamError};
use sixfold_core::cluster::{InFlight, OutcomeKind};
use sixfold_core::headers::Headers;
use sixfold_core::message::ResponseHead;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Status that stands for a response that was too slow.
const TIMED_OUT: u16 = 504;

/// The slow attempts of a request.
pub(super) struct Hedge {
    slow: Vec<Slow>,
    /// Which responses are no good ones while there are other attempts.
    conditions: Option<Conditions>,
    /// Whoever waits has deadlines of their own.
    unlimited: Deadline,
    /// Statuses of attempts that failed since somebody looked.
    failed: Vec<u16>,
}

/// An attempt that goes on by itself.
struct Slow {
    flight: InFlight,
    checkout: Checkout,
    body: Outgoing,
    trailers: Headers,
    response: ResponseHead,
    /// Its place among the hosts that were tried.
    tried: usize,
}

/// How the last of the slow attempts, or the first good one, ended.
enum Ended {
    Head { slow: Box<Slow>, end: bool, tunnel: bool },
    Failed(Box<Slow>, UpstreamError),
}

/// What came first.
enum Raced {
    /// The attempt under way.
    Running(Attempt),
    /// A slow one.
    Slow(Ended),
}

impl Hedge {
    /// None is slow yet.
    pub(super) fn new(retry: Option<&RetryState>) -> Hedge {
        let conditions = retry.map(|retry| retry.conditions().clone());
        Hedge { slow: Vec::new(), conditions, unlimited: Deadline::unset(), failed: Vec::new() }
    }

    /// The first good response, or the end of the last attempt. With `others` there are attempts beside these, or there
    /// will be, and no bad response is the last.
    fn poll(&mut self, others: bool, cx: &mut Context<'_>) -> Poll<Ended> {
        let Hedge { slow, conditions, unlimited, failed } = self;
        let polled = poll_within(unlimited, cx, |_, cx| {
            let mut at = 0;
            while at < slow.len() {
                let Poll::Ready(answer) = slow[at].poll(cx) else {
                    at += 1;
                    continue;
                };
                let mut one = Box::new(slow.remove(at));
                let is_last = !others && slow.is_empty();
                match answer {
                    Ok((end, tunnel)) => {
                        let is_bad = conditions.as_ref().is_some_and(|c| c.want(&one.response));
                        if is_last || !is_bad {
                            return Poll::Ready(Ended::Head { slow: one, end, tunnel });
                        }
                        one.flight.answered(one.response.status, &one.response.headers, end);
                        one.flight.set_aside();
                    }
                    Err(error) if is_last => return Poll::Ready(Ended::Failed(one, error)),
                    Err(error) => {
                        let (kind, now) = (error.outcome(), std::time::Instant::now());
                        one.flight.end(kind, kind.status(), now);
                        failed.push(error.outcome().status());
                    }
                }
            }
            Poll::Pending
        });
        match ready!(polled) {
            Ok(ended) => Poll::Ready(ended),
            Err(_) => Poll::Pending,
        }
    }
}

impl Slow {
    fn poll(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(bool, bool), UpstreamError>> {
        let up = &mut self.checkout.stream;
        while let Poll::Ready(sent) = self.body.poll_rest(up, &self.trailers, cx) {
            sent?;
        }
        if let Poll::Ready(Err(error)) = up.poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            match ready!(up.poll_head(cx, &mut self.response))? {
                HeadEvent::Interim(_) => {}
                HeadEvent::Final { .. } if self.response.status == 101 => {
                    return Poll::Ready(Err(UpstreamError::Protocol));
                }
                HeadEvent::Final { end, tunnel } => return Poll::Ready(Ok((end, tunnel))),
            }
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Forwards a request whose slow attempts are joined by others.
    pub(super) async fn forward_hedged(&mut self, mut plan: Plan<'_>) -> Result<(), Interrupt> {
        let mut hedge = Hedge::new(plan.retry.as_ref());
        loop {
            let Some(flight) = self.choose_host(&plan) else {
                let reply = self.no_host(&plan);
                return self.respond(reply).await;
            };
            if let Some(reply) = self.before_proxy(&flight).await? {
                return self.respond(reply).await;
            }
            self.mirror(&mut plan);
            let (next, flight) = self.attempt_beside(&mut plan, &mut hedge, flight).await?;
            match (next, flight) {
                (AfterAttempt::Retry(wait), _) => self.back_off(wait).await?,
                (AfterAttempt::Reply(reply), _) => return self.respond(*reply).await,
                (AfterAttempt::Redirected(next), _) => return Err(Interrupt::Redirected(next)),
                (AfterAttempt::Forward(response), Some(mut flight)) => {
                    // What is slower still is given up.
                    drop(hedge);
                    return self.pass(&mut plan, &mut flight, response).await;
                }
                (AfterAttempt::Await | AfterAttempt::Forward(_), _) => {}
            }
        }
    }

    /// One attempt beside the slow ones, and what follows; with the attempt whose response that is.
    async fn attempt_beside(
        &mut self,
        plan: &mut Plan<'_>,
        hedge: &mut Hedge,
        mut flight: InFlight,
    ) -> Result<(AfterAttempt, Option<InFlight>), Interrupt> {
        let raced = {
            let mut running = pin!(self.attempt(plan, &mut flight));
            poll_fn(|cx| match running.as_mut().poll(cx) {
                Poll::Ready(ended) => Poll::Ready(ended.map(Raced::Running)),
                Poll::Pending => hedge.poll(true, cx).map(|ended| Ok(Raced::Slow(ended))),
            })
            .await
        };
        self.count_failed(hedge);
        let (next, flight) = match raced {
            Ok(Raced::Running(Attempt::Slow(checkout))) => (self.park(plan, hedge, flight, checkout), None),
            Ok(Raced::Running(attempt)) => {
                let next = self.after_attempt(plan, &mut flight, attempt, !hedge.slow.is_empty());
                (next, Some(flight))
            }
            Ok(Raced::Slow(ended)) => {
                self.end_attempt(&mut flight, OutcomeKind::Cancelled, 0);
                return Ok(self.take_over(plan, ended));
            }
            Err(interrupt) => {
                let kind = interrupt.outcome();
                self.end_attempt(&mut flight, kind, kind.status());
                self.count_timeouts(&interrupt, hedge, 0);
                return Err(interrupt);
            }
        };
        let wait = match &next {
            AfterAttempt::Retry(wait) if !hedge.slow.is_empty() => Some(*wait),
            AfterAttempt::Await => None,
            _ => return Ok((next, flight)),
        };
        drop(flight);
        Ok(match self.wait_for_slow(hedge, wait).await? {
            Some(ended) => self.take_over(plan, ended),
            None => (AfterAttempt::Retry(Duration::ZERO), None),
        })
    }

    /// Lets an attempt whose time has passed go on by itself, and asks for another one beside it.
    fn park(
        &mut self,
        plan: &mut Plan<'_>,
        hedge: &mut Hedge,
        mut flight: InFlight,
        checkout: Checkout,
    ) -> AfterAttempt {
        flight.late(self.clock.now().into_std());
        let mut body = std::mem::replace(&mut plan.body, Outgoing::none());
        body.detach(&plan.replay);
        hedge.slow.push(Slow {
            flight,
            checkout,
            body,
            trailers: self.stream.request_trailers.clone(),
            response: ResponseHead::default(),
            tried: self.stream.upstream.tried.len().saturating_sub(1),
        });
        self.clock.end_attempt();
        let decision = decide(plan, &Ending::Slow, true, charge::routes(self.stream));
        self.raise(&decision);
        match decision {
            Decision::Retry(wait) => AfterAttempt::Retry(wait),
            _ => AfterAttempt::Await,
        }
    }

    /// Waits for a slow attempt that is the client's, for so long if another one begins then.
    async fn wait_for_slow(
        &mut self,
        hedge: &mut Hedge,
        time: Option<Duration>,
    ) -> Result<Option<Ended>, Interrupt> {
        self.clock.end_attempt();
        self.clock.touch();
        let ended = {
            let mut sleep = pin!(tokio::time::sleep(time.unwrap_or(YEAR)));
            let waited = pin!(poll_fn(|cx| match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => hedge.poll(time.is_some(), cx).map(Some),
            }));
            guard(self.down, self.clock, waited).await
        };
        self.count_failed(hedge);
        if let Err(interrupt) = &ended {
            // One of them is counted as the attempt under way would be.
            self.count_timeouts(interrupt, hedge, 1);
        }
        ended
    }

    /// Goes on with a slow attempt as if it had been the last one.
    fn take_over(&mut self, plan: &mut Plan<'_>, ended: Ended) -> (AfterAttempt, Option<InFlight>) {
        let (slow, answer) = match ended {
            Ended::Head { slow, end, tunnel } => (slow, Ok((end, tunnel))),
            Ended::Failed(slow, error) => (slow, Err(error)),
        };
        let Slow { mut flight, checkout, body, response, tried, .. } = *slow;
        let upstream = &mut self.stream.upstream;
        if tried < upstream.tried.len() {
            let host = upstream.tried.remove(tried);
            upstream.tried.push(host);
        }
        upstream.member = Some(flight.member().clone());
        let next = match answer {
            Ok((end, tunnel)) => {
                self.stream.response = response;
                self.connected(&checkout);
                plan.body = body;
                self.after_slow(plan, &mut flight, Response { checkout, end, tunnel })
            }
            Err(error) => self.after_attempt(plan, &mut flight, Attempt::Failed(error, true), false),
        };
        (next, Some(flight))
    }

    /// Counts attempts that failed beside others.
    fn count_failed(&mut self, hedge: &mut Hedge) {
        for status in hedge.failed.drain(..) {
            charge::response(self.stream, status);
        }
    }

    /// Ends slow attempts whose time ends with that of the request, and counts them, but so many that are counted as the
    /// attempt under way would be.
    fn count_timeouts(&self, interrupt: &Interrupt, hedge: &mut Hedge, counted: usize) {
        let Some(cluster) = &self.stream.upstream.cluster else { return };
        if !matches!(interrupt, Interrupt::Expired(Expired::Route)) {
            return;
        }
        for slow in &mut hedge.slow {
            slow.flight.end(OutcomeKind::Timeout, TIMED_OUT, self.clock.now().into_std());
        }
        for _ in counted..hedge.slow.len() {
            cluster.stats.upstream_rq_timeout().inc();
            charge::routes(self.stream).into_iter().flatten().for_each(|s| s.upstream_rq_timeout().inc());
            charge::response(self.stream, TIMED_OUT);
        }
    }
}
