//! Outlier detection: endpoints that fail more than others leave for a while (source/common/upstream/
//! outlier_detection_impl.cc).
//!
//! Whoever ends an attempt only counts. What follows from the counts is decided beside the workers, by whoever waits for
//! [`Outliers::wait`] and calls [`Outliers::eject`] and, every interval, [`Outliers::look`].

mod config;
mod event;
mod stats;
#[cfg(test)]
mod tests;

pub use self::config::{CAUSES, Cause, FailurePercentage, OutlierDetection, SuccessRate};
pub use self::stats::OutlierStats;

use super::{Host, HostSet, Outcome, OutcomeKind, Reasons};
use crate::fast_hash::FastMap;
use crate::metrics::{Registry, named_scope};
use arc_swap::ArcSwap;
use event::Evidence;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::Notify;

/// What is counted of a cluster's endpoints.
pub struct Outliers {
    /// As configured.
    pub config: OutlierDetection,
    stats: OutlierStats,
    /// By the host's number.
    monitors: ArcSwap<FastMap<u64, Arc<Monitor>>>,
    /// Endpoints that have reached a threshold: each as often as there are thresholds, at most.
    detected: Mutex<Vec<(Arc<Monitor>, Cause)>>,
    /// See [`Outliers::averages`].
    averages: Mutex<[Option<[f64; 2]>; 2]>,
    wake: Notify,
}

/// What is counted of an endpoint.
struct Monitor {
    host: Arc<Host>,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    external: Tally,
    local: Tally,
    /// What counts of other settings for the same endpoint share.
    ejection: Arc<Mutex<Ejection>>,
}

/// Requests since the last look.
#[derive(Default)]
struct Tally {
    total: AtomicU32,
    succeeded: AtomicU32,
    /// Percent that succeeded until the last look; `None` where there were too few to tell.
    rate: Mutex<Option<f64>>,
}

#[derive(Default)]
struct Ejection {
    /// By how much the next one is longer.
    times: u32,
    /// Until when it is gone.
    until: Option<Instant>,
    /// When it left last.
    left: Option<Instant>,
    /// When it came back last.
    returned: Option<Instant>,
}

impl Monitor {
    fn new(host: Arc<Host>, ejection: Arc<Mutex<Ejection>>) -> Monitor {
        Monitor {
            host,
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
            external: Tally::default(),
            local: Tally::default(),
            ejection,
        }
    }

    fn is_ejected(&self) -> bool {
        self.host.reasons().contains(Reasons::EJECTED)
    }

    /// Begins to count anew what `cause` counted.
    fn reset(&self, cause: Cause) {
        match cause {
            Cause::Consecutive5xx => self.consecutive_5xx.store(0, Relaxed),
            Cause::GatewayFailure => self.consecutive_gateway.store(0, Relaxed),
            Cause::LocalOrigin => self.consecutive_local.store(0, Relaxed),
            _ => {}
        }
    }
}

impl Tally {
    fn count(&self, success: bool) {
        self.total.fetch_add(1, Relaxed);
        self.succeeded.fetch_add(u32::from(success), Relaxed);
    }

    /// Requests and percent that succeeded, and counts anew.
    fn take(&self) -> (u32, f64) {
        let total = self.total.swap(0, Relaxed);
        let succeeded = self.succeeded.swap(0, Relaxed);
        (total, 100.0 * f64::from(succeeded.min(total)) / f64::from(total.max(1)))
    }
}

