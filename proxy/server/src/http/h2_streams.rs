//! Tasks for HTTP/2 streams, used again and again.
//!
//! A stream's task holds the whole request path in its future, a context and a timer: some kilobytes that
//! would be allocated, copied into place and freed for every request. A task that has served its stream waits
//! for the next one of its thread instead.

use super::clock::Clock;
use super::h2_life::Wishes;
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
use tokio::time::Instant;

/// Tasks that a thread keeps waiting; beyond, a task ends with its stream.
const KEPT: usize = 128;

thread_local! {
    static IDLE: RefCell<Vec<Arc<TaskSlot<Opened>>>> = const { RefCell::new(Vec::new()) };
}

/// A stream that a client has opened.
pub(super) struct Opened {
    pub(super) request: http::Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
    /// When its head began, if that did not come in one read.
    pub(super) began: Option<Instant>,
    pub(super) connection: Arc<Connection>,
    pub(super) env: Arc<Env>,
    pub(super) wishes: Arc<Wishes>,
}

/// Where a task waits for its next job.
struct TaskSlot<T>(Mutex<Waiting<T>>);

struct Waiting<T> {
    next: Option<T>,
    waker: Option<Waker>,
    /// The task is gone (its runtime has ended).
    left: bool,
}

/// Marks the slot when its task goes.
struct TaskGuard<T>(Arc<TaskSlot<T>>);

impl<T> Drop for TaskGuard<T> {
    fn drop(&mut self) {
        let mut waiting = self.0.0.lock();
        waiting.left = true;
        waiting.waker = None;
    }
}

/// Serves a stream by a task that waits, or by a new one.
pub(super) fn serve(mut opened: Opened) {
    while let Some(slot) = IDLE.with(|idle| idle.borrow_mut().pop()) {
        match slot.give(opened) {
            None => return,
            Some(back) => opened = back,
        }
    }
    tokio::spawn(serve_many(opened));
}

impl<T> TaskSlot<T> {
    fn new() -> TaskSlot<T> {
        TaskSlot(Mutex::new(Waiting { next: None, waker: None, left: false }))
    }

    /// Hands a job to the task; it comes back if there is no task any more.
    fn give(&self, job: T) -> Option<T> {
        let mut waiting = self.0.lock();
        if waiting.left {
            return Some(job);
        }
        waiting.next = Some(job);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    async fn next(&self) -> T {
        poll_fn(|cx| {
            let mut waiting = self.0.lock();
            if let Some(job) = waiting.next.take() {
                return Poll::Ready(job);
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
    let guard = TaskGuard(Arc::new(TaskSlot::new()));
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
                idle.push(guard.0.clone());
            }
            room
        });
        if !waits {
            return;
        }
        opened = guard.0.next().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_task_gets_one_job_after_another_until_its_runtime_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let slot = Arc::new(TaskSlot::new());
        let guard = TaskGuard(slot.clone());
        let (done, jobs) = channel();
        let task = async move {
            loop {
                done.send(guard.0.next().await).unwrap();
            }
        };
        runtime.block_on(async {
            // One that is there before the task waits, and one that has to wake it.
            assert_eq!(slot.give(1), None);
            tokio::spawn(task);
            tokio::task::yield_now().await;
            assert_eq!(jobs.try_recv(), Ok(1));
            assert_eq!(slot.give(2), None);
            tokio::task::yield_now().await;
            assert_eq!(jobs.try_recv(), Ok(2));
        });
        drop(runtime);
        assert_eq!(slot.give(3), Some(3), "nobody would ever serve it");
    }
}
