//! How local replies look.

use std::sync::Arc;

use sixfold_core::error::ConfigContext;
use sixfold_core::hcm::{LocalReplyConfig, LocalReplyMapper};
use sixfold_core::header_ops::HeaderOps;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    LocalReplyConfig as ProtoConfig, ResponseMapper,
};

use crate::access_log;
use crate::context::Context;
use sixfold_xds_api::values::{Result, data_source, required, status};
use sixfold_xds_api::{format, header_ops};

pub(super) fn local(context: &Context, value: &ProtoConfig) -> Result<LocalReplyConfig> {
    let ProtoConfig { mappers, body_format } = value;
    let mappers = mappers.iter().enumerate().map(|(index, value)| mapper(context, value).in_index(index));
    Ok(LocalReplyConfig {
        mappers: mappers.collect::<Result<_>>().in_key("mappers")?,
        body_format: body_format.as_ref().map(format::body).transpose().in_key("body_format")?.map(Arc::new),
    })
}

fn mapper(context: &Context, value: &ResponseMapper) -> Result<LocalReplyMapper> {
    let ResponseMapper { filter, status_code, body, body_format_override, headers_to_add } = value;
    Ok(LocalReplyMapper {
        filter: access_log::filter(context, required(filter, "filter")?).in_key("filter")?,
        status: status_code.as_ref().map(|code| status(code.value, "status_code")).transpose()?,
        body: body.as_ref().map(data_source).transpose().in_key("body")?.map(Into::into),
        body_format: body_format_override
            .as_ref()
            .map(format::body)
            .transpose()
            .in_key("body_format_override")?
            .map(Arc::new),
        headers: HeaderOps {
            remove: Box::default(),
            add: header_ops::additions(headers_to_add, "headers_to_add")?,
        },
    })
}
