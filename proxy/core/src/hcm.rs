//! The connection manager of HTTP: everything about a listener's HTTP traffic but its routes.

use crate::access_log::AccessLog;
use crate::cluster::{HeaderCase, Http2Options};
use crate::header_ops::HeaderOps;
use crate::headers::HeaderRules;
use crate::plugin::Chain;
pub use crate::profile::Profile;
use crate::route::BodyFormat;
use crate::router::RouteTableCell;
use crate::trace::{Reason, Tracing};
use bytes::Bytes;
use ipnet::IpNet;
use std::sync::Arc;
use std::time::Duration;

/// A compiled HttpConnectionManager, or APISIX's HTTP subsystem on one listener.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Whose manners.
    pub profile: Profile,
    /// Prefix of statistics, without `http.` and the final dot.
    pub stat_prefix: Arc<str>,
    /// Statistics under `http.PREFIX.`.
    pub stats: Arc<HttpStats>,
    /// Version choice.
    pub codec: CodecType,
    /// The routes.
    pub routes: Arc<RouteTableCell>,
    /// How long a listener that is new waits for the first table before it serves without; `None` is for ever
    /// (`initial_fetch_timeout`, 15 s by default, 0 for none). It is of no account when the table is there.
    pub first_table: Option<Duration>,
    /// HTTP filters with the listener's settings, in order, the router not among them.
    pub chain: Arc<Chain>,
    /// HTTP/1 options.
    pub http1: ServerHttp1,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// What is let pass of requests' fields, over every version of HTTP.
    pub header_rules: HeaderRules,
    /// How the path is made ready for matching.
    pub path: PathOptions,
    /// Whom to believe.
    pub client_address: ClientAddress,
    /// Header rules at the edge.
    pub headers: EdgeHeaders,
    /// Timeouts.
    pub timeouts: ConnectionTimeouts,
    /// Upgrades: type in lower case, whether it is enabled.
    pub upgrades: Box<[(Box<str>, bool)]>,
    /// Access logs.
    pub access_logs: Vec<AccessLog>,
    /// How local replies look.
    pub local_reply: LocalReplyConfig,
    /// Options of Envoy's router filter.
    pub router: RouterOptions,
    /// Requests on one connection, then it is closed. `None` is unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// Bytes buffered on either side before reading stops, 1 MiB by default (`per_connection_buffer_limit_bytes`).
    pub buffer_limit: usize,
    /// `client_max_body_size` of APISIX's nginx; 413 beyond. `None` is unlimited.
    pub max_body: Option<u64>,
    /// Shows the list of upstream statuses even when the last is no 5xx (APISIX).
    pub show_upstream_status: bool,
    /// The charset that texts have whose `Content-Type` names none (nginx's `charset`).
    pub charset: Option<Box<str>>,
    /// Which requests are traced, and who is told; `None` without `tracing`.
    pub tracing: Option<Box<Tracing>>,
}

/// Whose part of a call a connection manager sees, by its listener's `traffic_direction` (Envoy's `OperationName`).
/// Both parts tell each other what the operation is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The caller's: the listener is OUTBOUND.
    Client,
    /// The called one's: any other listener.
    Server,
}

