//! Counts HTTP/2 frames on their way to and from the library, and ends connections that flood.
//!
//! The library decides what a frame means; what it does not decide is how many a client may send that cost it
//! nothing and us something: resets (CVE-2023-44487), resets that we are provoked into (CVE-2025-8671), PING,
//! SETTINGS, PRIORITY, empty DATA, CONTINUATION.

use sixfold_core::cluster::Http2Options;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Length of a frame header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// Control frames are counted anew after so long.
const WINDOW: Duration = Duration::from_secs(1);

/// Frames of one direction, found in its bytes.
struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes left of the current frame, or of the preface.
    skip: usize,
    headers: u64,
    resets: u64,
    control: u64,
}

impl Frames {
    fn new(preface: usize) -> Frames {
        Frames { header: [0; HEADER], have: 0, skip: preface, headers: 0, resets: 0, control: 0 }
    }

    fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == HEADER {
                self.have = 0;
                self.skip = usize::from(self.header[0]) << 16
                    | usize::from(self.header[1]) << 8
                    | usize::from(self.header[2]);
                self.count();
            }
        }
    }

    fn count(&mut self) {
        let (kind, flags) = (self.header[3], self.header[4]);
        match kind {
            0x1 => self.headers += 1,
            0x3 => self.resets += 1,
            // PRIORITY, CONTINUATION
            0x2 | 0x9 => self.control += 1,
            // SETTINGS and PING that are no acknowledgements
            0x4 | 0x6 if flags & 1 == 0 => self.control += 1,
            // DATA that neither carries anything nor ends the stream
            0x0 if self.skip == 0 && flags & 1 == 0 => self.control += 1,
            _ => {}
        }
    }
}

/// A transport whose frames are counted.
pub(super) struct Guarded<T> {
    io: T,
    /// Bytes that were read before.
    prefix: Vec<u8>,
    inward: Frames,
    outward: Frames,
    max_resets: u64,
    max_control: u64,
    since: Instant,
}

impl<T> Guarded<T> {
    /// A server's transport; `prefix` is what was read from it already.
    pub(super) fn new(io: T, prefix: Vec<u8>, options: &Http2Options) -> Guarded<T> {
        Guarded {
            io,
            prefix,
            inward: Frames::new(super::PREFACE.len()),
            outward: Frames::new(0),
            max_resets: u64::from(options.max_resets),
            max_control: u64::from(options.max_control_frames),
            since: Instant::now(),
        }
    }

    fn flooded(&mut self) -> bool {
        let resets = self.inward.resets + self.outward.resets;
        // A client may give up many requests; it may not give up most of them.
        if resets > self.max_resets && resets * 2 > self.inward.headers {
            return true;
        }
        if self.inward.control > self.max_control {
            let now = Instant::now();
            let calm = now.duration_since(self.since) >= WINDOW;
            self.since = now;
            self.inward.control = 0;
            return !calm;
        }
        false
    }
}

fn enhance_your_calm() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "too many HTTP/2 resets or control frames")
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.prefix.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..n]);
            this.prefix.drain(..n);
        }
        this.inward.scan(&buf.filled()[before..]);
        if this.flooded() {
            return Poll::Ready(Err(enhance_your_calm()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, data))?;
        self.outward.scan(&data[..n.min(data.len())]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, data))?;
        let mut left = n;
        for slice in data {
            let part = left.min(slice.len());
            self.outward.scan(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = vec![b'x'; 24];
        bytes.extend(frame(0x1, 4, b"abc"));
        bytes.extend(frame(0x3, 0, &[0; 4]));
        bytes.extend(frame(0x6, 0, &[0; 8]));
        bytes.extend(frame(0x6, 1, &[0; 8]));
        bytes.extend(frame(0x0, 0, b""));
        bytes.extend(frame(0x0, 1, b""));
        for step in 1..bytes.len() {
            let mut frames = Frames::new(24);
            bytes.chunks(step).for_each(|c| frames.scan(c));
            assert_eq!((frames.headers, frames.resets, frames.control), (1, 1, 2), "in pieces of {step}");
        }
    }

    #[test]
    fn many_resets_of_many_streams_are_a_flood() {
        let options = Http2Options { max_resets: 10, ..Http2Options::default() };
        let mut guarded = Guarded::new((), Vec::new(), &options);
        guarded.inward.skip = 0;
        for _ in 0..11 {
            guarded.inward.scan(&frame(0x1, 4, b"abc"));
            guarded.inward.scan(&frame(0x3, 0, &[0; 4]));
        }
        assert!(guarded.flooded());
        for _ in 0..40 {
            guarded.inward.scan(&frame(0x1, 4, b"abc"));
        }
        assert!(!guarded.flooded(), "a client that gives up some of its requests is none");
    }
}
