//! Statistics of the responses to some requests, as Envoy charges them (source/common/http/codes.cc
//! `CodeStatsImpl::chargeResponseStat`).

use super::{Registry, class};

crate::stat_block! {
    /// Responses by class; their statuses are counted beside.
    pub struct ResponseCounts {
        counters: [
            upstream_rq_completed, upstream_rq_1xx, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx,
            upstream_rq_5xx,
        ],
        gauges: [], histograms: [upstream_rq_time],
    }
}

/// Responses by status, class and time under one prefix.
pub struct Responses(ResponseCounts);

impl Responses {
    /// Zeros under `prefix`, classes shown from the start.
    pub fn new(registry: &Registry, prefix: &str) -> Responses {
        Responses(ResponseCounts::of_responses(registry, prefix, false))
    }

    /// Zeros under `prefix`, of which nothing is shown before it is counted.
    pub fn sparse(registry: &Registry, prefix: &str) -> Responses {
        Responses(ResponseCounts::of_responses(registry, prefix, true))
    }

    /// Counts nothing and costs nothing.
    pub fn none() -> Responses {
        Responses(ResponseCounts::none())
    }

    /// Counts a response of a status.
    pub fn count(&self, status: u16) {
        let Some(block) = self.0.block() else { return };
        let completed = self.0.upstream_rq_completed();
        match class(status) {
            Some(class) => {
                block.add_all([(completed.slot, 1), (self.0.upstream_rq_1xx().slot + class, 1)]);
            }
            None => completed.inc(),
        }
        block.count_code(status);
    }

    /// Counts the time of a response, in milliseconds.
    pub fn record(&self, millis: u64) {
        self.0.upstream_rq_time().record(millis);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Registry, Value};
    use super::*;

    /// Only sixteen statuses were counted, whatever came.
    #[test]
    fn every_status_that_comes_is_counted_by_itself() {
        let registry = Registry::new();
        let shown = || -> Vec<String> {
            let name = |sample: super::super::Sample| match sample.value {
                Value::Counter(n) => format!("{} {n}", sample.name),
                Value::Gauge(n) => format!("{} {n}", sample.name),
                Value::Histogram(seen) => format!("{} {}", sample.name, seen.count),
            };
            registry.samples().into_iter().map(name).collect()
        };
        let responses = Responses::sparse(&registry, "a.");
        assert!(shown().is_empty());
        for status in [418, 200, 418, 599] {
            responses.count(status);
        }
        responses.record(3);
        let expected = [
            "a.upstream_rq_200 1",
            "a.upstream_rq_2xx 1",
            "a.upstream_rq_418 2",
            "a.upstream_rq_4xx 2",
            "a.upstream_rq_599 1",
            "a.upstream_rq_5xx 1",
            "a.upstream_rq_completed 4",
            "a.upstream_rq_time 1",
        ];
        assert_eq!(shown(), expected);
        // Another generation of the resource has the same names.
        let newer = Responses::sparse(&registry, "a.");
        newer.count(418);
        assert_eq!(shown()[2], "a.upstream_rq_418 3");
        registry.reset_counters();
        newer.count(418);
        // What was there once is there at zero, as in Envoy.
        let counted: Vec<String> = shown().into_iter().filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(
            counted,
            [
                "a.upstream_rq_418 1",
                "a.upstream_rq_4xx 1",
                "a.upstream_rq_completed 1",
                "a.upstream_rq_time 1"
            ]
        );
        assert_eq!(shown().len(), expected.len());
    }

    #[test]
    fn each_class_has_its_counter() {
        let registry = Registry::new();
        let responses = Responses::new(&registry, "a.");
        for (at, status) in [100, 204, 302, 404, 503].into_iter().enumerate() {
            (0..=at).for_each(|_| responses.count(status));
        }
        responses.count(99);
        responses.count(600);
        let of = |class: usize| registry.sum("a.", &format!("upstream_rq_{class}xx"));
        assert_eq!([1, 2, 3, 4, 5].map(of), [1, 2, 3, 4, 5]);
        assert_eq!(registry.sum("a.", "upstream_rq_completed"), 17);
    }

    /// What is beyond the bound is in its class, and what is no status has no statistic of its own.
    #[test]
    fn a_peer_that_makes_statuses_up_takes_no_more_memory() {
        let registry = Registry::new();
        let responses = Responses::new(&registry, "a.");
        (100..1000).rev().for_each(|status| responses.count(status));
        let apart = registry.samples().len() - 7;
        assert_eq!((apart, registry.sum("a.", "upstream_rq_completed")), (32, 900));
    }
}
