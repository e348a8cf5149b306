//! Envoy's custom_response filter (source/extensions/filters/http/custom_response): puts answers of the configuration in
//! the place of responses that a matcher finds.

#[cfg(test)]
mod tests;

use crate::envoy;
use bytes::Bytes;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::header_ops::{HeaderOps, Side};
use sixfold_core::headers::Known;
use sixfold_core::matching::{Subject, Tree};
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::BodyFormat;
use sixfold_core::stream::Stream;
use sixfold_xds_api::matching::{self, Data};
use sixfold_xds_api::pb::envoy::extensions::filters::http::custom_response::v3::CustomResponse as Config;
use sixfold_xds_api::pb::envoy::extensions::http::custom_response::local_response_policy::v3::LocalResponsePolicy;
use sixfold_xds_api::pb::envoy::extensions::http::custom_response::local_response_policy::v3::local_response_policy::ResponseCodeDetailsAction;
use sixfold_xds_api::pb::xds::core::v3::TypedExtensionConfig;
use sixfold_xds_api::values::{data_source, required, status};
use sixfold_xds_api::{any, format, header_ops, refuse};
use std::borrow::Cow;

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless()
}

/// The most specific level decides whose matcher finds something, the filter's own last.
fn build(own: Config, levels: Vec<Config>, _: &BuildContext) -> Built {
    let matchers = levels
        .into_iter()
        .rev()
        .chain([own])
        .filter_map(|Config { custom_response_matcher }| custom_response_matcher);
    let trees = matchers.map(|matcher| matching::tree(&matcher, Data::Response, &mut Policy::new));
    let trees: Box<[Tree<Policy>]> = trees.collect::<Result<_, _>>().in_key("custom_response_matcher")?;
    if trees.is_empty() {
        return Ok(Plugin::default());
    }
    Ok(Plugin::of(CustomResponse { trees }).header_filter(CustomResponse::header_filter).build())
}

struct CustomResponse {
    /// The most specific one first.
    trees: Box<[Tree<Policy>]>,
}

/// An answer in the place of a response.
#[derive(Debug)]
struct Policy {
    /// `None` keeps the response's.
    status: Option<u16>,
    body: Bytes,
    format: Option<BodyFormat>,
    headers: HeaderOps,
    details: Details,
}

/// Response code details of the answer.
#[derive(Debug)]
enum Details {
    None,
    /// Those of the response.
    Kept,
    These(Box<str>),
}

/// The answer is there already: the filter does not look at its own.
struct Answered;

impl Policy {
    fn new(value: &TypedExtensionConfig) -> Result<Policy, ConfigError> {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        if kind != "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy" {
            return Err(refuse::extension("custom response policy", name, &kind));
        }
        any::unpack(config).and_then(|policy| Policy::local(&policy)).in_key("typed_config")
    }

    fn local(value: &LocalResponsePolicy) -> Result<Policy, ConfigError> {
        let LocalResponsePolicy {
            body,
            body_format,
            status_code,
            response_headers_to_add,
            response_code_details_action,
        } = value;
        let code = status_code.as_ref().map(|code| status(code.value, "status_code")).transpose()?;
        let body = body.as_ref().map(data_source).transpose().in_key("body")?;
        Ok(Policy {
            status: code,
            body: body.unwrap_or_default().into(),
            format: body_format.as_ref().map(format::body).transpose().in_key("body_format")?,
            headers: HeaderOps {
                add: header_ops::additions(response_headers_to_add, "response_headers_to_add")?,
                ..HeaderOps::default()
            },
            details: match response_code_details_action {
                Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(true)) => Details::Kept,
                Some(ResponseCodeDetailsAction::ResponseCodeDetails(text)) => {
                    Details::These(text.as_str().into())
                }
                Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(false)) | None => Details::None,
            },
        })
    }

    /// The answer, for a response of `stream`.
    fn answer(&self, stream: &mut Stream) -> LocalReply {
        let details: Cow<'static, str> = match &self.details {
            Details::None => "".into(),
            Details::Kept => stream.details.clone(),
            Details::These(text) => text.to_string().into(),
        };
        let mut reply =
            LocalReply::new(self.status.unwrap_or(stream.response.status), self.body.clone(), details);
        // Details that are none take the place of those that were there.
        if reply.details.is_empty() {
            stream.details = "".into();
        }
        if let Some(format) = &self.format {
            stream.local_body = self.body.clone();
            let mut body = Vec::new();
            format.format.write_body(stream, &mut body);
            stream.local_body = Bytes::new();
            reply.body = body.into();
            reply.headers.set(Known::CONTENT_TYPE, format.content_type.as_bytes());
        }
        std::mem::swap(&mut stream.response.headers, &mut reply.headers);
        self.headers.apply(stream, Side::Response);
        std::mem::swap(&mut stream.response.headers, &mut reply.headers);
        reply
    }
}

impl CustomResponse {
    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if stream.state::<Answered>(slot).is_some() {
            return Step::Continue;
        }
        let found = self.trees.iter().find_map(|tree| tree.find(Subject::Stream(stream)));
        let Some(policy) = found else { return Step::Continue };
        stream.set_state(slot, Answered);
        Step::Respond(policy.answer(stream))
    }
}
