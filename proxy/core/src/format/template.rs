//! Parses APISIX's templates (`resolve_var` of apisix/core/utils.lua): `$name`, `${name}`, `${name ?? default}`. A `$` behind a
//! backslash is text, and so is the backslash.

use super::text::Text;
use super::{Part, Variable};

/// Splits a template into parts. A `$` that no name follows is text. In nginx's logs a backslash means nothing.
pub(super) fn parse(text: &str, variable_of: fn(&str) -> Variable, escapes: bool) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut plain = Vec::new();
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'$', b'\\', rest.as_bytes()) {
        plain.extend_from_slice(&rest.as_bytes()[..at]);
        let after = &rest[at + 1..];
        if rest.as_bytes()[at] == b'\\' {
            let dollar = after.strip_prefix('$').filter(|_| escapes);
            plain.extend_from_slice(if dollar.is_some() { b"\\$" } else { b"\\" });
            rest = dollar.unwrap_or(after);
            continue;
        }
        let Some((variable, default, used)) = reference(after, variable_of) else {
            plain.push(b'$');
            rest = after;
            continue;
        };
        if !plain.is_empty() {
            parts.push(Part::Text(Text::new(&std::mem::take(&mut plain))));
        }
        parts.push(Part::Variable { variable, default });
        rest = &after[used..];
    }
    plain.extend_from_slice(rest.as_bytes());
    if !plain.is_empty() {
        parts.push(Part::Text(Text::new(&plain)));
    }
    parts
}

/// A variable with its default, and the bytes both take in the template.
type Reference = (Variable, Option<Box<[u8]>>, usize);

/// The variable after a `$`.
fn reference(text: &str, variable_of: fn(&str) -> Variable) -> Option<Reference> {
    if let Some(inside) = text.strip_prefix('{') {
        let (inside, _) = inside.split_once('}')?;
        let (name, default) = match inside.split_once("??") {
            Some((name, default)) => (name, Some(default.trim()).filter(|default| !default.is_empty())),
            None => (inside, None),
        };
        // In braces any name will do: that of a header, with its hyphens.
        let (name, default) = (name.trim(), default.map(|default| default.as_bytes().into()));
        return (!name.is_empty()).then(|| (variable_of(name), default, inside.len() + 2));
    }
    let len = name_len(text);
    (len > 0).then(|| (variable_of(&text[..len]), None, len))
}

/// Bytes of the name that `text` begins with: letters, digits, `_` and dots.
fn name_len(text: &str) -> usize {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    text.bytes().position(|b| !is_name(b)).unwrap_or(text.len())
}
