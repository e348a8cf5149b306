//! Where resources are kept: values by kind and id, and what has changed among them.
//!
//! A source asks its store for the changes since it asked last; a store only tells that there are some. So a
//! burst of changes is one batch, a value that was replaced before anybody looked is never read, and what
//! waits is bounded by the number of resources.

#[cfg(test)]
mod conformance;
mod embedded;
mod etcd;
mod file;
mod kept;
mod last_good;
mod lent;
mod listing;
mod memory;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sixfold_core::document::{Format, Node, Options, Value};
use sixfold_core::error::{ConfigError, Place};

pub use self::embedded::EmbeddedStore;
pub use self::etcd::{EtcdOptions, EtcdStore, client_tls as etcd_client_tls};
pub use self::file::FileStore;
pub use self::kept::{Action, Committed, Kept, Write};
pub use self::lent::Lent;
pub use self::listing::{Listing, Resources};
pub use self::memory::MemoryStore;
pub use self::text::TextStore;
use crate::config::EnabledPlugins;
use crate::resource::{Id, Kind};

/// What a resource is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its id among those of its kind.
    pub id: Id,
}

/// A change of one resource.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which resource.
    pub key: Key,
    /// Told apart by it: a value with the revision of the one before is the same value.
    pub revision: u64,
    /// Its place among the resources of its kind: the smaller goes first where nothing else decides.
    pub order: u64,
    /// The value; `None` removes the resource.
    pub value: Option<Document>,
    /// What the key stood for before is another resource, and no last good value of this one.
    pub takes_place: bool,
}

/// A value as its store has it.
#[derive(Debug, Clone)]
pub struct Document(Content);

#[derive(Debug, Clone)]
enum Content {
    Json(Bytes),
    Node(Node),
    Unread,
}

/// Takes in the changes of a store.
pub trait Sink {
    /// The plugins that are enabled from now on, of HTTP and of streams, before any change that depends on it; `None` for
    /// those of config.yaml. A store that tells other plugins than before hands out all its resources again.
    fn plugins(&mut self, listed: Option<EnabledPlugins>);

    /// All changes that follow are read by what config.yaml says of plugins now, and all other resources come with them.
    fn anew(&mut self) {}

    /// One change.
    fn change(&mut self, change: Change);

    /// Of these kinds there may be more resources than are handed over, since a variable that is not set hides them or what
    /// they are called. Nobody who serves is told so.
    fn hidden(&mut self, _kinds: BTreeSet<Kind>) {}

    /// Forgets the changes that were handed over since the store was asked: what they came from was misread.
    fn start_over(&mut self);
}

/// Where a resource stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: String,
    /// The line on which the resource begins, from 1.
    pub line: u32,
}

/// Called when there are changes, from any thread; it does not block.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// What keeps a store's watch alive; dropping it ends the watch.
pub type Watch = Box<dyn std::any::Any + Send>;

/// Why a store did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is changed by other means.
    #[error("{0} is not changed from here")]
    ReadOnly(String),
    /// A value is not at the revision that a write was made for.
    #[error("value changed before overwritten")]
    Changed,
    /// It can't be reached or written, for this reason.
    #[error("{0}")]
    Unavailable(String),
}

/// A set of resources that changes.
pub trait Store: Send + Sync {
    /// Hands over what has changed since the last call; the first time that is everything there is. Answers
    /// what is odd about it and taken all the same.
    ///
    /// # Errors
    /// Why nothing can be told: then nothing has changed, and the next call begins where this one did.
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>>;

    /// [`Store::changes`], and everything else there is as if it had changed, once it has said so ([`Sink::anew`]). A store
    /// elsewhere need not have that at hand: it hands over what it has, and everything with a later call of
    /// [`Store::changes`]. Nobody waits for it here.
    ///
    /// # Errors
    /// As of [`Store::changes`].
    fn everything(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        sink.anew();
        for kind in Kind::ALL {
            let all = self.list(kind).map_err(|error| vec![ConfigError::new(error.to_string())])?;
            for (key, kept) in all {
                sink.change(Change {
                    key,
                    revision: kept.modified,
                    order: kept.created,
                    value: Some(Document::json(kept.value)),
                    takes_place: false,
                });
            }
        }
        // What is newer than that comes behind it.
        self.changes(sink)
    }

    /// Calls `notify` whenever [`Store::changes`] has something to tell. What came after its last call and
    /// before this one is told, too.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    fn watch(&self, notify: Notify) -> std::io::Result<Watch>;

    /// A value as it is kept. One that others write is read anew for each call.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError>;

    /// All values of a kind, by id.
    ///
    /// # Errors
    /// As of [`Store::get`].
    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError>;

    /// The credentials of a consumer, whether it is there or not.
    ///
    /// # Errors
    /// As of [`Store::get`].
    fn credentials(&self, consumer: &str) -> Result<Vec<(Key, Kept)>, StoreError> {
        let mut all = self.list(Kind::Credential)?;
        all.retain(|(key, _)| key.of_consumer().is_some_and(|(whose, _)| whose == consumer));
        Ok(all)
    }

