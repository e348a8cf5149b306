//! Consumers: whom authentication has found a request to be from, and the chains that their plugins make.

use super::{Chain, Member};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
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
    chains: Arc<ConsumerChains>,
}

impl Consumer {
    /// A consumer that brings these plugins to its requests, none of them one that authenticates. Their chains
    /// are kept in `chains`.
    pub fn new(
        name: Arc<str>,
        group: Option<Arc<str>>,
        plugins: Vec<Member>,
        chains: Arc<ConsumerChains>,
    ) -> Consumer {
        let (labels, custom_id) = (BTreeMap::new(), None);
        Consumer { name, group, labels, custom_id, plugins: plugins.into(), chains }
    }

    /// The same with these labels.
    #[must_use]
    pub fn with_labels(self, labels: BTreeMap<String, String>) -> Consumer {
        let custom_id = labels.get("custom_id").map(|id| id.as_str().into());
        Consumer { labels, custom_id, ..self }
    }

    /// Whether its requests run another chain than those of nobody in particular.
    pub fn brings_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// The chain of its requests to a route.
    pub fn chain(self: &Arc<Self>, of_route: &Arc<Chain>) -> Arc<Chain> {
        self.chains.get(of_route, self)
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "consumer {}", self.name)
    }
}

/// The chains of routes and consumers that were asked for of late, each made once.
///
/// Two generations of at most [`ConsumerChains::KEPT`] chains: when the young one is full it becomes the old one, and
/// what is still asked for moves back. A chain whose route or consumer has been replaced is never found again.
#[derive(Default)]
pub struct ConsumerChains {
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Key, Kept>,
    old: HashMap<Key, Kept>,
}

/// Addresses of the route's chain and of the consumer. What is kept holds on to both places, so neither address is
/// given to another.
type Key = (usize, usize);

struct Kept {
    chain: Arc<Chain>,
    of: (Weak<Chain>, Weak<Consumer>),
}

impl Generations {
    /// Keeps a chain; answers what is not kept any more, to be dropped without the lock.
    fn keep(&mut self, key: Key, kept: Kept, limit: usize) -> HashMap<Key, Kept> {
        let mut retired = HashMap::new();
        if self.young.len() >= limit {
            retired = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        }
        self.young.insert(key, kept);
        retired
    }
}

impl ConsumerChains {
    /// Chains in a generation.
    pub const KEPT: usize = 4096;

    fn get(&self, of_route: &Arc<Chain>, consumer: &Arc<Consumer>) -> Arc<Chain> {
        let key = (Arc::as_ptr(of_route) as usize, Arc::as_ptr(consumer) as usize);
        let known = {
            let mut generations = self.generations.lock();
            if let Some(kept) = generations.young.get(&key) {
                return kept.chain.clone();
            }
            generations.old.remove(&key)
        };
        // Made without the lock, at worst by two workers at once.
        let kept = known.unwrap_or_else(|| Kept {
            chain: Arc::new(of_route.with(&consumer.plugins)),
            of: (Arc::downgrade(of_route), Arc::downgrade(consumer)),
        });
        let chain = kept.chain.clone();
        let retired = self.generations.lock().keep(key, kept, Self::KEPT);
        drop(retired);
        chain
    }

    /// Chains that are kept.
    pub fn len(&self) -> usize {
        let generations = self.generations.lock();
        generations.young.len() + generations.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the chains of routes and consumers that are gone; for the one who applies a change.
    pub fn sweep(&self) {
        let alive = |_: &Key, kept: &mut Kept| kept.of.0.strong_count() > 0 && kept.of.1.strong_count() > 0;
        let mut generations = self.generations.lock();
        generations.young.retain(alive);
        generations.old.retain(alive);
    }
}
