//! Keys of an issuer that are fetched from a server.

use super::JwtStats;
use crate::envoy::http_service::HttpService;
use crate::shared::joint::Joint;
use crate::shared::jwt::{Fault, KeySet};
use arc_swap::ArcSwapOption;
use http::Method;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::Background;
use sixfold_core::headers::Headers;
use sixfold_core::offload;
use sixfold_core::plugin::BuildContext;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{JwksAsyncFetch, RemoteJwks};
use sixfold_xds_api::values::{duration_or, optional_duration};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long keys hold unless the configuration says so.
const LIFETIME: Duration = Duration::from_secs(600);
/// So long before their end keys are fetched anew where that is done beside requests.
const EARLY: Duration = Duration::from_secs(5);
/// The least time between two fetches beside requests.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// Keys of one server, for the whole process.
pub(super) struct Remote {
    service: HttpService,
    lifetime: Duration,
    current: ArcSwapOption<Fetched>,
    /// All that wait are answered by one request to the server.
    fetching: Joint<Result<Arc<KeySet>, Fault>>,
    /// How long after a failure they are fetched again beside requests; `None` fetches them for requests alone.
    again: Option<Duration>,
    started: AtomicBool,
    background: Arc<dyn Background>,
    stats: JwtStats,
}

struct Fetched {
    keys: Arc<KeySet>,
    /// `None` where others see to it that there are newer ones.
    until: Option<Instant>,
}

impl Remote {
    /// Keys as a provider describes them.
    ///
    /// # Errors
    /// What is wrong with its fields.
    pub(super) fn new(
        value: &RemoteJwks,
        context: &BuildContext,
        stats: JwtStats,
    ) -> Result<Remote, ConfigError> {
        let RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = value;
        let again = match async_fetch {
            Some(JwksAsyncFetch {
                // Listeners do not wait for keys: requests do, until there are some.
                fast_listener: _,
                failed_refetch_duration,
            }) => {
                let again = optional_duration(failed_refetch_duration, "failed_refetch_duration");
                Some(again.in_key("async_fetch")?.unwrap_or(Duration::from_secs(1)).max(LEAST_WAIT))
            }
            None => None,
        };
        Ok(Remote {
            service: HttpService::new(http_uri, retry_policy, context, "http_uri")?,
            lifetime: duration_or(cache_duration, LIFETIME, "cache_duration")?,
            current: ArcSwapOption::empty(),
            fetching: Joint::default(),
            again,
            started: AtomicBool::new(false),
            background: context.background.clone(),
            stats,
        })
    }

    /// With `async_fetch` the keys are fetched from now on, for as long as somebody has them: when what names them is in
    /// force.
    pub(super) fn start(self: &Arc<Self>) {
        if let Some(again) = self.again
            && !self.started.swap(true, Ordering::Relaxed)
        {
            self.background.spawn(Box::pin(keep_fresh(Arc::downgrade(self), again)));
        }
    }

    /// The keys, as long as they hold.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        let current = self.current.load();
        let fetched = current.as_ref()?;
        let holds = fetched.until.is_none_or(|until| Instant::now() < until);
        holds.then(|| fetched.keys.clone())
    }

    /// The keys, fetched if they are not there. Requests that come meanwhile wait for the same answer, also when the first
    /// of them goes away.
    ///
    /// # Errors
    /// The server gives none.
    pub(super) async fn fetch(self: &Arc<Self>) -> Result<Arc<KeySet>, Fault> {
        let begin = || {
            let remote = self.clone();
            async move { remote.fetch_now(Some(remote.lifetime)).await }
        };
        let spawn = |work| self.background.spawn(work);
        let fetched = self.fetching.join(|| self.current().map(Ok), begin, spawn).await;
        fetched.unwrap_or(Err(Fault::FetchFailed))
    }

    async fn fetch_now(&self, lifetime: Option<Duration>) -> Result<Arc<KeySet>, Fault> {
        let fetched = self.ask().await;
        match fetched {
            Ok(keys) => {
                self.stats.jwks_fetch_success().inc();
                let keys = Arc::new(keys);
                let until = lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime));
                self.current.store(Some(Arc::new(Fetched { keys: keys.clone(), until })));
                Ok(keys)
            }
            Err(reason) => {
                self.stats.jwks_fetch_failed().inc();
                tracing::debug!(%reason, "keys of tokens could not be fetched");
                Err(Fault::FetchFailed)
            }
        }
    }

    async fn ask(&self) -> Result<KeySet, String> {
        let answer = self.service.ask(Method::GET, &Headers::new(), b"").await.map_err(|e| e.to_string())?;
        if answer.status != 200 {
            return Err(format!("the answer is {}", answer.status));
        }
        let lane = offload::Lane::of(answer.body.len());
        let parsed = offload::run(lane, move || KeySet::parse(&answer.body)).await;
        parsed.unwrap_or_else(|| Err("no thread to read them".to_owned()))
    }
}

/// Fetches keys a little before those that there are would end, or again where that fails.
async fn keep_fresh(remote: Weak<Remote>, again: Duration) {
    while let Some(held) = remote.upgrade() {
        let cluster = held.service.cluster.clone();
        let changed = cluster.changed();
        if cluster.load().is_none() {
            // At the start of the process: the cluster may come after the listener.
            drop(held);
            let _ = tokio::time::timeout(again, changed).await;
            continue;
        }
        let wait = match held.fetch_now(None).await {
            Ok(_) if held.lifetime > EARLY => held.lifetime - EARLY,
            Ok(_) => held.lifetime,
            Err(_) => again,
        };
        drop(held);
        tokio::time::sleep(wait.max(LEAST_WAIT)).await;
    }
}
