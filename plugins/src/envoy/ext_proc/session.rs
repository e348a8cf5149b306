//! The stream between a request and its processor: what is sent, what comes back, and for whom.
//!
//! Both directions of a request share one call and may wait at the same time, so what comes for the other one is kept
//! for it. One worker alone ever looks at a session.

use super::ProcStats;
use crate::envoy::service::Service;
use parking_lot::Mutex;
use prost::Message;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::Direction;
use sixfold_core::plugin::grpc::{Call, Status};
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use sixfold_xds_api::values::duration;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What is called.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// Messages for one direction that wait for it. A processor that says more unasked ends its stream.
const MAX_WAITING: usize = 64;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not within the time of a message.
    Timeout,
    /// The call has ended with a status, or never begun.
    Status(u32),
    /// An answer that nobody has asked for.
    Spurious,
}

/// What came back.
pub(super) enum Reply {
    /// An answer.
    Message(Box<ProcessingResponse>),
    /// The processor is done with this request: it goes on as it is.
    Over,
}

/// How long answers may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) message: Duration,
    /// The longest time that the processor may ask for; 0 takes none.
    pub(super) most: Duration,
}

/// What a message is the first of.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    pub(super) of_all: bool,
    pub(super) of_direction: bool,
}

/// The stream of one request.
#[derive(Clone)]
pub(super) struct Session(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Directions of which something was sent.
    told: [AtomicBool; 2],
    stats: ProcStats,
    /// Whether a request goes on when the processor fails it.
    allow_on_error: bool,
}

struct Inner {
    /// `None` once the processor is done.
    call: Option<Open>,
    waiting: [VecDeque<Box<ProcessingResponse>>; 2],
    wakers: [Option<Waker>; 2],
    /// Answers that were asked for and have not come.
    expects: [u32; 2],
    failed: Option<Failure>,
}

/// A call that has begun. It is counted as closed when it goes, unless the processor's side failed it.
struct Open {
    call: Call,
    stats: ProcStats,
    /// Of what has failed only those requests count that go on regardless.
    lost: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.lost {
            self.stats.streams_closed().inc();
        }
    }
}

impl Session {
    /// Calls the processor.
    pub(super) async fn open(
        service: &Service,
        headers: Headers,
        stats: &ProcStats,
        allow_on_error: bool,
    ) -> Result<Session, Failure> {
        let call = service.client.call(PROCESS, headers).await;
        let call = call.map_err(|error| failed(stats, &error))?;
        stats.streams_started().inc();
        let inner = Inner {
            call: Some(Open { call, stats: stats.clone(), lost: false }),
            waiting: Default::default(),
            wakers: Default::default(),
            expects: [0; 2],
            failed: None,
        };
        Ok(Session(Arc::new(Shared {
            inner: Mutex::new(inner),
            told: Default::default(),
            stats: stats.clone(),
            allow_on_error,
        })))
    }

    /// Whether a message that is made now is the first of all, and of its direction.
    pub(super) fn is_first(&self, direction: Direction) -> First {
        let of_all = self.0.told.iter().all(|told| !told.load(Relaxed));
        let of_direction = !self.0.told[direction as usize].swap(true, Relaxed);
        First { of_all, of_direction }
    }

    /// Whether the processor takes no more messages.
    pub(super) fn is_over(&self) -> bool {
        self.0.inner.lock().call.is_none()
    }

    /// Sends a message and waits for nothing but room for it.
    pub(super) async fn send(&self, message: &ProcessingRequest) -> Result<(), Failure> {
        let bytes = message.encode_to_vec();
        let sent = poll_fn(|cx| {
            let mut inner = self.0.inner.lock();
            match &mut inner.call {
                Some(open) => open.call.poll_send(&bytes, cx),
                None => Poll::Ready(Ok(())),
            }
        });
        sent.await.map_err(|error| self.fail(&error))?;
        self.0.stats.stream_msgs_sent().inc();
        Ok(())
    }

    /// Sends a message that nobody waits for an answer to, and has it go out.
    pub(super) async fn show(&self, message: &ProcessingRequest) -> Result<(), Failure> {
        self.send(message).await?;
        // What is sent goes out when the call is looked at.
        poll_fn(|cx| {
            drop(self.poll_receive(Direction::Request, cx));
            Poll::Ready(())
        })
        .await;
        Ok(())
    }

    /// Says that no more messages come, and waits for the processor's end of the stream.
    pub(super) async fn drain(&self) {
        if let Some(open) = &mut self.0.inner.lock().call {
            open.call.finish();
        }
        while let Ok(Reply::Message(_)) = self.receive(Direction::Request).await {}
    }

    /// Sends a message and waits for its answer.
    pub(super) async fn exchange(
        &self,
        direction: Direction,
        message: &ProcessingRequest,
        times: Times,
    ) -> Result<Reply, Failure> {
        self.expect(direction, 1);
        // The time is that of both: a processor that does not read is as late as one that does not answer.
        let asked = async {
            self.send(message).await?;
            self.receive(direction).await
        };
        let reply = match tokio::time::timeout(times.message, asked).await {
            Ok(reply) => reply?,
            Err(_) => return Err(self.late()),
        };
        let Reply::Message(reply) = reply else { return Ok(reply) };
        let Some(more) = self.more_time(&reply, times) else { return Ok(Reply::Message(reply)) };
        self.expect(direction, 1);
        match tokio::time::timeout(more, self.receive(direction)).await {
            Ok(reply) => reply,
            Err(_) => Err(self.late()),
        }
    }

