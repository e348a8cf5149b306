//! APISIX's jwt-auth: consumers by a token that they have signed (RFC 7519).

#[cfg(test)]
mod tests;

use super::authentication::{self, Authentication};
use crate::shared::jwt::{Algorithm, OneKey, Parts};
use crate::shared::query::{self, Argument};
use crate::shared::{base64, cookies, header_names};
use serde::Deserialize;
use serde_json::{Map, Value};
use sixfold_core::error::ConfigError;
use sixfold_core::headers::HeaderName;
use sixfold_core::matcher::raw_cookie;
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Credential, Identity, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "jwt-auth";

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new(NAME, 2510, include_str!("../../schemas/jwt-auth.json"), JwtAuth::build).auth(
        include_str!("../../schemas/jwt-auth-consumer.json"),
        "key",
        credential,
    )
}

/// `exp` is for a page that APISIX no longer has.
#[derive(Deserialize)]
struct OfConsumer {
    key: String,
    secret: Option<String>,
    public_key: Option<String>,
    algorithm: String,
    base64_secret: bool,
    lifetime_grace_period: u32,
}

/// What tokens of a consumer are held against.
struct Signer {
    /// `None` where nothing can be verified.
    key: Option<OneKey>,
    /// Seconds by which clocks may differ.
    leeway: f64,
}

fn credential(said: OfConsumer) -> Result<Credential, ConfigError> {
    let algorithm = Algorithm::named(&said.algorithm)
        .ok_or_else(|| ConfigError::field("algorithm", "is none that is known"))?;
    let mut unusable = None;
    let key = if algorithm.is_of_secrets() {
        let secret = said.secret.ok_or_else(|| {
            ConfigError::new("property \"secret\" is required when using HS based algorithms")
        })?;
        let secret = match said.base64_secret {
            true => base64::decode(&secret).ok_or_else(|| {
                let reason = "base64_secret required but the secret is not in base64 format";
                ConfigError::field("secret", reason)
            })?,
            false => secret.into_bytes(),
        };
        if secret.is_empty() {
            return Err(ConfigError::field("secret", "is empty, so that everybody knows it"));
        }
        Some(OneKey::of_secret(algorithm, &secret))
    } else {
        let pem = said.public_key.ok_or_else(|| ConfigError::new("missing valid public key"))?;
        let read = OneKey::of_pem(algorithm, &pem);
        read.map_err(|reason| unusable = Some(ConfigError::field("public_key", reason))).ok()
    };
    let leeway = f64::from(said.lifetime_grace_period);
    Ok(Credential::new(said.key.into_bytes(), Signer { key, leeway }).unusable(unusable))
}

#[derive(Deserialize)]
struct Config {
    header: String,
    query: String,
    cookie: String,
    hide_credentials: bool,
    key_claim_name: String,
    realm: String,
    anonymous_consumer: Option<String>,
    #[serde(default)]
    claims_to_verify: Vec<Claim>,
}

/// A claim about time.
#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Claim {
    Exp,
    Nbf,
}

impl Claim {
    fn name(self) -> &'static str {
        match self {
            Claim::Exp => "exp",
            Claim::Nbf => "nbf",
        }
    }

    /// Whether it lets the token hold at `now`, in seconds since 1970; `None` if it is not there.
    fn holds(self, payload: &Map<String, Value>, now: f64, leeway: f64) -> Option<bool> {
        let value = payload.get(self.name())?;
        Some(value.as_f64().is_some_and(|at| match self {
            Claim::Exp => at > now - leeway,
            Claim::Nbf => at < now + leeway,
        }))
    }
}

struct JwtAuth {
    header: HeaderName,
    query: Box<str>,
    cookie: Box<str>,
    hide_credentials: bool,
    key_claim: Box<str>,
    /// Those that must be there; none if both are looked at when they are.
    required: Box<[Claim]>,
    authentication: Authentication,
}

/// Where a token stands.
#[derive(Clone, Copy)]
enum Source {
    Header,
    Query,
    Cookie,
}

