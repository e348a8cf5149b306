//! Futures of requests and connections, dropped at every point where they wait: a forced drain, a panic and the
//! end of a runtime do that. Nothing stays counted, and each request has one line in the log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::{Cluster, Clusters, Policy, Resource};
use sixfold_core::format::Format;
use sixfold_core::hcm::CodecType;
use sixfold_core::listener::{ConnectAttempts, TcpProxy, TcpStats};
use sixfold_core::metrics::{Registry, Value};
use sixfold_core::plugin::{ChainBuilder, Plugin, ReadBody, Slot, Step};
use sixfold_core::retry::{RetryOn, RetryPolicy};
use sixfold_core::route::{ClusterChoice, MirrorPolicy};
use sixfold_core::stream::Stream;
use sixfold_server::drain::Drain;
use sixfold_server::http::{self, Manager};
use sixfold_server::io::{Io, Socket};
use sixfold_server::tcp_proxy;
use sixfold_server::worker::Worker;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How the log tells of a redirect that the client sees nothing of.
const FOLLOWED: &str = "302 - internal_redirect";
const FORMAT: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n";

/// A future that is dropped after so many polls.
struct Cut {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    polls: usize,
}

impl Future for Cut {
    /// Whether the work came to its own end.
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        if self.polls > 0 {
            self.polls -= 1;
            if self.work.as_mut().is_none_or(|work| work.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(true);
            }
        }
        if self.polls > 0 {
            return Poll::Pending;
        }
        self.work = None;
        Poll::Ready(false)
    }
}

/// A plugin that waits in every phase that may, wants the body whole, and counts its logs.
struct Waits {
    logged: Arc<AtomicUsize>,
    body: bool,
    panics: bool,
}

fn a_while<'a>() -> Step<'a> {
    Step::Wait(Box::pin(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Step::Continue
    }))
}

impl Waits {
    fn plugin(self) -> Plugin {
        let plugin =
            Plugin::of(self).rewrite(Waits::rewrite).access(Waits::access).before_proxy(Waits::before_proxy);
        plugin.header_filter(Waits::header_filter).log(Waits::log).build()
    }
    fn rewrite<'a>(&'a self, _: &'a mut Stream, _: Slot) -> Step<'a> {
        a_while()
    }
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let reads = self.body.then(|| ReadBody::whole(1 << 20).ask(stream, slot)).flatten();
        reads.unwrap_or_else(a_while)
    }
    fn before_proxy<'a>(&'a self, _: &'a mut Stream, _: Slot) -> Step<'a> {
        a_while()
    }
    fn header_filter<'a>(&'a self, _: &'a mut Stream, _: Slot) -> Step<'a> {
        assert!(!self.panics, "in the middle of an attempt");
        a_while()
    }
    fn log(&self, _: &mut Stream, _: Slot) {
        self.logged.fetch_add(1, Relaxed);
        assert!(!self.panics, "in the log of a request that a panic has ended");
    }
}

/// What one run is made of, and what it leaves behind.
struct Run {
    setup: Setup,
    lines: Arc<Lines>,
    logged: Arc<AtomicUsize>,
}

impl Run {
    /// Passes to the cluster `a` with some retries.
    fn new(hosts: &[SocketAddr], waits: Option<Waits>) -> Run {
        let mut setup = Setup::new();
        setup.cluster("a", hosts, |c| {
            c.balance.policy = Policy::LeastRequest { choices: 2, full_scan: true, bias: 1.0 }
        });
        setup.route("/", "a", |f| f.retry = retry("5xx", 2));
        let (lines, mut logged) = (Arc::<Lines>::default(), Arc::default());
        if let Some(waits) = waits {
            logged = waits.logged.clone();
            let mut chain = ChainBuilder::new();
            chain.add("waits", waits.plugin());
            setup.chain = Arc::new(chain.build());
        }
        let format = Arc::new(Format::envoy(FORMAT).unwrap());
        setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
        Run { setup, lines, logged }
    }

