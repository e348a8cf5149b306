//! What was last read of a store elsewhere, in a file of this machine, so that a gateway starts and serves while that store is
//! not there.
//!
//! A thread writes what has changed, some changes at a time, each time in one transaction: the file is always what the store
//! was at one moment. Pages have checksums (redb's); a file that is damaged is begun anew. Nobody waits for the disk: what it
//! has not taken yet waits, of each key the last value alone, and is tried again until the disk takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::embedded::{NUMBERS, Record, Unopened, VALUES, database, key_of, name, unavailable};
use super::lent::{Lent, Outcome};
use super::{Kept, Key, StoreError};
use crate::config::EnabledPlugins;

/// Of whom the values are.
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");
const OF_KEY: &str = "of";
const REVISION_KEY: &str = "revision";
const CLUSTER_KEY: &str = "cluster";
const FORMAT_KEY: &str = "format";
/// Of these tables, and no format of the embedded store. What has another one is begun anew.
const FORMAT: u64 = 101;

/// The list of plugins, if there is one.
const PLUGINS_KEY: &str = "plugins";

/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(100);
/// Until what the disk did not take is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the end waits for the disk.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Keys of which it waits to be written that they are gone. Of more it is noted in their place which ones are not.
const MOST_GONE: usize = 4096;

/// The plugins that a list enables; `None` where there is no list.
pub(super) type Listed = Option<EnabledPlugins>;

type Open = Box<dyn Fn(&Path) -> Result<Database, Unopened> + Send>;

/// A store's values on the disk.
pub(super) struct LastGood(Arc<Queue>);

/// Between those who know what has changed and the thread that writes it.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Something waits, or it ends, or has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Option<Batch>,
    /// At least as many as it has keys that are gone: they are counted when there may be too many.
    gone: usize,
    /// What waits is the last.
    ends: bool,
    /// Another process is to have the file: what waits now is written, and then it is closed.
    is_lent: bool,
    /// It is closed for that.
    is_closed: bool,
    /// The file is closed.
    has_ended: bool,
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What became of keys.
    pub(super) values: BTreeMap<Key, Option<Kept>>,
    /// Where they are too many for that, the keys that there are: all others are gone.
    pub(super) only: Option<BTreeSet<Key>>,
    /// The list of plugins, if it is another one.
    pub(super) plugins: Option<Listed>,
    /// The store's revision then.
    pub(super) revision: u64,
    /// What tells the store from another one.
    pub(super) cluster: u64,
}

impl Batch {
    fn then(mut self, later: Batch) -> Batch {
        match (later.only, &mut self.only) {
            (Some(only), _) => {
                self.values.retain(|key, _| only.contains(key));
                self.only = Some(only);
            }
            (None, Some(only)) => {
                for (key, kept) in &later.values {
                    match kept {
                        Some(_) => drop(only.insert(key.clone())),
                        None => drop(only.remove(key)),
                    }
                }
            }
            (None, None) => {}
        }
        self.values.extend(later.values);
        if self.only.is_some() {
            self.values.retain(|_, kept| kept.is_some());
        }
        let (values, only) = (self.values, self.only);
        Batch { values, only, plugins: later.plugins.or(self.plugins), ..later }
    }

    /// How many keys are gone.
    fn gone(&self) -> usize {
        self.values.values().filter(|kept| kept.is_none()).count()
    }

    /// Notes those that there are in place of those that are gone.
    fn note_all(&mut self, all: BTreeSet<Key>) {
        self.values.retain(|_, kept| kept.is_some());
        self.only = Some(all);
    }
}

/// What a file had.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) values: BTreeMap<Key, Kept>,
    pub(super) plugins: Listed,
    pub(super) revision: u64,
    pub(super) cluster: u64,
}

impl LastGood {
    /// Opens the file at `path`, or makes it. `of` tells whose values are in it: those of another are forgotten. Answers what
    /// is in it, if anything was ever kept.
    ///
    /// # Errors
    /// Why nothing can be kept, as a phrase.
    pub(super) fn open(path: &Path, of: &str) -> Result<(LastGood, Option<Found>), String> {
        LastGood::open_over(path, of, |file| file)
    }

