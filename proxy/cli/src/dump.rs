//! `sixfold dump`: the resources of a gateway as a file that another one takes.

use crate::Failure;
use crate::arguments::{DumpForm, DumpOptions};
use crate::envoy::Text;
use crate::resources;
use crate::validate::{Kind as FileKind, kind};
use serde_json::{Map, Value};
use sixfold_apisix::Decryption;
use sixfold_apisix::config::EnvVars;
use sixfold_apisix::resource::Kind;
use sixfold_apisix::store::{FileStore, Key, Store};
use sixfold_core::document::Format;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Prints all resources.
pub(crate) fn run(options: &DumpOptions) -> Result<(), Failure> {
    let text = Text::read(&options.config)?;
    let lists = Value::Object(resources(&text, &options.config, kind(&text)?)?);
    let mut out = std::io::stdout();
    match options.output {
        DumpForm::Json => writeln!(out, "{lists:#}")?,
        DumpForm::Yaml => writeln!(out, "{}#END", sixfold_apisix::yaml(&lists))?,
    }
    Ok(())
}

/// All resources of the config.yaml or apisix.yaml at `path`, as the lists of an apisix.yaml.
pub(crate) fn resources(text: &Text, path: &Path, kind: FileKind) -> Result<Map<String, Value>, Failure> {
    let (store, decryption): (Arc<dyn Store>, _) = match kind {
        FileKind::Bootstrap => {
            let reason = "is an Envoy bootstrap: its resources are what it says; those of a running proxy are its /config_dump";
            return Err(Failure::new(format!("{}: {reason}", text.name)));
        }
        FileKind::Configuration => {
            let config = sixfold_apisix::load_config(path, &EnvVars::Process)?;
            let decryption = Decryption::new(&config, &sixfold_plugins::registry());
            (resources::of(&config, path)?, Some(decryption))
        }
        FileKind::Resources => {
            let format = Format::from_file_name(&text.name);
            (Arc::new(FileStore::new(path.to_owned(), format, EnvVars::Process)), None)
        }
    };
    lists(&*store, decryption.as_ref())
}

/// The lists of an apisix.yaml; one without items is not there. What is no JSON is told of and left out.
fn lists(store: &dyn Store, decryption: Option<&Decryption>) -> Result<Map<String, Value>, Failure> {
    let mut lists = Map::new();
    for kind in Kind::ALL {
        let kept = store.list(kind).map_err(|error| Failure::new(error.to_string()))?;
        let items = kept.into_iter().filter_map(|(key, kept)| {
            let read = serde_json::from_slice(&kept.value);
            let read =
                read.inspect_err(|error| eprintln!("warning: {key} is left out: it is no JSON: {error}"));
            let mut value = read.ok()?;
            // Whoever takes the file has another store, or none.
            if let Some(decryption) = decryption {
                decryption.open(&key, &mut value);
            }
            Some(item(&key, value))
        });
        let items: Vec<Value> = items.collect();
        if !items.is_empty() {
            // A credential is an item of `consumers`.
            let section = if kind == Kind::Credential { Kind::Consumer } else { kind }.section();
            let list = lists.entry(section).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.extend(items);
            }
        }
    }
    Ok(lists)
}

/// A resource as an item, which says itself what it is called.
fn item(key: &Key, value: Value) -> Value {
    let Value::Object(mut value) = value else { return value };
    if key.kind != Kind::Consumer {
        value.insert("id".to_owned(), key.id.to_string().into());
    }
    Value::Object(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_apisix::store::{MemoryStore, StoreExt};

    /// It was an item that is null, which no gateway takes.
    #[test]
    fn what_is_no_json_is_left_out() {
        let store = MemoryStore::default();
        store.put(&Key::new(Kind::Route, "a"), "{\"uri\":\"/a\"}".into()).unwrap();
        store.put(&Key::new(Kind::Route, "b"), "{".into()).unwrap();
        let lists = Value::Object(lists(&store, None).unwrap());
        assert_eq!(lists, serde_json::json!({"routes": [{"uri": "/a", "id": "a"}]}));
    }
}
