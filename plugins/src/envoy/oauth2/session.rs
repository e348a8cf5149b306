//! Tokens: how they are got, and what of them is kept in cookies.

use super::config::Auth;
use super::cookies::{Cookie, Cookies, Jar};
use super::crypto::Secret;
use super::{MAX_TOKEN, OAuth2};
use crate::envoy::credential_injector::text_of;
use crate::envoy::token_endpoint::{Form, Tokens, basic, form_headers};
use crate::shared::jwt::Token;
use http::Method;
use sixfold_core::headers::{Headers, Known};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What is exchanged for tokens.
pub(super) enum Exchange<'a> {
    Code { code: &'a str, redirect_uri: &'a str, verifier: &'a str },
    Refresh { token: &'a str },
}

/// Why there are no tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Unreachable,
    Status,
    Unreadable,
    NoToken,
    NoExpiry,
}

impl Failure {
    pub(super) fn details(self) -> &'static str {
        match self {
            Failure::Unreachable => "Failed_to_get_access_token_due_to_HTTP_request_failure",
            Failure::Status => "Failed_to_get_access_token",
            Failure::Unreadable => "Failed_to_parse_oauth_response_body",
            Failure::NoToken => "No_access_token_found_in_the_token_exchange_response",
            Failure::NoExpiry => {
                "No_default_or_explicit_access_token_expiration_found_in_the_token_exchange_response"
            }
        }
    }

    /// Whether the server has answered well, and something else than it should.
    pub(super) fn is_of_answer(self) -> bool {
        !matches!(self, Failure::Unreachable | Failure::Status)
    }
}

/// What cookies keep of a user who is signed in.
pub(super) struct Session {
    pub(super) access: String,
    pub(super) id: String,
    pub(super) refresh: String,
    /// Seconds.
    expires_in: u64,
    id_expires_in: u64,
    refresh_expires_in: u64,
    /// Seconds since 1970.
    expires: String,
    signature: String,
}

impl Session {
    /// Signs it anew; without a secret nobody takes it.
    pub(super) fn sign(&mut self, filter: &OAuth2, host: &[u8]) {
        let values = [&self.expires, &self.access, &self.id, &self.refresh].map(|value| value.as_bytes());
        let secret = filter.hmac.load();
        let sign = |secret: &[u8]| Secret(secret).sign(&filter.signed(host, values));
        self.signature = secret.map(|secret| sign(&secret)).unwrap_or_default();
    }
}

impl OAuth2 {
    /// Asks for tokens (RFC 6749 sections 4.1.3 and 6).
    pub(super) async fn ask(&self, exchange: &Exchange<'_>) -> Result<Tokens, Failure> {
        let secret = self.client_secret.as_ref().and_then(|secret| text_of(secret)).unwrap_or_default();
        let mut form = match exchange {
            Exchange::Code { code, .. } => {
                Form::default().with("grant_type", "authorization_code").with("code", code)
            }
            Exchange::Refresh { token } => {
                Form::default().with("grant_type", "refresh_token").with("refresh_token", token)
            }
        };
        let mut headers = form_headers();
        match self.auth {
            Auth::Body => {
                form = form.with("client_id", &self.client_id).with("client_secret", &secret);
            }
            Auth::Basic => headers.set(Known::AUTHORIZATION, basic(&self.client_id, &secret).as_bytes()),
            Auth::Tls => form = form.with("client_id", &self.client_id),
        }
        if let Exchange::Code { redirect_uri, verifier, .. } = exchange {
            form = form.with("redirect_uri", redirect_uri).with("code_verifier", verifier);
        }
        let answer = self.service.ask(Method::POST, &headers, form.into_text().as_bytes()).await;
        let answer = answer.map_err(|_| Failure::Unreachable)?;
        if answer.status != 200 {
            return Err(Failure::Status);
        }
        let mut tokens = Tokens::parse(&answer.body).ok_or(Failure::Unreadable)?;
        let longest = [&tokens.access_token, &tokens.id_token, &tokens.refresh_token];
        if longest.iter().any(|token| token.len() > MAX_TOKEN) {
            return Err(Failure::Unreadable);
        }
        if tokens.access_token.is_empty() {
            return Err(Failure::NoToken);
        }
        let expires_in = tokens.expires_in.unwrap_or(self.default_expires_in);
        if expires_in == 0 {
            return Err(Failure::NoExpiry);
        }
        tokens.expires_in = Some(expires_in);
        Ok(tokens)
    }

    /// What of them is kept.
    pub(super) fn session(&self, tokens: Tokens, host: &[u8]) -> Option<Session> {
        self.hmac.load()?;
        let expires_in = tokens.expires_in.unwrap_or_default();
        let keep = |token: String, keeps: bool| if keeps { token } else { String::new() };
        let left = |token: &str| {
            let expires = Token::parse(token.as_bytes()).ok()?.expires?;
            Some(expires.saturating_sub(now()))
        };
        let id_expires_in = match self.id_expires_with_access {
            true => expires_in,
            false => left(&tokens.id_token).unwrap_or(expires_in),
        };
        let refresh_expires_in = match self.refreshes {
            true => left(&tokens.refresh_token).unwrap_or(self.default_refresh_expires_in),
            false => expires_in,
        };
        let mut session = Session {
            id_expires_in,
            refresh_expires_in,
            access: keep(tokens.access_token, self.keeps_access),
            id: keep(tokens.id_token, self.keeps_id),
            refresh: keep(tokens.refresh_token, self.refreshes && self.keeps_refresh),
            expires_in,
            expires: now().saturating_add(expires_in).to_string(),
            signature: String::new(),
        };
        session.sign(self, host);
        Some(session)
    }

    /// Sets the cookies of a session, and has those forgotten that it has no value for.
    pub(super) fn set_cookies(&self, session: &Session, jar: &Jar, headers: &mut Headers) {
        let Cookies { hmac, expires, bearer, id, refresh, .. } = &self.cookies;
        self.cookies.set(hmac, &hmac.name, &session.signature, session.expires_in, headers);
        self.cookies.set(expires, &expires.name, &session.expires, session.expires_in, headers);
        for (cookie, token, seconds) in [
            (bearer, &session.access, session.expires_in),
            (id, &session.id, session.id_expires_in),
            (refresh, &session.refresh, session.refresh_expires_in),
        ] {
            self.set_token(cookie, token, seconds, jar, headers);
        }
    }

    fn set_token(&self, cookie: &Cookie, token: &str, seconds: u64, jar: &Jar, headers: &mut Headers) {
        let secret = self.hmac.load();
        let sealed = match (token, &secret) {
            ("", _) | (_, None) => None,
            (token, _) if !self.encrypts => Some(token.to_owned()),
            (token, Some(secret)) => Secret(secret).encrypt(token),
        };
        match sealed {
            Some(sealed) => self.cookies.set(cookie, &cookie.name, &sealed, seconds, headers),
            None if !jar.get(cookie.name.as_bytes()).is_empty() => {
                self.cookies.delete(cookie, &cookie.name, headers);
            }
            None => {}
        }
    }
}
