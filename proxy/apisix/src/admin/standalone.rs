//! The configuration as a whole, put by one request (`apisix/admin/standalone.lua`), and the store that it goes to.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sixfold_core::document::{Format, MAX_DOCUMENT_BYTES};
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::files::keep_name;

use super::message::{AdminReply, AdminRequest};
use super::validate::{self, SECTIONS, version_key};
use crate::config::EnvVars;
use crate::resource::Kind;
use crate::source::Checker;
use crate::store::{
    Committed, Kept, Key, Notify, Origin, Resources, Sink, Store, StoreError, TextStore, Watch, Write,
};
use crate::yaml::yaml;

/// The standalone API.
pub struct Standalone {
    store: Arc<StandaloneStore>,
    current: Mutex<Option<Current>>,
}

/// The configuration that was put last.
struct Current {
    digest: HeaderValue,
    /// Seconds since 1970.
    modified: u64,
    /// Lists and their versions.
    config: Map<String, Value>,
}

/// The file in which the configuration that was put last outlives the process, with its versions and its digest.
struct KeptFile(PathBuf);

impl KeptFile {
    /// What was put last; nothing if nothing was.
    fn read(&self) -> Result<Option<Current>, String> {
        let told = |error: &dyn std::fmt::Display| format!("can't read {}: {error}", self.0.display());
        let text = match std::fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told(&error)),
        };
        let mut kept: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| told(&error))?;
        let digest = kept.get("digest").and_then(Value::as_str).and_then(|digest| digest.parse().ok());
        let modified = kept.get("modified").and_then(Value::as_u64);
        let config = kept.shift_remove("config");
        match (digest, modified, config) {
            (Some(digest), Some(modified), Some(Value::Object(config))) => {
                Ok(Some(Current { digest, modified, config }))
            }
            _ => Err(told(&"it is not what was written there")),
        }
    }

    /// Puts another one in its place, whole or not at all.
    fn write(&self, current: &Current) -> Result<(), String> {
        let told = |error: std::io::Error| format!("can't write {}: {error}", self.0.display());
        let Ok(digest) = current.digest.to_str() else { return Err("the digest is no text".to_owned()) };
        let kept = json!({"digest": digest, "modified": current.modified, "config": current.config});
        if let Some(folder) = self.0.parent() {
            // Private keys and credentials are in it.
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(told)?;
        }
        let next = self.0.with_extension("next");
        let mut file = OpenOptions::new();
        file.write(true).create(true).truncate(true).mode(0o600);
        let mut file = file.open(&next).map_err(told)?;
        file.write_all(kept.to_string().as_bytes()).and_then(|()| file.sync_all()).map_err(told)?;
        std::fs::rename(&next, &self.0).and_then(|()| keep_name(&self.0)).map_err(told)
    }
}

/// Resources of the configuration that was put last.
pub struct StandaloneStore {
    text: TextStore,
    kept: Option<KeptFile>,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    notify: Option<Notify>,
    /// Something was put that nobody has looked at yet.
    changed: bool,
}

impl Standalone {
    pub(super) fn new(store: Arc<StandaloneStore>) -> Standalone {
        let current = Mutex::new(store.kept.as_ref().and_then(|kept| kept.read().ok().flatten()));
        Standalone { store, current }
    }

    pub(super) fn answer(&self, checker: &Checker, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        match request.method {
            Method::PUT => self.put(checker, request),
            Method::HEAD => Ok(described(self.current.lock().as_ref(), AdminReply::empty(StatusCode::OK))),
            _ => Ok(self.get(request)),
        }
    }

    fn put(&self, checker: &Checker, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        let digest =
            request.headers.get("x-digest").ok_or_else(|| AdminReply::bad("missing digest header"))?;
        let body = validate::body(request, MAX_DOCUMENT_BYTES)?;
        // Whoever puts next waits: versions are compared with what this leaves.
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| current.digest == digest) {
            return Ok(AdminReply::empty(StatusCode::NO_CONTENT));
        }
        if let Some(fault) = validate::faults(checker, &body, 1).into_iter().next() {
            return Err(AdminReply::bad(fault.reason));
        }
        let config = next(current.as_ref().map(|current| &current.config), body)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let next = Current { digest: digest.clone(), modified: since.as_secs(), config };
        if let Some(kept) = &self.store.kept {
            kept.write(&next).map_err(|reason| AdminReply::error(StatusCode::SERVICE_UNAVAILABLE, reason))?;
        }
        self.store.set(&next.config);
        let reply = described(Some(&next), AdminReply::empty(StatusCode::ACCEPTED));
        *current = Some(next);
        Ok(reply)
    }

    fn get(&self, request: &AdminRequest) -> AdminReply {
        let current = self.current.lock();
        let empty = || SECTIONS.iter().map(|section| (version_key(section), Value::from(0))).collect();
        let config = Value::Object(current.as_ref().map_or_else(empty, |current| current.config.clone()));
        let as_yaml = request.header("accept").is_some_and(|accept| accept.starts_with("application/yaml"));
        let reply = if as_yaml {
            AdminReply { content_type: "application/yaml", ..AdminReply::text(StatusCode::OK, yaml(&config)) }
        } else {
            AdminReply::text(StatusCode::OK, config.to_string())
        };
        described(current.as_ref(), reply)
    }
}

fn described(current: Option<&Current>, mut reply: AdminReply) -> AdminReply {
    if let Some(current) = current {
        reply.headers.push((HeaderName::from_static("x-last-modified"), HeaderValue::from(current.modified)));
        reply.headers.push((HeaderName::from_static("x-digest"), current.digest.clone()));
    }
    reply
}

