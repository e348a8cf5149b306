//! Envoy's set_metadata filter (source/extensions/filters/http/set_metadata/set_metadata_filter.cc): leaves what is
//! configured to what comes after it, as dynamic metadata.

#[cfg(test)]
mod tests;

use crate::envoy;
use serde_json::{Map, Value};
use sixfold_core::metadata::noted;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::http::set_metadata::v3::{Config, Metadata};
use sixfold_xds_api::pb::google::protobuf::Struct;
use std::sync::Arc;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.set_metadata.`, of levels under `set_metadata.`.
    pub struct SetMetadataStats { counters: [overwrite_denied], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific level leaves what it says beside what the filter itself does.
fn build(config: Config, levels: Vec<Config>, context: &BuildContext) -> Built {
    let stats = |of: &str| SetMetadataStats::new(&context.metrics, &scope(&[of, "set_metadata"]));
    // What a level says is counted at the root, as in Envoy.
    let level = levels.into_iter().next_back().map(|level| (entries(level), stats("")));
    let all = [Some((entries(config), stats(&context.scope))), level];
    Ok(Plugin::of(SetMetadata(all.into_iter().flatten().collect()))
        .access(SetMetadata::access)
        .judging()
        .build())
}

// Deprecated fields mean what they meant.
#[allow(deprecated)]
fn entries(config: Config) -> Box<[Entry]> {
    let Config { metadata_namespace, value, metadata } = config;
    // The older form comes first, and adds to what is there.
    let older = (!metadata_namespace.is_empty()).then(|| Entry::new(&metadata_namespace, true, value));
    let entries = metadata.into_iter().filter_map(|entry| {
        let Metadata {
            metadata_namespace,
            allow_overwrite,
            value,
            // Typed metadata means something to extensions of Envoy only.
            typed_value: _,
        } = entry;
        value.map(|value| Entry::new(&metadata_namespace, allow_overwrite, Some(value)))
    });
    older.into_iter().chain(entries).collect()
}

/// What the filter and a level leave, and their statistics.
struct SetMetadata(Box<[(Box<[Entry]>, SetMetadataStats)]>);

/// What is left under one namespace.
struct Entry {
    namespace: Arc<str>,
    /// Whether it is added to what is there.
    overwrites: bool,
    values: Box<[(Arc<str>, Value)]>,
}

impl Entry {
    fn new(namespace: &str, overwrites: bool, value: Option<Struct>) -> Entry {
        let values = match struct_to_json(value.unwrap_or_default()) {
            Value::Object(map) => map.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            _ => Box::default(),
        };
        Entry { namespace: namespace.into(), overwrites, values }
    }

    fn leave(&self, stream: &mut Stream, stats: &SetMetadataStats) {
        let Entry { namespace, overwrites, values } = self;
        let is_there = stream.metadata.iter().any(|(known, ..)| known == namespace);
        if is_there && !overwrites {
            return stats.overwrite_denied().inc();
        }
        for (key, value) in values {
            let merged = merged(noted(&stream.metadata, namespace, key), value);
            stream.metadata.push((namespace.clone(), key.clone(), merged));
        }
    }
}

impl SetMetadata {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        for (entries, stats) in &self.0 {
            entries.iter().for_each(|entry| entry.leave(stream, stats));
        }
        Step::Continue
    }
}

/// Lists grow, structs are merged, and anything else takes the place of what was there (`StructUtil::update`).
fn merged(before: Option<&Value>, value: &Value) -> Value {
    match (before, value) {
        (Some(Value::Array(list)), Value::Array(more)) => list.iter().chain(more).cloned().collect(),
        (Some(Value::Object(map)), Value::Object(more)) => {
            let mut all: Map<String, Value> = map.clone();
            for (key, value) in more {
                let merged = merged(all.get(key), value);
                all.insert(key.clone(), merged);
            }
            Value::Object(all)
        }
        _ => value.clone(),
    }
}
