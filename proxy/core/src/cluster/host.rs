//! What is known of an endpoint while it runs. What is configured of it belongs to [`super::Member`].

use super::counted::Counters;
use super::{Address, Counts, Limits, Reported, Seen};
use bitflags::bitflags;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How an endpoint counts for the balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Takes traffic when the healthy ones are too few.
    Degraded,
    /// Takes none.
    Unhealthy,
    /// Takes none and does not count among the endpoints.
    Excluded,
}

bitflags! {
    /// Reasons against an endpoint; any one is enough. Those of discovery are the member's, the others are set
    /// on the host by who found them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Reasons: u32 {
        /// The active checker failed it.
        const ACTIVE_CHECK = 1;
        /// Outlier detection or APISIX's passive check ejected it.
        const EJECTED = 2;
        /// Not checked yet: excluded.
        const PENDING_CHECK = 4;
        /// A check says degraded.
        const DEGRADED_CHECK = 8;
        /// Discovery says unhealthy or timeout.
        const DISCOVERY = 16;
        /// Discovery says degraded.
        const DEGRADED_DISCOVERY = 32;
        /// Discovery says draining: excluded.
        const DRAINING = 64;
        /// A check was answered with `x-envoy-immediate-health-check-fail`: excluded.
        const EXCLUDED_CHECK = 128;
    }
}

impl Reasons {
    /// How an endpoint counts that has these against it.
    pub fn health(self) -> Health {
        if self.intersects(Reasons::DRAINING | Reasons::PENDING_CHECK | Reasons::EXCLUDED_CHECK) {
            Health::Excluded
        } else if self.intersects(Reasons::DISCOVERY | Reasons::ACTIVE_CHECK | Reasons::EJECTED) {
            Health::Unhealthy
        } else if self.intersects(Reasons::DEGRADED_CHECK | Reasons::DEGRADED_DISCOVERY) {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }
}

/// An endpoint in use. It keeps its identity, and with it connections, counters and health, for as long as its
/// address and name stay in the cluster, whatever else is configured of it.
#[derive(Debug)]
pub struct Host {
    /// Number in this process, never used again: the key of connection pools.
    pub id: u64,
    /// Where it listens.
    pub address: Address,
    /// Name for Host, SNI and hashing.
    pub hostname: Arc<str>,
    /// `ip:port` or the path, ready for logs and hash keys.
    pub label: Arc<str>,
    /// What health checkers and outlier detection have against it, [`REMOVED`] and [`DEPARTING`].
    reasons: AtomicU32,
    /// Requests under way, over all workers.
    pub active_requests: AtomicU32,
    /// Connections open or being opened, over all workers, where the cluster limits those of each endpoint.
    pub(super) reserved_connections: AtomicU32,
    /// Connections open, over all workers.
    pub active_connections: AtomicU32,
    /// Requests ever sent.
    pub total_requests: AtomicU64,
    /// Requests that wait for a connection to it, over all workers.
    pub pending_requests: AtomicU32,
    /// Requests that it answered with a status below 500 (`rq_success`).
    pub succeeded_requests: AtomicU64,
    /// Requests that failed, by its own answer or for want of one (`rq_error`).
    pub failed_requests: AtomicU64,
    /// Those of them that took too long (`rq_timeout`).
    pub timed_out_requests: AtomicU64,
    /// Connections ever opened.
    pub total_connections: AtomicU64,
    /// Connections that failed.
    pub failed_connections: AtomicU64,
    /// See [`Host::ewma`]; most hosts have none.
    ewma: OnceLock<Box<Mutex<Score>>>,
    /// See [`Host::age`].
    started: AtomicU64,
    /// What it has reported, where anybody wants to know.
    reported: OnceLock<Box<Reported>>,
    /// See [`Host::counts`].
    counters: Counters,
}

/// A score and the moment of its last update.
pub(crate) type Score = (f64, Option<Instant>);

/// Milliseconds since a moment of this process; never 0.
pub(super) fn millis(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let elapsed = now.saturating_duration_since(*START).as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX - 1) + 1
}

/// It has left its cluster; beside the bits of [`Reasons`], since there are many hosts.
const REMOVED: u32 = 1 << 31;
/// It has asked to be left alone, and whoever checks it has not seen that yet.
const DEPARTING: u32 = 1 << 30;

