//! `sixfold import`: another proxy's configuration as config.yaml and apisix.yaml, and what became of each part of it.

mod document;
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
use std::path::Path;

/// Writes config.yaml and apisix.yaml, prints the report, and answers whether nothing is left to do by hand.
///
/// # Errors
/// A file that can't be read, files that are there already, or a result that is not valid.
pub(crate) fn run(options: &ImportOptions) -> Result<bool, Failure> {
    let imported = match options.from {
        ImportFrom::Kong => kong::import(&options.file)?,
        ImportFrom::Nginx => {
            document::is_no_document(&options.file)?;
            nginx::import(&options.file)?
        }
    };
    let directory = &options.directory;
    std::fs::create_dir_all(directory)?;
    let (config, resources) = (directory.join("config.yaml"), directory.join("apisix.yaml"));
    for path in [&config, &resources] {
        if path.exists() && !options.force {
            return Err(Failure::new(format!("{} is there already; --force replaces it", path.display())));
        }
    }
    std::fs::write(&config, sixfold_apisix::yaml(&Value::Object(imported.config.clone())))?;
    std::fs::write(
        &resources,
        format!("{}#END\n", sixfold_apisix::yaml(&Value::Object(imported.resources.clone()))),
    )?;
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => write!(out, "{}", imported.text())?,
        OutputForm::Json => writeln!(out, "{:#}", imported.json())?,
    }
    valid(&config)?;
    Ok(imported.count(Match::Manual) + imported.count(Match::Unsupported) == 0)
}

/// Looks at what was written as `sixfold validate` does.
fn valid(config: &Path) -> Result<(), Failure> {
    let (errors, _) = validate::findings(Kind::Configuration, &Text::read(config)?, config);
    if errors.is_empty() { Ok(()) } else { Err(Failure(errors)) }
}
