//! Random values of a schema.

use serde_json::{Map, Value, json};
use sixfold_core::error::ConfigError;
use std::fmt::Write;

/// How deep a schema may nest.
const MAX_DEPTH: usize = 32;
/// Values that are drawn for one answer: arrays get no more items then. What a schema asks for itself, all its properties, counts
/// and is drawn all the same.
const MAX_VALUES: usize = 4096;
/// Characters of a text that is drawn, at most.
const TEXT: usize = 10;

/// A schema, read when configuration arrives.
#[derive(Debug)]
pub(super) enum Sample {
    /// And for how many values it counts.
    Fixed(Value, usize),
    Text,
    Number,
    Integer,
    Boolean,
    Array(Box<Sample>),
    Object(Vec<(String, Sample)>),
}

impl Sample {
    /// From a schema; `example` goes before `type`, and no type is an object.
    pub(super) fn new(schema: &Value) -> Result<Sample, ConfigError> {
        Sample::read(schema, 0)
    }

    fn read(schema: &Value, depth: usize) -> Result<Sample, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::new(format!("response_schema nests deeper than {MAX_DEPTH} levels")));
        }
        if let Some(example) = schema.get("example") {
            return Ok(Sample::Fixed(example.clone(), 1 + example.to_string().len() / TEXT));
        }
        Ok(match schema.get("type").and_then(Value::as_str).unwrap_or("object") {
            "string" => Sample::Text,
            "number" => Sample::Number,
            "integer" => Sample::Integer,
            "boolean" => Sample::Boolean,
            "array" => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                Sample::Array(Box::new(Sample::read(items, depth + 1)?))
            }
            "object" => {
                let properties = schema.get("properties").and_then(Value::as_object);
                let fields = properties.into_iter().flatten();
                let fields = fields.map(|(name, s)| Ok((name.clone(), Sample::read(s, depth + 1)?)));
                Sample::Object(fields.collect::<Result<_, ConfigError>>()?)
            }
            other => {
                return Err(ConfigError::field("response_schema", format!("type '{other}' is not known")));
            }
        })
    }

    /// A value.
    pub(super) fn draw(&self) -> Value {
        self.draw_within(&mut { MAX_VALUES })
    }

    /// A value with so many in it, if arrays are what they are in.
    fn draw_within(&self, left: &mut usize) -> Value {
        *left = left.saturating_sub(if let Sample::Fixed(_, counts) = self { *counts } else { 1 });
        match self {
            Sample::Fixed(value, _) => value.clone(),
            Sample::Text => {
                (0..fastrand::usize(1..=TEXT)).map(|_| fastrand::alphabetic()).collect::<String>().into()
            }
            Sample::Number => json!(fastrand::f64() * 10_000.0),
            Sample::Integer => json!(fastrand::u32(1..=10_000)),
            Sample::Boolean => json!(fastrand::bool()),
            Sample::Array(item) => {
                let mut items = Vec::new();
                for _ in 0..fastrand::usize(1..=3) {
                    if *left > 0 {
                        items.push(item.draw_within(left));
                    }
                }
                Value::Array(items)
            }
            Sample::Object(fields) => {
                let drawn = fields.iter().map(|(name, field)| (name.clone(), field.draw_within(left)));
                Value::Object(drawn.collect::<Map<_, _>>())
            }
        }
    }
}

/// The value as XML under a root `data`; a list repeats its element.
pub(super) fn xml(value: &Value) -> String {
    let mut out = String::new();
    element(&mut out, "data", value);
    out
}

fn element(out: &mut String, name: &str, value: &Value) {
    if let Value::Array(items) = value {
        items.iter().for_each(|item| element(out, name, item));
        return;
    }
    // Writing to a String can't fail.
    let _ = write!(out, "<{name}>");
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| element(out, name, value)),
        Value::String(text) => escape(out, text),
        Value::Null => {}
        other => {
            let _ = write!(out, "{other}");
        }
    }
    let _ = write!(out, "</{name}>");
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}
