//! The items of a file, those with a known text not read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::document::{Format, Node};
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::fast_hash::FastMap;

use super::{Resources, Setup};
use crate::config::Config;
use crate::file::{self, Fingerprint, Item, Section};
use crate::item::{Parsed, Reader, positional_id, resource_name};
use crate::plugin::Catalog;
use crate::resource::{Id, Kind};
use crate::schema;

/// All items of a file, valid one by one and together.
#[derive(Default)]
pub(super) struct Items {
    /// By kind, then in the file's order.
    pub(super) entries: BTreeMap<Kind, Vec<Entry>>,
    index: FastMap<(Kind, Id), usize>,
    parsed: FastMap<(Section, Fingerprint), Arc<Parsed>>,
    catalog: Option<Arc<Catalog>>,
    enabled: Option<BTreeSet<String>>,
}

/// One resource.
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) line: u32,
    /// The same object as before if the text has not changed.
    pub(crate) parsed: Arc<Parsed>,
}

impl Items {
    /// The resource of an id.
    pub(super) fn get(&self, kind: Kind, id: &Id) -> Option<&Arc<Parsed>> {
        let index = self.index.get(&(kind, id.clone()))?;
        self.entries.get(&kind)?.get(*index).map(|entry| &entry.parsed)
    }

    /// The resources of a kind, in the file's order.
    pub(super) fn of(&self, kind: Kind) -> &[Entry] {
        self.entries.get(&kind).map(Vec::as_slice).unwrap_or_default()
    }

    /// Reads `resources`, taking from `self` what is the same.
    pub(super) fn read(
        &self,
        resources: Resources<'_>,
        config: &Config,
        setup: &Setup,
    ) -> Result<Items, Vec<ConfigError>> {
        let text = match resources.format {
            Format::Yaml => file::substitute(resources.text, &setup.environment).map_err(|e| vec![e])?,
            Format::Json => resources.text.into(),
        };
        if let (Format::Yaml, Some(items)) = (resources.format, file::split(&text)) {
            match self.take(&items, config, setup) {
                Ok(items) => return Ok(items),
                Err(Fault::Errors(errors)) => return Err(errors),
                // The layout only looked usual.
                Err(Fault::NotAnItem) => {}
            }
        }
        let items = file::parse(&text, resources.format, &setup.environment)?;
        self.take(&items, config, setup).map_err(|fault| match fault {
            Fault::Errors(errors) => errors,
            Fault::NotAnItem => Vec::new(),
        })
    }

    fn take(&self, items: &[Item<'_>], config: &Config, setup: &Setup) -> Result<Items, Fault> {
        let enabled = enabled_plugins(items, config)?;
        // Whether a plugin is known is part of what makes an item valid.
        let kept = self.catalog.clone().filter(|_| enabled == self.enabled);
        let known = kept.is_some();
        let catalog = kept.unwrap_or_else(|| {
            Arc::new(Catalog::new(&setup.registry, enabled.as_ref(), &config.plugin_attr))
        });
        let reader = Reader { catalog: &catalog, environment: &setup.environment };
        let mut next = Items { catalog: Some(catalog.clone()), enabled, ..Items::default() };
        next.index.reserve(items.len());
        next.parsed.reserve(items.len());
        let mut errors = Vec::new();
        for item in items {
            let Section::Resources(kind) = item.section else { continue };
            let key = (item.section, item.fingerprint);
            let parsed = match self.parsed.get(&key).filter(|_| known).or_else(|| next.parsed.get(&key)) {
                Some(parsed) => parsed.clone(),
                None => {
                    let node = item.parse().ok_or(Fault::NotAnItem)?;
                    match reader.read(kind, item.index, item.line, &node) {
                        Ok(parsed) => Arc::new(parsed),
                        Err(faults) => {
                            errors.extend(faults);
                            continue;
                        }
                    }
                }
            };
            next.parsed.insert(key, parsed.clone());
            errors.extend(next.add(kind, item, parsed));
        }
        errors.extend(next.missing_references());
        if errors.is_empty() { Ok(next) } else { Err(Fault::Errors(errors)) }
    }

    /// Adds an item; an error if its id is there already.
    fn add(&mut self, kind: Kind, item: &Item<'_>, parsed: Arc<Parsed>) -> Option<ConfigError> {
        let id = parsed.id.clone().unwrap_or_else(|| positional_id(item.index));
        let list = self.entries.entry(kind).or_default();
        if let Some(first) = self.index.get(&(kind, id.clone())).and_then(|index| list.get(*index)) {
            let reason =
                format!("found duplicate id {id} in {}, first given at line {}", kind.section(), first.line);
            let error = ConfigError::field("id", reason).at(Place::new(item.line, 1));
            return Some(error.in_resource(resource_name(kind, &id)));
        }
        self.index.insert((kind, id.clone()), list.len());
        list.push(Entry { id, line: item.line, parsed });
        None
    }

    /// Errors for every reference to a resource that is not there, or is of the wrong type.
    fn missing_references(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (kind, entries) in &self.entries {
            for entry in entries {
                for reference in &entry.parsed.references {
                    let reason = match self.get(reference.kind, &reference.id) {
                        Some(target) => match target.refuses(reference) {
                            Some(reason) => reason,
                            None => continue,
                        },
                        None => format!("there is no {} \"{}\"", reference.kind, reference.id),
                    };
                    let place = entry.parsed.place_of(reference, entry.line);
                    let error = ConfigError::field(reference.field, reason).at(place);
                    errors.push(error.in_resource(resource_name(*kind, &entry.id)));
                }
            }
        }
        errors
    }
}

enum Fault {
    Errors(Vec<ConfigError>),
    /// A text that the split took for an item does not parse by itself.
    NotAnItem,
}

/// The plugins that are enabled: those of the file if it lists any, else those of config.yaml.
fn enabled_plugins(items: &[Item<'_>], config: &Config) -> Result<Option<BTreeSet<String>>, Fault> {
    let mut listed = items.iter().filter(|item| item.section == Section::Plugins).peekable();
    if listed.peek().is_none() {
        return Ok(config.plugins.as_ref().map(|names| names.iter().cloned().collect()));
    }
    let mut names = BTreeSet::new();
    for item in listed {
        let node = item.parse().ok_or(Fault::NotAnItem)?;
        names.extend(http_plugin(&node, item.index).map_err(|error| Fault::Errors(vec![error]))?);
    }
    Ok(Some(names))
}

/// The name of an entry of the file's list of plugins, unless it is one for streams.
fn http_plugin(node: &Node, index: usize) -> Result<Option<String>, ConfigError> {
    let mut value = serde_json::Value::Array(vec![node.to_json()]);
    schema::plugins_list().validate(&mut value).map_err(|violation| {
        ConfigError::new(violation.message).in_index(index - 1).in_key("plugins").at(node.place)
    })?;
    let is_stream =
        node.get("stream").is_some_and(|stream| stream.value == sixfold_core::document::Value::Bool(true));
    Ok(node.get("name").and_then(Node::as_str).filter(|_| !is_stream).map(str::to_owned))
}
