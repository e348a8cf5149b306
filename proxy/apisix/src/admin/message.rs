//! Requests and answers.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::config::ApiVersion;
use crate::store::StoreError;

/// The longest body, in bytes.
pub const MAX_BODY: usize = 1_572_864;

/// Seconds that a value is kept at least, and the longest lease that etcd gives.
const SHORTEST_TTL: f64 = 1.0;
const LONGEST_TTL: f64 = 9e9;

/// A request.
#[derive(Debug, Clone)]
pub struct AdminRequest {
    /// Method.
    pub method: Method,
    /// Path as it was sent, without the query.
    pub path: String,
    /// Parameters in order, decoded.
    pub parameters: Vec<(String, String)>,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, or the size of one that is longer than allowed.
    pub body: Result<Bytes, u64>,
    /// The client's address.
    pub peer: IpAddr,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct AdminReply {
    /// Status code.
    pub status: StatusCode,
    /// `content-type`
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl AdminRequest {
    /// The first value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The path with its escapes resolved.
    pub(crate) fn decoded_path(&self) -> String {
        percent_encoding::percent_decode_str(&self.path).decode_utf8_lossy().into_owned()
    }

    /// The body as it was sent; `None` for an empty one.
    pub(super) fn bytes(&self, limit: usize) -> Result<Option<&Bytes>, AdminReply> {
        let too_long = |size: u64| {
            let reason = format!(
                "invalid request body: request size {size} is greater than the maximum size {limit} allowed"
            );
            AdminReply::error(StatusCode::BAD_REQUEST, reason)
        };
        match &self.body {
            Err(size) => Err(too_long(*size)),
            Ok(body) if body.len() > limit => Err(too_long(body.len() as u64)),
            Ok(body) => Ok(Some(body).filter(|body| !body.is_empty())),
        }
    }

    /// The body as JSON; `None` for an empty one.
    pub(super) fn json(&self) -> Result<Option<Value>, AdminReply> {
        let Some(body) = self.bytes(MAX_BODY)? else { return Ok(None) };
        read_json(body).map(Some).map_err(|error| {
            let body = json!({
                "error_msg": format!("invalid request body: {error}"),
                "req_body": String::from_utf8_lossy(body),
            });
            AdminReply::json(StatusCode::BAD_REQUEST, &body)
        })
    }

    /// How long a value is to be kept (`ttl`, seconds).
    pub(super) fn ttl(&self) -> Result<Option<Duration>, AdminReply> {
        let ttl = self.parameter("ttl").map(lifetime).transpose();
        ttl.map_err(|reason| AdminReply::bad(format!("invalid argument ttl: {reason}")))
    }
}

/// How long a value is kept that is to be kept for so many seconds. What would be over already is over soon, as with a lease
/// of etcd.
fn lifetime(seconds: &str) -> Result<Duration, &'static str> {
    match seconds.trim().parse::<f64>() {
        Ok(seconds) if seconds > LONGEST_TTL => Err("too large lease TTL"),
        Ok(seconds) if !seconds.is_nan() => Ok(Duration::from_secs_f64(seconds.max(SHORTEST_TTL))),
        _ => Err("should be a number"),
    }
}

/// JSON as APISIX's reader (lua-cjson) takes it: control characters may stand in strings as they are.
pub(super) fn read_json(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| {
        let escaped = escape_controls(text).ok_or(error)?;
        serde_json::from_slice(&escaped)
    })
}

/// The same with control characters in strings escaped; `None` if there are none.
fn escape_controls(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut in_string, mut escaped) = (Vec::with_capacity(text.len() + 64), false, false);
    let mut found = false;
    for byte in text {
        match byte {
            0..0x20 if in_string => {
                found = true;
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                escaped = false;
                continue;
            }
            b'"' if !escaped => in_string = !in_string,
            _ => {}
        }
        escaped = in_string && *byte == b'\\' && !escaped;
        out.push(*byte);
    }
    found.then_some(out)
}

