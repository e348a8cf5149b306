//! What is known of a downstream connection.

use crate::metadata::Metadata;
use crate::stream::FilterObject;
use percent_encoding::AsciiSet;
use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A downstream connection, shared by its streams.
#[derive(Debug)]
pub struct Connection {
    /// Number of the connection in this process, from 1: `%CONNECTION_ID%`.
    pub id: u64,
    /// When it was accepted.
    pub start: Instant,
    /// Listener that accepted it.
    pub listener: Arc<str>,
    /// Filter chain that serves it.
    pub filter_chain: Arc<str>,
    /// Metadata of the listener.
    pub listener_metadata: Arc<Metadata>,
    /// Metadata of the filter chain.
    pub chain_metadata: Arc<Metadata>,
    /// Client address: the peer's, or what the PROXY protocol says.
    pub remote: SocketAddr,
    /// Peer of the socket.
    pub direct_remote: SocketAddr,
    /// Address the client meant: the socket's, the original destination, or what the PROXY protocol says.
    pub local: SocketAddr,
    /// Whether a listener filter found out what address the client meant, so that `local` is where it was going:
    /// what ORIGINAL_DST clusters connect to.
    pub local_restored: bool,
    /// Address of the listening socket.
    pub direct_local: SocketAddr,
    /// Server name that the TLS inspector saw, in lower case: `%REQUESTED_SERVER_NAME%`, which in Envoy knows
    /// nothing of a handshake without the inspector.
    pub requested_server_name: Option<Arc<str>>,
    /// Terminated TLS.
    pub tls: Option<TlsInfo>,
    /// Whose address endpoints see in place of this proxy's, where a listener filter asks for that (`original_src`).
    pub source: Option<Source>,
    /// What network filters have left in the filter state, for every request of the connection to see.
    pub filter_state: OnceLock<Box<[FilterObject]>>,
    /// What filters keep of the connection.
    pub kept: Kept,
}

/// What filters keep of a connection from one request to the next; most keep nothing.
#[derive(Default)]
pub struct Kept {
    /// Buckets of a local rate limit for each connection. In Envoy there is one place for them, whichever filter and route
    /// is the first to use it (`per_connection_local_rate_limiter`).
    pub limiter: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("limiter", &self.limiter.get().is_some()).finish()
    }
}

/// The address that connections to endpoints come from, though it is another machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// The client's.
    pub ip: IpAddr,
    /// Mark of the packets, by which answers are routed back to this proxy; 0 is none.
    pub mark: u32,
}

impl Connection {
    /// A connection without TLS that was just accepted, of no particular listener: the ground for others.
    pub fn plain(remote: SocketAddr, local: SocketAddr) -> Connection {
        Connection {
            id: 1,
            start: Instant::now(),
            listener: "".into(),
            filter_chain: "".into(),
            listener_metadata: Arc::default(),
            chain_metadata: Arc::default(),
            remote,
            direct_remote: remote,
            local,
            local_restored: false,
            direct_local: local,
            requested_server_name: None,
            tls: None,
            source: None,
            filter_state: OnceLock::new(),
            kept: Kept::default(),
        }
    }

    /// Server name that the client asked for, whoever saw it.
    pub fn server_name(&self) -> Option<&str> {
        let terminated = self.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
        terminated.or(self.requested_server_name.as_deref())
    }
}

/// The number of the next connection of this process, whichever side it is on, from 1.
pub fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// A connection to an endpoint, shared by the requests that it carries.
#[derive(Debug)]
pub struct UpstreamConnection {
    /// Its number: `%UPSTREAM_CONNECTION_ID%`.
    pub id: u64,
    /// TLS towards the endpoint.
    pub tls: Option<TlsInfo>,
}

impl UpstreamConnection {
    /// One that was just opened.
    pub fn new(tls: Option<TlsInfo>) -> Arc<UpstreamConnection> {
        Arc::new(UpstreamConnection { id: next_id(), tls })
    }
}

/// A TLS connection, terminated or begun here.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite, such as `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: &'static str,
    /// BoringSSL's name of the group of the key exchange, such as `X25519` or `P-256`.
    pub curve: &'static str,
    /// Server name that the client asked for, in lower case, or that was sent to an endpoint.
    pub server_name: Option<Arc<str>>,
    /// ALPN protocol, if one was agreed.
    pub alpn: Option<Box<[u8]>>,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// The peer's certificate, if one was presented.
    pub peer: Option<Arc<Certificate>>,
    /// Whether the client certificate was verified against the configured authorities.
    pub peer_validated: bool,
    /// PEM of the peer's chain, URL-encoded on use (XFCC `Chain`).
    pub peer_chain_pem: Option<Arc<str>>,
    /// Our certificate.
    pub local: Option<Arc<Certificate>>,
}

/// What is encoded of a PEM text where a header or a line of a log has it, as in Envoy (common/tls/utility.cc).
pub const PEM_ENCODED: &AsciiSet = &AsciiSet::EMPTY.add(b'\n').add(b' ').add(b'+').add(b'/').add(b'=');

/// What sixfold shows of a certificate.
#[derive(Debug, Default, Clone)]
pub struct Certificate {
    /// Subject in RFC 2253 order.
    pub subject: String,
    /// Issuer in RFC 2253 order.
    pub issuer: String,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the DER form in lower-case hexadecimal.
    pub sha256: String,
    /// SHA-1 of the DER form in lower-case hexadecimal.
    pub sha1: String,
    /// URI subject alternative names.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<String>,
    /// IP subject alternative names.
    pub ip_sans: Vec<String>,
    /// E-mail subject alternative names.
    pub email_sans: Vec<String>,
    /// Start of validity, Unix seconds.
    pub not_before: i64,
    /// End of validity, Unix seconds.
    pub not_after: i64,
    /// PEM form.
    pub pem: String,
}
