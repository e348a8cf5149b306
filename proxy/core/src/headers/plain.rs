//! Field lines as nearly all are, found and looked through sixteen bytes at a time.

use super::field::{AROUND, COLON, Field, UPPER, flags};
use super::scan::{BLOCK, NameEnd, between, control_from, is_plain_name, lower_to_colon, name_bytes, same};
use super::{Headers, Known, put};
use wide::u8x16;

/// Bytes of the longest name that is found here, less than eight.
const WORDS: usize = 5;

/// A line without anything to think about: a name of letters, digits, `-` and `_`, a colon, one blank, a value without
/// controls and blanks around it, CRLF, and after it a byte that does not continue it. HTTP's two readings, Envoy's and
/// nginx's, take it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLine {
    /// The id of a well-known name.
    pub known: Option<Known>,
    /// Bytes of the name, which begins the line.
    pub name_len: usize,
    /// Whether there is an upper case letter in the name.
    pub upper: bool,
    /// Bytes of the value.
    pub value_len: usize,
}

impl PlainLine {
    /// The line at the start of `ahead`, if it is one and the byte behind it is there too. `None` says nothing: the line
    /// may be odd, or the end of `ahead` too near to look at it this way.
    #[inline(always)]
    pub fn find(ahead: &[u8]) -> Option<PlainLine> {
        let start = u8x16::new(*ahead.first_chunk::<BLOCK>()?);
        let colons = same(start, b':').to_bitmask();
        let Name { known, len, upper } = match colons {
            0 => Name::long(ahead)?,
            _ => Name::short(start, colons.trailing_zeros())?,
        };
        let from = len + COLON.len();
        if ahead.get(len + 1) != Some(&b' ') {
            return None;
        }
        let to = control_from(ahead, from)?;
        let [b'\r', b'\n', next, ..] = ahead.get(to..)? else { return None };
        let blank = |at: usize| ahead.get(at) == Some(&b' ');
        if matches!(next, b' ' | b'\t') || to > from && (blank(from) || blank(to - 1)) {
            return None;
        }
        Some(PlainLine { known, name_len: len, upper, value_len: to - from })
    }

    /// Bytes of the line, its end counted.
    #[inline]
    pub fn len(&self) -> usize {
        self.name_len + self.value_len + AROUND
    }

    /// Never: there is a name at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The name, of a line that was found here.
    #[inline]
    pub fn name<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        line.get(..self.name_len).unwrap_or_default()
    }

    /// The value, of a line that was found here.
    #[inline]
    pub fn value<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        let from = self.name_len + COLON.len();
        line.get(from..from + self.value_len).unwrap_or_default()
    }
}

struct Name {
    known: Option<Known>,
    len: usize,
    upper: bool,
}

impl Name {
    /// One that ends in the first block.
    #[inline(always)]
    fn short(start: u8x16, len: u32) -> Option<Name> {
        let uppers = between(start, b'A', b'Z');
        let before = (1u32 << len) - 1;
        let lower = (start | (uppers & u8x16::splat(0x20))).to_array();
        let len = len as usize;
        let known = Known::find_short(lower, len);
        if known.is_none() && (len == 0 || name_bytes(start).to_bitmask() & before != before) {
            return None;
        }
        Some(Name { known, len, upper: uppers.to_bitmask() & before != 0 })
    }

    fn long(ahead: &[u8]) -> Option<Name> {
        let mut room = [[0; 8]; WORDS];
        let NameEnd { len, upper } = lower_to_colon(ahead, &mut room)?;
        let lower = room.as_flattened().get(..len)?;
        let known = Known::find_lower(lower);
        (known.is_some() || is_plain_name(lower)).then_some(Name { known, len, upper })
    }
}

/// Lines that lie side by side where they came from, on their way into a block: they are copied together.
pub struct Lines<'h> {
    headers: &'h mut Headers,
    /// Fields that were there before. Those behind have their places from the first of these lines on.
    before: usize,
}

