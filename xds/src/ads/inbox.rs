//! Responses that wait for their turn, merged: of each resource the newest alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::error::ConfigError;

use super::file::Origin;
use super::kind::Kind;
use super::update::{Content, Resource, Update};

/// Bytes that may wait, of resources, their names and versions, and nonces; when there are more, nothing is read from
/// the stream.
const ROOM: usize = 16 << 20;
/// Responses of one type that may wait for their answers.
const NONCES: usize = 256;
/// What an entry costs beside its value, in bytes.
const ENTRY: usize = 128;

/// What has come and was not looked at yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    kinds: BTreeMap<Kind, Merged>,
    bytes: usize,
}

/// Responses of one type.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) items: BTreeMap<Arc<str>, Item>,
    /// Whether what is not in it is gone.
    pub(super) whole: bool,
    /// Nonces and versions of the responses, oldest first.
    pub(super) responses: Vec<(String, String)>,
    bytes: usize,
}

/// The newest that was said of a resource.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Is(Resource),
    Gone,
}

impl Item {
    /// The value, where there is one.
    pub(super) fn value(&self) -> Option<&[u8]> {
        match self {
            Item::Is(Resource { content: Content::Value(value), .. }) => Some(value),
            _ => None,
        }
    }

    /// Where it stands, if it comes from a document.
    pub(super) fn origin(&self) -> Option<&Origin> {
        match self {
            Item::Is(resource) => resource.origin.as_ref(),
            Item::Gone => None,
        }
    }
}

impl Inbox {
    /// Whether another response may come.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < ROOM && self.kinds.values().all(|merged| merged.responses.len() < NONCES)
    }

    /// Takes a response in.
    pub(super) fn put(&mut self, update: Update) {
        let merged = self.kinds.entry(update.kind).or_default();
        self.bytes -= merged.bytes;
        merged.put(update);
        self.bytes += merged.bytes;
    }

    /// The type that waits and comes before the others.
    pub(super) fn first(&self) -> Option<Kind> {
        self.kinds.first_key_value().map(|(kind, _)| *kind)
    }

    /// The responses of a type that waits, in the order of types: what is named before what names it.
    pub(super) fn take(&mut self) -> Option<(Kind, Merged)> {
        let (kind, merged) = self.kinds.pop_first()?;
        self.bytes -= merged.bytes;
        Some((kind, merged))
    }

    /// The stream has ended: its responses are good still, but there is nobody to answer.
    pub(super) fn forget_responses(&mut self) {
        for merged in self.kinds.values_mut() {
            let freed: usize = merged.responses.drain(..).map(|response| bytes_of(&response)).sum();
            merged.bytes -= freed;
            self.bytes -= freed;
        }
    }
}

impl Merged {
    fn put(&mut self, update: Update) {
        if update.whole {
            self.items.clear();
            self.bytes = self.responses.iter().map(bytes_of).sum();
            self.whole = true;
        }
        let mut seen = BTreeSet::new();
        for resource in update.resources {
            let name = resource.name.clone();
            if !seen.insert(name.clone()) {
                let content = Content::Fault(Box::new(ConfigError::new("is given twice in one response")));
                self.set(name, Item::Is(Resource { content, ..resource }));
                continue;
            }
            // The value that waits is as good as new.
            let heartbeat = resource.content == Content::Heartbeat;
            match self.items.get_mut(&name) {
                Some(Item::Is(waiting)) if heartbeat => waiting.ttl = resource.ttl,
                _ => self.set(name, Item::Is(resource)),
            }
        }
        update.removed.into_iter().for_each(|name| self.set(name, Item::Gone));
        let response = (update.nonce, update.version);
        self.bytes += bytes_of(&response);
        self.responses.push(response);
    }

    fn set(&mut self, name: Arc<str>, item: Item) {
        let name_len = name.len();
        self.bytes += name_len + item.bytes();
        let replaced = self.items.insert(name, item);
        self.bytes -= replaced.map_or(0, |item| name_len + item.bytes());
    }
}

impl Item {
    fn bytes(&self) -> usize {
        let Item::Is(Resource { content, version, .. }) = self else { return ENTRY };
        let content = match content {
            Content::Value(value) => value.len(),
            Content::Fault(fault) => fault.reason.len(),
            Content::Heartbeat => 0,
        };
        ENTRY + version.len() + content
    }
}

