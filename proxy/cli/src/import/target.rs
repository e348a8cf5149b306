//! The folder that config.yaml and apisix.yaml are written to.

use super::Stop;
use super::report::Imported;
use crate::Failure;
use crate::arguments::ImportOptions;
use crate::process::plugins;
use crate::replacement::{Rights, replace};
use serde_json::Value;
use sixfold_apisix::Findings;
use sixfold_apisix::config::{Config, EnvVars};
use sixfold_apisix::store::{MemoryStore, Store};
use sixfold_core::error::{ConfigError, FaultKind};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder within the directory that files are in until they are valid. What is refused stays there.
const ASIDE: &str = "refused";
const CONFIG: &str = "config.yaml";
const RESOURCES: &str = "apisix.yaml";

/// Where files are written.
pub(super) struct Target {
    directory: PathBuf,
    aside: PathBuf,
}

impl Target {
    /// The options' directory, unless something would be overwritten.
    pub(super) fn new(options: &ImportOptions) -> Result<Target, Stop> {
        let directory = options.directory.clone();
        for path in [CONFIG, RESOURCES].map(|name| directory.join(name)) {
            if path.exists() && !options.force {
                let reason = format!("{} is there already; --force replaces it", path.display());
                return Err(Stop::Misuse(Failure::new(reason)));
            }
        }
        Ok(Target { aside: directory.join(ASIDE), directory })
    }

    /// The config.yaml that is looked at.
    pub(super) fn config(&self) -> PathBuf {
        self.aside.join(CONFIG)
    }

    /// The apisix.yaml beside it.
    pub(super) fn resources(&self) -> PathBuf {
        self.aside.join(RESOURCES)
    }

    /// Writes files aside.
    pub(super) fn write(&self, imported: &Imported) -> io::Result<()> {
        fs::create_dir_all(&self.aside)?;
        let config = sixfold_apisix::yaml(&Value::Object(imported.config.clone()));
        replace(&self.config(), &config, Rights::NotOthers)?;
        if imported.without_resources {
            // One may be left of another time.
            return absent(fs::remove_file(self.resources()));
        }
        let text = sixfold_apisix::yaml(&Value::Object(imported.resources.clone()));
        replace(&self.resources(), &format!("{text}#END\n"), Rights::NotOthers)
    }

    /// Looks at what was written as `sixfold validate` does.
    pub(super) fn look(&self) -> Findings {
        let open = |_: &Config| Ok(Arc::new(MemoryStore::default()) as Arc<dyn Store>);
        sixfold_apisix::validate::<()>(&self.config(), plugins(), EnvVars::Process, open).0
    }

    /// What is wrong with what was written. A variable that is not set here may be where the gateway runs.
    pub(super) fn refused(&self) -> Vec<ConfigError> {
        let errors = self.look().errors.into_iter();
        errors.filter(|error| error.kind != FaultKind::UnsetVariable).collect()
    }

    /// Puts what was written where it belongs.
    pub(super) fn put_in_place(&self, imported: &Imported) -> io::Result<()> {
        // A config.yaml is told of its resources' file, not the other way round.
        if !imported.without_resources {
            put(&self.resources(), &self.directory.join(RESOURCES))?;
        }
        put(&self.config(), &self.directory.join(CONFIG))?;
        // Somebody may have put something else there.
        let _ = fs::remove_dir(&self.aside);
        Ok(())
    }

    /// What the report says of faults.
    pub(super) fn told(&self, refused: &[ConfigError]) -> String {
        let lines = refused.iter().map(|error| format!("{:<12} {error}\n", "refused"));
        let folder = self.aside.display();
        let end = (!refused.is_empty()).then(|| {
            format!(
                "{:<12} {folder}: nothing is written but what is there, for validate refuses it\n",
                "refused"
            )
        });
        lines.chain(end).collect()
    }
}

/// Moves a file to the place of another, whose owner and group it takes over.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    replace(to, &fs::read_to_string(from)?, Rights::NotOthers)?;
    fs::remove_file(from)
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
