//! What a request must have, and the judgement whether it has it (source/extensions/filters/http/jwt_authn/verifier.cc,
//! authenticator.cc).
//!
//! A judgement changes nothing: what it comes to is noted as events, in the order in which Envoy acts on them, and done at
//! its end. So one that lacks keys can begin again once they are there.

use super::JwtStats;
use super::places::{Found, Place, Places};
use super::provider::{Audiences, Provider, Ready};
use super::remote::Remote;
use crate::shared::jwt::{Fault, KeySet, Token};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::HeaderName;
use sixfold_core::message::RequestHead;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    ExtractOnlyWithoutValidation, JwtProvider, JwtRequirement, JwtRequirementAndList, JwtRequirementOrList,
    ProviderWithAudiences,
};
use sixfold_xds_api::values::header_name;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The header that says `false` where the token that decides is not good, if the configuration names no other.
const STATUS_HEADER: &str = "x-jwt-signature-verified";
/// How deep requirements may be nested.
const MAX_DEPTH: usize = 32;

/// The providers of a configuration by their names.
pub(super) type Providers = BTreeMap<String, Arc<Provider>>;

pub(super) enum Requirement {
    Nothing,
    Token(Box<Wanted>),
    Any {
        of: Box<[Requirement]>,
        lenient: Lenient,
    },
    All(Box<[Requirement]>),
    /// Whatever tokens there are, of any provider.
    Optional(Box<Optional>),
}

/// A token of one provider.
pub(super) struct Wanted {
    provider: Arc<Provider>,
    audiences: Option<Audiences>,
    places: Places,
    /// There is no other provider: of several none is told that there is no token.
    single: bool,
}

/// Tokens that need not be there, or not be good.
pub(super) struct Optional {
    places: Places,
    providers: Box<[Arc<Provider>]>,
    lenient: Lenient,
    /// The header that tells the upstream of a token which is not good.
    told: Option<HeaderName>,
}

/// What passes without a good token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lenient {
    Nothing,
    /// No token at all.
    Missing,
    Failed,
}

/// Why a requirement is not met, if it is not.
pub(super) enum Unmet {
    Fault(Fault),
    /// It is not known yet.
    Lacks(Arc<Remote>),
}

/// What the keys of a server have come to for this request.
pub(super) type Answers = Vec<(Arc<Remote>, Result<Arc<KeySet>, Fault>)>;

/// One request that is judged.
pub(super) struct Judgement<'p: 'r, 'r> {
    request: &'r RequestHead,
    /// Seconds since 1970.
    now: u64,
    answers: &'r Answers,
    stats: &'r JwtStats,
    events: Vec<Event<'p>>,
}

