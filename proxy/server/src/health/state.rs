//! What checks make of an endpoint (source/extensions/health_checkers/common/health_checker_base_impl.cc).

use super::CHECKED;
use sixfold_core::cluster::{HealthCheck, Host, Intervals, Reasons};
use std::time::Duration;
use tokio::time::Instant;

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint is well; `degraded` if it would rather have less traffic.
    Passed {
        /// It sent `x-envoy-degraded`.
        degraded: bool,
    },
    /// It is not.
    Failed {
        /// How.
        failure: Failure,
        /// Status of the answer that says so; 0 where it is none of HTTP.
        status: u16,
        /// Counts towards the threshold although it answered.
        retriable: bool,
        /// It wants to be left alone at once.
        exclude: bool,
        /// For the log.
        reason: String,
    },
}

impl Verdict {
    /// Nothing was heard.
    pub(super) fn silent(reason: impl Into<String>) -> Verdict {
        Verdict::of(Failure::Network, reason)
    }

    /// Nothing was heard in time.
    pub(super) fn late() -> Verdict {
        Verdict::of(Failure::Timeout, "timeout")
    }

    /// It says so itself.
    pub(super) fn failed(reason: impl Into<String>) -> Verdict {
        Verdict::of(Failure::Active, reason)
    }

    fn of(failure: Failure, reason: impl Into<String>) -> Verdict {
        Verdict::Failed { failure, status: 0, retriable: false, exclude: false, reason: reason.into() }
    }

    /// It says, in an answer to a request, that it wants to be left alone.
    pub(super) fn leave() -> Verdict {
        let (failure, reason) = (Failure::Passive, String::new());
        Verdict::Failed { failure, status: 0, retriable: false, exclude: true, reason }
    }

    pub(super) fn passed(&self) -> bool {
        matches!(self, Verdict::Passed { .. })
    }
}

/// How a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// By what the endpoint answered.
    Active,
    /// By what it answered to another request.
    Passive,
    /// Nothing was heard of it.
    Network,
    /// Nothing was heard of it in time.
    Timeout,
}

impl Failure {
    /// Whether nothing was heard: no connection, no answer in time.
    pub(super) fn is_silence(self) -> bool {
        matches!(self, Failure::Network | Failure::Timeout)
    }
}

/// What became of an endpoint by a verdict.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// What has changed.
    pub(super) change: Change,
    /// Whether the host has.
    pub(super) changed: bool,
    /// Whether it was the first check.
    pub(super) first: bool,
    /// What checks had against it.
    pub(super) before: Reasons,
    /// What they have now.
    pub(super) after: Reasons,
}

/// What a check has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Unchanged,
    /// It will, if the next ones come to the same.
    Pending,
    Changed,
}

/// Reasons to be set or cleared, and what that amounts to.
pub(super) struct Changes {
    pub(super) kind: Change,
    pub(super) reasons: Vec<(Reasons, bool)>,
}

/// What is known of an endpoint.
#[derive(Debug)]
pub(super) struct State {
    /// No check has come to an end.
    first: bool,
    /// Checks one after the other that passed while it was unhealthy.
    passed: u32,
    /// Those that failed while it was healthy.
    failed: u32,
    /// For the statistics.
    pub(super) healthy: bool,
    pub(super) degraded: bool,
    /// When it is to be checked next.
    pub(super) due: Instant,
    /// What a candidate's checks have against it, until that takes its place.
    aside: Option<Reasons>,
}

impl State {
    /// Nothing yet; the first check is due within `jitter`.
    pub(super) fn new(jitter: Duration) -> State {
        let due = Instant::now() + by_chance(jitter);
        State { first: true, passed: 0, failed: 0, healthy: false, degraded: false, due, aside: None }
    }

    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    /// Takes a verdict. What it changes is set on the host, or kept aside where the check is a candidate's.
    pub(super) fn take(
        &mut self,
        check: &HealthCheck,
        host: &Host,
        verdict: &Verdict,
        in_force: bool,
    ) -> Taken {
        let mut changed = in_force && self.show(host);
        let first = self.first;
        let before = self.aside.unwrap_or_else(|| host.reasons() & CHECKED);
        let mut against = before;
        let changes = self.judge(check, against, verdict);
        for (reason, on) in changes.reasons {
            against.set(reason, on);
            changed |= in_force && host.set_reason(reason, on);
        }
        if !in_force {
            self.aside = Some(against);
        }
        Taken { change: changes.kind, changed, first, before, after: against }
    }

