//! Load reports of endpoints (ORCA), which come with responses, and the weights that follow from them
//! (extensions/load_balancing_policies/client_side_weighted_round_robin/v3).

mod read;
#[cfg(test)]
mod tests;

use super::host::millis;
use super::{Host, Member, Members};
use crate::headers::Headers;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How reports are read, and how long what they say counts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReports {
    /// Metrics that say how busy an endpoint is, the busiest of them first (`metric_names_for_computing_utilization`); none by
    /// default.
    pub metrics: Box<[Metric]>,
    /// What a share of failed requests adds to utilization (`error_utilization_penalty`). Envoy's definition says 1 and
    /// Envoy takes 0 where it is not given.
    pub error_penalty: f64,
    /// An endpoint reports for so long before what it says counts; 10 s by default.
    pub blackout: Duration,
    /// Without a report for so long an endpoint is taken for one that never reported; 3 min by default.
    pub expiration: Duration,
    /// How often weights are made of reports; 1 s by default, at least 100 ms.
    pub update: Duration,
}

impl Default for LoadReports {
    fn default() -> LoadReports {
        LoadReports {
            metrics: Box::default(),
            error_penalty: 0.0,
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update: Duration::from_secs(1),
        }
    }
}

/// One of the numbers of a report (xds/data/orca/v3 OrcaLoadReport).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// `application_utilization`
    Application,
    /// `cpu_utilization`
    Cpu,
    /// `mem_utilization`
    Memory,
    /// `eps`: failed requests a second
    Errors,
    /// `rps_fractional`: requests a second
    Requests,
    /// One of a map, or of its members the largest where the key is `*`.
    Of(Map, Box<str>),
}

/// Maps of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// `named_metrics`
    Named,
    /// `utilization`
    Utilization,
    /// `request_cost`
    RequestCost,
}

impl Metric {
    /// By the name that a configuration has for it; `None` for a name that no report has.
    pub fn of(name: &str) -> Option<Metric> {
        let key = |map, prefix: &str| name.strip_prefix(prefix).map(|key| Metric::Of(map, key.into()));
        plain(name)
            .or_else(|| key(Map::Named, "named_metrics."))
            .or_else(|| key(Map::Utilization, "utilization."))
            .or_else(|| key(Map::RequestCost, "request_cost."))
    }
}

/// A metric that is in no map.
fn plain(name: &str) -> Option<Metric> {
    Some(match name {
        "application_utilization" => Metric::Application,
        "cpu_utilization" => Metric::Cpu,
        "mem_utilization" => Metric::Memory,
        "eps" => Metric::Errors,
        "rps_fractional" => Metric::Requests,
        _ => return None,
    })
}

/// What one report says, as far as anybody wants to know.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Load {
    requests: f64,
    errors: f64,
    application: f64,
    cpu: f64,
    memory: f64,
    /// The largest of the metrics of maps that are asked for.
    asked: f64,
}

impl Load {
    /// Notes a number of a map.
    fn note(&mut self, wanted: &[Metric], of: Map, name: &str, value: f64) {
        let asks = |metric: &Metric| matches!(metric, Metric::Of(map, key) if *map == of && (**key == *name || &**key == "*"));
        if wanted.iter().any(asks) {
            self.asked = self.asked.max(value);
        }
    }

    /// How busy the endpoint is: the largest of the metrics asked for, else what it says of itself, else its processor.
    fn utilization(&self, wanted: &[Metric]) -> f64 {
        let value = |metric: &Metric| match metric {
            Metric::Application => self.application,
            Metric::Cpu => self.cpu,
            Metric::Memory => self.memory,
            Metric::Errors => self.errors,
            Metric::Requests => self.requests,
            Metric::Of(..) => self.asked,
        };
        let asked = wanted.iter().map(value).fold(0.0, f64::max);
        match (asked > 0.0, self.application > 0.0) {
            (true, _) => asked,
            (_, true) => self.application,
            _ => self.cpu,
        }
    }

