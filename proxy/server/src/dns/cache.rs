//! Answers that are shared.

use super::entry::{Entry, Member, Reading, Subscriber};
use super::files::{self, File, Names};
use super::pace::Pace;
use super::resolver::{Resolver, System};
use super::{Answer, DnsError, Question, ResolverConfig};
use crate::deadline::after;
use crate::refresh::refresh_every;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sixfold_core::cluster::DnsServers;
use sixfold_core::metrics::Registry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

sixfold_core::stat_block! {
    /// Questions, under the names that those of Envoy's resolver have (`dns.cares.`).
    pub struct DnsCounts {
        counters: [resolve_total, not_found, get_addr_failure],
        gauges: [pending_resolutions],
        histograms: [],
        zeros: [Counter "reinits", Counter "timeouts"],
    }
}

/// Names that nobody subscribes to, which are kept until their answers are no longer good: those that requests bring.
/// Envoy's `max_hosts` of a DNS cache.
const MAX_ON_DEMAND: usize = 1024;

/// Answers to questions about names, each asked once for all who want to know. Cloning shares it.
///
/// Those who subscribe are told of every answer, and their names are asked for again and again. Those who look a name
/// up get the answer that is good, or wait for the question that is under way. Questions are asked on a thread of the
/// cache's own: no worker does.
#[derive(Clone)]
pub struct DnsCache(pub(super) Arc<Inner>);

pub(super) struct Inner {
    config: ResolverConfig,
    runtime: Handle,
    hosts: ArcSwap<Names>,
    system: ArcSwap<System>,
    state: Mutex<State>,
    counts: OnceLock<DnsCounts>,
    /// Ends the thread.
    _thread: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Question, Slot>,
    /// Entries without subscribers, the oldest first.
    idle: BTreeMap<u64, Arc<Entry>>,
    /// Those that some entry asks.
    resolvers: HashMap<Option<Arc<DnsServers>>, Weak<Resolver>>,
    numbers: u64,
}

struct Slot {
    entry: Arc<Entry>,
    /// Its place among those without subscribers.
    idle: Option<u64>,
}

/// Somebody's interest in a name; it ends when this is dropped.
pub(super) struct Subscription {
    cache: Arc<Inner>,
    entry: Arc<Entry>,
    number: u64,
}

impl DnsCache {
    /// A cache with a thread of its own, which ends with the last of its clones.
    ///
    /// # Errors
    /// [`DnsError::Setup`] when the thread can't be started.
    pub fn start(config: ResolverConfig) -> Result<DnsCache, DnsError> {
        let setup = |error: std::io::Error| DnsError::Setup(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(setup)?;
        let handle = runtime.handle().clone();
        let (alive, end) = oneshot::channel::<()>();
        let asking = move || drop(runtime.block_on(end));
        std::thread::Builder::new().name("dns".to_owned()).spawn(asking).map_err(setup)?;
        Ok(DnsCache::on(handle, config, Some(alive)))
    }

    pub(super) fn on(
        runtime: Handle,
        config: ResolverConfig,
        thread: Option<oneshot::Sender<()>>,
    ) -> DnsCache {
        let mut hosts_file = config.hosts_file.clone().map(File::new);
        let mut system_file = File::new(config.system_file.clone());
        let hosts = hosts_file.as_mut().and_then(File::look).unwrap_or_default();
        let system = system_file.look().unwrap_or_default();
        let inner = Arc::new(Inner {
            config,
            runtime,
            hosts: ArcSwap::from_pointee(files::names(&hosts)),
            system: ArcSwap::from_pointee(files::system(&system)),
            state: Mutex::default(),
            counts: OnceLock::new(),
            _thread: thread,
        });
        refresh_every("dns-files", files::LOOK, &inner, move |inner| {
            if let Some(text) = hosts_file.as_mut().and_then(File::look) {
                inner.set_hosts(files::names(&text));
            }
            if let Some(text) = system_file.look() {
                inner.set_system(files::system(&text));
            }
        });
        DnsCache(inner)
    }

    /// Has what is counted of questions shown there. Only the first call counts.
    pub fn count_in(&self, registry: &Registry) {
        let _ = self.0.counts.set(DnsCounts::new(registry, "dns.cares."));
    }

    /// The addresses of a name, from what is known if that is still good. An address stands for itself. May be
    /// dropped; the question goes on.
    ///
    /// # Errors
    /// [`DnsError`] when no server gave an answer and none is known from before, or when too many names are asked for.
    pub async fn look_up(&self, question: &Question) -> Result<Answer, DnsError> {
        if let Some(address) = question.literal() {
            let until = after(Instant::now(), self.0.config.max_ttl);
            return Ok(Answer { addresses: Arc::new([address]), until });
        }
        let mut news = {
            let mut state = self.0.state.lock();
            let entry = self.0.entry(&mut state, question, true)?;
            if entry.reading().is_fresh() {
                return entry.reading().answer();
            }
            let news = entry.listen();
            entry.want();
            news
        };
        let ended =
            |_| DnsError::Failed { name: question.name.clone(), reason: "it was given up".to_owned() };
        news.changed().await.map_err(ended)?;
        let reading = news.borrow_and_update();
        reading.answer()
    }

    /// Runs on the cache's thread.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.runtime.spawn(task));
    }

