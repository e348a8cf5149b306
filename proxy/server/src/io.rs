//! Connections as bytes: TCP or a unix socket, plain or under TLS.

mod filtering;
mod socket;

pub(crate) use filtering::Filtering;
pub use socket::Socket;

use crate::buffer::{self, LARGE};
use crate::deadline::Timed;
use filtering::Next;
use sixfold_core::cluster::ClusterStats;
use sixfold_core::hcm::HttpStats;
use sixfold_core::plugin::CalloutWire;
use socket::Stream;
use socket2::SockRef;
use std::io::{self, IoSlice, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Bytes that a socket with room for any of them nearly always takes as a whole.
const SHORT: usize = 16 * 1024;

/// A connection, downstream or upstream. It may hold bytes that a listener filter has read already; reads
/// see them first. Who reads or writes it does so under a deadline: see [`Transport`].
pub struct Io {
    kind: Kind,
    /// Who counts its bytes.
    meter: Option<Meter>,
    /// Network filters that see what the client sends before anybody else does.
    filtering: Option<Box<Filtering>>,
}

/// Where the bytes of a connection are counted as they are read and written, those of TLS itself aside.
#[derive(Clone)]
pub(crate) enum Meter {
    /// Of a connection manager.
    Downstream(Arc<HttpStats>),
    /// Of a cluster.
    Upstream(Arc<ClusterStats>),
}

impl Meter {
    #[inline]
    fn received(&self, bytes: usize) {
        match self {
            Meter::Downstream(stats) => stats.downstream_cx_rx_bytes_total().add(bytes as u64),
            Meter::Upstream(stats) => stats.upstream_cx_rx_bytes_total().add(bytes as u64),
        }
    }

    #[inline]
    fn sent(&self, bytes: usize) {
        match self {
            Meter::Downstream(stats) => stats.downstream_cx_tx_bytes_total().add(bytes as u64),
            Meter::Upstream(stats) => stats.upstream_cx_tx_bytes_total().add(bytes as u64),
        }
    }
}

/// Reading, writing and closing for those who watch the time.
pub(crate) trait Transport {
    /// Ready when a read is worth a try; whoever waits is woken then. It asks no operating system.
    fn poll_readable(&mut self, _cx: &mut Timed<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whether a read is worth a try, without telling whom to wake. It asks no operating system either.
    fn is_readable(&self) -> bool {
        true
    }

    /// Reads once what there is, if that can be done without telling whom to wake: for those who have just been woken.
    fn try_read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Reads what there is.
    fn poll_read(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;

    /// Writes as much as goes now of several pieces.
    fn poll_write_vectored(&mut self, cx: &mut Timed<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Writes as much as goes now.
    fn poll_write(&mut self, cx: &mut Timed<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Sends what was written and is still held here (TLS records).
    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>>;

    /// Ends what is written.
    fn poll_shutdown(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>>;
}

enum Kind {
    Plain(Socket),
    Server(Box<tokio_rustls::server::TlsStream<Socket>>),
    Client(Box<tokio_rustls::client::TlsStream<Socket>>),
}

/// Passes a poll on to whatever the connection is.
macro_rules! inner {
    ($self:expr, $s:ident => $e:expr) => {
        match &mut $self.kind {
            Kind::Plain($s) => $e,
            Kind::Server($s) => $e,
            Kind::Client($s) => $e,
        }
    };
}

/// What a pooled connection without a request has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing: it can take a request.
    Alive,
    /// The peer has closed it, or it failed.
    Closed,
    /// The peer has sent something nobody asked for; the connection is of no more use.
    HasData,
}

impl Io {
    fn of(kind: Kind) -> Io {
        Io { kind, meter: None, filtering: None }
    }

    /// Has filters asked about what the client sends.
    pub(crate) fn filter(&mut self, filtering: Box<Filtering>) {
        self.filtering = Some(filtering);
    }

    /// Its network filters.
    pub(crate) fn filtering(&self) -> Option<&Filtering> {
        self.filtering.as_deref()
    }

    /// The same, to be told something.
    pub(crate) fn filtering_mut(&mut self) -> Option<&mut Filtering> {
        self.filtering.as_deref_mut()
    }

    /// The same, for whoever serves it to end them with its own context.
    pub(crate) fn take_filtering(&mut self) -> Option<Box<Filtering>> {
        self.filtering.take()
    }

    /// Whether bytes have to go by filters still.
    #[inline]
    fn is_filtered(&self) -> bool {
        self.filtering.as_ref().is_some_and(|filtering| filtering.is_active())
    }

    #[inline]
    fn read(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = inner!(self, s => Pin::new(s).poll_read(cx, buf));
        if let (Some(meter), true) = (&self.meter, buf.filled().len() > before) {
            meter.received(buf.filled().len() - before);
        }
        read
    }

    /// Has its bytes counted from here on.
    pub(crate) fn meter(&mut self, meter: Meter) {
        self.meter = Some(meter);
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(meter), Poll::Ready(Ok(n))) = (&self.meter, &written) {
            meter.sent(*n);
        }
        written
    }

    /// Reads what filters let pass.
    #[cold]
    fn poll_filtered(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut filtering) = self.filtering.take() else { return self.read(cx, buf) };
        let read = self.poll_past(&mut filtering, cx, buf);
        self.filtering = Some(filtering);
        read
    }

    fn poll_past(
        &mut self,
        filtering: &mut Filtering,
        cx: &mut Timed<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let next = filtering.poll(cx);
            match (self.poll_answer(filtering, cx), &next) {
                (Poll::Ready(Err(error)), _) => return Poll::Ready(Err(error)),
                // What a filter has said before it ends the connection goes out first.
                (Poll::Pending, Poll::Ready(Err(_))) => return Poll::Pending,
                // What can't go out yet is tried again with the next poll.
                _ => {}
            }
            if let Next::Give = ready!(next)? {
                filtering.give(buf);
                return Poll::Ready(Ok(()));
            }
            ready!(buffer::lend(|room| {
                let mut room = ReadBuf::new(room);
                ready!(self.read(cx, &mut room))?;
                filtering.receive(room.filled());
                Poll::Ready(Ok::<_, io::Error>(()))
            }))?;
        }
    }

    /// Writes what filters have for the client.
    fn poll_answer(&mut self, filtering: &mut Filtering, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        while !filtering.answer().is_empty() {
            let written = inner!(self, s => Pin::new(s).poll_write(cx, filtering.answer()));
            match ready!(self.count(written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => filtering.written(n),
            }
        }
        if filtering.is_unflushed() {
            ready!(inner!(self, s => Pin::new(s).poll_flush(cx)))?;
            filtering.flushed();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when others may write to the client.
    fn poll_turn(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        let Some(mut filtering) = self.filtering.take() else { return Poll::Ready(Ok(())) };
        let turn = match filtering.holds_writes(cx) {
            true => Poll::Pending,
            false => {
                filtering.begin_writing();
                self.poll_answer(&mut filtering, cx)
            }
        };
        self.filtering = Some(filtering);
        turn
    }

    /// A connection in plain text.
    pub fn plain(socket: Socket) -> Io {
        Io::of(Kind::Plain(socket))
    }

    /// The server's end of a TLS connection.
    pub fn tls_server(mut stream: tokio_rustls::server::TlsStream<Socket>) -> Io {
        let (socket, session) = stream.get_mut();
        socket.read_ahead();
        session.set_buffer_limit(Some(LARGE));
        Io::of(Kind::Server(Box::new(stream)))
    }

    /// The client's end of a TLS connection.
    pub fn tls_client(mut stream: tokio_rustls::client::TlsStream<Socket>) -> Io {
        let (socket, session) = stream.get_mut();
        socket.read_ahead();
        session.set_buffer_limit(Some(LARGE));
        Io::of(Kind::Client(Box::new(stream)))
    }

    /// The connection as bytes alone, for whoever watches the time by other means.
    pub(crate) fn into_wire(self) -> Box<dyn CalloutWire> {
        match self.kind {
            Kind::Plain(socket) => Box::new(socket),
            Kind::Server(stream) => stream,
            Kind::Client(stream) => stream,
        }
    }

    /// The TCP connection, if its bytes are passed on as they are and nothing of them lies here.
    pub(crate) fn as_bare_tcp(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(Socket { stream: Stream::Tcp(tcp), front: None })
                if !self.is_filtered() && self.meter.is_none() =>
            {
                Some(tcp)
            }
            _ => None,
        }
    }

    /// Whether bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        !matches!(self.kind, Kind::Plain(_))
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        match &self.kind {
            Kind::Plain(socket) => socket,
            Kind::Server(tls) => tls.get_ref().0,
            Kind::Client(tls) => tls.get_ref().0,
        }
    }

    /// Our address; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket().local_addr()
    }

    /// The peer's address; `None` for a unix socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket().peer_addr()
    }

    /// Looks after a connection that has no request under way. No system call is made while the runtime has
    /// seen nothing on the socket. After anything but [`IdleState::Alive`] the connection must be dropped:
    /// a byte may have been lost.
    pub fn idle_state(&mut self) -> IdleState {
        if let Kind::Plain(socket) = &mut self.kind {
            return socket.idle_state();
        }
        // TLS has records of its own (session tickets) that say nothing to us: let it read them.
        let mut byte = [0u8; 1];
        let mut buf = ReadBuf::new(&mut byte);
        // Nobody waits here, so that no deadline is needed.
        let cx = &mut Context::from_waker(Waker::noop());
        match inner!(self, s => Pin::new(s).poll_read(cx, &mut buf)) {
            Poll::Pending => IdleState::Alive,
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => IdleState::HasData,
            Poll::Ready(_) => IdleState::Closed,
        }
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connection", if self.is_tls() { "TLS" } else { "plain" })
    }
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Io {
        Io::plain(Socket::tcp(stream))
    }
}

impl From<UnixStream> for Io {
    fn from(stream: UnixStream) -> Io {
        Io::plain(Socket::unix(stream))
    }
}

impl Transport for Io {
    #[inline]
    fn poll_readable(&mut self, cx: &mut Timed<'_>) -> Poll<()> {
        match &self.kind {
            Kind::Plain(Socket { stream: Stream::Tcp(tcp), front: None }) if !self.is_filtered() => {
                tcp.poll_read_ready(cx).map(drop)
            }
            _ => Poll::Ready(()),
        }
    }

    #[inline]
    fn is_readable(&self) -> bool {
        match &self.kind {
            Kind::Plain(Socket { stream: Stream::Tcp(tcp), front: None }) if !self.is_filtered() => {
                tcp.try_io(Interest::READABLE, || Ok(())).is_ok()
            }
            _ => true,
        }
    }

    #[inline]
    fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Kind::Plain(Socket { stream: Stream::Tcp(tcp), front: None }) = &self.kind else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if self.is_filtered() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (room, mut read) = (buf.len(), None);
        let tried = tcp.try_io(Interest::READABLE, || {
            let n = (&*SockRef::from(tcp)).read(buf)?;
            if n == 0 || n == room {
                return Ok(n);
            }
            // All that there was: as the runtime's own reads do, this one leaves it to be told of more.
            read = Some(n);
            Err(io::ErrorKind::WouldBlock.into())
        });
        let n = read.map_or(tried, Ok)?;
        if let Some(meter) = &self.meter {
            meter.received(n);
        }
        Ok(n)
    }

    #[inline]
    fn poll_read(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_filtered() {
            return self.poll_filtered(cx, buf);
        }
        self.read(cx, buf)
    }

    #[inline]
    fn poll_write(&mut self, cx: &mut Timed<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_filtered() {
            ready!(self.poll_turn(cx))?;
        }
        // Nearly always it goes at once, and nobody has to be told when it does. Of what is long a part may go, which
        // the runtime takes for the end of the room there is.
        if let Kind::Plain(Socket { stream: Stream::Tcp(tcp), .. }) = &self.kind
            && buf.len() <= SHORT
        {
            match tcp.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return self.count(Poll::Ready(written)),
            }
        }
        let written = inner!(self, s => Pin::new(s).poll_write(cx, buf));
        self.count(written)
    }

    #[inline]
    fn poll_write_vectored(&mut self, cx: &mut Timed<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.is_filtered() {
            ready!(self.poll_turn(cx))?;
        }
        let written = inner!(self, s => Pin::new(s).poll_write_vectored(cx, bufs));
        self.count(written)
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        inner!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        if self.is_filtered() {
            ready!(self.poll_turn(cx))?;
        }
        inner!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

/// Any stream of bytes, such as a pipe in memory.
#[cfg(test)]
impl Transport for tokio::io::DuplexStream {
    fn poll_read(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(self), cx, buf)
    }

    fn poll_write_vectored(&mut self, cx: &mut Timed<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write_vectored(Pin::new(self), cx, bufs)
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(self), cx)
    }
}

