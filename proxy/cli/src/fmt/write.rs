//! A document as YAML: two spaces a level, one key a line, scalars as they were written.

use super::comments::{Attached, Comments};
use sixfold_core::document::{Node, Value};
use sixfold_core::error::Place;

/// Longest list of scalars on one line, in characters.
const WIDE: usize = 90;

/// The document with its comments; `source` is what it was read from.
pub(super) fn yaml(node: &Node, source: &str, comments: Comments) -> String {
    let mut places = Vec::new();
    collect(node, &mut places);
    let lines = source.trim_start_matches('\u{feff}').lines().collect();
    let mut writer = Writer { lines, comments: comments.attach(&mut places), out: String::new() };
    match &node.value {
        Value::Object(object) if !object.is_empty() => writer.object(node, 0, false),
        Value::Array(items) if !items.is_empty() => writer.items(items, 0),
        Value::Null => {}
        _ => {
            let scalar = writer.scalar(node, 0);
            writer.out.push_str(&format!("{scalar}\n"));
        }
    }
    for comment in std::mem::take(&mut writer.comments.tail) {
        writer.out.push_str(&format!("{comment}\n"));
    }
    writer.out
}

/// Places of all keys and items.
fn collect(node: &Node, places: &mut Vec<Place>) {
    match &node.value {
        Value::Object(object) => {
            for entry in object.entries() {
                places.push(entry.key_place);
                collect(&entry.value, places);
            }
        }
        Value::Array(items) => {
            for item in items {
                places.push(item.place);
                collect(item, places);
            }
        }
        _ => {}
    }
}

struct Writer<'s> {
    lines: Vec<&'s str>,
    comments: Attached,
    out: String,
}

