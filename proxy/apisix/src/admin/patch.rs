//! Changes of parts of a resource, as Lua's tables change (`apisix/core/table.lua`).

use serde_json::{Map, Value};

/// Objects and lists within each other at most: deeper ones are not read again.
const MAX_LEVELS: usize = 100;

/// Objects merge, arrays and empty objects replace, null removes.
pub(crate) fn merge(old: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match (old.get_mut(&key), value) {
            (_, Value::Null) => {
                old.shift_remove(&key);
            }
            (Some(Value::Object(before)), Value::Object(after))
                if !before.is_empty() && !after.is_empty() =>
            {
                merge(before, after);
            }
            (_, value) => {
                old.insert(key, value);
            }
        }
    }
}

/// Puts `value` at a path, whose objects are made where they are missing. An empty last name replaces everything.
///
/// # Errors
/// The path to what is no object, in APISIX's words, or that the value would lie too deep.
pub(super) fn at(root: &mut Value, path: &[&str], value: Value) -> Result<(), String> {
    if MAX_LEVELS.checked_sub(path.len()).is_none_or(|levels| !fits(&value, levels)) {
        return Err(format!("invalid sub-path: values are nested deeper than {MAX_LEVELS}"));
    }
    let Some((last, parents)) = path.split_last() else {
        *root = value;
        return Ok(());
    };
    let mut below = &mut *root;
    for (index, name) in parents.iter().enumerate() {
        let wrong = || format!("invalid sub-path: /{}", path.get(..=index).unwrap_or_default().join("/"));
        below = child(below, name).ok_or_else(wrong)?;
        if !below.is_object() && !below.is_array() {
            return Err(wrong());
        }
    }
    if last.is_empty() {
        *root = value;
        return Ok(());
    }
    let place = child(below, last).ok_or_else(|| format!("invalid sub-path: /{}", path.join("/")))?;
    *place = value;
    Ok(())
}

/// Whether a value has no more levels than these.
fn fits(value: &Value, levels: usize) -> bool {
    let below = |value: &Value| levels.checked_sub(1).is_some_and(|levels| fits(value, levels));
    match value {
        Value::Object(object) => levels > 0 && object.values().all(below),
        Value::Array(items) => levels > 0 && items.iter().all(below),
        _ => true,
    }
}

/// What has a name in an object, made if it is missing, or a position in an array.
fn child<'v>(value: &'v mut Value, name: &str) -> Option<&'v mut Value> {
    match value {
        Value::Object(object) => {
            let entry = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            Some(entry)
        }
        // An empty table of Lua is both.
        Value::Array(items) if items.is_empty() => {
            *value = Value::Object(Map::new());
            child(value, name)
        }
        Value::Array(items) => items.get_mut(name.parse::<usize>().ok()?.checked_sub(1)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_merge_arrays_replace_and_null_removes() {
        let mut old = json!({"a": {"b": 1, "c": 2}, "list": [1, 2], "labels": {"x": "y"}, "gone": 1});
        let patch = json!({"a": {"b": null, "d": {"e": null}}, "list": [3], "labels": {}, "gone": null});
        let (Value::Object(before), Value::Object(patch)) = (&mut old, patch) else { unreachable!() };
        merge(before, patch);
        assert_eq!(old, json!({"a": {"c": 2, "d": {"e": null}}, "list": [3], "labels": {}}));
    }

    #[test]
    fn a_path_leads_to_what_is_set() {
        let old = || json!({"a": {"b": 1}, "s": "text", "list": [{"x": 1}]});
        let set = |path: &[&str]| {
            let mut value = old();
            at(&mut value, path, json!(9)).map(|()| value)
        };
        assert_eq!(set(&["a", "b"]).unwrap(), json!({"a": {"b": 9}, "s": "text", "list": [{"x": 1}]}));
        assert_eq!(set(&["n", "m"]).unwrap()["n"], json!({"m": 9}));
        assert_eq!(set(&["list", "1", "x"]).unwrap()["list"], json!([{"x": 9}]));
        assert_eq!(set(&["a", ""]).unwrap(), json!(9));
        assert_eq!(set(&["s", "x"]), Err("invalid sub-path: /s".to_owned()));
        assert_eq!(set(&["a", "b", "c"]), Err("invalid sub-path: /a/b".to_owned()));
    }
}
