//! Names of headers in configuration.

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, Known};

/// The name in the field `key`; fields that are added by it are spelled as it is.
///
/// # Errors
/// A text that no header can have for a name.
pub(crate) fn one(text: &str, key: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::as_spelled(text).map_err(|error| ConfigError::field(key, error.to_string()))
}

/// The names in the list `key`.
///
/// # Errors
/// As [`one`].
pub(crate) fn list(texts: &[String], key: &str) -> Result<Vec<HeaderName>, ConfigError> {
    let name = |(index, text): (usize, &String)| {
        HeaderName::as_spelled(text).map_err(|error| ConfigError::new(error.to_string()).in_index(index))
    };
    texts.iter().enumerate().map(name).collect::<Result<_, _>>().in_key(key)
}

/// Names of headers that are copied from one message to another. What says how its own message is framed or
/// carried is left out: a Content-Length without its body makes the receiver wait for one, or take the next
/// request for it.
///
/// # Errors
/// As [`one`].
pub(crate) fn to_copy(texts: &[String], key: &str) -> Result<Vec<HeaderName>, ConfigError> {
    const OF_ITS_MESSAGE: [Known; 7] = [
        Known::CONTENT_LENGTH,
        Known::TRANSFER_ENCODING,
        Known::CONNECTION,
        Known::KEEP_ALIVE,
        Known::PROXY_CONNECTION,
        Known::UPGRADE,
        Known::EXPECT,
    ];
    let mut names = list(texts, key)?;
    names.retain(|name| {
        !name.known().is_some_and(|known| OF_ITS_MESSAGE.contains(&known))
            && !matches!(name.as_str(), "te" | "trailer" | "http2-settings")
    });
    Ok(names)
}
