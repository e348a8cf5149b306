//! Objects and arrays.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::super::Step;
use super::super::rules::{ArrayRules, Check, Dependency, Extra, Items, ObjectRules, Property};
use super::values::{quoted, same};
use super::{Failure, Faults, meant, run};

impl ObjectRules {
    pub(super) fn run(&self, value: &mut Value, out: &mut Faults) {
        if matches!(value, Value::Array(items) if items.is_empty()) && self.wants_object() {
            *value = Value::Object(Map::new());
        }
        if !value.is_object() {
            return;
        }
        for property in &self.properties {
            if out.is_full() {
                return;
            }
            property.run(value, out);
        }
        for name in self.required.iter().filter(|name| value.get(name.as_str()).is_none()) {
            out.add(format!("property {} is required", quoted(name)));
        }
        for (name, dependency) in &self.dependencies {
            if value.get(name).is_some() && !out.is_full() {
                dependency.run(name, value, out);
            }
        }
        if let (Value::Object(map), false) = (value, out.is_full()) {
            self.run_others(map, out);
            if let Some(min) = self.min_properties.filter(|min| map.len() < *min) {
                out.add(format!("expect object to have at least {min} properties"));
            }
            if let Some(max) = self.max_properties.filter(|max| map.len() > *max) {
                out.add(format!("expect object to have at most {max} properties"));
            }
        }
    }

    /// Whether an empty array, which is Lua's empty object too, has to become one to hold defaults.
    fn wants_object(&self) -> bool {
        !self.properties.is_empty() || !self.required.is_empty() || self.min_properties.is_some()
    }

    fn run_others(&self, map: &mut Map<String, Value>, out: &mut Faults) {
        if self.patterns.is_empty() && matches!(self.additional, Extra::Allowed) {
            return;
        }
        for (name, value) in map.iter_mut() {
            if out.is_full() {
                return;
            }
            let mut matched = false;
            for (pattern, check) in self.patterns.iter().filter(|(pattern, _)| pattern.matches(name)) {
                matched = true;
                let matching = || quoted(pattern.source());
                out.within(
                    |out| run(check, value, out),
                    |failure| {
                        let prefix = format!("failed to validate {name} (matching {})", matching());
                        failure.below(Step::Key(name.clone()), prefix)
                    },
                );
            }
            if matched || self.properties.iter().any(|p| p.name == *name) {
                continue;
            }
            match &self.additional {
                Extra::Allowed => {}
                Extra::Forbidden => out.push(Failure {
                    path: vec![Step::Key(name.clone())],
                    message: format!("additional properties forbidden, found {name}"),
                    hint: meant(name, self.properties.iter().map(|property| &*property.name)),
                }),
                Extra::Checked(check) => out.within(
                    |out| run(check, value, out),
                    |failure| {
                        let prefix = format_args!("failed to validate additional property {name}");
                        failure.below(Step::Key(name.clone()), prefix)
                    },
                ),
            }
        }
    }
}

impl Property {
    fn run(&self, object: &mut Value, out: &mut Faults) {
        if let Some(value) = object.get_mut(&self.name) {
            out.within(
                |out| run(&self.check, value, out),
                |failure| {
                    let prefix = format!("property {} validation failed", quoted(&self.name));
                    failure.below(Step::Key(self.name.clone()), prefix)
                },
            );
            if let (Some(dependency), false) = (&self.dependency, out.is_full()) {
                dependency.run(&self.name, object, out);
            }
        } else if self.required {
            out.add(format!("property {} is required", quoted(&self.name)));
        } else if let (Some(default), Value::Object(map)) = (&self.default, object) {
            map.insert(self.name.clone(), default.clone());
        }
    }
}

impl Dependency {
    fn run(&self, name: &str, object: &mut Value, out: &mut Faults) {
        match self {
            Dependency::Required(others) => {
                for other in others.iter().filter(|other| object.get(other.as_str()).is_none()) {
                    out.add(format!("property {} is required when {} is set", quoted(other), quoted(name)));
                }
            }
            Dependency::Schema(check) => out.within(
                |out| run(check, object, out),
                |failure| {
                    failure.prefixed(format_args!("failed to validate dependent schema for {}", quoted(name)))
                },
            ),
        }
    }
}

impl ArrayRules {
    pub(super) fn run(&self, value: &mut Value, out: &mut Faults) {
        let mut none = Vec::new();
        let items = match value {
            Value::Array(items) => items,
            Value::Object(map) if map.is_empty() => &mut none,
            _ => return,
        };
        if let Some(min) = self.min_items.filter(|min| items.len() < *min) {
            out.add(format!("expect array to have at least {min} items"));
        }
        if let Some(max) = self.max_items.filter(|max| items.len() > *max) {
            out.add(format!("expect array to have at most {max} items"));
        }
        if !out.is_full() {
            self.run_items(items, out);
        }
        if self.unique
            && !out.is_full()
            && let Some((first, second)) = first_repeated(items)
        {
            out.add(format!("expected unique items but items {first} and {second} are equal"));
        }
    }

    fn run_items(&self, items: &mut [Value], out: &mut Faults) {
        let tuple: &[Check] = match &self.items {
            Items::Any => return,
            Items::All(check) => {
                return run_each(check, items.iter_mut().enumerate(), "failed to validate item", out);
            }
            Items::Tuple(checks) => checks,
        };
        for (i, (item, check)) in items.iter_mut().zip(tuple).enumerate() {
            run_each(check, std::iter::once((i, item)), "failed to validate item", out);
        }
        match &self.additional {
            Extra::Forbidden if items.len() > tuple.len() => {
                out.add("found unexpected extra items in array");
            }
            Extra::Checked(check) => {
                let extra = items.iter_mut().enumerate().skip(tuple.len());
                run_each(check, extra, "failed to validate additional item", out);
            }
            _ => {}
        }
    }
}

fn run_each<'a>(
    check: &Check,
    items: impl Iterator<Item = (usize, &'a mut Value)>,
    prefix: &str,
    out: &mut Faults,
) {
    for (i, item) in items {
        if out.is_full() {
            return;
        }
        out.within(
            |out| run(check, item, out),
            |failure| failure.below(Step::Index(i), format_args!("{prefix} {}", i + 1)),
        );
    }
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
