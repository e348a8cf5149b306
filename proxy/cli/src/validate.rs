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
use sixfold_core::error::ConfigError;
use sixfold_xds::bootstrap::ProcessContext;
use std::sync::Arc;

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
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
            let warnings = second_document(&text).into_iter().collect();
            tell(options, Findings { errors: Vec::new(), warnings })?;
            envoy(&text)?;
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
    println!("{}: {what}: OK", text.name);
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

/// Tells by its keys what a document is.
fn kind(text: &Text) -> Result<Kind, Failure> {
    // Whether a key may be given twice is for the reader of that kind to say.
    let options = Options { allow_empty: true, ..Options::envoy(&text.name) };
    let node = Node::parse(&text.text, &options).map_err(|error| error.in_file(&text.name))?;
    let has = |keys: &[&str]| keys.iter().any(|key| node.get(key).is_some());
    if has(&["static_resources", "dynamic_resources", "staticResources", "dynamicResources", "admin", "node"])
    {
        return Ok(Kind::Bootstrap);
    }
    if has(&["deployment", "apisix", "nginx_config", "plugin_attr"]) {
        return Ok(Kind::Configuration);
    }
    let resources = [
        "routes",
        "upstreams",
        "services",
        "consumers",
        "global_rules",
        "ssls",
        "plugin_configs",
        "stream_routes",
    ];
    if has(&resources) || text.text.trim_end().ends_with("#END") {
        return Ok(Kind::Resources);
    }
    let reason = "is neither an Envoy bootstrap (static_resources), nor APISIX's config.yaml (deployment, apisix), \
                  nor APISIX's resources (routes, upstreams, #END)";
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
        let of = |text: &str| kind(&Text { text: text.to_owned(), name: "f.yaml".to_owned() });
        assert_eq!(of("static_resources: {}\n").unwrap(), Kind::Bootstrap);
        assert_eq!(of("deployment: {}\n").unwrap(), Kind::Configuration);
        assert_eq!(of("routes: []\n#END\n").unwrap(), Kind::Resources);
        // A file without resources was refused as an empty document.
        assert_eq!(of("#END\n").unwrap(), Kind::Resources);
        assert!(of("").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("other: 1\n").unwrap_err().to_string().starts_with("f.yaml: is neither"));
        assert!(of("a: [\n").unwrap_err().to_string().starts_with("f.yaml:"));
    }
}
