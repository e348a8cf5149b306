//! Services that filters ask by `http_uri`: key servers and token endpoints.

use http::Method;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutRequest, CalloutResponse, OwnHeaders,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{BackoffStrategy, HttpUri, RetryPolicy};
use sixfold_xds_api::refuse;
use sixfold_xds_api::target::HttpTarget;
use sixfold_xds_api::values::{self, required, u32_or};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 1 << 20;
/// How long an answer is waited for where the configuration sets no bound.
const LONGEST: Duration = Duration::from_secs(60);

/// A service, and how often it is asked again (config/core/v3 HttpUri, RetryPolicy).
pub(crate) struct HttpService {
    callout: Arc<dyn Callout>,
    uri: String,
    pub(crate) cluster: Arc<ClusterCell>,
    timeout: Duration,
    own: OwnHeaders,
    retry: Option<Retry>,
}

/// Again after an answer of 5xx and after none.
struct Retry {
    times: u32,
    base: Duration,
    max: Duration,
}

impl HttpService {
    /// The service of a field of this name.
    ///
    /// # Errors
    /// What is wrong with its fields.
    pub(crate) fn new(
        uri: &Option<HttpUri>,
        retry: &Option<RetryPolicy>,
        context: &BuildContext,
        field: &str,
    ) -> Result<HttpService, ConfigError> {
        let value = required(uri, field)?;
        let service = HttpService::of_uri(value, context).in_key(field)?;
        let retry = retry.as_ref().map(Retry::new).transpose().in_key("retry_policy")?;
        Ok(HttpService { retry, ..service })
    }

    fn of_uri(value: &HttpUri, context: &BuildContext) -> Result<HttpService, ConfigError> {
        let target = HttpTarget::of(value, None)?;
        Ok(HttpService {
            callout: context.callout.clone(),
            uri: target.whole_uri()?,
            cluster: context.clusters.cell(target.cluster),
            timeout: target.timeout.unwrap_or(LONGEST),
            own: OwnHeaders::new(context.local_address).within(target.timeout),
            retry: None,
        })
    }

    /// The answer to a request, whatever its status.
    ///
    /// # Errors
    /// There is none, or only one that is too long.
    pub(crate) async fn ask(
        &self,
        method: Method,
        headers: &Headers,
        body: &[u8],
    ) -> Result<CalloutResponse, CalloutError> {
        let mut asked = 0;
        loop {
            let answer = self.callout.send(self.request(&method, headers, body)).await;
            asked += 1;
            let failed = answer.as_ref().map_or(true, |answer| answer.status >= 500);
            match &self.retry {
                Some(retry) if failed && asked <= retry.times => {
                    tokio::time::sleep(retry.wait(asked)).await;
                }
                _ => return answer,
            }
        }
    }

    fn request(&self, method: &Method, headers: &Headers, body: &[u8]) -> CalloutRequest {
        let mut headers = headers.clone();
        // What Envoy calls itself where it asks for keys and tokens.
        headers.set(Known::USER_AGENT, b"Go-browser");
        self.own.tell(&mut headers);
        CalloutRequest {
            uri: self.uri.clone(),
            target: None,
            cluster: Some(self.cluster.clone()),
            retries: 0,
            method: method.clone(),
            headers,
            body: bytes::Bytes::copy_from_slice(body),
            timeout: self.timeout,
            verify_tls: true,
            max_body: MAX_ANSWER,
            keepalive: None,
        }
    }
}

impl Retry {
    fn new(value: &RetryPolicy) -> Result<Retry, ConfigError> {
        let RetryPolicy {
            retry_back_off,
            num_retries,
            // Envoy has conditions of its own for these requests.
            retry_on: _,
            retry_priority,
            retry_host_predicate,
            host_selection_retry_max_attempts,
        } = value;
        refuse!(retry_priority, retry_host_predicate, host_selection_retry_max_attempts);
        let (base, max) = back_off(retry_back_off).in_key("retry_back_off")?;
        Ok(Retry { times: u32_or(num_retries, 1), base, max })
    }

    /// Uniform in `[0, min(base * 2^(n-1), max))` before the n-th retry.
    fn wait(&self, asked: u32) -> Duration {
        let factor = 1u32 << (asked.clamp(1, 20) - 1);
        let ceiling = self.base.saturating_mul(factor).min(self.max);
        Duration::from_micros(fastrand::u64(..u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX).max(1)))
    }
}

fn back_off(value: &Option<BackoffStrategy>) -> Result<(Duration, Duration), ConfigError> {
    let Some(BackoffStrategy { base_interval, max_interval }) = value else {
        return Ok((Duration::from_secs(1), Duration::from_secs(10)));
    };
    values::back_off(base_interval, max_interval)
}
