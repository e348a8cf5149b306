//! What follows an attempt: its response, another attempt, or an answer of our own.

use super::attempt::Attempt;
use super::clock::Expired;
use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt};
use super::forward::Plan;
use super::local_reply;
use super::retry::{Decision, Ending};
use crate::upstream::{Checkout, UpstreamError};
use sixfold_core::flags::Flag;
use sixfold_core::plugin::LocalReply;
use sixfold_core::route::Route;
use sixfold_core::stream::ResponseSource;
use std::time::Duration;

/// What follows an attempt.
pub(super) enum Verdict {
    /// Another one.
    Again,
    /// An answer of our own.
    Answer(Box<LocalReply>),
    /// The response.
    Pass { checkout: Box<Checkout>, end: bool, tunnel: bool, sent_all: bool },
}

impl<D: Downstream> Exchange<'_, D> {
    /// Decides what follows an attempt.
    pub(super) async fn judge(
        &mut self,
        plan: &mut Plan<'_>,
        attempt: Attempt,
    ) -> Result<Verdict, Interrupt> {
        let cluster = plan.cluster.clone();
        let high = plan.forward.high_priority;
        let can_replay = !plan.replay.overflowed;
        match attempt {
            Attempt::Head { checkout, end, tunnel, sent_all } => {
                self.head_arrived();
                let ending = Ending::Response(&self.stream.response);
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay && !tunnel)
                    .map_or(Decision::Done, |r| r.decide(&ending, &cluster, high, true));
                if let Decision::Retry(wait) = decision {
                    let status = self.stream.response.status;
                    self.end_attempt(&cluster, status);
                    drop(checkout);
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                Ok(Verdict::Pass { checkout, end, tunnel, sent_all })
            }
            Attempt::Failed(error, sent) => {
                let status = if matches!(error, UpstreamError::ConnectTimeout) { 504 } else { 503 };
                self.failed(&cluster, status);
                if error.is_reset() {
                    cluster.stats.upstream_rq_rx_reset.inc();
                } else if error == UpstreamError::Protocol {
                    cluster.stats.upstream_cx_protocol_error.inc();
                }
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay)
                    .map_or(Decision::Done, |r| r.decide(&Ending::Failed(&error), &cluster, high, sent));
                if let Decision::Retry(wait) = decision {
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                self.stream.upstream.failure = match &error {
                    UpstreamError::Connect(text) => Some(text.clone().into()),
                    _ => None,
                };
                self.stream.source = ResponseSource::Proxy;
                let retried = self.stream.upstream.attempts > 1;
                let reply = local_reply::upstream_failed(&error, retried, self.env.hcm.profile);
                cluster.stats.count_status(reply.status);
                Ok(Verdict::Answer(Box::new(reply)))
            }
            Attempt::TimedOut(which) => {
                match which {
                    Expired::PerTryIdle => cluster.stats.upstream_rq_per_try_idle_timeout.inc(),
                    Expired::PerTry => cluster.stats.upstream_rq_per_try_timeout.inc(),
                    _ => cluster.stats.upstream_rq_timeout.inc(),
                }
                self.failed(&cluster, 504);
                let ending = if which == Expired::Progress {
                    Ending::Failed(&UpstreamError::Closed)
                } else {
                    Ending::PerTryTimeout
                };
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay)
                    .map_or(Decision::Done, |r| r.decide(&ending, &cluster, high, true));
                if let Decision::Retry(wait) = decision {
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                self.stream.source = ResponseSource::Proxy;
                let complete = self.down.request_ended();
                let reply = local_reply::expired(which, complete, self.env.hcm.profile);
                cluster.stats.count_status(reply.status);
                Ok(Verdict::Answer(Box::new(reply)))
            }
        }
    }

    /// The flag of a retry that was wanted and not made.
    fn raise(&mut self, decision: &Decision, route: &Route) {
        match decision {
            Decision::Exhausted => {
                self.stream.flags.insert(Flag::URX);
                if let Some(stats) = &route.stats {
                    stats.upstream_rq_retry_limit_exceeded.inc();
                }
            }
            Decision::Overflow => self.stream.flags.insert(Flag::UO),
            Decision::Done | Decision::Retry(_) => {}
        }
    }

    async fn back_off(&mut self, wait: Duration) -> Result<(), Interrupt> {
        self.clock.end_attempt();
        self.clock.touch();
        if wait.is_zero() {
            return Ok(());
        }
        self.guarded(tokio::time::sleep(wait)).await
    }
}
