//! References to values that are not written in the configuration: `$env://NAME` and `$env://NAME/key`.
//!
//! APISIX resolves them when a request needs the value and leaves one that can't be resolved as it is. Here
//! they are resolved when configuration is loaded. One that can't be resolved stays as it is in a plugin's configuration, which is
//! warned of; nobody authenticates with it, and in a certificate or a key it is an error.

use serde_json::Value;
use sixfold_core::error::FaultKind;

use crate::config::EnvVars;
use crate::schema::{Step, Violation, is_secret_reference};

const ENV: &str = "$env://";

/// Replaces every reference in `value`.
///
/// # Errors
/// Every one that can't be: a variable that is not set, a key that its JSON does not have, and secret managers.
pub(crate) fn resolve_all(value: &mut Value, environment: &EnvVars) -> Result<(), Vec<Violation>> {
    let mut violations = Vec::new();
    resolve_below(value, environment, &mut Vec::new(), &mut violations);
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

fn resolve_below(
    value: &mut Value,
    environment: &EnvVars,
    path: &mut Vec<Step>,
    violations: &mut Vec<Violation>,
) {
    match value {
        Value::String(text) if is_secret_reference(text) => match resolve(text, environment) {
            Ok(resolved) => *text = resolved,
            Err((kind, reason)) => {
                violations.push(Violation { kind, ..Violation::new(path.clone(), reason) });
            }
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(index));
                resolve_below(item, environment, path, violations);
                path.pop();
            }
        }
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                path.push(Step::Key(key.clone()));
                resolve_below(value, environment, path, violations);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Whether some reference in `value` is to a secret manager's.
pub(crate) fn names_manager(value: &Value) -> bool {
    match value {
        Value::String(text) => is_secret_reference(text) && !starts_with(text, ENV),
        Value::Array(items) => items.iter().any(names_manager),
        Value::Object(map) => map.values().any(names_manager),
        _ => false,
    }
}

/// What a reference leads to, or why it leads to nothing.
fn resolve(reference: &str, environment: &EnvVars) -> Result<String, (FaultKind, String)> {
    let wrong = |reason: String| (FaultKind::Wrong, reason);
    let Some(rest) = reference.get(ENV.len()..).filter(|_| starts_with(reference, ENV)) else {
        return Err(wrong(format!("{reference}: secret managers are not supported; $env:// is")));
    };
    let (name, key) = match rest.split_once('/') {
        Some((name, key)) => (name, Some(key)),
        None => (rest, None),
    };
    let unset = || (FaultKind::UnsetVariable, format!("{reference}: the variable {name} is not set"));
    let text = environment.get(name).ok_or_else(unset)?;
    let Some(key) = key else { return Ok(text) };
    let object: Value = serde_json::from_str(&text)
        .map_err(|e| wrong(format!("{reference}: the variable {name} is no JSON: {e}")))?;
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(wrong(format!("{reference}: the variable {name} has no key \"{key}\""))),
    }
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_resolved_or_refused() {
        let environment = EnvVars::Fixed(HashMap::from([
            ("KEY".to_owned(), "secret".to_owned()),
            ("MANY".to_owned(), r#"{"a": "x", "n": 5}"#.to_owned()),
        ]));
        let mut value =
            json!({"a": ["$env://KEY", "$ENV://MANY/a"], "b": {"c": "$env://MANY/n", "d": "env://KEY"}});
        resolve_all(&mut value, &environment).unwrap();
        assert_eq!(value, json!({"a": ["secret", "x"], "b": {"c": "5", "d": "env://KEY"}}));
        for (reference, message) in [
            ("$env://NONE", "the variable NONE is not set"),
            ("$env://KEY/a", "is no JSON"),
            ("$env://MANY/z", "has no key \"z\""),
            ("$secret://vault/1/a", "secret managers are not supported"),
        ] {
            let errors = resolve_all(&mut json!([reference, {"x": reference}]), &environment).unwrap_err();
            assert!(errors[0].message.contains(message), "{errors:?}");
            // The second was hidden by the first.
            assert_eq!(crate::schema::display_path(&errors[1].path), "[1].x");
        }
    }
}
