//! The routes of one host by path, in parts that tables share.
//!
//! A route belongs to the level that tells how many whole directories its literal path begins with, and there
//! to a part by the hash of those directories. Of two routes that may both be meant by a path the one on the
//! deeper level has the longer literal, and an exact one lies on the path's own level: so levels are asked one
//! after the other, the deepest first, and no two lists have to be merged.

use super::uri::{Entry, spread};
use crate::fast_hash::FastSet;
use crate::route::Route;
use crate::router::index::{Captures, Index, Test};
use crate::stream::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Directories by which routes are told apart.
const LEVELS: usize = 3;

/// Routes of one part, on average, before the parts of its level are made anew. Tests cut as soon as they can.
const ROUTES_OF_A_PART: usize = if cfg!(test) { 2 } else { 64 };

/// Changes to the routes of one host.
#[derive(Debug, Clone, Default)]
pub(super) struct Edits {
    /// Literals of URIs whose routes go.
    pub(super) gone: Vec<Box<[u8]>>,
    /// URIs that come.
    pub(super) come: Vec<Entry>,
}

/// The routes of one host.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    /// Routes without a whole directory; all of them while they are few.
    shallow: Arc<Index>,
    deep: Option<Arc<Deep>>,
}

/// Routes by their first directories: one on the first level, and so on.
#[derive(Debug, Clone)]
struct Deep([Level; LEVELS]);

/// Parts by the hash of the directories.
#[derive(Debug, Clone, Default)]
struct Level {
    /// None, or a power of two.
    parts: Box<[Arc<Index>]>,
    len: usize,
}

/// Where the first, second, ... directory of a path ends, up to [`LEVELS`] of them.
struct Cuts {
    ends: [usize; LEVELS],
    count: usize,
}

impl Cuts {
    #[inline]
    fn of(path: &[u8]) -> Cuts {
        let mut cuts = Cuts { ends: [0; LEVELS], count: 0 };
        if path.first() != Some(&b'/') {
            return cuts;
        }
        for at in memchr::memchr_iter(b'/', path).skip(1).take(LEVELS) {
            cuts.ends[cuts.count] = at + 1;
            cuts.count += 1;
        }
        cuts
    }

    /// The deepest level's number and directories; `None` without a whole directory.
    fn deepest<'a>(&self, path: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let level = self.count.checked_sub(1)?;
        Some((level, path.get(..*self.ends.get(level)?)?))
    }
}

impl Level {
    #[inline]
    fn place(&self, directories: &[u8]) -> usize {
        if self.parts.len() <= 1 { 0 } else { spread(directories) & (self.parts.len() - 1) }
    }
}

impl Paths {
    pub(super) fn is_empty(&self) -> bool {
        self.shallow.routes().is_empty() && self.deep.is_none()
    }