impl Writer<'_> {
    /// The entries of an object; the first goes on behind `- ` if it is an item.
    fn object(&mut self, node: &Node, depth: usize, is_item: bool) {
        let Value::Object(object) = &node.value else { return };
        for (at, entry) in object.entries().iter().enumerate() {
            let place = entry.key_place;
            if at > 0 || !is_item {
                self.lead(place, depth);
                self.indent(depth);
            } else {
                let led = self.comments.before.remove(&place).unwrap_or_default();
                if !led.is_empty() {
                    self.comments.before.insert(place, led);
                    // The dash stands alone, so that the comment comes before the key.
                    let trimmed = self.out.trim_end_matches(' ').len();
                    self.out.truncate(trimmed);
                    self.out.push('\n');
                    self.lead(place, depth);
                    self.indent(depth);
                }
            }
            let key = if self.is_quoted(place) { quoted(&entry.key) } else { entry.key.clone() };
            self.out.push_str(&key);
            self.out.push(':');
            self.value(&entry.value, place, depth);
        }
    }

    /// A value behind its key, with the comment of that line.
    fn value(&mut self, node: &Node, place: Place, depth: usize) {
        let behind = self.comments.behind.remove(&place);
        let behind = behind.map_or_else(String::new, |comment| format!(" {comment}"));
        match &node.value {
            Value::Object(object) if !object.is_empty() => {
                self.out.push_str(&format!("{behind}\n"));
                self.object(node, depth + 1, false);
            }
            Value::Array(items) if !items.is_empty() => match self.short(items) {
                Some(list) => self.out.push_str(&format!(" {list}{behind}\n")),
                None => {
                    self.out.push_str(&format!("{behind}\n"));
                    self.items(items, depth + 1);
                }
            },
            _ => {
                let scalar = self.scalar(node, depth + 1);
                match scalar.split_once('\n') {
                    Some((first, rest)) => self.out.push_str(&format!(" {first}{behind}\n{rest}\n")),
                    None => self.out.push_str(&format!(" {scalar}{behind}\n")),
                }
            }
        }
    }

    fn items(&mut self, items: &[Node], depth: usize) {
        for item in items {
            let first_key = match &item.value {
                Value::Object(object) => object.entries().iter().map(|entry| entry.key_place).min(),
                _ => None,
            };
            // Behind an item that is written on several lines there is no room.
            let is_nested = matches!(&item.value, Value::Object(o) if !o.is_empty())
                || matches!(&item.value, Value::Array(i) if !i.is_empty());
            if is_nested
                && first_key != Some(item.place)
                && let Some(comment) = self.comments.behind.remove(&item.place)
            {
                self.comments.before.entry(item.place).or_default().push(comment);
            }
            self.lead(item.place, depth);
            self.indent(depth);
            self.out.push('-');
            match &item.value {
                Value::Object(object) if !object.is_empty() => {
                    self.out.push(' ');
                    self.object(item, depth + 1, true);
                }
                _ => self.value(item, item.place, depth),
            }
        }
    }

    /// Empty line and comments before what stands there.
    fn lead(&mut self, place: Place, depth: usize) {
        if self.comments.spaced.contains(&place) && !self.out.is_empty() {
            self.comments.spaced.retain(|spaced| *spaced != place);
            self.out.push('\n');
        }
        for comment in self.comments.before.remove(&place).unwrap_or_default() {
            self.indent(depth);
            self.out.push_str(&format!("{comment}\n"));
        }
    }

    fn indent(&mut self, depth: usize) {
        self.out.push_str(&"  ".repeat(depth));
    }

    /// A list of scalars without comments on one line, if it is short.
    fn short(&self, items: &[Node]) -> Option<String> {
        let is_free = |item: &Node| {
            !self.comments.before.contains_key(&item.place) && !self.comments.behind.contains_key(&item.place)
        };
        let scalar = |item: &Node| match &item.value {
            Value::Object(_) | Value::Array(_) => None,
            Value::String(text) if text.contains([',', '[', ']', '{', '}', '\n', ':']) => Some(quoted(text)),
            _ => Some(self.scalar(item, 0)),
        };
        let scalars: Option<Vec<String>> =
            items.iter().map(|item| scalar(item).filter(|_| is_free(item))).collect();
        let list = format!("[{}]", scalars?.join(", "));
        (list.chars().count() <= WIDE).then_some(list)
    }

    /// A value that is neither list nor object with something in it.
    fn scalar(&self, node: &Node, depth: usize) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Array(_) => "[]".to_owned(),
            Value::Object(_) => "{}".to_owned(),
            Value::String(text) => self.text(text, node.place, depth),
        }
    }

    fn text(&self, text: &str, place: Place, depth: usize) -> String {
        let written = self.at(place);
        let is_plain = !self.is_quoted(place) && written.starts_with(text) && !text.is_empty();
        if is_plain && !text.contains('\n') {
            return text.to_owned();
        }
        let block = literal(text, depth).filter(|_| text.contains('\n'));
        block.unwrap_or_else(|| quoted(text))
    }

    /// The line from this place on.
    fn at(&self, place: Place) -> &str {
        let line = usize::try_from(place.line).unwrap_or(0).checked_sub(1);
        let line = line.and_then(|line| self.lines.get(line)).copied().unwrap_or_default();
        let column = usize::try_from(place.column).unwrap_or(1).saturating_sub(1);
        line.char_indices().nth(column).and_then(|(at, _)| line.get(at..)).unwrap_or_default()
    }

    fn is_quoted(&self, place: Place) -> bool {
        self.at(place).starts_with(['"', '\''])
    }
}

/// In double quotes; JSON's are YAML's too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A block with its lines as they are; `None` for what has none that would be read the same.
fn literal(text: &str, depth: usize) -> Option<String> {
    let (marker, lines) = match text.strip_suffix('\n') {
        Some(lines) if !lines.ends_with('\n') => ("|", lines),
        Some(_) => return None,
        None => ("|-", text),
    };
    let is_kept = |line: &str| !line.starts_with([' ', '\t']) || !lines.starts_with(line);
    if lines.is_empty() || lines.contains(['\r', '\t', '\0']) || !lines.lines().all(is_kept) {
        return None;
    }
    let indent = "  ".repeat(depth);
    let body: Vec<String> = lines
        .split('\n')
        .map(|line| if line.is_empty() { String::new() } else { format!("{indent}{line}") })
        .collect();
    Some(format!("{marker}\n{}", body.join("\n")))
}
