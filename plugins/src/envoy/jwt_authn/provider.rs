//! Issuers of tokens: whom they are for, how they are verified, and what the upstream is told of them.

use super::JwtStats;
use super::places::Place;
use super::remote::Remote;
use crate::envoy::shared_key;
use crate::shared::cache::Cache;
use crate::shared::jwt::{Fault, KeySet, Token};
use crate::shared::per_thread::PerThread;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, is_clean};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::{BuildContext, OwnedHeaders};
use sixfold_core::stream::Stream;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_claim_to_header::PathSegment;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::{
    JwksSourceSpecifier, NormalizePayload,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtCacheConfig, JwtClaimToHeader, JwtProvider,
};
use sixfold_xds_api::values::{data_source, optional_duration};
use std::sync::Arc;
use std::time::Duration;

/// Whose dynamic metadata it is.
const NAME: &str = "envoy.filters.http.jwt_authn";
/// Envoy's `kClockSkewInSecond`.
const SKEW_SECONDS: u64 = 60;
/// Entries and bytes of a token where `jwt_cache_config` leaves them out, or is missing.
const CACHED_TOKENS: usize = 100;
const CACHED_BYTES: usize = 4096;
/// The most entries that a worker keeps for a provider.
const MOST_CACHED_TOKENS: usize = 100_000;

pub(super) struct Provider {
    /// Empty for one that takes tokens of any issuer.
    pub(super) issuer: Box<str>,
    audiences: Audiences,
    subjects: Option<StringMatcher>,
    lifetime: Lifetime,
    keys: Keys,
    cache: TokenCache,
    skew: u64,
    /// The token goes on to the upstream.
    forward: bool,
    payload_header: Option<HeaderName>,
    pad_payload_header: bool,
    claims: Box<[(ClaimPath, HeaderName)]>,
    /// What the upstream is told by this filter, and so by nobody else.
    pub(super) owned: OwnedHeaders,
    /// [`NAME`], whose metadata it is.
    namespace: Arc<str>,
    payload_in_metadata: Option<Arc<str>>,
    header_in_metadata: Option<Arc<str>>,
    failure_in_metadata: Option<Arc<str>>,
    space_delimited: Box<[String]>,
    clear_route_cache: bool,
}

/// Where a claim lies: keys of objects within each other.
type ClaimPath = Box<[Box<str>]>;

/// What a token must say of its end.
enum Lifetime {
    Any,
    Some,
    AtMost(Duration),
}

enum Keys {
    Local(Arc<KeySet>),
    Remote(Arc<Remote>),
}

/// The keys of a provider at one moment.
pub(super) enum Ready {
    Keys(Arc<KeySet>),
    /// They have to be fetched.
    Later(Arc<Remote>),
}

/// A token and the keys by which it was verified.
pub(super) type Verified = (Arc<Token>, Arc<KeySet>);
/// Verified tokens by their texts.
type Tokens = Cache<Box<[u8]>, Verified>;

/// Tokens that were verified, with the keys of which they were: by others they are verified again. All else is judged of each request,
/// so that nobody sees of it but in the time of a signature; so there is one whether the configuration asks for it or not.
struct TokenCache {
    tokens: Arc<PerThread<Tokens>>,
    max_bytes: usize,
    /// The configuration asks for it, and statistics tell what it finds.
    is_told: bool,
}

/// Audiences of which a token must name one, without scheme and final slash; none asks for none.
#[derive(Debug, Default)]
pub(super) struct Audiences(Box<[Box<str>]>);

impl Audiences {
    pub(super) fn new(audiences: &[String]) -> Audiences {
        Audiences(audiences.iter().map(|audience| bare(audience).into()).collect())
    }

    fn allow(&self, named: &[Box<str>]) -> bool {
        let is_allowed = |name: &str| self.0.iter().any(|allowed| **allowed == *bare(name));
        self.0.is_empty() || named.iter().any(|name| is_allowed(name))
    }
}

