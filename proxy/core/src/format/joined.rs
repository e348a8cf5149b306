//! Values that are costly to make, made once for all who ask while a route is looked for.

use super::graphql::Part;
use crate::headers::HeaderName;
use crate::lookup;
use std::cell::RefCell;

/// What is made.
#[derive(PartialEq, Eq)]
pub(super) enum Key {
    /// Lines of a repeated header as one value.
    Header(HeaderName),
    /// What of a GraphQL query.
    Graphql(Part),
}

type Known = Vec<(Key, Option<Vec<u8>>)>;

thread_local! {
    /// What was made.
    static KNOWN: RefCell<Known> = const { RefCell::new(Vec::new()) };
}

/// Has `look` look at the value of a key.
pub(super) fn with<T>(
    key: Key,
    make: impl FnOnce() -> Option<Vec<u8>>,
    look: impl FnOnce(Option<&[u8]>) -> T,
) -> T {
    if !lookup::is_open() {
        return look(make().as_deref());
    }
    // Taken while it looks: `look` is free to ask for another value.
    let mut known = KNOWN.take();
    if known.is_empty() {
        lookup::forget_at_end(|| drop(KNOWN.take()));
    }
    let at = known.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
        known.push((key, make()));
        known.len() - 1
    });
    let found = look(known.get(at).and_then(|(_, value)| value.as_deref()));
    KNOWN.set(known);
    found
}
