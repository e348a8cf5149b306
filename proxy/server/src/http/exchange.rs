//! The life of a request, top to bottom.
//!
//! Admit it (Host, path, trust), choose virtual host and route, run the request phases, then redirect, answer
//! or forward; write the response through the response phases; log. Every wait is guarded by the stream's
//! deadlines and by the client's presence.

use super::Env;
use super::admit::{self, Head};
use super::clock::{Clock, Expired};
use super::downstream::{Downstream, DownstreamError};
use super::edge;
use super::follow::Next;
use super::local_reply;
use super::request_body::RequestBody;
use super::stall::Waits;
use super::timeouts;
use crate::deadline::{Timed, within};
use crate::upstream::UpstreamError;
use bytes::Bytes;
use sixfold_core::budget::Reservation;
use sixfold_core::cluster::OutcomeKind;
use sixfold_core::draw::{self, Drawn};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::internal_redirect::Followed;
use sixfold_core::lookup::Wants;
use sixfold_core::metrics::GaugeGuard;
use sixfold_core::overload::{Act, Timer};
use sixfold_core::plugin::{Chain, HeadPhase, LocalReply, Outcome, Passed, RequestPhases};
use sixfold_core::redirect;
use sixfold_core::route::{Action, Forward};
use sixfold_core::router::{RouteTable, TableOptions};
use sixfold_core::stream::Stream;
use sixfold_core::trace::Reason;
use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

/// What ends a request before its response is complete.
#[derive(Debug)]
pub(crate) enum Interrupt {
    /// The client went away.
    Downstream(DownstreamError),
    /// A deadline passed.
    Expired(Expired),
    /// The request body is longer than the configuration or a plugin allows.
    TooLarge,
    /// The upstream failed after its response had begun.
    Upstream(UpstreamError),
    /// Plugins want more of bodies in memory than the process may hold.
    OverBudget,
    /// A plugin that looks at a body answers.
    Refused(Box<LocalReply>),
    /// The response was a redirect that is followed here.
    Redirected(Box<Next>),
}

impl Interrupt {
    /// What it makes of the attempt under way: only what the upstream owed is held against it.
    pub(super) fn outcome(&self) -> OutcomeKind {
        match self {
            Interrupt::Expired(Expired::Route | Expired::ClusterMaxStream) => OutcomeKind::Timeout,
            Interrupt::Upstream(error) => error.outcome(),
            _ => OutcomeKind::Cancelled,
        }
    }
}

impl From<DownstreamError> for Interrupt {
    fn from(gone: DownstreamError) -> Interrupt {
        Interrupt::Downstream(gone)
    }
}

impl From<Expired> for Interrupt {
    fn from(which: Expired) -> Interrupt {
        Interrupt::Expired(which)
    }
}

/// One request and what serves it. It is counted while it lives, and logged when it is dropped: at its end, or
/// wherever its future is (a forced drain, a panic).
pub(super) struct Exchange<'a, D: Downstream> {
    pub(super) down: &'a mut D,
    pub(super) stream: &'a mut Stream,
    pub(super) clock: &'a mut Clock,
    pub(super) env: &'a Env,
    /// Of the table that the route is from, if there are any that mean something to requests. Beside the stream's route and virtual host it is all that a request
    /// keeps of it: an update affects later requests only, and frees the old table though streams run.
    pub(super) table_options: Option<Arc<TableOptions>>,
    /// Most often it is the connection manager's: that counts nothing.
    pub(super) chain: Cow<'a, Arc<Chain>>,
    /// The request body behind the plugins, once it is being forwarded.
    pub(super) request_body: RequestBody,
    /// The response's head has been handed to the client's connection.
    pub(super) head_sent: bool,
    /// The connection must end with this response.
    pub(super) close: bool,
    /// Something was waited for since the head of the request came.
    pub(super) waited: bool,
    /// Nothing is left to be done.
    pub(super) complete: bool,
    /// Why it is traced, once that is decided.
    pub(super) traced: Option<Reason>,
    /// Why the stream has no route, where it has none.
    unrouted: Unrouted,
    /// What of the request's body its route depends on, and was not known.
    pub(super) wanted: Option<Box<Wants>>,
    /// The redirects that were followed up to this request: what follows one does not come from the client.
    pub(super) followed: Option<Box<Followed>>,
    /// The place of the request's body among those that the process holds.
    pub(super) held: Option<Reservation>,
    _active: GaugeGuard<'a>,
}

