//! Listeners of config.yaml compiled to the model.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::access_log::{AccessLog, LineFormat, LogTarget};
use sixfold_core::cluster::{HeaderCase, Http2Options};
use sixfold_core::error::ConfigError;
use sixfold_core::format::{Escape, Format};
use sixfold_core::hcm::{
    ApisixPath, ClientAddress, CodecType, ConnectionTimeouts, EdgeHeaders, HttpConnectionManager, HttpStats,
    LocalReplyConfig, PathOptions, Profile, RouterOptions, ServerHeader, ServerHttp1,
};
use sixfold_core::headers::{HeaderName, HeaderRules, Underscores};
use sixfold_core::listener::{
    BindAddress, FilterChain, FilterChainMatch, FilterChains, L4Proxy, L4Stats, Listener, ListenerFilter,
    ListenerStats, NetworkFilter, SocketRights, TcpStats, UdpLimits,
};
use sixfold_core::plugin::Chain;
use sixfold_core::stream::Stream;
use sixfold_core::tls::{ContextChange, ServerTls};

use crate::config::{AccessLog as AccessLogConfig, AccessLogEscape, Config, StreamListen, is_declared};
use crate::source::SourceContext;
use crate::tls::Certificates;

/// The version of APISIX whose behaviour this is, as `Server` tells it.
pub const APISIX_VERSION: &str = "3.18.0";

/// How long a client may take for its TLS handshake (nginx's `ssl_handshake_timeout`).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// What stays of listeners for changes to come.
#[derive(Clone)]
pub(crate) struct Listening {
    tls: Arc<ServerTls>,
    /// Of streams.
    streams: Arc<ServerTls>,
}

impl Listening {
    /// The changes that show these certificates.
    pub(crate) fn changes(&self, certificates: &Certificates, config: &Config) -> [ContextChange; 2] {
        let (default, named) = certificates.contexts(config);
        let http = self.tls.change(default, named);
        let (default, named) = certificates.of_streams(config);
        [http, self.streams.change(default, named)]
    }
}

#[cfg(test)]
impl Listening {
    pub(crate) fn tls(&self) -> &Arc<ServerTls> {
        &self.tls
    }
}

/// One listener for each address.
///
/// # Errors
/// A header name or an access log that can't be used.
pub(crate) fn compile(
    config: &Config,
    context: &SourceContext,
) -> Result<(Listening, Vec<Listener>), ConfigError> {
    let tls = || ServerTls::new(None, Vec::new());
    let listening = Listening { tls: tls(), streams: tls() };
    let mut listeners = Vec::new();
    // They are opened in this order: whoever finds a port of plain HTTP open finds all of them open.
    let streams = &config.stream_proxy;
    let log = config.stream_log.as_ref().filter(|_| !streams.is_empty());
    let log = log.map(|log| opened(log, "nginx_config.stream", config, context)).transpose()?;
    for listen in streams.tcp.iter().chain(&streams.udp) {
        listeners.push(stream(listen, &listening, log.as_ref(), config, context));
    }
    let log = config.http.access_log.as_ref();
    let log = log.map(|log| opened(log, "nginx_config.http", config, context)).transpose()?;
    for (scheme, addresses) in [("https", &config.https_listeners), ("http", &config.http_listeners)] {
        for listen in addresses {
            let manager = Arc::new(manager(config, context, log.iter().map(Log::open).collect())?);
            let tls = (scheme == "https").then(|| listening.tls.clone());
            let mut filters = Vec::new();
            filters.extend(listen.proxy_protocol.then_some(PROXY_PROTOCOL));
            let address = BindAddress::Ip(listen.address);
            let filter = NetworkFilter::Http(manager);
            listeners.push(listener(scheme, address, filters, tls, filter, context));
        }
    }
    Ok((listening, listeners))
}

