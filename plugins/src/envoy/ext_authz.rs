//! Envoy's ext_authz filter (source/extensions/filters/http/ext_authz/ext_authz.cc): a service decides whether a request
//! may pass.

mod answer;
mod check;
mod config;
mod http;
#[cfg(test)]
mod tests;

use crate::envoy::{self, authz::CHECK, mutations, service};
use answer::{Answer, Verdict};
use check::Shape;
use config::Body;
use prost::{Message, Name};
use sixfold_core::cluster::{AuthzCounts, Cluster};
use sixfold_core::draw::cluster_of;
use sixfold_core::flags::Flag;
use sixfold_core::matcher::MetadataMatcher;
use sixfold_core::plugin::{
    BuildContext, Built, FilterConfig, FilterFactory, LocalReply, Overflow, Plugin, ReadBody, Slot, Step,
};
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::{FilterObject, Stream};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::{
    ExtAuthz as ProtoAuthz, ExtAuthzPerRoute,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// Whose dynamic metadata it is what the service says.
const NAME: &str = "envoy.filters.http.ext_authz";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.ext_authz.` and the prefix of the filter.
    pub struct AuthzStats {
        counters: [ok, denied, error, disabled, failure_mode_allowed, invalid, ignored_dynamic_metadata],
        gauges: [],
        histograms: [],
        zeros: [
            Counter "filter_state_name_collision", Counter "omitted_response_headers",
            Counter "request_header_limits_reached", Counter "response_header_limits_reached",
            Counter "shadow_denied", Counter "shadow_error",
        ],
    }
}

pub(crate) fn factory() -> FilterFactory {
    let stand_in =
        ProtoAuthz { services: Some(Services::GrpcService(service::stand_in())), ..ProtoAuthz::default() };
    let filter = FilterFactory::new(ProtoAuthz::full_name(), ExtAuthzPerRoute::full_name(), build);
    filter.standing_in(stand_in.encode_to_vec()).reads_all_levels()
}

fn build(given: &FilterConfig<'_>, context: &BuildContext) -> Built {
    let levels = given.overrides.iter().map(|bytes| envoy::decode(bytes)).collect::<Result<Vec<_>, _>>()?;
    let of_route = config::of_route(&levels, given.superseded)?;
    let Some(of_route) = of_route else { return Ok(Plugin::default()) };
    let filter = config::compile(&envoy::decode(given.config)?, of_route, context)?;
    Ok(Plugin::of(filter).access(ExtAuthz::access).judging().header_filter(ExtAuthz::header_filter).build())
}

/// The filter of a route.
struct ExtAuthz {
    service: Service,
    shape: Shape,
    /// What of the request's body the service sees.
    body: Option<Body>,
    enabled: Option<Fraction>,
    enabled_metadata: Option<MetadataMatcher>,
    deny_at_disable: bool,
    allow_on_error: bool,
    tell_upstream_of_error: bool,
    status_on_error: u16,
    clear_route: bool,
    validate: bool,
    rules: Option<mutations::Rules>,
    takes_metadata: bool,
    max_denied_body: usize,
    charge_cluster: bool,
    /// What is left for logs when the service was asked.
    note: Option<Note>,
    stat_prefix: Arc<str>,
    /// [`NAME`], whose metadata it is.
    namespace: Arc<str>,
    stats: AuthzStats,
}

/// Who is asked.
enum Service {
    Http(http::HttpService),
    Grpc(service::Service),
}

/// What the filter leaves in the filter state.
struct Note {
    key: Arc<str>,
    metadata: serde_json::Map<String, serde_json::Value>,
    latency: bool,
}

/// What it keeps of a request between phases.
enum State {
    /// The body has been asked for.
    BodyAsked,
    /// What the service wants changed of the response.
    Response(Vec<mutations::Change>),
}

/// An answer that comes.
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl ExtAuthz {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        // What leads nowhere is not asked about.
        if stream.route.is_none() {
            return Step::Continue;
        }
        let left = stream.take_state::<State>(slot).map(|state| *state);
        // What an earlier answer left is no word of this round: the request was sent anew.
        if !matches!(left, Some(State::BodyAsked)) {
            if !self.is_enabled(stream) {
                self.stats.disabled().inc();
                return match self.deny_at_disable {
                    true => Step::Respond(self.error_reply()),
                    false => Step::Continue,
                };
            }
            if let Some(body) = &self.body {
                stream.set_state(slot, State::BodyAsked);
                let on_overflow = if body.partial { Overflow::Pass } else { Overflow::Refuse };
                return Step::ReadBody(ReadBody { limit: body.max, on_overflow });
            }
        }
        let cluster = cluster_of(stream);
        let started = Instant::now();
        let asked = self.ask(stream);
        Step::Wait(Box::pin(async move {
            let answer = asked.await;
            self.leave_note(stream, started);
            self.conclude(answer, stream, slot, started, cluster.as_deref())
        }))
    }

    fn is_enabled(&self, stream: &Stream) -> bool {
        self.enabled.as_ref().is_none_or(|share| share.draw(fastrand::u64(..)))
            && self.enabled_metadata.as_ref().is_none_or(|test| test.matches(&stream.metadata))
    }

    /// Asks the service; what it needs of the request is taken now.
    fn ask(&self, stream: &Stream) -> Answering {
        match &self.service {
            Service::Http(http) => http.ask(&self.shape, self.body.as_ref(), stream),
            Service::Grpc(grpc) => {
                let request = self.shape.check(self.body.as_ref(), stream).encode_to_vec();
                let (client, headers) = (grpc.client.clone(), grpc.headers(stream));
                Box::pin(async move {
                    match client.unary(CHECK, headers, &request).await {
                        Ok(message) => Answer::of_message(&message),
                        Err(error) => {
                            tracing::debug!(%error, "the authorisation service gave no answer");
                            Answer::error()
                        }
                    }
                })
            }
        }
    }

    fn leave_note(&self, stream: &mut Stream, started: Instant) {
        let Some(note) = &self.note else { return };
        let mut value = note.metadata.clone();
        if note.latency {
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            value.insert("latency_us".to_owned(), micros.into());
        }
        let value = serde_json::Value::Object(value).to_string().into_bytes().into();
        stream.set_filter_state(FilterObject {
            key: note.key.clone(),
            value,
            hashable: false,
            read_only: false,
        });
    }

    /// Does what the service says.
    fn conclude<'a>(
        &self,
        mut answer: Answer,
        stream: &mut Stream,
        slot: Slot,
        started: Instant,
        cluster: Option<&Cluster>,
    ) -> Step<'a> {
        if (self.validate && !answer.is_valid()) || !self.keep_allowed(&mut answer) {
            self.stats.invalid().inc();
            let mut reply = LocalReply::new(500, "", "ext_authz_invalid");
            reply.flag = Some(Flag::UAEX);
            return Step::Respond(reply);
        }
        self.take_metadata(&mut answer, stream, started);
        let count = |count: fn(&AuthzCounts)| {
            if let Some(cluster) = cluster {
                cluster.stats.count_authz(&self.stat_prefix, count);
            }
        };
        match answer.verdict {
            Verdict::Ok => {
                self.stats.ok().inc();
                count(|counts| counts.ok().inc());
                if answer.request.iter().any(|change| change.makes_tunnel(&stream.request)) {
                    return Step::Respond(LocalReply::new(503, "", "ext_authz_invalid"));
                }
                let clears = self.clear_route && answer.changes_request();
                answer.apply(&mut stream.request);
                if !answer.response.is_empty() {
                    stream.set_state(slot, State::Response(answer.response));
                }
                if clears { Step::ClearRoute } else { Step::Continue }
            }
            Verdict::Denied => {
                self.stats.denied().inc();
                count(|counts| counts.denied().inc());
                let reply = answer.reply(403, self.max_denied_body, "ext_authz_denied");
                if let Some(cluster) = cluster.filter(|_| self.charge_cluster) {
                    cluster.stats.responses().count(reply.status);
                }
                Step::Respond(reply)
            }
            Verdict::Error => {
                self.stats.error().inc();
                count(|counts| counts.error().inc());
                // What can't be asked about is never let through: a client could see to it.
                if !self.allow_on_error || answer.unaskable {
                    return Step::Respond(answer.reply(self.status_on_error, 0, "ext_authz_error"));
                }
                self.stats.failure_mode_allowed().inc();
                count(|counts| counts.failure_mode_allowed().inc());
                if self.tell_upstream_of_error {
                    stream.request.headers.append("x-envoy-auth-failure-mode-allowed", b"true");
                }
                Step::Continue
            }
        }
    }

    /// Leaves out the changes of the request that the rules ignore; `false` where they refuse one.
    fn keep_allowed(&self, answer: &mut Answer) -> bool {
        let Some(rules) = self.rules.as_ref().filter(|_| answer.verdict == Verdict::Ok) else { return true };
        let judge = |name: &str| rules.judge(&name.to_ascii_lowercase());
        let refused = |name: &str| judge(name) == mutations::Verdict::Refused;
        if answer.request.iter().any(|change| refused(&change.name))
            || answer.remove.iter().any(|name| refused(name))
        {
            return false;
        }
        answer.request.retain(|change| judge(&change.name) == mutations::Verdict::Allowed);
        answer.remove.retain(|name| judge(name) == mutations::Verdict::Allowed);
        true
    }

    fn take_metadata(&self, answer: &mut Answer, stream: &mut Stream, started: Instant) {
        if answer.metadata.is_empty() {
            return;
        }
        if !self.takes_metadata {
            self.stats.ignored_dynamic_metadata().inc();
            return;
        }
        if answer.verdict == Verdict::Ok {
            let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            answer.metadata.insert("ext_authz_duration".to_owned(), millis.into());
        }
        let entries = std::mem::take(&mut answer.metadata).into_iter();
        stream.metadata.extend(entries.map(|(key, value)| (self.namespace.clone(), key.into(), value)));
    }

    fn error_reply(&self) -> LocalReply {
        Answer::error().reply(self.status_on_error, 0, "ext_authz_error")
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(State::Response(changes)) = stream.take_state::<State>(slot).map(|state| *state) {
            // How the service's own answer came says nothing of the upstream's.
            changes.iter().for_each(|change| change.apply_to_response(&mut stream.response.headers));
        }
        Step::Continue
    }
}
