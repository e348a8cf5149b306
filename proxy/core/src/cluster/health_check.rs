//! Active health checks, as configured.

use super::EventLog;
use crate::headers::HeaderName;
use std::ops::Range;
use std::time::Duration;

/// How endpoints are asked whether they are well (Envoy's HealthCheck).
#[derive(Debug)]
pub struct HealthCheck {
    /// Equal for checks that are configured alike: what is known of endpoints then goes on.
    pub fingerprint: u64,
    /// Bounds one check, connecting included.
    pub timeout: Duration,
    /// Time from the end of one check to the next.
    pub intervals: Intervals,
    /// Time before the first check: anything below this, by chance. 0 by default.
    pub initial_jitter: Duration,
    /// Added to every interval: anything below this, by chance. 0 by default.
    pub jitter: Duration,
    /// Added to every interval: anything below so much of it, percent, by chance. 0 by default.
    pub jitter_percent: u32,
    /// Checks that must fail one after the other before an endpoint is unhealthy, where the endpoint itself did not
    /// say so.
    pub unhealthy_threshold: u32,
    /// Checks that must pass one after the other before an endpoint is healthy again; the first ever is enough.
    pub healthy_threshold: u32,
    /// Keeps the connection for the next check; true by default.
    pub reuse_connection: bool,
    /// Checks another port than the endpoint's.
    pub port: Option<u16>,
    /// Whether a failure is logged each time, not only when the endpoint's health changes by it.
    pub log_failures: bool,
    /// The same of checks that pass.
    pub log_success: bool,
    /// Where events are logged beside the process's log.
    pub events: Vec<EventLog>,
    /// What is asked.
    pub probe: Probe,
}

/// Times between checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intervals {
    /// After a check that passed.
    pub healthy: Duration,
    /// After one that failed; `healthy` by default.
    pub unhealthy: Duration,
    /// After one that passed while the endpoint is not healthy yet; `healthy` by default.
    pub to_healthy: Duration,
    /// After one that failed while the endpoint is not unhealthy yet; `unhealthy` by default.
    pub to_unhealthy: Duration,
    /// While the cluster has never opened a connection for a request; 60 s by default.
    pub no_traffic: Duration,
    /// The same for endpoints that are healthy; `no_traffic` by default.
    pub no_traffic_healthy: Duration,
}

/// What an endpoint is asked.
#[derive(Debug)]
pub enum Probe {
    /// A request over HTTP.
    Http(Box<HttpProbe>),
    /// Whether it takes connections, and what it says to some bytes.
    Tcp(TcpProbe),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
}

/// A request over HTTP.
#[derive(Debug)]
pub struct HttpProbe {
    /// Host; the cluster's name by default.
    pub host: String,
    /// Path with query.
    pub path: String,
    /// Method, GET by default.
    pub method: http::Method,
    /// Body.
    pub send: Vec<u8>,
    /// Added to what every check has (`user-agent: Envoy/HC`).
    pub add: Vec<ProbeHeader>,
    /// Left out of it.
    pub remove: Vec<HeaderName>,
    /// HTTP/2 in place of HTTP/1.
    pub http2: bool,
    /// Statuses that pass, 200 by default.
    pub expected: Vec<Range<u16>>,
    /// Statuses that fail the check but count towards the threshold, as silence does.
    pub retriable: Vec<Range<u16>>,
    /// Pieces that the body must hold, in this order.
    pub receive: Vec<Vec<u8>>,
    /// What `x-envoy-upstream-healthchecked-cluster` must say (`service_name_matcher`).
    pub service: Option<crate::matcher::StringMatcher>,
}

/// A connection, and what is said on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpProbe {
    /// Sent once it is open.
    pub send: Vec<u8>,
    /// Pieces that the answer must hold, in this order; none at all: that it opens is enough.
    pub receive: Vec<Vec<u8>>,
}

/// A question of the gRPC health checking protocol.
#[derive(Debug)]
pub struct GrpcProbe {
    /// The service that is asked for; empty is the whole server.
    pub service: String,
    /// `:authority`; the cluster's name by default.
    pub authority: String,
    /// Metadata.
    pub metadata: Vec<ProbeHeader>,
}

/// A field of every check.
#[derive(Debug)]
pub struct ProbeHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: Vec<u8>,
    /// Takes the place of what there is of this name.
    pub replaces: bool,
}

crate::stat_block! {
    /// Statistics under `cluster.NAME.health_check.`.
    pub struct HealthCheckStats {
        counters: [attempt, success, failure, passive_failure, network_failure],
        gauges: [healthy, degraded],
        histograms: [],
        zeros: [Counter "verify_cluster"],
    }
}
