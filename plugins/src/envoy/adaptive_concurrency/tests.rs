#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, read, stream};
use prost::Message;
use std::time::Duration;

fn built(config: &str, context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, &[], context)
}

fn controller(gradient: &str, now: Instant) -> Controller {
    let settings = Settings::new(&testing::read(gradient)).unwrap();
    Controller::new(settings, Arc::new(Gauges::new(GradientStats::new(&context().metrics, "x."))), now)
}

/// How many requests are let in at a time.
fn room(controller: &Controller, now: Instant) -> usize {
    let entered = (0..10_000).take_while(|_| controller.enter(now)).count();
    (0..entered).for_each(|_| controller.leave());
    entered
}

#[test]
fn the_limit_follows_the_latency() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let controller = controller(
        "{concurrency_limit_params: {concurrency_update_interval: 0.1s, max_concurrency_limit: 100}, min_rtt_calc_params: {fixed_value: 0.01s, min_concurrency: 5, buffer: {value: 0}}}",
        start,
    );
    assert_eq!(room(&controller, start), 5);
    // As fast as can be: the limit grows up to the most that is allowed.
    for step in 0..20 {
        let now = 100 * step;
        controller.sample(at(now), at(now + 10));
    }
    assert_eq!(room(&controller, at(1950)), 100);
    for step in 20..60 {
        let now = 100 * step;
        controller.sample(at(now), at(now + 99));
    }
    let slow = room(&controller, at(5999));
    assert!((5..=9).contains(&slow), "{slow}");
}

/// The limit went below what it had begun with, and the minimum was not measured anew.
#[test]
fn the_least_goes_before_the_most() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let controller = controller(
        "{concurrency_limit_params: {concurrency_update_interval: 0.1s, max_concurrency_limit: 2}, min_rtt_calc_params: {fixed_value: 0.01s}}",
        start,
    );
    for step in 0..5 {
        assert_eq!(room(&controller, at(100 * step)), 3);
        controller.sample(at(100 * step), at(100 * step + 10));
    }
}

#[test]
fn the_minimum_is_measured_with_few_requests() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let controller = controller(
        "{concurrency_limit_params: {concurrency_update_interval: 0.1s, min_concurrency_limit: 20}, min_rtt_calc_params: {interval: 60s, request_count: 10, min_concurrency: 2}}",
        start,
    );
    assert_eq!(room(&controller, start), 2);
    (0..10).for_each(|_| controller.sample(at(1), at(11)));
    assert_eq!(room(&controller, at(12)), 20, "it is measured");
    // It is again after a minute and some jitter.
    assert_eq!(room(&controller, at(61_000 * 2)), 2);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_until_others_end() {
    let context = context();
    let config = "{concurrency_limit_exceeded_status: {code: TooManyRequests}, gradient_controller_config: {concurrency_limit_params: {concurrency_update_interval: 60s}, min_rtt_calc_params: {fixed_value: 1s, min_concurrency: 1}}}";
    let filter = built(config, &context).unwrap();
    let mut first = stream("/", &[]);
    assert!(filter.access(&mut first).await.is_none());
    let refused = filter.access(&mut stream("/", &[])).await.unwrap();
    assert_eq!(
        (refused.status, &*refused.body, &*refused.details),
        (429, &b"reached concurrency limit"[..], "reached_concurrency_limit")
    );
    // It went away: its place is free all the same.
    drop(first);
    assert!(filter.access(&mut stream("/", &[])).await.is_none());
    let counted = |name| context.metrics.sum("adaptive_concurrency.gradient_controller.", name);
    assert_eq!((counted("rq_blocked"), counted("concurrency_limit")), (1, 1));
    drop(filter);
    assert_eq!(counted("concurrency_limit"), 0);
}

/// Gauges told the sum of all controllers that were compiled, for connections of before or for nobody.
#[test]
fn gauges_are_those_of_the_controller_that_went_into_force_last() {
    let context = context();
    let config = |least: u32| {
        read::<Config>(&format!(
            "{{gradient_controller_config: {{concurrency_limit_params: {{concurrency_update_interval: 60s}}, min_rtt_calc_params: {{interval: 60s, min_concurrency: {least}}}}}}}"
        ))
        .encode_to_vec()
    };
    let built = |least| testing::built_in(&factory(), &config(least), &[], &context).unwrap();
    let gauges = || {
        let counted = |name| context.metrics.sum("adaptive_concurrency.gradient_controller.", name);
        (counted("concurrency_limit"), counted("min_rtt_calculation_active"))
    };
    let refused = built(9);
    assert_eq!(gauges(), (0, 0), "nobody has it");
    let first = Alone::new(built(3));
    assert_eq!(gauges(), (3, 1));
    let second = Alone::new(built(5));
    assert_eq!(gauges(), (5, 1));
    drop((first, refused));
    assert_eq!(gauges(), (5, 1));
    drop(second);
    assert_eq!(gauges(), (0, 0));
}

#[tokio::test]
async fn it_may_be_off_and_needs_its_settings() {
    let off = built("{enabled: {default_value: false, runtime_key: x}, gradient_controller_config: {concurrency_limit_params: {concurrency_update_interval: 1s}, min_rtt_calc_params: {fixed_value: 1s}}}", &context()).unwrap();
    assert!(off.chain.members().iter().all(|member| member.plugin.is_idle()));
    let refused = |config: &str| built(config, &context()).err().unwrap();
    assert!(refused("{}").starts_with("gradient_controller_config: "), "{}", refused("{}"));
    assert_eq!(
        refused(
            "{gradient_controller_config: {concurrency_limit_params: {concurrency_update_interval: 1s}, min_rtt_calc_params: {}}}"
        ),
        "gradient_controller_config.min_rtt_calc_params: one of interval and fixed_value is missing"
    );
    assert_eq!(
        refused(
            "{gradient_controller_config: {concurrency_limit_params: {}, min_rtt_calc_params: {fixed_value: 1s}}}"
        ),
        "gradient_controller_config.concurrency_limit_params.concurrency_update_interval: is missing"
    );
}
