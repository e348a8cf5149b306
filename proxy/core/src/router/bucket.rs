//! Candidates that end at one node of the tree.
//!
//! Many candidates at one node are told apart by the value of a header, a method or a host that each of them
//! asks for, or by a literal that its regex can't do without. They are grouped by that, and a lookup takes the
//! groups the request can mean. The others it leaves out could not have matched.

use super::index::Test;
use super::{MAX_SCANNED, PathMatch};
use crate::fast_hash::{FastMap, FastSet};
use crate::matcher::HeaderTarget;
use crate::regex::{Late, Regex};
use crate::route::{HostPattern, Predicate, Route};
use crate::stream::Stream;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;

/// Fewer candidates than this are not worth groups. Tests group whatever they can.
const GROUP_AT_LEAST: usize = if cfg!(test) { 2 } else { 12 };

/// What is left to the first request that needs it to compile, in what it may scan: some 50 expressions on the way to one
/// path. What is more is compiled with the table, or requests would have no route until it is done. It is a small part,
/// because a request may go through several trees (hosts, their wildcards, those without regard to case), meet several
/// groups by what it repeats, and has texts to scan.
const COMPILED_LATER: usize = MAX_SCANNED / 8;

/// The candidates of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bucket {
    /// A range of the pool's ranks.
    List { at: u32, end: u32 },
    /// Groups of the pool, by number.
    Grouped(u32),
}

/// All candidates of an index.
#[derive(Debug, Default)]
pub(super) struct Pool {
    ranks: Vec<u32>,
    buckets: Vec<Bucket>,
    groups: Vec<Groups>,
    /// By rank, which of a route's conditions holds for every request that its group is taken for, counted from 1; 0
    /// for none. Empty where there are no groups.
    told: Vec<u8>,
}

/// Ranks by the value that their routes ask for, while groups are made.
type Ranks<'a> = FastMap<Cow<'a, [u8]>, SmallVec<[u32; 2]>>;

/// Candidates by the value they ask for.
#[derive(Debug)]
struct ByValue {
    by: Trait,
    /// Lengths of the values where they are beginnings, ascending.
    lengths: Box<[usize]>,
    lists: FastMap<Box<[u8]>, Bucket>,
}

/// Candidates of one node by what they ask for.
#[derive(Debug)]
struct Groups {
    /// The least rank of them all.
    first: u32,
    /// Those that ask for nothing that tells them apart.
    rest: Bucket,
    by: Vec<ByValue>,
    grams: FastMap<u32, Bucket>,
}

/// What tells candidates apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trait {
    Header(HeaderTarget),
    /// What a header begins with.
    Beginning(HeaderTarget),
    /// The host without its port, in lower case.
    Host,
}

/// One way to tell a candidate from others: the values with which it can match.
struct Choice<'a> {
    by: Trait,
    values: SmallVec<[Cow<'a, [u8]>; 1]>,
    /// Which condition says no more than this, counted from 1; 0 for none.
    told: u8,
}

impl Pool {
    /// Takes in the candidates of one node, ascending; answers their number. `behind` is what a request may have to
    /// compile at the nodes that lead here; answers the same with this one.
    pub(super) fn add(
        &mut self,
        ranks: &[u32],
        behind: usize,
        routes: &[Arc<Route>],
        tests: &[Test],
    ) -> (u32, usize) {
        let mut cold = Cold { routes, tests, left: COMPILED_LATER.saturating_sub(behind) };
        let bucket = if ranks.len() < GROUP_AT_LEAST {
            cold.one_of([ranks]);
            self.list(ranks)
        } else {
            self.group(ranks, routes, tests, &mut cold)
        };
        self.buckets.push(bucket);
        (self.buckets.len() as u32 - 1, COMPILED_LATER - cold.left)
    }

    pub(super) fn shrink(&mut self) {
        self.ranks.shrink_to_fit();
        self.buckets.shrink_to_fit();
        self.groups.shrink_to_fit();
    }

