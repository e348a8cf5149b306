//! Whether an attempt is followed by another (source/common/router/retry_state_impl.cc; for APISIX nginx's
//! `proxy_next_upstream error timeout`).

use crate::deadline::after;
use crate::upstream::UpstreamError;
use sixfold_core::cluster::{Cluster, ClusterStats, Permit, Resource};
use sixfold_core::headers::{Headers, Known, KnownSet};
use sixfold_core::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget};
use sixfold_core::message::ResponseHead;
use sixfold_core::retry::{RetryOn, RetryPolicy, is_idempotent};
use sixfold_core::route::RouteStats;
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A header that asks for no longer a wait asks for none (retry_state_impl.cc `shouldRetryHeaders`).
const LEAST_RESET: Duration = Duration::from_millis(1);

/// What became of an attempt.
pub(crate) enum Ending<'a> {
    /// A response head came.
    Response(&'a ResponseHead),
    /// None came.
    Failed(&'a UpstreamError),
    /// None came in the time of one attempt.
    PerTryTimeout,
    /// Nor here, but the attempt goes on, and what is asked is whether another one joins it.
    Slow,
}

/// What to do then.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing asks for a retry.
    Done,
    /// Try again after this time.
    Retry(Duration),
    /// A retry was wanted, but their number is used up (flag URX).
    Exhausted,
    /// A retry was wanted, but the cluster has too many already (flag UO).
    Overflow,
}

/// Which responses another attempt is made for.
#[derive(Clone)]
pub(crate) struct Conditions {
    on: RetryOn,
    policy: Arc<RetryPolicy>,
    /// What the request itself asks for.
    status_codes: Vec<u16>,
    response_headers: Option<Arc<[HeaderMatcher]>>,
}

/// The retries of one request.
pub(crate) struct RetryState {
    conditions: Conditions,
    left: u32,
    retries: u32,
    /// Attempts may not begin later (APISIX's `retry_timeout`).
    until: Option<Instant>,
    idempotent: bool,
    permit: Option<Permit>,
    pub(crate) after_timeout: bool,
}

impl RetryState {
    /// Of a request under `policy`. With `steered` the headers that steer retries are heeded and taken off the
    /// request. `None` when nothing asks for retries.
    pub(crate) fn new(
        policy: Option<&Arc<RetryPolicy>>,
        steered: bool,
        stream: &mut Stream,
    ) -> Option<RetryState> {
        let asked =
            if steered { RetryHeaders::take(&mut stream.request.headers) } else { RetryHeaders::default() };
        let on = policy.map_or(RetryOn::empty(), |p| p.on) | asked.on;
        if on.is_empty() {
            return None;
        }
        let policy = policy.cloned().unwrap_or_default();
        let allowed = policy.request_headers.is_empty()
            || policy.request_headers.iter().any(|m| m.matches(&stream.request));
        allowed.then(|| RetryState {
            left: asked.max.unwrap_or(policy.num_retries),
            retries: 0,
            until: policy.deadline.map(|d| after(Instant::now(), d)),
            idempotent: is_idempotent(&stream.request.method),
            permit: None,
            after_timeout: false,
            conditions: Conditions {
                on,
                policy,
                status_codes: asked.status_codes,
                response_headers: Some(asked.response_headers).filter(|m| !m.is_empty()).map(Into::into),
            },
        })
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.conditions.policy
    }

    /// Which responses another attempt is made for.
    pub(crate) fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Whether a pooled connection that has died without a word is replaced, as nginx does: for the methods that it
    /// sends to the next upstream, within the time for retries, and without counting one.
    pub(crate) fn replaces_pooled(&self) -> bool {
        self.conditions.on.contains(RetryOn::NGINX_ERROR_TIMEOUT)
            && self.idempotent
            && self.until.is_none_or(|until| Instant::now() < until)
    }

    /// Counts a retry that has led to a response.
    pub(crate) fn note_success(&mut self, stats: &ClusterStats, routes: [Option<&RouteStats>; 2]) {
        if self.permit.take().is_some() {
            stats.upstream_rq_retry_success().inc();
            routes.into_iter().flatten().for_each(|stats| stats.upstream_rq_retry_success().inc());
        }
    }

