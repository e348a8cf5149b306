//! Runs a compiled schema over an instance, in the order and in the words of api7/jsonschema.
//!
//! The engine is written for Lua, and some of that shows in what it answers: types have Lua's names, an
//! empty array is an empty object too, positions count from 1, and numbers compare by value.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use super::rules::{
    ArrayRules, Bound, Check, Dependency, Extra, Items, NumberRules, ObjectRules, Property, Rules,
    StringRules, Type, Types,
};
use super::{Step, is_secret_reference};

/// A violation on its way up; the path runs from the leaf to the root.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

type Outcome = Result<(), Failure>;

fn fail(message: impl Into<String>) -> Outcome {
    Err(Failure { path: Vec::new(), message: message.into() })
}

impl Failure {
    fn below(mut self, step: Step, prefix: impl fmt::Display) -> Failure {
        self.path.push(step);
        self.prefixed(prefix)
    }

    fn prefixed(mut self, prefix: impl fmt::Display) -> Failure {
        self.message = format!("{prefix}: {}", self.message);
        self
    }
}

/// Checks `value` and fills in defaults.
pub(super) fn run(check: &Check, value: &mut Value) -> Outcome {
    match check {
        Check::Always => Ok(()),
        Check::Never => fail("expect false always"),
        Check::Broken(reason) => fail(reason.clone()),
        Check::Rules(rules) => run_rules(rules, value),
    }
}

fn holds(check: &Check, value: &mut Value) -> bool {
    run(check, value).is_ok()
}

fn run_rules(rules: &Rules, value: &mut Value) -> Outcome {
    if let Value::String(text) = value
        && rules.types.as_ref().is_none_or(|types| types.kinds == [Type::String])
        && is_secret_reference(text)
    {
        return Ok(());
    }
    if let Some(types) = &rules.types {
        types.run(value)?;
    }
    if let Some(object) = &rules.object {
        object.run(value)?;
    }
    if let Some(array) = &rules.array {
        array.run(value)?;
    }
    if let (Some(string), Value::String(text)) = (&rules.string, &*value) {
        string.run(text)?;
    }
    if let (Some(number), Value::Number(n)) = (&rules.number, &*value) {
        number.run(n.as_f64().unwrap_or_default())?;
    }
    if let Some(values) = &rules.enumeration
        && !values.iter().any(|allowed| same(allowed, value))
    {
        return fail("matches none of the enum values");
    }
    run_combinations(rules, value)?;
    if let (Some(format), Value::String(text)) = (rules.format, &*value)
        && !format.accepts(text)
    {
        return fail(format!("expect valid {} format but got: {text}", format.name()));
    }
    if rules.constant.as_ref().is_some_and(|constant| !same(constant, value)) {
        return fail("failed to check const value");
    }
    if let (Some(contains), Value::Array(items)) = (&rules.contains, &mut *value) {
        if items.is_empty() {
            return fail("check contains: empty array is invalid");
        }
        if !items.iter_mut().any(|item| holds(contains, item)) {
            return fail("failed to check contains");
        }
    }
    Ok(())
}

fn run_combinations(rules: &Rules, value: &mut Value) -> Outcome {
    for (i, check) in rules.all_of.iter().enumerate() {
        run(check, value).map_err(|e| e.prefixed(format_args!("allOf {} failed", i + 1)))?;
    }
    if let Some(any) = &rules.any_of
        && !any.checks.iter().any(|check| holds(check, value))
    {
        let list = if any.required.is_empty() { String::new() } else { format!(": {}", any.required) };
        return fail(format!("object matches none of the required{list}"));
    }
    if let Some(checks) = &rules.one_of {
        let mut matched = None;
        for (i, check) in checks.iter().enumerate() {
            if holds(check, value) {
                if let Some(first) = matched {
                    let second = i + 1;
                    return fail(format!(
                        "value should match only one schema, but matches both schemas {first} and {second}"
                    ));
                }
                matched = Some(i + 1);
            }
        }
        if matched.is_none() {
            return fail("value should match only one schema, but matches none");
        }
    }
    if let Some(condition) = &rules.condition {
        let (clause, name) = match holds(&condition.test, value) {
            true => (&condition.then, "then"),
            false => (&condition.otherwise, "else"),
        };
        if clause.as_ref().is_some_and(|check| !holds(check, value)) {
            return fail(format!("{name} clause did not match"));
        }
    }
    if rules.not.as_ref().is_some_and(|check| holds(check, value)) {
        return fail("value wasn't supposed to match schema");
    }
    Ok(())
}

