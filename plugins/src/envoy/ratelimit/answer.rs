//! What the service says.

use crate::envoy::mutations::Change;
use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::config::core::v3::HeaderValue;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::RateLimitResponse;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};

/// Whether a request is within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verdict {
    Ok,
    OverLimit,
    /// The service has not said it.
    #[default]
    Error,
}

/// An answer, or what stands for one.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// What is said of each descriptor.
    pub(super) statuses: Vec<DescriptorStatus>,
    /// Headers that the response gets.
    pub(super) response: Vec<Change>,
    /// Headers that the request gets.
    pub(super) request: Vec<Change>,
    pub(super) body: Bytes,
    pub(super) metadata: Map<String, Value>,
}

impl Answer {
    /// From a RateLimitResponse. Bytes that are none are an error; what is not beyond a limit is within it, as in Envoy.
    pub(super) fn of_message(message: &[u8]) -> Answer {
        let Ok(message) = RateLimitResponse::decode(message) else { return Answer::default() };
        let RateLimitResponse {
            overall_code,
            statuses,
            response_headers_to_add,
            request_headers_to_add,
            raw_body,
            dynamic_metadata,
            // Nobody here keeps what the service lends.
            quota: _,
        } = message;
        let verdict = match Code::try_from(overall_code) {
            Ok(Code::OverLimit) => Verdict::OverLimit,
            Ok(Code::Ok | Code::Unknown) | Err(_) => Verdict::Ok,
        };
        let metadata = match dynamic_metadata.map(struct_to_json) {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        Answer {
            verdict,
            statuses,
            response: additions(response_headers_to_add),
            request: additions(request_headers_to_add),
            body: raw_body.into(),
            metadata,
        }
    }
}

fn additions(values: Vec<HeaderValue>) -> Vec<Change> {
    let addition = |value: HeaderValue| {
        let HeaderValue { key, value, raw_value } = value;
        let value = if value.is_empty() { raw_value } else { value.into_bytes() };
        Change::add(&key, &value)
    };
    values.into_iter().map(addition).collect()
}
