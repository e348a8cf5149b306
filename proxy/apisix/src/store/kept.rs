//! Values that a store keeps, and writes to it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Key;
use crate::resource::{Id, Kind};

/// A value that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// JSON.
    pub value: Bytes,
    /// The revision at which the key came to be (`createdIndex`).
    pub created: u64,
    /// The revision of this value (`modifiedIndex`).
    pub modified: u64,
}

/// One change of a [`commit`](super::Store::commit).
#[derive(Debug, Clone)]
pub struct Write {
    /// Of what.
    pub key: Key,
    /// What becomes of it.
    pub action: Action,
    /// The revision that the value must be at, 0 for none that is there; `None` for whatever there is.
    pub expected: Option<u64>,
}

/// What becomes of a value.
#[derive(Debug, Clone)]
pub enum Action {
    /// It is this one from now on, for so long if there is a time; without one until it is replaced.
    Put(Bytes, Option<Duration>),
    /// It is there no more; of a consumer, its credentials neither.
    Delete,
    /// It stays as it is: the write says what must be there for the others ([`Write::expected`]).
    Keep,
}

/// What has become of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The revision of all of them.
    pub revision: u64,
    /// Of each, whether there was a value before.
    pub replaced: Vec<bool>,
}

impl Write {
    /// Puts a value for good, whatever there is.
    pub fn put(key: Key, value: Bytes) -> Write {
        Write { key, action: Action::Put(value, None), expected: None }
    }

    /// Leaves a value, which must be at this revision.
    pub fn keep(key: Key, revision: u64) -> Write {
        Write { key, action: Action::Keep, expected: Some(revision) }
    }

    /// Removes a value, whatever there is.
    pub fn delete(key: Key) -> Write {
        Write { key, action: Action::Delete, expected: None }
    }
}

impl Key {
    /// The key under a prefix such as `/apisix`, as etcd and the Admin API have it: `/apisix/routes/1`. A credential stands
    /// below its consumer: its id is `NAME/credentials/ID`.
    pub fn path(&self, prefix: &str) -> String {
        let section = match self.kind {
            Kind::Credential => Kind::Consumer.section(),
            kind => kind.section(),
        };
        format!("{prefix}/{section}/{}", self.id)
    }

    /// The key that a path below the prefix names (`routes/1`), if it is one of a resource.
    pub fn of_path(path: &str) -> Option<Key> {
        let (section, id) = path.split_once('/')?;
        let kind = match Kind::from_section(section)? {
            Kind::Consumer if id.contains("/credentials/") => Kind::Credential,
            kind => kind,
        };
        let parts = match kind {
            Kind::Credential => 3,
            Kind::Secret => 2,
            _ => 1,
        };
        let whole = id.split('/').count() == parts && id.split('/').all(|part| !part.is_empty());
        whole.then(|| Key { kind, id: Id::from(id) })
    }

    /// Of a credential's key whose it is, and what it is called there.
    pub(crate) fn of_consumer(&self) -> Option<(&str, &str)> {
        let id = self.id.as_str();
        id.split_once("/credentials/").filter(|_| self.kind == Kind::Credential)
    }

    /// The key of a consumer's credential.
    pub fn of_credential(consumer: &str, id: &str) -> Key {
        Key::new(Kind::Credential, format!("{consumer}/credentials/{id}").as_str())
    }
}

/// When a value that is put now and lasts for `ttl` is over, in milliseconds since 1970.
pub(super) fn end_of(ttl: Duration) -> u64 {
    now().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_paths() {
        for path in ["routes/1", "consumers/jack", "consumers/jack/credentials/a", "secrets/vault/1"] {
            let key = Key::of_path(path).unwrap();
            assert_eq!(key.path("/apisix"), format!("/apisix/{path}"));
        }
        assert_eq!(Key::of_path("consumers/a/credentials/b"), Some(Key::of_credential("a", "b")));
        for path in ["routes", "routes/", "routes/1/2", "secrets/1", "plugins", "gen_id", "credentials/a"] {
            assert_eq!(Key::of_path(path), None, "{path}");
        }
    }
}
