//! Health as APISIX counts it (lua-resty-healthcheck): four counters for each node, which probes and the answers to
//! clients' requests move alike, and how far they may go.
//!
//! A success sets the failures back and a failure the successes; whichever reaches its limit decides. What is known
//! of a node is one word that belongs to its [`super::Host`], so that workers count without a lock and it outlives
//! every change of the cluster.

use super::{Address, Host, HttpProbe};
use crate::tls::ClientTls;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// How nodes are checked (APISIX's `checks`); by default nothing counts.
#[derive(Debug, Default)]
pub struct CountedChecks {
    /// Equal for checks that are configured alike.
    pub fingerprint: u64,
    /// Probes (`active`).
    pub active: ActiveCheck,
    /// What answers to clients' requests count (`passive`).
    pub passive: Limits,
    /// Whether a stream whose node could not be reached counts against that by its end, which it does where `passive` is
    /// configured. What is tried again before counts in any case.
    pub ends_count: bool,
}

impl CountedChecks {
    /// Where a node is asked how it is: its address, and its port unless probes have one of their own.
    pub fn target(&self, host: &Host) -> (String, u16) {
        let (ip, port) = match &host.address {
            Address::Ip(address) => (address.ip().to_string(), address.port()),
            other => (other.to_string(), 0),
        };
        (ip, self.active.port.unwrap_or(port))
    }
}

/// Probes of nodes.
#[derive(Debug)]
pub struct ActiveCheck {
    /// What is asked; `None` is whether they take connections (`type: tcp`).
    pub http: Option<HttpProbe>,
    /// TLS towards them (`type: https`).
    pub tls: Option<Arc<ClientTls>>,
    /// Bounds one probe, connecting included; 1 s by default.
    pub timeout: Duration,
    /// Probes under way at a time, 10 by default.
    pub concurrency: usize,
    /// Asks another port than the node's.
    pub port: Option<u16>,
    /// Host of every probe (`upstream_host` where `pass_host` is `rewrite`).
    pub host: Option<Arc<str>>,
    /// Host of nodes that have no name (`active.host`); their address by default.
    pub address_host: Option<Arc<str>>,
    /// Time from a round of probes of usable nodes to the next; `None` sends none, the default.
    pub healthy_interval: Option<Duration>,
    /// The same for nodes that are not.
    pub unhealthy_interval: Option<Duration>,
    /// What the answers count.
    pub limits: Limits,
}

impl Default for ActiveCheck {
    fn default() -> ActiveCheck {
        ActiveCheck {
            http: None,
            tls: None,
            timeout: Duration::from_secs(1),
            concurrency: 10,
            port: None,
            host: None,
            address_host: None,
            healthy_interval: None,
            unhealthy_interval: None,
            limits: Limits::default(),
        }
    }
}

/// What counts, and how many in a row decide; a limit of 0, the default, counts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Statuses that are a success.
    pub healthy_statuses: Box<[u16]>,
    /// Statuses that are a failure. Others are neither.
    pub unhealthy_statuses: Box<[u16]>,
    /// Successes until a node is healthy.
    pub successes: u8,
    /// Failures by status until it is not.
    pub http_failures: u8,
    /// Failures to connect.
    pub tcp_failures: u8,
    /// Failures to answer in time.
    pub timeouts: u8,
}

/// What was seen of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It took a connection, and that was all to be seen.
    Connection,
    /// It answered with this status.
    Status(u16),
    /// It took no connection, or broke one.
    TcpFailure,
    /// It did not answer in time.
    Timeout,
}

/// What is thought of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeHealth {
    /// It is well.
    Healthy,
    /// It has failed since, and is used.
    MostlyHealthy,
    /// It is not used, and has been well since.
    MostlyUnhealthy,
    /// It is not used.
    Unhealthy,
}

impl NodeHealth {
    /// Whether it gets requests.
    pub fn is_usable(self) -> bool {
        matches!(self, NodeHealth::Healthy | NodeHealth::MostlyHealthy)
    }

    /// As APISIX writes it.
    pub fn name(self) -> &'static str {
        match self {
            NodeHealth::Healthy => "healthy",
            NodeHealth::MostlyHealthy => "mostly_healthy",
            NodeHealth::MostlyUnhealthy => "mostly_unhealthy",
            NodeHealth::Unhealthy => "unhealthy",
        }
    }
}

/// The counters of a node, and what is thought of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Successes in a row.
    pub successes: u8,
    /// Bad statuses since the last success.
    pub http_failures: u8,
    /// Failed connections since then.
    pub tcp_failures: u8,
    /// Timeouts since then.
    pub timeouts: u8,
    /// What is thought of it.
    pub health: NodeHealth,
}

/// Beside the health of a node: its first counter is that of successes.
const SUCCESSES: u8 = 4;

impl Counts {
    /// Those of a node that nothing is known of.
    const NEW: Counts =
        Counts { successes: 0, http_failures: 0, tcp_failures: 0, timeouts: 0, health: NodeHealth::Healthy };

    /// As one word: where successes are counted there are no failures, and both share a byte.
    fn of(bits: u32) -> Counts {
        let [first, tcp_failures, timeouts, rest] = bits.to_le_bytes();
        let health = match rest & 3 {
            0 => NodeHealth::Healthy,
            1 => NodeHealth::MostlyHealthy,
            2 => NodeHealth::MostlyUnhealthy,
            _ => NodeHealth::Unhealthy,
        };
        let (successes, http_failures) = if rest & SUCCESSES != 0 { (first, 0) } else { (0, first) };
        Counts { successes, http_failures, tcp_failures, timeouts, health }
    }

