//! Values that are lists, read once for all conditions that look into one while a route is looked for.

use crate::lookup;
use serde_json::Value;
use std::cell::RefCell;

/// A text and the list that it is.
type Known = (Vec<u8>, Vec<Value>);

thread_local! {
    /// The list that was read last.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

#[cfg(test)]
thread_local! {
    /// How many lists this thread has read.
    pub(super) static READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn read(text: &[u8]) -> Vec<Value> {
    #[cfg(test)]
    READ.set(READ.get() + 1);
    serde_json::from_slice(text).unwrap_or_default()
}

/// Looks into the items of a JSON array; what is none has no items.
pub(super) fn any(text: &[u8], is: impl FnMut(&Value) -> bool) -> bool {
    if text.first() != Some(&b'[') {
        return false;
    }
    if !lookup::is_open() {
        return read(text).iter().any(is);
    }
    LAST.with_borrow_mut(|last| {
        if last.is_none() {
            lookup::forget_at_end(|| drop(LAST.take()));
        }
        if last.as_ref().is_none_or(|(known, _)| known != text) {
            *last = Some((text.to_vec(), read(text)));
        }
        last.iter().flat_map(|(_, items)| items).any(is)
    })
}
