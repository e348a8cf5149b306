//! What a peer's frames have cost, and whether that is a flood.

use super::frames::Frame;
use sixfold_core::cluster::Http2Options;
use std::time::Duration;
use tokio::time::Instant;

/// Control frames are counted anew after so long.
const CONTROL_WINDOW: Duration = Duration::from_secs(1);
/// Streams are counted anew after so long, beside the count over the connection's life.
const STREAM_WINDOW: Duration = Duration::from_secs(10);
/// A stream that lived longer was not opened to be given up (Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`).
const PREMATURE: Duration = Duration::from_secs(1);
/// WINDOW_UPDATE frames that a stream and a DATA frame of ours pay for (Envoy's
/// `max_inbound_window_update_frames_per_data_frame_sent` is 10 and counts twice, once for the connection).
const UPDATES_PER_STREAM: u64 = 2;
const UPDATES_PER_DATA: u64 = 20;

/// Streams, and those of them that were given up.
#[derive(Default)]
struct Tally {
    opened: u64,
    given_up: u64,
}

impl Tally {
    /// A client may give up many requests; it may not give up most of them.
    fn is_flood(&self, max: u64) -> bool {
        self.given_up > max && self.given_up * 2 > self.opened
    }
}

/// What is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    /// Streams that were given up.
    Streams,
    /// Control frames.
    Control,
}

/// Counts of one connection.
pub(super) struct Ledger {
    max_resets: u64,
    max_control: u64,
    /// The peer opens streams; else we do, and it is their loss if they reset them.
    server: bool,
    /// Streams without a response so far, by number, and when they were opened.
    unanswered: Vec<(u32, Instant)>,
    /// How many of them there may be: those that are served at once, and as many that wait to be refused.
    max_unanswered: usize,
    last_stream: u32,
    /// Header blocks, trailers and all.
    blocks: u64,
    /// The last of them was of a new stream.
    opens: bool,
    /// The last stream that is answered, by our GOAWAY: the library ignores what is behind it (RFC 9113 section 6.8).
    last_taken: u32,
    life: Tally,
    recent: Tally,
    recent_since: Instant,
    control: u64,
    control_since: Instant,
    /// WINDOW_UPDATE frames that are paid for.
    updates: u64,
    /// The kind of the last frame that cost the peer nothing.
    last_cheap: u8,
}

impl Ledger {
    pub(super) fn of_server(options: &Http2Options) -> Ledger {
        Ledger::new(options, true)
    }

    pub(super) fn of_client(options: &Http2Options) -> Ledger {
        Ledger::new(options, false)
    }

    fn new(options: &Http2Options, server: bool) -> Ledger {
        let now = Instant::now();
        Ledger {
            max_resets: u64::from(options.max_resets),
            max_control: u64::from(options.max_control_frames),
            server,
            unanswered: Vec::new(),
            max_unanswered: options.max_concurrent_streams.saturating_mul(2) as usize,
            last_stream: 0,
            blocks: 0,
            opens: false,
            last_taken: u32::MAX,
            life: Tally::default(),
            recent: Tally::default(),
            recent_since: now,
            control: 0,
            control_since: now,
            updates: 0,
            last_cheap: 0,
        }
    }

    /// The peer has sent a frame.
    pub(super) fn received(&mut self, frame: Frame) {
        if frame.kind == Frame::HEADERS {
            self.blocks += 1;
            self.opens = self.server && frame.stream > self.last_stream;
        }
        match frame.kind {
            Frame::HEADERS if self.opens => self.opened(frame.stream),
            // Trailers and responses: a stream has one or two, and paid for them.
            Frame::HEADERS => {}
            Frame::RST_STREAM if self.server => match self.settle(frame.stream) {
                Some(opened) if opened.elapsed() < PREMATURE => self.give_up(),
                Some(_) => {}
                None => self.cheap(frame.kind),
            },
            Frame::DATA if frame.length > 0 || frame.ends_stream() => {}
            Frame::WINDOW_UPDATE if self.updates > 0 => self.updates -= 1,
            kind => self.cheap(kind),
        }
    }