    /// Serves one connection with so many polls of it; answers whether it ended by itself.
    async fn http(self, client: impl Future<Output = ()>, server: TcpStream, polls: usize) -> bool {
        let Run { setup, lines, logged } = self;
        let plugged = !setup.chain.members().is_empty();
        let (clusters, registry) = (setup.clusters.clone(), setup.registry.clone());
        let (hcm, worker) = setup.build();
        let io = Io::plain(Socket::tcp(server));
        let work = http::serve(io, accepted(), Manager::new(hcm.clone()), worker.clone(), Drain::new());
        let work = Cut { work: Some(Box::pin(work)), polls };
        let (ended, ()) = tokio::join!(tokio::spawn(work), client);
        // Streams of HTTP/2 have tasks of their own, which hear of the end.
        eventually(|| hcm.stats.downstream_rq_active().get() == 0).await;
        let requests = hcm.stats.downstream_rq_total().get() as usize;
        let lines = std::mem::take(&mut *lines.0.lock());
        assert_eq!(lines.len(), requests, "one line a request: {lines:?}");
        // As in Envoy those that a response began for.
        let answered =
            lines.iter().filter(|line| !line.starts_with("0 ") && !line.starts_with(FOLLOWED)).count();
        assert_eq!(hcm.stats.downstream_rq_completed().get() as usize, answered, "{lines:?}");
        if plugged {
            assert_eq!(logged.load(Relaxed), requests, "the plugin's log runs once");
        }
        let ended = ended.unwrap_or(false);
        for line in lines.iter().filter(|_| !ended) {
            // Of two endpoints the one that refuses may be drawn for all three attempts.
            let whole = [
                FOLLOWED,
                "200 - via_upstream",
                "404 NR route_not_found",
                "503 URX,UF upstream_reset_before_",
            ];
            let lost = ["DC downstream_local_disconnect", "DC downstream_remote_"];
            assert!(whole.iter().chain(&lost).any(|end| line.contains(end)), "{line}");
        }
        drop(hcm);
        nothing_is_counted(&clusters, &registry, worker).await;
        ended
    }
}

