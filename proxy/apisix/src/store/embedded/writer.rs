//! The thread that writes the file.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use redb::{ReadableTable, Table};

use super::{
    ENDS, FORMAT, FORMAT_KEY, NUMBERS, QUEUE, REVISION_KEY, Record, Shared, VALUES, first_credential, key_of,
    name, unavailable,
};
use crate::resource::Kind;
use crate::store::kept::{end_of, now};
use crate::store::lent::Outcome;
use crate::store::{Action, Committed, Key, StoreError, Write};

/// Jobs of one transaction at most, so that the first of them does not wait for ever.
const BATCH: usize = 256;
/// When values that are over are looked for at the latest: the clock of the machine may be set.
const LOOK: Duration = Duration::from_secs(60);

/// What the writer is asked.
pub(super) enum Ask {
    Do(Job),
    /// To close the file; told when it is.
    Lend(SyncSender<()>),
    /// What has become of a file that was lent; told when it is open again, if it is.
    Back(Outcome, SyncSender<()>),
}

/// What somebody waits for.
pub(super) struct Job(pub(super) Task);

pub(super) enum Task {
    Commit(Vec<Write>, SyncSender<Result<Committed, StoreError>>),
    NextId(SyncSender<Result<u64, StoreError>>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Ask>,
    /// Of the last transaction.
    revision: u64,
    /// When the first value is over.
    first_end: Option<u64>,
}

/// An answer that is given when its transaction is on the disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

/// The tables within a transaction.
struct Tables<'t, 'c> {
    values: Table<'t, &'static str, &'static [u8]>,
    ends: Table<'t, (u64, &'static str), ()>,
    revision: u64,
    changed: &'c mut Vec<Key>,
}

impl Writer {
    /// Makes the tables that are not there yet, and looks at where the file is.
    pub(super) fn new(shared: Arc<Shared>, queue: Receiver<Ask>) -> Result<Writer, StoreError> {
        let transaction = shared.with(|database| database.begin_write().map_err(unavailable))?;
        {
            let mut numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
            let format = numbers.get(FORMAT_KEY).map_err(unavailable)?.map(|format| format.value());
            if format.is_some_and(|format| format != FORMAT) {
                let path = shared.path.display();
                return Err(StoreError::Unavailable(format!("{path} was written by another version")));
            }
            numbers.insert(FORMAT_KEY, FORMAT).map_err(unavailable)?;
            transaction.open_table(VALUES).map_err(unavailable)?;
            transaction.open_table(ENDS).map_err(unavailable)?;
        }
        transaction.commit().map_err(unavailable)?;
        let (revision, first_end) = look(&shared)?;
        Ok(Writer { shared, queue, revision, first_end })
    }

