//! Who names whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::fast_hash::FastMap;

use super::key::Key;
use super::kind::Kind;
use super::world::{Asks, Need};

/// For each resource those that name it.
#[derive(Debug, Default)]
pub(super) struct Users {
    named: FastMap<Key, Named>,
    /// Names that have come to be wanted or no longer are, in order: what is wanted no longer, and then again, must
    /// be sent again.
    wants: Vec<Want>,
    /// Where resources are counted from now on, or no longer, in order.
    counts: Vec<Count>,
}

/// Who names a resource.
#[derive(Debug, Default)]
struct Named {
    /// By how many of their versions.
    users: BTreeMap<Key, usize>,
    /// The prefixes of statistics under which it is counted, by how many versions.
    scopes: Vec<(Arc<str>, usize)>,
}

/// A resource that is wanted from now on, or no longer.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) key: Key,
    pub(super) wanted: bool,
}

/// Where a resource is counted that is counted by itself.
#[derive(Debug)]
pub(super) enum Count {
    /// Under this prefix too, from now on.
    Under(Key, Arc<str>),
    /// Under this one no longer.
    NoLonger(Key, Arc<str>),
    /// Nowhere.
    Nowhere(Key),
}

impl Users {
    /// Counts what a version of `user` names.
    pub(super) fn add(&mut self, user: &Key, asks: &Asks) {
        for key in keys(asks) {
            let named = self.named.entry(key.clone()).or_default();
            let is_first = named.users.is_empty();
            *named.users.entry(user.clone()).or_default() += 1;
            // Of listeners that share routes the first counts them, as in Envoy. Each cluster counts its endpoints.
            let scope = asks.scopes.get(&key).filter(|_| is_first || key.kind == Kind::Endpoints);
            if let Some(scope) = scope
                && named.count(scope)
            {
                self.counts.push(Count::Under(key.clone(), scope.clone()));
            }
            if is_first && !key.kind.is_wildcard() {
                self.wants.push(Want { key, wanted: true });
            }
        }
    }

    /// Takes that back. Answers what nobody names any more, clusters not among it: they go by themselves.
    pub(super) fn remove(&mut self, user: &Key, asks: &Asks) -> Vec<Key> {
        let mut unused = Vec::new();
        for key in keys(asks) {
            let Some(named) = self.named.get_mut(&key) else { continue };
            if let Some(count) = named.users.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    named.users.remove(user);
                }
            }
            if let Some(scope) = asks.scopes.get(&key).filter(|_| key.kind == Kind::Endpoints)
                && named.uncount(scope)
            {
                self.counts.push(Count::NoLonger(key.clone(), scope.clone()));
            }
            if named.users.is_empty() {
                self.named.remove(&key);
                if !key.kind.is_wildcard() {
                    self.counts.push(Count::Nowhere(key.clone()));
                    self.wants.push(Want { key: key.clone(), wanted: false });
                    unused.push(key);
                }
            }
        }
        unused
    }

    /// Whether anybody names it.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.named.contains_key(key)
    }

    /// Those that name it.
    pub(super) fn of(&self, key: &Key) -> impl Iterator<Item = &Key> {
        self.named.get(key).into_iter().flat_map(|named| named.users.keys())
    }

    pub(super) fn take_wants(&mut self) -> Vec<Want> {
        std::mem::take(&mut self.wants)
    }

    pub(super) fn take_counts(&mut self) -> Vec<Count> {
        std::mem::take(&mut self.counts)
    }
}

impl Named {
    /// One more version counts it so; answers whether it is the first.
    fn count(&mut self, scope: &Arc<str>) -> bool {
        match self.scopes.iter_mut().find(|(known, _)| known == scope) {
            Some((_, versions)) => {
                *versions += 1;
                false
            }
            None => {
                self.scopes.push((scope.clone(), 1));
                true
            }
        }
    }

    /// One less; answers whether it was the last.
    fn uncount(&mut self, scope: &Arc<str>) -> bool {
        let Some(at) = self.scopes.iter().position(|(known, _)| known == scope) else { return false };
        let is_last = self.scopes.get(at).is_some_and(|(_, versions)| *versions == 1);
        if is_last {
            self.scopes.swap_remove(at);
        } else if let Some((_, versions)) = self.scopes.get_mut(at) {
            *versions -= 1;
        }
        is_last
    }
}

fn keys(asks: &Asks) -> impl Iterator<Item = Key> {
    let needs = asks.needs.iter().map(Need::key);
    needs.chain(asks.clusters.iter().map(|name| Key::of_name(Kind::Cluster, name)))
}
