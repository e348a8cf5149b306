//! A socket, with bytes that were read from it ahead of time.

use super::IdleState;
use crate::buffer::{LARGE, PIECE, give_readable, readable};
use crate::deadline::{Deadline, bounded};
use socket2::SockRef;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A socket with the bytes that were read from it ahead of time.
pub struct Socket {
    pub(super) stream: Stream,
    /// Bytes read ahead or held back, most often none.
    pub(super) front: Option<Box<Front>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("peer", &self.peer_addr()).finish_non_exhaustive()
    }
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Default)]
pub(super) struct Front {
    bytes: Vec<u8>,
    /// Where they begin that are left, and where they end.
    at: usize,
    end: usize,
    /// How much the next read asks the system for, where it reads ahead of whoever asks; else 0.
    ahead: usize,
    /// What goes out in front of the next write.
    held: Vec<u8>,
}

impl Front {
    /// Whether it has no memory.
    #[cfg(test)]
    pub(super) fn is_bare(&self) -> bool {
        self.bytes.capacity() == 0
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..self.end).unwrap_or_default()
    }
}

impl Socket {
    /// A TCP connection.
    pub fn tcp(stream: TcpStream) -> Socket {
        Socket { stream: Stream::Tcp(stream), front: None }
    }

    /// A connection over a unix socket.
    pub fn unix(stream: UnixStream) -> Socket {
        Socket { stream: Stream::Unix(stream), front: None }
    }

    /// Has the peer see a reset where it would see an end, once this is dropped. A unix socket has none.
    pub(crate) fn reset_when_dropped(&self) {
        if let Stream::Tcp(tcp) = &self.stream {
            // Of a socket that has failed there is nothing to reset.
            let _failed = tcp.set_zero_linger();
        }
    }

    /// Puts bytes in front of what is still to be read.
    pub fn unread(&mut self, bytes: Vec<u8>) {
        let rest = self.front.take().map(|f| f.rest().to_vec());
        let bytes = match rest {
            Some(rest) if !rest.is_empty() => [bytes, rest].concat(),
            _ => bytes,
        };
        let end = bytes.len();
        self.front = (end > 0).then(|| Box::new(Front { bytes, end, ..Front::default() }));
    }

    /// From here on reads of the system are as large as what there is, whatever who reads here asks for: TLS asks for
    /// 4 KiB, four times a record.
    pub(super) fn read_ahead(&mut self) {
        self.front.get_or_insert_default().ahead = PIECE;
    }

