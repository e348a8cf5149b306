//! JSON documents whose strings are formats.

use super::escape::{json as escape, json_clean};
use super::{Escape, Part, Style, Variable, Written, envoy, template};
use crate::stream::Stream;
use serde_json::Value;

/// Whose strings a JSON format holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// Envoy's operators: a missing value is `null`.
    #[default]
    Envoy,
    /// APISIX's `log_format`: a string that begins with `$` is a variable, and its key is left out when it has
    /// no value.
    Apisix,
}

/// How a JSON document is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonOptions {
    /// Whose strings it holds.
    pub dialect: Dialect,
    /// `omit_empty_values`: keys without a value are left out, and objects that have none left.
    pub omit_empty: bool,
}

/// One value of the document.
#[derive(Debug)]
pub(super) enum Node {
    /// JSON as it is written.
    Fixed(Box<[u8]>),
    /// One operator or variable, which keeps its type.
    Value(Box<Part>),
    /// A string of several parts.
    Text(Box<[Part]>, bool),
    /// Members with their keys written out, `"key":`.
    Object(Box<[(Box<[u8]>, Node)]>, bool),
    /// Items.
    Array(Box<[Node]>, bool),
}

/// Compiles a document.
pub(super) fn compile(value: &Value, options: JsonOptions) -> Result<Node, String> {
    let omit = options.omit_empty || options.dialect == Dialect::Apisix;
    Ok(match value {
        Value::Object(map) => {
            let mut members = Vec::with_capacity(map.len());
            for (key, value) in map {
                let node = compile(value, options).map_err(|e| format!("{key}: {e}"))?;
                members.push((key, node));
            }
            members.sort_by_key(|(key, _)| *key);
            let members = members.into_iter().map(|(key, node)| {
                let mut written = Vec::new();
                quote(&mut written, key.as_bytes());
                written.push(b':');
                (written.into_boxed_slice(), node)
            });
            Node::Object(members.collect(), omit)
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| compile(item, options));
            Node::Array(items.collect::<Result<_, _>>()?, omit)
        }
        Value::String(text) => string(text, options)?,
        other => Node::Fixed(other.to_string().into_bytes().into()),
    })
}

fn string(text: &str, options: JsonOptions) -> Result<Node, String> {
    let mut parts = match options.dialect {
        Dialect::Envoy => envoy::parse(text)?,
        Dialect::Apisix if text.starts_with('$') => template::parse(text, Variable::parse),
        Dialect::Apisix => vec![Part::text(text)],
    };
    let fixed = |text: &[u8]| {
        let mut out = Vec::new();
        quote(&mut out, text);
        Node::Fixed(out.into())
    };
    Ok(match (parts.pop(), parts.is_empty()) {
        (None, _) => fixed(b""),
        (Some(Part::Text(text)), true) => fixed(text.bytes()),
        (Some(part), true) => Node::Value(Box::new(part)),
        (Some(last), false) => {
            parts.push(last);
            Node::Text(parts.into(), options.omit_empty)
        }
    })
}

/// Appends a JSON string.
pub(crate) fn quote(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    if json_clean(text) {
        out.extend_from_slice(text);
    } else {
        escape(out, text);
    }
    out.push(b'"');
}

impl Node {
    /// Appends the value.
    pub(super) fn write(&self, stream: &Stream, out: &mut Vec<u8>) {
        if !self.put(stream, out) {
            out.extend_from_slice(if matches!(self, Node::Object(..)) { b"{}" } else { b"null" });
        }
    }

    /// Appends the value; `false` means there is none, and then nothing was written.
    fn put(&self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        match self {
            Node::Fixed(json) => out.extend_from_slice(json),
            Node::Value(part) => return value(part, stream, out),
            Node::Text(parts, omit) => {
                let missing: &[u8] = if *omit { b"" } else { b"-" };
                let start = out.len();
                for part in parts {
                    part.write(stream, out, Style { missing, escape: Escape::None });
                }
                requote(out, start);
            }
            Node::Object(members, omit) => {
                let start = out.len();
                out.push(b'{');
                for (key, node) in members {
                    let before = out.len();
                    if before > start + 1 {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    if !node.put(stream, out) {
                        if *omit {
                            out.truncate(before);
                        } else {
                            out.extend_from_slice(b"null");
                        }
                    }
                }
                if *omit && out.len() == start + 1 {
                    out.truncate(start);
                    return false;
                }
                out.push(b'}');
            }
            Node::Array(items, omit) => {
                let start = out.len();
                out.push(b'[');
                for node in items {
                    let before = out.len();
                    if before > start + 1 {
                        out.push(b',');
                    }
                    if !node.put(stream, out) {
                        if *omit {
                            out.truncate(before);
                        } else {
                            out.extend_from_slice(b"null");
                        }
                    }
                }
                out.push(b']');
            }
        }
        true
    }
}

/// Appends the value of one operator or variable with its type.
fn value(part: &Part, stream: &Stream, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    match part {
        // One part by itself has nothing before it.
        Part::Operator { before: _, operator, max } => match operator.write(stream, out) {
            Written::Missing => false,
            // A number that is cut short is text.
            Written::Json if max.is_none_or(|max| out.len() <= start + max) => true,
            Written::Json | Written::Text => {
                out.truncate(max.map_or(out.len(), |max| start.saturating_add(max)));
                requote(out, start);
                true
            }
        },
        Part::Variable { variable, default } => {
            if variable.write(stream, out) {
                requote(out, start);
                return true;
            }
            default.as_ref().map(|text| quote(out, text)).is_some()
        }
        Part::Text(text) => {
            quote(out, text.bytes());
            true
        }
        Part::Json(node) => node.put(stream, out),
    }
}

/// Makes a JSON string of what `out` holds from `start` on.
fn requote(out: &mut Vec<u8>, start: usize) {
    let value = out.get(start..).unwrap_or_default();
    if json_clean(value) {
        out.insert(start, b'"');
        out.push(b'"');
    } else {
        let value = out.split_off(start);
        quote(out, &value);
    }
}
