//! A store in a file of this machine.
//!
//! One thread writes (`writer`): what many ask for at the same time is one transaction, so that all of them wait for the
//! disk once. A write that was answered is on the disk; one that was not is there whole or not at all, whenever the
//! process ends (redb's transactions). After an error of the disk the file is opened anew: redb does nothing more with
//! one that it could not read or write.

mod writer;

use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::backends::FileBackend;
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend, TableDefinition};
use sixfold_core::error::ConfigError;
use sixfold_core::files::keep_name;

use self::writer::{Ask, Job, Task, Writer};
use super::lent::Lent;
use super::{Change, Committed, Document, Kept, Key, Notify, Sink, Store, StoreError, Watch, Write};
use crate::resource::{Id, Kind};

/// Values by [`name`], each behind its header.
pub(super) const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
/// When values are over, in milliseconds since 1970, and their names.
const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("ends");
/// [`FORMAT_KEY`] and [`REVISION_KEY`].
pub(super) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// Of these tables. A file of another one is refused.
const FORMAT: u64 = 1;

/// Bytes of the file that are kept in memory: all values are read once, when the gateway starts.
const CACHE_BYTES: usize = 2 << 20;
/// Jobs that wait for the writer. Whoever comes then waits for room.
const QUEUE: usize = 1024;
/// How long a process that has the file has to close it: one may be ending, or about to hand over.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long whoever gives a file back waits until it is open again: what is read before that fails.
const OPEN_AGAIN: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const TRY: Duration = Duration::from_millis(10);
/// Before each value: its created and modified revisions, and when it is over, or 0.
const HEADER: usize = 24;

/// Resources in a file that only this process has open.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` while it is dropped.
    jobs: Option<SyncSender<Ask>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    open: Open,
    /// `None` after an error of the disk, as long as the file can't be opened again.
    database: RwLock<Option<Database>>,
    changed: Mutex<Changed>,
}

type Open = Box<dyn Fn(&Path) -> Result<Database, String> + Send + Sync>;

/// What nobody has looked at yet.
#[derive(Default)]
struct Changed {
    everything: bool,
    keys: BTreeSet<Key>,
    notify: Option<Notify>,
}

/// A value and what is kept with it.
pub(super) struct Record<'a> {
    pub(super) created: u64,
    pub(super) modified: u64,
    /// When it is over, in milliseconds since 1970; 0 for never.
    pub(super) end: u64,
    pub(super) value: &'a [u8],
}

/// Why a file is not opened.
pub(super) struct Unopened {
    pub(super) cause: Cause,
    pub(super) reason: String,
}

/// What a file is not opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another process has it.
    Busy,
    /// What is in it can't be read, now or ever.
    Damaged,
    /// The disk or the operating system refuses; later it may not.
    Refused,
}

impl Cause {
    pub(super) fn of(error: &redb::Error) -> Cause {
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        match error {
            redb::Error::DatabaseAlreadyOpen => Cause::Busy,
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => Cause::Damaged,
            // No file of tables, and one that was cut off.
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => Cause::Damaged,
            _ => Cause::Refused,
        }
    }
}

impl EmbeddedStore {
    /// Opens the file at `path`, or makes it, with its folder, for this user alone.
    ///
    /// # Errors
    /// Why that can't be, as a phrase: another process has it open, it is damaged, or the operating system refuses.
    pub fn open(path: &Path) -> Result<EmbeddedStore, String> {
        EmbeddedStore::open_over(path, |file| file)
    }

