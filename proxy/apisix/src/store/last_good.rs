//! What was last read of a store elsewhere, in a file of this machine, so that a gateway starts and serves while that store is
//! not there.
//!
//! A thread writes what has changed, some changes at a time, each time in one transaction: the file is always what the store
//! was at one moment. Pages have checksums (redb's); a file that is damaged is begun anew, and one that can't be opened or
//! written for another reason is left as it is. Nobody waits for the disk: what it
//! has not taken yet waits, of each key the last value alone, and is tried again until the disk takes it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition, WriteTransaction,
};

use super::embedded::{Cause, NUMBERS, Record, Unopened, VALUES, database, key_of, name, unavailable};
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
    /// is in it, if anything was ever kept. One that another process has is written once that has closed it.
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
        let file = File {
            path: path.to_owned(),
            of: of.to_owned(),
            open: Box::new(move |path| database(path, &over)),
        };
        let (database, found) = match file.begin() {
            Ok((database, found)) => (Some(database), found),
            // A process whose place this one takes lets go of it when its disk does.
            Err(refused) if refused.cause == Cause::Busy => {
                tracing::warn!(reason = refused.reason, "what is kept of the configuration is not read");
                (None, None)
            }
            Err(refused) => return Err(refused.reason),
        };
        let queue = Arc::new(Queue::default());
        let writer = Writer { is_unread: database.is_none(), file, database };
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

    /// Has what waits written and the file closed until it is given back. A disk that hangs is not waited for: the other
    /// process has the file once it is closed.
    pub(super) fn lend(&self, by: Instant) -> Lent {
        let deadline = by.min(Instant::now() + LAST_WRITE);
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

/// A file, and how it is opened.
struct File {
    path: PathBuf,
    /// Whose values are in it.
    of: String,
    open: Open,
}

impl File {
    /// Opens the file and reads what is in it. One that is damaged is begun anew.
    fn begin(&self) -> Result<(Database, Option<Found>), Unopened> {
        let begun = || -> Result<(Database, Option<Found>), Unopened> {
            let database = (self.open)(&self.path)?;
            let found = begin(&database, &self.of);
            let found =
                found.map_err(|error| Unopened { cause: Cause::of(&error), reason: error.to_string() })?;
            Ok((database, found))
        };
        begun().or_else(|refused| {
            // The file may be all that there is to serve next time.
            if refused.cause != Cause::Damaged {
                return Err(refused);
            }
            tracing::warn!(reason = refused.reason, "what was kept of the configuration is lost");
            let removed = std::fs::remove_file(&self.path);
            removed.map_err(|error| Unopened { cause: Cause::Refused, reason: error.to_string() })?;
            begun()
        })
    }

    /// The same of one that could not be read when this process started, whose values are forgotten.
    fn begin_anew(&self) -> Result<Database, String> {
        let (database, _) = self.begin().map_err(|refused| refused.reason)?;
        forget(&database).map_err(|error| error.to_string())?;
        Ok(database)
    }
}

/// Reads the tables, or makes them where there are none of these values. What is there is not written to: a disk that is full
/// keeps nobody from it.
fn begin(database: &Database, of: &str) -> Result<Option<Found>, redb::Error> {
    if is_begun(database, of) != Some(true) {
        make(database, of)?;
    }
    read(database)
}

/// Takes out all values.
fn clear(
    transaction: &WriteTransaction,
    numbers: &mut Table<'_, &'static str, u64>,
    texts: &mut Table<'_, &'static str, &'static str>,
) -> Result<(), redb::Error> {
    transaction.delete_table(VALUES)?;
    numbers.remove(REVISION_KEY)?;
    texts.remove(PLUGINS_KEY)?;
    Ok(())
}

fn forget(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let mut texts = transaction.open_table(TEXTS)?;
        clear(&transaction, &mut numbers, &mut texts)?;
        transaction.open_table(VALUES)?;
    }
    Ok(transaction.commit()?)
}

/// Whether all tables are there, and of whom; nothing where that can't be read.
fn is_begun(database: &Database, of: &str) -> Option<bool> {
    let transaction = database.begin_read().ok()?;
    let numbers = transaction.open_table(NUMBERS).ok()?;
    let texts = transaction.open_table(TEXTS).ok()?;
    transaction.open_table(VALUES).ok()?;
    let format = numbers.get(FORMAT_KEY).ok()?.map(|format| format.value());
    let is_of = texts.get(OF_KEY).ok()?.is_some_and(|written| written.value() == of);
    Some(format == Some(FORMAT) && is_of)
}

fn make(database: &Database, of: &str) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let mut texts = transaction.open_table(TEXTS)?;
        let format = numbers.get(FORMAT_KEY)?.map(|format| format.value());
        let is_of = texts.get(OF_KEY)?.is_some_and(|written| written.value() == of);
        if format != Some(FORMAT) || !is_of {
            clear(&transaction, &mut numbers, &mut texts)?;
            numbers.insert(FORMAT_KEY, FORMAT)?;
            texts.insert(OF_KEY, of)?;
        }
        transaction.open_table(VALUES)?;
    }
    Ok(transaction.commit()?)
}

fn read(database: &Database) -> Result<Option<Found>, redb::Error> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let number = |key| numbers.get(key).map(|number| number.map(|number| number.value()));
    // Nothing was ever kept.
    let Some(revision) = number(REVISION_KEY)? else { return Ok(None) };
    let cluster = number(CLUSTER_KEY)?.unwrap_or_default();
    let mut values = BTreeMap::new();
    for entry in transaction.open_table(VALUES)?.iter()? {
        let (name, bytes) = entry?;
        let kept = Record::read(bytes.value()).map(|record| record.kept());
        values.extend(key_of(name.value()).zip(kept));
    }
    let texts = transaction.open_table(TEXTS)?;
    let listed = texts.get(PLUGINS_KEY)?;
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
    file: File,
    /// Whether another process had the file when this one started: of what is in it nothing is known.
    is_unread: bool,
    /// `None` after an error of the disk, and as long as another process has the file.
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
            none => {
                let opened = match self.is_unread {
                    true => self.file.begin_anew(),
                    false => (self.file.open)(&self.file.path).map_err(|refused| refused.reason),
                };
                let database = none.insert(opened?);
                self.is_unread = false;
                database
            }
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