/// Why there is no route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unrouted {
    NotFound,
    /// Routes were not looked through to the end, so that nobody knows which one the request is for.
    Unsearched,
    /// The virtual host is for TLS alone. Envoy has another route in its place (`SslRedirectRoute`), which changes no
    /// headers and has no settings for filters.
    ForTls,
}

/// A chain in the place of the connection manager's, if it is another one.
pub(super) fn chain_of<'a>(shared: &'a Arc<Chain>, chain: &Arc<Chain>) -> Cow<'a, Arc<Chain>> {
    if Arc::ptr_eq(chain, shared) { Cow::Borrowed(shared) } else { Cow::Owned(chain.clone()) }
}

/// Serves the request whose head is in `stream`, and those that follow its redirects.
pub(super) async fn serve<D: Downstream>(down: &mut D, stream: &mut Stream, clock: &mut Clock, env: &Env) {
    let mut redirected: Option<Box<Next>> = None;
    stream.bodies.get_or_insert_with(|| env.worker.shared.bodies.clone());
    loop {
        begin(down, stream, clock, env);
        let mut exchange = Exchange::new(down, stream, clock, env);
        if let Some(next) = redirected.take() {
            exchange.resume(*next);
        }
        let result = exchange.proxy().await;
        redirected = exchange.conclude(result).await;
        drop(exchange);
        if redirected.is_none() {
            return;
        }
        stream.follow(clock.restart().into_std());
    }
}

/// Sets the deadlines of a request whose head has come; they count from its first byte.
fn begin<D: Downstream>(down: &D, stream: &mut Stream, clock: &mut Clock, env: &Env) {
    let hcm = &env.hcm;
    stream.random = fastrand::u64(..);
    let start = stream.timing.start.into();
    clock.begin_stream(start, &hcm.timeouts, env.overload.as_ref());
    if down.request_ended() {
        stream.timing.request_complete = Some(clock.now().into_std());
    } else if down.upgrade().is_none() {
        // An upgrade goes on in both directions: it is never complete.
        clock.set_request(start, hcm.timeouts.request);
    }
}

