//! Protocols towards endpoints.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{Http1Options, Http2Options, UpstreamProtocol};
use sixfold_core::headers::HeaderRules;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::retry::RetryPolicy;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, UpstreamHttpProtocolOptions,
};
use sixfold_xds_api::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use sixfold_xds_api::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use sixfold_xds_api::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};

use crate::{protocol, retry};
use sixfold_xds_api::values::{Result, one_of};
use sixfold_xds_api::{destructure, refuse};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What the protocol options of a cluster come to.
pub(crate) struct Protocol {
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) http1: Http1Options,
    pub(crate) http2: Http2Options,
    pub(crate) header_rules: HeaderRules,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_duration: Option<Duration>,
    pub(crate) max_stream_duration: Option<Duration>,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    pub(crate) auto_sni: bool,
    pub(crate) auto_san_validation: bool,
}

/// From the extension, or from the older fields of the cluster itself.
pub(super) fn compile(value: &ProtoCluster) -> Result<Protocol> {
    const FIELD: &str = "typed_extension_protocol_options";
    if let Some(name) = value.typed_extension_protocol_options.keys().filter(|name| *name != OPTIONS).min() {
        return Err(ConfigError::new("is not supported").in_key(name).in_key(FIELD));
    }
    match value.typed_extension_protocol_options.get(OPTIONS) {
        Some(options) => {
            any::unpack(options).and_then(|options| extension(&options)).in_key(OPTIONS).in_key(FIELD)
        }
        None => older_fields(value),
    }
}

fn extension(value: &HttpProtocolOptions) -> Result<Protocol> {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    refuse!(http_filters, header_validation_config, outlier_detection, request_mirror_policies, hash_policy);
    let given = one_of::<HttpProtocolOptions, _>(upstream_protocol_options, "upstream_protocol_options")?;
    let (protocol, http1, http2) = match given {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config }) => {
            explicit(protocol_config).in_key("explicit_http_config")?
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(value) => {
            let UseDownstreamHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
            } = value;
            let refused = || {
                refuse!(http3_protocol_options);
                both(http_protocol_options, http2_protocol_options)
            };
            let (http1, http2) = refused().in_key("use_downstream_protocol_config")?;
            (UpstreamProtocol::Downstream, http1, http2)
        }
        UpstreamProtocolOptions::AutoConfig(value) => {
            let AutoHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
                alternate_protocols_cache_options,
            } = value;
            let refused = || {
                refuse!(http3_protocol_options, alternate_protocols_cache_options);
                both(http_protocol_options, http2_protocol_options)
            };
            let (http1, http2) = refused().in_key("auto_config")?;
            (UpstreamProtocol::Auto, http1, http2)
        }
    };
    let mut compiled = Protocol {
        protocol,
        http1,
        http2,
        retry: retry_policy.as_ref().map(retry::policy).transpose().in_key("retry_policy")?.map(Arc::new),
        ..Protocol::default()
    };
    compiled.common(common_http_protocol_options).in_key("common_http_protocol_options")?;
    compiled.upstream(upstream_http_protocol_options).in_key("upstream_http_protocol_options")?;
    Ok(compiled)
}

type Versions = (UpstreamProtocol, Http1Options, Http2Options);

fn explicit(value: &Option<ProtocolConfig>) -> Result<Versions> {
    match one_of::<ExplicitHttpConfig, _>(value, "protocol_config")? {
        ProtocolConfig::HttpProtocolOptions(options) => {
            let options = http1(options).in_key("http_protocol_options")?;
            Ok((UpstreamProtocol::Http1, options, Http2Options::default()))
        }
        ProtocolConfig::Http2ProtocolOptions(options) => {
            let options = protocol::http2(options).in_key("http2_protocol_options")?;
            Ok((UpstreamProtocol::Http2, Http1Options::default(), options))
        }
        ProtocolConfig::Http3ProtocolOptions(_) => {
            Err(ConfigError::field("http3_protocol_options", "is not supported"))
        }
    }
}

