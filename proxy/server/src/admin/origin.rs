//! Who may ask the interface: the operator and their tools, and no page in a browser on the same machine.
//!
//! A page may send requests to any address, and one whose name was made to point here (DNS rebinding) may read the
//! answers too: its Host and Origin agree, but the name is its own. So a command is answered under addresses, names of
//! the operator, and names that nobody can own in the public DNS; where a header shows a page, not under the last.

use super::Admin;
use crate::surface::{Query, Reply};
use http::header::{self, HeaderName};
use http::{HeaderMap, StatusCode};
use std::net::IpAddr;

/// Last labels that are delegated to nobody: RFC 6761 (`test`, `localhost`, `invalid`), RFC 6762 (`local`, with
/// Kubernetes's `cluster.local`), ICANN's `internal`, and Kubernetes's `svc`.
const DELEGATED_TO_NOBODY: [&str; 6] = ["test", "localhost", "invalid", "local", "internal", "svc"];

/// What browsers add of their own accord.
const BROWSER: [HeaderName; 3] = [header::ORIGIN, header::REFERER, HeaderName::from_static("sec-fetch-site")];

impl Admin {
    /// The answer to a request under a name that may be a page's, or from a page of another origin. Commands for
    /// `any_host` are answered under every name to what is no browser: monitors have names of their own.
    pub(super) fn refuse_page(&self, query: &Query, any_host: bool) -> Option<Reply> {
        let browser = BROWSER.iter().any(|name| query.headers.contains_key(name));
        if (browser || !any_host) && !self.knows_host(&query.headers, browser) {
            return Some(Reply::text(
                StatusCode::FORBIDDEN,
                "Host must be an address, localhost or a configured name\n",
            ));
        }
        is_foreign(&query.headers)
            .then(|| Reply::text(StatusCode::FORBIDDEN, "requests from other origins are refused\n"))
    }

    /// Whether a request names this interface as its operator does, or as no page can.
    fn knows_host(&self, headers: &HeaderMap, browser: bool) -> bool {
        let Some(host) = headers.get(header::HOST) else { return true };
        let Ok(host) = host.to_str() else { return false };
        let name = without_port(host);
        let address = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(name);
        address.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
            || (!browser && is_nobodys(name))
    }
}

/// A Host without its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether the Origin, if there is one, is not the interface's own.
fn is_foreign(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| {
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        origin.to_str().ok().and_then(|o| o.split_once("://")).is_none_or(|(_, o)| o != host)
    })
}

/// Whether nobody can own `name` in the public DNS: a single label, or one below [`DELEGATED_TO_NOBODY`].
fn is_nobodys(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.split('.').all(is_label)
        && (last == name || DELEGATED_TO_NOBODY.iter().any(|known| known.eq_ignore_ascii_case(last)))
}