    /// Tells `subscriber` of every answer, with `tag`, for as long as what this gives is kept. What is known now comes
    /// with it, unless the question is about to be asked.
    ///
    /// # Errors
    /// [`DnsError::Failed`] when its servers can't be asked at all.
    pub(super) fn subscribe(
        &self,
        question: &Question,
        pace: Pace,
        subscriber: Weak<dyn Subscriber>,
        tag: usize,
    ) -> Result<(Subscription, Option<Reading>), DnsError> {
        let mut state = self.0.state.lock();
        let entry = self.0.entry(&mut state, question, false)?;
        state.busy(question);
        let number = state.next_number();
        // Before anybody could forget it.
        let known = entry.join(pace, Member { number, tag, subscriber });
        drop(state);
        Ok((Subscription { cache: self.0.clone(), entry, number }, known))
    }
}

impl Inner {
    pub(super) fn config(&self) -> &ResolverConfig {
        &self.config
    }

    /// What is counted of questions, where that is shown.
    pub(super) fn counts(&self) -> DnsCounts {
        self.counts.get().cloned().unwrap_or_else(DnsCounts::none)
    }

    /// The names of the hosts file.
    pub(super) fn hosts(&self) -> Arc<Names> {
        self.hosts.load_full()
    }

    /// Forgets an entry whose answer is no longer good, unless somebody needs it.
    pub(super) fn forget(&self, entry: &Entry) {
        let mut state = self.state.lock();
        if entry.forget(false) {
            state.remove(&entry.question);
        }
    }

    /// The entry of a question, made when it is new.
    fn entry(
        self: &Arc<Inner>,
        state: &mut State,
        question: &Question,
        on_demand: bool,
    ) -> Result<Arc<Entry>, DnsError> {
        if let Some(slot) = state.entries.get(question) {
            return Ok(slot.entry.clone());
        }
        if on_demand && state.idle.len() >= MAX_ON_DEMAND && !state.make_room() {
            return Err(DnsError::Busy(question.name.clone()));
        }
        let resolver = self.resolver(state, question)?;
        let entry = Arc::new(Entry::new(question.clone(), resolver));
        state.entries.insert(question.clone(), Slot { entry: entry.clone(), idle: None });
        if on_demand {
            state.rest(&entry);
        }
        drop(self.runtime.spawn(entry.clone().run(Arc::downgrade(self))));
        Ok(entry)
    }

    /// Whom to ask; the same for all questions to the same servers.
    fn resolver(&self, state: &mut State, question: &Question) -> Result<Arc<Resolver>, DnsError> {
        if let Some(resolver) = state.resolvers.get(&question.servers).and_then(Weak::upgrade) {
            return Ok(resolver);
        }
        let made = Resolver::new(&self.config, question.servers.as_deref(), &self.system.load());
        let failed = |e| DnsError::Failed { name: question.name.clone(), reason: format!("{e}") };
        let resolver = Arc::new(made.map_err(failed)?);
        state.resolvers.retain(|_, resolver| resolver.strong_count() > 0);
        state.resolvers.insert(question.servers.clone(), Arc::downgrade(&resolver));
        Ok(resolver)
    }

    /// Takes another hosts file, and asks anew for the names about which it says something else.
    pub(super) fn set_hosts(&self, names: Names) {
        let before = self.hosts.swap(Arc::new(names));
        let now = self.hosts.load();
        for slot in self.state.lock().entries.values() {
            let name = slot.entry.question.name.trim_end_matches('.');
            if before.get(name) != now.get(name) {
                slot.entry.want();
            }
        }
    }

    /// Takes other servers of the system, and asks them at once for names that the ones before did not know.
    pub(super) fn set_system(&self, system: System) {
        self.system.store(Arc::new(system));
        let mut state = self.state.lock();
        state.resolvers.clear();
        let entries: Vec<_> = state.entries.values().map(|slot| slot.entry.clone()).collect();
        for entry in entries {
            match self.resolver(&mut state, &entry.question) {
                Ok(resolver) => entry.resolver.store(resolver),
                Err(error) => tracing::warn!(%error, "the servers before go on to be asked"),
            }
            if entry.reading().addresses.is_empty() {
                entry.want();
            }
        }
    }
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Notes that somebody subscribes to a question.
    fn busy(&mut self, question: &Question) {
        let number = self.entries.get_mut(question).and_then(|slot| slot.idle.take());
        if let Some(number) = number {
            self.idle.remove(&number);
        }
    }

    /// Notes that nobody subscribes to an entry (any more).
    fn rest(&mut self, entry: &Arc<Entry>) {
        let number = self.next_number();
        if let Some(slot) = self.entries.get_mut(&entry.question) {
            slot.idle = Some(number);
            self.idle.insert(number, entry.clone());
        }
        if self.idle.len() > MAX_ON_DEMAND {
            self.make_room();
        }
    }

    /// Forgets the oldest entry that nobody needs now; tells whether there was one.
    fn make_room(&mut self) -> bool {
        let Some(entry) = self.idle.values().find(|entry| entry.forget(true)).cloned() else { return false };
        self.remove(&entry.question);
        true
    }

    fn remove(&mut self, question: &Question) {
        if let Some(number) = self.entries.remove(question).and_then(|slot| slot.idle) {
            self.idle.remove(&number);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.cache.state.lock();
        if self.entry.leave(self.number) {
            state.rest(&self.entry);
        }
    }
}

#[cfg(test)]
impl Inner {
    /// Names that are known; and how many of them nobody subscribes to.
    pub(super) fn known(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.entries.len(), state.idle.len())
    }
}
