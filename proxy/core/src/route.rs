//! Compiled routes and what they do with a request.

use crate::cluster::{ClusterCell, ClusterConfig, Criteria};
use crate::format::{BodyVariable, Format};
use crate::header_ops::HeaderOps;
use crate::matcher::{HeaderMatcher, HeaderTarget};
use crate::metadata::Metadata;
use crate::metrics::Registry;
use crate::metrics::responses::Responses;
use crate::plugin::Chain;
use crate::regex::{Regex, Rewrite};
use crate::trace::RouteTracing;
use bytes::Bytes;
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

mod ids;
mod predicate;
mod told;

pub use self::ids::Ids;
pub use self::predicate::{HostPattern, Predicate};
pub use crate::internal_redirect::InternalRedirect;
pub use crate::mirror::{MirrorHost, MirrorPolicy};
pub use crate::rate_limit::RouteLimits;
pub use crate::retry::RetryPolicy;
pub use crate::router::{PathMatch, RouteTable, VirtualHost};

/// One route: when it is meant, and what it does.
#[derive(Debug)]
pub struct Route {
    /// `%ROUTE_NAME%`, APISIX's `route_name`; empty when the configuration gives none.
    pub name: Arc<str>,
    /// APISIX's route id and service id, for variables, metrics and limiter keys.
    pub ids: Ids,
    /// The path it is for.
    pub path: PathMatch,
    /// Every other condition, in the source's own order; all must hold.
    pub predicates: Arc<[Predicate]>,
    /// APISIX's `priority`: larger goes first among routes of one path. Envoy's routes leave it 0.
    pub priority: i64,
    /// What to do.
    pub action: Action,
    /// Header changes of the route on the request.
    pub request_headers: HeaderOps,
    /// Header changes of the route on the response.
    pub response_headers: HeaderOps,
    /// Plugins of the route (those of service, plugin config and global rules merged in), or the filters
    /// of the connection manager with this route's settings. `None` takes the connection manager's chain.
    pub chain: Option<Arc<Chain>>,
    /// Metadata by namespace, as JSON (`%METADATA(ROUTE:…)%`, load balancer subsets).
    pub metadata: Metadata,
    /// Statistics under `vhost.V.route.R.` when `stat_prefix` is set.
    pub stats: Option<Arc<RouteStats>>,
    /// What few configurations say of routes.
    pub rare: Option<Box<RareOptions>>,
}

/// What few configurations say of routes.
#[derive(Debug, Default)]
pub struct RareOptions {
    /// `request_body_buffer_limit`, bytes kept for a retry; `None` takes the listener's limit.
    pub body_buffer_limit: Option<u64>,
    /// What the operation is called.
    pub decorator: Option<Decorator>,
    /// How its requests are traced, if not as the connection manager says.
    pub tracing: Option<RouteTracing>,
}

impl RareOptions {
    /// Itself, if it says anything.
    pub fn boxed(self) -> Option<Box<RareOptions>> {
        let RareOptions { body_buffer_limit, decorator, tracing } = &self;
        let says = body_buffer_limit.is_some() || decorator.is_some() || tracing.is_some();
        says.then(|| Box::new(self))
    }
}

/// The name of an operation (config/route/v3 Decorator).
#[derive(Debug, PartialEq, Eq)]
pub struct Decorator {
    /// The name.
    pub operation: Arc<str>,
    /// Whether the other side of the call is told.
    pub propagate: bool,
}

impl Route {
    /// A route for `path` that does `action`, with nothing else set.
    pub fn new(path: PathMatch, action: Action) -> Route {
        Route {
            name: "".into(),
            ids: Ids::default(),
            path,
            predicates: Arc::default(),
            priority: 0,
            action,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            chain: None,
            metadata: Metadata::default(),
            stats: None,
            rare: None,
        }
    }

    /// The chains that its requests may run.
    pub(crate) fn chains(&self) -> impl Iterator<Item = &Arc<Chain>> {
        let members = match self.leads_to() {
            Some(ClusterChoice::Weighted(weighted)) => &weighted.clusters[..],
            _ => &[],
        };
        self.chain.iter().chain(members.iter().filter_map(|member| member.chain.as_ref()))
    }