fn bytes_of((nonce, version): &(String, String)) -> usize {
    nonce.len() + version.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn resource(name: &str, value: &str) -> Resource {
        Resource {
            name: name.into(),
            version: String::new(),
            content: Content::Value(value.as_bytes().to_vec()),
            ttl: None,
            origin: None,
        }
    }

    fn update(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Update {
        Update {
            kind: Kind::Cluster,
            nonce: nonce.to_owned(),
            version: String::new(),
            whole: false,
            resources,
            removed: removed.iter().map(|name| Arc::from(*name)).collect(),
            control_plane: None,
        }
    }

    #[test]
    fn the_newest_of_each_name_waits() {
        let mut inbox = Inbox::default();
        inbox.put(update("1", vec![resource("a", "old"), resource("b", "b")], &[]));
        inbox.put(update("2", vec![resource("a", "new")], &["b"]));
        let beat =
            Resource { content: Content::Heartbeat, ttl: Some(Duration::from_secs(1)), ..resource("a", "") };
        inbox.put(update("3", vec![beat], &[]));
        let (_, merged) = inbox.take().unwrap();
        let nonces: Vec<_> = merged.responses.iter().map(|(nonce, _)| nonce.as_str()).collect();
        assert_eq!(nonces, ["1", "2", "3"]);
        let newest = Resource { ttl: Some(Duration::from_secs(1)), ..resource("a", "new") };
        assert_eq!(merged.items["a"], Item::Is(newest));
        assert_eq!(merged.items["b"], Item::Gone);
        assert_eq!(inbox.bytes, 0);
    }

    #[test]
    fn a_whole_response_takes_the_place_of_all_before_it() {
        let mut inbox = Inbox::default();
        inbox.put(update("1", vec![resource("a", "a")], &[]));
        inbox.put(Update { whole: true, ..update("2", vec![resource("b", "b")], &[]) });
        let (_, merged) = inbox.take().unwrap();
        assert_eq!((merged.items.len(), merged.whole, merged.responses.len()), (1, true, 2));
    }

    #[test]
    fn a_name_that_is_given_twice_is_a_fault() {
        let mut inbox = Inbox::default();
        inbox.put(update("1", vec![resource("a", "x"), resource("a", "y")], &[]));
        let (_, merged) = inbox.take().unwrap();
        assert!(matches!(&merged.items["a"], Item::Is(Resource { content: Content::Fault(_), .. })));
    }

    #[test]
    fn a_flood_is_bounded_in_bytes_and_in_responses() {
        let mut inbox = Inbox::default();
        for round in 0..10 {
            inbox.put(update("n", vec![resource("same", &"x".repeat(ROOM / 2 + round))], &[]));
            assert!(inbox.has_room(), "one value waits, not {round}");
        }
        inbox.put(update("n", vec![resource("other", &"x".repeat(ROOM / 2))], &[]));
        assert!(!inbox.has_room());
        inbox.take();
        assert!(inbox.has_room());
        let mut flood = (0..).take_while(|_| {
            inbox.put(update("n", vec![], &[]));
            inbox.has_room()
        });
        assert_eq!(flood.by_ref().count(), NONCES - 1);
        inbox.forget_responses();
        assert!(inbox.has_room());
    }

    /// Nonces, versions and names are a control plane's to choose too: 256 responses held what it put into them.
    #[test]
    fn whatever_waits_counts() {
        let long = "x".repeat(ROOM);
        let versioned = Resource { version: long.clone(), ..resource("a", "") };
        let updates = [
            update(&long, vec![], &[]),
            Update { version: long.clone(), ..update("n", vec![], &[]) },
            update("n", vec![versioned], &[]),
            update("n", vec![resource(&long, "")], &[]),
            update("n", vec![], &[&long]),
        ];
        for update in updates {
            let mut inbox = Inbox::default();
            inbox.put(update.clone());
            assert!(!inbox.has_room(), "{:?}", update.resources.first().map(|resource| resource.name.len()));
            inbox.put(Update { whole: true, ..self::update("n", vec![], &[]) });
            inbox.forget_responses();
            assert!(inbox.has_room());
            inbox.take();
            assert_eq!(inbox.bytes, 0);
        }
    }
}
