//! Header rules of a connection manager.

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::hcm::{EdgeHeaders, ForwardClientCert, ProxyStatus, ServerHeader, XfccDetails};
use sixfold_core::message::Scheme;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::SchemeHeaderTransformation;
use sixfold_xds_api::pb::envoy::config::core::v3::scheme_header_transformation::Transformation;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, ProxyStatusConfig, ServerHeaderTransformation, SetCurrentClientCertDetails,
    proxy_status_config::ProxyName,
};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager as ProtoManager, RequestIdExtension,
};

use sixfold_xds_api::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;

use crate::context::Context;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, enum_value, required};

const UUID: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";

pub(super) fn headers(context: &Context, value: &ProtoManager) -> Result<EdgeHeaders> {
    if let Some(extension) = &value.request_id_extension {
        request_id(extension).in_key("request_id_extension")?;
    }
    let server_name = match value.server_name.as_str() {
        "" => "envoy",
        given => given,
    };
    Ok(EdgeHeaders {
        server_name: server_name.into(),
        server: match enum_value(value.server_header_transformation, "server_header_transformation")? {
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        generate_request_id: bool_or(&value.generate_request_id, true),
        preserve_request_id: value.preserve_external_request_id,
        request_id_in_response: value.always_set_request_id_in_response,
        via: value.via.as_str().into(),
        append_forwarded_port: value.append_x_forwarded_port,
        add_user_agent: bool_or(&value.add_user_agent, false)
            .then(|| (context.node.cluster.as_str().into(), context.node.id.as_str().into())),
        scheme: scheme(&value.scheme_header_transformation).in_key("scheme_header_transformation")?,
        xfcc: match enum_value(value.forward_client_cert_details, "forward_client_cert_details")? {
            ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
            ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        xfcc_details: match &value.set_current_client_cert_details {
            Some(details) => xfcc_details(details).in_key("set_current_client_cert_details")?,
            None => XfccDetails::default(),
        },
        proxy_status: value
            .proxy_status_config
            .as_ref()
            .map(|config| proxy_status(context, config, server_name))
            .transpose()
            .in_key("proxy_status_config")?,
        local_address: context.compile.local_address,
    })
}

/// The UUID extension is what is done anyway; both of its options are about tracing.
fn request_id(value: &RequestIdExtension) -> Result<UuidRequestIdConfig> {
    let config = required(&value.typed_config, "typed_config")?;
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind == UUID {
        return any::unpack(config).in_key("typed_config");
    }
    Err(refuse::extension("request id extension", "", &kind))
}

/// Whether ids of requests say which of them are traced.
pub(super) fn traces_by_request_id(value: &ProtoManager) -> Result<bool> {
    // What is wrong with it is told elsewhere.
    let config = value.request_id_extension.as_ref().and_then(|extension| request_id(extension).ok());
    let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } =
        config.unwrap_or_default();
    if !bool_or(&pack_trace_reason, true) {
        let error = ConfigError::field("pack_trace_reason", "is not supported");
        return Err(error.in_key("typed_config").in_key("request_id_extension"));
    }
    Ok(bool_or(&use_request_id_for_trace_sampling, true))
}

fn scheme(value: &Option<SchemeHeaderTransformation>) -> Result<Option<Scheme>> {
    let Some(SchemeHeaderTransformation { match_upstream, transformation }) = value else { return Ok(None) };
    refuse!(match_upstream);
    match transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Ok(Some(Scheme::Http)),
            "https" => Ok(Some(Scheme::Https)),
            other => {
                let reason = format!("must be http or https, not \"{other}\"");
                Err(ConfigError::field("scheme_to_overwrite", reason))
            }
        },
    }
}

fn xfcc_details(value: &SetCurrentClientCertDetails) -> Result<XfccDetails> {
    let SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } = value;
    refuse!(issuer, format);
    Ok(XfccDetails { subject: bool_or(subject, false), cert: *cert, chain: *chain, dns: *dns, uri: *uri })
}

fn proxy_status(context: &Context, value: &ProxyStatusConfig, server_name: &str) -> Result<ProxyStatus> {
    let ProxyStatusConfig {
        remove_details,
        remove_connection_termination_details,
        remove_response_flags,
        set_recommended_response_code,
        proxy_name,
    } = value;
    refuse!(remove_connection_termination_details);
    Ok(ProxyStatus {
        name: match proxy_name {
            Some(ProxyName::UseNodeId(true)) => context.node.id.as_str().into(),
            Some(ProxyName::LiteralProxyName(name)) => name.as_str().into(),
            _ => server_name.into(),
        },
        remove_details: *remove_details,
        remove_connection_details: false,
        remove_flags: *remove_response_flags,
        set_status: *set_recommended_response_code,
    })
}