impl Outliers {
    /// Counts for a cluster of this name; what `previous` counted of endpoints that stay goes on.
    pub(super) fn new(
        config: &OutlierDetection,
        previous: Option<&Arc<Outliers>>,
        registry: &Registry,
        name: &str,
        goes_on: bool,
    ) -> Arc<Outliers> {
        match previous {
            Some(previous) if goes_on && previous.config == *config => return previous.clone(),
            _ => {}
        }
        let stats = match previous {
            Some(previous) if goes_on => previous.stats.clone(),
            _ => OutlierStats::new(registry, &named_scope(&["cluster", name, "outlier_detection"])),
        };
        // Attempts that are under way go on to be counted by the one before.
        let again = |(id, monitor): (&u64, &Arc<Monitor>)| {
            (*id, Arc::new(Monitor::new(monitor.host.clone(), monitor.ejection.clone())))
        };
        let monitors = previous.map(|previous| previous.monitors.load().iter().map(again).collect());
        Arc::new(Outliers {
            config: config.clone(),
            stats,
            monitors: ArcSwap::from_pointee(monitors.unwrap_or_default()),
            detected: Mutex::default(),
            averages: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Counts for these endpoints from now on.
    pub(super) fn follow(&self, set: &HostSet) {
        let before = self.monitors.load();
        let monitor = |host: &Arc<Host>| match before.get(&host.id) {
            Some(monitor) => monitor.clone(),
            None => Arc::new(Monitor::new(host.clone(), Arc::default())),
        };
        let monitors: FastMap<u64, Arc<Monitor>> =
            set.iter().map(|member| (member.host.id, monitor(&member.host))).collect();
        self.monitors.store(Arc::new(monitors));
        self.show();
    }

    fn show(&self) {
        let ejected = self.monitors.load().values().filter(|monitor| monitor.is_ejected()).count();
        self.stats.ejections_active().set(ejected as u64);
    }

    /// Counts the end of an attempt.
    pub(super) fn report(&self, host: &Host, outcome: &Outcome) {
        let monitors = self.monitors.load();
        let Some(monitor) = monitors.get(&host.id) else { return };
        let OutlierDetection { split_local, consecutive_local, .. } = self.config;
        match outcome.kind {
            // Nothing of the endpoint's.
            OutcomeKind::Cancelled | OutcomeKind::Overflow => {}
            OutcomeKind::Response => {
                if split_local {
                    monitor.consecutive_local.store(0, Relaxed);
                    monitor.local.count(true);
                }
                self.status(monitor, outcome.status);
            }
            _ if split_local => {
                monitor.local.count(false);
                self.reached(monitor, &monitor.consecutive_local, consecutive_local, Cause::LocalOrigin);
            }
            kind => self.status(monitor, kind.status()),
        }
    }

    fn status(&self, monitor: &Arc<Monitor>, status: u16) {
        monitor.external.count(status < 500);
        let OutlierDetection { consecutive_5xx, consecutive_gateway, .. } = self.config;
        match status {
            502..=504 => {
                let count = &monitor.consecutive_gateway;
                self.reached(monitor, count, consecutive_gateway, Cause::GatewayFailure);
            }
            _ => monitor.consecutive_gateway.store(0, Relaxed),
        }
        match status {
            500.. => {
                self.reached(monitor, &monitor.consecutive_5xx, consecutive_5xx, Cause::Consecutive5xx);
            }
            _ => monitor.consecutive_5xx.store(0, Relaxed),
        }
    }

    /// Counts one more; the one that makes the threshold full is told, and no later one until it was seen to.
    fn reached(&self, monitor: &Arc<Monitor>, count: &AtomicU32, threshold: u32, cause: Cause) {
        if count.fetch_add(1, Relaxed).wrapping_add(1) == threshold {
            self.detected.lock().push((monitor.clone(), cause));
            self.wake.notify_one();
        }
    }

    /// Ends when an endpoint has reached a threshold.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }

    /// Ejects what has reached a threshold; tells whether any has left.
    pub fn eject(&self, now: Instant) -> bool {
        let detected = std::mem::take(&mut *self.detected.lock());
        let mut changed = false;
        for (monitor, cause) in detected {
            if !monitor.is_ejected() {
                changed |= self.eject_one(&monitor, (cause, Evidence::InARow), now);
            }
            monitor.reset(cause);
        }
        changed
    }

    fn eject_one(&self, monitor: &Monitor, why: (Cause, Evidence), now: Instant) -> bool {
        let (cause, _) = why;
        let monitors = self.monitors.load();
        if !monitors.contains_key(&monitor.host.id) {
            return false;
        }
        self.stats.count_detected(cause);
        let active = monitors.values().filter(|monitor| monitor.is_ejected()).count();
        let percent = 100.0 * (active + 1) as f64 / monitors.len() as f64;
        let one = self.config.always_one && active == 0;
        if !one && percent > f64::from(self.config.max_ejected_percent) {
            self.stats.ejections_overflow().inc();
            return false;
        }
        self.stats.count_allowed(cause);
        if fastrand::u32(0..100) >= self.config.enforcing[cause as usize] {
            self.tell_ejection(monitor, why, false, now);
            return false;
        }
        let OutlierDetection { base_ejection, max_ejection, jitter, .. } = self.config;
        let mut ejection = monitor.ejection.lock();
        ejection.times = ejection.times.saturating_add(1);
        let time = base_ejection.saturating_mul(ejection.times).min(max_ejection);
        ejection.until = now.checked_add(time.saturating_add(jitter.mul_f64(fastrand::f64())));
        ejection.left = Some(now);
        monitor.host.set_reason(Reasons::EJECTED, true);
        self.stats.of(cause).1.inc();
        self.stats.ejections_enforced_total().inc();
        drop(ejection);
        self.tell_ejection(monitor, why, true, now);
        self.show();
        true
    }

    /// Percent of an endpoint's requests that succeeded in the last interval, from outside and of this proxy's own; `None`
    /// where they were too few, or the endpoints that had enough.
    pub fn success_rates(&self, host: &Host) -> [Option<f64>; 2] {
        let monitors = self.monitors.load();
        let monitor = monitors.get(&host.id);
        [monitor.and_then(|it| *it.external.rate.lock()), monitor.and_then(|it| *it.local.rate.lock())]
    }

    /// The mean of the endpoints' rates of success at the last look and the least that was no outlier, percent: of what
    /// endpoints and of what this proxy made of requests. -1 where too few had enough requests.
    pub fn averages(&self) -> [[f64; 2]; 2] {
        self.averages.lock().map(|of_origin| of_origin.unwrap_or([-1.0, -1.0]))
    }

    /// Looks at rates, and lets those come back whose time is over: once an interval. Tells whether any came or left.
    pub fn look(&self, now: Instant) -> bool {
        let monitors = self.monitors.load_full();
        let mut changed = false;
        for monitor in monitors.values() {
            let mut ejection = monitor.ejection.lock();
            if !monitor.is_ejected() {
                // A clean interval makes the next one shorter.
                ejection.times = ejection.times.saturating_sub(1);
            } else if ejection.until.is_none_or(|until| until <= now) {
                changed |= self.give_back(monitor, &mut ejection, now);
            }
        }
        let rates = |tally: fn(&Monitor) -> &Tally| -> Vec<_> {
            let rate = |monitor: &Arc<Monitor>| (monitor.clone(), tally(monitor).take());
            let rates = monitors.values().map(rate);
            let rates: Vec<_> = rates.filter(|(monitor, _)| !monitor.is_ejected()).collect();
            self.keep_rates(&monitors, &rates, tally);
            rates
        };
        let external = rates(|monitor| &monitor.external);
        changed |= self.compare(&external, [Cause::SuccessRate, Cause::FailurePercentage], now);
        if self.config.split_local {
            let local = rates(|monitor| &monitor.local);
            changed |= self.compare(&local, [Cause::LocalSuccessRate, Cause::LocalFailurePercentage], now);
        }
        self.show();
        changed
    }

    /// Lets an endpoint come back that has passed an active check, where that is wanted; tells whether it does.
    pub fn passed_check(&self, host: &Host) -> bool {
        let monitors = self.monitors.load();
        let wanted =
            monitors.get(&host.id).filter(|monitor| self.config.back_by_check && monitor.is_ejected());
        let changed = wanted
            .is_some_and(|monitor| self.give_back(monitor, &mut monitor.ejection.lock(), Instant::now()));
        if changed {
            self.show();
        }
        changed
    }

    /// Lets it come back.
    fn give_back(&self, monitor: &Monitor, ejection: &mut Ejection, now: Instant) -> bool {
        ejection.until = None;
        // Whoever else holds what is counted of it may have let it come back meanwhile, and told so.
        let returns = self.acquit(monitor);
        if returns {
            ejection.returned = Some(now);
            self.tell_return(monitor, ejection.times, ejection.left, now);
        }
        returns
    }

    fn acquit(&self, monitor: &Monitor) -> bool {
        for cause in [Cause::Consecutive5xx, Cause::GatewayFailure, Cause::LocalOrigin] {
            monitor.reset(cause);
        }
        monitor.host.set_reason(Reasons::EJECTED, false)
    }

    /// Keeps what is to be shown until the next look (`processSuccessRateEjections`).
    fn keep_rates(
        &self,
        all: &FastMap<u64, Arc<Monitor>>,
        rates: &[(Arc<Monitor>, (u32, f64))],
        tally: fn(&Monitor) -> &Tally,
    ) {
        all.values().for_each(|monitor| *tally(monitor).rate.lock() = None);
        let OutlierDetection { success_rate, failure_percentage, .. } = &self.config;
        let hosts = success_rate.hosts.min(failure_percentage.hosts);
        let requests = success_rate.requests.min(failure_percentage.requests).max(1);
        if all.len() >= hosts as usize {
            for (monitor, (_, rate)) in rates.iter().filter(|(_, (total, _))| *total >= requests) {
                *tally(monitor).rate.lock() = Some(*rate);
            }
        }
    }

    /// Ejects those whose success is rarer than the others', and those with too many failures.
    fn compare(&self, rates: &[(Arc<Monitor>, (u32, f64))], causes: [Cause; 2], now: Instant) -> bool {
        let [rarer, too_many] = causes;
        let SuccessRate { hosts, requests, stdev_factor } = self.config.success_rate;
        let counted: Vec<_> = rates.iter().filter(|(_, (total, _))| *total >= requests.max(1)).collect();
        let (mut changed, mut rates_seen) = (false, None);
        if !counted.is_empty() && counted.len() >= hosts as usize {
            let (mean, threshold) = threshold(counted.iter().map(|(_, (_, rate))| *rate), stdev_factor);
            rates_seen = Some([mean, threshold]);
            for (monitor, (_, rate)) in counted.iter().filter(|(_, (_, rate))| *rate < threshold) {
                let evidence = Evidence::Rarer(*rate, mean, threshold);
                changed |= self.eject_one(monitor, (rarer, evidence), now);
            }
        }
        self.averages.lock()[usize::from(rarer == Cause::LocalSuccessRate)] = rates_seen;
        let FailurePercentage { hosts, requests, threshold } = self.config.failure_percentage;
        let counted: Vec<_> = rates.iter().filter(|(_, (total, _))| *total >= requests.max(1)).collect();
        if !counted.is_empty() && counted.len() >= hosts as usize {
            let fails = |rate: f64| 100.0 - rate >= f64::from(threshold);
            for (monitor, (_, rate)) in
                counted.iter().filter(|(monitor, (_, rate))| fails(*rate) && !monitor.is_ejected())
            {
                changed |= self.eject_one(monitor, (too_many, Evidence::TooMany(*rate)), now);
            }
        }
        changed
    }

    /// Takes back everything against the endpoints: nothing is detected any more.
    pub fn end(&self) -> bool {
        let monitors = self.monitors.swap(Arc::default());
        let mut changed = false;
        for monitor in monitors.values() {
            changed |= self.acquit(monitor);
        }
        self.show();
        changed
    }
}

/// The mean of rates of success, and the least that is no outlier.
fn threshold(rates: impl Iterator<Item = f64> + Clone, stdev_factor: u32) -> (f64, f64) {
    let count = rates.clone().count().max(1) as f64;
    let mean = rates.clone().sum::<f64>() / count;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    (mean, mean - variance.sqrt() * f64::from(stdev_factor) / 1000.0)
}