    /// How its cluster is chosen, if its requests go to one.
    pub fn leads_to(&self) -> Option<&ClusterChoice> {
        match &self.action {
            Action::Forward(forward) => Some(&forward.cluster),
            _ => None,
        }
    }

    /// Bytes kept for a retry; `None` takes the virtual host's limit, or the listener's.
    pub fn body_buffer_limit(&self) -> Option<u64> {
        self.rare.as_ref()?.body_buffer_limit
    }

    /// How its requests are traced, if not as the connection manager says.
    pub fn tracing(&self) -> Option<&RouteTracing> {
        self.rare.as_ref()?.tracing.as_ref()
    }

    /// What the operation is called.
    pub fn decorator(&self) -> Option<&Decorator> {
        self.rare.as_ref()?.decorator.as_ref()
    }
}

crate::stat_block! {
    /// What Envoy counts of a route with a `stat_prefix` and of a virtual cluster from the start.
    pub struct RouteCounts {
        counters: [
            upstream_rq_total, upstream_rq_timeout, upstream_rq_retry, upstream_rq_retry_success,
            upstream_rq_retry_overflow, upstream_rq_retry_limit_exceeded,
        ],
        gauges: [], histograms: [],
    }
}

/// Statistics of a route with a `stat_prefix`, or of a virtual cluster.
pub struct RouteStats {
    counts: RouteCounts,
    /// Responses, shown once there was one.
    pub responses: Responses,
}

impl RouteStats {
    /// Zeros under `prefix`.
    pub fn new(registry: &Registry, prefix: &str) -> RouteStats {
        RouteStats {
            counts: RouteCounts::new(registry, prefix),
            responses: Responses::sparse(registry, prefix),
        }
    }
}

impl Deref for RouteStats {
    type Target = RouteCounts;
    fn deref(&self) -> &RouteCounts {
        &self.counts
    }
}

impl std::fmt::Debug for RouteStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RouteStats")
    }
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request to a cluster.
    Forward(Forward),
    /// Answers with a location.
    Redirect(Box<Redirect>),
    /// Answers by itself.
    Direct(Box<DirectResponse>),
    /// Envoy's `non_forwarding_action`: 503 NC when it is hit.
    NonForwarding,
}

/// How a request is forwarded.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterChoice,
    /// All the rest, which routes that say the same may share: of thousands of routes most do.
    pub options: Arc<ForwardOptions>,
}

impl Forward {
    /// Forwards to the cluster that a plugin has chosen, as its source has prepared that.
    pub fn to_chosen(cluster: Arc<ClusterCell>) -> Forward {
        let manner = cluster.load().and_then(|cluster| cluster.config.manner.clone());
        let options = manner.and_then(|manner| manner.downcast().ok()).unwrap_or_default();
        Forward { cluster: ClusterChoice::Named(cluster), options }
    }

    /// Forwards to `cluster`, with nothing else set: no timeout, no retry, no change.
    pub fn to(cluster: ClusterChoice) -> Forward {
        Forward { cluster, options: Arc::default() }
    }

    /// The policy that retries of a request follow: the cluster's own, else the route's, else that of the virtual host.
    pub fn retry_policy<'a>(
        &'a self,
        cluster: Option<&'a ClusterConfig>,
        host: Option<&VirtualHost>,
    ) -> Option<Cow<'a, Arc<RetryPolicy>>> {
        let own = cluster.and_then(|cluster| cluster.retry.as_ref()).or(self.retry.as_ref());
        let of_host = || host.and_then(|host| host.options.retry.clone());
        // What is only looked at is counted nowhere.
        own.map(Cow::Borrowed).or_else(|| of_host().map(Cow::Owned))
    }
}

impl Deref for Forward {
    type Target = ForwardOptions;

    #[inline]
    fn deref(&self) -> &ForwardOptions {
        &self.options
    }
}

