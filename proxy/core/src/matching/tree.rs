//! Trees of choices.

use super::input::{Input, Subject};
use super::list::List;
use super::predicate::Predicate;
use crate::fast_hash::FastMap;
use crate::regex::work;
use crate::router::Radix;
use ipnet::IpNet;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::net::IpAddr;

/// A tree that leads to actions. A branch that leads to none is as if it had not been taken: what comes behind it is
/// tried, and at the end what the tree has for those that nothing fits.
#[derive(Debug)]
pub struct Tree<A> {
    choice: Choice<A>,
    otherwise: Option<Box<Then<A>>>,
}

/// What follows from a choice.
#[derive(Debug)]
pub enum Then<A> {
    /// An action.
    Act(A),
    /// Another choice.
    Choose(Box<Tree<A>>),
}

/// Ranges of addresses and what follows from them (`xds.type.matcher.v3.IPMatcher`).
#[derive(Debug)]
pub struct Range<A> {
    /// The ranges.
    pub ranges: Vec<IpNet>,
    /// What follows.
    pub then: Then<A>,
    /// Wider ranges are not tried if this one leads to no action.
    pub exclusive: bool,
}

#[derive(Debug)]
enum Choice<A> {
    Nothing,
    List(List<A>),
    Exact(Input, FastMap<Box<[u8]>, Then<A>>),
    Prefix(Input, Prefixes<A>),
    Ip(Input, Ranges<A>),
    Names(Input, Names<A>),
}

/// The longest beginning first.
#[derive(Debug)]
struct Prefixes<A> {
    tree: Radix,
    items: Box<[Then<A>]>,
}

/// The narrowest range first, equal ones in their order.
#[derive(Debug)]
struct Ranges<A> {
    /// By length, the longest first.
    lengths: Vec<(u8, FastMap<IpNet, Vec<u32>>)>,
    items: Box<[(Then<A>, bool)]>,
}

/// Whole names, then the longest of what they end with (`*.example.com`), then any (`*`).
#[derive(Debug)]
struct Names<A> {
    whole: FastMap<Box<str>, u32>,
    /// By what follows `*`.
    suffixes: FastMap<Box<str>, u32>,
    any: Option<u32>,
    items: Box<[Then<A>]>,
}

impl<A> Then<A> {
    pub(super) fn find(&self, subject: Subject<'_>) -> Option<&A> {
        match self {
            Then::Act(action) => Some(action),
            Then::Choose(tree) => tree.find(subject),
        }
    }

    pub(super) fn each<'t>(&'t self, take: &mut dyn FnMut(&'t A)) {
        match self {
            Then::Act(action) => take(action),
            Then::Choose(tree) => tree.each(take),
        }
    }
}

impl<A> Tree<A> {
    fn of(choice: Choice<A>, otherwise: Option<Then<A>>) -> Tree<A> {
        Tree { choice, otherwise: otherwise.map(Box::new) }
    }

    /// Nothing to choose: `otherwise` is for all.
    pub fn any(otherwise: Option<Then<A>>) -> Tree<A> {
        Tree::of(Choice::Nothing, otherwise)
    }

    /// The first condition that holds (`matcher_list`).
    pub fn list(items: Vec<(Predicate, Then<A>)>, otherwise: Option<Then<A>>) -> Tree<A> {
        Tree::of(Choice::List(List::new(items)), otherwise)
    }

    /// By the whole text (`exact_match_map`).
    pub fn exact(input: Input, items: Vec<(String, Then<A>)>, otherwise: Option<Then<A>>) -> Tree<A> {
        let items = items.into_iter().map(|(text, then)| (text.into_bytes().into(), then));
        Tree::of(Choice::Exact(input, items.collect()), otherwise)
    }

    /// By what the text begins with, the longest first (`prefix_match_map`).
    pub fn prefix(input: Input, items: Vec<(String, Then<A>)>, otherwise: Option<Then<A>>) -> Tree<A> {
        let entries = items.iter().zip(0u32..).map(|((text, _), at)| (Cow::Borrowed(text.as_bytes()), at));
        // Each beginning is there once.
        let tree = Radix::new(entries.collect(), false, |at, _| (at.first().copied().unwrap_or_default(), 0));
        let items = items.into_iter().map(|(_, then)| then).collect();
        Tree::of(Choice::Prefix(input, Prefixes { tree, items }), otherwise)
    }

    /// By ranges of addresses, the narrowest first.
    pub fn ip(input: Input, items: Vec<Range<A>>, otherwise: Option<Then<A>>) -> Tree<A> {
        let mut lengths: Vec<(u8, FastMap<IpNet, Vec<u32>>)> = Vec::new();
        for (item, at) in items.iter().zip(0u32..) {
            for range in item.ranges.iter().map(IpNet::trunc) {
                let place = lengths.partition_point(|(len, _)| *len > range.prefix_len());
                if lengths.get(place).is_none_or(|(len, _)| *len != range.prefix_len()) {
                    lengths.insert(place, (range.prefix_len(), FastMap::default()));
                }
                if let Some((_, map)) = lengths.get_mut(place) {
                    map.entry(range).or_default().push(at);
                }
            }
        }
        let items = items.into_iter().map(|item| (item.then, item.exclusive)).collect();
        Tree::of(Choice::Ip(input, Ranges { lengths, items }), otherwise)
    }

