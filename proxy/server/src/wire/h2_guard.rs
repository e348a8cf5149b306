//! Counts HTTP/2 frames on their way to and from the library, and ends connections that flood or stall.
//!
//! The library decides what a frame means; what it does not decide is how many a peer may send that cost it
//! nothing and us something: streams that are given up at once (CVE-2023-44487) or that we are provoked into
//! resetting (CVE-2025-8671), PING and SETTINGS and their acknowledgements, PRIORITY, CONTINUATION, empty DATA, frames
//! of unknown types, and WINDOW_UPDATE without data that it could be for.

mod counts;
mod frames;
mod ledger;

use crate::deadline::{Deadline, TimedOut, after, poll_within};
use crate::io::Transport;
use crate::wire::PREFACE;
use crate::wire::batched::Batched;
use crate::wire::h2_keepalive::Pulse;
use frames::Frames;
use ledger::{Flood, Ledger};
use parking_lot::Mutex;
use sixfold_core::cluster::Http2Options;
use sixfold_core::codec_stats::Http2Counts;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How a connection ends whose client gives up too many of its streams.
pub(crate) const GIVEN_UP: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// How a connection ends whose peer sends what costs it nothing.
pub(crate) const FLOOD: io::ErrorKind = io::ErrorKind::InvalidData;

/// How a connection ends whose peer takes nothing.
pub(crate) const STALLED: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// How long a peer may take nothing of what is to be written, where nothing shorter is configured.
const WRITE_TIME: Duration = Duration::from_secs(300);

/// What a peer may take its time for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PeerTimeouts {
    /// From the first byte of a header block to its last; `None` is off. The block stands between all streams and their
    /// frames: without a [`HeadWatch`] the connection ends with [`io::ErrorKind::TimedOut`]. With one it tells, and only heads
    /// of new streams are bounded: trailers are of a stream that has deadlines of its own.
    pub(crate) head: Option<Duration>,
    /// Between two writes that the peer takes something of; 5 min by default. The connection ends with
    /// [`STALLED`], and the [`HeadWatch`] knows.
    pub(crate) write: Option<Duration>,
}

/// Heads that are remembered which did not come in one read.
const MOST_BEGUN: usize = 16;

/// How far the header block is that a peer sends, and whether it takes nothing, for those who hold its connection.
#[derive(Debug, Default)]
pub(crate) struct HeadWatch {
    state: AtomicU8,
    /// The stream of a head that is late.
    stream: AtomicU32,
    /// What is to be said to that.
    answer: Mutex<Vec<u8>>,
    /// There may be something in the next.
    has_begun: AtomicBool,
    /// When heads began that did not come in one read, by the numbers of their streams.
    begun: Mutex<Vec<(u32, Instant)>>,
    stalled: AtomicBool,
}

impl HeadWatch {
    const OPEN: u8 = 1;
    const LATE: u8 = 2;

    /// Whether the head of a stream has begun and not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Relaxed) != 0
    }

    /// The stream whose head did not come to its end in time. Nothing but its rest can come from the peer any more.
    pub(crate) fn late(&self) -> Option<u32> {
        (self.state.load(Relaxed) == Self::LATE).then(|| self.stream.load(Relaxed))
    }

    /// Whether the connection ended since the peer took nothing.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }

    /// When the head of this stream began, if that was in another read than its end. To be asked for one stream after
    /// the other.
    pub(crate) fn take_begin(&self, stream: u32) -> Option<Instant> {
        if !self.has_begun.load(Relaxed) {
            return None;
        }
        let mut begun = self.begun.lock();
        let began = begun.iter().find(|(number, _)| *number == stream).map(|(_, began)| *began);
        // Of those before it nobody will ask.
        begun.retain(|(number, _)| *number > stream);
        self.has_begun.store(!begun.is_empty(), Relaxed);
        began
    }

    fn begin(&self, stream: u32, now: Instant) {
        self.set(Self::OPEN);
        let mut begun = self.begun.lock();
        // Beyond, nobody has taken the heads that came: this one is as new as their end.
        if begun.len() < MOST_BEGUN {
            begun.push((stream, now));
            self.has_begun.store(true, Relaxed);
        }
    }

    fn set(&self, state: u8) {
        if self.late().is_none() {
            self.state.store(state, Relaxed);
        }
    }

    /// Has frames sent past the library, between two of its own.
    pub(crate) fn answer(&self, frames: Vec<u8>) {
        *self.answer.lock() = frames;
    }
}