fn both(
    one: &Option<Http1ProtocolOptions>,
    two: &Option<Http2ProtocolOptions>,
) -> Result<(Http1Options, Http2Options)> {
    Ok((
        http1(&one.clone().unwrap_or_default()).in_key("http_protocol_options")?,
        protocol::http2(&two.clone().unwrap_or_default()).in_key("http2_protocol_options")?,
    ))
}

fn older_fields(value: &ProtoCluster) -> Result<Protocol> {
    let http1_options = value.http_protocol_options.clone().unwrap_or_default();
    let http2_options = value.http2_protocol_options.clone().unwrap_or_default();
    if value.protocol_selection == 0
        && value.http_protocol_options.is_some()
        && value.http2_protocol_options.is_some()
    {
        let reason = "must not be given together with http_protocol_options, unless protocol_selection says which counts";
        return Err(ConfigError::field("http2_protocol_options", reason));
    }
    let protocol = match (value.protocol_selection, &value.http2_protocol_options) {
        (0, None) => UpstreamProtocol::Http1,
        (0, Some(_)) => UpstreamProtocol::Http2,
        _ => UpstreamProtocol::Downstream,
    };
    let mut compiled = Protocol {
        protocol,
        http1: http1(&http1_options).in_key("http_protocol_options")?,
        http2: protocol::http2(&http2_options).in_key("http2_protocol_options")?,
        ..Protocol::default()
    };
    compiled.common(&value.common_http_protocol_options).in_key("common_http_protocol_options")?;
    compiled.upstream(&value.upstream_http_protocol_options).in_key("upstream_http_protocol_options")?;
    if let Some(max) = &value.max_requests_per_connection {
        compiled.max_requests_per_connection = Some(max.value).filter(|max| *max > 0);
    }
    Ok(compiled)
}

impl Default for Protocol {
    fn default() -> Protocol {
        Protocol {
            protocol: UpstreamProtocol::Http1,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            header_rules: HeaderRules::ENVOY,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            retry: None,
            auto_sni: false,
            auto_san_validation: false,
        }
    }
}

impl Protocol {
    fn common(&mut self, value: &Option<CommonOptions>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let common = protocol::common(value)?;
        let headers_with_underscores_action = &value.headers_with_underscores_action;
        refuse!(headers_with_underscores_action);
        self.idle_timeout = common.idle_timeout;
        self.max_connection_duration = common.max_connection_duration;
        self.max_stream_duration = common.max_stream_duration;
        self.max_requests_per_connection = common.max_requests_per_connection;
        self.header_rules.max_count = common.max_headers_count;
        let head_kib = common.max_response_headers_kb.unwrap_or(80);
        self.http1.max_head_bytes = head_kib as usize * 1024;
        self.http2.max_header_list = head_kib * 1024;
        Ok(())
    }

    fn upstream(&mut self, value: &Option<UpstreamHttpProtocolOptions>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = value;
        refuse!(override_auto_sni_header);
        self.auto_sni = *auto_sni;
        self.auto_san_validation = *auto_san_validation;
        Ok(())
    }
}

fn http1(value: &Http1ProtocolOptions) -> Result<Http1Options> {
    destructure!(
        Http1ProtocolOptions {
            header_key_format,
            enable_trailers,
            allow_chunked_length,
            // Which of Envoy's two parsers works; there is one here.
            use_balsa_parser: _
        } refusing {
            allow_absolute_url,
            accept_http_10,
            default_host_for_http_10,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            allow_custom_methods,
            ignore_http_11_upgrade,
        } = value
    );
    let (header_case, forward_reason) =
        protocol::header_case(header_key_format).in_key("header_key_format")?;
    Ok(Http1Options {
        enable_trailers: *enable_trailers,
        header_case,
        forward_reason,
        allow_chunked_length: *allow_chunked_length,
        ..Http1Options::default()
    })
}
