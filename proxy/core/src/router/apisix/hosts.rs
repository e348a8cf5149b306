//! Paths by host, in parts that tables share.

use super::paths::{Edits, Paths};
use super::uri::spread;
use crate::fast_hash::{FastMap, FastSet};
use std::sync::Arc;

/// Hosts of one part, on average, before the parts are doubled. Tests split as soon as they can.
const HOSTS_OF_A_PART: usize = if cfg!(test) { 2 } else { 32 };

/// Which hosts a route is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// All of them.
    Any,
    /// This one, in lower case.
    Exact(Arc<[u8]>),
    /// Those with this end, in lower case.
    Suffix(Arc<[u8]>),
}

impl Side {
    /// From a host as configured. Only a star in front is one: APISIX's tree holds reversed hosts, and cuts at
    /// their first star.
    pub(super) fn of(host: &str) -> Side {
        let host = host.to_ascii_lowercase();
        match host.rsplit_once('*') {
            Some((_, end)) => Side::Suffix(end.as_bytes().into()),
            None => Side::Exact(host.as_bytes().into()),
        }
    }
}

type Part = FastMap<Arc<[u8]>, Paths>;

/// A map whose copies share all parts that are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct HostMap {
    /// None, or a power of two; by the hash of the host.
    parts: Vec<Arc<Part>>,
    len: usize,
}

impl HostMap {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn get(&self, host: &[u8]) -> Option<&Paths> {
        self.parts.get(place(host, self.parts.len()))?.get(host)
    }

    /// Changes the paths of one host.
    pub(super) fn edit(&mut self, host: &Arc<[u8]>, edits: Edits, gone: &FastSet<usize>) {
        if self.parts.is_empty() {
            self.parts.push(Arc::default());
        }
        let count = self.parts.len();
        let Some(part) = self.parts.get_mut(place(host, count)) else { return };
        let part = Arc::make_mut(part);
        let before = part.len();
        let paths = part.get(&host[..]).cloned().unwrap_or_default().next(edits, gone);
        if paths.is_empty() {
            part.remove(&host[..]);
        } else {
            part.insert(host.clone(), paths);
        }
        self.len = self.len + part.len() - before;
        if self.len > HOSTS_OF_A_PART * self.parts.len() {
            self.double();
        }
    }

    fn double(&mut self) {
        let count = self.parts.len() * 2;
        let mut parts: Vec<Part> = (0..count).map(|_| Part::default()).collect();
        for (host, paths) in self.parts.iter().flat_map(|part| part.iter()) {
            parts[place(host, count)].insert(host.clone(), paths.clone());
        }
        self.parts = parts.into_iter().map(Arc::new).collect();
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Paths> {
        self.parts.iter().flat_map(|part| part.values())
    }
}

/// The part of a host among `count`.
#[inline]
fn place(host: &[u8], count: usize) -> usize {
    if count <= 1 { 0 } else { spread(host) & (count - 1) }
}