/// What is to be done of a judgement.
pub(super) enum Event<'p> {
    /// The provider was asked: what another has told by its headers leaves the request.
    Asked(&'p Provider),
    Passed(&'p Provider, Arc<Token>, &'p Place),
    Failed(&'p Provider, Fault),
    /// The token that decides was not good, and this header tells it.
    Told(&'p HeaderName),
}

impl Requirement {
    /// # Errors
    /// Providers that there are not, and what is wrong with places of tokens.
    pub(super) fn new(
        value: &JwtRequirement,
        configs: &BTreeMap<&String, &JwtProvider>,
        providers: &Providers,
    ) -> Result<Requirement, ConfigError> {
        Requirement::at_depth(value, configs, providers, 0)
    }

    fn at_depth(
        value: &JwtRequirement,
        configs: &BTreeMap<&String, &JwtProvider>,
        providers: &Providers,
        depth: usize,
    ) -> Result<Requirement, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("requirements are nested too deep"));
        }
        let JwtRequirement { requires_type } = value;
        let wanted = |name: &String, audiences: Option<Audiences>, field: &str| {
            let (Some(config), Some(provider)) = (configs.get(name), providers.get(name)) else {
                return Err(ConfigError::field(field, format!("there is no provider \"{name}\"")));
            };
            let places = Places::of([*config])?;
            let (provider, single) = (provider.clone(), providers.len() == 1);
            Ok(Requirement::Token(Box::new(Wanted { provider, audiences, places, single })))
        };
        let each = |values: &[JwtRequirement], field: &str| -> Result<Vec<Requirement>, ConfigError> {
            let each = values.iter().enumerate().map(|(index, value)| {
                Requirement::at_depth(value, configs, providers, depth + 1).in_index(index)
            });
            each.collect::<Result<_, _>>().in_key("requirements").in_key(field)
        };
        let optional = |lenient, told| {
            let places = Places::of(configs.values().copied())?;
            let providers = providers.values().cloned().collect();
            Ok(Requirement::Optional(Box::new(Optional { places, providers, lenient, told })))
        };
        match requires_type {
            None => Ok(Requirement::Nothing),
            Some(RequiresType::ProviderName(name)) => wanted(name, None, "provider_name"),
            Some(RequiresType::ProviderAndAudiences(ProviderWithAudiences { provider_name, audiences })) => {
                let audiences = (!audiences.is_empty()).then(|| Audiences::new(audiences));
                wanted(provider_name, audiences, "provider_name").in_key("provider_and_audiences")
            }
            Some(RequiresType::RequiresAny(JwtRequirementOrList { requirements })) => {
                let lenient = requirements.iter().map(Lenient::of).max().unwrap_or(Lenient::Nothing);
                let of_tokens: Vec<JwtRequirement> =
                    requirements.iter().filter(|of| Lenient::of(of) == Lenient::Nothing).cloned().collect();
                if of_tokens.is_empty() {
                    return optional(lenient, None);
                }
                Ok(Requirement::Any { of: each(&of_tokens, "requires_any")?.into(), lenient })
            }
            Some(RequiresType::RequiresAll(JwtRequirementAndList { requirements })) => {
                Ok(Requirement::All(each(requirements, "requires_all")?.into()))
            }
            Some(RequiresType::AllowMissingOrFailed(_)) => optional(Lenient::Failed, None),
            Some(RequiresType::AllowMissing(_)) => optional(Lenient::Missing, None),
            // Whatever its name says, Envoy verifies them.
            Some(RequiresType::ExtractOnlyWithoutValidation(ExtractOnlyWithoutValidation {
                verification_status_header,
            })) => {
                let name = match verification_status_header.as_str() {
                    "" => STATUS_HEADER,
                    name => name,
                };
                let told = header_name(name, "verification_status_header");
                optional(Lenient::Failed, Some(told.in_key("extract_only_without_validation")?))
            }
        }
    }

    /// Judges a request.
    ///
    /// # Errors
    /// It does not have what it must have, or that is not known yet.
    pub(super) fn check<'p>(&'p self, judgement: &mut Judgement<'p, '_>) -> Result<(), Unmet> {
        match self {
            Requirement::Nothing => Ok(()),
            Requirement::Token(wanted) => wanted.check(judgement),
            Requirement::All(all) => all.iter().try_for_each(|one| one.check(judgement)),
            Requirement::Any { of, lenient } => check_any(of, *lenient, judgement),
            Requirement::Optional(optional) => check_optional(optional, judgement),
        }
    }
}

impl Lenient {
    fn of(value: &JwtRequirement) -> Lenient {
        match value.requires_type {
            Some(RequiresType::AllowMissingOrFailed(_)) => Lenient::Failed,
            Some(RequiresType::AllowMissing(_)) => Lenient::Missing,
            _ => Lenient::Nothing,
        }
    }
}

