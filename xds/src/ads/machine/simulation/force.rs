//! The world as requests find it.

use std::collections::{BTreeMap, BTreeSet};

use super::Key;
use super::plane::Toy;
use crate::ads::Kind;
use crate::ads::machine::Failure;
use crate::ads::world::Change;

/// What requests see.
#[derive(Default)]
pub(super) struct Force {
    pub(super) resources: BTreeMap<Key, Toy>,
    /// Whether every step must be whole.
    pub(super) strict: bool,
    /// Routes of which something bad was sent: listeners open without them.
    pub(super) excused: BTreeSet<String>,
    pub(super) steps: usize,
}

impl Force {
    /// Applies a change in the order in which the model does, and looks at the world after every step. Listeners that
    /// are `unfit` stay what they are.
    pub(super) fn apply(&mut self, batch: Vec<Change<Toy>>, unfit: &[Failure]) {
        let order = |change: &Change<Toy>| match (change.kind, change.part.is_some()) {
            (Kind::Cluster | Kind::Secret, true) => 0,
            (Kind::Endpoints, _) => 1,
            (Kind::Routes, true) => 2,
            (Kind::Listener, false) => 3,
            (Kind::Listener, true) => 4,
            (Kind::Cluster, false) => 5,
            _ => 6,
        };
        let mut batch = batch;
        batch.retain(|change| {
            !unfit.iter().any(|unfit| (unfit.kind, &unfit.name) == (change.kind, &change.name))
        });
        batch.sort_by_key(order);
        for Change { kind, name, part, .. } in batch {
            // A cluster that is new shows itself with its endpoints.
            let new = kind == Kind::Cluster && !self.resources.contains_key(&(kind, name.clone()));
            match part {
                Some(part) => drop(self.resources.insert((kind, name), part)),
                // It goes with the last that is made of it, which may be a cluster that lingers.
                None if kind == Kind::Secret && self.is_made_of(&name) => {}
                None => {
                    assert!(kind != Kind::Routes || !self.is_named(&name), "routes {name} go, and are named");
                    self.resources.remove(&(kind, name));
                }
            }
            if !new {
                self.check();
            }
            self.steps += 1;
        }
    }

    fn check(&self) {
        for ((kind, name), toy) in &self.resources {
            for route in &toy.routes {
                let fit = self.has(Kind::Routes, route) || self.excused.contains(route);
                assert!(fit, "{} {name} names routes {route}", kind.noun());
            }
            for secret in toy.secrets.iter().filter(|_| self.strict) {
                assert!(self.has(Kind::Secret, secret), "{} {name} names secret {secret}", kind.noun());
            }
            // Routes that no listener has any more lead nobody anywhere.
            if !self.strict || *kind == Kind::Routes && !self.is_named(name) {
                continue;
            }
            for cluster in &toy.clusters {
                let Some(found) = self.resources.get(&(Kind::Cluster, cluster.as_str().into())) else {
                    panic!("routes {name} name cluster {cluster}")
                };
                // By the cluster's own name.
                assert!(
                    found.endpoints.is_none() || self.has(Kind::Endpoints, cluster),
                    "{cluster} has no endpoints"
                );
            }
        }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.resources.contains_key(&(kind, name.into()))
    }

    fn is_made_of(&self, secret: &str) -> bool {
        self.resources.values().any(|toy| toy.secrets.iter().any(|name| name == secret))
    }

    fn is_named(&self, routes: &str) -> bool {
        self.resources.values().any(|toy| toy.routes.iter().any(|name| name == routes))
    }
}
