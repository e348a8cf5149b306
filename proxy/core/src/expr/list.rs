//! Values that are lists, read once for all conditions that look into one while a route is looked for.

use serde_json::Value;
use std::cell::{Cell, RefCell};

/// A text and the list that it is.
type Known = (Vec<u8>, Vec<Value>);

/// Whether a list that was read is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of a look-up, when nobody asks often.
    Off,
    /// A look-up has begun.
    On,
    /// A list was read in it.
    Used,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Off) };
    /// The list that was read last.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// A time in which many may look into one list.
pub(crate) struct Scope(());

impl Scope {
    /// Begins it. It ends when it is dropped.
    pub(crate) fn begin() -> Scope {
        STATE.set(State::On);
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if STATE.replace(State::Off) == State::Used {
            LAST.take();
        }
    }
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
    if STATE.get() == State::Off {
        return read(text).iter().any(is);
    }
    STATE.set(State::Used);
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(known, _)| known != text) {
            *last = Some((text.to_vec(), read(text)));
        }
        last.iter().flat_map(|(_, items)| items).any(is)
    })
}
