//! APISIX's preparation of the URI (`http_access_phase`): nginx's normalisation, then APISIX's options.
//!
//! Plugins and the upstream see a target; the router and `$uri` see the decoded path. Where the two differ,
//! the decoded one is kept among the stream's variables.

use super::Prepared;
use crate::hcm::ApisixPath;
use crate::stream::Stream;
use std::borrow::Cow;

/// The variable with the path that routes are matched against, where that is not `uri`.
pub(crate) const MATCH_URI: &str = "router_uri";

/// The variable with the safe spelling of the target, where that is not the raw one.
const SAFE_TARGET: &str = "router_target";

/// Puts the target back as the client sent it, unless a plugin has changed it: what APISIX's upstreams get.
pub(crate) fn restore_target(stream: &mut Stream) {
    if stream.original_target.is_empty() || stream.var(SAFE_TARGET) != Some(stream.request.target.full()) {
        return;
    }
    let cut = memchr::memchr(b'#', &stream.original_target).unwrap_or(stream.original_target.len());
    stream.request.target.set(stream.original_target.get(..cut).unwrap_or_default());
}

/// Says that the target is what the upstream gets, whatever the client sent: for a plugin that has made it.
pub fn settle_target(stream: &mut Stream) {
    stream.set_var(SAFE_TARGET, "");
}

/// Normalises the path as nginx does; the target becomes its safe spelling, and the raw one is kept in
/// `original_target`.
pub(super) fn prepare(options: ApisixPath, stream: &mut Stream) -> Prepared {
    const BAD: Prepared = Prepared::Reject(400, "");
    let target = &mut stream.request.target;
    if target.full().first() != Some(&b'/') {
        let connect = stream.request.method == http::Method::CONNECT;
        return if connect { Prepared::Ready } else { BAD };
    }
    let cut = memchr::memchr(b'#', target.full());
    let raw_path =
        target.path().get(..cut.unwrap_or(usize::MAX).min(target.path().len())).unwrap_or_default();
    let Some(normal) = normalize(raw_path) else { return BAD };
    let mut uri: &[u8] = &normal;
    if options.delete_tail_slash {
        uri = uri.strip_suffix(b"/").unwrap_or(uri);
    }
    let servlet = if options.like_servlet { like_servlet(uri) } else { Some(Cow::Borrowed(uri)) };
    let Some(uri) = servlet else { return BAD };
    if cut.is_none() && *normal == *target.path() && *uri == *target.path() {
        return Prepared::Ready;
    }
    let query =
        target.full().get(target.path().len()..cut.unwrap_or(target.full().len())).unwrap_or_default();
    let with_query = |path: &[u8]| [path, query].concat();
    let matched = if options.match_encoded_slash { keep_encoded_slash(raw_path, &uri) } else { None };
    let request_uri = with_query(&uri);
    let raw = target.full().to_vec();
    let safe = (cut.is_some() || *normal != *target.path()).then(|| with_query(&escape(&normal)));
    let parameters = options.like_servlet && *uri != *normal;
    let uri = uri.into_owned();
    if let Some(safe) = safe {
        stream.request.target.set(&safe);
        if !parameters {
            stream.original_target.clone_from(&raw);
            stream.set_var(SAFE_TARGET, safe);
        }
    }
    if let Some(matched) = matched {
        stream.set_var(MATCH_URI, matched);
    }
    stream.set_var("uri", uri);
    stream.set_var("request_uri", request_uri);
    stream.set_var("real_request_uri", raw);
    Prepared::Ready
}

/// nginx's `ngx_http_parse_complex_uri`: escapes decoded, dot segments resolved, runs of slashes merged.
/// `None` for what nginx answers with 400: a broken escape, a zero byte, `..` above the root.
pub(super) fn normalize(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut before = 0;
    let simple = path.iter().all(|&byte| {
        let plain = byte != 0 && byte != b'%' && !(before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        plain
    });
    if simple {
        return Some(Cow::Borrowed(path));
    }
    let mut out = Vec::with_capacity(path.len());
    // Where the current segment begins in `out`, and whether it is still made of dots that count.
    let mut start = 0;
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let byte = if first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            rest = tail;
            u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?, 16).ok()?
        } else {
            first
        };
        match byte {
            0 => return None,
            b'/' => {
                start = end_segment(&mut out, start)?;
                if out.last() != Some(&b'/') {
                    out.push(b'/');
                    start = out.len();
                }
            }
            _ => out.push(byte),
        }
    }
    end_segment(&mut out, start)?;
    Some(Cow::Owned(out))
}

/// Resolves the segment that begins at `start`; answers where the next one begins.
fn end_segment(out: &mut Vec<u8>, start: usize) -> Option<usize> {
    match out.get(start..)? {
        b"." => out.truncate(start),
        b".." => {
            // `out` is `…/parent/..`; the root has no parent.
            let above = start.checked_sub(2)?;
            let slash = memchr::memrchr(b'/', out.get(..=above)?)?;
            out.truncate(slash + 1);
        }
        _ => return Some(out.len()),
    }
    Some(out.len())
}

/// `normalize_uri_like_servlet`: drops `;…` of every segment. `None` for what a servlet container would take
/// for another path than the router does: dot segments, encoded ones, and empty segments but the last.
fn like_servlet(uri: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !uri.iter().any(|b| matches!(b, b';' | b'%')) {
        return Some(Cow::Borrowed(uri));
    }
    let mut out = Vec::with_capacity(uri.len());
    let segments = uri.strip_prefix(b"/").unwrap_or(uri).split(|b| *b == b'/');
    let last = segments.clone().count().saturating_sub(1);
    for (i, segment) in segments.enumerate() {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        let lower = name.to_ascii_lowercase();
        if matches!(lower.as_slice(), b"." | b".." | b"%2e" | b"%2e%2e") || (name.is_empty() && i != last) {
            return None;
        }
        out.push(b'/');
        out.extend_from_slice(name);
    }
    Some(Cow::Owned(out))
}

/// `match_uri_encoded_slash`: the path with `%2F` kept, if that is the only way in which it differs from
/// `uri` once decoded.
fn keep_encoded_slash(raw: &[u8], uri: &[u8]) -> Option<Vec<u8>> {
    let encoded = |at: &[u8]| matches!(at, [b'%', b'2', b'F' | b'f', ..]);
    if !raw.windows(3).any(encoded) || *percent_encoding::percent_decode(raw).collect::<Vec<u8>>() != *uri {
        return None;
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'%' && tail.len() >= 2 {
            let (digits, tail) = tail.split_at(2);
            rest = tail;
            if digits.eq_ignore_ascii_case(b"2f") {
                out.extend_from_slice(b"%2F");
            } else {
                let text = std::str::from_utf8(digits).unwrap_or_default();
                out.push(u8::from_str_radix(text, 16).unwrap_or(b'%'));
            }
        } else {
            out.push(first);
        }
    }
    Some(out)
}

/// A decoded path as it may be sent: bytes that would end it or break the request line are encoded.
pub fn escape(path: &[u8]) -> Cow<'_, [u8]> {
    fn is_unsafe(b: u8) -> bool {
        b <= b' '
            || b >= 0x7f
            || matches!(b, b'%' | b'?' | b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    }
    if !path.iter().any(|b| is_unsafe(*b)) {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len() + 8);
    for &byte in path {
        if is_unsafe(byte) {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
    Cow::Owned(out)
}