/// Takes connections that begin with a header of the PROXY protocol, and no others.
const PROXY_PROTOCOL: ListenerFilter =
    ListenerFilter::ProxyProtocol { optional: false, versions: (true, true), unspecified: true };

/// A listener of TCP or UDP, whose connections go where the table of stream routes says.
fn stream(
    listen: &StreamListen,
    listening: &Listening,
    log: Option<&Log>,
    config: &Config,
    context: &SourceContext,
) -> Listener {
    let udp = listen.is_udp();
    let address = match &listen.address {
        BindAddress::Ip(address) if udp => BindAddress::Udp(*address),
        address => address.clone(),
    };
    let scope = format!("stream.{}.", listen.address);
    let metrics = context.compile.metrics();
    let proxy = L4Proxy {
        address: listen.address.to_string().into(),
        routes: context.streams.table.clone(),
        fallback_name: config.ssl.fallback_sni.as_deref().map(|name| name.to_ascii_lowercase().into()),
        trusted: config.stream_real_ip_from.clone(),
        stats: Arc::new(TcpStats::new(metrics, &scope)),
        upstream: Arc::new(L4Stats::new(metrics, &scope)),
        proxy_protocol: listen.proxy_protocol_to_upstream,
        access_logs: log.map(Log::open).into_iter().collect(),
        udp: UdpLimits::default(),
    };
    let tls = listen.tls.then(|| listening.streams.clone());
    let mut filters = Vec::new();
    filters.extend((!udp && listen.proxy_protocol).then_some(PROXY_PROTOCOL));
    listener("stream", address, filters, tls, NetworkFilter::Routed(Arc::new(proxy)), context)
}

/// What statistics call an address.
fn scope_of(address: &BindAddress) -> String {
    address.to_string().replace([':', '.', '/'], "_")
}