    /// The condition of a route that need not be asked about any more once it is a candidate.
    #[inline]
    pub(super) fn told(&self, rank: usize) -> Option<usize> {
        self.told.get(rank).and_then(|told| usize::from(*told).checked_sub(1))
    }

    #[inline]
    pub(super) fn bucket(&self, number: u32) -> Bucket {
        self.buckets.get(number as usize).copied().unwrap_or(Bucket::List { at: 0, end: 0 })
    }

    /// The least rank of a bucket.
    #[inline]
    pub(super) fn first(&self, bucket: Bucket) -> Option<u32> {
        match bucket {
            Bucket::List { at, end } if at < end => self.ranks.get(at as usize).copied(),
            Bucket::List { .. } => None,
            Bucket::Grouped(group) => self.groups.get(group as usize).map(|g| g.first),
        }
    }

    /// What is left of a list behind its first candidate.
    #[inline]
    pub(super) fn next(&self, bucket: Bucket) -> Option<(u32, Bucket)> {
        let Bucket::List { at, end } = bucket else { return None };
        let rest = Bucket::List { at: at + 1, end };
        Some((self.first(rest)?, rest))
    }

    /// Hands out the lists of a group that the request can mean, each once.
    pub(super) fn expand(&self, group: u32, path: &[u8], stream: &Stream, mut take: impl FnMut(Bucket, u32)) {
        let Some(groups) = self.groups.get(group as usize) else { return };
        let mut found: SmallVec<[Bucket; 8]> = SmallVec::new();
        for ByValue { by, lengths, lists: map } in &groups.by {
            match by {
                Trait::Header(target) => {
                    target.each(&stream.request, |value| found.extend(map.get(value).copied()));
                }
                Trait::Beginning(target) => target.each(&stream.request, |value| {
                    let beginnings = lengths.iter().map_while(|len| value.get(..*len));
                    found.extend(beginnings.filter_map(|text| map.get(text).copied()));
                }),
                Trait::Host => {
                    let host: SmallVec<[u8; 64]> =
                        stream.request.server_name().iter().map(u8::to_ascii_lowercase).collect();
                    found.extend(map.get(&host[..]).copied());
                }
            }
        }
        if !groups.grams.is_empty() {
            found.extend(grams(path).filter_map(|gram| groups.grams.get(&gram).copied()));
        }
        // A client may repeat a header or a part of its path without end; a list counts once.
        if found.len() > 1 {
            found.sort_unstable_by_key(|bucket| match bucket {
                Bucket::List { at, .. } | Bucket::Grouped(at) => *at,
            });
            found.dedup();
        }
        for bucket in found.into_iter().chain([groups.rest]) {
            if let Some(first) = self.first(bucket) {
                take(bucket, first);
            }
        }
    }

    fn list(&mut self, ranks: &[u32]) -> Bucket {
        let at = self.ranks.len() as u32;
        self.ranks.extend_from_slice(ranks);
        Bucket::List { at, end: self.ranks.len() as u32 }
    }

