//! Copies of a request for mirrors.
//!
//! Each is a task of its own on the request's worker: the request neither waits for it nor hears what becomes of it. What
//! is still to come of the body goes to it as it comes, through a queue with a bound in bytes. A mirror that does not
//! keep up gets no more: where Envoy holds up the client for it, its copy is given up.

use super::charge;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::forward::Plan;
use crate::deadline::{Deadline, TimedOut, after, bounded};
use crate::drain::Drain;
use crate::upstream::{Outbound, Pools, UpstreamError, choose_cluster, destination};
use crate::wire::body::Piece;
use bytes::Bytes;
use sixfold_core::budget::{ByteBudget, Reservation};
use sixfold_core::cluster::{Choice, Cluster, Criteria, OutcomeKind};
use sixfold_core::headers::Headers;
use sixfold_core::message::RequestHead;
use sixfold_core::mirror::MirrorPolicy;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Bytes of a body that may wait for one mirror however little may be kept: as much as is read at once.
const LEAST_ROOM: usize = 64 << 10;
/// Pieces of a body that wait for one mirror: a bound for what is not counted in bytes.
const MAX_PIECES: usize = 1024;

/// The mirrors that the rest of a request's body goes to. Dropped before the end of the body, their copies are given up.
pub(super) struct Mirrors {
    open: Vec<Mirror>,
    /// The request's own cluster, which counts copies that were given up.
    cluster: Arc<Cluster>,
    /// What all requests together may hold.
    bodies: Arc<ByteBudget>,
}

struct Mirror {
    parts: Sender<Part>,
    /// What may wait for it.
    room: Arc<ByteBudget>,
    /// Ends the copy, while it is not whole.
    task: Option<AbortHandle>,
}

