//! Tokens that this proxy gets for itself (RFC 6749 section 4.4).

use super::{secret, text_of};
use crate::envoy::http_service::HttpService;
use crate::envoy::shared_key;
use crate::envoy::token_endpoint::{Form, Tokens, basic, form_headers};
use arc_swap::ArcSwapOption;
use http::Method;
use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::Background;
use sixfold_core::headers::Known;
use sixfold_core::metrics;
use sixfold_core::plugin::BuildContext;
use sixfold_core::secret::SecretText;
use sixfold_xds_api::pb::envoy::extensions::http::injected_credentials::oauth2::v3::OAuth2;
use sixfold_xds_api::pb::envoy::extensions::http::injected_credentials::oauth2::v3::o_auth2::{
    AuthType, ClientCredentials as ProtoClient, EndpointParameter, FlowType,
};
use sixfold_xds_api::values::{duration_or, enum_value, not_empty};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// How long after a failure the server is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a request waits for the first answer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.credential_injector.oauth2.`.
    pub struct TokenStats {
        counters: [
            token_requested, token_fetched, token_fetch_failed_on_client_secret,
            token_fetch_failed_on_cluster_not_found, token_fetch_failed_on_stream_reset,
            token_fetch_failed_on_bad_response_code, token_fetch_failed_on_bad_token,
        ],
        gauges: [],
        histograms: [],
    }
}

/// The token of one client, fetched anew when half of its time is over, for as long as somebody has this and once it was
/// [started](ClientCredentials::start).
pub(super) struct ClientCredentials {
    service: HttpService,
    client_id: String,
    secret: Arc<SecretText>,
    basic: bool,
    /// Scopes and other parameters of the request.
    parameters: Vec<(String, String)>,
    again: Duration,
    bearer: ArcSwapOption<String>,
    /// Whether somebody sees to it that there is one.
    started: AtomicBool,
    background: Arc<dyn Background>,
    /// Whether the server was asked once: requests wait for that.
    asked: AtomicBool,
    changed: Notify,
    stats: TokenStats,
}

impl ClientCredentials {
    /// The token of this client, of which nobody is asked yet. All of one connection manager who say the same have the
    /// same, also after another configuration: each would ask the server for its own.
    ///
    /// # Errors
    /// What is wrong with its fields.
    pub(super) fn new(
        value: &OAuth2,
        context: &BuildContext,
        scope: &str,
    ) -> Result<Arc<ClientCredentials>, ConfigError> {
        let OAuth2 { token_endpoint, scopes, token_fetch_retry_interval, endpoint_params, flow_type } = value;
        let Some(FlowType::ClientCredentials(ProtoClient { client_id, client_secret, auth_type })) =
            flow_type
        else {
            return Err(ConfigError::field("client_credentials", "is missing"));
        };
        let credentials = || -> Result<_, ConfigError> {
            not_empty(client_id, "client_id")?;
            let auth_type: AuthType = enum_value(*auth_type, "auth_type")?;
            Ok((secret(client_secret, context, "client_secret")?, auth_type == AuthType::BasicAuth))
        };
        let (secret, basic) = credentials().in_key("client_credentials")?;
        let mut parameters = Vec::new();
        if !scopes.is_empty() {
            parameters.push(("scope".to_owned(), scopes.join(" ")));
        }
        let given = endpoint_params.iter();
        parameters.extend(given.map(|EndpointParameter { name, value }| (name.clone(), value.clone())));
        let client = ClientCredentials {
            service: HttpService::new(token_endpoint, &None, context, "token_endpoint")?,
            client_id: client_id.clone(),
            secret,
            basic,
            parameters,
            again: duration_or(token_fetch_retry_interval, AGAIN, "token_fetch_retry_interval")?
                .max(Duration::from_secs(1)),
            bearer: ArcSwapOption::empty(),
            started: AtomicBool::new(false),
            background: context.background.clone(),
            asked: AtomicBool::new(false),
            changed: Notify::new(),
            stats: TokenStats::new(&context.metrics, &metrics::scope(&[scope, "oauth2"])),
        };
        let key = shared_key("token of credential_injector", &value.encode_to_vec(), context);
        Ok(context.shared.get_or_insert(&key, || client))
    }

