//! APISIX's response-rewrite: status, headers and body of the response.

use crate::shared::encoding::{Encoding, Undecoded};
use crate::shared::header_changes::{HeaderChanges, Side};
use crate::shared::pattern::{Pattern, Replacement};
use base64::Engine;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::budget::{Buffered, ByteBudget, Reservation};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::expr::Expr;
use sixfold_core::headers::Known;
use sixfold_core::offload::{self, Lane, SHORT};
use sixfold_core::plugin::{
    ApisixFactory, BodyPiece, BodyStep, BuildContext, Built, LocalReply, Plugin, Slot, Step,
};
use sixfold_core::regex::MatchTime;
use sixfold_core::stream::Stream;
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes of a body that are searched on the worker; a longer one is searched beside it.
const SEARCHED_AT_ONCE: usize = 4 << 10;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/response-rewrite.json");
    ApisixFactory::new("response-rewrite", 899, schema, ResponseRewrite::build)
}

#[derive(Deserialize)]
struct Config {
    status_code: Option<u16>,
    body: Option<String>,
    body_base64: bool,
    #[serde(default)]
    headers: Value,
    vars: Option<Value>,
    filters: Option<Vec<FilterConfig>>,
    max_resp_body_size: usize,
}

#[derive(Deserialize)]
struct FilterConfig {
    regex: String,
    replace: String,
    scope: Scope,
    options: String,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Scope {
    Once,
    Global,
}

struct ResponseRewrite {
    status: Option<u16>,
    headers: HeaderChanges,
    when: Option<Expr>,
    body: Body,
    max_body: usize,
}

enum Body {
    Keep,
    Replace(Bytes),
    Filter(Arc<[Filter]>),
}

struct Filter {
    pattern: Pattern,
    with: Replacement,
    all: bool,
}

/// That the body of the response is changed, and what undoes its encoding.
struct Changes {
    encoding: Option<Encoding>,
    /// What has come of a body that is filtered. What comes beyond its limit is left out.
    held: Buffered,
}

/// A body that is searched beside the worker, with its place among those that the process has in memory: that is taken for as long
/// as somebody has it, also where nobody waits for it any more.
struct Whole {
    body: Bytes,
    encoding: Option<Encoding>,
    _place: Reservation,
    budget: Arc<ByteBudget>,
}

/// Why a body was not filtered.
enum Unfiltered {
    Undecoded(Undecoded),
    OverBudget,
}

impl ResponseRewrite {
    fn build(config: Config, _: &BuildContext) -> Built {
        let base64 = || ConfigError::field("body", "invalid base64 content");
        let body = match (config.body, config.filters) {
            (Some(_), Some(_)) => {
                return Err(ConfigError::field("filters", "body and filters can't be used together"));
            }
            (Some(text), None) if config.body_base64 && !text.is_empty() => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
                Body::Replace(decoded.map_err(|_| base64())?.into())
            }
            (_, None) | (None, _) if config.body_base64 => return Err(base64()),
            (Some(text), None) => Body::Replace(text.into()),
            (None, Some(filters)) => {
                let filters =
                    filters.iter().enumerate().map(|(index, filter)| Filter::new(filter).in_index(index));
                Body::Filter(collect(filters).in_key("filters")?.into())
            }
            (None, None) => Body::Keep,
        };
        let when = config.vars.as_ref().map(Expr::new).transpose();
        let when = when.map_err(|e| {
            ConfigError::field("vars", format!("failed to validate the 'vars' expression: {e}"))
        })?;
        let rewrite = ResponseRewrite {
            status: config.status_code,
            headers: HeaderChanges::new(&config.headers).in_key("headers")?,
            when,
            body,
            max_body: config.max_resp_body_size,
        };
        let keeps_body = matches!(rewrite.body, Body::Keep);
        let plugin = Plugin::of(rewrite).header_filter(ResponseRewrite::header_filter);
        Ok(if keeps_body { plugin.build() } else { plugin.response_body(ResponseRewrite::body).build() })
    }

    /// How the body is changed; `None` where it stays: what has an encoding that nobody here knows can't be searched.
    fn changes(&self, stream: &Stream) -> Option<Changes> {
        let changes = |encoding| Changes { encoding, held: Buffered::new(stream.bodies()) };
        match &self.body {
            Body::Keep => None,
            Body::Replace(_) => Some(changes(None)),
            Body::Filter(_) => match stream.response.headers.get(Known::CONTENT_ENCODING) {
                None => Some(changes(None)),
                Some(plain) if plain.is_empty() || plain.eq_ignore_ascii_case(b"identity") => {
                    Some(changes(None))
                }
                Some(encoding) => Encoding::named(encoding).map(|known| changes(Some(known))),
            },
        }
    }
}

