//! Answers that the proxy makes itself (source/common/http/utility.cc `Utility::prepareLocalReply`,
//! source/common/local_reply; nginx's error pages in APISIX's profile).

use crate::h1::{self, reason::reason_phrase};
use crate::http::clock::Expired;
use crate::upstream::UpstreamError;
use bytes::Bytes;
use sixfold_core::flags::Flag;
use sixfold_core::grpc_status;
use sixfold_core::hcm::{HttpConnectionManager, Profile};
use sixfold_core::header_ops::Side;
use sixfold_core::headers::Known;
use sixfold_core::message::ResponseHead;
use sixfold_core::plugin::LocalReply;
use sixfold_core::stream::{ResponseSource, Stream};
use std::borrow::Cow;

/// gRPC's DEADLINE_EXCEEDED.
const DEADLINE_EXCEEDED: u32 = 4;

/// Puts the reply into `stream.response` and answers its body. `change_headers` makes the route's changes, after
/// the reply's own headers and before what depends on them.
pub(crate) fn build(
    stream: &mut Stream,
    hcm: &HttpConnectionManager,
    reply: LocalReply,
    change_headers: impl FnOnce(&mut Stream),
) -> Bytes {
    if let Some(flag) = reply.flag {
        stream.flags.insert(flag);
    }
    if !reply.details.is_empty() {
        stream.details = Some(reply.details);
    }
    if stream.source == ResponseSource::None {
        stream.source = ResponseSource::Gateway;
    }
    let as_it_is = reply.as_it_is;
    let plain = as_it_is || stream.answered_plainly;
    let grpc = hcm.profile == Profile::Envoy && stream.request.is_grpc() && !plain;
    stream.response.clear();
    stream.response.version = stream.request.version;
    stream.response.status = reply.status;
    stream.response.headers = reply.headers;
    stream.response_trailers.clear();
    stream.local_body = reply.body;
    change_headers(stream);
    let mapped = if as_it_is { Mapped::default() } else { map(stream, hcm) };
    let body = std::mem::take(&mut stream.local_body);
    if grpc {
        to_grpc(stream, mapped.trim(&body), reply.grpc_status);
        return Bytes::new();
    }
    match hcm.profile {
        Profile::Envoy => frame(&mut stream.response, body, &mapped),
        Profile::Apisix => frame_apisix(&mut stream.response, body),
    }
}

/// What the configuration made of a reply.
#[derive(Default)]
struct Mapped {
    /// Content type of the body format that was applied.
    content_type: Option<String>,
    /// Another body is in the place of the reply's, and no content type was given with it.
    body_alone: bool,
}

impl Mapped {
    /// The line end of a JSON format has no place in a header.
    fn trim<'b>(&self, body: &'b [u8]) -> &'b [u8] {
        match self.content_type.as_deref() {
            Some("application/json") => body.strip_suffix(b"\n").unwrap_or(body),
            _ => body,
        }
    }
}

/// Applies the first mapper that fits, and the body format.
fn map(stream: &mut Stream, hcm: &HttpConnectionManager) -> Mapped {
    let config = &hcm.local_reply;
    let mapper = config.mappers.iter().find(|m| m.filter.passes(stream));
    let sent = stream.local_body.clone();
    let mut typed = false;
    if let Some(mapper) = mapper {
        if let Some(body) = &mapper.body {
            stream.local_body = body.clone();
        }
        let content_type = stream.response.headers.get(Known::CONTENT_TYPE).map(<[u8]>::to_vec);
        mapper.headers.apply(stream, Side::Response);
        typed = stream.response.headers.get(Known::CONTENT_TYPE) != content_type.as_deref();
        // Headers tell the status that was, the body the one that it becomes.
        if let Some(status) = mapper.status {
            stream.response.status = status;
        }
    }
    let format = mapper.and_then(|m| m.body_format.as_ref()).or(config.body_format.as_ref());
    if let Some(format) = format {
        let mut body = Vec::new();
        format.format.write_body(stream, &mut body);
        stream.local_body = body.into();
    }
    Mapped {
        content_type: format.map(|f| f.content_type.to_string()),
        body_alone: !typed && sent != stream.local_body,
    }
}

