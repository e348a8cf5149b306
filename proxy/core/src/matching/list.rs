//! Lists: the first condition that holds decides.

use super::input::{Input, Subject};
use super::predicate::Predicate;
use super::tree::Then;
use crate::fast_hash::FastMap;
use crate::regex::work;
use smallvec::SmallVec;

/// Shorter lists are not worth an index. Tests index whatever they can.
const INDEX_AT_LEAST: usize = if cfg!(test) { 2 } else { 8 };

/// A list of conditions and what follows from each.
#[derive(Debug)]
pub(super) struct List<A> {
    items: Box<[(Predicate, Then<A>)]>,
    index: Option<Index>,
}

/// Positions by what their conditions can't do without.
#[derive(Debug)]
struct Index {
    by: Vec<ByInput>,
    /// Those that can do without anything.
    rest: Box<[u32]>,
}

#[derive(Debug)]
struct ByInput {
    input: Input,
    whole: FastMap<Box<[u8]>, Vec<u32>>,
    beginnings: FastMap<Box<[u8]>, Vec<u32>>,
    /// Lengths of the beginnings, ascending.
    lengths: Box<[usize]>,
}

impl<A> List<A> {
    pub(super) fn new(items: Vec<(Predicate, Then<A>)>) -> List<A> {
        let index = (items.len() >= INDEX_AT_LEAST).then(|| Index::new(&items)).flatten();
        List { items: items.into(), index }
    }

    pub(super) fn each<'t>(&'t self, take: &mut dyn FnMut(&'t A)) {
        self.items.iter().for_each(|(_, then)| then.each(take));
    }

    pub(super) fn find(&self, subject: Subject<'_>) -> Option<&A> {
        match &self.index {
            None => self.first(0..self.items.len(), subject),
            Some(index) => {
                let candidates = index.candidates(subject);
                self.first(candidates.iter().map(|at| *at as usize), subject)
            }
        }
    }

    fn first(&self, candidates: impl Iterator<Item = usize>, subject: Subject<'_>) -> Option<&A> {
        for at in candidates {
            let Some((predicate, then)) = self.items.get(at) else { continue };
            let found = if predicate.holds(subject) { then.find(subject) } else { None };
            // Nobody knows what a condition would have said that could not be tried to its end.
            if found.is_some() || work::is_spent() {
                return found;
            }
        }
        None
    }

    /// The same without the index: what it is checked against.
    #[cfg(test)]
    pub(super) fn scan(&self, subject: Subject<'_>) -> Option<&A> {
        self.first(0..self.items.len(), subject)
    }
}

impl Index {
    /// `None` if it would tell nothing apart.
    fn new<A>(items: &[(Predicate, Then<A>)]) -> Option<Index> {
        let mut by: Vec<ByInput> = Vec::new();
        let mut rest = Vec::new();
        for (at, (predicate, _)) in (0u32..).zip(items) {
            let Some(need) = predicate.need() else {
                rest.push(at);
                continue;
            };
            let place = by.iter().position(|of| of.input == *need.input).unwrap_or_else(|| {
                by.push(ByInput::new(need.input));
                by.len() - 1
            });
            if let Some(of) = by.get_mut(place) {
                let map = if need.whole { &mut of.whole } else { &mut of.beginnings };
                map.entry(need.text.into()).or_default().push(at);
            }
        }
        by.iter_mut().for_each(ByInput::finish);
        (!by.is_empty()).then(|| Index { by, rest: rest.into() })
    }

    /// Positions that a subject can mean, ascending.
    fn candidates(&self, subject: Subject<'_>) -> SmallVec<[u32; 32]> {
        let mut found: SmallVec<[u32; 32]> = SmallVec::from_slice(&self.rest);
        for of in &self.by {
            of.input.with(subject, |text| {
                let Some(text) = text else { return };
                found.extend(of.whole.get(text).into_iter().flatten().copied());
                let beginnings = of.lengths.iter().map_while(|len| text.get(..*len));
                found.extend(beginnings.filter_map(|text| of.beginnings.get(text)).flatten().copied());
            });
        }
        if found.len() > self.rest.len() {
            found.sort_unstable();
        }
        found
    }
}

impl ByInput {
    fn new(input: &Input) -> ByInput {
        let (whole, beginnings) = (FastMap::default(), FastMap::default());
        ByInput { input: input.clone(), whole, beginnings, lengths: Box::default() }
    }

    fn finish(&mut self) {
        let mut lengths: Vec<usize> = self.beginnings.keys().map(|text| text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        self.lengths = lengths.into();
    }
}
