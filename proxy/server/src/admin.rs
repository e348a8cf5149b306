//! Envoy's administration interface (operations/admin.rst), as far as tools and Istio's agent use it.
//!
//! It runs on a thread of its own; `/ready` reads one atomic number and waits for nothing.

mod clusters;
mod commands;
mod dump;
mod home;
mod logging;
mod origin;
mod process;
mod statistics;
#[cfg(test)]
mod tests;

pub use statistics::Statistics;

use crate::inheritance::Inheritance;
use crate::server::WarmingNames;
use crate::surface::{Answer, Answered, Query, Reply, Surface, WriteBody};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, header};
use regex::Regex;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::Clusters;
use sixfold_core::connection::Connection;
use sixfold_core::message::Version;
use sixfold_core::metrics::{Registry, TagRules};
use sixfold_core::stream::Stream;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch::Sender;

/// What the server is at (admin/v3/server_info.proto `State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Takes traffic.
    Live,
    /// Takes no new work.
    Draining,
    /// Clusters are not ready.
    PreInitializing,
    /// Listeners are not ready.
    Initializing,
}

impl State {
    /// As Envoy spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Live => "LIVE",
            State::Draining => "DRAINING",
            State::PreInitializing => "PRE_INITIALIZING",
            State::Initializing => "INITIALIZING",
        }
    }
}

/// Where the process says what state it is in. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Lifecycle(Arc<Life>);

#[derive(Debug)]
struct Life {
    now: AtomicU8,
    begun: Instant,
    /// How long it took to become live.
    initialization: OnceLock<Duration>,
}

/// Beside a state: checks of its health are to fail, so that one that is live says that it drains.
const FAILING: u8 = 0x80;

impl Default for Lifecycle {
    /// Not ready.
    fn default() -> Lifecycle {
        let now = AtomicU8::new(State::PreInitializing as u8);
        Lifecycle(Arc::new(Life { now, begun: Instant::now(), initialization: OnceLock::new() }))
    }
}

impl Lifecycle {
    /// Says what state it is in from now on.
    pub fn set(&self, state: State) {
        let _ = self.0.now.fetch_update(Relaxed, Relaxed, |now| Some(state as u8 | now & FAILING));
        if state == State::Live {
            self.0.initialization.get_or_init(|| self.0.begun.elapsed());
        }
    }

    /// Fails checks of its health from now on, or not any more.
    pub fn fail_checks(&self, fail: bool) {
        if fail {
            self.0.now.fetch_or(FAILING, Relaxed);
        } else {
            self.0.now.fetch_and(!FAILING, Relaxed);
        }
    }

    /// How long it took from the start of the process until it was first live; `None` until then.
    pub fn initialization(&self) -> Option<Duration> {
        self.0.initialization.get().copied()
    }

    /// What state it is in.
    pub fn get(&self) -> State {
        let now = self.0.now.load(Relaxed);
        match now & !FAILING {
            0 if now & FAILING != 0 => State::Draining,
            0 => State::Live,
            1 => State::Draining,
            3 => State::Initializing,
            _ => State::PreInitializing,
        }
    }
}

/// A listener as `/listeners` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Addresses it is bound to; the first one counts in Envoy's forms.
    pub addresses: Vec<SocketAddr>,
}

/// A certificate as `/certs` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Where it comes from: a file's path, or `<inline>`.
    pub path: String,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// DNS and URI names.
    pub names: Vec<(&'static str, String)>,
    /// Validity in Unix seconds.
    pub not_before: i64,
    /// End of validity in Unix seconds.
    pub not_after: i64,
}

/// The certificates of one context of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextCertificates {
    /// The first of those that vouch for the other side.
    pub authority: Option<CertificateStatus>,
    /// Those that are shown to the other side.
    pub own: Vec<CertificateStatus>,
}

/// A layer of the runtime as `/runtime` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeLayer {
    /// Its name.
    pub name: String,
    /// Its values in the words of the bootstrap.
    pub values: BTreeMap<String, String>,
    /// Whether it is one that the interface would change (`admin_layer`).
    pub is_admin: bool,
}

/// What of the configuration is asked for.
#[derive(Debug, Default)]
pub struct DumpRequest {
    /// The elements of one list alone.
    pub resource: Option<String>,
    /// The fields of a mask alone.
    pub mask: Option<String>,
    /// Resources alone whose names match; anchored, so that it is the whole names that do.
    pub name_regex: Option<Regex>,
    /// Endpoints, too.
    pub include_eds: bool,
}

