//! Redirects that the proxy follows itself (config/route/v3 InternalRedirectPolicy; source/common/router/router.cc
//! `convertRequestHeadersForInternalRedirect`).

use crate::headers::{HeaderName, Headers, Known};
use crate::message::{Method, RequestHead, Scheme};
use std::collections::HashSet;
use std::sync::Arc;

/// Statuses that may be followed.
pub const CODES: [u16; 5] = [301, 302, 303, 307, 308];
/// After it the request is asked for anew by GET (RFC 9110 section 15.4.4).
const SEE_OTHER: u16 = 303;

/// Which redirects of a route's upstream are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalRedirect {
    /// Redirects followed for one request of a client, 1 by default.
    pub max: u32,
    /// Statuses that are followed, 302 alone by default.
    pub codes: Vec<u16>,
    /// Whether https may become http and the reverse.
    pub allow_cross_scheme: bool,
    /// All must agree.
    pub predicates: Box<[RedirectPredicate]>,
    /// Taken over from the redirect to the request that follows it; those that it does not have are taken off.
    pub copied_headers: Box<[HeaderName]>,
}

impl Default for InternalRedirect {
    fn default() -> InternalRedirect {
        InternalRedirect {
            max: 1,
            codes: vec![302],
            allow_cross_scheme: false,
            predicates: Box::default(),
            copied_headers: Box::default(),
        }
    }
}

/// A condition on where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// `allow_listed_routes`: to one of these routes.
    AllowedRoutes(HashSet<Box<str>>),
    /// `previous_routes`: from this route to no route twice.
    PreviousRoutes,
    /// `safe_cross_scheme`: not from http to https.
    SafeCrossScheme,
}

/// The redirects that were followed for one request of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// How many.
    pub count: u32,
    /// Bytes of bodies that came with them and go no further.
    pub left_behind: u64,
    /// From which route to which, where a predicate wants to know.
    routes: Vec<(Arc<str>, Arc<str>)>,
}

/// Why a redirect is passed on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOn {
    /// There is no location.
    NoLocation,
    /// The location is no absolute URL of http or https.
    BadLocation,
    /// The scheme is another.
    UnsafeScheme,
    /// As many as allowed were followed.
    TooMany,
    /// It leads to no route.
    NoRoute,
    /// A predicate does not agree.
    Predicate,
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host, with its port if it has one.
    pub authority: Vec<u8>,
    /// Path and query, without a fragment.
    pub target: Vec<u8>,
}

impl Location {
    /// From the value of a Location header; `None` if it is no absolute URL of http or https with a host.
    pub fn parse(value: &[u8]) -> Option<Location> {
        let value = value.trim_ascii();
        let colon = memchr::memchr(b':', value)?;
        let scheme = Scheme::parse(&value[..colon])?;
        let rest = value[colon + 1..].strip_prefix(b"//")?;
        let rest = rest.split(|b| *b == b'#').next().unwrap_or_default();
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        // Whoever is named before the host is not told to the upstream.
        let host = memchr::memrchr(b'@', authority).map_or(authority, |at| &authority[at + 1..]);
        let is_clean = |text: &[u8]| text.iter().all(|b| *b > b' ' && *b != 0x7f);
        if host.is_empty() || host[0] == b':' || !is_clean(host) || !is_clean(target) {
            return None;
        }
        let target = match target.first() {
            Some(b'/') => target.to_vec(),
            _ => [b"/", target].concat(),
        };
        Some(Location { scheme, authority: host.to_vec(), target })
    }
}

impl InternalRedirect {
    /// Whether responses of this status are redirects to follow.
    pub fn follows(&self, status: u16) -> bool {
        self.codes.contains(&status)
    }