/// All that a connection says until its end.
#[cfg(test)]
pub(crate) async fn text(io: &mut Io) -> String {
    let mut read = crate::buffer::ReadBuffer::default();
    let mut deadline = crate::deadline::Deadline::after(std::time::Duration::from_secs(60));
    while let Ok(Ok(1..)) = crate::deadline::within(&mut deadline, |_, cx| read.poll_fill(io, cx)).await {}
    String::from_utf8_lossy(read.filled()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn pair() -> (Io, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0.into(), client)
    }

    /// Lets the runtime see what happens on the socket.
    async fn settle(io: &mut Io, wanted: IdleState) {
        for _ in 0..200 {
            if io.idle_state() == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("never {wanted:?}");
    }

    #[tokio::test]
    async fn idle_connections_are_alive_until_the_peer_speaks_or_closes() {
        let (mut io, mut client) = pair().await;
        assert_eq!(io.idle_state(), IdleState::Alive);
        client.write_all(b"x").await.unwrap();
        settle(&mut io, IdleState::HasData).await;
        assert_eq!(io.idle_state(), IdleState::Alive);
        drop(client);
        settle(&mut io, IdleState::Closed).await;
    }

    #[tokio::test]
    async fn bytes_read_ahead_come_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Socket::tcp(listener.accept().await.unwrap().0);
        client.write_all(b"world").await.unwrap();
        client.shutdown().await.unwrap();
        socket.unread(b"lo ".to_vec());
        socket.unread(b"hel".to_vec());
        let mut io = Io::plain(socket);
        assert_eq!(io.idle_state(), IdleState::HasData);
        assert_eq!(text(&mut io).await, "hello world");
        assert_eq!(io.peer_addr(), Some(client.local_addr().unwrap()));
    }

    /// TLS asks for 4 KiB at a time, of records of 16 KiB.
    #[tokio::test]
    async fn reads_below_tls_take_all_there_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Socket::tcp(listener.accept().await.unwrap().0);
        socket.unread(b"hello".to_vec());
        socket.read_ahead();
        client.write_all(&[b'x'; 9_995]).await.unwrap();
        drop(client);
        let (mut all, mut reads) = (Vec::new(), 0);
        loop {
            let mut room = [0; 4096];
            let n = tokio::io::AsyncReadExt::read(&mut socket, &mut room).await.unwrap();
            if n == 0 {
                break;
            }
            reads += 1;
            all.extend_from_slice(&room[..n]);
            if reads == 2 {
                let ahead = socket.front.as_ref().unwrap();
                assert_eq!((n, ahead.rest().len()), (4096, 9_995 - 4096), "one read has brought the rest");
            }
        }
        assert_eq!((&all[..6], all.len()), (&b"hellox"[..], 10_000));
        assert!(socket.front.as_ref().unwrap().is_bare(), "it holds no memory");
    }

    #[test]
    fn the_handle_stays_small() {
        assert!(size_of::<Io>() <= 80, "{}", size_of::<Io>());
    }
}
