//! APISIX's response-rewrite: status, headers and body of the response.

use crate::apisix::{self, Made};
use crate::shared::header_changes::{HeaderChanges, Side};
use crate::shared::pattern::{Pattern, Replacement};
use base64::Engine;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::expr::Expr;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BodyChunk, BuildContext, Phases, Plugin, PluginFactory, Step};
use sixfold_core::stream::Stream;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) fn factory() -> Arc<dyn PluginFactory> {
    apisix::apisix(
        "response-rewrite",
        899,
        include_str!("../../schemas/response-rewrite.json"),
        ResponseRewrite::make,
    )
}

#[derive(Deserialize)]
struct Config {
    status_code: Option<u16>,
    body: Option<String>,
    #[serde(default)]
    body_base64: bool,
    #[serde(default)]
    headers: Value,
    vars: Option<Value>,
    filters: Option<Vec<FilterConfig>>,
    #[serde(default = "default_size")]
    max_resp_body_size: usize,
}

#[derive(Deserialize)]
struct FilterConfig {
    regex: String,
    replace: String,
    #[serde(default)]
    scope: Scope,
    #[serde(default = "default_options")]
    options: String,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Scope {
    #[default]
    Once,
    Global,
}

fn default_size() -> usize {
    64 << 20
}

fn default_options() -> String {
    "jo".to_owned()
}

struct ResponseRewrite {
    /// Tells this plugin's state from that of another one of the kind.
    id: u64,
    status: Option<u16>,
    headers: HeaderChanges,
    when: Option<Expr>,
    body: Body,
    max_body: usize,
}

enum Body {
    Keep,
    Replace(Bytes),
    Filter(Vec<Filter>),
}

struct Filter {
    pattern: Pattern,
    with: Replacement,
    all: bool,
}

/// That the plugin with this id changes the body of the response.
struct Changes(u64);

static NEXT: AtomicU64 = AtomicU64::new(0);

impl ResponseRewrite {
    fn make(config: Config, _: &BuildContext) -> Made {
        let body = match (config.body, config.filters) {
            (Some(_), Some(_)) => return Err("body and filters can't be used together".to_owned()),
            (Some(text), None) if config.body_base64 => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
                Body::Replace(decoded.map_err(|_| "invalid base64 content".to_owned())?.into())
            }
            (None, _) if config.body_base64 => return Err("invalid base64 content".to_owned()),
            (Some(text), None) => Body::Replace(text.into()),
            (None, Some(filters)) => Body::Filter(filters.iter().map(Filter::new).collect::<Result<_, _>>()?),
            (None, None) => Body::Keep,
        };
        let when = config.vars.as_ref().map(Expr::new).transpose();
        Ok(Arc::new(ResponseRewrite {
            id: NEXT.fetch_add(1, Relaxed),
            status: config.status_code,
            headers: HeaderChanges::new(&config.headers)?,
            when: when.map_err(|e| format!("failed to validate the 'vars' expression: {e}"))?,
            body,
            max_body: config.max_resp_body_size,
        }))
    }

    fn changes_body(&self, stream: &Stream) -> bool {
        let mut states = stream.slots.iter().flatten();
        states.any(|s| s.downcast_ref::<Changes>().is_some_and(|c| c.0 == self.id))
    }

    /// Whether the body can be worked on: an encoded one can't be searched.
    fn reaches_body(&self, stream: &Stream) -> bool {
        match &self.body {
            Body::Keep => false,
            Body::Replace(_) => true,
            Body::Filter(_) => {
                let encoding = stream.response.headers.get(Known::CONTENT_ENCODING);
                encoding.is_none_or(|e| e.is_empty() || e.eq_ignore_ascii_case(b"identity"))
            }
        }
    }
}

impl Filter {
    fn new(config: &FilterConfig) -> Result<Filter, String> {
        let pattern = Pattern::new(&config.regex, &config.options)
            .map_err(|e| format!("regex \"{}\" validation failed: {e}", config.regex))?;
        Ok(Filter { pattern, with: Replacement::new(&config.replace), all: config.scope == Scope::Global })
    }
}

impl Plugin for ResponseRewrite {
    fn name(&self) -> &str {
        "response-rewrite"
    }

    fn phases(&self) -> Phases {
        match self.body {
            Body::Keep => Phases::HEADER_FILTER,
            _ => Phases::HEADER_FILTER | Phases::BODY_FILTER,
        }
    }

