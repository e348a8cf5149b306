//! Conditions and paths of routes in words, for people who ask why a route is met or not.

use super::{HostPattern, PathMatch, Predicate};
use crate::matcher::{CookieMatcher, HeaderMatch, HeaderMatcher, HeaderTarget, QueryMatcher, StringMatcher};
use crate::matcher::{cookie, parameter};
use crate::stream::Stream;
use std::fmt::{self, Display, Formatter};

/// Bytes as text in quotation marks.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", String::from_utf8_lossy(self.0))
    }
}

fn without_case(ignores: bool) -> &'static str {
    if ignores { " without regard to case" } else { "" }
}

impl Display for PathMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            PathMatch::Prefix(text, i) => write!(f, "path begins with {}{}", Quoted(text), without_case(*i)),
            PathMatch::Exact(text, i) => write!(f, "path is {}{}", Quoted(text), without_case(*i)),
            PathMatch::SeparatedPrefix(text, i) => {
                write!(f, "path is {} or lies below it{}", Quoted(text), without_case(*i))
            }
            PathMatch::Regex(regex) => write!(f, "path matches the expression \"{}\"", regex.source()),
            PathMatch::Template(template) => {
                write!(f, "path matches the template, \"{}\"", template.regex().source())
            }
            PathMatch::Connect => f.write_str("method is CONNECT"),
        }
    }
}

impl Display for StringMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (words, text, i) = match self {
            StringMatcher::Exact(text, i) => ("is", text, *i),
            StringMatcher::Prefix(text, i) => ("begins with", text, *i),
            StringMatcher::Suffix(text, i) => ("ends with", text, *i),
            StringMatcher::Contains(text, i) => ("contains", text, *i),
            StringMatcher::Regex(regex) => return write!(f, "matches the expression \"{}\"", regex.source()),
        };
        write!(f, "{words} {}{}", Quoted(text), without_case(i))
    }
}

impl Display for HeaderTarget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeaderTarget::Method => ":method",
            HeaderTarget::Path => ":path",
            HeaderTarget::Authority => ":authority",
            HeaderTarget::Scheme => ":scheme",
            HeaderTarget::Status => ":status",
            HeaderTarget::Header(name) => name.as_str(),
            HeaderTarget::Impossible => "(a name that no header can have)",
        })
    }
}

impl Display for HeaderMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = if self.invert { "not: " } else { "" };
        write!(f, "{not}header {} ", self.target)?;
        match &self.test {
            HeaderMatch::Present(true) => f.write_str("is there"),
            HeaderMatch::Present(false) => f.write_str("is not there"),
            HeaderMatch::String(test) => test.fmt(f),
            HeaderMatch::Range(start, end) => write!(f, "is a number from {start} to below {end}"),
        }?;
        f.write_str(if self.missing_is_empty { " (a missing one is empty)" } else { "" })
    }
}

impl Display for QueryMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "query parameter {} ", self.name)?;
        match &self.test {
            Some(test) => test.fmt(f),
            None => f.write_str(if self.present { "is there" } else { "is not there" }),
        }
    }
}

impl Display for CookieMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}cookie {} {}", if self.invert { "not: " } else { "" }, self.name, self.test)
    }
}

impl Display for HostPattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Suffix(end) => write!(f, "*{end}"),
        }
    }
}

/// Several values, one of which will do.
fn one_of(f: &mut Formatter<'_>, what: &str, values: impl Iterator<Item = impl Display>) -> fmt::Result {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    write!(f, "{what} is {}", values.join(" or "))
}

impl Display for Predicate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Predicate::Fraction(fraction) => write!(f, "is among {fraction} requests"),
            Predicate::Grpc => f.write_str("content-type is that of gRPC"),
            Predicate::Header(matcher) => matcher.fmt(f),
            Predicate::Query(matcher) => matcher.fmt(f),
            Predicate::Cookie(matcher) => matcher.fmt(f),
            Predicate::Tls { presented, validated } => {
                let ask = |what: &str, wanted: Option<bool>| {
                    wanted.map(|wanted| format!("{}{what}", if wanted { "" } else { "not " }))
                };
                let asked = [ask("presented", *presented), ask("validated", *validated)];
                let asked: Vec<String> = asked.into_iter().flatten().collect();
                write!(f, "client certificate is {}", asked.join(" and "))
            }
            Predicate::FilterState { key, test } => write!(f, "filter state {key} {test}"),
            Predicate::Metadata(matcher) => {
                write!(f, "metadata {} {}", matcher.namespace, matcher.key)?;
                matcher.path.iter().try_for_each(|key| write!(f, ".{key}"))?;
                f.write_str(if matcher.invert { " does not pass its test" } else { " passes its test" })
            }
            Predicate::Methods(list) => one_of(f, "method", list.iter()),
            Predicate::RemoteAddresses(list) => one_of(f, "client address", list.iter()),
            Predicate::Hosts(list) => one_of(f, "host", list.iter()),
            Predicate::Vars(expr) => write!(f, "vars: {expr}"),
        }
    }
}