impl Types {
    fn run(&self, value: &mut Value) -> Outcome {
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
            return Ok(());
        }
        let one_of = if self.several { "one of " } else { "" };
        fail(format!("wrong type: expected {one_of}{}, got {}", self.names, lua_type(value)))
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

impl ObjectRules {
    fn run(&self, value: &mut Value) -> Outcome {
        if matches!(value, Value::Array(items) if items.is_empty()) && self.wants_object() {
            *value = Value::Object(Map::new());
        }
        if !value.is_object() {
            return Ok(());
        }
        for property in &self.properties {
            property.run(value)?;
        }
        if let Some(name) = self.required.iter().find(|name| value.get(name.as_str()).is_none()) {
            return fail(format!("property {} is required", quoted(name)));
        }
        for (name, dependency) in &self.dependencies {
            if value.get(name).is_some() {
                dependency.run(name, value)?;
            }
        }
        if let Value::Object(map) = value {
            self.run_others(map)?;
            if let Some(min) = self.min_properties.filter(|min| map.len() < *min) {
                return fail(format!("expect object to have at least {min} properties"));
            }
            if let Some(max) = self.max_properties.filter(|max| map.len() > *max) {
                return fail(format!("expect object to have at most {max} properties"));
            }
        }
        Ok(())
    }

    /// Whether an empty array, which is Lua's empty object too, has to become one to hold defaults.
    fn wants_object(&self) -> bool {
        !self.properties.is_empty() || !self.required.is_empty() || self.min_properties.is_some()
    }

    fn run_others(&self, map: &mut Map<String, Value>) -> Outcome {
        if self.patterns.is_empty() && matches!(self.additional, Extra::Allowed) {
            return Ok(());
        }
        for (name, value) in map.iter_mut() {
            let mut matched = false;
            for (pattern, check) in self.patterns.iter().filter(|(pattern, _)| pattern.matches(name)) {
                matched = true;
                run(check, value).map_err(|e| {
                    let matching = quoted(pattern.source());
                    e.below(
                        Step::Key(name.clone()),
                        format_args!("failed to validate {name} (matching {matching})"),
                    )
                })?;
            }
            if matched || self.properties.iter().any(|p| p.name == *name) {
                continue;
            }
            match &self.additional {
                Extra::Allowed => {}
                Extra::Forbidden => {
                    return Err(Failure {
                        path: vec![Step::Key(name.clone())],
                        message: format!("additional properties forbidden, found {name}"),
                    });
                }
                Extra::Checked(check) => run(check, value).map_err(|e| {
                    e.below(
                        Step::Key(name.clone()),
                        format_args!("failed to validate additional property {name}"),
                    )
                })?,
            }
        }
        Ok(())
    }
}

impl Property {
    fn run(&self, object: &mut Value) -> Outcome {
        if let Some(value) = object.get_mut(&self.name) {
            run(&self.check, value).map_err(|e| {
                let name = quoted(&self.name);
                e.below(Step::Key(self.name.clone()), format_args!("property {name} validation failed"))
            })?;
            if let Some(dependency) = &self.dependency {
                dependency.run(&self.name, object)?;
            }
        } else if self.required {
            return fail(format!("property {} is required", quoted(&self.name)));
        } else if let (Some(default), Value::Object(map)) = (&self.default, object) {
            map.insert(self.name.clone(), default.clone());
        }
        Ok(())
    }
}

impl Dependency {
    fn run(&self, name: &str, object: &mut Value) -> Outcome {
        match self {
            Dependency::Required(others) => {
                match others.iter().find(|other| object.get(other.as_str()).is_none()) {
                    Some(other) => {
                        fail(format!("property {} is required when {} is set", quoted(other), quoted(name)))
                    }
                    None => Ok(()),
                }
            }
            Dependency::Schema(check) => run(check, object).map_err(|e| {
                let name = quoted(name);
                e.prefixed(format_args!("failed to validate dependent schema for {name}"))
            }),
        }
    }
}

impl ArrayRules {
    fn run(&self, value: &mut Value) -> Outcome {
        let mut none = Vec::new();
        let items = match value {
            Value::Array(items) => items,
            Value::Object(map) if map.is_empty() => &mut none,
            _ => return Ok(()),
        };
        if let Some(min) = self.min_items.filter(|min| items.len() < *min) {
            return fail(format!("expect array to have at least {min} items"));
        }
        if let Some(max) = self.max_items.filter(|max| items.len() > *max) {
            return fail(format!("expect array to have at most {max} items"));
        }
        self.run_items(items)?;
        if self.unique
            && let Some((first, second)) = first_repeated(items)
        {
            return fail(format!("expected unique items but items {first} and {second} are equal"));
        }
        Ok(())
    }

