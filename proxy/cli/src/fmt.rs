//! `sixfold fmt`: configuration files in one order and indentation, with their comments.

mod comments;
mod write;

use crate::Failure;
use crate::arguments::FmtOptions;
use crate::envoy::Text;
use crate::replacement::{Rights, replace};
use crate::validate::{self, Kind};
use comments::Comments;
use serde_json::Value as Json;
use sixfold_core::document::{Entry, Format, Node, Options, Value};
use sixfold_core::error::ConfigError;
use std::io::Write;

/// Top keys of each kind, in their order; others follow as they are.
const TOP: [(Kind, &[&str]); 3] = [
    (Kind::Bootstrap, &["node", "admin", "dynamic_resources", "static_resources"]),
    (
        Kind::Configuration,
        &["deployment", "apisix", "nginx_config", "plugins", "stream_plugins", "plugin_attr"],
    ),
    (
        Kind::Resources,
        &[
            "routes",
            "stream_routes",
            "services",
            "upstreams",
            "plugin_configs",
            "global_rules",
            "consumers",
            "consumer_groups",
            "plugin_metadata",
            "ssls",
            "secrets",
            "protos",
            "plugins",
        ],
    ),
];

/// Keys of an APISIX resource that go first.
const OF_RESOURCE: &[&str] = &[
    "id",
    "username",
    "name",
    "desc",
    "labels",
    "status",
    "priority",
    "uri",
    "uris",
    "host",
    "hosts",
    "methods",
    "remote_addr",
    "remote_addrs",
    "vars",
    "sni",
    "snis",
    "service_id",
    "upstream_id",
    "plugin_config_id",
];

/// Keys of any of Envoy's messages that go first.
const OF_MESSAGE: &[&str] = &["@type", "name"];

/// Writes the file anew, unless it is as it should be. With `--check` it only answers whether it is.
///
/// # Errors
/// A file that is no configuration, or could not be written without losing something.
pub(crate) fn run(options: &FmtOptions) -> Result<bool, Failure> {
    let text = Text::read(&options.file)?;
    let kind = validate::kind(&text)?;
    let told = |error: ConfigError| Failure::from(error.in_file(&text.name));
    let wanted = formatted(&text.text, &text.name, kind).map_err(told)?;
    let mut out = std::io::stdout();
    if wanted == text.text {
        return Ok(true);
    }
    if options.check {
        writeln!(out, "{}: not as `sixfold fmt` writes it", text.name)?;
        return Ok(false);
    }
    replace(&options.file, &wanted, Rights::Same)?;
    writeln!(out, "{}: written anew", text.name)?;
    Ok(true)
}

fn formatted(text: &str, name: &str, kind: Kind) -> Result<String, ConfigError> {
    let options = Options { allow_empty: true, ..Options::for_file(name) };
    let node = Node::parse(text, &options)?;
    let before = node.to_json();
    let ordered = in_order(node, kind, 0);
    if options.format == Format::Json {
        return Ok(format!("{:#}\n", ordered.to_json()));
    }
    let comments = Comments::of(text, &before)?;
    let written = write::yaml(&ordered, text, comments.clone());
    // Nothing may be lost, whatever a text that nobody has thought of holds.
    let after = Node::parse(&written, &options).map(|node| node.to_json()).unwrap_or(Json::Null);
    let kept = Comments::of(&written, &after).ok().map(|kept| kept.texts());
    if !same(&before, &after) || kept != Some(comments.texts()) {
        return Err(ConfigError::new("is written in a way that would not be kept; nothing was changed"));
    }
    Ok(written)
}

/// Whether two documents are one, whatever the order of keys.
fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|found| same(value, found)))
        }
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (one, other) => one == other,
    }
}

/// The node with its keys in their order. `depth` is 0 for the document, 1 for its lists, 2 for resources.
fn in_order(node: Node, kind: Kind, depth: usize) -> Node {
    let Node { place, value } = node;
    let value = match value {
        Value::Object(object) => {
            let mut entries: Vec<Entry> = object.into_entries();
            let first: &[&str] = match (kind, depth) {
                (_, 0) => TOP.iter().find(|(of, _)| *of == kind).map_or(&[], |(_, keys)| keys),
                (Kind::Resources, 2) => OF_RESOURCE,
                (Kind::Bootstrap, _) => OF_MESSAGE,
                _ => &[],
            };
            let rank = |entry: &Entry| first.iter().position(|key| *key == entry.key).unwrap_or(first.len());
            entries.sort_by_key(rank);
            let entries = entries
                .into_iter()
                .map(|entry| Entry { value: in_order(entry.value, kind, depth + 1), ..entry });
            // They are those of an object.
            sixfold_core::document::Object::new(entries.collect()).map_or(Value::Null, Value::Object)
        }
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| in_order(item, kind, depth + 1)).collect())
        }
        other => other,
    };
    Node { place, value }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(text: &str) -> String {
        let once = formatted(text, "a.yaml", Kind::Resources).unwrap();
        assert_eq!(
            formatted(&once, "a.yaml", Kind::Resources).unwrap(),
            once,
            "it changes what it has written"
        );
        once
    }

    #[test]
    fn keys_are_in_their_order_and_comments_stay_with_what_they_are_about() {
        let text = "# A file.\nupstreams:   # of shops\n    - {id: shop, nodes: {'a:1': 1}} # the only one\n\n# Before routes.\nroutes:\n- upstream_id: shop\n  # The path.\n  uri: \"/a\"   # quoted\n  id: 1\n  methods: [GET, 'POST']\n#END\n";
        let expected = "# Before routes.\nroutes:\n  - id: 1\n    # The path.\n    uri: \"/a\" # quoted\n    methods: [GET, \"POST\"]\n    upstream_id: shop\n# A file.\nupstreams: # of shops\n  # the only one\n  - id: shop\n    nodes:\n      \"a:1\": 1\n#END\n";
        assert_eq!(of(text), expected);
    }

    #[test]
    fn values_keep_their_kind() {
        let text = "routes:\n  - id: \"1\"\n    desc: |\n      two\n      lines\n    name: plain text # with a comment\n    labels: {a: \"#no comment\", b: yes, c: ~, d: 1.0, e: [], f: {}, \"8080\": x}\n#END\n";
        let written = of(text);
        for part in [
            "id: \"1\"\n",
            "desc: |\n      two\n      lines\n",
            "name: plain text # with a comment\n",
            "a: \"#no comment\"\n",
            "b: true\n",
            "e: []\n",
            "\"8080\": x\n",
        ] {
            assert!(written.contains(part), "{part:?} is not in\n{written}");
        }
    }

    #[test]
    fn what_can_not_be_kept_is_refused() {
        for text in ["a: &x {b: 1}\nroutes: [*x]\n", "routes: [] \n---\nroutes: []\n", "routes: !!seq []\n"] {
            assert!(formatted(text, "a.yaml", Kind::Resources).is_err(), "{text}");
        }
    }

    #[test]
    fn json_is_written_as_json() {
        let text = r#"{"upstreams":[],"routes":[{"uri":"/a","id":"1"}]}"#;
        let written = formatted(text, "a.json", Kind::Resources).unwrap();
        assert!(written.starts_with("{\n  \"routes\": [\n    {\n      \"id\": \"1\",\n"), "{written}");
    }
}
