//! Services that are asked: by gRPC (`GrpcService`) and by HTTP (`HttpUri`), as every user of them reads them.

use crate::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use crate::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use crate::pb::envoy::config::core::v3::{GrpcService, HttpUri, RetryPolicy};
use crate::values::{Result, not_empty, one_of, timeout_or};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::plugin::{BuildContext, OwnHeaders, grpc};
use std::time::Duration;

/// A service of gRPC (config/core/v3/grpc_service.proto `EnvoyGrpc`).
pub struct GrpcTarget<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// `:authority`, the cluster's name by default.
    pub authority: &'a str,
    /// Bytes of a message that are taken; `None` where the configuration sets no bound.
    pub max_message: Option<usize>,
    /// How often it is tried.
    pub retry: Option<&'a RetryPolicy>,
    /// Whether calls do not say what Envoy says of its own.
    pub skips_own_headers: bool,
}

/// A service of HTTP (config/core/v3/http_uri.proto).
pub struct HttpTarget<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Host and path, perhaps behind a scheme.
    pub uri: &'a str,
    /// How long an answer may take; `None` is no bound.
    pub timeout: Option<Duration>,
}

impl<'a> GrpcTarget<'a> {
    /// The one of a service.
    ///
    /// # Errors
    /// There is none, it has no cluster, or it is Google's own client.
    pub fn of(value: &'a GrpcService) -> Result<GrpcTarget<'a>> {
        let target = match one_of::<GrpcService, _>(&value.target_specifier, "target_specifier")? {
            TargetSpecifier::EnvoyGrpc(target) => target,
            TargetSpecifier::GoogleGrpc(_) => {
                return Err(ConfigError::field("google_grpc", "is not supported, envoy_grpc is"));
            }
        };
        let EnvoyGrpc {
            cluster_name,
            authority,
            retry_policy,
            max_receive_message_length,
            skip_envoy_headers,
        } = target;
        let cluster = not_empty(cluster_name, "cluster_name").in_key("envoy_grpc")?;
        let max = max_receive_message_length.filter(|length| length.value > 0);
        Ok(GrpcTarget {
            cluster,
            authority: if authority.is_empty() { cluster } else { authority },
            max_message: max.map(|length| length.value as usize),
            retry: retry_policy.as_ref(),
            skips_own_headers: *skip_envoy_headers,
        })
    }

    /// Who calls it, in so much time each, and takes messages of so many bytes unless the configuration says otherwise.
    pub fn client(&self, timeout: Option<Duration>, most: usize, context: &BuildContext) -> grpc::Client {
        let own = match self.skips_own_headers {
            true => OwnHeaders::default(),
            false => OwnHeaders::new(context.local_address),
        };
        grpc::Client {
            callout: context.callout.clone(),
            cluster: context.clusters.cell(self.cluster),
            authority: self.authority.to_owned(),
            timeout: timeout.unwrap_or(Duration::MAX),
            max_message: self.max_message.unwrap_or(most),
            own: own.within(timeout),
        }
    }
}

impl<'a> HttpTarget<'a> {
    /// The one of a field's value. A timeout of 0 is none; where there is none, it is `default`.
    ///
    /// # Errors
    /// What is missing, and a timeout that is none.
    pub fn of(value: &'a HttpUri, default: Option<Duration>) -> Result<HttpTarget<'a>> {
        let HttpUri { uri, timeout, http_upstream_type } = value;
        let HttpUpstreamType::Cluster(name) = one_of::<HttpUri, _>(http_upstream_type, "http_upstream_type")?;
        Ok(HttpTarget {
            cluster: not_empty(name, "cluster")?,
            uri,
            timeout: timeout_or(timeout, default, "timeout")?,
        })
    }

    /// The whole URI. Without a scheme what there is is host and path, as in Envoy.
    ///
    /// # Errors
    /// It has no host, or another scheme than those of HTTP.
    pub fn whole_uri(&self) -> Result<String> {
        let uri = not_empty(self.uri, "uri")?;
        let uri = if uri.contains("://") { uri.to_owned() } else { format!("http://{uri}") };
        let parsed: Option<http::Uri> = uri.parse().ok();
        let is_web = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https"));
        if !parsed.as_ref().is_some_and(|uri| is_web(uri) && uri.host().is_some()) {
            return Err(ConfigError::field("uri", format!("\"{}\" is no URI of http or https", self.uri)));
        }
        Ok(uri)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pb::google::protobuf::Duration as ProtoDuration;

    #[test]
    fn no_time_at_all_is_no_bound() {
        let uri = |seconds: Option<i64>| HttpUri {
            uri: "a.test/b".into(),
            timeout: seconds.map(|seconds| ProtoDuration { seconds, nanos: 0 }),
            http_upstream_type: Some(HttpUpstreamType::Cluster("c".into())),
        };
        let second = Duration::from_secs(1);
        for (given, timeout) in [(None, Some(second)), (Some(0), None), (Some(2), Some(second * 2))] {
            let uri = uri(given);
            let target = HttpTarget::of(&uri, Some(second)).unwrap();
            assert_eq!((target.timeout, &*target.whole_uri().unwrap()), (timeout, "http://a.test/b"));
        }
        for bad in ["", "ftp://a/", "http://", "/only/path"] {
            let uri = HttpUri { uri: bad.into(), ..uri(None) };
            assert!(HttpTarget::of(&uri, None).unwrap().whole_uri().is_err(), "{bad}");
        }
    }
}
