//! Answers that the proxy makes itself (source/common/http/utility.cc `Utility::prepareLocalReply`,
//! source/common/local_reply; nginx's error pages in APISIX's profile).

use crate::h1::{self, reason::reason_phrase};
use crate::http::clock::Expired;
use crate::upstream::UpstreamError;
use bytes::Bytes;
use sixfold_core::flags::Flag;
use sixfold_core::hcm::{HttpConnectionManager, Profile};
use sixfold_core::header_ops::Side;
use sixfold_core::headers::Known;
use sixfold_core::plugin::LocalReply;
use sixfold_core::stream::{ResponseSource, Stream};
use std::borrow::Cow;

/// Puts the reply into `stream.response` and answers its body.
pub(crate) fn build(stream: &mut Stream, hcm: &HttpConnectionManager, reply: LocalReply) -> Bytes {
    if let Some(flag) = reply.flag {
        stream.flags.insert(flag);
    }
    if !reply.details.is_empty() {
        stream.details = reply.details;
    }
    if stream.source == ResponseSource::None {
        stream.source = ResponseSource::Gateway;
    }
    let grpc = hcm.profile == Profile::Envoy && stream.request.is_grpc();
    stream.response.clear();
    stream.response.version = stream.request.version;
    stream.response.status = reply.status;
    stream.response.headers = reply.headers;
    stream.response_trailers.clear();
    stream.local_body = reply.body;
    let content_type = map(stream, hcm);
    let mut body = std::mem::take(&mut stream.local_body);
    if grpc {
        to_grpc(stream, &body, reply.grpc_status);
        return Bytes::new();
    }
    let mut content_type: Cow<'static, str> = content_type.map_or(Cow::Borrowed("text/plain"), Cow::Owned);
    if hcm.profile == Profile::Apisix {
        content_type = Cow::Borrowed("text/plain; charset=utf-8");
        if body.is_empty() && stream.response.status >= 400 && stream.response.status != 444 {
            content_type = Cow::Borrowed("text/html; charset=utf-8");
            body = error_page(stream.response.status);
        }
    }
    let status = stream.response.status;
    let headers = &mut stream.response.headers;
    headers.remove(Known::CONTENT_LENGTH);
    let bodiless = hcm.profile == Profile::Apisix && (status == 204 || status == 304);
    if !body.is_empty() && !bodiless {
        headers.append(Known::CONTENT_LENGTH, itoa::Buffer::new().format(body.len()).as_bytes());
        headers.set_if_absent(Known::CONTENT_TYPE, content_type.as_bytes());
        return body;
    }
    Bytes::new()
}

/// Applies the first mapper that fits, and the body format; answers the content type of a formatted body.
fn map(stream: &mut Stream, hcm: &HttpConnectionManager) -> Option<String> {
    let config = &hcm.local_reply;
    let mapper = config.mappers.iter().find(|m| m.filter.passes(stream));
    if let Some(mapper) = mapper {
        if let Some(status) = mapper.status {
            stream.response.status = status;
        }
        if let Some(body) = &mapper.body {
            stream.local_body = body.clone();
        }
        mapper.headers.apply(stream, Side::Response);
    }
    let format = mapper.and_then(|m| m.body_format.as_ref()).or(config.body_format.as_ref())?;
    let mut body = Vec::new();
    format.format.write_body(stream, &mut body);
    stream.local_body = body.into();
    Some(format.content_type.to_string())
}

/// A gRPC client gets its status in headers, and nothing else.
fn to_grpc(stream: &mut Stream, body: &[u8], status: Option<u32>) {
    let code = status.unwrap_or_else(|| grpc_status(stream.response.status));
    stream.response.status = 200;
    let headers = &mut stream.response.headers;
    headers.remove(Known::CONTENT_LENGTH);
    headers.set(Known::CONTENT_TYPE, b"application/grpc");
    headers.set(Known::GRPC_STATUS, itoa::Buffer::new().format(code).as_bytes());
    if !body.is_empty() {
        headers.set(Known::GRPC_MESSAGE, &percent_encode(body));
    }
}

