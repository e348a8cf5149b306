//! By what authenticators find consumers. The tables are made when configuration arrives; requests read them without a
//! lock.

use super::Consumer;
use super::begin::Begins;
use crate::error::ConfigError;
use crate::fast_hash::FastMap;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a plugin makes of what a consumer says of it, to hold against what a client shows: a password, a public key.
pub type Proof = Arc<dyn Any + Send + Sync>;

/// What a consumer, or one of its credentials, says of a plugin that authenticates.
#[derive(Clone)]
pub struct Credential {
    /// What it is found by. A secret is not kept as it is: where a look-up stops would tell something of it.
    pub key: Box<[u8]>,
    /// The rest.
    pub proof: Proof,
    /// Why nothing that a client can show holds against it, as of a key of another kind than is said.
    pub unusable: Option<Box<ConfigError>>,
}

impl Credential {
    /// One that is found by `key`.
    pub fn new(key: impl Into<Box<[u8]>>, proof: impl Any + Send + Sync) -> Credential {
        Credential { key: key.into(), proof: Arc::new(proof), unusable: None }
    }

    /// The same, with which nobody authenticates, if there is a reason for that: it is taken, and told.
    #[must_use]
    pub fn unusable(self, reason: Option<ConfigError>) -> Credential {
        Credential { unusable: reason.map(Box::new), ..self }
    }
}

/// A consumer by one of the ways in which it authenticates.
pub struct Identity {
    /// Who it is.
    pub consumer: Arc<Consumer>,
    /// The id of the credential that says so; `None` for what stands in the consumer itself.
    pub credential: Option<Arc<str>>,
    proof: Proof,
}

impl Identity {
    /// The identity of this consumer by this credential.
    pub fn new(consumer: Arc<Consumer>, credential: Option<Arc<str>>, proof: Proof) -> Identity {
        Identity { consumer, credential, proof }
    }

    /// What the plugin has made of it, if it has made that type.
    pub fn proof<T: 'static>(&self) -> Option<&T> {
        self.proof.downcast_ref()
    }
}

/// Identities by what they are found by. Who writes the configuration chooses these, and no client.
pub type ByKey = FastMap<Box<[u8]>, Arc<Identity>>;

/// The identities that one plugin can find.
#[derive(Default)]
pub struct Identities {
    by_key: ArcSwap<ByKey>,
}

impl Identities {
    /// Whom this key is of.
    pub fn find(&self, key: &[u8]) -> Option<Arc<Identity>> {
        self.by_key.load().get(key).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.load().len()
    }

    /// Whether nobody is known to the plugin.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether these are the ones it has.
    fn has(&self, next: &ByKey) -> bool {
        self.len() == next.len() && next.iter().all(|(key, identity)| self.knows(key, identity))
    }

    fn knows(&self, key: &[u8], next: &Arc<Identity>) -> bool {
        self.by_key.load().get(key).is_some_and(|identity| Arc::ptr_eq(identity, next))
    }
}

/// The consumers in force, as plugins find them.
#[derive(Default)]
pub struct Consumers {
    by_name: Arc<Identities>,
    of_plugins: Mutex<BTreeMap<&'static str, Arc<Identities>>>,
}

impl Consumers {
    /// Consumers by name, however they authenticate: `anonymous_consumer` is looked for here.
    pub fn by_name(&self) -> &Arc<Identities> {
        &self.by_name
    }

    /// Those that this plugin can find. The place is the same whatever the configuration is; for who builds a plugin.
    pub fn of(&self, plugin: &'static str) -> Arc<Identities> {
        self.of_plugins.lock().entry(plugin).or_default().clone()
    }

    /// Prepares other consumers, those that each plugin can find by the plugin's name; nobody sees them before
    /// [`ConsumersChange::put_in_force`]. Plugins that are not named find nobody.
    pub fn change(&self, by_name: ByKey, mut of_plugins: BTreeMap<&'static str, ByKey>) -> ConsumersChange {
        let mut places = self.of_plugins.lock();
        for plugin in of_plugins.keys() {
            places.entry(plugin).or_default();
        }
        let of_plugins = places.iter().map(|(plugin, place)| {
            let next = of_plugins.remove(plugin).unwrap_or_default();
            (place.clone(), next)
        });
        let come = by_name.iter().filter(|(key, next)| !self.by_name.knows(key, next));
        let come: Vec<Begins> = come.map(|(_, identity)| identity.consumer.begins()).collect();
        let begins = Begins::all(come.iter());
        let all = of_plugins.chain([(self.by_name.clone(), by_name)]);
        let differs = all.filter(|(place, next)| !place.has(next));
        ConsumersChange { places: differs.map(|(place, next)| (place, Arc::new(next))).collect(), begins }
    }
}

impl fmt::Debug for Consumers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} consumers", self.by_name.len())
    }
}

/// Other consumers for plugins to find.
pub struct ConsumersChange {
    places: Vec<(Arc<Identities>, Arc<ByKey>)>,
    /// What the plugins begin of consumers that come.
    begins: Begins,
}

impl ConsumersChange {
    /// Whether everybody is found as before.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Lets plugins find them from now on, and theirs begin what they do by themselves. Answers what was there before, for which a request may still look.
    pub fn put_in_force(self) -> Vec<Arc<ByKey>> {
        self.begins.begin();
        self.places.into_iter().map(|(place, next)| place.by_key.swap(next)).collect()
    }
}

impl fmt::Debug for ConsumersChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "other consumers for {} tables", self.places.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn identity(name: &str) -> Arc<Identity> {
        let consumer = Arc::new(Consumer::new(name.into(), None, Vec::new()));
        Arc::new(Identity::new(consumer, None, Arc::new(7_u32)))
    }

    fn table(key: &str, identity: &Arc<Identity>) -> ByKey {
        ByKey::from_iter([(Box::from(key.as_bytes()), identity.clone())])
    }

    #[test]
    fn a_change_is_seen_when_it_is_in_force_and_by_its_plugin() {
        let (consumers, jack) = (Consumers::default(), identity("jack"));
        let (keys, passwords) = (consumers.of("keys"), consumers.of("passwords"));
        let change = || {
            let of_plugins = BTreeMap::from([("keys", table("k", &jack))]);
            consumers.change(table("jack", &jack), of_plugins)
        };
        let first = change();
        assert!(keys.find(b"k").is_none() && consumers.by_name().is_empty());
        first.put_in_force();
        let found = keys.find(b"k").unwrap();
        assert_eq!(
            (&*found.consumer.name, found.proof::<u32>(), found.proof::<u8>()),
            ("jack", Some(&7), None)
        );
        assert!(passwords.find(b"k").is_none() && consumers.by_name().find(b"jack").is_some());
        assert!(change().is_empty());
        let gone = consumers.change(ByKey::default(), BTreeMap::new());
        assert_eq!(gone.places.len(), 2, "the table that was empty stays");
        gone.put_in_force();
        assert!(keys.is_empty() && consumers.by_name().is_empty());
    }
}