impl Filter {
    fn new(config: &FilterConfig) -> Result<Filter, ConfigError> {
        let pattern = Pattern::new(&config.regex, &config.options).map_err(|e| {
            ConfigError::field("regex", format!("regex \"{}\" validation failed: {e}", config.regex))
        })?;
        Ok(Filter { pattern, with: Replacement::new(&config.replace), all: config.scope == Scope::Global })
    }
}

impl ResponseRewrite {
    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        // An expression that can't be evaluated does not hold.
        if !self.when.as_ref().is_none_or(|when| when.eval(stream).unwrap_or(false)) {
            return Step::Continue;
        }
        if let Some(status) = self.status {
            stream.response.status = status;
        }
        if let Some(changes) = self.changes(stream) {
            for header in [Known::CONTENT_LENGTH, Known::CONTENT_ENCODING, Known::LAST_MODIFIED, Known::ETAG]
            {
                stream.response.headers.remove(header);
            }
            stream.set_state(slot, changes);
        }
        self.headers.apply(stream, Side::Response, &[]);
        Step::Continue
    }

    fn body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(Changes { encoding, held }) = stream.state::<Changes>(slot) else { return BodyStep::Pass };
        match &self.body {
            Body::Keep => BodyStep::Pass,
            Body::Replace(body) if piece.last => BodyStep::Replace(body.clone()),
            Body::Replace(_) => BodyStep::Replace(Bytes::new()),
            Body::Filter(filters) => {
                let room = self.max_body.saturating_sub(held.as_slice().len()).min(piece.data.len());
                if !held.push(piece.data.get(..room).unwrap_or_default()) {
                    return BodyStep::OverBudget;
                }
                if !piece.last {
                    return BodyStep::Replace(Bytes::new());
                }
                let (encoding, (body, place)) = (*encoding, held.take().finish());
                let at_once = body.len() <= SEARCHED_AT_ONCE && filters.iter().all(|f| f.pattern.is_linear());
                match encoding {
                    None if at_once => {
                        let filtered = filter(filters, &body, MatchTime::Worker).into_owned();
                        BodyStep::Replace(filtered.into())
                    }
                    _ => {
                        let budget = stream.bodies().clone();
                        let whole = Whole { body, encoding, _place: place, budget };
                        self.body_beside(filters.clone(), Arc::new(whole))
                    }
                }
            }
        }
    }

    fn body_beside(&self, filters: Arc<[Filter]>, whole: Arc<Whole>) -> BodyStep {
        let limit = self.max_body;
        BodyStep::Wait(Box::pin(async move {
            let lane = Lane::of(whole.body.len());
            let least = if lane == Lane::Short { limit.min(SHORT) } else { limit };
            let mut done = filter_beside(lane, &filters, &whole, least).await;
            // Few bytes may stand for many: what turns out to be long takes its turn among the long ones.
            if least < limit && matches!(done, Some(Err(Unfiltered::Undecoded(Undecoded::TooLong(_))))) {
                done = filter_beside(Lane::Long, &filters, &whole, limit).await;
            }
            match done {
                // From here on what has been made is accounted for where it goes on.
                Some(Ok((body, _place))) => BodyStep::Replace(body.into()),
                Some(Err(Unfiltered::Undecoded(error))) => refuse(&error.to_string()),
                Some(Err(Unfiltered::OverBudget)) => BodyStep::OverBudget,
                None => refuse("it could not be worked on"),
            }
        }))
    }
}

impl Whole {
    /// The body with all filters applied, and its place in memory.
    fn filtered(&self, filters: &[Filter], limit: usize) -> Result<(Vec<u8>, Reservation), Unfiltered> {
        let mut place = Reservation::empty(&self.budget);
        let decoded = match self.encoding {
            Some(encoding) => Some(encoding.decode(&self.body, limit).map_err(Unfiltered::Undecoded)?),
            None => None,
        };
        let held = decoded.as_ref().map_or(0, Vec::capacity);
        if !place.resize(held) {
            return Err(Unfiltered::OverBudget);
        }
        let made = match filter(filters, decoded.as_deref().unwrap_or(&self.body), MatchTime::Offloaded) {
            Cow::Owned(made) => Some(made),
            Cow::Borrowed(_) => None,
        };
        let body = match made {
            Some(made) if !place.resize(held + made.capacity()) => return Err(Unfiltered::OverBudget),
            Some(made) => made,
            None => decoded.unwrap_or_else(|| self.body.to_vec()),
        };
        // No more than it was.
        if !place.resize(body.capacity()) {
            return Err(Unfiltered::OverBudget);
        }
        Ok((body, place))
    }
}

