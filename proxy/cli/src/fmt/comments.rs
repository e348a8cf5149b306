//! Comments of a YAML text, and the keys and items that they are about.

use serde_json::Value;
use sixfold_core::error::{ConfigError, Place};
use std::collections::BTreeMap;

/// A comment.
#[derive(Debug, Clone, PartialEq)]
struct Comment {
    place: Place,
    /// From `#` on.
    text: String,
    /// Whether its line has nothing else.
    is_alone: bool,
}

/// All comments of a text.
#[derive(Debug, Clone)]
pub(super) struct Comments {
    found: Vec<Comment>,
    /// Lines that are empty, from 1.
    pub(super) blank: Vec<u32>,
}

/// Comments by what they are written beside.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// On lines before it.
    pub(super) before: BTreeMap<Place, Vec<String>>,
    /// Behind it on its line.
    pub(super) behind: BTreeMap<Place, String>,
    /// After everything.
    pub(super) tail: Vec<String>,
    /// What an empty line stands before.
    pub(super) spaced: Vec<Place>,
}

impl Comments {
    /// Finds them. `document` is what the text says: each `#` of the text must be one of it, or in a comment.
    ///
    /// # Errors
    /// A text in which comments can't be told for sure; one with anchors, aliases, tags or directives.
    pub(super) fn of(text: &str, document: &Value) -> Result<Comments, ConfigError> {
        let (mut found, mut blank) = (Vec::new(), Vec::new());
        let (mut block, mut quote) = (None, None);
        for (index, line) in text.lines().enumerate() {
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let indent = line.len() - line.trim_start().len();
            if line.trim().is_empty() {
                blank.push(number);
                continue;
            }
            // A block scalar goes on as long as lines are indented more than what it is the value of.
            if block.is_some_and(|above| indent > above) {
                continue;
            }
            block = None;
            let begins_quoted = quote.is_some();
            let at = comment_start(line, &mut quote);
            let code = line.get(..at.unwrap_or(line.len())).unwrap_or_default();
            if let Some(text) = at.and_then(|at| line.get(at..)) {
                let column = u32::try_from(code.chars().count() + 1).unwrap_or(u32::MAX);
                let is_alone = code.trim().is_empty() && !begins_quoted;
                found.push(Comment {
                    place: Place::new(number, column),
                    text: text.trim_end().to_owned(),
                    is_alone,
                });
            }
            let code = code.trim_end();
            let marker = code.rsplit([' ', ':']).next().unwrap_or_default();
            if quote.is_none()
                && marker.starts_with(['|', '>'])
                && marker.get(1..).is_some_and(|rest| rest.bytes().all(|b| b"+-0123456789".contains(&b)))
            {
                block = Some(indent + list_depth(code));
            }
            if !begins_quoted && (code.starts_with('%') || has_property(code)) {
                return Err(ConfigError::new("anchors, aliases, tags and directives would not be kept")
                    .at(Place::new(number, 1)));
            }
        }
        let hashes = |text: &str| text.matches('#').count();
        let in_comments: usize = found.iter().map(|comment| hashes(&comment.text)).sum();
        if in_comments + hashes_of(document) != hashes(text) {
            return Err(ConfigError::new("comments can't be told from the rest, and would not be kept"));
        }
        Ok(Comments { found, blank })
    }

    /// Their texts, in any order.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.found.iter().map(|comment| comment.text.clone()).collect();
        texts.sort();
        texts
    }

    /// Those about each of these keys and items.
    pub(super) fn attach(self, places: &mut Vec<Place>) -> Attached {
        places.sort();
        places.dedup();
        let mut attached = Attached::default();
        for comment in self.found {
            let line = comment.place.line;
            let beside =
                places.iter().find(|place| place.line == line && place.column < comment.place.column);
            let next = places.iter().find(|place| **place > comment.place);
            match (beside, next) {
                (Some(beside), _) if !comment.is_alone => {
                    attached.behind.insert(*beside, comment.text);
                }
                (_, Some(next)) => attached.before.entry(*next).or_default().push(comment.text),
                (_, None) => attached.tail.push(comment.text),
            }
        }
        for place in places.iter() {
            let lines = attached.before.get(place).map_or(0, Vec::len);
            let first = place.line.saturating_sub(u32::try_from(lines).unwrap_or(0));
            let is_first_of_line = places.iter().find(|other| other.line == place.line) == Some(place);
            if is_first_of_line && self.blank.contains(&first.saturating_sub(1)) {
                attached.spaced.push(*place);
            }
        }
        attached
    }
}

/// How much deeper than its line what comes behind `- ` of it is: its own items have that indent, not the line's.
fn list_depth(code: &str) -> usize {
    let mut rest = code.trim_start();
    let mut depth = 0;
    while let Some(behind) = rest.strip_prefix("- ").filter(|behind| behind.contains(':')) {
        depth += 2 + behind.len() - behind.trim_start().len();
        rest = behind.trim_start();
    }
    depth
}

/// Where the comment of a line begins, in bytes. `quote` is the quotation mark that is open, which lines pass on.
fn comment_start(line: &str, quote: &mut Option<char>) -> Option<usize> {
    let mut before = ' ';
    let mut escaped = false;
    for (at, char) in line.char_indices() {
        match *quote {
            Some('"') if escaped => escaped = false,
            Some('"') if char == '\\' => escaped = true,
            Some(open) if char == open => *quote = None,
            Some(_) => {}
            None if char == '#' && before.is_whitespace() => return Some(at),
            None if matches!(char, '"' | '\'') && (before.is_whitespace() || "[{,:".contains(before)) => {
                *quote = Some(char);
            }
            // The second of two within single quotes opens what the first has closed.
            None if char == '\'' && before == '\'' => *quote = Some(char),
            None => {}
        }
        before = char;
    }
    None
}

/// Whether the line has an anchor, an alias or a tag.
fn has_property(code: &str) -> bool {
    let mut rest = code;
    while let Some(at) = rest.find(['&', '*', '!']) {
        let (before, behind) = rest.split_at(at);
        let begins = before.trim_end().is_empty() && before.len() == at
            || before.ends_with(' ') && before.trim_end().ends_with([':', '-', ',', '[', '{'])
            || before.ends_with(['[', '{', ',']);
        let mut behind = behind.chars();
        behind.next();
        if begins && behind.clone().next().is_some_and(|char| char.is_ascii_alphanumeric() || char == '!') {
            return true;
        }
        rest = behind.as_str();
    }
    false
}

fn hashes_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.matches('#').count(),
        Value::Array(items) => items.iter().map(hashes_of).sum(),
        Value::Object(object) => {
            object.iter().map(|(key, value)| key.matches('#').count() + hashes_of(value)).sum()
        }
        _ => 0,
    }
}
