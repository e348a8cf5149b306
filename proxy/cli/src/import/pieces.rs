//! Pieces of resources that several importers write.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// An answer of the gateway's own.
pub(super) fn mock(status: u16, body: &str) -> Value {
    mock_of(status, body, "text/plain")
}

pub(super) fn mock_of(status: u16, body: &str, kind: &str) -> Value {
    json!({"response_status": status, "response_example": body, "content_type": kind, "with_mock_header": false})
}

/// A text as an expression that matches it alone.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut text, char| {
        if ".+*?()[]{}^$|\\".contains(char) {
            text.push('\\');
        }
        text.push(char);
        text
    })
}

/// How many groups of an expression have a number.
pub(super) fn groups(expression: &str) -> usize {
    let (mut count, mut escaped, mut in_class) = (0, false, false);
    let mut rest = expression;
    while let Some(char) = rest.chars().next() {
        rest = rest.get(char.len_utf8()..).unwrap_or_default();
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => {
                let is_named =
                    (rest.starts_with("?<") && !rest.starts_with("?<=") && !rest.starts_with("?<!"))
                        || rest.starts_with("?P<");
                if is_named || !rest.starts_with('?') {
                    count += 1;
                }
            }
            _ => {}
        }
    }
    count
}

/// The text that everything begins with that an expression matches from the start.
pub(super) fn literal_prefix(expression: &str) -> String {
    let mut found = String::new();
    // A choice at the top, or flags, may begin with anything.
    if expression.contains('|') || expression.starts_with("(?") {
        return found;
    }
    let mut chars = expression.trim_start_matches('^').chars().peekable();
    while let Some(char) = chars.next() {
        let char = match char {
            '\\' => match chars.next() {
                Some(escaped) if !escaped.is_alphanumeric() => escaped,
                _ => break,
            },
            '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' => break,
            char => char,
        };
        if matches!(chars.peek(), Some('*' | '?' | '{')) {
            break;
        }
        found.push(char);
    }
    found
}

/// Names as ids of resources, each once.
#[derive(Debug, Default)]
pub(super) struct Ids(BTreeSet<String>);

impl Ids {
    /// An id that is as near to the name as can be: at most 64 letters, digits, `-`, `_` and `.`.
    pub(super) fn id(&mut self, name: &str) -> String {
        let base = named(name, "-_.", 56);
        let mut id = base.clone();
        let mut count = 2;
        while !self.0.insert(id.clone()) {
            id = format!("{base}.{count}");
            count += 1;
        }
        id
    }
}

/// A name of at most that many letters, digits and these characters.
pub(super) fn named(name: &str, others: &str, length: usize) -> String {
    let is_kept = |char: char| char.is_ascii_alphanumeric() || others.contains(char);
    let kept: String = name.chars().map(|char| if is_kept(char) { char } else { '_' }).take(length).collect();
    if kept.is_empty() { "unnamed".to_owned() } else { kept }
}

/// Which origins the plugin cors allows: whole ones, of which `*` is all, and expressions.
pub(super) fn origins(
    whole: &[String],
    expressions: &[String],
    credentials: bool,
    plugin: &mut Map<String, Value>,
) {
    if whole.iter().any(|origin| origin == "*") {
        plugin.insert("allow_origins".to_owned(), if credentials { "**" } else { "*" }.into());
    } else if expressions.is_empty() {
        plugin.insert("allow_origins".to_owned(), whole.join(",").into());
    } else {
        // Beside expressions the list of whole origins is not looked at, but its default is that of all.
        let unseen = if whole.is_empty() { "null".to_owned() } else { whole.join(",") };
        plugin.insert("allow_origins".to_owned(), unseen.into());
        let whole = whole.iter().map(|origin| format!("^{}$", escape(origin)));
        plugin
            .insert("allow_origins_by_regex".to_owned(), whole.chain(expressions.iter().cloned()).collect());
    }
}

/// Takes out of all of `members` those of these names that all have alike.
pub(super) fn hoist(members: &mut [&mut Map<String, Value>], names: &BTreeSet<String>) -> Map<String, Value> {
    let mut shared = Map::new();
    let Some((first, rest)) = members.split_first_mut() else { return shared };
    for name in names {
        if first.contains_key(name) && rest.iter().all(|other| other.get(name) == first.get(name)) {
            rest.iter_mut().for_each(|other| drop(other.remove(name)));
            shared.extend(first.remove_entry(name));
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_begins_with_what_it_can_not_do_without() {
        for (expression, prefix, count) in [
            ("^/api/v[0-9]+/(.*)$", "/api/v", 1),
            ("/users/(?<id>\\d+)", "/users/", 1),
            ("/a\\.b(?:c)", "/a.b", 0),
            ("/ab*", "/a", 0),
            ("/ab+", "/ab", 0),
            ("/a|/b", "", 0),
            ("(?i)/a", "", 0),
            ("/x[(](y)(z)\\(", "/x", 2),
            ("/\\d", "/", 0),
        ] {
            assert_eq!(
                (literal_prefix(expression).as_str(), groups(expression)),
                (prefix, count),
                "{expression}"
            );
        }
    }

    #[test]
    fn ids_are_of_their_characters_and_each_is_there_once() {
        let mut ids = Ids::default();
        assert_eq!([ids.id("a b"), ids.id("a_b"), ids.id("")], ["a_b", "a_b.2", "unnamed"]);
        assert!(ids.id(&"x".repeat(500)).len() <= 64);
    }
}
