//! Percent-encoding of URIs, as nginx does it.

/// nginx's `NGX_ESCAPE_URI`: a path.
pub(crate) fn escape(path: &[u8]) -> Vec<u8> {
    percent(
        path,
        |b| matches!(b, 0..=b' ' | 0x7F.. | b'"' | b'#' | b'%' | b'<' | b'>' | b'?' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'),
    )
}

/// What no query may have; its delimiters stay.
pub(crate) fn escape_control(query: &[u8]) -> Vec<u8> {
    percent(query, |b| matches!(b, 0..=b' ' | 0x7F))
}

/// What no URI can have; what parts one stays.
pub(crate) fn escape_unwritable(text: Vec<u8>) -> Vec<u8> {
    let escaped = |b: u8| matches!(b, 0..=b' ' | 0x7F.. | b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
    if text.iter().any(|b| escaped(*b)) { percent(&text, escaped) } else { text }
}

fn percent(text: &[u8], escaped: impl Fn(u8) -> bool) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len() + 8);
    for byte in text {
        if escaped(*byte) {
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            out.push(*byte);
        }
    }
    out
}

/// What would end the line of a header; the rest stays as it is.
pub(crate) fn escape_line_ends(text: Vec<u8>) -> Vec<u8> {
    let ends = |b: u8| matches!(b, b'\r' | b'\n' | 0);
    if text.iter().any(|b| ends(*b)) { percent(&text, ends) } else { text }
}
