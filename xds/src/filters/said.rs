//! What `typed_per_filter_config` says about one filter.

use std::borrow::Cow;
use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, FilterConfig as Given, FilterFactory, Registry};
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
    /// Whether they are passed over where the filter takes none of their type.
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

    /// The settings for a filter, encoded. They must be of the type that it takes from routes.
    pub(super) fn settings(&self, factory: &Arc<FilterFactory>) -> Result<Option<Vec<u8>>> {
        let Some(config) = &self.config else { return Ok(None) };
        self.at(self.settings_of(factory, config))
    }

    fn settings_of(&self, factory: &Arc<FilterFactory>, config: &Any) -> Result<Option<Vec<u8>>> {
        let found = any::type_name(config)?;
        let (own, wanted) = (&factory.config_type, factory.override_type.as_deref());
        if wanted == Some(&found) {
            return super::resolve(Some(factory), config).map(|(_, bytes)| Some(bytes.into_owned()));
        }
        // A message in which nothing is said is one of any type to Envoy.
        if wanted.is_some() && found == *own && config.value.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if self.is_optional {
            return Ok(None);
        }
        Err(ConfigError::new(match wanted {
            Some(wanted) => {
                format!("must be of type {wanted}, as the filter of type {own} takes, not {found}")
            }
            None => format!("the filter of type {own} takes no settings from routes"),
        }))
    }

    fn at<T>(&self, result: Result<T>) -> Result<T> {
        match &self.config {
            Some(Cow::Owned(_)) => result.in_key("config"),
            _ => result,
        }
    }
}

/// Settings for a filter that the listener does not have must be such as one takes, as Envoy finds filters by the types of
/// their settings.
pub(super) fn check_unused(plugins: &Registry, build: &BuildContext, config: &Any) -> Result<()> {
    let said = Said::new(config)?;
    let Some(config) = &said.config else { return Ok(()) };
    let kind = said.at(any::type_name(config))?;
    if let Some(factory) = plugins.filter_of_routes(&kind) {
        let Some(settings) = said.settings(factory)? else { return Ok(()) };
        if !factory.overrides_alone {
            return Ok(());
        }
        let given = Given { config: &[], overrides: &[&settings] };
        // It is not there to be counted.
        let build = BuildContext { metrics: metrics::Registry::new(), ..build.clone() };
        return said.at(factory.build(&given, &build).map(drop));
    }
    if said.is_optional || OF_OTHERS.contains(&&*kind) {
        return Ok(());
    }
    said.at(Err(ConfigError::new(match json::is_known_type(&kind) {
        true => format!("no filter takes settings of type {kind} from routes"),
        false => json::unknown_type(&kind),
    })))
}
