//! What all of APISIX's loggers have in common: which requests are logged, what an entry says of one, and the bodies that it
//! holds (apisix/utils/log-util.lua).
//!
//! An entry is written on the worker, straight into a buffer that its thread keeps, and handed to a sink that never waits. A
//! body that has to be decoded first is put in beside the worker.

mod bodies;
mod decoded;
mod entry;
mod format;
#[cfg(test)]
mod tests;

pub(crate) use format::{LoggerMetadata, MAX_PENDING};

use bodies::{BodyRule, Captured};
use decoded::Encoded;
use format::Formats;
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::export::Background;
use sixfold_core::expr::Expr;
use sixfold_core::plugin::{BodyPiece, BodyStep, BuildContext, Metadata, Plugin, PluginBuilder, Slot, Step};
use sixfold_core::stream::Stream;
use std::cell::RefCell;
use std::sync::Arc;

/// The fields of a logger's configuration that say what its entries are.
#[derive(Debug, Deserialize)]
pub(crate) struct EntryConfig {
    pub(crate) log_format: Option<Value>,
    pub(crate) log_format_extra: Option<Value>,
    pub(crate) include_req_body: bool,
    pub(crate) include_req_body_expr: Option<Value>,
    pub(crate) include_resp_body: bool,
    pub(crate) include_resp_body_expr: Option<Value>,
    pub(crate) max_req_body_bytes: usize,
    pub(crate) max_resp_body_bytes: usize,
    /// Of those loggers whose schema has it.
    #[serde(rename = "match")]
    pub(crate) matches: Option<Value>,
}

/// Where a logger's entries go.
pub(crate) trait EntrySink: Send + Sync + 'static {
    /// What an entry calls the route of a request that no route took; `None` leaves it out.
    const UNROUTED: Option<&'static str> = None;

    /// Looks at a request whose entry comes next.
    fn meet(&self, _: &Stream) {}

    /// Takes an entry, a JSON object. Never waits.
    fn take(&self, entry: &[u8], metadata: Option<&LoggerMetadata>);
}

/// A logger: what it says of requests, and where that goes.
pub(crate) struct Logger<S> {
    sink: Arc<S>,
    formats: Formats,
    /// An entry is made if one of these holds; `None` always.
    matches: Option<Box<[Option<Expr>]>>,
    request: BodyRule,
    response: BodyRule,
    metadata: Arc<Metadata>,
    background: Arc<dyn Background>,
}