crate::stat_block! {
    /// Statistics of a connection manager.
    pub struct HttpStats {
        counters: [
            downstream_cx_total, downstream_cx_http1_total, downstream_cx_http2_total, downstream_cx_ssl_total,
            downstream_cx_destroy, downstream_cx_destroy_local, downstream_cx_destroy_remote,
            downstream_cx_destroy_active_rq, downstream_cx_destroy_local_active_rq,
            downstream_cx_destroy_remote_active_rq,
            downstream_cx_protocol_error, downstream_cx_idle_timeout, downstream_cx_max_duration_reached,
            downstream_cx_max_requests_reached, downstream_cx_drain_close, downstream_cx_overload_disable_keepalive, downstream_rq_overload_close,
            downstream_cx_rx_bytes_total, downstream_cx_tx_bytes_total, downstream_cx_upgrades_total,
            downstream_rq_total, downstream_rq_http1_total, downstream_rq_http2_total, downstream_rq_completed,
            downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx, downstream_rq_5xx,
            downstream_rq_timeout, downstream_rq_idle_timeout, downstream_rq_header_timeout,
            downstream_rq_max_duration_reached, downstream_rq_rx_reset, downstream_rq_tx_reset,
            downstream_rq_response_before_rq_complete,
            downstream_rq_too_large, downstream_rq_ws_on_non_ws_route,
            downstream_rq_redirected_with_normalized_path, downstream_rq_rejected_via_ip_detection,
            downstream_rq_failed_path_normalization,
            no_route, no_cluster, rq_direct_response, rq_total,
            rq_reset_after_downstream_response_started, downstream_rq_non_relative_path,
            passthrough_internal_redirect_bad_location, passthrough_internal_redirect_no_route,
            passthrough_internal_redirect_predicate, passthrough_internal_redirect_too_many_redirects,
            passthrough_internal_redirect_unsafe_scheme,
            downstream_cx_delayed_close_timeout, downstream_rq_too_many_premature_resets,
            tracing_random_sampling = "tracing.random_sampling", tracing_client_enabled = "tracing.client_enabled",
            tracing_service_forced = "tracing.service_forced", tracing_not_traceable = "tracing.not_traceable",
            tracing_health_check = "tracing.health_check",
        ],
        gauges: [
            downstream_cx_active, downstream_cx_http1_active, downstream_cx_http2_active, downstream_cx_ssl_active,
            downstream_cx_upgrades_active, downstream_rq_active,
        ],
        histograms: [downstream_rq_time, downstream_cx_length_ms],
        zeros: [
            Counter "rq_redirect", Gauge "downstream_cx_http1_soft_drain", Counter "downstream_cx_http3_total", Counter "downstream_rq_http3_total",
            Gauge "downstream_cx_http3_active", Gauge "downstream_cx_rx_bytes_buffered",
            Gauge "downstream_cx_tx_bytes_buffered", Counter "downstream_flow_control_paused_reading_total",
            Counter "downstream_flow_control_resumed_reading_total", Counter "rq_overload_local_reply",
            Counter "rs_too_large",
        ],
    }
}

crate::stat_block! {
    /// What of them is shown under `listener.ADDRESS.http.PREFIX.` too.
    pub struct ListenerHttpStats {
        counters: [
            downstream_rq_completed, downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx,
            downstream_rq_5xx,
        ],
        gauges: [],
        histograms: [],
    }
}

impl HttpStats {
    /// Counts a 100, which Envoy takes for a response that is complete.
    pub fn count_interim(&self) {
        self.downstream_rq_completed().inc();
        self.count_class(100);
    }

    /// Counts why a request is traced, or that it is not.
    pub fn count_trace(&self, reason: Reason) {
        match reason {
            Reason::None => self.tracing_not_traceable().inc(),
            Reason::Sampling => self.tracing_random_sampling().inc(),
            Reason::Client => self.tracing_client_enabled().inc(),
            Reason::Service => self.tracing_service_forced().inc(),
        }
    }

    /// Counts a response by the class of its status.
    pub fn count_class(&self, status: u16) {
        crate::metrics::count_class(status, self.downstream_rq_1xx());
    }
}

impl std::fmt::Debug for HttpStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpStats")
    }
}

/// Which version a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CodecType {
    /// ALPN, else the HTTP/2 preface.
    #[default]
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// HTTP/1 towards clients (core/v3/protocol.proto Http1ProtocolOptions and its neighbours).
#[derive(Debug, Clone)]
pub struct ServerHttp1 {
    /// Accepts HTTP/1.0.
    pub accept_http_10: bool,
    /// Host of HTTP/1.0 requests that name none.
    pub default_host: Option<Box<str>>,
    /// Accepts Content-Length with chunked and drops the length.
    pub allow_chunked_length: bool,
    /// Passes trailers.
    pub enable_trailers: bool,
    /// How names of responses are spelled.
    pub header_case: HeaderCase,
    /// Accepts absolute-form targets, on by default.
    pub allow_absolute_url: bool,
    /// Refuses what the recorded Envoy lets pass: obs-fold and bare LF.
    pub strict: bool,
    /// Bytes of a request head, 60 KiB by default.
    pub max_head_bytes: usize,
    /// Forwards `Expect: 100-continue` instead of answering it.
    pub proxy_100_continue: bool,
}

impl Default for ServerHttp1 {
    fn default() -> ServerHttp1 {
        ServerHttp1 {
            accept_http_10: false,
            default_host: None,
            allow_chunked_length: false,
            enable_trailers: false,
            header_case: HeaderCase::Lower,
            allow_absolute_url: true,
            strict: false,
            max_head_bytes: 60 << 10,
            proxy_100_continue: false,
        }
    }
}

