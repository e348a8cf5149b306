//! What network filters do with a connection: they are asked about the bytes of the client before anybody else sees
//! them, whichever filter ends the chain and however it reads.
//!
//! A filter that holds bytes, answers, and has what others write wait is one that speaks with the client before the protocol
//! of the connection begins, as Istio's `metadata_exchange` over TCP does.

#[cfg(test)]
mod tests;

use crate::deadline::poll_timer;
use sixfold_core::connection::Connection;
use sixfold_core::listener::{ClientBytes, Closing, ConnectionFilter, FilterStep, MAX_HELD, Resume};
use sixfold_core::plugin::{Scope, Slot};
use sixfold_core::stream::Stream;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::time::{Sleep, sleep};

/// The filters of one connection and what they know of it.
pub(crate) struct Filtering {
    filters: Arc<[Arc<dyn ConnectionFilter>]>,
    /// Of each filter whether it has seen enough of the client.
    done: Box<[bool]>,
    /// The context, until a proxy has taken it over for its log.
    context: Option<Stream>,
    /// What was read and has not passed all filters.
    received: Vec<u8>,
    /// The client sends nothing more.
    end: bool,
    /// Something has come since the filters were asked.
    fresh: bool,
    /// The filter that is asked next about it.
    at: usize,
    /// What that filter waits for.
    waits: Option<Pin<Box<dyn Future<Output = Resume> + Send>>>,
    /// What has passed, and how much of it was handed on.
    passed: (Vec<u8>, usize),
    /// Bytes for the client that filters have put, and how much of them was written.
    answer: (Vec<u8>, usize),
    /// What was written of them may still be on its way to the socket.
    unflushed: bool,
    /// Something was about to be written to the client, and filters have been told.
    writing: bool,
    /// Who wants to write, and may not yet.
    writer: Option<Waker>,
    closing: Option<Closing>,
    /// Until when the end is put off.
    delay: Option<Pin<Box<Sleep>>>,
}

/// What is to be done before the client's bytes can go on.
pub(super) enum Next {
    /// There is something to hand on, or the end.
    Give,
    /// More has to be read.
    Read,
}

impl Filtering {
    /// Tells the filters of the connection with this context of it, one after the other; an error is that one of them [ends
    /// it](Filtering::closing), with those that have heard of it.
    pub(crate) async fn begin(
        filters: &Arc<[Arc<dyn ConnectionFilter>]>,
        context: Stream,
    ) -> Result<Box<Filtering>, Box<Filtering>> {
        let mut filtering = Box::new(Filtering {
            filters: filters.clone(),
            done: filters.iter().map(|_| false).collect(),
            context: Some(context),
            received: Vec::new(),
            end: false,
            fresh: false,
            at: 0,
            waits: None,
            passed: (Vec::new(), 0),
            answer: (Vec::new(), 0),
            unflushed: false,
            writing: false,
            writer: None,
            closing: None,
            delay: None,
        });
        for (index, filter) in filters.iter().enumerate() {
            let Some(context) = &mut filtering.context else { break };
            let mut step = filter.on_new_connection(context, slot(index));
            while let FilterStep::Wait(waits) = step {
                step = waits.await(context);
            }
            match step {
                FilterStep::Done => {
                    filtering.done.iter_mut().skip(index).take(1).for_each(|done| *done = true)
                }
                FilterStep::Close(closing) => {
                    filtering.filters = filters.iter().take(index).cloned().collect();
                    filtering.closing = Some(closing);
                    return Err(filtering);
                }
                FilterStep::Continue | FilterStep::Hold | FilterStep::Wait(_) => {}
            }
        }
        if let Some(context) = &mut filtering.context {
            context.share_filter_state();
        }
        Ok(filtering)
    }

    /// Whether any of these filters has anything to do with a connection. Each is asked.
    pub(crate) fn is_needed(filters: &[Arc<dyn ConnectionFilter>], connection: &Connection) -> bool {
        filters.iter().filter(|filter| filter.is_concerned(connection)).count() > 0
    }

    /// Whether there is anything left to do when the client sends something.
    pub(super) fn is_active(&self) -> bool {
        let passes = self.passed.1 < self.passed.0.len();
        self.done.contains(&false) || passes || self.unflushed || !self.answer().is_empty()
    }

    /// What filters know of the connection.
    pub(crate) fn context(&self) -> Option<&Stream> {
        self.context.as_ref()
    }

    /// The shortest time after which a filter wants to hear of the connection.
    pub(crate) fn report_interval(&self) -> Option<Duration> {
        self.filters.iter().filter_map(|filter| filter.report_interval()).min()
    }

    /// Tells the filters that want to hear of it how the connection does, in the words of who serves it.
    pub(crate) fn report(&mut self, context: &mut Stream) {
        let Some(own) = &mut self.context else { return };
        context.swap_notes(own);
        for (index, filter) in self.filters.iter().enumerate() {
            if filter.report_interval().is_some() {
                filter.on_report(context, slot(index));
            }
        }
        context.swap_notes(own);
    }

    /// How a filter ends the connection, once one does.
    pub(crate) fn closing(&self) -> Option<&Closing> {
        self.closing.as_ref()
    }

    /// Bytes of the client that were read and went no further.
    pub(crate) fn held(&self) -> usize {
        self.received.len()
    }

    /// Ends it with the context of who has served the connection: what filters have noted goes there.
    pub(crate) fn end_with(mut self: Box<Self>, context: &mut Stream) {
        if let Some(own) = self.context.take() {
            context.take_notes(own);
        }
        if let Some(closing) = &self.closing {
            note(context, closing);
        }
        for (index, filter) in self.filters.iter().enumerate() {
            filter.on_close(context, slot(index));
        }
    }

