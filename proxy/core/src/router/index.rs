//! The index of a list of routes: the answer of a scan without scanning.
//!
//! Every route has a rank, its place in the order of precedence. A lookup walks the tree of literal prefixes
//! once and gets a few ascending lists of candidates; those are merged, so that candidates are tried in
//! ascending rank, and the first one that fulfils everything is what a scan would have found.

use super::PathMatch;
use super::apisix::Parameters;
use super::bucket::{Bucket, Pool};
use super::radix::Tree;
use crate::message::Method;
use crate::regex::work;
use crate::route::Route;
use crate::stream::Stream;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;

/// Captures of a match: name and value.
pub(super) type Captures = Vec<(Arc<str>, Vec<u8>)>;

/// What a candidate's path has to be checked for beyond its place in the tree.
#[derive(Debug)]
pub(super) enum Test {
    /// Ends at the node.
    Exact,
    /// Nothing.
    Prefix,
    /// Ends at the node, or goes on with a `/`.
    Separated,
    /// Regexes and templates.
    Whole,
    /// The method is CONNECT.
    Connect,
    /// APISIX: a path, or a prefix and what must hold of the rest.
    Apisix(Arc<Parameters>),
}

/// Routes in ascending order of precedence, and how to find those that a path may mean.
#[derive(Debug, Default)]
pub(super) struct Index {
    routes: Vec<Arc<Route>>,
    tests: Vec<Test>,
    tree: Tree,
    /// Routes that ignore case.
    folded: Tree,
    pool: Pool,
}

/// A list of candidates that is being worked off.
#[derive(Clone, Copy)]
struct Cursor {
    /// Rank of the next candidate.
    head: u32,
    list: Bucket,
    /// Length of the key of the node it is from.
    depth: u32,
}

type Heap = SmallVec<[Cursor; 8]>;

impl Index {
    /// Envoy's order: the position in the list.
    pub(super) fn of_list(routes: Vec<Arc<Route>>) -> Index {
        let tests = routes
            .iter()
            .map(|route| match &route.path {
                PathMatch::Prefix(..) => Test::Prefix,
                PathMatch::Exact(..) => Test::Exact,
                PathMatch::SeparatedPrefix(..) => Test::Separated,
                PathMatch::Regex(_) | PathMatch::Template(_) => Test::Whole,
                PathMatch::Connect => Test::Connect,
            })
            .collect();
        Index::new(routes, tests)
    }

    /// `routes` in ascending order of precedence with their path tests.
    pub(super) fn new(routes: Vec<Arc<Route>>, tests: Vec<Test>) -> Index {
        let (mut plain, mut folded) = (Vec::new(), Vec::new());
        for (rank, (route, test)) in routes.iter().zip(&tests).enumerate() {
            let (key, ignore_case) = key(route, test);
            let key = if ignore_case { Cow::Owned(key.to_ascii_lowercase()) } else { Cow::Borrowed(key) };
            if ignore_case { &mut folded } else { &mut plain }.push((key, rank as u32));
        }
        let mut pool = Pool::default();
        let tree = Tree::new(plain, false, |ranks, behind| pool.add(ranks, behind, &routes, &tests));
        let folded = Tree::new(folded, true, |ranks, behind| pool.add(ranks, behind, &routes, &tests));
        pool.shrink();
        Index { tree, folded, pool, routes, tests }
    }

    pub(super) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The routes with what they ask of a path, in ascending order of precedence.
    pub(super) fn with_tests(&self) -> impl Iterator<Item = (&Arc<Route>, &Test)> {
        self.routes.iter().zip(&self.tests)
    }

    /// The routes of APISIX with what they ask of a path.
    pub(super) fn apisix(&self) -> impl Iterator<Item = (&Arc<Route>, &Arc<Parameters>)> {
        self.routes.iter().zip(&self.tests).filter_map(|(route, test)| match test {
            Test::Apisix(parameters) => Some((route, parameters)),
            _ => None,
        })
    }

    /// The first route that the request fulfils; none once what expressions may scan for it is spent.
    pub(super) fn find(&self, path: &[u8], stream: &Stream, captures: &mut Captures) -> Option<&Arc<Route>> {
        let mut heap = Heap::new();
        let mut visit = |bucket, depth| {
            let list = self.pool.bucket(bucket);
            if let Some(head) = self.pool.first(list) {
                push(&mut heap, Cursor { head, list, depth: depth as u32 });
            }
        };
        self.tree.walk(path, &mut visit);
        self.folded.walk(path, &mut visit);
        while let Some(cursor) = heap.first_mut() {
            if work::is_spent() {
                return None;
            }
            let (rank, list, depth) = (cursor.head as usize, cursor.list, cursor.depth);
            if let Bucket::Grouped(group) = list {
                pop(&mut heap);
                self.pool
                    .expand(group, path, stream, |list, head| push(&mut heap, Cursor { head, list, depth }));
                continue;
            }
            if self.fits(rank, depth as usize, path, stream) {
                let route = self.routes.get(rank)?;
                self.capture(rank, path, captures);
                return Some(route);
            }
            match self.pool.next(list) {
                Some((head, list)) => {
                    *cursor = Cursor { head, list, depth };
                    sift_down(&mut heap);
                }
                None => pop(&mut heap),
            }
        }
        None
    }

