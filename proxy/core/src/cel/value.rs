//! Values while an expression is evaluated. What a request has is borrowed from it.

use super::attributes::Attribute;
use super::fault::Fault;
use crate::headers::{HeaderName, Headers};
use crate::matcher::HeaderTarget;
use crate::message::{RequestHead, ResponseHead};
use crate::metadata::{self, Metadata};
use crate::stream::Stream;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

/// A value.
#[derive(Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Cow<'a, [u8]>),
    Bytes(Cow<'a, [u8]>),
    /// Nanoseconds.
    Duration(i128),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    List(List<'a>),
    Map(Map<'a>),
    /// The name of a type.
    Type(&'static str),
}

/// A list.
#[derive(Clone)]
pub(super) enum List<'a> {
    Values(Rc<[Value<'a>]>),
    Json(&'a [Json]),
}

/// A map, or a message that is read like one.
#[derive(Clone)]
pub(super) enum Map<'a> {
    Values(Rc<[(Value<'a>, Value<'a>)]>),
    Json(&'a serde_json::Map<String, Json>),
    /// `request` and its like.
    Attributes(&'static [Attribute], &'a Stream),
    RequestHeaders(&'a RequestHead),
    ResponseHeaders(&'a ResponseHead),
    Fields(&'a Headers),
    /// `metadata`: a message whose field `filter_metadata` has the namespaces.
    Metadata(&'a Stream),
    Namespaces(&'a Stream),
    Namespace(&'a Stream, Cow<'a, str>),
    /// The same of what is configured.
    Configured(&'a Metadata),
    ConfiguredNamespaces(&'a Metadata),
    FilterState(&'a Stream),
}

/// The result of evaluating.
pub(super) type Evaluated<'a> = Result<Value<'a>, Fault>;

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, [u8]>>) -> Value<'a> {
        Value::String(text.into())
    }

    /// Of a struct, whose numbers are all doubles.
    pub(super) fn of_json(json: &'a Json) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            Json::String(text) => Value::text(text.as_bytes()),
            Json::Array(values) => Value::List(List::Json(values)),
            Json::Object(map) => Value::Map(Map::Json(map)),
        }
    }

    /// The name of its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Type(_) => "type",
        }
    }

    /// Whether both are the same; values of different kinds are not, but numbers are compared as such.
    pub(super) fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::List(one), Value::List(other)) => {
                one.len() == other.len()
                    && (0..one.len()).all(|at| match (one.get(at), other.get(at)) {
                        (Some(one), Some(other)) => one.equals(&other),
                        _ => false,
                    })
            }
            (Value::Map(Map::Values(one)), Value::Map(other)) => {
                other.len() == Some(one.len())
                    && one.iter().all(|(key, value)| other.get(key).is_ok_and(|other| value.equals(&other)))
            }
            (Value::Map(Map::Json(one)), Value::Map(other)) => {
                other.len() == Some(one.len())
                    && one.iter().all(|(key, value)| {
                        let key = Value::text(key.as_bytes());
                        other.get(&key).is_ok_and(|other| Value::of_json(value).equals(&other))
                    })
            }
            (Value::Type(one), Value::Type(other)) => one == other,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Their order, if they have one.
    pub(super) fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Value::Bool(one), Value::Bool(other)) => one.cmp(other),
            (Value::String(one), Value::String(other)) | (Value::Bytes(one), Value::Bytes(other)) => {
                one.cmp(other)
            }
            (Value::Duration(one), Value::Duration(other))
            | (Value::Timestamp(one), Value::Timestamp(other)) => one.cmp(other),
            (Value::Double(one), other) => return compare_double(*one, other),
            (one, Value::Double(other)) => return compare_double(*other, one).map(Ordering::reverse),
            (one, other) => one.integer()?.cmp(&other.integer()?),
        })
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Value::Int(int) => Some(i128::from(*int)),
            Value::Uint(uint) => Some(i128::from(*uint)),
            _ => None,
        }
    }
}

fn compare_double(one: f64, other: &Value<'_>) -> Option<Ordering> {
    match other {
        Value::Double(other) => one.partial_cmp(other),
        other => {
            let other = other.integer()?;
            // Beyond 2^64 no integer is equal, and below 2^53 all are exact.
            if one.is_nan() {
                return None;
            }
            match (one.floor() as i128).cmp(&other) {
                Ordering::Equal if one.fract() != 0.0 => Some(Ordering::Greater),
                order => Some(order),
            }
        }
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            List::Values(values) => values.len(),
            List::Json(values) => values.len(),
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<Value<'a>> {
        match self {
            List::Values(values) => values.get(at).cloned(),
            List::Json(values) => values.get(at).map(Value::of_json),
        }
    }
}

impl<'a> Map<'a> {
    /// Its length, where that is known.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Map::Values(values) => Some(values.len()),
            Map::Json(map) => Some(map.len()),
            Map::RequestHeaders(head) => Some(head.headers.len() + 4),
            Map::ResponseHeaders(head) => Some(head.headers.len() + 1),
            Map::Fields(headers) => Some(headers.len()),
            _ => None,
        }
    }

    /// The value under a key.
    pub(super) fn get(&self, key: &Value<'_>) -> Evaluated<'a> {
        if let Map::Values(values) = self {
            let found = values.iter().find(|(own, _)| own.equals(key));
            return found.map(|(_, value)| value.clone()).ok_or(Fault::NoSuchKey);
        }
        let Value::String(name) = key else { return Err(Fault::NoSuchKey) };
        let name = std::str::from_utf8(name).map_err(|_| Fault::NoSuchKey)?;
        self.field(name)
    }

    /// The value under a name.
    pub(super) fn field(&self, name: &str) -> Evaluated<'a> {
        let found = match self {
            Map::Values(_) => return self.get(&Value::text(name.as_bytes())),
            Map::Json(map) => map.get(name).map(Value::of_json),
            Map::Attributes(attributes, stream) => {
                let attribute = attributes.iter().find(|attribute| attribute.name == name);
                attribute.and_then(|attribute| (attribute.read)(stream))
            }
            Map::RequestHeaders(head) => {
                joined(HeaderTarget::of_request(name).values(head).map(<[u8]>::to_vec).map(Cow::Owned))
            }
            Map::ResponseHeaders(head) => response_header(head, name),
            Map::Fields(headers) => HeaderName::new(name).ok().and_then(|name| field(headers, &name)),
            Map::Metadata(stream) => {
                (name == "filter_metadata").then_some(Value::Map(Map::Namespaces(stream)))
            }
            Map::Namespaces(stream) => {
                let known = stream.metadata.iter().find(|(namespace, _, _)| **namespace == *name);
                known.map(|(namespace, _, _)| {
                    Value::Map(Map::Namespace(stream, Cow::Borrowed(namespace.as_ref())))
                })
            }
            Map::Namespace(stream, of) => metadata::noted(&stream.metadata, of, name).map(Value::of_json),
            Map::Configured(metadata) => {
                (name == "filter_metadata").then_some(Value::Map(Map::ConfiguredNamespaces(metadata)))
            }
            Map::ConfiguredNamespaces(metadata) => metadata.get(name).map(Value::of_json),
            Map::FilterState(stream) => {
                stream.filter_object(name).map(|object| Value::Bytes(Cow::Borrowed(&object.value[..])))
            }
        };
        found.ok_or(Fault::NoSuchKey)
    }
}

fn response_header<'a>(head: &'a ResponseHead, name: &str) -> Option<Value<'a>> {
    match HeaderTarget::of_response(name) {
        HeaderTarget::Status => Some(Value::text(head.status.to_string().into_bytes())),
        HeaderTarget::Header(name) => field(&head.headers, &name),
        _ => None,
    }
}

/// A field whose name was not known before.
fn field(headers: &Headers, name: &HeaderName) -> Option<Value<'static>> {
    joined(headers.get_all(name).map(|value| Cow::Owned(value.to_vec())))
}

/// Several values of one field are one, as in Envoy.
pub(super) fn joined<'a>(mut values: impl Iterator<Item = Cow<'a, [u8]>>) -> Option<Value<'a>> {
    let mut all = values.next()?;
    for value in values {
        let all = all.to_mut();
        all.push(b',');
        all.extend_from_slice(&value);
    }
    Some(Value::String(all))
}