/// How a request is forwarded, wherever it goes.
#[derive(Debug)]
pub struct ForwardOptions {
    /// Status of the answer when the cluster does not exist: 503, 404 or 500 (`cluster_not_found_response_code`).
    pub cluster_not_found: u16,
    /// What replaces the path.
    pub path_rewrite: Option<Box<PathRewrite>>,
    /// What replaces the host.
    pub host_rewrite: Option<Box<HostRewrite>>,
    /// Whether the old host goes to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// How long and how often.
    pub timeouts: Timeouts,
    /// Whether the route says the timeouts itself, and not its upstream: then they are also those of another that a plugin
    /// chooses.
    pub own_timeouts: bool,
    /// Retries; `None` takes the virtual host's policy.
    pub retry: Option<Arc<RetryPolicy>>,
    /// What is hashed for consistent-hash balancers and weighted clusters.
    pub hash: Box<[HashPolicy]>,
    /// Metadata that chooses a subset of the cluster: `envoy.lb` keys and values.
    pub metadata_match: Criteria,
    /// Upgrades allowed or forbidden by this route: type in lower case, and whether it is enabled.
    pub upgrades: Box<[(Box<str>, bool)]>,
    /// CONNECT ends here, and its bytes go to the endpoint as they are (`connect_config`).
    pub connect_tcp: bool,
    /// Circuit breaker class: HIGH if set.
    pub high_priority: bool,
    /// Who gets a copy of requests: the route's policies, or the virtual host's, or the table's; `None` is nobody.
    pub mirrors: Option<Arc<[MirrorPolicy]>>,
    /// Internal redirects; `None` passes redirects on to the client.
    pub internal_redirect: Option<Box<InternalRedirect>>,
    /// Slow attempts are joined by another instead of being reset (`hedge_on_per_try_timeout`).
    pub hedge_on_per_try_timeout: bool,
    /// What rate limits are told of requests; `None` is what the virtual host says.
    pub rate_limits: Option<Arc<RouteLimits>>,
    /// How the upstream's Host is made when nothing above rewrites it.
    pub pass_host: PassHost,
}

impl Default for ForwardOptions {
    fn default() -> ForwardOptions {
        ForwardOptions {
            cluster_not_found: 503,
            path_rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            timeouts: Timeouts::default(),
            own_timeouts: false,
            retry: None,
            hash: Box::default(),
            metadata_match: Criteria::default(),
            upgrades: Box::default(),
            connect_tcp: false,
            high_priority: false,
            mirrors: None,
            internal_redirect: None,
            hedge_on_per_try_timeout: false,
            rate_limits: None,
            pass_host: PassHost::Pass,
        }
    }
}

/// APISIX's `pass_host`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum PassHost {
    /// The client's Host; what Envoy does too.
    #[default]
    Pass,
    /// The node's own name or address, with its port unless it is the scheme's.
    Node,
    /// A fixed one.
    Rewrite(Box<str>),
}

/// Which cluster gets the request.
#[derive(Debug)]
pub enum ClusterChoice {
    /// This one.
    Named(Arc<ClusterCell>),
    /// The one named by a request header's first value (`cluster_header`).
    Header(Box<HeaderTarget>, Arc<crate::cluster::Clusters>),
    /// One of several by weight.
    Weighted(Box<WeightedClusters>),
}

/// Envoy's `weighted_clusters`.
#[derive(Debug)]
pub struct WeightedClusters {
    /// Members in the configuration's order.
    pub clusters: Box<[WeightedCluster]>,
    /// Sum of the weights; 0 when all are 0.
    pub total: u64,
    /// Header whose integer value takes the random number's place.
    pub random_header: Option<HeaderTarget>,
    /// Takes the hash policy's hash for the random number.
    pub use_hash: bool,
}