    /// Sets on the host what was kept aside; tells whether it has changed.
    pub(super) fn show(&mut self, host: &Host) -> bool {
        let Some(against) = self.aside.take() else { return false };
        host.set_reason(against, true) | host.set_reason(CHECKED - against, false)
    }

    /// What a verdict on an endpoint that has `reasons` against it changes.
    pub(super) fn judge(&mut self, check: &HealthCheck, reasons: Reasons, verdict: &Verdict) -> Changes {
        let first = std::mem::replace(&mut self.first, false);
        let unhealthy = reasons.contains(Reasons::ACTIVE_CHECK);
        let mut changes = Changes { kind: Change::Unchanged, reasons: Vec::new() };
        match verdict {
            Verdict::Passed { degraded } => {
                self.failed = 0;
                self.passed = self.passed.saturating_add(u32::from(unhealthy));
                // The first ever is enough, so that a start is quick.
                if unhealthy && (first || self.passed >= check.healthy_threshold) {
                    self.passed = 0;
                    changes.set(Reasons::ACTIVE_CHECK, false);
                } else if unhealthy {
                    changes.kind = Change::Pending;
                }
                if reasons.contains(Reasons::DEGRADED_CHECK) != *degraded {
                    changes.set(Reasons::DEGRADED_CHECK, *degraded);
                }
                if reasons.contains(Reasons::EXCLUDED_CHECK) {
                    changes.set(Reasons::EXCLUDED_CHECK, false);
                }
                self.degraded = *degraded;
                self.healthy = !unhealthy || changes.kind == Change::Changed;
            }
            Verdict::Failed { failure, retriable, exclude, .. } => {
                self.passed = 0;
                self.failed = self.failed.saturating_add(u32::from(!unhealthy));
                let at_once = !failure.is_silence() && !retriable;
                if !unhealthy && (at_once || self.failed >= check.unhealthy_threshold) {
                    self.failed = 0;
                    changes.set(Reasons::ACTIVE_CHECK, true);
                } else if !unhealthy {
                    changes.kind = Change::Pending;
                }
                if *exclude && !reasons.contains(Reasons::EXCLUDED_CHECK) {
                    changes.set(Reasons::EXCLUDED_CHECK, true);
                }
                self.healthy = !unhealthy && changes.kind == Change::Pending;
            }
        }
        if reasons.contains(Reasons::PENDING_CHECK) {
            changes.set(Reasons::PENDING_CHECK, false);
        }
        changes
    }

    /// Has the endpoint be checked later, where it could not be asked.
    pub(super) fn put_off(&mut self, check: &HealthCheck) {
        self.due = Instant::now() + self.wait(check, Change::Unchanged, self.healthy, true);
    }

    /// Time to the next check.
    pub(super) fn wait(&self, check: &HealthCheck, change: Change, passed: bool, traffic: bool) -> Duration {
        let Intervals { healthy, unhealthy, to_healthy, to_unhealthy, no_traffic, no_traffic_healthy } =
            &check.intervals;
        let base = match (traffic, passed, change) {
            (true, true, Change::Pending) => to_healthy,
            (true, true, _) => healthy,
            (true, false, Change::Pending) => to_unhealthy,
            (true, false, _) => unhealthy,
            (false, true, Change::Unchanged | Change::Changed) => no_traffic_healthy,
            (false, ..) => no_traffic,
        };
        let share = (*base).min(LONGEST).mul_f64(f64::from(check.jitter_percent) / 100.0);
        base.saturating_add(by_chance(share)).saturating_add(by_chance(check.jitter)).min(LONGEST)
    }
}

/// No time between checks is longer.
const LONGEST: Duration = Duration::from_secs(86_400);

impl Changes {
    fn set(&mut self, reason: Reasons, on: bool) {
        self.kind = Change::Changed;
        self.reasons.push((reason, on));
    }
}

/// Anything below `limit`.
fn by_chance(limit: Duration) -> Duration {
    limit.min(LONGEST).mul_f64(fastrand::f64())
}