async fn filter_beside(
    lane: Lane,
    filters: &Arc<[Filter]>,
    whole: &Arc<Whole>,
    limit: usize,
) -> Option<Result<(Vec<u8>, Reservation), Unfiltered>> {
    let (filters, whole) = (filters.clone(), whole.clone());
    offload::run(lane, move || whole.filtered(&filters, limit)).await
}

fn refuse(error: &str) -> BodyStep {
    tracing::error!(error, "response-rewrite can't filter the body");
    BodyStep::Respond(Box::new(LocalReply::new(500, "", "response_rewrite_failed")))
}

/// The body with all filters applied; one that fails changes nothing.
fn filter<'b>(filters: &[Filter], body: &'b [u8], time: MatchTime) -> Cow<'b, [u8]> {
    let mut body = Cow::Borrowed(body);
    for filter in filters {
        match filter.pattern.replace_within(&body, &filter.with, filter.all, time) {
            Ok(Some(new)) => body = Cow::Owned(new),
            Ok(None) => {}
            Err(error) => tracing::error!(error, "response-rewrite can't filter the body"),
        }
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::shared::encoding::tests::{brotli, gzip};
    use crate::testing::{build, context, now, plugin, response_header, stream};
    use serde_json::json;
    use sixfold_core::plugin::{BodyFilters, Direction, Filtered};

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
        now(plugin.header_filter(s));
        plugin.response_body(s, body)
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

    /// The response ended after so many bytes, or could not be written.
    #[test]
    fn the_length_of_the_body_is_its_own() {
        for headers in [
            json!({"Content-Length": "1"}),
            json!({"set": {"content-length": "1"}}),
            json!({"add": ["content-length: 1"]}),
        ] {
            let mut s = response(200, &[("content-length", "3")]);
            assert_eq!(run(json!({ "headers": headers }), &mut s, &["old"]), "old");
            assert_eq!(s.response.headers.get_all("content-length").collect::<Vec<_>>(), [b"3"]);
        }
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
        now(once.header_filter(&mut s));
        assert_eq!(once.response_body(&mut s, &["fo", "o b", "oo"]), "f_o boo");
        assert_eq!(run(filter("global"), &mut response(200, &[]), &["foo bo"]), "f_o b_");
        let insensitive = json!({"filters": [{"regex": "HELLO", "replace": "bye", "options": "ijo"}]});
        assert_eq!(run(insensitive, &mut response(200, &[]), &["hello"]), "bye");
        // What is encoded stays, headers and all.
        let mut s = response(200, &[("content-encoding", "zstd"), ("content-length", "3")]);
        assert_eq!(run(filter("once"), &mut s, &["foo"]), "foo");
        assert_eq!(response_header(&s, "content-length"), Some("3"));
    }

    #[allow(clippy::needless_pass_by_value)]
    async fn whole(config: Value, encoding: Option<&str>, body: &[u8]) -> (Filtered, Option<String>) {
        let plugin = plugin("response-rewrite", &config);
        let mut s = response(200, &encoding.map(|e| ("content-encoding", e)).into_iter().collect::<Vec<_>>());
        now(plugin.header_filter(&mut s));
        let mut filters = BodyFilters::new(Direction::Response);
        let mut filtered = filters.push(&plugin.chain, &mut s, body, true);
        if matches!(filtered, Filtered::Waiting) {
            filtered = std::future::poll_fn(|cx| filters.poll(&plugin.chain, &mut s, cx)).await;
        }
        (filtered, response_header(&s, "content-encoding").map(str::to_owned))
    }

    /// They passed unfiltered.
    #[tokio::test]
    async fn encoded_bodies_are_decoded_and_filtered() {
        let config = || json!({"filters": [{"regex": "o", "replace": "0", "scope": "global"}], "max_resp_body_size": 100});
        for (encoding, body) in [("gzip", gzip(b"foo")), ("br", brotli(b"foo"))] {
            let (filtered, left) = whole(config(), Some(encoding), &body).await;
            assert!(matches!(filtered, Filtered::Data(data) if data == "f00"), "{encoding}");
            assert_eq!(left, None);
        }
        for body in [gzip(&[b'o'; 101]), b"no gzip".to_vec()] {
            let (filtered, _) = whole(config(), Some("gzip"), &body).await;
            assert!(matches!(filtered, Filtered::Respond(reply) if reply.status == 500));
        }
    }

    /// A long body was searched on the worker, for a second at 60 MB.
    #[tokio::test]
    async fn long_bodies_are_searched_beside_the_worker() {
        let config = |regex: &str| json!({"filters": [{"regex": regex, "replace": "0"}]});
        let long = [b'o'; SEARCHED_AT_ONCE + 1];
        let plugin = plugin("response-rewrite", &config("o"));
        let mut s = response(200, &[]);
        now(plugin.header_filter(&mut s));
        let pushed = BodyFilters::new(Direction::Response).push(&plugin.chain, &mut s, &long, true);
        assert!(matches!(pushed, Filtered::Waiting), "{pushed:?}");
        for regex in ["o", "(?<!x)o"] {
            let (filtered, _) = whole(config(regex), None, &long).await;
            assert!(matches!(filtered, Filtered::Data(data) if data[..2] == *b"0o"), "{regex}");
        }
    }

    /// One thread searched all of them: a body of 60 MB held up everybody's.
    #[tokio::test]
    async fn a_long_body_holds_up_no_short_one() {
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let long = tokio::spawn(offload::run(Lane::Long, move || told.recv().is_ok()));
        let config = || json!({"filters": [{"regex": "o", "replace": "0"}], "max_resp_body_size": 64 << 20});
        let text = [b'o'; SEARCHED_AT_ONCE + 1];
        for (encoding, body) in [(None, text.to_vec()), (Some("gzip"), gzip(&text))] {
            let (filtered, _) = whole(config(), encoding, &body).await;
            assert!(matches!(filtered, Filtered::Data(data) if data[..2] == *b"0o"));
        }
        // What is long once it is decoded waits for the other.
        let bomb =
            tokio::spawn(async move { whole(config(), Some("gzip"), &gzip(&vec![b'o'; SHORT + 1])).await.0 });
        tokio::task::yield_now().await;
        assert!(!bomb.is_finished());
        go_on.send(()).unwrap();
        assert_eq!(long.await.unwrap(), Some(true));
        assert!(matches!(bomb.await.unwrap(), Filtered::Data(data) if data.len() == SHORT + 1));
    }

    /// They were held and decoded beside all bounds: 64 MiB each, with as much again for each step.
    #[tokio::test]
    async fn bodies_come_out_of_those_that_the_process_may_have() {
        let plugin = plugin("response-rewrite", &json!({"filters": [{"regex": "o", "replace": "0"}]}));
        let budget = Arc::new(ByteBudget::new(64 << 10));
        let begin = |encoding: Option<&str>| {
            let mut s =
                response(200, &encoding.map(|e| ("content-encoding", e)).into_iter().collect::<Vec<_>>());
            s.bodies = Some(budget.clone());
            now(plugin.header_filter(&mut s));
            (s, BodyFilters::new(Direction::Response))
        };
        let (mut first, mut filters) = begin(None);
        filters.push(&plugin.chain, &mut first, &[b'o'; 40 << 10], false);
        assert!(budget.used() >= 40 << 10);
        let (mut second, mut others) = begin(None);
        let refused = others.push(&plugin.chain, &mut second, &[b'o'; 40 << 10], false);
        assert!(matches!(refused, Filtered::OverBudget), "{refused:?}");
        drop((first, second));
        assert_eq!(budget.used(), 0);
        // Few bytes that stand for many.
        let (mut bomb, mut filters) = begin(Some("gzip"));
        filters.push(&plugin.chain, &mut bomb, &gzip(&[b'o'; 100 << 10]), true);
        let refused = std::future::poll_fn(|cx| filters.poll(&plugin.chain, &mut bomb, cx)).await;
        assert!(matches!(refused, Filtered::OverBudget), "{refused:?}");
    }

    #[test]
    fn a_body_that_is_too_long_to_be_filtered_is_cut() {
        let config = json!({"filters": [{"regex": "o", "replace": "0"}], "max_resp_body_size": 3});
        assert_eq!(run(config.clone(), &mut response(200, &[]), &["f", "oo"]), "f0o");
        assert_eq!(run(config, &mut response(200, &[]), &["f", "oo", "o"]), "f0o");
    }

    #[test]
    fn base64_bodies_are_decoded() {
        let config = json!({"body": "SGVsbG8=", "body_base64": true});
        assert_eq!(run(config, &mut response(200, &[]), &["x"]), "Hello");
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("response-rewrite", &config, &context()).err().unwrap();
        for body in [json!("="), json!(""), json!(null)] {
            let config = json!({"body": body, "body_base64": true});
            assert_eq!(error(config), "body: invalid base64 content");
        }
        assert!(error(json!({"headers": {"X-A": {}}})).contains("invalid type as header value"));
        let regex = error(json!({"filters": [{"regex": "a", "replace": ""}, {"regex": "(", "replace": ""}]}));
        assert!(regex.starts_with("filters[1].regex: regex \"(\" validation failed"), "{regex}");
        let bad = json!({"filters": [{"regex": "(", "replace": "x"}]});
        assert!(error(bad).starts_with("filters[0].regex: regex \"(\" validation failed: "));
        assert!(error(json!({"vars": [["status", "<>", 1]]})).contains("'vars' expression"));
        assert!(error(json!({"headers": {"add": ["novalue"]}})).contains("invalid header line"));
    }
}
