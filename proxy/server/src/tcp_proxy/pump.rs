//! Bytes both ways with bounded buffers: what one side does not take, the other is not asked for.

use super::meter::Meter;
use super::splice::{Filled, Pipe, WORTH_IT};
use crate::buffer::{LARGE, PIECE, ReadBuffer, TURN};
use crate::deadline::{Limit, Timed, after, poll_timer, within};
use crate::drain::Drain;
use crate::io::{Filtering, Io, Transport};
use sixfold_core::stream::ByteCounts;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// One of the two that talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// Why passing bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides have said all; this one was the last.
    Closed(Side),
    /// This side failed.
    Failed(Side),
    /// This side has reset its connection: what it said is cut off.
    Reset(Side),
    /// No byte moved for too long.
    Idle,
    /// The connection has lived as long as it may.
    Deadline,
    /// The listener has gone and its connections with it.
    Drained,
    /// A network filter has ended it.
    Refused,
    /// It has not ended: filters want to hear how it does.
    Report,
}

impl End {
    /// What `$stream_session_reason` says of it, if anything.
    pub(crate) fn reason(self) -> Option<&'static str> {
        Some(match self {
            End::Closed(_) => "closed",
            End::Drained => "shutdown",
            End::Failed(Side::Client) | End::Reset(Side::Client) => "client_error",
            End::Failed(Side::Upstream) | End::Reset(Side::Upstream) => "upstream_error",
            End::Idle => "upstream_timeout",
            End::Deadline | End::Refused | End::Report => return None,
        })
    }
}

/// Totals of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moved {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Moved {
    /// Bytes that were read and not written.
    pub(super) fn held(self) -> i64 {
        (self.read - self.written) as i64
    }
}

/// Two connections and what is on its way between them.
pub(super) struct Pump {
    client: Io,
    upstream: Io,
    up: Flow,
    down: Flow,
    /// Which direction goes first: they take turns, since the first may use up the task's share of time.
    down_first: bool,
    last: Side,
    like_nginx: bool,
}

impl Pump {
    /// Nothing has moved yet. `limit` is how many bytes may wait, of either side.
    pub(super) fn new(client: Io, upstream: Io, limit: usize) -> Pump {
        Pump {
            client,
            upstream,
            up: Flow::below(limit),
            down: Flow::below(limit),
            down_first: false,
            last: Side::Client,
            like_nginx: false,
        }
    }

    /// The same, with ends as nginx sees them. One comes as soon as the client has all that the endpoint has said: whoever
    /// keeps its connection then would hold it for nothing (`proxy_half_close off`). A reset is a failure as any other.
    pub(super) fn like_nginx(self, yes: bool) -> Pump {
        Pump { like_nginx: yes, ..self }
    }

    /// Passes bytes both ways. The end of one side's bytes is passed on and the other side goes on talking.
    pub(super) async fn run<F: Future<Output = ()>>(
        &mut self,
        watch: &mut Watch<'_, F>,
        meter: &mut Meter<'_>,
        bytes: &mut ByteCounts,
    ) -> End {
        let ended = within(watch, |watch, cx| {
            let state = self.poll_both(cx);
            if meter.update(self.up.moved, self.down.moved, bytes) {
                watch.touch();
            }
            state
        });
        ended.await.unwrap_or_else(|end| end)
    }

    /// The network filters of the client's connection, to be ended.
    pub(super) fn take_filtering(&mut self) -> Option<Box<Filtering>> {
        self.client.take_filtering()
    }

    /// The same, to be told something.
    pub(super) fn filtering(&mut self) -> Option<&mut Filtering> {
        self.client.filtering_mut()
    }

    /// The filters of the endpoint's connection.
    pub(super) fn upstream_filtering(&self) -> Option<&Filtering> {
        self.upstream.filtering()
    }

    /// Whether a network filter has ended the client's connection, which is why it can't be read.
    fn is_refused(&self) -> bool {
        self.client.filtering().is_some_and(|filtering| filtering.closing().is_some())
    }

