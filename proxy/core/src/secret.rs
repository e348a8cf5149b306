//! Secrets that are texts and may come by themselves: credentials of clients, keys of cookies.

use crate::error::ConfigError;
use arc_swap::ArcSwapOption;
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// The place of a secret. What it holds can be replaced; who reads it sees that with the next look.
///
/// An empty text is none: a file may be looked at while it is written anew, and what is signed with an empty key anybody can
/// sign. Envoy's filters take it as one that has not come.
#[derive(Default)]
pub struct SecretText {
    current: ArcSwapOption<Box<[u8]>>,
    kept: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl SecretText {
    /// The place of this text, or of one that has not come.
    pub fn new(text: Option<Box<[u8]>>) -> Arc<SecretText> {
        let text = text.filter(|text| !text.is_empty());
        Arc::new(SecretText { current: ArcSwapOption::from(text.map(Arc::new)), kept: OnceLock::new() })
    }

    /// The text; `None` while it has not come, or is empty.
    pub fn load(&self) -> Option<Arc<Box<[u8]>>> {
        self.current.load_full()
    }

    /// Puts another text in the place.
    pub fn replace(&self, text: Box<[u8]>) {
        self.current.store(Some(text).filter(|text| !text.is_empty()).map(Arc::new));
    }

    /// Keeps what brings the text for as long as somebody has the place.
    pub fn keep(&self, source: Arc<dyn Any + Send + Sync>) {
        let _ = self.kept.set(source);
    }
}

impl std::fmt::Debug for SecretText {
    /// Leaves the text out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}

/// Where plugins find the secrets that their configuration names.
pub trait SecretSource: Send + Sync {
    /// The place of a secret that is described by an encoded message of the configuration's kind: Envoy's
    /// `SdsSecretConfig`.
    ///
    /// # Errors
    /// There is none of that name, it is of another kind, or the description is wrong.
    fn text(&self, described: &[u8]) -> Result<Arc<SecretText>, ConfigError>;
}

/// Configuration that has no secrets.
pub struct NoSecrets;

impl SecretSource for NoSecrets {
    fn text(&self, _: &[u8]) -> Result<Arc<SecretText>, ConfigError> {
        Err(ConfigError::new("secrets can't be named here"))
    }
}

#[cfg(test)]
mod tests {
    use super::SecretText;

    /// An empty text was one, and a key.
    #[test]
    fn an_empty_text_has_not_come() {
        assert!(SecretText::new(Some(Box::default())).load().is_none());
        let place = SecretText::new(Some(b"key".as_slice().into()));
        place.replace(Box::default());
        assert!(place.load().is_none());
        place.replace(b"new".as_slice().into());
        assert_eq!(place.load().unwrap().as_ref().as_ref(), b"new");
    }
}
