//! A client's connection, with or without TLS.

use sixfold_core::tls::ServerContext;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Makes the handshake, if there is to be one.
    pub(super) async fn accept(stream: TcpStream, tls: Option<&ServerContext>) -> io::Result<Wire> {
        let Some(context) = tls else { return Ok(Wire::Plain(stream)) };
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let (config, _) = context.choose(&start.client_hello());
        Ok(Wire::Tls(Box::new(start.into_stream(config).await?)))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::*;
    use crate::inheritance::Inheritance;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use sixfold_core::tls::{Identity, Pem, ServerSettings, Validation};
    use std::io::Read;
    use std::net::TcpStream;

    struct Echo;

    impl Answer for Echo {
        fn at_once(&self, _: &Query) -> Option<Reply> {
            None
        }

        fn answer(&self, query: &Query) -> Reply {
            match &query.body {
                Ok(body) => Reply::text(StatusCode::OK, body.clone()),
                Err(size) => Reply::text(StatusCode::PAYLOAD_TOO_LARGE, size.to_string()),
            }
        }

        fn max_body(&self) -> Option<usize> {
            Some(8)
        }
    }

    fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
        write!(stream, "{request}")?;
        let mut text = Vec::new();
        // TLS may end without saying so.
        let _ = stream.read_to_end(&mut text);
        match text.is_empty() {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(String::from_utf8(text).unwrap()),
        }
    }

    const CLOSE: &str = "Host: localhost\r\nConnection: close\r\n";

    #[test]
    fn bodies_are_read_up_to_their_limit() {
        let surface = Surface::start("echo", "127.0.0.1:0".parse().unwrap(), Arc::new(Echo)).unwrap();
        let ask = |request: &str| exchange(TcpStream::connect(surface.address).unwrap(), request).unwrap();
        let sized = |body: &str| {
            ask(&format!("PUT / HTTP/1.1\r\n{CLOSE}Content-Length: {}\r\n\r\n{body}", body.len()))
        };
        assert!(sized("12345678").ends_with("\r\n\r\n12345678"));
        let long = sized("123456789");
        assert!(long.starts_with("HTTP/1.1 413") && long.ends_with("\r\n\r\n9"), "{long}");
        let chunked =
            format!("PUT / HTTP/1.1\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n");
        assert!(ask(&chunked).starts_with("HTTP/1.1 413"));
    }

    #[test]
    fn tls_is_spoken_and_clients_without_a_certificate_are_turned_away() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let pem = |text: &str| Pem::Inline(text.as_bytes().to_vec());
        let identity = || Identity { chain: pem(&certificate), key: pem(&key) };
        let surface = |validation: Option<Validation>| {
            let context = ServerContext::new(ServerSettings {
                identities: vec![identity()],
                require_client_certificate: validation.is_some(),
                validation,
                ..ServerSettings::default()
            });
            let any = "127.0.0.1:0".parse().unwrap();
            Surface::start_with("echo", any, Arc::new(Echo), Some(context.unwrap()), &Inheritance::default())
                .unwrap()
        };
        let root = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let config = |with_certificate: bool| {
            let mut roots = RootCertStore::empty();
            roots.add(root.clone()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.unwrap().with_root_certificates(roots);
            match with_certificate {
                true => {
                    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                    builder.with_client_auth_cert(vec![root.clone()], key).unwrap()
                }
                false => builder.with_no_client_auth(),
            }
        };
        let ask = |surface: &Surface, with_certificate: bool| {
            let name = "localhost".try_into().unwrap();
            let client = ClientConnection::new(Arc::new(config(with_certificate)), name).unwrap();
            let stream = StreamOwned::new(client, TcpStream::connect(surface.address).unwrap());
            exchange(stream, &format!("PUT / HTTP/1.1\r\n{CLOSE}Content-Length: 2\r\n\r\nhi"))
        };
        let open = surface(None);
        assert!(ask(&open, false).unwrap().ends_with("\r\n\r\nhi"));
        let plain =
            exchange(TcpStream::connect(open.address).unwrap(), &format!("GET / HTTP/1.1\r\n{CLOSE}\r\n"));
        assert!(!plain.is_ok_and(|text| text.starts_with("HTTP")));
        let closed =
            surface(Some(Validation { trusted_ca: Some(pem(&certificate)), ..Validation::default() }));
        assert!(ask(&closed, false).is_err());
        assert!(ask(&closed, true).unwrap().ends_with("\r\n\r\nhi"));
    }
}