/// A member of weighted clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Where to: a name, or a header with the name.
    pub cluster: ClusterChoice,
    /// Its share of the total.
    pub weight: u64,
    /// Header changes of the member on the request; they run before the route's.
    pub request_headers: HeaderOps,
    /// Header changes of the member on the response.
    pub response_headers: HeaderOps,
    /// Replaces the host before the route's header changes, which see it, and before its own rewrite of the host.
    pub host_rewrite: Option<Box<str>>,
    /// The route's `metadata_match` with the member's over it.
    pub metadata_match: Criteria,
    /// The chain with the member's per-filter settings; `None` takes the route's.
    pub chain: Option<Arc<Chain>>,
}

/// What replaces the path of a forwarded request. The query stays.
#[derive(Debug)]
pub enum PathRewrite {
    /// Replaces the matched text: the prefix, or the whole path of exact and regex matches.
    Prefix(Box<[u8]>),
    /// Replaces every match in the path.
    Regex(Regex, Rewrite),
    /// A format string.
    Format(Format),
    /// Envoy's uri_template: text and the captures of the match, in a new order.
    Template(Box<[TemplatePart]>),
}

/// A part of a uri_template rewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// Literal text.
    Text(Box<[u8]>),
    /// Value of a captured variable.
    Capture(Arc<str>),
}

/// What replaces the host of a forwarded request.
#[derive(Debug)]
pub enum HostRewrite {
    /// This text.
    Literal(Box<[u8]>),
    /// First value of a request header; nothing when it is absent.
    Header(HeaderTarget),
    /// A regex on the unrewritten path; the whole path when nothing matches.
    PathRegex(Regex, Rewrite),
    /// A format string.
    Format(Format),
    /// `auto_host_rewrite`: the endpoint's hostname, if it has one.
    Endpoint,
}

/// Timeouts of a forwarded request. `None` is off or the outer level's value, as each field says.
#[derive(Debug, Clone, Default)]
pub struct Timeouts {
    /// Whole response, all retries included, from the end of the request; 15 s by default in Envoy,
    /// off for APISIX. `None` is off.
    pub request: Option<Duration>,
    /// No event on the stream for so long; `None` takes the connection manager's, zero is off.
    pub idle: Option<Duration>,
    /// The route has a `max_stream_duration`, if an empty one: the stream is what is bounded, `request` is off,
    /// and a gRPC upstream hears of the bound (Envoy's `usingNewTimeouts`).
    pub by_stream: bool,
    /// `max_stream_duration` of the route; `None` takes the connection manager's, zero is off.
    pub max_stream: Option<Duration>,
    /// `grpc_timeout_header_max`: the grpc-timeout header bounds the stream, capped by this unless zero.
    pub grpc_timeout_header_max: Option<Duration>,
    /// Taken off a grpc-timeout header that is used.
    pub grpc_timeout_header_offset: Option<Duration>,
    /// The deprecated `max_grpc_timeout`: the grpc-timeout header replaces `request`, capped unless zero.
    pub max_grpc: Option<Duration>,
    /// The deprecated `grpc_timeout_offset`.
    pub grpc_offset: Option<Duration>,
    /// Guards the final write to a slow client (`flush_timeout`); `None` takes `idle`.
    pub flush: Option<Duration>,
    /// APISIX `timeout.connect`; `None` takes the cluster's.
    pub connect: Option<Duration>,
    /// APISIX `timeout.send`: no progress in sending upstream for so long. `None` is off.
    pub send: Option<Duration>,
    /// APISIX `timeout.read`: no progress in reading from upstream for so long. `None` is off.
    pub read: Option<Duration>,
    /// Of a connection of TCP or UDP: how long both sides may be silent, the longer of APISIX's `timeout.send` and
    /// `timeout.read`; `None` is [`SILENCE`](crate::listener::SILENCE).
    pub silence: Option<Duration>,
}

/// One input of a consistent hash (route_components.proto HashPolicy; APISIX chash).
#[derive(Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub input: HashInput,
    /// Stops at this policy once something was hashed.
    pub terminal: bool,
}

