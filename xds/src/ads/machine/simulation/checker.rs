//! What compiles the resources of the model.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use sixfold_core::error::ConfigError;

use super::plane::{Manners, Toy};
use super::stream_of;
use crate::ads::world::{Asks, Compile, Compiled, Need};
use crate::ads::{Channel, Key, Kind, StreamConfig};

/// How long secrets and extensions are waited for.
pub(super) const WITHIN: Duration = Duration::from_secs(30);

/// Refuses what says that it is bad. Listeners are compiled with the extensions that have come.
pub(super) struct Checker {
    manners: Manners,
    known: BTreeMap<String, Toy>,
    /// The one that is tried, and what it was before.
    tried: Option<(String, Option<Toy>)>,
}

impl Checker {
    pub(super) fn new(manners: Manners) -> Checker {
        Checker { manners, known: BTreeMap::new(), tried: None }
    }

    /// Version of the extension that a listener has.
    fn with(&self, name: &str) -> Result<u64, ConfigError> {
        let Some(known) = self.known.get(name) else { return Ok(0) };
        if !known.misfit {
            return Ok(known.version);
        }
        assert!(self.tried.as_ref().is_some_and(|(tried, _)| tried == name), "a misfit is known");
        Err(ConfigError::new("does not fit"))
    }
}

impl Compile for Checker {
    type Part = Toy;

    fn compile(&mut self, key: &Key, value: &[u8]) -> Result<Compiled<Toy>, ConfigError> {
        let Key { kind, name, .. } = key;
        let mut toy = Toy::decode(value).map_err(|error| ConfigError::new(error.to_string()))?;
        assert_eq!(*toy.name, **name);
        if toy.bad {
            return Err(ConfigError::field("bad", "is true"));
        }
        if *kind == Kind::Extension {
            let before = self.known.insert(toy.name.clone(), toy.clone());
            self.tried = Some((toy.name.clone(), before));
        }
        toy.with = toy.extension.as_deref().map_or(Ok(0), |name| self.with(name))?;
        let need = |kind: Kind, name: &String, within| Need {
            kind,
            source: self.manners.source(kind),
            name: name.as_str().into(),
            within,
        };
        let needs = toy.endpoints.iter().map(|name| need(Kind::Endpoints, name, None));
        let needs = needs.chain(toy.routes.iter().map(|name| need(Kind::Routes, name, None)));
        let needs = needs.chain(toy.secrets.iter().map(|name| need(Kind::Secret, name, Some(WITHIN))));
        let needs = needs.chain(toy.extension.iter().map(|name| need(Kind::Extension, name, Some(WITHIN))));
        let needs = needs.collect();
        let clusters = toy.clusters.iter().map(|name| name.as_str().into()).collect();
        assert!(*kind != Kind::Endpoints || toy.endpoints.is_none());
        Ok(Compiled { part: toy, asks: Asks { needs, clusters, ..Asks::default() } })
    }

    fn decide(&mut self, _: &Key, fits: bool) {
        if let Some((name, before)) = self.tried.take().filter(|_| !fits) {
            match before {
                Some(before) => drop(self.known.insert(name, before)),
                None => drop(self.known.remove(&name)),
            }
        }
    }

    fn stream(&self, _: &Channel) -> Option<StreamConfig> {
        Some(stream_of(self.manners.flavor))
    }

    fn forget(&mut self, key: &Key) {
        if key.kind == Kind::Extension {
            self.known.remove(&*key.name);
        }
    }
}
