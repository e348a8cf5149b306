//! Envoy's `normalize_path`: what the URL library of Chromium does to a path.

use std::borrow::Cow;

/// The canonical form of a path without its query: unreserved characters decoded, backslashes turned, dot
/// segments resolved, unsafe characters encoded. `None` when it holds a zero byte, encoded or not.
///
/// Parameters of a dot segment (`/.;x/`, `/..;x/`) go first, as in Envoy: servlet containers take them off, and see
/// the dots. Here they also go behind dots that are encoded.
///
/// Escapes of other characters keep their spelling, broken ones stay, runs of slashes stay, and `..` above
/// the root stays at the root.
pub(super) fn canonicalize(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if is_canonical(path) {
        return Some(Cow::Borrowed(path));
    }
    let path = &*without_dot_parameters(path);
    let mut out = Vec::with_capacity(path.len() + 8);
    // Where a `%` went out that begins no escape: what is decoded right after it must not make it one.
    let mut stray: Option<usize> = None;
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if let Some(dot) = dot(path, at) {
            at += dot;
            if out.last() != Some(&b'/') {
                out.push(b'.');
            } else if let Some(len) = one_up(path, at) {
                at += len;
                back_up(&mut out);
            } else if let Some(len) = segment_end(path, at) {
                at += len;
            } else {
                out.push(b'.');
            }
            continue;
        }
        at += 1;
        match byte {
            0 => return None,
            b'\\' => out.push(b'/'),
            b'%' => match path.get(at).zip(path.get(at + 1)).and_then(|(a, b)| hex(*a, *b)) {
                None => {
                    stray = Some(out.len());
                    out.push(b'%');
                }
                Some(0) => return None,
                Some(decoded) if is_unreserved(decoded) => {
                    at += 2;
                    out.push(decoded);
                    guard_stray(&mut out, stray, path.get(at).copied());
                }
                Some(_) => {
                    out.extend_from_slice(path.get(at - 1..at + 2)?);
                    at += 2;
                }
            },
            _ if is_safe(byte) => out.push(byte),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    Some(Cow::Owned(out))
}

/// Whether there is nothing to do, told in one pass.
fn is_canonical(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|&byte| {
        let plain = is_safe(byte) && byte != b'\\' && !(byte == b'.' && before == b'/');
        before = byte;
        plain
    })
}

/// The length of a dot, plain or encoded, at `at`.
fn dot(path: &[u8], at: usize) -> Option<usize> {
    match path.get(at..)? {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'e' | b'E', ..] => Some(3),
        _ => None,
    }
}

/// The path with `;…` taken off every segment of plain dots; segments end at `/` alone.
fn without_dot_parameters(path: &[u8]) -> Cow<'_, [u8]> {
    let cut = |segment: &[u8]| match segment {
        [b'.', b';', ..] => Some(1),
        [b'.', b'.', b';', ..] => Some(2),
        _ => None,
    };
    let segments = || path.split(|b| *b == b'/');
    if !segments().any(|segment| cut(segment).is_some()) {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len());
    for (i, segment) in segments().enumerate() {
        if i > 0 {
            out.push(b'/');
        }
        out.extend_from_slice(segment.get(..cut(segment).unwrap_or(segment.len())).unwrap_or_default());
    }
    Cow::Owned(out)
}

/// After a dot that begins a segment: the length of the rest, with its parameters, if the segment was that dot alone.
fn segment_end(path: &[u8], at: usize) -> Option<usize> {
    match path.get(at) {
        None => Some(0),
        Some(b'/' | b'\\') => Some(1),
        Some(b';') => {
            let rest = path.get(at..)?;
            Some(rest.iter().position(|b| matches!(b, b'/' | b'\\')).map_or(rest.len(), |end| end + 1))
        }
        Some(_) => None,
    }
}

/// After a dot that begins a segment: the length of the rest, if the segment is `..` or `..;parameters`.
fn one_up(path: &[u8], at: usize) -> Option<usize> {
    let second = dot(path, at)?;
    Some(second + segment_end(path, at + second)?)
}

/// Drops the last segment. The output ends with a slash before and after.
fn back_up(out: &mut Vec<u8>) {
    if out.len() > 1 {
        out.pop();
        let keep = memchr::memrchr(b'/', out).map_or(1, |slash| slash + 1);
        out.truncate(keep);
    }
}

/// Encodes a stray `%` if the byte decoded last, with the next one, would make it an escape.
fn guard_stray(out: &mut Vec<u8>, stray: Option<usize>, next: Option<u8>) {
    let Some(at) = stray else { return };
    let escape = match out.get(at + 1..) {
        Some([a, b]) => hex(*a, *b),
        Some([a]) => next.and_then(|b| hex(*a, b)),
        _ => None,
    };
    if escape.is_some() {
        out.splice(at..=at, *b"%25");
    }
}

fn hex(a: u8, b: u8) -> Option<u8> {
    let digit = |c: u8| char::from(c).to_digit(16);
    u8::try_from(digit(a)? * 16 + digit(b)?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// A byte that may stand in a canonical path; `%` is looked at on its own.
fn is_safe(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(byte, b'"' | b'#' | b'%' | b'<' | b'>' | b'?' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
}
