//! Where the endpoint of a session is kept: by the client, in a cookie or a header.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::hash::set_cookie;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::matcher::cookie;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use sixfold_xds_api::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use sixfold_xds_api::pb::envoy::r#type::http::v3::{Cookie as ProtoCookie, CookieAttribute};
use sixfold_xds_api::values::{header_name, not_empty, optional_duration, required};
use sixfold_xds_api::{any, refuse};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A place of a session's endpoint.
pub(super) enum State {
    Cookie(CookieState),
    Header(HeaderName),
}

pub(super) struct CookieState {
    name: String,
    ttl: Duration,
    path: String,
    attributes: Box<[(Box<str>, Box<str>)]>,
}

/// What the cookie holds, encoded (source/extensions/http/stateful_session/cookie/cookie.proto).
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds; here since 1970, so that it outlives a restart.
    #[prost(uint64, tag = "2")]
    expires: u64,
}

impl State {
    /// From an extension.
    ///
    /// # Errors
    /// A kind of state that there is not, names that can't be.
    pub(super) fn new(value: &TypedExtensionConfig) -> Result<State, ConfigError> {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        match kind.as_str() {
            "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState" => {
                let CookieBasedSessionState { cookie } = any::unpack(config).in_key("typed_config")?;
                let cookie =
                    required(&cookie, "cookie").and_then(|cookie| CookieState::new(cookie).in_key("cookie"));
                cookie.map(State::Cookie).in_key("typed_config")
            }
            "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState" => {
                let HeaderBasedSessionState { name } = any::unpack(config).in_key("typed_config")?;
                header_name(&name, "name").map(State::Header).in_key("typed_config")
            }
            other => Err(refuse::extension("session state", name, other)),
        }
    }

    /// Whether the request may have a session: a cookie's path must be the request's.
    pub(super) fn is_for(&self, stream: &Stream) -> bool {
        match self {
            State::Cookie(cookie) => cookie.is_for(stream.request.target.path()),
            State::Header(_) => true,
        }
    }

    /// The endpoint of the request's session, if it has one; what says nothing that is an endpoint is a session nowhere.
    pub(super) fn read(&self, stream: &Stream) -> Option<Option<SocketAddr>> {
        let headers = &stream.request.headers;
        let (state, value) = match self {
            State::Header(name) => (None, headers.get(name)),
            State::Cookie(state) => (Some(state), cookie(headers, state.name.as_bytes())),
        };
        let content = STANDARD.decode(value.filter(|value| !value.is_empty())?).unwrap_or_default();
        let content = content.as_slice();
        // The older form of a cookie is the address alone.
        match (state, Content::decode(content)) {
            (Some(state), Ok(Content { address, expires })) if !content.is_empty() => {
                let is_over = !state.ttl.is_zero() && expires < now();
                (!address.is_empty() && !is_over).then(|| address.parse().ok())
            }
            _ => Some(std::str::from_utf8(content).ok().and_then(|text| text.parse().ok())),
        }
    }

    /// Tells the client where its session is.
    pub(super) fn write(&self, address: SocketAddr, stream: &mut Stream) {
        let headers = &mut stream.response.headers;
        match self {
            State::Cookie(CookieState { name, ttl, path, attributes }) => {
                let expires = if ttl.is_zero() { 0 } else { now() + ttl.as_secs() };
                let content = Content { address: address.to_string(), expires };
                let value = STANDARD.encode(content.encode_to_vec());
                headers.append(Known::SET_COOKIE, &set_cookie(name, &value, *ttl, path, attributes));
            }
            State::Header(name) => headers.set(name, STANDARD.encode(address.to_string()).as_bytes()),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl CookieState {
    fn new(cookie: &ProtoCookie) -> Result<CookieState, ConfigError> {
        let ProtoCookie { name, ttl, path, attributes } = cookie;
        let attribute =
            |CookieAttribute { name, value }: &CookieAttribute| (name.as_str().into(), value.as_str().into());
        Ok(CookieState {
            name: not_empty(name, "name")?.to_owned(),
            ttl: optional_duration(ttl, "ttl")?.unwrap_or_default(),
            path: path.clone(),
            attributes: attributes.iter().map(attribute).collect(),
        })
    }

    /// RFC 6265, section 5.1.4; no path and `/` are all paths.
    fn is_for(&self, path: &[u8]) -> bool {
        match path.strip_prefix(self.path.as_bytes()) {
            _ if self.path.is_empty() || self.path == "/" => true,
            Some(rest) => rest.is_empty() || rest.starts_with(b"/") || self.path.ends_with('/'),
            None => false,
        }
    }
}
