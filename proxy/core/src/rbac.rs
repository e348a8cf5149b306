//! Who may do what (Envoy's source/extensions/filters/common/rbac): policies compiled to conditions that are asked of
//! a connection, and of a request where there is one.

use crate::matcher::{HeaderMatcher, MetadataMatcher, StringMatcher};
use crate::router::Template;
use crate::stream::Stream;
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What becomes of those that a policy fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They alone may pass.
    Allow,
    /// All others may pass.
    Deny,
    /// Everybody passes; whether a policy fits is only noted.
    Log,
}

/// A list of policies.
#[derive(Debug)]
pub struct Rules {
    action: Action,
    /// In the order of their names, which decides whose name is told.
    policies: Box<[(Arc<str>, Policy)]>,
}

/// Permissions and principals: one of each must hold.
#[derive(Debug)]
pub struct Policy {
    /// What is done.
    pub permissions: Condition,
    /// By whom.
    pub principals: Condition,
}

/// A condition of permissions and principals.
#[derive(Debug)]
pub enum Condition {
    /// Holds always.
    Always,
    /// All hold.
    All(Box<[Condition]>),
    /// One holds.
    Any(Box<[Condition]>),
    /// It does not hold.
    Not(Box<Condition>),
    /// A header of the request; on a connection there are none.
    Header(Box<HeaderMatcher>),
    /// The path without its query; there is none on a connection.
    Path(StringMatcher),
    /// The path without its query, by a template; there is none on a connection.
    PathTemplate(Box<Template>),
    /// The address that the client meant.
    Destination(IpNet),
    /// Its port.
    DestinationPort(Range<u32>),
    /// The server name that the TLS inspector saw; empty without one.
    ServerName(StringMatcher),
    /// The client showed a certificate, with such a name: one of its URIs, else of its DNS names, else its subject.
    Authenticated(Option<StringMatcher>),
    /// The client's address, without trust in what it says of others (`source_ip`).
    Source(IpNet),
    /// The peer of the socket.
    DirectRemote(IpNet),
    /// The client's address, as far as forwarded headers are trusted.
    Remote(IpNet),
    /// What was noted of the request (dynamic metadata); of a connection nothing is.
    Metadata(Box<MetadataMatcher>),
}

/// What rules say of somebody.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict<'r> {
    /// Whether to let it pass.
    pub allowed: bool,
    /// The policy that fits.
    pub policy: Option<&'r Arc<str>>,
    /// Whether it is to be logged, where that is asked at all.
    pub log: Option<bool>,
}

/// Where the results of shadow rules stand in dynamic metadata.
#[derive(Debug)]
pub struct ShadowKeys {
    namespace: Arc<str>,
    /// `shadow_engine_result`
    result: Arc<str>,
    /// `shadow_effective_policy_id`
    policy: Arc<str>,
}

impl Rules {
    /// Rules of these policies by name.
    pub fn new(action: Action, policies: BTreeMap<Arc<str>, Policy>) -> Rules {
        Rules { action, policies: policies.into_iter().collect() }
    }

    /// What becomes of those that a policy fits.
    pub fn action(&self) -> Action {
        self.action
    }

    /// What is to become of a request, or of a connection in whose context there is none. Without any policy nobody is
    /// allowed, and nobody denied.
    pub fn judge(&self, subject: &Stream) -> Verdict<'_> {
        let fits = |policy: &Policy| policy.permissions.holds(subject) && policy.principals.holds(subject);
        let policy = self.policies.iter().find(|(_, policy)| fits(policy)).map(|(name, _)| name);
        let (allowed, log) = match self.action {
            Action::Allow => (policy.is_some(), None),
            Action::Deny => (policy.is_none(), None),
            Action::Log => (true, Some(policy.is_some())),
        };
        Verdict { allowed, policy, log }
    }
}

