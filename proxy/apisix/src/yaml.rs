//! Values as YAML.

use serde_json::Value;

/// A value as a YAML document. Texts and numbers are written as in JSON, which they are in YAML, too.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                out.push_str(&format!("{indent}{}:", key(name)));
                below(value, depth, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&format!("{indent}-"));
                below(item, depth, out);
            }
        }
        other => out.push_str(&format!("{other}\n")),
    }
}

fn below(value: &Value, depth: usize, out: &mut String) {
    let nested = match value {
        Value::Object(object) => !object.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    out.push(if nested { '\n' } else { ' ' });
    write(value, depth + 1, out);
}

/// A key, in quotes unless no reader of YAML takes it for anything else than its text.
fn key(name: &str) -> String {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let is_plain = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        && !WORDS.iter().any(|word| name.eq_ignore_ascii_case(word));
    if is_plain { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use sixfold_core::document::{Node, Options};

    #[test]
    fn what_is_written_reads_as_what_it_was() {
        let value = json!({
            "routes": [{"id": "1", "on": true, "a b": null, "uri": "/x: y #\n", "nodes": {"127.0.0.1:80": 1}, "none": [], "no": {}}],
            "n": [[1, [2.5]], "~"],
        });
        let text = yaml(&value);
        assert_eq!(Node::parse(&text, &Options::default()).unwrap().to_json(), value, "{text}");
        assert!(text.starts_with("routes:\n  -\n    id: \"1\"\n    \"on\": true\n"), "{text}");
    }
}
