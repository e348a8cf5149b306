//! What is known of one request while it runs: the context that matchers, plugins, formatters and logs see.

mod vars;

pub use vars::Vars;

use crate::budget::ByteBudget;
use crate::cluster::{Cluster, ClusterCell, Member, TriedHost};
use crate::connection::{Connection, UpstreamConnection};
use crate::draw::Drawn;
use crate::flags::ResponseFlags;
use crate::format::BodyValues;
use crate::headers::Headers;
use crate::message::{RequestHead, ResponseHead};
use crate::plugin::{Consumer, PluginStates, Slot};
use crate::route::{Route, VirtualHost};
use crate::tls::AlpnList;
use crate::trace::Span;
use crate::traffic::Traffic;
use crate::workload::Peers;
use bytes::Bytes;
use std::any::Any;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// The context of one request and its response.
pub struct Stream {
    /// The connection it came by.
    pub connection: Arc<Connection>,
    /// Random number of the request: one for all runtime fractions and weighted clusters, as in Envoy.
    pub random: u64,
    /// When the first byte of the request arrived, on the wall clock.
    pub start_time: SystemTime,
    /// Moments of the request, relative to `timing.start`.
    pub timing: Timing,
    /// The request, as plugins and the router may have changed it.
    pub request: RequestHead,
    /// Trailers of the request, once they have arrived.
    pub request_trailers: Headers,
    /// The request's target as it came, when it was rewritten or normalised; else empty.
    pub original_target: Vec<u8>,
    /// The whole request body, if a plugin of the chain asked for it.
    pub request_body: Option<Bytes>,
    /// What variables have found in it, where it is long; boxed, for of few requests it is anything.
    pub body_values: Option<Box<BodyValues>>,
    /// What was read of the request body for a plugin that is content with its beginning, and has not gone on yet: boxed,
    /// for of few requests it is anything.
    pub read_ahead: Option<Box<Bytes>>,
    /// The response; its status is 0 until there is one.
    pub response: ResponseHead,
    /// Trailers of the response, once they have arrived.
    pub response_trailers: Headers,
    /// Client address after the rules of trust (X-Forwarded-For, PROXY protocol, real-ip).
    pub remote: SocketAddr,
    /// Whether Envoy takes the request for internal.
    pub internal: bool,
    /// Virtual host the request was matched in.
    pub virtual_host: Option<Arc<VirtualHost>>,
    /// Which of the virtual host's virtual clusters the request is of, once it is forwarded.
    pub virtual_cluster: Option<u32>,
    /// Route that was chosen; pinned until the stream ends.
    pub route: Option<Arc<Route>>,
    /// Values captured by path parameters and templates: name and value.
    pub captures: Vec<(Arc<str>, Vec<u8>)>,
    /// What is known of the upstream side.
    pub upstream: Upstream,
    /// Envoy's response flags.
    pub flags: ResponseFlags,
    /// Envoy's response code details; `None` while unknown, empty where a filter says that there are none.
    pub details: Option<Cow<'static, str>>,
    /// Where the response came from.
    pub source: ResponseSource,
    /// Bytes of the request and response on both sides.
    pub bytes: ByteCounts,
    /// Body of the local reply, for formatters (`%LOCAL_REPLY_BODY%`).
    pub local_body: Bytes,
    /// Hash that the route's hash policies gave, once computed.
    pub hash: Option<u64>,
    /// Whether the caller has told what the operation is called, so that the response need not
    /// (`x-envoy-decorator-operation`).
    pub operation_told: bool,
    /// Whether the client made no call by gRPC, whatever a plugin has made of its request: it gets answers of the proxy as
    /// they are.
    pub answered_plainly: bool,
    /// Whether a filter takes the request for a check whether this proxy, or what is behind it, is well (Envoy's
    /// `StreamInfo::healthCheck`): logs, traces and what is counted of responses are not for those.
    pub health_check: bool,
    /// Whether the bytes of both sides are those of an upgrade that the upstream has agreed to.
    pub is_tunnel: bool,
    /// Whether neither body nor trailers follow the head of the response: known where `header_filter` runs.
    pub ends_with_head: bool,
    /// Plugins that have the head of the response wait for the end of its body.
    head_held: u8,
    /// Dynamic metadata of Envoy: namespace, key, value.
    pub metadata: Vec<(Arc<str>, Arc<str>, serde_json::Value)>,
    /// Filter state of Envoy, if a filter has left any.
    filter_state: Option<Box<FilterState>>,
    /// The span of a request that is traced.
    pub trace: Option<Box<Span>>,
    /// Who the peers are, as far as they have told.
    pub peers: Peers,
    /// Variables set by plugins and by the core: APISIX's `ctx.var` assignments.
    pub vars: Vars,
    /// Whom the request is from, once a plugin has found out.
    pub consumer: Option<Arc<Consumer>>,
    /// State that plugins keep between phases.
    pub plugins: PluginStates,
    /// What the bodies that the process has in memory come out of; `None` outside of a server.
    pub bodies: Option<Arc<ByteBudget>>,
}