impl Verdict<'_> {
    /// The response code details, or those of the connection's end, of a refusal.
    pub fn details(&self) -> String {
        let policy = self.policy.map_or("none", |policy| policy);
        // Blanks would end the field in a log.
        format!("rbac_access_denied_matched_policy[{}]", policy.replace(char::is_whitespace, "_"))
    }

    /// Notes whether access logs are to have it, where that is asked.
    pub fn hint(&self, subject: &mut Stream) {
        if let Some(log) = self.log {
            subject.metadata.push(("envoy.common".into(), "access_log_hint".into(), Value::Bool(log)));
        }
    }
}

impl ShadowKeys {
    /// Under this namespace, each with a prefix that may be empty.
    pub fn new(namespace: &str, prefix: &str) -> ShadowKeys {
        ShadowKeys {
            namespace: namespace.into(),
            result: format!("{prefix}shadow_engine_result").into(),
            policy: format!("{prefix}shadow_effective_policy_id").into(),
        }
    }

    /// Notes what rules would have done.
    pub fn note(&self, verdict: &Verdict<'_>, subject: &mut Stream) {
        let result = if verdict.allowed { "allowed" } else { "denied" };
        if let Some(policy) = verdict.policy {
            let name = Value::String(policy.to_string());
            subject.metadata.push((self.namespace.clone(), self.policy.clone(), name));
        }
        subject.metadata.push((
            self.namespace.clone(),
            self.result.clone(),
            Value::String(result.to_owned()),
        ));
    }
}

fn is_authenticated(subject: &Stream, name: Option<&StringMatcher>) -> bool {
    let Some(peer) = subject.connection.tls.as_ref().and_then(|tls| tls.peer.as_ref()) else { return false };
    let Some(name) = name else { return true };
    let names = peer.uri_sans.iter().chain(&peer.dns_sans).chain([&peer.subject]);
    names.into_iter().any(|own| name.matches(own.as_bytes()))
}

