//! Parts that many resources have alike, compiled once: thousands of routes and upstreams differ in paths and nodes,
//! and in little else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use sixfold_core::cluster::ClusterPolicy;
use sixfold_core::route::ForwardOptions;

use crate::route::Manner;
use crate::upstream::{Forwarding, Terms};

/// What the resources of one source share.
#[derive(Default)]
pub(crate) struct SharedParts {
    pub(crate) policies: Shared<Terms, ClusterPolicy>,
    pub(crate) forwardings: Shared<Forwarding, Forwarding>,
    pub(crate) options: Shared<Manner, ForwardOptions>,
}

/// Values by what they are made of. They live for as long as somebody else holds them.
pub(crate) struct Shared<K, V>(RefCell<Values<K, V>>);

struct Values<K, V> {
    known: HashMap<K, Weak<V>>,
    /// Values that were left when those that nobody holds were forgotten last.
    kept: usize,
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Shared<K, V> {
        Shared(RefCell::new(Values { known: HashMap::new(), kept: 0 }))
    }
}

impl<K: Hash + Eq, V> Shared<K, V> {
    /// The value that is made of `key`.
    ///
    /// # Errors
    /// That of `make`, which is called when nobody holds such a value.
    pub(crate) fn get<E>(&self, key: K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<Arc<V>, E> {
        if let Some(value) = self.0.borrow().known.get(&key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        let value = Arc::new(make(&key)?);
        let mut values = self.0.borrow_mut();
        // Once those that nobody holds may be as many as the others.
        if values.known.len() > 2 * values.kept + 16 {
            values.known.retain(|_, value| value.strong_count() > 0);
            values.kept = values.known.len();
        }
        values.known.insert(key, Arc::downgrade(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn values_are_made_once_and_forgotten_when_nobody_holds_them() {
        let shared = Shared::default();
        let get = |key: u32| shared.get(key, |key| Ok::<_, Infallible>(key.to_string())).unwrap();
        let held = get(7);
        assert!(Arc::ptr_eq(&held, &get(7)));
        assert_eq!(shared.get(8, |_| Err("no")), Err("no"));
        (100..10_000).for_each(|key| drop(get(key)));
        assert!(shared.0.borrow().known.len() <= 20);
        assert!(Arc::ptr_eq(&held, &get(7)));
    }
}
