//! `sixfold validate`: checks a file without serving it.

use crate::Failure;
use crate::arguments::{OutputForm, ValidateOptions};
use crate::envoy::Text;
use crate::failure::Unread;
use crate::process::plugins;
use crate::resources;
use serde_json::{Map, Value, json};
use sixfold_apisix::Findings;
use sixfold_apisix::config::{Config, EnvVars, Provider};
use sixfold_apisix::store::{MemoryStore, Store};
use sixfold_core::compile::CompileContext;
use sixfold_core::detached::LogCheck;
use sixfold_core::document::{self, Node, Options};
use sixfold_core::error::{ConfigError, Place, nearest};
use sixfold_xds::bootstrap::{ProcessContext, odd_settings};
use sixfold_xds::rds::RouteConfigs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An Envoy bootstrap.
    Bootstrap,
    /// APISIX's config.yaml.
    Configuration,
    /// APISIX's apisix.yaml.
    Resources,
}

/// Checks the file and says that it is fine, or what is wrong with it; answers whether it is.
///
/// # Errors
/// A file that can't be read.
pub(crate) fn run(options: &ValidateOptions) -> Result<bool, Failure> {
    let mut found = Found::default();
    let text = match Text::read(&options.config) {
        Ok(text) => text.of_node(options.node.names()),
        Err(unread) => {
            let is_judged = matches!(unread, Unread::Wrong(_));
            let failure = Failure::from(unread);
            if options.output == OutputForm::Json {
                found.errors.extend(failure.0.into_iter().map(Fault::of_line));
                let shown = found.shown(&options.config.display().to_string(), None);
                writeln!(std::io::stdout(), "{shown:#}")?;
            } else {
                failure.0.iter().for_each(|line| eprintln!("{line}"));
            }
            // It was said.
            return if is_judged { Ok(false) } else { Err(Failure::default()) };
        }
    };
    let kind = match kind(&text) {
        Ok(kind) => {
            found.look(kind, &text, &options.config, true);
            Some(kind)
        }
        Err(failure) => {
            found.errors.extend(failure.0.into_iter().map(Fault::of_line));
            None
        }
    };
    if options.strict {
        found.errors.splice(0..0, found.warnings.drain(..));
    }
    if options.output == OutputForm::Json {
        writeln!(std::io::stdout(), "{:#}", found.shown(&text.name, kind))?;
        return Ok(found.errors.is_empty());
    }
    found.warnings.iter().for_each(|warning| eprintln!("warning: {}", warning.line));
    match kind {
        Some(kind) if found.errors.is_empty() => {
            let unseen = found.unseen.as_ref();
            let note = unseen.map(|reason| format!("; resources in etcd were not looked at: {reason}"));
            let note = note.unwrap_or_default();
            writeln!(std::io::stdout(), "{}: {}: OK{note}", text.name, found.words(kind))?;
            Ok(true)
        }
        _ => {
            found.errors.iter().for_each(|fault| eprintln!("{}", fault.line));
            Ok(false)
        }
    }
}

/// What is wrong with a file, and what is odd about it; resources that are in an etcd are not looked at.
pub(crate) fn findings(kind: Kind, text: &Text, file: &Path) -> (Vec<String>, Vec<String>) {
    let mut found = Found::default();
    found.look(kind, text, file, false);
    let lines = |faults: Vec<Fault>| faults.into_iter().map(|fault| fault.line).collect();
    (lines(found.errors), lines(found.warnings))
}

/// What looking at a file has found.
#[derive(Default)]
struct Found {
    errors: Vec<Fault>,
    warnings: Vec<Fault>,
    /// Why the resources of a config.yaml were not looked at, which are in an etcd.
    unseen: Option<String>,
}

/// A fault for people, and its parts as far as they are known.
struct Fault {
    line: String,
    parts: Map<String, Value>,
}

