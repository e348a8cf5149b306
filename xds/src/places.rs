//! Where in a document something stands that is told by the path of its field: messages have no places.

use sixfold_core::document::Node;
use sixfold_core::error::Place;

/// Looks a path up in the document. The deepest part of it that is there counts. Keys of maps may hold dots and brackets
/// themselves.
pub(crate) fn place_of(root: &Node, path: &str) -> Place {
    place_in(std::slice::from_ref(root), path).map_or(root.place, |(_, place)| place)
}

/// Where a path is in one of several documents.
struct Cursor<'d> {
    /// Which document it is.
    document: usize,
    node: &'d Node,
    place: Place,
}

/// [`place_of`] for the path of what documents come to that are merged, each over those before it. Answers in which of them
/// it is, the last where it is in several.
pub(crate) fn place_in(roots: &[Node], path: &str) -> Option<(usize, Place)> {
    let roots = roots.iter().enumerate();
    let mut cursors: Vec<_> =
        roots.map(|(document, node)| Cursor { document, node, place: node.place }).collect();
    let mut rest = path;
    while !rest.is_empty() {
        let next = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((index, after)) => {
                item(&cursors, index).map(|cursor| (vec![cursor], after.strip_prefix('.').unwrap_or(after)))
            }
            None => member(&cursors, rest),
        };
        let Some((found, after)) = next else { break };
        (cursors, rest) = (found, after);
        // What is packed is replaced whole.
        if let Some(last) = cursors.iter().rposition(|cursor| cursor.node.get("@type").is_some()) {
            cursors.drain(..last);
        }
    }
    cursors.last().map(|cursor| (cursor.document, cursor.place))
}

/// An item of lists that are joined.
fn item<'d>(cursors: &[Cursor<'d>], index: &str) -> Option<Cursor<'d>> {
    let mut index = index.parse::<usize>().ok()?;
    for Cursor { document, node, place } in cursors {
        let (count, found) = match node.as_array() {
            Some(items) => (items.len(), items.get(index).map(|item| (item, item.place))),
            // One value that stands for a list of one.
            None if node.is_null() => (0, None),
            None => (1, (index == 0).then_some((*node, *place))),
        };
        if let Some((node, place)) = found {
            return Some(Cursor { document: *document, node, place });
        }
        index -= count;
    }
    None
}

/// The members of objects that a path begins with, and what is left of it.
fn member<'d, 'p>(cursors: &[Cursor<'d>], path: &'p str) -> Option<(Vec<Cursor<'d>>, &'p str)> {
    let ends = |after: &str| after.is_empty() || after.starts_with(['.', '[']);
    let after = |key: &str| path.strip_prefix(key).filter(|after| ends(after));
    let found = cursors.iter().filter_map(|cursor| {
        let entries = cursor.node.as_object().into_iter().flat_map(|object| object.entries());
        let found = entries.filter_map(|entry| {
            let after = after(&entry.key).or_else(|| after(&snake_case(&entry.key)))?;
            Some((entry, after))
        });
        let (entry, after) = found.min_by_key(|(_, after)| after.len())?;
        Some((Cursor { document: cursor.document, node: &entry.value, place: entry.key_place }, after))
    });
    let found: Vec<_> = found.collect();
    let rest = found.iter().map(|(_, after)| *after).min_by_key(|after| after.len())?;
    let found = found.into_iter().filter(|(_, after)| after.len() == rest.len());
    Some((found.map(|(cursor, _)| cursor).collect(), rest.strip_prefix('.').unwrap_or(rest)))
}

/// The path in what documents come to of one in a document that is merged over the `earlier` ones: items of lists stand
/// behind theirs.
pub(crate) fn merged_path(earlier: &[Node], path: &str) -> String {
    let parts = path.split_once('[').and_then(|(list, rest)| Some((list, rest.split_once(']')?)));
    let Some((list, (index, rest))) = parts else { return path.to_owned() };
    let Ok(index) = index.parse::<usize>() else { return path.to_owned() };
    let before: usize = earlier.iter().map(|root| items(root, list)).sum();
    format!("{list}[{}]{rest}", before + index)
}

/// How many items a list has.
fn items(root: &Node, list: &str) -> usize {
    let mut node = root;
    for key in list.split('.') {
        let mut entries = node.as_object().into_iter().flat_map(|object| object.entries());
        let Some(entry) = entries.find(|entry| snake_case(&entry.key) == snake_case(key)) else { return 0 };
        node = &entry.value;
    }
    match node.as_array() {
        Some(items) => items.len(),
        None if node.is_null() => 0,
        None => 1,
    }
}

/// `connect_timeout` of `connectTimeout`.
pub(crate) fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
