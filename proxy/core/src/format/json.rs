//! JSON documents whose strings are formats.

use super::escape::{json as escape, json_clean};
use super::{Escape, Part, Style, Variable, Written, envoy};
use crate::stream::Stream;
use serde_json::Value;

/// Whose strings a JSON format holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// Envoy's operators: a missing value is `null`.
    #[default]
    Envoy,
    /// APISIX's `log_format`: a string that begins with `$` is a variable, whose name is the rest of it, and its key is left
    /// out when it has no value. An object deeper than five is empty.
    Apisix,
}

/// How deep objects of APISIX's `log_format` may be (`MAX_LOG_FORMAT_DEPTH` of apisix/utils/log-util.lua).
const DEEPEST: usize = 5;

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
    /// No value, as it is written.
    Null,
    /// One operator or variable, which keeps its type.
    Value(Box<Part>),
    /// A string of several parts.
    Text(Box<[Part]>, bool),
    /// Members with their keys written out, `"key":`.
    Object(Box<[(Box<[u8]>, Node)]>, Omit),
    /// Items.
    Array(Box<[Node]>, Omit),
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Omit {
    /// Nothing: what has no value is `null`.
    None,
    /// Members and items without a value.
    Members,
    /// Those, and objects that have none left.
    All,
}

/// Compiles a document.
pub(super) fn compile(value: &Value, options: JsonOptions) -> Result<Node, String> {
    at_depth(value, options, 1)
}

/// Compiles a member of a document.
pub(super) fn compile_member(value: &Value, options: JsonOptions) -> Result<Node, String> {
    at_depth(value, options, 2)
}

fn at_depth(value: &Value, options: JsonOptions, depth: usize) -> Result<Node, String> {
    let is_apisix = options.dialect == Dialect::Apisix;
    let omit = match (options.omit_empty, is_apisix) {
        (true, _) => Omit::All,
        (false, true) => Omit::Members,
        (false, false) => Omit::None,
    };
    Ok(match value {
        Value::Object(_) | Value::Array(_) if is_apisix && depth > DEEPEST => Node::Fixed(b"{}"[..].into()),
        Value::Object(map) => {
            let mut members = Vec::with_capacity(map.len());
            for (key, value) in map {
                let node = at_depth(value, options, depth + 1).map_err(|e| format!("{key}: {e}"))?;
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
            let items = items.iter().map(|item| at_depth(item, options, depth + 1));
            Node::Array(items.collect::<Result<_, _>>()?, omit)
        }
        Value::String(text) => string(text, options)?,
        Value::Null if !is_apisix => Node::Null,
        other => Node::Fixed(other.to_string().into_bytes().into()),
    })
}

fn string(text: &str, options: JsonOptions) -> Result<Node, String> {
    let mut parts = match options.dialect {
        Dialect::Envoy => envoy::parse(text)?,
        Dialect::Apisix => match text.strip_prefix('$') {
            Some(name) => vec![Part::Variable { variable: Variable::parse(name), default: None }],
            None => vec![Part::text(text)],
        },
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

/// Appends a JSON string. In what is no UTF-8 every byte that is no ASCII is taken for the character of its number.
pub fn quote(out: &mut Vec<u8>, text: &[u8]) {
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

    /// Has `look` look at each part of it.
    pub(super) fn each(&self, look: &mut dyn FnMut(&Part)) {
        match self {
            Node::Fixed(_) | Node::Null => {}
            Node::Value(part) => look(part),
            Node::Text(parts, _) => parts.iter().for_each(look),
            Node::Object(members, _) => members.iter().for_each(|(_, node)| node.each(look)),
            Node::Array(items, _) => items.iter().for_each(|node| node.each(look)),
        }
    }

    /// Appends the value; `false` means there is none, and then nothing was written.
    pub(super) fn put(&self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        match self {
            Node::Fixed(json) => out.extend_from_slice(json),
            Node::Null => return false,
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
                        if *omit != Omit::None {
                            out.truncate(before);
                        } else {
                            out.extend_from_slice(b"null");
                        }
                    }
                }
                if *omit == Omit::All && out.len() == start + 1 {
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
                        if *omit != Omit::None {
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
                match out.get(start..) {
                    Some(b"000") if variable.is_number() => out.truncate(start + 1),
                    _ if variable.is_number() => {}
                    _ => requote(out, start),
                }
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
