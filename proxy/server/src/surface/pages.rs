//! Bodies that are written while they are sent.
//!
//! Each has a thread of its own, which waits while its client is behind: on the threads that commands run on, four clients
//! that read slowly held up every command. Those that wait are bounded in number, and none of them keeps another from being
//! written: beyond the bound the one that has waited longest is cut off. Those that are being written take turns, so that
//! many scrapes at once leave the cores to the workers.

use super::turns::{Turn, Turns};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Bytes of a body that is written while it is sent, in one piece.
const PIECE: usize = 32 << 10;

/// Pieces that wait for the client; a body of two and its end waits for nobody.
const PIECES: usize = 3;

/// How long a client may take for one piece before the rest is not written.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for all pieces: what is shown is held until then.
const PIECES_TIMEOUT: Duration = Duration::from_secs(60);

/// Bodies that wait for their clients at once: each holds what it shows.
pub(super) const MOST_WAITING: usize = if cfg!(test) { 8 } else { 16 };

/// Writes a body; an error ends it, and comes when nobody reads any more.
pub type WriteBody = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A part of a body that is written while it is sent.
pub(super) enum Piece {
    Data(Bytes),
    /// Without it the body was cut off.
    End,
}

/// The bodies that are written while they are sent.
#[derive(Clone)]
pub(super) struct Pages {
    /// Those that wait for their clients, the one that has waited longest first; each is told when it is cut off.
    waiting: Arc<Mutex<VecDeque<Arc<Notify>>>>,
    turns: Turns,
}

impl Pages {
    /// Bodies of which so many are written at the same time; those that wait for their clients do not count.
    pub(super) fn new(at_once: usize) -> Pages {
        Pages { waiting: Arc::default(), turns: Turns::new(at_once) }
    }

    /// Waits until a body may be written.
    pub(super) async fn turn(&self) -> Turn {
        self.turns.turn().await
    }

    /// Begins to write a body. It waits while its client is behind, and nobody else does.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn write(&self, turn: Turn, write: WriteBody) -> io::Result<mpsc::Receiver<Piece>> {
        let (sender, pieces) = mpsc::channel(PIECES);
        let deadline = Instant::now() + PIECES_TIMEOUT;
        let buffer = Vec::with_capacity(PIECE);
        let mut out = PieceWriter {
            sender,
            pages: self.clone(),
            turn: Some(turn),
            runtime: Handle::current(),
            deadline,
            buffer,
        };
        std::thread::Builder::new().name("page".to_owned()).spawn(move || {
            // A client that is gone, or that takes nothing for too long, gets no end.
            let _ = write(&mut out).and_then(|()| out.flush()).and_then(|()| out.send(Piece::End));
        })?;
        Ok(pieces)
    }

    /// Has a body wait, in the place of the one that has done so for longest if there are too many.
    fn wait(&self) -> Waiting<'_> {
        let cut = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MOST_WAITING
            && let Some(longest) = waiting.pop_front()
        {
            longest.notify_one();
        }
        waiting.push_back(cut.clone());
        Waiting { pages: self, cut }
    }
}

/// A body that waits.
struct Waiting<'p> {
    pages: &'p Pages,
    cut: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pages.waiting.lock().retain(|other| !Arc::ptr_eq(other, &self.cut));
    }
}

/// Gathers what is written into pieces.
struct PieceWriter {
    sender: mpsc::Sender<Piece>,
    pages: Pages,
    /// To write; another one has it while the client is behind.
    turn: Option<Turn>,
    runtime: Handle,
    deadline: Instant,
    buffer: Vec<u8>,
}

impl PieceWriter {
    fn send(&mut self, piece: Piece) -> io::Result<()> {
        let piece = match self.sender.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(piece)) => piece,
            Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        self.turn = None;
        let waiting = self.pages.wait();
        let until = self.deadline.min(Instant::now() + PIECE_TIMEOUT);
        // The timer is made where the runtime is.
        let sent = self.runtime.block_on(async {
            tokio::select! {
                sent = self.sender.send(piece) => sent.map_err(|_| io::ErrorKind::BrokenPipe),
                () = waiting.cut.notified() => Err(io::ErrorKind::ResourceBusy),
                () = tokio::time::sleep_until(until) => Err(io::ErrorKind::TimedOut),
            }
        });
        drop(waiting);
        sent?;
        self.turn = Some(self.runtime.block_on(self.pages.turns.turn_again()));
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_body_that_has_waited_longest_makes_room() {
        let pages = Pages::new(1);
        let early = pages.wait();
        drop(pages.wait());
        let waiting: Vec<Waiting<'_>> = (0..MOST_WAITING).map(|_| pages.wait()).collect();
        let is_cut = |body: &Waiting<'_>| body.cut.notified().now_or_never().is_some();
        assert!(is_cut(&early));
        assert!(!waiting.iter().any(is_cut));
        assert_eq!(pages.waiting.lock().len(), MOST_WAITING);
        drop((early, waiting));
        assert!(pages.waiting.lock().is_empty());
    }
}
