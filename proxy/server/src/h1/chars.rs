//! Which bytes may stand where: one table, one bit a question.

use sixfold_core::headers::{control, has_blank, is_token, is_visible};

const TOKEN: u8 = 1;
const NGINX_NAME: u8 = 2;
const AUTHORITY: u8 = 4;
const URL_HOST: u8 = 8;

const TABLE: [u8; 256] = build();

const fn build() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        let mut bits = 0;
        if b.is_ascii_alphanumeric() {
            bits |= TOKEN | NGINX_NAME | AUTHORITY | URL_HOST;
        }
        if is_any(b, b"!#$%&'*+-.^_`|~") {
            bits |= TOKEN;
        }
        if is_any(b, b"-_") {
            bits |= NGINX_NAME;
        }
        if is_any(b, b"!$%&'()*+,-.:;=@[]_~") {
            bits |= AUTHORITY;
        }
        if is_any(b, b"-._") {
            bits |= URL_HOST;
        }
        table[i] = bits;
        i += 1;
    }
    table
}

/// The lower-case form of a byte that may stand in a token, else 0.
const LOWER: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        if TABLE[i] & TOKEN != 0 {
            table[i] = (i as u8).to_ascii_lowercase();
        }
        i += 1;
    }
    table
};

const fn is_any(b: u8, set: &[u8]) -> bool {
    let mut i = 0;
    while i < set.len() {
        if set[i] == b {
            return true;
        }
        i += 1;
    }
    false
}

#[inline]
fn all(bytes: &[u8], bit: u8) -> bool {
    bytes.iter().all(|b| TABLE[*b as usize] & bit != 0)
}

/// Whether no byte is `bad`. Looks at all of them without a branch, which compilers turn into vector code.
#[inline]
fn none(bytes: &[u8], bad: impl Fn(u8) -> bool) -> bool {
    !bytes.iter().fold(false, |any, b| any | bad(*b))
}

/// RFC 9110 `token`.
#[inline]
pub(super) fn token(bytes: &[u8]) -> bool {
    debug_assert!(bytes.is_empty() || all(bytes, TOKEN) == is_token(bytes));
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Names up to this length are checked and lowered in one go.
pub(super) const SHORT: usize = 40;

/// The `token` in lower case, written to `room`; `None` for what is no token, and for a longer one.
#[inline]
pub(super) fn lower_token<'r>(bytes: &[u8], room: &'r mut [u8; SHORT]) -> Option<&'r [u8]> {
    let lowered = room.get_mut(..bytes.len())?;
    let mut all = !bytes.is_empty();
    for (to, from) in lowered.iter_mut().zip(bytes) {
        *to = LOWER[*from as usize];
        all &= *to != 0;
    }
    all.then_some(lowered)
}

/// A header name that nginx takes for one (letters, digits, `-`, `_`).
#[inline]
pub(super) fn nginx_name(bytes: &[u8]) -> bool {
    all(bytes, NGINX_NAME)
}

/// A byte that makes nginx refuse a header line when it stands in the name.
#[inline]
pub(super) fn blank_or_control(b: u8) -> bool {
    b <= b' ' || b == 0x7f
}

/// What Envoy lets stand in a path and query.
#[inline]
pub(super) fn envoy_target(bytes: &[u8]) -> bool {
    is_visible(bytes)
}

/// What nginx lets stand in a request target: all but controls and blanks.
#[inline]
pub(super) fn nginx_target(bytes: &[u8]) -> bool {
    !has_blank(bytes)
}

/// What Envoy lets stand in an authority.
#[inline]
pub(super) fn authority(bytes: &[u8]) -> bool {
    all(bytes, AUTHORITY)
}

/// What Envoy lets stand in the host of an absolute URL.
#[inline]
pub(super) fn url_host(bytes: &[u8]) -> bool {
    all(bytes, URL_HOST)
}

/// A header value for Envoy: no control but the tab.
#[inline]
pub(super) fn envoy_value(bytes: &[u8]) -> bool {
    control(bytes).is_none() || none(bytes, |b| ((b < b' ') & (b != b'\t')) | (b == 0x7f))
}
