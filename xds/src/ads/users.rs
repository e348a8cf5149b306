//! Who names whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::fast_hash::FastMap;

use super::key::Key;
use super::kind::Kind;
use super::world::{Asks, Need};

/// For each resource those that name it, by how many of their versions.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: FastMap<Key, BTreeMap<Key, usize>>,
    /// Names that have come to be wanted or no longer are, in order: what is wanted no longer, and then again, must
    /// be sent again.
    wants: Vec<Want>,
}

/// A resource that is wanted from now on, or no longer.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) key: Key,
    pub(super) wanted: bool,
    /// Under which it is counted, where it is counted by itself.
    pub(super) scope: Option<Arc<str>>,
}

impl Users {
    /// Counts what a version of `user` names.
    pub(super) fn add(&mut self, user: &Key, asks: &Asks) {
        for key in keys(asks) {
            let users = self.users.entry(key.clone()).or_default();
            if users.is_empty() && !key.kind.is_wildcard() {
                let scope = asks.scopes.get(&key).cloned();
                self.wants.push(Want { key, wanted: true, scope });
            }
            *users.entry(user.clone()).or_default() += 1;
        }
    }

    /// Takes that back. Answers what nobody names any more, clusters not among it: they go by themselves.
    pub(super) fn remove(&mut self, user: &Key, asks: &Asks) -> Vec<Key> {
        let mut unused = Vec::new();
        for key in keys(asks) {
            let Some(users) = self.users.get_mut(&key) else { continue };
            if let Some(count) = users.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    users.remove(user);
                }
            }
            if users.is_empty() {
                self.users.remove(&key);
                if !key.kind.is_wildcard() {
                    self.wants.push(Want { key: key.clone(), wanted: false, scope: None });
                    unused.push(key);
                }
            }
        }
        unused
    }

    /// Whether anybody names it.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.users.contains_key(key)
    }

    /// Those that name it.
    pub(super) fn of(&self, key: &Key) -> impl Iterator<Item = &Key> {
        self.users.get(key).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn take_wants(&mut self) -> Vec<Want> {
        std::mem::take(&mut self.wants)
    }
}

fn keys(asks: &Asks) -> impl Iterator<Item = Key> {
    let needs = asks.needs.iter().map(Need::key);
    needs.chain(asks.clusters.iter().map(|name| Key::of_name(Kind::Cluster, name)))
}
