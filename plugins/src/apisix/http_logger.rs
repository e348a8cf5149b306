//! APISIX's http-logger: entries of requests, sent to an HTTP server in batches.

use crate::shared::batches::{self, BatchConfig, Batches};
use crate::shared::logger::{EntryConfig, Logger, LoggerMetadata};
use bytes::Bytes;
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::export::{Batch, Deliver, Delivery, Trouble};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Callout, CalloutRequest};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "http-logger";

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new(NAME, 410, include_str!("../../schemas/http-logger.json"), build)
        .reads_metadata(include_str!("../../schemas/http-logger-metadata.json"), LoggerMetadata::read)
}

/// Bytes of an answer that are read: it is told of where it is an error.
const MAX_ANSWER: usize = 64 << 10;

#[derive(Debug, Deserialize)]
struct Config {
    uri: String,
    auth_header: Option<String>,
    timeout: u64,
    concat_method: Concat,
    ssl_verify: bool,
    #[serde(flatten)]
    entry: EntryConfig,
    #[serde(flatten)]
    batch: BatchConfig,
}

/// How entries become one body.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Concat {
    /// An array, or the one entry where batches have one.
    Json,
    /// One a line.
    NewLine,
}

fn build(config: Config, context: &BuildContext) -> Built {
    // Whatever else differs, entries of two configurations are not sent together.
    let key = format!("{NAME} {config:?}");
    let collector = Collector::new(&config, context)?;
    let Config { entry, batch, .. } = config;
    let batches = Batches::new(&key, &batch, Box::new(collector), context);
    Ok(Logger::plugin(NAME, &entry, Arc::new(batches), context)?.build())
}

/// The server that gets the entries.
struct Collector {
    callout: Arc<dyn Callout>,
    uri: String,
    /// Its name and port in messages.
    place: String,
    headers: Headers,
    timeout: Duration,
    verify: bool,
    concat: Concat,
    /// Whether batches have one entry.
    single: bool,
}

impl Collector {
    fn new(config: &Config, context: &BuildContext) -> Result<Collector, ConfigError> {
        let invalid = |error: &dyn std::fmt::Display| ConfigError::field("uri", error.to_string());
        let uri: http::Uri = config.uri.parse().map_err(|error: http::uri::InvalidUri| invalid(&error))?;
        let host = uri.host().ok_or_else(|| invalid(&"has no host"))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut headers = Headers::new();
        // The real one has no port.
        headers.set(Known::HOST, host.as_bytes());
        let kind: &[u8] = match config.concat_method {
            Concat::Json => b"application/json",
            Concat::NewLine => b"text/plain",
        };
        headers.push(b"Content-Type", kind);
        if let Some(value) = &config.auth_header {
            headers.push(b"Authorization", value.as_bytes());
        }
        Ok(Collector {
            callout: context.callout.clone(),
            uri: config.uri.clone(),
            place: format!("host[{host}] port[{port}]"),
            headers,
            timeout: Duration::from_secs(config.timeout),
            verify: config.ssl_verify,
            concat: config.concat_method,
            single: config.batch.batch_max_size == 1,
        })
    }

    fn body(&self, batch: &Batch) -> Bytes {
        let (open, between, close): (&[u8], u8, &[u8]) = match self.concat {
            Concat::Json if self.single => (b"", b',', b""),
            Concat::Json => (b"[", b',', b"]"),
            Concat::NewLine => (b"", b'\n', b""),
        };
        let mut body = Vec::with_capacity(batch.bytes());
        body.extend_from_slice(open);
        for (index, entry) in batch.records().enumerate() {
            if index > 0 {
                body.push(between);
            }
            body.extend_from_slice(entry);
        }
        body.extend_from_slice(close);
        body.into()
    }
}

impl Deliver for Collector {
    fn deliver(&self, batch: &Arc<Batch>) -> Delivery {
        let request = CalloutRequest {
            uri: self.uri.clone(),
            target: None,
            cluster: None,
            retries: 0,
            method: http::Method::POST,
            headers: self.headers.clone(),
            body: self.body(batch),
            timeout: self.timeout,
            verify_tls: self.verify,
            max_body: MAX_ANSWER,
            // As in APISIX, each batch has a connection of its own: one that was kept may be dead.
            keepalive: None,
        };
        let (answer, place) = (self.callout.send(request), self.place.clone());
        Box::pin(async move {
            let answer =
                answer.await.map_err(|error| format!("error while sending data to {place}: {error}"))?;
            if answer.status < 400 {
                return Ok(());
            }
            let (status, body) = (answer.status, String::from_utf8_lossy(&answer.body).into_owned());
            Err(format!("server returned status code[{status}] {place} body[{body}]"))
        })
    }

    fn tell(&self, name: &str, trouble: Trouble<'_>) {
        batches::tell(name, trouble);
    }
}

#[cfg(test)]
mod tests;
