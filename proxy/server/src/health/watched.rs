//! The checks of one cluster's endpoints.

use super::CHECKED;
use super::events;
use super::probe::Target;
use super::state::{Change, State, Taken, Verdict};
use parking_lot::Mutex;
use sixfold_core::cluster::{
    Cluster, EndpointCheck, HealthCheck, HealthCheckStats, Host, HostObserver, Member, Reasons,
};
use sixfold_core::plugin::Callout;
use sixfold_core::tls::ClientTls;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long changes of health are collected before the cluster takes them: a balancer is built anew for each.
const SETTLE: Duration = Duration::from_millis(2);

/// The endpoints of a cluster that are checked.
pub(crate) struct Watched {
    cluster: Weak<Cluster>,
    /// While its cluster is a candidate: the checks of the one in force.
    before: Mutex<Option<Arc<Watched>>>,
    /// What they knew of hosts, of which some come into the cluster as it takes its place.
    known: Mutex<HashMap<u64, Known>>,
    /// The checks of the candidate that is to take the place of its cluster.
    after: Mutex<Weak<Watched>>,
    /// What a candidate's checks find is kept aside.
    in_force: AtomicBool,
    check: Arc<HealthCheck>,
    callout: Arc<dyn Callout>,
    pub(super) stats: HealthCheckStats,
    runtime: Handle,
    this: Weak<Watched>,
    /// By the host's number. Locked before those of `before`, never after.
    pub(super) sessions: Mutex<HashMap<u64, Session>>,
    /// Endpoints whose first check has not come to an end. Set while `sessions` is locked.
    unchecked: watch::Sender<usize>,
    scheduled: AtomicBool,
    /// Hears of endpoints that want to be left alone, once the cluster is in force.
    hearing: Mutex<Option<AbortHandle>>,
}

/// The checks of one endpoint; they end when this is dropped.
pub(super) struct Session {
    /// As it was configured last.
    member: Arc<Member>,
    known: Known,
    /// TLS towards it.
    tls: Option<Arc<ClientTls>>,
    /// `None` where the cluster in force checks it, in the same way.
    task: Option<AbortHandle>,
}

/// What is known of an endpoint that is checked in one way.
#[derive(Clone)]
struct Known {
    check: Option<Arc<EndpointCheck>>,
    state: Arc<Mutex<State>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.iter().for_each(AbortHandle::abort);
    }
}

impl Session {
    /// The same of an endpoint that may be configured anew.
    fn of(mut self, member: &Arc<Member>) -> Session {
        self.member.clone_from(member);
        self
    }
}

#[cfg(test)]
impl Session {
    /// Whether it does not leave the checks to the cluster in force.
    pub(super) fn is_running(&self) -> bool {
        self.task.is_some()
    }
}

impl Watched {
    /// Begins with the checks of a candidate; `before` are those of the cluster in force.
    pub(super) fn start(
        cluster: &Arc<Cluster>,
        check: Arc<HealthCheck>,
        before: Option<Arc<Watched>>,
        stats: HealthCheckStats,
        callout: Arc<dyn Callout>,
        runtime: Handle,
    ) -> Arc<Watched> {
        let next = Arc::new_cyclic(|this| Watched {
            cluster: Arc::downgrade(cluster),
            before: Mutex::new(before.clone()),
            known: Mutex::default(),
            after: Mutex::default(),
            in_force: AtomicBool::new(false),
            check,
            callout,
            stats,
            runtime,
            this: this.clone(),
            sessions: Mutex::default(),
            unchecked: watch::Sender::new(0),
            scheduled: AtomicBool::new(false),
            hearing: Mutex::default(),
        });
        if let Some(before) = before {
            *before.after.lock() = next.this.clone();
        }
        let observer: Arc<dyn HostObserver> = next.clone();
        cluster.observe(Arc::downgrade(&observer));
        next.hosts_changed(cluster);
        next
    }

    /// Ends when every endpoint has been checked once.
    pub(crate) async fn all_checked(&self) {
        // The sender is here.
        let _ = self.unchecked.subscribe().wait_for(|unchecked| *unchecked == 0).await;
    }

    /// Whether every endpoint has been checked once.
    pub(crate) fn is_all_checked(&self) -> bool {
        *self.unchecked.borrow() == 0
    }

    pub(super) fn is_of(&self, cluster: &Arc<Cluster>) -> bool {
        std::ptr::eq(self.cluster.as_ptr(), Arc::as_ptr(cluster))
    }

    pub(super) fn is_counted_as(&self, cluster: &Cluster) -> bool {
        self.cluster.upgrade().is_some_and(|before| Arc::ptr_eq(&before.stats, &cluster.stats))
    }