    /// Opens it with something between it and the file.
    fn open_over<B: StorageBackend>(
        path: &Path,
        of: &str,
        over: impl Fn(FileBackend) -> B + Send + 'static,
    ) -> Result<(LastGood, Option<Found>), String> {
        let open: Open = Box::new(move |path| database(path, &over));
        let opened = open(path).map_err(|refused| (refused.is_busy, refused.reason));
        let opened = opened.and_then(|database| {
            let found = begin(&database, of).map_err(|error| (false, error.to_string()))?;
            Ok((database, found))
        });
        let (database, found) = match opened {
            Ok(opened) => opened,
            Err((true, reason)) => return Err(reason),
            Err((false, reason)) => {
                tracing::warn!(reason, "what was kept of the configuration is lost");
                std::fs::remove_file(path).map_err(|error| error.to_string())?;
                let database = open(path).map_err(|refused| refused.reason)?;
                let found = begin(&database, of).map_err(|error| error.to_string())?;
                (database, found)
            }
        };
        let queue = Arc::new(Queue::default());
        let writer = Writer { path: path.to_owned(), open, database: Some(database) };
        let thread = std::thread::Builder::new().name("last-good".to_owned());
        let of_writer = queue.clone();
        let started = thread.spawn(move || {
            writer.run(&of_writer);
            of_writer.state.lock().has_ended = true;
            of_writer.changed.notify_all();
        });
        started.map_err(|error| error.to_string())?;
        Ok((LastGood(queue), found))
    }

    /// Has changes written, some time soon; `all` answers the keys that there are after them.
    pub(super) fn keep(&self, batch: Batch, all: impl FnOnce() -> BTreeSet<Key>) {
        let mut state = self.0.state.lock();
        let gone = state.gone + batch.gone();
        let mut waiting = match state.waiting.take() {
            Some(waiting) => waiting.then(batch),
            None => batch,
        };
        state.gone = if gone > MOST_GONE { waiting.gone() } else { gone };
        if state.gone > MOST_GONE {
            waiting.note_all(all());
            state.gone = 0;
        }
        state.waiting = Some(waiting);
        self.0.changed.notify_all();
    }

    /// Has what waits written and the file closed until it is given back. A disk that hangs is not waited for.
    pub(super) fn lend(&self) -> Lent {
        let deadline = Instant::now() + LAST_WRITE;
        let mut state = self.0.state.lock();
        state.is_lent = true;
        self.0.changed.notify_all();
        while !state.is_closed && !self.0.changed.wait_until(&mut state, deadline).timed_out() {}
        let queue = self.0.clone();
        Lent::new(move |outcome| {
            if matches!(outcome, Outcome::Back) {
                let mut state = queue.state.lock();
                (state.is_lent, state.is_closed) = (false, false);
                queue.changed.notify_all();
            }
        })
    }

    /// Has what waits written and the file closed, and nothing after that. A disk that hangs is not waited for.
    pub(super) fn close(&self) {
        let deadline = Instant::now() + LAST_WRITE;
        let mut state = self.0.state.lock();
        state.ends = true;
        self.0.changed.notify_all();
        while !state.has_ended && !self.0.changed.wait_until(&mut state, deadline).timed_out() {}
    }
}

impl Drop for LastGood {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    /// What is to be done next.
    fn next(&self) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                // The file is another process's, or will be again.
                if state.ends {
                    return Next::End;
                }
                self.changed.wait(&mut state);
                continue;
            }
            let waiting = state.waiting.take();
            state.gone = 0;
            match waiting {
                Some(batch) => return Next::Write(batch),
                None if state.ends => return Next::End,
                None if state.is_lent => return Next::Close,
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Says that the file is closed.
    fn closed(&self) {
        let mut state = self.state.lock();
        // It may have been given back in the meantime.
        state.is_closed = state.is_lent;
        self.changed.notify_all();
    }

    /// Has what could not be written wait, under what has come meanwhile.
    fn put_back(&self, batch: Batch) {
        let mut state = self.state.lock();
        let waiting = match state.waiting.take() {
            Some(later) => batch.then(later),
            None => batch,
        };
        (state.gone, state.waiting) = (waiting.gone(), Some(waiting));
    }

    /// Waits, but for the end; tells whether that has come.
    fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.ends && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        state.ends
    }
}