impl Fault {
    fn of_line(line: String) -> Fault {
        Fault { line, parts: Map::new() }
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Fault {
        let line = error.to_string();
        let place = |number: fn(Place) -> u32| error.place.map(number).into();
        let parts = [
            ("file", error.file.clone().into()),
            ("line", place(|place| place.line)),
            ("column", place(|place| place.column)),
            ("resource", error.resource.clone().into()),
            ("field", error.field.clone().into()),
            ("reason", error.reason.into()),
        ];
        Fault {
            line,
            parts: parts.into_iter().map(|(name, value): (_, Value)| (name.to_owned(), value)).collect(),
        }
    }
}

impl Found {
    fn look(&mut self, kind: Kind, text: &Text, file: &Path, looks_into_etcd: bool) {
        let Findings { errors, warnings } = match kind {
            Kind::Bootstrap => {
                if let Err(failure) = envoy(text) {
                    self.errors.extend(failure.0.into_iter().map(Fault::of_line));
                }
                let mut warnings: Vec<ConfigError> = second_document(text).into_iter().collect();
                let notices = sixfold_xds::left_out().into_iter();
                warnings.extend(notices.map(|notice| ConfigError::new(notice).in_file(&text.name)));
                warnings.extend(odd_settings(&text.text, &text.name, &plugins()));
                Findings { errors: Vec::new(), warnings }
            }
            Kind::Configuration => {
                let open = |config: &Config| match config.deployment.provider {
                    Provider::Etcd if !looks_into_etcd => {
                        Ok(Arc::new(MemoryStore::default()) as Arc<dyn Store>)
                    }
                    _ => resources::of(config, file),
                };
                let looked = sixfold_apisix::validate(file, plugins(), EnvVars::Process, open);
                match looked.1 {
                    Some(Unread::Wrong(failure)) => {
                        self.errors.extend(failure.0.into_iter().map(Fault::of_line));
                    }
                    // A file is checked before there is an etcd, too.
                    Some(Unread::Away(failure)) => self.unseen = Some(failure.0.join("; ")),
                    None => {}
                }
                looked.0
            }
            Kind::Resources => sixfold_apisix::validate_resources(file, plugins(), EnvVars::Process),
        };
        self.errors.extend(errors.into_iter().map(Fault::from));
        self.warnings.extend(warnings.into_iter().map(Fault::from));
    }

    fn shown(&self, file: &str, kind: Option<Kind>) -> Value {
        let list = |faults: &[Fault]| -> Vec<Value> {
            let shown = faults.iter().map(|fault| {
                let mut parts = fault.parts.clone();
                parts.insert("message".to_owned(), fault.line.as_str().into());
                Value::Object(parts)
            });
            shown.collect()
        };
        json!({
            "file": file,
            "kind": kind.map(|kind| self.words(kind)),
            "valid": self.errors.is_empty(),
            "errors": list(&self.errors),
            "warnings": list(&self.warnings),
        })
    }
}

impl Found {
    /// What was looked at.
    fn words(&self, kind: Kind) -> &'static str {
        if self.unseen.is_some() { "APISIX configuration" } else { kind.words() }
    }
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Bootstrap => "Envoy bootstrap",
            Kind::Configuration => "APISIX configuration and resources",
            Kind::Resources => "APISIX resources",
        }
    }
}

/// Top keys that tell what a document is, the surest first.
const SURE: [(Kind, &[&str]); 3] = [
    (Kind::Bootstrap, &["static_resources", "dynamic_resources", "staticResources", "dynamicResources"]),
    (
        Kind::Resources,
        &[
            "routes",
            "upstreams",
            "services",
            "consumers",
            "global_rules",
            "ssls",
            "plugin_configs",
            "plugin_metadata",
            "consumer_groups",
            "protos",
            "stream_routes",
            "secrets",
        ],
    ),
    (
        Kind::Configuration,
        &[
            "deployment",
            "apisix",
            "nginx_config",
            "plugin_attr",
            "stream_plugins",
            "discovery",
            "etcd",
            "ext-plugin",
            "wasm",
            "graphql",
            "xrpc",
            "hooks",
        ],
    ),
];

/// Those that tell it unless the file ends with `#END`: apisix.yaml has a list of plugins too, and may have any key.
const LIKELY: [(Kind, &[&str]); 2] = [
    (Kind::Bootstrap, &["admin", "node", "layered_runtime", "layeredRuntime"]),
    (Kind::Configuration, &["plugins"]),
];

