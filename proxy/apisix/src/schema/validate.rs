//! Runs a compiled schema over an instance, in the order and in the words of api7/jsonschema.
//!
//! The engine is written for Lua, and some of that shows in what it answers: types have Lua's names, an
//! empty array is an empty object too, positions count from 1, and numbers compare by value. It ends at its first
//! fault; this one goes on where a later fault is one of its own, and the first it tells is that of the engine.

mod containers;
mod values;

use std::fmt;

use serde_json::Value;
use sixfold_core::error::nearest;

pub(crate) use self::values::lua_type;
use self::values::{same, shown_alternatives};
use super::rules::{Any, Check, Condition, Rules, Type};
use super::{Step, is_secret_reference};

/// A violation on its way up; the path runs from the leaf to the root.
#[derive(Debug, Default)]
pub(super) struct Failure {
    pub(super) path: Vec<Step>,
    pub(super) message: String,
    /// What would be right, where the engine's words do not say it.
    pub(super) hint: Option<String>,
}

/// What is wrong with an instance, up to as many faults as somebody wants to know.
#[derive(Debug)]
pub(super) struct Faults {
    found: Vec<Failure>,
    limit: usize,
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

    /// Whether both are about one thing, however it came to be looked at.
    fn repeats(&self, other: &Failure) -> bool {
        self.path == other.path && (!self.path.is_empty() || self.message == other.message)
    }
}

impl Faults {
    fn up_to(limit: usize) -> Faults {
        Faults { found: Vec::new(), limit }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limit
    }

    fn add(&mut self, message: impl Into<String>) {
        self.push(Failure { message: message.into(), ..Failure::default() });
    }

    fn add_with(&mut self, message: impl Into<String>, hint: Option<String>) {
        self.push(Failure { message: message.into(), hint, ..Failure::default() });
    }

    fn push(&mut self, failure: Failure) {
        if !self.is_full() {
            self.found.push(failure);
        }
    }

    /// Runs a check of a part; `name` tells its faults where they are.
    fn within(&mut self, run: impl FnOnce(&mut Faults), name: impl Fn(Failure) -> Failure) {
        let before = self.found.len();
        run(self);
        for failure in self.found.iter_mut().skip(before) {
            *failure = name(std::mem::take(failure));
        }
    }
}

/// Checks `value` and fills in defaults; the faults, at most `limit` of them.
pub(super) fn faults(check: &Check, value: &mut Value, limit: usize) -> Vec<Failure> {
    let mut out = Faults::up_to(limit);
    run(check, value, &mut out);
    out.found
}

fn run(check: &Check, value: &mut Value, out: &mut Faults) {
    match check {
        Check::Always => {}
        Check::Never => out.add("expect false always"),
        Check::Broken(reason) => out.add(reason.clone()),
        Check::Rules(rules) => run_rules(rules, value, out),
    }
}

fn holds(check: &Check, value: &mut Value) -> bool {
    faults(check, value, 1).is_empty()
}

fn run_rules(rules: &Rules, value: &mut Value, out: &mut Faults) {
    if let Value::String(text) = value
        && rules.types.as_ref().is_none_or(|types| types.kinds == [Type::String])
        && is_secret_reference(text)
    {
        return;
    }
    let before = out.found.len();
    if rules.types.as_ref().is_some_and(|types| !types.run(value, out)) {
        return;
    }
    if let Some(object) = &rules.object {
        object.run(value, out);
    }
    if let (Some(array), false) = (&rules.array, out.is_full()) {
        array.run(value, out);
    }
    match &*value {
        Value::String(text) => rules.string.iter().for_each(|string| string.run(text, out)),
        Value::Number(n) => {
            rules.number.iter().for_each(|number| number.run(n.as_f64().unwrap_or_default(), out));
        }
        _ => {}
    }
    let wrong = |out: &Faults| out.found.len() > before;
    if let Some(values) = &rules.enumeration
        && !wrong(out)
        && !values.iter().any(|allowed| same(allowed, value))
    {
        out.add_with("matches none of the enum values", Some(shown_alternatives(values, value)));
    }
    if !out.is_full() {
        run_combinations(rules, value, out, before);
    }
    if !wrong(out) {
        run_rest(rules, value, out);
    }
}

