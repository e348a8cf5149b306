//! `sixfold import`: another proxy's configuration as config.yaml and apisix.yaml, and what became of each part of it.

mod apisix;
mod document;
mod envoy;
mod kong;
mod nginx;
mod ordered;
mod pieces;
mod report;
mod target;
mod written;

use crate::Failure;
use crate::arguments::{ImportFrom, ImportOptions, OutputForm};
use report::{Finding, Imported, Match};
use std::io::Write;
use target::Target;

/// Why a command ended before all was done.
pub(crate) enum Stop {
    /// It was used wrongly: a file that can't be read or is another program's, files in the way.
    Misuse(Failure),
    /// Something is not imported; of what the report has said nothing is in it.
    Undone(Failure),
}

impl<E> From<E> for Stop
where
    Failure: From<E>,
{
    fn from(error: E) -> Stop {
        Stop::Undone(error.into())
    }
}

/// Writes config.yaml and apisix.yaml and prints the report. Both take their places once `sixfold validate` takes them, or not at all.
///
/// # Errors
/// Something is left to do by hand or could not be imported, or the command was used wrongly.
pub(crate) fn run(options: &ImportOptions) -> Result<(), Stop> {
    let target = Target::new(options)?;
    let imported = match options.from {
        ImportFrom::Apisix => {
            let mut import = apisix::import(&options.file)?;
            import.settle(&target)?;
            import.finished()
        }
        ImportFrom::Envoy => envoy::import(&options.file)?,
        ImportFrom::Kong => kong::import(&options.file)?,
        ImportFrom::Nginx => {
            document::is_no_document(&options.file)?;
            nginx::import(&options.file)?
        }
    };
    target.write(&imported)?;
    let refused = target.refused();
    if refused.is_empty() {
        target.put_in_place(&imported)?;
    }
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => write!(out, "{}{}", target.told(&refused), imported.text())?,
        OutputForm::Json => writeln!(out, "{:#}", imported.json(&refused))?,
    }
    let left = imported.count(Match::Manual) + imported.count(Match::Unsupported) + refused.len();
    if left == 0 { Ok(()) } else { Err(Stop::Undone(Failure::default())) }
}
