//! What must hold for any bytes at all that stand in a configuration file. The fuzz target in `proxy/fuzz`
//! calls [`load`], and so does a test on stable; a broken promise is a failed assertion.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use sixfold_core::document::{Format, Node};
use sixfold_core::plugin::Registry;

use crate::config::{Config, EnvVars};
use crate::file::{self, Item};
use crate::source::{Source, SourceContext};
use crate::store::{Resources, TextStore};

/// The bytes as an apisix.yaml, an apisix.json and a config.yaml.
///
/// Splitting a file must give what parsing it gives; a file that was read must be read again without a change
/// and without a new fault; one that was not must say why.
pub fn load(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = EnvVars::Fixed(HashMap::new());
    if let Err(errors) = Config::parse(text, "config.yaml", &environment) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
    split_agrees_with_parse(text);
    let Ok(config) = Config::standalone("", &environment) else { return };
    let store = Arc::new(TextStore::new(environment.clone()));
    let mut source =
        Source::new(config, store.clone(), SourceContext::detached(Registry::default(), environment));
    for (format, name) in [(Format::Yaml, "apisix.yaml"), (Format::Json, "apisix.json")] {
        let resources = Resources { text, format, name };
        store.set(resources);
        match source.pull() {
            Ok(_) => {
                let again = source.pull();
                let nothing = |update: crate::Update| update.diff.is_empty() && update.refused.is_empty();
                assert!(again.is_ok_and(nothing), "the same file is a change");
            }
            Err(errors) => assert!(!errors.is_empty(), "refused without a reason"),
        }
    }
}

fn split_agrees_with_parse(text: &str) {
    let Some(items) = file::split(text) else { return };
    let Some(nodes) = items.iter().map(Item::parse).collect::<Option<Vec<_>>>() else { return };
    let whole = file::parse(text, Format::Yaml, &EnvVars::Fixed(HashMap::new()));
    let errors = whole.errors;
    assert!(errors.is_empty(), "the split takes what the parser refuses: {errors:?}");
    let whole = whole.items;
    assert_eq!(items.len(), whole.len(), "another number of items");
    for ((split, node), parsed) in items.iter().zip(nodes).zip(whole) {
        assert_eq!((split.section, split.index), (parsed.section, parsed.index));
        // An item may begin with its dash or with what follows it; where its value stands in the file is the same.
        let shown =
            |item: &Item<'_>, node: &Node| (item.line + node.place.line, node.place.column, node.to_json());
        let whole = parsed.parse().map(|node| shown(&parsed, &node));
        assert_eq!(Some(shown(split, &node)), whole, "another item");
    }
}