/// Frames a body as Envoy does: the content type is that of the headers unless the configuration replaced the
/// body alone, and a reply without a body has neither type nor length.
fn frame(response: &mut ResponseHead, body: Bytes, mapped: &Mapped) -> Bytes {
    let headers = &mut response.headers;
    headers.remove(Known::CONTENT_LENGTH);
    if body.is_empty() {
        headers.remove(Known::CONTENT_TYPE);
        return body;
    }
    headers.append(Known::CONTENT_LENGTH, itoa::Buffer::new().format(body.len()).as_bytes());
    if mapped.body_alone || !headers.contains(Known::CONTENT_TYPE) {
        let content_type = mapped.content_type.as_deref().unwrap_or("text/plain");
        headers.set(Known::CONTENT_TYPE, content_type.as_bytes());
    }
    body
}

/// Frames a body as APISIX does; an error or a redirect without one gets its runtime's page.
fn frame_apisix(response: &mut ResponseHead, mut body: Bytes) -> Bytes {
    let status = response.status;
    let mut content_type = "text/plain";
    if body.is_empty() && (matches!(status, 301..=303 | 307 | 308) || status >= 400 && status != 444) {
        content_type = "text/html";
        body = error_page(status, None);
    }
    let headers = &mut response.headers;
    headers.remove(Known::CONTENT_LENGTH);
    if body.is_empty() || status == 204 || status == 304 {
        return Bytes::new();
    }
    headers.append(Known::CONTENT_LENGTH, itoa::Buffer::new().format(body.len()).as_bytes());
    headers.set_if_absent(Known::CONTENT_TYPE, content_type.as_bytes());
    body
}

