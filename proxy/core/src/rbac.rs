//! Who may do what (Envoy's source/extensions/filters/common/rbac): policies compiled to conditions that are asked of
//! a connection, and of a request where there is one.

mod index;

use crate::cel::Program;
use crate::connection::Certificate;
use crate::error::ConfigError;
use crate::matcher::{HeaderMatcher, MetadataMatcher, StringMatcher};
use crate::matching::{Subject, Tree};
use crate::router::Template;
use crate::stream::Stream;
use index::Index;
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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

/// What decides: a list of policies, or a tree.
#[derive(Debug)]
pub struct Rules(Kind);

#[derive(Debug)]
enum Kind {
    Policies {
        action: Action,
        /// In the order of their names, which decides whose name is told.
        policies: Box<[(Arc<str>, Policy)]>,
        index: Option<Index>,
    },
    Tree {
        tree: Tree<TreeAction>,
        /// The names of its actions, each once.
        names: Box<[Arc<str>]>,
        /// Whether one of its actions is to log.
        logs: bool,
    },
}

/// Permissions and principals: one of each must hold, and so must the expression.
#[derive(Debug)]
pub struct Policy {
    /// What is done.
    pub permissions: Condition,
    /// By whom.
    pub principals: Condition,
    /// What must be true beside.
    pub condition: Option<Program>,
}

/// What a tree leads to: Envoy's `config.rbac.v3.Action`.
#[derive(Debug)]
pub struct TreeAction {
    name: Arc<str>,
    action: Action,
    /// Its place among the names of the tree.
    at: usize,
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
    /// The client's certificate was verified and has such a name, if one is asked for
    /// (`envoy.rbac.principals.mtls_authenticated`).
    Verified(Option<(SanKind, StringMatcher)>),
    /// What was noted of the request or the connection (dynamic metadata).
    Metadata(Box<MetadataMatcher>),
    /// What the configuration says of the request's route; without a route it does not hold.
    RouteMetadata(Box<MetadataMatcher>),
    /// An object of the filter state is there, and its text passes.
    FilterState(Box<str>, StringMatcher),
    /// An object of the filter state is there, and is an address within one of these, or without with `true`.
    FilterStateAddress(Box<str>, Box<[IpNet]>, bool),
}

/// A kind of alternative names of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// Names of DNS.
    Dns,
    /// Addresses of mail.
    Email,
    /// Addresses of IP.
    Ip,
    /// URIs.
    Uri,
}

/// What rules say of somebody.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict<'r> {
    /// Whether to let it pass.
    pub allowed: bool,
    /// The policy that fits.
    pub policy: Option<&'r Arc<str>>,
    /// Its place in [`Rules::names`].
    pub place: usize,
    /// Whether it is to be logged, where that is asked at all.
    pub log: Option<bool>,
}

thread_local! {
    /// Where hints for access logs stand in dynamic metadata. Each worker has its own: none counts for the others.
    static HINT: (Arc<str>, Arc<str>) = ("envoy.common".into(), "access_log_hint".into());
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
    /// Policies by name, and what becomes of those that one fits.
    pub fn new(action: Action, policies: BTreeMap<Arc<str>, Policy>) -> Rules {
        let policies: Box<[(Arc<str>, Policy)]> = policies.into_iter().collect();
        let index = Index::new(policies.iter().map(|(_, policy)| policy));
        Rules(Kind::Policies { action, policies, index })
    }

    /// A tree that leads to named actions (`matcher`). Whom it leads nowhere is denied.
    pub fn of_tree(
        make: impl FnOnce(&mut TreeActions) -> Result<Tree<TreeAction>, ConfigError>,
    ) -> Result<Rules, ConfigError> {
        let mut actions = TreeActions::default();
        let tree = make(&mut actions)?;
        Ok(Rules(Kind::Tree { tree, names: actions.names.into(), logs: actions.logs }))
    }

    /// The names of all policies.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let (policies, names) = match &self.0 {
            Kind::Policies { policies, .. } => (Some(policies), None),
            Kind::Tree { names, .. } => (None, Some(names)),
        };
        let of_policies = policies.into_iter().flat_map(|policies| policies.iter().map(|(name, _)| name));
        of_policies.chain(names.into_iter().flat_map(|names| names.iter()))
    }

    /// What is to become of a request, or of a connection in whose context there is none. Without any policy nobody is
    /// allowed, and nobody denied.
    pub fn judge(&self, subject: &Stream) -> Verdict<'_> {
        match &self.0 {
            Kind::Policies { action, policies, index } => {
                let found = match index {
                    None => first(policies, 0..policies.len(), subject),
                    Some(index) => {
                        let candidates = index.candidates(subject);
                        first(policies, candidates.iter().map(|at| *at as usize), subject)
                    }
                };
                let (allowed, log) = match action {
                    Action::Allow => (found.is_some(), None),
                    Action::Deny => (found.is_none(), None),
                    Action::Log => (true, Some(found.is_some())),
                };
                let (place, policy) = found.map_or((0, None), |(at, name)| (at, Some(name)));
                Verdict { allowed, policy, place, log }
            }
            Kind::Tree { tree, logs, .. } => match tree.find(Subject::Stream(subject)) {
                None => Verdict { allowed: false, policy: None, place: 0, log: None },
                Some(TreeAction { name, action, at }) => Verdict {
                    allowed: *action != Action::Deny,
                    policy: Some(name),
                    place: *at,
                    log: logs.then_some(*action == Action::Log),
                },
            },
        }
    }
}