    /// Opens it with something between it and the file.
    pub(super) fn open_over<B: StorageBackend>(
        path: &Path,
        over: impl Fn(FileBackend) -> B + Send + Sync + 'static,
    ) -> Result<EmbeddedStore, String> {
        let open: Open = Box::new(move |path| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match database(path, &over) {
                    Err(Unopened { cause: Cause::Busy, .. }) if Instant::now() < deadline => {
                        std::thread::sleep(TRY);
                    }
                    opened => return opened.map_err(|refused| refused.reason),
                }
            }
        });
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(open(path)?)),
            open,
            path: path.to_owned(),
            changed: Mutex::new(Changed { everything: true, ..Changed::default() }),
        });
        let (jobs, queue) = sync_channel(QUEUE);
        let writer = Writer::new(shared.clone(), queue).map_err(|error| error.to_string())?;
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run());
        let writer = Some(thread.map_err(|error| error.to_string())?);
        Ok(EmbeddedStore { shared, jobs: Some(jobs), writer })
    }

    fn ask<T>(&self, task: impl FnOnce(SyncSender<Result<T, StoreError>>) -> Task) -> Result<T, StoreError> {
        let ended = || StoreError::Unavailable("the store is closed".to_owned());
        // The writer never waits for whoever takes an answer.
        let (answer, answered) = sync_channel(1);
        self.jobs.as_ref().ok_or_else(ended)?.send(Ask::Do(Job(task(answer)))).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Drop for EmbeddedStore {
    /// Closes the file, so that another may open it at once.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Opens a file of tables, or makes it, with its folder, for this user alone.
pub(super) fn database<B: StorageBackend>(
    path: &Path,
    over: &impl Fn(FileBackend) -> B,
) -> Result<Database, Unopened> {
    let unopened = |reason| Unopened { cause: Cause::Refused, reason };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        // Private keys and credentials are in it.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let made = made.and_then(|()| keep_name(folder));
        made.map_err(|error| unopened(format!("can't make the folder {}: {error}", folder.display())))?;
    }
    let told = |error: &dyn std::fmt::Display| format!("can't open {}: {error}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(|error| unopened(told(&error)))?;
    let Some(metadata) = file.metadata().ok().filter(std::fs::Metadata::is_file) else {
        return Err(unopened(told(&"it is no regular file")));
    };
    if metadata.len() == 0 {
        // What is written into it must not be lost with its name.
        keep_name(path).map_err(|error| unopened(told(&error)))?;
    }
    let refused = |error: redb::DatabaseError| {
        let error = redb::Error::from(error);
        let cause = Cause::of(&error);
        let reason = if cause == Cause::Busy { told(&"another process has it open") } else { told(&error) };
        Unopened { cause, reason }
    };
    let backend = over(FileBackend::new(file).map_err(refused)?);
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // At pages that it has not written like that the storage panics, and later too if none is looked at now.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut database = builder.create_with_backend(backend)?;
        let is_whole = database.check_integrity()?;
        Ok((database, is_whole))
    }));
    let (database, is_whole) = opened
        .map_err(|_| Unopened { cause: Cause::Damaged, reason: told(&"it is damaged") })?
        .map_err(refused)?;
    if !is_whole {
        tracing::error!(file = %path.display(), "it was damaged, and what was written last may be lost");
    }
    Ok(database)
}

/// What a resource is called in the file.
pub(super) fn name(key: &Key) -> String {
    format!("{}/{}", key.kind.section(), key.id)
}

/// What names of a consumer's credentials begin with.
fn first_credential(consumer: &str) -> String {
    name(&Key::of_credential(consumer, ""))
}

pub(super) fn key_of(name: &str) -> Option<Key> {
    let (section, id) = name.split_once('/')?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.section() == section)?;
    Some(Key { kind, id: Id::from(id) })
}

impl<'a> Record<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (header, value) = bytes.split_at_checked(HEADER)?;
        let mut numbers = header.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
        Some(Record { created: numbers.next()?, modified: numbers.next()?, end: numbers.next()?, value })
    }

    pub(super) fn written(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.value.len());
        for number in [self.created, self.modified, self.end] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.value);
        bytes
    }

    pub(super) fn kept(&self) -> Kept {
        let Record { created, modified, value, .. } = *self;
        Kept { value: Bytes::copy_from_slice(value), created, modified }
    }
}

/// In the words of the storage.
pub(super) fn unavailable(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Unavailable(error.into().to_string())
}

impl Shared {
    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.with(|database| database.begin_read().map_err(unavailable))
    }

    fn with<T>(&self, begin: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match &*self.database.read() {
            Some(database) => begin(database),
            None => Err(StoreError::Unavailable(format!("can't open {}", self.path.display()))),
        }
    }

    fn is_open(&self) -> bool {
        self.database.read().is_some()
    }

    /// Opens the file anew.
    fn reopen(&self) {
        let mut database = self.database.write();
        // Its lock goes with it.
        *database = None;
        match (self.open)(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(reason) => tracing::error!("{reason}"),
        }
    }

    /// All values whose names begin like this.
    fn range(&self, prefix: &str) -> Result<Vec<(Key, Kept)>, StoreError> {
        let transaction = self.read()?;
        let table = transaction.open_table(VALUES).map_err(unavailable)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..).map_err(unavailable)? {
            let (name, bytes) = entry.map_err(unavailable)?;
            if !name.value().starts_with(prefix) {
                break;
            }
            let kept = Record::read(bytes.value()).map(|record| record.kept());
            found.extend(key_of(name.value()).zip(kept));
        }
        Ok(found)
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        let transaction = self.read()?;
        let table = transaction.open_table(VALUES).map_err(unavailable)?;
        let bytes = table.get(name(key).as_str()).map_err(unavailable)?;
        Ok(bytes.and_then(|bytes| Some(Record::read(bytes.value())?.kept())))
    }

    fn tell(&self, keys: impl IntoIterator<Item = Key>) {
        let notify = {
            let mut changed = self.changed.lock();
            changed.keys.extend(keys);
            changed.notify.clone()
        };
        notify.iter().for_each(|notify| notify());
    }
}