    fn buffers_response(&self, stream: &Stream) -> Option<usize> {
        (matches!(self.body, Body::Filter(_)) && self.changes_body(stream)).then_some(self.max_body)
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: usize) -> Step<'a> {
        // An expression that can't be evaluated does not hold.
        if !self.when.as_ref().is_none_or(|when| when.eval(stream).unwrap_or(false)) {
            return Step::Continue;
        }
        if let Some(status) = self.status {
            stream.response.status = status;
        }
        if self.reaches_body(stream) {
            for header in [Known::CONTENT_LENGTH, Known::CONTENT_ENCODING, Known::LAST_MODIFIED, Known::ETAG]
            {
                stream.response.headers.remove(header);
            }
            stream.set_state(slot, Changes(self.id));
        }
        self.headers.apply(stream, Side::Response, &[]);
        Step::Continue
    }

    fn body_filter(&self, stream: &mut Stream, _slot: usize, chunk: &mut BodyChunk<'_>) {
        if !self.changes_body(stream) {
            return;
        }
        match &self.body {
            Body::Keep => {}
            Body::Replace(body) if chunk.last => chunk.data = Cow::Owned(body.to_vec()),
            Body::Replace(_) => chunk.data = Cow::Borrowed(b""),
            Body::Filter(filters) => {
                for filter in filters {
                    match filter.pattern.replace(&chunk.data, &filter.with, filter.all) {
                        Ok(Some(new)) => chunk.data = Cow::Owned(new),
                        Ok(None) => {}
                        Err(error) => tracing::error!(error, "response-rewrite can't filter the body"),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{build, context, filter_body, now, plugin, response_header, stream};
    use serde_json::json;

    fn response(status: u16, headers: &[(&str, &str)]) -> Stream {
        let mut s = stream("/?a=1", &[]);
        s.response.status = status;
        for (name, value) in headers {
            s.response.headers.push(name.as_bytes(), value.as_bytes());
        }
        s
    }

    #[allow(clippy::needless_pass_by_value)]
    fn run(config: Value, s: &mut Stream, body: &[&str]) -> String {
        let plugin = plugin("response-rewrite", &config);
        now(plugin.header_filter(s, 0));
        filter_body(&*plugin, s, body)
    }

    #[test]
    fn status_headers_and_body_are_replaced() {
        let mut s = response(200, &[("content-length", "3"), ("etag", "x"), ("x-old", "1"), ("x-add", "0")]);
        let config = json!({
            "status_code": 418, "body": "new",
            "headers": {"add": ["X-Add: v$arg_a"], "set": {"x-set": "$status", "x-none": "$arg_none"}, "remove": ["x-old"]},
        });
        assert_eq!(run(config, &mut s, &["o", "ld"]), "new");
        assert_eq!((s.response.status, response_header(&s, "content-length")), (418, None));
        assert_eq!((response_header(&s, "etag"), response_header(&s, "x-old")), (None, None));
        let added: Vec<_> = s.response.headers.get_all("x-add").collect();
        assert_eq!(added, [b"0".as_slice(), b"v1"]);
        assert_eq!((response_header(&s, "x-set"), response_header(&s, "x-none")), (Some("418"), None));
    }

    #[test]
    fn headers_in_the_old_form_are_set_and_the_body_stays() {
        let mut s = response(200, &[("content-length", "3"), ("x-a", "1")]);
        assert_eq!(run(json!({"headers": {"x-a": "", "X-B": 5}}), &mut s, &["old"]), "old");
        assert_eq!(response_header(&s, "content-length"), Some("3"));
        assert_eq!((response_header(&s, "x-a"), response_header(&s, "x-b")), (None, Some("5")));
    }

    #[test]
    fn conditions_look_at_the_response() {
        let config = || json!({"vars": [["status", "==", 200]], "status_code": 202, "body": "x"});
        let mut s = response(200, &[]);
        assert_eq!((run(config(), &mut s, &["o", "ld"]), s.response.status), ("x".to_owned(), 202));
        let mut s = response(500, &[]);
        assert_eq!((run(config(), &mut s, &["o", "ld"]), s.response.status), ("old".to_owned(), 500));
    }

    #[test]
    fn filters_substitute_in_the_whole_body() {
        let filter =
            |scope: &str| json!({"filters": [{"regex": "(\\w)o", "replace": "$1_", "scope": scope}]});
        let mut s = response(200, &[("content-length", "7")]);
        let once = plugin("response-rewrite", &filter("once"));
        assert_eq!(once.buffers_response(&s), None);
        now(once.header_filter(&mut s, 0));
        assert_eq!(once.buffers_response(&s), Some(64 << 20));
        assert_eq!(filter_body(&*once, &mut s, &["foo boo"]), "f_o boo");
        assert_eq!(run(filter("global"), &mut response(200, &[]), &["foo bo"]), "f_o b_");
        let insensitive = json!({"filters": [{"regex": "HELLO", "replace": "bye", "options": "ijo"}]});
        assert_eq!(run(insensitive, &mut response(200, &[]), &["hello"]), "bye");
        // What is encoded stays, headers and all.
        let mut s = response(200, &[("content-encoding", "zstd"), ("content-length", "3")]);
        assert_eq!(run(filter("once"), &mut s, &["foo"]), "foo");
        assert_eq!(response_header(&s, "content-length"), Some("3"));
    }

    #[test]
    fn base64_bodies_are_decoded() {
        let config = json!({"body": "SGVsbG8=", "body_base64": true});
        assert_eq!(run(config, &mut response(200, &[]), &["x"]), "Hello");
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("response-rewrite", &config, &context()).err().unwrap();
        assert_eq!(error(json!({"body": "=", "body_base64": true})), "invalid base64 content");
        let bad = json!({"filters": [{"regex": "(", "replace": "x"}]});
        assert!(error(bad).starts_with("regex \"(\" validation failed: "));
        assert!(error(json!({"vars": [["status", "<>", 1]]})).contains("'vars' expression"));
        assert!(error(json!({"headers": {"add": ["novalue"]}})).contains("invalid header line"));
    }
}
