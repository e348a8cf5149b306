//! Many paths through one JSON text at once, without the document.

use super::body::{BodyPath, Step};
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;

/// Finds what the wanted paths lead to, each in its place.
///
/// # Errors
/// It is no JSON, or more than one text of it.
pub(super) fn walk(json: &[u8], wanted: &Wanted<'_>, found: &mut [Option<Value>]) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_slice(json);
    Find { wanted, found }.deserialize(&mut json)?;
    json.end()
}

/// Paths by their steps, so that many are followed at once.
#[derive(Default)]
pub(super) struct Wanted<'p> {
    /// Those that end here, by their places among all.
    ends: Vec<usize>,
    keys: HashMap<&'p str, Wanted<'p>>,
    items: HashMap<usize, Wanted<'p>>,
}

impl<'p> Wanted<'p> {
    pub(super) fn of(paths: &[&'p BodyPath]) -> Wanted<'p> {
        let mut all = Wanted::default();
        for (at, path) in paths.iter().enumerate() {
            let mut here = Some(&mut all);
            for step in path.steps.iter() {
                here = here.and_then(|here| match step {
                    Step::Key(key) => Some(here.keys.entry(&**key).or_default()),
                    Step::Index(index) => Some(here.items.entry(*index).or_default()),
                    // Which may lead to more than one value.
                    Step::Every | Step::Descend => None,
                });
            }
            if let Some(here) = here {
                here.ends.push(at);
            }
        }
        all
    }

    /// A field of a form, of which the first of each name counts.
    pub(super) fn named(&self, name: &str, found: &mut [Option<Value>], value: impl FnOnce() -> String) {
        let Some(wanted) = self.keys.get(name) else { return };
        // All of them were found with the first one.
        if wanted.ends.first().is_none_or(|at| found.get(*at).is_none_or(Option::is_some)) {
            return;
        }
        let value = Value::String(value());
        for at in &wanted.ends {
            if let Some(place) = found.get_mut(*at) {
                *place = Some(value.clone());
            }
        }
    }

    /// Forgets what was found from here on: the key has come again.
    fn forget(&self, found: &mut [Option<Value>]) {
        for at in &self.ends {
            if let Some(place) = found.get_mut(*at) {
                *place = None;
            }
        }
        self.keys.values().chain(self.items.values()).for_each(|below| below.forget(found));
    }
}

/// Follows paths through JSON, and keeps what they lead to if that is a text, a number or a boolean. Of keys that come
/// twice the last one counts, as everywhere.
struct Find<'w, 'p> {
    wanted: &'w Wanted<'p>,
    found: &'w mut [Option<Value>],
}

impl<'de> DeserializeSeed<'de> for Find<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl Find<'_, '_> {
    fn end(self, value: impl Into<Value>) {
        let value = value.into();
        for at in &self.wanted.ends {
            if let Some(place) = self.found.get_mut(*at) {
                *place = Some(value.clone());
            }
        }
    }
}

impl<'de> Visitor<'de> for Find<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.end(Value::Null);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.end(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.end(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.end(value);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.end(value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        if !self.wanted.ends.is_empty() {
            self.end(value);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.wanted.items.get(&index) {
                Some(wanted) => items.next_element_seed(Find { wanted, found: &mut *self.found })?,
                None => items.next_element::<IgnoredAny>()?.map(drop),
            };
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(wanted) = members.next_key_seed(Below(self.wanted))? {
            match wanted {
                Some(wanted) => {
                    wanted.forget(self.found);
                    members.next_value_seed(Find { wanted, found: &mut *self.found })?;
                }
                None => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// What is wanted below a key.
struct Below<'w, 'p>(&'w Wanted<'p>);

impl<'de, 'w, 'p> DeserializeSeed<'de> for Below<'w, 'p> {
    type Value = Option<&'w Wanted<'p>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'w, 'p> Visitor<'_> for Below<'w, 'p> {
    type Value = Option<&'w Wanted<'p>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.keys.get(key))
    }
}
