//! The incremental decoder of bodies. Data is never copied: it is a slice of the buffer that was given.

use sixfold_core::headers::Headers;

use super::error::H1Error;
use super::fields::{FieldSink, unfold};
use super::framing::BodyLength;
use super::lines::{Line, LineReader};
use super::options::H1Options;

/// Most bytes of blanks and extensions in the size lines of one body; nobody reads them.
const MAX_EXTENSION_BYTES: u32 = 16 * 1024;
/// A chunk size is at most so many hexadecimal digits, leading zeros counted.
const MAX_SIZE_DIGITS: u8 = 16;

/// One step of [`Decoder::decode`].
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes of the buffer that are done with, framing included. With no data and no end, more bytes must be
    /// read before the next call gets further.
    pub consumed: usize,
    /// Body bytes, perhaps none: a slice of the buffer.
    pub data: &'a [u8],
    /// The body is complete; the bytes after `consumed` belong to the next message.
    pub end: bool,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Sized(u64),
    UntilClose,
    Chunked(Chunked),
    Trailers { lines: LineReader, sink: FieldSink },
    Done,
}

#[derive(Debug, Default)]
struct Chunked {
    step: Step,
    /// Digits of the chunk size so far.
    digits: u8,
    /// The chunk size so far, then the bytes that are left of the chunk.
    left: u64,
    /// Blanks and extension bytes in this body so far.
    extension_bytes: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// In the digits of a size.
    #[default]
    Size,
    /// Blanks between the size and what follows.
    Blank,
    /// In an extension, after `;`.
    Extension,
    /// The LF after the size line's CR.
    SizeLf,
    /// In the chunk's data.
    Data,
    /// The line end after the data.
    DataEnd,
    /// Its LF.
    DataLf,
    /// The size was 0.
    Last,
}

impl Decoder {
    /// A decoder for a body that ends as `length` says.
    pub fn new(length: BodyLength) -> Decoder {
        let state = match length {
            BodyLength::None | BodyLength::Sized(0) => State::Done,
            BodyLength::Sized(n) => State::Sized(n),
            BodyLength::UntilClose => State::UntilClose,
            BodyLength::Chunked => State::Chunked(Chunked::default()),
        };
        Decoder { state }
    }

    /// Whether the body is complete.
    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the body ends with the connection.
    pub fn is_until_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Bytes that must still come, where that is known from the head.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Sized(n) => Some(n),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Decodes the next piece from the start of `buf`, which must go on where the last call's `consumed` ended.
    /// Trailers are left in `trailers` when the end comes, if `enable_trailers`; else they are read, held to
    /// the same limits and dropped. Fields that would change framing or routing never become trailers
    /// (RFC 9110 section 6.5.1).
    ///
    /// # Errors
    /// A chunk size that is no 1 to 16 hexadecimal digits, anything but CRLF after it or after a chunk, more than
    /// 16 KiB of extensions, and the errors of header fields and their limits for trailers.
    pub fn decode<'a>(
        &mut self,
        buf: &'a [u8],
        trailers: &mut Headers,
        opts: &H1Options,
    ) -> Result<Decoded<'a>, H1Error> {
        match &mut self.state {
            State::Done => Ok(Decoded { consumed: 0, data: &[], end: true }),
            State::UntilClose => Ok(Decoded { consumed: buf.len(), data: buf, end: false }),
            State::Sized(left) => {
                let data = take(buf, left);
                let end = *left == 0;
                if end {
                    self.state = State::Done;
                }
                Ok(Decoded { consumed: data.len(), data, end })
            }
            State::Chunked(chunked) => {
                let decoded = chunked.decode(buf, opts.strict)?;
                if chunked.step != Step::Last {
                    return Ok(decoded);
                }
                trailers.clear();
                self.state = State::Trailers { lines: LineReader::default(), sink: FieldSink::default() };
                self.decode_trailers(buf, decoded.consumed, trailers, opts)
            }
            State::Trailers { .. } => self.decode_trailers(buf, 0, trailers, opts),
        }
    }

    /// Tells the decoder that the peer has closed.
    ///
    /// # Errors
    /// [`H1Error::Truncated`] unless the body was complete or ends with the connection.
    pub fn finish(&mut self) -> Result<(), H1Error> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(H1Error::Truncated),
        }
    }

    /// The trailer section is consumed as a whole; until its end has come `consumed` stays at its start.
    fn decode_trailers<'a>(
        &mut self,
        buf: &'a [u8],
        start: usize,
        trailers: &mut Headers,
        opts: &H1Options,
    ) -> Result<Decoded<'a>, H1Error> {
        let State::Trailers { lines, sink } = &mut self.state else {
            return Ok(Decoded { consumed: start, data: &[], end: true });
        };
        let section = buf.get(start..).unwrap_or_default();
        while let Some(Line { text, folded }) = lines.logical(section, opts)? {
            if text.is_empty() {
                let consumed = start + lines.pos();
                self.state = State::Done;
                if opts.enable_trailers {
                    opts.rules.apply_to_trailers(trailers)?;
                } else {
                    trailers.clear();
                }
                return Ok(Decoded { consumed, data: &[], end: true });
            }
            if folded {
                sink.take(&unfold(text), trailers, None, opts)?;
            } else {
                sink.take(text, trailers, None, opts)?;
            }
        }
        Ok(Decoded { consumed: start, data: &[], end: false })
    }
}

