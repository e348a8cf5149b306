//! Statistics that are texts.

use parking_lot::Mutex;
use std::sync::Arc;

/// A text that is shown beside the numbers (Envoy's `TextReadout`), such as the version of a configuration.
pub struct Text {
    name: Box<str>,
    value: Mutex<Option<Arc<str>>>,
}

impl Text {
    pub(super) fn new(name: &str) -> Text {
        Text { name: name.into(), value: Mutex::new(None) }
    }

    /// With its prefix, such as `cluster_manager.cds.version_text`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it `value`.
    pub fn set(&self, value: &str) {
        let mut last = self.value.lock();
        if last.as_deref() != Some(value) {
            *last = Some(value.into());
        }
    }

    /// What was set last; `None` if nothing ever was.
    pub fn get(&self) -> Option<Arc<str>> {
        self.value.lock().clone()
    }
}