    fn cheap(&mut self, kind: u8) {
        self.control += 1;
        self.last_cheap = kind;
    }

    /// The kind of the last frame that cost the peer nothing.
    pub(super) fn last_cheap(&self) -> u8 {
        self.last_cheap
    }

    /// How many header blocks have begun.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether the last header block is the head of a new stream.
    pub(super) fn opens(&self) -> bool {
        self.opens
    }

    /// Whether the frame, the last that was received, begins trailers of a client's.
    pub(super) fn has_trailers(&self, frame: Frame) -> bool {
        self.server && frame.kind == Frame::HEADERS && !self.opens
    }

    /// The last stream that was opened.
    pub(super) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// We have sent a frame.
    pub(super) fn sent(&mut self, frame: Frame) {
        match frame.kind {
            Frame::DATA => {
                self.settle(frame.stream);
                self.pay(UPDATES_PER_DATA);
            }
            Frame::HEADERS if frame.ends_stream() => {
                self.settle(frame.stream);
            }
            Frame::HEADERS if !self.server => self.pay(UPDATES_PER_STREAM),
            Frame::RST_STREAM => {
                self.settle(frame.stream);
                if self.server && is_provoked(frame.number) {
                    self.give_up();
                }
            }
            Frame::GOAWAY => {
                let last = frame.number;
                self.last_taken = self.last_taken.min(last);
                self.unanswered.retain(|(stream, _)| *stream <= last);
            }
            _ => {}
        }
    }

    fn opened(&mut self, stream: u32) {
        self.last_stream = stream;
        // One that nobody will answer costs the peer nothing, and must not be kept.
        if stream > self.last_taken || self.unanswered.len() >= self.max_unanswered {
            self.cheap(Frame::HEADERS);
            return;
        }
        let now = Instant::now();
        self.unanswered.push((stream, now));
        if now.duration_since(self.recent_since) >= STREAM_WINDOW {
            self.recent_since = now;
            self.recent = Tally::default();
        }
        self.life.opened += 1;
        self.recent.opened += 1;
        self.pay(UPDATES_PER_STREAM);
    }

    fn give_up(&mut self) {
        self.life.given_up += 1;
        self.recent.given_up += 1;
    }

    fn pay(&mut self, updates: u64) {
        // What is saved up buys no flood later.
        self.updates = (self.updates + updates).min(self.max_control);
    }

    /// The stream is answered or gone; when it was opened, unless it was settled before. Numbers only grow.
    fn settle(&mut self, stream: u32) -> Option<Instant> {
        let at = self.unanswered.binary_search_by_key(&stream, |(number, _)| *number).ok()?;
        Some(self.unanswered.remove(at).1)
    }

    /// What is more than can be meant well. Asked after every read.
    pub(super) fn flood(&mut self) -> Option<Flood> {
        if self.life.is_flood(self.max_resets) || self.recent.is_flood(self.max_resets) {
            return Some(Flood::Streams);
        }
        if self.control <= self.max_control {
            return None;
        }
        let now = Instant::now();
        let calm = now.duration_since(self.control_since) >= CONTROL_WINDOW;
        self.control_since = now;
        self.control = 0;
        (!calm).then_some(Flood::Control)
    }
}

/// Whether a reset of ours answers a fault of the peer (RFC 9113 section 7): PROTOCOL_ERROR, FLOW_CONTROL_ERROR,
/// STREAM_CLOSED, FRAME_SIZE_ERROR, COMPRESSION_ERROR. A refused stream and one that we had to cut are none.
fn is_provoked(code: u32) -> bool {
    matches!(code, 1 | 3 | 5 | 6 | 9)
}

#[cfg(test)]
impl Ledger {
    /// Streams that are kept.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }
}
