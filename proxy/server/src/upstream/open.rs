//! Opening a connection to an endpoint, up to where requests can go over it.

use super::h1::H1Upstream;
use super::h2::H2Connection;
use super::kind::{Client, Kind};
use super::queue::Place;
use super::{ActiveConnection, UpstreamError, Wanted, dial};
use crate::connect::{Alpn, Handshake};
use crate::deadline::after;
use crate::h1::{H1Options, HeaderCase};
use crate::io::Meter;
use sixfold_core::cluster::{Cluster, ConnectionPermit, Host};
use sixfold_core::connection::UpstreamConnection;
use sixfold_core::tls::ClientTls;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a connection is opened for, apart from the request that wants it.
pub(super) struct Order {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) kind: Arc<Kind>,
    tls: Option<Arc<ClientTls>>,
    alpn: Alpn,
    timeout: Duration,
}

/// A connection in the version that was agreed.
pub(super) enum Opened {
    /// HTTP/1: one request at a time.
    Whole(Box<H1Upstream>),
    /// HTTP/2.
    Shared(H2Connection),
}

impl Order {
    /// What a request wants, of its kind.
    pub(super) fn of(wanted: &Wanted<'_>, kind: Arc<Kind>) -> Order {
        Order {
            cluster: wanted.cluster.clone(),
            host: wanted.host.clone(),
            kind,
            tls: wanted.tls.cloned(),
            alpn: wanted.alpn(),
            timeout: wanted.timeout,
        }
    }

    /// Opens it, and tells how many milliseconds connecting took. All of it is within the time for connecting: TLS,
    /// and over HTTP/2 the upstream's preface.
    pub(super) async fn open(
        &self,
        permit: ConnectionPermit,
        place: Place,
        room: Arc<Notify>,
    ) -> Result<(Opened, u32), UpstreamError> {
        let config = &self.cluster.config;
        let until = after(Instant::now(), self.timeout);
        let mut active =
            ActiveConnection::new(self.host.clone(), self.cluster.stats.clone(), Some(permit)).at(place);
        let stats = &self.cluster.stats;
        match self.alpn {
            Alpn::Http2 => stats.upstream_cx_http2_total().inc(),
            // What is spoken is not known yet, or is no HTTP.
            Alpn::Auto | Alpn::None => {}
            _ => stats.upstream_cx_http1_total().inc(),
        }
        let mut connected = match dial(&self.cluster, &self.host, self.handshake(), self.timeout).await {
            Ok(connected) => connected,
            Err(error) => {
                if matches!(error, UpstreamError::Connect(_)) {
                    active.ends_remotely();
                }
                return Err(error);
            }
        };
        connected.io.meter(Meter::Upstream(stats.clone()));
        let connect_ms = connected.connect_ms;
        let known = UpstreamConnection::new(connected.tls.take());
        let http1 = match self.alpn {
            Alpn::Http2 => false,
            Alpn::Auto => !matches!(connected.alpn.as_deref(), Some(b"h2" | b"istio-h2")),
            _ => true,
        };
        if self.alpn == Alpn::Auto {
            match http1 {
                true => stats.upstream_cx_http1_total().inc(),
                false => stats.upstream_cx_http2_total().inc(),
            }
        }
        if http1 {
            let opts = Arc::new(self.h1_options());
            let raw = self.alpn == Alpn::None;
            let connection = H1Upstream::new(
                connected.io,
                opts,
                config.buffer_limit,
                active,
                known,
                self.kind.clone(),
                raw,
            );
            return Ok((Opened::Whole(Box::new(connection)), connect_ms));
        }
        let open = H2Connection::open(connected.io, config, active, known, room);
        match tokio::time::timeout_at(until, open).await {
            Ok(Ok(connection)) => Ok((Opened::Shared(connection), connect_ms)),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed(UpstreamError::ConnectTimeout)),
        }
    }

    fn handshake(&self) -> Handshake<'_> {
        let Client { source, told } = self.kind.client();
        Handshake {
            tls: self.tls.as_ref(),
            server_name: self.kind.server_name(),
            alpn: self.alpn,
            offer: self.kind.offer(),
            source,
            told,
        }
    }

    fn failed(&self, error: UpstreamError) -> UpstreamError {
        let stats = &self.cluster.stats;
        stats.upstream_cx_connect_fail().inc();
        self.host.failed_connections.fetch_add(1, Relaxed);
        if error == UpstreamError::ConnectTimeout {
            stats.upstream_cx_connect_timeout().inc();
        }
        error
    }

    fn h1_options(&self) -> H1Options {
        let http1 = &self.cluster.config.http1;
        let mut opts = H1Options::upstream(self.cluster.config.profile);
        opts.enable_trailers = http1.enable_trailers;
        opts.allow_chunked_length = http1.allow_chunked_length;
        opts.rules = self.cluster.config.header_rules;
        opts.max_head_bytes = http1.max_head_bytes;
        opts.forward_reason |= http1.forward_reason;
        if http1.header_case != HeaderCase::Lower {
            opts.header_case = http1.header_case;
        }
        opts
    }
}
