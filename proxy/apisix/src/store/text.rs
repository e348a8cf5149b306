//! Resources in a text that a caller hands over.

use parking_lot::Mutex;
use sixfold_core::document::Format;
use sixfold_core::error::{ConfigError, Place};

use super::listing::{Listing, Resources, values_of};
use super::{Committed, Kept, Key, Notify, Origin, Sink, Store, StoreError, Watch, Write};
use crate::config::EnvVars;
use crate::resource::Kind;

/// The resources of the text that was handed over last.
#[derive(Debug)]
pub struct TextStore {
    environment: EnvVars,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    listing: Listing,
    text: String,
    format: Format,
    name: String,
}

impl TextStore {
    /// No text yet; these variables will be replaced in it.
    pub fn new(environment: EnvVars) -> TextStore {
        let (listing, text, name) = (Listing::default(), String::new(), String::new());
        TextStore { environment, inner: Mutex::new(Inner { listing, text, format: Format::Yaml, name }) }
    }

    /// Whether no text was handed over yet.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().text.is_empty()
    }

    /// Takes another text; the next call of [`Store::changes`] tells how it differs.
    pub fn set(&self, resources: Resources<'_>) {
        let Resources { text, format, name } = resources;
        let mut inner = self.inner.lock();
        (inner.text, inner.format, inner.name) = (text.to_owned(), format, name.to_owned());
    }
}

impl Store for TextStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let Inner { listing, text, format, name } = &mut *self.inner.lock();
        listing.changes(Resources { text, format: *format, name }, &self.environment, sink)
    }

    fn everything(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        self.inner.lock().listing.forget();
        sink.anew();
        self.changes(sink)
    }

    fn watch(&self, _: Notify) -> std::io::Result<Watch> {
        Ok(Box::new(()))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        Ok(self.list(key.kind)?.into_iter().find(|(other, _)| other == key).map(|(_, kept)| kept))
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        let inner = self.inner.lock();
        let resources = Resources { text: &inner.text, format: inner.format, name: &inner.name };
        Ok(values_of(kind, resources, &self.environment))
    }

    fn commit(&self, _: Vec<Write>) -> Result<Committed, StoreError> {
        Err(StoreError::ReadOnly(self.inner.lock().name.clone()))
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        Err(StoreError::ReadOnly(self.inner.lock().name.clone()))
    }

    fn written(&self, place: Place) -> Place {
        self.inner.lock().listing.written(place)
    }

    fn has_places(&self) -> bool {
        true
    }

    fn origin(&self, key: &Key) -> Option<Origin> {
        let inner = self.inner.lock();
        Some(Origin { file: inner.name.clone(), line: inner.listing.line(key)? })
    }
}