const INVALID: &str = "JWT token invalid";
const NOT_VERIFIED: &str = "failed to verify jwt";

/// A token as a client shows it, or why that is none.
type Shown<'r> = Result<std::borrow::Cow<'r, [u8]>, &'static str>;

impl JwtAuth {
    fn build(config: Config, context: &BuildContext) -> Built {
        let authentication =
            Authentication::new(NAME, ("Bearer", &config.realm), config.anonymous_consumer, context);
        let plugin = JwtAuth {
            header: header_names::one(&config.header, "header")?,
            query: config.query.into(),
            cookie: config.cookie.into(),
            hide_credentials: config.hide_credentials,
            key_claim: config.key_claim_name.into(),
            required: config.claims_to_verify.into(),
            authentication,
        };
        Ok(Plugin::of(plugin).rewrite(JwtAuth::rewrite).owns(authentication::owned()).build())
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let (judged, source) = match self.token(&stream.request) {
            Some((token, source)) => (token.and_then(|token| self.judge(&token)), Some(source)),
            None => (Err("Missing JWT token in request"), None),
        };
        if let Some(source) = source.filter(|_| self.hide_credentials) {
            self.hide(&mut stream.request, source);
        }
        match judged {
            Ok(identity) => Authentication::accept(stream, &identity),
            Err(message) => self.authentication.refuse(stream, message),
        }
    }

    /// The token and where it stands: the header goes before the query, and both before the cookie.
    fn token<'r>(&self, request: &'r RequestHead) -> Option<(Shown<'r>, Source)> {
        if let Some(value) = request.headers.get(&self.header) {
            let token = value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"bearer "));
            return Some((Ok(token.unwrap_or(value).into()), Source::Header));
        }
        match query::argument(request.target.query(), self.query.as_bytes()) {
            Argument::Text(token) => return Some((Ok(token), Source::Query)),
            Argument::NoText => return Some((Err(INVALID), Source::Query)),
            Argument::Absent => {}
        }
        let token = raw_cookie(&request.headers, self.cookie.as_bytes())?;
        Some((Ok(token.into()), Source::Cookie))
    }

    fn hide(&self, request: &mut RequestHead, source: Source) {
        match source {
            Source::Header => {
                request.headers.remove(&self.header);
            }
            Source::Query => query::remove_argument(&mut request.target, self.query.as_bytes()),
            Source::Cookie => cookies::clear(&mut request.headers, "Cookie", self.cookie.as_bytes()),
        }
    }

    /// Whose token it is, if it is one and holds now.
    fn judge(&self, token: &[u8]) -> Result<Arc<Identity>, &'static str> {
        let parts = Parts::of(token).map_err(|_| INVALID)?;
        let header = parts.header().map_err(|_| INVALID)?;
        let payload = parts.payload().map_err(|_| INVALID)?;
        let key = match payload.get(&*self.key_claim) {
            None | Some(Value::Null | Value::Bool(false)) => return Err("missing user key in JWT token"),
            Some(key) => key.as_str(),
        };
        let identity = key.and_then(|key| self.authentication.find(key.as_bytes()));
        let identity = identity.ok_or("Invalid user key in JWT token")?;
        let signer: &Signer = identity.proof().ok_or(NOT_VERIFIED)?;
        let verifier = signer.key.as_ref().ok_or(NOT_VERIFIED)?;
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::named);
        if algorithm != Some(verifier.algorithm()) {
            return Err(NOT_VERIFIED);
        }
        let signature = parts.signature().map_err(|_| NOT_VERIFIED)?;
        if !verifier.verifies(parts.signed(), &signature) || !self.holds_now(&payload, signer.leeway) {
            return Err(NOT_VERIFIED);
        }
        Ok(identity)
    }

    fn holds_now(&self, payload: &Map<String, Value>, leeway: f64) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs() as f64);
        if self.required.is_empty() {
            return [Claim::Exp, Claim::Nbf]
                .iter()
                .all(|claim| claim.holds(payload, now, leeway) != Some(false));
        }
        self.required.iter().all(|claim| claim.holds(payload, now, leeway) == Some(true))
    }
}
