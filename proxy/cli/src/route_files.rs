//! Route configurations in files, which a bootstrap names by `path_config_source`.

use parking_lot::Mutex;
use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::ConfigError;
use sixfold_core::files;
use sixfold_core::model::Diff;
use sixfold_server::server::Server;
use sixfold_xds::Context;
use sixfold_xds::rds::RouteConfigs;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the files are looked at. A file is another one when its time, size or number is, so that a rename onto it
/// and the links of a mounted ConfigMap are seen alike.
const LOOK: Duration = Duration::from_secs(1);

/// The files that connection managers ask for, as far as they are in force: a clone looks at what may come.
#[derive(Clone)]
pub(crate) struct RouteFiles {
    configs: RouteConfigs,
    /// What was read last of each file, for each name.
    read: BTreeMap<(PathBuf, Arc<str>), Stamp>,
    /// Why a file that was read before can't be now, so that it is said once.
    unreadable: BTreeMap<(PathBuf, Arc<str>), String>,
}

/// What a look at the files has come to.
#[derive(Default)]
pub(crate) struct Look {
    /// Files that can't be read and never could.
    pub(crate) missing: Vec<String>,
    /// What is wrong in files; the last good version of each goes on.
    pub(crate) refused: Vec<ConfigError>,
}

/// Tells a file from another one.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp(SystemTime, u64, u64);

impl RouteFiles {
    /// Nothing has been read yet.
    pub(crate) fn new(context: Context) -> RouteFiles {
        RouteFiles { configs: RouteConfigs::new(context), read: BTreeMap::new(), unreadable: BTreeMap::new() }
    }

    /// Has what is there and what comes from now on compiled by another bootstrap.
    pub(crate) fn set_context(&mut self, context: Context) {
        self.configs.set_context(context);
    }

    /// Reads the files that are asked for and have changed, and adds their tables to `diff`. The connection managers
    /// of `diff` ask, too.
    pub(crate) fn look(&mut self, diff: &mut Diff) -> Look {
        let mut look = Look::default();
        self.configs.forget_unwanted();
        let wanted = self.configs.wanted_files();
        self.read.retain(|key, _| wanted.contains(key));
        self.unreadable.retain(|key, _| wanted.contains(key));
        for key in wanted {
            match read(&key.0, self.read.get(&key)) {
                Ok(None) => drop(self.unreadable.remove(&key)),
                Ok(Some((stamp, bytes))) => {
                    let updated = self.configs.update_from_file(&key.0, &key.1, &bytes, diff);
                    look.refused.extend(updated.err());
                    self.unreadable.remove(&key);
                    self.read.insert(key, stamp);
                }
                Err(error) if self.read.contains_key(&key) => {
                    look.refused.extend(self.unreadable(key, &error));
                }
                Err(error) => look.missing.push(format!("{}: {error}", key.0.display())),
            }
        }
        look.refused.extend(self.configs.renew(diff));
        look.refused.extend(self.configs.complete(diff));
        look
    }

    /// What there is to say of a file that can't be read any more. One that is gone for a moment is being replaced, or
    /// its last version is the best there is.
    fn unreadable(&mut self, key: (PathBuf, Arc<str>), error: &std::io::Error) -> Option<ConfigError> {
        let gone = error.kind() == std::io::ErrorKind::NotFound;
        let (reason, file) = (error.to_string(), key.0.display().to_string());
        let before = self.unreadable.insert(key, reason.clone());
        let is_new = !gone && before.as_ref() != Some(&reason);
        is_new.then(|| ConfigError::new(format!("can't be read: {reason}")).in_file(file))
    }

    /// Looks again and again, on a thread of its own, for as long as somebody holds `files`.
    pub(crate) fn follow(files: &Arc<Mutex<RouteFiles>>, server: Server) -> std::io::Result<()> {
        let files = Arc::downgrade(files);
        let look = move || {
            loop {
                std::thread::sleep(LOOK);
                let Some(files) = files.upgrade() else { return };
                // Held until it is in force: a bootstrap that is read again meanwhile must not be overtaken.
                let mut files = files.lock();
                let mut diff = Diff::default();
                files.look(&mut diff).tell();
                if !diff.is_empty() {
                    match server.apply_blocking(diff) {
                        Ok(()) => tracing::info!("routes read again and applied"),
                        Err(errors) => errors.iter().for_each(|error| tracing::error!("{error}")),
                    }
                }
            }
        };
        std::thread::Builder::new().name("route-files".to_owned()).spawn(look).map(drop)
    }
}

impl Look {
    /// Says in the log what is wrong in files.
    pub(crate) fn tell(&self) {
        for error in &self.refused {
            tracing::error!("routes refused, those of before stay: {error}");
        }
    }
}

/// The content of a file that is not as it was.
fn read(path: &Path, before: Option<&Stamp>) -> std::io::Result<Option<(Stamp, Vec<u8>)>> {
    let file = files::open(path)?;
    let metadata = file.metadata();
    let stamp = Stamp(metadata.modified()?, metadata.len(), metadata.ino());
    if before == Some(&stamp) {
        return Ok(None);
    }
    Ok(Some((stamp, file.read(MAX_DOCUMENT_BYTES)?)))
}
