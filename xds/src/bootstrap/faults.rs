//! What is wrong with a bootstrap, and where.

use std::collections::HashSet;

use sixfold_core::error::ConfigError;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_xds_api::values::Result;

use crate::context::is_unknown_cluster;
use crate::places::snake_case;

/// Errors, each with the path of its field from the root of the document.
#[derive(Default)]
pub(super) struct Faults {
    found: Vec<(String, ConfigError)>,
    /// Paths and what is told of them, of those that were found.
    told: HashSet<(String, String)>,
}

impl Faults {
    /// The value, or its faults.
    pub(super) fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        self.take_in(result, |fault| fault)
    }

    /// The value, or the faults of a resource in a list.
    pub(super) fn take_item<T>(&mut self, result: Result<T>, list: &str, index: usize) -> Option<T> {
        self.take_in(result, |fault| fault.in_index(index).in_key(list).in_key("static_resources"))
    }

    fn take_in<T>(&mut self, result: Result<T>, root: impl Fn(ConfigError) -> ConfigError) -> Option<T> {
        let faults = match result {
            Ok(value) => return Some(value),
            Err(error) => error.into_all(),
        };
        let path = |fault: &ConfigError| root(fault.clone()).field.unwrap_or_default();
        for fault in faults {
            let path = path(&fault);
            // A part that is read for several ends has its fault for each.
            if self.told.insert((path.clone(), fault.to_string())) {
                self.found.push((path, fault));
            }
        }
        None
    }

    /// Forgets what may be wrong for the want of what could not be read: a part that lacks it, and a cluster, whose parts
    /// hang together.
    pub(super) fn leave_out_consequences(&mut self, unread: &Unread) {
        let no_clusters = unread.hides_clusters();
        self.found.retain(|(path, fault)| {
            let dangling = no_clusters && is_unknown_cluster(fault);
            !dangling && !unread.explains(path) && !unread.is_in_cluster_of(path)
        });
    }

    /// Adds what could not be read.
    pub(super) fn add_unread(&mut self, bootstrap: &Bootstrap, unread: Vec<ConfigError>) {
        let named = unread.into_iter().map(|fault| {
            let path = fault.field.clone().unwrap_or_default();
            (path, in_resource(bootstrap, fault))
        });
        self.found.extend(named);
    }

    /// Whether nothing is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Adds what breaks rules of definitions, but what was found already, and what stands in something that is refused.
    pub(super) fn broken_rules(
        &mut self,
        bootstrap: &Bootstrap,
        faults: impl IntoIterator<Item = ConfigError>,
        unread: &Unread,
    ) {
        let parent = |path: &str| path.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
        let mut known: HashSet<String> = self.found.iter().map(|(path, _)| path.clone()).collect();
        let mut parents: HashSet<String> = known.iter().map(|path| parent(path)).collect();
        for fault in faults {
            let path = fault.field.clone().unwrap_or_default();
            let within = outer(&path).any(|outer| !outer.is_empty() && known.contains(outer));
            // One member of a oneof that is wrong is told once, not also as the oneof that lacks one.
            let lacks = || fault.reason.starts_with("one of ") && parents.contains(&path);
            if unread.explains(&path) || within || lacks() {
                continue;
            }
            parents.insert(parent(&path));
            known.insert(path.clone());
            self.found.push((path, in_resource(bootstrap, fault)));
        }
    }

    /// All of them with the paths of their fields.
    pub(super) fn into_found(self) -> Vec<(String, ConfigError)> {
        self.found
    }
}

/// The fields that could not be read, and those that a misspelt one was meant for, spelled as in the definition.
pub(super) struct Unread {
    paths: HashSet<String>,
    /// What they are parts of.
    outer: HashSet<String>,
    /// Positions of clusters that they are of.
    clusters: HashSet<String>,
}

impl Unread {
    pub(super) fn new(faults: &[ConfigError]) -> Unread {
        let paths = faults.iter().filter_map(|fault| {
            let path = fault.field.as_deref()?;
            let meant = fault.reason.split_once("did you mean \"").and_then(|(_, name)| name.split_once('"'));
            let meant = meant.map(|(name, _)| match path.rsplit_once('.') {
                Some((parent, _)) => format!("{parent}.{name}"),
                None => name.to_owned(),
            });
            Some(std::iter::once(path.to_owned()).chain(meant))
        });
        let paths: HashSet<String> = paths.flatten().map(|path| snake_case(&path)).collect();
        let outer = paths.iter().flat_map(|path| outer(path)).map(str::to_owned).collect();
        let clusters = paths.iter().filter_map(|path| cluster_of(path)).map(str::to_owned).collect();
        Unread { paths, outer, clusters }
    }

    /// Whether one of them is what a path leads to, a part of it, or what it is a part of.
    fn explains(&self, path: &str) -> bool {
        self.outer.contains(path) || outer(path).any(|outer| self.paths.contains(outer))
    }

    /// Whether one of them is a cluster's name, or all clusters.
    fn hides_clusters(&self) -> bool {
        let hides = |path: &str| match path.strip_prefix("static_resources.clusters") {
            Some(rest) => rest.is_empty() || rest.ends_with("].name"),
            None => path == "static_resources",
        };
        self.paths.iter().any(|path| hides(path))
    }

    /// Whether one of them is of the cluster that a path leads into.
    fn is_in_cluster_of(&self, path: &str) -> bool {
        cluster_of(path).is_some_and(|own| self.clusters.contains(own))
    }
}

/// The position of the cluster that a path leads into.
fn cluster_of(path: &str) -> Option<&str> {
    path.strip_prefix("static_resources.clusters[")?.split_once(']').map(|(index, _)| index)
}

/// A path and those of what it is a part of.
fn outer(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.char_indices().filter(|(_, c)| matches!(c, '.' | '[')).map(|(at, _)| at);
    ends.chain([path.len()]).filter_map(|at| path.get(..at))
}

/// Names the static resource that a path leads into, as its compiler does.
fn in_resource(bootstrap: &Bootstrap, mut fault: ConfigError) -> ConfigError {
    let path = fault.field.clone().unwrap_or_default();
    let Some(resources) = &bootstrap.static_resources else { return fault };
    for (list, kind) in [("clusters", "cluster"), ("listeners", "listener")] {
        let inner = path
            .strip_prefix("static_resources.")
            .and_then(|path| path.strip_prefix(list)?.strip_prefix('['));
        let Some((index, inner)) = inner.and_then(|inner| inner.split_once("].")) else { continue };
        let index = index.parse::<usize>().ok();
        let name = match kind {
            "cluster" => index.and_then(|index| resources.clusters.get(index)).map(|cluster| &cluster.name),
            _ => index.and_then(|index| resources.listeners.get(index)).map(|listener| &listener.name),
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            fault.field = Some(inner.to_owned());
            return fault.in_resource(format!("{kind} \"{name}\""));
        }
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each was compared with all that were there.
    #[test]
    fn many_faults_are_told_apart_at_once() {
        let mut faults = Faults::default();
        for number in (0..200_000).chain(0..3) {
            faults.take::<()>(Err(ConfigError::field(&format!("field{number}"), "is wrong")));
        }
        let broken =
            (0..200_000).map(|number| ConfigError::field(&format!("field{number}.part"), "is short"));
        let more = [ConfigError::field("other", "is short"), ConfigError::field("unread.part", "is short")];
        let unread = Unread::new(&[ConfigError::field("unread", "is no number")]);
        faults.broken_rules(&Bootstrap::default(), broken.chain(more), &unread);
        assert_eq!(faults.found.len(), 200_001);
    }
}
