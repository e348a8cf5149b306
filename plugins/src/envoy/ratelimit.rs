//! Envoy's ratelimit filter (source/extensions/filters/http/ratelimit/ratelimit.cc): a service says whether a request is
//! within its limits.

mod answer;
mod config;
mod headers;
#[cfg(test)]
mod tests;

use crate::envoy::service::{self, SHOULD_RATE_LIMIT, Service};
use crate::envoy::{self, mutations::Change};
use answer::{Answer, Verdict};
use prost::Message;
use sixfold_core::cluster::{Cluster, RateLimitCounts};
use sixfold_core::draw::cluster_of;
use sixfold_core::flags::Flag;
use sixfold_core::header_ops::{HeaderOps, Side};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::rate_limit::{self, Descriptor, LimitPolicy, OfHost};
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{
    Entry, RateLimitOverride,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ratelimit::v3::{
    RateLimit as ProtoLimit, RateLimitPerRoute,
};
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::RateLimitRequest;
use sixfold_xds_api::pb::google::protobuf::UInt64Value;
use smallvec::SmallVec;
use std::sync::Arc;

/// Whose dynamic metadata it is what the service says, unless the configuration has another namespace.
const NAME: &str = "envoy.filters.http.ratelimit";

pub(crate) fn factory() -> FilterFactory {
    let service = Some(service::stand_in());
    let service = RateLimitServiceConfig { grpc_service: service, ..RateLimitServiceConfig::default() };
    let stand_in =
        ProtoLimit { domain: "-".to_owned(), rate_limit_service: Some(service), ..ProtoLimit::default() };
    let filter =
        envoy::filter(|own: ProtoLimit, overrides: Vec<RateLimitPerRoute>, context: &BuildContext| {
            build(&own, overrides.last(), context)
        });
    filter.standing_in(stand_in.encode_to_vec())
}

fn build(own: &ProtoLimit, of_route: Option<&RateLimitPerRoute>, context: &BuildContext) -> Built {
    let filter = config::compile(own, of_route, context)?;
    Ok(Plugin::of(filter).access(RateLimit::access).judging().header_filter(RateLimit::header_filter).build())
}

/// The filter of a route.
struct RateLimit {
    service: Service,
    domain: String,
    stage: u32,
    kind: RequestKind,
    /// The filter's own policies go before those of routes and virtual hosts.
    policies: Box<[LimitPolicy]>,
    of_host: OfHost,
    enabled: Fraction,
    enforced: Fraction,
    /// Requests that do not pass when the service gives no answer.
    denied_on_error: Fraction,
    status_on_error: u16,
    limited_status: u16,
    limited_grpc: Option<u32>,
    tells_limited: bool,
    x_ratelimit: bool,
    retry_after: bool,
    response_headers: HeaderOps,
    namespace: Arc<str>,
    stat_prefix: Arc<str>,
}

/// Which requests are asked about, by where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    Internal,
    External,
    Both,
}

/// Of most requests one or none.
type Descriptors<'s> = SmallVec<[Descriptor<'s>; 2]>;

/// What the service wants added to the response.
struct Additions(Headers);