/// The first of these policies that fits.
fn first<'r>(
    policies: &'r [(Arc<str>, Policy)],
    mut places: impl Iterator<Item = usize>,
    subject: &Stream,
) -> Option<(usize, &'r Arc<str>)> {
    places.find_map(|at| {
        let (name, policy) = policies.get(at)?;
        policy.fits(subject).then_some((at, name))
    })
}

/// The actions of a tree while it is made.
#[derive(Debug, Default)]
pub struct TreeActions {
    names: Vec<Arc<str>>,
    logs: bool,
}

impl TreeActions {
    /// An action with its name.
    pub fn action(&mut self, name: &str, action: Action) -> TreeAction {
        self.logs |= action == Action::Log;
        let at = self.names.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        TreeAction { name: self.names.get(at).map_or_else(|| name.into(), Arc::clone), action, at }
    }
}

impl Policy {
    fn fits(&self, subject: &Stream) -> bool {
        self.permissions.holds(subject)
            && self.principals.holds(subject)
            && self.condition.as_ref().is_none_or(|condition| condition.holds(subject))
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
            let (namespace, key) = HINT.with(Clone::clone);
            subject.metadata.push((namespace, key, Value::Bool(log)));
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

fn is_verified(subject: &Stream, name: Option<&(SanKind, StringMatcher)>) -> bool {
    let Some(tls) = subject.connection.tls.as_ref().filter(|tls| tls.peer_validated) else { return false };
    let Some((kind, test)) = name else { return true };
    let Some(peer) = &tls.peer else { return false };
    let names = match kind {
        SanKind::Dns => &peer.dns_sans,
        SanKind::Email => &peer.email_sans,
        SanKind::Ip => &peer.ip_sans,
        SanKind::Uri => &peer.uri_sans,
    };
    names.iter().any(|name| test.matches(name.as_bytes()))
}

/// An address of IP, with or without a port.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// What a client may be called by its certificate: its URIs, its DNS names, its subject.
fn names_of(certificate: &Certificate) -> impl Iterator<Item = &String> {
    certificate.uri_sans.iter().chain(&certificate.dns_sans).chain([&certificate.subject])
}

fn is_authenticated(subject: &Stream, name: Option<&StringMatcher>) -> bool {
    let Some(peer) = subject.connection.tls.as_ref().and_then(|tls| tls.peer.as_ref()) else { return false };
    let Some(name) = name else { return true };
    names_of(peer).any(|own| name.matches(own.as_bytes()))
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
            Condition::Verified(name) => is_verified(subject, name.as_ref()),
            Condition::Metadata(test) => test.matches(metadata),
            Condition::RouteMetadata(test) => {
                subject.route.as_ref().is_some_and(|route| test.matches_configured(&route.metadata))
            }
            Condition::FilterState(key, test) => {
                subject.filter_object(key).is_some_and(|object| test.matches(&object.value))
            }
            Condition::FilterStateAddress(key, ranges, invert) => {
                let object = subject.filter_object(key);
                let ip = object.and_then(|object| address(&object.value));
                ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)) != *invert)
            }
        }
    }
}

#[cfg(test)]
mod tests;