/// The configuration to be: lists whose version has not changed are those of before.
fn next(
    before: Option<&Map<String, Value>>,
    mut body: Map<String, Value>,
) -> Result<Map<String, Value>, AdminReply> {
    let mut config = Map::new();
    for section in SECTIONS {
        let key = version_key(section);
        let current = before.and_then(|before| before.get(&key)?.as_f64()).unwrap_or(0.0);
        let given = body.get(&key).and_then(Value::as_f64);
        if given.is_some_and(|given| given < current) {
            return Err(AdminReply::bad(format!("{key} must be greater than or equal to ({current})")));
        }
        let items = if given == Some(current) {
            before.and_then(|before| before.get(*section)).cloned()
        } else {
            body.remove(*section).filter(|items| items.as_array().is_some_and(|items| !items.is_empty()))
        };
        config.insert(key, whole(given.unwrap_or(current + 1.0)));
        config.extend(items.map(|items| ((*section).to_owned(), items)));
    }
    Ok(config)
}

/// A number without a fraction that it does not have.
fn whole(number: f64) -> Value {
    // Within what a float can count exactly.
    if number.fract() == 0.0 && number.abs() < 9e15 {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

impl StandaloneStore {
    /// Nothing yet.
    pub fn new(environment: EnvVars) -> StandaloneStore {
        StandaloneStore { text: TextStore::new(environment), kept: None, watched: Arc::default() }
    }

    /// What was put last into `file`, where it is kept from now on; answers whether that is anything.
    ///
    /// # Errors
    /// Why the file can't be read.
    pub fn keep_in(&mut self, file: PathBuf) -> Result<bool, String> {
        let kept = KeptFile(file);
        let current = kept.read()?;
        if let Some(current) = &current {
            self.set(&current.config);
        }
        self.kept = Some(kept);
        Ok(current.is_some())
    }

    /// Takes what a file says to begin with.
    pub fn begin_with(&self, resources: Resources<'_>) {
        self.text.set(resources);
    }

    /// Whether nothing was put yet, and there is nothing that it begins with.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn set(&self, config: &Map<String, Value>) {
        // A list that is not there is one without items: what was in it goes.
        let list = |section: &&str| {
            let mut items = config.get(*section).cloned().unwrap_or_else(|| Value::Array(Vec::new()));
            for item in items.as_array_mut().into_iter().flatten() {
                if let Value::Object(item) = item {
                    item.shift_remove("modifiedIndex");
                }
            }
            ((*section).to_owned(), items)
        };
        let mut lists: Map<String, Value> = SECTIONS.iter().map(list).collect();
        if !config.contains_key("plugins") {
            lists.shift_remove("plugins");
        }
        let text = Value::Object(lists).to_string();
        self.text.set(Resources { text: &text, format: Format::Json, name: "the standalone API" });
        let notify = {
            let mut watched = self.watched.lock();
            watched.changed = true;
            watched.notify.clone()
        };
        notify.iter().for_each(|notify| notify());
    }
}

impl Store for StandaloneStore {
    fn is_loaded(&self) -> bool {
        !self.is_empty()
    }

    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        self.watched.lock().changed = false;
        self.text.changes(sink)
    }

    fn everything(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        self.watched.lock().changed = false;
        self.text.everything(sink)
    }

    fn watch(&self, notify: Notify) -> std::io::Result<Watch> {
        let changed = {
            let mut watched = self.watched.lock();
            watched.notify = Some(notify.clone());
            watched.changed
        };
        if changed {
            notify();
        }
        Ok(Box::new(Watching(self.watched.clone())))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        self.text.get(key)
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        self.text.list(kind)
    }

    fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.text.commit(writes)
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        self.text.next_id()
    }

    fn written(&self, place: Place) -> Place {
        self.text.written(place)
    }

    fn has_places(&self) -> bool {
        true
    }

    fn origin(&self, key: &Key) -> Option<Origin> {
        self.text.origin(key)
    }
}

struct Watching(Arc<Mutex<Watched>>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.lock().notify = None;
    }
}

impl std::fmt::Debug for StandaloneStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("resources of the standalone API")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// A gateway that was started again had nothing, or what it had begun with.
    #[test]
    fn what_was_put_outlives_the_process() {
        let folder = std::env::temp_dir().join(format!("sixfold-standalone-{}", std::process::id()));
        let file = folder.join("data/standalone.json");
        let store = || StandaloneStore::new(EnvVars::Fixed(Default::default()));
        let mut first = store();
        assert_eq!(first.keep_in(file.clone()), Ok(false));
        let Value::Object(config) = json!({"routes_conf_version": 3, "routes": [{"id": "1", "uri": "/a"}]})
        else {
            return;
        };
        let current = Current { digest: HeaderValue::from_static("d"), modified: 5, config };
        first.kept.as_ref().unwrap().write(&current).unwrap();
        let mut again = store();
        assert_eq!(again.keep_in(file.clone()), Ok(true));
        assert_eq!(again.list(Kind::Route).unwrap().len(), 1);
        let api = Standalone::new(Arc::new(again));
        let kept = api.current.lock();
        let kept = kept.as_ref().unwrap();
        assert_eq!((kept.digest.to_str().unwrap(), &kept.config["routes_conf_version"]), ("d", &json!(3)));
        std::fs::write(&file, "{}").unwrap();
        let refused = store().keep_in(file).unwrap_err();
        assert!(refused.ends_with("it is not what was written there"), "{refused}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