/// Tells by its keys what a document is.
pub(crate) fn kind(text: &Text) -> Result<Kind, Failure> {
    // Whether a key may be given twice is for the reader of that kind to say.
    let options = Options { allow_empty: true, ..Options::envoy(&text.name) };
    let node = Node::parse(&text.text, &options).map_err(|error| error.in_file(&text.name))?;
    let is_there = |(_, keys): &&(Kind, &[&str])| keys.iter().any(|key| node.get(key).is_some());
    if let Some((kind, _)) = SURE.iter().find(is_there) {
        return Ok(*kind);
    }
    if text.text.trim_end().ends_with("#END") {
        return Ok(Kind::Resources);
    }
    if let Some((kind, _)) = LIKELY.iter().find(is_there) {
        return Ok(*kind);
    }
    let known = || SURE.iter().chain(&LIKELY).flat_map(|(_, keys)| keys.iter().copied());
    let given = node.to_json();
    let meant = given.as_object().and_then(|keys| {
        keys.keys()
            .find_map(|key| Some(format!("; did you mean \"{}\" by \"{key}\"?", nearest(key, known())?)))
    });
    let reason = "is neither an Envoy bootstrap (static_resources), nor APISIX's config.yaml (deployment, apisix), \
                  nor APISIX's resources (routes, upstreams, #END)";
    let reason = format!("{reason}{}", meant.unwrap_or_default());
    Err(Failure::from(ConfigError::new(reason).in_file(&text.name)))
}

/// A second document in a bootstrap, which is passed over.
pub(crate) fn second_document(text: &Text) -> Option<ConfigError> {
    let place = document::second_document(&text.text).filter(|_| !text.name.ends_with(".json"))?;
    let reason = "a second YAML document begins here, and is passed over, as Envoy does";
    Some(ConfigError::new(reason).at(place).in_file(&text.name))
}

/// Compiles a bootstrap, with the routes that it has in files, and forgets it.
pub(crate) fn envoy(text: &Text) -> Result<(), Failure> {
    let compile = CompileContext {
        log_sinks: Arc::new(LogCheck { makes_folders: false }),
        ..CompileContext::detached(plugins())
    };
    let mut compiled = text.load(&ProcessContext::new(compile))?;
    let refused = RouteConfigs::new(compiled.followed.context).read_files(&mut compiled.diff);
    if refused.is_empty() { Ok(()) } else { Err(refused.into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_told_by_their_keys() {
        let of = |text: &str| kind(&Text::new(text, "f.yaml"));
        assert_eq!(of("static_resources: {}\n").unwrap(), Kind::Bootstrap);
        assert_eq!(of("deployment: {}\n").unwrap(), Kind::Configuration);
        assert_eq!(of("routes: []\n#END\n").unwrap(), Kind::Resources);
        // A file without resources was refused as an empty document.
        assert_eq!(of("#END\n").unwrap(), Kind::Resources);
        // A stray key of config.yaml made all of it a config.yaml.
        assert_eq!(of("apisix: {}\nroutes: []\n").unwrap(), Kind::Resources);
        // APISIX's own documentation ends config.yaml like that, and nothing in it was looked at.
        assert_eq!(of("deployment: {}\n#END\n").unwrap(), Kind::Configuration);
        assert_eq!(of("plugins: []\n#END\n").unwrap(), Kind::Resources);
        assert_eq!(of("admin: {}\n#END\n").unwrap(), Kind::Resources);
        assert_eq!(of("graphql: {}\n").unwrap(), Kind::Configuration);
        assert_eq!(of("admin: {}\n").unwrap(), Kind::Bootstrap);
        assert_eq!(of("plugins: []\n").unwrap(), Kind::Configuration);
        assert!(of("static_resource: {}\n").unwrap_err().to_string().contains("\"static_resources\" by"));
        assert!(of("").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("other: 1\n").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("a: [\n").unwrap_err().to_string().starts_with("f.yaml:"));
    }
}