/// An audience as Envoy compares it (`sanitizeAudience`).
fn bare(audience: &str) -> &str {
    let audience =
        audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    audience.strip_suffix('/').unwrap_or(audience)
}

fn given(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

impl Provider {
    /// # Errors
    /// What is wrong with its fields.
    pub(super) fn new(
        name: &str,
        value: &JwtProvider,
        context: &BuildContext,
        stats: &JwtStats,
    ) -> Result<Provider, ConfigError> {
        let JwtProvider {
            issuer,
            audiences,
            subjects,
            require_expiration,
            max_lifetime,
            forward,
            // Read by `Places`.
            from_headers: _,
            from_params: _,
            from_cookies: _,
            forward_payload_header,
            pad_forward_payload_header,
            payload_in_metadata,
            normalize_payload_in_metadata,
            header_in_metadata,
            failed_status_in_metadata,
            clock_skew_seconds,
            jwt_cache_config,
            claim_to_headers,
            clear_route_cache,
            jwks_source_specifier,
        } = value;
        let keys = Keys::new(name, jwks_source_specifier, context, stats)?;
        let payload_header = (!forward_payload_header.is_empty())
            .then(|| told_header(forward_payload_header, "forward_payload_header"))
            .transpose()?;
        let claims = claim_to_headers.iter().enumerate();
        let claims =
            claims.map(|(index, claim)| told_claim(claim).in_index(index).in_key("claim_to_headers"));
        let claims: Box<[(ClaimPath, HeaderName)]> = claims.collect::<Result<_, _>>()?;
        let owned = payload_header.iter().chain(claims.iter().map(|(_, header)| header)).cloned().collect();
        let cache = TokenCache::new(jwt_cache_config.as_ref(), value, context);
        let lifetime = match optional_duration(max_lifetime, "max_lifetime")? {
            Some(longest) => Lifetime::AtMost(longest),
            None if *require_expiration => Lifetime::Some,
            None => Lifetime::Any,
        };
        let space_delimited = match normalize_payload_in_metadata {
            Some(NormalizePayload { space_delimited_claims }) => space_delimited_claims.clone().into(),
            None => Box::default(),
        };
        Ok(Provider {
            issuer: issuer.as_str().into(),
            audiences: Audiences::new(audiences),
            subjects: subjects.as_ref().map(matcher::string).transpose().in_key("subjects")?,
            lifetime,
            keys,
            cache,
            skew: match *clock_skew_seconds {
                0 => SKEW_SECONDS,
                seconds => seconds.into(),
            },
            forward: *forward,
            payload_header,
            pad_payload_header: *pad_forward_payload_header,
            claims,
            owned: OwnedHeaders::new(owned),
            namespace: NAME.into(),
            payload_in_metadata: given(payload_in_metadata),
            header_in_metadata: given(header_in_metadata),
            failure_in_metadata: given(failed_status_in_metadata),
            space_delimited,
            clear_route_cache: *clear_route_cache,
        })
    }

    /// Has keys fetched that are to be there before the first request.
    pub(super) fn start(&self) {
        if let Keys::Remote(remote) = &self.keys {
            remote.start();
        }
    }

    /// Its keys now.
    pub(super) fn keys(&self) -> Ready {
        match &self.keys {
            Keys::Local(keys) => Ready::Keys(keys.clone()),
            Keys::Remote(remote) => match remote.current() {
                Some(keys) => Ready::Keys(keys),
                None => Ready::Later(remote.clone()),
            },
        }
    }

    /// A token that was verified with these keys, or others that are not known any more, of those in the cache.
    pub(super) fn cached(&self, text: &[u8]) -> Option<Verified> {
        self.cache.tokens.with(|tokens| tokens.get(text).cloned())?
    }

    /// Whether statistics are to tell what the cache finds; in those of other providers nothing is ever found, as in Envoy.
    pub(super) fn tells_of_cache(&self) -> bool {
        self.cache.is_told
    }

    /// Keeps a token that was verified.
    pub(super) fn keep(&self, text: &[u8], token: &Arc<Token>, keys: &Arc<KeySet>) {
        if text.len() <= self.cache.max_bytes {
            self.cache.tokens.with(|tokens| tokens.insert(text.into(), (token.clone(), keys.clone())));
        }
    }

    /// Forgets a token that has ended.
    pub(super) fn forget(&self, text: &[u8]) {
        self.cache.tokens.with(|tokens| tokens.remove(text));
    }

    /// Whether what the token says of itself fits the provider, at `now` in seconds since 1970; its signature is another
    /// matter.
    ///
    /// # Errors
    /// The first thing that does not.
    pub(super) fn check_claims(
        &self,
        token: &Token,
        audiences: Option<&Audiences>,
        now: u64,
    ) -> Result<(), Fault> {
        token.check_time(now, self.skew)?;
        if self.subjects.as_ref().is_some_and(|subjects| !subjects.matches(token.subject.as_bytes())) {
            return Err(Fault::NotVerified);
        }
        let lives = match (&self.lifetime, token.expires) {
            (Lifetime::Any, _) | (Lifetime::Some, Some(_)) => true,
            (Lifetime::AtMost(longest), Some(expires)) => expires < now.saturating_add(longest.as_secs()),
            (_, None) => false,
        };
        if !lives {
            return Err(Fault::NotVerified);
        }
        if !audiences.unwrap_or(&self.audiences).allow(&token.audiences) {
            return Err(Fault::AudienceNotAllowed);
        }
        Ok(())
    }

    /// Whether the upstream gets the token itself.
    pub(super) fn forwards(&self) -> bool {
        self.forward
    }

    /// Tells upstream and metadata of a token that is good; whether the route is to be chosen again.
    pub(super) fn tell(&self, token: &Token, place: &Place, stream: &mut Stream) -> bool {
        // Spaces may be line feeds, which no header has.
        if let Some(header) =
            self.payload_header.as_ref().filter(|_| is_clean(token.encoded_payload().as_bytes()))
        {
            let mut payload = token.encoded_payload().to_owned();
            while self.pad_payload_header && !payload.len().is_multiple_of(4) {
                payload.push('=');
            }
            stream.request.headers.append(header, payload.as_bytes());
        }
        let mut told = false;
        for (claim, header) in &self.claims {
            let text = token.claim(claim).and_then(claim_text).filter(|text| is_clean(text.as_bytes()));
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                stream.request.headers.append(header, text.as_bytes());
                told = true;
            }
        }
        if !self.forward {
            place.clear(&mut stream.request);
        }
        if let Some(key) = &self.header_in_metadata {
            self.note(stream, key, Value::Object(token.header.clone()));
        }
        if let Some(key) = &self.payload_in_metadata {
            self.note(stream, key, Value::Object(self.normalized(token)));
        }
        self.clear_route_cache && (told || self.payload_in_metadata.is_some())
    }

    /// Tells metadata why a token is not good.
    pub(super) fn tell_fault(&self, fault: Fault, stream: &mut Stream) {
        if let Some(key) = &self.failure_in_metadata {
            let status = serde_json::json!({"code": fault.code(), "message": fault.message()});
            self.note(stream, key, status);
        }
    }

    fn note(&self, stream: &mut Stream, key: &Arc<str>, value: Value) {
        stream.metadata.push((self.namespace.clone(), key.clone(), value));
    }

    fn normalized(&self, token: &Token) -> Map<String, Value> {
        let mut payload = token.payload.clone();
        for claim in &self.space_delimited {
            if let Some(value) = payload.get_mut(claim)
                && let Some(text) = value.as_str()
            {
                *value = text.split(' ').filter(|part| !part.is_empty()).map(Value::from).collect();
            }
        }
        payload
    }
}

