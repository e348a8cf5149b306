//! The server's part of a handshake, from the ClientHello on.

use crate::io::Socket;
use rustls::server::Accepted;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Makes the handshake. What rustls has to write after one of TLS 1.3, the session tickets, is left with the socket and goes
/// with what is written to the client first, as BoringSSL does it. A client that only sends, and closes without a read,
/// would have them unread: its system would end the connection by a reset and throw away what it has not sent yet.
///
/// # Errors
/// The connection broke, or one of rustls' that the client was told.
pub(super) async fn complete(
    mut socket: Socket,
    accepted: Accepted,
    config: Arc<ServerConfig>,
) -> io::Result<TlsStream<Socket>> {
    let acceptor = TlsAcceptor::from(config.clone());
    let mut session = match accepted.into_connection(config) {
        Ok(session) => session,
        Err((error, mut alert)) => {
            let mut told = Vec::new();
            alert.write_all(&mut told)?;
            return Err(refuse(&mut socket, &told, error).await);
        }
    };
    while session.is_handshaking() {
        socket.write_all(&unwritten(&mut session)?).await?;
        if receive(&mut socket, &mut session).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
        }
        if let Err(error) = session.process_new_packets() {
            let told = unwritten(&mut session)?;
            return Err(refuse(&mut socket, &told, error).await);
        }
    }
    let rest = unwritten(&mut session)?;
    match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => socket.hold_back(rest),
        // The end of the handshake itself.
        _ => socket.write_all(&rest).await?,
    }
    // There is nothing left for it to do but to make a stream of both.
    acceptor.accept_with(socket, |fresh| *fresh = session).await
}

/// Takes from rustls what it wants to write.
fn unwritten(session: &mut ServerConnection) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

/// Reads once; 0 is the end.
async fn receive(socket: &mut Socket, session: &mut ServerConnection) -> io::Result<usize> {
    poll_fn(|cx| match session.read_tls(&mut Ready { socket, cx }) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        read => Poll::Ready(read),
    })
    .await
}

/// Tells the client why there is no connection, if it takes it at once.
async fn refuse(socket: &mut Socket, told: &[u8], error: rustls::Error) -> io::Error {
    if !told.is_empty() {
        poll_fn(|cx| {
            // That it does not hear of it changes nothing.
            let _ = Pin::new(&mut *socket).poll_write(cx, told);
            Poll::Ready(())
        })
        .await;
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What a socket has to read now.
struct Ready<'a, 'b> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'b>,
}

impl Read for Ready<'_, '_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut room = ReadBuf::new(room);
        match Pin::new(&mut *self.socket).poll_read(self.cx, &mut room) {
            Poll::Ready(read) => read.map(|()| room.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