    /// Its cluster takes its place: what was found until now counts from now on.
    pub(super) fn take_over(&self) {
        let before = self.before.lock().take();
        if let Some(before) = before.as_ref().filter(|before| before.is_alike(self)) {
            *self.known.lock() = before.known();
        }
        self.in_force.store(true, Relaxed);
        if let Some(before) = &before {
            before.in_force.store(false, Relaxed);
            before.hear_no_more();
        }
        let cluster = self.cluster.upgrade();
        self.hear(cluster.as_ref().and_then(|cluster| cluster.news()));
        {
            let mut sessions = self.sessions.lock();
            for session in sessions.values_mut() {
                session.known.state.lock().show(&session.member.host);
                if let (None, Some(cluster)) = (&session.task, &cluster) {
                    session.task = Some(self.spawn(cluster, session));
                }
            }
            self.count(&sessions);
        }
        cluster.iter().for_each(|cluster| cluster.refresh());
    }

    /// Takes what workers hear of endpoints that want to be left alone.
    fn hear(&self, departures: Option<&Arc<Notify>>) {
        let Some(departures) = departures.cloned() else { return };
        let this = self.this.clone();
        let hearing = self.runtime.spawn(async move {
            while let Some(watched) = this.upgrade() {
                watched.take_departures();
                drop(watched);
                departures.notified().await;
            }
        });
        *self.hearing.lock() = Some(hearing.abort_handle());
    }

    fn hear_no_more(&self) {
        self.hearing.lock().take().iter().for_each(AbortHandle::abort);
    }

    /// Each counts as a check that failed, as in Envoy (`HealthCheckHostMonitor::setUnhealthy`).
    fn take_departures(&self) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        for member in cluster.hosts.load().iter().filter(|member| member.host.take_departure()) {
            let host = &member.host;
            let session = self.sessions.lock().get(&host.id).map(|session| session.known.state.clone());
            let left = host.reasons().contains(Reasons::ACTIVE_CHECK | Reasons::EXCLUDED_CHECK);
            let Some(state) = session.filter(|_| !left) else { continue };
            self.stats.failure().inc();
            self.stats.passive_failure().inc();
            let (verdict, mut state) = (Verdict::leave(), state.lock());
            let taken = state.take(&self.check, host, &verdict, true);
            // Whoever asks to be left alone has been checked, or need not be.
            let taken = Taken { first: false, ..taken };
            drop(state);
            self.check.events.iter().for_each(|log| events::tell(log, &self.check, member, &taken, &verdict));
            if taken.changed {
                tracing::info!(endpoint = %host.label, "an endpoint has asked to be left alone");
                self.schedule();
            }
        }
    }

    /// Whether it checks endpoints in the same way.
    fn is_alike(&self, other: &Watched) -> bool {
        self.check.fingerprint == other.check.fingerprint
    }

    fn known(&self) -> HashMap<u64, Known> {
        self.sessions.lock().iter().map(|(id, session)| (*id, session.known.clone())).collect()
    }

    /// Begins to check an endpoint, or goes on with it; leaves it to `before` when that does.
    fn begin(&self, cluster: &Cluster, member: &Arc<Member>, before: Option<&Watched>) -> Session {
        let (id, check, member) = (member.host.id, &member.check, member.clone());
        let tls = cluster.tls_of(&member).cloned();
        let lent = before.and_then(|before| Some(before.sessions.lock().get(&id)?.known.clone()));
        if let Some(known) = lent.filter(|lent| lent.check == *check) {
            return Session { member, known, tls, task: None };
        }
        let known = self.known.lock().get(&id).filter(|known| known.check == *check).cloned();
        let new = || Arc::new(Mutex::new(State::new(self.check.initial_jitter)));
        let known = known.unwrap_or_else(|| Known { check: check.clone(), state: new() });
        let mut session = Session { member, known, tls, task: None };
        session.task = Some(self.spawn(cluster, &session));
        session
    }

    fn spawn(&self, cluster: &Cluster, session: &Session) -> AbortHandle {
        let Session { member, known, tls, task: _ } = session;
        let host = &member.host;
        let (own, callout) = (known.check.as_deref(), self.callout.clone());
        let target = Target::new(cluster, &self.check, host, own, tls.clone(), callout);
        self.runtime.spawn(run(self.this.clone(), host.clone(), known.state.clone(), target)).abort_handle()
    }

    /// Takes what came of a check; the next is due then.
    fn take(&self, host: &Host, state: &Mutex<State>, verdict: &Verdict) {
        let stats = &self.stats;
        match verdict {
            Verdict::Passed { .. } => stats.success().inc(),
            Verdict::Failed { failure, .. } => {
                stats.failure().inc();
                if failure.is_silence() {
                    stats.network_failure().inc();
                }
            }
        }
        let cluster = self.cluster.upgrade();
        let mut state = state.lock();
        let in_force = self.in_force.load(Relaxed);
        let taken = state.take(&self.check, host, verdict, in_force);
        let Taken { change: kind, mut changed, first, .. } = taken;
        if let (true, Verdict::Passed { .. }, Some(outliers)) =
            (in_force, verdict, cluster.as_ref().and_then(|c| c.outliers.as_ref()))
            && !host.reasons().contains(Reasons::ACTIVE_CHECK)
        {
            changed |= outliers.passed_check(host);
        }
        let traffic = cluster.as_ref().is_some_and(|cluster| cluster.stats.upstream_cx_total().get() > 0);
        state.due = Instant::now() + state.wait(&self.check, kind, verdict.passed(), traffic);
        drop(state);
        self.tell(host, &taken, verdict);
        let name = cluster.as_ref().map(|cluster| &*cluster.config.name).unwrap_or_default();
        if let Verdict::Failed { reason, .. } = verdict
            && (first || self.check.log_failures || kind == Change::Changed)
        {
            tracing::info!(cluster = name, endpoint = %host.label, reason, "health check failed");
        } else if kind == Change::Changed {
            tracing::info!(cluster = name, endpoint = %host.label, "health check passed");
        }
        if changed || first {
            self.schedule();
        }
    }

    /// Logs what came of a check where that is wanted.
    fn tell(&self, host: &Host, taken: &Taken, verdict: &Verdict) {
        if self.check.events.is_empty() {
            return;
        }
        let member = self.sessions.lock().get(&host.id).map(|session| session.member.clone());
        let Some(member) = member else { return };
        self.check.events.iter().for_each(|log| events::tell(log, &self.check, &member, taken, verdict));
    }

    /// Takes back what was found of endpoints that are not to be checked any more.
    fn leave_alone<'a>(&self, members: impl Iterator<Item = &'a Arc<Member>>) {
        if self.in_force.load(Relaxed)
            && members.fold(false, |changed, member| member.host.set_reason(CHECKED, false) | changed)
        {
            self.schedule();
        }
    }

    /// Lets the cluster take what has changed, in a moment and all at once.
    fn schedule(&self) {
        if self.scheduled.swap(true, Relaxed) {
            return;
        }
        // Whoever goes on with what is known is told, also when this is done with.
        let Some(this) = self.this.upgrade() else { return };
        self.runtime.spawn(async move {
            tokio::time::sleep(SETTLE).await;
            this.scheduled.store(false, Relaxed);
            this.show();
        });
    }

    fn show(&self) {
        let after = self.after.lock().upgrade();
        for watched in [Some(self), after.as_deref()].into_iter().flatten() {
            watched.cluster.upgrade().iter().for_each(|cluster| cluster.refresh());
            watched.count(&watched.sessions.lock());
        }
    }

    fn count(&self, sessions: &HashMap<u64, Session>) {
        let (mut unchecked, mut healthy, mut degraded) = (0, 0, 0);
        for session in sessions.values() {
            let state = session.known.state.lock();
            unchecked += usize::from(state.is_first());
            healthy += u64::from(state.healthy);
            degraded += u64::from(state.degraded);
        }
        if self.in_force.load(Relaxed) {
            self.stats.healthy().set(healthy);
            self.stats.degraded().set(degraded);
        }
        self.unchecked.send_if_modified(|now| std::mem::replace(now, unchecked) != unchecked);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.hear_no_more();
    }
}