    fn poll_both(&mut self, cx: &mut Timed<'_>) -> Poll<End> {
        let mut ended = true;
        self.down_first = !self.down_first;
        for down in [self.down_first, !self.down_first] {
            let (flow, from, to, speaker) = match down {
                true => (&mut self.down, &mut self.upstream, &mut self.client, Side::Upstream),
                false => (&mut self.up, &mut self.client, &mut self.upstream, Side::Client),
            };
            let before = flow.stage;
            match flow.poll(cx, from, to) {
                Poll::Ready(Ok(())) if before != Stage::Done => self.last = speaker,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Failure::Reader(_))) if speaker == Side::Client && self.is_refused() => {
                    return Poll::Ready(End::Refused);
                }
                Poll::Ready(Err(Failure::Reader(error))) => return Poll::Ready(self.failed(speaker, error)),
                Poll::Ready(Err(Failure::Writer(error))) => {
                    return Poll::Ready(self.failed(speaker.other(), error));
                }
                Poll::Pending => ended = false,
            }
        }
        if self.like_nginx && self.down.stage == Stage::Done && !self.up.holds_bytes() {
            return Poll::Ready(End::Closed(Side::Upstream));
        }
        if ended { Poll::Ready(End::Closed(self.last)) } else { Poll::Pending }
    }

    fn failed(&self, side: Side, error: io::ErrorKind) -> End {
        match error {
            io::ErrorKind::ConnectionReset if !self.like_nginx => End::Reset(side),
            _ => End::Failed(side),
        }
    }

    /// Passes a reset by `side` on once this is dropped: an ordinary end would call whole what was cut off.
    pub(super) fn reset_other(&self, side: Side) {
        let other = match side {
            Side::Client => &self.upstream,
            Side::Upstream => &self.client,
        };
        other.socket().reset_when_dropped();
    }

    /// Whether something that `side` said was not passed on yet.
    pub(super) fn holds_bytes_of(&self, side: Side) -> bool {
        match side {
            Side::Client => self.up.holds_bytes() || self.up.unflushed,
            Side::Upstream => self.down.holds_bytes() || self.down.unflushed,
        }
    }

    /// Passes on what a side said before it failed, and the end if that was no reset.
    pub(super) async fn flush<F: Future<Output = ()>>(
        &mut self,
        side: Side,
        end: End,
        watch: &mut Watch<'_, F>,
        meter: &mut Meter<'_>,
        bytes: &mut ByteCounts,
    ) -> End {
        let ended = within(watch, |watch, cx| {
            let (flow, to) = match side {
                Side::Client => (&mut self.up, &mut self.upstream),
                Side::Upstream => (&mut self.down, &mut self.client),
            };
            let state = match end {
                End::Reset(_) => flow.poll_rest(cx, to),
                _ => flow.poll_end(cx, to),
            };
            if meter.update(self.up.moved, self.down.moved, bytes) {
                watch.touch();
            }
            state.map(|_| end)
        });
        ended.await.unwrap_or_else(|end| end)
    }
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }
}

/// One direction.
struct Flow {
    /// Read and not written; it has memory only while there is something in it.
    buffer: ReadBuffer,
    /// The same, of what goes from socket to socket.
    pipe: Option<Pipe>,
    /// So much came by the last read that the next bytes should go by a pipe.
    much: bool,
    /// Bytes that a pipe may hold.
    limit: usize,
    stage: Stage,
    /// Something was written that may still sit in the writer (TLS records).
    unflushed: bool,
    moved: Moved,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Passing,
    /// The reader has said all; the rest and the end are to be written.
    Ending,
    Done,
}

/// Which end of a direction failed.
enum Failure {
    Reader(io::ErrorKind),
    Writer(io::ErrorKind),
}

impl Failure {
    fn reader(error: &io::Error) -> Failure {
        Failure::Reader(error.kind())
    }

    fn writer(error: &io::Error) -> Failure {
        Failure::Writer(error.kind())
    }
}

impl Flow {
    fn below(limit: usize) -> Flow {
        Flow {
            buffer: ReadBuffer::below(limit),
            pipe: None,
            much: false,
            limit: (limit / 4).clamp(PIECE, LARGE),
            stage: Stage::default(),
            unflushed: false,
            moved: Moved::default(),
        }
    }

    fn holds_bytes(&self) -> bool {
        !self.buffer.is_empty() || self.pipe.is_some()
    }

