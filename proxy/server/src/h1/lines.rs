//! Cutting a head into lines, each byte looked at once.

use sixfold_core::headers::control;

use super::error::H1Error;
use super::options::{H1Options, Profile};

/// One line without its end. A folded one still holds the line ends inside.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) text: &'a [u8],
    pub(super) folded: bool,
}

/// Finds line after line in a buffer that grows between calls.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    /// Start of the line that is being read.
    pos: usize,
    /// No LF that ends it lies before this offset.
    scanned: usize,
    /// A continuation line belongs to the line that is being read.
    folded: bool,
}

impl LineReader {
    /// Start of the next line.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// Steps over CRLF and LF; true when another byte has come.
    pub(super) fn skip_empty(&mut self, buf: &[u8], opts: &H1Options) -> Result<bool, H1Error> {
        loop {
            let rest = buf.get(self.pos..).unwrap_or_default();
            self.pos += match rest {
                [] | [b'\r'] if buf.len() > opts.max_head_bytes => return Err(H1Error::HeadersTooLarge),
                [] | [b'\r'] => return Ok(false),
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] if !opts.strict => 1,
                [b'\r' | b'\n', ..] => return Err(H1Error::Malformed("bare line end")),
                _ => return Ok(true),
            };
        }
    }

    /// The next line as it is, a start line. `too_long` is for one beyond `max_line_bytes`.
    pub(super) fn plain<'a>(
        &mut self,
        buf: &'a [u8],
        opts: &H1Options,
        too_long: H1Error,
    ) -> Result<Option<&'a [u8]>, H1Error> {
        if let Some(text) = self.start(buf, opts) {
            return Ok(Some(text));
        }
        let Some((end, next)) = self.find_end(buf, opts, too_long)? else { return Ok(None) };
        let text = buf.get(self.pos..end).unwrap_or_default();
        if memchr::memchr(b'\r', text).is_some() {
            return Err(H1Error::Malformed("bare CR in the start line"));
        }
        self.advance(next);
        Ok(Some(text))
    }

    /// The next field line with the lines that continue it (RFC 9112 section 5.2); an empty one ends the head.
    pub(super) fn logical<'a>(
        &mut self,
        buf: &'a [u8],
        opts: &H1Options,
    ) -> Result<Option<Line<'a>>, H1Error> {
        loop {
            let Some((end, next)) = self.find_end(buf, opts, H1Error::HeadersTooLarge)? else {
                return Ok(None);
            };
            let text = buf.get(self.pos..end).unwrap_or_default();
            match buf.get(next) {
                _ if text.is_empty() => {}
                None => {
                    // Only the next byte tells whether this line goes on.
                    self.scanned = next - 1;
                    return Ok(None);
                }
                Some(b' ' | b'\t') if opts.strict || opts.profile == Profile::Apisix => {
                    return Err(H1Error::Malformed("folded header line"));
                }
                Some(b' ' | b'\t') => {
                    self.folded = true;
                    self.scanned = next;
                    continue;
                }
                Some(_) => {}
            }
            let folded = self.folded;
            self.advance(next);
            return Ok(Some(Line { text, folded }));
        }
    }

    /// What lies ahead, as far as a head may go and a byte more; nothing while a line is half read.
    #[inline]
    pub(super) fn ahead<'a>(&self, buf: &'a [u8], opts: &H1Options) -> &'a [u8] {
        if self.scanned > self.pos {
            return &[];
        }
        let room = opts.max_head_bytes.saturating_sub(self.pos);
        let ahead = buf.get(self.pos..).unwrap_or_default();
        ahead.get(..room.saturating_add(1)).unwrap_or(ahead)
    }

    /// The start line, if it is whole and without controls, and something follows it; `None` is for
    /// [`LineReader::plain`].
    #[inline]
    fn start<'a>(&mut self, buf: &'a [u8], opts: &H1Options) -> Option<&'a [u8]> {
        let ahead = self.ahead(buf, opts);
        let (text, rest) = ahead.split_at_checked(control(ahead)?)?;
        let [b'\r', b'\n', _, ..] = rest else { return None };
        if opts.max_line_bytes.is_some_and(|max| text.len() + 2 > max) {
            return None;
        }
        self.step(text.len() + 2);
        Some(text)
    }

    /// Steps over the empty line that ends a head, if that lies ahead: within the limits of [`LineReader::logical`].
    #[inline]
    pub(super) fn take_end(&mut self, ahead: &[u8], opts: &H1Options) -> bool {
        const END: &[u8] = b"\r\n";
        let fits = || {
            self.pos + END.len() <= opts.max_head_bytes
                && opts.max_line_bytes.is_none_or(|max| END.len() <= max)
        };
        let ends = ahead.starts_with(END) && fits();
        if ends {
            self.step(END.len());
        }
        ends
    }

    /// Steps over a line that was found ahead.
    #[inline]
    pub(super) fn step(&mut self, len: usize) {
        self.advance(self.pos + len);
    }

    /// Where the text of the line that is being read ends, and where the next one starts.
    fn find_end(
        &mut self,
        buf: &[u8],
        opts: &H1Options,
        too_long: H1Error,
    ) -> Result<Option<(usize, usize)>, H1Error> {
        let from = self.scanned.max(self.pos);
        let lf = buf.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)).map(|i| from + i);
        let seen = lf.map_or(buf.len(), |lf| lf + 1);
        if opts.max_line_bytes.is_some_and(|max| seen - self.pos > max) {
            return Err(too_long);
        }
        if seen > opts.max_head_bytes {
            return Err(H1Error::HeadersTooLarge);
        }
        let Some(lf) = lf else {
            self.scanned = buf.len();
            return Ok(None);
        };
        let crlf = lf > self.pos && buf.get(lf - 1) == Some(&b'\r');
        if opts.strict && !crlf {
            return Err(H1Error::Malformed("bare LF"));
        }
        Ok(Some((lf - usize::from(crlf), lf + 1)))
    }

    fn advance(&mut self, next: usize) {
        *self = LineReader { pos: next, scanned: next, folded: false };
    }
}