impl HostObserver for Watched {
    /// Checks endpoints that have come, and no longer those that have gone.
    fn hosts_changed(&self, cluster: &Cluster) {
        let hosts = cluster.hosts.load();
        let before = self.before.lock().clone().filter(|before| before.is_alike(self));
        let is_disabled = |member: &Member| member.check.as_ref().is_some_and(|check| check.disabled);
        let gone = {
            let mut sessions = self.sessions.lock();
            let mut others: HashMap<_, _> = sessions.drain().collect();
            let lent =
                |id: &u64| before.as_ref().is_some_and(|before| before.sessions.lock().contains_key(id));
            for member in hosts.iter().filter(|member| !is_disabled(member)) {
                let id = member.host.id;
                if sessions.contains_key(&id) {
                    continue;
                }
                let known = others.remove(&id).filter(|session| session.known.check == member.check);
                let known = known.map(|session| session.of(member));
                let session = match known {
                    Some(session) if session.task.is_some() || lent(&id) => session,
                    Some(mut session) => {
                        session.task = Some(self.spawn(cluster, &session));
                        session
                    }
                    None => self.begin(cluster, member, before.as_deref()),
                };
                sessions.insert(id, session);
            }
            self.count(&sessions);
            others
        };
        self.leave_alone(hosts.iter().filter(|member| is_disabled(member)));
        // What checked them for the next cluster too does so no longer.
        let after = self.after.lock().upgrade().filter(|_| !gone.is_empty());
        drop(gone);
        if let Some((after, cluster)) =
            after.and_then(|after| Some((after.clone(), after.cluster.upgrade()?)))
        {
            after.hosts_changed(&cluster);
        }
    }
}

/// Checks an endpoint again and again.
async fn run(watched: Weak<Watched>, host: Arc<Host>, state: Arc<Mutex<State>>, target: Target) {
    loop {
        let due = state.lock().due;
        tokio::time::sleep_until(due).await;
        let Some(watching) = watched.upgrade() else { return };
        watching.stats.attempt().inc();
        let check = watching.check.clone();
        drop(watching);
        let verdict = match tokio::time::timeout(check.timeout, target.check(&check)).await {
            Ok(verdict) => verdict,
            Err(_) => Some(Verdict::late()),
        };
        let Some(watching) = watched.upgrade() else { return };
        match verdict {
            Some(verdict) => watching.take(&host, &state, &verdict),
            None => state.lock().put_off(&check),
        }
    }
}
