//! Buffers of a connection: what was read and not yet parsed, what is to be written.
//!
//! A connection holds memory only while it holds bytes: buffers go back to a list of the thread when they
//! run empty, so that ten thousand idle connections cost no buffers.

mod pieces;

use crate::deadline::Timed;
use crate::io::Transport;
pub(crate) use pieces::{LARGE, PIECE};
use pieces::{Pieces, give_back, take, take_large};
use std::cell::RefCell;
use std::io;
use std::task::{Poll, ready};
use tokio::io::ReadBuf;
use tokio::task::coop::has_budget_remaining;

/// Bytes of a direction after which others have their turn, however many more there are.
pub(crate) const TURN: u64 = 2 << 20;

/// Data up to this length is copied behind what waits to be written, until that is [`WORTH_A_WRITE`]; longer data is written
/// from its place.
const COPY_LIMIT: usize = 32 * 1024;
/// What has been put together is written once there is so much of it, here and by who puts frames together.
pub(crate) const WORTH_A_WRITE: usize = LARGE / 2;
/// Bytes of a head or of a chunk's frame that fit behind what waits.
const FRAME_ROOM: usize = 512;
/// Bytes of a large buffer beyond a body that ends: a read that is not filled shows that nothing more is there.
const BEYOND: usize = 1024;

thread_local! {
    /// Fully initialised: reading zeroes nothing.
    static READ: RefCell<Pieces> = const { RefCell::new(Pieces::new()) };
    /// Empty: writing appends.
    static WRITE: RefCell<Pieces> = const { RefCell::new(Pieces::new()) };
}

/// Memory to read into, with so much room at least if it is one of the two sizes.
pub(crate) fn readable(room: usize) -> Vec<u8> {
    match room > PIECE {
        true => take_large(&READ).unwrap_or_else(|| vec![0; LARGE]),
        false => take(&READ).unwrap_or_else(|| vec![0; PIECE]),
    }
}

/// Takes back what [`readable`] gave.
pub(crate) fn give_readable(piece: Vec<u8>) {
    give_back(&READ, piece);
}

/// Memory of the usual size to write behind.
fn appendable() -> Vec<u8> {
    take(&WRITE).unwrap_or_else(|| Vec::with_capacity(PIECE))
}

/// Lends memory for one read.
pub(crate) fn lend<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut piece = readable(PIECE);
    let read = read(&mut piece);
    give_readable(piece);
    read
}

/// Bytes that were read and not consumed.
#[derive(Default)]
pub(crate) struct ReadBuffer {
    /// Empty, or fully initialised memory of which `start..end` is filled.
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that were consumed in all.
    consumed: u64,
    /// Nothing could be read the last time: whoever asks again has most likely been woken by what has come.
    waited: bool,
    /// Whom the transport wakes when there is something, as long as nothing has been read since it was told.
    told: Option<Woken>,
    /// Bytes that may lie here of a body; below [`PIECE`] it is that.
    most: usize,
    /// Reading has failed behind what is here.
    failed: Option<io::Error>,
}

/// A waker, as far as one is told from another.
type Woken = (usize, usize);

