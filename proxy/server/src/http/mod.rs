//! HTTP: connections of clients, and the life of a request on them.
//!
//! Read [`exchange`] from the top: it is what happens to a request.

mod admit;
mod after_attempt;
mod attempt;
mod body_variables;
pub(crate) mod charge;
mod clock;
mod downstream;
pub(crate) mod edge;
mod end;
mod exchange;
mod filtered;
mod follow;
mod forward;
mod h1_server;
mod h2_late;
mod h2_life;
mod h2_server;
mod h2_streams;
mod hedge;
mod local_reply;
mod mirror;
mod outgoing;
mod pump;
mod request_body;
mod respond;
mod retry;
mod shed;
mod stall;
mod timeouts;

pub(crate) use admit::{Head, admit};
pub(crate) use exchange::unsearched;

use crate::drain::Drain;
use crate::h1::{H1Options, HeaderCase, Profile};
use crate::io::{Io, Meter};
use crate::worker::Worker;
use h1_server::Expected;
use sixfold_core::codec_stats::{Http1Counts, Http2Counts};
use sixfold_core::connection::Connection;
use sixfold_core::hcm::{CodecType, HttpConnectionManager};
use sixfold_core::overload::Overload;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::time::Instant;

/// A connection manager with what is made of it once for all its connections; a clone is the same.
#[derive(Clone, Debug)]
pub struct Manager {
    hcm: Arc<HttpConnectionManager>,
    h1: Arc<H1Options>,
    /// Whether the load of the process is of no account.
    spared: bool,
}

impl Manager {
    /// Makes it ready to serve connections.
    pub fn new(hcm: Arc<HttpConnectionManager>) -> Manager {
        Manager { h1: Arc::new(h1_options(&hcm)), hcm, spared: false }
    }

    /// The same, for which the load of the process may be of no account.
    #[must_use]
    pub(crate) fn sparing(self, spared: bool) -> Manager {
        Manager { spared, ..self }
    }
}

/// What all requests of a connection share.
pub(crate) struct Env {
    pub(crate) hcm: Arc<HttpConnectionManager>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) drain: Drain,
    pub(crate) h1: Arc<H1Options>,
    /// The load of the process, if it is of any account.
    pub(crate) overload: Option<Arc<Overload>>,
    /// How the connection ends.
    ending: Ending,
}

/// How a client's connection ends, for the statistics.
#[derive(Default)]
struct Ending {
    /// The client ends it.
    remotely: AtomicBool,
    /// A request is under way then.
    busy: AtomicBool,
}

impl Env {
    /// That of a connection that begins.
    fn begin(io: &mut Io, manager: Manager, worker: Arc<Worker>, drain: Drain) -> Arc<Env> {
        let Manager { hcm, h1, spared } = manager;
        io.meter(Meter::Downstream(hcm.stats.clone()));
        let overload = worker.shared.overload.get().filter(|_| !spared).cloned();
        Arc::new(Env { hcm, worker, drain, h1, overload, ending: Ending::default() })
    }

    /// What is counted of HTTP/1 of all clients.
    fn http1_counts(&self) -> &Http1Counts {
        self.worker.shared.codecs.http1(&self.worker.shared.metrics)
    }

    /// The same of HTTP/2.
    fn http2_counts(&self) -> &Http2Counts {
        self.worker.shared.codecs.http2(&self.worker.shared.metrics)
    }
}

impl Ending {
    /// The client has left while a request was under way.
    fn left(&self) {
        self.remotely.store(true, Relaxed);
        self.busy.store(true, Relaxed);
    }
}

/// Serves a client's connection until it ends.
pub async fn serve(
    mut io: Io,
    connection: Arc<Connection>,
    manager: Manager,
    worker: Arc<Worker>,
    drain: Drain,
) {
    let env = Env::begin(&mut io, manager, worker, drain);
    let alpn = connection.tls.as_ref().and_then(|t| t.alpn.as_deref()).map(<[u8]>::to_vec);
    let _served = Served::new(env.clone(), &connection);
    match (env.hcm.codec, alpn.as_deref()) {
        (CodecType::Http2, _) | (CodecType::Auto, Some(b"h2")) => h2_server::serve(io, connection, env).await,
        (CodecType::Auto, None) => h1_server::serve(io, connection, env, Expected::EitherVersion).await,
        _ => h1_server::serve(io, connection, env, Expected::Request).await,
    }
}