    /// Writes until nobody is left who could ask for it.
    pub(super) fn run(mut self) {
        loop {
            let until = self.first_end.map(|end| Duration::from_millis(end.saturating_sub(now())));
            let (jobs, lend) = match self.queue.recv_timeout(until.unwrap_or(LOOK).min(LOOK)) {
                Ok(ask) => self.gather(ask),
                Err(RecvTimeoutError::Timeout) if self.is_due() || !self.shared.is_open() => {
                    (Vec::new(), None)
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if lend.is_none() || !jobs.is_empty() {
                self.write(jobs);
            }
            if lend.is_some_and(|closed| !self.lend(&closed)) {
                return;
            }
        }
    }

    /// The jobs of one transaction, and who wants the file after it.
    fn gather(&self, first: Ask) -> (Vec<Job>, Option<SyncSender<()>>) {
        let (mut jobs, mut next) = (Vec::new(), Some(first));
        while let Some(ask) = next {
            match ask {
                Ask::Do(job) => jobs.push(job),
                Ask::Lend(closed) => return (jobs, Some(closed)),
                // It is not lent.
                Ask::Back(..) => {}
            }
            next = if jobs.len() < BATCH { self.queue.try_recv().ok() } else { None };
        }
        (jobs, None)
    }

    /// Closes the file until it is given back; answers whether it is. Jobs wait for that, or are refused.
    fn lend(&mut self, closed: &SyncSender<()>) -> bool {
        // The other process takes out what is over meanwhile, and does nothing else to values before it has them for good.
        let may_end = self.ending().unwrap_or_default();
        *self.shared.database.write() = None;
        if closed.send(()).is_err() {
            // Who asked has waited long enough.
            self.reopen();
            return true;
        }
        let refusal = || StoreError::Unavailable("another process has taken this one's place".to_owned());
        let mut held = Vec::new();
        let open = loop {
            match self.queue.recv() {
                Ok(Ask::Do(job)) if held.len() < QUEUE => held.push(job),
                Ok(Ask::Do(job)) => job.refuse(refusal()),
                // One has it already, and whoever asks hears no answer.
                Ok(Ask::Lend(_)) => {}
                Ok(Ask::Back(Outcome::Back, open)) => break open,
                Ok(Ask::Back(Outcome::Given, _)) | Err(_) => {
                    held.into_iter().for_each(|job| job.refuse(refusal()));
                    return false;
                }
            }
        };
        self.reopen();
        // Whoever gave it back may not wait any more.
        let _ = open.send(());
        self.shared.tell(may_end);
        if !held.is_empty() {
            self.write(held);
        }
        true
    }

    /// Keys whose values have an end, by themselves or with their consumer.
    fn ending(&self) -> Result<Vec<Key>, StoreError> {
        let transaction = self.shared.read()?;
        let ends = transaction.open_table(ENDS).map_err(unavailable)?;
        let mut keys = Vec::new();
        for entry in ends.iter().map_err(unavailable)? {
            let Some(key) = key_of(entry.map_err(unavailable)?.0.value().1) else { continue };
            if key.kind == Kind::Consumer {
                let own = self.shared.range(&first_credential(key.id.as_str()))?;
                keys.extend(own.into_iter().map(|(key, _)| key));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn is_due(&self) -> bool {
        self.first_end.is_some_and(|end| end <= now())
    }

    fn write(&mut self, mut jobs: Vec<Job>) {
        if !self.shared.is_open() {
            self.reopen();
        }
        let (mut answers, mut changed) = (Vec::with_capacity(jobs.len()), Vec::new());
        let written = self.transact(&mut jobs, &mut answers, &mut changed);
        if let Err(error) = &written {
            tracing::error!(%error, "the store was not written");
            self.reopen();
        }
        // First, so that whoever looks after an answer finds what was written among the changes. What failed may be on the
        // disk all the same.
        if !changed.is_empty() {
            self.shared.tell(changed);
        }
        answers.into_iter().for_each(|answer| answer(written.clone()));
        if let Err(error) = written {
            jobs.into_iter().for_each(|job| job.refuse(error.clone()));
        }
    }

    /// Opens the file anew, and looks at where it is.
    fn reopen(&mut self) {
        self.shared.reopen();
        match look(&self.shared) {
            Ok(found) => {
                (self.revision, self.first_end) = found;
                // For those who could not look meanwhile.
                self.shared.tell([]);
            }
            Err(error) => {
                tracing::error!(%error, "the store is not read");
                *self.shared.database.write() = None;
            }
        }
    }

    /// Does all jobs in one transaction; those that were done are in `answers` even if that fails, and what they change in
    /// `changed`.
    fn transact(
        &mut self,
        jobs: &mut Vec<Job>,
        answers: &mut Vec<Answer>,
        changed: &mut Vec<Key>,
    ) -> Result<(), StoreError> {
        let transaction = self.shared.with(|database| database.begin_write().map_err(unavailable))?;
        let (revision, first_end);
        {
            let values = transaction.open_table(VALUES).map_err(unavailable)?;
            let ends = transaction.open_table(ENDS).map_err(unavailable)?;
            let mut tables = Tables { values, ends, revision: self.revision, changed };
            tables.expire()?;
            let mut failed = None;
            for Job(task) in jobs.drain(..) {
                match task {
                    Task::Commit(writes, sender) => {
                        let done = failed.clone().map_or_else(|| tables.commit(writes), Err);
                        if let Err(error @ StoreError::Unavailable(_)) = &done {
                            failed = Some(error.clone());
                        }
                        answers.push(Box::new(move |outcome| drop(sender.send(outcome.and(done)))));
                    }
                    Task::NextId(sender) => {
                        tables.revision += 1;
                        let id = tables.revision;
                        answers.push(Box::new(move |outcome| drop(sender.send(outcome.map(|()| id)))));
                    }
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
            first_end = tables.ends.first().map_err(unavailable)?.map(|(end, _)| end.value().0);
            let mut numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
            numbers.insert(REVISION_KEY, tables.revision).map_err(unavailable)?;
            revision = tables.revision;
        }
        transaction.commit().map_err(unavailable)?;
        (self.revision, self.first_end) = (revision, first_end);
        Ok(())
    }
}

/// The revision of the last transaction, and when the first value is over.
fn look(shared: &Shared) -> Result<(u64, Option<u64>), StoreError> {
    let transaction = shared.read()?;
    let numbers = transaction.open_table(NUMBERS).map_err(unavailable)?;
    let revision = numbers.get(REVISION_KEY).map_err(unavailable)?.map_or(0, |revision| revision.value());
    let ends = transaction.open_table(ENDS).map_err(unavailable)?;
    Ok((revision, ends.first().map_err(unavailable)?.map(|(end, _)| end.value().0)))
}

impl Job {
    fn refuse(self, error: StoreError) {
        match self.0 {
            Task::Commit(_, sender) => drop(sender.send(Err(error))),
            Task::NextId(sender) => drop(sender.send(Err(error))),
        }
    }
}

impl Tables<'_, '_> {
    /// Does all of `writes` or none.
    fn commit(&mut self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        for Write { key, expected, .. } in &writes {
            if expected.is_some() && *expected != Some(self.at(key)?.map_or(0, |(_, modified, _)| modified)) {
                return Err(StoreError::Changed);
            }
        }
        self.revision += 1;
        let revision = self.revision;
        let mut replaced = Vec::with_capacity(writes.len());
        for Write { key, action, .. } in writes {
            let (name, before) = (name(&key), self.at(&key)?);
            let ends = before.filter(|(_, _, end)| *end > 0 && !matches!(action, Action::Keep));
            if let Some((_, _, end)) = ends {
                self.ends.remove((end, name.as_str())).map_err(unavailable)?;
            }
            match action {
                Action::Keep => {}
                Action::Delete if before.is_none() => {}
                Action::Delete => self.remove(&key, &name)?,
                Action::Put(value, ttl) => {
                    let created = before.map_or(revision, |(created, ..)| created);
                    let end = ttl.map_or(0, end_of);
                    let record = Record { created, modified: revision, end, value: &value };
                    self.values.insert(name.as_str(), record.written().as_slice()).map_err(unavailable)?;
                    if end > 0 {
                        self.ends.insert((end, name.as_str()), ()).map_err(unavailable)?;
                    }
                    self.changed.push(key);
                }
            }
            replaced.push(before.is_some());
        }
        Ok(Committed { revision, replaced })
    }

    /// Removes a value that has no end any more, with a consumer its credentials.
    fn remove(&mut self, key: &Key, name: &str) -> Result<(), StoreError> {
        self.values.remove(name).map_err(unavailable)?;
        self.changed.push(key.clone());
        if key.kind != Kind::Consumer {
            return Ok(());
        }
        let prefix = first_credential(key.id.as_str());
        let mut gone = Vec::new();
        for entry in self.values.range(prefix.as_str()..).map_err(unavailable)? {
            let (name, bytes) = entry.map_err(unavailable)?;
            if !name.value().starts_with(&prefix) {
                break;
            }
            let end = Record::read(bytes.value()).map_or(0, |record| record.end);
            gone.push((name.value().to_owned(), end));
        }
        for (name, end) in gone {
            self.values.remove(name.as_str()).map_err(unavailable)?;
            self.ends.remove((end, name.as_str())).map_err(unavailable)?;
            self.changed.extend(key_of(&name));
        }
        Ok(())
    }

    /// The revisions of a value, and when it is over.
    fn at(&self, key: &Key) -> Result<Option<(u64, u64, u64)>, StoreError> {
        let bytes = self.values.get(name(key).as_str()).map_err(unavailable)?;
        let record = bytes.as_ref().and_then(|bytes| Record::read(bytes.value()));
        Ok(record.map(|record| (record.created, record.modified, record.end)))
    }

    /// Removes what is over.
    fn expire(&mut self) -> Result<(), StoreError> {
        let now = now();
        while let Some((end, name)) = self.first_end()?
            && end <= now
        {
            self.ends.remove((end, name.as_str())).map_err(unavailable)?;
            match key_of(&name) {
                Some(key) => self.remove(&key, &name)?,
                None => drop(self.values.remove(name.as_str()).map_err(unavailable)?),
            }
        }
        Ok(())
    }

    fn first_end(&self) -> Result<Option<(u64, String)>, StoreError> {
        let first = self.ends.first().map_err(unavailable)?;
        Ok(first.map(|(key, _)| (key.value().0, key.value().1.to_owned())))
    }
}