    fn group(&mut self, ranks: &[u32], routes: &[Arc<Route>], tests: &[Test], cold: &mut Cold<'_>) -> Bucket {
        let of = |rank: u32| Some((&**routes.get(rank as usize)?, tests.get(rank as usize)?));
        let variety = Variety::of(ranks.iter().filter_map(|rank| of(*rank)));
        let mut rest = Vec::new();
        let mut by: Vec<(Trait, Ranks<'_>)> = Vec::new();
        let mut grams: FastMap<u32, SmallVec<[u32; 2]>> = FastMap::default();
        for &rank in ranks {
            let Some((route, test)) = of(rank) else { continue };
            if let Some(choice) = variety.best(choices(route, test)) {
                let at = by.iter().position(|(t, _)| *t == choice.by).unwrap_or_else(|| {
                    by.push((choice.by, FastMap::default()));
                    by.len() - 1
                });
                if choice.told > 0 {
                    self.told.resize(routes.len(), 0);
                    self.told[rank as usize] = choice.told;
                }
                for value in choice.values {
                    let list = by[at].1.entry(value).or_default();
                    if list.last() != Some(&rank) {
                        list.push(rank);
                    }
                }
            } else if let Some(gram) = variety.rarest(literal(route, test)) {
                grams.entry(gram).or_default().push(rank);
            } else {
                rest.push(rank);
            }
        }
        cold.groups(&rest, &by, &grams);
        if by.is_empty() && grams.is_empty() {
            return self.list(ranks);
        }
        let groups = Groups {
            first: ranks.first().copied().unwrap_or_default(),
            rest: self.list(&rest),
            by: by
                .into_iter()
                .map(|(by, map)| {
                    let lengths =
                        if matches!(by, Trait::Beginning(_)) { lengths(map.keys()) } else { Box::default() };
                    let lists =
                        map.into_iter().map(|(value, list)| (value.as_ref().into(), self.list(&list)));
                    ByValue { by, lengths, lists: lists.collect() }
                })
                .collect(),
            grams: grams.into_iter().map(|(gram, list)| (gram, self.list(&list))).collect(),
        };
        self.groups.push(groups);
        Bucket::Grouped(self.groups.len() as u32 - 1)
    }
}

/// Different values of one trait.
type Values<'a> = FastSet<Cow<'a, [u8]>>;

/// How many different values the candidates of a node ask for.
#[derive(Default)]
struct Variety<'a> {
    values: Vec<(Trait, Values<'a>)>,
    grams: FastMap<u32, u32>,
}

impl<'a> Variety<'a> {
    fn of(candidates: impl Iterator<Item = (&'a Route, &'a Test)>) -> Variety<'a> {
        let mut variety = Variety::default();
        for (route, test) in candidates {
            for choice in choices(route, test) {
                let at = variety.values.iter().position(|(t, _)| *t == choice.by).unwrap_or_else(|| {
                    variety.values.push((choice.by, FastSet::default()));
                    variety.values.len() - 1
                });
                variety.values[at].1.extend(choice.values);
            }
            for gram in grams(literal(route, test)) {
                *variety.grams.entry(gram).or_default() += 1;
            }
        }
        variety
    }

    /// The choice that tells most candidates apart.
    fn best<'c>(&self, choices: impl Iterator<Item = Choice<'c>>) -> Option<Choice<'c>> {
        let values = |by: &Trait| self.values.iter().find(|(t, _)| t == by).map_or(0, |(_, v)| v.len());
        choices.filter(|c| values(&c.by) > 1).max_by_key(|c| values(&c.by))
    }

    /// The four bytes of a literal that the fewest other literals have.
    fn rarest(&self, literal: &[u8]) -> Option<u32> {
        grams(literal).min_by_key(|gram| self.grams.get(gram).copied())
    }
}

/// Every way to tell a route from others.
fn choices<'a>(route: &'a Route, test: &'a Test) -> impl Iterator<Item = Choice<'a>> {
    let of_predicates = route.predicates.iter().enumerate().filter_map(|(at, predicate)| {
        // One beyond the number is asked about again.
        let told = u8::try_from(at + 1).unwrap_or_default();
        match predicate {
            Predicate::Header(matcher) => match (matcher.exact(), matcher.beginning()) {
                (Some((target, value)), _) => {
                    Some(Choice { told, ..Choice::of(Trait::Header(target.clone()), value) })
                }
                (None, Some((target, text))) => Some(Choice::of(Trait::Beginning(target.clone()), text)),
                (None, None) => None,
            },
            Predicate::Methods(list) => Some(Choice {
                by: Trait::Header(HeaderTarget::Method),
                values: list.iter().map(|m| Cow::Borrowed(m.as_str().as_bytes())).collect(),
                told,
            }),
            Predicate::Hosts(list) => by_host(list),
            _ => None,
        }
    });
    let of_test = match test {
        Test::Apisix(parameters) => by_host(parameters.hosts()),
        _ => None,
    };
    of_predicates.chain(of_test)
}

