//! An etcd with APISIX's layout of keys, so that gateways of both kinds share one cluster.
//!
//! One thread speaks to it: it reads everything below the prefix once, then follows the changes by one watch (`follow`), and
//! sends what others ask for. What is known of values is their revisions (`mirror`); the values themselves go to whoever takes
//! the changes, and to a file from which a gateway starts while etcd is away (`last_good`).

mod follow;
mod link;
mod messages;
mod mirror;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::Callout;
use sixfold_core::plugin::grpc::Status;
use tokio::sync::{mpsc, watch};

pub use self::link::client_tls;
use self::link::{Link, Repeat, words};
use self::messages::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, Request, RequestOp, Response, TxnRequest, TxnResponse,
};
use self::mirror::{Mirror, Pending, Snapshot, kept, unsigned};
use super::last_good::{Batch, Found, LastGood};
use super::lent::Lent;
use super::{Action, Change, Committed, Document, Kept, Key, Notify, Sink, Store, StoreError, Watch, Write};
use crate::config::{EnabledPlugins, EtcdConfig};
use crate::resource::Kind;

/// How long a start waits for etcd where there is something to serve without it.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a write waits for the watch to tell of it, beside being done.
const ECHO: Duration = Duration::from_secs(1);
/// Changes of one transaction: etcd takes 128 (`--max-txn-ops`), and the end of a consumer is two.
const MAX_CHANGES: usize = 64;
/// Questions that wait for the thread: each of a caller that waits for the answer.
const JOBS: usize = 1024;

