//! Subsets of a cluster's endpoints by their metadata: how they are configured, and by what a request asks for one.

use serde_json::Value;
use std::collections::BTreeMap;
use xxhash_rust::xxh64::xxh64;

/// The key whose list holds what is asked for one after the other (`metadata_fallback_policy` FALLBACK_LIST).
const FALLBACK_LIST: &str = "fallback_list";

/// Keys and values of `envoy.lb` metadata by which a request chooses a subset; made when configuration arrives, so
/// that a choice neither sorts nor hashes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Criteria {
    /// In the order of their keys.
    pairs: Vec<Criterion>,
    /// What is asked for one after the other where a cluster takes [`FALLBACK_LIST`]; `None` without that key.
    fallbacks: Option<Box<[Criteria]>>,
}

/// A key and the value that it must have.
#[derive(Debug, Clone, PartialEq)]
pub struct Criterion {
    /// The key.
    pub key: Box<str>,
    /// The value.
    pub value: Value,
    key_hash: u64,
    hash: u64,
}

impl Criterion {
    /// A key and its value.
    pub fn new(key: &str, value: Value) -> Criterion {
        let key_hash = hash_of_key(key);
        let hash = xxh64(value.to_string().as_bytes(), key_hash);
        Criterion { key: key.into(), value, key_hash, hash }
    }
}

/// The hash of a key. Those of several are added up, so that their order does not count.
pub(crate) fn hash_of_key(key: &str) -> u64 {
    xxh64(key.as_bytes(), 0)
}

/// The hash of several keys and values in any order.
pub(crate) fn hash_of_pairs<'a>(pairs: impl Iterator<Item = &'a Criterion>) -> u64 {
    pairs.fold(0, |sum, pair| sum.wrapping_add(pair.hash))
}

impl Criteria {
    /// Asks for nothing.
    pub const NONE: &'static Criteria = &Criteria { pairs: Vec::new(), fallbacks: None };

    /// From the keys of `envoy.lb`.
    pub fn new(values: &BTreeMap<String, Value>) -> Criteria {
        let fallbacks = values.get(FALLBACK_LIST).map(|list| Criteria::fallback_list(values, list));
        Criteria { pairs: sorted(values), fallbacks }
    }

    /// What is asked for without the list, with each of its members over it.
    fn fallback_list(values: &BTreeMap<String, Value>, list: &Value) -> Box<[Criteria]> {
        let mut base = values.clone();
        base.remove(FALLBACK_LIST);
        let with = |member: &Value| {
            let mut values = base.clone();
            values.extend(member.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
            Criteria { pairs: sorted(&values), fallbacks: None }
        };
        match list.as_array().filter(|list| !list.is_empty()) {
            Some(list) => list.iter().map(with).collect(),
            None => [with(&Value::Null)].into(),
        }
    }

    /// These with `more` over them, as a weighted cluster's are over its route's.
    #[must_use]
    pub fn merged<'a>(&self, more: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Criteria {
        let own = self.pairs.iter().map(|pair| (pair.key.to_string(), pair.value.clone()));
        let mut values: BTreeMap<String, Value> = own.collect();
        values.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value.clone())));
        Criteria::new(&values)
    }

    /// The keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|pair| (&*pair.key, &pair.value))
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(crate) fn fallbacks(&self) -> Option<&[Criteria]> {
        self.fallbacks.as_deref()
    }

    pub(crate) fn all(&self) -> Asked<'_> {
        Asked { criteria: self, keys: None }
    }
}

fn sorted(values: &BTreeMap<String, Value>) -> Vec<Criterion> {
    values.iter().map(|(key, value)| Criterion::new(key, value.clone())).collect()
}

/// Criteria, or those of some keys.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    criteria: &'a Criteria,
    keys: Option<&'a [Box<str>]>,
}

impl<'a> Asked<'a> {
    /// The same criteria, of these keys alone.
    pub(crate) fn only(self, keys: &'a [Box<str>]) -> Asked<'a> {
        Asked { keys: Some(keys), ..self }
    }

    pub(crate) fn pairs(self) -> impl Iterator<Item = &'a Criterion> {
        self.criteria.pairs.iter().filter(move |pair| self.keys.is_none_or(|keys| keys.contains(&pair.key)))
    }

