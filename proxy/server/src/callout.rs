//! Requests to services beside the upstreams, for plugins: authorisation, tokens, key servers.

mod pool;
#[cfg(test)]
mod tests;
mod trust;

use crate::dns::Resolver;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pool::{Key, Pool, Sender};
use rustls_pki_types::ServerName;
use sixfold_core::cluster::DnsFamily;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{
    Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, Keepalive,
};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;

/// How callouts are sent.
#[derive(Debug, Clone, Default)]
pub struct CalloutConfig {
    /// PEM file of the authorities that services are verified against; `None` takes the system's.
    pub trusted: Option<PathBuf>,
}

/// Callouts over HTTP/1.1 by hyper. A connection that is kept belongs to the thread that opened it, so a
/// worker's callouts stay on the worker.
pub struct HttpCallout {
    inner: Arc<Inner>,
}

struct Inner {
    resolver: Arc<Resolver>,
    trust: trust::Trust,
    pool: Pool,
}

impl HttpCallout {
    /// Callouts that resolve names with `resolver`.
    pub fn new(resolver: Arc<Resolver>, config: CalloutConfig) -> HttpCallout {
        let trust = trust::Trust::new(config.trusted);
        HttpCallout { inner: Arc::new(Inner { resolver, trust, pool: Pool::default() }) }
    }
}

impl Callout for HttpCallout {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        let inner = self.inner.clone();
        Box::pin(async move {
            match tokio::time::timeout(request.timeout, inner.exchange(request)).await {
                Ok(result) => result,
                Err(_) => Err(CalloutError::Timeout),
            }
        })
    }
}

fn failed(reason: impl std::fmt::Display) -> CalloutError {
    CalloutError::Failed(reason.to_string())
}

impl Inner {
    async fn exchange(&self, request: CalloutRequest) -> Result<CalloutResponse, CalloutError> {
        let key = Key::of(&request)?;
        let (keepalive, max_body) = (request.keepalive, request.max_body);
        let mut message = head(&request)?.body(Full::new(request.body)).map_err(failed)?;
        // A kept connection may have been closed meanwhile: what was not sent goes to the next one.
        while let Some(mut sender) = self.pool.take(&key) {
            match sender.try_send_request(message).await {
                Ok(response) => return self.finish(key, sender, response, keepalive, max_body).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => message = unsent,
                    None => return Err(failed(error.into_error())),
                },
            }
        }
        let mut sender = self.connect(&key).await?;
        let response = sender.send_request(message).await.map_err(failed)?;
        self.finish(key, sender, response, keepalive, max_body).await
    }

    /// Reads the body up to the bound and keeps the connection.
    async fn finish(
        &self,
        key: Key,
        sender: Sender,
        response: http::Response<Incoming>,
        keepalive: Option<Keepalive>,
        max_body: usize,
    ) -> Result<CalloutResponse, CalloutError> {
        let (head, body) = response.into_parts();
        let body = read(body, max_body).await?;
        let mut headers = Headers::new();
        for (name, value) in &head.headers {
            headers.push(name.as_str().as_bytes(), value.as_bytes());
        }
        if let Some(keepalive) = keepalive {
            self.pool.put(key, sender, keepalive);
        }
        Ok(CalloutResponse { status: head.status.as_u16(), headers, body })
    }

    async fn connect(&self, key: &Key) -> Result<Sender, CalloutError> {
        let stream = self.dial(&key.host, key.port).await?;
        let _ = stream.set_nodelay(true);
        if !key.tls {
            return handshake(TokioIo::new(stream)).await;
        }
        let name = key.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(failed)?;
        let config = self.trust.client(key.verify).map_err(failed)?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
        handshake(TokioIo::new(stream)).await
    }

    /// The first address that accepts.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, CalloutError> {
        let answer = self.resolver.resolve(host, DnsFamily::V4Preferred).await.map_err(failed)?;
        let mut last = failed(format_args!("'{host}' has no address"));
        for address in answer.addresses {
            match TcpStream::connect((address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(format_args!("{address}:{port}: {error}")),
            }
        }
        Err(last)
    }
}

/// The request in origin form, with a Host.
fn head(request: &CalloutRequest) -> Result<http::request::Builder, CalloutError> {
    let uri: http::Uri = request.uri.parse().map_err(failed)?;
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut builder = http::Request::builder().method(request.method.clone()).uri(target);
    if !request.headers.contains("host") {
        builder = builder.header(http::header::HOST, uri.authority().map_or("", |a| a.as_str()));
    }
    for (name, value) in request.headers.iter() {
        builder = builder.header(name, value);
    }
    if request.keepalive.is_none() {
        builder = builder.header(http::header::CONNECTION, "close");
    }
    Ok(builder)
}

async fn handshake<T>(io: TokioIo<T>) -> Result<Sender, CalloutError>
where
    TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "callout connection ended");
        }
    });
    Ok(sender)
}

#[allow(clippy::disallowed_methods, reason = "the body is capped right here")]
async fn read(body: Incoming, max: usize) -> Result<Bytes, CalloutError> {
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(failed(format_args!("the answer is longer than {max} bytes")))
        }
        Err(error) => Err(failed(error)),
    }
}
