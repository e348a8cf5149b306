//! What must hold for any bytes at all that stand in a configuration file. The fuzz target in `proxy/fuzz`
//! calls [`load`], and so does a test on stable; a broken promise is a failed assertion.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;

use sixfold_core::document::Format;
use sixfold_core::plugin::Registry;

use crate::config::{Config, Environment};
use crate::file::{self, Item};
use crate::source::{Resources, Setup, Source};

/// The bytes as an apisix.yaml, an apisix.json and a config.yaml.
///
/// Splitting a file must give what parsing it gives; a file that was taken must be taken again without a
/// change; one that was refused must say why.
pub fn load(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = Environment::Fixed(HashMap::new());
    if let Err(errors) = Config::parse(text, "config.yaml", &environment) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
    split_agrees_with_parse(text);
    let Ok(config) = Config::standalone("", &environment) else { return };
    let mut source = Source::new(config, PathBuf::new(), Setup::detached(Registry::new(), environment));
    for (format, name) in [(Format::Yaml, "apisix.yaml"), (Format::Json, "apisix.json")] {
        let resources = Resources { text, format, name };
        match source.update(resources) {
            Ok(_) => {
                let again = source.update(resources);
                assert!(again.is_ok_and(|diff| diff.is_empty()), "the same file is a change");
            }
            Err(errors) => assert!(!errors.is_empty(), "refused without a reason"),
        }
    }
}

fn split_agrees_with_parse(text: &str) {
    let Some(items) = file::split(text) else { return };
    let Some(nodes) = items.iter().map(Item::parse).collect::<Option<Vec<_>>>() else { return };
    let whole = file::parse(text, Format::Yaml, &Environment::Fixed(HashMap::new()));
    let whole = whole.unwrap_or_else(|errors| {
        assert!(errors.is_empty(), "the split takes what the parser refuses: {errors:?}");
        Vec::new()
    });
    assert_eq!(items.len(), whole.len(), "another number of items");
    for ((split, node), parsed) in items.iter().zip(nodes).zip(whole) {
        assert_eq!((split.section, split.index), (parsed.section, parsed.index));
        // Places may differ by where an empty value is said to be.
        let parsed = parsed.parse().map(|node| (node.place, node.to_json()));
        assert_eq!(Some((node.place, node.to_json())), parsed, "another item");
    }
}
