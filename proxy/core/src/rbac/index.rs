//! Many policies: only those are asked whose path, or whose name of a client, can be the subject's.

use super::{Condition, Policy};
use crate::fast_hash::FastMap;
use crate::matcher::StringMatcher;
use crate::stream::Stream;
use smallvec::SmallVec;

/// Fewer policies are not worth an index. Tests index whatever they can.
const INDEX_AT_LEAST: usize = if cfg!(test) { 2 } else { 8 };

/// Places of policies by what they can't do without.
#[derive(Debug, Default)]
pub(super) struct Index {
    paths: FastMap<Box<[u8]>, Vec<u32>>,
    /// What paths begin with.
    beginnings: FastMap<Box<[u8]>, Vec<u32>>,
    /// Lengths of the beginnings, ascending.
    lengths: Box<[usize]>,
    /// Names of clients.
    names: FastMap<Box<[u8]>, Vec<u32>>,
    /// Those that can do without any of it.
    rest: Box<[u32]>,
}

/// One of the texts that a policy can't do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need<'c> {
    Path(&'c [u8]),
    Beginning(&'c [u8]),
    Name(&'c [u8]),
}

/// Of a few alternatives one has to be there.
type Needs<'c> = SmallVec<[Need<'c>; 4]>;

impl Index {
    /// `None` if there are few, or nothing tells them apart.
    pub(super) fn new<'p>(policies: impl ExactSizeIterator<Item = &'p Policy>) -> Option<Index> {
        if policies.len() < INDEX_AT_LEAST {
            return None;
        }
        let mut index = Index::default();
        let mut rest = Vec::new();
        let choices: Vec<[Option<Needs<'_>>; 2]> = policies.map(choices).collect();
        // Of paths and names those are looked for first that tell more policies apart.
        let variety =
            [0, 1].map(|kind| variety(choices.iter().filter_map(|choice| choice.get(kind)?.as_ref())));
        let by_name = variety[1] > variety[0];
        for (at, [path, name]) in (0u32..).zip(choices) {
            let (first, second) = if by_name { (name, path) } else { (path, name) };
            let Some(alternatives) = first.or(second) else {
                rest.push(at);
                continue;
            };
            for need in alternatives {
                let (map, text) = match need {
                    Need::Path(text) => (&mut index.paths, text),
                    Need::Beginning(text) => (&mut index.beginnings, text),
                    Need::Name(text) => (&mut index.names, text),
                };
                map.entry(text.into()).or_default().push(at);
            }
        }
        let mut lengths: Vec<usize> = index.beginnings.keys().map(|text| text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let told = index.paths.len() + index.beginnings.len() + index.names.len();
        (told > 0).then(|| Index { lengths: lengths.into(), rest: rest.into(), ..index })
    }

    /// Places of the policies that may fit, ascending.
    pub(super) fn candidates(&self, subject: &Stream) -> SmallVec<[u32; 32]> {
        let mut found: SmallVec<[u32; 32]> = SmallVec::from_slice(&self.rest);
        if !subject.request.target.is_empty() {
            let path = subject.request.target.path();
            found.extend(self.paths.get(path).into_iter().flatten().copied());
            let beginnings = self.lengths.iter().map_while(|len| path.get(..*len));
            found.extend(beginnings.filter_map(|text| self.beginnings.get(text)).flatten().copied());
        }
        if !self.names.is_empty() {
            let peer = subject.connection.tls.as_ref().and_then(|tls| tls.peer.as_deref());
            let names = peer.into_iter().flat_map(super::names_of);
            found.extend(names.filter_map(|name| self.names.get(name.as_bytes())).flatten().copied());
        }
        if found.len() > self.rest.len() {
            found.sort_unstable();
            found.dedup();
        }
        found
    }
}

/// What a policy can't do without: a path, a name.
fn choices(policy: &Policy) -> [Option<Needs<'_>>; 2] {
    [false, true]
        .map(|of_names| needs(&policy.permissions, of_names).or_else(|| needs(&policy.principals, of_names)))
}

/// How many different texts there are.
fn variety<'n, 'c: 'n>(all: impl Iterator<Item = &'n Needs<'c>>) -> usize {
    let mut texts: Vec<&[u8]> = all.flatten().map(|need| need.text()).collect();
    texts.sort_unstable();
    texts.dedup();
    texts.len()
}

impl<'c> Need<'c> {
    fn text(self) -> &'c [u8] {
        match self {
            Need::Path(text) | Need::Beginning(text) | Need::Name(text) => text,
        }
    }
}

/// What a condition can't do without: alternatives, all of which are names, or all of them paths.
fn needs(condition: &Condition, of_names: bool) -> Option<Needs<'_>> {
    let one = |need| Some(SmallVec::from_slice(&[need]));
    match condition {
        Condition::Path(StringMatcher::Exact(text, false)) if !of_names => one(Need::Path(text)),
        Condition::Path(StringMatcher::Prefix(text, false)) if !of_names => one(Need::Beginning(text)),
        Condition::Authenticated(Some(StringMatcher::Exact(text, false))) if of_names => {
            one(Need::Name(text))
        }
        Condition::All(all) => all.iter().find_map(|condition| needs(condition, of_names)),
        Condition::Any(any) => {
            let mut alternatives = Needs::new();
            for condition in any {
                alternatives.extend(needs(condition, of_names)?);
            }
            (!alternatives.is_empty()).then_some(alternatives)
        }
        _ => None,
    }
}
