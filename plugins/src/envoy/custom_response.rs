//! Envoy's custom_response filter (source/extensions/filters/http/custom_response): puts answers of the configuration, or
//! those of other requests, in the place of responses that a matcher finds.

mod redirect;
#[cfg(test)]
mod tests;

use crate::envoy;
use bytes::Bytes;
use redirect::{Asked, Redirect};
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
use std::sync::Arc;

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).reads_all_levels()
}

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.`, of requests that were to answer and could not.
    pub struct CustomResponseStats {
        counters: [custom_response_redirect_no_route, custom_response_invalid_uri],
        gauges: [],
        histograms: [],
    }
}

/// The most specific level decides whose matcher finds something, the filter's own last.
fn build(own: Config, levels: Vec<Config>, context: &BuildContext) -> Built {
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
    let stats = CustomResponseStats::new(&context.metrics, &context.scope);
    Ok(Plugin::of(CustomResponse { trees, stats }).header_filter(CustomResponse::header_filter).build())
}

struct CustomResponse {
    /// The most specific one first.
    trees: Box<[Tree<Policy>]>,
    stats: CustomResponseStats,
}

/// What answers in the place of a response.
#[derive(Debug)]
enum Policy {
    Local(Box<Local>),
    /// Another request.
    Redirect(Arc<Redirect>),
}

/// An answer of the configuration.
#[derive(Debug)]
struct Local {
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

/// Another request is to answer.
struct Redirected;

impl Policy {
    fn new(value: &TypedExtensionConfig) -> Result<Policy, ConfigError> {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        let policy = match kind.strip_prefix("envoy.extensions.http.custom_response.").unwrap_or_default() {
            "local_response_policy.v3.LocalResponsePolicy" => any::unpack(config)
                .and_then(|policy| Local::new(&policy))
                .map(|local| Policy::Local(Box::new(local))),
            "redirect_policy.v3.RedirectPolicy" => any::unpack(config)
                .and_then(|policy| Redirect::new(&policy))
                .map(|redirect| Policy::Redirect(Arc::new(redirect))),
            _ => return Err(refuse::extension("custom response policy", name, &kind)),
        };
        policy.in_key("typed_config")
    }
}

impl Local {
    fn new(value: &LocalResponsePolicy) -> Result<Local, ConfigError> {
        let LocalResponsePolicy {
            body,
            body_format,
            status_code,
            response_headers_to_add,
            response_code_details_action,
        } = value;
        let code = status_code.as_ref().map(|code| status(code.value, "status_code")).transpose()?;
        let body = body.as_ref().map(data_source).transpose().in_key("body")?;
        Ok(Local {
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
            Details::Kept => stream.details.clone().unwrap_or_default(),
            Details::These(text) => text.to_string().into(),
        };
        let mut reply =
            LocalReply::new(self.status.unwrap_or(stream.response.status), self.body.clone(), details);
        // Details that are none take the place of those that were there.
        if reply.details.is_empty() {
            stream.details = Some("".into());
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
        if stream.state::<Redirected>(slot).is_some() {
            // It is asked again: nothing came of it.
            stream.set_state(slot, Answered);
            self.stats.custom_response_redirect_no_route().inc();
            return Step::Continue;
        }
        if let Some(asked) = stream.answers_for::<Asked>() {
            stream.set_state(slot, Answered);
            asked.redirect.finish(asked.status, stream);
            return Step::Continue;
        }
        let found = self.trees.iter().find_map(|tree| tree.find(Subject::Stream(stream)));
        let Some(policy) = found else { return Step::Continue };
        stream.set_state(slot, Answered);
        let redirect = match policy {
            Policy::Local(local) => return Step::Respond(local.answer(stream)),
            Policy::Redirect(redirect) => redirect,
        };
        match redirect.ask(stream) {
            Some(request) => {
                stream.set_state(slot, Redirected);
                Step::Recreate(Box::new(request))
            }
            None => {
                self.stats.custom_response_invalid_uri().inc();
                Step::Continue
            }
        }
    }
}
