//! `sixfold validate`: checks a file without serving it.

use crate::Failure;
use crate::arguments::ValidateOptions;
use crate::envoy::Text;
use crate::process::plugins;
use crate::route_files::{Look, RouteFiles};
use sixfold_apisix::Findings;
use sixfold_apisix::config::EnvVars;
use sixfold_core::compile::CompileContext;
use sixfold_core::detached::LogCheck;
use sixfold_core::document::{self, Node, Options};
use sixfold_core::error::{ConfigError, nearest};
use sixfold_xds::bootstrap::ProcessContext;
use std::io::Write;
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

/// Checks the file and says that it is fine.
pub(crate) fn run(options: &ValidateOptions) -> Result<(), Failure> {
    let text = Text::read(&options.config)?;
    let kind = kind(&text)?;
    match kind {
        Kind::Bootstrap => {
            let mut warnings: Vec<ConfigError> = second_document(&text).into_iter().collect();
            let compiled = envoy(&text);
            warnings.extend(
                sixfold_xds::left_out()
                    .into_iter()
                    .map(|notice| ConfigError::new(notice).in_file(&text.name)),
            );
            let strict = tell(options, Findings { errors: Vec::new(), warnings });
            compiled.and(strict)?;
        }
        Kind::Configuration => {
            tell(options, sixfold_apisix::validate(&options.config, plugins(), EnvVars::Process))?;
        }
        Kind::Resources => {
            tell(options, sixfold_apisix::validate_resources(&options.config, plugins(), EnvVars::Process))?;
        }
    }
    let what = match kind {
        Kind::Bootstrap => "Envoy bootstrap",
        Kind::Configuration => "APISIX configuration and resources",
        Kind::Resources => "APISIX resources",
    };
    writeln!(std::io::stdout(), "{}: {what}: OK", text.name)?;
    Ok(())
}

/// Prints warnings, which are errors for who wants to be strict.
fn tell(options: &ValidateOptions, findings: Findings) -> Result<(), Failure> {
    let Findings { mut errors, warnings } = findings;
    if options.strict {
        errors.splice(0..0, warnings);
    } else {
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::from(errors)) }
}

/// Top keys that tell what a document is, the surest first: apisix.yaml may have any others, and config.yaml has some that
/// are names of Envoy's too.
const KEYS: [(Kind, &[&str]); 5] = [
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
        ],
    ),
    (Kind::Configuration, &["deployment", "apisix", "nginx_config", "plugin_attr"]),
    (Kind::Bootstrap, &["admin", "node", "layered_runtime", "layeredRuntime"]),
    (Kind::Configuration, &["plugins", "stream_plugins", "discovery", "etcd", "ext-plugin", "wasm"]),
];

/// Tells by its keys what a document is.
pub(crate) fn kind(text: &Text) -> Result<Kind, Failure> {
    // Whether a key may be given twice is for the reader of that kind to say.
    let options = Options { allow_empty: true, ..Options::envoy(&text.name) };
    let node = Node::parse(&text.text, &options).map_err(|error| error.in_file(&text.name))?;
    if text.text.trim_end().ends_with("#END") {
        return Ok(Kind::Resources);
    }
    let of_keys = KEYS.iter().find(|(_, keys)| keys.iter().any(|key| node.get(key).is_some()));
    if let Some((kind, _)) = of_keys {
        return Ok(*kind);
    }
    let known = || KEYS.iter().flat_map(|(_, keys)| keys.iter().copied());
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
    let mut files = RouteFiles::new(compiled.followed.context);
    let contents = files.contents();
    let Look { mut missing, refused } = files.look(contents, &mut compiled.diff);
    missing.extend(refused.iter().map(ToString::to_string));
    if missing.is_empty() { Ok(()) } else { Err(Failure(missing)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_told_by_their_keys() {
        let of =
            |text: &str| kind(&Text { text: text.to_owned(), name: "f.yaml".to_owned(), merged_over: None });
        assert_eq!(of("static_resources: {}\n").unwrap(), Kind::Bootstrap);
        assert_eq!(of("deployment: {}\n").unwrap(), Kind::Configuration);
        assert_eq!(of("routes: []\n#END\n").unwrap(), Kind::Resources);
        // A file without resources was refused as an empty document.
        assert_eq!(of("#END\n").unwrap(), Kind::Resources);
        // A stray key of config.yaml made all of it a config.yaml.
        assert_eq!(of("apisix: {}\nroutes: []\n").unwrap(), Kind::Resources);
        assert_eq!(of("deployment: {}\n#END\n").unwrap(), Kind::Resources);
        assert_eq!(of("admin: {}\n").unwrap(), Kind::Bootstrap);
        assert_eq!(of("plugins: []\n").unwrap(), Kind::Configuration);
        assert!(of("static_resource: {}\n").unwrap_err().to_string().contains("\"static_resources\" by"));
        assert!(of("").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("other: 1\n").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("a: [\n").unwrap_err().to_string().starts_with("f.yaml:"));
    }
}
