//! The one place that decides whether a request asks for another protocol, and for which.

use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::RequestHead;

use super::framing::{FramingFields, tokens};
use super::options::Profile;

/// Decides for a request with an Upgrade field. What is left says the same as the answer: one Upgrade field with
/// what was agreed on, or none. So no later hop can find a second protocol there.
///
/// Envoy takes the whole value for one type (`Utility::isUpgrade`), and `h2c` for none. nginx passes on whatever
/// came; for APISIX, which only knows WebSocket, that one token is picked out of the list, else the first, and
/// Connection names nothing else.
pub(super) fn agree(head: &mut RequestHead, fields: &FramingFields, profile: Profile) -> bool {
    if profile == Profile::Apisix {
        head.withhold(Known::UPGRADE);
        head.withhold(Known::CONNECTION);
    }
    let headers = &mut head.headers;
    let agreed = fields.connection_upgrade.then(|| wanted(headers, profile)).flatten();
    let Some(protocol) = agreed else {
        decline(headers);
        return false;
    };
    if profile == Profile::Apisix {
        headers.set(Known::UPGRADE, &protocol);
        headers.set(Known::CONNECTION, b"upgrade");
        headers.remove(Known::HTTP2_SETTINGS);
    }
    true
}

/// Envoy's `Utility::isUpgrade`: both `Connection: upgrade` and an Upgrade field.
pub(crate) fn is_upgrade(headers: &Headers) -> bool {
    let mut options = headers.get_all(Known::CONNECTION).flat_map(tokens);
    headers.contains(Known::UPGRADE) && options.any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

fn wanted(headers: &Headers, profile: Profile) -> Option<Vec<u8>> {
    let list = || headers.get_all(Known::UPGRADE).flat_map(tokens);
    let first = match profile {
        Profile::Envoy => {
            headers.get(Known::UPGRADE).filter(|v| !v.is_empty() && !v.eq_ignore_ascii_case(b"h2c"))
        }
        Profile::Apisix => list().find(|t| t.eq_ignore_ascii_case(b"websocket")).or_else(|| list().next()),
    };
    first.map(<[u8]>::to_vec)
}

/// Takes off what asks for a protocol; other options of Connection stay.
fn decline(headers: &mut Headers) {
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