impl Mirror {
    /// Puts a part behind those that wait; `false` if there are too many, or nobody listens behind an answer that did
    /// not wait for the body.
    fn hand_over(&self, part: Part, of: &Cluster) -> bool {
        let sent = self.parts.try_send(part);
        if let Err(TrySendError::Full(_)) = &sent {
            of.stats.retry_or_shadow_abandoned().inc();
        }
        sent.is_ok()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// What a mirror gets behind the head.
enum Part {
    /// A piece of the body, and its places among the bytes that wait.
    Data(Bytes, #[expect(dead_code, reason = "held for its drop")] [Reservation; 2]),
    /// The end of the body, and the trailers.
    End(Headers),
}

impl Mirrors {
    /// Hands a piece of the body on.
    pub(super) fn push(&mut self, piece: &Piece<'_>) {
        if self.open.is_empty() {
            return;
        }
        let bytes = match piece {
            Piece::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Piece::Shared(bytes) => bytes.clone(),
        };
        let Mirrors { open, cluster, bodies } = self;
        open.retain(|mirror| {
            let mut held = [Reservation::empty(&mirror.room), Reservation::empty(bodies)];
            if !held.iter_mut().all(|held| held.resize(bytes.len())) {
                cluster.stats.retry_or_shadow_abandoned().inc();
                return false;
            }
            mirror.hand_over(Part::Data(bytes.clone(), held), cluster)
        });
    }

    /// Hands the end of the body on: from here on the copies are on their own.
    pub(super) fn end(&mut self, trailers: &Headers) {
        for mut mirror in self.open.drain(..) {
            if mirror.hand_over(Part::End(trailers.clone()), &self.cluster) {
                mirror.task = None;
            }
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Sends copies of the request to the mirrors of its route, before the first attempt.
    pub(super) fn mirror(&mut self, plan: &mut Plan<'_>) {
        let forward = plan.forward;
        if let (0, Some(policies)) = (plan.begun, &forward.mirrors) {
            self.mirror_to(plan, policies);
        }
    }

    /// Sends copies of the request, as it is for its own cluster, to those of the mirrors that are meant. Upgrades are not
    /// copied.
    fn mirror_to(&mut self, plan: &mut Plan<'_>, policies: &[MirrorPolicy]) {
        if self.down.upgrade().is_some() {
            return;
        }
        let body = self.stream.request_body.clone();
        let ended = body.is_some() || self.request_ended() && !self.request_body.is_under_way();
        let empty =
            body.as_ref().is_none_or(|body| body.is_empty()) && self.stream.request_trailers.is_empty();
        let has_body = !ended || !empty;
        let room = plan.replay.limit().max(LEAST_ROOM);
        let mut mirrors = Mirrors {
            open: Vec::new(),
            cluster: plan.cluster.clone(),
            bodies: self.env.worker.shared.bodies.clone(),
        };
        let hcm = &self.env.hcm;
        for policy in policies {
            if !policy.wants(self.stream) {
                continue;
            }
            let Some(cluster) = choose_cluster(&policy.cluster, self.stream).0 else { continue };
            let mut head = policy.head(hcm.headers.local_address, self.stream);
            plan.timeouts.announce_to_mirror(plan.suppress, &mut head.headers);
            let (parts, receiver) = channel(MAX_PIECES);
            let shadow = Shadow {
                destination: destination(&cluster, self.stream),
                cluster,
                head,
                parts: has_body.then_some(receiver),
                timeout: plan.timeouts.global,
                idle: hcm.timeouts.stream_idle,
            };
            let task = tokio::spawn(shadow.run(self.env.drain.clone())).abort_handle();
            if has_body {
                let room = Arc::new(ByteBudget::new(room));
                mirrors.open.push(Mirror { parts, room, task: Some(task) });
            }
        }
        if mirrors.open.is_empty() {
            return;
        }
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            mirrors.push(&Piece::Shared(body));
        }
        match ended {
            true => mirrors.end(&self.stream.request_trailers),
            false => plan.replay.mirror_to(mirrors),
        }
    }
}

/// A copy on its way.
struct Shadow {
    cluster: Arc<Cluster>,
    /// Where to, for a cluster that does not say it.
    destination: Option<SocketAddr>,
    head: RequestHead,
    /// The body to come.
    parts: Option<Receiver<Part>>,
    /// The route's: from the end of the request.
    timeout: Option<Duration>,
    /// Bounds what has no such timeout: between two pieces of the answer.
    idle: Option<Duration>,
}

/// How far the body of a copy is.
enum Body {
    /// More may come.
    Open,
    /// The mirror takes no more for now, whether or not it `took` some before.
    Full { took: bool },
    /// This was its end.
    Ended,
    /// It has ended before, or there is none.
    Gone,
}

/// Why a copy ends without an answer.
enum Failure {
    /// The mirror's cluster has no endpoint for it.
    NoHost,
    /// It took too long.
    TimedOut,
    /// The mirror's.
    Upstream(UpstreamError),
}

impl From<Option<UpstreamError>> for Failure {
    fn from(error: Option<UpstreamError>) -> Failure {
        error.map_or(Failure::TimedOut, Failure::Upstream)
    }
}

impl From<TimedOut> for Failure {
    fn from(_: TimedOut) -> Failure {
        Failure::TimedOut
    }
}

impl Shadow {
    async fn run(mut self, drain: Drain) {
        tokio::select! {
            () = self.exchange() => {}
            () = drain.expired() => {}
        }
    }

    /// Sends the copy and reads its answer, which nobody gets.
    async fn exchange(&mut self) {
        let (pools, worker) = Pools::of_thread();
        let choice = Choice::avoiding(&[], worker, None, Criteria::NONE);
        let flight = self.cluster.choose(&Choice { destination: self.destination, ..choice });
        let Some(mut flight) = flight else { return self.count(&Failure::NoHost, false) };
        flight.begin(std::time::Instant::now(), self.head.is_grpc());
        let mut out = Outbound::new(flight, pools, Deadline::unset());
        loop {
            let Err(failure) = self.attempt(&mut out).await else { return };
            match &failure {
                Failure::Upstream(error) if self.parts.is_none() && out.resends(error, false) => continue,
                Failure::Upstream(error) => out.give_up(error.outcome()),
                Failure::TimedOut if out.answered().is_none() => out.give_up(OutcomeKind::Timeout),
                _ => {}
            }
            return self.count(&failure, out.answered().is_some());
        }
    }

    async fn attempt(&mut self, out: &mut Outbound) -> Result<(), Failure> {
        let open = self.parts.is_some();
        let start = Instant::now();
        let mut connecting = Deadline::unset();
        connecting.set(self.until(start));
        let begun = bounded(&mut connecting, out.begin(&self.head, &Bytes::new(), open)).await?;
        begun.map_err(Failure::Upstream)?;
        let mut progress = Progress { complete: start, counted: false, stalled: false };
        if !open {
            out.limit(self.until(start));
        }
        poll_fn(|cx| self.poll_exchange(out, &mut progress, cx)).await?;
        charge::time_of_own(&self.cluster, progress.complete.elapsed().as_millis() as u64);
        Ok(())
    }

    fn poll_exchange(
        &mut self,
        out: &mut Outbound,
        progress: &mut Progress,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        loop {
            match self.poll_body(out, cx)? {
                Body::Ended => {
                    progress.complete = Instant::now();
                    out.limit(self.until(progress.complete));
                }
                // The client may be done meanwhile, and nobody else watches a mirror that takes no more. One that is
                // late and goes on taking has the whole time again.
                Body::Full { took } if took || !progress.stalled => {
                    progress.stalled = true;
                    out.limit(self.until(Instant::now()));
                }
                Body::Open if progress.stalled => {
                    progress.stalled = false;
                    out.limit(None);
                }
                Body::Full { .. } | Body::Open | Body::Gone => {}
            }
            let piece = out.poll_piece(cx);
            if let (false, Some(status)) = (progress.counted, out.answered()) {
                charge::response_to_own(&self.cluster, status);
                progress.counted = true;
            }
            if ready!(piece)?.is_none() {
                return Poll::Ready(Ok(()));
            }
            if self.timeout.is_none() && self.parts.is_none() {
                out.limit(self.until(Instant::now()));
            }
        }
    }

    /// Passes on what has come of the body.
    fn poll_body(&mut self, out: &mut Outbound, cx: &mut Context<'_>) -> Result<Body, Failure> {
        let Some(parts) = &mut self.parts else { return Ok(Body::Gone) };
        let mut took = false;
        while let Poll::Ready(room) = out.poll_room(cx) {
            room?;
            match parts.poll_recv(cx) {
                // Without an end the copy is given up, from outside.
                Poll::Pending | Poll::Ready(None) => return Ok(Body::Open),
                Poll::Ready(Some(Part::Data(bytes, _))) => {
                    out.push(bytes);
                    took = true;
                }
                Poll::Ready(Some(Part::End(trailers))) => {
                    out.end(trailers);
                    self.parts = None;
                    return Ok(Body::Ended);
                }
            }
        }
        Ok(Body::Full { took })
    }

    /// When an exchange ends that is left to itself since then.
    fn until(&self, since: Instant) -> Option<Instant> {
        self.timeout.or(self.idle.filter(|idle| !idle.is_zero())).map(|limit| after(since, limit))
    }

    /// Counts a copy without an answer, or with half of one, as Envoy's router does.
    fn count(&self, failure: &Failure, answered: bool) {
        let stats = &self.cluster.stats;
        let status = match failure {
            Failure::NoHost => {
                stats.upstream_cx_none_healthy().inc();
                503
            }
            Failure::TimedOut => {
                stats.upstream_rq_timeout().inc();
                504
            }
            Failure::Upstream(UpstreamError::Protocol) => {
                stats.upstream_cx_protocol_error().inc();
                502
            }
            Failure::Upstream(error) => {
                if matches!(error, UpstreamError::Reset) {
                    stats.upstream_rq_rx_reset().inc();
                }
                503
            }
        };
        if !answered {
            charge::response_to_own(&self.cluster, status);
        }
    }
}

/// How far an exchange is.
struct Progress {
    /// When the request was complete, or began.
    complete: Instant,
    /// The head of the answer has been counted.
    counted: bool,
    /// The mirror takes no more of the body, within the time that it has for that.
    stalled: bool,
}
