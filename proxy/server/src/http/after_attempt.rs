//! What follows an attempt: its response, another attempt, or an answer of our own.

use super::attempt::Attempt;
use super::charge;
use super::clock::Expired;
use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt};
use super::follow::Next;
use super::forward::Plan;
use super::local_reply;
use super::retry::{Decision, Ending};
use crate::upstream::{Checkout, UpstreamError};
use sixfold_core::cluster::{ClusterStats, InFlight, OutcomeKind, Seen};
use sixfold_core::flags::Flag;
use sixfold_core::plugin::LocalReply;
use sixfold_core::route::RouteStats;
use sixfold_core::stream::ResponseSource;
use std::pin::pin;
use std::time::Duration;

/// What follows an attempt.
pub(super) enum AfterAttempt {
    /// Another one, after this time.
    Retry(Duration),
    /// The end of one that goes on beside it.
    Await,
    /// The request that follows a redirect.
    Redirected(Box<Next>),
    /// An answer of our own.
    Reply(Box<LocalReply>),
    /// The response.
    Forward(Response),
}

/// A response whose head is in the stream's context.
pub(super) struct Response {
    pub(super) checkout: Checkout,
    /// No body follows.
    pub(super) end: bool,
    /// Both directions are bytes from here on.
    pub(super) tunnel: bool,
}

/// Why an attempt has no response.
enum Failure {
    /// The upstream's; with whether some of the request had gone out.
    Upstream(UpstreamError, bool),
    /// It took too long.
    TimedOut(Expired),
}

impl Failure {
    fn outcome(&self) -> OutcomeKind {
        match self {
            Failure::Upstream(error, _) => error.outcome(),
            Failure::TimedOut(_) => OutcomeKind::Timeout,
        }
    }

