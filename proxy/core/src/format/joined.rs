//! Lines of a repeated header as one value, joined once for all who ask while a route is looked for.

use crate::headers::HeaderName;
use std::cell::RefCell;

type Known = Vec<(HeaderName, Vec<u8>)>;

thread_local! {
    /// What was joined; `None` outside of a look-up, when nobody asks often.
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// A time in which a thread looks at one request whose headers do not change.
pub(crate) struct Scope(());

impl Scope {
    /// Begins it. It ends when it is dropped.
    pub(crate) fn begin() -> Scope {
        KNOWN.set(Some(Vec::new()));
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        KNOWN.set(None);
    }
}

/// Has `look` look at the joined lines of a name.
pub(super) fn with<T>(name: &HeaderName, join: impl FnOnce() -> Vec<u8>, look: impl FnOnce(&[u8]) -> T) -> T {
    // Taken out: `look` is free to ask for another value.
    let Some(mut known) = KNOWN.take() else { return look(&join()) };
    let at = known.iter().position(|(of, _)| of == name).unwrap_or_else(|| {
        known.push((name.clone(), join()));
        known.len() - 1
    });
    let found = match known.get(at) {
        Some((_, value)) => look(value),
        None => look(b""),
    };
    KNOWN.set(Some(known));
    found
}
