//! `_meta`, which every plugin's configuration may have.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sixfold_core::expr::Expr;
use sixfold_core::plugin::{BodyChunk, LocalReply, Phases, Plugin, Step};
use sixfold_core::stream::Stream;

/// What `_meta` says.
#[derive(Clone, Default)]
pub(crate) struct Meta {
    /// Leaves the plugin out.
    pub(crate) disable: bool,
    /// Instead of the plugin's own priority.
    pub(crate) priority: Option<i64>,
    /// Runs the plugin only for requests that it holds for.
    filter: Option<Arc<Expr>>,
    /// Instead of the body of the plugin's refusals.
    error_response: Option<Bytes>,
}

impl Meta {
    /// Reads a value that has passed its schema.
    pub(super) fn read(meta: &Value) -> Result<Meta, String> {
        if meta.get("pre_function").is_some() {
            return Err("pre_function is not supported: Lua is not run".to_owned());
        }
        let filter = meta.get("filter").map(Expr::new).transpose();
        let filter = filter.map_err(|e| format!("failed to validate the 'filter' expression: {e}"))?;
        Ok(Meta {
            disable: meta.get("disable").and_then(Value::as_bool).unwrap_or(false),
            priority: meta.get("priority").and_then(Value::as_f64).map(|priority| priority as i64),
            filter: filter.map(Arc::new),
            error_response: meta.get("error_response").map(|body| match body {
                Value::String(text) => Bytes::from(text.clone()),
                other => Bytes::from(format!("{other}\n")),
            }),
        })
    }

    /// Puts the plugin behind what `_meta` asks for, if it asks for anything.
    pub(super) fn wrap(&self, plugin: Arc<dyn Plugin>) -> Arc<dyn Plugin> {
        if self.filter.is_none() && self.error_response.is_none() {
            return plugin;
        }
        Arc::new(Guarded { plugin, filter: self.filter.clone(), error_response: self.error_response.clone() })
    }
}

/// A plugin with a filter or a body for its refusals.
///
/// It takes two slots of the stream: the plugin's own, and the next one for the filter's answer, which is
/// found once a request and holds in every phase.
pub(super) struct Guarded {
    plugin: Arc<dyn Plugin>,
    filter: Option<Arc<Expr>>,
    error_response: Option<Bytes>,
}

impl Guarded {
    /// Whether the plugin runs for this request. An expression that can't be evaluated lets it run.
    fn runs(&self, stream: &mut Stream, slot: usize) -> bool {
        let Some(filter) = &self.filter else { return true };
        let answer = slot + 1;
        if let Some(known) = stream.state::<bool>(answer) {
            return *known;
        }
        let runs = filter.eval(stream).unwrap_or(true);
        stream.set_state(answer, runs);
        runs
    }

    fn guard<'a>(&'a self, step: Step<'a>) -> Step<'a> {
        let Some(body) = &self.error_response else { return step };
        match step {
            Step::Respond(reply) => Step::Respond(with_body(reply, body)),
            Step::Wait(future) => Step::Wait(Box::pin(self.guard_later(future))),
            other => other,
        }
    }

    async fn guard_later<'a>(
        &'a self,
        future: Pin<Box<dyn Future<Output = Step<'a>> + Send + 'a>>,
    ) -> Step<'a> {
        self.guard(future.await)
    }
}

fn with_body(mut reply: LocalReply, body: &Bytes) -> LocalReply {
    if reply.status >= 400 {
        reply.body = body.clone();
    }
    reply
}

macro_rules! guarded_phases {
    ($($phase:ident)*) => {
        $(fn $phase<'a>(&'a self, stream: &'a mut Stream, slot: usize) -> Step<'a> {
            if self.runs(stream, slot) { self.guard(self.plugin.$phase(stream, slot)) } else { Step::Continue }
        })*
    };
}

impl Plugin for Guarded {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    fn phases(&self) -> Phases {
        self.plugin.phases()
    }

    fn buffers_request(&self) -> Option<usize> {
        self.plugin.buffers_request()
    }

    fn buffers_response(&self, stream: &Stream) -> Option<usize> {
        self.plugin.buffers_response(stream)
    }

    guarded_phases! { rewrite access before_proxy }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: usize) -> Step<'a> {
        if self.runs(stream, slot) { self.plugin.header_filter(stream, slot) } else { Step::Continue }
    }

    fn body_filter(&self, stream: &mut Stream, slot: usize, chunk: &mut BodyChunk<'_>) {
        if self.runs(stream, slot) {
            self.plugin.body_filter(stream, slot, chunk);
        }
    }

    fn log(&self, stream: &mut Stream, slot: usize) {
        if self.runs(stream, slot) {
            self.plugin.log(stream, slot);
        }
    }
}