    /// Notes that so many answers may come.
    pub(super) fn expect(&self, direction: Direction, answers: u32) {
        let expects = &mut self.0.inner.lock().expects[direction as usize];
        *expects = expects.saturating_add(answers);
    }

    /// The longer time that an answer in the place of the answer asks for, once.
    fn more_time(&self, reply: &ProcessingResponse, times: Times) -> Option<Duration> {
        let wanted = reply.override_message_timeout.as_ref().filter(|_| reply.response.is_none())?;
        self.0.stats.override_message_timeout_received().inc();
        let wanted = duration(wanted).ok()?;
        let fits = wanted >= Duration::from_millis(1) && wanted <= times.most;
        if !fits {
            self.0.stats.override_message_timeout_ignored().inc();
        }
        Some(if fits { wanted } else { times.message })
    }

    /// The next answer for a direction.
    pub(super) async fn receive(&self, direction: Direction) -> Result<Reply, Failure> {
        poll_fn(|cx| self.poll_receive(direction, cx)).await
    }

    /// [`Session::receive`], for who does not wait.
    pub(super) fn poll_receive(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reply, Failure>> {
        let mut inner = self.0.inner.lock();
        loop {
            if let Some(reply) = inner.waiting[direction as usize].pop_front() {
                return Poll::Ready(Ok(Reply::Message(reply)));
            }
            if let Some(failure) = &inner.failed {
                return Poll::Ready(Err(failure.clone()));
            }
            let Some(open) = &mut inner.call else { return Poll::Ready(Ok(Reply::Over)) };
            let received = match open.call.poll_receive(cx) {
                Poll::Ready(received) => received,
                Poll::Pending => {
                    inner.wakers[direction as usize] = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            match received {
                Ok(Some(bytes)) => self.take(&bytes, &mut inner),
                Ok(None) => inner.end(None),
                Err(error) => {
                    let failure = failed(&self.0.stats, &error);
                    inner.lose(failure, self.0.allow_on_error);
                }
            }
        }
    }

    /// Keeps a message for whom it is meant.
    fn take(&self, bytes: &[u8], inner: &mut Inner) {
        let stats = &self.0.stats;
        let Ok(message) = ProcessingResponse::decode(bytes) else {
            stats.streams_failed().inc();
            return inner.lose(Failure::Status(13), self.0.allow_on_error);
        };
        let of = match &message.response {
            Some(Response::RequestHeaders(_) | Response::RequestBody(_) | Response::RequestTrailers(_)) => {
                Direction::Request
            }
            Some(
                Response::ResponseHeaders(_) | Response::ResponseBody(_) | Response::ResponseTrailers(_),
            ) => Direction::Response,
            // Whoever waits takes it.
            _ if inner.expects[Direction::Response as usize] > 0 => Direction::Response,
            _ => Direction::Request,
        };
        if inner.expects[of as usize] == 0 || inner.waiting[of as usize].len() >= MAX_WAITING {
            stats.spurious_msgs_received().inc();
            return inner.end(Some(Failure::Spurious));
        }
        inner.expects[of as usize] -= 1;
        inner.waiting[of as usize].push_back(Box::new(message));
        if let Some(waker) = inner.wakers[of as usize].take() {
            waker.wake();
        }
    }

    /// Counts an answer that is what was asked for.
    ///
    /// # Errors
    /// It is none; the stream ends.
    pub(super) fn heed<T>(&self, answer: Option<T>) -> Result<T, Failure> {
        let answer = answer.ok_or_else(|| self.spurious())?;
        self.0.stats.stream_msgs_received().inc();
        Ok(answer)
    }

    /// Notes that an answer is not what was asked for; the stream ends.
    pub(super) fn spurious(&self) -> Failure {
        self.0.stats.spurious_msgs_received().inc();
        self.0.inner.lock().end(Some(Failure::Spurious));
        Failure::Spurious
    }

    /// Ends the stream: what comes after is not for this request.
    pub(super) fn close(&self) {
        self.0.inner.lock().end(None);
    }

    fn late(&self) -> Failure {
        self.0.stats.message_timeouts().inc();
        self.0.inner.lock().end(Some(Failure::Timeout));
        Failure::Timeout
    }

    fn fail(&self, error: &Status) -> Failure {
        let failure = failed(&self.0.stats, error);
        self.0.inner.lock().lose(failure.clone(), self.0.allow_on_error);
        failure
    }
}

impl Inner {
    /// The processor's side has ended the call with an error.
    fn lose(&mut self, failure: Failure, allowed: bool) {
        if let Some(open) = &mut self.call {
            open.lost = !allowed;
        }
        self.end(Some(failure));
    }

    fn end(&mut self, failure: Option<Failure>) {
        self.call = None;
        self.failed = self.failed.take().or(failure);
        self.wakers.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }
}

fn failed(stats: &ProcStats, error: &Status) -> Failure {
    tracing::debug!(%error, "the processor's stream has failed");
    stats.streams_failed().inc();
    Failure::Status(error.code)
}
