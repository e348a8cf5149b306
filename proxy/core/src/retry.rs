//! Retry policies: data here, the machinery is in the request path.

use crate::matcher::{HeaderMatcher, HeaderTarget};
use crate::message::Method;
use std::collections::BTreeMap;
use std::time::Duration;

bitflags::bitflags! {
    /// Conditions of `retry_on` and `x-envoy-retry-on` (source/common/router/retry_state_impl.cc).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct RetryOn: u32 {
        /// `5xx`
        const SERVER_ERROR = 1 << 0;
        /// `gateway-error`: 502, 503, 504
        const GATEWAY_ERROR = 1 << 1;
        /// `reset`
        const RESET = 1 << 2;
        /// `reset-before-request`
        const RESET_BEFORE_REQUEST = 1 << 3;
        /// `connect-failure`
        const CONNECT_FAILURE = 1 << 4;
        /// `envoy-ratelimited`
        const ENVOY_RATELIMITED = 1 << 5;
        /// `retriable-4xx`: 409
        const RETRIABLE_4XX = 1 << 6;
        /// `refused-stream`
        const REFUSED_STREAM = 1 << 7;
        /// `retriable-status-codes`
        const RETRIABLE_STATUS_CODES = 1 << 8;
        /// `retriable-headers`
        const RETRIABLE_HEADERS = 1 << 9;
        /// `http3-post-connect-failure`
        const HTTP3_POST_CONNECT_FAILURE = 1 << 10;
        /// gRPC `cancelled` (1)
        const GRPC_CANCELLED = 1 << 11;
        /// gRPC `deadline-exceeded` (4)
        const GRPC_DEADLINE_EXCEEDED = 1 << 12;
        /// gRPC `internal` (13)
        const GRPC_INTERNAL = 1 << 13;
        /// gRPC `resource-exhausted` (8)
        const GRPC_RESOURCE_EXHAUSTED = 1 << 14;
        /// gRPC `unavailable` (14)
        const GRPC_UNAVAILABLE = 1 << 15;
        /// nginx's `error timeout` as APISIX uses it: connection errors and timeouts before response bytes,
        /// and not for POST, LOCK and PATCH once the request was sent.
        const NGINX_ERROR_TIMEOUT = 1 << 16;
    }
}

impl RetryOn {
    /// Reads a comma-separated list; the second part of the answer is the tokens nobody knows.
    pub fn parse(list: &str) -> (RetryOn, Vec<&str>) {
        let mut on = RetryOn::empty();
        let mut unknown = Vec::new();
        for token in list.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            match RetryOn::token(token) {
                Some(bit) => on |= bit,
                None => unknown.push(token),
            }
        }
        (on, unknown)
    }

    fn token(token: &str) -> Option<RetryOn> {
        Some(match token {
            "5xx" => RetryOn::SERVER_ERROR,
            "gateway-error" => RetryOn::GATEWAY_ERROR,
            "reset" => RetryOn::RESET,
            "reset-before-request" => RetryOn::RESET_BEFORE_REQUEST,
            "connect-failure" => RetryOn::CONNECT_FAILURE,
            "envoy-ratelimited" => RetryOn::ENVOY_RATELIMITED,
            "retriable-4xx" => RetryOn::RETRIABLE_4XX,
            "refused-stream" => RetryOn::REFUSED_STREAM,
            "retriable-status-codes" => RetryOn::RETRIABLE_STATUS_CODES,
            "retriable-headers" => RetryOn::RETRIABLE_HEADERS,
            "http3-post-connect-failure" => RetryOn::HTTP3_POST_CONNECT_FAILURE,
            "cancelled" => RetryOn::GRPC_CANCELLED,
            "deadline-exceeded" => RetryOn::GRPC_DEADLINE_EXCEEDED,
            "internal" => RetryOn::GRPC_INTERNAL,
            "resource-exhausted" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            "unavailable" => RetryOn::GRPC_UNAVAILABLE,
            _ => return None,
        })
    }
}

/// A retry policy (config/route/v3 RetryPolicy; APISIX `retries` and `retry_timeout`).
#[derive(Debug)]
pub struct RetryPolicy {
    /// When to retry.
    pub on: RetryOn,
    /// Attempts after the first, 1 by default.
    pub num_retries: u32,
    /// Bounds each attempt; `None` is the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    /// Bounds the silence within an attempt.
    pub per_try_idle_timeout: Option<Duration>,
    /// Codes of `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// Response headers of `retriable-headers`; any may match.
    pub response_headers: Vec<HeaderMatcher>,
    /// Request headers that must match for any retry at all; any may match, empty allows.
    pub request_headers: Vec<HeaderMatcher>,
    /// First back-off interval, 25 ms by default.
    pub base_interval: Duration,
    /// Largest back-off interval, ten times the first by default.
    pub max_interval: Duration,
    /// Headers of a response that say how long to wait.
    pub rate_limited: Option<RateLimitedBackOff>,
    /// Hosts that are refused when a retry chooses one.
    pub host_predicates: Vec<HostPredicate>,
    /// Choices made before a refused host is taken anyway, 1 by default.
    pub host_attempts: u32,
    /// `previous_priorities`: update frequency.
    pub previous_priorities: Option<u32>,
    /// APISIX's `retry_timeout`: no new attempt after so long. `None` is off.
    pub deadline: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            on: RetryOn::empty(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            status_codes: Vec::new(),
            response_headers: Vec::new(),
            request_headers: Vec::new(),
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            rate_limited: None,
            host_predicates: Vec::new(),
            host_attempts: 1,
            previous_priorities: None,
            deadline: None,
        }
    }
}

/// Methods that nginx sends to the next upstream after the request was sent.
pub fn is_idempotent(method: &Method) -> bool {
    !(*method == Method::POST || *method == Method::PATCH || method.as_str() == "LOCK")
}

/// Envoy's RateLimitedRetryBackOff.
#[derive(Debug)]
pub struct RateLimitedBackOff {
    /// Header, and whether its value is a Unix time instead of seconds.
    pub headers: Vec<(HeaderTarget, bool)>,
    /// Longer waits are not taken, 300 s by default.
    pub max_interval: Duration,
}

/// Envoy's retry host predicates.
#[derive(Debug, Clone, PartialEq)]
pub enum HostPredicate {
    /// Hosts that were tried in this request.
    PreviousHosts,
    /// Hosts marked as canaries.
    OmitCanaryHosts,
    /// Hosts with this `envoy.lb` metadata.
    OmitHostMetadata(BTreeMap<String, serde_json::Value>),
}
