//! What `typed_per_filter_config` says about one filter.

use std::borrow::Cow;
use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, FilterFactory, Registry};
use sixfold_xds_api::pb::envoy::config::route::v3::FilterConfig;
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::values::{Result, required};
use sixfold_xds_api::{any, json};

const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// What filters of Envoy take from routes that this binary, or one of its builds, does not have. Of Envoy 1.40, which was asked
/// about every message of its filters.
const OF_OTHERS: &[&str] = &[
    "envoy.extensions.common.matching.v3.ExtensionWithMatcherPerRoute",
    "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManagerPerRoute",
    "envoy.extensions.filters.http.aws_lambda.v3.PerRouteConfig",
    "envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigningPerRoute",
    "envoy.extensions.filters.http.bandwidth_share.v3.BandwidthShare",
    "envoy.extensions.filters.http.composite.v3.CompositePerRoute",
    "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
    "envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute",
    "envoy.extensions.filters.http.file_server.v3.FileServerConfig",
    "envoy.extensions.filters.http.file_system_buffer.v3.FileSystemBufferFilterConfig",
    "envoy.extensions.filters.http.filter_chain.v3.FilterChainConfigPerRoute",
    "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfigPerRoute",
    "envoy.extensions.filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
    "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
    "envoy.extensions.filters.http.lua.v3.LuaPerRoute",
    "envoy.extensions.filters.http.mcp.v3.McpOverride",
    "envoy.extensions.filters.http.mcp_json_rest_bridge.v3.McpJsonRestBridgePerRoute",
    "envoy.extensions.filters.http.transform.v3.TransformConfig",
];

/// What one level says about one filter.
pub(super) struct Said<'a> {
    pub(super) disabled: bool,
    /// Its settings; Envoy looks at none of a filter that is off. They are owned where they were wrapped in a `FilterConfig`.
    config: Option<Cow<'a, Any>>,
    /// Whether they are passed over where no filter takes any of their type.
    is_optional: bool,
}

impl<'a> Said<'a> {
    pub(super) fn new(config: &'a Any) -> Result<Said<'a>> {
        if any::name_of_url(&config.type_url) != FILTER_CONFIG {
            return Ok(Said { disabled: false, config: Some(Cow::Borrowed(config)), is_optional: false });
        }
        let FilterConfig { config, is_optional, disabled } = any::unpack(config)?;
        if disabled {
            return Ok(Said { disabled, config: None, is_optional });
        }
        required(&config, "config")?;
        // One without a type says no more than that the filter is on.
        let config = config.filter(|config| !config.type_url.is_empty()).map(Cow::Owned);
        Ok(Said { disabled, config, is_optional })
    }

    /// The type of its settings.
    pub(super) fn kind(&self) -> Option<String> {
        any::type_name(self.config.as_deref()?).ok()
    }

    /// The settings as this filter reads them, encoded; `None` where there are none, or of another type.
    pub(super) fn taken_by(&self, factory: &FilterFactory) -> Result<Option<Vec<u8>>> {
        let Some(config) = &self.config else { return Ok(None) };
        self.at(taken(factory, config))
    }

    /// Whether these are settings of some filter. Envoy makes nothing of optional ones that no filter takes: it is as if nothing
    /// was said.
    pub(super) fn is_something(&self, plugins: &Registry) -> bool {
        let takes = |factory: &Arc<FilterFactory>| factory.override_type.is_some();
        let is_taken = |kind: &str| plugins.filter_of_routes(kind).is_some_and(takes);
        self.kind().is_some_and(|kind| is_taken(&kind) || OF_OTHERS.contains(&&*kind))
    }

    /// Looks at the settings by themselves: they must be such as some filter takes, as Envoy finds filters by the types of
    /// their settings.
    pub(super) fn check(&self, plugins: &Registry, build: &BuildContext) -> Result<()> {
        let Some(config) = &self.config else { return Ok(()) };
        let kind = self.at(any::type_name(config))?;
        let Some(factory) = plugins.filter_of_routes(&kind) else {
            if self.is_optional || OF_OTHERS.contains(&&*kind) {
                return Ok(());
            }
            return self.at(Err(ConfigError::new(match json::is_known_type(&kind) {
                true => format!("no filter takes settings of type {kind} from routes"),
                false => json::unknown_type(&kind),
            })));
        };
        match self.taken_by(factory)? {
            Some(settings) => self.at(factory.check_settings(&settings, &apart(build))),
            None if self.is_optional && factory.override_type.is_none() => Ok(()),
            None => self.at(Err(ConfigError::new(match &factory.override_type {
                Some(wanted) => {
                    let own = &factory.config_type;
                    format!("must be of type {wanted}, as the filter of type {own} takes, not {kind}")
                }
                None => format!("the filter of type {kind} takes no settings from routes"),
            }))),
        }
    }

    /// Puts a fault of the settings to where they stand.
    pub(super) fn at<T>(&self, result: Result<T>) -> Result<T> {
        match &self.config {
            Some(Cow::Owned(_)) => result.in_key("config"),
            _ => result,
        }
    }
}

fn taken(factory: &FilterFactory, config: &Any) -> Result<Option<Vec<u8>>> {
    let found = any::type_name(config)?;
    match factory.override_type.as_deref() {
        Some(wanted) if wanted == found => super::resolve(factory, config).map(Some),
        // A message in which nothing is said is one of any type to Envoy.
        Some(_) if found == factory.config_type && config.value.is_empty() => Ok(Some(Vec::new())),
        _ => Ok(None),
    }
}

/// The type of settings, where they are not merely whether a filter runs.
pub(crate) fn kind_of_settings(config: &Any) -> Option<String> {
    Said::new(config).ok()?.kind()
}

/// Whether a filter reads these settings.
pub(crate) fn reads(factory: &FilterFactory, config: &Any) -> bool {
    Said::new(config).is_ok_and(|said| matches!(said.taken_by(factory), Ok(Some(_))))
}

/// Looks at an encoded policy of `cors` by itself, be there a filter that reads it or not.
pub(super) fn check_policy(plugins: &Registry, policy: &[u8], build: &BuildContext) -> Result<()> {
    let factory = plugins.filter_of_routes(super::CORS_POLICY);
    factory.map_or(Ok(()), |factory| factory.check_settings(policy, &apart(build)))
}

/// What is only looked at is not counted, and leaves nothing behind for others.
fn apart(build: &BuildContext) -> BuildContext {
    BuildContext {
        metrics: metrics::Registry::new(),
        shared: Arc::default(),
        clusters: Arc::default(),
        ..build.clone()
    }
}
