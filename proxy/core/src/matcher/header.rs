//! Envoy's HeaderMatcher (source/common/http/header_utility.cc).

use super::StringMatcher;
use crate::headers::HeaderName;
use crate::message::{RequestHead, ResponseHead};

/// What a header matcher looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderTarget {
    /// `:method`
    Method,
    /// `:path`, the query included
    Path,
    /// `:authority` or `host`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`, of responses alone
    Status,
    /// Any other header.
    Header(HeaderName),
    /// A name that no header can have: configuration may ask for it, and it is never there.
    Impossible,
}

impl HeaderTarget {
    /// What a name means among the headers of a request, wherever Envoy looks one up: it takes any name.
    pub fn of_request(name: &str) -> HeaderTarget {
        match name.to_ascii_lowercase().as_str() {
            ":method" => HeaderTarget::Method,
            ":path" => HeaderTarget::Path,
            ":authority" | "host" => HeaderTarget::Authority,
            ":scheme" => HeaderTarget::Scheme,
            other => HeaderName::new(other).map_or(HeaderTarget::Impossible, HeaderTarget::Header),
        }
    }

    /// What a name means among the headers of a response.
    pub fn of_response(name: &str) -> HeaderTarget {
        match name.to_ascii_lowercase().as_str() {
            ":status" => HeaderTarget::Status,
            other => HeaderName::new(other).map_or(HeaderTarget::Impossible, HeaderTarget::Header),
        }
    }

    /// Every value in a request, in order.
    pub fn values<'a>(&'a self, head: &'a RequestHead) -> impl Iterator<Item = &'a [u8]> {
        let (pseudo, name) = match self {
            HeaderTarget::Method => (Some(head.method.as_str().as_bytes()), None),
            HeaderTarget::Path => ((!head.target.is_empty()).then(|| head.target.full()), None),
            HeaderTarget::Authority => (Some(head.authority.as_slice()), None),
            HeaderTarget::Scheme => (Some(head.scheme.as_str().as_bytes()), None),
            HeaderTarget::Header(name) => (None, Some(name)),
            HeaderTarget::Status | HeaderTarget::Impossible => (None, None),
        };
        pseudo.into_iter().chain(name.into_iter().flat_map(|n| head.headers.get_all(n)))
    }

    /// Hands out every value in a request, in order.
    #[inline]
    pub(crate) fn each<'a>(&'a self, head: &'a RequestHead, mut take: impl FnMut(&'a [u8])) {
        match self {
            HeaderTarget::Header(name) => head.headers.get_all(name).for_each(take),
            HeaderTarget::Method => take(head.method.as_str().as_bytes()),
            HeaderTarget::Path if head.target.is_empty() => {}
            HeaderTarget::Path => take(head.target.full()),
            HeaderTarget::Authority => take(&head.authority),
            HeaderTarget::Scheme => take(head.scheme.as_str().as_bytes()),
            HeaderTarget::Status | HeaderTarget::Impossible => {}
        }
    }

    /// Every value in a response, in order, of a target that [`HeaderTarget::of_response`] made; `digits` keeps the
    /// status.
    pub fn values_of_response<'a>(
        &'a self,
        head: &'a ResponseHead,
        digits: &'a mut itoa::Buffer,
    ) -> impl Iterator<Item = &'a [u8]> {
        let (status, name) = match self {
            HeaderTarget::Status => (Some(digits.format(head.status).as_bytes()), None),
            HeaderTarget::Header(name) => (None, Some(name)),
            _ => (None, None),
        };
        status.into_iter().chain(name.into_iter().flat_map(|n| head.headers.get_all(n)))
    }
}

/// The test of one matcher.
#[derive(Debug)]
pub enum HeaderMatch {
    /// There at all; `false` asks for absence.
    Present(bool),
    /// A test of the value.
    String(StringMatcher),
    /// A base-10 integer in `[start, end)`.
    Range(i64, i64),
}