impl<'a, D: Downstream> Exchange<'a, D> {
    /// Counts the request.
    pub(super) fn new(
        down: &'a mut D,
        stream: &'a mut Stream,
        clock: &'a mut Clock,
        env: &'a Env,
    ) -> Exchange<'a, D> {
        let stats = &env.hcm.stats;
        stats.downstream_rq_total().inc();
        Exchange {
            down,
            stream,
            clock,
            env,
            table_options: None,
            chain: Cow::Borrowed(&env.hcm.chain),
            request_body: RequestBody::unfiltered(),
            head_sent: false,
            close: false,
            waited: false,
            complete: false,
            traced: None,
            unrouted: Unrouted::NotFound,
            wanted: None,
            followed: None,
            held: None,
            _active: stats.downstream_rq_active().raise(),
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// From the head of the request to the end of the response.
    async fn proxy(&mut self) -> Result<(), Interrupt> {
        self.answer_expect(self.followed.is_none());
        let mut table = self.env.hcm.routes.peek();
        let refusal = match self.refuse_under_load() {
            None => self.enter(table.as_deref()),
            refusal => refusal,
        };
        if let Some(wants) = self.wanted.take_if(|_| refusal.is_none()) {
            keep(&mut table);
            // Few requests have a route that depends on their body: the others' futures need no room for it.
            Box::pin(self.find_route_by_body(wants, table.as_deref())).await?;
        }
        let refusal = refusal.or_else(|| self.refuse_upgrade());
        if let Some(reply) = refusal {
            drop(table);
            return self.respond(reply).await;
        }
        if self.down.upgrade().is_none() {
            return self.answer(table).await;
        }
        let stats = &self.env.hcm.stats;
        stats.downstream_cx_upgrades_total().inc();
        let _active = stats.downstream_cx_upgrades_active().raise();
        self.answer(table).await
    }

    /// Under load no more is done for a request than to answer it: no filter sees it, either.
    fn refuse_under_load(&mut self) -> Option<LocalReply> {
        self.env.overload.as_ref().filter(|overload| overload.acts(Act::StopAcceptingRequests))?;
        self.env.hcm.stats.downstream_rq_overload_close().inc();
        self.chain = Cow::Owned(Chain::empty());
        Some(LocalReply::new(503, "envoy overloaded", "overload"))
    }

    /// Runs the request phases and does what the route says.
    async fn answer(&mut self, mut table: Table) -> Result<(), Interrupt> {
        if !self.chain.body_variables().is_empty() {
            keep(&mut table);
            let variables = self.chain.body_variables().clone();
            Box::pin(self.read_variables(&variables)).await?;
        }
        if self.has_request_phases() {
            let announced = self.announced_length();
            let reply = self.request_phases(table).await?;
            if let Some(tracing) = self.env.hcm.tracing.as_ref().filter(|_| self.stream.health_check) {
                tracing.leave_out(self.stream);
            }
            self.frame_request(announced);
            if let Some(reply) = reply {
                self.name_cluster();
                return self.respond(reply).await;
            }
        } else {
            drop(table);
        }
        self.env.hcm.stats.rq_total().inc();
        let Some(route) = self.stream.route.clone() else {
            return self.no_route().await;
        };
        let chosen = self.stream.upstream.destination.take().map(Forward::to_chosen);
        match (&chosen, &route.action) {
            (Some(forward), _) | (None, Action::Forward(forward)) => self.forward(&route, forward).await,
            (None, Action::Redirect(to)) => {
                let mut reply = LocalReply::new(to.status, "", "direct_response");
                reply.headers.append(Known::LOCATION, &redirect::location(to, &route, self.stream));
                // A redirect is a direct response to Envoy's router.
                self.env.hcm.stats.rq_direct_response().inc();
                self.respond(reply).await
            }
            (None, Action::Direct(direct)) => {
                self.env.hcm.stats.rq_direct_response().inc();
                let mut reply = LocalReply::new(direct.status, direct.body.clone(), "direct_response");
                if let Some(location) = redirect::own_location(direct.status, &route, self.stream) {
                    reply.headers.append(Known::LOCATION, &location);
                }
                if let Some(format) = &direct.body_format {
                    let mut body = Vec::new();
                    format.format.write_body(self.stream, &mut body);
                    reply.body = body.into();
                    reply.headers.append(Known::CONTENT_TYPE, format.content_type.as_bytes());
                }
                self.respond(reply).await
            }
            (None, Action::NonForwarding) => {
                let mut reply = LocalReply::new(503, "", "cluster_not_found");
                reply.flag = Some(Flag::NC);
                self.respond(reply).await
            }
        }
    }

    /// Admits the request and chooses its route by one and the same table.
    fn enter(&mut self, table: Option<&RouteTable>) -> Option<LocalReply> {
        self.table_options = table.and_then(RouteTable::options_of_requests);
        let reply = self.admit();
        if reply.is_none() {
            self.find_route(table);
            edge::name_operation(self.env.hcm.spans(), self.stream);
            if let Some(tracing) = &self.env.hcm.tracing {
                self.traced = Some(tracing.begin(self.stream));
            }
        }
        reply
    }

    /// Checks and prepares what every request needs: Host, path, client address, headers at the edge.
    fn admit(&mut self) -> Option<LocalReply> {
        let hcm = &self.env.hcm;
        let head = Head { has_host: self.down.has_host(), followed: self.followed.is_some() };
        if let Some(reply) = admit::admit(hcm, self.table_options.as_deref(), head, self.stream) {
            return Some(reply);
        }
        if hcm.max_body.is_some_and(|max| self.announced_length().is_some_and(|length| length > max)) {
            hcm.stats.downstream_rq_too_large().inc();
            self.close = true;
            return Some(local_reply::too_large(hcm.profile));
        }
        None
    }

    /// Chooses virtual host and route, where that leads, and so the chain. Filters that change what a route is chosen by have it
    /// chosen again, with the same random number; those of one that is there change nothing of it.
    pub(super) fn find_route(&mut self, table: Option<&RouteTable>) {
        self.stream.virtual_host = None;
        self.stream.route = None;
        self.stream.upstream.drawn = Drawn::default();
        self.unrouted = Unrouted::NotFound;
        self.chain = Cow::Borrowed(&self.env.hcm.chain);
        let found = table.and_then(|table| table.find(self.stream));
        let Some(found) = found else { return };
        self.wanted = found.wants;
        if redirect::is_for_tls(&found.virtual_host, self.stream) {
            self.unrouted = Unrouted::ForTls;
            return;
        }
        if found.cut_short {
            self.unrouted = Unrouted::Unsearched;
            let length = self.stream.request.target.path().len();
            tracing::warn!(
                path_length = length,
                "routes' expressions would scan too much for one request: no route"
            );
        }
        self.stream.virtual_host = Some(found.virtual_host);
        self.stream.route = found.route;
        self.stream.upstream.drawn = Drawn::of(self.stream);
        if let Some(chain) = draw::chain(self.stream) {
            self.chain = chain_of(&self.env.hcm.chain, chain);
        }
        if let Some(route) = &self.stream.route
            && let Action::Forward(forward) = &route.action
        {
            if forward.timeouts.idle.is_some() {
                let load = self.env.overload.as_ref();
                self.clock.set_idle_under(forward.timeouts.idle, Timer::StreamIdle, load);
            }
            let (limits, of_connection) = (&forward.timeouts, self.env.hcm.timeouts.max_stream);
            if limits.by_stream {
                let limit = timeouts::bound_stream(limits, of_connection, &mut self.stream.request);
                self.clock.set_max_stream(self.stream.timing.start.into(), limit);
            }
        }
    }

    /// An upgrade must be enabled by the route or the connection manager.
    fn refuse_upgrade(&mut self) -> Option<LocalReply> {
        let wanted = self.down.upgrade()?;
        let of_route = match self.stream.route.as_ref().map(|route| &route.action) {
            Some(Action::Forward(f)) => f.upgrades.iter().find(|(name, _)| **name == *wanted),
            None if self.unrouted != Unrouted::ForTls => return None,
            _ => None,
        };
        let setting = of_route.or_else(|| self.env.hcm.upgrades.iter().find(|(name, _)| **name == *wanted));
        if setting.is_some_and(|(_, enabled)| *enabled) {
            return None;
        }
        if self.env.hcm.profile == Profile::Apisix {
            // nginx drops the headers and forwards an ordinary request.
            self.down.decline_upgrade();
            return None;
        }
        self.name_cluster();
        self.env.hcm.stats.downstream_rq_ws_on_non_ws_route().inc();
        self.close = true;
        Some(LocalReply::new(403, "", "upgrade_failed"))
    }

    /// The length of body that the request announces.
    pub(super) fn announced_length(&self) -> Option<u64> {
        self.stream.request.headers.get_str(Known::CONTENT_LENGTH)?.parse().ok()
    }

    /// Sees that the request announces the body it has. A plugin may have read it whole, and may have copied
    /// a Content-Length that belongs to another message. Of Envoy's filters those announce one that say so; without it the body
    /// is chunked.
    pub(super) fn frame_request(&mut self, announced: Option<u64>) {
        let says = self.env.hcm.profile == Profile::Envoy;
        let length = match &self.stream.request_body {
            Some(body) if !says && body.is_empty() && announced.is_none() => None,
            Some(body) => Some(body.len() as u64),
            None => announced,
        };
        let headers = &mut self.stream.request.headers;
        if (says || self.stream.request_body.is_none()) && !headers.contains(Known::CONTENT_LENGTH) {
            return;
        }
        let mut digits = itoa::Buffer::new();
        let text = length.map(|length| digits.format(length).as_bytes());
        if headers.get_all(Known::CONTENT_LENGTH).eq(text) {
            return;
        }
        headers.remove(Known::CONTENT_LENGTH);
        if let Some(text) = text {
            headers.push(Known::CONTENT_LENGTH.as_str().as_bytes(), text);
        }
    }

    /// Whether anybody has a say before the request goes where its route says.
    fn has_request_phases(&self) -> bool {
        let chain = &self.chain;
        chain.has(HeadPhase::Rewrite) || chain.has(HeadPhase::Access)
    }

    /// Runs `rewrite` and `access`; `Some` is an answer without an upstream. A route that is chosen again comes from
    /// the table that the first one came from, though that be replaced meanwhile (Envoy's `snapped_route_config_`).
    async fn request_phases(&mut self, mut table: Table) -> Result<Option<LocalReply>, Interrupt> {
        let mut phases = RequestPhases::default();
        loop {
            let passed = {
                let waited = &mut self.waited;
                let mut running = pin!(phases.run(self.chain.to_mut(), self.stream));
                let running = pin!(poll_fn(|cx| {
                    let polled = running.as_mut().poll(cx);
                    if polled.is_pending() {
                        *waited = true;
                        keep(&mut table);
                    }
                    polled
                }));
                guard(self.down, self.clock, running).await?
            };
            match passed {
                Passed::Done => return Ok(None),
                Passed::Respond(reply) => return Ok(Some(reply)),
                Passed::ClearRoute => {
                    let before = Arc::clone(&self.chain);
                    self.find_route(table.as_deref());
                    if let Some(wants) = self.wanted.take_if(|wanted| !wanted.values.is_empty()) {
                        keep(&mut table);
                        Box::pin(self.find_route_by_body(wants, table.as_deref())).await?;
                    }
                    if let Some(chain) = self.chain.with_filters_of(&before) {
                        self.chain = Cow::Owned(chain);
                    }
                }
                Passed::Identified if !self.chain.body_variables().is_empty() => {
                    keep(&mut table);
                    let variables = self.chain.body_variables().clone();
                    Box::pin(self.read_variables(&variables)).await?;
                }
                Passed::Identified => {}
                Passed::ReadBody(wanted) => {
                    keep(&mut table);
                    self.read_ahead(wanted, phases.asker()).await?;
                }
            }
        }
    }

    /// Runs one phase that may wait, under the stream's deadlines.
    pub(super) async fn phase(&mut self, chain: &Chain, phase: HeadPhase) -> Result<Outcome, Interrupt> {
        let running = pin!(chain.run(phase, self.stream));
        guard(self.down, self.clock, running).await
    }

    /// Waits for something else under the stream's deadlines.
    pub(super) async fn guarded<F: Future>(&mut self, future: Pin<&mut F>) -> Result<F::Output, Interrupt> {
        guard(self.down, self.clock, future).await
    }

    /// Whether the client has sent all of the request, and all of that has gone on or is there as a whole.
    pub(super) fn request_ended(&self) -> bool {
        self.down.request_ended() && self.stream.read_ahead.is_none()
    }

    /// Notes that the request has been read to its end.
    pub(super) fn request_complete(&mut self) {
        let now = self.clock.touch();
        self.clock.end_request();
        self.stream.timing.request_complete = Some(now.into_std());
    }

    async fn no_route(&mut self) -> Result<(), Interrupt> {
        match self.unrouted {
            Unrouted::NotFound => {}
            Unrouted::Unsearched => return self.respond(unsearched()).await,
            Unrouted::ForTls => {
                self.env.hcm.stats.rq_direct_response().inc();
                let mut reply = LocalReply::new(301, "", "direct_response");
                reply.headers.append(Known::LOCATION, &redirect::to_tls(&self.stream.request));
                return self.respond(reply).await;
            }
        }
        self.env.hcm.stats.no_route().inc();
        let mut reply = LocalReply::new(404, "", "route_not_found");
        reply.flag = Some(Flag::NR);
        if self.env.hcm.profile == Profile::Apisix {
            reply.body = Bytes::from_static(b"{\"error_msg\":\"404 Route Not Found\"}\n");
        }
        self.respond(reply).await
    }
}

/// The answer where routes were not looked through to the end. There may be one, and that there is none would be believed:
/// caches keep a 404.
pub(crate) fn unsearched() -> LocalReply {
    LocalReply::new(503, "", "route_search_cut_short")
}

/// A table as long as it is looked at: it costs no count that workers share.
type Table = arc_swap::Guard<Option<Arc<RouteTable>>>;

/// Keeps a table over a wait. The places of those that are only looked at are few.
fn keep(table: &mut Table) {
    let looked_at = std::mem::replace(table, Table::from_inner(None));
    *table = Table::from_inner(Table::into_inner(looked_at));
}

/// Waits for a future as long as no deadline passes and the client is there. It is pinned by the caller: taken by
/// value it would be stored once in each future on the way.
pub(super) async fn guard<D: Downstream, F: Future>(
    down: &mut D,
    clock: &mut Clock,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Interrupt> {
    within(clock, |clock, cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => {
            let left = left(down, cx).map(|gone| Err(gone.into()));
            clock.watch(Waits { client_write: down.backlog(), ..Waits::default() });
            left
        }
    })
    .await?
}

/// Ready when the client is gone.
fn left<D: Downstream>(down: &mut D, cx: &mut Timed<'_>) -> Poll<DownstreamError> {
    // What was queued before the wait (100 Continue) must not wait with it.
    if let Poll::Ready(Err(gone)) = down.poll_flush(cx) {
        return Poll::Ready(gone);
    }
    down.poll_left(cx)
}
