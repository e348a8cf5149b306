//! Requests to services beside the upstreams, for plugins: authorisation, tokens, key servers, gRPC.
//!
//! They go through clusters, over the connections of the worker that asks: those of the configuration, or one made for
//! the host of a free URI.

mod services;
mod stream;
#[cfg(test)]
mod tests;
mod trust;

use crate::connect::{Handshake, connect};
use crate::deadline::{Deadline, TimedOut, after, bounded};
use crate::dns::DnsCache;
use crate::http::charge;
use crate::upstream::{Outbound, Pools, UpstreamError};
use bytes::{Bytes, BytesMut};
use services::{Asked, Services};
use sixfold_core::cluster::{Choice, Cluster, Criteria, TriedHost};
use sixfold_core::headers::{Known, has_blank};
use sixfold_core::message::{RequestHead, Scheme};
use sixfold_core::plugin::{
    Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, CalloutStream,
    CalloutStreamFuture, CalloutWire, ConnectFuture, ConnectRequest,
};
use sixfold_core::retry::is_idempotent;
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use stream::Open;
use tokio::time::Instant;

/// How callouts are sent.
#[derive(Debug, Clone, Default)]
pub struct CalloutConfig {
    /// PEM file of the authorities that the hosts of free URIs are verified against; `None` takes the system's.
    pub trusted: Option<PathBuf>,
}

/// Callouts through clusters. A clone is the same.
#[derive(Clone)]
pub struct Callouts(Arc<Services>);

impl Callouts {
    /// Callouts that resolve names with `dns`. Reads the file of authorities, and goes on to look whether it has
    /// changed, beside the workers.
    pub fn new(dns: DnsCache, config: CalloutConfig) -> Callouts {
        Callouts(Arc::new(Services::new(dns, trust::Trust::start(config.trusted))))
    }

    /// A request under way, at an endpoint that took it: with its body sent and the head of its response, or open for
    /// the body to come.
    async fn exchange(&self, request: &CalloutRequest, open: bool) -> Result<Open, CalloutError> {
        let start = Instant::now();
        let limit = after(start, request.timeout);
        let uri: http::Uri = request.uri.parse().map_err(unaskable)?;
        let cluster = match &request.cluster {
            Some(cell) => {
                cell.load().ok_or_else(|| failed(format_args!("there is no cluster '{}'", cell.name)))?
            }
            None => {
                let cluster = self.0.cluster(Asked::of(request, &uri)?);
                tokio::time::timeout_at(limit, cluster).await.unwrap_or(Err(CalloutError::Timeout))?
            }
        };
        let head = head(request, &uri, &cluster);
        check(&head)?;
        let mut tried = Vec::new();
        loop {
            let attempt = attempt(&cluster, &mut tried, Deadline::at(limit), head.is_grpc());
            let Some(out) = attempt else {
                charge::response_to_own(&cluster, 503);
                return Err(failed("no healthy upstream"));
            };
            let mut attempt = Open::new(out, cluster.clone(), start);
            match send(&mut attempt.out, request, &head, open, limit).await {
                Ok(()) => return Ok(attempt),
                Err(Some(error)) if tried.len() <= request.retries as usize => {
                    attempt.out.give_up(error.outcome());
                }
                Err(error) => {
                    attempt.fail(error.as_ref());
                    return Err(stream::said(error));
                }
            }
        }
    }

