//! The gradient controller (adaptive_concurrency/controller/gradient_controller.cc): a limit that follows how much longer
//! requests take than they take at the least.
//!
//! Nobody waits for it: whoever comes when it is time for the next step makes it, if nobody else is at it.

use super::latencies::Latencies;
use parking_lot::Mutex;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::GradientControllerConfig;
use sixfold_xds_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::{
    ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
};
use sixfold_xds_api::pb::envoy::r#type::v3::Percent;
use sixfold_xds_api::values::{optional_duration, positive_duration, required, u32_in};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.adaptive_concurrency.gradient_controller.`.
    pub struct GradientStats {
        counters: [rq_blocked],
        gauges: [
            burst_queue_size, concurrency_limit, gradient, min_rtt_calculation_active, min_rtt_msecs, sample_rtt_msecs,
        ],
        histograms: [],
    }
}

/// The longest that the controller waits for anything; what is configured beyond is this.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often the limit may be the least in a row before the minimum is measured anew.
const LEAST_IN_A_ROW: u32 = 5;

#[derive(Debug)]
pub(super) struct Settings {
    /// Which part of the latencies counts, from 0 to 1.
    share: f64,
    most: u32,
    least: u32,
    update: Duration,
    /// `None`: the minimum is what is configured.
    measure: Option<Measure>,
    fixed: Option<Duration>,
    /// How much longer than the minimum is as good.
    buffer: f64,
}

/// How the minimum is measured: at the least concurrency, now and then.
#[derive(Debug)]
struct Measure {
    interval: Duration,
    jitter: f64,
    requests: u32,
    concurrency: u32,
}

impl Settings {
    pub(super) fn new(value: &GradientControllerConfig) -> Result<Settings, ConfigError> {
        let GradientControllerConfig {
            sample_aggregate_percentile,
            concurrency_limit_params,
            min_rtt_calc_params,
        } = value;
        let ConcurrencyLimitCalculationParams {
            max_concurrency_limit,
            concurrency_update_interval,
            min_concurrency_limit,
        } = required(concurrency_limit_params, "concurrency_limit_params")?;
        let of_limit = |result: Result<u32, ConfigError>| result.in_key("concurrency_limit_params");
        required(concurrency_update_interval, "concurrency_update_interval")
            .in_key("concurrency_limit_params")?;
        let update =
            positive_duration(concurrency_update_interval, Duration::ZERO, "concurrency_update_interval")
                .in_key("concurrency_limit_params")?;
        let MinimumRttCalculationParams {
            interval,
            fixed_value,
            request_count,
            jitter,
            min_concurrency,
            buffer,
        } = required(min_rtt_calc_params, "min_rtt_calc_params")?;
        let of_minimum = "min_rtt_calc_params";
        let fixed = optional_duration(fixed_value, "fixed_value").in_key(of_minimum)?;
        let concurrency = u32_in(min_concurrency, 3, 1..=u32::MAX, "min_concurrency").in_key(of_minimum)?;
        let measure = match (fixed, optional_duration(interval, "interval").in_key(of_minimum)?) {
            (Some(_), _) => None,
            (None, None) => {
                return Err(ConfigError::field(
                    "min_rtt_calc_params",
                    "one of interval and fixed_value is missing",
                ));
            }
            (None, Some(interval)) => Some(Measure {
                interval: interval.min(LONGEST),
                jitter: share(jitter, 15.0),
                requests: u32_in(request_count, 50, 1..=u32::MAX, "request_count").in_key(of_minimum)?,
                concurrency,
            }),
        };
        let least = match min_concurrency_limit {
            Some(_) => of_limit(u32_in(min_concurrency_limit, 1, 1..=u32::MAX, "min_concurrency_limit"))?,
            None => concurrency,
        };
        Ok(Settings {
            share: share(sample_aggregate_percentile, 50.0),
            most: of_limit(u32_in(max_concurrency_limit, 1000, 1..=u32::MAX, "max_concurrency_limit"))?,
            least,
            update: update.min(LONGEST),
            measure,
            fixed,
            buffer: share(buffer, 25.0),
        })
    }
}

fn share(value: &Option<Percent>, default: f64) -> f64 {
    value.as_ref().map_or(default, |percent| percent.value).clamp(0.0, 100.0) / 100.0
}

/// The limit, and what it is made of.
pub(super) struct Controller {
    settings: Settings,
    gauges: Arc<Gauges>,
    /// Its number among those whose gauges these are; 0 before it is in force.
    number: AtomicU64,
    began: Instant,
    limit: AtomicU32,
    active: AtomicU32,
    latencies: Latencies,
    /// Requests that began before, in microseconds since `began`, tell nothing of the time since.
    epoch: AtomicU64,
    /// When the next step is due, in microseconds since `began`.
    due: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// The limit from before the minimum is measured, while it is.
    deferred: Option<u32>,
    minimum: Duration,
    next_measure: Instant,
    least_in_a_row: u32,
    shown: Shown,
}

/// The gauges of one prefix. Of the controllers that have them, the one that went into force last is shown: another may
/// still be there for connections of before.
pub(super) struct Gauges {
    stats: GradientStats,
    newest: Mutex<u64>,
}

/// What gauges show.
#[derive(Default, Clone, Copy)]
struct Shown {
    burst: i64,
    limit: i64,
    gradient: i64,
    measuring: i64,
    minimum: i64,
    sample: i64,
}

impl Controller {
    /// A controller that nobody sees before [`Controller::show_from_now`].
    pub(super) fn new(settings: Settings, gauges: Arc<Gauges>, now: Instant) -> Controller {
        let (limit, update) = (settings.least, settings.update);
        let state = State {
            deferred: None,
            minimum: settings.fixed.unwrap_or_default(),
            next_measure: now,
            least_in_a_row: 0,
            shown: Shown { limit: i64::from(limit), ..Shown::default() },
        };
        let controller = Controller {
            gauges,
            number: AtomicU64::new(0),
            began: now,
            limit: AtomicU32::new(limit),
            active: AtomicU32::new(0),
            latencies: Latencies::new(),
            epoch: AtomicU64::new(0),
            due: AtomicU64::new(micros(update)),
            state: Mutex::new(state),
            settings,
        };
        controller.measure(&mut controller.state.lock(), now);
        controller
    }

    /// Takes a place for a request, if there is one.
    pub(super) fn enter(&self, now: Instant) -> bool {
        self.tend(now);
        let limit = self.limit.load(Relaxed);
        let next = |active: u32| (active < limit).then(|| active + 1);
        let entered = self.active.fetch_update(Relaxed, Relaxed, next).is_ok();
        if !entered {
            self.gauges.stats.rq_blocked().inc();
        }
        entered
    }

    /// Gives it back.
    pub(super) fn leave(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// Notes how long a request took.
    pub(super) fn sample(&self, began: Instant, now: Instant) {
        if self.since(began) >= self.epoch.load(Relaxed) {
            self.latencies.add(micros(now.saturating_duration_since(began)));
        }
        self.tend(now);
    }

    /// Makes a step that is due.
    fn tend(&self, now: Instant) {
        if self.since(now) < self.due.load(Relaxed) {
            return;
        }
        let Some(mut state) = self.state.try_lock() else { return };
        if let Some(limit) = state.deferred {
            self.end_measure(&mut state, limit, now);
            return;
        }
        self.due.store(self.since(now + self.settings.update), Relaxed);
        if self.settings.measure.is_some() && now >= state.next_measure {
            self.measure(&mut state, now);
            return;
        }
        self.update(&mut state, now);
    }

    fn since(&self, moment: Instant) -> u64 {
        micros(moment.saturating_duration_since(self.began))
    }

    /// Begins to measure the minimum: few requests at a time, of which none that is under way counts.
    fn measure(&self, state: &mut State, now: Instant) {
        let Some(measure) = &self.settings.measure else { return };
        state.deferred = Some(self.limit.swap(measure.concurrency, Relaxed));
        state.least_in_a_row = 0;
        self.latencies.take(1.0);
        self.epoch.store(self.since(now), Relaxed);
        // Each request looks whether there are enough.
        self.due.store(0, Relaxed);
        self.show(state, |shown| (shown.measuring, shown.limit) = (1, i64::from(measure.concurrency)));
    }

    fn end_measure(&self, state: &mut State, limit: u32, now: Instant) {
        let Some(measure) = &self.settings.measure else { return };
        if self.latencies.len() < u64::from(measure.requests) {
            return;
        }
        if let Some(minimum) = self.latencies.take(self.settings.share) {
            state.minimum = Duration::from_micros(minimum);
        }
        state.deferred = None;
        state.next_measure =
            now + measure.interval + measure.interval.mul_f64(measure.jitter * fastrand::f64());
        self.limit.store(limit, Relaxed);
        self.due.store(self.since(now + self.settings.update), Relaxed);
        let millis = state.minimum.as_millis() as i64;
        self.show(state, |shown| {
            (shown.measuring, shown.limit, shown.minimum) = (0, i64::from(limit), millis);
        });
    }

    fn update(&self, state: &mut State, now: Instant) {
        let Some(sample) = self.latencies.take(self.settings.share) else { return };
        let settings = &self.settings;
        let minimum = micros(state.minimum) as f64 * (1.0 + settings.buffer);
        let gradient = (minimum / sample.max(1) as f64).clamp(0.5, 2.0);
        let limit = f64::from(self.limit.load(Relaxed)) * gradient;
        let burst = limit.sqrt();
        // The least goes before the most, as in Envoy, where it is the greater of the two.
        let limit = ((limit + burst) as u32).min(settings.most).max(settings.least);
        self.limit.store(limit, Relaxed);
        state.least_in_a_row = if limit == settings.least { state.least_in_a_row + 1 } else { 0 };
        let (sample, gradient) = ((sample / 1000) as i64, (gradient * 1000.0) as i64);
        self.show(state, |shown| {
            (shown.sample, shown.gradient, shown.burst, shown.limit) =
                (sample, gradient, burst as i64, i64::from(limit));
        });
        // It may be that the minimum is no longer what it was.
        if state.least_in_a_row >= LEAST_IN_A_ROW {
            self.measure(state, now);
        }
    }

    /// It is in force: the gauges are its own until another is.
    pub(super) fn show_from_now(&self) {
        let state = self.state.lock();
        let mut newest = self.gauges.newest.lock();
        *newest += 1;
        self.number.store(*newest, Relaxed);
        self.gauges.set(state.shown);
    }

    fn show(&self, state: &mut State, change: impl FnOnce(&mut Shown)) {
        change(&mut state.shown);
        self.tell(state.shown);
    }

    /// Sets the gauges, if they are its own.
    fn tell(&self, shown: Shown) {
        let newest = self.gauges.newest.lock();
        if *newest == self.number.load(Relaxed) && *newest > 0 {
            self.gauges.set(shown);
        }
    }
}

impl Gauges {
    /// Gauges of nobody yet.
    pub(super) fn new(stats: GradientStats) -> Gauges {
        Gauges { stats, newest: Mutex::default() }
    }

    fn set(&self, shown: Shown) {
        let stats = &self.stats;
        for (gauge, value) in [
            (stats.burst_queue_size(), shown.burst),
            (stats.concurrency_limit(), shown.limit),
            (stats.gradient(), shown.gradient),
            (stats.min_rtt_calculation_active(), shown.measuring),
            (stats.min_rtt_msecs(), shown.minimum),
            (stats.sample_rtt_msecs(), shown.sample),
        ] {
            gauge.set(u64::try_from(value).unwrap_or(0));
        }
    }
}

impl Drop for Controller {
    /// Nothing is shown of a controller that is no more.
    fn drop(&mut self) {
        self.tell(Shown::default());
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