fn accepted() -> Arc<sixfold_core::connection::Connection> {
    connection("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap())
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("not in 10 s");
}

/// With the worker the idle connections of its pools go.
async fn nothing_is_counted(clusters: &Clusters, registry: &Registry, worker: Arc<Worker>) {
    drop(worker);
    let gauges = || {
        let mut counted = Vec::new();
        registry.snapshot().each(|name, value| match value {
            Value::Gauge(n) if *n != 0 && !name.contains(".membership_") => {
                counted.push((name.to_owned(), *n))
            }
            _ => {}
        });
        counted
    };
    eventually(|| gauges().is_empty()).await;
    clusters.all().iter().for_each(|cluster| nothing_is_held(cluster));
}

fn nothing_is_held(cluster: &Cluster) {
    for host in cluster.hosts.load().iter().map(|m| &m.host) {
        assert_eq!(host.active_requests.load(Relaxed), 0, "requests of {}", host.label);
        assert_eq!(host.active_connections.load(Relaxed), 0, "connections of {}", host.label);
    }
    for breaker in [&cluster.breaker, &cluster.high_breaker] {
        for resource in [Resource::Connections, Resource::Pending, Resource::Requests, Resource::Retries] {
            assert_eq!(breaker.count(resource), 0, "{resource:?}");
        }
    }
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// Sends each piece by itself, says that this was all once `until` was read, and reads to the end.
async fn talk(mut client: TcpStream, pieces: &[&str], until: &str) {
    for piece in pieces {
        if client.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut read = Vec::new();
    while let Ok(1..) = client.read_buf(&mut read).await {
        if String::from_utf8_lossy(&read).contains(until) {
            let _ = client.shutdown().await;
        }
    }
}

/// An upstream that sends each answer in pieces.
async fn slow_upstream(answer: fn(usize) -> &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let asked = Arc::new(AtomicUsize::new(0));
        while let Ok((mut socket, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                while read_message(&mut socket).await.is_some() {
                    for piece in answer(asked.fetch_add(1, Relaxed)) {
                        let _ = socket.write_all(piece.as_bytes()).await;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            });
        }
    });
    address
}

const OK: &[&str] =
    &["HTTP/1.1 200 OK\r\nTransfer-Enc", "oding: chunked\r\n\r\n", "2\r\nab\r\n", "0\r\n\r\n"];
const GET: &[&str] = &["GET / HTTP/1.1\r\nHost: ", "a\r\n\r\n"];
const POST: &[&str] = &["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", "ab", "cd"];

/// Drops the connection after 0, 1, 2... polls until it ends by itself; answers how many that took.
async fn at_every_point<F: Future<Output = bool>>(run: impl Fn(usize) -> F) -> usize {
    for polls in 0..200 {
        if run(polls).await {
            return polls;
        }
    }
    panic!("it never ends");
}

#[tokio::test]
async fn a_request_and_its_response() {
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| OK).await;
        let (client, server) = pair().await;
        Run::new(&[up], None).http(talk(client, GET, "0\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 5);
}

#[tokio::test]
async fn a_request_whose_plugins_wait() {
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| OK).await;
        let (client, server) = pair().await;
        let waits = Waits { logged: Arc::default(), body: true, panics: false };
        Run::new(&[up], Some(waits)).http(talk(client, POST, "0\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 10);
}

#[tokio::test]
async fn a_request_that_is_tried_again() {
    const BUSY: &[&str] = &["HTTP/1.1 503 Busy\r\n", "Content-Length: 0\r\n\r\n"];
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|n| if n < 2 { BUSY } else { OK }).await;
        let (client, server) = pair().await;
        Run::new(&[up], None).http(talk(client, POST, "0\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 10);
}

#[tokio::test]
async fn a_request_whose_slow_attempt_goes_on_beside_the_next() {
    const LATE: &[&str] =
        &["", "", "", "", "", "", "", "", "HTTP/1.1 200 OK\r\n", "Content-Length: 0\r\n\r\n"];
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|n| if n == 0 { LATE } else { OK }).await;
        let (client, server) = pair().await;
        let mut run = Run::new(&[up], None);
        run.setup.routes.clear();
        run.setup.route("/", "a", |f| {
            f.retry = Some(Arc::new(RetryPolicy {
                on: RetryOn::SERVER_ERROR,
                num_retries: 20,
                per_try_timeout: Some(Duration::from_millis(3)),
                base_interval: Duration::from_millis(1),
                max_interval: Duration::from_millis(2),
                ..RetryPolicy::default()
            }));
            f.hedge_on_per_try_timeout = true;
        });
        run.http(talk(client, POST, "\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 5);
}

#[tokio::test]
async fn a_request_that_is_mirrored() {
    let polls = at_every_point(|polls| async move {
        let (up, mirror) = (slow_upstream(|_| OK).await, slow_upstream(|_| OK).await);
        let (client, server) = pair().await;
        let mut run = Run::new(&[up], None);
        // The pools that copies use are those of the thread, and none goes with a worker here.
        run.setup.cluster("m", &[mirror], |c| c.max_requests_per_connection = Some(1));
        run.setup.routes.clear();
        let to = ClusterChoice::Named(run.setup.clusters.cell("m"));
        run.setup.route("/", "a", |f| f.mirrors = Some(Arc::new([MirrorPolicy::to(to)])));
        run.http(talk(client, POST, "0\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 5);
}

#[tokio::test]
async fn a_redirect_that_is_followed() {
    const MOVED: &[&str] = &["HTTP/1.1 302 Found\r\nLocation: http://a/b\r\n", "Content-Length: 0\r\n\r\n"];
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|n| if n == 0 { MOVED } else { OK }).await;
        let (client, server) = pair().await;
        let mut run = Run::new(&[up], None);
        run.setup.routes.clear();
        run.setup.route("/", "a", |f| f.internal_redirect = Some(Box::default()));
        run.http(talk(client, POST, "0\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 8);
}

#[tokio::test]
async fn a_request_to_an_endpoint_that_refuses() {
    let dead = nobody();
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| OK).await;
        let (client, server) = pair().await;
        Run::new(&[dead, up], None).http(talk(client, GET, "\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 3);
}

#[tokio::test]
async fn an_upgrade() {
    const SWITCHED: &[&str] =
        &["HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "hello"];
    const UPGRADE: &[&str] =
        &["GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n", "Upgrade: websocket\r\n\r\n"];
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| SWITCHED).await;
        let (client, server) = pair().await;
        let mut run = Run::new(&[up], None);
        run.setup.upgrades = Box::new([("websocket".into(), true)]);
        run.http(talk(client, UPGRADE, "hello"), server, polls).await
    });
    assert!(polls.await >= 4);
}

#[tokio::test]
async fn an_answer_of_our_own() {
    let polls = at_every_point(|polls| async move {
        let (client, server) = pair().await;
        let mut run = Run::new(&[], Some(Waits { logged: Arc::default(), body: false, panics: false }));
        run.setup.routes.clear();
        run.http(talk(client, GET, "\r\n\r\n"), server, polls).await
    });
    assert!(polls.await >= 4);
}

#[tokio::test]
async fn a_stream_of_http2() {
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| OK).await;
        let (client, server) = pair().await;
        let mut run = Run::new(&[up], Some(Waits { logged: Arc::default(), body: false, panics: false }));
        run.setup.codec = CodecType::Http2;
        let client = async move {
            let Ok((mut client, connection)) = h2::client::handshake(client).await else { return };
            let driver = tokio::spawn(connection);
            let request = ::http::Request::get("http://a/").body(()).unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            if let Ok(response) = response.await {
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.data().await {}
            }
            drop(client);
            let _ = driver.await;
        };
        run.http(client, server, polls).await
    });
    assert!(polls.await >= 5);
}

#[tokio::test]
async fn a_panic_in_an_attempt_and_then_in_the_log() {
    let up = slow_upstream(|_| OK).await;
    let (client, server) = pair().await;
    let waits = Waits { logged: Arc::default(), body: false, panics: true };
    let mut run = Run::new(&[up], Some(waits));
    // The plugin's log goes before the access log, and takes it along when it panics.
    run.lines = Arc::default();
    let (logged, registry, clusters) =
        (run.logged.clone(), run.setup.registry.clone(), run.setup.clusters.clone());
    let (hcm, worker) = run.setup.build();
    let work = http::serve(
        Io::plain(Socket::tcp(server)),
        accepted(),
        Manager::new(hcm),
        worker.clone(),
        Drain::new(),
    );
    let (panicked, ()) = tokio::join!(tokio::spawn(work), talk(client, GET, "never"));
    assert!(panicked.unwrap_err().is_panic());
    assert_eq!(logged.load(Relaxed), 1);
    nothing_is_counted(&clusters, &registry, worker).await;
}

#[tokio::test]
async fn a_tcp_connection() {
    let polls = at_every_point(|polls| async move {
        let up = slow_upstream(|_| OK).await;
        let (client, server) = pair().await;
        let Run { setup, lines, .. } = Run::new(&[up], None);
        let (clusters, registry) = (setup.clusters.clone(), setup.registry.clone());
        let format = Arc::new(Format::envoy(FORMAT).unwrap());
        let proxy = Arc::new(TcpProxy {
            stat_prefix: "t".into(),
            stats: Arc::new(TcpStats::new(&registry, "tcp.t.")),
            cluster: ClusterChoice::Named(clusters.cell("a")),
            idle_timeout: None,
            max_duration: None,
            attempts: ConnectAttempts::Fixed(1),
            hash: Vec::new(),
            metadata_match: Default::default(),
            buffer_limit: 1 << 20,
            access_logs: vec![AccessLog { filter: None, format, sink: lines.clone() }],
        });
        let (_, worker) = setup.build();
        let io = Io::plain(Socket::tcp(server));
        let work = tcp_proxy::serve(io, accepted(), proxy.clone(), worker.clone(), Drain::new());
        let work = Cut { work: Some(Box::pin(work)), polls };
        let (ended, ()) = tokio::join!(tokio::spawn(work), talk(client, GET, "0\r\n\r\n"));
        assert_eq!(lines.0.lock().len(), proxy.stats.downstream_cx_total().get() as usize);
        nothing_is_counted(&clusters, &registry, worker).await;
        ended.unwrap()
    });
    assert!(polls.await >= 3);
}