    fn run_items(&self, items: &mut [Value]) -> Outcome {
        let tuple: &[Check] = match &self.items {
            Items::Any => return Ok(()),
            Items::All(check) => {
                return run_each(check, items.iter_mut().enumerate(), "failed to validate item");
            }
            Items::Tuple(checks) => checks,
        };
        for (i, (item, check)) in items.iter_mut().zip(tuple).enumerate() {
            run_each(check, std::iter::once((i, item)), "failed to validate item")?;
        }
        match &self.additional {
            Extra::Forbidden if items.len() > tuple.len() => fail("found unexpected extra items in array"),
            Extra::Checked(check) => {
                let extra = items.iter_mut().enumerate().skip(tuple.len());
                run_each(check, extra, "failed to validate additional item")
            }
            _ => Ok(()),
        }
    }
}

fn run_each<'a>(check: &Check, items: impl Iterator<Item = (usize, &'a mut Value)>, prefix: &str) -> Outcome {
    for (i, item) in items {
        run(check, item).map_err(|e| e.below(Step::Index(i), format_args!("{prefix} {}", i + 1)))?;
    }
    Ok(())
}

/// The positions, from 1, of the first item that was there before and of its repetition.
fn first_repeated(items: &[Value]) -> Option<(usize, usize)> {
    let mut texts: HashMap<&str, usize> = HashMap::new();
    let mut others: Vec<(usize, &Value)> = Vec::new();
    items.iter().zip(1..).find_map(|(item, at)| {
        let earlier = match item {
            Value::String(text) => texts.insert(text, at),
            _ => {
                let earlier = others.iter().find(|(_, other)| same(other, item)).map(|(earlier, _)| *earlier);
                others.push((at, item));
                earlier
            }
        };
        earlier.map(|earlier| (earlier, at))
    })
}

impl StringRules {
    fn run(&self, text: &str) -> Outcome {
        let length = text.chars().count();
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            return fail(format!("string too short, expected at least {min}, got {length}"));
        }
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            return fail(format!("string too long, expected at most {max}, got {length}"));
        }
        match &self.pattern {
            Some(pattern) if !pattern.matches(text) => {
                fail(format!("failed to match pattern {} with {}", quoted(pattern.source()), quoted(text)))
            }
            _ => Ok(()),
        }
    }
}

impl NumberRules {
    fn run(&self, number: f64) -> Outcome {
        for bound in &self.bounds {
            let (holds, words, limit) = match *bound {
                Bound::AtLeast(limit) => (number >= limit, "at least", limit),
                Bound::GreaterThan(limit) => (number > limit, "greater than", limit),
                Bound::AtMost(limit) => (number <= limit, "at most", limit),
                Bound::SmallerThan(limit) => (number < limit, "smaller than", limit),
                Bound::MultipleOf(limit) => (is_multiple(number, limit), "a multiple of", limit),
            };
            if !holds {
                return fail(format!("expected {} to be {words} {}", lua_number(number), lua_number(limit)));
            }
        }
        Ok(())
    }
}

/// Whether `number / of` is whole, up to what binary fractions lose.
fn is_multiple(number: f64, of: f64) -> bool {
    let quotient = number / of;
    let rounded = quotient.round();
    (quotient - rounded).abs() <= 1e-12 * rounded.abs().max(1.0)
}

/// The type of a JSON value as Lua names it.
fn lua_type(value: &Value) -> &'static str {
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
fn quoted(text: &str) -> String {
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
fn same(a: &Value, b: &Value) -> bool {
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