/// One of them must be met. Of several faults the one that says most is told: a token that is there and wrong before one of
/// another issuer, that before none.
fn check_any<'p>(
    of: &'p [Requirement],
    lenient: Lenient,
    judgement: &mut Judgement<'p, '_>,
) -> Result<(), Unmet> {
    let mut fault = Fault::Missing;
    for one in of {
        match one.check(judgement) {
            Ok(()) => return Ok(()),
            Err(Unmet::Lacks(remote)) => return Err(Unmet::Lacks(remote)),
            Err(Unmet::Fault(of_one)) => {
                let says_more = !matches!(of_one, Fault::Missing | Fault::UnknownIssuer);
                if says_more || fault == Fault::Missing {
                    fault = of_one;
                }
            }
        }
    }
    match lenient {
        Lenient::Failed => Ok(()),
        Lenient::Missing if fault == Fault::Missing => Ok(()),
        _ => Err(Unmet::Fault(fault)),
    }
}

/// Every token that is there is looked at, and the last of them decides, which is the first in its places: of others that are
/// wrong nobody but metadata is told.
fn check_optional<'p>(optional: &'p Optional, judgement: &mut Judgement<'p, '_>) -> Result<(), Unmet> {
    let Optional { places, providers, lenient, told } = optional;
    let asked = providers.iter().map(|provider| Event::Asked(provider));
    judgement.events.extend(asked);
    // Where there is but one provider it is told of every fault.
    let single = if let [single] = &**providers { Some(&**single) } else { None };
    let (mut last, mut known) = (Ok(()), None);
    let found = judgement.tokens(places);
    if found.is_empty() {
        judgement.events.extend(single.map(|provider| Event::Failed(provider, Fault::Missing)));
    }
    for found in found {
        last = match judgement.check_of_any(&found, providers, &mut known) {
            Ok(()) => Ok(()),
            Err(Unmet::Lacks(remote)) => return Err(Unmet::Lacks(remote)),
            Err(Unmet::Fault(fault)) => {
                let of = known.or(single);
                judgement.events.extend(of.map(|provider| Event::Failed(provider, fault)));
                Err(fault)
            }
        };
    }
    judgement.events.extend(told.as_ref().filter(|_| last.is_err()).map(Event::Told));
    match lenient {
        Lenient::Failed => Ok(()),
        Lenient::Nothing | Lenient::Missing => last.map_err(Unmet::Fault),
    }
}

impl Wanted {
    /// There must be a token, and if there are several, all must be good.
    fn check<'p>(&'p self, judgement: &mut Judgement<'p, '_>) -> Result<(), Unmet> {
        judgement.events.push(Event::Asked(&self.provider));
        let found = judgement.tokens(&self.places);
        let is_told = self.single || !found.is_empty();
        let mut verdict = if found.is_empty() { Err(Unmet::Fault(Fault::Missing)) } else { Ok(()) };
        for found in found {
            verdict = judgement.check(&found, &self.provider, self.audiences.as_ref());
            if verdict.is_err() {
                break;
            }
        }
        if let Err(Unmet::Fault(fault)) = &verdict
            && is_told
        {
            judgement.events.push(Event::Failed(&self.provider, *fault));
        }
        verdict
    }
}