/// Makes the tables, or reads them.
fn begin(database: &Database, of: &str) -> Result<Option<Found>, StoreError> {
    let transaction = database.begin_write().map_err(unavailable)?;
    {
        let mut numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
        let mut texts = transaction.open_table(TEXTS).map_err(unavailable)?;
        let format = numbers.get(FORMAT_KEY).map_err(unavailable)?.map(|format| format.value());
        let is_of = texts.get(OF_KEY).map_err(unavailable)?.is_some_and(|written| written.value() == of);
        if format != Some(FORMAT) || !is_of {
            transaction.delete_table(VALUES).map_err(unavailable)?;
            numbers.remove(REVISION_KEY).map_err(unavailable)?;
            texts.remove(PLUGINS_KEY).map_err(unavailable)?;
            numbers.insert(FORMAT_KEY, FORMAT).map_err(unavailable)?;
            texts.insert(OF_KEY, of).map_err(unavailable)?;
        }
        transaction.open_table(VALUES).map_err(unavailable)?;
    }
    transaction.commit().map_err(unavailable)?;
    read(database)
}

fn read(database: &Database) -> Result<Option<Found>, StoreError> {
    let transaction = database.begin_read().map_err(unavailable)?;
    let numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
    let number =
        |key| numbers.get(key).map(|number| number.map(|number| number.value())).map_err(unavailable);
    // Nothing was ever kept.
    let Some(revision) = number(REVISION_KEY)? else { return Ok(None) };
    let cluster = number(CLUSTER_KEY)?.unwrap_or_default();
    let mut values = BTreeMap::new();
    for entry in transaction.open_table(VALUES).map_err(unavailable)?.iter().map_err(unavailable)? {
        let (name, bytes) = entry.map_err(unavailable)?;
        let kept = Record::read(bytes.value()).map(|record| record.kept());
        values.extend(key_of(name.value()).zip(kept));
    }
    let texts = transaction.open_table(TEXTS).map_err(unavailable)?;
    let listed = texts.get(PLUGINS_KEY).map_err(unavailable)?;
    let plugins = listed.and_then(|listed| EnabledPlugins::of_list(listed.value().as_bytes()));
    Ok(Some(Found { values, plugins, revision, cluster }))
}

/// What the thread does next.
enum Next {
    Write(Batch),
    /// The file is lent.
    Close,
    End,
}

struct Writer {
    path: PathBuf,
    open: Open,
    /// `None` after an error of the disk.
    database: Option<Database>,
}

