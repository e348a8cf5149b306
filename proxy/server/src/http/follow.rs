//! Redirects that are followed here, and requests that a plugin has answer in the place of another: the response becomes
//! another request, with a route, a chain and a log line of its own (Envoy's `recreateStream`).

use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt, guard};
use super::forward::Plan;
use bytes::Bytes;
use sixfold_core::budget::Reservation;
use sixfold_core::draw::Drawn;
use sixfold_core::hcm::Profile;
use sixfold_core::internal_redirect::{Followed, InternalRedirect, PassedOn};
use sixfold_core::message::{CONNECTION_CLOSE, Scheme};
use sixfold_core::plugin::{HeadPhase, LocalReply, Outcome, Recreated};
use sixfold_core::redirect;
use sixfold_core::route::Route;
use sixfold_core::router::VirtualHost;
use std::pin::pin;
use std::sync::Arc;

/// A request that follows a redirect; its head is in the stream's context.
#[derive(Debug)]
pub(crate) struct Next {
    /// The redirects up to it.
    pub(super) followed: Followed,
    /// Its body.
    pub(super) body: Option<Bytes>,
    /// The place of the body among those that the process holds.
    pub(super) held: Option<Reservation>,
}

impl<D: Downstream> Exchange<'_, D> {
    /// Goes on with the body of the request that was redirected.
    pub(super) fn resume(&mut self, next: Next) {
        let Next { followed, body, held } = next;
        self.stream.bytes.request_body = body.as_ref().map_or(0, |body| body.len() as u64);
        (self.stream.request_body, self.held) = (body, held);
        self.followed = Some(Box::new(followed));
    }

    /// Makes the request that follows the response in the stream's context; `None` if that is passed on.
    pub(super) fn follow(&mut self, plan: &mut Plan<'_>, policy: &InternalRedirect) -> Option<Box<Next>> {
        // What is not read to its end can't be sent again.
        let is_whole = self.is_request_whole() && plan.replay.is_whole(self.stream);
        let next = if is_whole { self.redirect(policy) } else { None };
        let stats = &plan.cluster.stats;
        let Some((followed, with_body)) = next else {
            stats.upstream_internal_redirect_failed_total().inc();
            return None;
        };
        stats.upstream_internal_redirect_succeeded_total().inc();
        self.stream.details = Some("internal_redirect".into());
        let mut next = Next { followed, body: self.stream.request_body.take(), held: self.held.take() };
        if next.body.is_none() {
            let (body, held) = plan.replay.take().unzip();
            let is_empty =
                body.as_ref().is_none_or(Bytes::is_empty) && self.stream.request_trailers.is_empty();
            next.body = (!is_empty).then(|| body.unwrap_or_default());
            next.held = held;
        }
        if !with_body {
            next.followed.left_behind += self.stream.bytes.request_body;
            (next.body, next.held) = (None, None);
            self.stream.request_trailers.clear();
        }
        Some(Box::new(next))
    }

    /// Puts the head of the request that follows in the place of the one that was redirected, with its route.
    fn redirect(&mut self, policy: &InternalRedirect) -> Option<(Followed, bool)> {
        let mut followed = self.followed.as_deref().cloned().unwrap_or_default();
        // A client's word that it came by TLS, where it did not, is none.
        let secure = self.stream.connection.tls.is_some();
        let before = if secure { self.stream.request.scheme } else { Scheme::Http };
        let location = policy.location(before, &self.stream.response.headers, &followed);
        let location = location.map_err(|why| self.pass_on(why)).ok()?;
        let head = self.stream.request.clone();
        let (captures, status) = (std::mem::take(&mut self.stream.captures), self.stream.response.status);
        let stream = &mut *self.stream;
        let with_body =
            policy.rewrite(&mut stream.request, before, (status, &stream.response.headers), &location);
        let table = self.env.hcm.routes.peek();
        let found = table.as_deref().and_then(|table| table.find(self.stream));
        let (virtual_host, route) =
            found.map_or((None, None), |found| (Some(found.virtual_host), found.route));
        let verdict = match (&self.stream.route, &route) {
            (Some(from), Some(to)) => {
                let agrees = policy.agrees(&mut followed, (&from.name, before), (&to.name, location.scheme));
                if agrees { Ok(()) } else { Err(PassedOn::Predicate) }
            }
            _ => Err(PassedOn::NoRoute),
        };
        if let Err(why) = verdict {
            (self.stream.request, self.stream.captures) = (head, captures);
            self.pass_on(why);
            return None;
        }
        self.lead_to(virtual_host, route);
        followed.count += 1;
        Some((followed, with_body))
    }

    /// Has the log line of what is followed tell where it leads. That is no route where the virtual host wants TLS: Envoy has
    /// one of its own in its place (`SslRedirectRoute`).
    fn lead_to(&mut self, virtual_host: Option<Arc<VirtualHost>>, route: Option<Arc<Route>>) {
        let for_tls = virtual_host.as_ref().is_some_and(|host| redirect::is_for_tls(host, self.stream));
        (self.stream.virtual_host, self.stream.route) =
            if for_tls { (None, None) } else { (virtual_host, route) };
        self.stream.upstream.cluster = None;
        self.stream.upstream.drawn = Drawn::of(self.stream);
        self.name_cluster();
    }

    /// Runs `header_filter`; answers what a plugin puts in the place of the response.
    pub(super) async fn header_filters(&mut self) -> Result<Option<LocalReply>, Interrupt> {
        let chain = Arc::clone(&self.chain);
        self.stream.begin_response_head();
        if self.env.hcm.profile == Profile::Apisix && (self.close || !self.down.keeps_alive()) {
            // Plugins have it as a variable; what the head says in the end is told when that is written.
            self.stream.response.connection_bytes = CONNECTION_CLOSE;
        }
        let mut from = 0;
        loop {
            let outcome = {
                let running = pin!(chain.run_from(HeadPhase::HeaderFilter, self.stream, from));
                guard(self.down, self.clock, running).await?
            };
            match outcome {
                Outcome::Respond(reply) => return Ok(Some(reply)),
                Outcome::Recreate(index, request) => match self.recreate(*request) {
                    Some(next) => return Err(Interrupt::Redirected(next)),
                    None => from = index,
                },
                _ => return Ok(None),
            }
        }
    }

    /// Puts the request that a plugin wants in the place of this one, if it has a route and the client has sent all of this one.
    fn recreate(&mut self, request: Recreated) -> Option<Box<Next>> {
        if self.head_sent || !self.is_request_whole() {
            return None;
        }
        let Recreated { head, answers_for } = request;
        let head = std::mem::replace(&mut self.stream.request, head);
        let captures = std::mem::take(&mut self.stream.captures);
        let table = self.env.hcm.routes.peek();
        let found = table.as_deref().and_then(|table| table.find(self.stream));
        let Some(found) = found.filter(|found| found.route.is_some()) else {
            (self.stream.request, self.stream.captures) = (head, captures);
            return None;
        };
        self.lead_to(Some(found.virtual_host), found.route);
        self.stream.details = Some("internal_redirect".into());
        self.stream.answer_for(answers_for);
        self.stream.request_trailers.clear();
        let mut followed = self.followed.as_deref().cloned().unwrap_or_default();
        followed.left_behind += self.stream.bytes.request_body;
        Some(Box::new(Next { followed, body: None, held: None }))
    }

    fn pass_on(&self, why: PassedOn) {
        let stats = &self.env.hcm.stats;
        match why {
            PassedOn::NoLocation => {}
            PassedOn::BadLocation => stats.passthrough_internal_redirect_bad_location().inc(),
            PassedOn::UnsafeScheme => stats.passthrough_internal_redirect_unsafe_scheme().inc(),
            PassedOn::TooMany => stats.passthrough_internal_redirect_too_many_redirects().inc(),
            PassedOn::NoRoute => stats.passthrough_internal_redirect_no_route().inc(),
            PassedOn::Predicate => stats.passthrough_internal_redirect_predicate().inc(),
        }
    }
}
