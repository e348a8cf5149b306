//! `sixfold import`: another proxy's configuration as config.yaml and apisix.yaml, and what became of each part of it.

mod apisix;
mod document;
mod envoy;
mod kong;
mod nginx;
mod ordered;
mod pieces;
mod report;

use crate::Failure;
use crate::arguments::{ImportFrom, ImportOptions, OutputForm};
use crate::envoy::Text;
use crate::validate::{self, Kind};
use report::{Finding, Imported, Match};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes config.yaml and apisix.yaml, prints the report, and answers whether nothing is left to do by hand.
///
/// # Errors
/// A file that can't be read, files that are there already, or a result that is not valid.
pub(crate) fn run(options: &ImportOptions) -> Result<bool, Failure> {
    let directory = &options.directory;
    let target = Target { config: directory.join("config.yaml"), resources: directory.join("apisix.yaml") };
    let imported = match options.from {
        ImportFrom::Apisix => {
            let mut import = apisix::import(&options.file)?;
            target.begin(options)?;
            target.write(&import.out)?;
            import.settle(&target.config, &target.resources, |import| target.write(&import.out))?;
            import.finished()
        }
        ImportFrom::Envoy => envoy::import(&options.file)?,
        ImportFrom::Kong => kong::import(&options.file)?,
        ImportFrom::Nginx => {
            document::is_no_document(&options.file)?;
            nginx::import(&options.file)?
        }
    };
    if !matches!(options.from, ImportFrom::Apisix) {
        target.begin(options)?;
        target.write(&imported)?;
    }
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => write!(out, "{}", imported.text())?,
        OutputForm::Json => writeln!(out, "{:#}", imported.json())?,
    }
    if !imported.needs_variables {
        valid(&target.config)?;
    }
    Ok(imported.count(Match::Manual) + imported.count(Match::Unsupported) == 0)
}

/// The files that are written.
struct Target {
    config: PathBuf,
    resources: PathBuf,
}

impl Target {
    /// Makes the folder, unless something would be overwritten.
    fn begin(&self, options: &ImportOptions) -> Result<(), Failure> {
        std::fs::create_dir_all(&options.directory)?;
        for path in [&self.config, &self.resources] {
            if path.exists() && !options.force {
                let reason = format!("{} is there already; --force replaces it", path.display());
                return Err(Failure::new(reason));
            }
        }
        Ok(())
    }

    fn write(&self, imported: &Imported) -> Result<(), Failure> {
        std::fs::write(&self.config, sixfold_apisix::yaml(&Value::Object(imported.config.clone())))?;
        if !imported.without_resources {
            let text = sixfold_apisix::yaml(&Value::Object(imported.resources.clone()));
            std::fs::write(&self.resources, format!("{text}#END\n"))?;
        }
        Ok(())
    }
}

/// Looks at what was written as `sixfold validate` does.
fn valid(config: &Path) -> Result<(), Failure> {
    let (errors, _) = validate::findings(Kind::Configuration, &Text::read(config)?, config);
    if errors.is_empty() { Ok(()) } else { Err(Failure(errors)) }
}
