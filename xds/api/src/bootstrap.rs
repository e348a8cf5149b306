//! Reading Envoy's bootstrap file.

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;

use crate::json::message_from_node;

/// Reads a bootstrap from YAML or, for a file called `*.json`, JSON.
///
/// # Errors
/// What is wrong first, with file, line, column and the path of the field.
pub fn load_bootstrap(text: &str, file: &str) -> Result<Bootstrap, ConfigError> {
    let options = Options { wide_numbers_as_text: true, ..Options::for_file(file) };
    Node::parse(text, &options).and_then(|node| message_from_node(&node)).map_err(|error| error.in_file(file))
}