impl<'a> Choice<'a> {
    /// By one value, of which the condition may ask more.
    fn of(by: Trait, value: &'a [u8]) -> Choice<'a> {
        Choice { by, values: [Cow::Borrowed(value)].into_iter().collect(), told: 0 }
    }
}

/// The different lengths of texts, ascending.
fn lengths<'t>(texts: impl Iterator<Item = &'t Cow<'t, [u8]>>) -> Box<[usize]> {
    let mut lengths: Vec<usize> = texts.map(|text| text.len()).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths.into()
}

/// By host, if all of them are whole names that are compared without a port.
fn by_host(hosts: &[HostPattern]) -> Option<Choice<'_>> {
    let mut values = SmallVec::new();
    for host in hosts {
        match host {
            HostPattern::Exact(name) if !name.contains(':') => values.push(Cow::Borrowed(name.as_bytes())),
            _ => return None,
        }
    }
    (!values.is_empty()).then_some(Choice { by: Trait::Host, values, told: 0 })
}

/// What is not compiled yet of the candidates of a node.
struct Cold<'r> {
    routes: &'r [Arc<Route>],
    tests: &'r [Test],
    /// What the requests that come here may still be left to compile.
    left: usize,
}

impl Cold<'_> {
    /// Of the lists of each kind a request has one.
    fn groups(&mut self, rest: &[u32], by: &[(Trait, Ranks<'_>)], grams: &FastMap<u32, SmallVec<[u32; 2]>>) {
        self.one_of([rest]);
        for (by, lists) in by {
            if !matches!(by, Trait::Beginning(_)) {
                self.one_of(lists.values().map(|list| &list[..]));
                continue;
            }
            // A value has a beginning of each length.
            for length in lengths(lists.keys()) {
                let of_length = lists.iter().filter(|(text, _)| text.len() == length);
                self.one_of(of_length.map(|(_, list)| &list[..]));
            }
        }
        self.one_of(grams.values().map(|list| &list[..]));
    }

    /// A request has to try one of these lists: compiles those that would be too much for it.
    fn one_of<'l>(&mut self, lists: impl IntoIterator<Item = &'l [u32]>) {
        let mut most = 0;
        for list in lists {
            let mut cost = 0usize;
            self.each(list, &mut |late| cost = cost.saturating_add(late.cost()));
            if cost > self.left {
                self.each(list, &mut |late| late.prepare());
            } else {
                most = most.max(cost);
            }
        }
        self.left -= most;
    }

    /// Every expression that a list's candidates may need.
    fn each(&self, list: &[u32], take: &mut dyn FnMut(&dyn Late)) {
        for rank in list {
            let rank = *rank as usize;
            let (Some(route), Some(test)) = (self.routes.get(rank), self.tests.get(rank)) else { continue };
            let of_uri = if let Test::Apisix(parameters) = test { parameters.expression() } else { None };
            expression(route, test).into_iter().chain(of_uri).for_each(|regex| take(regex));
            route.predicates.iter().for_each(|predicate| predicate.expressions(take));
        }
    }
}

/// The expression that the whole path must match.
fn expression<'a>(route: &'a Route, test: &Test) -> Option<&'a Regex> {
    match (&route.path, test) {
        (PathMatch::Regex(regex), Test::Whole) => Some(regex),
        (PathMatch::Template(template), Test::Whole) => Some(template.regex()),
        _ => None,
    }
}

/// A literal that every path the route is for must hold.
fn literal<'a>(route: &'a Route, test: &Test) -> &'a [u8] {
    expression(route, test).map_or(&[], Regex::required_literal)
}

/// Every four neighbouring bytes.
fn grams(text: &[u8]) -> impl Iterator<Item = u32> {
    text.windows(4).map(|w| w.iter().fold(0, |gram, byte| gram << 8 | u32::from(*byte)))
}
