//! Bodies that are written while they are sent.
//!
//! Each has a thread of its own, which waits while its client is behind: on the threads that commands run on, four clients
//! that read slowly held up every command.

use bytes::Bytes;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

/// Bytes of a body that is written while it is sent, in one piece.
const PIECE: usize = 32 << 10;

/// Pieces that wait for the client.
const PIECES: usize = 2;

/// How long a client may take for one piece before the rest is not written.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for all pieces: what is shown is held until then.
const PIECES_TIMEOUT: Duration = Duration::from_secs(60);

/// Bodies that are written at once: each holds what it shows.
const MOST_PAGES: usize = if cfg!(test) { 8 } else { 16 };

/// How long a body waits for one of those to end.
const ROOM_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

/// Writes a body; an error ends it, and comes when nobody reads any more.
pub type WriteBody = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A part of a body that is written while it is sent.
pub(super) enum Piece {
    Data(Bytes),
    /// Without it the body was cut off.
    End,
}

/// The bodies that are being written.
#[derive(Clone)]
pub(super) struct Pages(Arc<Semaphore>);

impl Default for Pages {
    fn default() -> Pages {
        Pages(Arc::new(Semaphore::new(MOST_PAGES)))
    }
}

impl Pages {
    /// Begins to write a body. It waits while its client is behind, and nobody else does.
    ///
    /// # Errors
    /// Too many are being written, or there is no thread.
    pub(super) async fn write(&self, write: WriteBody) -> io::Result<mpsc::Receiver<Piece>> {
        let room = tokio::time::timeout(ROOM_TIMEOUT, self.0.clone().acquire_owned()).await;
        let room = room.ok().and_then(Result::ok).ok_or(io::ErrorKind::ResourceBusy)?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let deadline = Instant::now() + PIECES_TIMEOUT;
        let buffer = Vec::with_capacity(PIECE);
        let mut out = PieceWriter { sender, runtime: Handle::current(), deadline, buffer, _room: room };
        std::thread::Builder::new().name("page".to_owned()).spawn(move || {
            // A client that is gone, or that takes nothing for too long, gets no end.
            let _ = write(&mut out).and_then(|()| out.flush()).and_then(|()| out.send(Piece::End));
        })?;
        Ok(pieces)
    }
}

/// Gathers what is written into pieces.
struct PieceWriter {
    sender: mpsc::Sender<Piece>,
    runtime: Handle,
    deadline: Instant,
    buffer: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl PieceWriter {
    fn send(&self, piece: Piece) -> io::Result<()> {
        let until = self.deadline.min(Instant::now() + PIECE_TIMEOUT);
        // The timer is made where the runtime is.
        let sending = async { tokio::time::timeout_at(until, self.sender.send(piece)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Piece::Data(piece.into()))
    }
}
