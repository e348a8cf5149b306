//! Splits a YAML file into the items of its top-level lists, without parsing it.

use super::{Content, Fingerprint, Item, Section};

/// A list that is being read.
struct List {
    section: Section,
    /// Column of its dashes, once the first one was seen.
    indent: Option<usize>,
    items: usize,
}

/// An item that is being read.
struct Open {
    start: usize,
    line: u32,
}

/// The items, or `None` as soon as anything is out of the ordinary.
pub(super) fn split(text: &str) -> Option<Vec<Item<'_>>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Alone, it ends a line in YAML too.
    if text.contains('\r') && text.replace("\r\n", "").contains('\r') {
        return None;
    }
    let mut items = Vec::new();
    let mut seen = Vec::new();
    let mut list: Option<List> = None;
    let mut open: Option<Open> = None;
    let mut offset = 0;
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let start = offset;
        offset += line.len();
        let content = line.trim_end_matches(['\n', '\r']);
        let indent = content.bytes().take_while(|b| *b == b' ').count();
        let rest = content.get(indent..)?;
        if rest.is_empty() {
            continue;
        }
        if rest.starts_with('#') && open.is_none() {
            if !is_printable(rest) {
                return None;
            }
            continue;
        }
        if indent == 0 && !starts_item(rest) && !rest.starts_with('#') {
            close(&mut items, &mut list, open.take(), text.get(..start)?);
            let section = key_line(rest)?;
            if seen.contains(&section) {
                return None;
            }
            seen.push(section);
            list = Some(List { section, indent: None, items: 0 });
            continue;
        }
        let current = list.as_mut()?;
        let level = *current.indent.get_or_insert(indent);
        if rest.starts_with('#') || indent > level {
            // A comment, or more of the item; before the first item there is nothing it could be more of.
            open.as_ref()?;
        } else if indent == level && starts_item(rest) {
            close(&mut items, &mut list, open.replace(Open { start, line: number }), text.get(..start)?);
        } else {
            return None;
        }
    }
    close(&mut items, &mut list, open, text);
    Some(items)
}

/// Ends the item that is open at the end of `text`.
fn close<'a>(items: &mut Vec<Item<'a>>, list: &mut Option<List>, open: Option<Open>, text: &'a str) {
    let (Some(list), Some(open)) = (list, open) else { return };
    list.items += 1;
    let text = text.get(open.start..).unwrap_or_default();
    items.push(Item {
        section: list.section,
        index: list.items,
        line: open.line,
        fingerprint: Fingerprint::of(text),
        content: Content::Text(text),
    });
}

/// A dash with a space or nothing behind it.
fn starts_item(rest: &str) -> bool {
    rest == "-" || rest.starts_with("- ")
}

/// The list that a line `name:` at the left margin begins.
fn key_line(line: &str) -> Option<Section> {
    let (key, behind) = line.split_once(':')?;
    let comment =
        behind.starts_with(' ') && behind.trim_start_matches(' ').starts_with('#') && is_printable(behind);
    (comment || behind.trim_matches(' ').is_empty()).then(|| Section::from_key(key))?
}

/// Whether a comment holds only characters that YAML allows (1.2 section 5.1); the parser says where it does not.
/// Those of items are seen when they are parsed.
fn is_printable(comment: &str) -> bool {
    let forbidden =
        |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    !comment.contains(forbidden)
}