impl RateLimit {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if !self.is_meant(stream) || !self.enabled.draw(fastrand::u64(..)) {
            return Step::Continue;
        }
        let Some(cluster) = cluster_of(stream) else { return Step::Continue };
        let descriptors = self.describe(stream);
        if descriptors.is_empty() {
            return Step::Continue;
        }
        let shows = self.shows_limit(&descriptors);
        let request = RateLimitRequest {
            domain: self.domain.clone(),
            descriptors: descriptors.into_iter().map(message).collect(),
            hits_addend: 0,
        };
        let (client, headers, request) =
            (self.service.client.clone(), self.service.headers(stream), request.encode_to_vec());
        Step::Wait(Box::pin(async move {
            let answer = match client.unary(SHOULD_RATE_LIMIT, headers, &request).await {
                Ok(message) => Answer::of_message(&message),
                Err(error) => {
                    tracing::debug!(%error, "the rate limit service gave no answer");
                    Answer::default()
                }
            };
            self.conclude(answer, shows, stream, slot, &cluster)
        }))
    }

    fn is_meant(&self, stream: &Stream) -> bool {
        let kind = if stream.internal { RequestKind::Internal } else { RequestKind::External };
        self.kind == RequestKind::Both || self.kind == kind
    }

    /// Whether responses say how far the limit is: what descriptors say of it goes before what the filter says.
    fn shows_limit(&self, descriptors: &[Descriptor<'_>]) -> bool {
        descriptors.iter().find_map(|descriptor| descriptor.x_ratelimit).unwrap_or(self.x_ratelimit)
    }

    /// What the service is told.
    fn describe<'s>(&'s self, stream: &'s Stream) -> Descriptors<'s> {
        let mut made = Descriptors::new();
        if !self.policies.is_empty() {
            // They have no stages.
            made.extend(self.policies.iter().filter_map(|policy| policy.describe(stream)));
            return made;
        }
        let policies = rate_limit::policies_of(stream, self.stage, self.of_host);
        let is_on =
            |policy: &&LimitPolicy| policy.enabled.as_ref().is_none_or(|share| share.draw(fastrand::u64(..)));
        let described = policies.filter(is_on).filter_map(|policy| policy.describe(stream));
        // These two mean something in the filter's own policies only.
        made.extend(described.map(|made| Descriptor {
            hits: None,
            is_negative: false,
            x_ratelimit: None,
            ..made
        }));
        made
    }

    /// Does what the service says.
    fn conclude<'a>(
        &self,
        answer: Answer,
        shows_limit: bool,
        stream: &mut Stream,
        slot: Slot,
        cluster: &Cluster,
    ) -> Step<'a> {
        let count = |count: fn(&RateLimitCounts)| cluster.stats.count_rate_limit(&self.stat_prefix, count);
        let entries = answer.metadata.into_iter();
        stream.metadata.extend(entries.map(|(key, value)| (self.namespace.clone(), key.into(), value)));
        let mut added = Headers::new();
        answer.response.iter().for_each(|change| change.apply_to_response(&mut added));
        let limited = answer.verdict == Verdict::OverLimit;
        if limited {
            cluster.stats.responses().count(self.limited_status);
            if self.tells_limited {
                added.set("x-envoy-ratelimited", b"true");
            }
        }
        if shows_limit {
            headers::tell_limit(&answer.statuses, &mut added);
        }
        let step = match answer.verdict {
            Verdict::OverLimit => {
                count(|counts| counts.over_limit().inc());
                if self.enforced.draw(fastrand::u64(..)) {
                    if self.retry_after && self.limited_status == 429 {
                        headers::tell_retry(&answer.statuses, &mut added);
                    }
                    return Step::Respond(self.limited(answer.body, added, stream));
                }
                Step::Continue
            }
            Verdict::Error => {
                count(|counts| counts.error().inc());
                if self.denied_on_error.draw(fastrand::u64(..)) {
                    let mut reply = LocalReply::new(self.status_on_error, answer.body, "rate_limiter_error");
                    reply.flag = Some(Flag::RLSE);
                    return Step::Respond(reply);
                }
                count(|counts| counts.failure_mode_allowed().inc());
                Step::Continue
            }
            Verdict::Ok => {
                count(|counts| counts.ok().inc());
                Step::Continue
            }
        };
        for change in &answer.request {
            change.apply_to_request(&mut stream.request);
        }
        if !added.is_empty() {
            stream.set_state(slot, Additions(added));
        }
        step
    }

    /// The answer to a request beyond its limit.
    fn limited(&self, body: bytes::Bytes, added: Headers, stream: &mut Stream) -> LocalReply {
        let mut reply = LocalReply::new(self.limited_status, body, "request_rate_limited");
        (reply.flag, reply.grpc_status, reply.headers) = (Some(Flag::RL), self.limited_grpc, added);
        if !self.response_headers.is_empty() {
            // They are made of the response, which there is none of yet.
            let kept = std::mem::replace(&mut stream.response.headers, reply.headers);
            self.response_headers.apply(stream, Side::Response);
            reply.headers = std::mem::replace(&mut stream.response.headers, kept);
        }
        reply
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(added) = stream.take_state::<Additions>(slot) {
            for (name, value) in added.0.iter() {
                Change::add(&String::from_utf8_lossy(name), value).apply(&mut stream.response.headers);
            }
        }
        Step::Continue
    }
}

/// A descriptor as a message.
fn message(descriptor: Descriptor<'_>) -> RateLimitDescriptor {
    let Descriptor { entries, limit, hits, is_negative, x_ratelimit: _ } = descriptor;
    RateLimitDescriptor {
        entries: entries
            .into_iter()
            .map(|(key, value)| Entry { key: key.to_owned(), value: value.into_owned() })
            .collect(),
        limit: limit.map(|limit| RateLimitOverride {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit as i32,
        }),
        hits_addend: hits.map(|value| UInt64Value { value }),
        is_negative_hits: is_negative,
    }
}