/// A transport whose frames are counted, and whose peer is not waited for without end.
pub(crate) struct Guarded<T> {
    io: Batched<T>,
    /// Bytes that were read before.
    prefix: Vec<u8>,
    inward: Frames,
    outward: Frames,
    ledger: Ledger,
    timeouts: PeerTimeouts,
    /// The header block that has begun, by how many there were before.
    block: Option<u64>,
    /// When it must be complete.
    head: Deadline,
    /// Who is told of the header block.
    watch: Option<Arc<HeadWatch>>,
    /// What is left to be written of frames that go past the library.
    past: Vec<u8>,
    /// When the peer must have taken something of what waits.
    write: Deadline,
    /// Who is told of signs of life.
    pulse: Option<Arc<Pulse>>,
    counts: Http2Counts,
}

impl<T> Guarded<T> {
    /// A server's transport; `prefix` is what was read from it already, the preface included.
    pub(crate) fn server(
        io: T,
        prefix: Vec<u8>,
        options: &Http2Options,
        timeouts: PeerTimeouts,
    ) -> Guarded<T> {
        let (inward, outward) = (Frames::new(PREFACE.len()), Frames::new(0));
        Guarded::new(io, prefix, inward, outward, Ledger::of_server(options), timeouts)
    }

    /// A client's transport: what an upstream resets is its own loss, its control frames are counted.
    pub(crate) fn client(io: T, options: &Http2Options, timeouts: PeerTimeouts) -> Guarded<T> {
        let (inward, outward) = (Frames::new(0), Frames::new(PREFACE.len()));
        Guarded::new(io, Vec::new(), inward, outward, Ledger::of_client(options), timeouts)
    }

    fn new(
        io: T,
        prefix: Vec<u8>,
        inward: Frames,
        outward: Frames,
        ledger: Ledger,
        timeouts: PeerTimeouts,
    ) -> Guarded<T> {
        let (head, write) = (Deadline::unset(), Deadline::unset());
        Guarded {
            io: Batched::new(io),
            prefix,
            inward,
            outward,
            ledger,
            timeouts,
            block: None,
            head,
            watch: None,
            past: Vec::new(),
            write,
            pulse: None,
            counts: Http2Counts::none(),
        }
    }

    /// Has somebody told of header blocks that do not come to their end, in place of ending the connection.
    pub(crate) fn watched(self, watch: Arc<HeadWatch>) -> Guarded<T> {
        Guarded { watch: Some(watch), ..self }
    }

    /// Has somebody told whenever the peer shows that it is there.
    pub(crate) fn felt(self, pulse: Option<Arc<Pulse>>) -> Guarded<T> {
        Guarded { pulse, ..self }
    }

    /// Has its frames counted, beside what they cost.
    pub(crate) fn counted(self, counts: Http2Counts) -> Guarded<T> {
        Guarded { counts, ..self }
    }