/// How the path is made ready for matching (behaviour: conn_manager_utility.cc `maybeNormalizePath`).
#[derive(Debug, Clone, Copy, Default)]
pub struct PathOptions {
    /// RFC 3986 normalisation.
    pub normalize: bool,
    /// Runs of slashes become one.
    pub merge_slashes: bool,
    /// Cuts a fragment off in the place of refusing the request by 400 (Envoy's runtime key
    /// `envoy.reloadable_features.http_reject_path_with_fragment`, turned).
    pub cut_fragment: bool,
    /// What to do with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
    /// Removes the listener's own port from the host.
    pub strip_matching_port: bool,
    /// Removes any port from the host.
    pub strip_any_port: bool,
    /// Removes a dot at the end of the host.
    pub strip_trailing_dot: bool,
    /// nginx's normalisation of APISIX's `uri`: decoded, dot segments resolved, slashes merged; matching
    /// uses it, the upstream gets it too unless a plugin rewrites it.
    pub apisix: Option<ApisixPath>,
}

/// `path_with_escaped_slashes_action`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Leaves them.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescapes and goes on.
    UnescapeAndForward,
}

/// APISIX's options for the path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApisixPath {
    /// `delete_uri_tail_slash`
    pub delete_tail_slash: bool,
    /// `normalize_uri_like_servlet`
    pub like_servlet: bool,
    /// `match_uri_encoded_slash`
    pub match_encoded_slash: bool,
}

/// Whom to believe about the client's address.
#[derive(Debug, Clone, Default)]
pub struct ClientAddress {
    /// `use_remote_address`: an edge proxy.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`
    pub trusted_hops: u32,
    /// `skip_xff_append`
    pub skip_xff_append: bool,
    /// `internal_address_config` ranges; empty: nothing is internal.
    pub internal_ranges: Vec<IpNet>,
    /// Detection extensions, in order, in place of the rules above.
    pub detection: Vec<Detection>,
    /// APISIX: peers whose `real_ip_header` is believed.
    pub real_ip_from: Vec<IpNet>,
    /// APISIX: the header, `X-Real-IP` by default; `None` in Envoy's profile.
    pub real_ip_header: Option<crate::headers::HeaderName>,
    /// APISIX: walks the header's list from the right past trusted addresses.
    pub real_ip_recursive: bool,
    /// APISIX: peers whose X-Forwarded-* headers are believed; `None` overwrites them always.
    pub trusted_addresses: Option<Vec<IpNet>>,
}

impl ClientAddress {
    /// Whether nobody stands before this proxy whose word on the scheme counts: the client's own never does.
    pub fn is_first_hop(&self) -> bool {
        self.use_remote_address && self.trusted_hops == 0
    }
}

/// Envoy's original IP detection extensions.
#[derive(Debug, Clone)]
pub enum Detection {
    /// X-Forwarded-For with a number of trusted hops.
    XffHops(u32, bool),
    /// X-Forwarded-For, walking left past these ranges.
    XffTrusted(Vec<IpNet>, bool),
    /// A header with the address.
    Header {
        /// Its name.
        name: crate::headers::HeaderName,
        /// Whether an address found there is trusted (allowed to be internal).
        trusted: bool,
        /// Status of the answer when the header is missing or wrong; `None` goes on.
        reject: Option<u16>,
    },
}

/// Header rules at the edge of the proxy.
#[derive(Debug, Clone)]
pub struct EdgeHeaders {
    /// `server_name`, `envoy` by default.
    pub server_name: Box<str>,
    /// What is done with the upstream's `server`.
    pub server: ServerHeader,
    /// Makes `x-request-id`, on by default.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`
    pub preserve_request_id: bool,
    /// `always_set_request_id_in_response`
    pub request_id_in_response: bool,
    /// Appended to `via` both ways; empty for none.
    pub via: Box<str>,
    /// `append_x_forwarded_port`
    pub append_forwarded_port: bool,
    /// `add_user_agent`: name of the local cluster and node.
    pub add_user_agent: Option<(Box<str>, Box<str>)>,
    /// `scheme_header_transformation`
    pub scheme: Option<crate::message::Scheme>,
    /// `forward_client_cert_details`
    pub xfcc: ForwardClientCert,
    /// `set_current_client_cert_details`
    pub xfcc_details: XfccDetails,
    /// `proxy_status_config`: the proxy's name, and what to leave out.
    pub proxy_status: Option<ProxyStatus>,
    /// The host's own address, appended to XFF for loopback peers.
    pub local_address: Option<std::net::IpAddr>,
}

