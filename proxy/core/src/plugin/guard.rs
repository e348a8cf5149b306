//! A plugin under a condition: APISIX's `_meta.filter` and `_meta.error_response`.

use super::body::{BodyPiece, BodyStep};
use super::handlers::{Handler, OnBody, OnHead, OnLog, OnTrailers};
use super::owned::OwnedHeaders;
use super::{HeadPhase, LocalReply, Plugin, Slot, Step, TrailersStep};
use crate::expr::Expr;
use crate::stream::Stream;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What is put around a plugin.
#[derive(Clone, Default)]
pub struct Guard {
    /// Runs the plugin only for requests that it holds for. It is asked once a request, in the plugin's first
    /// phase, and the answer holds in every phase; of a plugin that a consumer's takes the place of, for that one alone. One that can't be evaluated lets the plugin run.
    pub when: Option<Arc<Expr>>,
    /// In place of the body of the plugin's refusals, those from status 400 on.
    pub refusal: Option<Bytes>,
}

impl Plugin {
    /// The plugin with a guard around all its handlers.
    #[must_use]
    pub fn guarded(mut self, guard: &Guard) -> Plugin {
        if guard.when.is_none() && guard.refusal.is_none() {
            return self;
        }
        self.when = guard.when.clone();
        let owned = self.owned.clone();
        let handlers = self.handlers.into_iter().map(|handler| match handler {
            Handler::Head(phase, on) => {
                let refusal = guard.refusal.clone().filter(|_| phase != HeadPhase::HeaderFilter);
                let owned = owned.clone().filter(|_| matches!(phase, HeadPhase::Rewrite | HeadPhase::Access));
                Handler::Head(phase, Arc::new(GuardedHead { on, when: guard.when.clone(), refusal, owned }))
            }
            Handler::Body(direction, on) => match guard.when.clone() {
                Some(when) => Handler::Body(direction, Arc::new(Guarded { on, when })),
                None => Handler::Body(direction, on),
            },
            Handler::Trailers(direction, on) => match guard.when.clone() {
                Some(when) => Handler::Trailers(direction, Arc::new(Guarded { on, when })),
                None => Handler::Trailers(direction, on),
            },
            Handler::Log(on) => match guard.when.clone() {
                Some(when) => Handler::Log(Arc::new(Guarded { on, when })),
                None => Handler::Log(on),
            },
        });
        self.handlers = handlers.collect();
        self
    }
}

/// Whether the plugin in `slot` runs for this request.
fn runs(when: &Arc<Expr>, stream: &mut Stream, slot: Slot) -> bool {
    if let Some(known) = stream.plugins.decision(slot, when) {
        return known;
    }
    let runs = when.eval(stream).unwrap_or(true);
    stream.plugins.decide(slot, when, runs);
    runs
}

struct GuardedHead {
    on: Arc<dyn OnHead>,
    when: Option<Arc<Expr>>,
    refusal: Option<Bytes>,
    /// What the plugin would have stripped.
    owned: Option<Arc<OwnedHeaders>>,
}

impl OnHead for GuardedHead {
    fn call<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if self.when.as_ref().is_some_and(|when| !runs(when, stream, slot)) {
            if let Some(owned) = &self.owned {
                owned.strip(&mut stream.request.headers);
            }
            return Step::Continue;
        }
        match &self.refusal {
            Some(body) => refuse(self.on.call(stream, slot), body),
            None => self.on.call(stream, slot),
        }
    }
}

fn refuse<'a>(step: Step<'a>, body: &'a Bytes) -> Step<'a> {
    match step {
        Step::Respond(reply) if reply.status >= 400 => {
            Step::Respond(LocalReply { body: body.clone(), ..reply })
        }
        Step::Wait(future) => Step::Wait(Box::pin(refuse_later(future, body))),
        other => other,
    }
}

async fn refuse_later<'a>(
    future: Pin<Box<dyn Future<Output = Step<'a>> + Send + 'a>>,
    body: &'a Bytes,
) -> Step<'a> {
    refuse(future.await, body)
}

struct Guarded<H: ?Sized> {
    on: Arc<H>,
    when: Arc<Expr>,
}

impl OnBody for Guarded<dyn OnBody> {
    fn call(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        if runs(&self.when, stream, slot) { self.on.call(stream, slot, piece) } else { BodyStep::Pass }
    }
}

impl OnTrailers for Guarded<dyn OnTrailers> {
    fn call(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        if runs(&self.when, stream, slot) { self.on.call(stream, slot) } else { TrailersStep::Continue }
    }
}

impl OnLog for Guarded<dyn OnLog> {
    fn call(&self, stream: &mut Stream, slot: Slot) {
        if runs(&self.when, stream, slot) {
            self.on.call(stream, slot);
        }
    }
}
