//! Envoy's query parameter and cookie matchers.

use super::StringMatcher;
use super::pairs::{cookie_value, query_value, step};
use crate::headers::{Headers, Known};

/// Envoy's QueryParameterMatcher: nothing is decoded, only the first occurrence of a name counts.
#[derive(Debug)]
pub struct QueryMatcher {
    /// Name, case-sensitive and undecoded.
    pub name: Box<str>,
    /// A test of the value; `None` asks for presence alone.
    pub test: Option<StringMatcher>,
    /// What presence must be, when there is no test.
    pub present: bool,
}

impl QueryMatcher {
    /// Whether a request with this query passes.
    pub fn matches(&self, query: Option<&[u8]>) -> bool {
        let value = query.and_then(|q| query_value(q, self.name.as_bytes()));
        match (&self.test, value) {
            (None, value) => value.is_some() == self.present,
            (Some(test), Some(value)) => test.matches(value),
            (Some(_), None) => false,
        }
    }
}

/// The first value of `name` in a query: split on `&`, then at the first `=`; no `=` means empty.
pub fn parameter<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        step();
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        (key == name).then_some(value)
    })
}

/// Envoy's CookieMatcher (RouteMatch.cookies).
#[derive(Debug)]
pub struct CookieMatcher {
    /// Name, case-sensitive.
    pub name: Box<str>,
    /// Test of the value without surrounding quotes.
    pub test: StringMatcher,
    /// `invert_match`: a missing cookie then matches.
    pub invert: bool,
}

impl CookieMatcher {
    /// Whether a request with these headers passes.
    pub fn matches(&self, headers: &Headers) -> bool {
        let value = cookie_value(headers, self.name.as_bytes()).map(unquoted);
        let hit = value.is_some_and(|v| self.test.matches(v));
        hit != self.invert
    }
}

/// The first value of a cookie, surrounding double quotes stripped (Envoy's `Utility::parseCookieValue`).
pub fn cookie<'a>(headers: &'a Headers, name: &[u8]) -> Option<&'a [u8]> {
    raw_cookie(headers, name).map(unquoted)
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value)
}

/// The first value of a cookie as it was sent, quotes and all (nginx's `$cookie_x`).
pub fn raw_cookie<'a>(headers: &'a Headers, name: &[u8]) -> Option<&'a [u8]> {
    headers.get_all(Known::COOKIE).flat_map(|line| line.split(|b| *b == b';')).find_map(|pair| {
        step();
        let pair = pair.trim_ascii();
        let at = memchr::memchr(b'=', pair)?;
        (&pair[..at] == name).then(|| &pair[at + 1..])
    })
}
