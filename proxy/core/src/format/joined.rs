//! Values that are costly to make, made once for all who ask while a route is looked for.

use super::graphql::Part;
use crate::headers::HeaderName;
use std::cell::{Cell, RefCell};

/// What is made.
#[derive(PartialEq, Eq)]
pub(super) enum Key {
    /// Lines of a repeated header as one value.
    Header(HeaderName),
    /// What of a GraphQL query.
    Graphql(Part),
}

type Known = Vec<(Key, Option<Vec<u8>>)>;

/// Whether what is made is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of a look-up, when nobody asks often.
    Off,
    /// A look-up has begun.
    On,
    /// Something was made in it.
    Used,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Off) };
    /// What was made.
    static KNOWN: RefCell<Known> = const { RefCell::new(Vec::new()) };
}

/// A time in which a thread looks at one request whose headers do not change.
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
            KNOWN.take();
        }
    }
}

/// Has `look` look at the value of a key.
pub(super) fn with<T>(
    key: Key,
    make: impl FnOnce() -> Option<Vec<u8>>,
    look: impl FnOnce(Option<&[u8]>) -> T,
) -> T {
    // Off while it looks: `look` is free to ask for another value.
    if STATE.replace(State::Off) == State::Off {
        return look(make().as_deref());
    }
    let mut known = KNOWN.take();
    let at = known.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
        known.push((key, make()));
        known.len() - 1
    });
    let found = look(known.get(at).and_then(|(_, value)| value.as_deref()));
    KNOWN.set(known);
    STATE.set(State::Used);
    found
}
