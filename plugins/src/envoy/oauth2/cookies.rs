//! Cookies of requests, and those that a sign-in sets.

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{Headers, Known};
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::cookie_config::SameSite;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::o_auth2_credentials::CookieNames;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::{CookieConfig, CookieConfigs};
use sixfold_xds_api::values::enum_value;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The cookies of a request in their order, each name once.
#[derive(Default)]
pub(super) struct Jar(Vec<(Vec<u8>, Vec<u8>)>);

impl Jar {
    pub(super) fn of(headers: &Headers) -> Jar {
        // Whoever sends them has shown nothing yet: each is found without a look at all the others.
        let (mut jar, mut at) = (Jar::default(), HashMap::new());
        for pair in headers.get_all(Known::COOKIE).flat_map(|line| line.split(|byte| *byte == b';')) {
            let mut halves = pair.trim_ascii().splitn(2, |byte| *byte == b'=');
            let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
            let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            let value = bare.unwrap_or(value).to_vec();
            match at.entry(name) {
                Entry::Vacant(free) => {
                    free.insert(jar.0.len());
                    jar.0.push((name.to_vec(), value));
                }
                Entry::Occupied(taken) => {
                    let old = jar.0.get_mut(*taken.get()).filter(|(_, old)| old.is_empty());
                    if let Some((_, old)) = old {
                        *old = value;
                    }
                }
            }
        }
        jar
    }

    /// A cookie's value; empty if there is none.
    pub(super) fn get(&self, name: &[u8]) -> &[u8] {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_slice()).unwrap_or_default()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(name, _)| name.as_slice())
    }

    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(of, _)| of == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.0.retain(|(name, _)| keep(name));
    }

    /// Puts them in the place of the request's.
    pub(super) fn write(&self, headers: &mut Headers) {
        headers.remove(Known::COOKIE);
        let pairs: Vec<Vec<u8>> =
            self.0.iter().map(|(name, value)| [name.as_slice(), value].join(&b'=')).collect();
        if !pairs.is_empty() {
            headers.append(Known::COOKIE, &pairs.join(&b"; "[..]));
        }
    }
}

/// One of the cookies that a sign-in sets.
pub(super) struct Cookie {
    pub(super) name: String,
    path: String,
    same_site: &'static str,
    partitioned: bool,
}

/// All of them.
pub(super) struct Cookies {
    pub(super) bearer: Cookie,
    pub(super) hmac: Cookie,
    pub(super) expires: Cookie,
    pub(super) id: Cookie,
    pub(super) refresh: Cookie,
    pub(super) nonce: Cookie,
    pub(super) verifier: Cookie,
    /// `;domain=...`, if they have one.
    domain: String,
}

impl Cookie {
    fn new(
        name: &str,
        default: &str,
        config: &Option<CookieConfig>,
        field: &str,
    ) -> Result<Cookie, ConfigError> {
        let CookieConfig { same_site, path, partitioned } = config.clone().unwrap_or_default();
        let same_site = match enum_value(same_site, "same_site").in_key(field).in_key("cookie_configs")? {
            SameSite::Disabled => "",
            SameSite::Strict => ";SameSite=Strict",
            SameSite::Lax => ";SameSite=Lax",
            SameSite::None => ";SameSite=None",
        };
        let or = |given: &str, default: &str| if given.is_empty() { default } else { given }.to_owned();
        Ok(Cookie { name: or(name, default), path: or(&path, "/"), same_site, partitioned })
    }

    /// Its name in one flow.
    pub(super) fn of_flow(&self, flow: &str) -> String {
        format!("{}.{flow}", self.name)
    }

    /// Whether that is its name, in any flow or without one.
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        let rest = name.strip_prefix(self.name.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
    }
}

impl Cookies {
    pub(super) fn new(
        names: &Option<CookieNames>,
        configs: &Option<CookieConfigs>,
        domain: &str,
    ) -> Result<Cookies, ConfigError> {
        let CookieNames {
            bearer_token,
            oauth_hmac,
            oauth_expires,
            id_token,
            refresh_token,
            oauth_nonce,
            code_verifier,
        } = names.clone().unwrap_or_default();
        let CookieConfigs {
            bearer_token_cookie_config: bearer,
            oauth_hmac_cookie_config: hmac,
            oauth_expires_cookie_config: expires,
            id_token_cookie_config: id,
            refresh_token_cookie_config: refresh,
            oauth_nonce_cookie_config: nonce,
            code_verifier_cookie_config: verifier,
        } = configs.clone().unwrap_or_default();
        Ok(Cookies {
            bearer: Cookie::new(&bearer_token, "BearerToken", &bearer, "bearer_token_cookie_config")?,
            hmac: Cookie::new(&oauth_hmac, "OauthHMAC", &hmac, "oauth_hmac_cookie_config")?,
            expires: Cookie::new(&oauth_expires, "OauthExpires", &expires, "oauth_expires_cookie_config")?,
            id: Cookie::new(&id_token, "IdToken", &id, "id_token_cookie_config")?,
            refresh: Cookie::new(&refresh_token, "RefreshToken", &refresh, "refresh_token_cookie_config")?,
            nonce: Cookie::new(&oauth_nonce, "OauthNonce", &nonce, "oauth_nonce_cookie_config")?,
            verifier: Cookie::new(&code_verifier, "CodeVerifier", &verifier, "code_verifier_cookie_config")?,
            domain: if domain.is_empty() { String::new() } else { format!(";domain={domain}") },
        })
    }

    /// Sets a cookie by a name of its own, for so many seconds.
    pub(super) fn set(&self, cookie: &Cookie, name: &str, value: &str, seconds: u64, headers: &mut Headers) {
        let Cookie { path, same_site, partitioned, .. } = cookie;
        let partitioned = if *partitioned { ";Partitioned" } else { "" };
        let domain = &self.domain;
        let line = format!(
            "{name}={value}{domain};path={path};Max-Age={seconds};secure;HttpOnly{same_site}{partitioned}"
        );
        headers.append(Known::SET_COOKIE, line.as_bytes());
    }

    /// Has a cookie forgotten.
    pub(super) fn delete(&self, cookie: &Cookie, name: &str, headers: &mut Headers) {
        let secure =
            if name.starts_with("__Secure-") || name.starts_with("__Host-") { "; Secure" } else { "" };
        let (path, domain) = (&cookie.path, &self.domain);
        let line =
            format!("{name}=deleted; path={path}; expires=Thu, 01 Jan 1970 00:00:00 GMT{domain}{secure}");
        headers.append(Known::SET_COOKIE, line.as_bytes());
    }

    /// Has those of one flow forgotten.
    pub(super) fn delete_flow(&self, flow: &str, headers: &mut Headers) {
        for cookie in [&self.nonce, &self.verifier] {
            if !flow.is_empty() {
                self.delete(cookie, &cookie.of_flow(flow), headers);
            }
            self.delete(cookie, &cookie.name, headers);
        }
    }

    /// Whether the upstream is not to see it: what only this filter has a use for.
    pub(super) fn are_of_filter(&self, name: &[u8]) -> bool {
        [&self.hmac, &self.expires, &self.refresh].iter().any(|cookie| cookie.name.as_bytes() == name)
            || self.nonce.is_named(name)
            || self.verifier.is_named(name)
    }
}