fn woken(cx: &Timed<'_>) -> Woken {
    let waker = cx.waker();
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

/// Whom a transport wakes that has just had nothing. Not one that was not asked, since the runtime lets a task do only
/// so much in one go: it wakes the task at once then, and tells the transport nothing.
fn told(cx: &Timed<'_>) -> Option<Woken> {
    has_budget_remaining().then(|| woken(cx))
}

impl ReadBuffer {
    /// For a connection on which at most `limit` bytes may wait to be written: a piece of a body is a quarter of that at
    /// most, but [`PIECE`] may always be read, and never more than [`LARGE`].
    pub(crate) fn below(limit: usize) -> ReadBuffer {
        let mut buffer = ReadBuffer::default();
        buffer.most = (limit / 4).min(LARGE);
        buffer
    }

    /// What was read and not consumed.
    #[inline]
    pub(crate) fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Whether nothing waits to be consumed.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that were consumed so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// A wait begins that nothing has been heard of yet.
    pub(crate) fn begin_wait(&mut self) {
        self.waited = false;
    }

    /// Nobody waits any more, and others may read from the transport.
    pub(crate) fn stop_waiting(&mut self) {
        (self.waited, self.told) = (false, None);
    }

    /// Forgets the first `n` filled bytes.
    #[inline]
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.end - self.start);
        self.consumed += n as u64;
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads once, behind what is there. `Ok(0)` is the end of the stream. When nothing can be read an empty
    /// buffer gives its memory back until the next call.
    pub(crate) fn poll_fill<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_read(io, cx, PIECE)
    }

    /// Reads more of a body: what there is, up to a large buffer of it. `left` bytes are missing of it, behind those that
    /// are here, where that is known.
    pub(crate) fn poll_fill_body<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
        left: Option<u64>,
    ) -> Poll<io::Result<usize>> {
        let here = self.end - self.start;
        let left = left.map_or(LARGE, |left| usize::try_from(left).unwrap_or(LARGE));
        let (whole, most) = (here.saturating_add(left), self.most.max(PIECE));
        let room = |here: usize| most.min(whole.saturating_add(BEYOND)).saturating_sub(here);
        let mut read = ready!(self.poll_read(io, cx, room(here).max(PIECE)))?;
        if read == 0 {
            return Poll::Ready(Ok(0));
        }
        // What else is there goes out with it. An end is found again by the next read.
        while here + read < whole.min(most) && io.is_readable() {
            match self.poll_read(io, cx, room(here + read)) {
                Poll::Ready(Ok(n @ 1..)) => read += n,
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                Poll::Ready(Ok(0)) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(read))
    }

    /// Reads more of a body behind its beginning, if more is there at once; `left` bytes are missing of it. What goes wrong
    /// with that is told by the next read.
    pub(crate) fn gather<T: Transport>(&mut self, io: &mut T, cx: &mut Timed<'_>, left: u64) {
        let has_room = self.end - self.start < self.most;
        if left > 0
            && has_room
            && self.failed.is_none()
            && io.is_readable()
            && let Poll::Ready(Err(error)) = self.poll_fill_body(io, cx, Some(left))
        {
            self.failed = Some(error);
        }
    }

    /// Whether the next read tells of a failure that stands behind what is here.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Reads once, at most `room` bytes.
    fn poll_read<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let waited = std::mem::take(&mut self.waited);
        if !waited && self.is_empty() && !self.may_read(io, cx) {
            self.waited = true;
            self.release();
            return Poll::Pending;
        }
        self.make_room(room);
        let end = self.data.len().min(self.end + room);
        if waited && let Some(read) = self.try_fill(io, end) {
            return Poll::Ready(read);
        }
        let mut room = ReadBuf::new(&mut self.data[self.end..end]);
        match io.poll_read(cx, &mut room) {
            Poll::Pending => {
                self.waited = true;
                self.told = told(cx);
                self.shrink();
                Poll::Pending
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) => {
                let n = room.filled().len();
                self.told = None;
                self.end += n;
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Whether a read is worth a try; who waits is told of what comes. A transport that knows whom to wake and has seen
    /// nothing since need not be told again.
    #[inline]
    fn may_read<T: Transport>(&mut self, io: &mut T, cx: &mut Timed<'_>) -> bool {
        if self.told == Some(woken(cx)) && !io.is_readable() {
            return false;
        }
        let ready = io.poll_readable(cx).is_ready();
        self.told = if ready { None } else { told(cx) };
        ready
    }

    /// Reads at once, as whoever has been woken may; `None` if there is nothing after all.
    #[inline]
    fn try_fill<T: Transport>(&mut self, io: &mut T, end: usize) -> Option<io::Result<usize>> {
        match io.try_read(&mut self.data[self.end..end]) {
            Ok(n) => {
                self.told = None;
                self.end += n;
                Some(Ok(n))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Err(e) => Some(Err(e)),
        }
    }

    fn make_room(&mut self, room: usize) {
        if self.data.is_empty() {
            self.data = readable(room);
        } else if room > PIECE && self.data.len() < LARGE && self.data.len() - self.end < room {
            self.move_to(readable(room));
        } else if self.end == self.data.len() {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                // Callers bound what they let pile up (heads, chunk lines), and so this growth.
                let larger = (self.data.len() * 2).max(PIECE);
                self.data.resize(larger, 0);
            }
        }
    }

    /// Goes on in other memory, which has room for what is here.
    fn move_to(&mut self, mut piece: Vec<u8>) {
        let filled = self.end - self.start;
        piece[..filled].copy_from_slice(&self.data[self.start..self.end]);
        give_back(&READ, std::mem::replace(&mut self.data, piece));
        (self.start, self.end) = (0, filled);
    }

    /// Gives back what memory is not needed: all of it if nothing is there, a large buffer for little.
    pub(crate) fn shrink(&mut self) {
        self.release();
        if self.data.len() > PIECE && self.end - self.start < PIECE {
            self.move_to(readable(PIECE));
        }
    }

    /// Gives the memory back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            give_back(&READ, std::mem::take(&mut self.data));
        }
    }

    /// Takes everything that is there.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = self.filled().to_vec();
        self.consume(bytes.len());
        self.release();
        bytes
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        give_back(&READ, std::mem::take(&mut self.data));
    }
}

