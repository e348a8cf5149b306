//! apisix.yaml, or apisix.json, as a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sixfold_core::document::Format;
use sixfold_core::error::{ConfigError, Place};

use super::listing::{Listing, Resources, values_of};
use super::{Committed, Kept, Key, Notify, Origin, Sink, Store, StoreError, Watch, Write};
use crate::config::EnvVars;
use crate::file;
use crate::resource::Kind;
use crate::watch::{FileWatcher, Found};

/// The resources of a file that others write. What a store is asked for is what the file says then; nothing is
/// missed between the first look at it and the beginning of the watch.
pub struct FileStore {
    path: PathBuf,
    format: Format,
    environment: EnvVars,
    seen: Mutex<Seen>,
}

/// What was read last.
#[derive(Default)]
struct Seen {
    listing: Listing,
    /// Of the file that was read, so that one that could not be is looked at again.
    stamp: Arc<Mutex<Found>>,
    hash: Option<u64>,
}

impl FileStore {
    /// The file at `path`, in which these variables are replaced. It is not read yet.
    pub fn new(path: PathBuf, format: Format, environment: EnvVars) -> FileStore {
        FileStore { path, format, environment, seen: Mutex::default() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands over every resource that can be read, whatever else is wrong: what is odd about the file, and what is wrong
    /// with it as a whole. For whoever checks a file and does not serve it.
    pub(crate) fn look_through(&self, sink: &mut dyn Sink) -> (Vec<ConfigError>, Vec<ConfigError>) {
        let seen = &mut *self.seen.lock();
        let text = match file::read(&self.path) {
            Ok(text) => text,
            Err(error) => return (Vec::new(), vec![error]),
        };
        let resources = Resources { text: &text, format: self.format, name: &self.name() };
        let (warnings, mut errors) = seen.listing.look_through(resources, &self.environment, sink);
        errors.extend(self.incomplete(&text));
        (warnings, errors)
    }

    /// The file, unless its disk does not answer in time.
    fn read(&self) -> Result<(String, Found), ConfigError> {
        let read = sixfold_core::files::promptly(&self.path, |path| Ok(file::read_stamped(path)));
        read.unwrap_or_else(|error| {
            Err(ConfigError::new(format!("can't be read: {error}")).in_file(self.name()))
        })
    }

    /// The error of a file that is not written to its end.
    fn incomplete(&self, text: &str) -> Option<ConfigError> {
        let reason =
            "the file does not end with #END: it is not written to its end, or the marker is missing";
        let complete = self.format != Format::Yaml || file::is_complete(text);
        (!complete).then(|| ConfigError::new(reason).in_file(self.name()))
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Store for FileStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let seen = &mut *self.seen.lock();
        let (text, stamp) = self.read().map_err(|e| vec![e])?;
        *seen.stamp.lock() = stamp;
        let hash = xxhash_rust::xxh64::xxh64(text.as_bytes(), text.len() as u64);
        if seen.hash == Some(hash) {
            return Ok(Vec::new());
        }
        if let Some(error) = self.incomplete(&text) {
            return Err(vec![error]);
        }
        let resources = Resources { text: &text, format: self.format, name: &self.name() };
        let warnings = seen.listing.changes(resources, &self.environment, sink)?;
        seen.hash = Some(hash);
        Ok(warnings)
    }

    fn everything(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        {
            let seen = &mut *self.seen.lock();
            seen.hash = None;
            seen.listing.forget();
        }
        sink.anew();
        self.changes(sink)
    }

    fn watch(&self, notify: Notify) -> std::io::Result<Watch> {
        let stamp = self.seen.lock().stamp.clone();
        let watcher =
            FileWatcher::start(self.path.clone(), move |now| *stamp.lock() == *now, move || notify())?;
        Ok(Box::new(watcher))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        Ok(self.list(key.kind)?.into_iter().find(|(other, _)| other == key).map(|(_, kept)| kept))
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        let (text, _) = self.read().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let resources = Resources { text: &text, format: self.format, name: &self.name() };
        Ok(values_of(kind, resources, &self.environment))
    }

    fn commit(&self, _: Vec<Write>) -> Result<Committed, StoreError> {
        Err(StoreError::ReadOnly(self.name()))
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        Err(StoreError::ReadOnly(self.name()))
    }

    fn gathers(&self) -> bool {
        false
    }

    fn written(&self, place: Place) -> Place {
        self.seen.lock().listing.written(place)
    }

    fn has_places(&self) -> bool {
        true
    }

    fn origin(&self, key: &Key) -> Option<Origin> {
        let line = self.seen.lock().listing.line(key)?;
        Some(Origin { file: self.name(), line })
    }
}

impl std::fmt::Debug for FileStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "resources in {}", self.path.display())
    }
}