fn listener(
    scheme: &str,
    address: BindAddress,
    listener_filters: Vec<ListenerFilter>,
    tls: Option<Arc<ServerTls>>,
    filter: NetworkFilter,
    context: &SourceContext,
) -> Listener {
    let chain = FilterChain {
        name: scheme.into(),
        matches: FilterChainMatch::default(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        tls,
        filters: Arc::default(),
        metadata: Arc::default(),
        filter,
        fingerprint: 0,
    };
    let stats = format!("listener.{}.", scope_of(&address));
    Listener {
        name: format!("{scheme}/{address}").into(),
        addresses: vec![address],
        bind: true,
        listener_filters,
        filters_timeout: Some(HANDSHAKE_TIMEOUT),
        continue_on_timeout: false,
        chains: FilterChains::one(chain),
        default_chain: None,
        use_original_dst: false,
        access_logs: Vec::new(),
        socket: SocketRights::default(),
        exact_balance: false,
        spared: Default::default(),
        metadata: Arc::default(),
        // What nginx asks for on Linux.
        backlog: 511,
        tcp_keepalive: None,
        inbound: true,
        stats: Arc::new(ListenerStats::new(context.compile.metrics(), &stats)),
        shape: 0,
    }
}

fn manager(
    config: &Config,
    context: &SourceContext,
    access_logs: Vec<AccessLog>,
) -> Result<HttpConnectionManager, ConfigError> {
    Ok(HttpConnectionManager {
        profile: Profile::Apisix,
        stat_prefix: "apisix".into(),
        stats: Arc::new(HttpStats::new(context.compile.metrics(), "http.apisix.")),
        codec: if config.enable_http2 { CodecType::Auto } else { CodecType::Http1 },
        routes: context.routes.clone(),
        chain: Chain::empty(),
        http1: ServerHttp1 {
            accept_http_10: true,
            header_case: HeaderCase::Preserve,
            // nginx's four large buffers of 8 KiB.
            max_head_bytes: 32 << 10,
            ..ServerHttp1::default()
        },
        http2: Http2Options { max_concurrent_streams: 128, ..Http2Options::default() },
        header_rules: HeaderRules {
            underscores: if config.http.underscores_in_headers {
                Underscores::Allow
            } else {
                Underscores::Drop
            },
            ..HeaderRules::APISIX
        },
        path: PathOptions {
            apisix: Some(ApisixPath {
                delete_tail_slash: config.delete_uri_tail_slash,
                like_servlet: config.normalize_uri_like_servlet,
                match_encoded_slash: config.match_uri_encoded_slash,
            }),
            ..PathOptions::default()
        },
        client_address: client_address(config)?,
        headers: EdgeHeaders {
            server_name: match config.enable_server_tokens {
                true => format!("APISIX/{APISIX_VERSION}").into(),
                false => "APISIX".into(),
            },
            server: ServerHeader::Overwrite,
            generate_request_id: false,
            ..EdgeHeaders::default()
        },
        timeouts: ConnectionTimeouts {
            stream_idle: None,
            body: Some(config.http.client_body_timeout),
            send: Some(config.http.send_timeout),
            request_headers: Some(config.http.client_header_timeout),
            idle: Some(config.http.keepalive_timeout),
            ..ConnectionTimeouts::default()
        },
        upgrades: Box::default(),
        access_logs,
        local_reply: LocalReplyConfig::default(),
        router: RouterOptions::default(),
        first_table: None,
        max_requests_per_connection: None,
        buffer_limit: 1 << 20,
        max_body: config.http.client_max_body_size,
        show_upstream_status: config.show_upstream_status,
        charset: config.http.charset.clone(),
        tracing: None,
    })
}

fn client_address(config: &Config) -> Result<ClientAddress, ConfigError> {
    let real_ip = &config.real_ip;
    let header = match real_ip.header.as_str() {
        // The address of a PROXY protocol header is the connection's already.
        "" | "proxy_protocol" => None,
        name => Some(
            HeaderName::new(name)
                .map_err(|error| config.fault("nginx_config.http.real_ip_header", error.to_string()))?,
        ),
    };
    Ok(ClientAddress {
        real_ip_from: real_ip.from.clone(),
        real_ip_header: header,
        real_ip_recursive: real_ip.recursive,
        trusted_addresses: config.trusted_addresses.clone(),
        ..ClientAddress::default()
    })
}

/// An access log, which every listener of its kind writes.
struct Log {
    format: Arc<Line>,
    sink: Arc<dyn sixfold_core::access_log::LogSink>,
}

impl Log {
    fn open(&self) -> AccessLog {
        AccessLog { filter: None, format: self.format.clone(), sink: self.sink.clone() }
    }
}

/// The log that the settings under `section` say.
fn opened(
    log: &AccessLogConfig,
    section: &str,
    config: &Config,
    context: &SourceContext,
) -> Result<Log, ConfigError> {
    let fault = |field: &str, reason: String| config.fault(&format!("{section}.{field}"), reason);
    let format = Format::nginx_log(&log.format).map_err(|reason| fault("access_log_format", reason))?;
    if let Some(name) = format.unknown_variables().find(|name| !is_declared(name)) {
        return Err(fault("access_log_format", format!("unknown variable \"${name}\"")));
    }
    let target = match log.path.to_str() {
        Some("/dev/stdout") => LogTarget::Stdout,
        Some("/dev/stderr") => LogTarget::Stderr,
        _ => LogTarget::File(log.path.clone()),
    };
    let sink = context.compile.log_sinks.sink(&target).map_err(|reason| fault("access_log", reason))?;
    let escape = match log.escape {
        AccessLogEscape::Default => Escape::Nginx,
        AccessLogEscape::Json => Escape::Json,
        AccessLogEscape::None => Escape::None,
    };
    Ok(Log { format: Arc::new(Line { format, escape }), sink })
}

/// A line of nginx's `log_format`.
struct Line {
    format: Format,
    escape: Escape,
}

impl LineFormat for Line {
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.format.write_escaped(stream, out, self.escape);
        out.push(b'\n');
    }
}