/// How often it has been found ill, beside the same: by active checks and as an outlier.
const FALLS: u32 = DEPARTING - FALL;
const FALL: u32 = 1 << 8;

static NEXT_HOST: AtomicU64 = AtomicU64::new(1);

impl Host {
    /// A host that nothing is known of yet.
    pub(super) fn new(address: Address, hostname: Arc<str>) -> Host {
        Host {
            id: NEXT_HOST.fetch_add(1, Relaxed),
            label: address.to_string().into(),
            address,
            hostname,
            reasons: AtomicU32::new(0),
            active_requests: AtomicU32::new(0),
            reserved_connections: AtomicU32::new(0),
            active_connections: AtomicU32::new(0),
            total_requests: AtomicU64::new(0),
            pending_requests: AtomicU32::new(0),
            succeeded_requests: AtomicU64::new(0),
            failed_requests: AtomicU64::new(0),
            timed_out_requests: AtomicU64::new(0),
            total_connections: AtomicU64::new(0),
            failed_connections: AtomicU64::new(0),
            ewma: OnceLock::new(),
            started: AtomicU64::new(millis(Instant::now())),
            reported: OnceLock::new(),
            counters: Counters::default(),
        }
    }

    /// What is counted of it, where APISIX's checks are.
    pub fn counts(&self) -> Counts {
        self.counters.now()
    }

    /// Counts what was seen of it; tells whether it has become usable by that, or ceased to be. The reason against it is
    /// its checker's to set.
    pub fn count(&self, seen: Seen, limits: &Limits) -> bool {
        self.counters.count(seen, limits)
    }

    /// Forgets what was counted of it.
    pub fn forget_counts(&self) {
        self.counters.forget();
    }

