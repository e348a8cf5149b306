//! `plugin_metadata`: what a plugin is told for the whole gateway. It changes without the plugin being built again.

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

/// What a plugin has made of its metadata.
pub type Prepared = Arc<dyn Any + Send + Sync>;

/// Who is told of other metadata.
struct Follower {
    place: Weak<dyn Any + Send + Sync>,
    tell: Box<dyn Fn() + Send + Sync>,
}

/// Those who are told, and how many they may become before those that are gone are left out.
#[derive(Default)]
struct Followers {
    all: Vec<Follower>,
    full: usize,
}

/// The metadata of one plugin.
#[derive(Default)]
pub struct Metadata {
    now: ArcSwapOption<Prepared>,
    followers: Mutex<Followers>,
}

impl Metadata {
    /// What the plugin has made of it, if there is any and it is of that type.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&**self.now.load().as_ref()?).downcast().ok()
    }

    /// Has `hear` called with the follower whenever other metadata has gone into force, for as long as somebody keeps the
    /// follower: what an instance makes of metadata is not for requests to make. It is called on the control thread, and
    /// may not wait. Following begins nothing, so `build` may.
    pub fn follow<T: Send + Sync + 'static>(
        &self,
        follower: &Arc<T>,
        hear: impl Fn(&T) + Send + Sync + 'static,
    ) {
        let (weak, place) = (Arc::downgrade(follower), Arc::downgrade(follower));
        let tell = Box::new(move || {
            if let Some(follower) = weak.upgrade() {
                hear(&follower);
            }
        });
        let mut followers = self.followers.lock();
        if followers.all.len() >= followers.full {
            followers.sweep();
        }
        followers.all.push(Follower { place, tell });
    }

    fn put(&self, next: Option<Arc<Prepared>>) -> Option<Arc<Prepared>> {
        let before = self.now.swap(next);
        let mut followers = self.followers.lock();
        followers.sweep();
        followers.all.iter().for_each(|follower| (follower.tell)());
        before
    }
}

impl Followers {
    fn sweep(&mut self) {
        self.all.retain(|follower| follower.place.strong_count() > 0);
        self.full = (self.all.len() * 2).max(16);
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
        self.place.put(self.next)
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

    #[test]
    fn followers_hear_of_other_metadata_while_they_are_there() {
        let all = PluginMetadata::default();
        let (place, heard) = (all.of("p"), Arc::new(Mutex::new(Vec::new())));
        let follower = Arc::new(place.clone());
        let list = heard.clone();
        place.follow(&follower, move |place| list.lock().push(place.get::<u32>().map(|n| *n)));
        let put = |plugin, next: Option<u32>| {
            let next = next.map(|n| Arc::new(n) as Prepared);
            drop(all.change(plugin, next).put_in_force());
        };
        put("p", Some(7));
        put("q", Some(8));
        put("p", None);
        drop(follower);
        put("p", Some(9));
        assert_eq!(*heard.lock(), [Some(7), None]);
        // Instances come and go though the metadata stays.
        (0..100).for_each(|_| place.follow(&Arc::new(()), |()| ()));
        assert!(place.followers.lock().all.len() <= 17);
    }
}
