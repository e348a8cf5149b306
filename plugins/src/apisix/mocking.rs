//! APISIX's mocking: an answer made up by the gateway.

mod generate;

use crate::apisix;
use crate::shared::header_names;
use crate::shared::uri::escape_line_ends;
use generate::Sample;
use serde::Deserialize;
use serde_json::{Map, Value};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::time::Duration;

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("mocking", 10_900, include_str!("../../schemas/mocking.json"), Mocking::build)
}

/// What `x-mock-by` says: the release of APISIX whose behaviour this is.
const MOCK_BY: &[u8] = b"APISIX/3.18.0";

#[derive(Deserialize)]
struct Config {
    delay: u64,
    response_status: u16,
    content_type: String,
    response_example: Option<String>,
    response_schema: Option<Value>,
    with_mock_header: bool,
    response_headers: Option<Map<String, Value>>,
}

struct Mocking {
    delay: Duration,
    status: u16,
    content_type: String,
    body: Body,
    mock_header: bool,
    headers: Vec<(HeaderName, Format)>,
}

enum Body {
    Example(Format),
    Json(Sample),
    Xml(Sample),
    Plain(Sample),
}

impl Mocking {
    fn build(config: Config, _: &BuildContext) -> Built {
        let kind = config.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_xml = matches!(kind.as_str(), "application/xml" | "text/xml");
        if !is_xml && !matches!(kind.as_str(), "application/json" | "text/plain" | "text/html") {
            return Err(ConfigError::field("content_type", "unsupported content type!"));
        }
        let body = match (&config.response_example, &config.response_schema) {
            (Some(example), _) => Body::Example(apisix::template(example).in_key("response_example")?),
            (None, Some(schema)) => {
                let sample = Sample::new(schema)?;
                match kind.as_str() {
                    "application/json" => Body::Json(sample),
                    _ if is_xml => Body::Xml(sample),
                    _ => Body::Plain(sample),
                }
            }
            (None, None) => return Err(ConfigError::new("response_example or response_schema is required")),
        };
        let headers = config.response_headers.iter().flatten().map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let value = apisix::template(&text).in_key(name).in_key("response_headers")?;
            Ok((header_names::one(name, "response_headers")?, value))
        });
        let mocking = Mocking {
            delay: Duration::from_secs(config.delay),
            status: config.response_status,
            content_type: config.content_type,
            body,
            mock_header: config.with_mock_header,
            headers: headers.collect::<Result<_, ConfigError>>()?,
        };
        Ok(Plugin::of(mocking).access(Mocking::access).build())
    }

    fn reply(&self, stream: &Stream) -> LocalReply {
        let body = match &self.body {
            Body::Example(format) => apisix::value(format, stream),
            Body::Json(sample) | Body::Plain(sample) => sample.draw().to_string().into_bytes(),
            Body::Xml(sample) => generate::xml(&sample.draw()).into_bytes(),
        };
        let mut reply = LocalReply::new(self.status, body, "");
        reply.headers.set(Known::CONTENT_TYPE, self.content_type.as_bytes());
        if self.mock_header {
            reply.headers.set("x-mock-by", MOCK_BY);
        }
        for (name, value) in &self.headers {
            reply.headers.append(name, &escape_line_ends(apisix::value(value, stream)));
        }
        reply
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        if self.delay.is_zero() {
            return Step::Respond(self.reply(stream));
        }
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            Step::Respond(self.reply(stream))
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{build, context, finish, now, plugin, stream};
    use serde_json::json;

    fn answer(config: &Value) -> LocalReply {
        now(plugin("mocking", config).access(&mut stream("/?name=jo", &[]))).unwrap()
    }

    #[test]
    fn examples_are_templates() {
        let config = json!({
            "response_example": "{\"hi\":\"$arg_name\"}", "response_status": 201,
            "response_headers": {"X-A": "b", "x-n": 1, "x-name": "is $arg_name"},
        });
        let reply = answer(&config);
        assert_eq!((reply.status, &reply.body[..]), (201, &b"{\"hi\":\"jo\"}"[..]));
        let get = |name: &str| reply.headers.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
        assert_eq!(get("content-type").unwrap(), "application/json;charset=utf8");
        assert!(get("x-mock-by").unwrap().starts_with("APISIX/"));
        assert_eq!((get("x-a").unwrap(), get("x-n").unwrap()), ("b".to_owned(), "1".to_owned()));
        assert_eq!(get("x-name").unwrap(), "is jo");
        let plain = json!({"response_example": "x", "content_type": "text/plain", "with_mock_header": false});
        let reply = answer(&plain);
        assert_eq!((reply.headers.len(), reply.headers.get("x-mock-by")), (1, None));
    }

    #[test]
    fn schemas_give_values_of_their_shape() {
        let schema = json!({"properties": {
            "s": {"type": "string"}, "n": {"type": "number"}, "i": {"type": "integer"}, "b": {"type": "boolean"},
            "e": {"type": "string", "example": "fix"}, "l": {"type": "array", "items": {"type": "integer"}},
            "o": {"type": "object", "properties": {"x": {"type": "integer", "example": 5}}},
        }});
        for _ in 0..50 {
            let body: Value =
                serde_json::from_slice(&answer(&json!({"response_schema": schema})).body).unwrap();
            assert!((1..=10).contains(&body["s"].as_str().unwrap().len()));
            assert!((1..=10_000).contains(&body["i"].as_u64().unwrap()));
            assert!((0.0..10_000.0).contains(&body["n"].as_f64().unwrap()) && body["b"].is_boolean());
            assert!((1..=3).contains(&body["l"].as_array().unwrap().len()));
            assert_eq!((&body["e"], &body["o"]), (&json!("fix"), &json!({"x": 5})));
        }
        let xml = json!({
            "content_type": "text/xml",
            "response_schema": {"properties": {"a": {"type": "string", "example": "<&"}, "l": {"type": "array", "example": [1, 2]}}},
        });
        assert_eq!(answer(&xml).body, "<data><a>&lt;&amp;</a><l>1</l><l>2</l></data>");
    }

    /// Each list drew up to three of what is in it, and each of these as many: 30 within each other were a billion values.
    #[test]
    fn lists_within_lists_stay_small() {
        let nested = |item: Value| (0..30).fold(item, |items, _| json!({"type": "array", "items": items}));
        let long = "x".repeat(10_000);
        for (item, most) in [(json!({"type": "integer"}), 200_000), (json!({"example": long}), 500_000)] {
            let body = answer(&json!({"response_schema": nested(item)})).body;
            assert!(body.len() < most, "{}", body.len());
            assert!(serde_json::from_slice::<Value>(&body).unwrap().is_array());
        }
        // What is not in a list is there all the same.
        let mut fields =
            json!({"l": nested(json!({"type": "integer"})), "z": {"type": "string", "example": "end"}});
        fields["m"] = fields["l"].clone();
        let body = answer(&json!({"response_schema": {"properties": fields}})).body;
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["z"], "end");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_can_be_delayed() {
        let plugin = plugin("mocking", &json!({"response_example": "x", "delay": 3}));
        let start = tokio::time::Instant::now();
        assert!(finish(plugin.access(&mut stream("/", &[]))).await.is_some());
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("mocking", &config, &context()).err().unwrap();
        let bad = json!({"response_example": "x", "content_type": "image/png"});
        assert_eq!(error(bad), "content_type: unsupported content type!");
        assert!(error(json!({})).contains("is required"));
        assert!(error(json!({"response_schema": {"type": "blob"}})).contains("blob"));
    }
}