/// A claim and the header that tells it.
fn told_claim(value: &JwtClaimToHeader) -> Result<(ClaimPath, HeaderName), ConfigError> {
    let JwtClaimToHeader { header_name, claim_name, claim_path } = value;
    let header = told_header(header_name, "header_name")?;
    let path: ClaimPath = match (claim_name.as_str(), claim_path.is_empty()) {
        ("", true) => return Err(ConfigError::field("claim_name", "is missing, as is claim_path")),
        ("", false) => claim_path.iter().map(|PathSegment { key }| key.as_str().into()).collect(),
        (name, true) => name.split('.').map(Box::from).collect(),
        (_, false) => {
            return Err(ConfigError::field("claim_path", "must not be given together with claim_name"));
        }
    };
    Ok((path, header))
}

/// A header that the upstream is told something by. What says how a message is framed or where it goes can't be one.
fn told_header(name: &str, field: &str) -> Result<HeaderName, ConfigError> {
    let not_told =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"];
    let header = HeaderName::new(name).map_err(|error| ConfigError::field(field, error.to_string()))?;
    if not_told.contains(&header.as_str()) {
        return Err(ConfigError::field(field, format!("\"{name}\" can't be set by a token")));
    }
    Ok(header)
}

/// 2^64, from which on Envoy writes whole numbers as floats too.
const TOO_LARGE: f64 = 18_446_744_073_709_551_616.0;