/// Bytes that wait to be written.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    data: Vec<u8>,
    sent: usize,
    /// Something was handed to the transport that may still hold it (TLS records).
    unflushed: bool,
    /// Bytes that the transport has taken in all.
    taken: u64,
}

impl WriteBuffer {
    /// Where encoders append.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        self.make_room(FRAME_ROOM);
        &mut self.data
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Takes `data` behind what waits.
    pub(crate) fn put(&mut self, data: &[u8]) {
        self.make_room(data.len());
        self.data.extend_from_slice(data);
    }

    /// Has memory of the usual size, or a large buffer if that has no room for `more` bytes.
    fn make_room(&mut self, more: usize) {
        if self.data.capacity() == 0 {
            self.data = appendable();
        }
        if self.sent > 0 && self.sent >= self.len() {
            // Else what a slow peer has taken would stay here until it has taken everything.
            self.data.copy_within(self.sent.., 0);
            self.data.truncate(self.data.len() - self.sent);
            self.sent = 0;
        }
        if self.data.capacity() < LARGE && self.data.len() + more > self.data.capacity() {
            self.replace(take_large(&WRITE).unwrap_or_else(|| Vec::with_capacity(LARGE)));
        }
    }

    /// Goes on in other memory with what waits.
    fn replace(&mut self, mut data: Vec<u8>) {
        data.extend_from_slice(&self.data[self.sent..]);
        self.sent = 0;
        let mut former = std::mem::replace(&mut self.data, data);
        former.clear();
        give_back(&WRITE, former);
    }

    /// Gives a large buffer back that holds little: whoever waits for its peer may wait for long.
    fn shrink(&mut self) {
        let rest = self.len();
        if self.data.capacity() > PIECE && rest + FRAME_ROOM <= PIECE {
            self.replace(appendable());
        } else if self.data.capacity() >= LARGE && rest < LARGE / 4 {
            self.replace(Vec::with_capacity(rest));
        }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.data.len() - self.sent
    }

    /// Bytes that were given to be written so far.
    pub(crate) fn given(&self) -> u64 {
        self.taken + self.len() as u64
    }

    /// What the transport has taken so far, while it still has to take something: another number is progress.
    pub(crate) fn backlog(&self) -> Option<u64> {
        (self.len() > 0 || self.unflushed).then_some(self.taken)
    }

    /// Takes `data`: what is long is written at once, behind what waits, as far as the transport takes it now; of shorter
    /// pieces enough for a write are put together first.
    pub(crate) fn write_through<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
        mut data: &[u8],
    ) -> io::Result<()> {
        if data.len() > COPY_LIMIT || self.len() + data.len() >= WORTH_A_WRITE {
            self.unflushed = true;
            while self.len() + data.len() > 0 {
                let written = match self.poll_write_both(io, cx, data) {
                    Poll::Pending => break,
                    Poll::Ready(written) => written?,
                };
                let waiting = self.len();
                self.taken += written.saturating_sub(waiting) as u64;
                self.advance(written.min(waiting));
                data = &data[written.saturating_sub(waiting)..];
            }
        }
        if !data.is_empty() {
            self.put(data);
        }
        Ok(())
    }

    fn poll_write_both<T: Transport>(
        &self,
        io: &mut T,
        cx: &mut Timed<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let waiting = &self.data[self.sent..];
        let result = if waiting.is_empty() {
            ready!(io.poll_write(cx, data))
        } else {
            let slices = [io::IoSlice::new(waiting), io::IoSlice::new(data)];
            ready!(io.poll_write_vectored(cx, &slices))
        };
        Poll::Ready(match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        })
    }

    fn advance(&mut self, n: usize) {
        self.taken += n as u64;
        self.sent += n;
        if self.sent == self.data.len() {
            self.sent = 0;
            self.data.clear();
        }
    }

    /// Forgets what waits: nothing is written any more. It was given all the same.
    pub(crate) fn abandon(&mut self) {
        self.taken = self.given();
        self.unflushed = false;
        self.data.clear();
        self.sent = 0;
        self.release();
    }

    /// Writes everything that waits and flushes the transport.
    pub(crate) fn poll_flush<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
    ) -> Poll<io::Result<()>> {
        while self.len() > 0 {
            self.unflushed = true;
            match io.poll_write(cx, &self.data[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.advance(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.shrink();
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            ready!(io.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the memory back if nothing waits.
    pub(crate) fn release(&mut self) {
        if self.len() == 0 && self.data.capacity() > 0 {
            let mut data = std::mem::take(&mut self.data);
            data.clear();
            give_back(&WRITE, data);
        }
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        data.clear();
        give_back(&WRITE, data);
    }
}

#[cfg(test)]
mod tests;
