//! The filter's configuration, compiled.

use super::cookies::Cookies;
use super::{OAuth2, OAuth2Stats, REASON, STATUS};
use crate::envoy::credential_injector::secret;
use crate::envoy::http_service::HttpService;
use crate::envoy::token_endpoint::encoded;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, OwnedHeaders};
use sixfold_xds_api::pb::envoy::config::route::v3::HeaderMatcher;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::o_auth2_config::AuthType;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::o_auth2_credentials::TokenFormation;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::post_logout_redirect_uri::Config as PostLogout;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::{
    OAuth2Config, OAuth2Credentials, OAuth2TokenForwarding,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::PathMatcher;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::path_matcher::Rule;
use sixfold_xds_api::values::{bool_or, duration_or, enum_value, header_name, not_empty, required};
use sixfold_xds_api::{format, matcher, refuse};
use std::collections::BTreeMap;
use std::time::Duration;

/// How the client says who it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    Body,
    Basic,
    /// By its certificate.
    Tls,
}

/// Where users sign in: parameters are encoded already.
pub(super) struct Authorization {
    base: String,
    parameters: BTreeMap<String, String>,
    resources: String,
}

/// Where users go who have signed out.
pub(super) enum AfterLogout {
    Host,
    Nowhere,
    Uri(Format),
}