impl Headers {
    /// Begins to take lines that lie side by side.
    #[inline]
    pub fn begin_lines(&mut self) -> Lines<'_> {
        let before = self.fields.len();
        Lines { headers: self, before }
    }
}

impl Lines<'_> {
    /// Adds a line, which begins so many bytes behind the first one.
    #[inline]
    pub fn add(&mut self, line: &PlainLine, at: usize) {
        let known = line.known.map_or(0, |known| known.0);
        self.headers.note(known);
        self.headers.fields.push(Field {
            at: at as u32,
            value_len: line.value_len as u32,
            name_len: line.name_len as u16,
            known,
            flags: flags(true, line.upper),
        });
    }

    /// Takes the lines that were added, which are `wire`; with `lower` their names are stored in lower case.
    #[inline]
    pub fn finish(mut self, wire: &[u8], lower: bool) {
        let own = self.headers.fields.get(self.before..).unwrap_or_default();
        // Where one is not in it, all of them are left out.
        if own.last().is_none_or(|last| last.place().end > wire.len()) {
            return;
        }
        if self.headers.buf.capacity() - self.headers.buf.len() < wire.len() {
            self.headers.make_room(wire.len(), self.before);
        }
        let Headers { buf, fields, .. } = &mut *self.headers;
        let base = buf.len();
        put(buf, wire);
        for field in fields.get_mut(self.before..).unwrap_or_default() {
            field.at += base as u32;
            if lower && field.flags & UPPER != 0 {
                field.flags &= !UPPER;
                lower_name(buf.get_mut(field.at as usize..).unwrap_or_default(), field.name_len.into());
            }
        }
        self.before = fields.len();
    }
}

impl Drop for Lines<'_> {
    /// Forgets what was not taken.
    fn drop(&mut self) {
        self.headers.fields.truncate(self.before);
    }
}

/// Lowers the first bytes of a line.
#[inline(always)]
fn lower_name(line: &mut [u8], len: usize) {
    if let (Some(block), Some(before)) = (line.first_chunk_mut::<BLOCK>(), BEFORE.get(len)) {
        let bytes = u8x16::new(*block);
        let uppers = between(bytes, b'A', b'Z') & u8x16::new(*before);
        *block = (bytes | (uppers & u8x16::splat(0x20))).to_array();
    } else {
        line.get_mut(..len).unwrap_or_default().make_ascii_lowercase();
    }
}