    #[inline]
    fn fits(&self, rank: usize, depth: usize, path: &[u8], stream: &Stream) -> bool {
        let (Some(route), Some(test)) = (self.routes.get(rank), self.tests.get(rank)) else { return false };
        let fits = match test {
            Test::Exact => path.len() == depth,
            Test::Prefix => true,
            Test::Separated => path.get(depth).is_none_or(|b| *b == b'/'),
            Test::Whole => route.path.matches(path),
            Test::Connect => stream.request.method == Method::CONNECT,
            Test::Apisix(parameters) => {
                (!parameters.exact || path.len() == depth)
                    && parameters.rest_matches(path, &stream.request.authority)
            }
        };
        // Without a path only CONNECT routes are met, and APISIX's.
        fits && (!path.is_empty() || matches!(test, Test::Connect | Test::Apisix(_)))
            && self.conditions_hold(rank, route, stream)
    }

    /// Whether all holds that a route asks for beside its path and what has made it a candidate.
    #[inline]
    fn conditions_hold(&self, rank: usize, route: &Route, stream: &Stream) -> bool {
        let told = self.pool.told(rank);
        route.predicates.iter().enumerate().all(|(at, p)| told == Some(at) || p.matches(stream))
    }

    fn capture(&self, rank: usize, path: &[u8], captures: &mut Captures) {
        match (self.tests.get(rank), self.routes.get(rank).map(|r| &r.path)) {
            (Some(Test::Apisix(parameters)), _) => parameters.capture(path, captures),
            (Some(Test::Whole), Some(PathMatch::Template(template))) => template.capture(path, captures),
            _ => {}
        }
    }

    /// The same by looking at every route in turn: what the index is checked against.
    pub(super) fn scan(&self, path: &[u8], stream: &Stream) -> Option<&Arc<Route>> {
        self.with_tests().find_map(|(route, test)| {
            let fits = test.holds(route, path, stream);
            (fits && route.predicates.iter().all(|p| p.matches(stream))).then_some(route)
        })
    }
}

impl Test {
    /// Whether a route's path is met, wherever in the tree it lies.
    pub(super) fn holds(&self, route: &Route, path: &[u8], stream: &Stream) -> bool {
        match self {
            Test::Connect => stream.request.method == Method::CONNECT,
            Test::Apisix(parameters) => parameters.matches(path, &stream.request.authority),
            _ => route.path.matches(path),
        }
    }
}

/// The literal that a route's paths begin with, and whether its case counts for nothing.
fn key<'a>(route: &'a Route, test: &'a Test) -> (&'a [u8], bool) {
    if let Test::Apisix(parameters) = test {
        return (&parameters.literal, false);
    }
    match &route.path {
        PathMatch::Prefix(text, fold)
        | PathMatch::Exact(text, fold)
        | PathMatch::SeparatedPrefix(text, fold) => (text, *fold),
        PathMatch::Regex(regex) => (regex.literal_prefix(), false),
        PathMatch::Template(template) => (template.regex().literal_prefix(), false),
        PathMatch::Connect => (&[], false),
    }
}

/// Whether one candidate goes before another. Tests turn it round to see that they would notice.
#[inline]
fn precedes(a: Cursor, b: Cursor) -> bool {
    #[cfg(test)]
    if super::tests::REVERSED.get() {
        return a.head > b.head;
    }
    a.head < b.head
}

fn push(heap: &mut Heap, cursor: Cursor) {
    let mut at = heap.len();
    heap.push(cursor);
    while at > 0 && precedes(heap[at], heap[(at - 1) / 2]) {
        heap.swap(at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
}

fn pop(heap: &mut Heap) {
    if !heap.is_empty() {
        heap.swap_remove(0);
        sift_down(heap);
    }
}

/// Brings the first cursor to its place.
fn sift_down(heap: &mut Heap) {
    let mut at = 0;
    loop {
        let mut least = at;
        for child in [2 * at + 1, 2 * at + 2] {
            if child < heap.len() && precedes(heap[child], heap[least]) {
                least = child;
            }
        }
        if least == at {
            return;
        }
        heap.swap(at, least);
        at = least;
    }
}