    /// Decides what follows an attempt. `sent` says that some of the request has gone out, `routes` who counts it
    /// beside the cluster.
    pub(crate) fn decide(
        &mut self,
        ending: &Ending<'_>,
        cluster: &Cluster,
        high: bool,
        sent: bool,
        routes: [Option<&RouteStats>; 2],
    ) -> Decision {
        let stats = &cluster.stats;
        self.after_timeout = matches!(ending, Ending::PerTryTimeout | Ending::Slow);
        if !self.wanted(ending, sent) {
            self.note_success(stats, routes);
            return Decision::Done;
        }
        let routes = || routes.into_iter().flatten();
        self.permit = None;
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded().inc();
            routes().for_each(|stats| stats.upstream_rq_retry_limit_exceeded().inc());
            return Decision::Exhausted;
        }
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Decision::Exhausted;
        }
        let breaker = if high { &cluster.high_breaker } else { &cluster.breaker };
        let Some(permit) = breaker.acquire(Resource::Retries) else {
            stats.upstream_rq_retry_overflow().inc();
            routes().for_each(|stats| stats.upstream_rq_retry_overflow().inc());
            return Decision::Overflow;
        };
        self.permit = Some(permit);
        self.left -= 1;
        self.retries += 1;
        stats.upstream_rq_retry().inc();
        routes().for_each(|stats| stats.upstream_rq_retry().inc());
        if let Ending::Response(head) = ending
            && let Some(wait) = self.asked_to_wait(head)
        {
            stats.upstream_rq_retry_backoff_ratelimited().inc();
            return Decision::Retry(wait);
        }
        stats.upstream_rq_retry_backoff_exponential().inc();
        Decision::Retry(self.back_off())
    }

    fn wanted(&self, ending: &Ending<'_>, sent: bool) -> bool {
        match ending {
            Ending::Response(head) => self.conditions.want(head),
            Ending::PerTryTimeout => {
                let on = self.conditions.on;
                on.intersects(
                    RetryOn::SERVER_ERROR
                        | RetryOn::GATEWAY_ERROR
                        | RetryOn::RESET
                        | RetryOn::RETRIABLE_STATUS_CODES,
                ) && (!on.contains(RetryOn::RETRIABLE_STATUS_CODES)
                    || on.intersects(RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET)
                    || self.conditions.has_code(504))
            }
            // Whatever the conditions are (`shouldHedgeRetryPerTryTimeout`).
            Ending::Slow => true,
            Ending::Failed(error) => self.failure_wanted(error, sent),
        }
    }

    fn failure_wanted(&self, error: &UpstreamError, sent: bool) -> bool {
        if matches!(error, UpstreamError::Overflow | UpstreamError::Exhausted) {
            return false;
        }
        let on = self.conditions.on;
        if on.contains(RetryOn::NGINX_ERROR_TIMEOUT) {
            return !sent || self.idempotent;
        }
        let failed_to_connect = matches!(error, UpstreamError::Connect(_) | UpstreamError::ConnectTimeout);
        on.intersects(RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET)
            || (on.contains(RetryOn::CONNECT_FAILURE) && failed_to_connect)
            || (on.contains(RetryOn::REFUSED_STREAM) && *error == UpstreamError::Refused)
            || (on.contains(RetryOn::RESET_BEFORE_REQUEST) && (!sent || error.before_request()))
    }

    /// Uniform in `[0, min(base * 2^(n-1), max))`.
    fn back_off(&self) -> Duration {
        if self.conditions.on.contains(RetryOn::NGINX_ERROR_TIMEOUT) {
            return Duration::ZERO;
        }
        let factor = 1u32 << (self.retries.clamp(1, 20) - 1);
        let ceiling = self.policy().base_interval.saturating_mul(factor).min(self.policy().max_interval);
        Duration::from_micros(fastrand::u64(..ceiling.as_micros().max(1) as u64))
    }

    /// What the first readable header of `rate_limited_retry_back_off` says, spread over half as much again. A wait
    /// of nothing is none: it would switch the back-off off.
    fn asked_to_wait(&self, head: &ResponseHead) -> Option<Duration> {
        let limited = self.policy().rate_limited.as_ref()?;
        let wait = limited.headers.iter().find_map(|(target, unix_time)| {
            let mut digits = itoa::Buffer::new();
            let first = target.values_of_response(head, &mut digits).next()?;
            let number: u64 = std::str::from_utf8(first).ok()?.trim().parse().ok()?;
            let seconds = if *unix_time {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
                number.checked_sub(now.as_secs())?
            } else {
                number
            };
            let wait = Duration::from_secs(seconds);
            (wait <= limited.max_interval).then_some(wait)
        })?;
        (wait > LEAST_RESET).then(|| wait + wait.mul_f64(fastrand::f64() / 2.0))
    }
}