    /// Writes these bytes with the next that are written, in front of them: no flush sends them.
    pub(crate) fn hold_back(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.front.get_or_insert_default().held = bytes;
        }
    }

    #[inline]
    fn holds_back(&self) -> bool {
        self.front.as_ref().is_some_and(|front| !front.held.is_empty())
    }

    /// Reads once behind `bytes`, before the deadline; 0 is the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] is the deadline.
    pub(crate) async fn read_more(
        &mut self,
        bytes: &mut Vec<u8>,
        deadline: &mut Deadline,
    ) -> io::Result<usize> {
        // Enough for a ClientHello in one read.
        bytes.reserve(2048);
        bounded(deadline, self.read_buf(bytes)).await?
    }

    /// The first byte that a read will see; `None` when the peer has closed. What is read is kept.
    pub(crate) async fn first_byte(&mut self, deadline: &mut Deadline) -> io::Result<Option<u8>> {
        if self.front.is_none() {
            let mut bytes = Vec::new();
            self.read_more(&mut bytes, deadline).await?;
            self.unread(bytes);
        }
        Ok(self.front.as_ref().and_then(|f| f.rest().first()).copied())
    }

    /// Closes a connection that nobody serves. The system resets one that has bytes unread, and so are those that
    /// were read ahead of whoever was to serve it: Envoy only peeks at them.
    pub(crate) fn refuse(self) {
        if let (Some(_), Some(tcp)) = (&self.front, self.as_tcp()) {
            // Fails only on a connection that is gone already.
            let _ = SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// The TCP stream, unless it is a unix socket.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Tcp(tcp) => Some(tcp),
            Stream::Unix(_) => None,
        }
    }

    /// Our address; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.as_tcp()?.local_addr().ok().map(unmapped)
    }

    /// The peer's address; `None` for a unix socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.as_tcp()?.peer_addr().ok().map(unmapped)
    }

    /// The TCP stream out of the runtime, with the bytes that were read ahead; `None` for a unix socket.
    pub(crate) fn into_std(self) -> Option<io::Result<(std::net::TcpStream, Vec<u8>)>> {
        let rest = self.front.map(|f| f.rest().to_vec());
        match self.stream {
            Stream::Tcp(tcp) => Some(tcp.into_std().map(|tcp| (tcp, rest.unwrap_or_default()))),
            Stream::Unix(_) => None,
        }
    }

    pub(super) fn idle_state(&mut self) -> IdleState {
        let mut byte = [0u8; 1];
        let read = match &self.stream {
            _ if self.front.is_some() => return IdleState::HasData,
            Stream::Tcp(s) => s.try_read(&mut byte),
            Stream::Unix(s) => s.try_read(&mut byte),
        };
        match read {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => IdleState::Alive,
            Ok(n) if n > 0 => IdleState::HasData,
            _ => IdleState::Closed,
        }
    }

    /// Gives bytes read ahead to `buf`; tells whether there were any.
    fn take_front(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(front) = &mut self.front else { return false };
        let n = front.rest().len().min(buf.remaining());
        buf.put_slice(front.rest().get(..n).unwrap_or_default());
        front.at += n;
        if front.at == front.end {
            match front.ahead {
                0 if front.held.is_empty() => self.front = None,
                _ => {
                    (front.at, front.end) = (0, 0);
                    give_readable(std::mem::take(&mut front.bytes));
                }
            }
        }
        n > 0
    }

    /// Reads ahead of whoever asks, more when the last read brought all it asked for.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut piece = readable(self.front.as_ref().map_or(PIECE, |front| front.ahead));
        let mut room = ReadBuf::new(&mut piece);
        let read = match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, &mut room),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, &mut room),
        };
        let n = room.filled().len();
        let given = n.min(buf.remaining());
        buf.put_slice(piece.get(..given).unwrap_or_default());
        if let (1.., Some(front)) = (n, &mut self.front) {
            front.ahead = if n >= PIECE { LARGE } else { PIECE };
            if given < n {
                (front.bytes, front.at, front.end) = (piece, given, n);
                return read;
            }
        }
        give_readable(piece);
        read
    }

    /// Writes what was held back, with `bufs` behind it; tells how much went of those.
    #[cold]
    fn poll_write_held(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        while let Some(front) = self.front.as_mut().filter(|front| !front.held.is_empty()) {
            let held = std::iter::once(IoSlice::new(&front.held));
            let all: Vec<_> = held.chain(bufs.iter().map(|buf| IoSlice::new(buf))).collect();
            let n = ready!(self.stream.poll_write_vectored(cx, &all))?;
            if n < front.held.len() {
                if n == 0 {
                    return Poll::Ready(Ok(0));
                }
                front.held.drain(..n);
                continue;
            }
            let others = n - front.held.len();
            front.held = Vec::new();
            if others > 0 {
                return Poll::Ready(Ok(others));
            }
        }
        self.stream.poll_write_vectored(cx, bufs)
    }
}

impl Stream {
    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
        }
    }
}

/// Passes a poll on to the stream.
macro_rules! stream {
    ($self:expr, $s:ident => $e:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Tcp($s) => $e,
            Stream::Unix($s) => $e,
        }
    };
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(front) = &self.front {
            let ahead = front.ahead > 0;
            if self.take_front(buf) {
                return Poll::Ready(Ok(()));
            }
            if ahead && buf.remaining() < PIECE {
                return self.poll_ahead(cx, buf);
            }
        }
        stream!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.holds_back() {
            return self.poll_write_held(cx, &[IoSlice::new(buf)]);
        }
        stream!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.holds_back() {
            return self.poll_write_held(cx, bufs);
        }
        self.get_mut().stream.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

/// A client of IPv4 that a socket of both families has accepted has an address of IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
