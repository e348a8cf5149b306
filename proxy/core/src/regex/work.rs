//! How much a thread may still scan: what bounds the work of many expressions on one request.
//!
//! One linear expression on one text costs little. Thousands of them on a path of 30 KB hold a worker for half a
//! second, and the client chooses the path. Expressions charge what they scan to an allowance of their thread, and what
//! compiling them takes where they are needed for the first time; who tries many of them grants it and looks whether
//! it is spent.

use std::cell::Cell;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What fixed parts of an expression cost beside its automaton: so many bytes count as one.
const LITERAL: usize = 8;

/// What a backtracking pattern costs beside a linear one.
const BACKTRACKING: usize = 4;

/// What compiling an expression costs, with the first use of its automaton: 12 us and 0.65 us for each state, where
/// [`charge_automaton`] has 0.4 bytes a nanosecond.
const COMPILING: usize = 5 << 10;
const COMPILING_STATE: usize = 256;

/// What one more form of a backtracking pattern costs: some 200 us.
pub(super) const COMPILING_BACKTRACKING: usize = 80 << 10;

/// Lets the thread's expressions scan this many bytes from now on.
pub(crate) fn grant(bytes: usize) {
    LEFT.set(bytes);
}

/// Whether all that was granted has been used.
#[inline]
pub(crate) fn is_spent() -> bool {
    LEFT.get() == 0
}

#[inline]
fn charge(bytes: usize) {
    LEFT.set(LEFT.get().saturating_sub(bytes));
}

#[inline]
pub(super) fn charge_automaton(text: &[u8]) {
    charge(text.len());
}

#[inline]
pub(super) fn charge_literal(text: &[u8]) {
    charge(text.len() / LITERAL);
}

#[cold]
pub(super) fn charge_compiling(states: usize) {
    charge(cost_of_compiling(states));
}

pub(super) fn cost_of_compiling(states: usize) -> usize {
    COMPILING.saturating_add(states.saturating_mul(COMPILING_STATE))
}

#[cold]
pub(super) fn charge_compiling_backtracking() {
    charge(COMPILING_BACKTRACKING);
}

pub(super) fn charge_backtracking(text: &[u8]) {
    charge(text.len().saturating_mul(BACKTRACKING));
}
