//! TCP proxying: bytes both ways between a client and an endpoint (Envoy's tcp_proxy, APISIX's stream routes).
//!
//! Clusters, balancers, circuit breakers and connecting are those of requests. The client is not read before
//! the endpoint is there, and it is closed without a word when none can be reached.

mod meter;
mod pump;
mod session;
mod splice;
mod terms;

use crate::drain::Drain;
use crate::io::{Filtering, Io};
use crate::worker::Worker;
pub(crate) use meter::Meter;
pub(crate) use pump::{End, Moved, Side};
use pump::{Pump, Watch};
pub(crate) use session::{Reached, Session, Transport, Upstream};
use sixfold_core::connection::Connection;
use sixfold_core::flags::Flag;
use sixfold_core::listener::TcpProxy;
use std::pin::pin;
use std::sync::Arc;
pub(crate) use terms::{Routed, Terms};
use tokio::time::Instant;

/// Serves a connection until both sides have said all, one of them fails, or a limit ends it.
pub async fn serve(
    io: Io,
    connection: Arc<Connection>,
    proxy: Arc<TcpProxy>,
    worker: Arc<Worker>,
    drain: Drain,
) {
    serve_under(io, connection, Terms::of(proxy), worker, drain).await;
}

/// The same under the terms of whoever has chosen where it goes.
pub(crate) async fn serve_under(
    mut io: Io,
    connection: Arc<Connection>,
    terms: Terms,
    worker: Arc<Worker>,
    drain: Drain,
) {
    let mut session = Session::new(connection, terms, io.filtering());
    match session.begin(&worker, Transport::Tcp).await {
        Some((upstream, deadline)) => session.pass(io, upstream, deadline, &drain).await,
        None => session.filtering = io.take_filtering(),
    }
}

/// Counts and logs a connection that a network filter before the proxy ends at its beginning.
pub(crate) fn refused(connection: Arc<Connection>, terms: Terms, filtering: Box<Filtering>) {
    terms.stats().downstream_cx_total().inc();
    let mut session = Session::new(connection, terms, Some(&filtering));
    session.filtering = Some(filtering);
}

impl Session {
    /// Passes bytes until the end.
    async fn pass(&mut self, client: Io, upstream: Upstream, deadline: Option<Instant>, drain: &Drain) {
        let Upstream { reached, flight, mut active } = upstream;
        // What was asked for is a connection.
        let Reached::Tcp(connected) = reached else { return };
        let terms = self.terms.clone();
        let (tcp, stats) = (terms.stats(), &flight.cluster().stats);
        let mut forced = pin!(drain.expired());
        let every = client.filtering().and_then(Filtering::report_interval);
        let watch = Watch::new(self.idle_timeout(), deadline, drain, forced.as_mut());
        let mut watch = watch.reporting(every);
        let mut pump =
            Pump::new(client, connected.io, terms.proxy.buffer_limit).like_nginx(terms.routed.is_some());
        let mut meter = Meter::new(tcp, stats, terms.upstream_stats());
        let mut end = loop {
            match pump.run(&mut watch, &mut meter, &mut self.stream.bytes).await {
                End::Report => self.report(&mut pump),
                end => break end,
            }
        };
        let remote = matches!(
            end,
            End::Closed(Side::Upstream) | End::Failed(Side::Upstream) | End::Reset(Side::Upstream)
        );
        if let End::Reset(side) = end {
            pump.reset_other(side);
        }
        if end == End::Reset(Side::Upstream) {
            self.stream.flags.insert(Flag::UR);
        }
        if let End::Failed(side) | End::Reset(side) = end
            && pump.holds_bytes_of(side)
        {
            // What a side said before it went is still passed on.
            let _flushing = (side == Side::Client).then(|| {
                tcp.upstream_flush_total().inc();
                tcp.upstream_flush_active().raise()
            });
            let failed = end;
            end = loop {
                match pump.flush(side, failed, &mut watch, &mut meter, &mut self.stream.bytes).await {
                    End::Report => self.report(&mut pump),
                    end => break end,
                }
            };
        }
        drop(meter);
        if remote {
            active.ends_remotely();
        }
        match end {
            End::Idle => {
                tcp.idle_timeout().inc();
                self.closed("tcp_session_idle_timeout");
            }
            End::Deadline => self.overdue(),
            End::Drained => self.closed("deferred_close_on_drained_connection"),
            // The filter says why.
            End::Refused | End::Closed(_) | End::Failed(_) | End::Reset(_) | End::Report => {}
        }
        self.ends_by(end);
        self.note_endpoint(&pump);
        self.filtering = pump.take_filtering();
        if let (End::Refused, Some(filtering)) = (end, &self.filtering) {
            self.stream.bytes.request_body += filtering.held() as u64;
        }
    }
}

impl Session {
    /// Tells the filters of the client's connection how it does.
    fn report(&mut self, pump: &mut Pump) {
        self.note_endpoint(pump);
        if let Some(filtering) = pump.filtering() {
            filtering.report(&mut self.stream);
        }
    }

    /// Notes what the endpoint has told of itself.
    fn note_endpoint(&mut self, pump: &Pump) {
        if let Some(told) = pump.upstream_filtering().and_then(Filtering::context) {
            let peers = &mut self.stream.peers;
            peers.upstream.clone_from(&told.peers.downstream);
            peers.awaited.upstream = told.peers.awaited.downstream;
        }
    }
}
