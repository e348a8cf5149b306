//! Answers of other requests (source/extensions/http/custom_response/redirect_policy/redirect_policy.cc).

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::header_ops::{HeaderOps, Side};
use sixfold_core::headers::Known;
use sixfold_core::internal_redirect::Location;
use sixfold_core::message::Method;
use sixfold_core::plugin::Recreated;
use sixfold_core::redirect::location;
use sixfold_core::route::{Action, PathMatch, Redirect as Elements, RedirectPath, Route};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::http::custom_response::redirect_policy::v3::RedirectPolicy;
use sixfold_xds_api::pb::envoy::extensions::http::custom_response::redirect_policy::v3::redirect_policy::RedirectActionSpecifier;
use sixfold_xds_api::values::{one_of, status};
use sixfold_xds_api::{header_ops, redirect, refuse};
use std::sync::Arc;

/// Another request that answers in the place of a response.
#[derive(Debug)]
pub(super) struct Redirect {
    to: To,
    /// `None` keeps that of the response in whose place it answers.
    status: Option<u16>,
    response_headers: HeaderOps,
    request_headers: HeaderOps,
}

/// Where the request goes.
#[derive(Debug)]
enum To {
    Uri(Location),
    /// To where a redirect of these elements would lead, of this route.
    Elements(Box<(Elements, Route)>),
}

/// What the request was made for.
pub(super) struct Asked {
    pub(super) redirect: Arc<Redirect>,
    /// The status of the response in whose place it answers.
    pub(super) status: u16,
}

impl Redirect {
    pub(super) fn new(value: &RedirectPolicy) -> Result<Redirect, ConfigError> {
        let RedirectPolicy {
            status_code,
            response_headers_to_add,
            request_headers_to_add,
            modify_request_headers_action,
            redirect_action_specifier,
        } = value;
        // Envoy has none that a release holds.
        refuse!(modify_request_headers_action);
        let to = match one_of::<RedirectPolicy, _>(redirect_action_specifier, "redirect_action_specifier")? {
            RedirectActionSpecifier::Uri(uri) => {
                To::Uri(Location::parse(uri.as_bytes()).ok_or_else(|| {
                    ConfigError::field("uri", format!("\"{uri}\" is no URL of http or https"))
                })?)
            }
            RedirectActionSpecifier::RedirectAction(action) => {
                let elements = redirect::redirect(action).and_then(elements).in_key("redirect_action")?;
                // The path that a route matched is of no interest: no prefix of it is replaced.
                let route = Route::new(PathMatch::Prefix(b"/"[..].into(), false), Action::NonForwarding);
                To::Elements(Box::new((elements, route)))
            }
        };
        let additions = |add: &[_], field: &str| {
            Ok::<_, ConfigError>(HeaderOps {
                add: header_ops::additions(add, field)?,
                ..HeaderOps::default()
            })
        };
        Ok(Redirect {
            to,
            status: status_code.as_ref().map(|code| status(code.value, "status_code")).transpose()?,
            response_headers: additions(response_headers_to_add, "response_headers_to_add")?,
            request_headers: additions(request_headers_to_add, "request_headers_to_add")?,
        })
    }

    /// The request that answers in the place of the response of `stream`; `None` if it leads nowhere.
    pub(super) fn ask(self: &Arc<Self>, stream: &mut Stream) -> Option<Recreated> {
        let to = match &self.to {
            To::Uri(to) => to.clone(),
            To::Elements(to) => Location::parse(&location(&to.0, &to.1, stream))?,
        };
        let mut head = stream.request.clone();
        (head.scheme, head.authority, head.method) = (to.scheme, to.authority, Method::GET);
        head.target.set(&to.target);
        head.headers.remove(Known::CONTENT_LENGTH);
        head.headers.remove(Known::TRANSFER_ENCODING);
        std::mem::swap(&mut stream.request, &mut head);
        self.request_headers.apply(stream, Side::Request);
        std::mem::swap(&mut stream.request, &mut head);
        let asked = Asked { redirect: self.clone(), status: stream.response.status };
        Some(Recreated { head, answers_for: Arc::new(asked) })
    }

    /// Makes the response of that request the answer.
    pub(super) fn finish(&self, status: u16, stream: &mut Stream) {
        self.response_headers.apply(stream, Side::Response);
        stream.response.status = self.status.unwrap_or(status);
    }
}

/// What a redirect may have here.
fn elements(elements: Elements) -> Result<Elements, ConfigError> {
    match &elements.path {
        RedirectPath::Prefix(_) => Err(ConfigError::field("prefix_rewrite", "has no meaning here")),
        RedirectPath::Regex(..) => Err(ConfigError::field("regex_rewrite", "has no meaning here")),
        RedirectPath::Replace(path) if path.contains(&b'#') => {
            Err(ConfigError::field("path_redirect", "must have no fragment"))
        }
        RedirectPath::Keep if elements.host.is_none() => {
            Err(ConfigError::new("one of host_redirect and path_redirect is missing"))
        }
        _ => Ok(elements),
    }
}
