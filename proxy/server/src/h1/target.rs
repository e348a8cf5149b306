//! Forms of a request target other than the origin form (RFC 9112 section 3.2).

use std::net::Ipv6Addr;

use sixfold_core::headers::{find, is_plain_authority};
use sixfold_core::message::{Method, RequestHead, Scheme};

use super::chars;
use super::error::H1Error;
use super::options::{H1Options, Profile};

/// Turns the target as it came off the wire into authority and origin form, once the head is complete.
///
/// An absolute target's host replaces the Host header and its userinfo is dropped (RFC 9112 section 3.2.2,
/// Envoy's `handlePath`); CONNECT's target becomes the authority and leaves the target empty; `*` stays for
/// OPTIONS. Returns the scheme of an absolute target.
pub(super) fn resolve(
    head: &mut RequestHead,
    has_host: bool,
    opts: &H1Options,
) -> Result<Option<Scheme>, H1Error> {
    let raw = head.target.full();
    if head.method == Method::CONNECT {
        let raw = raw.to_vec();
        if has_port(&raw) != Some(true) {
            return Err(H1Error::InvalidUrl);
        }
        head.authority.clear();
        head.authority.extend_from_slice(&raw);
        head.target.clear();
        keep_sent(head, &raw, opts);
        return Ok(None);
    }
    match (raw, opts.profile) {
        ([b'/', ..], _) => return Ok(None),
        ([b'*', ..], Profile::Envoy) if head.method == Method::OPTIONS => return Ok(None),
        (_, Profile::Envoy) if !opts.allow_absolute_url => return Ok(None),
        _ => {}
    }
    let raw = raw.to_vec();
    let url = Absolute::parse(&raw, opts.profile).ok_or(H1Error::InvalidUrl)?;
    let scheme = Scheme::parse(url.scheme);
    if scheme.is_none() && opts.profile == Profile::Envoy {
        return Err(H1Error::InvalidScheme);
    }
    if opts.strict && has_host && !head.authority.eq_ignore_ascii_case(url.authority) {
        return Err(H1Error::InvalidAuthority);
    }
    head.authority.clear();
    head.authority.extend_from_slice(url.authority);
    match url.path {
        [] => head.target.set(b"/"),
        // nginx puts the missing slash in; Envoy leaves `?query`, which has no route.
        [b'?', ..] if opts.profile == Profile::Apisix => head.target.set(&[b"/", url.path].concat()),
        path => head.target.set(path),
    }
    if let Some(scheme) = scheme {
        head.scheme = scheme;
    }
    keep_sent(head, &raw, opts);
    Ok(scheme.filter(|_| opts.profile == Profile::Envoy))
}

/// Keeps the target of the request line for nginx's log, which Envoy's has no operator for.
fn keep_sent(head: &mut RequestHead, raw: &[u8], opts: &H1Options) {
    if opts.profile == Profile::Apisix {
        head.sent.get_or_insert_default().target.extend_from_slice(raw);
    }
}

/// Whether the bytes of a target can be one at all, told before the header fields are read. This is Envoy's
/// `isUrlValid` and the states of nginx's request line parser.
pub(super) fn check_syntax(raw: &[u8], connect: bool, opts: &H1Options) -> Result<(), H1Error> {
    const BAD: H1Error = H1Error::Malformed("bad request target");
    if raw.is_empty() || !is_valid(raw, opts.profile) {
        return Err(BAD);
    }
    if opts.strict && raw.contains(&b'#') {
        return Err(BAD);
    }
    match (raw, opts.profile) {
        ([b'/', ..], _) | ([b'*', ..], Profile::Envoy) => Ok(()),
        (_, Profile::Apisix) => Ok(()),
        (_, Profile::Envoy) => {
            let rest = if connect { raw } else { split_scheme(raw).ok_or(BAD)?.1 };
            let host = rest.split(|b| matches!(b, b'/' | b'?')).next().unwrap_or_default();
            if chars::authority(host) && !host.windows(2).any(|w| w == b"@@") { Ok(()) } else { Err(BAD) }
        }
    }
}

/// Whether the bytes may stand in a target at all.
#[inline]
pub(super) fn is_valid(raw: &[u8], profile: Profile) -> bool {
    match profile {
        Profile::Envoy => chars::envoy_target(raw),
        Profile::Apisix => chars::nginx_target(raw),
    }
}

struct Absolute<'a> {
    scheme: &'a [u8],
    authority: &'a [u8],
    path: &'a [u8],
}

impl Absolute<'_> {
    fn parse(raw: &[u8], profile: Profile) -> Option<Absolute<'_>> {
        let (scheme, rest) = split_scheme(raw)?;
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let (mut authority, path) = rest.split_at_checked(end)?;
        if profile == Profile::Envoy
            && let Some(at) = memchr::memchr(b'@', authority)
        {
            authority = authority.get(at + 1..)?;
        }
        has_port(authority)?;
        Some(Absolute { scheme, authority, path })
    }
}

/// `scheme://rest`; the scheme starts with a letter.
fn split_scheme(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memmem::find(raw, b"://")?;
    let (scheme, rest) = raw.split_at_checked(at)?;
    let letters = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    letters.then_some((scheme, rest.get(3..)?))
}

/// Whether `host[:port]` has a port; `None` if it is none. An IPv6 literal stands in brackets.
fn has_port(authority: &[u8]) -> Option<bool> {
    let rest = if authority.first() == Some(&b'[') {
        let end = memchr::memchr(b']', authority)?;
        let literal = std::str::from_utf8(authority.get(1..end)?).ok()?;
        literal.parse::<Ipv6Addr>().ok()?;
        authority.get(end + 1..)?
    } else {
        let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
        let (host, rest) = authority.split_at_checked(end)?;
        if host.is_empty() || !chars::url_host(host) {
            return None;
        }
        rest
    };
    match rest {
        [] => Some(false),
        [b':', port @ ..] if port.len() <= 5 => {
            super::framing::parse_length(port).filter(|n| *n <= 0xffff).map(|_| true)
        }
        _ => None,
    }
}

/// Whether an authority may be passed on: that of Host, of an absolute target, or HTTP/2's `:authority`. Userinfo is
/// refused everywhere (RFC 9110 section 4.2.4, RFC 9113 section 8.3.1). nginx also refuses empty labels; one dot at
/// the end is none.
///
/// # Errors
/// [`H1Error::InvalidAuthority`].
pub(crate) fn check_authority(authority: &[u8], profile: Profile) -> Result<(), H1Error> {
    if profile == Profile::Envoy && is_plain_authority(authority) {
        return Ok(());
    }
    let ok = match profile {
        Profile::Envoy => chars::authority(authority),
        Profile::Apisix => {
            has_labels(authority) && !authority.iter().any(|b| chars::blank_or_control(*b) || *b == b'/')
        }
    };
    if ok && find(b'@', authority).is_none() { Ok(()) } else { Err(H1Error::InvalidAuthority) }
}

/// Whether there is a host, and no label of it is empty but the first (`ngx_http_validate_host`).
fn has_labels(authority: &[u8]) -> bool {
    let host = sixfold_core::message::strip_port(authority);
    !matches!(host, b"" | b".") && !host.windows(2).any(|pair| pair == b"..")
}
