//! Hop-by-hop fields: what a proxy must not pass on.

use sixfold_core::headers::{Headers, Known};

use super::error::H1Error;
use super::framing::tokens;
use super::options::Profile;

/// Envoy refuses a Connection header that nominates more fields than this.
const MAX_NOMINATED: usize = 10;
/// Envoy refuses a nominated TE longer than this, in bytes.
const MAX_TE_BYTES: usize = 256;

/// Removes the fields that Connection nominates, as Envoy's codec does before anything else sees the request
/// (`Utility::sanitizeConnectionHeader`). Connection itself stays, for the decision about keep-alive and
/// upgrades; [`strip_request`] removes it. nginx has no such step.
///
/// # Errors
/// [`H1Error::ConnectionHeader`] for more than 10 nominated names, and for names whose removal would hide
/// where a request came from: `x-forwarded-for`, `-host`, `-proto`, and pseudo-headers.
pub fn sanitize_connection(headers: &mut Headers) -> Result<(), H1Error> {
    let mut nominated: Vec<Vec<u8>> = Vec::new();
    let mut count = 0;
    for token in headers.get_all(Known::CONNECTION).flat_map(tokens) {
        count += 1;
        if count > MAX_NOMINATED {
            return Err(H1Error::ConnectionHeader);
        }
        let token = token.to_ascii_lowercase();
        match &token[..] {
            b"close" | b"keep-alive" | b"upgrade" | b"http2-settings" | b"connection" => {}
            b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto" => {
                return Err(H1Error::ConnectionHeader);
            }
            t if t.starts_with(b":") => return Err(H1Error::ConnectionHeader),
            // Framing is decided by these two; the codec removes or rewrites them itself.
            b"transfer-encoding" | b"content-length" => {}
            _ => nominated.push(token),
        }
    }
    let te = nominated.iter().any(|n| n == b"te");
    if te && headers.get(Known::TE).is_some_and(|v| v.len() >= MAX_TE_BYTES) {
        return Err(H1Error::ConnectionHeader);
    }
    if !nominated.is_empty() {
        headers.retain(|_, name, value| {
            !nominated.iter().any(|n| n.eq_ignore_ascii_case(name))
                || (name.eq_ignore_ascii_case(b"te") && accepts_trailers(value))
        });
    }
    Ok(())
}

/// Envoy ignores `Upgrade: h2c`: both fields and HTTP2-Settings go, other connection options stay.
pub(super) fn drop_h2c(headers: &mut Headers) {
    headers.remove(Known::UPGRADE);
    headers.remove(Known::HTTP2_SETTINGS);
    let rest: Vec<&[u8]> = headers
        .get_all(Known::CONNECTION)
        .flat_map(tokens)
        .filter(|t| !t.eq_ignore_ascii_case(b"upgrade") && !t.eq_ignore_ascii_case(b"http2-settings"))
        .collect();
    let rest = rest.join(&b","[..]);
    if rest.is_empty() {
        headers.remove(Known::CONNECTION);
    } else {
        headers.set(Known::CONNECTION, &rest);
    }
}

/// Removes what must not reach the upstream. `keep_upgrade` keeps Connection and Upgrade of a request that is
/// passed on as an upgrade. Transfer-Encoding always goes: the encoder makes its own.
pub fn strip_request(headers: &mut Headers, keep_upgrade: bool, profile: Profile) {
    if profile == Profile::Envoy
        && let Some(value) = headers.get(Known::TE)
    {
        let exact = value == b"trailers";
        if !accepts_trailers(value) {
            headers.remove(Known::TE);
        } else if !exact {
            headers.set(Known::TE, b"trailers");
        }
    }
    headers.retain(|known, _, _| match known {
        Some(Known::CONNECTION | Known::UPGRADE) => keep_upgrade,
        Some(Known::KEEP_ALIVE | Known::TRANSFER_ENCODING) => false,
        Some(Known::PROXY_CONNECTION) => profile == Profile::Apisix,
        Some(Known::TE | Known::EXPECT) => profile == Profile::Envoy,
        _ => true,
    });
}

/// Removes what must not reach the client. `keep_upgrade` is for a 101 that answers an upgrade.
pub fn strip_response(headers: &mut Headers, keep_upgrade: bool, profile: Profile) {
    headers.retain(|known, _, _| match known {
        Some(Known::CONNECTION) => keep_upgrade,
        Some(Known::UPGRADE) => keep_upgrade || profile == Profile::Apisix,
        Some(Known::KEEP_ALIVE | Known::TRANSFER_ENCODING) => false,
        Some(Known::PROXY_CONNECTION) => profile == Profile::Apisix,
        _ => true,
    });
}

fn accepts_trailers(te: &[u8]) -> bool {
    tokens(te).any(|t| t.eq_ignore_ascii_case(b"trailers"))
}
