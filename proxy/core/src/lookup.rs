//! The time in which a thread looks at one request whose head does not change, as when its route is looked for: what is
//! costly to make of the request is made once for all conditions that ask.

use std::cell::{Cell, RefCell};

thread_local! {
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
    static IS_KEPT: Cell<bool> = const { Cell::new(false) };
    /// Bytes of the request's body that somebody wants, and that were not read.
    static WANTED_BODY: Cell<Option<usize>> = const { Cell::new(None) };
    /// What forgets that which was made in this time.
    static FORGET: RefCell<Vec<fn()>> = const { RefCell::new(Vec::new()) };
}

/// Such a time. It ends when it is dropped; one within another changes nothing.
pub(crate) struct Lookup {
    is_outer: bool,
}

impl Lookup {
    /// Begins it.
    #[inline]
    pub(crate) fn begin() -> Lookup {
        Lookup { is_outer: !IS_OPEN.replace(true) }
    }
}

impl Drop for Lookup {
    #[inline]
    fn drop(&mut self) {
        if !self.is_outer {
            return;
        }
        IS_OPEN.set(false);
        if IS_KEPT.replace(false) {
            FORGET.with_borrow_mut(|all| all.drain(..).for_each(|forget| forget()));
        }
    }
}

/// Whether what is made now may be kept until the end of the look-up.
#[inline]
pub(crate) fn is_open() -> bool {
    IS_OPEN.get()
}

/// Says that what was looked at depends on the request's body, of which nothing was read: as much of it as would do.
pub(crate) fn want_body(bytes: usize) {
    WANTED_BODY.set(Some(WANTED_BODY.get().map_or(bytes, |wanted| wanted.max(bytes))));
}

/// What somebody has wanted since this was asked last.
pub(crate) fn take_wanted_body() -> Option<usize> {
    WANTED_BODY.take()
}

#[cfg(test)]
thread_local! {
    static FORGETS: Cell<usize> = const { Cell::new(0) };
}

/// How many things were to be forgotten at the end of their look-up.
#[cfg(test)]
pub(crate) fn forgotten() -> usize {
    FORGETS.get()
}

/// Has `forget` called at the end of the look-up under way: by whoever keeps the first thing in it.
pub(crate) fn forget_at_end(forget: fn()) {
    IS_KEPT.set(true);
    #[cfg(test)]
    FORGETS.set(FORGETS.get() + 1);
    FORGET.with_borrow_mut(|all| all.push(forget));
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static FORGOTTEN: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn what_is_kept_is_forgotten_at_the_end_of_the_outer_look_up() {
        let forget = || FORGOTTEN.set(FORGOTTEN.get() + 1);
        let outer = Lookup::begin();
        forget_at_end(forget);
        drop(Lookup::begin());
        assert!(is_open() && FORGOTTEN.get() == 0);
        drop(outer);
        assert!(!is_open() && FORGOTTEN.get() == 1);
        drop(Lookup::begin());
        assert_eq!(FORGOTTEN.get(), 1, "nothing was kept");
    }
}
