//! Where tokens are looked for in a request (source/extensions/filters/http/jwt_authn/extractor.cc).

use crate::shared::query;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::matcher::cookie;
use sixfold_core::message::RequestHead;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{JwtHeader, JwtProvider};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A place in requests. The order is that in which Envoy looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Each line of a header, from the prefix on; a line without the prefix is no token.
    Header(HeaderName, Box<str>),
    Parameter(Box<str>),
    Cookie(Box<str>),
}

/// Whose tokens may stand in a place.
#[derive(Debug, Clone, Default)]
struct Issuers {
    any: bool,
    named: Vec<Box<str>>,
}

/// The places of one or more providers.
#[derive(Debug)]
pub(super) struct Places(Box<[(Place, Issuers)]>);

/// A token that was found.
pub(super) struct Found<'p, 'r> {
    pub(super) text: Cow<'r, [u8]>,
    pub(super) place: &'p Place,
    issuers: &'p Issuers,
}

impl Found<'_, '_> {
    /// Whether a provider of this issuer has its tokens there.
    pub(super) fn allows(&self, issuer: &str) -> bool {
        self.issuers.any || self.issuers.named.iter().any(|named| **named == *issuer)
    }
}

impl Places {
    /// The places of these providers; one that names none has `Authorization: Bearer` and `access_token`.
    ///
    /// # Errors
    /// A text that no header can have for a name.
    pub(super) fn of<'a>(
        providers: impl IntoIterator<Item = &'a JwtProvider>,
    ) -> Result<Places, ConfigError> {
        // In the order of Envoy's keys, which are name and prefix in one: two places may have the same.
        let mut headers: BTreeMap<(String, String), (Place, Issuers)> = BTreeMap::new();
        let mut parameters: BTreeMap<&str, Issuers> = BTreeMap::new();
        let mut cookies: BTreeMap<&str, Issuers> = BTreeMap::new();
        for provider in providers {
            let JwtProvider { issuer, from_headers, from_params, from_cookies, .. } = provider;
            let mut header = |name: HeaderName, prefix: &str| {
                let key = (format!("{}{prefix}", name.as_str()), prefix.to_owned());
                let place = || (Place::Header(name, prefix.into()), Issuers::default());
                headers.entry(key).or_insert_with(place).1.add(issuer);
            };
            for (index, JwtHeader { name, value_prefix }) in from_headers.iter().enumerate() {
                let name = HeaderName::new(name).map_err(|e| ConfigError::field("name", e.to_string()));
                header(name.in_index(index).in_key("from_headers")?, value_prefix);
            }
            from_params.iter().for_each(|name| parameters.entry(name).or_default().add(issuer));
            from_cookies.iter().for_each(|name| cookies.entry(name).or_default().add(issuer));
            if from_headers.is_empty() && from_params.is_empty() && from_cookies.is_empty() {
                header(Known::AUTHORIZATION.into(), "Bearer ");
                parameters.entry("access_token").or_default().add(issuer);
            }
        }
        let parameters = parameters.into_iter().map(|(name, of)| (Place::Parameter(name.into()), of));
        let cookies = cookies.into_iter().map(|(name, of)| (Place::Cookie(name.into()), of));
        Ok(Places(headers.into_values().chain(parameters).chain(cookies).collect()))
    }

    /// The tokens of a request, the last first, as Envoy looks at them; none where `gone` holds.
    pub(super) fn tokens<'p, 'r>(
        &'p self,
        request: &'r RequestHead,
        gone: impl Fn(&Place) -> bool,
    ) -> Vec<Found<'p, 'r>>
    where
        'p: 'r,
    {
        let mut found = Vec::new();
        for (place, issuers) in self.0.iter().filter(|(place, _)| !gone(place)) {
            let mut add = |text| found.push(Found { text, place, issuers });
            match place {
                Place::Header(name, prefix) => {
                    let lines = request.headers.get_all(name);
                    lines.filter_map(|line| behind(line, prefix)).for_each(|text| add(text.into()));
                }
                Place::Parameter(name) => {
                    if let Some(text) = query::parameter(request.target.query(), name.as_bytes()) {
                        add(text);
                    }
                }
                Place::Cookie(name) => {
                    if let Some(text) = cookie(&request.headers, name.as_bytes()) {
                        add(text.into());
                    }
                }
            }
        }
        found.reverse();
        found
    }
}

impl Issuers {
    fn add(&mut self, issuer: &str) {
        if issuer.is_empty() {
            self.any = true;
        } else if !self.named.iter().any(|named| **named == *issuer) {
            self.named.push(issuer.into());
        }
    }
}

/// What follows the prefix, wherever that stands in the line, from the first byte on that a token may begin with.
fn behind<'r>(line: &'r [u8], prefix: &str) -> Option<&'r [u8]> {
    if prefix.is_empty() {
        return Some(line);
    }
    let at = memchr::memmem::find(line, prefix.as_bytes())?;
    let rest = line.get(at + prefix.len()..).unwrap_or_default();
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let start = rest.iter().position(of_token);
    Some(start.and_then(|start| rest.get(start..)).unwrap_or(line))
}

impl Place {
    /// Takes the token out of the request; a cookie stays, as in Envoy.
    pub(super) fn clear(&self, request: &mut RequestHead) {
        match self {
            Place::Header(name, _) => {
                request.headers.remove(name);
            }
            Place::Parameter(name) => query::remove_parameter(&mut request.target, name.as_bytes()),
            Place::Cookie(_) => {}
        }
    }
}
