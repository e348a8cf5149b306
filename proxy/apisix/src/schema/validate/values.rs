//! Values by themselves: types, strings, numbers, and what equals what.

use serde_json::{Map, Value};
use sixfold_core::error::nearest;

use super::super::rules::{Bound, NumberRules, StringRules, Type, Types};
use super::Faults;

/// Values that a hint lists at most.
const MAX_LISTED: usize = 16;

impl Types {
    /// Tells whether the value is of one of the types.
    pub(super) fn run(&self, value: &mut Value, out: &mut Faults) -> bool {
        // Lua's empty table is both; from here on it is what was asked for.
        match value {
            Value::Array(items) if items.is_empty() && self.wants(Type::Object, Type::Array) => {
                *value = Value::Object(Map::new());
            }
            Value::Object(map) if map.is_empty() && self.wants(Type::Array, Type::Object) => {
                *value = Value::Array(Vec::new());
            }
            _ => {}
        }
        if self.kinds.iter().any(|kind| kind.accepts(value)) {
            return true;
        }
        let one_of = if self.several { "one of " } else { "" };
        out.add(format!("wrong type: expected {one_of}{}, got {}", self.names, lua_type(value)));
        false
    }

    fn wants(&self, one: Type, other: Type) -> bool {
        self.kinds.contains(&one) && !self.kinds.contains(&other)
    }
}

impl Type {
    fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Type::Array, Value::Array(_))
            | (Type::Boolean, Value::Bool(_))
            | (Type::Null, Value::Null)
            | (Type::Number, Value::Number(_))
            | (Type::Object, Value::Object(_))
            | (Type::String, Value::String(_)) => true,
            (Type::Array, Value::Object(map)) => map.is_empty(),
            (Type::Object, Value::Array(items)) => items.is_empty(),
            (Type::Integer, Value::Number(n)) => n.as_f64().is_some_and(|n| n.fract() == 0.0),
            _ => false,
        }
    }
}

impl StringRules {
    pub(super) fn run(&self, text: &str, out: &mut Faults) {
        let length = text.chars().count();
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            return out.add(format!("string too short, expected at least {min}, got {length}"));
        }
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            return out.add(format!("string too long, expected at most {max}, got {length}"));
        }
        match &self.pattern {
            Some(pattern) if !pattern.matches(text) => {
                out.add(format!(
                    "failed to match pattern {} with {}",
                    quoted(pattern.source()),
                    quoted(text)
                ));
            }
            _ => {}
        }
    }
}

impl NumberRules {
    pub(super) fn run(&self, number: f64, out: &mut Faults) {
        for bound in &self.bounds {
            let (holds, words, limit) = match *bound {
                Bound::AtLeast(limit) => (number >= limit, "at least", limit),
                Bound::GreaterThan(limit) => (number > limit, "greater than", limit),
                Bound::AtMost(limit) => (number <= limit, "at most", limit),
                Bound::SmallerThan(limit) => (number < limit, "smaller than", limit),
                Bound::MultipleOf(limit) => (is_multiple(number, limit), "a multiple of", limit),
            };
            if !holds {
                return out.add(format!(
                    "expected {} to be {words} {}",
                    lua_number(number),
                    lua_number(limit)
                ));
            }
        }
    }
}

/// Whether `number / of` is whole, up to what binary fractions lose.
fn is_multiple(number: f64, of: f64) -> bool {
    let quotient = number / of;
    let rounded = quotient.round();
    (quotient - rounded).abs() <= 1e-12 * rounded.abs().max(1.0)
}

/// The type of a JSON value as Lua names it.
pub(crate) fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "userdata",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}

/// A number as Lua prints it: no fraction when there is none.
fn lua_number(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e15 { format!("{number:.0}") } else { format!("{number}") }
}

/// A string as Lua's `%q` prints it.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\\n"),
            '\r' => quoted.push_str("\\r"),
            '\0' => quoted.push_str("\\0"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// Equality by value: `1` is `1.0`, and an empty array is an empty object.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Array(a), Value::Object(b)) => a.is_empty() && b.is_empty(),
        (Value::Object(a), Value::Array(b)) => a.is_empty() && b.is_empty(),
        _ => a == b,
    }
}

/// What a value may be that is none of these.
pub(super) fn shown_alternatives(values: &[Value], value: &Value) -> String {
    let names = values.iter().filter_map(Value::as_str);
    if let Some(near) = value.as_str().and_then(|text| nearest(text, names)) {
        return format!("did you mean \"{near}\"?");
    }
    let shown: Vec<String> = values
        .iter()
        .take(MAX_LISTED)
        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        .collect();
    let more = if values.len() > MAX_LISTED { ", ..." } else { "" };
    format!("expected one of {}{more}", shown.join(", "))
}
