//! Tags that the configuration gives spans and logs beside the usual ones (type/tracing/v3/custom_tag.proto).

use crate::format::Format;
use crate::headers::HeaderName;
use crate::metadata::{Metadata, below, noted};
use crate::stream::Stream;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// A tag and where its value comes from.
#[derive(Debug)]
pub struct CustomTag {
    /// Its name.
    pub name: Arc<str>,
    /// Where its value comes from.
    pub source: TagSource,
}

/// Where the value of a tag comes from.
#[derive(Debug)]
pub enum TagSource {
    /// It was known when the configuration was: a literal, or a variable of the environment.
    Text(Arc<str>),
    /// A request header, else a default.
    Header(HeaderName, Arc<str>),
    /// A value of metadata, else a default.
    Metadata {
        /// Whose.
        of: TagMetadata,
        /// The namespace.
        namespace: Box<str>,
        /// Keys from there on.
        path: Box<[Box<str>]>,
        /// The default.
        default: Arc<str>,
    },
    /// A format.
    Format(Format),
}

/// Whose metadata are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagMetadata {
    /// Those of the request: its dynamic metadata.
    Request,
    /// Those of its route.
    Route,
    /// Those of its cluster.
    Cluster,
    /// Those of its endpoint.
    Host,
}

impl CustomTag {
    /// The value for this request; `None` leaves the tag out.
    pub fn value<'s>(&'s self, stream: &'s Stream) -> Option<Cow<'s, str>> {
        let text = match &self.source {
            TagSource::Text(text) => Cow::Borrowed(&**text),
            TagSource::Header(name, default) => match stream.request.headers.get(name) {
                Some(value) => String::from_utf8_lossy(value),
                None => Cow::Borrowed(&**default),
            },
            TagSource::Metadata { of, namespace, path, default } => {
                of_metadata(stream, *of, namespace, path).unwrap_or(Cow::Borrowed(default))
            }
            TagSource::Format(format) => {
                let mut text = Vec::new();
                format.write_value(stream, &mut text);
                Cow::Owned(String::from_utf8_lossy(&text).into_owned())
            }
        };
        (!text.is_empty()).then_some(text)
    }
}

fn of_metadata<'s>(
    stream: &'s Stream,
    of: TagMetadata,
    namespace: &str,
    path: &[Box<str>],
) -> Option<Cow<'s, str>> {
    let configured: Option<&Metadata> = match of {
        TagMetadata::Request => {
            let (first, rest) = path.split_first()?;
            return text(below(noted(&stream.metadata, namespace, first)?, rest)?);
        }
        TagMetadata::Route => stream.route.as_ref().map(|route| &route.metadata),
        TagMetadata::Cluster => stream.upstream.cluster.as_ref().map(|cluster| &cluster.config.metadata),
        TagMetadata::Host => stream.upstream.member.as_ref().map(|member| &member.metadata),
    };
    text(below(configured?.get(namespace)?, path)?)
}

/// Texts as they are, all else as JSON; null is nothing.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => match number.as_f64().filter(|number| number.fract() == 0.0) {
            Some(whole) if whole.abs() < 1e15 => Some(Cow::Owned((whole as i64).to_string())),
            _ => Some(Cow::Owned(number.to_string())),
        },
        other => Some(Cow::Owned(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn values_come_from_requests_or_are_defaults() {
        let mut stream = crate::stream::fixture::stream("/", &[("x-user", "bob")]);
        stream.metadata.push(("ns".into(), "a".into(), json!({"b": 3, "c": "t", "d": true})));
        let value = |source| {
            let tag = CustomTag { name: "t".into(), source };
            tag.value(&stream).map(Cow::into_owned)
        };
        let header = |name: &str, default: &str| {
            value(TagSource::Header(HeaderName::new(name).unwrap(), default.into()))
        };
        assert_eq!(header("x-user", "none").as_deref(), Some("bob"));
        assert_eq!((header("x-other", "none").as_deref(), header("x-other", "")), (Some("none"), None));
        let metadata = |key: &str| {
            let (path, default) = (["a".into(), key.into()].into(), "d".into());
            value(TagSource::Metadata { of: TagMetadata::Request, namespace: "ns".into(), path, default })
        };
        let found = ["b", "c", "d", "x"].map(|key| metadata(key).unwrap());
        assert_eq!(found, ["3", "t", "true", "d"]);
        let format = Format::envoy("%REQ(:METHOD)%").unwrap();
        assert_eq!(value(TagSource::Format(format)).as_deref(), Some("GET"));
    }
}