/// An object of Envoy's filter state: what a filter leaves for what comes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterObject {
    /// Its name.
    pub key: Arc<str>,
    /// Its value as text.
    pub value: Box<[u8]>,
    /// Whether hash policies may hash it (`envoy.hashable_string`).
    pub hashable: bool,
    /// Whether it stays as it is.
    pub read_only: bool,
}

/// Objects of one request, each key once, and what else few requests have.
#[derive(Clone, Debug, Default)]
struct FilterState {
    objects: Vec<FilterObject>,
    answers_for: Option<AnswersFor>,
    /// The most bytes of body that a plugin has the head of the response wait for.
    head_limit: usize,
}

/// What a plugin has had the request made for.
#[derive(Clone)]
struct AnswersFor(Arc<dyn Any + Send + Sync>);

impl std::fmt::Debug for AnswersFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswersFor")
    }
}

/// Moments of a request; `None` until they have come.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First byte of the request.
    pub start: Instant,
    /// Last byte of the request.
    pub request_complete: Option<Instant>,
    /// First byte sent upstream, of the last attempt.
    pub upstream_tx_begin: Option<Instant>,
    /// Last byte sent upstream, of the last attempt.
    pub upstream_tx_end: Option<Instant>,
    /// First byte of the response from upstream.
    pub upstream_rx_begin: Option<Instant>,
    /// Last byte of the response from upstream.
    pub upstream_rx_end: Option<Instant>,
    /// First byte of the response to the client.
    pub downstream_tx_begin: Option<Instant>,
    /// Last byte of the response to the client.
    pub downstream_tx_end: Option<Instant>,
}

impl Timing {
    /// A request that starts at `start`.
    pub fn new(start: Instant) -> Timing {
        Timing {
            start,
            request_complete: None,
            upstream_tx_begin: None,
            upstream_tx_end: None,
            upstream_rx_begin: None,
            upstream_rx_end: None,
            downstream_tx_begin: None,
            downstream_tx_end: None,
        }
    }
}

/// The upstream side of a request.
#[derive(Clone, Default)]
pub struct Upstream {
    /// Cluster, once chosen; pinned until the stream ends.
    pub cluster: Option<Arc<Cluster>>,
    /// Endpoint of the last attempt, as it was configured when it was chosen.
    pub member: Option<Arc<Member>>,
    /// Local address of the upstream connection.
    pub local: Option<SocketAddr>,
    /// The upstream connection of the last attempt.
    pub connection: Option<Arc<UpstreamConnection>>,
    /// Attempts so far, the first one counted.
    pub attempts: u32,
    /// Where the route leads, settled when it was found.
    pub drawn: Drawn,
    /// Hosts that were tried, in order: what balancers exclude and APISIX's `$upstream_addr` lists.
    pub tried: Vec<TriedHost>,
    /// Why connecting or TLS failed: `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub failure: Option<Box<str>>,
    /// What is offered to endpoints by ALPN in the place of all that is configured.
    pub offer: Option<AlpnList>,
    /// Version spoken with the upstream.
    pub version: Option<crate::message::Version>,
    /// The cluster that a plugin has chosen in the place of the route's own (APISIX's traffic-split).
    pub destination: Option<Arc<ClusterCell>>,
    /// The endpoint that a plugin wants the first attempt to go to.
    pub wanted: Option<Box<WantedHost>>,
    /// Server of the upstream's response, in whose place ours goes to the client (`$upstream_http_server`).
    pub server: Vec<u8>,
    /// Whether `X-Real-IP` and `X-Forwarded-For` of the request are what APISIX's nginx tells the upstream of the client. The
    /// client's own, which variables and logs go on to show, are then withheld where those do not say them.
    pub is_told_of_client: bool,
}

