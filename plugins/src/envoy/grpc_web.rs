//! Envoy's grpc_web filter (source/extensions/filters/http/grpc_web/grpc_web_filter.cc): lets browsers call gRPC services.
//! Trailers, which they can't read, become the last frame of the body.

#[cfg(test)]
mod tests;

use crate::envoy;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use sixfold_core::grpc_status;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::is_grpc_content_type;
use sixfold_core::plugin::{BodyPiece, BodyStep, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb as Config;

/// Bytes of a response that is no gRPC which become grpc-message (`MAX_BUFFERED_PLAINTEXT_LENGTH`).
const MAX_MESSAGE: usize = 16 * 1024;

/// Marks the frame of trailers.
const TRAILERS: u8 = 0b1000_0000;

const BINARY: [&[u8]; 2] = [b"application/grpc-web", b"application/grpc-web+proto"];
const TEXT: [&[u8]; 2] = [b"application/grpc-web-text", b"application/grpc-web-text+proto"];

/// What is encoded of grpc-message (gRPC over HTTP/2, "Responses").
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(|Config {}, _| build()).stateless()
}

fn build() -> Built {
    let plugin = Plugin::of(GrpcWeb)
        .access(GrpcWeb::access)
        .judging()
        .request_body(GrpcWeb::request_body)
        .header_filter(GrpcWeb::header_filter)
        .response_body(GrpcWeb::response_body);
    Ok(plugin.build())
}

struct GrpcWeb;

/// A call by gRPC-Web.
#[derive(Default)]
struct Call {
    /// The request is base64.
    text_request: bool,
    /// The response is to be.
    text_response: bool,
    /// Bytes of the request's base64 that wait for the rest of their four. Both bodies may be under way at once.
    request_rest: Vec<u8>,
    /// Bytes of the response that wait for the rest of their three, or become a message.
    response_rest: Vec<u8>,
    /// The response is no gRPC: its body becomes a message.
    is_other: bool,
}

impl GrpcWeb {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let headers = &mut stream.request.headers;
        let kind = headers.get(Known::CONTENT_TYPE).unwrap_or_default();
        let text_request = TEXT.contains(&kind);
        if !text_request && !BINARY.contains(&kind) {
            return Step::Continue;
        }
        let text_response = headers.get(Known::ACCEPT).is_some_and(|accept| TEXT.contains(&accept));
        // It is the length of what came, not of what goes on.
        headers.remove(Known::CONTENT_LENGTH);
        headers.set(Known::CONTENT_TYPE, b"application/grpc");
        headers.set(Known::TE, b"trailers");
        headers.set_if_absent("grpc-accept-encoding", b"identity");
        stream.set_state(slot, Call { text_request, text_response, ..Call::default() });
        // Those who call so can't read an answer by gRPC.
        stream.answered_plainly = true;
        Step::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot).filter(|call| call.text_request) else {
            return BodyStep::Pass;
        };
        let mut text = std::mem::take(&mut call.request_rest);
        text.extend_from_slice(piece.data);
        let whole = text.len() / 4 * 4;
        if piece.last && whole != text.len() {
            return bad_request("grpc_base_64_decode_failed_bad_size");
        }
        call.request_rest = text.split_off(whole);
        match decode(&text) {
            Some(decoded) => BodyStep::Replace(decoded.into()),
            None => bad_request("grpc_base_64_decode_failed"),
        }
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let is_200 = stream.response.status == 200;
        let kind = stream.response.headers.get(Known::CONTENT_TYPE).unwrap_or_default();
        let plain = kind.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let is_web = BINARY.iter().any(|web| web.eq_ignore_ascii_case(plain));
        let is_other = !(is_200 && (is_web || is_grpc_content_type(kind)));
        let ends_at_once = stream.response.headers.get(Known::CONTENT_LENGTH) == Some(b"0");
        let Some(call) = stream.state::<Call>(slot) else { return Step::Continue };
        call.is_other = is_other && !ends_at_once;
        call.response_rest = Vec::new();
        let kind: &[u8] = match call.text_response {
            true => b"application/grpc-web-text+proto",
            false => b"application/grpc-web+proto",
        };
        let holds = call.is_other;
        let headers = &mut stream.response.headers;
        if !ends_at_once {
            headers.remove(Known::CONTENT_LENGTH);
        }
        headers.set(Known::CONTENT_TYPE, kind);
        if holds {
            stream.hold_response_head(0);
        }
        Step::Continue
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot) else { return BodyStep::Pass };
        if call.is_other {
            let room = MAX_MESSAGE.saturating_sub(call.response_rest.len());
            call.response_rest.extend_from_slice(piece.data.get(..room).unwrap_or(piece.data));
            if piece.last {
                let message = std::mem::take(&mut call.response_rest);
                stand_in(stream, &message);
            }
            return BodyStep::Replace(Bytes::new());
        }
        let text = call.text_response;
        if !text && !piece.last {
            return BodyStep::Pass;
        }
        let mut data = std::mem::take(&mut call.response_rest);
        data.extend_from_slice(piece.data);
        if piece.last {
            // Messages and trailers each begin a text of their own: padding may stand between them.
            let frame = frame(&mut stream.response_trailers);
            let parts =
                [data, frame].map(|part| if text { STANDARD.encode(part).into_bytes() } else { part });
            return BodyStep::Replace(parts.concat().into());
        }
        call.response_rest = data.split_off(data.len() / 3 * 3);
        BodyStep::Replace(STANDARD.encode(data).into_bytes().into())
    }
}

fn bad_request(details: &'static str) -> BodyStep {
    let body = "Bad gRPC-web request, invalid base64 data.";
    BodyStep::Respond(Box::new(LocalReply::new(400, body, details)))
}

/// Decodes groups of four, of which any may end with padding: a client encodes its messages one by one.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    if let Ok(decoded) = STANDARD.decode(text) {
        return Some(decoded);
    }
    let groups = text.chunks(4).map(|group| STANDARD.decode(group).ok());
    groups.collect::<Option<Vec<_>>>().map(|groups| groups.concat())
}

/// The trailers as a frame, taken out; nothing if there are none.
fn frame(trailers: &mut Headers) -> Vec<u8> {
    if trailers.is_empty() {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for (name, value) in trailers.iter() {
        lines.extend(name.to_ascii_lowercase());
        lines.push(b':');
        lines.extend_from_slice(value);
        lines.extend_from_slice(b"\r\n");
    }
    trailers.clear();
    let length = u32::try_from(lines.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[TRAILERS][..], &length, &lines].concat()
}

/// A response that is no gRPC becomes one without a message.
fn stand_in(stream: &mut Stream, message: &[u8]) {
    let status = grpc_status::of_http(stream.response.status);
    let headers = &mut stream.response.headers;
    headers.set(Known::GRPC_MESSAGE, percent_encode(message, MESSAGE).to_string().as_bytes());
    headers.set(Known::GRPC_STATUS, status.to_string().as_bytes());
    headers.set(Known::CONTENT_LENGTH, b"0");
    stream.response_trailers.clear();
}
