//! Hop-by-hop fields: what a proxy must not pass on.

use sixfold_core::headers::{Headers, Known, KnownSet};

use super::error::H1Error;
use super::framing::tokens;
use super::options::Profile;

/// The fields that are of one connection; few messages have any.
const HOP_BY_HOP: KnownSet = KnownSet::of(&[
    Known::CONNECTION,
    Known::EXPECT,
    Known::KEEP_ALIVE,
    Known::PROXY_CONNECTION,
    Known::TE,
    Known::TRANSFER_ENCODING,
    Known::UPGRADE,
]);

/// Envoy refuses a Connection header with so many names, options counted.
pub(super) const MAX_OPTIONS: u8 = 10;
/// Envoy refuses a nominated TE longer than this, in bytes.
const MAX_TE_BYTES: usize = 256;

/// Removes the fields that Connection nominates, and their names from it, as Envoy's codec does before anything
/// else sees the request (`Utility::sanitizeConnectionHeader`). What stays of Connection serves the decision about
/// keep-alive and upgrades; [`strip_request`] removes it. nginx has no such step.
///
/// # Errors
/// [`H1Error::ConnectionHeader`] for 10 names and more, and for names whose removal would hide where a request came
/// from or went to: `x-forwarded-for`, `-host`, `-proto`, `host`, and pseudo-headers.
pub fn sanitize_connection(headers: &mut Headers) -> Result<(), H1Error> {
    let mut nominated: Vec<Vec<u8>> = Vec::new();
    let mut options: Vec<&[u8]> = Vec::new();
    for (count, token) in headers.get_all(Known::CONNECTION).flat_map(tokens).enumerate() {
        if count + 1 >= usize::from(MAX_OPTIONS) {
            return Err(H1Error::ConnectionHeader);
        }
        let lower = token.to_ascii_lowercase();
        match &lower[..] {
            b"close" | b"keep-alive" | b"upgrade" | b"http2-settings" => options.push(token),
            b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto" | b"host" => {
                return Err(H1Error::ConnectionHeader);
            }
            t if t.starts_with(b":") => return Err(H1Error::ConnectionHeader),
            // Framing is decided by these two; the codec removes or rewrites them itself.
            b"transfer-encoding" | b"content-length" | b"connection" => {}
            _ => nominated.push(lower),
        }
    }
    let options = options.join(&b","[..]);
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
    if options.is_empty() {
        headers.remove(Known::CONNECTION);
    } else {
        headers.set(Known::CONNECTION, &options);
    }
    Ok(())
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
    if !headers.may_have(&HOP_BY_HOP) {
        return;
    }
    headers.remove_known(|known| match known {
        Known::CONNECTION | Known::UPGRADE => !keep_upgrade,
        Known::KEEP_ALIVE | Known::TRANSFER_ENCODING => true,
        Known::PROXY_CONNECTION => profile != Profile::Apisix,
        Known::TE | Known::EXPECT => profile != Profile::Envoy,
        _ => false,
    });
}

/// Removes what must not reach the client. `keep_upgrade` is for a 101 that answers an upgrade.
pub fn strip_response(headers: &mut Headers, keep_upgrade: bool, profile: Profile) {
    if !headers.may_have(&HOP_BY_HOP) {
        return;
    }
    if keep_upgrade && profile == Profile::Apisix && headers.contains(Known::CONNECTION) {
        // nginx says it itself, once, whatever the upstream said.
        headers.set(Known::CONNECTION, b"upgrade");
    }
    headers.remove_known(|known| match known {
        Known::CONNECTION => !keep_upgrade,
        Known::UPGRADE => !keep_upgrade && profile != Profile::Apisix,
        Known::KEEP_ALIVE | Known::TRANSFER_ENCODING => true,
        Known::PROXY_CONNECTION => profile != Profile::Apisix,
        _ => false,
    });
}

fn accepts_trailers(te: &[u8]) -> bool {
    tokens(te).any(|t| t.eq_ignore_ascii_case(b"trailers"))
}