/// What the commands do to the process; the command line wires it to the server.
pub trait Control: Send + Sync + 'static {
    /// Listeners now.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// Certificates in use.
    fn certificates(&self) -> Vec<ContextCertificates>;
    /// When the first of them ends, in Unix seconds; `None` without any.
    fn first_expiry(&self) -> Option<i64>;
    /// Finds out what of the configuration is asked for; what it answers writes that as JSON.
    ///
    /// # Errors
    /// The request is wrong, or asks for what there is not: a status and Envoy's words for it.
    fn config_dump(&self, request: DumpRequest) -> Result<WriteBody, (StatusCode, String)>;
    /// Fails health checks from now on, or not any more.
    fn fail_health_checks(&self, fail: bool);
    /// Drains listeners. Sockets that are to `keep_open` are closed after the drain time, unless they are to
    /// `keep_for_good`; the others at once.
    fn drain_listeners(&self, keep_open: bool, keep_for_good: bool, inbound_only: bool);
    /// Clusters and listeners that wait to be put in force.
    fn waiting(&self) -> WarmingNames;
    /// Layers of the runtime, in their order.
    fn runtime(&self) -> Vec<RuntimeLayer>;
    /// Ends the process.
    fn quit(&self);
    /// Opens access logs anew.
    fn reopen_logs(&self);
    /// Levels of the process's own log by target; `None` as target means all. Answers what holds now.
    ///
    /// # Errors
    /// When a level or a name is not one, in Envoy's words.
    fn set_log_levels(&self, levels: &[(Option<String>, String)]) -> Result<Vec<(String, String)>, String>;
}

/// What the interface shows of the process.
pub struct Admin {
    /// Statistics.
    pub metrics: Registry,
    /// How their names become labels.
    pub tags: Arc<TagRules>,
    /// Those of the process itself.
    pub statistics: Statistics,
    /// Names that requests may have as Host, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Cluster names.
    pub clusters: Arc<Clusters>,
    /// What state the process is in.
    pub lifecycle: Lifecycle,
    /// When it started.
    pub started: Instant,
    /// `command_line_options` and `node` of `/server_info`.
    pub info: ServerInfo,
    /// Number of workers.
    pub concurrency: usize,
    /// What the commands do.
    pub control: Arc<dyn Control>,
    /// Logs of its own requests, which must be open.
    pub access_logs: Vec<AccessLog>,
    /// Has services told of statistics when somebody asks for them here (`stats_flush_on_admin`).
    pub flushes: OnceLock<Sender<()>>,
}

/// Fixed parts of `/server_info`.
#[derive(Debug, Clone, Default)]
pub struct ServerInfo {
    /// `version`
    pub version: String,
    /// `command_line_options`
    pub options: serde_json::Value,
    /// `node`
    pub node: serde_json::Value,
}

impl Admin {
    /// Serves the interface on `address`, whose socket another process may have.
    ///
    /// # Errors
    /// When the address can't be bound or the thread not be started.
    pub fn start(self: &Arc<Admin>, address: SocketAddr, inheritance: &Inheritance) -> io::Result<Surface> {
        Surface::start_with("admin", address, self.clone(), None, inheritance)
    }

    /// Brings statistics up to date that are looked up when somebody wants to know them.
    pub fn refresh(&self) {
        self.statistics.refresh(self);
    }

    /// The answer to a request that names no command, uses the wrong method, or comes from a web page.
    fn refuse(&self, query: &Query) -> Option<Reply> {
        let Some(command) = commands::find(&query.path) else {
            return Some(Reply::text(StatusCode::NOT_FOUND, format!("invalid path. {}", commands::help())));
        };
        if command.changes && query.method != Method::POST {
            let body = format!("Method {} not allowed, POST required.", query.method);
            return Some(Reply::text(StatusCode::METHOD_NOT_ALLOWED, body));
        }
        self.refuse_page(query, command.any_host)
    }
}

impl Answer for Admin {
    fn at_once(&self, query: &Query) -> Option<Reply> {
        self.refuse(query)
            .or_else(|| (query.path == "/ready").then(|| commands::ready(self, query)))
            .map(with_headers)
    }

    fn answer(&self, query: &Query) -> Reply {
        let reply = match commands::find(&query.path) {
            Some(command) => (command.run)(self, query),
            None => Reply::text(StatusCode::NOT_FOUND, "invalid path. "),
        };
        with_headers(reply)
    }

    fn follows(&self) -> bool {
        !self.access_logs.is_empty()
    }

    fn answered(&self, answered: &Answered) {
        let stream = logged(answered);
        self.access_logs.iter().for_each(|log| log.log(&stream));
    }
}

/// A request as access logs see it.
fn logged(answered: &Answered) -> Stream {
    let Answered { remote, local, request, start, status, sent } = answered;
    let connection = Connection { start: *start, ..Connection::plain(*remote, *local) };
    let mut stream = Stream::new(Arc::new(connection));
    stream.start_time = SystemTime::now() - start.elapsed();
    let head = &mut stream.request;
    head.method = request.method().clone();
    head.version = match request.version() {
        http::Version::HTTP_10 => Version::Http10,
        _ => Version::Http11,
    };
    head.target.set(request.uri().path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
    for (name, value) in request.headers() {
        match name {
            &header::HOST => head.authority = value.as_bytes().to_vec(),
            name => head.headers.append(name.as_str(), value.as_bytes()),
        }
    }
    stream.response.status = status.as_u16();
    stream.bytes.response_body = *sent;
    stream.timing.downstream_tx_end = Some(Instant::now());
    stream
}

/// The headers of every answer of Envoy's.
fn with_headers(mut reply: Reply) -> Reply {
    reply.chunked = true;
    let fixed = [
        (header::CACHE_CONTROL, "no-cache, max-age=0"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::SERVER, "envoy"),
    ];
    reply.headers.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    reply
}
