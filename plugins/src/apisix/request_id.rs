//! APISIX's request-id: a name for each request, for the upstream, the client and the logs.

mod generate;

use crate::shared::header_names;
use generate::Algorithm;
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::Stream;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/request-id.json");
    ApisixFactory::new("request-id", 12015, schema, RequestId::build)
}

/// Letters of a name by `range_id` at most: APISIX knows no limit, and one request must not take all memory.
const MAX_LENGTH: usize = 4096;

#[derive(Deserialize)]
struct Config {
    header_name: String,
    include_in_response: bool,
    algorithm: String,
    range_id: RangeConfig,
}

#[derive(Deserialize)]
struct RangeConfig {
    length: usize,
    char_set: String,
}

struct RequestId {
    header: HeaderName,
    algorithm: Algorithm,
}

/// What the response says, whatever later plugins make of the request's header.
struct Id(Vec<u8>);

impl RequestId {
    fn build(config: Config, _: &BuildContext) -> Built {
        let RangeConfig { length, char_set } = config.range_id;
        if length > MAX_LENGTH {
            let reason = format!("is greater than {MAX_LENGTH}");
            return Err(ConfigError::field("range_id.length", reason));
        }
        let algorithm = match config.algorithm.as_str() {
            "nanoid" => Algorithm::Nanoid,
            "range_id" => Algorithm::Range { length, of: char_set.into_bytes().into() },
            "ksuid" => Algorithm::Ksuid,
            "uuidv7" => Algorithm::UuidV7,
            _ => Algorithm::Uuid,
        };
        let id = RequestId { header: header_names::one(&config.header_name, "header_name")?, algorithm };
        if !config.include_in_response {
            return Ok(Plugin::of(id).rewrite(RequestId::name).build());
        }
        let plugin =
            Plugin::of(id).rewrite(RequestId::name_to_be_told).header_filter(RequestId::header_filter);
        Ok(plugin.build())
    }

    /// Gives the request a name that has none.
    fn give(&self, stream: &mut Stream) -> Vec<u8> {
        if let Some(sent) = stream.request.headers.get(&self.header).filter(|id| !id.is_empty()) {
            return sent.to_vec();
        }
        let id = self.algorithm.make();
        stream.request.headers.set(&self.header, &id);
        id
    }

    fn name(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let id = self.give(stream);
        stream.set_var("apisix_request_id", id);
        Step::Continue
    }

    fn name_to_be_told(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let id = self.give(stream);
        stream.set_state(slot, Id(id.clone()));
        stream.set_var("apisix_request_id", id);
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(id) = stream.take_state::<Id>(slot) else { return Step::Continue };
        let headers = &mut stream.response.headers;
        if headers.get(&self.header).is_none_or(<[u8]>::is_empty) {
            headers.set(&self.header, &id.0);
        }
        Step::Continue
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{build, context, now, plugin, request_header, response_header, stream};
    use serde_json::json;

    /// The request's header, the variable, and the response's header.
    fn run(config: &serde_json::Value, name: &str, sent: &str, answered: &str) -> [String; 3] {
        let plugin = plugin("request-id", config);
        let mut s = stream("/", &[(name, sent)]);
        now(plugin.rewrite(&mut s));
        let request = request_header(&s, name).unwrap_or_default().to_owned();
        // What another plugin makes of it is the upstream's to see.
        s.request.headers.set(name, b"other");
        s.response.headers.push(name.as_bytes(), answered.as_bytes());
        now(plugin.header_filter(&mut s));
        let var = String::from_utf8(s.var("apisix_request_id").unwrap().to_vec()).unwrap();
        [request, var, response_header(&s, name).unwrap_or_default().to_owned()]
    }

    #[test]
    fn requests_without_a_name_get_one() {
        let [request, var, response] = run(&json!({}), "X-Request-Id", "", "");
        assert_eq!(request.len(), 36);
        assert_eq!((&request, &var), (&response, &response));
        let other = run(&json!({}), "X-Request-Id", "", "");
        assert_ne!(other[0], request);
    }

    #[test]
    fn names_that_are_there_stay() {
        let [request, var, response] = run(&json!({}), "X-Request-Id", "mine", "");
        assert_eq!([request, var, response], ["mine", "mine", "mine"]);
        assert_eq!(run(&json!({}), "X-Request-Id", "mine", "theirs")[2], "theirs");
    }

    #[test]
    fn the_header_is_configured_and_need_not_be_told() {
        let config = json!({"header_name": "X-Trace", "include_in_response": false});
        let [request, var, response] = run(&config, "X-Trace", "", "");
        assert_eq!((request.len(), &request, response.as_str()), (36, &var, ""));
        let refused = build("request-id", &json!({"header_name": "a b"}), &context()).err().unwrap();
        assert_eq!(refused, "header_name: 'a b' is not a header name");
    }

    #[test]
    fn algorithms_are_chosen_by_name() {
        for (name, length) in [("uuid", 36), ("uuidv7", 36), ("nanoid", 21), ("ksuid", 27), ("range_id", 16)]
        {
            let [id, ..] = run(&json!({ "algorithm": name }), "X-Request-Id", "", "");
            assert_eq!(id.len(), length, "{name}: {id}");
        }
        let config = json!({"algorithm": "range_id", "range_id": {"length": 40, "char_set": "abcdef"}});
        let [id, ..] = run(&config, "X-Request-Id", "", "");
        assert!(id.len() == 40 && id.bytes().all(|b| b"abcdef".contains(&b)), "{id}");
        // The first request with a name of that length ended the process.
        let endless = json!({"algorithm": "range_id", "range_id": {"length": 1_000_000_000_000_000_u64}});
        let refused = build("request-id", &endless, &context()).err().unwrap();
        assert_eq!(refused, "range_id.length: is greater than 4096");
    }
}
