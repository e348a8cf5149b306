//! Envoy's basic_auth filter (source/extensions/filters/http/basic_auth): users with passwords (RFC 7617).

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::secret::PasswordHash;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, Known, is_clean};
use sixfold_core::message::RequestHead;
use sixfold_core::metrics;
use sixfold_core::plugin::{
    BuildContext, Built, FilterFactory, LocalReply, OwnedHeaders, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::DataSource;
use sixfold_xds_api::pb::envoy::config::core::v3::data_source::Specifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::basic_auth::v3::{
    BasicAuth as Config, BasicAuthPerRoute,
};
use sixfold_xds_api::values::{header_name, text_source};
use std::collections::BTreeMap;
use std::sync::Arc;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.basic_auth.`.
    pub struct BasicAuthStats { counters: [allowed, denied], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    let users =
        DataSource { specifier: Some(Specifier::InlineString("#".to_owned())), ..DataSource::default() };
    envoy::filter(build).standing_in(Config { users: Some(users), ..Config::default() }.encode_to_vec())
}

/// The most specific level's users take the place of the filter's.
fn build(config: Config, mut overrides: Vec<BasicAuthPerRoute>, context: &BuildContext) -> Built {
    let Config {
        users,
        forward_username_header,
        authentication_header,
        allow_missing,
        emit_dynamic_metadata,
    } = config;
    if allow_missing && !emit_dynamic_metadata {
        let reason = "needs emit_dynamic_metadata, so that others can tell who was authenticated";
        return Err(ConfigError::field("allow_missing", reason));
    }
    let named = |name: &str, field| (!name.is_empty()).then(|| header_name(name, field)).transpose();
    let of_filter = Users::new(&users).in_key("users")?;
    let users = match overrides.pop() {
        Some(BasicAuthPerRoute { users }) => Users::new(&users).in_key("users")?,
        None => of_filter,
    };
    let filter = BasicAuth {
        users,
        told: OwnedHeaders::new(
            named(&forward_username_header, "forward_username_header")?.into_iter().collect(),
        ),
        credentials: named(&authentication_header, "authentication_header")?
            .unwrap_or_else(|| Known::AUTHORIZATION.into()),
        allow_missing,
        metadata: emit_dynamic_metadata.then(|| context.filter.clone()),
        stats: BasicAuthStats::new(&context.metrics, &metrics::scope(&[&context.scope, "basic_auth"])),
    };
    Ok(Plugin::of(filter).access(BasicAuth::access).judging().build())
}

struct BasicAuth {
    users: Users,
    /// The header that tells the upstream who it is.
    told: OwnedHeaders,
    /// The header with the credentials.
    credentials: HeaderName,
    allow_missing: bool,
    /// The namespace of dynamic metadata that tells who it is.
    metadata: Option<Arc<str>>,
    stats: BasicAuthStats,
}

/// Users of a file of htpasswd by their names.
struct Users {
    hashes: BTreeMap<Vec<u8>, PasswordHash>,
    nobody: PasswordHash,
}

/// Why somebody is refused: the body, and details of the response.
struct Refusal(&'static str, &'static str);

const MISSING: Refusal =
    Refusal("User authentication failed. Missing username and password.", "no_credential_for_basic_auth");
const SCHEME: Refusal = Refusal(
    "User authentication failed. Expected 'Basic' authentication scheme.",
    "invalid_scheme_for_basic_auth",
);
const FORMAT: Refusal =
    Refusal("User authentication failed. Invalid basic credential format.", "invalid_format_for_basic_auth");
const WRONG: Refusal = Refusal(
    "User authentication failed. Invalid username/password combination.",
    "invalid_credential_for_basic_auth",
);

impl Users {
    fn new(source: &Option<DataSource>) -> Result<Users, ConfigError> {
        let text = text_source(source.as_ref().ok_or_else(|| ConfigError::new("is missing"))?)?;
        if text.is_empty() {
            return Err(ConfigError::new("must not be empty"));
        }
        let mut hashes = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| ConfigError::new(format!("line {number}: {reason}"));
            let (user, hash) =
                line.split_once(':').ok_or_else(|| wrong("is not of the form user:hash".to_owned()))?;
            if user.is_empty() || hash.is_empty() {
                return Err(wrong("user or hash is empty".to_owned()));
            }
            if !is_clean(user.as_bytes()) {
                return Err(wrong("the user's name can't be the value of a header".to_owned()));
            }
            let hash = PasswordHash::parse(hash).map_err(|reason| wrong(format!("\"{user}\": {reason}")))?;
            if hashes.insert(user.as_bytes().to_vec(), hash).is_some() {
                return Err(wrong(format!("\"{user}\" is there twice")));
            }
        }
        Ok(Users { hashes, nobody: PasswordHash::of_nobody() })
    }

    fn has(&self, user: &[u8], password: &[u8]) -> bool {
        self.hashes.get(user).unwrap_or(&self.nobody).is_of(password)
    }
}

impl BasicAuth {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let found = self.user(&stream.request);
        self.told.strip(&mut stream.request.headers);
        match found {
            Ok(user) => {
                if let Some(header) = self.told.names().first() {
                    stream.request.headers.set(header, &user);
                }
                if let Some(namespace) = &self.metadata {
                    let user = Value::from(String::from_utf8_lossy(&user).into_owned());
                    stream.metadata.push((namespace.clone(), "username".into(), user));
                }
                self.stats.allowed().inc();
                Step::Continue
            }
            Err(Refusal(_, details)) if self.allow_missing && [MISSING.1, SCHEME.1].contains(&details) => {
                Step::Continue
            }
            Err(refusal) => self.refuse(&refusal, &stream.request),
        }
    }

    /// Whom the request is from.
    fn user(&self, request: &RequestHead) -> Result<Vec<u8>, Refusal> {
        let credentials = request.headers.get(&self.credentials).ok_or(MISSING)?;
        let encoded = credentials.strip_prefix(b"Basic ").ok_or(SCHEME)?;
        let padding = encoded.iter().rev().take_while(|byte| **byte == b'=').count().min(2);
        let encoded = encoded.get(..encoded.len() - padding).unwrap_or_default();
        let decoded = STANDARD_NO_PAD.decode(encoded).map_err(|_| FORMAT)?;
        let colon = decoded.iter().position(|byte| *byte == b':').ok_or(FORMAT)?;
        let (user, password) = decoded.split_at(colon);
        let known = self.users.has(user, password.get(1..).unwrap_or_default());
        if known { Ok(user.to_vec()) } else { Err(WRONG) }
    }

    fn refuse(&self, Refusal(body, details): &Refusal, request: &RequestHead) -> Step<'_> {
        self.stats.denied().inc();
        let mut reply = LocalReply::new(401, *body, *details);
        let challenge = [b"Basic realm=\"", &*envoy::realm(request), b"\""].concat();
        reply.headers.set(Known::WWW_AUTHENTICATE, &challenge);
        Step::Respond(reply)
    }
}
