//! Opening connections to endpoints, for requests and for TCP, and what is counted of them.

use super::UpstreamError;
use super::queue::Place;
use crate::connect::{ConnectError, Connected, Handshake, connect};
use crate::io::Filtering;
use sixfold_core::cluster::{Cluster, ClusterStats, ConnectionPermit, Host};
use sixfold_core::connection::{Connection, TlsInfo};
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::peer_exchange::PeerExchange;
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Counts a connection from its opening on while it lives.
pub(crate) struct ActiveConnection {
    pub(crate) host: Arc<Host>,
    pub(crate) stats: Arc<ClusterStats>,
    /// [`Host::falls`] when it was begun.
    falls: u32,
    seat: Seat,
    /// The endpoint ends it.
    remotely: bool,
    /// It ends with a request under way.
    busy: bool,
    opened: Instant,
    /// Requests that it has carried.
    requests: u32,
}

/// What a connection takes that others could have: leave by the limits, and a place among those of its worker.
#[derive(Default)]
pub(super) struct Seat {
    // In this order: whoever gets the place finds the circuit breaker's count gone down already.
    permit: Option<ConnectionPermit>,
    place: Option<Place>,
}

impl Seat {
    /// Whether a cluster, which may be a later version of the one that it was opened for, still has it take requests.
    pub(super) fn is_kept(&self, cluster: &Cluster) -> bool {
        self.permit.as_ref().is_none_or(|permit| cluster.keeps(permit))
    }
}

impl ActiveConnection {
    pub(crate) fn new(
        host: Arc<Host>,
        stats: Arc<ClusterStats>,
        permit: Option<ConnectionPermit>,
    ) -> ActiveConnection {
        stats.upstream_cx_total().inc();
        stats.upstream_cx_active().inc();
        host.total_connections.fetch_add(1, Relaxed);
        host.active_connections.fetch_add(1, Relaxed);
        let seat = Seat { permit, place: None };
        let falls = host.falls();
        let (remotely, busy, opened, requests) = (false, false, Instant::now(), 0);
        ActiveConnection { host, stats, falls, seat, remotely, busy, opened, requests }
    }

    /// Whether the endpoint has been found ill since: then it ends as soon as it is idle.
    #[inline]
    pub(super) fn is_outdated(&self) -> bool {
        self.host.falls() != self.falls
    }

    /// Whether the limits of `cluster` leave it to take requests.
    pub(super) fn is_kept(&self, cluster: &Cluster) -> bool {
        self.seat.is_kept(cluster)
    }

    /// The same at a place among its worker's connections to the endpoint.
    pub(super) fn at(mut self, place: Place) -> ActiveConnection {
        self.seat.place = Some(place);
        self
    }

    /// The place, for whoever opens a connection in this one's stead.
    pub(super) fn leave_place(&mut self) -> Option<Place> {
        self.seat.place.take()
    }

    /// What it takes, for whoever may give that to another before this one has ended.
    pub(super) fn leave_seat(&mut self) -> Seat {
        std::mem::take(&mut self.seat)
    }

    /// Notes that the endpoint ends it.
    pub(crate) fn ends_remotely(&mut self) {
        self.remotely = true;
    }

    /// Notes how many requests it has carried.
    pub(super) fn carried(&mut self, requests: u32) {
        self.requests = requests;
    }

    /// Notes that it ends with a request under way.
    pub(crate) fn ends_busy(&mut self) {
        self.busy = true;
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        let stats = &self.stats;
        stats.upstream_cx_active().dec();
        stats.upstream_cx_destroy().inc();
        let millis = self.opened.elapsed().as_millis();
        stats.upstream_cx_length_ms().record(u64::try_from(millis).unwrap_or(u64::MAX));
        if self.requests > 0 {
            stats.upstream_rq_per_cx().record(self.requests.into());
        }
        match self.remotely {
            true => stats.upstream_cx_destroy_remote().inc(),
            false => stats.upstream_cx_destroy_local().inc(),
        }
        if self.busy {
            stats.upstream_cx_destroy_with_active_rq().inc();
            match self.remotely {
                true => stats.upstream_cx_destroy_remote_with_active_rq().inc(),
                false => stats.upstream_cx_destroy_local_with_active_rq().inc(),
            }
        }
        self.host.active_connections.fetch_sub(1, Relaxed);
    }
}

/// Has both ends of a connection tell each other who they are, if their handshake has agreed on that.
async fn meet(exchange: &Arc<PeerExchange>, connected: &mut Connected) {
    let Some(peer) = connected.io.peer_addr() else { return };
    if !exchange.meets(connected.alpn.as_deref()) {
        return;
    }
    let tls = TlsInfo { alpn: connected.alpn.clone(), ..TlsInfo::default() };
    let local = connected.local.unwrap_or(peer);
    let connection = Connection { tls: Some(tls), ..Connection::plain(peer, local) };
    let filter: Arc<dyn ConnectionFilter> = exchange.clone();
    // It lets every connection go on.
    if let Ok(filtering) = Filtering::begin(&[filter].into(), Stream::new(Arc::new(connection))).await {
        connected.io.filter(filtering);
    }
}

/// Connects to an endpoint and counts how that went.
pub(crate) async fn dial(
    cluster: &Cluster,
    host: &Host,
    handshake: Handshake<'_>,
    timeout: Duration,
) -> Result<Connected, UpstreamError> {
    let stats = &cluster.stats;
    match connect(cluster, host, handshake, timeout).await {
        Ok(mut connected) => {
            if let Some(exchange) = &cluster.config.exchange {
                meet(exchange, &mut connected).await;
            }
            stats.upstream_cx_connect_ms().record(u64::from(connected.connect_ms));
            Ok(connected)
        }
        Err(error) => {
            stats.upstream_cx_connect_fail().inc();
            host.failed_connections.fetch_add(1, Relaxed);
            Err(match error {
                ConnectError::Timeout => {
                    stats.upstream_cx_connect_timeout().inc();
                    UpstreamError::ConnectTimeout
                }
                ConnectError::Refused(text) => {
                    // The operating system's number adds nothing to its words.
                    let words = text.split(" (os error").next().unwrap_or_default();
                    UpstreamError::Connect(format!("delayed_connect_error: {words}"))
                }
                ConnectError::Exhausted(_) => UpstreamError::Exhausted,
                ConnectError::Tls(_) | ConnectError::NoSecret => UpstreamError::Connect(error.to_string()),
                ConnectError::Bind(text) => {
                    stats.bind_errors().inc();
                    UpstreamError::Connect(text)
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::cluster::{Address, ClusterConfig, HostConfig};
    use sixfold_core::metrics::Registry;

    /// It was shown and never counted.
    #[tokio::test]
    async fn a_source_address_that_can_t_be_taken_is_counted() {
        let source_address = Some("203.0.113.7:0".parse().unwrap());
        let mut config = ClusterConfig::named("c");
        config.source_address = source_address;
        let hosts = vec![HostConfig::new(Address::Ip("127.0.0.1:9".parse().unwrap()))];
        let cluster = Cluster::new(config, hosts, None, &Registry::new()).unwrap();
        let host = cluster.hosts.load_full().iter().next().unwrap().host.clone();
        let dialled = dial(&cluster, &host, Handshake::default(), Duration::from_secs(5)).await;
        assert!(matches!(dialled, Err(UpstreamError::Connect(_))));
        let stats = &cluster.stats;
        assert_eq!((stats.bind_errors().get(), stats.upstream_cx_connect_fail().get()), (1, 1));
    }
}