/// Envoy's `Grpc::Utility::httpToGrpcStatus`.
pub(crate) fn grpc_status(http: u16) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// As gRPC's `grpc-message` demands: printable ASCII but `%` stays.
fn percent_encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &b in text {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(b);
        } else {
            out.extend_from_slice(format!("%{b:02X}").as_bytes());
        }
    }
    out
}

/// The error page of APISIX's runtime.
fn error_page(status: u16) -> Bytes {
    let title = format!("{status} {}", reason_phrase(status, h1::Profile::Apisix));
    format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>openresty</center>\r\n<p><em>Powered by <a href=\"https://apisix.apache.org/\">APISIX</a>.\
         </em></p></body>\r\n</html>\r\n"
    )
    .into()
}

/// The reply to a request whose deadline has passed before a response began.
pub(crate) fn expired(which: Expired, request_complete: bool, profile: Profile) -> LocalReply {
    let late = if request_complete { 504 } else { 408 };
    let mut reply = match which {
        Expired::Idle => LocalReply::new(late, "stream timeout", "stream_idle_timeout"),
        Expired::Request => LocalReply::new(408, "request timeout", "request_overall_timeout"),
        Expired::MaxStream => LocalReply::new(late, "downstream duration timeout", "max_duration_timeout"),
        Expired::Route => LocalReply::new(504, "upstream request timeout", "response_timeout"),
        Expired::PerTry => LocalReply::new(504, "upstream request timeout", "upstream_per_try_timeout"),
        Expired::PerTryIdle => {
            LocalReply::new(504, "upstream request timeout", "upstream_per_try_idle_timeout")
        }
        Expired::ClusterMaxStream => LocalReply::new(
            504,
            "upstream max stream duration reached",
            "upstream_max_stream_duration_reached",
        ),
        Expired::Progress => LocalReply::new(504, "", "response_timeout"),
    };
    reply.flag = flag(which);
    if which == Expired::MaxStream {
        reply.grpc_status = Some(4);
    }
    if profile == Profile::Apisix {
        reply.body = Bytes::new();
    }
    reply
}

/// The reply to a request whose body is longer than is allowed.
pub(crate) fn too_large(profile: Profile) -> LocalReply {
    let body = if profile == Profile::Apisix { "" } else { "Payload Too Large" };
    LocalReply::new(413, body, "request_payload_too_large")
}

/// The flag of a passed deadline.
pub(crate) fn flag(which: Expired) -> Option<Flag> {
    match which {
        Expired::Idle => Some(Flag::SI),
        Expired::Request | Expired::MaxStream => None,
        Expired::ClusterMaxStream => Some(Flag::UMSDR),
        Expired::Route | Expired::PerTry | Expired::PerTryIdle | Expired::Progress => Some(Flag::UT),
    }
}

/// The details of a passed deadline.
pub(crate) fn details(which: Expired) -> Cow<'static, str> {
    expired(which, true, Profile::Envoy).details
}

/// The reply when the upstream gave no response.
pub(crate) fn upstream_failed(error: &UpstreamError, retried: bool, profile: Profile) -> LocalReply {
    let status = match (error, profile) {
        (UpstreamError::TooManyHeaders, _) => 431,
        (UpstreamError::Protocol, _) => 502,
        (UpstreamError::ConnectTimeout, Profile::Apisix) => 504,
        (_, Profile::Apisix) => 502,
        _ => 503,
    };
    let body = match (profile, retried) {
        (Profile::Apisix, _) => String::new(),
        (_, false) => {
            format!(
                "upstream connect error or disconnect/reset before headers. reset reason: {}",
                error.text()
            )
        }
        (_, true) => format!(
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: {}",
            error.text()
        ),
    };
    let details = format!("upstream_reset_before_response_started{{{}}}", error.details());
    let mut reply = LocalReply::new(status, body, details);
    reply.flag = Some(error.flag());
    if *error == UpstreamError::Overflow {
        reply.headers.append(Known::X_ENVOY_OVERLOADED, b"true");
    }
    reply
}
