//! APISIX's echo: text around the response's body, or in its place.

use crate::shared::header_names;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use sixfold_core::error::{ConfigError, collect};
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::plugin::{ApisixFactory, BodyPiece, BodyStep, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::Stream;

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("echo", 412, include_str!("../../schemas/echo.json"), Echo::build)
}

#[derive(Deserialize)]
struct Config {
    before_body: Option<String>,
    body: Option<String>,
    after_body: Option<String>,
    #[serde(default)]
    headers: Map<String, Value>,
}

struct Echo {
    headers: Vec<(HeaderName, Vec<u8>)>,
    body: Body,
}

enum Body {
    /// All of it.
    Replace(Bytes),
    Around {
        before: Bytes,
        after: Bytes,
    },
}

/// The body has begun.
struct Begun;

impl Echo {
    fn build(config: Config, _: &BuildContext) -> Built {
        let header = |(name, value): (&String, &Value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => {
                    let error = ConfigError::new("invalid type as header value");
                    return Err(error.in_key(name).in_key("headers"));
                }
            };
            if name.is_empty() {
                return Err(ConfigError::field("headers", "invalid field length in header"));
            }
            Ok((header_names::one(name, "headers")?, text.into_bytes()))
        };
        let headers = collect(config.headers.iter().map(header))?;
        let (before, after) = (config.before_body.unwrap_or_default(), config.after_body.unwrap_or_default());
        let body = match config.body {
            Some(body) => Body::Replace(format!("{before}{body}{after}").into()),
            None => Body::Around { before: before.into(), after: after.into() },
        };
        let echo = Echo { headers, body };
        Ok(Plugin::of(echo).header_filter(Echo::header_filter).response_body(Echo::body).build())
    }

    fn header_filter(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let headers = &mut stream.response.headers;
        for header in [Known::CONTENT_LENGTH, Known::CONTENT_ENCODING, Known::LAST_MODIFIED, Known::ETAG] {
            headers.remove(header);
        }
        for (name, value) in &self.headers {
            if value.is_empty() {
                headers.remove(name);
            } else {
                headers.set(name, value);
            }
        }
        Step::Continue
    }

    fn body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let begins = stream.state::<Begun>(slot).is_none();
        if begins {
            stream.set_state(slot, Begun);
        }
        match &self.body {
            Body::Replace(body) if begins => BodyStep::Replace(body.clone()),
            Body::Replace(_) => BodyStep::Replace(Bytes::new()),
            Body::Around { .. } if !begins && !piece.last => BodyStep::Pass,
            Body::Around { before, after } => {
                let before: &[u8] = if begins { before } else { b"" };
                let after: &[u8] = if piece.last { after } else { b"" };
                BodyStep::Replace([before, piece.data, after].concat().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{build, context, now, plugin, response_header, stream};
    use serde_json::{Value, json};
    use sixfold_core::stream::Stream;

    #[allow(clippy::needless_pass_by_value)]
    fn run(config: Value, pieces: &[&str]) -> (String, Stream) {
        let plugin = plugin("echo", &config);
        let mut s = stream("/", &[]);
        for (name, value) in [("content-length", "3"), ("etag", "e"), ("last-modified", "l"), ("x-old", "1")]
        {
            s.response.headers.push(name.as_bytes(), value.as_bytes());
        }
        now(plugin.header_filter(&mut s));
        (plugin.response_body(&mut s, pieces), s)
    }

    #[test]
    fn text_stands_around_the_body() {
        let config = |key: &str| json!({ key: "!" });
        assert_eq!(run(config("before_body"), &["a", "b"]).0, "!ab");
        assert_eq!(run(config("after_body"), &["a", "b"]).0, "ab!");
        assert_eq!(run(config("body"), &["a", "b"]).0, "!");
        let all = json!({"before_body": "(", "body": "x", "after_body": ")"});
        assert_eq!([run(all.clone(), &["a", "b"]).0, run(all, &[]).0], ["(x)", "(x)"]);
        assert_eq!(run(json!({"before_body": "(", "after_body": ")"}), &[]).0, "()");
    }

    #[test]
    fn headers_are_set() {
        let (_, s) = run(json!({"body": "b", "headers": {"Location": "/to", "X-N": 7, "x-old": ""}}), &[]);
        let names = ["location", "x-n", "x-old", "content-length", "etag", "last-modified"];
        let values = names.map(|name| response_header(&s, name));
        assert_eq!(values, [Some("/to"), Some("7"), None, None, None, None]);
    }

    #[test]
    fn bad_headers_are_refused() {
        let error = |headers: Value| {
            build("echo", &json!({"body": "b", "headers": headers}), &context()).err().unwrap()
        };
        assert!(error(json!({"a": true})).contains("invalid type as header value"));
        assert!(error(json!({"": "a"})).contains("invalid field length in header"));
        assert!(error(json!({"a b": "a"})).contains("'a b' is not a header name"));
    }
}
