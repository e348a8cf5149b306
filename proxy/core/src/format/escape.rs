//! What becomes of bytes in values that could break the output apart.

/// How values are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Escape {
    /// Not at all.
    #[default]
    None,
    /// Control bytes become spaces: for header values.
    Header,
    /// Control bytes as `\xHH`: for text logs.
    Control,
    /// nginx's `default`: `"`, `\`, control bytes and bytes above 126 as `\xHH`.
    Nginx,
    /// nginx's `json`: as inside a JSON string.
    Json,
}

impl Escape {
    /// Whether text without controls stays as it is.
    #[inline]
    pub(super) fn leaves_plain(self) -> bool {
        matches!(self, Escape::None | Escape::Header | Escape::Control)
    }

    /// Escapes what `out` holds from `start` on.
    pub(super) fn apply(self, out: &mut Vec<u8>, start: usize) {
        let Some(value) = out.get(start..) else { return };
        let clean = match self {
            Escape::None => true,
            Escape::Header => none(value, breaks_header),
            Escape::Control => none(value, is_control),
            Escape::Nginx => none(value, nginx_escapes),
            Escape::Json => json_clean(value),
        };
        if clean {
            return;
        }
        let value = out.split_off(start);
        match self {
            Escape::None => out.extend_from_slice(&value),
            Escape::Header => out.extend(value.iter().map(|b| if breaks_header(*b) { b' ' } else { *b })),
            Escape::Control => hex(out, &value, is_control),
            Escape::Nginx => hex(out, &value, nginx_escapes),
            Escape::Json => json(out, &value),
        }
    }
}

/// Whether no byte is `bad`. Looks at all of them without a branch, which compilers turn into vector code.
#[inline]
fn none(bytes: &[u8], bad: impl Fn(u8) -> bool) -> bool {
    !bytes.iter().fold(false, |any, b| any | bad(*b))
}

#[inline]
fn is_control(b: u8) -> bool {
    (b < 0x20) | (b == 0x7f)
}

/// A tab is legal in a header value (RFC 9110 section 5.5).
fn breaks_header(b: u8) -> bool {
    is_control(b) & (b != b'\t')
}

fn nginx_escapes(b: u8) -> bool {
    !(0x20..=0x7e).contains(&b) | (b == b'"') | (b == b'\\')
}

/// Whether the bytes may stand in a JSON string as they are.
pub(super) fn json_clean(value: &[u8]) -> bool {
    none(value, |b| (b < 0x20) | (b == b'"') | (b == b'\\') | (b >= 0x7f))
}

fn hex(out: &mut Vec<u8>, value: &[u8], escapes: fn(u8) -> bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for b in value {
        if escapes(*b) {
            let (high, low) = (DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]);
            out.extend_from_slice(&[b'\\', b'x', high, low]);
        } else {
            out.push(*b);
        }
    }
}

/// Appends the inside of a JSON string. In what is no UTF-8 every byte that is no ASCII is taken for the character of its
/// number, as Envoy does.
pub(super) fn json(out: &mut Vec<u8>, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(text) => json_chars(out, text.chars()),
        Err(_) => {
            for b in value {
                match b {
                    0x80.. => out.extend_from_slice(format!("\\u{:04x}", *b).as_bytes()),
                    _ => json_chars(out, std::iter::once(char::from(*b))),
                }
            }
        }
    }
}

fn json_chars(out: &mut Vec<u8>, text: impl Iterator<Item = char>) {
    for c in text {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