/// An endpoint in the place of that which the balancer would choose (Envoy's `overrideHostToSelect`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedHost {
    /// Its address; `None` is one that is nowhere.
    pub address: Option<SocketAddr>,
    /// Whether no other will do: then this is the status of the answer when it is not there, or can't be used.
    pub strict: Option<u16>,
}

impl Upstream {
    /// Bytes on the wire between us and all hosts that were tried, as Envoy adds them up
    /// (`StreamInfoImpl::setUpstreamBytesMeter`).
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        self.tried.iter().for_each(|tried| sum += tried.traffic);
        sum
    }

    fn clear(&mut self) {
        let (mut tried, mut server) = (std::mem::take(&mut self.tried), std::mem::take(&mut self.server));
        tried.clear();
        crate::message::clear_text(&mut server);
        *self = Upstream { tried, server, ..Upstream::default() };
    }
}

/// Who made the response: APISIX's `response_source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResponseSource {
    /// Nobody yet.
    #[default]
    None,
    /// The upstream.
    Upstream,
    /// A plugin, a redirect, a direct response.
    Gateway,
    /// The proxy itself, since the upstream failed.
    Proxy,
}

/// The variable with the query that the client sent, once a plugin has put another target in its place.
pub const SENT_ARGS: &str = "sent_args";

/// Bytes seen. Bodies are counted without their framing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteCounts {
    /// Request body from the client.
    pub request_body: u64,
    /// Response body to the client.
    pub response_body: u64,
    /// Bytes on the wire to the client up to the end of the response's head; 0 while there is none.
    pub head_end: u64,
    /// The client's connection: brought up to date with the head of the response and at the request's end.
    pub traffic: Traffic,
    /// Request body to the upstream, last attempt.
    pub upstream_sent: u64,
    /// Response body from the upstream, last attempt.
    pub upstream_received: u64,
    /// gRPC messages of the request, where a filter counts them.
    pub request_messages: u64,
    /// gRPC messages of the response, where a filter counts them.
    pub response_messages: u64,
}

impl Stream {
    /// A fresh context on `connection`.
    pub fn new(connection: Arc<Connection>) -> Stream {
        Stream {
            remote: connection.remote,
            random: 0,
            start_time: SystemTime::UNIX_EPOCH,
            timing: Timing::new(connection.start),
            request: RequestHead::default(),
            request_trailers: Headers::new(),
            original_target: Vec::new(),
            request_body: None,
            body_values: None,
            read_ahead: None,
            response: ResponseHead::default(),
            response_trailers: Headers::new(),
            internal: false,
            virtual_host: None,
            virtual_cluster: None,
            route: None,
            captures: Vec::new(),
            upstream: Upstream::default(),
            flags: ResponseFlags::empty(),
            details: None,
            source: ResponseSource::None,
            bytes: ByteCounts::default(),
            local_body: Bytes::new(),
            hash: None,
            operation_told: false,
            answered_plainly: false,
            health_check: false,
            is_tunnel: false,
            ends_with_head: false,
            head_held: 0,
            metadata: Vec::new(),
            filter_state: None,
            trace: None,
            peers: Peers::default(),
            vars: Vars::default(),
            consumer: None,
            plugins: PluginStates::default(),
            bodies: None,
            connection,
        }
    }