/// A claim as the value of a header (`addJWTClaimToHeader`): numbers as Envoy writes its floats, lists and objects as
/// JSON in base64.
fn claim_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some(value.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => {
            let float = number.as_f64().unwrap_or_default();
            let is_whole = float.fract() == 0.0 && (0.0..TOO_LARGE).contains(&float);
            Some(match number.as_u64() {
                Some(whole) if is_whole => whole.to_string(),
                None if is_whole => (float as u64).to_string(),
                _ => format!("{float:.6}"),
            })
        }
        Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(value.to_string())),
    }
}

impl Keys {
    fn new(
        name: &str,
        source: &Option<JwksSourceSpecifier>,
        context: &BuildContext,
        stats: &JwtStats,
    ) -> Result<Keys, ConfigError> {
        match source {
            Some(JwksSourceSpecifier::LocalJwks(source)) => {
                let keys = data_source(source).and_then(|text| Keys::local(name, &text, context));
                keys.map(Keys::Local).in_key("local_jwks")
            }
            Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
                let made = Remote::new(remote, context, stats.clone()).in_key("remote_jwks")?;
                // What was fetched outlives the configuration, as long as that goes on to name it.
                let key = shared_key("remote keys of jwt_authn", &remote.encode_to_vec(), context);
                Ok(Keys::Remote(context.shared.get_or_insert(&key, || made)))
            }
            None => Err(ConfigError::new("one of remote_jwks and local_jwks is missing")),
        }
    }

    /// Keys of the configuration, of which one at least must be of use, as Envoy wants it. A text of nothing is a set of
    /// none to Envoy.
    fn local(name: &str, text: &[u8], context: &BuildContext) -> Result<Arc<KeySet>, ConfigError> {
        if text.is_empty() {
            tracing::warn!("the provider \"{name}\" has no keys: no token is good");
            return Ok(Arc::default());
        }
        let parsed = KeySet::parse(text).map_err(ConfigError::new)?;
        for reason in &parsed.unusable {
            tracing::warn!("keys of the provider \"{name}\": {reason}");
        }
        let key = shared_key("local keys of jwt_authn", text, context);
        Ok(context.shared.get_or_insert(&key, || parsed))
    }
}

impl TokenCache {
    fn new(config: Option<&JwtCacheConfig>, provider: &JwtProvider, context: &BuildContext) -> TokenCache {
        let is_told = config.is_some();
        let JwtCacheConfig { jwt_cache_size, jwt_max_token_size } = config.copied().unwrap_or_default();
        let or = |given: u32, default: usize| if given == 0 { default } else { given as usize };
        let size = or(jwt_cache_size, CACHED_TOKENS).min(MOST_CACHED_TOKENS);
        let key = shared_key("tokens of jwt_authn", &provider.encode_to_vec(), context);
        let tokens = context.shared.get_or_insert(&key, || PerThread::new(move || Cache::new(size)));
        TokenCache { tokens, max_bytes: or(jwt_max_token_size, CACHED_BYTES), is_told }
    }
}