impl Condition {
    fn holds(&self, subject: &Stream) -> bool {
        let Stream { connection, request, metadata, .. } = subject;
        match self {
            Condition::Always => true,
            Condition::All(all) => all.iter().all(|condition| condition.holds(subject)),
            Condition::Any(any) => any.iter().any(|condition| condition.holds(subject)),
            Condition::Not(condition) => !condition.holds(subject),
            Condition::Header(header) => header.matches(request),
            Condition::Path(path) => !request.target.is_empty() && path.matches(request.target.path()),
            Condition::PathTemplate(template) => {
                !request.target.is_empty() && template.matches(request.target.path())
            }
            Condition::Destination(range) => range.contains(&connection.local.ip()),
            Condition::DestinationPort(ports) => ports.contains(&u32::from(connection.local.port())),
            Condition::ServerName(name) => {
                name.matches(connection.requested_server_name.as_deref().unwrap_or_default().as_bytes())
            }
            Condition::Authenticated(name) => is_authenticated(subject, name.as_ref()),
            Condition::Source(range) => range.contains(&connection.remote.ip()),
            Condition::DirectRemote(range) => range.contains(&connection.direct_remote.ip()),
            Condition::Remote(range) => range.contains(&subject.remote.ip()),
            Condition::Metadata(test) => test.matches(metadata),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::connection::{Certificate, Connection, TlsInfo};
    use crate::matcher::{HeaderMatch, HeaderTarget, ValueMatcher};

    fn connection(peer: Option<Certificate>) -> Connection {
        let tls = TlsInfo { peer: peer.map(Arc::new), ..TlsInfo::default() };
        let (remote, local) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let plain = Connection::plain(remote, local);
        Connection { direct_remote: "10.9.9.9:1".parse().unwrap(), tls: Some(tls), ..plain }
    }

    fn rules(action: Action, policies: Vec<(&str, Condition)>) -> Rules {
        let policy = |(name, permissions): (&str, Condition)| {
            (Arc::from(name), Policy { permissions, principals: Condition::Always })
        };
        Rules::new(action, policies.into_iter().map(policy).collect())
    }

    #[test]
    fn the_action_says_what_a_policy_that_fits_means() {
        let subject = Stream::new(Arc::new(connection(None)));
        let never = || Condition::Not(Box::new(Condition::Always));
        let judged = |action, policies| {
            let rules = rules(action, policies);
            let verdict = rules.judge(&subject);
            (verdict.allowed, verdict.details().replace("rbac_access_denied_matched_policy", ""))
        };
        let told = |allowed, policy: &str| (allowed, format!("[{policy}]"));
        assert_eq!(judged(Action::Allow, vec![]), told(false, "none"));
        assert_eq!(judged(Action::Deny, vec![]), told(true, "none"));
        assert_eq!(judged(Action::Allow, vec![("a", never())]), told(false, "none"));
        let both = || vec![("b", Condition::Always), ("a b", Condition::Always)];
        assert_eq!(judged(Action::Allow, both()), told(true, "a_b"), "in the order of names");
        assert_eq!(judged(Action::Deny, both()), told(false, "a_b"));
        assert_eq!(judged(Action::Log, both()), told(true, "a_b"));
    }

    #[test]
    fn conditions_are_asked_of_the_connection_and_of_the_request() {
        let certificate = Certificate {
            uri_sans: vec!["spiffe://t/a".into()],
            dns_sans: vec!["a.test".into()],
            subject: "CN=a".into(),
            ..Certificate::default()
        };
        let (known, stranger): (Stream, Stream) =
            [Some(certificate), None].map(|peer| Stream::new(Arc::new(connection(peer)))).into();
        let mut stream = Stream::new(Arc::new(connection(None)));
        stream.remote = "192.0.2.1:1".parse().unwrap();
        stream.request.target.set(b"/a?b");
        stream.request.headers.push(b"x-a", b"1");
        stream.metadata.push(("n".into(), "k".into(), Value::Bool(true)));
        let holds =
            |condition: Condition| [&known, &stranger, &stream].map(|subject| condition.holds(subject));
        let name = |name: &str| Condition::Authenticated(Some(StringMatcher::exact(name)));
        assert_eq!(holds(Condition::Authenticated(None)), [true, false, false]);
        for own in ["spiffe://t/a", "a.test", "CN=a"] {
            assert_eq!(holds(name(own)), [true, false, false], "{own}");
        }
        assert_eq!(holds(name("")), [false; 3], "without a certificate there is no name");
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(holds(Condition::Source(range("10.0.0.1/32"))), [true; 3]);
        assert_eq!(holds(Condition::DirectRemote(range("10.9.0.0/16"))), [true; 3]);
        assert_eq!(holds(Condition::Remote(range("192.0.2.0/24"))), [false, false, true]);
        assert_eq!(holds(Condition::Destination(range("10.0.0.2/32"))), [true; 3]);
        assert_eq!(holds(Condition::DestinationPort(80..81)), [true; 3]);
        assert_eq!(holds(Condition::DestinationPort(79..80)), [false; 3]);
        assert_eq!(holds(Condition::Path(StringMatcher::exact("/a"))), [false, false, true]);
        assert_eq!(holds(Condition::ServerName(StringMatcher::exact(""))), [true; 3]);
        let header = |invert| {
            Condition::Header(Box::new(HeaderMatcher {
                target: HeaderTarget::of_request("x-a"),
                test: HeaderMatch::Present(true),
                invert,
                missing_is_empty: false,
            }))
        };
        assert_eq!(holds(header(false)), [false, false, true]);
        assert_eq!(holds(header(true)), [true, true, false]);
        let template = |text| Condition::PathTemplate(Template::parse(text).unwrap().into());
        assert_eq!(holds(template("/{one}")), [false, false, true]);
        assert_eq!(holds(template("/{one}/**")), [false; 3]);
        let noted = |invert| {
            let value = ValueMatcher::Bool(true);
            let (namespace, key, path) = ("n".into(), "k".into(), Box::default());
            Condition::Metadata(MetadataMatcher { namespace, key, path, value, invert }.into())
        };
        assert_eq!(holds(noted(false)), [false, false, true]);
        assert_eq!(holds(noted(true)), [true, true, false]);
        let both = Condition::All([Condition::Always, header(false)].into());
        assert_eq!(holds(both), [false, false, true]);
        assert_eq!(
            holds(Condition::Any([header(false), Condition::Authenticated(None)].into())),
            [true, false, true]
        );
    }
}
