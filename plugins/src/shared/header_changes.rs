//! Header changes with templates: `{add, set, remove}`, or the old form `{Name: value}`.

use crate::apisix::template;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::stream::Stream;

/// Changes of one message's headers, in the order add, set, remove.
#[derive(Debug, Default)]
pub(crate) struct HeaderChanges {
    add: Vec<(HeaderName, Vec<Format>)>,
    set: Vec<(HeaderName, Vec<Format>)>,
    remove: Vec<HeaderName>,
}

/// Which message is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The request to the upstream.
    Request,
    /// The response to the client.
    Response,
}

type Groups<'a> = &'a [Option<&'a [u8]>];

impl HeaderChanges {
    /// From the `headers` of a plugin.
    ///
    /// # Errors
    /// A name or value that no header may have.
    pub(crate) fn new(config: &Value) -> Result<HeaderChanges, ConfigError> {
        let Some(map) = config.as_object() else { return Ok(HeaderChanges::default()) };
        // One that has any of the three, and nothing else, is the new form.
        let is_new = !map.is_empty()
            && map.iter().all(|(key, value)| match key.as_str() {
                "add" | "set" => value.is_object() || value.is_array(),
                "remove" => value.is_array(),
                _ => false,
            });
        if !is_new {
            return Ok(HeaderChanges { set: pairs(config)?, ..HeaderChanges::default() });
        }
        let remove = map.get("remove").and_then(Value::as_array).into_iter().flatten();
        let remove = remove.filter_map(Value::as_str).map(name).enumerate();
        let remove = collect(remove.map(|(index, name)| name.in_index(index))).in_key("remove")?;
        let of = |key: &str| map.get(key).map_or(Ok(Vec::new()), pairs).in_key(key);
        Ok(HeaderChanges { add: of("add")?, set: of("set")?, remove })
    }

    /// Makes the changes; `$1` in a value is a group of `groups`. A response's body has the length that it has, whatever is
    /// wanted in its head.
    pub(crate) fn apply(&self, stream: &mut Stream, side: Side, groups: Groups<'_>) {
        let is_wanted = |(name, _): &&(HeaderName, _)| {
            side == Side::Request || name.known() != Some(Known::CONTENT_LENGTH)
        };
        for (name, values) in self.add.iter().filter(is_wanted) {
            // nginx has one place for it, and the gateway's own name in that.
            let replaces = side == Side::Response && name.known() == Some(Known::SERVER);
            for value in resolve(values, stream, groups) {
                match replaces {
                    true => headers(stream, side).set(name, &value),
                    false => headers(stream, side).append(name, &value),
                }
            }
        }
        for (name, values) in self.set.iter().filter(is_wanted) {
            let values = resolve(values, stream, groups);
            if side == Side::Request && name.as_str() == "host" {
                if let Some(host) = values.into_iter().next() {
                    stream.set_var("upstream_host", host);
                }
                continue;
            }
            let headers = headers(stream, side);
            headers.remove(name);
            for value in values {
                headers.append(name, &value);
            }
        }
        for name in &self.remove {
            headers(stream, side).remove(name);
        }
    }
}

fn headers(stream: &mut Stream, side: Side) -> &mut Headers {
    match side {
        Side::Request => &mut stream.request.headers,
        Side::Response => &mut stream.response.headers,
    }
}

/// The values that are not empty; bytes that no header may hold become spaces.
fn resolve(values: &[Format], stream: &Stream, groups: Groups<'_>) -> Vec<Vec<u8>> {
    let resolve = |format: &Format| {
        let mut out = Vec::new();
        format.resolve_captures(stream, groups, &mut out);
        for byte in out.iter_mut().filter(|b| matches!(b, b'\r' | b'\n' | 0)) {
            *byte = b' ';
        }
        out
    };
    values.iter().map(resolve).filter(|v| !v.is_empty()).collect()
}

/// `{Name: value}`, where a value is a text, a number or a list of them; or `["Name: value"]`.
fn pairs(config: &Value) -> Result<Vec<(HeaderName, Vec<Format>)>, ConfigError> {
    match config {
        Value::Object(map) => collect(
            map.iter().map(|(key, value)| name(key).and_then(|name| Ok((name, values(value)?))).in_key(key)),
        ),
        Value::Array(lines) => collect(lines.iter().enumerate().map(|(index, line)| {
            let line = line.as_str().unwrap_or_default();
            let (key, text) = line.split_once(':').unwrap_or((line, ""));
            match line.contains(':') {
                true => name(key.trim()).and_then(|name| Ok((name, values(&Value::from(text.trim()))?))),
                false => Err(ConfigError::new(format!("invalid header line '{line}'"))),
            }
            .in_index(index)
        })),
        _ => Ok(Vec::new()),
    }
}

fn name(text: &str) -> Result<HeaderName, ConfigError> {
    if text.is_empty() {
        return Err(ConfigError::new("invalid field length in header"));
    }
    HeaderName::as_spelled(text)
        .map_err(|_| ConfigError::new(format!("invalid field character in header '{text}'")))
}

fn values(value: &Value) -> Result<Vec<Format>, ConfigError> {
    let one = |value: &Value| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(ConfigError::new("invalid type as header value")),
        };
        if text.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return Err(ConfigError::new("invalid value character in header"));
        }
        template(&text)
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}