    /// By server names (`xds.type.matcher.v3.ServerNameMatcher`).
    pub fn names(input: Input, items: Vec<(Vec<String>, Then<A>)>, otherwise: Option<Then<A>>) -> Tree<A> {
        let (mut whole, mut suffixes, mut any) = (FastMap::default(), FastMap::default(), None);
        for ((names, _), at) in items.iter().zip(0u32..) {
            for name in names {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix('*') {
                    Some("") => drop(any.get_or_insert(at)),
                    Some(suffix) => drop(suffixes.entry(suffix.into()).or_insert(at)),
                    None => drop(whole.entry(name.into()).or_insert(at)),
                }
            }
        }
        let items = items.into_iter().map(|(_, then)| then).collect();
        Tree::of(Choice::Names(input, Names { whole, suffixes, any, items }), otherwise)
    }

    /// The action for somebody, if the tree leads to one.
    pub fn find(&self, subject: Subject<'_>) -> Option<&A> {
        let found = match &self.choice {
            Choice::Nothing => None,
            Choice::List(list) => list.find(subject),
            Choice::Exact(input, items) => {
                let then = input.with(subject, |text| items.get(text?));
                then.and_then(|then| then.find(subject))
            }
            Choice::Prefix(input, prefixes) => prefixes.find(input, subject),
            Choice::Ip(input, ranges) => input.ip(subject).and_then(|ip| ranges.find(ip, subject)),
            Choice::Names(input, names) => names.find(input, subject),
        };
        match &self.otherwise {
            Some(otherwise) if found.is_none() && !work::is_spent() => otherwise.find(subject),
            _ => found,
        }
    }

    /// Hands out every action of the tree.
    pub fn each<'t>(&'t self, take: &mut dyn FnMut(&'t A)) {
        match &self.choice {
            Choice::Nothing => {}
            Choice::List(list) => list.each(take),
            Choice::Exact(_, items) => items.values().for_each(|then| then.each(take)),
            Choice::Prefix(_, Prefixes { items, .. }) | Choice::Names(_, Names { items, .. }) => {
                items.iter().for_each(|then| then.each(take));
            }
            Choice::Ip(_, ranges) => ranges.items.iter().for_each(|(then, _)| then.each(take)),
        }
        if let Some(otherwise) = &self.otherwise {
            otherwise.each(take);
        }
    }

    /// The same without any index of lists, for tests.
    #[cfg(test)]
    pub(super) fn scan(&self, subject: Subject<'_>) -> Option<&A> {
        match &self.choice {
            Choice::List(list) => list.scan(subject),
            _ => self.find(subject),
        }
    }
}

impl<A> Prefixes<A> {
    fn find(&self, input: &Input, subject: Subject<'_>) -> Option<&A> {
        let mut found: SmallVec<[u32; 8]> = SmallVec::new();
        input.with(subject, |text| {
            if let Some(text) = text {
                self.tree.walk(text, &mut |at, _| found.push(at));
            }
        });
        // From the shortest on they are found.
        let items = found.iter().rev().filter_map(|at| self.items.get(*at as usize));
        items.map(|then| then.find(subject)).find(|found| found.is_some() || work::is_spent()).flatten()
    }
}

impl<A> Ranges<A> {
    fn find(&self, ip: IpAddr, subject: Subject<'_>) -> Option<&A> {
        for (len, map) in &self.lengths {
            let Ok(range) = IpNet::new(ip, *len) else { continue };
            for at in map.get(&range.trunc()).into_iter().flatten() {
                let Some((then, exclusive)) = self.items.get(*at as usize) else { continue };
                let found = then.find(subject);
                if found.is_some() || *exclusive || work::is_spent() {
                    return found;
                }
            }
        }
        None
    }
}

impl<A> Names<A> {
    fn find(&self, input: &Input, subject: Subject<'_>) -> Option<&A> {
        let mut found: SmallVec<[u32; 4]> = SmallVec::new();
        input.with(subject, |text| {
            let Some(name) = text.and_then(|text| std::str::from_utf8(text).ok()) else { return };
            found.extend(self.whole.get(name).copied());
            let dots = name.char_indices().skip(1).filter(|(_, c)| *c == '.');
            found.extend(
                dots.filter_map(|(at, _)| name.get(at..)).filter_map(|end| self.suffixes.get(end)).copied(),
            );
            found.extend(self.any);
        });
        let items = found.iter().filter_map(|at| self.items.get(*at as usize));
        items.map(|then| then.find(subject)).find(|found| found.is_some() || work::is_spent()).flatten()
    }
}