    /// Requests that the endpoint would have at full use; `None` for a report that does not tell.
    fn weight(&self, config: &LoadReports) -> Option<u32> {
        if self.requests <= 0.0 {
            return None;
        }
        let errors = config.error_penalty * self.errors / self.requests;
        let utilization = self.utilization(&config.metrics) + errors;
        // A number that is none is no small one either; the cast makes 0 of it.
        (utilization.is_nan() || utilization > 0.0).then(|| (self.requests / utilization) as u32)
    }
}

impl LoadReports {
    /// Takes the report of a response's headers or trailers, if there is one that can be read; tells whether there was.
    pub fn take(&self, fields: &Headers, host: &Host, now: Instant) -> bool {
        let Some(load) = read::load(fields, &self.metrics) else { return false };
        if let (Some(weight), Some(reported)) = (load.weight(self), host.reported()) {
            reported.note(weight, millis(now));
        }
        true
    }

    /// Brings the weights of a level's endpoints up to date: what each has reported, and for those that have not the
    /// median of the others. Tells in one number which they are: others may have weighed the same endpoints since.
    pub(crate) fn weigh(&self, members: &Members, now: Instant) -> u64 {
        let now = millis(now);
        let known = |member: &Arc<Member>| member.host.reporting().current(self, now);
        let weights: Vec<Option<u32>> = members.iter().map(known).collect();
        let default = median(weights.iter().flatten().copied().collect());
        let mut all = 0;
        for (member, weight) in members.iter().zip(weights) {
            let weight = weight.unwrap_or(default).max(1);
            member.host.reporting().weight.store(weight, Relaxed);
            all = mixed(all, u64::from(weight));
        }
        all
    }
}

/// One number of two, that changes with either of them and with their order.
pub(crate) fn mixed(one: u64, other: u64) -> u64 {
    (one ^ other).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The one in the middle, of an even number the mean of the two; 1 of none.
fn median(mut weights: Vec<u32>) -> u32 {
    weights.sort_unstable();
    let middle = weights.len() / 2;
    let upper = weights.get(middle).copied().unwrap_or(1);
    match weights.len() {
        count if count > 0 && count.is_multiple_of(2) => {
            let lower = weights.get(middle - 1).copied().unwrap_or(upper);
            ((u64::from(lower) + u64::from(upper)) / 2) as u32
        }
        _ => upper,
    }
}

/// What an endpoint has reported of itself. Workers write, whoever makes weights of it reads.
#[derive(Debug)]
pub struct Reported {
    /// By the last report.
    last: AtomicU32,
    /// The moment of the last report.
    at: AtomicU64,
    /// The moment since which it reports; 0 while it does not.
    since: AtomicU64,
    /// The weight it has now.
    weight: AtomicU32,
}

impl Default for Reported {
    fn default() -> Reported {
        Reported {
            last: AtomicU32::new(1),
            at: AtomicU64::new(0),
            since: AtomicU64::new(0),
            weight: AtomicU32::new(1),
        }
    }
}

impl Reported {
    /// The weight that balancers give it.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    fn note(&self, weight: u32, now: u64) {
        self.last.store(weight, Relaxed);
        self.at.store(now, Relaxed);
        if self.since.load(Relaxed) == 0 {
            self.since.store(now, Relaxed);
        }
    }

    /// The weight of the last report, while it counts.
    fn current(&self, config: &LoadReports, now: u64) -> Option<u32> {
        let since = self.since.load(Relaxed);
        let long = |period: Duration| u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        if since == 0 || now.saturating_sub(since) < long(config.blackout) {
            return None;
        }
        if now.saturating_sub(self.at.load(Relaxed)) > long(config.expiration) {
            self.since.store(0, Relaxed);
            return None;
        }
        Some(self.last.load(Relaxed))
    }
}