    /// How long it has been there, and since the last time that active checks found it well again: slow start
    /// counts from there (`lastHcPassTime` in Envoy).
    pub fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.started.load(Relaxed)))
    }

    /// Begins to count its age anew.
    pub(crate) fn start(&self, now: Instant) {
        self.started.store(millis(now), Relaxed);
    }

    /// APISIX's ewma: score in milliseconds and the moment of its last update.
    pub fn ewma(&self) -> &Mutex<Score> {
        self.ewma.get_or_init(Box::default)
    }

    /// What it has reported of its load; `None` where that was never of any matter.
    pub fn reported(&self) -> Option<&Reported> {
        self.reported.get().map(|reported| &**reported)
    }

    /// The same, from now on of matter.
    pub(super) fn reporting(&self) -> &Reported {
        self.reported.get_or_init(Box::default)
    }

    /// What checkers have against it now.
    pub fn reasons(&self) -> Reasons {
        Reasons::from_bits_truncate(self.reasons.load(Relaxed))
    }

    /// Sets or clears reasons, and leaves others as they are, whoever sets those at the same time; tells
    /// whether that changed anything. Call [`super::Cluster::refresh`] afterwards.
    pub fn set_reason(&self, reason: Reasons, on: bool) -> bool {
        let bits = reason.bits();
        let before = match on {
            true => self.reasons.fetch_or(bits, Relaxed),
            false => self.reasons.fetch_and(!bits, Relaxed),
        };
        let after = if on { before | bits } else { before & !bits };
        if before & !after & Reasons::ACTIVE_CHECK.bits() != 0 {
            self.start(Instant::now());
        }
        if after & !before & (Reasons::ACTIVE_CHECK | Reasons::EJECTED).bits() != 0 {
            let fall = |now: u32| Some(now & !FALLS | (now & FALLS).wrapping_add(FALL) & FALLS);
            let _ = self.reasons.fetch_update(Relaxed, Relaxed, fall);
        }
        before != after
    }

    /// A number that changes each time that active checks fail it and that it is ejected: connections from before
    /// carry no further request (Envoy's `ClusterManagerImpl::postThreadLocalHealthFailure`).
    #[inline]
    pub fn falls(&self) -> u32 {
        self.reasons.load(Relaxed) & FALLS
    }

    /// Whether the cluster in force no longer has it: it is given no more requests, and its connections end
    /// when they are idle. An endpoint that comes back before the last of them has ended is itself again.
    #[inline]
    pub fn is_removed(&self) -> bool {
        self.reasons.load(Relaxed) & REMOVED != 0
    }

    /// Notes that it has asked to be left alone; tells whether that is news to whoever checks it.
    pub(super) fn depart(&self) -> bool {
        let left = (Reasons::ACTIVE_CHECK | Reasons::EXCLUDED_CHECK).bits();
        let now = self.reasons.load(Relaxed);
        // Every answer of an endpoint that leaves says so.
        let known = now & DEPARTING != 0 || now & left == left;
        !known && self.reasons.fetch_or(DEPARTING, Relaxed) & DEPARTING == 0
    }

    /// Whether it has asked to be left alone since the last call.
    pub fn take_departure(&self) -> bool {
        self.reasons.load(Relaxed) & DEPARTING != 0
            && self.reasons.fetch_and(!DEPARTING, Relaxed) & DEPARTING != 0
    }

    /// Notes whether the cluster in force has it.
    pub(crate) fn set_removed(&self, removed: bool) {
        match removed {
            true => self.reasons.fetch_or(REMOVED, Relaxed),
            false => self.reasons.fetch_and(!REMOVED, Relaxed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host::new(Address::Ip(([127, 0, 0, 1], 1).into()), "".into())
    }

    /// A load and a store in place of one operation lost what another thread set between them.
    #[test]
    fn two_threads_never_undo_each_others_reasons() {
        let host = host();
        let rounds = 100_000;
        std::thread::scope(|scope| {
            for reason in [Reasons::ACTIVE_CHECK, Reasons::EJECTED] {
                let host = &host;
                scope.spawn(move || {
                    for _ in 0..rounds {
                        assert!(host.set_reason(reason, true) && host.reasons().contains(reason));
                        assert!(host.set_reason(reason, false) && !host.reasons().contains(reason));
                    }
                });
            }
        });
        assert!(host.reasons().is_empty());
    }

    /// Its age was that of the host, whatever checks had found of it: it came back with its whole weight.
    #[test]
    fn an_endpoint_that_is_well_again_is_new() {
        let host = host();
        host.started.store(0, Relaxed);
        for other in [Reasons::EJECTED, Reasons::PENDING_CHECK, Reasons::DEGRADED_CHECK] {
            assert!(host.set_reason(other, true) && host.set_reason(other, false));
        }
        host.set_reason(Reasons::ACTIVE_CHECK, true);
        assert_eq!(host.started.load(Relaxed), 0);
        host.set_reason(Reasons::ACTIVE_CHECK, false);
        assert_ne!(host.started.load(Relaxed), 0);
    }

    #[test]
    fn falls_are_counted_without_end_and_touch_nothing_else() {
        let host = host();
        let (mut before, all) = (host.falls(), Reasons::all() - Reasons::ACTIVE_CHECK);
        host.set_removed(true);
        assert!(host.set_reason(Reasons::DRAINING, true) && host.falls() == before, "it is no failure");
        for reason in [Reasons::EJECTED, Reasons::ACTIVE_CHECK, Reasons::EJECTED] {
            assert!(host.set_reason(reason, true) && host.falls() != before);
            before = host.falls();
            assert!(!host.set_reason(reason, true) && host.set_reason(reason, false));
            assert_eq!(host.falls(), before);
        }
        host.reasons.fetch_or(FALLS | all.bits(), Relaxed);
        assert!(host.set_reason(Reasons::ACTIVE_CHECK, true));
        assert_eq!((host.falls(), host.reasons(), host.is_removed()), (0, Reasons::all(), true));
        assert!(!host.take_departure());
    }

    #[test]
    fn any_reason_is_enough_and_the_gravest_counts() {
        let host = host();
        assert!(!host.set_reason(Reasons::EJECTED, false));
        for (reason, health) in [
            (Reasons::DEGRADED_CHECK, Health::Degraded),
            (Reasons::EJECTED, Health::Unhealthy),
            (Reasons::PENDING_CHECK, Health::Excluded),
        ] {
            assert!(host.set_reason(reason, true) && !host.set_reason(reason, true));
            assert_eq!(host.reasons().health(), health);
        }
    }
}