    fn bits(self) -> u32 {
        let Counts { successes, http_failures, tcp_failures, timeouts, health } = self;
        let health = match health {
            NodeHealth::Healthy => 0,
            NodeHealth::MostlyHealthy => 1,
            NodeHealth::MostlyUnhealthy => 2,
            NodeHealth::Unhealthy => 3,
        };
        let (first, rest) =
            if successes > 0 { (successes, health | SUCCESSES) } else { (http_failures, health) };
        u32::from_le_bytes([first, tcp_failures, timeouts, rest])
    }

    /// They after `seen`; `None` where that counts nothing.
    fn after(self, seen: Seen, limits: &Limits) -> Option<Counts> {
        let is_in = |statuses: &[u16], status| statuses.contains(&status);
        let mut next = self;
        let (count, limit) = match seen {
            Seen::Connection => (&mut next.successes, limits.successes),
            Seen::Status(status) if is_in(&limits.healthy_statuses, status) => {
                (&mut next.successes, limits.successes)
            }
            Seen::Status(status) if is_in(&limits.unhealthy_statuses, status) => {
                (&mut next.http_failures, limits.http_failures)
            }
            Seen::Status(_) => return None,
            Seen::TcpFailure => (&mut next.tcp_failures, limits.tcp_failures),
            Seen::Timeout => (&mut next.timeouts, limits.timeouts),
        };
        *count = count.saturating_add(1);
        let decides = *count >= limit;
        let is_success = next.successes != self.successes;
        let known = if is_success { NodeHealth::Healthy } else { NodeHealth::Unhealthy };
        // Nobody counts what is known already.
        if limit == 0 || self.health == known {
            return None;
        }
        if is_success {
            next = Counts { successes: next.successes, ..Counts { health: next.health, ..Counts::NEW } };
        } else {
            next.successes = 0;
        }
        next.health = match self.health {
            _ if decides => known,
            NodeHealth::Healthy => NodeHealth::MostlyHealthy,
            NodeHealth::Unhealthy => NodeHealth::MostlyUnhealthy,
            between => between,
        };
        Some(next)
    }
}

/// The counters of a node that is in use.
#[derive(Debug, Default)]
pub(super) struct Counters(AtomicU32);

impl Counters {
    pub(super) fn now(&self) -> Counts {
        Counts::of(self.0.load(Relaxed))
    }

    /// Counts; tells whether the node has become usable or ceased to be.
    pub(super) fn count(&self, seen: Seen, limits: &Limits) -> bool {
        let next = |bits| Counts::of(bits).after(seen, limits).map(Counts::bits);
        let Ok(before) = self.0.fetch_update(Relaxed, Relaxed, next) else { return false };
        let after = Counts::of(before).after(seen, limits);
        let was_usable = Counts::of(before).health.is_usable();
        after.is_some_and(|after| after.health.is_usable() != was_usable)
    }

    /// Forgets everything.
    pub(super) fn forget(&self) {
        self.0.store(Counts::NEW.bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            healthy_statuses: [200, 302].into(),
            unhealthy_statuses: [500].into(),
            successes: 2,
            http_failures: 3,
            tcp_failures: 2,
            timeouts: 0,
        }
    }

    /// What is thought of a node after each of these, with its counters.
    fn course(seen: &[Seen]) -> Vec<(&'static str, [u8; 4], bool)> {
        let counters = Counters::default();
        let step = |seen: &Seen| {
            let told = counters.count(*seen, &limits());
            let Counts { successes, http_failures, tcp_failures, timeouts, health } = counters.now();
            (health.name(), [successes, http_failures, tcp_failures, timeouts], told)
        };
        seen.iter().map(step).collect()
    }

    #[test]
    fn counters_go_as_those_of_apisix() {
        use Seen::{Status, TcpFailure, Timeout};
        assert_eq!(
            course(&[Status(200), Status(500), TcpFailure, Status(200), Status(200)]),
            [
                ("healthy", [0; 4], false),
                ("mostly_healthy", [0, 1, 0, 0], false),
                ("mostly_healthy", [0, 1, 1, 0], false),
                ("mostly_healthy", [1, 0, 0, 0], false),
                ("healthy", [2, 0, 0, 0], false),
            ]
        );
        assert_eq!(
            course(&[TcpFailure, TcpFailure, TcpFailure, Status(302), Status(500), Status(200), Status(200)]),
            [
                ("mostly_healthy", [0, 0, 1, 0], false),
                ("unhealthy", [0, 0, 2, 0], true),
                ("unhealthy", [0, 0, 2, 0], false),
                ("mostly_unhealthy", [1, 0, 0, 0], false),
                ("mostly_unhealthy", [0, 1, 0, 0], false),
                ("mostly_unhealthy", [1, 0, 0, 0], false),
                ("healthy", [2, 0, 0, 0], true),
            ]
        );
        // Neither list has 404, and no timeout counts.
        assert_eq!(course(&[Status(404), Timeout]), [("healthy", [0; 4], false); 2]);
    }

    #[test]
    fn workers_count_together() {
        let counters = Counters::default();
        let limits = Limits { tcp_failures: 200, ..limits() };
        let told: usize = std::thread::scope(|scope| {
            let count = || (0..100).filter(|_| counters.count(Seen::TcpFailure, &limits)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
        });
        assert_eq!((told, counters.now().tcp_failures), (1, 200));
        counters.forget();
        assert_eq!(counters.now(), Counts::NEW);
    }
}
