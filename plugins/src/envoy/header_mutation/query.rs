//! Changes of a query's parameters.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::stream::Stream;
use sixfold_xds_api::format;
use sixfold_xds_api::pb::envoy::config::core::v3::key_value_append::KeyValueAppendAction;
use sixfold_xds_api::pb::envoy::config::core::v3::{KeyValueAppend, KeyValueMutation, KeyValuePair};
use sixfold_xds_api::pb::google::protobuf::value::Kind;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{enum_value, not_empty, required};
use std::collections::BTreeMap;

/// One change.
pub(super) enum QueryChange {
    Remove(Box<[u8]>),
    Put { key: Box<[u8]>, encoded: Box<[u8]>, value: Format, action: KeyValueAppendAction },
}

/// What is encoded of a value: all but what is unreserved (RFC 3986, section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Parameters in the order of their decoded names, in which they are written again, each with its values as they are
/// encoded.
type Parameters = BTreeMap<Vec<u8>, Vec<Parameter>>;

struct Parameter {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl QueryChange {
    pub(super) fn new(value: &KeyValueMutation) -> Result<QueryChange, ConfigError> {
        let KeyValueMutation { append, remove } = value;
        let Some(append) = append else {
            return not_empty(remove, "remove").map(|key| QueryChange::Remove(key.as_bytes().into()));
        };
        QueryChange::put(append).in_key("append")
    }

    // The older form is refused by name.
    #[allow(deprecated)]
    fn put(append: &KeyValueAppend) -> Result<QueryChange, ConfigError> {
        let KeyValueAppend { record, entry, action } = append;
        refuse!(entry);
        let KeyValuePair { key, value } = required(record, "record")?;
        let Some(Kind::StringValue(text)) = value.as_ref().and_then(|value| value.kind.as_ref()) else {
            return Err(ConfigError::field("record.value", "must be a text"));
        };
        let key = not_empty(key, "record.key")?.as_bytes();
        Ok(QueryChange::Put {
            key: key.into(),
            encoded: encoded(key).into(),
            value: format::text(text).in_key("record.value")?,
            action: enum_value(*action, "action")?,
        })
    }

    fn apply(&self, parameters: &mut Parameters, stream: &Stream) {
        let (key, written, value, action) = match self {
            QueryChange::Remove(key) => {
                parameters.remove(&**key);
                return;
            }
            QueryChange::Put { key, encoded, value, action } => (key, encoded, value, *action),
        };
        let is_there = parameters.contains_key(&**key);
        let replaces = match action {
            KeyValueAppendAction::AppendIfExistsOrAdd => false,
            KeyValueAppendAction::AddIfAbsent if is_there => return,
            KeyValueAppendAction::OverwriteIfExists if !is_there => return,
            _ => true,
        };
        let mut text = Vec::new();
        value.write_header(stream, &mut text);
        let values = parameters.entry(key.to_vec()).or_default();
        if replaces {
            values.clear();
        }
        values.push(Parameter { key: written.to_vec(), value: encoded(&text) });
    }
}

/// Takes the query apart, changes it, and writes it anew. What stays is written as it was encoded, though Envoy writes it
/// decoded: a space in it would end the target of a request of HTTP/1.
pub(super) fn apply(changes: &[QueryChange], stream: &mut Stream) {
    if stream.request.target.is_empty() {
        return;
    }
    let mut parameters = Parameters::new();
    let query = stream.request.target.query().unwrap_or_default();
    let query = query.strip_suffix(b"&").unwrap_or(query);
    for pair in query.split(|b| *b == b'&').filter(|_| !query.is_empty()) {
        let (key, value) = match pair.iter().position(|b| *b == b'=') {
            Some(at) => (pair.get(..at).unwrap_or_default(), pair.get(at + 1..).unwrap_or_default()),
            None => (pair, &b""[..]),
        };
        let parameter = Parameter { key: key.to_vec(), value: value.to_vec() };
        parameters.entry(percent_decode(key).collect()).or_default().push(parameter);
    }
    changes.iter().for_each(|change| change.apply(&mut parameters, stream));
    let mut target = stream.request.target.path().to_vec();
    for (index, Parameter { key, value }) in parameters.values().flatten().enumerate() {
        target.push(if index == 0 { b'?' } else { b'&' });
        target.extend_from_slice(key);
        target.push(b'=');
        target.extend_from_slice(value);
    }
    stream.request.target.set(&target);
}

fn encoded(text: &[u8]) -> Vec<u8> {
    percent_encode(text, ENCODED).to_string().into_bytes()
}