    /// Where the redirect leads for a request of this scheme, as far as can be said without its route.
    ///
    /// # Errors
    /// Why it is not followed.
    pub fn location(
        &self,
        scheme: Scheme,
        response: &Headers,
        followed: &Followed,
    ) -> Result<Location, PassedOn> {
        let value = response.get(Known::LOCATION).ok_or(PassedOn::NoLocation)?;
        let location = Location::parse(value).ok_or(PassedOn::BadLocation)?;
        if location.scheme != scheme && !self.allow_cross_scheme {
            return Err(PassedOn::UnsafeScheme);
        }
        if followed.count >= self.max {
            return Err(PassedOn::TooMany);
        }
        Ok(location)
    }

    /// Whether all predicates agree to go on from one route to another, by its name; notes that if so.
    pub fn agrees(
        &self,
        followed: &mut Followed,
        (from, from_scheme): (&Arc<str>, Scheme),
        (to, to_scheme): (&Arc<str>, Scheme),
    ) -> bool {
        let mut step = None;
        let agreed = self.predicates.iter().all(|predicate| match predicate {
            RedirectPredicate::AllowedRoutes(names) => names.contains(&**to),
            RedirectPredicate::SafeCrossScheme => from_scheme == Scheme::Https || to_scheme == Scheme::Http,
            RedirectPredicate::PreviousRoutes => {
                step = Some((from.clone(), to.clone()));
                !followed.routes.iter().any(|(f, t)| f == from && t == to)
            }
        });
        if agreed {
            followed.routes.extend(step);
        }
        agreed
    }

    /// Makes the request that follows the redirect out of the one that was redirected, which came by `scheme`. Answers
    /// whether it goes on with its body.
    pub fn rewrite(
        &self,
        request: &mut RequestHead,
        scheme: Scheme,
        (status, response): (u16, &Headers),
        location: &Location,
    ) -> bool {
        let url = [scheme.as_str().as_bytes(), b"://", &request.authority, request.target.full()];
        let url = url.concat();
        for name in &self.copied_headers {
            request.headers.remove(name);
            for value in response.get_all(name) {
                request.headers.append(name, value);
            }
        }
        request.scheme = location.scheme;
        request.authority.clone_from(&location.authority);
        request.target.set(&location.target);
        request.headers.set(Known::X_ENVOY_ORIGINAL_URL, &url);
        let anew = status == SEE_OTHER && request.method != Method::GET && request.method != Method::HEAD;
        if anew {
            request.method = Method::GET;
            request.headers.remove(Known::CONTENT_LENGTH);
        }
        !anew
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::Target;

    fn location(value: &str) -> Option<String> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Location::parse(value.as_bytes())
            .map(|l| format!("{} {} {}", l.scheme.as_str(), text(l.authority), text(l.target)))
    }

    #[test]
    fn a_location_is_an_absolute_url_of_http() {
        for (value, expected) in [
            ("http://h.test/a?b=c#d", "http h.test /a?b=c"),
            ("HTTPS://H.test:8443", "https H.test:8443 /"),
            ("http://user:pass@h.test/", "http h.test /"),
            ("http://[::1]:80/x", "http [::1]:80 /x"),
            ("http://h.test?q", "http h.test /?q"),
            ("http://h.test#f", "http h.test /"),
        ] {
            assert_eq!(location(value).as_deref(), Some(expected), "{value}");
        }
        let bad =
            ["", "/target", "//h.test/a", "ftp://h/a", "http:/h/a", "http://", "http:///a", "http://:80/"];
        for value in bad.into_iter().chain(["http://h/a b", "http://h\u{7f}/", "http://u@/a", "javascript:a"])
        {
            assert_eq!(location(value), None, "{value}");
        }
    }

    fn request() -> RequestHead {
        let mut head =
            RequestHead { method: Method::POST, authority: b"a.test".to_vec(), ..RequestHead::default() };
        head.target = Target::new(b"/old?x");
        head.headers.append(Known::CONTENT_LENGTH, b"3");
        head
    }

    fn response(location: &str) -> Headers {
        let mut headers = Headers::new();
        headers.append(Known::LOCATION, location.as_bytes());
        headers
    }