/// Answers a client that speaks HTTP without TLS where TLS is spoken, as nginx does: that it is wrong here.
pub(crate) async fn refuse_plain(
    mut io: Io,
    connection: Arc<Connection>,
    manager: Manager,
    worker: Arc<Worker>,
    drain: Drain,
) {
    let env = Env::begin(&mut io, manager, worker, drain);
    let _served = Served::new(env.clone(), &connection);
    h1_server::serve(io, connection, env, Expected::Tls).await;
}

/// A connection in the connection manager's statistics, however it ends.
struct Served {
    env: Arc<Env>,
    secure: bool,
    started: Instant,
}

impl Served {
    fn new(env: Arc<Env>, connection: &Connection) -> Served {
        let served = Served { secure: connection.tls.is_some(), started: Instant::now(), env };
        let stats = &served.env.hcm.stats;
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
        if served.secure {
            stats.downstream_cx_ssl_total().inc();
            stats.downstream_cx_ssl_active().inc();
        }
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let (stats, ending) = (&self.env.hcm.stats, &self.env.ending);
        stats.downstream_cx_active().dec();
        stats.downstream_cx_destroy().inc();
        let (remotely, busy) = (ending.remotely.load(Relaxed), ending.busy.load(Relaxed));
        match remotely {
            true => stats.downstream_cx_destroy_remote().inc(),
            false => stats.downstream_cx_destroy_local().inc(),
        }
        if busy {
            stats.downstream_cx_destroy_active_rq().inc();
            match remotely {
                true => stats.downstream_cx_destroy_remote_active_rq().inc(),
                false => stats.downstream_cx_destroy_local_active_rq().inc(),
            }
        }
        if self.secure {
            stats.downstream_cx_ssl_active().dec();
        }
        stats.downstream_cx_length_ms().record(self.started.elapsed().as_millis() as u64);
    }
}

/// The codec's options of a connection manager.
fn h1_options(hcm: &HttpConnectionManager) -> H1Options {
    let http1 = &hcm.http1;
    let mut opts = H1Options::downstream(hcm.profile);
    opts.accept_http_10 |= http1.accept_http_10;
    opts.default_host_for_http_10 = http1.default_host.as_ref().map(|h| h.as_bytes().into());
    opts.allow_absolute_url = http1.allow_absolute_url;
    opts.allow_chunked_length = http1.allow_chunked_length;
    opts.enable_trailers = http1.enable_trailers;
    opts.strict = http1.strict;
    if hcm.profile == Profile::Envoy {
        opts.max_head_bytes = http1.max_head_bytes;
    }
    opts.rules = hcm.header_rules;
    if http1.header_case != HeaderCase::Lower {
        opts.header_case = http1.header_case;
    }
    opts
}

#[cfg(test)]
mod tests {
    use super::clock::Clock;
    use super::*;
    use sixfold_core::stream::Stream;
    use std::future::Future;

    type Serve<'a, D, F> = fn(&'a mut D, &'a mut Stream, &'a mut Clock, &'a Env) -> F;

    fn size<'a, D: 'a, F: Future>(_: Serve<'a, D, F>) -> usize {
        size_of::<F>()
    }

    /// Every connection holds one such future and one context, each stream of HTTP/2 too: a field too many, or an
    /// answer kept over an await, is paid for by each of them.
    #[test]
    fn a_request_under_way_takes_no_more_than_it_did() {
        let sizes = [
            ("future of a request", size::<h1_server::H1Client, _>(exchange::serve), 2560),
            ("context", size_of::<Stream>(), 1264),
            ("clock", size_of::<Clock>(), 384),
        ];
        for (what, size, most) in sizes {
            assert!(size <= most && size > most / 2, "{what}: {size} bytes, {most} are allowed");
        }
    }
}
