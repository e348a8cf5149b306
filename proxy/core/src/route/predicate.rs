//! Conditions of a route, prepared when configuration arrives.

use crate::expr::Expr;
use crate::matcher::{
    CookieMatcher, HeaderMatch, HeaderMatcher, MetadataMatcher, QueryMatcher, StringMatcher,
};
use crate::regex::Late;
use crate::runtime::Fraction;
use crate::stream::Stream;
use http::Method;
use ipnet::IpNet;

/// One condition a route puts on a request beside its path.
#[derive(Debug)]
pub enum Predicate {
    /// Envoy's `runtime_fraction`, drawn with the request's one random number.
    Fraction(Fraction),
    /// Envoy's `grpc`: the content-type is gRPC's.
    Grpc,
    /// Envoy's `headers`.
    Header(HeaderMatcher),
    /// Envoy's `query_parameters`.
    Query(QueryMatcher),
    /// Envoy's `cookies`.
    Cookie(CookieMatcher),
    /// Envoy's `tls_context`: `None` does not ask.
    Tls {
        /// Whether a client certificate was presented.
        presented: Option<bool>,
        /// Whether it was validated.
        validated: Option<bool>,
    },
    /// Envoy's `filter_state`: an object is there, and its text matches.
    FilterState {
        /// The object.
        key: Box<str>,
        /// The test.
        test: StringMatcher,
    },
    /// Envoy's `dynamic_metadata`: what filters have left before the route was looked for.
    Metadata(Box<MetadataMatcher>),
    /// APISIX's `methods`.
    Methods(Box<[Method]>),
    /// APISIX's `remote_addrs`, against the address after real-ip.
    RemoteAddresses(Box<[IpNet]>),
    /// APISIX's `hosts` as a predicate (router `radixtree_uri`).
    Hosts(Box<[HostPattern]>),
    /// APISIX's `vars`; an evaluation error is no match.
    Vars(Expr),
}

/// A host of an APISIX route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// The whole host, lower case; with a port it is compared with the raw Host header.
    Exact(Box<str>),
    /// `*` and a suffix: matches everything that ends with it and is longer or equal, any depth.
    Suffix(Box<str>),
}

impl HostPattern {
    /// From APISIX's `host`: a leading `*` makes a suffix.
    pub fn parse(text: &str) -> HostPattern {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix('*') {
            Some(suffix) => HostPattern::Suffix(suffix.into()),
            None => HostPattern::Exact(lower.into()),
        }
    }

    /// Whether a request for `authority` (with its port, as sent) is meant.
    pub fn matches(&self, authority: &[u8]) -> bool {
        let text = match self {
            HostPattern::Exact(t) | HostPattern::Suffix(t) => t.as_bytes(),
        };
        let host = if text.contains(&b':') { authority } else { crate::message::server_name(authority) };
        match self {
            HostPattern::Exact(_) => host.eq_ignore_ascii_case(text),
            HostPattern::Suffix(_) => {
                host.len() >= text.len() && host[host.len() - text.len()..].eq_ignore_ascii_case(text)
            }
        }
    }
}

impl Predicate {
    /// Whether the request fulfils the condition.
    pub fn matches(&self, stream: &Stream) -> bool {
        match self {
            Predicate::Fraction(f) => f.draw(stream.random),
            Predicate::Grpc => stream.request.is_grpc(),
            Predicate::Header(m) => m.matches(&stream.request),
            Predicate::Query(m) => m.matches(stream.request.target.query()),
            Predicate::Cookie(m) => m.matches(&stream.request.headers),
            Predicate::Tls { presented, validated } => {
                let tls = stream.connection.tls.as_ref();
                let is_presented = tls.is_some_and(|t| t.peer.is_some());
                let is_validated = tls.is_some_and(|t| t.peer_validated);
                presented.is_none_or(|want| want == is_presented)
                    && validated.is_none_or(|want| want == is_validated)
            }
            Predicate::FilterState { key, test } => {
                stream.filter_object(key).is_some_and(|object| test.matches(&object.value))
            }
            Predicate::Metadata(m) => m.matches(&stream.metadata),
            Predicate::Methods(list) => list.contains(&stream.request.method),
            Predicate::RemoteAddresses(list) => {
                let ip = stream.remote_ip();
                list.iter().any(|net| net.contains(&ip))
            }
            Predicate::Hosts(list) => list.iter().any(|h| h.matches(&stream.request.authority)),
            Predicate::Vars(expr) => expr.eval(stream).unwrap_or(false),
        }
    }

    /// Hands out every expression that it may have to compile.
    pub(crate) fn expressions(&self, take: &mut dyn FnMut(&dyn Late)) {
        let test = match self {
            Predicate::Header(HeaderMatcher { test: HeaderMatch::String(test), .. }) => Some(test),
            Predicate::Query(matcher) => matcher.test.as_ref(),
            Predicate::Cookie(matcher) => Some(&matcher.test),
            Predicate::FilterState { test, .. } => Some(test),
            Predicate::Vars(expr) => return expr.patterns(take),
            _ => None,
        };
        if let Some(regex) = test.and_then(StringMatcher::expression) {
            take(regex);
        }
    }
}
