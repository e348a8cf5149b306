//! PINGs that tell whether the peer of an HTTP/2 connection is still there (Envoy's `connection_keepalive`). A
//! connection that is not to send any has nothing of this.

use crate::deadline::{Deadline, Limit, after};
use futures_util::task::AtomicWaker;
use h2::{Ping, PingPong};
use sixfold_core::cluster::Http2Keepalive;
use sixfold_core::codec_stats::Http2Counts;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// The last sign of life of a peer, for those who hold its connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    opened: Instant,
    /// Microseconds since then.
    last: AtomicU64,
    /// A PING is to go out at once.
    wanted: AtomicBool,
    /// The task of the connection.
    task: AtomicWaker,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse {
            opened: Instant::now(),
            last: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }

    /// There was one now.
    pub(crate) fn beat(&self) {
        let since = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.store(since, Relaxed);
    }

    fn last(&self) -> Instant {
        after(self.opened, Duration::from_micros(self.last.load(Relaxed)))
    }

    /// Has a PING sent before anything else if there was none for so long.
    pub(crate) fn doubt(&self, idle: Duration) {
        if self.last().elapsed() > idle {
            self.wanted.store(true, Relaxed);
            self.task.wake();
        }
    }
}

/// The PINGs of one connection.
pub(crate) struct Keepalive {
    options: Http2Keepalive,
    pings: PingPong,
    pulse: Arc<Pulse>,
    /// When the one was sent whose answer has not come.
    sent: Option<Instant>,
    /// When it must have come, or when the next one goes out.
    timer: Deadline,
    counts: Http2Counts,
}

/// A peer that did not answer a PING.
pub(crate) struct Silent;

/// Polls a connection to its end, with its PINGs where it sends some.
pub(crate) fn poll_with<F: Future>(
    keepalive: &mut Option<Box<Keepalive>>,
    connection: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Silent>> {
    let Some(keepalive) = keepalive else { return connection.poll(cx).map(Ok) };
    keepalive.poll_send(cx);
    match connection.poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Ok(ended)),
        Poll::Pending => keepalive.poll_silent(cx).map(|()| Err(Silent)),
    }
}

impl Keepalive {
    /// What the transport of a connection is to tell of its peer, where that is asked.
    pub(crate) fn pulse(options: Option<&Http2Keepalive>) -> Option<Arc<Pulse>> {
        options.map(|_| Arc::new(Pulse::new()))
    }

    /// Begins with the first interval.
    pub(crate) fn new(
        options: Http2Keepalive,
        pings: PingPong,
        pulse: Arc<Pulse>,
        counts: Http2Counts,
    ) -> Keepalive {
        let mut keepalive = Keepalive { options, pings, pulse, sent: None, timer: Deadline::unset(), counts };
        keepalive.rest();
        keepalive
    }

    /// Sends a PING that is due. To be asked before the connection is polled, so that it goes before what waits there.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) {
        if self.sent.is_some() {
            return;
        }
        self.pulse.task.register(cx.waker());
        let wanted = self.pulse.wanted.swap(false, Relaxed);
        // Of a connection that has ended there is nothing to be found out.
        if (wanted || self.timer.poll_expired(cx).is_ready()) && self.pings.send_ping(Ping::opaque()).is_ok()
        {
            self.sent = Some(Instant::now());
        }
    }

    /// Ready when the peer is not there any more. To be asked after the connection was polled: what has come counts,
    /// however late somebody looks.
    pub(crate) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sent) = self.sent else { return Poll::Pending };
        if self.pings.poll_pong(cx).is_ready() {
            self.rest();
            // The timer of the next one is to be heard.
            self.poll_send(cx);
            return Poll::Pending;
        }
        // The answer may be behind other frames: who sends those is there.
        let heard = self.pulse.last().max(sent);
        self.timer.set(Some(after(heard, self.options.timeout)));
        let _expired = ready!(self.timer.poll_expired(cx));
        self.counts.keepalive_timeout().inc();
        Poll::Ready(())
    }

    /// Waits for the time of the next one.
    fn rest(&mut self) {
        self.sent = None;
        self.pulse.wanted.store(false, Relaxed);
        let now = Instant::now();
        let jitter = u64::try_from(self.options.jitter.as_micros()).unwrap_or(u64::MAX);
        let more = Duration::from_micros(fastrand::u64(..jitter.max(1)));
        self.timer.set(self.options.interval.map(|interval| after(after(now, interval), more)));
    }
}

#[cfg(test)]
mod tests;
