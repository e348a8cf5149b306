//! Many policies: only those are asked whose path, or whose client by its name or its address, can be the subject's.

use super::{Condition, Policy};
use crate::fast_hash::FastMap;
use crate::matcher::StringMatcher;
use crate::stream::Stream;
use ipnet::IpNet;
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

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
    /// Parts of names of clients, from one slash to the next or the end: `ns`, `shop`, `sa`, `frontend`.
    parts: FastMap<Box<[u8]>, Vec<u32>>,
    /// Ranges of addresses of clients.
    ranges: FastMap<(Side, IpNet), Vec<u32>>,
    /// Which ranges there are, each once: of which address, and how long their prefixes are.
    prefixes: Box<[(Side, bool, u8)]>,
    /// Those that can do without any of it.
    rest: Box<[u32]>,
}

/// Which address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Side {
    Source,
    Direct,
    Remote,
}

/// One of the things that a policy can't do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Need<'c> {
    Path(&'c [u8]),
    Beginning(&'c [u8]),
    Name(&'c [u8]),
    Part(&'c [u8]),
    Range(Side, IpNet),
}

/// What alternatives are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Paths,
    Names,
    Address(Side),
}

/// Of policies that have several kinds, the first is looked for unless another tells more apart.
const KINDS: [About; 5] = [
    About::Paths,
    About::Names,
    About::Address(Side::Direct),
    About::Address(Side::Remote),
    About::Address(Side::Source),
];

/// Of a few alternatives one has to be there.
type Needs<'c> = SmallVec<[Need<'c>; 4]>;

/// How many policies have a part of names somewhere.
type Crowds<'c> = HashMap<&'c [u8], u32>;

impl Index {
    /// `None` if there are few, or nothing tells them apart.
    pub(super) fn new<'p>(policies: impl ExactSizeIterator<Item = &'p Policy>) -> Option<Index> {
        if policies.len() < INDEX_AT_LEAST {
            return None;
        }
        let policies: Vec<&Policy> = policies.collect();
        let mut parts = Crowds::new();
        for policy in &policies {
            count_parts(&policy.permissions, &mut parts);
            count_parts(&policy.principals, &mut parts);
        }
        let choices: Vec<Vec<Needs<'_>>> = policies.iter().map(|policy| choices(policy, &parts)).collect();
        let mut crowds: HashMap<Need<'_>, u32> = HashMap::new();
        for need in choices.iter().flatten().flatten() {
            *crowds.entry(*need).or_default() += 1;
        }
        // Of what a policy can't do without that is looked for which it shares with the fewest others.
        let crowd = |needs: &Needs<'_>| needs.iter().filter_map(|need| crowds.get(need)).max().copied();
        let mut index = Index::default();
        let (mut rest, mut told) = (Vec::new(), 0);
        for (at, choices) in (0u32..).zip(&choices) {
            let Some(needs) = choices.iter().min_by_key(|needs| crowd(needs)) else {
                rest.push(at);
                continue;
            };
            needs.iter().for_each(|need| index.add(*need, at));
            told += 1;
        }
        let lengths: BTreeSet<usize> = index.beginnings.keys().map(|text| text.len()).collect();
        let prefixes = index.ranges.keys().map(|(side, net)| (*side, net.addr().is_ipv4(), net.prefix_len()));
        let prefixes: BTreeSet<(Side, bool, u8)> = prefixes.collect();
        index.prefixes = prefixes.into_iter().collect();
        index.lengths = lengths.into_iter().collect();
        index.rest = rest.into();
        (told > 0).then_some(index)
    }

    fn add(&mut self, need: Need<'_>, at: u32) {
        let places = match need {
            Need::Path(text) => self.paths.entry(text.into()).or_default(),
            Need::Beginning(text) => self.beginnings.entry(text.into()).or_default(),
            Need::Name(text) => self.names.entry(text.into()).or_default(),
            Need::Part(text) => self.parts.entry(text.into()).or_default(),
            Need::Range(side, net) => self.ranges.entry((side, net)).or_default(),
        };
        places.push(at);
    }

    /// Places of the policies that may fit, ascending.
    pub(super) fn candidates(&self, subject: &Stream) -> SmallVec<[u32; 32]> {
        let mut found: SmallVec<[u32; 32]> = SmallVec::from_slice(&self.rest);
        let mut add = |places: Option<&Vec<u32>>| {
            if let Some(places) = places {
                found.extend_from_slice(places);
            }
        };
        if !subject.request.target.is_empty() {
            let path = subject.request.target.path();
            add(self.paths.get(path));
            for text in self.lengths.iter().map_while(|len| path.get(..*len)) {
                add(self.beginnings.get(text));
            }
        }
        if !self.names.is_empty() || !self.parts.is_empty() {
            let peer = subject.connection.tls.as_ref().and_then(|tls| tls.peer.as_deref());
            for name in peer.into_iter().flat_map(super::names_of).map(String::as_bytes) {
                add(self.names.get(name));
                if !self.parts.is_empty() {
                    parts_of(name).for_each(|part| add(self.parts.get(part)));
                }
            }
        }
        for (side, is_v4, length) in &self.prefixes {
            let ip = side.of(subject);
            if ip.is_ipv4() == *is_v4
                && let Ok(net) = IpNet::new(ip, *length)
            {
                add(self.ranges.get(&(*side, net.trunc())));
            }
        }
        if found.len() > self.rest.len() {
            found.sort_unstable();
            found.dedup();
        }
        found
    }
}

