//! The time in which a thread looks at one request whose head does not change, as when its route is looked for: what is
//! costly to make of the request is made once for all conditions that ask.

use crate::format::BodyVariable;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

thread_local! {
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
    static IS_KEPT: Cell<bool> = const { Cell::new(false) };
    /// What somebody wants of the request's body.
    static WANTS: Cell<Option<Box<Wants>>> = const { Cell::new(None) };
    /// What forgets that which was made in this time.
    static FORGET: RefCell<Vec<fn()>> = const { RefCell::new(Vec::new()) };
}

/// What is to be known of the request's body, and was not when somebody asked.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// So many bytes of it would do; nothing was read.
    pub body: Option<usize>,
    /// They are to be looked for beside the worker ([`crate::format::find_in_body`]).
    pub values: Vec<Arc<BodyVariable>>,
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
    let mut wants = WANTS.take().unwrap_or_default();
    wants.body = wants.body.max(Some(bytes));
    WANTS.set(Some(wants));
}

/// Says that what was looked at depends on such a value.
pub(crate) fn want_value(variable: &Arc<BodyVariable>) {
    // Nobody takes notice at other times.
    if is_open() {
        let mut wants = WANTS.take().unwrap_or_default();
        if !wants.values.iter().any(|wanted| wanted.is(variable)) {
            wants.values.push(variable.clone());
        }
        WANTS.set(Some(wants));
    }
}

/// What somebody has wanted since this was asked last.
#[inline]
pub(crate) fn take_wants() -> Option<Box<Wants>> {
    WANTS.take()
}

/// The bytes of it.
#[cfg(test)]
pub(crate) fn take_wanted_body() -> Option<usize> {
    take_wants()?.body
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
