//! Envoy's grpc_http1_bridge filter (source/extensions/filters/http/grpc_http1_bridge/http1_bridge_filter.cc): answers
//! calls that come by HTTP/1.1, whose clients read no trailers, with the call's status in the head.

#[cfg(test)]
mod tests;

use crate::envoy;
use bytes::Bytes;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{
    BodyPiece, BodyStep, BuildContext, Built, FilterFactory, Hold, Overflow, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3::Config;

/// Bytes of a plain message that becomes one of gRPC, at most.
const MAX_MESSAGE: usize = 1 << 20;

/// Bytes of a frame's head: flags and the length of the message.
const FRAME_HEAD: usize = 5;

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build).stateless()
}

fn build(config: Config, _: &BuildContext) -> Built {
    let Config { upgrade_protobuf_to_grpc, ignore_query_parameters } = config;
    let bridge = Bridge { upgrades: upgrade_protobuf_to_grpc, ignores_query: ignore_query_parameters };
    let plugin = Plugin::of(bridge)
        .access(Bridge::access)
        .judging()
        .request_body(Bridge::request_body)
        .header_filter(Bridge::header_filter)
        .response_body(Bridge::response_body);
    Ok(plugin.build())
}

struct Bridge {
    /// Plain protobuf becomes gRPC and its answer plain protobuf.
    upgrades: bool,
    ignores_query: bool,
}

/// A call by HTTP/1.1.
#[derive(Default)]
struct Call {
    /// It came as plain protobuf.
    upgraded: bool,
    /// Bytes of the response so far.
    length: usize,
    /// Of a response whose frame is taken off: bytes of the frame's head that are still to come.
    frame_left: usize,
}

impl Bridge {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let request = &mut stream.request;
        let kind = request.headers.get(Known::CONTENT_TYPE).unwrap_or_default();
        let upgraded = self.upgrades && kind == b"application/x-protobuf";
        if !request.version.is_http1() || !(upgraded || request.is_grpc()) {
            return Step::Continue;
        }
        if upgraded {
            request.headers.set(Known::CONTENT_TYPE, b"application/grpc");
            request.headers.remove(Known::CONTENT_LENGTH);
        }
        if self.ignores_query && request.target.query().is_some() {
            let path = request.target.path().to_vec();
            request.target.set(&path);
        }
        stream.set_state(slot, Call { upgraded, ..Call::default() });
        Step::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        if !stream.state::<Call>(slot).is_some_and(|call| call.upgraded) {
            return BodyStep::Pass;
        }
        if !piece.last {
            return BodyStep::Hold(Hold { limit: MAX_MESSAGE, on_overflow: Overflow::Refuse });
        }
        let length = u32::try_from(piece.data.len()).unwrap_or(u32::MAX).to_be_bytes();
        BodyStep::Replace([&[0][..], &length, piece.data].concat().into())
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let ends_at_once = stream.response.headers.get(Known::CONTENT_LENGTH) == Some(b"0");
        let Some(call) = stream.state::<Call>(slot) else { return Step::Continue };
        if call.upgraded {
            call.frame_left = FRAME_HEAD;
            stream.response.headers.remove(Known::CONTENT_LENGTH);
        }
        if !ends_at_once {
            stream.hold_response_head(0);
        }
        Step::Continue
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot) else { return BodyStep::Pass };
        let skipped = call.frame_left.min(piece.data.len());
        call.frame_left -= skipped;
        call.length += piece.data.len() - skipped;
        let length = call.length;
        if piece.last {
            settle(stream, length);
        }
        match skipped {
            0 => BodyStep::Pass,
            _ => BodyStep::Replace(Bytes::copy_from_slice(piece.data.get(skipped..).unwrap_or_default())),
        }
    }
}

/// Puts into the head what the trailers say.
fn settle(stream: &mut Stream, length: usize) {
    let (trailers, response) = (&mut stream.response_trailers, &mut stream.response);
    if trailers.is_empty() {
        return;
    }
    if let Some(status) = trailers.get(Known::GRPC_STATUS) {
        let code = std::str::from_utf8(status).ok().and_then(|text| text.parse::<u64>().ok());
        if code != Some(0) {
            response.status = 503;
        }
        response.headers.set(Known::GRPC_STATUS, status);
    }
    if let Some(message) = trailers.get(Known::GRPC_MESSAGE) {
        response.headers.set(Known::GRPC_MESSAGE, message);
    }
    response.headers.set(Known::CONTENT_LENGTH, length.to_string().as_bytes());
    // HTTP/1.1 with a Content-Length has no place for them.
    trailers.clear();
}
