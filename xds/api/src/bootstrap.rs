//! Reading Envoy's bootstrap file.

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;

use crate::json::message_with_faults;

/// Reads a bootstrap from YAML or, for a file called `*.json`, JSON.
///
/// # Errors
/// All that is wrong, with file, line, column and the path of the field.
pub fn load_bootstrap(text: &str, file: &str) -> Result<Bootstrap, ConfigError> {
    let (bootstrap, faults) = bootstrap_with_faults(text, file)?;
    faults.map_or(Ok(bootstrap), Err)
}

/// [`load_bootstrap`] for whoever looks for more faults: what is right of the bootstrap, and all that is wrong with it.
///
/// # Errors
/// A text that is no document.
pub fn bootstrap_with_faults(
    text: &str,
    file: &str,
) -> Result<(Bootstrap, Option<ConfigError>), ConfigError> {
    let node = parse_bootstrap(text, file)?;
    let (bootstrap, faults) = message_with_faults(&node);
    Ok((bootstrap, faults.map(|faults| faults.in_file(file))))
}

/// A bootstrap as a document: numbers of a YAML file that are no 32-bit integers are text, as Envoy reads them, so
/// that `1.5` may stand where text is wanted, of a key that is given twice the last one counts, and of several YAML
/// documents the first. Written as JSON it is still the same bootstrap.
///
/// # Errors
/// What is wrong first, with file, line and column.
pub fn parse_bootstrap(text: &str, file: &str) -> Result<Node, ConfigError> {
    let options = Options { wide_numbers_as_text: true, ..Options::envoy(file) };
    Node::parse(text, &options).map_err(|error| error.in_file(file))
}
