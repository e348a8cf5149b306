//! Route configurations in files, which a bootstrap names by `path_config_source`.

use parking_lot::Mutex;
use sixfold_core::error::ConfigError;
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

/// The files that connection managers ask for.
pub(crate) struct RouteFiles {
    configs: RouteConfigs,
    /// What was read last of each file, for each name.
    read: BTreeMap<(PathBuf, Arc<str>), Stamp>,
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
        RouteFiles { configs: RouteConfigs::new(context), read: BTreeMap::new() }
    }

    /// Has what comes from now on compiled by another bootstrap.
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
        for key in wanted {
            match read(&key.0, self.read.get(&key)) {
                Ok(None) => {}
                Ok(Some((stamp, text))) => {
                    look.refused.extend(self.configs.update_from_file(&key.0, &key.1, &text, diff).err());
                    self.read.insert(key, stamp);
                }
                // One that is gone for a moment is being replaced, or its last version is the best there is.
                Err(_) if self.read.contains_key(&key) => {}
                Err(error) => look.missing.push(format!("{}: {error}", key.0.display())),
            }
        }
        look.refused.extend(self.configs.complete(diff));
        look
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

/// The text of a file that is not as it was.
fn read(path: &Path, before: Option<&Stamp>) -> std::io::Result<Option<(Stamp, String)>> {
    let metadata = std::fs::metadata(path)?;
    let stamp = Stamp(metadata.modified()?, metadata.len(), metadata.ino());
    if before == Some(&stamp) {
        return Ok(None);
    }
    Ok(Some((stamp, std::fs::read_to_string(path)?)))
}
