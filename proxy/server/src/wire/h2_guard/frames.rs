//! Frames of one direction, found in its bytes.

/// Length of a frame header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// Length of the number that is read of a frame's payload.
const NUMBER: usize = 4;
/// What a GOAWAY frame carries at least: the last stream and an error code (section 6.8).
const GOAWAY: usize = 8;

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) length: usize,
    pub(super) stream: u32,
    /// The error code of a RST_STREAM, the last stream of a GOAWAY, else 0.
    pub(super) number: u32,
}

impl Frame {
    pub(super) const DATA: u8 = 0x0;
    pub(super) const HEADERS: u8 = 0x1;
    pub(super) const PRIORITY: u8 = 0x2;
    pub(super) const RST_STREAM: u8 = 0x3;
    pub(super) const GOAWAY: u8 = 0x7;
    pub(super) const WINDOW_UPDATE: u8 = 0x8;
    pub(super) const CONTINUATION: u8 = 0x9;

    /// Whether the stream ends with it.
    pub(super) fn ends_stream(&self) -> bool {
        self.flags & 0x1 != 0
    }

    fn ends_headers(&self) -> bool {
        self.flags & 0x4 != 0
    }
}

/// How far a header block has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    /// CONTINUATION follows.
    Open,
    /// Its last frame has begun.
    Ending,
}

/// Finds frames however the bytes are cut.
pub(super) struct Frames {
    /// The header, and the number behind that of a RST_STREAM or GOAWAY.
    head: [u8; HEADER + NUMBER],
    have: usize,
    /// Bytes left of the current frame, or of the preface.
    skip: usize,
    block: Block,
}

impl Frames {
    /// After a preface of so many bytes.
    pub(super) fn new(preface: usize) -> Frames {
        Frames { head: [0; HEADER + NUMBER], have: 0, skip: preface, block: Block::None }
    }

    /// Whether a header block has begun and not ended.
    pub(super) fn in_header_block(&self) -> bool {
        self.block != Block::None
    }

    /// Whether another frame may stand here.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.skip == 0 && !self.in_header_block()
    }

    /// Calls `found` for each frame whose head is complete.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                self.end_block();
                continue;
            }
            let n = (self.wanted() - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == self.wanted() {
                let frame = self.frame();
                self.skip = frame.length + HEADER - self.have;
                self.have = 0;
                if matches!(frame.kind, Frame::HEADERS | Frame::CONTINUATION) {
                    self.block = if frame.ends_headers() { Block::Ending } else { Block::Open };
                    self.end_block();
                }
                found(frame);
            }
        }
    }

    fn end_block(&mut self) {
        if self.skip == 0 && self.block == Block::Ending {
            self.block = Block::None;
        }
    }

    /// Bytes to collect before the frame is told.
    fn wanted(&self) -> usize {
        if self.have < HEADER {
            return HEADER;
        }
        match self.head[3] {
            Frame::RST_STREAM if self.length() == NUMBER => HEADER + NUMBER,
            Frame::GOAWAY if self.length() >= GOAWAY => HEADER + NUMBER,
            _ => HEADER,
        }
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    fn frame(&self) -> Frame {
        let [_, _, _, kind, flags, a, b, c, d, number @ ..] = self.head;
        Frame {
            kind,
            flags,
            length: self.length(),
            // The first bit is reserved.
            stream: u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff,
            number: if self.have > HEADER { u32::from_be_bytes(number) } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::frame;
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = vec![b'x'; 24];
        bytes.extend(frame(Frame::HEADERS, 4, 1, b"abc"));
        bytes.extend(frame(Frame::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
        bytes.extend(frame(0x6, 1, 0, &[0; 8]));
        bytes.extend(frame(Frame::RST_STREAM, 0, 3, b"bad"));
        bytes.extend(frame(Frame::GOAWAY, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 2, b'w', b'h', b'y']));
        bytes.extend(frame(Frame::GOAWAY, 0, 0, b"short"));
        bytes.extend(frame(Frame::DATA, 1, 5, b""));
        for step in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::new(24), Vec::new());
            bytes.chunks(step).for_each(|c| {
                frames.scan(c, |f| found.push((f.kind, f.flags, f.length, f.stream, f.number)));
            });
            let wanted = [
                (1, 4, 3, 1, 0),
                (3, 0, 4, 1, 8),
                (6, 1, 8, 0, 0),
                (3, 0, 3, 3, 0),
                (7, 0, 11, 0, 9),
                (7, 0, 5, 0, 0),
                (0, 1, 0, 5, 0),
            ];
            assert_eq!(found, wanted, "in pieces of {step}");
        }
    }

    #[test]
    fn a_header_block_lasts_from_its_first_frame_to_the_last_byte_of_its_last() {
        let mut frames = Frames::new(0);
        let mut after = |bytes: &[u8]| {
            frames.scan(bytes, |_| {});
            frames.in_header_block()
        };
        assert!(!after(&frame(Frame::DATA, 0, 1, b"abc")));
        assert!(!after(&frame(Frame::HEADERS, 4, 3, b"")));
        let whole = frame(Frame::HEADERS, 4, 5, b"abc");
        assert!(!after(&whole[..8]) && after(&whole[8..9]) && after(&whole[9..11]) && !after(&whole[11..]));
        assert!(after(&frame(Frame::HEADERS, 0, 7, b"abc")));
        let last = frame(Frame::CONTINUATION, 4, 7, b"d");
        assert!(after(&last[..9]) && !after(&last[9..]));
    }
}