/// The keywords that come last, for a value that is right so far.
fn run_rest(rules: &Rules, value: &mut Value, out: &mut Faults) {
    if let (Some(format), Value::String(text)) = (rules.format, &*value)
        && !format.accepts(text)
    {
        return out.add(format!("expect valid {} format but got: {text}", format.name()));
    }
    if let Some(constant) = rules.constant.as_ref().filter(|constant| !same(constant, value)) {
        return out.add_with("failed to check const value", Some(format!("expected {constant}")));
    }
    if let (Some(contains), Value::Array(items)) = (&rules.contains, &mut *value) {
        if items.is_empty() {
            return out.add("check contains: empty array is invalid");
        }
        if !items.iter_mut().any(|item| holds(contains, item)) {
            out.add("failed to check contains");
        }
    }
}

/// Schemas that are put together. Of a value that has faults, found from `before` on, only those count that the faults do
/// not explain.
fn run_combinations(rules: &Rules, value: &mut Value, out: &mut Faults, before: usize) {
    for (i, check) in rules.all_of.iter().enumerate() {
        if out.found.len() > before {
            break;
        }
        out.within(
            |out| run(check, value, out),
            |failure| failure.prefixed(format_args!("allOf {} failed", i + 1)),
        );
    }
    if let Some(any) = &rules.any_of {
        run_any(any, value, out, before);
    }
    if let (Some(checks), false) = (&rules.one_of, out.is_full()) {
        run_one(checks, value, out, before);
    }
    if let (Some(condition), false) = (&rules.condition, out.is_full()) {
        run_condition(condition, value, out, before);
    }
    if out.found.len() == before && rules.not.as_ref().is_some_and(|check| holds(check, value)) {
        out.add("value wasn't supposed to match schema");
    }
}

fn run_any(any: &Any, value: &mut Value, out: &mut Faults, before: usize) {
    let Some(reasons) = alternatives(&any.checks, value, out, before) else { return };
    let list = if any.required.is_empty() { String::new() } else { format!(": {}", any.required) };
    let hint = if any.required.is_empty() { reasons } else { None };
    out.add_with(format!("object matches none of the required{list}"), hint);
}

fn run_one(checks: &[Check], value: &mut Value, out: &mut Faults, before: usize) {
    let mut matched = None;
    for (i, check) in checks.iter().enumerate() {
        if holds(check, value) {
            if let Some(first) = matched {
                let message = format!(
                    "value should match only one schema, but matches both schemas {first} and {}",
                    i + 1
                );
                return out.add_with(message, rivals(checks, first - 1, i));
            }
            matched = Some(i + 1);
        }
    }
    if matched.is_none()
        && let Some(reasons) = alternatives(checks, value, out, before)
    {
        out.add_with("value should match only one schema, but matches none", reasons);
    }
}

/// Why a value matches none of these schemas, `None` if it does or if the faults that are known since `before` explain it.
/// What is said then of each is its first fault, if there are few.
fn alternatives(checks: &[Check], value: &mut Value, out: &Faults, before: usize) -> Option<Option<String>> {
    let known = out.found.get(before..).unwrap_or_default();
    let mut reasons = Vec::new();
    for check in checks {
        let found = faults(check, value, if known.is_empty() { 1 } else { out.limit });
        let own = found.iter().find(|failure| !known.iter().any(|known| known.repeats(failure)));
        reasons.push(own?.message.clone());
    }
    reasons.dedup();
    Some((1..=4).contains(&reasons.len()).then(|| reasons.join("; or ")))
}

/// What two schemas ask for that a value matches both of, where they say no more.
fn rivals(checks: &[Check], first: usize, second: usize) -> Option<String> {
    let names = |at: usize| match checks.get(at)? {
        Check::Rules(rules) => {
            let object = rules.object.as_ref()?;
            let declared = object.properties.iter().filter(|property| property.required);
            let names: Vec<&str> = declared
                .map(|property| &*property.name)
                .chain(object.required.iter().map(|s| &**s))
                .collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        _ => None,
    };
    Some(format!("{} excludes {}", names(first)?, names(second)?))
}

fn run_condition(condition: &Condition, value: &mut Value, out: &mut Faults, before: usize) {
    let (clause, name) = match holds(&condition.test, value) {
        true => (&condition.then, "then"),
        false => (&condition.otherwise, "else"),
    };
    let Some(clause) = clause else { return };
    let found = faults(clause, value, out.limit);
    let known = out.found.get(before..).unwrap_or_default();
    let own = found.into_iter().filter(|failure| !known.iter().any(|known| known.repeats(failure)));
    let reasons: Vec<String> = own.map(|failure| failure.message).collect();
    if !reasons.is_empty() {
        out.add_with(format!("{name} clause did not match"), Some(reasons.join("; ")));
    }
}

/// The name that a key that is not allowed may have been meant for.
fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, known).map(|near| format!("did you mean \"{near}\"?"))
}