impl<'p: 'r, 'r> Judgement<'p, 'r> {
    pub(super) fn new(
        request: &'r RequestHead,
        now: u64,
        answers: &'r Answers,
        stats: &'r JwtStats,
    ) -> Judgement<'p, 'r> {
        Judgement { request, now, answers, stats, events: Vec::new() }
    }

    /// What is to be done.
    pub(super) fn into_events(self) -> Vec<Event<'p>> {
        self.events
    }

    /// Tokens in these places, but for what this filter takes out of the request before.
    fn tokens(&self, places: &'p Places) -> Vec<Found<'p, 'r>> {
        places.tokens(self.request, |place| {
            self.events.iter().any(|event| match event {
                Event::Passed(provider, _, taken) => provider.takes(taken, place),
                Event::Asked(_) | Event::Failed(..) | Event::Told(_) => false,
            })
        })
    }

    /// Whether a token is good for the provider of its issuer. That becomes `known`; where the token does not tell of it, it
    /// stays the one of the token before, as in Envoy.
    fn check_of_any(
        &mut self,
        found: &Found<'p, 'r>,
        providers: &'p [Arc<Provider>],
        known: &mut Option<&'p Provider>,
    ) -> Result<(), Unmet> {
        let token = Token::parse(&found.text).map_err(Unmet::Fault)?;
        if !found.allows(&token.issuer) {
            return Err(Unmet::Fault(Fault::UnknownIssuer));
        }
        let of_issuer = |issuer: &str| providers.iter().find(|provider| *provider.issuer == *issuer);
        *known = of_issuer(&token.issuer).or_else(|| of_issuer("")).map(|provider| &**provider);
        let provider = known.ok_or(Unmet::Fault(Fault::UnknownIssuer))?;
        self.verify(provider, &token, None)?;
        self.events.push(Event::Passed(provider, Arc::new(token), found.place));
        Ok(())
    }

    /// Whether a token is good for a provider.
    fn check(
        &mut self,
        found: &Found<'p, 'r>,
        provider: &'p Provider,
        audiences: Option<&Audiences>,
    ) -> Result<(), Unmet> {
        let cached = provider.cached(&found.text);
        let known = cached.filter(|(token, keys)| {
            if token.check_time(self.now, 0) == Err(Fault::Expired) {
                provider.forget(&found.text);
                return false;
            }
            // Others may have taken the place of the keys that verified it.
            matches!(provider.keys(), Ready::Keys(current) if Arc::ptr_eq(&current, keys))
        });
        if self.answers.is_empty() {
            match known.is_some() && provider.tells_of_cache() {
                true => self.stats.jwt_cache_hit().inc(),
                false => self.stats.jwt_cache_miss().inc(),
            }
        }
        let token = match known {
            Some((token, _)) => {
                if !found.allows(&token.issuer) {
                    return Err(Unmet::Fault(Fault::UnknownIssuer));
                }
                provider.check_claims(&token, audiences, self.now).map_err(Unmet::Fault)?;
                token
            }
            None => {
                let token = Token::parse(&found.text).map_err(Unmet::Fault)?;
                if !found.allows(&token.issuer) {
                    return Err(Unmet::Fault(Fault::UnknownIssuer));
                }
                let keys = self.verify(provider, &token, audiences)?;
                let token = Arc::new(token);
                provider.keep(&found.text, &token, &keys);
                token
            }
        };
        self.events.push(Event::Passed(provider, token, found.place));
        Ok(())
    }

    /// The keys that the token is signed with.
    fn verify(
        &self,
        provider: &Provider,
        token: &Token,
        audiences: Option<&Audiences>,
    ) -> Result<Arc<KeySet>, Unmet> {
        provider.check_claims(token, audiences, self.now).map_err(Unmet::Fault)?;
        let keys = match provider.keys() {
            Ready::Keys(keys) => keys,
            Ready::Later(remote) => match self.answers.iter().find(|(of, _)| Arc::ptr_eq(of, &remote)) {
                Some((_, answer)) => answer.clone().map_err(Unmet::Fault)?,
                None => return Err(Unmet::Lacks(remote)),
            },
        };
        keys.verify(token).map_err(Unmet::Fault)?;
        Ok(keys)
    }
}

impl Provider {
    /// Whether a token that it has taken from one place is none any more in the other.
    fn takes(&self, taken: &Place, place: &Place) -> bool {
        let same = match (taken, place) {
            (Place::Header(one, _), Place::Header(other, _)) => one == other,
            (Place::Cookie(_), _) => false,
            (one, other) => one == other,
        };
        same && !self.forwards()
    }
}

/// Does what a judgement has come to; whether the route is to be chosen again.
pub(super) fn act(events: Vec<Event<'_>>, stream: &mut Stream) -> bool {
    let mut clears = false;
    for event in events {
        match event {
            Event::Asked(provider) => provider.owned.strip(&mut stream.request.headers),
            Event::Passed(provider, token, place) => clears |= provider.tell(&token, place, stream),
            Event::Failed(provider, fault) => provider.tell_fault(fault, stream),
            Event::Told(header) => stream.request.headers.set(header, b"false"),
        }
    }
    clears
}