    /// Makes the context as good as a new one, for the next request of the same connection, and keeps its memory.
    pub fn reset(&mut self, now: Instant) {
        // Taken apart whole, so that no field can be forgotten: it would show one request another one's data.
        let Stream {
            connection,
            random,
            start_time,
            timing,
            request,
            request_trailers,
            original_target,
            request_body,
            body_values,
            read_ahead,
            response,
            response_trailers,
            remote,
            internal,
            virtual_host,
            virtual_cluster,
            route,
            captures,
            upstream,
            flags,
            details,
            source,
            bytes,
            local_body,
            hash,
            operation_told,
            answered_plainly,
            health_check,
            is_tunnel,
            ends_with_head,
            head_held,
            metadata,
            filter_state,
            trace,
            peers,
            vars,
            consumer,
            plugins,
            // One for the process.
            bodies: _,
        } = self;
        *random = 0;
        *start_time = SystemTime::UNIX_EPOCH;
        *timing = Timing::new(now);
        request.clear();
        request_trailers.clear();
        crate::message::clear_text(original_target);
        *request_body = None;
        *body_values = None;
        *read_ahead = None;
        response.clear();
        response_trailers.clear();
        *remote = connection.remote;
        *internal = false;
        *virtual_host = None;
        *virtual_cluster = None;
        *route = None;
        captures.clear();
        upstream.clear();
        *flags = ResponseFlags::empty();
        *details = None;
        *source = ResponseSource::None;
        *bytes = ByteCounts::default();
        *local_body = Bytes::new();
        *hash = None;
        *operation_told = false;
        *answered_plainly = false;
        *health_check = false;
        *is_tunnel = false;
        *ends_with_head = false;
        *head_held = 0;
        metadata.clear();
        *filter_state = None;
        *trace = None;
        *peers = Peers::default();
        vars.clear();
        *consumer = None;
        plugins.clear();
    }

    /// Makes the context that of another request in the place of this one, of the same client: with the head and the
    /// trailers that are there, and with what is known of the client.
    pub fn follow(&mut self, now: Instant) {
        let request = std::mem::take(&mut self.request);
        let trailers = std::mem::take(&mut self.request_trailers);
        let (remote, internal, told) = (self.remote, self.internal, self.operation_told);
        // What the client said of itself was taken off the request.
        let Peers { downstream, sent, .. } = std::mem::take(&mut self.peers);
        let trace = self.trace.take();
        let answers_for = self.filter_state.take().and_then(|state| state.answers_for);
        self.reset(now);
        self.trace = trace;
        if answers_for.is_some() {
            self.filter_state.get_or_insert_default().answers_for = answers_for;
        }
        self.peers = Peers { downstream, sent, ..Peers::default() };
        (self.request, self.request_trailers) = (request, trailers);
        (self.remote, self.internal, self.operation_told) = (remote, internal, told);
        self.start_time = SystemTime::now();
    }

    /// Whether the request has a body, however much of it has come, been read or been replaced: it did not end with its head,
    /// or a plugin has given it one.
    pub fn has_request_body(&self) -> bool {
        self.request_body.is_some() || self.timing.request_complete.is_none()
    }

    /// What bodies come out of that a plugin keeps in its state, for as long as it does.
    pub fn bodies(&self) -> &Arc<ByteBudget> {
        self.bodies.as_ref().unwrap_or_else(|| ByteBudget::unbounded())
    }

    /// Whether this is the context of a request, and not of a connection of TCP.
    pub fn is_request(&self) -> bool {
        crate::format::has_request(self)
    }

    /// The trusted client address.
    pub fn remote_ip(&self) -> IpAddr {
        self.remote.ip()
    }

    /// A variable that the core or a plugin has set.
    pub fn var(&self, name: &str) -> Option<&[u8]> {
        self.vars.get(name)
    }

    /// Sets a variable, replacing an earlier value.
    pub fn set_var(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        self.vars.set(name, value.into());
    }

    /// Sets a variable that is costly to make, and that most requests are not asked for: it is made when it is.
    pub fn set_lazy_var(&mut self, name: &'static str, make: impl FnOnce() -> Vec<u8> + Send + 'static) {
        self.vars.set_lazy(name, Box::new(make));
    }