    /// Goes as far as it can, and as others may wait for; ready when the reader's end has reached the writer.
    fn poll(&mut self, cx: &mut Timed<'_>, from: &mut Io, to: &mut Io) -> Poll<Result<(), Failure>> {
        let before = self.moved.read;
        while self.stage == Stage::Passing {
            ready!(self.poll_write(cx, to)).map_err(|error| Failure::writer(&error))?;
            if self.moved.read - before >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let read = match self.poll_pipe(cx, from, to) {
                Some(read) => read,
                None => self.buffer.poll_fill_body(from, cx, None),
            };
            match read {
                Poll::Ready(Ok(0)) => self.stage = Stage::Ending,
                Poll::Ready(Ok(n)) => {
                    self.moved.read += n as u64;
                    self.much = n >= WORTH_IT;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::reader(&error))),
                Poll::Pending => {
                    ready!(self.poll_flush(cx, to)).map_err(|error| Failure::writer(&error))?;
                    return Poll::Pending;
                }
            }
        }
        self.poll_end(cx, to).map_err(|error| Failure::writer(&error))
    }

    /// Reads into a pipe, if much comes and one can be had.
    fn poll_pipe(&mut self, cx: &mut Timed<'_>, from: &Io, to: &Io) -> Option<Poll<io::Result<usize>>> {
        if !self.much || self.buffer.has_failed() {
            return None;
        }
        let (from, _) = (from.as_bare_tcp()?, to.as_bare_tcp()?);
        let mut pipe = Pipe::take()?;
        // The buffer waits no more.
        self.buffer.stop_waiting();
        self.buffer.release();
        let read = match pipe.poll_fill(from, self.limit, cx) {
            Poll::Ready(Ok(Filled::Bytes(n))) => {
                self.pipe = Some(pipe);
                return Some(Poll::Ready(Ok(n)));
            }
            Poll::Ready(Ok(Filled::Unable)) => None,
            Poll::Ready(Ok(Filled::End)) => Some(Poll::Ready(Ok(0))),
            Poll::Ready(Err(error)) => Some(Poll::Ready(Err(error))),
            Poll::Pending => Some(Poll::Pending),
        };
        pipe.give_back();
        read
    }

    /// Writes what is there and then the end.
    fn poll_end(&mut self, cx: &mut Timed<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        if self.stage != Stage::Done {
            ready!(self.poll_write(cx, to))?;
            self.buffer.release();
            ready!(to.poll_shutdown(cx))?;
            self.unflushed = false;
            self.stage = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is there, without an end.
    fn poll_rest(&mut self, cx: &mut Timed<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, to))?;
        self.buffer.release();
        self.poll_flush(cx, to)
    }

    fn poll_write(&mut self, cx: &mut Timed<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        while let (Some(pipe), Some(to)) = (&mut self.pipe, to.as_bare_tcp()) {
            let n = ready!(pipe.poll_drain(to, cx))?;
            self.moved.written += n as u64;
            if pipe.held() == 0
                && let Some(pipe) = self.pipe.take()
            {
                pipe.give_back();
            }
        }
        while !self.buffer.is_empty() {
            let n = ready!(to.poll_write(cx, self.buffer.filled()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.consume(n);
            self.moved.written += n as u64;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(to.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// What ends a connection from outside: silence, age, and the end of its listener.
pub(super) struct Watch<'a, F> {
    idle: Option<Duration>,
    deadline: Option<Instant>,
    /// How often filters want to hear of it, and when they do next.
    report: Option<(Duration, Instant)>,
    touched: Instant,
    /// Set to the earliest limit and moved only when it fires, not with every byte.
    timer: Option<Pin<Box<Sleep>>>,
    drain: &'a Drain,
    forced: Pin<&'a mut F>,
    listening: bool,
}

impl<'a, F: Future<Output = ()>> Watch<'a, F> {
    /// `forced` ends when what still runs on `drain` has to be closed.
    pub(super) fn new(
        idle: Option<Duration>,
        deadline: Option<Instant>,
        drain: &'a Drain,
        forced: Pin<&'a mut F>,
    ) -> Watch<'a, F> {
        let idle = idle.filter(|d| !d.is_zero());
        let touched = Instant::now();
        let mut watch =
            Watch { idle, deadline, report: None, touched, timer: None, drain, forced, listening: false };
        watch.timer = watch.next().map(|at| Box::pin(sleep_until(at)));
        watch
    }

    /// The same, with reports so often.
    pub(super) fn reporting(mut self, every: Option<Duration>) -> Watch<'a, F> {
        let next = |every| Some((every, Instant::now().checked_add(every)?));
        self.report = every.filter(|every| !every.is_zero()).and_then(next);
        self.timer = self.next().map(|at| Box::pin(sleep_until(at)));
        self
    }

    fn silent_at(&self) -> Option<Instant> {
        self.touched.checked_add(self.idle?)
    }

    fn next(&self) -> Option<Instant> {
        let report = self.report.map(|(_, at)| at);
        self.silent_at().into_iter().chain(self.deadline).chain(report).min()
    }

    /// Something has moved.
    fn touch(&mut self) {
        if self.idle.is_some() {
            self.touched = Instant::now();
        }
    }
}

impl<F: Future<Output = ()>> Limit for Watch<'_, F> {
    type Expired = End;

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // Once it listens it wakes this task by itself, and only a drain that has begun gives it work.
        if !self.listening || self.drain.is_draining() {
            self.listening = true;
            if self.forced.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Drained);
            }
        }
        while let (Some(next), silent, Some(timer)) = (self.next(), self.silent_at(), &mut self.timer) {
            ready!(poll_timer(timer.as_mut(), cx));
            let now = Instant::now();
            if self.deadline.is_some_and(|at| at <= now) {
                return Poll::Ready(End::Deadline);
            }
            if silent.is_some_and(|at| at <= now) {
                return Poll::Ready(End::Idle);
            }
            if let Some((every, at)) = &mut self.report
                && *at <= now
            {
                *at = after(now, *every);
                return Poll::Ready(End::Report);
            }
            timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}