impl Writer {
    fn run(mut self, queue: &Queue) {
        // It is said once of each time that nothing can be written.
        let (mut told, mut is_last) = (false, false);
        loop {
            let batch = match queue.next() {
                Next::Write(batch) => batch,
                Next::Close => {
                    self.database = None;
                    queue.closed();
                    continue;
                }
                Next::End => return,
            };
            let Err(reason) = self.write(&batch) else {
                told = false;
                queue.pause(PAUSE);
                continue;
            };
            if !std::mem::replace(&mut told, true) {
                tracing::error!(reason, "what is read of the configuration is not kept for the next start");
            }
            // redb does nothing more with a file that it could not write.
            self.database = None;
            queue.put_back(batch);
            if is_last {
                return;
            }
            is_last = queue.pause(AGAIN);
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), String> {
        let database = match &mut self.database {
            Some(database) => database,
            none => none.insert((self.open)(&self.path).map_err(|refused| refused.reason)?),
        };
        let written = || {
            let transaction = database.begin_write().map_err(unavailable)?;
            {
                let mut values = transaction.open_table(VALUES).map_err(unavailable)?;
                if let Some(only) = &batch.only {
                    let is_there = |name: &str| key_of(name).is_some_and(|key| only.contains(&key));
                    values.retain(|name, _| is_there(name)).map_err(unavailable)?;
                }
                for (key, kept) in &batch.values {
                    match kept {
                        Some(Kept { value, created, modified }) => {
                            let record = Record { created: *created, modified: *modified, end: 0, value };
                            let bytes = record.written();
                            values.insert(name(key).as_str(), bytes.as_slice()).map_err(unavailable)?;
                        }
                        None => drop(values.remove(name(key).as_str()).map_err(unavailable)?),
                    }
                }
                let mut numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
                numbers.insert(REVISION_KEY, batch.revision).map_err(unavailable)?;
                numbers.insert(CLUSTER_KEY, batch.cluster).map_err(unavailable)?;
                let mut texts = transaction.open_table(TEXTS).map_err(unavailable)?;
                match &batch.plugins {
                    Some(Some(plugins)) => {
                        drop(texts.insert(PLUGINS_KEY, plugins.list().as_str()).map_err(unavailable)?);
                    }
                    Some(None) => drop(texts.remove(PLUGINS_KEY).map_err(unavailable)?),
                    None => {}
                }
            }
            transaction.commit().map_err(unavailable)
        };
        written().map_err(|error: StoreError| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Kind;
    use crate::store::conformance::{Disk, OnDisk};
    use std::sync::atomic::Ordering::SeqCst;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            Folder(std::env::temp_dir().join(format!("sixfold-last-good-{name}-{}", std::process::id())))
        }

        fn file(&self) -> PathBuf {
            self.0.join("etcd.redb")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn batch(revision: u64, changes: &[(&str, bool)]) -> Batch {
        let kept = || Kept { value: "{}".into(), created: 3, modified: revision };
        let change = |(id, is_put): &(&str, bool)| (Key::new(Kind::Route, *id), is_put.then(kept));
        Batch { values: changes.iter().map(change).collect(), revision, cluster: 7, ..Batch::default() }
    }

    fn ids(found: Option<Found>) -> Vec<String> {
        found.unwrap().values.keys().map(|key| key.id.to_string()).collect()
    }

    #[test]
    fn what_was_read_last_is_there_at_the_next_start() {
        let folder = Folder::new("next");
        let (file, none) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert!(none.is_none());
        file.keep(batch(5, &[("a", true), ("b", true)]), BTreeSet::new);
        file.keep(batch(6, &[("b", false), ("c", true)]), BTreeSet::new);
        let busy = LastGood::open(&folder.file(), "/apisix").err().unwrap();
        assert!(busy.ends_with("another process has it open"), "{busy}");
        drop(file);
        let (file, found) = LastGood::open(&folder.file(), "/apisix").unwrap();
        let found = found.unwrap();
        assert_eq!((found.revision, found.cluster, found.values.len()), (6, 7, 2));
        let a = &found.values[&Key::new(Kind::Route, "a")];
        assert_eq!((a.created, a.modified, &*a.value), (3, 5, &b"{}"[..]));
        drop(file);
        // Another prefix has other values.
        assert!(LastGood::open(&folder.file(), "/other").unwrap().1.is_none());
        assert!(LastGood::open(&folder.file(), "/apisix").unwrap().1.is_none());
    }

    #[test]
    fn a_lent_file_is_written_by_one_alone_and_again_when_it_is_back() {
        let folder = Folder::new("lent");
        let (file, _) = LastGood::open(&folder.file(), "/apisix").unwrap();
        file.keep(batch(5, &[("a", true)]), BTreeSet::new);
        let lent = file.lend();
        let (other, found) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert_eq!(ids(found), ["a"]);
        file.keep(batch(6, &[("b", true)]), BTreeSet::new);
        drop(other);
        drop(lent);
        drop(file);
        let (file, found) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert_eq!(ids(found), ["a", "b"]);
        // What is given away is not written any more.
        file.lend().give();
        file.keep(batch(7, &[("c", true)]), BTreeSet::new);
        drop(file);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), ["a", "b"]);
    }

    /// That there is nothing is something, too.
    #[test]
    fn an_empty_configuration_is_kept() {
        let folder = Folder::new("empty");
        LastGood::open(&folder.file(), "/apisix").unwrap().0.keep(batch(5, &[]), BTreeSet::new);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), [""; 0]);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let folder = Folder::new("damaged");
        std::fs::create_dir_all(&folder.0).unwrap();
        std::fs::write(folder.file(), "routes:\n").unwrap();
        let (file, found) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert!(found.is_none());
        file.keep(batch(5, &[("a", true)]), BTreeSet::new);
        drop(file);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), ["a"]);
    }

    /// It was not in the file: a plugin that is switched off for all ran again after a restart.
    #[test]
    fn the_list_of_plugins_is_kept() {
        let folder = Folder::new("plugins");
        let listed = EnabledPlugins::of_list(br#"[{"name":"cors"},{"name":"syslog","stream":true}]"#);
        let with =
            |revision, plugins: &Listed| Batch { plugins: Some(plugins.clone()), ..batch(revision, &[]) };
        let again = || LastGood::open(&folder.file(), "/apisix").unwrap();
        again().0.keep(with(5, &listed), BTreeSet::new);
        // A change of other things leaves it.
        again().0.keep(batch(6, &[("a", true)]), BTreeSet::new);
        let (file, found) = again();
        assert!(listed.is_some());
        assert_eq!(found.unwrap().plugins, listed);
        file.keep(with(7, &None), BTreeSet::new);
        drop(file);
        assert_eq!(again().1.unwrap().plugins, None);
    }

    /// All that came meanwhile waited, and what had failed was tried with the next change alone.
    #[test]
    fn what_the_disk_does_not_take_waits_once_and_is_tried_again() {
        let (folder, disk) = (Folder::new("full"), Disk::new(Duration::ZERO));
        let over = disk.clone();
        let opened =
            LastGood::open_over(&folder.file(), "/apisix", move |file| OnDisk::new(file, over.clone()));
        let (file, _) = opened.unwrap();
        disk.room.store(0, SeqCst);
        for revision in 1..1000 {
            file.keep(batch(revision, &[("a", true), ("b", revision % 2 == 0)]), BTreeSet::new);
        }
        let waiting = || file.0.state.lock().waiting.as_ref().map(|waiting| waiting.values.len());
        let refused = || disk.refused.load(SeqCst);
        let until = |what: &dyn Fn() -> bool| {
            let deadline = Instant::now() + 20 * AGAIN;
            while !what() {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|| refused() > 0 && waiting() == Some(2));
        disk.room.store(u64::MAX, SeqCst);
        // By itself, and whole.
        let waits = disk.waits.load(SeqCst);
        until(&|| waiting().is_none() && disk.waits.load(SeqCst) > waits);
        // At the end once more.
        disk.room.store(0, SeqCst);
        let before = refused();
        file.keep(batch(1000, &[("c", true)]), BTreeSet::new);
        until(&|| refused() > before && waiting() == Some(1));
        disk.room.store(u64::MAX, SeqCst);
        drop(file);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), ["a", "c"]);
    }

    #[test]
    fn a_disk_that_hangs_does_not_hold_up_the_end() {
        let (folder, disk) = (Folder::new("hangs"), Disk::new(Duration::ZERO));
        let over = disk.clone();
        let opened =
            LastGood::open_over(&folder.file(), "/apisix", move |file| OnDisk::new(file, over.clone()));
        let (file, _) = opened.unwrap();
        let held = disk.held.lock();
        file.keep(batch(5, &[("a", true)]), BTreeSet::new);
        let begun = Instant::now();
        drop(file);
        assert!(begun.elapsed() < 2 * LAST_WRITE, "{:?}", begun.elapsed());
        drop(held);
    }

    /// Keys that came and went while the disk took nothing were held one by one, for as long as it did.
    #[test]
    fn keys_that_are_gone_take_no_more_room_than_those_that_are_there() {
        let (folder, disk) = (Folder::new("gone"), Disk::new(Duration::ZERO));
        let over = disk.clone();
        let opened =
            LastGood::open_over(&folder.file(), "/apisix", move |file| OnDisk::new(file, over.clone()));
        let (file, _) = opened.unwrap();
        let all = |ids: &[&str]| ids.iter().map(|id| Key::new(Kind::Route, *id)).collect();
        file.keep(
            batch(1, &[("stays", true), ("goes", true), ("again", true), ("later", true)]),
            BTreeSet::new,
        );
        // Which is written before the disk hangs.
        let deadline = Instant::now() + 20 * AGAIN;
        while disk.waits.load(SeqCst) == 0 || file.0.state.lock().waiting.is_some() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(2 * PAUSE);
        let held = disk.held.lock();
        file.keep(batch(2, &[("goes", false), ("again", false)]), || all(&["stays", "later"]));
        std::thread::sleep(2 * PAUSE);
        for n in 3..30_000 {
            let id = format!("n{n}");
            file.keep(batch(n, &[(&id, true)]), || all(&["stays", "later", &id]));
            file.keep(batch(n, &[(&id, false)]), || all(&["stays", "later"]));
            let waiting = file.0.state.lock().waiting.as_ref().map_or(0, |waiting| waiting.values.len());
            assert!(waiting <= MOST_GONE + 1, "{waiting} after {n}");
        }
        file.keep(batch(30_000, &[("later", false), ("again", true), ("new", true)]), BTreeSet::new);
        file.keep(batch(30_001, &[("new", false)]), BTreeSet::new);
        drop(held);
        drop(file);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), ["again", "stays"]);
    }
}