impl AdminReply {
    /// With a text.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> AdminReply {
        AdminReply { status, content_type: "application/json", body: body.into(), headers: Vec::new() }
    }

    pub(crate) fn empty(status: StatusCode) -> AdminReply {
        AdminReply::text(status, "")
    }

    /// With JSON and the end of its line, as APISIX writes it.
    pub(crate) fn json(status: StatusCode, body: &Value) -> AdminReply {
        AdminReply::text(status, format!("{body}\n"))
    }

    /// `{"error_msg": REASON}`
    pub(crate) fn error(status: StatusCode, reason: impl Into<String>) -> AdminReply {
        AdminReply::json(status, &json!({"error_msg": reason.into()}))
    }

    /// What is wrong with a request.
    pub(super) fn bad(reason: impl Into<String>) -> AdminReply {
        AdminReply::error(StatusCode::BAD_REQUEST, reason)
    }

    pub(super) fn no_key() -> AdminReply {
        AdminReply::json(StatusCode::NOT_FOUND, &json!({"message": "Key not found"}))
    }

    pub(super) fn unauthorized(reason: &str) -> AdminReply {
        let body = json!({"error_msg": "failed to check token", "description": reason});
        AdminReply::json(StatusCode::UNAUTHORIZED, &body)
    }

    pub(super) fn options() -> AdminReply {
        let mut reply = AdminReply { content_type: "text/plain", ..AdminReply::empty(StatusCode::OK) };
        let methods = HeaderValue::from_static("POST, GET, PUT, OPTIONS, DELETE, PATCH");
        reply.headers.push((header::ACCESS_CONTROL_ALLOW_METHODS, methods));
        reply.headers.push((header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*")));
        reply
    }

    /// nginx's page for a status.
    pub(crate) fn page(status: StatusCode) -> AdminReply {
        let title = format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
        let body = format!(
            "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
             <hr><center>openresty</center>\r\n</body>\r\n</html>\r\n"
        );
        AdminReply { content_type: "text/html", ..AdminReply::text(status, body) }
    }

    /// With the body in the form of a version, and with the name of the API's in a header. `done` is what was done, as
    /// etcd's own API of long ago called it, and below which key.
    pub(super) fn versioned(mut self, form: ApiVersion, api: ApiVersion, done: (&str, &str)) -> AdminReply {
        if form == ApiVersion::V2
            && self.status.is_success()
            && let Ok(Value::Object(body)) = serde_json::from_slice(&self.body)
        {
            self.body = format!("{}\n", second(body, done)).into();
        }
        let name = if api == ApiVersion::V2 { "v2" } else { "v3" };
        self.headers.push((HeaderName::from_static("x-api-version"), HeaderValue::from_static(name)));
        self
    }
}

/// The body of the second version: what was done, and with what node.
fn second(mut body: Map<String, Value>, (action, key): (&str, &str)) -> Value {
    if let Some(nodes) = body.shift_remove("list") {
        let count = body.shift_remove("total");
        return json!({"action": action, "count": count, "node": {"key": key, "dir": true, "nodes": nodes}});
    }
    match body.shift_remove("deleted") {
        Some(deleted) => json!({"action": action, "deleted": deleted, "key": body.get("key"), "node": {}}),
        None => json!({"action": action, "node": body}),
    }
}

impl From<StoreError> for AdminReply {
    fn from(error: StoreError) -> AdminReply {
        AdminReply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// None and less than none kept a resource for good.
    #[test]
    fn what_is_over_already_is_kept_for_the_shortest_time() {
        for (ttl, seconds) in [("0", 1.0), ("-5", 1.0), ("-inf", 1.0), (" 2.5", 2.5), ("9e9", 9e9)] {
            assert_eq!(lifetime(ttl), Ok(Duration::from_secs_f64(seconds)), "{ttl}");
        }
    }

    #[test]
    fn control_characters_in_strings_are_taken() {
        let read = |text: &str| read_json(text.as_bytes());
        assert_eq!(read("{\"a\":\"x\ny\t\"}").unwrap(), json!({"a": "x\ny\t"}));
        assert_eq!(read("{\n\"a\":\"q\\\"\n\\\\\"}").unwrap(), json!({"a": "q\"\n\\"}));
        assert!(read("{\"a\":\u{1}1}").is_err());
        assert!(read("{\"a\":\"\n}").is_err());
    }
}