    fn ending(&self) -> Ending<'_> {
        match self {
            Failure::Upstream(error, _) => Ending::Failed(error),
            // nginx's timeouts are failures of a connection that was there.
            Failure::TimedOut(which) if which.is_of_endpoint() => Ending::Failed(&UpstreamError::Closed),
            Failure::TimedOut(_) => Ending::PerTryTimeout,
        }
    }

    fn sent(&self) -> bool {
        !matches!(self, Failure::Upstream(_, false))
    }

    fn count(&self, stats: &ClusterStats) {
        match self {
            Failure::Upstream(UpstreamError::Reset, _) => stats.upstream_rq_rx_reset().inc(),
            Failure::Upstream(UpstreamError::Protocol, _) => stats.upstream_cx_protocol_error().inc(),
            Failure::Upstream(..) => {}
            Failure::TimedOut(Expired::PerTryIdle) => stats.upstream_rq_per_try_idle_timeout().inc(),
            Failure::TimedOut(Expired::PerTry) => stats.upstream_rq_per_try_timeout().inc(),
            Failure::TimedOut(_) => stats.upstream_rq_timeout().inc(),
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Decides what follows an attempt; `others` says that there are some beside it. What the others of its request need
    /// is left in its plan: it is larger than to be handed around.
    pub(super) fn after_attempt(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        attempt: Attempt,
        others: bool,
    ) -> AfterAttempt {
        let failure = match attempt {
            Attempt::Head(response) => return self.after_response(plan, flight, response, others),
            Attempt::Failed(error, sent) => Failure::Upstream(error, sent),
            Attempt::TimedOut(which) => Failure::TimedOut(which),
            Attempt::Slow(_) => Failure::TimedOut(Expired::PerTry),
        };
        self.after_failure(plan, flight, failure, others)
    }

    fn after_response(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        response: Response,
        others: bool,
    ) -> AfterAttempt {
        self.head_arrived(flight, response.end);
        let ending = Ending::Response(&self.stream.response);
        let routes = charge::routes(self.stream);
        let decision = match response.tunnel {
            true => {
                let stats = &plan.cluster.stats;
                plan.retry.iter_mut().for_each(|retry| retry.note_success(stats, routes));
                Decision::Done
            }
            false => decide(plan, &ending, true, routes),
        };
        if let Decision::Retry(wait) = decision {
            let status = self.stream.response.status;
            charge::retried(self.stream, status);
            flight.set_aside();
            self.end_attempt(flight, OutcomeKind::Response, status);
            return AfterAttempt::Retry(wait);
        }
        self.raise(&decision);
        if others && decision != Decision::Done {
            // It is a bad response, and those beside it may have a good one.
            let status = self.stream.response.status;
            flight.set_aside();
            self.end_attempt(flight, OutcomeKind::Response, status);
            return AfterAttempt::Await;
        }
        self.pass_response(plan, flight, response)
    }

    /// The same for the response of an attempt that another one has joined: no third one does.
    pub(super) fn after_slow(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        response: Response,
    ) -> AfterAttempt {
        self.head_arrived(flight, response.end);
        self.pass_response(plan, flight, response)
    }

    /// The response is the client's, unless it is a redirect that is followed here.
    fn pass_response(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        response: Response,
    ) -> AfterAttempt {
        let status = self.stream.response.status;
        if let Some(policy) =
            plan.forward.internal_redirect.as_deref().filter(|policy| policy.follows(status))
            && let Some(next) = self.follow(plan, policy)
        {
            self.end_attempt(flight, OutcomeKind::Response, status);
            return AfterAttempt::Redirected(next);
        }
        plan.cluster.saw(flight.host(), Seen::Status(status));
        plan.replay.release(&plan.body);
        AfterAttempt::Forward(response)
    }

    fn after_failure(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        failure: Failure,
        others: bool,
    ) -> AfterAttempt {
        let kind = failure.outcome();
        self.clock.touch();
        self.end_attempt(flight, kind, kind.status());
        failure.count(&plan.cluster.stats);
        let decision = decide(plan, &failure.ending(), failure.sent(), charge::routes(self.stream));
        if let Decision::Retry(wait) = decision {
            // What APISIX counts before its next attempt; of the last one it counts the client's status.
            let late = kind.status() == 504;
            plan.cluster.saw(flight.host(), if late { Seen::Timeout } else { Seen::TcpFailure });
            return AfterAttempt::Retry(wait);
        }
        self.raise(&decision);
        if others {
            charge::response(self.stream, kind.status());
            return AfterAttempt::Await;
        }
        self.stream.source = ResponseSource::Proxy;
        let reply = match failure {
            Failure::Upstream(error, _) => {
                let retried = self.stream.upstream.attempts > 1;
                let reply = local_reply::upstream_failed(&error, retried, self.env.hcm.profile);
                self.stream.upstream.failure = match error {
                    UpstreamError::Connect(text) => Some(text.into()),
                    _ => None,
                };
                reply
            }
            Failure::TimedOut(which) => {
                local_reply::expired(which, self.down.request_ended(), self.env.hcm.profile)
            }
        };
        charge::response(self.stream, reply.status);
        // What this process lacks says nothing of the endpoint.
        if kind != OutcomeKind::Cancelled {
            plan.cluster.saw(flight.host(), Seen::Status(reply.status));
        }
        AfterAttempt::Reply(Box::new(reply))
    }

    /// The flag of a retry that was wanted and not made.
    pub(super) fn raise(&mut self, decision: &Decision) {
        match decision {
            Decision::Exhausted => self.stream.flags.insert(Flag::URX),
            Decision::Overflow => self.stream.flags.insert(Flag::UO),
            Decision::Done | Decision::Retry(_) => {}
        }
    }

    /// Waits before another attempt.
    pub(super) async fn back_off(&mut self, wait: Duration) -> Result<(), Interrupt> {
        self.clock.end_attempt();
        self.clock.touch();
        if wait.is_zero() {
            return Ok(());
        }
        self.guarded(pin!(tokio::time::sleep(wait))).await?;
        self.clock.touch();
        Ok(())
    }
}

/// Whether another attempt follows; none can once the start of the body is gone.
pub(super) fn decide(
    plan: &mut Plan<'_>,
    ending: &Ending<'_>,
    sent: bool,
    routes: [Option<&RouteStats>; 2],
) -> Decision {
    let (cluster, high) = (&plan.cluster, plan.forward.high_priority);
    match &mut plan.retry {
        Some(retry) if !plan.replay.has_overflowed() => retry.decide(ending, cluster, high, sent, routes),
        _ => Decision::Done,
    }
}
