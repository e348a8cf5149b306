//! Pages of the book that are written from the program: `docs/reference/plugins.md` from the registry of plugins and their
//! schemas, `docs/reference/config-keys.md` from the table of keys, the defaults and the schemas of resources.
//!
//! `cargo test --profile ci -p sixfold --test pages -- --ignored` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Map, Value, json};
use sixfold_apisix::config::{KeyRule, keys};
use sixfold_apisix::resource::Kind;
use sixfold_apisix::schema::{self, Schema};
use sixfold_core::detached::Nowhere;
use sixfold_core::document::Node;
use sixfold_core::metrics;
use sixfold_core::plugin::{self, ApisixFactory, BuildContext, RunPolicy};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// The file of a page, and who writes it.
type Page = (&'static str, fn() -> String);

const PAGES: [Page; 2] = [("plugins.md", plugins), ("config-keys.md", config_keys)];

fn path(name: &str) -> String {
    format!("../../docs/reference/{name}")
}

#[test]
fn the_pages_say_what_the_program_does() {
    for (name, page) in PAGES {
        let found = std::fs::read_to_string(path(name)).unwrap_or_default();
        let page = page();
        let differs = found.lines().zip(page.lines()).find(|(found, page)| found != page);
        let command = "cargo test --profile ci -p sixfold --test pages -- --ignored";
        assert!(found == page, "{name} is out of date ({differs:?}); {command} writes it anew");
    }
}

#[test]
#[ignore = "writes the pages"]
fn write_the_pages() {
    for (name, page) in PAGES {
        std::fs::write(path(name), page()).unwrap();
    }
}

/// The least that each plugin is configured by, and what brings further phases.
fn samples(name: &str) -> Vec<Value> {
    match name {
        "consumer-restriction" => vec![json!({"whitelist": ["a"]})],
        "echo" => vec![json!({"body": "a", "headers": {"a": "b"}})],
        "example-plugin" => vec![json!({"i": 0})],
        "fault-injection" => vec![json!({"abort": {"http_status": 200}}), json!({"delay": {"duration": 1}})],
        "file-logger" => vec![json!({"path": "a.log", "include_req_body": true, "include_resp_body": true})],
        "forward-auth" => vec![json!({"uri": "http://127.0.0.1"})],
        "http-logger" => {
            vec![json!({"uri": "http://127.0.0.1/", "include_req_body": true, "include_resp_body": true})]
        }
        "ip-restriction" => vec![json!({"whitelist": ["::1"]})],
        "limit-conn" => vec![json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"})],
        "limit-count" => vec![json!({"count": 1, "time_window": 1})],
        "limit-req" => vec![json!({"rate": 1, "burst": 0, "key": "remote_addr"})],
        "mocking" => vec![json!({"response_example": ""})],
        "proxy-rewrite" => vec![json!({"host": "a", "headers": {"set": {"a": "b"}}})],
        "real-ip" => vec![json!({"source": "http_a"})],
        "redirect" => vec![json!({"http_to_https": true})],
        "response-rewrite" => {
            vec![json!({"body": "a"}), json!({"filters": [{"regex": "a", "replace": "b"}]})]
        }
        "traffic-split" => vec![json!({"rules": [{}]})],
        _ => vec![json!({})],
    }
}

fn phases(factory: &ApisixFactory) -> BTreeSet<&'static str> {
    let context = BuildContext::new(Arc::new(Nowhere), metrics::Registry::new());
    let mut found = BTreeSet::new();
    for mut config in samples(factory.name) {
        Schema::builtin(factory.schema).validate(&mut config).unwrap();
        let plugin = factory.build(&config, &context).unwrap_or_else(|e| panic!("{}: {e:?}", factory.name));
        found.extend(plugin.phases());
    }
    found
}

fn plugins() -> String {
    let registry = sixfold_plugins::registry();
    let mut factories: Vec<_> =
        registry.apisix_names().map(|name| registry.apisix(name).unwrap().1.clone()).collect();
    factories.sort_by_key(|factory| (-factory.priority, factory.name));
    let mut out = String::from(PLUGINS);
    for factory in &factories {
        let phases: Vec<_> = phases(factory).into_iter().collect();
        let streams = if factory.streams.is_some() { "HTTP, streams" } else { "HTTP" };
        let name = factory.name;
        let _ = writeln!(
            out,
            "| [{name}](#{name}) | {} | {} | {streams} |",
            factory.priority,
            if phases.is_empty() { "none".to_owned() } else { phases.join(", ") }
        );
    }
    for factory in factories {
        one_plugin(&mut out, &factory);
    }
    out
}

fn one_plugin(out: &mut String, factory: &ApisixFactory) {
    let _ = write!(out, "\n## {}\n\n", factory.name);
    if factory.kind == plugin::Kind::Auth {
        let found_by = factory.found_by;
        let _ = write!(
            out,
            "Authenticates: a consumer, or a credential of one, has what is in the second table and is found by its `{found_by}`. "
        );
    }
    if factory.run_policy == RunPolicy::PreferRoute {
        out.push_str("Where a route has its own, the one of a global rule does not run. ");
    }
    while out.ends_with(' ') {
        out.pop();
    }
    if !out.ends_with("\n\n") {
        out.push_str("\n\n");
    }
    table(out, &parsed(factory.schema));
    for (title, schema) in [
        ("of a consumer", factory.consumer_schema),
        ("in `plugin_metadata`", factory.metadata_schema),
        ("on streams", factory.streams.as_ref().map(|part| part.schema).filter(|s| *s != factory.schema)),
    ] {
        if let Some(schema) = schema {
            let _ = write!(out, "\n{}, {title}:\n\n", factory.name);
            table(out, &parsed(schema));
        }
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn config_keys() -> String {
    let text = include_str!("../../apisix/src/config/defaults.yaml");
    let defaults = Node::parse_file_text(text, "defaults.yaml").unwrap().to_json();
    let mut out = String::from(CONFIG_KEYS);
    for (key, rule) in keys() {
        let default = key.split('.').try_fold(&defaults, |at, part| at.get(part));
        let default = default.map(code).unwrap_or_default();
        let fate = match rule {
            KeyRule::Read => "read".to_owned(),
            KeyRule::Report(why) => format!("reported: {}", cell(why)),
            KeyRule::Refuse(why) => format!("refused: {}", cell(why)),
        };
        let _ = writeln!(out, "| `{key}` | {default} | {fate} |");
    }
    out.push_str(RESOURCES);
    for (list, kind) in [
        ("routes", Kind::Route),
        ("services", Kind::Service),
        ("upstreams", Kind::Upstream),
        ("ssls", Kind::Ssl),
        ("consumers", Kind::Consumer),
        ("consumer_groups", Kind::ConsumerGroup),
        ("credentials", Kind::Credential),
        ("global_rules", Kind::GlobalRule),
        ("plugin_configs", Kind::PluginConfig),
        ("stream_routes", Kind::StreamRoute),
    ] {
        let _ = write!(out, "\n## {list}\n\n");
        table(&mut out, schema::resource(kind).source());
    }
    out.push_str("\n## _meta\n\nWhat the configuration of every plugin may have besides its own fields, in the words that APISIX's schema has for them. `pre_function` is Lua, and refused.\n\n");
    table(&mut out, schema::plugin_meta().source());
    out
}

/// Fields of an object, those of what lies in it behind theirs.
fn table(out: &mut String, schema: &Value) {
    let mut rows = Vec::new();
    fields(schema, "", "", &mut rows);
    if rows.is_empty() {
        out.push_str("It has no fields.\n");
        return;
    }
    out.push_str("| field | value | default | limits |\n| --- | --- | --- | --- |\n");
    let mut seen = BTreeSet::new();
    for row in rows {
        if seen.insert(row.clone()) {
            let _ = writeln!(out, "{row}");
        }
    }
    for key in ["oneOf", "anyOf"] {
        let alternatives: Vec<String> = list(schema, key).iter().filter_map(required_of).collect();
        if alternatives.len() > 1 {
            let how = if key == "oneOf" { "Exactly one" } else { "At least one" };
            let _ = write!(out, "\n{how} of these has to be there: {}.\n", alternatives.join("; "));
        }
    }
}

fn required_of(schema: &Value) -> Option<String> {
    let names: Vec<_> =
        list(schema, "required").iter().filter_map(Value::as_str).map(|n| format!("`{n}`")).collect();
    (!names.is_empty()).then(|| names.join(" with "))
}

fn list<'v>(schema: &'v Value, key: &str) -> &'v [Value] {
    schema.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn fields(schema: &Value, prefix: &str, when: &str, rows: &mut Vec<String>) {
    let required: BTreeSet<&str> = list(schema, "required").iter().filter_map(Value::as_str).collect();
    let empty = Map::new();
    for (name, field) in schema.get("properties").and_then(Value::as_object).unwrap_or(&empty) {
        if field.is_boolean() || field.get("not").is_some() {
            continue; // a name that a condition alone asks for, or that must not be there
        }
        let path = format!("{prefix}{name}");
        let default = match field.get("default") {
            Some(value) => code(value),
            None if required.contains(name.as_str()) => "required".to_owned(),
            None => String::new(),
        };
        let said = field.get("description").and_then(Value::as_str).map(cell);
        let limits: Vec<_> = [limits(field), said.unwrap_or_default(), when.to_owned()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        rows.push(format!("| `{path}` | {} | {default} | {} |", cell(&kind(field)), limits.join("; ")));
        below(field, &path, rows);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for part in list(schema, key) {
            fields(part, prefix, when, rows);
        }
    }
    for part in schema.get("dependencies").and_then(Value::as_object).unwrap_or(&empty).values() {
        fields(part, prefix, when, rows);
    }
    if let Some(condition) = schema.get("if") {
        let said = condition_of(condition);
        for (key, when) in [("then", said.as_str()), ("else", "")] {
            if let Some(part) = schema.get(key) {
                fields(part, prefix, when, rows);
            }
        }
    }
}

/// What lies in a field: of an object its fields, of an array those of its elements.
fn below(field: &Value, path: &str, rows: &mut Vec<String>) {
    for one in std::iter::once(field).chain(list(field, "oneOf")).chain(list(field, "anyOf")) {
        fields(one, &format!("{path}."), "", rows);
        if let Some(items) = one.get("items") {
            below(items, &format!("{path}[]"), rows);
        }
    }
}

/// `{properties: {policy: {enum: [redis]}}}`
fn condition_of(condition: &Value) -> String {
    let empty = Map::new();
    let of = condition.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let parts = of.iter().filter_map(|(name, value)| {
        let values = value
            .get("enum")
            .and_then(Value::as_array)
            .cloned()
            .or_else(|| Some(vec![value.get("const")?.clone()]))?;
        Some(format!("where `{name}` is {}", values.iter().map(code).collect::<Vec<_>>().join(" or ")))
    });
    parts.collect::<Vec<_>>().join(" and ")
}

fn kind(field: &Value) -> String {
    let one = |value: &Value| value.as_str().map(str::to_owned);
    match field.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().filter_map(one).collect::<Vec<_>>().join(" or "),
        Some(Value::String(kind)) if kind == "array" => match field.get("items").map(self::kind) {
            Some(items) if !items.is_empty() && items != "object" => format!("list of {items}"),
            Some(items) if items == "object" => "list of objects".to_owned(),
            _ => "list".to_owned(),
        },
        Some(kind) => one(kind).unwrap_or_default(),
        None => {
            let alternatives = list(field, "oneOf").iter().chain(list(field, "anyOf")).map(self::kind);
            let mut kinds: Vec<String> = alternatives.filter(|kind| !kind.is_empty()).collect();
            kinds.dedup();
            if kinds.is_empty() && field.get("enum").is_some() {
                "one of".to_owned()
            } else {
                kinds.join(" or ")
            }
        }
    }
}

fn limits(field: &Value) -> String {
    let mut parts = Vec::new();
    for one in std::iter::once(field)
        .chain(list(field, "oneOf"))
        .chain(list(field, "anyOf"))
        .chain(field.get("items"))
    {
        let number = |key: &str| one.get(key).map(ToString::to_string);
        parts.extend(
            one.get("enum")
                .and_then(Value::as_array)
                .map(|values| values.iter().map(code).collect::<Vec<_>>().join(", ")),
        );
        parts.extend(number("minimum").map(|n| format!("at least {n}")));
        parts.extend(number("exclusiveMinimum").map(|n| format!("above {n}")));
        parts.extend(number("maximum").map(|n| format!("at most {n}")));
        parts.extend(number("minLength").filter(|n| n != "0").map(|n| format!("from {n} bytes")));
        parts.extend(number("maxLength").map(|n| format!("up to {n} bytes")));
        parts.extend(number("minItems").filter(|n| n != "0").map(|n| format!("from {n} elements")));
        parts.extend(number("maxItems").map(|n| format!("up to {n} elements")));
        parts.extend(
            one.get("pattern")
                .and_then(Value::as_str)
                .map(|p| format!("matches `{}`", p.replace('|', "\\|"))),
        );
    }
    parts.dedup();
    parts.join(", ")
}

/// A value as code in a table.
fn code(value: &Value) -> String {
    let text = match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        other => other.to_string(),
    };
    format!("`{}`", text.replace('|', "\\|"))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

const PLUGINS: &str = "# APISIX's plugins

Every plugin of APISIX that is part of sixfold, with every field of its configuration. A test compares this page with the program
(`proxy/cli/tests/pages.rs`). [Loggers](../plugins/loggers.md) and [public-api](../plugins/public-api.md) have pages of their own, Envoy's filters are in
[Envoy's messages, field by field](envoy-support.md), and how one is written in [Write a plugin](../plugins/write-one.md).

A plugin stands in `plugins` of a route, a service, a plugin config, a consumer, a consumer group or a global rule, and runs by priority, the largest first, in each of its
phases: `Rewrite`, `Access`, `BeforeProxy`, `HeaderFilter`, the bodies, `Log`. Those in the table are of the least configuration and of what makes it do more. What every
plugin may have besides, `_meta`, is at the end of [every key of the configuration](config-keys.md#_meta).

| plugin | priority | phases | works on |
| --- | ---: | --- | --- |
";

const CONFIG_KEYS: &str = "# Every key of the configuration

A test compares this page with the program (`proxy/cli/tests/pages.rs`). How files are read, merged and watched is in [APISIX's configuration](apisix.md).

## config.yaml

A key that is *read* does what it does in APISIX. One that is *reported* has no meaning here: a value other than the default is logged with the reason (`sixfold validate --strict`
refuses it). One that is *refused* ends the start unless it has its default, since ignoring it would change what the gateway does. A path stands for everything below it. Where a file has neither
`deployment.role_traditional` nor `deployment.etcd`, the role `traditional` keeps its resources in [the embedded store](admin-api.md). `deployment.embedded.directory`, sixfold's own, is the folder of that store and of what is kept of an etcd, below the folder of
config.yaml; by default it is the one that systemd or an image says that the service may write to (`STATE_DIRECTORY`), else `data`.

| key | default | what becomes of it |
| --- | --- | --- |
";

const RESOURCES: &str = "
# Resources

*required* is said of a field within the object that it lies in. These are the fields of the lists of apisix.yaml, which are the bodies of [the Admin API](admin-api.md) too: `consumers/NAME/credentials` there, items of `consumers` with the id `NAME/credentials/ID` in a file. The
plugins of a resource are in [APISIX's plugins](plugins.md).
";
