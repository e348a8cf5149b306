//! A store that another process opens, which is to take the place of this one.

/// A store whose files this process has closed, so that another one opens them. Dropping it has them opened again.
#[derive(Default)]
pub struct Lent(Option<Box<dyn FnOnce(Outcome) + Send>>);

/// What has become of it.
pub(super) enum Outcome {
    /// The other process did not take it: nothing of it has changed.
    Back,
    /// It is the other one's.
    Given,
}

impl Lent {
    /// Of a store that closes nothing.
    pub fn nothing() -> Lent {
        Lent::default()
    }

    pub(super) fn new(end: impl FnOnce(Outcome) + Send + 'static) -> Lent {
        Lent(Some(Box::new(end)))
    }

    /// Leaves the files to the other process for good. What waits to be written is refused, and was not answered before.
    pub fn give(mut self) {
        if let Some(end) = self.0.take() {
            end(Outcome::Given);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end(Outcome::Back);
        }
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "a store that is lent" } else { "nothing lent" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::resource::Kind;
    use crate::store::conformance::Disk;
    use crate::store::{Action, Change, EmbeddedStore, Key, Sink, Store, StoreExt, Write};
    use crate::testing::Folder;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::{Duration, Instant};

    fn kept(folder: &Folder) -> PathBuf {
        folder.file("resources.redb")
    }

    fn opened(folder: &Folder) -> Arc<EmbeddedStore> {
        Arc::new(EmbeddedStore::open(&kept(folder)).unwrap())
    }

    #[derive(Default)]
    struct Taken(Vec<String>);

    impl Sink for Taken {
        fn plugins(&mut self, _: Option<crate::config::EnabledPlugins>) {}

        fn change(&mut self, change: Change) {
            self.0.push(format!("{}{}", if change.value.is_some() { '+' } else { '-' }, change.key.id));
        }

        fn start_over(&mut self) {
            self.0.clear();
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn key(id: &str) -> Key {
        Key::new(Kind::Route, id)
    }

    fn taken(store: &EmbeddedStore) -> Vec<String> {
        let mut taken = Taken::default();
        store.changes(&mut taken).unwrap();
        taken.0
    }

    #[test]
    fn writes_wait_for_a_file_that_comes_back() {
        let folder = Folder::new("lent-back");
        let store = opened(&folder);
        store.put(&key("a"), "{}".into()).unwrap();
        taken(&store);
        let lent = store.lend(soon()).unwrap();
        let other = opened(&folder);
        assert!(other.get(&key("a")).unwrap().is_some());
        let writing = store.clone();
        let writer = std::thread::spawn(move || writing.put(&key("b"), "{}".into()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished() && store.get(&key("a")).is_err());
        drop(other);
        drop(lent);
        // The Admin API goes on then, and its first answers were that the store is not open.
        assert!(store.get(&key("a")).is_ok());
        writer.join().unwrap().unwrap();
        assert!(store.get(&key("a")).unwrap().is_some() && store.get(&key("b")).unwrap().is_some());
        assert_eq!(taken(&store), ["+b"]);
    }

    #[test]
    fn writes_that_wait_for_a_file_that_is_given_away_are_refused() {
        let folder = Folder::new("lent-given");
        let store = opened(&folder);
        let lent = store.lend(soon()).unwrap();
        let writing = store.clone();
        let writer = std::thread::spawn(move || writing.put(&key("a"), "{}".into()));
        std::thread::sleep(Duration::from_millis(20));
        let other = opened(&folder);
        lent.give();
        let refused = writer.join().unwrap().unwrap_err().to_string();
        // One that comes late finds nobody who writes.
        assert!(refused.contains("another process") || refused.contains("closed"), "{refused}");
        assert!(store.put(&key("a"), "{}".into()).is_err());
        other.put(&key("c"), "{}".into()).unwrap();
    }

    /// The process that had it takes out what is over, and this one would have gone on with it for ever.
    #[test]
    fn what_is_over_meanwhile_is_told_of() {
        let folder = Folder::new("lent-over");
        let store = opened(&folder);
        let action = Action::Put("{}".into(), Some(Duration::from_millis(100)));
        store.commit(vec![Write { key: key("short"), action, expected: None }]).unwrap();
        taken(&store);
        let lent = store.lend(soon()).unwrap();
        let other = opened(&folder);
        let start = Instant::now();
        while other.get(&key("short")).unwrap().is_some() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(other);
        drop(lent);
        store.put(&key("last"), "{}".into()).unwrap();
        assert_eq!(taken(&store), ["+last", "-short"]);
    }

    /// It was waited for without an end, and meanwhile nobody was let in who writes.
    #[test]
    fn a_disk_that_hangs_keeps_its_file_and_holds_nobody_up() {
        let (folder, disk) = (Folder::new("lent-hangs"), Disk::new(Duration::ZERO));
        let store = Arc::new(disk.store(&kept(&folder)));
        store.put(&key("a"), "{}".into()).unwrap();
        let held = disk.held.lock();
        let (writing, waits) = (store.clone(), disk.waits.load(SeqCst));
        let writer = std::thread::spawn(move || writing.put(&key("b"), "{}".into()));
        // It is written when the file is asked for.
        while disk.waits.load(SeqCst) == waits {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        let refused = store.lend(begun + Duration::from_millis(50)).unwrap_err().to_string();
        assert!(
            begun.elapsed() < Duration::from_secs(10) && refused.contains("does not answer"),
            "{refused}"
        );
        drop(held);
        writer.join().unwrap().unwrap();
        store.put(&key("c"), "{}".into()).unwrap();
        assert_eq!(store.list(Kind::Route).unwrap().len(), 3);
        // And it is lent once the disk is well.
        let lent = store.lend(soon()).unwrap();
        assert_eq!(opened(&folder).list(Kind::Route).unwrap().len(), 3);
        drop(lent);
    }
}