    /// Every route, once for each of its URIs.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.indexes().flat_map(|index| index.routes())
    }

    pub(super) fn indexes(&self) -> impl Iterator<Item = &Arc<Index>> {
        let levels = self.deep.iter().flat_map(|deep| &deep.0);
        levels.flat_map(|level| level.parts.iter()).chain([&self.shallow])
    }

    /// Its indexes in the order in which they are asked; a path is asked for one part of each level.
    pub(super) fn deepest_first(&self) -> impl Iterator<Item = &Arc<Index>> {
        let levels = self.deep.iter().flat_map(|deep| deep.0.iter().rev());
        levels.flat_map(|level| level.parts.iter()).chain([&self.shallow])
    }

    #[inline]
    pub(super) fn find(&self, path: &[u8], stream: &Stream, captures: &mut Captures) -> Option<&Arc<Route>> {
        if let Some(deep) = &self.deep {
            let cuts = Cuts::of(path);
            for (level, end) in deep.0.iter().zip(cuts.ends).take(cuts.count).rev() {
                let directories = path.get(..end).unwrap_or_default();
                let part = if level.len == 0 { None } else { level.parts.get(level.place(directories)) };
                if let Some(route) = part.and_then(|index| index.find(path, stream, captures)) {
                    return Some(route);
                }
            }
        }
        self.shallow.find(path, stream, captures)
    }

    /// The same after a change; `gone` are the addresses of routes that leave. Parts without a change are shared.
    pub(super) fn next(&self, edits: Edits, gone: &FastSet<usize>) -> Paths {
        let Some(deep) = &self.deep else {
            let all = changed(&self.shallow, edits.come, gone);
            return if all.len() <= ROUTES_OF_A_PART { Paths::whole(all) } else { Paths::cut(all) };
        };
        let mut touched: BTreeMap<Option<(usize, usize)>, Vec<Entry>> = BTreeMap::new();
        for literal in &edits.gone {
            touched.entry(deep.place(literal)).or_default();
        }
        for entry in edits.come {
            touched.entry(deep.place(&entry.parameters.literal)).or_default().push(entry);
        }
        let mut next = self.clone();
        let mut deep = Deep::clone(deep);
        for (place, come) in touched {
            let Some((level, part)) = place else {
                next.shallow = index(changed(&self.shallow, come, gone));
                continue;
            };
            let level = &mut deep.0[level];
            let Some(part) = level.parts.get_mut(part) else { continue };
            let new = index(changed(part, come, gone));
            level.len = level.len + new.routes().len() - part.routes().len();
            *part = new;
        }
        let fits = |level: &Level| level.len <= ROUTES_OF_A_PART * level.parts.len().max(1);
        let len = deep.0.iter().map(|level| level.len).sum::<usize>() + next.shallow.routes().len();
        if len > ROUTES_OF_A_PART / 2 && deep.0.iter().all(fits) {
            next.deep = Some(Arc::new(deep));
            return next;
        }
        next.deep = Some(Arc::new(deep));
        let all: Vec<Entry> = next.indexes().flat_map(|index| entries(index)).collect();
        if all.len() <= ROUTES_OF_A_PART { Paths::whole(all) } else { Paths::cut(all) }
    }

    fn whole(entries: Vec<Entry>) -> Paths {
        Paths { shallow: index(entries), deep: None }
    }

    fn cut(all: Vec<Entry>) -> Paths {
        let mut counts = [0; LEVELS];
        for entry in &all {
            if let Some((level, _)) = Cuts::of(&entry.parameters.literal).deepest(&entry.parameters.literal) {
                counts[level] += 1;
            }
        }
        // Half full: as many again may come before this is done again.
        let parts =
            |len: usize| if len == 0 { 1 } else { (2 * len).div_ceil(ROUTES_OF_A_PART).next_power_of_two() };
        let empty = Arc::new(Index::default());
        let deep = Deep(counts.map(|len| Level { parts: vec![empty.clone(); parts(len)].into(), len }));
        let mut sorted_out: BTreeMap<Option<(usize, usize)>, Vec<Entry>> = BTreeMap::new();
        for entry in all {
            sorted_out.entry(deep.place(&entry.parameters.literal)).or_default().push(entry);
        }
        let mut paths = Paths { shallow: empty, deep: None };
        let mut deep = deep;
        for (place, entries) in sorted_out {
            let index = index(entries);
            match place {
                Some((level, part)) => deep.0[level].parts[part] = index,
                None => paths.shallow = index,
            }
        }
        paths.deep = Some(Arc::new(deep));
        paths
    }
}

impl Deep {
    /// The level and the part of a literal; `None` for the shallow ones.
    fn place(&self, literal: &[u8]) -> Option<(usize, usize)> {
        let (level, directories) = Cuts::of(literal).deepest(literal)?;
        Some((level, self.0[level].place(directories)))
    }
}

/// What an index holds, without the routes at these addresses and with those that come.
fn changed(index: &Index, come: Vec<Entry>, gone: &FastSet<usize>) -> Vec<Entry> {
    let mut kept: Vec<Entry> =
        entries(index).filter(|entry| !gone.contains(&(Arc::as_ptr(&entry.route) as usize))).collect();
    kept.extend(come);
    kept
}

fn entries(index: &Index) -> impl Iterator<Item = Entry> {
    index.apisix().map(|(route, parameters)| Entry { route: route.clone(), parameters: parameters.clone() })
}

fn index(mut entries: Vec<Entry>) -> Arc<Index> {
    entries.sort_by_key(Entry::key);
    let (routes, tests) = entries.into_iter().map(|e| (e.route, Test::Apisix(e.parameters))).unzip();
    Arc::new(Index::new(routes, tests))
}
