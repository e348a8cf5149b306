//! Ends of connections: what waits is written and the client may read it, within `delayed_close_timeout`.

use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::deadline::{Deadline, Timed, within};
use crate::io::Transport;
use std::task::{Poll, ready};
use std::time::Duration;

/// Writes what waits and ends the connection's writing side. After `patience` it is cut, also in the middle of what
/// waits: a client that stops reading must not keep a connection, and a response that was not complete is cut anyway.
///
/// Answers whether that was over in time, be it that the client is gone.
pub(crate) async fn close<T: Transport>(io: &mut T, out: &mut WriteBuffer, patience: Duration) -> bool {
    let mut deadline = Deadline::after(patience);
    within(&mut deadline, |_, cx| poll_end(io, out, cx)).await.is_ok()
}

/// The same, and then reads until the client ends too: closing with unread data would reset the connection, and with it
/// the answer that the client has not read yet (Envoy's `delayed_close_timeout`, nginx's `lingering_close`).
pub(crate) async fn linger<T: Transport>(
    io: &mut T,
    out: &mut WriteBuffer,
    read: &mut ReadBuffer,
    patience: Duration,
) -> bool {
    let mut deadline = Deadline::after(patience);
    let mut ended = false;
    let left = within(&mut deadline, |_, cx| {
        if !ended && ready!(poll_end(io, out, cx)).is_err() {
            return Poll::Ready(());
        }
        ended = true;
        loop {
            read.consume(read.filled().len());
            match ready!(read.poll_fill(io, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(()),
            }
        }
    });
    left.await.is_ok()
}

fn poll_end<T: Transport>(
    io: &mut T,
    out: &mut WriteBuffer,
    cx: &mut Timed<'_>,
) -> Poll<std::io::Result<()>> {
    ready!(out.poll_flush(io, cx))?;
    io.poll_shutdown(cx)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn waiting(bytes: usize) -> (DuplexStream, DuplexStream, WriteBuffer) {
        let (near, far) = tokio::io::duplex(1000);
        let mut out = WriteBuffer::default();
        out.tail().resize(bytes, b'x');
        (near, far, out)
    }

    /// The connection of a client that stopped reading stayed for ever.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_when_its_time_is_up() {
        for lingering in [false, true] {
            let (mut near, _far, mut out) = waiting(10_000);
            let start = Instant::now();
            if lingering {
                linger(&mut near, &mut out, &mut ReadBuffer::default(), PATIENCE).await;
            } else {
                close(&mut near, &mut out, PATIENCE).await;
            }
            assert_eq!(start.elapsed(), PATIENCE, "lingering: {lingering}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_gets_all_and_the_end() {
        for lingering in [false, true] {
            let (mut near, mut far, mut out) = waiting(10_000);
            let reader = tokio::spawn(async move {
                // Sent meanwhile, and read by nobody but the one who lingers.
                far.write_all(b"more").await.unwrap();
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.unwrap();
                all.len()
            });
            let start = Instant::now();
            if lingering {
                linger(&mut near, &mut out, &mut ReadBuffer::default(), PATIENCE).await;
            } else {
                close(&mut near, &mut out, PATIENCE).await;
            }
            assert_eq!(reader.await.unwrap(), 10_000);
            assert!(start.elapsed() < PATIENCE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_ends_is_not_read_for_ever() {
        let (mut near, mut far, mut out) = waiting(10);
        let endless = tokio::spawn(async move { while far.write_all(&[0; 100]).await.is_ok() {} });
        let mut read = ReadBuffer::default();
        let lingering = linger(&mut near, &mut out, &mut read, PATIENCE);
        // The clock of the test stands still while somebody works.
        tokio::select! {
            _ = lingering => {}
            () = async { loop { tokio::time::advance(Duration::from_millis(100)).await } } => {}
        }
        drop(near);
        endless.await.unwrap();
    }
}
