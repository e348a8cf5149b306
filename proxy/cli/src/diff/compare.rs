//! Differences of two values, by the path of the field.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt;

/// How a resource differs.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) name: String,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    /// There is none before.
    Added,
    /// There is none after.
    Removed,
    /// These of its fields differ.
    Fields(Vec<Field>),
}

/// A field that differs: `None` where it is not there.
#[derive(Debug, PartialEq)]
pub(super) struct Field {
    pub(super) path: String,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

impl Field {
    fn word(&self) -> &'static str {
        match (&self.before, &self.after) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        }
    }
}

impl Difference {
    /// Whether there is no difference.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(&self.change, Change::Fields(fields) if fields.is_empty())
    }

    pub(super) fn json(&self) -> Value {
        let fields = match &self.change {
            Change::Fields(fields) => fields.as_slice(),
            _ => &[],
        };
        let fields: Vec<Value> = fields
            .iter()
            .map(|field| {
                json!({
                    "path": field.path, "change": field.word(), "before": field.before, "after": field.after,
                })
            })
            .collect();
        let change = match self.change {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Fields(_) => "changed",
        };
        json!({"resource": self.name, "change": change, "fields": fields})
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = match &self.change {
            Change::Added => return writeln!(f, "added    {}", self.name),
            Change::Removed => return writeln!(f, "removed  {}", self.name),
            Change::Fields(fields) => fields,
        };
        writeln!(f, "changed  {}", self.name)?;
        for field in fields {
            write!(f, "           {:<8} {}: ", field.word(), field.path)?;
            match (&field.before, &field.after) {
                (Some(before), Some(after)) => writeln!(f, "{before} -> {after}")?,
                (Some(value), None) | (None, Some(value)) => writeln!(f, "{value}")?,
                (None, None) => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// The fields that differ between two values.
pub(super) fn values(before: &Value, after: &Value) -> Vec<Field> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Field>) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => objects(path, before, after, found),
        (Some(Value::Array(before)), Some(Value::Array(after))) => lists(path, before, after, found),
        (before, after) if same(before, after) => {}
        (before, after) => {
            let path = if path.is_empty() { "." } else { path }.to_owned();
            found.push(Field { path, before: before.cloned(), after: after.cloned() });
        }
    }
}

/// Whether two values are one; 1 and 1.0 are.
fn same(before: Option<&Value>, after: Option<&Value>) -> bool {
    match (before, after) {
        (Some(Value::Number(before)), Some(Value::Number(after))) => {
            before == after || (before.as_f64() == after.as_f64() && (before.is_f64() || after.is_f64()))
        }
        _ => before == after,
    }
}

fn objects(path: &str, before: &Map<String, Value>, after: &Map<String, Value>, found: &mut Vec<Field>) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        compare(&below, before.get(key), after.get(key), found);
    }
}

fn lists(path: &str, before: &[Value], after: &[Value], found: &mut Vec<Field>) {
    if let (Some(names), Some(others)) = (names(before), names(after)) {
        return named(path, (&names, before), (&others, after), found);
    }
    // What is put in or taken out in the middle moves the rest.
    let head = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let room = before.len().min(after.len()) - head;
    let tail = before.iter().rev().zip(after.iter().rev()).take(room).take_while(|(a, b)| a == b).count();
    let middle = |list: &[Value]| list.len() - tail;
    for at in head..middle(before).max(middle(after)) {
        let of = |list: &'_ [Value]| (at < middle(list)).then(|| list.get(at).cloned()).flatten();
        compare(&format!("{path}[{at}]"), of(before).as_ref(), of(after).as_ref(), found);
    }
}

/// The names of items that all have one of their own.
fn names(items: &[Value]) -> Option<Vec<&str>> {
    let names: Option<Vec<&str>> = items.iter().map(|item| item.get("name")?.as_str()).collect();
    let names = names?;
    let all: BTreeSet<&str> = names.iter().copied().collect();
    (all.len() == names.len()).then_some(names)
}

/// Items that are told by their names, whose order may differ too.
fn named(
    path: &str,
    (names, before): (&[&str], &[Value]),
    (others, after): (&[&str], &[Value]),
    found: &mut Vec<Field>,
) {
    let of = |names: &[&str], items: &[Value], name: &str| {
        names.iter().position(|other| *other == name).and_then(|at| items.get(at).cloned())
    };
    let all = names.iter().chain(others.iter().filter(|name| !names.contains(name)));
    for name in all {
        let (one, other) = (of(names, before, name), of(others, after, name));
        compare(&format!("{path}[\"{name}\"]"), one.as_ref(), other.as_ref(), found);
    }
    let kept = |names: &[&str], among: &[&str]| -> Vec<String> {
        names.iter().filter(|name| among.contains(name)).map(|name| (*name).to_owned()).collect()
    };
    let (order, other) = (kept(names, others), kept(others, names));
    if order != other {
        let path = format!("{path} (order)");
        found.push(Field { path, before: Some(json!(order)), after: Some(json!(other)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(before: &Value, after: &Value) -> Vec<String> {
        values(before, after).iter().map(|field| format!("{} {}", field.word(), field.path)).collect()
    }

    #[test]
    fn fields_are_told_by_their_paths() {
        let before = json!({"a": {"b": 1, "c": 2}, "l": [1, 2, 3], "gone": null});
        let after = json!({"a": {"b": 1.0, "c": 3}, "l": [1, 9, 2, 3], "new": {}});
        assert_eq!(told(&before, &after), ["changed a.c", "removed gone", "added l[1]", "added new"]);
        assert_eq!(told(&before, &before), [""; 0]);
        assert_eq!(told(&json!({"l": []}), &json!({"l": {}})), ["changed l"]);
    }

    #[test]
    fn items_with_names_are_told_by_them_and_their_order_counts() {
        let item = |name: &str, value: u32| json!({"name": name, "v": value});
        let before = json!([item("a", 1), item("b", 1), item("c", 1)]);
        let after = json!([item("c", 1), item("a", 2)]);
        assert_eq!(told(&before, &after), ["changed [\"a\"].v", "removed [\"b\"]", "changed  (order)"]);
    }
}