impl Authorization {
    fn new(
        endpoint: &str,
        client_id: &str,
        scopes: &[String],
        resources: &[String],
    ) -> Result<Self, ConfigError> {
        if !is_url(endpoint) {
            let reason = format!("\"{endpoint}\" is no URL of http or https");
            return Err(ConfigError::field("authorization_endpoint", reason));
        }
        let (base, query) = endpoint.split_once('?').unwrap_or((endpoint, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        };
        let mut parameters: BTreeMap<String, String> = pairs.map(pair).collect();
        let scopes = if scopes.is_empty() { "user".to_owned() } else { scopes.join(" ") };
        for (name, value) in [("client_id", client_id), ("response_type", "code"), ("scope", &scopes)] {
            parameters.insert(name.to_owned(), encoded(value));
        }
        let resources = resources.iter().map(|resource| format!("&resource={}", encoded(resource))).collect();
        Ok(Authorization { base: base.to_owned(), parameters, resources })
    }

    /// The URL with more parameters.
    pub(super) fn url(&self, more: &[(&str, String)]) -> String {
        let given = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut all: BTreeMap<&str, &str> = given.collect();
        all.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let pairs: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{}?{}{}", self.base, pairs.join("&"), self.resources)
    }
}

/// Whether it is an absolute URL of the web.
pub(super) fn is_url(text: &str) -> bool {
    host_of(text).is_some()
}

/// The host of an absolute URL, without its port and brackets.
pub(super) fn host_of(text: &str) -> Option<String> {
    let uri: http::Uri = text.parse().ok()?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    // What stands before an @ is taken for the host by one and for a user by another.
    let host = uri.authority().filter(|of| is_web && !of.as_str().contains('@'))?.host();
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn path(value: &Option<PathMatcher>, field: &str) -> Result<StringMatcher, ConfigError> {
    match &required(value, field)?.rule {
        Some(Rule::Path(text)) => matcher::string(text).in_key("path").in_key(field),
        None => Err(ConfigError::field("path", "is missing").in_key(field)),
    }
}

impl OAuth2 {
    /// # Errors
    /// What is wrong with its fields.
    pub(super) fn new(value: &OAuth2Config, context: &BuildContext) -> Result<OAuth2, ConfigError> {
        let OAuth2Config {
            token_endpoint,
            retry_policy,
            authorization_endpoint,
            end_session_endpoint,
            post_logout_redirect_uri,
            credentials,
            redirect_uri,
            redirect_path_matcher,
            signout_path,
            forward_bearer_token,
            forward_id_token,
            preserve_authorization_header,
            pass_through_matcher,
            auth_scopes,
            resources,
            auth_type,
            use_refresh_token,
            default_expires_in,
            deny_redirect_matcher,
            default_refresh_token_expires_in,
            disable_id_token_set_cookie,
            disable_access_token_set_cookie,
            disable_refresh_token_set_cookie,
            cookie_configs,
            stat_prefix,
            csrf_token_expires_in,
            code_verifier_token_expires_in,
            disable_token_encryption,
            allow_failed_matcher,
            original_request_uri,
            allowed_redirect_domains,
            use_access_token_expiry_for_id_token_cookie,
            private_key_jwt_config,
        } = value;
        refuse!(private_key_jwt_config);
        let auth = match enum_value(*auth_type, "auth_type")? {
            AuthType::UrlEncodedBody => Auth::Body,
            AuthType::BasicAuth => Auth::Basic,
            AuthType::TlsClientAuth => Auth::Tls,
            AuthType::PrivateKeyJwt => {
                return Err(ConfigError::field("auth_type", "PRIVATE_KEY_JWT is not supported"));
            }
        };
        let OAuth2Credentials { client_id, token_secret, cookie_names, cookie_domain, token_formation } =
            required(credentials, "credentials")?;
        let secrets = || -> Result<_, ConfigError> {
            not_empty(client_id, "client_id")?;
            let client =
                (auth != Auth::Tls).then(|| secret(token_secret, context, "token_secret")).transpose()?;
            let Some(TokenFormation::HmacSecret(hmac)) = token_formation else {
                return Err(ConfigError::field("hmac_secret", "is missing"));
            };
            Ok((client, secret(&Some(hmac.clone()), context, "hmac_secret")?))
        };
        let (client_secret, hmac) = secrets().in_key("credentials")?;
        if *forward_bearer_token && *preserve_authorization_header {
            let reason = "can't be given together with forward_bearer_token";
            return Err(ConfigError::field("preserve_authorization_header", reason));
        }
        let forward_id = forward_id_token.as_ref().map(id_header).transpose().in_key("forward_id_token")?;
        let is_authorization = |header: &HeaderName| header.known() == Some(Known::AUTHORIZATION);
        if let Some(header) = &forward_id {
            if is_authorization(header) && (*forward_bearer_token || *preserve_authorization_header) {
                let reason = "can't be authorization together with forward_bearer_token or \
                              preserve_authorization_header";
                return Err(ConfigError::field("header", reason).in_key("forward_id_token"));
            }
            // Who says by it who they are would pass.
            let matches_it = |of: &HeaderMatcher| of.name.eq_ignore_ascii_case(header.as_str());
            if let Some(index) = pass_through_matcher.iter().position(matches_it) {
                let reason = "can't be the header of forward_id_token";
                let error = ConfigError::field("name", reason).in_index(index);
                return Err(error.in_key("pass_through_matcher"));
            }
        }
        let owned = forward_id.iter().filter(|header| !is_authorization(header)).cloned();
        let owned = OwnedHeaders::new(
            [STATUS, REASON]
                .iter()
                .map(|name| header_name(name, "config"))
                .chain(owned.map(Ok))
                .collect::<Result<_, _>>()?,
        );
        if !end_session_endpoint.is_empty() && !auth_scopes.iter().any(|scope| scope == "openid") {
            return Err(ConfigError::field("end_session_endpoint", "needs openid among auth_scopes"));
        }
        let seconds = |value: &_, default, field| {
            duration_or(value, Duration::from_secs(default), field).map(|time| time.as_secs())
        };
        let format = |text: &str, field| format::text(text).in_key(field);
        let optional = |text: &str, field| (!text.is_empty()).then(|| format(text, field)).transpose();
        Ok(OAuth2 {
            service: HttpService::new(token_endpoint, retry_policy, context, "token_endpoint")?,
            authorization: Authorization::new(authorization_endpoint, client_id, auth_scopes, resources)?,
            end_session: Some(end_session_endpoint.clone()).filter(|endpoint| !endpoint.is_empty()),
            after_logout: match post_logout_redirect_uri.as_ref().and_then(|of| of.config.as_ref()) {
                Some(PostLogout::Disabled(true)) => AfterLogout::Nowhere,
                Some(PostLogout::Uri(uri)) => {
                    AfterLogout::Uri(format(uri, "uri").in_key("post_logout_redirect_uri")?)
                }
                Some(PostLogout::Disabled(false)) | None => AfterLogout::Host,
            },
            client_id: client_id.clone(),
            client_secret,
            hmac,
            auth,
            redirect_uri: format(not_empty(redirect_uri, "redirect_uri")?, "redirect_uri")?,
            callback: path(redirect_path_matcher, "redirect_path_matcher")?,
            signout: path(signout_path, "signout_path")?,
            forward_bearer: *forward_bearer_token,
            forward_id,
            owned,
            preserve_authorization: *preserve_authorization_header,
            pass_through: matcher::headers(pass_through_matcher, "pass_through_matcher")?,
            deny_redirect: matcher::headers(deny_redirect_matcher, "deny_redirect_matcher")?,
            allow_failed: matcher::headers(allow_failed_matcher, "allow_failed_matcher")?,
            refreshes: bool_or(use_refresh_token, true),
            default_expires_in: seconds(default_expires_in, 0, "default_expires_in")?,
            default_refresh_expires_in: seconds(
                default_refresh_token_expires_in,
                604_800,
                "default_refresh_token_expires_in",
            )?,
            keeps_id: !disable_id_token_set_cookie,
            keeps_access: !disable_access_token_set_cookie,
            keeps_refresh: !disable_refresh_token_set_cookie,
            id_expires_with_access: *use_access_token_expiry_for_id_token_cookie,
            encrypts: !disable_token_encryption,
            cookies: Cookies::new(cookie_names, cookie_configs, cookie_domain)?,
            domain: Some(cookie_domain.clone()).filter(|domain| !domain.is_empty()),
            nonce_expires_in: seconds(csrf_token_expires_in, 600, "csrf_token_expires_in")?,
            verifier_expires_in: seconds(
                code_verifier_token_expires_in,
                600,
                "code_verifier_token_expires_in",
            )?,
            original_uri: optional(original_request_uri, "original_request_uri")?,
            allowed_domains: allowed_redirect_domains.iter().map(|of| of.to_ascii_lowercase()).collect(),
            stats: OAuth2Stats::new(&context.metrics, &metrics::scope(&[&context.scope, stat_prefix])),
        })
    }

    /// Whether users may be sent to that URL.
    pub(super) fn is_allowed(&self, url: &str) -> bool {
        if self.allowed_domains.is_empty() {
            return true;
        }
        let Some(host) = host_of(url).map(|host| host.to_ascii_lowercase()) else { return false };
        self.allowed_domains.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => host.len() > suffix.len() && host.ends_with(suffix),
            _ => host == *allowed,
        })
    }
}

fn id_header(value: &OAuth2TokenForwarding) -> Result<HeaderName, ConfigError> {
    let OAuth2TokenForwarding { header } = value;
    match header_name(header, "header")? {
        name if name.known() == Some(Known::HOST) => Err(ConfigError::field("header", "can't be Host")),
        name => Ok(name),
    }
}
