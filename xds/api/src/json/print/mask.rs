//! Which fields of a message are shown.

use std::collections::BTreeMap;

use crate::schema::{Cardinality, Kind, TypeSchema};
use crate::wire::{self, Fields};

/// Paths of a `google.protobuf.FieldMask` as a tree. One without branches shows everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask {
    fields: BTreeMap<String, Mask>,
}

impl Mask {
    /// Of paths between commas, `bootstrap.node,last_updated` say.
    pub fn parse(text: &str) -> Mask {
        let mut mask = Mask::default();
        for path in Mask::paths(text) {
            mask.add(path);
        }
        mask
    }

    /// The paths of a mask.
    pub fn paths(text: &str) -> impl Iterator<Item = &str> {
        text.split(',').filter(|path| !path.is_empty())
    }

    fn add(&mut self, path: &str) {
        let mut node = self;
        let mut parts = path.split('.').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let known = node.fields.contains_key(part);
            let next = node.fields.entry(part.to_owned()).or_default();
            if known && next.fields.is_empty() {
                // All of it is shown already.
                return;
            }
            if parts.peek().is_none() {
                next.fields.clear();
            }
            node = next;
        }
    }

    /// Whether it shows everything.
    pub fn is_all(&self) -> bool {
        self.fields.is_empty()
    }

    /// What is shown of a field; `None` when nothing is.
    pub fn of(&self, field: &str) -> Option<&Mask> {
        if self.is_all() { Some(self) } else { self.fields.get(field) }
    }

    /// Whether a path leads through single messages of this type to a field, by the names of its definition
    /// (`FieldMaskUtil::GetFieldDescriptors`). What an `Any` holds is not looked into.
    pub fn path_fits(full_name: &str, path: &str) -> bool {
        let mut schema = TypeSchema::message(full_name);
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let field = schema.and_then(|schema| schema.field(part)).filter(|field| field.name == part);
            let Some(field) = field else { return false };
            schema = match (field.kind, field.cardinality) {
                (Kind::Message(inner), Cardinality::Single) => Some(inner),
                _ => None,
            };
        }
        true
    }
}

/// The type URL of the `Any` in a field of an encoded message, empty where there is none; `None` when the field holds
/// anything else.
pub fn held_type(full_name: &str, field: &str, encoded: &[u8]) -> Option<String> {
    let field = TypeSchema::message(full_name)?.field(field)?;
    let Kind::Message(schema) = field.kind else { return None };
    if schema.name() != "google.protobuf.Any" || field.cardinality != Cardinality::Single {
        return None;
    }
    let any = Fields::of(encoded).find(|(number, _)| *number == field.number);
    let url = any.and_then(|(_, any)| wire::text(any.bytes(), 1));
    Some(url.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_shown_whole_takes_its_branches_in() {
        for text in ["a,b.c", "b.c,a.x,a", "a,a.x,b.c", ",a,,b.c,"] {
            let mask = Mask::parse(text);
            assert!(mask.of("a").is_some_and(Mask::is_all), "{text}");
            assert!(mask.of("b").and_then(|b| b.of("c")).is_some_and(Mask::is_all), "{text}");
            assert!(mask.of("c").is_none() && mask.of("b").is_some_and(|b| b.of("a").is_none()), "{text}");
        }
        assert!(Mask::parse("").is_all());
    }

    #[test]
    fn paths_lead_through_single_messages() {
        let fits = |kind: &str, path: &str| Mask::path_fits(&format!("envoy.admin.v3.{kind}"), path);
        assert!(fits("BootstrapConfigDump", "bootstrap.node.id"));
        assert!(fits("ClustersConfigDump", "static_clusters"));
        assert!(!fits("ClustersConfigDump", "static_clusters.cluster"));
        assert!(fits("ClustersConfigDump.StaticCluster", "cluster.type_url"));
        assert!(!fits("ClustersConfigDump.StaticCluster", "cluster.connect_timeout"));
        assert!(!fits("ClustersConfigDump.StaticCluster", "lastUpdated"));
    }
}