    /// A connection to an endpoint of a service that does not speak HTTP.
    async fn wire(&self, request: ConnectRequest<'_>) -> Result<Box<dyn CalloutWire>, CalloutError> {
        let cluster = self.0.cluster(Asked::raw(request)).await?;
        let worker = Pools::of_thread().1;
        let mut tried = Vec::new();
        loop {
            let Some(flight) = cluster.choose(&Choice::avoiding(&tried, worker, None, Criteria::NONE)) else {
                return Err(failed("no healthy upstream"));
            };
            let handshake = Handshake { tls: cluster.config.tls.as_ref(), ..Handshake::default() };
            match connect(&cluster, &flight.member().host, handshake, request.timeout).await {
                Ok(connected) => return Ok(connected.io.into_wire()),
                // A name may have addresses that nobody answers at.
                Err(_) if tried.len() + 1 < cluster.hosts.load().total() => {
                    tried.push(TriedHost::new(flight.member().clone(), std::time::Instant::now()));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    async fn answer(&self, request: &CalloutRequest) -> Result<CalloutResponse, CalloutError> {
        let mut answer = self.exchange(request, false).await?;
        answer.count_head();
        let mut body = BytesMut::new();
        while let Some(piece) = poll_fn(|cx| answer.poll_data(cx)).await? {
            if body.len() + piece.len() > request.max_body {
                return Err(failed(format_args!("the answer is longer than {} bytes", request.max_body)));
            }
            body.extend_from_slice(&piece);
        }
        let (status, headers) = (answer.out.status(), answer.out.take_headers());
        Ok(CalloutResponse { status, headers, body: body.freeze() })
    }
}

/// An attempt at an endpoint that was not tried; `None` when there is none.
fn attempt(
    cluster: &Arc<Cluster>,
    tried: &mut Vec<TriedHost>,
    deadline: Deadline,
    is_grpc: bool,
) -> Option<Outbound> {
    let (pools, worker) = Pools::of_thread();
    let mut flight = cluster.choose(&Choice::avoiding(tried, worker, None, Criteria::NONE))?;
    let now = std::time::Instant::now();
    flight.begin(now, is_grpc);
    tried.push(TriedHost::new(flight.member().clone(), now));
    Some(Outbound::new(flight, pools, deadline))
}

/// Sends the request, again where it was the connection that failed it; `Err(None)` is the deadline.
async fn send(
    out: &mut Outbound,
    request: &CalloutRequest,
    head: &RequestHead,
    open: bool,
    limit: Instant,
) -> Result<(), Option<UpstreamError>> {
    let idempotent = is_idempotent(&head.method);
    loop {
        let begun = match bounded(&mut Deadline::at(limit), out.begin(head, &request.body, open)).await {
            Ok(Ok(())) if open => return Ok(()),
            Ok(Ok(())) => poll_fn(|cx| out.poll_begun(cx)).await,
            Ok(Err(error)) => Err(Some(error)),
            Err(TimedOut) => Err(None),
        };
        match begun {
            Err(Some(error)) if out.resends(&error, idempotent) => {}
            other => return other,
        }
    }
}

impl Callout for Callouts {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        let callouts = self.clone();
        Box::pin(async move { callouts.answer(&request).await })
    }

    fn open(&self, mut request: CalloutRequest) -> CalloutStreamFuture {
        let callouts = self.clone();
        // Its body comes later, piece by piece.
        request.body = Bytes::new();
        Box::pin(async move {
            let open = callouts.exchange(&request, true).await?;
            Ok(Box::new(open) as Box<dyn CalloutStream>)
        })
    }

    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> ConnectFuture<'a> {
        Box::pin(async move {
            let wire = tokio::time::timeout(request.timeout, self.wire(request)).await;
            wire.unwrap_or(Err(CalloutError::Timeout))
        })
    }
}

fn failed(reason: impl std::fmt::Display) -> CalloutError {
    CalloutError::Failed(reason.to_string())
}

fn unaskable(reason: impl std::fmt::Display) -> CalloutError {
    CalloutError::Unaskable(reason.to_string())
}

/// Whether all of a request can be written. Without a field that codecs leave out, the service would be asked something else.
fn check(head: &RequestHead) -> Result<(), CalloutError> {
    if !head.headers.is_sound() {
        return Err(unaskable("a header of the request is none"));
    }
    if has_blank(head.target.full()) || has_blank(&head.authority) {
        return Err(unaskable("the request has a blank or a control in its path or authority"));
    }
    Ok(())
}

/// The request as an endpoint gets it.
fn head(request: &CalloutRequest, uri: &http::Uri, cluster: &Cluster) -> RequestHead {
    let mut head = RequestHead { method: request.method.clone(), ..RequestHead::default() };
    head.scheme = if cluster.config.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let of_uri = || uri.path_and_query().map_or("/", |p| p.as_str()).as_bytes();
    head.target.set(request.target.as_deref().unwrap_or_else(of_uri));
    head.headers = request.headers.clone();
    head.authority = match head.headers.get(Known::HOST) {
        Some(host) => host.to_vec(),
        None => uri.authority().map_or(&b""[..], |a| a.as_str().as_bytes()).to_vec(),
    };
    head.headers.remove(Known::HOST);
    if !request.body.is_empty() {
        head.headers.set(Known::CONTENT_LENGTH, itoa::Buffer::new().format(request.body.len()).as_bytes());
    }
    head
}