    /// The hash of the keys.
    pub(crate) fn keys_hash(self) -> u64 {
        self.pairs().fold(0, |sum, pair| sum.wrapping_add(pair.key_hash))
    }

    /// Whether the keys are these, which are in order.
    pub(crate) fn has_keys(self, keys: &[Box<str>]) -> bool {
        self.pairs().map(|pair| &pair.key).eq(keys)
    }

    /// Whether all of these are among the keys.
    pub(crate) fn covers(self, keys: &[Box<str>]) -> bool {
        keys.iter().all(|key| self.pairs().any(|pair| pair.key == *key))
    }
}

/// How endpoints are divided (config/cluster/v3 LbSubsetConfig).
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetConfig {
    /// What is done for a request that no subset is for.
    pub fallback: SubsetFallback,
    /// Keys and values of the endpoints of [`SubsetFallback::Default`].
    pub default_subset: Vec<Criterion>,
    /// Which subsets there are; those before count more.
    pub selectors: Box<[SubsetSelector]>,
    /// Weights of localities count within subsets (`locality_weight_aware`).
    pub locality_weights: bool,
    /// They are scaled by the share of the locality's endpoints that are in the subset.
    pub scale_locality_weights: bool,
    /// All endpoints are taken where even the fallback has none.
    pub panic_mode_any: bool,
    /// Each value of an endpoint's list counts, not the list as a whole.
    pub list_as_any: bool,
    /// Keys that no selector has do not count in what is asked for.
    pub allow_redundant_keys: bool,
    /// A request's `fallback_list` is asked for one after the other.
    pub fallback_list: bool,
}

/// Keys that endpoints are divided by.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetSelector {
    /// In order, each once.
    pub keys: Box<[Box<str>]>,
    /// Each subset is the first endpoint that has its values, whatever its health.
    pub single_host: bool,
    /// What is done when no endpoint has the values that are asked for; `None` leaves it to the cluster.
    pub fallback: Option<SubsetFallback>,
}

/// What is done where there is no subset.
#[derive(Debug, Clone, PartialEq)]
pub enum SubsetFallback {
    /// There is no endpoint (503 UH).
    None,
    /// All endpoints are taken.
    Any,
    /// Those of the default subset are.
    Default,
    /// It is asked for again by these keys alone; they are in order. Of selectors only.
    Keys(Box<[Box<str>]>),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn criteria(value: Value) -> Criteria {
        Criteria::new(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn hashes_do_not_depend_on_the_order_or_on_keys_left_out() {
        let whole = criteria(json!({"a": 1, "b": "x", "c": [1, 2]}));
        let part = criteria(json!({"c": [1, 2], "a": 1}));
        let keys: Vec<Box<str>> = vec!["a".into(), "c".into()];
        let of = |asked: Asked<'_>| (hash_of_pairs(asked.pairs()), asked.keys_hash());
        assert_eq!(of(whole.all().only(&keys)), of(part.all()));
        assert_ne!(of(whole.all()).0, of(part.all()).0);
        assert!(whole.all().covers(&keys) && !whole.all().has_keys(&keys) && part.all().has_keys(&keys));
        let other = criteria(json!({"a": 1, "c": [2, 1]}));
        assert_ne!(of(other.all()).0, of(part.all()).0);
    }

    #[test]
    fn a_fallback_list_is_each_of_its_members_over_the_rest() {
        let given = criteria(json!({"v": 1, "w": 2, "fallback_list": [{"v": 3}, {}]}));
        let each = [criteria(json!({"v": 3, "w": 2})), criteria(json!({"v": 1, "w": 2}))];
        assert_eq!(given.fallbacks().unwrap(), each);
        assert_eq!(given.iter().count(), 3, "where no cluster takes the list it is a key as any other");
        assert_eq!(
            criteria(json!({"v": 1, "fallback_list": 7})).fallbacks().unwrap(),
            [criteria(json!({"v": 1}))]
        );
    }

    #[test]
    fn what_comes_later_is_over_what_was_there() {
        let merged = criteria(json!({"a": 1, "b": 2})).merged([("b", &json!(3)), ("c", &json!(4))]);
        assert_eq!(merged, criteria(json!({"a": 1, "b": 3, "c": 4})));
    }
}