thread_local! {
    /// The entry being made; kept so that one costs few allocations.
    static ENTRY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Longest entry buffer that a thread keeps.
const KEPT_ENTRY: usize = 64 << 10;

/// `match`: expressions of which one has to hold. One that lua-resty-expr can't read by itself never does.
fn matches(rules: &Value) -> Result<Box<[Option<Expr>]>, ConfigError> {
    Expr::new(rules).map_err(|error| {
        ConfigError::field("match", format!("failed to validate the 'match' expression: {error}"))
    })?;
    Ok(rules.as_array().into_iter().flatten().map(|rule| Expr::new(rule).ok()).collect())
}

impl<S: EntrySink> Logger<S> {
    /// The plugin `name` that logs to `sink`.
    ///
    /// # Errors
    /// Expressions that are none.
    pub(crate) fn plugin(
        name: &'static str,
        config: &EntryConfig,
        sink: Arc<S>,
        context: &BuildContext,
    ) -> Result<PluginBuilder<Logger<S>>, ConfigError> {
        let rule = |include, expr: &Option<Value>, field: &'static str, most| {
            BodyRule::new(include, expr.as_ref(), field, most)
        };
        let logger = Logger {
            sink,
            formats: Formats::new(config.log_format.as_ref(), config.log_format_extra.as_ref())?,
            matches: config.matches.as_ref().map(matches).transpose()?,
            request: rule(
                config.include_req_body,
                &config.include_req_body_expr,
                "include_req_body_expr",
                config.max_req_body_bytes,
            )?,
            response: rule(
                config.include_resp_body,
                &config.include_resp_body_expr,
                "include_resp_body_expr",
                config.max_resp_body_bytes,
            )?,
            metadata: context.metadata.of(name),
            background: context.background.clone(),
        };
        let has_response_body = config.include_resp_body;
        let reads_ahead = config.include_req_body;
        let mut plugin = Plugin::of(logger).request_body(Logger::request_body).log(Logger::log);
        if reads_ahead {
            plugin = plugin.access(Logger::access);
        }
        if has_response_body {
            plugin = plugin.response_body(Logger::response_body);
        }
        Ok(plugin)
    }

    fn metadata(&self) -> Option<Arc<LoggerMetadata>> {
        self.metadata.get()
    }

    /// Reads the request's body, so that it is there whatever becomes of the request. That of a call of gRPC may never end.
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if stream.request.is_grpc() || !self.request.wants(stream) {
            return Step::Continue;
        }
        bodies::read_ahead(stream, slot, self.request.most).unwrap_or(Step::Continue)
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        if bodies::decide(
            stream,
            slot,
            |captured| &mut captured.request,
            |stream| {
                let in_format = || self.formats.chosen(self.metadata().as_deref()).wants_request_body();
                self.request.wants(stream) || in_format()
            },
        ) {
            bodies::keep(stream, slot, |captured| &mut captured.request, piece, self.request.most);
        }
        BodyStep::Pass
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        if bodies::decide(
            stream,
            slot,
            |captured| &mut captured.response,
            |stream| self.response.wants(stream),
        ) {
            bodies::keep(stream, slot, |captured| &mut captured.response, piece, self.response.most);
        }
        BodyStep::Pass
    }

    fn log(&self, stream: &mut Stream, slot: Slot) {
        if let Some(matches) = &self.matches {
            let holds = |expr: &Option<Expr>| expr.as_ref().is_some_and(|e| e.eval(stream).unwrap_or(false));
            if !matches.iter().any(holds) {
                return;
            }
        }
        let captured = stream.take_state::<Captured>(slot).map(|captured| *captured).unwrap_or_default();
        let metadata = self.metadata();
        self.sink.meet(stream);
        ENTRY.with_borrow_mut(|out| {
            out.clear();
            let encoded = self.write(stream, captured, metadata.as_deref(), out);
            match encoded.map(|encoded| encoded.wait_in(out)) {
                None => self.sink.take(out, metadata.as_deref()),
                Some(Err(entry)) => self.sink.take(&entry, metadata.as_deref()),
                Some(Ok(waiting)) => {
                    let (sink, unfinished) = (self.sink.clone(), self.background.ending().hold());
                    self.background.spawn(Box::pin(async move {
                        let entry = waiting.decoded().await;
                        sink.take(&entry, metadata.as_deref());
                        drop(unfinished);
                    }));
                }
            }
            out.shrink_to(KEPT_ENTRY);
        });
    }

    /// Writes the entry. A body that is still to be decoded has a word in its place there.
    fn write(
        &self,
        stream: &mut Stream,
        captured: Captured,
        metadata: Option<&LoggerMetadata>,
        out: &mut Vec<u8>,
    ) -> Option<Encoded> {
        let chosen = self.formats.chosen(metadata);
        let request = captured.request.into_body().or_else(|| bodies::read_whole(stream, self.request.most));
        let (mut response, mut encoded) = (captured.response.into_body(), None);
        if let Some(body) = response.take() {
            (response, encoded) = match Encoded::of(stream, body) {
                Ok(found) => (Some(found.word().into()), Some(found)),
                Err(plain) => (Some(plain), None),
            };
        }
        if chosen.wants_request_body()
            && let Some(body) = request.as_ref().filter(|body| !body.is_empty())
        {
            stream.set_var("request_body", body.to_vec());
        }
        if chosen.wants_response_body()
            && let Some(body) = &response
        {
            stream.set_var("resp_body", body.to_vec());
        }
        match chosen.custom {
            Some(format) => entry::write_custom(stream, format, S::UNROUTED, out),
            None => {
                let shown = request.filter(|_| self.request.wants(stream));
                let bodies = entry::Bodies { request: shown.as_deref(), response: response.as_deref() };
                entry::write_default(stream, &bodies, chosen.extra, S::UNROUTED, out);
            }
        }
        encoded
    }
}

/// An expression of a logger's configuration.
fn expression(rule: &Value, field: &'static str) -> Result<Expr, ConfigError> {
    Expr::new(rule).map_err(|error| {
        ConfigError::new(format!("failed to validate the '{field}' expression: {error}")).in_key(field)
    })
}