    #[test]
    fn schemes_and_numbers_are_bounded() {
        let policy = InternalRedirect { max: 2, ..InternalRedirect::default() };
        let ask = |policy: &InternalRedirect, to: &str, count| {
            let followed = Followed { count, ..Followed::default() };
            policy.location(request().scheme, &response(to), &followed).map(|location| location.scheme)
        };
        assert_eq!(ask(&policy, "http://b/", 1), Ok(Scheme::Http));
        assert_eq!(ask(&policy, "http://b/", 2), Err(PassedOn::TooMany));
        assert_eq!(ask(&policy, "https://b/", 0), Err(PassedOn::UnsafeScheme));
        assert_eq!(ask(&policy, "/b", 0), Err(PassedOn::BadLocation));
        let none = policy.location(request().scheme, &Headers::new(), &Followed::default());
        assert_eq!(none, Err(PassedOn::NoLocation));
        let cross = InternalRedirect { allow_cross_scheme: true, ..policy };
        assert_eq!(ask(&cross, "https://b/", 0), Ok(Scheme::Https));
    }

    #[test]
    fn predicates_look_at_routes_and_schemes() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let with =
            |predicate| InternalRedirect { predicates: Box::new([predicate]), ..InternalRedirect::default() };
        let http = Scheme::Http;
        let mut followed = Followed::default();
        let listed = with(RedirectPredicate::AllowedRoutes(HashSet::from(["b".into()])));
        assert!(listed.agrees(&mut followed, (&a, http), (&b, http)));
        assert!(!listed.agrees(&mut followed, (&b, http), (&a, http)));
        let previous = with(RedirectPredicate::PreviousRoutes);
        assert!(previous.agrees(&mut followed, (&a, http), (&b, http)));
        assert!(!previous.agrees(&mut followed, (&a, http), (&b, http)), "it was there");
        assert!(previous.agrees(&mut followed, (&b, http), (&b, http)), "not from here");
        let safe = with(RedirectPredicate::SafeCrossScheme);
        for (from, to, agreed) in [
            (http, Scheme::Https, false),
            (http, http, true),
            (Scheme::Https, http, true),
            (Scheme::Https, Scheme::Https, true),
        ] {
            assert_eq!(safe.agrees(&mut followed, (&a, from), (&b, to)), agreed, "{from:?} {to:?}");
        }
    }

    #[test]
    fn the_request_that_follows_goes_where_the_location_says() {
        let policy = InternalRedirect {
            copied_headers: ["x-new", "x-gone", "x-both"].map(|name| HeaderName::new(name).unwrap()).into(),
            ..InternalRedirect::default()
        };
        let mut answer = response("http://b.test:81/new");
        answer.push(b"x-new", b"1");
        answer.push(b"x-both", b"2");
        answer.push(b"x-both", b"3");
        let to = Location::parse(b"http://b.test:81/new").unwrap();
        let mut next = request();
        next.headers.push(b"x-gone", b"0");
        next.headers.push(b"x-both", b"0");
        assert!(policy.rewrite(&mut next, Scheme::Http, (302, &answer), &to));
        assert_eq!(
            (&next.method, &*next.authority, next.target.full()),
            (&Method::POST, &b"b.test:81"[..], &b"/new"[..])
        );
        let all = |name: &str| next.headers.get_all(name).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!((all("x-new"), all("x-gone")), (vec![b"1".to_vec()], vec![]));
        assert_eq!(all("x-both"), [b"2", b"3"]);
        assert_eq!(next.headers.get_str("x-envoy-original-url"), Some("http://a.test/old?x"));
        assert_eq!(next.headers.get_str("content-length"), Some("3"));
        let mut anew = request();
        assert!(!policy.rewrite(&mut anew, Scheme::Http, (303, &answer), &to));
        assert_eq!((anew.method, anew.headers.get_str("content-length")), (Method::GET, None));
        let mut head = RequestHead { method: Method::HEAD, ..request() };
        assert!(policy.rewrite(&mut head, Scheme::Http, (303, &answer), &to));
        assert_eq!(head.method, Method::HEAD);
    }
}