    /// Looks at what was read.
    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        let (ledger, counts) = (&mut self.ledger, &self.counts);
        self.inward.scan(bytes, |frame| {
            counts::received(counts, frame);
            ledger.received(frame);
            if ledger.has_trailers(frame) {
                counts.trailers().inc();
            }
        });
        let block = self.inward.in_header_block().then(|| self.ledger.blocks());
        if block != self.block {
            self.block = block;
            self.begin_block();
        }
        match self.ledger.flood() {
            None => Ok(()),
            Some(Flood::Streams) => Err(io::Error::new(GIVEN_UP, "too many HTTP/2 streams given up")),
            Some(Flood::Control) => {
                counts::flooded(&self.counts, self.ledger.last_cheap());
                Err(io::Error::new(FLOOD, "too many HTTP/2 control frames"))
            }
        }
    }

    /// A header block has begun and not ended, or none is under way any more.
    fn begin_block(&mut self) {
        let counts = self.block.is_some() && (self.watch.is_none() || self.ledger.opens());
        let now = counts.then(Instant::now);
        self.head.set(now.and_then(|now| Some(after(now, self.timeouts.head?))));
        match (&self.watch, now) {
            (Some(watch), Some(now)) => watch.begin(self.ledger.last_stream(), now),
            (Some(watch), None) => watch.set(0),
            (None, _) => {}
        }
    }

    /// What a write came to: the peer's time runs while it takes nothing.
    fn written<W>(&mut self, result: Result<W, TimedOut>) -> io::Result<W> {
        self.write.set(None);
        if result.is_err() {
            self.counts.tx_flush_timeout().inc();
            self.watch.iter().for_each(|watch| watch.stalled.store(true, Relaxed));
        }
        result.map_err(|TimedOut| io::Error::new(STALLED, "the peer takes nothing"))
    }

    /// Answers whether it has begun already, and waited.
    fn begin_write(&mut self) -> bool {
        let waited = self.write.is_set();
        if !waited {
            let limit = self.timeouts.write.unwrap_or(WRITE_TIME);
            self.write.set(Some(after(Instant::now(), limit)));
        }
        waited
    }

    /// Tells of room that the peer has made where there was none, by what waited before. What it says itself waits
    /// meanwhile, as the library reads nothing then.
    fn feel_room(&self, waited: bool, before: usize, written: bool) {
        if let Some(pulse) = self.pulse.as_ref().filter(|_| waited)
            && (written || self.io.unsent() < before)
        {
            pulse.beat();
        }
    }
}

impl<T: Transport + Unpin> Guarded<T> {
    /// Writes what goes past the library, once its own frame is complete.
    fn poll_past(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(watch) = self.watch.as_ref().filter(|watch| watch.late().is_some()) else {
            return Poll::Ready(Ok(()));
        };
        if self.past.is_empty() && self.outward.is_between() {
            self.past = std::mem::take(&mut *watch.answer.lock());
        }
        while !self.past.is_empty() {
            self.begin_write();
            let (io, slice) = (&mut self.io, [io::IoSlice::new(&self.past)]);
            let polled = poll_within(&mut self.write, cx, |_, cx| io.poll_write_vectored(cx, &slice));
            let n = self.written(ready!(polled))??;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.past.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.prefix.is_empty() {
            let io = &mut this.io;
            match (ready!(poll_within(&mut this.head, cx, |_, cx| io.poll_read(cx, buf))), &this.watch) {
                (Ok(read), _) => read?,
                (Err(TimedOut), None) => return Poll::Ready(Err(TimedOut.into())),
                // There is nothing to be read, as the transport has just said.
                (Err(TimedOut), Some(watch)) => {
                    watch.stream.store(this.ledger.last_stream(), Relaxed);
                    watch.set(HeadWatch::LATE);
                    this.head.set(None);
                    this.timeouts.head = None;
                    return Poll::Pending;
                }
            }
        } else {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..n]);
            this.prefix.drain(..n);
        }
        Poll::Ready(this.received(&buf.filled()[before..]))
    }
}

impl<T: Transport + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_past(cx))?;
        let (waited, before, io) = (this.begin_write(), this.io.unsent(), &mut this.io);
        let polled = poll_within(&mut this.write, cx, |_, cx| io.poll_write_vectored(cx, data));
        this.feel_room(waited, before, matches!(polled, Poll::Ready(Ok(Ok(1..)))));
        let n = this.written(ready!(polled))??;
        let mut left = n;
        for slice in data {
            let part = left.min(slice.len());
            let (ledger, counts) = (&mut this.ledger, &this.counts);
            this.outward.scan(&slice[..part], |frame| {
                counts::sent(counts, frame);
                ledger.sent(frame);
            });
            left -= part;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_past(cx))?;
        let (waited, before, io) = (this.begin_write(), this.io.unsent(), &mut this.io);
        let polled = poll_within(&mut this.write, cx, |_, cx| io.poll_flush(cx));
        this.feel_room(waited, before, false);
        Poll::Ready(this.written(ready!(polled))?)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.begin_write();
        let io = &mut this.io;
        let result = ready!(poll_within(&mut this.write, cx, |_, cx| io.poll_shutdown(cx)));
        Poll::Ready(this.written(result)?)
    }
}

#[cfg(test)]
mod tests;