    /// State of the plugin in `slot`, if it has that type.
    pub fn state<T: 'static>(&mut self, slot: Slot) -> Option<&mut T> {
        self.plugins.get(slot)
    }

    /// Keeps state of the plugin in `slot` until the stream ends.
    pub fn set_state<T: Any + Send>(&mut self, slot: Slot, state: T) {
        self.plugins.set(slot, state);
    }

    /// Changes the state of the plugin in `slot`, which begins as its default where there is none of that type.
    pub fn change_state<T: Any + Send + Default, R>(
        &mut self,
        slot: Slot,
        change: impl FnOnce(&mut T) -> R,
    ) -> R {
        self.plugins.change(slot, change)
    }

    /// Has the head of the response wait until the whole body and the trailers are there and have passed the plugins, which
    /// may change the head until then: for a plugin's `header_filter`. A body longer than `limit` bytes, and than the connection
    /// may buffer, ends the exchange with 500.
    pub fn hold_response_head(&mut self, limit: usize) {
        self.head_held = self.head_held.saturating_add(1);
        if limit > 0 {
            let state = self.filter_state.get_or_insert_default();
            state.head_limit = state.head_limit.max(limit);
        }
    }

    /// Takes back what a plugin has asked for: the head goes with what is there, unless another plugin has it wait.
    pub fn release_response_head(&mut self) {
        self.head_held = self.head_held.saturating_sub(1);
    }

    /// The most bytes that a plugin has the head of the response wait for; `None` where it does not wait.
    pub fn response_head_held(&self) -> Option<usize> {
        let limit = || self.filter_state.as_ref().map_or(0, |state| state.head_limit);
        (self.head_held > 0).then(limit)
    }

    /// Forgets which plugins had the head of a response wait: there is another one.
    pub fn begin_response_head(&mut self) {
        self.head_held = 0;
        if let Some(state) = &mut self.filter_state {
            state.head_limit = 0;
        }
    }

    /// Puts an object into the filter state; one that is to stay as it is stays.
    pub fn set_filter_state(&mut self, object: FilterObject) {
        let objects = &mut self.filter_state.get_or_insert_default().objects;
        match objects.iter_mut().find(|known| known.key == object.key) {
            Some(known) if known.read_only => {}
            Some(known) => *known = object,
            None => objects.push(object),
        }
    }

    /// The object of the filter state under this key: the request's own, else the connection's.
    pub fn filter_object(&self, key: &str) -> Option<&FilterObject> {
        let own = self.filter_state.iter().flat_map(|state| &state.objects);
        let shared = self.connection.filter_state.get().into_iter().flatten();
        own.chain(shared).find(|object| *object.key == *key)
    }

    /// Notes what a plugin has had the next request of the client made for.
    pub fn answer_for(&mut self, what: Arc<dyn Any + Send + Sync>) {
        self.filter_state.get_or_insert_default().answers_for = Some(AnswersFor(what));
    }

    /// What a plugin has had this request made for, if that is of this type ([`Recreated`](crate::plugin::Recreated)).
    pub fn answers_for<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let AnswersFor(what) = self.filter_state.as_ref()?.answers_for.as_ref()?;
        what.clone().downcast().ok()
    }

    /// Lets the requests of the connection see what is in the filter state, once.
    pub fn share_filter_state(&self) {
        if let Some(state) = &self.filter_state {
            let _ = self.connection.filter_state.set(state.objects.as_slice().into());
        }
    }

    /// Takes over what network filters have noted in the connection's context: metadata, filter state, variables, flags,
    /// details, who the client is, and their own state.
    pub fn take_notes(&mut self, mut notes: Stream) {
        self.swap_notes(&mut notes);
        self.vars.append(notes.vars);
        notes.flags.iter().for_each(|flag| self.flags.insert(flag));
        if notes.details.is_some() {
            self.details = notes.details;
        }
    }

    /// Has what network filters have noted change places with what stands here: metadata, filter state, who the client is, and
    /// their own state. Done once more, all is as it was.
    pub fn swap_notes(&mut self, notes: &mut Stream) {
        use std::mem::swap;
        swap(&mut self.metadata, &mut notes.metadata);
        swap(&mut self.filter_state, &mut notes.filter_state);
        swap(&mut self.plugins, &mut notes.plugins);
        swap(&mut self.peers.downstream, &mut notes.peers.downstream);
        swap(&mut self.peers.awaited.downstream, &mut notes.peers.awaited.downstream);
    }

    /// Takes the state of the plugin in `slot` out.
    pub fn take_state<T: 'static>(&mut self, slot: Slot) -> Option<Box<T>> {
        self.plugins.take(slot)
    }

    /// Notes whom the request is from.
    pub(crate) fn identify(&mut self, consumer: Arc<Consumer>) {
        self.set_var("consumer_name", consumer.name.as_bytes());
        // Another plugin may have named another one before.
        if consumer.group.is_some() || self.var("consumer_group_id").is_some() {
            self.set_var("consumer_group_id", consumer.group.as_deref().unwrap_or_default().as_bytes());
        }
        self.consumer = Some(consumer);
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    #![allow(clippy::unwrap_used)]
    use super::Stream;
    use crate::connection::{Connection, TlsInfo};
    use std::sync::Arc;

    /// A request from 10.1.2.3 to port 9080, host `oracle.test`.
    pub(crate) fn stream(target: &str, headers: &[(&str, &str)]) -> Stream {
        with_tls(target, headers, None)
    }

    /// The same by TLS.
    pub(crate) fn with_tls(target: &str, headers: &[(&str, &str)], tls: Option<TlsInfo>) -> Stream {
        let client = "10.1.2.3:4000".parse().unwrap();
        let own = "127.0.0.1:9080".parse().unwrap();
        let mut stream = Stream::new(Arc::new(Connection { tls, ..Connection::plain(client, own) }));
        stream.request.authority = b"oracle.test".to_vec();
        stream.request.target.set(target.as_bytes());
        for (name, value) in headers {
            stream.request.headers.push(name.as_bytes(), value.as_bytes());
        }
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Address, ClusterConfig, HostConfig};
    use crate::flags::Flag;
    use crate::metrics::Registry;
    use crate::route::Action;
    use crate::router::VirtualHostOptions;

    /// All that a context shows. A field that is new must be added here.
    fn shown(stream: &Stream) -> String {
        let Stream {
            connection,
            random,
            start_time,
            timing,
            request,
            request_trailers,
            original_target,
            request_body,
            body_values,
            read_ahead,
            response,
            response_trailers,
            remote,
            internal,
            virtual_host,
            virtual_cluster,
            route,
            captures,
            upstream,
            flags,
            details,
            source,
            bytes,
            local_body,
            hash,
            operation_told,
            answered_plainly,
            health_check,
            is_tunnel,
            ends_with_head,
            head_held,
            metadata,
            filter_state,
            trace,
            peers,
            vars,
            consumer,
            plugins,
            bodies,
        } = stream;
        let Upstream {
            cluster,
            member,
            local,
            connection: link,
            attempts,
            drawn,
            tried,
            failure,
            offer,
            version,
            destination,
            wanted,
            server,
            is_told_of_client,
        } = upstream;
        let held =
            (virtual_host.is_some(), route.is_some(), cluster.is_some(), member.is_some(), link.is_some());
        let destination = destination.is_some();
        let counts = (tried.len(), flags.is_empty());
        [
            format!("{} {random} {start_time:?} {timing:?} {request:?} {request_trailers:?}", connection.id),
            format!(
                "{original_target:?} {request_body:?} {body_values:?} {read_ahead:?} {response:?} {response_trailers:?} {remote} {internal}"
            ),
            format!("{held:?} {virtual_cluster:?} {captures:?} {local:?} {attempts} {drawn:?} {counts:?} {failure:?} {offer:?} {version:?} {destination} {wanted:?} {server:?} {is_told_of_client}"),
            format!("{details:?} {source:?} {bytes:?} {local_body:?} {hash:?} {operation_told} {answered_plainly} {health_check} {is_tunnel} {ends_with_head} {head_held} {metadata:?} {filter_state:?} {trace:?} {peers:?} {vars:?} {consumer:?} {plugins:?} {}", bodies.is_some()),
        ]
        .join("\n")
    }

    #[test]
    fn a_context_that_was_reset_equals_a_new_one() -> Result<(), Box<dyn std::error::Error>> {
        let mut used = fixture::stream("/a?b", &[("x-a", "1")]);
        let connection = used.connection.clone();
        let now = Instant::now();
        let host = HostConfig::new(Address::Ip("127.0.0.1:1".parse()?));
        let cluster =
            crate::cluster::Cluster::new(ClusterConfig::named("c"), vec![host], None, &Registry::new())?;
        let member = cluster.hosts.load().iter().next().ok_or("no host")?.clone();
        used.random = 7;
        used.start_time = SystemTime::now();
        used.timing = Timing { request_complete: Some(now), upstream_rx_end: Some(now), ..Timing::new(now) };
        used.request_trailers.push(b"t", b"1");
        used.original_target = b"/o".to_vec();
        used.request_body = Some(Bytes::from_static(b"body"));
        used.body_values = Some(Box::default());
        used.read_ahead = Some(Box::new(Bytes::from_static(b"bo")));
        used.response.status = 503;
        used.response.headers.push(b"r", b"1");
        used.response_trailers.push(b"t", b"2");
        used.remote = "192.0.2.1:1".parse()?;
        used.internal = true;
        used.virtual_cluster = Some(3);
        used.answered_plainly = true;
        used.health_check = true;
        used.is_tunnel = true;
        used.ends_with_head = true;
        used.hold_response_head(7);
        used.virtual_host = Some(VirtualHost::new("v", VirtualHostOptions::default()));
        let path = crate::route::PathMatch::Prefix(b"/"[..].into(), false);
        used.route = Some(Arc::new(Route::new(path, Action::NonForwarding)));
        used.captures.push(("c".into(), b"1".to_vec()));
        used.upstream = Upstream {
            cluster: Some(cluster),
            member: Some(member.clone()),
            local: Some("127.0.0.1:2".parse()?),
            connection: Some(UpstreamConnection::new(None)),
            attempts: 2,
            drawn: Drawn { member: Some(1), name: Some("n".into()) },
            tried: vec![TriedHost::new(member, now)],
            failure: Some("refused".into()),
            offer: Some(AlpnList::new([&b"h2"[..]])),
            version: Some(crate::message::Version::Http2),
            destination: Some(crate::cluster::Clusters::default().cell("d")),
            wanted: Some(Box::new(WantedHost { address: None, strict: Some(503) })),
            server: b"s".to_vec(),
            is_told_of_client: true,
        };
        used.flags.insert(Flag::UF);
        used.details = Some("via_upstream".into());
        used.source = ResponseSource::Upstream;
        used.bytes = ByteCounts { request_body: 1, response_body: 2, ..ByteCounts::default() };
        used.local_body = Bytes::from_static(b"local");
        used.hash = Some(1);
        used.operation_told = true;
        used.metadata.push(("n".into(), "k".into(), serde_json::Value::Null));
        let (key, value) = ("k".into(), [1].into());
        used.set_filter_state(FilterObject { key, value, hashable: true, read_only: false });
        used.trace = Some(Box::new(Span {
            trace_id: 1,
            span_id: 2,
            parent_id: None,
            upstream_id: None,
            form: crate::trace::B3Form::default(),
            state: "".into(),
            sampled: true,
        }));
        used.peers.upstream = Some(crate::workload::Peer::new(Default::default()));
        used.set_var("v", "1");
        used.set_state(Slot::new(3, crate::plugin::Scope::Route), 1u8);
        let when = Arc::new(crate::expr::Expr::new(&serde_json::json!([["arg_a", "==", "1"]])).unwrap());
        used.plugins.decide(Slot::new(4, crate::plugin::Scope::Route), &when, true);
        used.identify(Arc::new(Consumer::new("jack".into(), None, Vec::new())));

        let start = connection.start;
        let new = Stream::new(connection);
        let (before, fresh) = (shown(&used), shown(&new));
        for (dirty, clean) in before.lines().zip(fresh.lines()) {
            assert_ne!(dirty, clean, "the test has to use every part");
        }
        used.reset(start);
        assert_eq!(shown(&used), fresh);
        Ok(())
    }
}
