//! Lines of a repeated header as one value, joined once for all who ask while a route is looked for.

use crate::headers::HeaderName;
use std::cell::{Cell, RefCell};

type Known = Vec<(HeaderName, Vec<u8>)>;

/// Whether what is joined is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of a look-up, when nobody asks often.
    Off,
    /// A look-up has begun.
    On,
    /// It has joined something.
    Used,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Off) };
    /// What was joined.
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

/// Has `look` look at the joined lines of a name.
pub(super) fn with<T>(name: &HeaderName, join: impl FnOnce() -> Vec<u8>, look: impl FnOnce(&[u8]) -> T) -> T {
    // Off while it looks: `look` is free to ask for another value.
    if STATE.replace(State::Off) == State::Off {
        return look(&join());
    }
    let mut known = KNOWN.take();
    let at = known.iter().position(|(of, _)| of == name).unwrap_or_else(|| {
        known.push((name.clone(), join()));
        known.len() - 1
    });
    let found = match known.get(at) {
        Some((_, value)) => look(value),
        None => look(b""),
    };
    KNOWN.set(known);
    STATE.set(State::Used);
    found
}
