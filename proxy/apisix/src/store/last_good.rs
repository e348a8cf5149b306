//! What was last read of a store elsewhere, in a file of this machine, so that a gateway starts and serves while that store is
//! not there.
//!
//! A thread writes what has changed, some changes at a time, each time in one transaction: the file is always what the store
//! was at one moment. Pages have checksums (redb's); a file that is damaged is begun anew. Nobody waits for the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::embedded::{NUMBERS, Record, VALUES, database, key_of, name, unavailable};
use super::{Kept, Key, StoreError};

/// Of whom the values are.
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");
const OF_KEY: &str = "of";
const REVISION_KEY: &str = "revision";
const CLUSTER_KEY: &str = "cluster";
const FORMAT_KEY: &str = "format";
/// Of these tables, and no format of the embedded store. What has another one is begun anew.
const FORMAT: u64 = 101;

/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(100);

/// A store's values on the disk.
pub(super) struct LastGood {
    /// `None` while it is dropped.
    batches: Option<Sender<Batch>>,
    writer: Option<JoinHandle<()>>,
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What became of keys, later ones behind earlier ones.
    pub(super) values: Vec<(Key, Option<Kept>)>,
    /// The store's revision then.
    pub(super) revision: u64,
    /// What tells the store from another one.
    pub(super) cluster: u64,
}

/// What a file had.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) values: BTreeMap<Key, Kept>,
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
        let opened = database(path, &|file| file).map_err(|refused| (refused.is_busy, refused.reason));
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
                let database = database(path, &|file| file).map_err(|refused| refused.reason)?;
                let found = begin(&database, of).map_err(|error| error.to_string())?;
                (database, found)
            }
        };
        let (batches, queue) = channel();
        let writer =
            Writer { path: path.to_owned(), database: Some(database), waiting: BTreeMap::new(), told: false };
        let thread = std::thread::Builder::new().name("last-good".to_owned());
        let writer = thread.spawn(move || writer.run(&queue)).map_err(|error| error.to_string())?;
        Ok((LastGood { batches: Some(batches), writer: Some(writer) }, found))
    }

    /// Has changes written, some time soon.
    pub(super) fn keep(&self, batch: Batch) {
        if let Some(batches) = &self.batches {
            // The thread ends with this alone.
            let _ = batches.send(batch);
        }
    }
}

impl Drop for LastGood {
    /// Writes what waits.
    fn drop(&mut self) {
        self.batches = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
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
    Ok(Some(Found { values, revision, cluster }))
}

struct Writer {
    path: PathBuf,
    /// `None` after an error of the disk.
    database: Option<Database>,
    /// What is not on the disk yet, the last of each key.
    waiting: BTreeMap<Key, Option<Kept>>,
    /// Whether it was said that nothing can be written.
    told: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Batch>) {
        while let Ok(first) = queue.recv() {
            let (mut revision, mut cluster) = (0, 0);
            for batch in std::iter::once(first).chain(queue.try_iter()) {
                (revision, cluster) = (batch.revision, batch.cluster);
                self.waiting.extend(batch.values);
            }
            match self.write(revision, cluster) {
                Ok(()) => {
                    self.waiting.clear();
                    self.told = false;
                }
                Err(reason) => {
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::error!(
                            reason,
                            "what is read of the configuration is not kept for the next start"
                        );
                    }
                    // redb does nothing more with a file that it could not write.
                    self.database = None;
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn write(&mut self, revision: u64, cluster: u64) -> Result<(), String> {
        let database = match &mut self.database {
            Some(database) => database,
            none => none.insert(database(&self.path, &|file| file).map_err(|refused| refused.reason)?),
        };
        let waiting = &self.waiting;
        let written = || {
            let transaction = database.begin_write().map_err(unavailable)?;
            {
                let mut values = transaction.open_table(VALUES).map_err(unavailable)?;
                for (key, kept) in waiting {
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
                numbers.insert(REVISION_KEY, revision).map_err(unavailable)?;
                numbers.insert(CLUSTER_KEY, cluster).map_err(unavailable)?;
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
        Batch { values: changes.iter().map(change).collect(), revision, cluster: 7 }
    }

    fn ids(found: Option<Found>) -> Vec<String> {
        found.unwrap().values.keys().map(|key| key.id.to_string()).collect()
    }

    #[test]
    fn what_was_read_last_is_there_at_the_next_start() {
        let folder = Folder::new("next");
        let (file, none) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert!(none.is_none());
        file.keep(batch(5, &[("a", true), ("b", true)]));
        file.keep(batch(6, &[("b", false), ("c", true)]));
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

    /// That there is nothing is something, too.
    #[test]
    fn an_empty_configuration_is_kept() {
        let folder = Folder::new("empty");
        LastGood::open(&folder.file(), "/apisix").unwrap().0.keep(batch(5, &[]));
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), [""; 0]);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let folder = Folder::new("damaged");
        std::fs::create_dir_all(&folder.0).unwrap();
        std::fs::write(folder.file(), "routes:\n").unwrap();
        let (file, found) = LastGood::open(&folder.file(), "/apisix").unwrap();
        assert!(found.is_none());
        file.keep(batch(5, &[("a", true)]));
        drop(file);
        assert_eq!(ids(LastGood::open(&folder.file(), "/apisix").unwrap().1), ["a"]);
    }
}