    /// Has the token fetched from now on. The server is told the client's secret, so not before the configuration that
    /// names both is in force.
    pub(super) fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::Relaxed) {
            self.background.spawn(Box::pin(keep_fresh(Arc::downgrade(self))));
        }
    }

    /// `Bearer` and the token, if there is one.
    pub(super) fn bearer(&self) -> Option<Arc<String>> {
        self.bearer.load_full()
    }

    /// Whether it is known if there is one.
    pub(super) fn is_decided(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Ends when it is, or after a while.
    pub(super) async fn decided(&self) {
        let changed = self.changed.notified();
        if !self.is_decided() {
            let _ = tokio::time::timeout(LONGEST_WAIT, changed).await;
        }
    }

    /// Asks for a token; how long it holds.
    async fn fetch(&self) -> Result<Duration, Failure> {
        let secret = text_of(&self.secret).ok_or(Failure::Secret)?;
        self.stats.token_requested().inc();
        let mut headers = form_headers();
        let mut form = Form::default().with("grant_type", "client_credentials");
        if self.basic {
            headers.set(Known::AUTHORIZATION, basic(&self.client_id, &secret).as_bytes());
        } else {
            form = form.with("client_id", &self.client_id).with("client_secret", &secret);
        }
        form = self.parameters.iter().fold(form, |form, (name, value)| form.with(name, value));
        let answer = self.service.ask(Method::POST, &headers, form.into_text().as_bytes()).await;
        let answer = answer.map_err(|_| match self.service.cluster.load() {
            Some(_) => Failure::Unreachable,
            None => Failure::Cluster,
        })?;
        if answer.status != 200 {
            return Err(Failure::Status);
        }
        let tokens = Tokens::parse(&answer.body).filter(|tokens| !tokens.access_token.is_empty());
        let tokens = tokens.ok_or(Failure::Token)?;
        let expires_in = tokens.expires_in.ok_or(Failure::Token)?;
        self.bearer.store(Some(Arc::new(format!("Bearer {}", tokens.access_token))));
        Ok(Duration::from_secs(expires_in))
    }

    fn count(&self, failure: Failure) {
        match failure {
            Failure::Secret => self.stats.token_fetch_failed_on_client_secret().inc(),
            Failure::Cluster => self.stats.token_fetch_failed_on_cluster_not_found().inc(),
            Failure::Unreachable => self.stats.token_fetch_failed_on_stream_reset().inc(),
            Failure::Status => self.stats.token_fetch_failed_on_bad_response_code().inc(),
            Failure::Token => self.stats.token_fetch_failed_on_bad_token().inc(),
        }
    }
}

/// Why there is no token.
#[derive(Debug, Clone, Copy)]
enum Failure {
    /// The secret of the client has not come.
    Secret,
    Cluster,
    Unreachable,
    Status,
    /// The answer has no token, or does not say how long it holds.
    Token,
}

/// Fetches the token and then another in its place, each when half of the time of the one before is over.
async fn keep_fresh(client: Weak<ClientCredentials>) {
    let at_start = client.upgrade().map(|held| (held.service.cluster.clone(), held.again));
    if let Some((cluster, again)) = at_start {
        let changed = cluster.changed();
        if cluster.load().is_none() {
            // At the start of the process: the cluster may come after the listener.
            let _ = tokio::time::timeout(again, changed).await;
        }
    }
    while let Some(held) = client.upgrade() {
        let wait = match held.fetch().await {
            Ok(expires_in) => {
                held.stats.token_fetched().inc();
                (expires_in / 2).max(Duration::from_secs(1))
            }
            Err(failure) => {
                held.count(failure);
                tracing::warn!(client = %held.client_id, ?failure, "no token for requests");
                held.again
            }
        };
        held.asked.store(true, Ordering::Release);
        held.changed.notify_waiters();
        drop(held);
        tokio::time::sleep(wait).await;
    }
}