impl Default for EdgeHeaders {
    fn default() -> EdgeHeaders {
        EdgeHeaders {
            server_name: "envoy".into(),
            server: ServerHeader::Overwrite,
            generate_request_id: true,
            preserve_request_id: false,
            request_id_in_response: false,
            via: "".into(),
            append_forwarded_port: false,
            add_user_agent: None,
            scheme: None,
            xfcc: ForwardClientCert::Sanitize,
            xfcc_details: XfccDetails::default(),
            proxy_status: None,
            local_address: None,
        }
    }
}

/// `server_header_transformation`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    /// Always ours.
    #[default]
    Overwrite,
    /// Ours when the upstream sent none.
    AppendIfAbsent,
    /// The upstream's or none.
    PassThrough,
}

/// `forward_client_cert_details`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// Removes the header.
    #[default]
    Sanitize,
    /// Passes the client's on mutual TLS.
    ForwardOnly,
    /// Adds our element on mutual TLS.
    AppendForward,
    /// Replaces it on mutual TLS.
    SanitizeSet,
    /// Passes it always.
    AlwaysForwardOnly,
}

/// Parts of an XFCC element beside By and Hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XfccDetails {
    /// `Subject`
    pub subject: bool,
    /// `Cert`
    pub cert: bool,
    /// `Chain`
    pub chain: bool,
    /// `DNS`
    pub dns: bool,
    /// `URI`
    pub uri: bool,
}

/// `proxy_status_config`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Name of the proxy: the server name, a node id or a literal.
    pub name: Box<str>,
    /// Leaves `details` out.
    pub remove_details: bool,
    /// Leaves the connection's termination details out.
    pub remove_connection_details: bool,
    /// Leaves the response flags out.
    pub remove_flags: bool,
    /// Sets the status code that RFC 9209 recommends for the error.
    pub set_status: bool,
}

/// Timeouts of a connection manager; `None` is off.
#[derive(Debug, Clone)]
pub struct ConnectionTimeouts {
    /// No event on a stream for so long, 5 min by default.
    pub stream_idle: Option<Duration>,
    /// Until the request is complete.
    pub request: Option<Duration>,
    /// Between two reads of a request's body (nginx's `client_body_timeout`).
    pub body: Option<Duration>,
    /// Between two writes to the client that it takes something of (nginx's `send_timeout`).
    pub send: Option<Duration>,
    /// Until the request's head is complete.
    pub request_headers: Option<Duration>,
    /// Whole stream.
    pub max_stream: Option<Duration>,
    /// Connection without a stream, 1 h by default.
    pub idle: Option<Duration>,
    /// Whole connection.
    pub max_connection: Option<Duration>,
    /// Time between a GOAWAY and the last one, 5 s by default.
    pub drain: Duration,
    /// Wait after a close that the client may read the answer, 1 s by default.
    pub delayed_close: Duration,
}

impl Default for ConnectionTimeouts {
    fn default() -> ConnectionTimeouts {
        ConnectionTimeouts {
            stream_idle: Some(Duration::from_secs(300)),
            request: None,
            body: None,
            send: None,
            request_headers: None,
            max_stream: None,
            idle: Some(Duration::from_secs(3600)),
            max_connection: None,
            drain: Duration::from_secs(5),
            delayed_close: Duration::from_secs(1),
        }
    }
}

/// How local replies look (`local_reply_config`).
#[derive(Debug, Default)]
pub struct LocalReplyConfig {
    /// The first whose filter passes is used.
    pub mappers: Vec<LocalReplyMapper>,
    /// Format of all local replies.
    pub body_format: Option<Arc<BodyFormat>>,
}

/// One entry of `local_reply_config.mappers`.
#[derive(Debug)]
pub struct LocalReplyMapper {
    /// Which replies.
    pub filter: crate::access_log::LogFilter,
    /// New status.
    pub status: Option<u16>,
    /// New body.
    pub body: Option<Bytes>,
    /// Format of the body in place of the config's.
    pub body_format: Option<Arc<BodyFormat>>,
    /// Header changes.
    pub headers: HeaderOps,
}

/// Options of Envoy's router filter.
#[derive(Debug, Default)]
pub struct RouterOptions {
    /// Leaves `x-envoy-*` out.
    pub suppress_envoy_headers: bool,
    /// Believes an incoming `x-envoy-expected-rq-timeout-ms`.
    pub respect_expected_timeout: bool,
    /// Headers that must parse, else 400 IH: names in lower case.
    pub strict_check_headers: Vec<crate::headers::HeaderName>,
}

impl HttpConnectionManager {
    /// Whose part of a call is seen here, where there is `tracing`.
    #[inline]
    pub fn spans(&self) -> Option<SpanKind> {
        self.tracing.as_ref().map(|tracing| tracing.kind)
    }
}