/// Envoy's HeaderMatcher: each value of a repeated header is tested on its own (Envoy 1.39 and later).
#[derive(Debug)]
pub struct HeaderMatcher {
    /// What to look at.
    pub target: HeaderTarget,
    /// The test.
    pub test: HeaderMatch,
    /// `invert_match`
    pub invert: bool,
    /// `treat_missing_header_as_empty`
    pub missing_is_empty: bool,
}

#[cfg(test)]
thread_local! {
    /// Values that matchers of this thread have tested.
    pub(crate) static TESTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl HeaderMatcher {
    /// Whether the request passes.
    pub fn matches(&self, head: &RequestHead) -> bool {
        self.passes(self.target.values(head))
    }

    /// Whether the response passes.
    pub fn matches_response(&self, head: &ResponseHead) -> bool {
        self.passes(self.target.values_of_response(head, &mut itoa::Buffer::new()))
    }

    fn passes<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        if let HeaderMatch::Present(wanted) = self.test {
            let present = self.missing_is_empty || values.next().is_some();
            return (present == wanted) != self.invert;
        }
        let mut any = false;
        for value in values {
            any = true;
            if self.test(value) {
                return !self.invert;
            }
        }
        if !any {
            // A missing header fails every test of its value, inverted or not.
            return self.missing_is_empty && self.test(b"") != self.invert;
        }
        self.invert
    }

    fn test(&self, value: &[u8]) -> bool {
        #[cfg(test)]
        TESTED.set(TESTED.get() + 1);
        match &self.test {
            HeaderMatch::Present(_) => true,
            HeaderMatch::String(m) => m.matches(value),
            HeaderMatch::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|n| (*start..*end).contains(&n)),
        }
    }

    /// The name and value, when the matcher is a plain exact test: what a table can be indexed by.
    pub fn exact(&self) -> Option<(&HeaderTarget, &[u8])> {
        match &self.test {
            HeaderMatch::String(StringMatcher::Exact(value, false))
                if !self.invert && !self.missing_is_empty =>
            {
                Some((&self.target, value))
            }
            _ => None,
        }
    }

    /// The name, and a text that is not empty and that one of the values must begin with.
    pub(crate) fn beginning(&self) -> Option<(&HeaderTarget, &[u8])> {
        let text = match &self.test {
            HeaderMatch::String(StringMatcher::Prefix(text, false)) => text,
            HeaderMatch::String(StringMatcher::Regex(regex)) => regex.literal_prefix(),
            _ => return None,
        };
        (!self.invert && !text.is_empty()).then_some((&self.target, text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn passes(name: &str, test: HeaderMatch, invert: bool, missing_is_empty: bool) -> bool {
        let mut head = ResponseHead { status: 503, ..ResponseHead::default() };
        head.headers.append("x-again", b"no");
        head.headers.append("x-again", b"7");
        let target = HeaderTarget::of_response(name);
        HeaderMatcher { target, test, invert, missing_is_empty }.matches_response(&head)
    }

    /// `:status` was refused, and a header that is missing passed an inverted test.
    #[test]
    fn responses_are_tested_as_requests_are() {
        let exact = |text: &str| HeaderMatch::String(StringMatcher::exact(text));
        for (name, test, invert, missing_is_empty, wanted) in [
            (":status", HeaderMatch::Present(true), false, false, true),
            (":status", exact("503"), false, false, true),
            (":STATUS", HeaderMatch::Range(500, 600), false, false, true),
            (":status", HeaderMatch::Range(500, 600), true, false, false),
            ("X-Again", HeaderMatch::Range(7, 8), false, false, true),
            ("x-again", exact("no"), true, false, false),
            ("x-none", exact("no"), true, false, false),
            ("x-none", exact("no"), true, true, true),
            ("x-none", HeaderMatch::Present(false), false, false, true),
            ("no name", HeaderMatch::Present(true), false, false, false),
            (":path", HeaderMatch::Present(true), false, false, false),
        ] {
            let text = format!("{name} {test:?} {invert} {missing_is_empty}");
            assert_eq!(passes(name, test, invert, missing_is_empty), wanted, "{text}");
        }
    }
}
