//! Listener filters: what the first bytes of a connection say, before a filter chain is chosen.
//!
//! Each filter is one pure function over the bytes seen so far.

pub mod http_inspector;
pub mod proxy_protocol;
mod stats;
pub mod tls_inspector;

use crate::deadline::Deadline;
use crate::io::Socket;
use crate::sockets;
use crate::worker::Shared;
use sixfold_core::connection::Source;
use sixfold_core::listener::ListenerFilter;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) use stats::FilterStats;

/// What listener filters have found out.
#[derive(Debug, Clone)]
pub(crate) struct Findings {
    /// Client address; `None` for a unix socket.
    pub(crate) remote: Option<SocketAddr>,
    /// Address the client meant.
    pub(crate) local: Option<SocketAddr>,
    /// Whether a filter has found that out.
    pub(crate) restored: bool,
    /// Server name in lower case.
    pub(crate) server_name: Option<Arc<str>>,
    /// ALPN protocols, or what the HTTP inspector saw.
    pub(crate) protocols: Vec<Box<[u8]>>,
    /// Whether the TLS inspector saw TLS.
    pub(crate) tls: bool,
    /// Whose address endpoints are to see.
    pub(crate) source: Option<Source>,
}

impl Findings {
    /// What the socket says.
    pub(crate) fn of(remote: Option<SocketAddr>, local: Option<SocketAddr>) -> Findings {
        Findings {
            remote,
            local,
            restored: false,
            server_name: None,
            protocols: Vec::new(),
            tls: false,
            source: None,
        }
    }
}

/// Why a connection is closed before a chain is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken,
    #[error("the client took too long")]
    TimedOut,
    #[error("the PROXY protocol header is missing or malformed")]
    ProxyProtocol,
    #[error("the ClientHello is too large")]
    ClientHello,
    #[error("the request line is too long to tell what it is")]
    RequestLine,
}

/// Runs filters one after the other, all before the deadline. Bytes they looked at stay in `seen`, those they consumed do not: the
/// caller puts them in front of the socket, also when this is dropped half-way.
pub(crate) async fn run(
    filters: &[ListenerFilter],
    socket: &mut Socket,
    seen: &mut Vec<u8>,
    found: &mut Findings,
    shared: &Shared,
    deadline: &mut Deadline,
) -> Result<(), FilterError> {
    for filter in filters {
        // Asked here and not before: filters change the destination that the next ones are asked for.
        let Some(filter) = filter.for_destination(found.local) else { continue };
        match filter {
            ListenerFilter::OriginalDst => {
                let ipv6 = found.local.is_some_and(|l| l.is_ipv6());
                if let Some(meant) = socket.as_tcp().and_then(|tcp| sockets::original_dst(tcp, ipv6)) {
                    (found.local, found.restored) = (Some(meant), true);
                }
            }
            ListenerFilter::OriginalSrc(mark) => {
                found.source = found.remote.map(|remote| Source { ip: remote.ip(), mark: *mark });
            }
            ListenerFilter::ProxyProtocol { .. } => {
                proxy_protocol(socket, seen, found, filter, shared, deadline).await?;
            }
            ListenerFilter::TlsInspector => tls_inspector(socket, seen, found, shared, deadline).await?,
            ListenerFilter::HttpInspector if found.tls => {}
            ListenerFilter::HttpInspector => http_inspector(socket, seen, found, shared, deadline).await?,
            // What is asked for a destination is none of these.
            ListenerFilter::Except(..) => {}
        }
    }
    Ok(())
}

async fn tls_inspector(
    socket: &mut Socket,
    seen: &mut Vec<u8>,
    found: &mut Findings,
    shared: &Shared,
    deadline: &mut Deadline,
) -> Result<(), FilterError> {
    loop {
        let outcome = tls_inspector::inspect(seen);
        shared.filter_stats.tls(&shared.metrics, seen.len(), &outcome);
        match outcome {
            tls_inspector::Outcome::NeedsMore => read_more(socket, seen, deadline).await?,
            tls_inspector::Outcome::NotTls => return Ok(()),
            tls_inspector::Outcome::TooLarge => return Err(FilterError::ClientHello),
            tls_inspector::Outcome::Tls(hello) => {
                found.tls = true;
                found.server_name = hello.server_name.map(Into::into);
                found.protocols = hello.protocols;
                return Ok(());
            }
        }
    }
}

async fn http_inspector(
    socket: &mut Socket,
    seen: &mut Vec<u8>,
    found: &mut Findings,
    shared: &Shared,
    deadline: &mut Deadline,
) -> Result<(), FilterError> {
    let mut inspector = http_inspector::Inspector::default();
    loop {
        let outcome = inspector.inspect(seen);
        shared.filter_stats.http(&shared.metrics, &outcome);
        match outcome {
            http_inspector::Outcome::NeedsMore => read_more(socket, seen, deadline)
                .await
                .inspect_err(|_| shared.filter_stats.http_unread(&shared.metrics))?,
            http_inspector::Outcome::NotHttp => return Ok(()),
            http_inspector::Outcome::TooLong => return Err(FilterError::RequestLine),
            http_inspector::Outcome::Http(protocol) => {
                found.protocols = vec![protocol.as_bytes().into()];
                return Ok(());
            }
        }
    }
}

async fn proxy_protocol(
    socket: &mut Socket,
    seen: &mut Vec<u8>,
    found: &mut Findings,
    filter: &ListenerFilter,
    shared: &Shared,
    deadline: &mut Deadline,
) -> Result<(), FilterError> {
    let ListenerFilter::ProxyProtocol { optional, versions: (v1, v2), unspecified } = *filter else {
        return Ok(());
    };
    use proxy_protocol::Outcome;
    use sixfold_core::proxy_protocol::Version;
    let (stats, registry) = (&shared.filter_stats, &shared.metrics);
    loop {
        let outcome = proxy_protocol::parse(seen);
        if matches!(outcome, Outcome::Absent | Outcome::Malformed) {
            stats.no_header(registry, seen, &outcome, optional);
        }
        match outcome {
            Outcome::NeedsMore => read_more(socket, seen, deadline).await?,
            Outcome::Absent if optional => return Ok(()),
            Outcome::Absent | Outcome::Malformed => return Err(FilterError::ProxyProtocol),
            Outcome::Header(header) => {
                let allowed = if header.version == Version::V1 { v1 } else { v2 };
                stats.header(registry, header.version, allowed);
                if !allowed || (header.unspecified && !unspecified) {
                    return Err(FilterError::ProxyProtocol);
                }
                seen.drain(..header.consumed.min(seen.len()));
                if let Some((source, destination)) = header.addresses {
                    found.remote = Some(source);
                    (found.local, found.restored) = (Some(destination), true);
                }
                return Ok(());
            }
        }
    }
}

async fn read_more(
    socket: &mut Socket,
    seen: &mut Vec<u8>,
    deadline: &mut Deadline,
) -> Result<(), FilterError> {
    match socket.read_more(seen, deadline).await {
        Ok(1..) => Ok(()),
        Ok(0) => Err(FilterError::Closed),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(FilterError::TimedOut),
        Err(_) => Err(FilterError::Broken),
    }
}