/// At most `left` bytes of `buf`, taken off `left`.
fn take<'a>(buf: &'a [u8], left: &mut u64) -> &'a [u8] {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= n as u64;
    buf.get(..n).unwrap_or_default()
}

impl Chunked {
    /// Goes on until there is data, the buffer is used up, or the last chunk's size line is done.
    fn decode<'a>(&mut self, buf: &'a [u8], strict: bool) -> Result<Decoded<'a>, H1Error> {
        let mut at = 0;
        while let Some(rest @ [byte, ..]) = buf.get(at..) {
            match self.step {
                Step::Last => break,
                Step::Data => {
                    let data = take(rest, &mut self.left);
                    if self.left == 0 {
                        self.step = Step::DataEnd;
                    }
                    return Ok(Decoded { consumed: at + data.len(), data, end: false });
                }
                _ => self.framing_byte(*byte, strict)?,
            }
            at += 1;
        }
        Ok(Decoded { consumed: at, data: &[], end: false })
    }

    fn framing_byte(&mut self, byte: u8, strict: bool) -> Result<(), H1Error> {
        const BAD: H1Error = H1Error::Malformed("bad chunk");
        match (self.step, byte) {
            (Step::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > MAX_SIZE_DIGITS {
                    return Err(BAD);
                }
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                self.left = self.left << 4 | digit;
            }
            (Step::Size, _) if self.digits == 0 => return Err(BAD),
            (Step::Size | Step::Blank | Step::Extension, b'\r') => self.step = Step::SizeLf,
            (Step::Size | Step::Blank, b' ' | b'\t') if !strict => self.skip(Step::Blank)?,
            (Step::Size | Step::Blank, b';') => self.skip(Step::Extension)?,
            (Step::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.skip(Step::Extension)?,
            (Step::SizeLf, b'\n') => self.end_size_line(),
            (Step::DataEnd, b'\r') => self.step = Step::DataLf,
            (Step::DataLf, b'\n') => self.step = Step::Size,
            _ => return Err(BAD),
        }
        Ok(())
    }

    fn skip(&mut self, step: Step) -> Result<(), H1Error> {
        self.step = step;
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(H1Error::Malformed("chunk extensions too long"));
        }
        Ok(())
    }

    fn end_size_line(&mut self) {
        self.digits = 0;
        self.step = if self.left == 0 { Step::Last } else { Step::Data };
    }
}