impl Side {
    fn of(self, subject: &Stream) -> IpAddr {
        match self {
            Side::Source => subject.connection.remote.ip(),
            Side::Direct => subject.connection.direct_remote.ip(),
            Side::Remote => subject.remote.ip(),
        }
    }
}

/// What stands behind a slash, up to the next one or the end.
fn parts_of(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| *byte == b'/').skip(1)
}

/// The parts that every name has which passes: whole ones alone.
fn parts_needed(name: &StringMatcher) -> SmallVec<[&[u8]; 8]> {
    let (text, reaches_end) = match name {
        StringMatcher::Prefix(text, false) | StringMatcher::Contains(text, false) => (&**text, false),
        StringMatcher::Suffix(text, false) => (&**text, true),
        StringMatcher::Regex(regex) => (regex.required_literal(), false),
        _ => return SmallVec::new(),
    };
    let mut parts: SmallVec<[&[u8]; 8]> = parts_of(text).collect();
    if !reaches_end {
        parts.pop();
    }
    // Of `spiffe://` there is one that all names have.
    parts.retain(|part| !part.is_empty());
    parts
}

/// Counts how often parts of names are asked for.
fn count_parts<'c>(condition: &'c Condition, crowds: &mut Crowds<'c>) {
    match condition {
        Condition::Authenticated(Some(name)) => {
            parts_needed(name).into_iter().for_each(|part| *crowds.entry(part).or_default() += 1);
        }
        Condition::All(several) | Condition::Any(several) => {
            several.iter().for_each(|condition| count_parts(condition, crowds));
        }
        _ => {}
    }
}

/// What a policy can't do without, of each kind that there is.
fn choices<'c>(policy: &'c Policy, parts: &Crowds<'c>) -> Vec<Needs<'c>> {
    let needs =
        |about| needs(&policy.permissions, about, parts).or_else(|| needs(&policy.principals, about, parts));
    KINDS.into_iter().filter_map(needs).collect()
}

/// What a condition can't do without: alternatives of one kind.
fn needs<'c>(condition: &'c Condition, about: About, parts: &Crowds<'c>) -> Option<Needs<'c>> {
    let one = |need| Some(SmallVec::from_slice(&[need]));
    let range = |side, net: &IpNet| (about == About::Address(side)).then(|| Need::Range(side, net.trunc()));
    match condition {
        Condition::Path(StringMatcher::Exact(text, false)) if about == About::Paths => one(Need::Path(text)),
        Condition::Path(StringMatcher::Prefix(text, false)) if about == About::Paths => {
            one(Need::Beginning(text))
        }
        Condition::Authenticated(Some(name)) if about == About::Names => match name {
            StringMatcher::Exact(text, false) => one(Need::Name(text)),
            // Of `/ns/shop/` that which fewer ask for.
            name => {
                let crowd = |part: &&[u8]| parts.get(part).copied();
                one(Need::Part(parts_needed(name).into_iter().min_by_key(crowd)?))
            }
        },
        Condition::Source(net) => range(Side::Source, net).and_then(one),
        Condition::DirectRemote(net) => range(Side::Direct, net).and_then(one),
        Condition::Remote(net) => range(Side::Remote, net).and_then(one),
        Condition::All(all) => all.iter().find_map(|condition| needs(condition, about, parts)),
        Condition::Any(any) => {
            let mut alternatives = Needs::new();
            for condition in any {
                alternatives.extend(needs(condition, about, parts)?);
            }
            (!alternatives.is_empty()).then_some(alternatives)
        }
        _ => None,
    }
}