/// What a hash policy looks at.
#[derive(Debug)]
pub enum HashInput {
    /// All values of a header or pseudo header, sorted, optionally rewritten first.
    Header(HeaderTarget, Option<(Regex, Rewrite)>),
    /// A cookie; made when it is missing and has a `ttl`.
    Cookie {
        /// Name.
        name: Box<str>,
        /// Lifetime of a made cookie; zero is a session cookie, `None` makes none.
        ttl: Option<Duration>,
        /// `Path` of a made cookie.
        path: Box<str>,
        /// Further attributes, in order.
        attributes: Box<[(Box<str>, Box<str>)]>,
    },
    /// First value of a query parameter.
    Query(Box<str>),
    /// The trusted client address.
    SourceIp,
    /// An object of the filter state, if it is hashable.
    FilterState(Box<str>),
    /// APISIX's key: a variable or a template of variables, hashed by CRC-32; the client address when empty.
    Key(Format),
}

impl HashInput {
    /// Whether it is in the request's body.
    pub fn is_of_body(&self) -> bool {
        matches!(self, HashInput::Key(format) if format.is_of_body())
    }

    /// What of it is in the request's body.
    pub fn body_variables(&self) -> Vec<Arc<BodyVariable>> {
        match self {
            HashInput::Key(format) => format.body_variables(),
            _ => Vec::new(),
        }
    }
}

/// Envoy's RedirectAction.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `https_redirect` or `scheme_redirect`.
    pub scheme: Option<Box<str>>,
    /// `host_redirect`
    pub host: Option<Box<str>>,
    /// `port_redirect`
    pub port: Option<u16>,
    /// What becomes of the path.
    pub path: RedirectPath,
    /// Drops the query.
    pub strip_query: bool,
}

/// What a redirect does with the path.
#[derive(Debug)]
pub enum RedirectPath {
    /// Keeps it.
    Keep,
    /// `path_redirect`: replaces path, and the query too if this holds one.
    Replace(Box<[u8]>),
    /// `prefix_rewrite`
    Prefix(Box<[u8]>),
    /// `regex_rewrite`
    Regex(Regex, Rewrite),
}

/// An answer without an upstream.
#[derive(Debug)]
pub struct DirectResponse {
    /// Status code.
    pub status: u16,
    /// Body as configured.
    pub body: Bytes,
    /// A body with operators, in `body`'s place.
    pub body_format: Option<Arc<BodyFormat>>,
}

/// A formatted body (core/v3/substitution_format_string.proto).
#[derive(Debug)]
pub struct BodyFormat {
    /// Text or JSON with operators.
    pub format: Format,
    /// `application/json` for JSON, `text/plain` for text, or what `content_type` says.
    pub content_type: Box<str>,
}

/// Envoy's virtual cluster: statistics of the requests that match.
#[derive(Debug)]
pub struct VirtualCluster {
    /// `%VIRTUAL_CLUSTER_NAME%`
    pub name: Arc<str>,
    /// All must match.
    pub headers: Vec<HeaderMatcher>,
    /// Under `vhost.V.vcluster.NAME.`.
    pub stats: Arc<RouteStats>,
}

/// Envoy's `require_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Plain text is fine.
    #[default]
    None,
    /// Requests from outside must have come by TLS.
    ExternalOnly,
    /// All requests must have come by TLS.
    All,
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::{Action, ClusterChoice, Forward, ForwardOptions, Route};
    use crate::router::PathMatch;

    /// A route that does nothing.
    pub(crate) fn route(path: PathMatch) -> Route {
        Route::new(path, Action::NonForwarding)
    }

    /// Forwards to nowhere.
    pub(crate) fn forward(options: ForwardOptions) -> Forward {
        let clusters = std::sync::Arc::default();
        let nobody = ClusterChoice::Header(crate::matcher::HeaderTarget::Impossible.into(), clusters);
        Forward { options: options.into(), ..Forward::to(nobody) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are thousands of them. A route was 480 bytes, and 576 more when it forwarded.
    #[test]
    fn a_route_is_small() {
        let sizes = [size_of::<Route>(), size_of::<Forward>(), size_of::<PathMatch>()];
        assert!(sizes.iter().zip([280, 32, 24]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
