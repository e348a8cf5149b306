//! `sixfold diff`: what two configurations do not have in common, after defaults.

mod compare;

use crate::Failure;
use crate::arguments::{DiffOptions, OutputForm};
use crate::dump;
use crate::envoy::Text;
use crate::process::plugins;
use crate::validate::{self, Kind};
use compare::{Change, Difference};
use serde_json::{Map, Value, json};
use sixfold_apisix::config::{Config, EnvVars};
use sixfold_apisix::control::Defaults;
use sixfold_apisix::resource::Kind as ResourceKind;
use sixfold_core::error::ConfigError;
use sixfold_xds_api::json::encode_node;
use sixfold_xds_api::json::print::{Mask, Pretty};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// Resources by what they are called: `route "1"`.
type Resources = BTreeMap<String, Value>;

/// Prints the differences; answers whether there are none.
///
/// # Errors
/// Files that can't be read, or are not of one kind.
pub(crate) fn run(options: &DiffOptions) -> Result<bool, Failure> {
    let (old, new) = (Text::read(&options.old)?, Text::read(&options.new)?);
    let (kind, other) = (validate::kind(&old)?, validate::kind(&new)?);
    if kind != other {
        let reason = format!("{} and {} are not of one kind", old.name, new.name);
        return Err(Failure::new(reason));
    }
    let old = resources(kind, &old, &options.old)?;
    let new = resources(kind, &new, &options.new)?;
    let differences = differences(&old, &new);
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => differences.iter().try_for_each(|one| write!(out, "{one}"))?,
        OutputForm::Json => {
            let shown: Vec<Value> = differences.iter().map(Difference::json).collect();
            writeln!(out, "{:#}", json!({"equal": shown.is_empty(), "differences": shown}))?;
        }
    }
    Ok(differences.is_empty())
}

fn differences(old: &Resources, new: &Resources) -> Vec<Difference> {
    let gone = old.iter().map(|(name, before)| match new.get(name) {
        Some(after) => {
            Difference { name: name.clone(), change: Change::Fields(compare::values(before, after)) }
        }
        None => Difference { name: name.clone(), change: Change::Removed },
    });
    let come = new.keys().filter(|name| !old.contains_key(*name));
    let come = come.map(|name| Difference { name: name.clone(), change: Change::Added });
    gone.chain(come).filter(|one| !one.is_nothing()).collect()
}

fn resources(kind: Kind, text: &Text, path: &Path) -> Result<Resources, Failure> {
    match kind {
        Kind::Bootstrap => bootstrap(text),
        Kind::Configuration => {
            let (config, errors) = Config::effective(&text.text, &text.name, &EnvVars::Process);
            let config = config.filter(|_| errors.is_empty()).ok_or(errors)?;
            Ok([("config.yaml".to_owned(), config)].into())
        }
        Kind::Resources => Ok(of_lists(&dump::resources(text, path, kind)?)),
    }
}

/// Resources of an apisix.yaml, each as APISIX has it in memory, and what has several spellings in one of them.
fn of_lists(lists: &Map<String, Value>) -> Resources {
    let defaults = Defaults::new(&plugins());
    let mut resources = Resources::new();
    for kind in ResourceKind::ALL {
        let Some(Value::Array(items)) = lists.get(kind.section()) else { continue };
        for (at, item) in items.iter().enumerate() {
            let mut item = item.clone();
            let name = ["id", "username"].iter().find_map(|key| match item.get(key)? {
                Value::String(name) => Some(name.clone()),
                name => Some(name.to_string()),
            });
            let name = name.unwrap_or_else(|| (at + 1).to_string());
            defaults.fill(kind, &mut item);
            spell(&mut item);
            resources.insert(format!("{kind} \"{name}\""), item);
        }
    }
    resources
}

/// Gives what means the same one spelling: one value for a list of one, lists that are sets in order.
fn spell(item: &mut Value) {
    let Value::Object(item) = item else { return };
    for (one, many) in [("uri", "uris"), ("host", "hosts"), ("remote_addr", "remote_addrs"), ("sni", "snis")]
    {
        if let Some(value) = item.remove(one) {
            item.insert(many.to_owned(), json!([value]));
        }
    }
    for set in ["methods", "uris", "hosts", "remote_addrs", "snis"] {
        if let Some(Value::Array(items)) = item.get_mut(set) {
            items.sort_by_key(Value::to_string);
        }
    }
    for told in ["create_time", "update_time"] {
        item.remove(told);
    }
    if let Some(nodes) = item.get_mut("upstream").and_then(|upstream| upstream.get_mut("nodes")) {
        fill_nodes(nodes);
    }
    if let Some(nodes) = item.get_mut("nodes") {
        fill_nodes(nodes);
    }
}

/// Nodes without a priority have 0.
fn fill_nodes(nodes: &mut Value) {
    for node in nodes.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        node.entry("priority").or_insert(json!(0));
    }
}

/// Listeners, clusters and secrets by their names, and what else is in a bootstrap, in protobuf's JSON form.
fn bootstrap(text: &Text) -> Result<Resources, Failure> {
    let node = sixfold_xds_api::parse_bootstrap(&text.text, &text.name)?;
    let encoded = encode_node(BOOTSTRAP, &node).map_err(|error| error.in_file(&text.name))?;
    let mut json = Vec::new();
    Pretty::new(&mut json).message(BOOTSTRAP, &encoded, &Mask::parse(""))?;
    let mut whole: Value = serde_json::from_slice(&json)
        .map_err(|error| Failure::from(ConfigError::new(error.to_string()).in_file(&text.name)))?;
    let mut resources = Resources::new();
    for (list, kind) in [("listeners", "listener"), ("clusters", "cluster"), ("secrets", "secret")] {
        let taken = whole.pointer_mut("/static_resources").and_then(Value::as_object_mut);
        let Some(Value::Array(items)) = taken.and_then(|statics| statics.remove(list)) else { continue };
        for (at, mut item) in items.into_iter().enumerate() {
            stand_in(kind, &mut item);
            let name = item.get("name").and_then(Value::as_str).map_or_else(|| at.to_string(), str::to_owned);
            resources.insert(format!("{kind} \"{name}\""), item);
        }
    }
    resources.insert("bootstrap".to_owned(), whole);
    // What is secret is not in that form, and may differ all the same.
    let mut secrets = Map::new();
    hidden(&node.to_json(), "", &mut secrets);
    resources.insert("secrets".to_owned(), Value::Object(secrets));
    Ok(resources)
}

/// Members of a oneof that count where none is written.
fn stand_in(kind: &str, item: &mut Value) {
    if let Value::Object(item) = item
        && kind == "cluster"
        && !item.contains_key("cluster_type")
    {
        item.entry("type").or_insert_with(|| "STATIC".into());
    }
}

/// Fingerprints of what a document says inline, by its place.
fn hidden(value: &Value, place: &str, found: &mut Map<String, Value>) {
    match value {
        Value::Object(object) => {
            for (key, below) in object {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                let word = key.to_ascii_lowercase();
                let is_hidden =
                    ["inline", "password", "secret", "token"].iter().any(|part| word.contains(part));
                match below {
                    Value::String(text) if is_hidden => {
                        let print = sixfold_core::tls::sha256_hex(text.as_bytes());
                        found.insert(place, format!("sha256:{print}").into());
                    }
                    below => hidden(below, &place, found),
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let name = item.get("name").and_then(Value::as_str);
                let name = name.map_or_else(|| at.to_string(), |name| format!("\"{name}\""));
                hidden(item, &format!("{place}[{name}]"), found);
            }
        }
        _ => {}
    }
}
