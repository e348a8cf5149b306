//! Copies of requests for other clusters (config/route/v3 RouteAction.RequestMirrorPolicy;
//! source/common/router/shadow_writer_impl.cc).

use crate::header_ops::{HeaderOps, Side};
use crate::message::{RequestHead, strip_port};
use crate::plugin::OwnHeaders;
use crate::route::ClusterChoice;
use crate::runtime::Fraction;
use crate::stream::Stream;
use std::net::IpAddr;

/// Put behind the host's name, before any port.
const SUFFIX: &[u8] = b"-shadow";

/// Which requests are copied, where to, and how copies differ from them.
#[derive(Debug)]
pub struct MirrorPolicy {
    /// Where to. What names no cluster gets no copy.
    pub cluster: ClusterChoice,
    /// Share of requests; `None` is all.
    pub fraction: Option<Fraction>,
    /// `request_headers_mutations`: one after the other, each upon what the one before has left.
    pub changes: Box<[HeaderOps]>,
    /// Host of copies.
    pub host: MirrorHost,
}

/// Host of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MirrorHost {
    /// The request's with `-shadow`, before any port.
    #[default]
    Suffixed,
    /// The request's (`disable_shadow_host_suffix_append`).
    Kept,
    /// This one (`host_rewrite_literal`).
    Literal(Box<[u8]>),
}

impl MirrorPolicy {
    /// Copies of all requests.
    pub fn to(cluster: ClusterChoice) -> MirrorPolicy {
        MirrorPolicy { cluster, fraction: None, changes: Box::default(), host: MirrorHost::default() }
    }

    /// Whether the request is among those that are copied.
    pub fn wants(&self, stream: &Stream) -> bool {
        self.fraction.as_ref().is_none_or(|fraction| fraction.draw(stream.random))
    }

    /// The head of the copy: the request's as it goes to its own cluster, with the changes of the policy, and with what
    /// Envoy's client for requests of its own adds to each (`AsyncStreamImpl`): that the request is an internal one, and
    /// by whom it comes, the proxy at `own`.
    pub fn head(&self, own: Option<IpAddr>, stream: &mut Stream) -> RequestHead {
        let copy = stream.request.clone();
        let original = std::mem::replace(&mut stream.request, copy);
        for changes in &self.changes {
            changes.apply(stream, Side::Request);
        }
        let mut head = std::mem::replace(&mut stream.request, original);
        match &self.host {
            MirrorHost::Suffixed => suffix(&mut head.authority),
            MirrorHost::Kept => {}
            MirrorHost::Literal(host) => head.authority = host.to_vec(),
        }
        OwnHeaders::new(own).tell(&mut head.headers);
        head
    }
}

/// Puts the suffix behind the name; a request without a host has none.
fn suffix(authority: &mut Vec<u8>) {
    if authority.is_empty() {
        return;
    }
    let end = strip_port(authority).len();
    authority.splice(end..end, SUFFIX.iter().copied());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::Format;
    use crate::header_ops::{AppendAction, HeaderAddition};
    use crate::headers::HeaderName;
    use crate::matcher::HeaderTarget;
    use crate::stream::fixture;

    fn policy() -> MirrorPolicy {
        MirrorPolicy::to(ClusterChoice::Header(HeaderTarget::Impossible.into(), Default::default()))
    }

    #[test]
    fn the_suffix_stands_before_the_port() {
        for (host, with) in [
            ("h.test", "h.test-shadow"),
            ("h.test:8080", "h.test-shadow:8080"),
            ("[::1]", "[::1]-shadow"),
            ("[::1]:8080", "[::1]-shadow:8080"),
            ("", ""),
        ] {
            let mut authority = host.as_bytes().to_vec();
            suffix(&mut authority);
            assert_eq!(authority, with.as_bytes());
        }
    }

    #[test]
    fn changes_are_made_in_their_order_and_to_the_copy_alone() {
        let name = |name: &str| HeaderName::new(name).unwrap();
        let add = |header: &str, value: &str| HeaderOps {
            add: Box::new([HeaderAddition {
                name: name(header),
                value: Format::envoy(value).unwrap(),
                action: AppendAction::OverwriteIfExistsOrAdd,
                keep_empty: false,
            }]),
            ..HeaderOps::default()
        };
        let remove = |header: &str| HeaderOps { remove: Box::new([name(header)]), ..HeaderOps::default() };
        let policy = MirrorPolicy {
            changes: Box::new([
                add("x-a", "1"),
                add("x-b", "%REQ(x-a)%%REQ(x-old)%"),
                remove("x-a"),
                remove("x-old"),
            ]),
            host: MirrorHost::Literal(b"other:1"[..].into()),
            ..policy()
        };
        let mut stream = fixture::stream("/p?q", &[("x-old", "0"), ("x-forwarded-for", "10.0.0.9")]);
        let before = format!("{:?}", stream.request);
        let head = policy.head(Some("192.0.2.1".parse().unwrap()), &mut stream);
        assert_eq!(format!("{:?}", stream.request), before);
        let get = |name: &str| head.headers.get_str(name);
        assert_eq!((get("x-a"), get("x-old"), get("x-b")), (None, None, Some("10")));
        assert_eq!(get("x-forwarded-for"), Some("10.0.0.9,192.0.2.1"));
        assert_eq!((get("x-envoy-internal"), &*head.authority), (Some("true"), &b"other:1"[..]));
        assert_eq!(head.target.full(), b"/p?q");
    }

    #[test]
    fn a_share_of_requests_is_copied() {
        let mut stream = fixture::stream("/", &[]);
        let policy = MirrorPolicy { fraction: Some(Fraction::new(1, 4)), ..policy() };
        let wanted = (0..8).filter(|random| {
            stream.random = *random;
            policy.wants(&stream)
        });
        assert_eq!(wanted.collect::<Vec<_>>(), [0, 4]);
    }
}
