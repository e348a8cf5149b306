//! `plugin_metadata`: what a plugin is told for the whole gateway. It changes without the plugin being built again.

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a plugin has made of its metadata.
pub type Prepared = Arc<dyn Any + Send + Sync>;

/// The metadata of one plugin.
#[derive(Default)]
pub struct Metadata(ArcSwapOption<Prepared>);

impl Metadata {
    /// What the plugin has made of it, if there is any and it is of that type.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&**self.0.load().as_ref()?).downcast().ok()
    }
}

/// The metadata of all plugins.
#[derive(Default)]
pub struct PluginMetadata(Mutex<BTreeMap<&'static str, Arc<Metadata>>>);

impl PluginMetadata {
    /// That of a plugin. The place is the same whatever the configuration is; for who builds it.
    pub fn of(&self, plugin: &'static str) -> Arc<Metadata> {
        self.0.lock().entry(plugin).or_default().clone()
    }

    /// Prepares other metadata for a plugin, or none; nobody sees it before [`MetadataChange::put_in_force`].
    pub fn change(&self, plugin: &'static str, next: Option<Prepared>) -> MetadataChange {
        MetadataChange { place: self.of(plugin), next: next.map(Arc::new) }
    }
}

impl fmt::Debug for PluginMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.lock().keys()).finish()
    }
}

/// Other metadata for one plugin.
pub struct MetadataChange {
    place: Arc<Metadata>,
    next: Option<Arc<Prepared>>,
}

impl MetadataChange {
    /// Lets the plugin see it from now on. Answers what it saw before, at which a request may still look.
    pub fn put_in_force(self) -> Option<Arc<Prepared>> {
        self.place.0.swap(self.next)
    }
}

impl fmt::Debug for MetadataChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("other metadata of a plugin")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_seen_when_it_is_in_force() {
        let all = PluginMetadata::default();
        let place = all.of("p");
        let change = all.change("p", Some(Arc::new(7_u32)));
        assert_eq!(place.get::<u32>(), None);
        assert!(change.put_in_force().is_none());
        assert_eq!(
            (place.get::<u32>(), place.get::<u8>(), all.of("q").get::<u32>()),
            (Some(Arc::new(7)), None, None)
        );
        assert!(all.change("p", None).put_in_force().is_some());
        assert_eq!(place.get::<u32>(), None);
    }
}
