//! TLS handshakes of both sides, from the contexts that configuration compiled.

mod serve;

use crate::deadline::{Deadline, bounded};
use crate::io::{Io, Socket};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sixfold_core::connection::TlsInfo;
use sixfold_core::tls::{ClientContext, HandshakeFailure, ServerTls, reason};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// A client's connection after its handshake.
pub(crate) struct Accepted {
    pub(crate) io: Io,
    pub(crate) info: TlsInfo,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The client did not begin with a TLS record. It gets no answer as long as nobody knows what it speaks.
    #[error("plain text on a TLS port")]
    PlainText(Box<Socket>),
    /// No certificate for the server name, or none has arrived yet.
    #[error("no certificate for this server name")]
    NoContext,
    /// The client has no certificate though one is required.
    #[error("no client certificate")]
    NoClientCertificate,
    /// The client's certificate is refused.
    #[error("{}", reason(.0))]
    ClientCertificate(rustls::Error),
    /// Anything else of the protocol.
    #[error("{}", reason(.0))]
    Protocol(rustls::Error),
    /// The connection broke.
    #[error("{0}")]
    Io(io::Error),
}

impl HandshakeError {
    /// As which it is counted.
    pub(crate) fn failure(&self) -> HandshakeFailure {
        match self {
            HandshakeError::NoClientCertificate => HandshakeFailure::NoCertificate,
            HandshakeError::ClientCertificate(reason) => HandshakeFailure::of(reason),
            _ => HandshakeFailure::Other,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        match rustls_error(&error) {
            Some(rustls::Error::NoCertificatesPresented) => HandshakeError::NoClientCertificate,
            Some(e @ rustls::Error::InvalidCertificate(_)) => HandshakeError::ClientCertificate(e.clone()),
            Some(e) => HandshakeError::Protocol(e.clone()),
            None => HandshakeError::Io(error),
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a client hears for whom there is no certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unnamed {
    /// Nothing, as from Envoy.
    Close,
    /// The fatal alert `unrecognized_name` (RFC 6066 section 3).
    Alert,
}

/// Takes a client's handshake, before the deadline.
pub(crate) async fn accept(
    mut socket: Socket,
    tls: &ServerTls,
    unnamed: Unnamed,
    deadline: &mut Deadline,
) -> Result<Accepted, HandshakeError> {
    const HANDSHAKE_RECORD: u8 = 22;
    if socket.first_byte(deadline).await? != Some(HANDSHAKE_RECORD) {
        return Err(HandshakeError::PlainText(Box::new(socket)));
    }
    bounded(deadline, handshake(socket, tls, unnamed)).await.map_err(io::Error::from)?
}

async fn handshake(socket: Socket, tls: &ServerTls, unnamed: Unnamed) -> Result<Accepted, HandshakeError> {
    /// A record of TLS 1.2 with a fatal alert.
    const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
    let mut start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let hello = start.client_hello();
    let server_name = hello.server_name().map(str::to_ascii_lowercase);
    let Some(context) = tls.context(server_name.as_deref()) else {
        tls.awaited().iter().for_each(|awaited| awaited.count_not_ready());
        if unnamed == Unnamed::Alert {
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await?;
        }
        return Err(HandshakeError::NoContext);
    };
    let (config, local) = context.choose(&hello);
    let stream = serve::complete(start.io, start.accepted, config).await?;
    let info = context.info(stream.get_ref().1, local);
    Ok(Accepted { io: Io::tls_server(stream), info })
}

/// Makes a handshake with an endpoint. Without a server name its address stands in, which is not sent.
///
/// # Errors
/// Why it failed, in words, and as what that is counted.
pub(crate) async fn connect(
    socket: Socket,
    context: &ClientContext,
    server_name: Option<&str>,
    address: IpAddr,
    config: Arc<ClientConfig>,
) -> Result<(Io, TlsInfo), (String, HandshakeFailure)> {
    let name = match server_name {
        None => ServerName::IpAddress(address.into()),
        Some(name) => {
            let parsed = ServerName::try_from(name.to_owned())
                .map_err(|_| (format!("\"{name}\" is no server name"), HandshakeFailure::Other))?;
            if context.sends_names_alone() && !matches!(parsed, ServerName::DnsName(_)) {
                return Err((format!("\"{name}\" is no host's name"), HandshakeFailure::Names));
            }
            parsed
        }
    };
    let connector = TlsConnector::from(config);
    let stream = connector.connect(name, socket).await.map_err(|e| match rustls_error(&e) {
        Some(tls) => (reason(tls), HandshakeFailure::of(tls)),
        None => (e.to_string(), HandshakeFailure::Other),
    })?;
    let info = TlsInfo { server_name: server_name.map(Into::into), ..context.info(stream.get_ref().1) };
    Ok((Io::tls_client(stream), info))
}