/// For each length the bytes of a block that lie before it.
pub(super) const BEFORE: [[u8; BLOCK]; BLOCK + 1] = {
    let mut before = [[0; BLOCK]; BLOCK + 1];
    let mut len = 0;
    while len <= BLOCK {
        let mut at = 0;
        while at < len {
            before[len][at] = 0xff;
            at += 1;
        }
        len += 1;
    }
    before
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// What a line is, byte by byte.
    fn by_bytes(ahead: &[u8]) -> Option<PlainLine> {
        let name_len = ahead.iter().position(|b| *b == b':')?;
        let name = &ahead[..name_len];
        let rest = ahead[name_len..].strip_prefix(b": ")?;
        let value_len = rest.iter().position(|b| b.is_ascii_control())?;
        let (value, rest) = rest.split_at(value_len);
        let is = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let plain = !name.is_empty() && name.iter().all(is) && value.trim_ascii() == value;
        let [b'\r', b'\n', next, ..] = rest else { return None };
        let upper = name.iter().any(u8::is_ascii_uppercase);
        (plain && !matches!(next, b' ' | b'\t')).then_some(PlainLine {
            known: Known::find(name),
            name_len,
            upper,
            value_len,
        })
    }

    proptest! {
        /// Whatever is found is what byte by byte is found, and what is whole and near no end is found.
        #[test]
        fn lines_are_found_as_byte_by_byte(
            name in "[A-Za-z0-9_:\\x00é -]{0,50}|(?i)host|(?i)content-length|(?i)x-envoy-upstream-service-time|host\\x00",
            gap in ":|: |:  |::|: \\t",
            value in "[a-zA-Z0-9 ;=\\t\\x7fé]{0,70}",
            end in "\\r\\n|\\r|\\n|\\r\\n |\\r\\n\\t",
            behind in "[a-zA-Z:\\r\\n ]{0,40}",
        ) {
            let line = [name, gap, value, end, behind].concat();
            for to in 0..=line.len() {
                let ahead = &line.as_bytes()[..to];
                let (found, want) = (PlainLine::find(ahead), by_bytes(ahead));
                prop_assert!(found.is_none() || found == want, "{ahead:?}: {found:?}");
                if let Some(want) = want && want.name_len < 32 && to >= 40 {
                    prop_assert_eq!(found, Some(want), "{:?}", ahead);
                }
            }
        }
    }

    #[test]
    fn lines_are_copied_together_and_their_names_lowered() {
        let wire = b"Host: a\r\nX-Tenant: 7\r\naccept: */*\r\nX-Envoy-Upstream-Service-Time: 3\r\nTE: x\r\n";
        for lower in [true, false] {
            let mut headers = Headers::new();
            headers.append("first", b"1");
            let mut lines = headers.begin_lines();
            let mut at = 0;
            while let Some(line) =
                PlainLine::find(&[&wire[at..], b"Content-Length: 0\r\n".as_slice()].concat())
                && at < wire.len()
            {
                lines.add(&line, at);
                at += line.len();
            }
            lines.finish(wire, lower);
            let mut one_by_one = Headers::new();
            one_by_one.append("first", b"1");
            for (name, value) in [
                ("Host", "a"),
                ("X-Tenant", "7"),
                ("accept", "*/*"),
                ("X-Envoy-Upstream-Service-Time", "3"),
                ("TE", "x"),
            ] {
                let name = if lower { name.to_ascii_lowercase() } else { name.to_owned() };
                one_by_one.push(name.as_bytes(), value.as_bytes());
            }
            assert!(headers.iter_known().eq(one_by_one.iter_known()), "{headers:?}");
            assert_eq!(headers.wire(), one_by_one.wire());
            assert_eq!(headers.get(Known::HOST), Some(&b"a"[..]));
        }
    }

    /// What was dead stayed where lines were taken in one piece, and the arena grew by each of them.
    #[test]
    fn lines_that_come_and_go_leave_no_bytes() {
        let wire = b"X-Tenant: 0123456789012345678901234567890123456789\r\n";
        let line = PlainLine::find(&[&wire[..], b"Content-Length: 0\r\n"].concat()).unwrap();
        let mut headers = Headers::new();
        headers.append("first", b"1");
        for _ in 0..100 {
            headers.remove("x-tenant");
            let mut lines = headers.begin_lines();
            lines.add(&line, 0);
            lines.finish(wire, true);
        }
        let fields: [(&[u8], &[u8]); 2] = [(b"first", b"1"), (b"x-tenant", &wire[10..50])];
        assert!(headers.iter().eq(fields), "{headers:?}");
        assert!(headers.buf.capacity() <= super::super::FIRST, "{}", headers.buf.capacity());
    }

    /// The places of lines that are not taken are those of nothing.
    #[test]
    fn what_is_not_taken_leaves_nothing() {
        let line = PlainLine::find(b"Host: a.example\r\nAccept: */*\r\n").unwrap();
        let mut headers = Headers::new();
        headers.begin_lines().add(&line, 0);
        assert!(headers.is_empty());
        let mut lines = headers.begin_lines();
        lines.add(&line, 3);
        lines.finish(b"Host: a.example\r\n", true);
        assert!(headers.is_empty() && headers.get(Known::HOST).is_none());
    }
}