    /// Hands on what has passed; nothing is the end.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let (bytes, at) = &mut self.passed;
        let rest = bytes.get(*at..).unwrap_or_default();
        let n = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..n).unwrap_or_default());
        *at += n;
        if *at == bytes.len() {
            (*bytes, *at) = (Vec::new(), 0);
        }
    }

    /// The client has sent this; nothing is its end.
    pub(super) fn receive(&mut self, read: &[u8]) {
        self.received.extend_from_slice(read);
        self.end |= read.is_empty();
        self.fresh = true;
    }

    /// Bytes that the client is to get first.
    pub(super) fn answer(&self) -> &[u8] {
        let (bytes, at) = &self.answer;
        bytes.get(*at..).unwrap_or_default()
    }

    /// So much of the answer was written.
    pub(super) fn written(&mut self, n: usize) {
        let (bytes, at) = &mut self.answer;
        *at += n;
        if *at >= bytes.len() {
            (*bytes, *at) = (Vec::new(), 0);
        }
        self.unflushed = true;
    }

    /// Whether what was written of answers has not been flushed since.
    pub(super) fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// It has been flushed.
    pub(super) fn flushed(&mut self) {
        self.unflushed = false;
    }

    /// Asks the filters about what was read, as far as they don't wait.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        if self.closing.is_some() {
            return self.poll_closing(cx).map(Err);
        }
        if self.passed.1 < self.passed.0.len() {
            return Poll::Ready(Ok(Next::Give));
        }
        let begins = self.at == 0 && self.waits.is_none();
        if begins && !std::mem::take(&mut self.fresh) {
            return Poll::Ready(Ok(Next::Read));
        }
        while self.at < self.filters.len() && (self.end || !self.received.is_empty()) {
            match ready!(self.poll_step(cx)) {
                FilterStep::Hold if !self.end && self.received.len() < MAX_HELD => break,
                FilterStep::Close(closing) => {
                    self.delay = (!closing.delay.is_zero()).then(|| Box::pin(sleep(closing.delay)));
                    self.closing = Some(closing);
                    return self.poll_closing(cx).map(Err);
                }
                FilterStep::Done => self.finish(self.at),
                FilterStep::Continue | FilterStep::Hold | FilterStep::Wait(_) => {}
            }
            self.at += 1;
        }
        // All who are not done see what comes next, those before one that holds it too.
        let held = std::mem::take(&mut self.at) < self.filters.len();
        // What filters have left nothing of is not the end.
        if held || self.received.is_empty() && !self.end {
            return Poll::Ready(Ok(Next::Read));
        }
        self.passed = (std::mem::take(&mut self.received), 0);
        Poll::Ready(Ok(Next::Give))
    }

    /// One filter's decision.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<FilterStep> {
        let (Some(filter), Some(context)) = (self.filters.get(self.at), &mut self.context) else {
            return Poll::Ready(FilterStep::Continue);
        };
        if self.waits.is_none() {
            if self.done.get(self.at) == Some(&true) {
                return Poll::Ready(FilterStep::Continue);
            }
            let mut bytes =
                ClientBytes { received: &mut self.received, end: self.end, answer: &mut self.answer.0 };
            match filter.on_data(context, slot(self.at), &mut bytes) {
                FilterStep::Wait(waits) => self.waits = Some(waits),
                step => return Poll::Ready(step),
            }
        }
        while let Some(waits) = &mut self.waits {
            let resume = ready!(waits.as_mut().poll(cx));
            self.waits = None;
            match resume(context) {
                FilterStep::Wait(waits) => self.waits = Some(waits),
                step => return Poll::Ready(step),
            }
        }
        Poll::Ready(FilterStep::Continue)
    }

    /// Something is about to be written to the client: the first time filters may put something before it.
    pub(super) fn begin_writing(&mut self) {
        let Some(context) = self.context.as_mut().filter(|_| !self.writing) else { return };
        self.writing = true;
        for (index, filter) in self.filters.iter().enumerate() {
            if self.done.get(index) == Some(&false) {
                filter.on_write(context, slot(index), &mut self.answer.0);
            }
        }
    }

    fn finish(&mut self, index: usize) {
        if let Some(done) = self.done.get_mut(index) {
            *done = true;
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Ready once the connection is to end.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(delay) = &mut self.delay {
            ready!(poll_timer(delay.as_mut(), cx));
            self.delay = None;
        }
        Poll::Ready(io::ErrorKind::ConnectionAborted.into())
    }

    /// Whether what is written to the client has to wait for a filter; who asks is woken then.
    pub(super) fn holds_writes(&mut self, cx: &Context<'_>) -> bool {
        let held = self.filters.iter().zip(&self.done).any(|(filter, done)| !done && filter.holds_writes());
        if held {
            self.writer = Some(cx.waker().clone());
        }
        held
    }
}

impl Drop for Filtering {
    /// Nobody has taken the context over: filters hear of the end with their own.
    fn drop(&mut self) {
        if let Some(context) = &mut self.context {
            if let Some(closing) = &self.closing {
                note(context, closing);
            }
            for (index, filter) in self.filters.iter().enumerate() {
                filter.on_close(context, slot(index));
            }
        }
    }
}

/// Says in a context why a filter ends the connection, in Envoy's words.
fn note(context: &mut Stream, closing: &Closing) {
    if !closing.details.is_empty() {
        context.set_var("connection_termination_details", closing.details.as_bytes());
    }
    if !closing.reason.is_empty() {
        context.set_var("downstream_local_close_reason", closing.reason);
    }
    if closing.status != 0 {
        context.response.status = closing.status;
    }
}

fn slot(index: usize) -> Slot {
    Slot::new(index as u16, Scope::Route)
}
