//! Envoy's jwt_authn filter (source/extensions/filters/http/jwt_authn): lets requests pass that have the tokens which they
//! must have, and tells upstream and metadata what is in those.

mod places;
mod provider;
mod remote;
mod requirement;
mod rules;
#[cfg(test)]
mod tests;

use crate::envoy;
use provider::Provider;
use requirement::{Answers, Judgement, Providers, Requirement, Unmet, act};
use rules::{Chosen, Rules};
use sixfold_core::error::{ConfigContext, collect};
use sixfold_core::headers::Known;
use sixfold_core::message::RequestHead;
use sixfold_core::metrics;
use sixfold_core::plugin::{
    BuildContext, Built, FilterFactory, LocalReply, OwnedHeaders, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtProvider, PerRouteConfig,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::shared::jwt::Fault;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.jwt_authn.` and the filter's `stat_prefix`.
    pub struct JwtStats {
        counters: [
            allowed, cors_preflight_bypassed, denied, jwks_fetch_failed, jwks_fetch_success, jwt_cache_hit,
            jwt_cache_miss,
        ],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific level says which requirement holds; without one the rules do.
fn build(config: JwtAuthentication, mut overrides: Vec<PerRouteConfig>, context: &BuildContext) -> Built {
    let JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix,
    } = config;
    let scope = metrics::scope(&[&context.scope, "jwt_authn", &stat_prefix]);
    let stats = JwtStats::new(&context.metrics, &scope);
    let configs: BTreeMap<&String, &JwtProvider> = providers.iter().collect();
    let made = configs.iter().map(|(name, value)| {
        let provider = Provider::new(name, value, context, &stats).in_key(name);
        Ok(((*name).clone(), Arc::new(provider?)))
    });
    let made: Providers = collect(made).in_key("providers")?.into_iter().collect();
    let owned =
        OwnedHeaders::new(made.values().flat_map(|provider| provider.owned.names()).cloned().collect());
    let compile = |value: &_| Requirement::new(value, &configs, &made);
    let rules = Rules::new(&rules, &filter_state_rules, &requirement_map, compile)?;
    let rules = match overrides.pop() {
        Some(of_route) => rules.of_route(of_route),
        None => rules,
    };
    let filter = JwtAuthn {
        providers: made.into_values().collect(),
        rules,
        owned,
        bypass_preflight: bypass_cors_preflight,
        strip: strip_failure_response,
        stats,
    };
    Ok(Plugin::of(filter).access(JwtAuthn::access).judging().in_force(JwtAuthn::begin).build())
}

struct JwtAuthn {
    /// All of them, whether a rule names them or not.
    providers: Box<[Arc<Provider>]>,
    rules: Rules,
    /// What the upstream is told of tokens, and so by nobody else, whether one is wanted or not.
    owned: OwnedHeaders,
    /// CORS preflights have no credentials.
    bypass_preflight: bool,
    /// Answers say nothing of what is wrong.
    strip: bool,
    stats: JwtStats,
}

impl JwtAuthn {
    fn begin(&self) {
        self.providers.iter().for_each(|provider| provider.start());
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        self.owned.strip(&mut stream.request.headers);
        if self.bypass_preflight && is_preflight(&stream.request) {
            self.stats.cors_preflight_bypassed().inc();
            self.stats.allowed().inc();
            return Step::Continue;
        }
        let requirement = match self.rules.choose(stream) {
            Chosen::Requirement(requirement) => requirement,
            Chosen::Nothing => {
                self.stats.allowed().inc();
                return Step::Continue;
            }
            Chosen::Wrong(reason) => return Step::Respond(self.misconfigured(reason)),
        };
        let mut answers = Answers::new();
        let missing = match self.decide(requirement, &answers, stream) {
            Ok(step) => return step,
            Err(missing) => missing,
        };
        Step::Wait(Box::pin(async move {
            let mut missing = missing;
            loop {
                let answer = missing.fetch().await;
                answers.push((missing, answer));
                match self.decide(requirement, &answers, stream) {
                    Ok(step) => return step,
                    Err(another) => missing = another,
                }
            }
        }))
    }

    /// What becomes of the request.
    ///
    /// # Errors
    /// Keys that have to be fetched first.
    fn decide<'s>(
        &self,
        requirement: &Requirement,
        answers: &Answers,
        stream: &mut Stream,
    ) -> Result<Step<'s>, Arc<remote::Remote>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut judgement = Judgement::new(&stream.request, now, answers, &self.stats);
        let verdict = match requirement.check(&mut judgement) {
            Err(Unmet::Lacks(remote)) => return Err(remote),
            Err(Unmet::Fault(fault)) => Err(fault),
            Ok(()) => Ok(()),
        };
        let events = judgement.into_events();
        // What the client sent, before anything is taken out of it.
        let refusal = verdict.err().map(|fault| self.refusal(fault, &stream.request));
        let clears = act(events, stream);
        Ok(match refusal {
            Some(reply) => {
                self.stats.denied().inc();
                Step::Respond(reply)
            }
            None => {
                self.stats.allowed().inc();
                if clears { Step::ClearRoute } else { Step::Continue }
            }
        })
    }

    fn refusal(&self, fault: Fault, request: &RequestHead) -> LocalReply {
        let status = if fault == Fault::AudienceNotAllowed { 403 } else { 401 };
        let body = if self.strip { "" } else { fault.message() };
        let mut reply = LocalReply::new(status, body, details(fault.message()));
        if !self.strip {
            let mut challenge = b"Bearer realm=\"".to_vec();
            challenge.extend_from_slice(&envoy::realm(request));
            challenge.push(b'"');
            if fault != Fault::Missing {
                challenge.extend_from_slice(b", error=\"invalid_token\"");
            }
            reply.headers.set(Known::WWW_AUTHENTICATE, &challenge);
        }
        reply
    }

    fn misconfigured(&self, reason: &str) -> LocalReply {
        self.stats.denied().inc();
        let body = if self.strip { String::new() } else { format!("Failed JWT authentication: {reason}") };
        LocalReply::new(403, body, details(reason))
    }
}

/// Response code details have no blanks.
fn details(reason: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", reason.replace(' ', "_"))
}

fn is_preflight(request: &RequestHead) -> bool {
    let has = |value: Option<&[u8]>| value.is_some_and(|value| !value.is_empty());
    request.method == http::Method::OPTIONS
        && has(request.headers.get(Known::ORIGIN))
        && has(request.headers.get("access-control-request-method"))
}
