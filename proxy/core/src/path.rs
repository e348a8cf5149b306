//! Making a request's path and host ready for matching.
//!
//! Envoy's order (common/http/conn_manager_utility.cc `maybeNormalizePath`, common/http/path_utility.cc):
//! fragment, escaped slashes, RFC 3986 normalisation, runs of slashes; then what is taken off the host.
//! APISIX's is nginx's normalisation and its own options ([`nginx`]).

mod canonical;
mod nginx;
#[cfg(test)]
mod tests;

use crate::hcm::{EscapedSlashes, PathOptions};
use crate::headers::find;
use crate::message::Method;
use crate::stream::Stream;
use std::borrow::Cow;

pub(crate) use nginx::{MATCH_URI, restore_target};
pub use nginx::{escape, settle_target};

/// What became of a request's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// The request may go on.
    Ready,
    /// The request is answered with this status and these response code details.
    Reject(u16, &'static str),
    /// The client is sent to this path by 307.
    Redirect(Vec<u8>),
}

const FAILED: Prepared = Prepared::Reject(400, "path_normalization_failed");

/// Prepares path and host of the request. The target as it came is kept in `stream.original_target` if the
/// path was changed by APISIX's rules; Envoy forgets it.
pub fn prepare(options: &PathOptions, stream: &mut Stream) -> Prepared {
    if let Some(apisix) = options.apisix {
        return nginx::prepare(apisix, stream);
    }
    let prepared = prepare_path(options, stream);
    if prepared == Prepared::Ready {
        let port = stream.connection.local.port();
        strip_host(options, port, &mut stream.request.authority);
    }
    prepared
}

fn prepare_path(options: &PathOptions, stream: &mut Stream) -> Prepared {
    let target = &mut stream.request.target;
    match target.full().first() {
        // CONNECT has no path; nothing else may lack one.
        None if stream.request.method == Method::CONNECT => return Prepared::Ready,
        None => return Prepared::Reject(404, "missing_path_rejected"),
        Some(b'/') => {}
        Some(_) if stream.request.method == Method::CONNECT => return Prepared::Ready,
        Some(_) => return Prepared::Reject(404, "absolute_path_rejected"),
    }
    if let Some(fragment) = find(b'#', target.full()) {
        if !options.cut_fragment {
            return FAILED;
        }
        target.truncate(fragment);
    }
    let mut prepared = Prepared::Ready;
    if options.escaped_slashes != EscapedSlashes::Keep
        && let Cow::Owned(path) = unescape_slashes(target.path())
    {
        target.set_path(&path);
        match options.escaped_slashes {
            EscapedSlashes::Reject => return FAILED,
            // To what is normalised too, so that the client comes back with a path that stays.
            EscapedSlashes::UnescapeAndRedirect => prepared = Prepared::Redirect(Vec::new()),
            _ => {}
        }
    }
    if options.normalize {
        match canonical::canonicalize(target.path()) {
            None => return FAILED,
            Some(Cow::Owned(path)) => target.set_path(&path),
            Some(Cow::Borrowed(_)) => {}
        }
    }
    if options.merge_slashes
        && let Cow::Owned(path) = merge_slashes(target.path())
    {
        target.set_path(&path);
    }
    if let Prepared::Redirect(to) = &mut prepared {
        to.extend_from_slice(target.full());
    }
    prepared
}

/// Decodes `%2F` and `%5C`, in either case.
fn unescape_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    let slash = |at: usize| match path.get(at..at + 3) {
        Some([b'%', b'2', b'F' | b'f']) => Some(b'/'),
        Some([b'%', b'5', b'C' | b'c']) => Some(b'\\'),
        _ => None,
    };
    let Some(first) = memchr::memchr_iter(b'%', path).find(|at| slash(*at).is_some()) else {
        return Cow::Borrowed(path);
    };
    let (head, mut rest) = path.split_at(first);
    let mut out = head.to_vec();
    while let Some((byte, tail)) = rest.split_first() {
        match slash(path.len() - rest.len()) {
            Some(decoded) => {
                out.push(decoded);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    Cow::Owned(out)
}

/// Joins the non-empty segments. A path of slashes alone keeps its first and its last, as Envoy does.
fn merge_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memmem::find(path, b"//").is_none() {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in path.split(|b| *b == b'/').filter(|s| !s.is_empty()) {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    if path.ends_with(b"/") {
        out.push(b'/');
    }
    Cow::Owned(out)
}

/// Takes a dot at the end of the name and a port off the host (`strip_trailing_host_dot`,
/// `strip_any_host_port`, `strip_matching_host_port`).
fn strip_host(options: &PathOptions, listener_port: u16, authority: &mut Vec<u8>) {
    if options.strip_trailing_dot {
        let end = crate::message::strip_port(authority).len();
        if end > 0 && authority.get(end - 1) == Some(&b'.') {
            authority.remove(end - 1);
        }
    }
    if !options.strip_any_port && !options.strip_matching_port {
        return;
    }
    let end = crate::message::strip_port(authority).len();
    let port = authority.get(end + 1..).and_then(|p| std::str::from_utf8(p).ok()?.parse::<u16>().ok());
    if port.is_some_and(|port| options.strip_any_port || port == listener_port) {
        authority.truncate(end);
    }
}