impl Predicate {
    /// What it is about: `header`, `query`, `method` and so on.
    pub fn kind(&self) -> &'static str {
        match self {
            Predicate::Fraction(_) => "runtime",
            Predicate::Header(HeaderMatcher { target: HeaderTarget::Method, .. }) | Predicate::Methods(_) => {
                "method"
            }
            Predicate::Header(_) => "header",
            Predicate::Grpc => "grpc",
            Predicate::Query(_) => "query",
            Predicate::Cookie(_) => "cookie",
            Predicate::Tls { .. } => "tls",
            Predicate::FilterState { .. } => "filter_state",
            Predicate::Metadata(_) => "dynamic_metadata",
            Predicate::RemoteAddresses(_) => "remote_address",
            Predicate::Hosts(_) => "host",
            Predicate::Vars(_) => "vars",
        }
    }

    /// What of it the request has not: of `vars` the condition that does not hold.
    pub fn wanted(&self, stream: &Stream) -> String {
        match self {
            Predicate::Vars(expr) => expr.failing(stream).wanted,
            other => other.to_string(),
        }
    }

    /// What the request has there; `None` if nothing, or nothing that could be shown.
    pub fn seen(&self, stream: &Stream) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Predicate::Header(matcher) => {
                let values: Vec<String> = matcher.target.values(&stream.request).map(text).collect();
                (!values.is_empty()).then(|| values.join(", "))
            }
            Predicate::Query(matcher) => stream
                .request
                .target
                .query()
                .and_then(|query| parameter(query, matcher.name.as_bytes()))
                .map(text),
            Predicate::Cookie(matcher) => cookie(&stream.request.headers, matcher.name.as_bytes()).map(text),
            Predicate::Methods(_) => Some(stream.request.method.to_string()),
            Predicate::RemoteAddresses(_) => Some(stream.remote_ip().to_string()),
            Predicate::Hosts(_) => Some(text(&stream.request.authority)),
            Predicate::Grpc => stream.request.headers.get("content-type").map(text),
            Predicate::FilterState { key, .. } => stream.filter_object(key).map(|object| text(&object.value)),
            Predicate::Metadata(matcher) => matcher.value_in(&stream.metadata).map(ToString::to_string),
            Predicate::Vars(expr) => expr.failing(stream).seen,
            Predicate::Fraction(_) | Predicate::Tls { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::regex::Regex;
    use crate::stream::fixture;

    #[test]
    fn conditions_are_told_in_words() {
        let header = |name: &str, test, invert| {
            Predicate::Header(HeaderMatcher {
                target: HeaderTarget::of_request(name),
                test,
                invert,
                missing_is_empty: false,
            })
        };
        let stream = fixture::stream("/a?x=1", &[("cookie", "c=2"), ("x-env", "a"), ("x-env", "b")]);
        let exact = |text: &str| HeaderMatch::String(StringMatcher::exact(text));
        for (predicate, words, kind, seen) in [
            (header("x-env", exact("dev"), false), "header x-env is \"dev\"", "header", Some("a, b")),
            (header(":method", exact("PUT"), true), "not: header :method is \"PUT\"", "method", Some("GET")),
            (header("x-no", HeaderMatch::Present(true), false), "header x-no is there", "header", None),
            (
                header("x-no", HeaderMatch::Range(1, 5), false),
                "header x-no is a number from 1 to below 5",
                "header",
                None,
            ),
            (
                Predicate::Query(QueryMatcher {
                    name: "x".into(),
                    test: Some(StringMatcher::Regex(Regex::full("[0-9]").unwrap())),
                    present: true,
                }),
                "query parameter x matches the expression \"[0-9]\"",
                "query",
                Some("1"),
            ),
            (
                Predicate::Cookie(CookieMatcher {
                    name: "c".into(),
                    test: StringMatcher::Prefix(b"X"[..].into(), true),
                    invert: false,
                }),
                "cookie c begins with \"X\" without regard to case",
                "cookie",
                Some("2"),
            ),
            (
                Predicate::Methods([http::Method::GET, http::Method::PUT].into()),
                "method is GET or PUT",
                "method",
                Some("GET"),
            ),
            (
                Predicate::Hosts([HostPattern::parse("*.a"), HostPattern::parse("b")].into()),
                "host is *.a or b",
                "host",
                Some("oracle.test"),
            ),
            (
                Predicate::Tls { presented: Some(true), validated: Some(false) },
                "client certificate is presented and not validated",
                "tls",
                None,
            ),
        ] {
            let told = (predicate.to_string(), predicate.kind(), predicate.seen(&stream));
            assert_eq!(told, (words.to_owned(), kind, seen.map(str::to_owned)));
        }
        let path = PathMatch::SeparatedPrefix(b"/api"[..].into(), false);
        assert_eq!(path.to_string(), "path is \"/api\" or lies below it");
    }
}