/// What is done on the store's thread.
type Job = Box<dyn FnOnce(Arc<Shared>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// How a gateway stands to the etcd.
#[derive(Clone)]
pub struct EtcdOptions {
    /// How it is reached.
    pub etcd: EtcdConfig,
    /// `apisix.ssl.ssl_trusted_certificate`; `None` for the system's.
    pub trusted: Option<PathBuf>,
    /// Whether it may serve nothing until etcd is there: nobody writes through it, who would want to be told.
    pub may_wait: bool,
    /// Whether it makes APISIX's directories and tells its list of plugins.
    pub writes: bool,
    /// Whether the list of plugins that is kept there counts.
    pub follows_plugins: bool,
    /// The plugins that config.yaml lists, if it does; else those in the list stay.
    pub plugins: EnabledPlugins,
}

/// Resources in an etcd.
pub struct EtcdStore {
    shared: Arc<Shared>,
    /// `None` while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
}

struct Shared {
    link: Link,
    prefix: String,
    timeout: Duration,
    watch_timeout: Duration,
    resync_delay: Duration,
    writes: bool,
    plugins: EnabledPlugins,
    mirror: Mutex<Mirror>,
    last_good: Option<LastGood>,
    /// Everything is to be read again.
    again: tokio::sync::Notify,
    /// The revision up to which everything is known, while changes are followed.
    reached: watch::Sender<Option<u64>>,
    first: Mutex<Option<Sender<Result<(), Status>>>>,
    /// What was said of it last.
    outage: Mutex<Option<String>>,
}

impl EtcdStore {
    /// Reads everything below the prefix. While etcd is not there, that is what the file at `path` has; without such a file it
    /// is an error, or nothing to begin with where the options say so. Without a path nothing is kept.
    ///
    /// # Errors
    /// Certificates that can't be used, and an etcd that is not reached, with the field of `deployment.etcd`.
    pub fn open(
        options: EtcdOptions,
        path: Option<&Path>,
        callout: &Arc<dyn Callout>,
    ) -> Result<EtcdStore, ConfigError> {
        let EtcdOptions { etcd, trusted, may_wait, writes, follows_plugins, plugins } = options;
        let link = Link::new(&etcd, trusted.as_deref(), callout)?;
        let kept = path.and_then(|path| {
            let opened = LastGood::open(path, &etcd.prefix).inspect_err(|reason| {
                tracing::warn!(reason, "what is read of etcd is not kept for the next start");
            });
            opened.ok()
        });
        let (last_good, found) = kept.unzip();
        let found = found.flatten();
        let mut mirror = Mirror::new(follows_plugins);
        let is_kept = found.is_some();
        if let Some(Found { values, plugins, revision, cluster }) = found {
            mirror.begin_with(Snapshot { values, plugins, revision, cluster, ..Snapshot::default() });
        }
        let (first, outcomes) = channel();
        let shared = Arc::new(Shared {
            link,
            prefix: etcd.prefix.clone(),
            timeout: etcd.timeout,
            watch_timeout: etcd.watch_timeout,
            resync_delay: etcd.resync_delay,
            writes,
            plugins,
            mirror: Mutex::new(mirror),
            last_good,
            again: tokio::sync::Notify::new(),
            reached: watch::Sender::new(None),
            first: Mutex::new(Some(first)),
            outage: Mutex::new(None),
        });
        let jobs = start(shared.clone()).map_err(|error| ConfigError::new(error.to_string()))?;
        let store = EtcdStore { shared, jobs: Some(jobs) };
        let deadline = Instant::now() + PATIENCE;
        let mut failed = 0;
        loop {
            let outcome = match is_kept {
                true => outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
                false => outcomes.recv().ok(),
            };
            match outcome {
                Some(Ok(())) => return Ok(store),
                None if is_kept => {
                    tracing::warn!("etcd is not reached: serving what was read of it last");
                    return Ok(store);
                }
                Some(Err(status)) => {
                    failed += 1;
                    if failed <= etcd.startup_retry || is_kept {
                        continue;
                    }
                    if may_wait {
                        return Ok(store);
                    }
                    let reason = format!("{}: {}", words(&status), status.message);
                    return Err(ConfigError::field("host", reason));
                }
                None => return Err(ConfigError::new("the thread of the store has ended")),
            }
        }
    }

    fn ask<T, F>(&self, job: impl FnOnce(Arc<Shared>) -> F + Send + 'static) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + 'static,
    {
        let ended = || StoreError::Unavailable("the store is closed".to_owned());
        let (answer, answered) = sync_channel(1);
        let job: Job = Box::new(move |shared| {
            let done = job(shared);
            // Whoever asked waits for it.
            Box::pin(async move { drop(answer.send(done.await)) })
        });
        self.jobs.as_ref().ok_or_else(ended)?.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                StoreError::Unavailable("too many wait for etcd".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Drop for EtcdStore {
    /// Ends the thread, and does not wait for what etcd owes it. What is known is kept for the next start.
    fn drop(&mut self) {
        self.jobs = None;
        self.shared.last_good.iter().for_each(LastGood::close);
    }
}

/// Starts the thread that speaks to etcd.
fn start(shared: Arc<Shared>) -> std::io::Result<mpsc::Sender<Job>> {
    let (jobs, mut queue) = mpsc::channel::<Job>(JOBS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("etcd".to_owned()).spawn(move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.spawn_local(follow::follow(shared.clone()));
        runtime.block_on(tasks.run_until(async move {
            while let Some(job) = queue.recv().await {
                tokio::task::spawn_local(job(shared.clone()));
            }
        }));
    })?;
    Ok(jobs)
}

/// What paths of a consumer's credentials begin with, below the prefix.
fn credentials_path(consumer: &str) -> String {
    format!("{}/{consumer}/credentials/", Kind::Consumer.section())
}

impl Shared {
    /// The range of all keys whose paths below the prefix begin like this; the path ends with `/` or is empty.
    fn range(&self, path: &str) -> (Vec<u8>, Vec<u8>) {
        let from = format!("{}/{path}", self.prefix).into_bytes();
        let mut end = from.clone();
        if let Some(last) = end.last_mut() {
            // What follows `/`.
            *last += 1;
        }
        (from, end)
    }

    /// What a key is called below the prefix.
    fn path_of(&self, key: &[u8]) -> Option<String> {
        let key = std::str::from_utf8(key).ok()?;
        Some(key.strip_prefix(&*self.prefix)?.strip_prefix('/')?.to_owned())
    }

    fn key(&self, key: &Key) -> Vec<u8> {
        key.path(&self.prefix).into_bytes()
    }

    /// Passes changes on: to the file, and to whoever waits for some.
    fn tell(&self, changed: Batch) {
        let revision = changed.revision;
        if let Some(file) = &self.last_good {
            file.keep(changed, || self.mirror.lock().keys());
        }
        self.notify();
        // Last: whoever waits for a write to be told looks then.
        self.reached.send_modify(|reached| *reached = reached.map(|_| revision));
    }

    /// Has those who watch look.
    fn notify(&self) {
        let notify = self.mirror.lock().notify.clone();
        notify.iter().for_each(|notify| notify());
    }

    /// Whether changes come by themselves now.
    fn set_following(&self, follows: bool) {
        let revision = self.mirror.lock().revision;
        self.reached.send_replace(follows.then_some(revision));
    }

    /// Says what has become of asking, once for each outage, and to whoever waits for the start.
    fn outcome(&self, outcome: Result<(), &Status>) {
        let mut outage = self.outage.lock();
        let is_other = outage.is_some() != outcome.is_err();
        let told = outcome.map_err(|status| format!("{}: {}", words(status), status.message)).err();
        match &told {
            Some(reason) if outage.is_none() => {
                tracing::warn!(reason, "etcd is not followed, what it said last stays")
            }
            None if outage.is_some() => tracing::info!("etcd is followed again"),
            _ => {}
        }
        *outage = told;
        drop(outage);
        if is_other {
            self.notify();
        }
        let mut first = self.first.lock();
        if let Some(waiting) = &*first
            && (waiting.send(outcome.map_err(Status::clone)).is_err() || outcome.is_ok())
        {
            *first = None;
        }
    }

    async fn get(&self, key: Vec<u8>) -> Result<Option<Kept>, StoreError> {
        let question = RangeRequest { key, ..RangeRequest::default() };
        let answer: RangeResponse = self.link.ask("/etcdserverpb.KV/Range", &question, Repeat::Safe).await?;
        Ok(answer.kvs.into_iter().next().map(kept))
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        let section = match kind {
            Kind::Credential => Kind::Consumer.section(),
            kind => kind.section(),
        };
        let mut all = self.below(&format!("{section}/")).await?;
        all.retain(|(key, _)| key.kind == kind);
        Ok(all)
    }

    /// The resources whose paths begin like this.
    async fn below(&self, path: &str) -> Result<Vec<(Key, Kept)>, StoreError> {
        let (key, range_end) = self.range(path);
        let question = RangeRequest { key, range_end, ..RangeRequest::default() };
        let answer: RangeResponse = self.link.ask("/etcdserverpb.KV/Range", &question, Repeat::Safe).await?;
        let named = |kv: messages::KeyValue| Some((Key::of_path(&self.path_of(&kv.key)?)?, kept(kv)));
        Ok(answer.kvs.into_iter().filter_map(named).collect())
    }

    /// Does some of a commit in one transaction.
    async fn transact(&self, writes: &[Write]) -> Result<Committed, StoreError> {
        let (mut compare, mut success) = (Vec::new(), Vec::new());
        // What ends with a consumer, behind what is said of it by name: each of those tells whether it was there.
        let mut behind = Vec::new();
        // Of each write, whose answer tells what was there.
        let mut told_by = Vec::new();
        for Write { key, action, expected } in writes {
            let path = self.key(key);
            if let Some(expected) = expected {
                let expected = i64::try_from(*expected).unwrap_or(i64::MAX);
                compare.push(Compare::at(path.clone(), expected));
            }
            let place = success.len();
            let mut request = |request| success.push(RequestOp { request: Some(request) });
            match action {
                Action::Put(value, ttl) => {
                    let lease = match ttl {
                        Some(ttl) => self.lease(*ttl).await?,
                        None => 0,
                    };
                    request(Request::Put(PutRequest {
                        key: path,
                        value: value.clone(),
                        lease,
                        prev_kv: true,
                    }));
                }
                Action::Delete => {
                    request(Request::Delete(DeleteRangeRequest { key: path, range_end: Vec::new() }));
                    if key.kind == Kind::Consumer {
                        let (key, range_end) = self.range(&credentials_path(key.id.as_str()));
                        let of_consumer = Request::Delete(DeleteRangeRequest { key, range_end });
                        behind.push(RequestOp { request: Some(of_consumer) });
                    }
                }
                Action::Keep => {}
            }
            told_by.push((!matches!(action, Action::Keep)).then_some(place));
        }
        success.append(&mut behind);
        let question = TxnRequest { compare, success };
        let answer: TxnResponse = self.link.ask("/etcdserverpb.KV/Txn", &question, Repeat::Once).await?;
        if !answer.succeeded {
            return Err(StoreError::Changed);
        }
        let revision = unsigned(answer.header.unwrap_or_default().revision);
        let mut changed = false;
        let was_there = answer.responses.into_iter().map(|response| match response.response {
            Some(Response::Put(put)) => {
                changed = true;
                put.prev_kv.is_some()
            }
            Some(Response::Delete(delete)) => {
                changed |= delete.deleted > 0;
                delete.deleted > 0
            }
            None => false,
        });
        let was_there: Vec<bool> = was_there.collect();
        // What is kept is where it was expected.
        let of = |place: Option<usize>| place.is_none_or(|place| was_there.get(place) == Some(&true));
        let replaced = told_by.into_iter().map(of).collect();
        if changed {
            self.until_told(revision).await;
        }
        Ok(Committed { revision, replaced })
    }

    /// Waits until changes up to a revision are among those that can be looked at, if any come now.
    async fn until_told(&self, revision: u64) {
        let mut reached = self.reached.subscribe();
        let is_told = |reached: &Option<u64>| reached.is_none_or(|reached| reached >= revision);
        // A write that was done is not undone for it.
        let _ = tokio::time::timeout(ECHO, reached.wait_for(is_told)).await;
    }

    async fn lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let question = LeaseGrantRequest { ttl: i64::try_from(seconds.max(1)).unwrap_or(i64::MAX) };
        // One that nobody hears of ends by itself.
        let path = "/etcdserverpb.Lease/LeaseGrant";
        let answer: LeaseGrantResponse = self.link.ask(path, &question, Repeat::Safe).await?;
        Ok(answer.id)
    }

    async fn next_id(&self) -> Result<u64, StoreError> {
        let key = format!("{}/gen_id", self.prefix).into_bytes();
        let question = PutRequest { key, value: "1".into(), ..PutRequest::default() };
        // Numbers may be left out.
        let answer: PutResponse = self.link.ask("/etcdserverpb.KV/Put", &question, Repeat::Safe).await?;
        Ok(unsigned(answer.header.unwrap_or_default().revision))
    }
}

/// Bits of a revision of a change that are the cluster's.
const OWN_BITS: u32 = 48;

/// A revision of the cluster as one that no other cluster has, which the address may lead to later.
fn of_generation(revision: u64, generation: u64) -> u64 {
    revision.wrapping_add(generation << OWN_BITS)
}

/// The cluster's own again.
fn of_cluster(revision: u64) -> u64 {
    revision & ((1 << OWN_BITS) - 1)
}

impl Store for EtcdStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let mut mirror = self.shared.mirror.lock();
        let Pending { values, plugins, anew } = mirror.pending();
        let generation = mirror.generation;
        drop(mirror);
        if let Some(plugins) = plugins {
            sink.plugins(plugins);
        }
        if anew {
            sink.anew();
        }
        for (key, kept) in values {
            sink.change(Change {
                revision: kept.as_ref().map_or(0, |kept| of_generation(kept.modified, generation)),
                order: kept.as_ref().map_or(0, |kept| kept.created),
                value: kept.map(|kept| Document::json(kept.value)),
                key,
                takes_place: false,
            });
        }
        Ok(Vec::new())
    }

    fn shown_revision(&self, revision: u64) -> u64 {
        of_cluster(revision)
    }

    fn away(&self) -> Option<String> {
        self.shared.outage.lock().clone()
    }

    /// The values are not held here: they are read again, as soon as etcd is there.
    fn everything(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        self.shared.mirror.lock().ask_anew();
        self.shared.again.notify_one();
        if self.shared.reached.borrow().is_none() {
            tracing::warn!(
                "etcd is not followed: what config.yaml says of plugins takes effect when it is again"
            );
        }
        self.changes(sink)
    }

    fn watch(&self, notify: Notify) -> std::io::Result<Watch> {
        let waiting = {
            let mut mirror = self.shared.mirror.lock();
            mirror.notify = Some(notify.clone());
            // That there is nothing is news, too, for whoever waits for a configuration.
            mirror.has_pending() || mirror.is_loaded
        };
        if waiting {
            notify();
        }
        Ok(Box::new(Watching(self.shared.clone())))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        let key = self.shared.key(key);
        self.ask(|shared| async move { shared.get(key).await })
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        self.ask(move |shared| async move { shared.list(kind).await })
    }

    fn credentials(&self, consumer: &str) -> Result<Vec<(Key, Kept)>, StoreError> {
        let path = credentials_path(consumer);
        self.ask(|shared| async move { shared.below(&path).await })
    }

    /// More writes than etcd takes at once are several transactions, that of the first write last: it is what is answered.
    fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.ask(move |shared| async move {
            let mut parts = writes.chunks(MAX_CHANGES);
            let Some(first) = parts.next() else { return shared.transact(&[]).await };
            let mut replaced = Vec::new();
            for part in parts {
                replaced.extend(shared.transact(part).await?.replaced);
            }
            let mut committed = shared.transact(first).await?;
            committed.replaced.extend(replaced);
            Ok(committed)
        })
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        self.ask(|shared| async move { shared.next_id().await })
    }

    fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    fn is_loaded(&self) -> bool {
        self.shared.mirror.lock().is_loaded
    }

    /// What was read last is kept by one process alone.
    fn lend(&self, by: Instant) -> Result<Lent, StoreError> {
        Ok(self.shared.last_good.as_ref().map_or_else(Lent::nothing, |file| file.lend(by)))
    }
}

struct Watching(Arc<Shared>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.mirror.lock().notify = None;
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "resources in etcd below {}", self.shared.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `etcd_modify_indexes` was 281474976710660 for revision 4.
    #[test]
    fn people_are_shown_the_cluster_s_own_revision() {
        let change = of_generation(4, 1);
        assert_ne!(change, 4);
        assert_eq!((of_cluster(change), of_cluster(of_generation(7, 3))), (4, 7));
    }
}