/// A gRPC client gets its status in headers, and nothing else.
fn to_grpc(stream: &mut Stream, body: &[u8], status: Option<u32>) {
    let code = status.unwrap_or_else(|| grpc_status::of_http(stream.response.status));
    stream.response.status = 200;
    let headers = &mut stream.response.headers;
    headers.remove(Known::CONTENT_LENGTH);
    headers.set(Known::CONTENT_TYPE, b"application/grpc");
    headers.set_if_absent(Known::GRPC_STATUS, itoa::Buffer::new().format(code).as_bytes());
    if !body.is_empty() {
        headers.set(Known::GRPC_MESSAGE, &percent_encode(body));
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

/// Gives a reply its error page, which tells in words what the status does not.
pub(crate) fn show(reply: &mut LocalReply, told: &str) {
    reply.body = error_page(reply.status, Some(told));
    reply.headers.set(Known::CONTENT_TYPE, b"text/html");
}

/// The error page of APISIX's runtime; `told` stands in its title and below its heading.
fn error_page(status: u16, told: Option<&str>) -> Bytes {
    // Its status line has another phrase than its page.
    let phrase = if status == 302 { "Found" } else { reason_phrase(status, h1::Profile::Apisix) };
    let heading = format!("{status} {phrase}");
    let title = told.map_or_else(|| heading.clone(), |told| format!("{status} {told}"));
    let told = told.map(|told| format!("<center>{told}</center>\r\n")).unwrap_or_default();
    format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{heading}</h1></center>\r\n\
         {told}<hr><center>openresty</center>\r\n<p><em>Powered by <a href=\"https://apisix.apache.org/\">APISIX</a>.\
         </em></p></body>\r\n</html>\r\n"
    )
    .into()
}

/// A reply of the proxy itself, not of a plugin: `text` is its body in Envoy's profile. In APISIX's the error page
/// takes its place, as nginx shows it whoever finds the fault.
pub(crate) fn own(
    status: u16,
    text: impl Into<Bytes>,
    details: impl Into<Cow<'static, str>>,
    profile: Profile,
) -> LocalReply {
    let body = if profile == Profile::Apisix { Bytes::new() } else { text.into() };
    LocalReply::new(status, body, details)
}

/// The reply to what the codec refuses.
pub(crate) fn malformed(status: u16, details: &'static str, profile: Profile) -> LocalReply {
    let mut reply = own(status, reason_phrase(status, profile), details, profile);
    reply.flag = Some(Flag::DPE);
    reply
}

/// The reply to a request whose deadline has passed before a response began.
pub(crate) fn expired(which: Expired, request_complete: bool, profile: Profile) -> LocalReply {
    let status = match which {
        Expired::Head | Expired::Request | Expired::ClientBody | Expired::ClientWrite => 408,
        Expired::Idle | Expired::MaxStream if !request_complete => 408,
        _ => 504,
    };
    let body = match which {
        Expired::Idle => "stream timeout",
        Expired::Head => "request header timeout",
        Expired::Request => "request timeout",
        Expired::MaxStream => "downstream duration timeout",
        Expired::ClusterMaxStream => "upstream max stream duration reached",
        Expired::Route | Expired::PerTry | Expired::PerTryIdle => "upstream request timeout",
        Expired::UpstreamWrite | Expired::UpstreamRead | Expired::ClientBody | Expired::ClientWrite => "",
    };
    let mut reply = own(status, body, details(which), profile);
    reply.flag = flag(which);
    // The others are the connection manager's, which knows nothing of attempts.
    reply.after_attempts =
        matches!(which, Expired::Route | Expired::PerTry | Expired::PerTryIdle | Expired::ClusterMaxStream);
    reply.grpc_status = (which == Expired::MaxStream).then_some(DEADLINE_EXCEEDED);
    reply
}

/// The reply to a request whose body is longer than is allowed.
pub(crate) fn too_large(profile: Profile) -> LocalReply {
    own(413, "Payload Too Large", "request_payload_too_large", profile)
}

/// The reply to a request whose body has no room beside those that the process holds.
pub(crate) fn over_budget(profile: Profile) -> LocalReply {
    let mut reply = own(503, "too many bodies in memory", "buffered_bodies_over_budget", profile);
    reply.flag = Some(Flag::OM);
    reply
}

/// The flag of a passed deadline.
pub(crate) fn flag(which: Expired) -> Option<Flag> {
    match which {
        Expired::Idle => Some(Flag::SI),
        Expired::Head
        | Expired::Request
        | Expired::MaxStream
        | Expired::ClientBody
        | Expired::ClientWrite => None,
        Expired::ClusterMaxStream => Some(Flag::UMSDR),
        Expired::Route | Expired::PerTry | Expired::PerTryIdle => Some(Flag::UT),
        Expired::UpstreamWrite | Expired::UpstreamRead => Some(Flag::UT),
    }
}

/// The details of a passed deadline.
pub(crate) fn details(which: Expired) -> &'static str {
    match which {
        Expired::Idle => "stream_idle_timeout",
        Expired::Head => "request_header_timeout",
        Expired::Request => "request_overall_timeout",
        Expired::MaxStream => "max_duration_timeout",
        Expired::Route | Expired::UpstreamWrite | Expired::UpstreamRead => "response_timeout",
        Expired::PerTry => "upstream_per_try_timeout",
        Expired::PerTryIdle => "upstream_per_try_idle_timeout",
        Expired::ClusterMaxStream => "upstream_max_stream_duration_reached",
        Expired::ClientBody => "client_body_timeout",
        Expired::ClientWrite => "send_timeout",
    }
}

/// The reply when the upstream gave no response.
pub(crate) fn upstream_failed(error: &UpstreamError, retried: bool, profile: Profile) -> LocalReply {
    let status = match (error, profile) {
        (UpstreamError::TooManyHeaders, _) => 431,
        (UpstreamError::Protocol, _) => 502,
        (UpstreamError::ConnectTimeout, Profile::Apisix) => 504,
        // As nginx answers where it gets no socket.
        (UpstreamError::Exhausted, Profile::Apisix) => 500,
        (_, Profile::Apisix) => 502,
        _ => 503,
    };
    let told = if retried { "retried and the latest reset reason" } else { "reset reason" };
    let text = error.text();
    let body = format!("upstream connect error or disconnect/reset before headers. {told}: {text}");
    let details = format!("upstream_reset_before_response_started{{{}}}", error.details());
    let mut reply = own(status, body, details, profile);
    reply.flag = Some(error.flag());
    reply.after_attempts = true;
    if *error == UpstreamError::Overflow {
        reply.headers.append(Known::X_ENVOY_OVERLOADED, b"true");
    }
    reply
}
