//! Which plugin is whose: the slot that its state is found by, and its position in the order.

use crate::expr::Expr;
use std::any::Any;
use std::sync::Arc;

/// Identity of a plugin in every chain that one request may meet, and so the key of its state in
/// [`Stream`](crate::stream::Stream).
///
/// It does not depend on what else is in the chain: for a plugin of APISIX it is its factory's index in the
/// registry and the [`Scope`], for a filter of Envoy its index in the connection manager's list, for a part of such a
/// filter that too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

/// Whose plugins a plugin belongs to. The same plugin of a global rule and of a route are two, each with its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The gateway's own, in front of all others.
    Gateway,
    /// Of a global rule.
    Global,
    /// Of a route, what it takes from its service, its plugin config and the consumer among it.
    Route,
}

impl Slot {
    /// The slot of the `index`-th factory or filter.
    pub const fn new(index: u16, scope: Scope) -> Slot {
        Slot(((index as u32) << 2) | scope as u32)
    }

    /// The slot of the `index`-th factory as a part of the `filter`-th filter.
    pub const fn part(filter: u16, index: u16) -> Slot {
        // No scope has this number; 2^14 filters are more than any list has.
        Slot(((filter as u32) << 18) | ((index as u32) << 2) | 3)
    }
}

/// Where a plugin stands in the order of its chain. Positions can be compared over all chains that one request
/// may meet, so a phase goes on behind the same plugin when the chain changes under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    scope: Scope,
    rank: i64,
    slot: Slot,
}

impl Position {
    /// Of a filter of Envoy: the order of the configuration.
    pub fn of_filter(index: u16) -> Position {
        let rank = i64::from(index) << FILTER_SHIFT;
        Position { scope: Scope::Route, rank, slot: Slot::new(index, Scope::Route) }
    }

    /// Of a part of this filter, which is the `index`-th factory of the registry: those of an earlier stage first, in
    /// each the largest priority, equal ones in the order of the registry.
    pub(super) fn part(self, stage: Stage, priority: i64, index: u16) -> Position {
        let filter = self.filter();
        // Whatever fits 32 bits is more than priorities are.
        let order = i64::from(i32::MAX) - priority.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        let rank = (filter << FILTER_SHIFT) | ((stage as i64) << STAGE_SHIFT) | order;
        Position { rank, slot: Slot::part(u16::try_from(filter).unwrap_or(u16::MAX), index), ..self }
    }

    /// Of a filter of Envoy and its parts: its index.
    pub(super) fn filter(self) -> i64 {
        self.rank >> FILTER_SHIFT
    }

    /// Whether it is of a part of a filter.
    pub(super) fn is_part(self) -> bool {
        self.slot.0 & 3 == 3
    }

    /// Of a plugin of APISIX: scopes one after the other, in each the largest priority first, equal ones in the
    /// order of the registry.
    pub fn of_priority(index: u16, scope: Scope, priority: i64) -> Position {
        Position { scope, rank: !priority, slot: Slot::new(index, scope) }
    }

    /// The plugin's slot.
    #[inline]
    pub fn slot(self) -> Slot {
        self.slot
    }
}

/// In a filter's rank: where its index begins, above what its parts are ordered by.
const FILTER_SHIFT: u32 = STAGE_SHIFT + 1;

/// Where the stage of a part is.
const STAGE_SHIFT: u32 = 32;

/// In which of a filter's two turns one of its parts runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// `rewrite` of all of them.
    Rewrite,
    /// Everything else.
    Rest,
}

/// What plugins keep of one request. There are few at a time, so a list is searched faster than a table.
#[derive(Default)]
pub struct PluginStates {
    states: Vec<(Slot, Box<dyn Any + Send>)>,
    /// Whether a plugin with a condition runs for this request. A consumer's, and one of a route that is chosen anew, have the
    /// slot of the one before, and each its own condition.
    decisions: Vec<(Slot, Arc<Expr>, bool)>,
}

impl PluginStates {
    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.states.clear();
        self.decisions.clear();
    }

    pub(crate) fn get<T: 'static>(&mut self, slot: Slot) -> Option<&mut T> {
        self.states.iter_mut().find(|(s, _)| *s == slot)?.1.downcast_mut()
    }

    pub(crate) fn set<T: Any + Send>(&mut self, slot: Slot, state: T) {
        let state: Box<dyn Any + Send> = Box::new(state);
        match self.states.iter_mut().find(|(s, _)| *s == slot) {
            Some(kept) => kept.1 = state,
            None => self.states.push((slot, state)),
        }
    }

    /// Changes a state that begins as the default.
    pub(crate) fn change<T: Any + Send + Default, R>(
        &mut self,
        slot: Slot,
        change: impl FnOnce(&mut T) -> R,
    ) -> R {
        if let Some(state) = self.get(slot) {
            return change(state);
        }
        let mut state = T::default();
        let changed = change(&mut state);
        self.set(slot, state);
        changed
    }

    pub(crate) fn take<T: 'static>(&mut self, slot: Slot) -> Option<Box<T>> {
        let at = self.states.iter().position(|(s, state)| *s == slot && state.is::<T>())?;
        self.states.swap_remove(at).1.downcast().ok()
    }

    pub(crate) fn decision(&self, slot: Slot, when: &Arc<Expr>) -> Option<bool> {
        let is_it = |(s, of, _): &&(Slot, Arc<Expr>, bool)| *s == slot && Arc::ptr_eq(of, when);
        self.decisions.iter().find(is_it).map(|(.., runs)| *runs)
    }

    pub(crate) fn decide(&mut self, slot: Slot, when: &Arc<Expr>, runs: bool) {
        self.decisions.push((slot, when.clone(), runs));
    }
}

impl std::fmt::Debug for PluginStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let states = self.states.iter().map(|(slot, _)| slot);
        let decisions = self.decisions.iter().map(|(slot, _, runs)| (slot, runs));
        f.debug_list().entries(states).entries(decisions).finish()
    }
}
