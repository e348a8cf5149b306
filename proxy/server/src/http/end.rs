//! The end of a request: what an interruption makes of it, its counts and its log.

use super::charge;
use super::clock::Expired;
use super::downstream::{Downstream, DownstreamError};
use super::exchange::{Exchange, Interrupt};
use super::follow::Next;
use super::{local_reply, respond};
use crate::upstream::UpstreamError;
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::plugin::LocalReply;
use std::panic::{AssertUnwindSafe, catch_unwind};

impl<D: Downstream> Exchange<'_, D> {
    /// Does what is left to be done after the response, or in the place of it. Answers what follows a redirect, which is
    /// no response to the client.
    pub(super) async fn conclude(&mut self, result: Result<(), Interrupt>) -> Option<Box<Next>> {
        if let Err(Interrupt::Redirected(next)) = result {
            self.complete = true;
            return Some(next);
        }
        if let Err(interrupt) = result {
            let next = self.interrupted(interrupt).await;
            self.complete = true;
            return next;
        } else if self.head_sent && !self.down.request_ended() {
            // The rest of the request is refused, which Envoy counts as a stream that was reset.
            self.env.hcm.stats.downstream_rq_rx_reset().inc();
        }
        self.complete = true;
        None
    }

    /// Answers in the place of what was interrupted, if there is still room for that, and what follows that answer.
    async fn interrupted(&mut self, interrupt: Interrupt) -> Option<Box<Next>> {
        // What bounded the upstream does not bound the answer.
        self.clock.end_upstream();
        self.waited = true;
        let interrupt = match interrupt {
            // As if its stream had waited for it.
            Interrupt::Downstream(DownstreamError::Stalled) => Interrupt::Expired(self.stalls_by()),
            interrupt => interrupt,
        };
        match interrupt {
            Interrupt::Expired(which) if !self.head_sent => {
                self.clock.settle(which);
                self.note_timeout(which);
                if self.discards_request() {
                    self.discard_request().await;
                }
                let complete = self.down.request_ended();
                let reply = local_reply::expired(which, complete, self.env.hcm.profile);
                return self.answer_instead(reply).await;
            }
            Interrupt::Expired(which) => {
                self.note_timeout(which);
                if let Some(flag) = local_reply::flag(which) {
                    self.stream.flags.insert(flag);
                }
                self.stream.details = Some(local_reply::details(which).into());
                self.reset();
            }
            Interrupt::Downstream(
                gone @ (DownstreamError::Closed
                | DownstreamError::Stalled
                | DownstreamError::Silent
                | DownstreamError::Reset
                | DownstreamError::Protocol),
            ) => {
                self.env.hcm.stats.downstream_rq_rx_reset().inc();
                // nginx's status for a client that left.
                let status = if self.env.hcm.profile == Profile::Apisix { 499 } else { 0 };
                // Envoy's codec has one word for both ways in which a stream is reset.
                match gone {
                    DownstreamError::Reset => self.client_lost(Flag::DR, "http2.remote_reset", status),
                    DownstreamError::Protocol => self.client_lost(Flag::DPE, "http2.remote_reset", status),
                    DownstreamError::Silent => {
                        self.client_lost(Flag::DC, "downstream_local_disconnect(http2_ping_timeout)", status)
                    }
                    _ => self.client_lost(Flag::DC, "downstream_remote_disconnect", status),
                }
                self.down.reset();
            }
            Interrupt::Downstream(DownstreamError::Malformed) => {
                self.env.hcm.stats.downstream_cx_protocol_error().inc();
                let reply = local_reply::malformed(400, "http1.codec_error", self.env.hcm.profile);
                return self.answer_and_close(reply).await;
            }
            Interrupt::TooLarge => {
                self.env.hcm.stats.downstream_rq_too_large().inc();
                if self.stream.upstream.cluster.is_none() {
                    self.name_cluster();
                }
                return self.refuse(local_reply::too_large(self.env.hcm.profile)).await;
            }
            Interrupt::OverBudget => {
                self.env.hcm.stats.downstream_rq_overload_close().inc();
                return self.refuse(local_reply::over_budget(self.env.hcm.profile)).await;
            }
            Interrupt::Refused(reply) if !self.head_sent => {
                self.close |= !self.down.request_ended() || self.is_refused_midway();
                return self.answer_instead(*reply).await;
            }
            Interrupt::Refused(reply) => self.cut(*reply),
            // It was taken out before.
            Interrupt::Redirected(_) => {}
            Interrupt::Upstream(error) => self.cut_by_upstream(&error),
        }
        None
    }

    /// Whether a plugin has refused the request at once, before it was shown its end. As Envoy's codec tells of that apart from
    /// the last bytes, such an answer ends a connection of HTTP/1 there also where all of the request has come.
    fn is_refused_midway(&self) -> bool {
        self.env.hcm.profile == Profile::Envoy
            && !self.down.is_http2()
            && self.request_body.is_refused_midway()
    }

    /// Answers in the place of the exchange; what follows, if a plugin has another request answer.
    async fn answer_instead(&mut self, reply: LocalReply) -> Option<Box<Next>> {
        match self.respond(reply).await {
            Ok(()) => None,
            Err(Interrupt::Redirected(next)) => Some(next),
            Err(_) => {
                self.down.reset();
                None
            }
        }
    }

    /// The deadline of a client that takes nothing.
    fn stalls_by(&self) -> Expired {
        match self.env.hcm.profile {
            Profile::Envoy => Expired::Idle,
            Profile::Apisix => Expired::ClientWrite,
        }
    }

    /// Cuts a response whose upstream has.
    fn cut_by_upstream(&mut self, error: &UpstreamError) {
        self.stream.flags.insert(error.flag());
        let details = format!("upstream_reset_after_response_started{{{}}}", error.details());
        self.stream.details = Some(details.into());
        // As in Envoy, of the answers whose success is told at their end.
        if self.stream.request.is_grpc() {
            self.env.hcm.stats.rq_reset_after_downstream_response_started().inc();
        }
        if let Some(cluster) = &self.stream.upstream.cluster {
            match error {
                UpstreamError::Protocol => cluster.stats.upstream_cx_protocol_error().inc(),
                UpstreamError::Reset => cluster.stats.upstream_rq_rx_reset().inc(),
                _ => {}
            }
        }
        self.reset();
    }

    /// Cuts a response that has begun. Envoy counts a stream that it resets on both sides.
    fn reset(&mut self) {
        self.env.hcm.stats.downstream_rq_tx_reset().inc();
        self.env.hcm.stats.downstream_rq_rx_reset().inc();
        self.down.reset();
    }

    /// Answers in place of the exchange; cuts it when a response has begun.
    async fn refuse(&mut self, reply: LocalReply) -> Option<Box<Next>> {
        if !self.head_sent {
            return self.answer_and_close(reply).await;
        }
        self.cut(reply);
        None
    }

    /// Ends a response that has begun, for the reason that the answer in its place would give.
    fn cut(&mut self, reply: LocalReply) {
        if let Some(flag) = reply.flag {
            self.stream.flags.insert(flag);
        }
        self.stream.details = Some(reply.details);
        self.reset();
    }

    /// Answers a request that was not read to its end, if there is still room for an answer.
    async fn answer_and_close(&mut self, reply: LocalReply) -> Option<Box<Next>> {
        self.close = true;
        if !self.head_sent {
            return self.answer_instead(reply).await;
        }
        self.down.reset();
        None
    }

    fn note_timeout(&self, which: Expired) {
        respond::note_timeout(&self.env.hcm.stats, which);
        let Some(cluster) = &self.stream.upstream.cluster else { return };
        match which {
            Expired::Route => {
                cluster.stats.upstream_rq_timeout().inc();
                let routes = charge::routes(self.stream);
                routes.into_iter().flatten().for_each(|stats| stats.upstream_rq_timeout().inc());
                if !self.head_sent {
                    charge::response(self.stream, 504);
                }
            }
            Expired::PerTryIdle => cluster.stats.upstream_rq_per_try_idle_timeout().inc(),
            Expired::UpstreamWrite | Expired::UpstreamRead => cluster.stats.upstream_rq_timeout().inc(),
            Expired::ClusterMaxStream => cluster.stats.upstream_rq_max_duration_reached().inc(),
            _ => {}
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Nobody is left to answer. What an earlier attempt answered was no response to the client.
    pub(super) fn client_lost(&mut self, flag: Flag, details: &'static str, status: u16) {
        self.stream.flags.insert(flag);
        self.stream.details = Some(details.into());
        if !self.head_sent {
            self.stream.response.status = status;
        }
    }

    /// Counts and logs the request.
    fn log(&mut self) {
        let now = self.clock.now();
        let stream = &mut *self.stream;
        stream.timing.downstream_tx_end = Some(now.into_std());
        if let Some(tried) = stream.upstream.tried.last_mut() {
            tried.end(now.into_std(), 0);
        }
        stream.bytes.traffic = self.down.traffic();
        // What the client has sent goes with the request, in Envoy, whatever becomes of it on the way.
        stream.bytes.request_body += self.followed.as_ref().map_or(0, |followed| followed.left_behind);
        let stats = &self.env.hcm.stats;
        let elapsed = now.into_std().saturating_duration_since(stream.timing.start);
        stats.downstream_rq_time().record(elapsed.as_millis() as u64);
        self.chain.log(stream);
        if let Some(tracing) = &self.env.hcm.tracing {
            tracing.finish(stream);
        }
        match self.traced.take() {
            // Counted without any tracing, too.
            _ if stream.health_check => stats.tracing_health_check().inc(),
            Some(reason) => stats.count_trace(reason),
            None => {}
        }
        for log in &self.env.hcm.access_logs {
            log.log(stream);
        }
    }
}

impl<D: Downstream> Drop for Exchange<'_, D> {
    fn drop(&mut self) {
        if self.complete {
            return self.log();
        }
        self.clock.touch();
        self.client_lost(Flag::DC, "downstream_local_disconnect", 0);
        // It may be a panic that drops it: a second one, in a plugin's log, would end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| self.log()));
    }
}
