//! Frames as Envoy's codec counts them (common/http/http2/codec_impl.cc).

use super::frames::Frame;
use sixfold_core::codec_stats::Http2Counts;

/// Error codes of RST_STREAM (RFC 9113 section 7).
const PROTOCOL_ERROR: u32 = 0x1;
const REFUSED_STREAM: u32 = 0x7;

/// The peer has sent a frame.
pub(super) fn received(counts: &Http2Counts, frame: Frame) {
    if frame.kind == Frame::RST_STREAM {
        counts.rx_reset().inc();
        if frame.number == REFUSED_STREAM {
            counts.stream_refused_errors().inc();
        }
    }
}

/// We have sent one.
pub(super) fn sent(counts: &Http2Counts, frame: Frame) {
    match frame.kind {
        Frame::RST_STREAM => {
            counts.tx_reset().inc();
            if frame.number == PROTOCOL_ERROR {
                counts.rx_messaging_error().inc();
            }
        }
        Frame::GOAWAY => counts.goaway_sent().inc(),
        _ => {}
    }
}

/// The connection ends for frames that cost the peer nothing, this kind last.
pub(super) fn flooded(counts: &Http2Counts, kind: u8) {
    match kind {
        Frame::PRIORITY => counts.inbound_priority_frames_flood(),
        Frame::WINDOW_UPDATE => counts.inbound_window_update_frames_flood(),
        Frame::DATA | Frame::HEADERS | Frame::CONTINUATION => counts.inbound_empty_frames_flood(),
        // PING, SETTINGS and resets: what has us answer.
        _ => counts.outbound_control_flood(),
    }
    .inc();
}
