//! Where in a document something stands that is told by the path of its field: messages have no places.

use sixfold_core::document::Node;
use sixfold_core::error::Place;

/// Looks a path up in the document. The deepest part of it that is there counts. Keys of maps may hold dots and brackets
/// themselves.
pub(crate) fn place_of(root: &Node, path: &str) -> Place {
    let (mut node, mut place, mut rest) = (root, root.place, path);
    while !rest.is_empty() {
        if let Some((index, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let index = index.parse::<usize>().ok();
            match (index, node.as_array()) {
                (Some(index), Some(items)) => {
                    let Some(item) = items.get(index) else { break };
                    (node, place) = (item, item.place);
                }
                // One value that stands for a list of one.
                (Some(0), None) => {}
                _ => break,
            }
            rest = after.strip_prefix('.').unwrap_or(after);
            continue;
        }
        let ends = |after: &str| after.is_empty() || after.starts_with(['.', '[']);
        let after = |key: &str| rest.strip_prefix(key).filter(|after| ends(after));
        let entries = node.as_object().into_iter().flat_map(|object| object.entries());
        let found = entries.filter_map(|entry| {
            let after = after(&entry.key).or_else(|| after(&snake_case(&entry.key)))?;
            Some((entry, after))
        });
        let Some((entry, after)) = found.min_by_key(|(_, after)| after.len()) else { break };
        (node, place) = (&entry.value, entry.key_place);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    place
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
