//! Heads of requests and responses as both codecs produce and consume them.

use crate::headers::{Headers, Key, Known, find};

pub use http::Method;

/// Bytes of a text that a cleared head keeps for the next message.
pub const KEPT_BYTES: usize = 4 * 1024;

/// Empties a text and keeps its memory, up to [`KEPT_BYTES`].
pub(crate) fn clear_text(text: &mut Vec<u8>) {
    text.clear();
    if text.capacity() > KEPT_BYTES {
        text.shrink_to(KEPT_BYTES);
    }
}

/// HTTP version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
    /// HTTP/2
    Http2,
    /// HTTP/3
    Http3,
}

impl Version {
    /// As access logs spell it: Envoy's `%PROTOCOL%`, nginx's `$server_protocol` for HTTP/1.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
            Version::Http3 => "HTTP/3",
        }
    }

    /// Whether the message came or goes over our own HTTP/1 codec.
    pub fn is_http1(self) -> bool {
        self <= Version::Http11
    }
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// Plain text.
    #[default]
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// In lower case, as in a URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The scheme of `https`/`http` in any case.
    pub fn parse(text: &[u8]) -> Option<Scheme> {
        match text {
            t if t.eq_ignore_ascii_case(b"http") => Some(Scheme::Http),
            t if t.eq_ignore_ascii_case(b"https") => Some(Scheme::Https),
            _ => None,
        }
    }

    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// A request target in origin form: bytes, never a parsed URI (design: normalised once, before routing).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Target {
    raw: Vec<u8>,
    /// Length of the path; the query, if any, follows after one `?`.
    path_len: usize,
}

impl Target {
    /// A target from its bytes.
    pub fn new(raw: &[u8]) -> Target {
        let mut target = Target::default();
        target.set(raw);
        target
    }

    /// Replaces path and query.
    pub fn set(&mut self, raw: &[u8]) {
        self.raw.clear();
        self.raw.extend_from_slice(raw);
        self.path_len = find(b'?', raw).unwrap_or(raw.len());
    }

    /// Replaces the path and keeps the query. `path` may itself hold a `?`; the query then starts there.
    pub fn set_path(&mut self, path: &[u8]) {
        self.raw.splice(..self.path_len, path.iter().copied());
        self.path_len = find(b'?', &self.raw).unwrap_or(self.raw.len());
    }

    /// Cuts off what follows the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.raw.truncate(len);
        self.path_len = self.path_len.min(len);
    }

    /// Empties it and keeps the memory, up to [`KEPT_BYTES`].
    pub fn clear(&mut self) {
        clear_text(&mut self.raw);
        self.path_len = 0;
    }

    /// Path and query: Envoy's `:path`.
    #[inline]
    pub fn full(&self) -> &[u8] {
        &self.raw
    }

    /// The path without the query.
    #[inline]
    pub fn path(&self) -> &[u8] {
        &self.raw[..self.path_len]
    }

    /// What follows the first `?`, if there is one.
    #[inline]
    pub fn query(&self) -> Option<&[u8]> {
        self.raw.get(self.path_len + 1..)
    }

    /// Whether there is no target at all (CONNECT, or HTTP/2 without `:path`).
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.raw))
    }
}

/// The head of a request. The `Host` header of HTTP/1 and `:authority` of HTTP/2 are one thing here, and
/// not among the headers.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// Method; `GET` for a fresh head.
    pub method: Method,
    /// Version on the wire the request came by.
    pub version: Version,
    /// Envoy's `:scheme`.
    pub scheme: Scheme,
    /// Host, with its port if it came with one; empty when there was none.
    pub authority: Vec<u8>,
    /// Path and query.
    pub target: Target,
    /// All fields but Host.
    pub headers: Headers,
    /// What nginx's variables go on to show of what came and is not there any more: of few requests anything.
    pub sent: Option<Box<Sent>>,
    /// Number of the request on its connection, from 1; 0 while it is not known.
    pub ordinal: u32,
}

/// What came of a request and has had something else, or nothing, put in its place.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// The target of the request line, where it was an absolute one or an authority: nginx's `$request` shows it.
    pub target: Vec<u8>,
    /// The method of the request line, where a plugin has put another in its place.
    pub method: Option<Method>,
    /// Fields that go no further, of those that nginx's variables go on to show (`$http_upgrade`).
    pub withheld: Headers,
}

impl Sent {
    fn clear(&mut self) {
        clear_text(&mut self.target);
        self.method = None;
        self.withheld.clear();
    }
}

impl RequestHead {
    /// Forgets the request and keeps the memory for the next one of the connection, within bounds.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.version = Version::Http11;
        self.scheme = Scheme::Http;
        clear_text(&mut self.authority);
        self.target.clear();
        self.headers.clear();
        if let Some(sent) = &mut self.sent {
            sent.clear();
        }
        self.ordinal = 0;
    }

    /// Keeps the lines of `name` for nginx's variables; what was kept of it before stays.
    pub fn withhold(&mut self, name: Known) {
        if !self.headers.contains(name) {
            return;
        }
        let withheld = &mut self.sent.get_or_insert_default().withheld;
        if !withheld.contains(name) {
            for value in self.headers.get_all(name) {
                withheld.append(name, value);
            }
        }
    }

    /// The lines that [`RequestHead::withhold`] has kept.
    pub fn withheld(&self, key: impl Key) -> Option<&[u8]> {
        self.sent.as_ref()?.withheld.get(key)
    }

    /// Whether Envoy takes the request for gRPC: content-type exactly `application/grpc` or starting with
    /// `application/grpc+` (grpc-web is not).
    pub fn is_grpc(&self) -> bool {
        self.headers.get(Known::CONTENT_TYPE).is_some_and(is_grpc_content_type)
    }

    /// The authority without a port, as it is spelled.
    pub fn host(&self) -> &[u8] {
        strip_port(&self.authority)
    }

    /// nginx's `$host`, but for its case: the authority without a port and without one dot at the end.
    pub fn server_name(&self) -> &[u8] {
        server_name(&self.authority)
    }
}

