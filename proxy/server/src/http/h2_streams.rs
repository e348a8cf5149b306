//! Tasks for HTTP/2 streams, used again and again.
//!
//! A stream's task holds the whole request path in its future, a context and a timer: some kilobytes that
//! would be allocated, copied into place and freed for every request. A task that has served its stream waits
//! for the next one of its thread instead.

use super::clock::Clock;
use super::{Env, h2_server};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use parking_lot::Mutex;
use sixfold_core::connection::Connection;
use sixfold_core::stream::Stream;
use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Tasks that a thread keeps waiting; beyond, a task ends with its stream.
const KEPT: usize = 128;

thread_local! {
    static IDLE: RefCell<Vec<Arc<Seat>>> = const { RefCell::new(Vec::new()) };
}

/// A stream that a client has opened.
pub(super) struct Opened {
    pub(super) request: http::Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) connection: Arc<Connection>,
    pub(super) env: Arc<Env>,
}

/// Where a task waits for its next stream.
#[derive(Default)]
struct Seat(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: Option<Opened>,
    waker: Option<Waker>,
    /// The task is gone (its runtime has ended).
    left: bool,
}

/// Marks the seat when its task goes.
struct Seated(Arc<Seat>);

impl Drop for Seated {
    fn drop(&mut self) {
        let mut waiting = self.0.0.lock();
        waiting.left = true;
        waiting.waker = None;
    }
}

/// Serves a stream by a task that waits, or by a new one.
pub(super) fn serve(mut opened: Opened) {
    while let Some(seat) = IDLE.with(|idle| idle.borrow_mut().pop()) {
        match seat.give(opened) {
            None => return,
            Some(back) => opened = back,
        }
    }
    tokio::spawn(serve_many(opened));
}

impl Seat {
    /// Hands the stream to the task; it comes back if there is no task any more.
    fn give(&self, opened: Opened) -> Option<Opened> {
        let mut waiting = self.0.lock();
        if waiting.left {
            return Some(opened);
        }
        waiting.next = Some(opened);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    async fn next(&self) -> Opened {
        poll_fn(|cx| {
            let mut waiting = self.0.lock();
            if let Some(opened) = waiting.next.take() {
                return Poll::Ready(opened);
            }
            if !waiting.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                waiting.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// Serves this stream and then others, until enough tasks of the thread wait.
async fn serve_many(first: Opened) {
    let seated = Seated(Arc::default());
    let mut stream = Box::new(Stream::new(first.connection.clone()));
    let mut clock = Clock::new();
    let mut opened = first;
    loop {
        h2_server::serve_stream(opened, &mut stream, &mut clock).await;
        // What the request held of the configuration must not outlive it here.
        stream.reset(clock.now().into_std());
        let waits = IDLE.with(|idle| {
            let mut idle = idle.borrow_mut();
            let room = idle.len() < KEPT;
            if room {
                idle.push(seated.0.clone());
            }
            room
        });
        if !waits {
            return;
        }
        opened = seated.0.next().await;
    }
}
