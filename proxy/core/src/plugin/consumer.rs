//! Consumers: whom authentication has found a request to be from, and the chains that their plugins make.

use super::begin::Begins;
use super::{Chain, Member};
use crate::fast_hash::FastMap;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Whom a request is from, as a plugin that authenticates has found out.
pub struct Consumer {
    /// Its name: `$consumer_name`.
    pub name: Arc<str>,
    /// The consumer group it is in: `$consumer_group_id`.
    pub group: Option<Arc<str>>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The label `custom_id`, which upstreams are told.
    pub custom_id: Option<Arc<str>>,
    /// What it and its group lay over the plugins of a route.
    plugins: Box<[Member]>,
}

impl Consumer {
    /// A consumer that brings these plugins to its requests, none of them one that authenticates.
    pub fn new(name: Arc<str>, group: Option<Arc<str>>, plugins: Vec<Member>) -> Consumer {
        let (labels, custom_id) = (BTreeMap::new(), None);
        Consumer { name, group, labels, custom_id, plugins: plugins.into() }
    }

    /// The same with these labels.
    #[must_use]
    pub fn with_labels(self, labels: BTreeMap<String, String>) -> Consumer {
        let custom_id = labels.get("custom_id").map(|id| id.as_str().into());
        Consumer { labels, custom_id, ..self }
    }

    /// What the plugins begin that it brings.
    pub(super) fn begins(&self) -> Begins {
        Begins::of_members(&self.plugins)
    }

    /// Whether its requests run another chain than those of nobody in particular.
    pub fn brings_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// The chain of its requests to a route. Each thread makes it once and keeps those that were asked for of late.
    pub fn chain(self: &Arc<Self>, of_route: &Arc<Chain>) -> Arc<Chain> {
        CHAINS.with_borrow_mut(|chains| chains.get(of_route, self))
    }

    /// Has every thread forget the chains of routes and consumers that are gone, when it looks for one next; for whoever has
    /// let go of some.
    pub(crate) fn sweep_chains() {
        SWEEPS.fetch_add(1, Relaxed);
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "consumer {}", self.name)
    }
}

thread_local! {
    static CHAINS: RefCell<Chains> = RefCell::default();
}

/// How often chains were to be swept.
static SWEEPS: AtomicU64 = AtomicU64::new(0);

/// Chains in a generation of one thread.
pub(super) const KEPT: usize = 1024;

/// The chains of routes and consumers that one thread was asked for of late.
///
/// Two generations: when the young one is full it becomes the old one, and what is still asked for moves back. A chain
/// whose route or consumer has been replaced is never found again.
#[derive(Default)]
struct Chains {
    young: FastMap<Key, Kept>,
    old: FastMap<Key, Kept>,
    /// How often they have been swept.
    swept: u64,
}

/// Addresses of the route's chain and of the consumer. What is kept holds on to both places, so neither address is
/// given to another.
type Key = (usize, usize);

struct Kept {
    chain: Arc<Chain>,
    of: (Weak<Chain>, Weak<Consumer>),
}

impl Chains {
    fn get(&mut self, of_route: &Arc<Chain>, consumer: &Arc<Consumer>) -> Arc<Chain> {
        let sweeps = SWEEPS.load(Relaxed);
        if self.swept != sweeps {
            self.swept = sweeps;
            self.sweep();
        }
        let key = (Arc::as_ptr(of_route) as usize, Arc::as_ptr(consumer) as usize);
        if let Some(kept) = self.young.get(&key) {
            return kept.chain.clone();
        }
        let kept = self.old.remove(&key).unwrap_or_else(|| Kept {
            chain: Arc::new(of_route.with(&consumer.plugins)),
            of: (Arc::downgrade(of_route), Arc::downgrade(consumer)),
        });
        let chain = kept.chain.clone();
        if self.young.len() >= KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, kept);
        chain
    }

    fn sweep(&mut self) {
        let alive = |_: &Key, kept: &mut Kept| kept.of.0.strong_count() > 0 && kept.of.1.strong_count() > 0;
        self.young.retain(alive);
        self.old.retain(alive);
    }
}

/// How many chains this thread keeps.
#[cfg(test)]
pub(crate) fn kept_chains() -> usize {
    CHAINS.with_borrow(|chains| chains.young.len() + chains.old.len())
}
