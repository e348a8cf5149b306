//! TCP proxying: bytes both ways between a client and an endpoint (Envoy's tcp_proxy).

mod pump;

use crate::connect::{Alpn, ConnectError, Connected, connect};
use crate::drain::Drain;
use crate::io::Io;
use crate::worker::Worker;
use pump::{End, Pump};
use sixfold_core::balance::Choice;
use sixfold_core::cluster::{Cluster, Host, Permit, Resource};
use sixfold_core::connection::Connection;
use sixfold_core::flags::Flag;
use sixfold_core::hash::{request_hash, weighted};
use sixfold_core::listener::TcpProxy;
use sixfold_core::route::ClusterChoice;
use sixfold_core::stream::{Stream, Tried};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

/// Serves a connection until it ends. Draining has nothing to tell its client: it may go on until the drain's
/// deadline, when its future is dropped.
pub async fn serve(
    io: Io,
    connection: Arc<Connection>,
    proxy: Arc<TcpProxy>,
    worker: Arc<Worker>,
    _drain: Drain,
) {
    proxy.stats.downstream_cx_total.inc();
    let mut session = Session::new(connection, proxy);
    let Some(cluster) = session.choose_cluster() else {
        session.proxy.stats.downstream_cx_no_route.inc();
        return session.fail(Flag::NC, "cluster_not_found");
    };
    session.stream.upstream.cluster = Some(cluster.clone());
    let Some((connected, _upstream)) = session.connect(&cluster, &worker).await else { return };
    session.stream.upstream.local = connected.local;
    session.pass(io, connected.io, &cluster).await;
}

/// One proxied connection. Its access logs are written when it is dropped, however it ends.
struct Session {
    stream: Stream,
    proxy: Arc<TcpProxy>,
}

impl Session {
    fn new(connection: Arc<Connection>, proxy: Arc<TcpProxy>) -> Session {
        let mut stream = Stream::new(connection);
        stream.start_time = SystemTime::now() - stream.connection.start.elapsed();
        stream.random = fastrand::u64(..);
        request_hash(&proxy.hash, &mut stream);
        Session { stream, proxy }
    }

    fn fail(&mut self, flag: Flag, details: &'static str) {
        self.stream.flags.insert(flag);
        self.stream.details = details.into();
    }

    fn choose_cluster(&self) -> Option<Arc<Cluster>> {
        let choice = match &self.proxy.cluster {
            ClusterChoice::Weighted(clusters) => &weighted(clusters, &self.stream)?.cluster,
            choice => choice,
        };
        match choice {
            ClusterChoice::Named(cell) => cell.load(),
            // There are no headers here; the translators refuse it.
            ClusterChoice::Header(..) | ClusterChoice::Weighted(_) => None,
        }
    }

    /// Connects to an endpoint, with as many attempts as allowed.
    async fn connect(&mut self, cluster: &Arc<Cluster>, worker: &Worker) -> Option<(Connected, Upstream)> {
        for attempt in 0..self.proxy.max_connect_attempts.max(1) {
            let Some(host) = self.choose_host(cluster, worker, attempt) else {
                cluster.stats.upstream_cx_none_healthy.inc();
                self.fail(Flag::UH, "no_healthy_upstream");
                return None;
            };
            let Some(permit) = cluster.breaker.acquire(Resource::Connections) else {
                cluster.stats.upstream_cx_overflow.inc();
                self.fail(Flag::UO, "upstream_overflow");
                return None;
            };
            self.stream.upstream.host = Some(host.clone());
            self.stream.upstream.attempts = attempt + 1;
            let upstream = Upstream::new(cluster.clone(), host.clone(), permit);
            let timeout = cluster.config.connect_timeout;
            match connect(cluster, &host, None, Alpn::None, timeout).await {
                Ok(connected) => {
                    cluster.stats.upstream_cx_connect_ms.record(u64::from(connected.connect_ms));
                    return Some((connected, upstream));
                }
                Err(error) => self.note_failure(cluster, host, &error),
            }
        }
        self.stream.flags.insert(Flag::URX);
        None
    }

    fn choose_host(&self, cluster: &Cluster, worker: &Worker, attempt: u32) -> Option<Arc<Host>> {
        cluster.balancer.choose(&Choice {
            hosts: &cluster.hosts.load(),
            worker: worker.index,
            hash: self.stream.hash,
            random: fastrand::u64(..),
            attempt,
            tried: &self.stream.upstream.tried,
            predicates: &[],
            host_attempts: 1,
            previous_priorities: None,
            subset: &self.proxy.metadata_match,
        })
    }

    fn note_failure(&mut self, cluster: &Cluster, host: Arc<Host>, error: &ConnectError) {
        cluster.stats.upstream_cx_connect_fail.inc();
        if *error == ConnectError::Timeout {
            cluster.stats.upstream_cx_connect_timeout.inc();
        }
        host.failed_connections.fetch_add(1, Relaxed);
        self.fail(Flag::UF, "upstream_connection_failure");
        self.stream.upstream.failure = Some(error.to_string().into());
        let tried = Tried { host, status: 0, connect_ms: None, header_ms: None, response_ms: None };
        self.stream.upstream.tried.push(tried);
    }

    /// Passes bytes until both sides have said all, one fails, or time is up.
    async fn pass(&mut self, client: Io, endpoint: Io, cluster: &Cluster) {
        let (proxy, stats) = (self.proxy.clone(), &cluster.stats);
        let deadline = proxy.max_duration.map(|d| self.stream.connection.start + d);
        let bytes = &mut self.stream.bytes;
        let mut pump = Pump::new(client, endpoint);
        let end = pump.run(proxy.idle_timeout, deadline, |up, down| {
            bytes.request_body += up;
            bytes.response_body += down;
            proxy.stats.downstream_cx_rx_bytes_total.add(up);
            proxy.stats.downstream_cx_tx_bytes_total.add(down);
            stats.upstream_cx_tx_bytes_total.add(up);
            stats.upstream_cx_rx_bytes_total.add(down);
        });
        match end.await {
            End::Idle => proxy.stats.idle_timeout.inc(),
            End::Deadline => {
                proxy.stats.max_downstream_connection_duration.inc();
                self.fail(Flag::DT, "max_duration_timeout");
            }
            End::Closed => {}
            End::Failed(reason) => tracing::debug!(%reason, "a TCP connection broke"),
        }
        bytes_upstream(&mut self.stream);
    }
}

fn bytes_upstream(stream: &mut Stream) {
    stream.bytes.upstream_sent = stream.bytes.request_body;
    stream.bytes.upstream_received = stream.bytes.response_body;
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stream.timing.downstream_tx_end = Some(Instant::now());
        self.proxy.access_logs.iter().for_each(|log| log.log(&self.stream));
    }
}

/// An upstream connection in the statistics of its cluster and host.
struct Upstream {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    _permit: Permit,
}

impl Upstream {
    fn new(cluster: Arc<Cluster>, host: Arc<Host>, permit: Permit) -> Upstream {
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.total_connections.fetch_add(1, Relaxed);
        host.active_connections.fetch_add(1, Relaxed);
        // A balancer that counts requests takes a connection for one.
        host.active_requests.fetch_add(1, Relaxed);
        Upstream { cluster, host, _permit: permit }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.cluster.stats.upstream_cx_active.dec();
        self.cluster.stats.upstream_cx_destroy.inc();
        self.host.active_connections.fetch_sub(1, Relaxed);
        self.host.active_requests.fetch_sub(1, Relaxed);
    }
}
