//! The consumers in force, and by what each plugin finds them.

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::error::ConfigError;
use sixfold_core::fast_hash::FastMap;
use sixfold_core::plugin::{ByKey, Consumer, Consumers, ConsumersChange, Identity};

use super::batch::Batch;
use super::record::{Built, Record};
use super::state::Fault;
use crate::plugin::{CredentialConfig, PluginSet, merge, without_group};
use crate::resource::{Id, Kind};
use crate::store::Key;

/// Consumers with what they bring to their requests, and all ways in which they authenticate.
#[derive(Clone, Default)]
pub(super) struct Roll {
    consumers: FastMap<Id, Member>,
    /// Of consumers and of credentials.
    identities: FastMap<Key, Shown>,
}

/// A consumer, and what it was made of.
#[derive(Clone)]
struct Member {
    record: Arc<Record>,
    group: Option<Arc<PluginSet>>,
    consumer: Arc<Consumer>,
    /// For whoever looks for it by its name.
    by_name: Arc<Identity>,
}

/// The plugin, what it finds the consumer by, and the consumer.
type ByPlugin = (&'static str, Box<[u8]>, Arc<Identity>);

/// What a resource says of how its consumer authenticates, and whose it is.
#[derive(Clone)]
struct Shown {
    record: Arc<Record>,
    consumer: Arc<Consumer>,
    identities: Arc<[ByPlugin]>,
}

impl Roll {
    /// Consumers as they will be, and what is odd about those that change. What stays as it is keeps its identity, and so the
    /// chains made for it.
    pub(super) fn next(&self, batch: &Batch<'_>, place: &Consumers) -> (Roll, ConsumersChange, Vec<Fault>) {
        let mut odd = Vec::new();
        let mut next = Roll::default();
        let consumers = batch.entries(Kind::Consumer);
        for (_, id, record) in &consumers {
            next.consumers.insert(id.clone(), self.member(batch, id, record));
        }
        let of_credentials = batch.entries(Kind::Credential);
        let mut shown: Vec<_> = consumers
            .iter()
            .map(|(order, id, record)| (*order, Key::new(Kind::Consumer, id.clone()), *record))
            .chain(
                of_credentials
                    .iter()
                    .map(|(order, id, record)| (*order, Key::new(Kind::Credential, id.clone()), *record)),
            )
            .collect();
        // Of two with one key the last counts, as in APISIX.
        shown.sort_by_key(|(order, ..)| *order);
        let mut by_key: BTreeMap<&'static str, ByKey> = BTreeMap::new();
        for (_, key, record) in shown {
            let Some(shown) = self.shown(&next, &key, record) else { continue };
            for (plugin, found_by, identity) in shown.identities.iter() {
                let before = by_key.entry(plugin).or_default().insert(found_by.clone(), identity.clone());
                if let Some(before) = before
                    && *before.consumer.name != *identity.consumer.name
                    && (batch.pending.contains_key(&key) || batch.pending.contains_key(&key_of(&before)))
                {
                    odd.push(shared_key(&key, plugin, &before));
                }
            }
            next.identities.insert(key, shown);
        }
        let name = |member: &Member| (Box::from(member.consumer.name.as_bytes()), member.by_name.clone());
        let by_name: ByKey = next.consumers.values().map(name).collect();
        let change = place.change(by_name, by_key);
        (next, change, odd)
    }

    /// The consumer of a record, the one of before if that is the same.
    fn member(&self, batch: &Batch<'_>, id: &Id, record: &Arc<Record>) -> Member {
        let group_id = record.refers(Kind::ConsumerGroup);
        let group = group_id.and_then(|id| batch.get(&Key::new(Kind::ConsumerGroup, id.clone())));
        let group = group.map(|record| record.plugins.clone());
        let lacks_group = group_id.is_some() && group.is_none();
        let same_group = |before: &Member| match (&before.group, &group) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let before = self.consumers.get(id);
        if let Some(before) =
            before.filter(|before| Arc::ptr_eq(&before.record, record) && same_group(before))
        {
            return before.clone();
        }
        let plugins = merge([Some(&record.plugins), group.as_ref()].into_iter().flatten().map(|set| &**set));
        let brought = if lacks_group { vec![without_group()] } else { plugins.brought() };
        let labels = match &record.body {
            Built::Consumer(of) => of.labels.clone(),
            _ => BTreeMap::new(),
        };
        let consumer = Consumer::new(id.text().clone(), group_id.map(|id| id.text().clone()), brought);
        let consumer = Arc::new(consumer.with_labels(labels));
        let by_name = Arc::new(Identity::new(consumer.clone(), None, Arc::new(())));
        Member { record: record.clone(), group, consumer, by_name }
    }

    /// What a consumer or a credential shows; `None` for a credential without its consumer.
    fn shown(&self, next: &Roll, key: &Key, record: &Arc<Record>) -> Option<Shown> {
        let (whose, credential) = match key.of_consumer() {
            Some((consumer, id)) => (Id::from(consumer), Some(Arc::from(id))),
            None => (key.id.clone(), None),
        };
        let Some(member) = next.consumers.get(&whose) else {
            tracing::error!("{key}: there is no consumer \"{whose}\", so nobody authenticates with it");
            return None;
        };
        let consumer = &member.consumer;
        let before = self.identities.get(key);
        let same =
            |shown: &&Shown| Arc::ptr_eq(&shown.record, record) && Arc::ptr_eq(&shown.consumer, consumer);
        if let Some(before) = before.filter(same) {
            return Some(before.clone());
        }
        let said: &[CredentialConfig] = match &record.body {
            Built::Consumer(of) => &of.credentials,
            Built::Credential(credentials) => credentials,
            _ => &[],
        };
        let identity = |said: &CredentialConfig| {
            let identity = Identity::new(consumer.clone(), credential.clone(), said.credential.proof.clone());
            (said.plugin, said.credential.key.clone(), Arc::new(identity))
        };
        let identities = said.iter().map(identity).collect();
        Some(Shown { record: record.clone(), consumer: consumer.clone(), identities })
    }
}

/// The resource that an identity is of.
fn key_of(identity: &Identity) -> Key {
    let consumer = &identity.consumer.name;
    match &identity.credential {
        Some(credential) => Key::of_credential(consumer, credential),
        None => Key::new(Kind::Consumer, &**consumer),
    }
}

/// What is told of a resource whose requests are told by the same as those of another consumer. The Admin API refuses it.
fn shared_key(key: &Key, plugin: &str, before: &Identity) -> Fault {
    let other = key_of(before);
    let reason =
        format!("{other} is found by the same: who shows it is whom this one names, which comes last");
    Fault { about: key.clone(), error: ConfigError::field(&format!("plugins.{plugin}"), reason) }
}
