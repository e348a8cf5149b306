//! Connections to endpoints: TCP or unix socket, options, TLS.

use crate::io::{Io, Socket};
use crate::sockets;
use crate::tls;
use sixfold_core::cluster::{Address, Cluster, Host, TcpKeepalive};
use sixfold_core::connection::{Source, TlsInfo};
use sixfold_core::proxy_protocol::{Told, Version};
use sixfold_core::tls::{AlpnList, ClientTls};
use socket2::{SockRef, TcpKeepalive as Probes};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

pub use sixfold_core::tls::AlpnOffer as Alpn;

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub io: Io,
    /// Our address; `None` for a unix socket.
    pub local: Option<SocketAddr>,
    /// ALPN protocol that was agreed.
    pub alpn: Option<Box<[u8]>>,
    /// Milliseconds until the connection was usable, TLS included.
    pub connect_ms: u32,
    /// The TLS connection, `None` on plain text.
    pub tls: Option<TlsInfo>,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ConnectError {
    /// The operating system says no, in its words.
    #[error("{0}")]
    Refused(String),
    /// Not within the time.
    #[error("connection timeout")]
    Timeout,
    /// The TLS handshake failed.
    #[error("TLS_error:|{0}:TLS_error_end")]
    Tls(String),
    /// The secrets for TLS have not come (common/tls/ssl_socket.cc NotReadySslSocket).
    #[error("TLS error: Secret is not supplied by SDS")]
    NoSecret,
    /// This process has no descriptor or no memory left for it, which is nothing of the endpoint's.
    #[error("no descriptor or memory for a connection: {0}")]
    Exhausted(String),
    /// The source address can't be used.
    #[error("can't bind to the source address: {0}")]
    Bind(String),
}

impl ConnectError {
    /// Why the operating system says no.
    fn of(error: &io::Error) -> ConnectError {
        match sockets::is_exhaustion(error) {
            true => ConnectError::Exhausted(error.to_string()),
            false => ConnectError::Refused(error.to_string()),
        }
    }
}

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Default)]
pub struct Handshake<'a> {
    /// TLS towards it; `None` is plain text.
    pub tls: Option<&'a Arc<ClientTls>>,
    /// The server name that the request brings along: it is taken for SNI and SAN checks where the cluster says so
    /// (`auto_sni`, `auto_san_validation`).
    pub server_name: Option<&'a str>,
    /// What is offered unless the settings say otherwise.
    pub alpn: Alpn,
    /// What is offered whatever they say.
    pub offer: Option<&'a AlpnList>,
    /// Whose address it sees, in place of the cluster's `source_address`.
    pub source: Option<Source>,
    /// Whose connection it is told that this is, where that is not ours alone: first, before TLS.
    pub told: Option<Told>,
}

/// Connects to an endpoint within `timeout`, the TLS handshake included.
///
/// # Errors
/// Says what went wrong; of statistics only those of TLS are counted here.
pub async fn connect(
    cluster: &Cluster,
    host: &Host,
    handshake: Handshake<'_>,
    timeout: Duration,
) -> Result<Connected, ConnectError> {
    let start = Instant::now();
    let attempt = tokio::time::timeout(timeout, attempt(cluster, host, handshake)).await;
    let mut connected = attempt.map_err(|_| ConnectError::Timeout)??;
    connected.connect_ms = start.elapsed().as_millis().try_into().unwrap_or(u32::MAX);
    Ok(connected)
}

async fn attempt(
    cluster: &Cluster,
    host: &Host,
    Handshake { tls, server_name, alpn, offer, source, told }: Handshake<'_>,
) -> Result<Connected, ConnectError> {
    let mut socket = open(cluster, host, source).await?;
    let local = socket.local_addr();
    let own = |version: Version| version.own_header(local, socket.peer_addr());
    let preface = told.map(|told| told.header()).or_else(|| cluster.config.proxy_protocol.map(own));
    if let Some(preface) = preface {
        socket.write_all(&preface).await.map_err(|e| ConnectError::Refused(e.to_string()))?;
    }
    let plain = |socket| Connected { io: Io::plain(socket), local, alpn: None, connect_ms: 0, tls: None };
    let Some(tls) = tls else { return Ok(plain(socket)) };
    let Some(context) = tls.context() else {
        tls.awaited().iter().for_each(|awaited| awaited.count_not_ready());
        return Err(ConnectError::NoSecret);
    };
    let name = context.server_name(server_name, &host.hostname);
    let address = match &host.address {
        Address::Ip(address) => address.ip(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let config = match offer {
        Some(offer) => context.offering(offer),
        None => context.config(alpn),
    };
    match tls::connect(socket, &context, name, address, config).await {
        Ok((io, info)) => {
            cluster.stats.tls().into_iter().for_each(|stats| stats.count(&info));
            Ok(Connected { io, local, alpn: info.alpn.clone(), connect_ms: 0, tls: Some(info) })
        }
        Err((reason, failure)) => {
            cluster.stats.tls().into_iter().for_each(|stats| stats.count_failure(failure));
            Err(ConnectError::Tls(reason))
        }
    }
}

async fn open(cluster: &Cluster, host: &Host, source: Option<Source>) -> Result<Socket, ConnectError> {
    let refused = |e: io::Error| ConnectError::of(&e);
    match &host.address {
        Address::Ip(address) => {
            let stream = open_tcp(*address, cluster.config.source_address, source).await?;
            set_options(&stream, cluster.config.tcp_keepalive).map_err(refused)?;
            Ok(Socket::tcp(stream))
        }
        Address::Unix(path) => Ok(Socket::unix(UnixStream::connect(path).await.map_err(refused)?)),
        Address::Name(name, _) => Err(ConnectError::Refused(format!("{name} is not resolved"))),
    }
}

async fn open_tcp(
    address: SocketAddr,
    own: Option<SocketAddr>,
    source: Option<Source>,
) -> Result<TcpStream, ConnectError> {
    let refused = |e: io::Error| ConnectError::of(&e);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(refused)?;
    // A source of the other family can't be meant for this endpoint.
    let unbound = |e: io::Error| ConnectError::Bind(e.to_string());
    if let Some(source) = source.filter(|source| source.ip.is_ipv4() == address.is_ipv4()) {
        sockets::borrow_address(&socket, source).map_err(unbound)?;
    } else if let Some(own) = own.filter(|own| own.is_ipv4() == address.is_ipv4()) {
        socket.bind(own).map_err(unbound)?;
    }
    socket.connect(address).await.map_err(refused)
}

/// Sets TCP_NODELAY and keep-alive probes.
pub(crate) fn set_options(stream: &TcpStream, keepalive: Option<TcpKeepalive>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(keepalive) = keepalive else { return Ok(()) };
    let mut probes = Probes::new();
    if let Some(time) = keepalive.time {
        probes = probes.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        probes = probes.with_interval(interval);
    }
    if let Some(count) = keepalive.probes {
        probes = probes.with_retries(count);
    }
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_lacks_is_not_the_endpoints_refusal() {
        // EMFILE and ECONNREFUSED.
        let of = |number| ConnectError::of(&io::Error::from_raw_os_error(number));
        assert!(matches!(of(24), ConnectError::Exhausted(_)));
        assert!(matches!(of(111), ConnectError::Refused(_)));
    }
}