/// An authority without its port and without one dot at the end, which is the root's and no label
/// (`ngx_http_validate_host`).
pub fn server_name(authority: &[u8]) -> &[u8] {
    let host = strip_port(authority);
    host.strip_suffix(b".").unwrap_or(host)
}

/// Envoy's `Grpc::Common::hasGrpcContentType`.
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    value.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

/// Cuts `:port` off an authority; an IPv6 literal keeps its brackets.
pub fn strip_port(authority: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', authority) {
        Some(colon) if memchr::memchr(b']', &authority[colon..]).is_none() => &authority[..colon],
        _ => authority,
    }
}

/// Bytes of `connection: close`, of name and value.
pub const CONNECTION_CLOSE: u8 = 15;

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// Status code, 100 to 999; 0 while there is none.
    pub status: u16,
    /// Version it came by, or the downstream's for a local reply.
    pub version: Version,
    /// The reason phrase that came with the status, where it is passed on.
    pub reason: Reason,
    /// All fields.
    pub headers: Headers,
    /// Whether its body goes to the client in chunks: nginx's `$sent_http_transfer_encoding`.
    pub chunked: bool,
    /// Bytes, of name and value, of the field `connection` that the client's connection adds; 0 where it adds none. Before the
    /// head is written it is [`CONNECTION_CLOSE`], or 0 where that is not known to be added.
    pub connection_bytes: u8,
}

/// The reason phrase of a status line. It belongs to the status that it came with: whoever puts another status in
/// the place of that one need not know of it.
#[derive(Clone, Debug, Default)]
pub struct Reason {
    of: u16,
    text: Vec<u8>,
}

impl Reason {
    /// Keeps the phrase of `status`, perhaps an empty one.
    pub fn set(&mut self, status: u16, text: &[u8]) {
        self.of = status;
        self.text.clear();
        self.text.extend_from_slice(text);
    }

    /// The phrase that came with `status`.
    pub fn of(&self, status: u16) -> Option<&[u8]> {
        (self.of == status && status != 0).then_some(&self.text)
    }

    fn clear(&mut self) {
        self.of = 0;
        clear_text(&mut self.text);
    }
}

impl ResponseHead {
    /// Whether the status is one of those that no body follows (RFC 9110 section 6.4.1). What follows 101 is none
    /// either, but a tunnel.
    pub fn has_no_body(&self) -> bool {
        matches!(self.status, 100..=199 | 204 | 304)
    }

    /// Forgets the response and keeps the memory, within bounds.
    pub fn clear(&mut self) {
        self.status = 0;
        self.version = Version::Http11;
        self.reason.clear();
        self.headers.clear();
        self.chunked = false;
        self.connection_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_splits_at_the_first_question_mark() {
        let mut t = Target::new(b"/a?b?c");
        assert_eq!((t.path(), t.query()), (&b"/a"[..], Some(&b"b?c"[..])));
        t.set_path(b"/x/y");
        assert_eq!(t.full(), b"/x/y?b?c");
        t.set_path(b"/z?q=1");
        assert_eq!((t.path(), t.query()), (&b"/z"[..], Some(&b"q=1?b?c"[..])));
        assert_eq!(Target::new(b"/a").query(), None);
        assert_eq!(Target::new(b"/a?").query(), Some(&b""[..]));
    }

    #[test]
    fn ports_are_cut_and_ipv6_literals_kept() {
        for (full, host) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a")]
        {
            assert_eq!(strip_port(full.as_bytes()), host.as_bytes());
        }
    }

    #[test]
    fn a_cleared_head_gives_back_what_a_large_one_needed() {
        let mut head = RequestHead { authority: vec![b'h'; 60_000], ..RequestHead::default() };
        head.target.set(&[b'/'; 60_000]);
        head.clear();
        let held = head.target.raw.capacity() + head.authority.capacity();
        assert!(head.target.is_empty() && head.authority.is_empty() && held <= 2 * KEPT_BYTES, "{held}");
    }

    #[test]
    fn a_server_name_has_neither_port_nor_dot_at_its_end() {
        for (full, name) in [("a.:80", "a"), ("a.", "a"), ("a:80", "a"), ("a..", "a."), ("[::1]:80", "[::1]")]
        {
            assert_eq!(server_name(full.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        assert!(is_grpc_content_type(b"application/grpc"));
        assert!(is_grpc_content_type(b"application/grpc+proto"));
        assert!(!is_grpc_content_type(b"application/grpc-web"));
        assert!(!is_grpc_content_type(b"application/grpc; x"));
    }
}
