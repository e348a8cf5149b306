//! Envoy's oauth2 filter (source/extensions/filters/http/oauth2): users sign in at an authorisation server (RFC 6749 section
//! 4.1, with PKCE of RFC 7636), and cookies with a signature say that they have.

mod config;
mod cookies;
mod crypto;
mod session;
#[cfg(test)]
mod tests;

use crate::envoy;
use crate::envoy::http_service::HttpService;
use crate::envoy::token_endpoint::encoded;
use crate::shared::{json, jwt, query};
use config::{AfterLogout, Auth, Authorization, is_url};
use cookies::{Cookies, Jar};
use crypto::{Secret, challenge, random};
use serde_json::{Value, json};
use session::Exchange;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers, Known, is_clean};
use sixfold_core::matcher::{HeaderMatcher, StringMatcher};
use sixfold_core::message::Scheme;
use sixfold_core::plugin::{
    BuildContext, Built, FilterFactory, LocalReply, OwnedHeaders, Plugin, Slot, Step,
};
use sixfold_core::secret::SecretText;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::oauth2::v3::{OAuth2 as Config, OAuth2PerRoute};
use sixfold_xds_api::values::required;
use std::sync::Arc;

/// Headers that tell the upstream of a request that goes on although its user is not signed in.
const STATUS: &str = "x-envoy-oauth-status";
const REASON: &str = "x-envoy-oauth-failure-reason";
const FAILED: &str = "OAuth flow failed.";
/// The length of a cookie that browsers keep, and so of what is encrypted for one.
const MAX_TOKEN: usize = 16 * 1024;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.` and the configuration's `stat_prefix`.
    pub struct OAuth2Stats {
        counters: [
            oauth_unauthorized_rq, oauth_failure, oauth_passthrough, oauth_allow_failed_passthrough, oauth_success,
            oauth_refreshtoken_success, oauth_refreshtoken_failure,
        ],
        gauges: [],
        histograms: [],
        zeros: [
            Counter "oauth_legacy_cbc_decrypt", Counter "oauth_token_cookie_chunked",
            Counter "oauth_token_cookie_malformed_chunks", Counter "oauth_token_cookie_oversized",
            Counter "oauth_token_cookie_reassembled",
        ],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific configuration holds whole; without any the filter does nothing.
fn build(config: Config, mut overrides: Vec<OAuth2PerRoute>, context: &BuildContext) -> Built {
    let Config { config } = config;
    let config = match overrides.pop() {
        Some(OAuth2PerRoute { config }) => Some(required(&config, "config")?.clone()),
        None => config,
    };
    let Some(config) = config else { return Ok(Plugin::default()) };
    let filter = OAuth2::new(&config, context).in_key("config")?;
    Ok::<_, ConfigError>(
        Plugin::of(filter).access(OAuth2::access).judging().header_filter(OAuth2::header_filter).build(),
    )
}

struct OAuth2 {
    service: HttpService,
    authorization: Authorization,
    end_session: Option<String>,
    after_logout: AfterLogout,
    client_id: String,
    client_secret: Option<Arc<SecretText>>,
    hmac: Arc<SecretText>,
    auth: Auth,
    redirect_uri: Format,
    callback: StringMatcher,
    signout: StringMatcher,
    forward_bearer: bool,
    forward_id: Option<HeaderName>,
    /// What the upstream is told of users, and so by nobody else.
    owned: OwnedHeaders,
    preserve_authorization: bool,
    pass_through: Vec<HeaderMatcher>,
    deny_redirect: Vec<HeaderMatcher>,
    allow_failed: Vec<HeaderMatcher>,
    refreshes: bool,
    /// Seconds; 0 is none.
    default_expires_in: u64,
    default_refresh_expires_in: u64,
    keeps_id: bool,
    keeps_access: bool,
    keeps_refresh: bool,
    id_expires_with_access: bool,
    encrypts: bool,
    cookies: Cookies,
    domain: Option<String>,
    nonce_expires_in: u64,
    verifier_expires_in: u64,
    original_uri: Option<Format>,
    allowed_domains: Vec<String>,
    stats: OAuth2Stats,
}

/// A sign-in that the authorisation server sends a user back from.
struct Callback {
    /// Where the user wanted to go.
    url: String,
    code: String,
    flow: String,
}

/// Why a callback is refused, and whose cookies are of no use any more.
struct Refused {
    details: &'static str,
    flow: String,
}

/// The cookies of a request whose tokens were refreshed, until its response is there to set them.
struct Refreshed(Headers);

impl Refused {
    fn new(details: &'static str) -> Refused {
        Refused { details, flow: String::new() }
    }
}

fn text_of(format: &Format, stream: &Stream) -> String {
    let mut out = Vec::new();
    format.write_value(stream, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn any(matchers: &[HeaderMatcher], stream: &Stream) -> bool {
    matchers.iter().any(|matcher| matcher.matches(&stream.request))
}

impl OAuth2 {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        self.owned.strip(&mut stream.request.headers);
        if any(&self.pass_through, stream) {
            self.stats.oauth_passthrough().inc();
            return Step::Continue;
        }
        let secrets = (self.hmac.load(), self.client_secret.as_ref().map(|secret| secret.load()));
        let (Some(hmac), None | Some(Some(_))) = secrets else {
            self.stats.oauth_failure().inc();
            return Step::Respond(LocalReply::new(
                503,
                "Service Unavailable",
                "OAuth2_secrets_are_not_ready",
            ));
        };
        let secret = Secret(&hmac);
        let mut jar = self.decrypted(&stream.request.headers, &secret);
        if !self.preserve_authorization {
            stream.request.headers.remove(Known::AUTHORIZATION);
        }
        if self.signout.matches(stream.request.target.path()) {
            return Step::Respond(self.sign_out(&jar, stream));
        }
        let is_callback = self.callback.matches(stream.request.target.path());
        if self.is_signed_in(&jar, &secret, &stream.request.authority) {
            self.stats.oauth_success().inc();
            if is_callback {
                return Step::Respond(self.back_again(&jar, &secret, stream));
            }
            self.tell_upstream(&mut jar, &mut stream.request.headers);
            return Step::Continue;
        }
        if is_callback {
            return match self.callback(&jar, &secret, stream) {
                Ok((callback, verifier)) => {
                    let redirect_uri = text_of(&self.redirect_uri, stream);
                    Step::Wait(Box::pin(self.exchange(callback, verifier, redirect_uri, stream)))
                }
                Err(refused) => Step::Respond(self.refuse(refused.details, &refused.flow)),
            };
        }
        let refresh = String::from_utf8_lossy(jar.get(self.cookies.refresh.name.as_bytes())).into_owned();
        if self.refreshes && !refresh.is_empty() {
            return Step::Wait(Box::pin(self.refresh(refresh, jar, stream, slot)));
        }
        self.without_user(stream, "Unauthorized")
    }

    /// The cookies with tokens as they were before they were encrypted; those that were not stay.
    fn decrypted(&self, headers: &Headers, secret: &Secret<'_>) -> Jar {
        let mut jar = Jar::of(headers);
        if self.encrypts {
            for cookie in [&self.cookies.bearer, &self.cookies.id, &self.cookies.refresh] {
                let name = cookie.name.as_bytes();
                let plain = secret.decrypt(jar.get(name)).filter(|plain| is_clean(plain.as_bytes()));
                if let Some(plain) = plain {
                    jar.set(name, plain.as_bytes());
                }
            }
        }
        jar
    }

    /// What cookies are signed for.
    fn domain<'a>(&'a self, host: &'a [u8]) -> &'a [u8] {
        self.domain.as_ref().map_or(host, |domain| domain.as_bytes())
    }

    fn signed(&self, host: &[u8], values: [&[u8]; 4]) -> Vec<u8> {
        let [expires, access, id, refresh] = values;
        [self.domain(host), expires, access, id, refresh].join(&b'\n')
    }

    fn is_signed_in(&self, jar: &Jar, secret: &Secret<'_>, host: &[u8]) -> bool {
        let of = |cookie: &cookies::Cookie| jar.get(cookie.name.as_bytes());
        let Cookies { expires, bearer, id, refresh, hmac, .. } = &self.cookies;
        let ends = std::str::from_utf8(of(expires)).ok().and_then(|text| text.parse::<u64>().ok());
        ends.is_some_and(|ends| ends > session::now())
            && secret.has_signed(&self.signed(host, [of(expires), of(bearer), of(id), of(refresh)]), of(hmac))
    }

    /// Lets the upstream know what it may of a user who is signed in.
    fn tell_upstream(&self, jar: &mut Jar, headers: &mut Headers) {
        let token = |cookie: &cookies::Cookie| jar.get(cookie.name.as_bytes()).to_vec();
        let (bearer, id) = (token(&self.cookies.bearer), token(&self.cookies.id));
        if self.forward_bearer && !bearer.is_empty() {
            headers.set(Known::AUTHORIZATION, &[b"Bearer ", bearer.as_slice()].concat());
        }
        if let Some(header) = self.forward_id.as_ref().filter(|_| !id.is_empty()) {
            let is_authorization = header.known() == Some(Known::AUTHORIZATION);
            let prefix: &[u8] = if is_authorization { b"Bearer " } else { b"" };
            headers.set(header, &[prefix, &id].concat());
        }
        jar.retain(|name| !self.cookies.are_of_filter(name));
        jar.write(headers);
    }

    /// What becomes of a request whose user is not signed in.
    fn without_user<'s>(&self, stream: &mut Stream, reason: &'static str) -> Step<'s> {
        if any(&self.allow_failed, stream) {
            self.stats.oauth_allow_failed_passthrough().inc();
            let mut left = Jar::of(&stream.request.headers);
            let tokens = [&self.cookies.bearer, &self.cookies.id];
            left.retain(|name| {
                !self.cookies.are_of_filter(name)
                    && tokens.iter().all(|cookie| cookie.name.as_bytes() != name)
            });
            let headers = &mut stream.request.headers;
            left.write(headers);
            headers.set(STATUS, b"failed");
            headers.set(REASON, reason.as_bytes());
            return Step::Continue;
        }
        if any(&self.deny_redirect, stream) {
            return Step::Respond(self.refuse("redirecting_to_OAuth_server_is_not_allowed", ""));
        }
        Step::Respond(self.send_to_sign_in(stream))
    }

    fn send_to_sign_in(&self, stream: &Stream) -> LocalReply {
        let Some(hmac) = self.hmac.load() else { return self.refuse("OAuth2_secrets_are_not_ready", "") };
        let secret = Secret(&hmac);
        let base = match &self.original_uri {
            Some(format) => text_of(format, stream),
            None => {
                let scheme = if stream.request.scheme == Scheme::Https { "https" } else { "http" };
                format!("{scheme}://{}", String::from_utf8_lossy(&stream.request.authority))
            }
        };
        let redirect_uri = text_of(&self.redirect_uri, stream);
        if !self.is_allowed(&base) || !self.is_allowed(&redirect_uri) {
            return self.refuse("failed_domain_allow-list_validation", "");
        }
        let (Some(flow), Some(verifier)) = (random::<8>(), random::<32>()) else {
            return self.refuse("no_random_numbers", "");
        };
        let flow = format!("{:016x}", u64::from_be_bytes(flow));
        let verifier = jwt::to_base64url(verifier);
        let Some(sealed) = secret.encrypt(&verifier) else { return self.refuse("no_encryption", "") };
        let token = format!("{flow}.{}", secret.sign(flow.as_bytes()));
        let url = format!("{base}{}", String::from_utf8_lossy(stream.request.target.full()));
        let state = json!({"url": url, "csrf_token": token, "flow_id": flow}).to_string();
        let mut reply = redirect("oauth.missing_credentials");
        let (cookies, headers) = (&self.cookies, &mut reply.headers);
        for (cookie, value, seconds) in [
            (&cookies.nonce, &token, self.nonce_expires_in),
            (&cookies.verifier, &sealed, self.verifier_expires_in),
        ] {
            for name in [cookie.of_flow(&flow), cookie.name.clone()] {
                cookies.set(cookie, &name, value, seconds, headers);
            }
        }
        let location = self.authorization.url(&[
            ("state", jwt::to_base64url(state)),
            ("redirect_uri", encoded(&redirect_uri)),
            ("code_challenge", challenge(&verifier)),
            ("code_challenge_method", "S256".to_owned()),
        ]);
        headers.set(Known::LOCATION, location.as_bytes());
        self.stats.oauth_unauthorized_rq().inc();
        reply
    }

    /// Looks at a request that should come from the authorisation server.
    fn checked_callback(&self, jar: &Jar, secret: &Secret<'_>, stream: &Stream) -> Result<Callback, Refused> {
        let of = |name: &str| {
            let value = query::parameter(stream.request.target.query(), name.as_bytes())?;
            Some(String::from_utf8_lossy(&value).into_owned())
        };
        let state = of("state").map(|state| self.state(&state, jar, secret));
        if of("error").is_some() {
            let flow = state.and_then(|state| state.map_or_else(|of| Some(of.flow), |of| Some(of.flow)));
            let details = "OAuth_server_returned_an_error";
            return Err(Refused { details, flow: flow.unwrap_or_default() });
        }
        let (Some(code), Some(state)) = (of("code"), state) else {
            return Err(Refused::new("Code_or_state_query_param_does_not_exist"));
        };
        Ok(Callback { code, ..state? })
    }

    /// What the state of a callback says, which must be that of a flow that began in the same browser.
    fn state(&self, state: &str, jar: &Jar, secret: &Secret<'_>) -> Result<Callback, Refused> {
        let state = jwt::from_base64url(state).and_then(|state| json::object(&state));
        let state = state.ok_or(Refused::new("State_query_param_is_not_a_valid_JSON"))?;
        let of = |name: &str| state.get(name).and_then(Value::as_str);
        let (Some(url), Some(token)) = (of("url"), of("csrf_token")) else {
            return Err(Refused::new("State_query_param_does_not_contain_url_or_CSRF_token"));
        };
        let flow = of("flow_id").unwrap_or_default().to_owned();
        let nonce = &self.cookies.nonce;
        let kept = match jar.get(nonce.of_flow(&flow).as_bytes()) {
            b"" => jar.get(nonce.name.as_bytes()),
            kept => kept,
        };
        let is_ours = crate::shared::secret::same(kept, token.as_bytes())
            && token.split_once('.').is_some_and(|(of, by)| secret.has_signed(of.as_bytes(), by.as_bytes()));
        // It becomes a part of the names of cookies.
        if !is_ours || !flow.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Refused::new("CSRF_token_validation_failed"));
        }
        if !is_url(url) {
            return Err(Refused { details: "State_url_can_not_be_initialized", flow });
        }
        if !self.is_allowed(url) {
            return Err(Refused { details: "State_url_host_is_not_in_the_allowed_redirect_domains", flow });
        }
        Ok(Callback { url: url.to_owned(), code: String::new(), flow })
    }

    /// A callback and the verifier of its flow.
    fn callback(
        &self,
        jar: &Jar,
        secret: &Secret<'_>,
        stream: &Stream,
    ) -> Result<(Callback, String), Refused> {
        let callback = self.checked_callback(jar, secret, stream)?;
        let cookie = &self.cookies.verifier;
        let sealed = match jar.get(cookie.of_flow(&callback.flow).as_bytes()) {
            b"" => jar.get(cookie.name.as_bytes()),
            sealed => sealed,
        };
        let refused = |details| Refused { details, flow: callback.flow.clone() };
        if sealed.is_empty() {
            return Err(refused("Code_verifier_cookie_is_missing_in_the_request"));
        }
        let verifier = secret.decrypt(sealed).ok_or_else(|| refused("Failed_to_decrypt_code_verifier"))?;
        Ok((callback, verifier))
    }

    /// A callback of somebody who is signed in already: there is nothing to be exchanged.
    fn back_again(&self, jar: &Jar, secret: &Secret<'_>, stream: &Stream) -> LocalReply {
        let Callback { url, flow, .. } = match self.checked_callback(jar, secret, stream) {
            Ok(callback) => callback,
            Err(refused) => return self.refuse(refused.details, &refused.flow),
        };
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        let path = format!("/{}", path.split(['?', '#']).next().unwrap_or_default());
        if self.callback.matches(path.as_bytes()) {
            return self.refuse("State_url_query_params_matches_the_redirect_path_matcher", &flow);
        }
        let mut reply = redirect("oauth.race_redirect");
        self.cookies.delete_flow(&flow, &mut reply.headers);
        reply.headers.set(Known::LOCATION, url.as_bytes());
        reply
    }

    /// Exchanges the code of a callback for tokens, and sends the user where they wanted to go.
    async fn exchange<'s>(
        &self,
        callback: Callback,
        verifier: String,
        redirect_uri: String,
        stream: &mut Stream,
    ) -> Step<'s> {
        let Callback { url, code, flow } = callback;
        let exchange = Exchange::Code { code: &code, redirect_uri: &redirect_uri, verifier: &verifier };
        let session = match self.ask(&exchange).await {
            Ok(tokens) => self.session(tokens, &stream.request.authority),
            Err(failure) => return Step::Respond(self.refuse(failure.details(), &flow)),
        };
        let Some(session) = session else { return Step::Respond(self.refuse("no_signature", &flow)) };
        let mut reply = redirect("oauth.logged_in");
        let jar = Jar::of(&stream.request.headers);
        self.set_cookies(&session, &jar, &mut reply.headers);
        self.cookies.delete_flow(&flow, &mut reply.headers);
        reply.headers.set(Known::LOCATION, url.as_bytes());
        self.stats.oauth_success().inc();
        Step::Respond(reply)
    }

    /// Gets new tokens by the refresh token of a user whose others have ended.
    async fn refresh<'s>(&self, refresh: String, mut jar: Jar, stream: &mut Stream, slot: Slot) -> Step<'s> {
        let tokens = match self.ask(&Exchange::Refresh { token: &refresh }).await {
            Ok(tokens) => tokens,
            Err(failure) if failure.is_of_answer() => {
                return Step::Respond(self.refuse(failure.details(), ""));
            }
            Err(_) => {
                self.stats.oauth_refreshtoken_failure().inc();
                return self.without_user(stream, "Failed to refresh the access token");
            }
        };
        let Some(mut session) = self.session(tokens, &stream.request.authority) else {
            return Step::Respond(self.refuse("no_signature", ""));
        };
        if session.refresh.is_empty() && self.keeps_refresh {
            // The server goes on to take the old one.
            session.refresh = refresh;
            session.sign(self, &stream.request.authority);
        }
        let mut to_client = Headers::new();
        self.set_cookies(&session, &jar, &mut to_client);
        // Nobody has signed what the client sent with its refresh token.
        for (cookie, token) in [(&self.cookies.bearer, &session.access), (&self.cookies.id, &session.id)] {
            let name = cookie.name.as_bytes();
            jar.retain(|of| of != name);
            if !token.is_empty() {
                jar.set(name, token.as_bytes());
            }
        }
        self.tell_upstream(&mut jar, &mut stream.request.headers);
        self.stats.oauth_refreshtoken_success().inc();
        self.stats.oauth_success().inc();
        stream.set_state(slot, Refreshed(to_client));
        Step::Continue
    }

    /// The response to a request whose tokens were refreshed sets the new ones.
    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(refreshed) = stream.take_state::<Refreshed>(slot) {
            let Refreshed(cookies) = *refreshed;
            cookies.get_all(Known::SET_COOKIE).for_each(|line| {
                stream.response.headers.append(Known::SET_COOKIE, line);
            });
        }
        Step::Continue
    }

    fn sign_out(&self, jar: &Jar, stream: &Stream) -> LocalReply {
        let mut reply = redirect("oauth.sign_out");
        let Cookies { hmac, bearer, id, refresh, expires, nonce, verifier, .. } = &self.cookies;
        for cookie in [hmac, bearer, id, refresh, expires] {
            self.cookies.delete(cookie, &cookie.name, &mut reply.headers);
        }
        for name in jar.names() {
            let of_flow = [nonce, verifier].into_iter().find(|cookie| cookie.is_named(name));
            if let (Some(cookie), Ok(name)) = (of_flow, std::str::from_utf8(name)) {
                self.cookies.delete(cookie, name, &mut reply.headers);
            }
        }
        let scheme = if stream.request.scheme == Scheme::Https { "https" } else { "http" };
        let host = format!("{scheme}://{}/", String::from_utf8_lossy(&stream.request.authority));
        let location = match &self.end_session {
            None => host,
            Some(endpoint) => {
                let token = encoded(&String::from_utf8_lossy(jar.get(id.name.as_bytes())));
                let hint = format!("{endpoint}?id_token_hint={token}&client_id={}", encoded(&self.client_id));
                match &self.after_logout {
                    AfterLogout::Nowhere => hint,
                    AfterLogout::Host => format!("{hint}&post_logout_redirect_uri={}", encoded(&host)),
                    AfterLogout::Uri(format) => {
                        format!("{hint}&post_logout_redirect_uri={}", encoded(&text_of(format, stream)))
                    }
                }
            }
        };
        reply.headers.set(Known::LOCATION, location.as_bytes());
        reply
    }

    fn refuse(&self, details: &'static str, flow: &str) -> LocalReply {
        self.stats.oauth_failure().inc();
        let mut reply = LocalReply::new(401, FAILED, details);
        if !flow.is_empty() {
            self.cookies.delete_flow(flow, &mut reply.headers);
        }
        reply
    }
}

/// A redirect that the filter encodes by itself.
fn redirect(details: &'static str) -> LocalReply {
    LocalReply { as_it_is: true, ..LocalReply::new(302, "", details) }
}