impl Conditions {
    /// Whether a response is one of them.
    pub(crate) fn want(&self, head: &ResponseHead) -> bool {
        let on = self.on;
        let status = head.status;
        if head.headers.contains(Known::X_ENVOY_RATELIMITED) {
            return on.contains(RetryOn::ENVOY_RATELIMITED);
        }
        if (on.contains(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (on.contains(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (on.contains(RetryOn::RETRIABLE_4XX) && status == 409)
            || (on.contains(RetryOn::RETRIABLE_STATUS_CODES) && self.has_code(status))
        {
            return true;
        }
        if on.contains(RetryOn::RETRIABLE_HEADERS) && self.names_header_of(head) {
            return true;
        }
        let Some(grpc) = head.headers.get_str(Known::GRPC_STATUS) else { return false };
        match grpc {
            "1" => on.contains(RetryOn::GRPC_CANCELLED),
            "4" => on.contains(RetryOn::GRPC_DEADLINE_EXCEEDED),
            "8" => on.contains(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            "13" => on.contains(RetryOn::GRPC_INTERNAL),
            "14" => on.contains(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    fn has_code(&self, status: u16) -> bool {
        self.policy.status_codes.contains(&status) || self.status_codes.contains(&status)
    }

    fn names_header_of(&self, head: &ResponseHead) -> bool {
        let asked = self.response_headers.iter().flat_map(|asked| asked.iter());
        self.policy.response_headers.iter().chain(asked).any(|matcher| matcher.matches_response(head))
    }
}

/// The headers by which a request steers its retries.
const STEERING: KnownSet = KnownSet::of(&[
    Known::X_ENVOY_RETRY_ON,
    Known::X_ENVOY_RETRY_GRPC_ON,
    Known::X_ENVOY_MAX_RETRIES,
    Known::X_ENVOY_RETRIABLE_STATUS_CODES,
    Known::X_ENVOY_RETRIABLE_HEADER_NAMES,
]);

/// What a request's own headers ask of retries (`x-envoy-retry-on` and its kin).
#[derive(Default)]
struct RetryHeaders {
    on: RetryOn,
    max: Option<u32>,
    status_codes: Vec<u16>,
    response_headers: Vec<HeaderMatcher>,
}

impl RetryHeaders {
    /// Reads the headers and takes them off.
    fn take(headers: &mut Headers) -> RetryHeaders {
        // Few requests have any.
        if !headers.may_have(&STEERING) {
            return RetryHeaders::default();
        }
        let mut on = RetryOn::empty();
        for name in [Known::X_ENVOY_RETRY_ON, Known::X_ENVOY_RETRY_GRPC_ON] {
            on |= headers.get_str(name).map_or(RetryOn::empty(), |list| RetryOn::parse(list).0);
        }
        let present = |name: &str| {
            let target = HeaderTarget::of_response(name);
            Some(HeaderMatcher {
                target,
                test: HeaderMatch::Present(true),
                invert: false,
                missing_is_empty: false,
            })
        };
        let asked = RetryHeaders {
            on,
            max: headers.get_str(Known::X_ENVOY_MAX_RETRIES).and_then(|v| v.trim().parse().ok()),
            status_codes: list(headers, Known::X_ENVOY_RETRIABLE_STATUS_CODES, |t| t.parse().ok()),
            response_headers: list(headers, Known::X_ENVOY_RETRIABLE_HEADER_NAMES, present),
        };
        headers.remove_known(|known| STEERING.contains(known));
        asked
    }
}

fn list<T>(headers: &Headers, name: Known, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    headers.get_str(name).into_iter().flat_map(|v| v.split(',')).filter_map(|t| parse(t.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sixfold_core::retry::RateLimitedBackOff;

    fn state(on: RetryOn, retries: u32) -> RetryState {
        let policy = RetryPolicy {
            base_interval: Duration::from_millis(100),
            max_interval: Duration::from_secs(1),
            ..RetryPolicy::default()
        };
        let (status_codes, response_headers) = (Vec::new(), None);
        RetryState {
            conditions: Conditions { on, policy: Arc::new(policy), status_codes, response_headers },
            left: 1,
            retries,
            until: None,
            idempotent: true,
            permit: None,
            after_timeout: false,
        }
    }

    #[test]
    fn back_offs_are_spread_below_a_bound_that_doubles_up_to_the_maximum() {
        for (retries, bound) in
            [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (40, 1000), (u32::MAX, 1000)]
        {
            let bound = Duration::from_millis(bound);
            let waits = (0..1000).map(|_| state(RetryOn::SERVER_ERROR, retries).back_off());
            let waits: Vec<Duration> = waits.collect();
            assert!(waits.iter().all(|wait| *wait < bound), "retry {retries}");
            assert!(waits.iter().any(|wait| *wait > bound * 9 / 10), "retry {retries}");
            assert!(waits.iter().any(|wait| *wait < bound / 10), "retry {retries}");
        }
    }

    /// `Retry-After: 0` was a wait of nothing in the place of the back-off.
    #[test]
    fn a_header_that_asks_for_no_wait_leaves_the_back_off_in_force() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let wait = |unix_time, value: &str| {
            let mut limited = state(RetryOn::SERVER_ERROR, 1);
            let headers = vec![(HeaderTarget::of_response("retry-after"), unix_time)];
            let rate_limited = RateLimitedBackOff { headers, max_interval: Duration::from_secs(60) };
            limited.conditions.policy =
                Arc::new(RetryPolicy { rate_limited: Some(rate_limited), ..RetryPolicy::default() });
            let mut head = ResponseHead::default();
            head.headers.append(Known::RETRY_AFTER, value.as_bytes());
            limited.asked_to_wait(&head)
        };
        for (unix_time, value) in [(false, "0".to_owned()), (true, now.as_secs().to_string())] {
            assert_eq!(wait(unix_time, &value), None, "{value}");
        }
        let asked = wait(false, "2").map(|wait| wait.as_secs_f64());
        assert!(asked.is_some_and(|asked| (2.0..=3.0).contains(&asked)), "{asked:?}");
        assert_eq!(wait(false, "61"), None);
    }

    #[test]
    fn nginx_does_not_wait() {
        assert_eq!(state(RetryOn::NGINX_ERROR_TIMEOUT, 3).back_off(), Duration::ZERO);
    }
}