    /// Does all of `writes` or none of them, and returns when they will outlive the process, if the store does. Values
    /// are JSON and are kept without a look at them. All have one revision, larger than any before. A consumer that is removed
    /// takes its credentials with it, and so does one whose time is over; in an etcd that keeps its time by itself they stay.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Changed`] when one of them is not at its [`Write::expected`], and
    /// [`StoreError::ReadOnly`] of a store that others write.
    fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError>;

    /// A number that no other call has been given and no revision is, for an id.
    ///
    /// # Errors
    /// As of [`Store::commit`].
    fn next_id(&self) -> Result<u64, StoreError>;

    /// What keys begin with where they are shown, without a `/` at its end.
    fn prefix(&self) -> &str {
        "/apisix"
    }

    /// Whether there is a configuration yet, be it an empty one.
    fn is_loaded(&self) -> bool {
        true
    }

    /// Closes the files that one process alone may have open, so that another one takes the place of this one. What is written
    /// meanwhile waits.
    ///
    /// # Errors
    /// They could not be closed by then, and stay this process's.
    fn lend(&self, _by: Instant) -> Result<Lent, StoreError> {
        Ok(Lent::nothing())
    }

    /// Why nothing is heard of a store elsewhere at present: what it said last serves. Whoever [watches](Store::watch) hears
    /// when that begins and ends.
    fn away(&self) -> Option<String> {
        None
    }

    /// Whether changes come one by one, so that it is worth to wait a moment for more of them.
    fn gathers(&self) -> bool {
        true
    }

    /// The revision that people know a [`Change::revision`] by.
    fn shown_revision(&self, revision: u64) -> u64 {
        revision
    }

    /// Where something was written that stands at a place of what was read last: variables may have been replaced.
    fn written(&self, place: Place) -> Place {
        place
    }

    /// Whether resources have places in a text, and no revisions that mean something to people.
    fn has_places(&self) -> bool {
        false
    }

    /// Where a resource stands, if it has a place that people know.
    fn origin(&self, _key: &Key) -> Option<Origin> {
        None
    }
}

/// Writes of one value, whatever there is.
pub trait StoreExt: Store {
    /// Keeps a value; answers its revision.
    ///
    /// # Errors
    /// As of [`Store::commit`].
    fn put(&self, key: &Key, value: Bytes) -> Result<u64, StoreError> {
        Ok(self.commit(vec![Write::put(key.clone(), value)])?.revision)
    }

    /// Removes a value; tells whether there was one.
    ///
    /// # Errors
    /// As of [`Store::commit`].
    fn delete(&self, key: &Key) -> Result<bool, StoreError> {
        Ok(self.commit(vec![Write::delete(key.clone())])?.replaced.contains(&true))
    }
}

impl Key {
    /// The key of a kind and an id.
    pub fn new(kind: Kind, id: impl Into<Id>) -> Key {
        Key { kind, id: id.into() }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// As errors name it: `route "1"`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind, self.id)
    }
}

impl Document {
    /// JSON that is read when it is needed.
    pub fn json(text: Bytes) -> Document {
        Document(Content::Json(text))
    }

    /// What has been read already. Lines of its places count from the resource's first.
    pub fn node(node: Node) -> Document {
        Document(Content::Node(node))
    }

    /// Of which only is known that it is there: what is wrong with it is told elsewhere.
    pub fn unread() -> Document {
        Document(Content::Unread)
    }

    /// Whether it is [`Document::unread`].
    pub(crate) fn is_unread(&self) -> bool {
        matches!(self.0, Content::Unread)
    }

    /// The value as JSON, without its places.
    pub(crate) fn text(&self) -> Bytes {
        match &self.0 {
            Content::Json(text) => text.clone(),
            Content::Node(node) => node.to_json().to_string().into(),
            Content::Unread => Bytes::new(),
        }
    }

    /// The value with its places.
    ///
    /// # Errors
    /// Faults of syntax.
    pub fn read(self) -> Result<Node, ConfigError> {
        match self.0 {
            Content::Node(node) => Ok(node),
            Content::Unread => Err(ConfigError::new("it can't be read")),
            Content::Json(text) => {
                let text =
                    std::str::from_utf8(&text).map_err(|e| ConfigError::new(format!("not UTF-8: {e}")))?;
                Node::parse(text, &Options { format: Format::Json, ..Options::default() })
            }
        }
    }
}

/// Moves every place of a document by some lines.
pub(crate) fn move_lines(node: &mut Node, by: impl Fn(u32) -> u32 + Copy) {
    node.place.line = by(node.place.line);
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| move_lines(item, by)),
        Value::Object(object) => {
            let moved = std::mem::take(object).into_entries().into_iter().map(|mut entry| {
                entry.key_place.line = by(entry.key_place.line);
                move_lines(&mut entry.value, by);
                entry
            });
            *object = sixfold_core::document::Object::new(moved.collect()).unwrap_or_default();
        }
        _ => {}
    }
}
