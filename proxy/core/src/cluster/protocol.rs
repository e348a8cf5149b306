//! How endpoints are spoken to.

use std::time::Duration;

/// Protocol towards the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 (with prior knowledge over plain text).
    Http2,
    /// What ALPN agrees on (`auto_config`).
    Auto,
    /// What the client spoke (`use_downstream_protocol_config`).
    Downstream,
}

/// TCP keep-alive probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
}

/// HTTP/1 towards an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Options {
    /// Passes trailers.
    pub enable_trailers: bool,
    /// How names are spelled.
    pub header_case: HeaderCase,
    /// Passes on the reason phrases of responses. APISIX always does.
    pub forward_reason: bool,
    /// Bytes of a response head, 80 KiB by default.
    pub max_head_bytes: usize,
    /// Accepts a response with Content-Length and chunked, and drops the length.
    pub allow_chunked_length: bool,
}

impl Default for Http1Options {
    fn default() -> Http1Options {
        Http1Options {
            enable_trailers: false,
            header_case: HeaderCase::Lower,
            forward_reason: false,
            max_head_bytes: 80 << 10,
            allow_chunked_length: false,
        }
    }
}

/// How header names are spelled on HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderCase {
    /// `content-length`
    #[default]
    Lower,
    /// `Content-Length`
    ProperCase,
    /// As the other side spelled it.
    Preserve,
}

/// PINGs that tell whether the peer of a connection is still there (Envoy's `connection_keepalive`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between the answer to one PING and the next; `None`: none is sent for time alone.
    pub interval: Option<Duration>,
    /// At most this, at random, is added to each interval.
    pub jitter: Duration,
    /// How long nothing may come behind a PING; then the connection is closed.
    pub timeout: Duration,
    /// Of an upstream's connection: a request goes behind a PING if nothing has come for so long.
    pub idle: Option<Duration>,
}

/// HTTP/2 on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at once; 1024 upstream and downstream by default here (Envoy 1.40).
    pub max_concurrent_streams: u32,
    /// Initial window of a stream, bytes; 256 KiB by default.
    pub stream_window: u32,
    /// Initial window of a connection, bytes. `None`: a client's connection gets 4 MiB; an upstream's is never what
    /// holds a stream back, so that slow readers starve nobody.
    pub connection_window: Option<u32>,
    /// Largest header list, bytes.
    pub max_header_list: u32,
    /// Resets (both ways) of streams without a response before the connection is closed.
    pub max_resets: u32,
    /// Frames that move nothing (PING, SETTINGS, PRIORITY, empty DATA, WINDOW_UPDATE without data, unknown ones) a
    /// second before it is closed.
    pub max_control_frames: u32,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// Whether the peer is asked now and then if it is still there.
    pub keepalive: Option<Http2Keepalive>,
}

impl Http2Options {
    /// Largest window that the protocol knows (RFC 9113 section 6.9.1).
    const MAX_WINDOW: u32 = (1 << 31) - 1;

    /// Window of a client's connection, bytes.
    pub fn downstream_window(&self) -> u32 {
        self.connection_window.unwrap_or(4 << 20)
    }

    /// Window of an upstream's connection, bytes: room for the windows of all its streams.
    pub fn upstream_window(&self) -> u32 {
        let all = self.stream_window.saturating_mul(self.max_concurrent_streams).min(Self::MAX_WINDOW);
        self.connection_window.unwrap_or(all)
    }
}

impl Default for Http2Options {
    fn default() -> Http2Options {
        Http2Options {
            max_concurrent_streams: 1024,
            stream_window: 256 << 10,
            connection_window: None,
            max_header_list: 60 << 10,
            max_resets: 200,
            max_control_frames: 10_000,
            allow_connect: false,
            keepalive: None,
        }
    }
}
