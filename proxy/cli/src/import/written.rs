//! Names of the plugins that are written into resources, in one place, so that a test holds them to those that there are.

pub(super) const BASIC_AUTH: &str = "basic-auth";
pub(super) const CONSUMER_RESTRICTION: &str = "consumer-restriction";
pub(super) const CORS: &str = "cors";
pub(super) const FAULT_INJECTION: &str = "fault-injection";
pub(super) const FILE_LOGGER: &str = "file-logger";
pub(super) const HTTP_LOGGER: &str = "http-logger";
pub(super) const IP_RESTRICTION: &str = "ip-restriction";
pub(super) const JWT_AUTH: &str = "jwt-auth";
pub(super) const KEY_AUTH: &str = "key-auth";
pub(super) const LIMIT_COUNT: &str = "limit-count";
pub(super) const LIMIT_REQ: &str = "limit-req";
pub(super) const MOCKING: &str = "mocking";
pub(super) const PROMETHEUS: &str = "prometheus";
pub(super) const PROXY_REWRITE: &str = "proxy-rewrite";
pub(super) const REDIRECT: &str = "redirect";
pub(super) const REQUEST_ID: &str = "request-id";
pub(super) const RESPONSE_REWRITE: &str = "response-rewrite";
pub(super) const TRAFFIC_SPLIT: &str = "traffic-split";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::process::plugins;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { sources(&path, found) } else { found.push(path) }
        }
    }

    /// Texts between quotes.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('"').skip(1).step_by(2)
    }

    #[test]
    fn every_plugin_that_is_written_is_there() {
        let registry = plugins();
        let own = include_str!("written.rs").split("#[cfg(test)]").next().unwrap();
        assert!(quoted(own).count() > 10);
        let unknown: Vec<_> = quoted(own).filter(|name| registry.apisix(name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    /// A name that stands elsewhere is held to nothing.
    #[test]
    fn plugins_are_written_by_these_names_alone() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import"), &mut files);
        assert!(files.len() > 20);
        for file in files {
            let text: String = fs::read_to_string(&file).unwrap().split_whitespace().collect();
            for begin in [
                "plugins.insert(\"",
                "\"plugins\":{\"",
                "\"plugins\".to_owned(),json!({\"",
                "letplugins=json!({\"",
            ] {
                let is_written = !file.ends_with("written.rs") && text.contains(begin);
                assert!(!is_written, "{}: {begin}", file.display());
            }
        }
    }
}