fn change(key: Key, kept: Option<Kept>) -> Change {
    Change {
        revision: kept.as_ref().map_or(0, |kept| kept.modified),
        order: kept.as_ref().map_or(0, |kept| kept.created),
        value: kept.map(|kept| Document::json(kept.value)),
        key,
        takes_place: false,
    }
}

impl Store for EmbeddedStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let shared = &self.shared;
        let (everything, keys) = {
            let mut changed = shared.changed.lock();
            (std::mem::take(&mut changed.everything), std::mem::take(&mut changed.keys))
        };
        let mut read = || -> Result<(), StoreError> {
            if everything {
                // Kind by kind, so that not all of them are in memory at once.
                for kind in Kind::ALL {
                    let values = self.list(kind)?;
                    values.into_iter().for_each(|(key, kept)| sink.change(change(key, Some(kept))));
                }
            }
            for key in &keys {
                sink.change(change(key.clone(), shared.get(key)?));
            }
            Ok(())
        };
        let read = read();
        read.map(|()| Vec::new()).map_err(|error| {
            let mut changed = shared.changed.lock();
            changed.everything |= everything;
            changed.keys.extend(keys);
            vec![ConfigError::new(error.to_string()).in_file(shared.path.display().to_string())]
        })
    }

    fn watch(&self, notify: Notify) -> std::io::Result<Watch> {
        let waiting = {
            let mut changed = self.shared.changed.lock();
            changed.notify = Some(notify.clone());
            changed.everything || !changed.keys.is_empty()
        };
        if waiting {
            notify();
        }
        Ok(Box::new(Watching(self.shared.clone())))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        self.shared.get(key)
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        self.shared.range(&format!("{}/", kind.section()))
    }

    fn credentials(&self, consumer: &str) -> Result<Vec<(Key, Kept)>, StoreError> {
        self.shared.range(&first_credential(consumer))
    }

    fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.ask(|answer| Task::Commit(writes, answer))
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        self.ask(Task::NextId)
    }

    fn lend(&self, by: Instant) -> Result<Lent, StoreError> {
        let Some(jobs) = self.jobs.clone() else { return Ok(Lent::nothing()) };
        let hangs = || StoreError::Unavailable("the disk of the store does not answer".to_owned());
        // Nobody is told who has gone: the writer keeps the file then.
        let (closed, is_closed) = sync_channel(0);
        let mut ask = Ask::Lend(closed);
        loop {
            match jobs.try_send(ask) {
                Ok(()) => break,
                // A writer that has ended has nothing open.
                Err(TrySendError::Disconnected(_)) => return Ok(Lent::nothing()),
                Err(TrySendError::Full(_)) if Instant::now() >= by => return Err(hangs()),
                Err(TrySendError::Full(back)) => ask = back,
            }
            std::thread::sleep(TRY);
        }
        match is_closed.recv_timeout(by.saturating_duration_since(Instant::now())) {
            Ok(()) => Ok(Lent::new(move |outcome| {
                let (open, is_open) = sync_channel(1);
                // A writer that has ended has nothing open, and one whose disk hangs is not waited for.
                if jobs.send(Ask::Back(outcome, open)).is_ok() {
                    let _ = is_open.recv_timeout(OPEN_AGAIN);
                }
            })),
            Err(RecvTimeoutError::Disconnected) => Ok(Lent::nothing()),
            Err(RecvTimeoutError::Timeout) => Err(hangs()),
        }
    }
}

struct Watching(Arc<Shared>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.changed.lock().notify = None;
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "resources in {}", self.shared.path.display())
    }
}
