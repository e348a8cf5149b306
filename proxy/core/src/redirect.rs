//! Locations of redirects (common/http/utility.cc `newUri`, common/router/config_impl.cc).

use crate::headers::Known;
use crate::message::{RequestHead, Scheme, Target, strip_port};
use crate::rewrite::{replace, replace_prefix};
use crate::route::{Redirect, RedirectPath, RequireTls, Route};
use crate::router::VirtualHost;
use crate::stream::Stream;
use std::borrow::Cow;

/// `location` of a redirect: scheme, host, port and path, each the request's unless the redirect says
/// otherwise.
///
/// The request's port goes only when the scheme changes and the port is the old scheme's default one. A path
/// that brings a query takes the place of the request's and is not stripped.
pub fn location(redirect: &Redirect, route: &Route, stream: &Stream) -> Vec<u8> {
    let request = &stream.request;
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme.as_str());
    let host = match &redirect.host {
        Some(host) => host.as_bytes(),
        None => request_host(scheme, redirect.port.is_some(), stream),
    };
    let target = rewritten(&redirect.path, route, &request.target);
    let brings_query = matches!(&redirect.path, RedirectPath::Replace(path) if path.contains(&b'?'));
    let path = if redirect.strip_query && !brings_query {
        target.split(|b| *b == b'?').next().unwrap_or_default()
    } else {
        &target
    };
    let mut out = Vec::with_capacity(scheme.len() + 3 + host.len() + 6 + path.len());
    out.extend_from_slice(scheme.as_bytes());
    out.extend_from_slice(b"://");
    out.extend_from_slice(host);
    if let Some(port) = redirect.port {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    // What takes the place of a path may lack its beginning.
    if !path.starts_with(b"/") && !matches!(redirect.path, RedirectPath::Keep) {
        out.push(b'/');
    }
    out.extend_from_slice(path);
    out
}

/// The request's own URI.
const UNCHANGED: Redirect = Redirect {
    status: 301,
    scheme: None,
    host: None,
    port: None,
    path: RedirectPath::Keep,
    strip_query: false,
};

/// `location` of a route's own answer with this status: the request's URI when something was created there (201,
/// RFC 9110 section 15.3.2) or the status is one of redirection, as in Envoy (common/router/router.cc).
pub fn own_location(status: u16, route: &Route, stream: &Stream) -> Option<Vec<u8>> {
    let located = status == 201 || (300..400).contains(&status);
    (located && !stream.request.target.is_empty()).then(|| location(&UNCHANGED, route, stream))
}

/// The request's host, with its port unless another is given or the scheme's default port went with the
/// scheme.
fn request_host<'a>(scheme: &str, has_port: bool, stream: &'a Stream) -> &'a [u8] {
    let authority = stream.request.authority.as_slice();
    let host = strip_port(authority);
    let port = authority.get(host.len()..).unwrap_or_default();
    let came_by = stream.request.headers.get(Known::X_FORWARDED_PROTO).unwrap_or_default();
    let changed = scheme.as_bytes() != came_by;
    let default = (came_by == b"http" && port == b":80") || (came_by == b"https" && port == b":443");
    if has_port || (changed && default) { host } else { authority }
}

/// Path and query of the location.
fn rewritten<'a>(path: &'a RedirectPath, route: &Route, target: &'a Target) -> Cow<'a, [u8]> {
    let query = target.full().get(target.path().len()..).unwrap_or_default();
    match path {
        RedirectPath::Keep => Cow::Borrowed(target.full()),
        RedirectPath::Replace(path) if path.contains(&b'?') => Cow::Borrowed(path),
        RedirectPath::Replace(path) => Cow::Owned([path, query].concat()),
        RedirectPath::Prefix(prefix) => {
            let mut out = replace_prefix(&route.path, prefix, target.path());
            out.extend_from_slice(query);
            Cow::Owned(out)
        }
        RedirectPath::Regex(regex, rewrite) => {
            let mut out = replace(regex, rewrite, target.path());
            out.extend_from_slice(query);
            Cow::Owned(out)
        }
    }
}

/// Whether a virtual host wants the request to come by TLS (`require_tls`), and it did not.
pub fn is_for_tls(host: &VirtualHost, stream: &Stream) -> bool {
    let wanted = match host.options.require_tls {
        RequireTls::None => false,
        RequireTls::ExternalOnly => !stream.internal,
        RequireTls::All => true,
    };
    wanted && stream.request.headers.get(Known::X_FORWARDED_PROTO) != Some(Scheme::Https.as_str().as_bytes())
}

/// The location of the 301 that such a request is answered with.
pub fn to_tls(request: &RequestHead) -> Vec<u8> {
    [b"https://", request.authority.as_slice(), request.target.full()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::regex::{Regex, Rewrite};
    use crate::route::fixture;
    use crate::router::{PathMatch, VirtualHostOptions};
    use crate::stream::fixture::stream;

    #[track_caller]
    fn check(redirect: &Redirect, path: PathMatch, host: &str, target: &str, want: &str) {
        let mut s = stream(target, &[("x-forwarded-proto", "http")]);
        s.request.authority = host.as_bytes().to_vec();
        let got = location(redirect, &fixture::route(path), &s);
        assert_eq!(String::from_utf8(got).unwrap(), want);
    }

    fn any() -> PathMatch {
        PathMatch::Prefix(b"/"[..].into(), false)
    }

    #[test]
    fn ports_survive_unless_they_went_with_the_scheme() {
        let https = || Redirect { scheme: Some("https".into()), ..UNCHANGED };
        check(&https(), any(), "h:80", "/s", "https://h/s");
        check(&https(), any(), "h:8080", "/s", "https://h:8080/s");
        check(&https(), any(), "h:443", "/s", "https://h:443/s");
        check(&https(), any(), "[::1]:80", "/s", "https://[::1]/s");
        check(&https(), any(), "[::1]:8080", "/s", "https://[::1]:8080/s");
        let http = Redirect { scheme: Some("http".into()), ..UNCHANGED };
        check(&http, any(), "h:443", "/s", "http://h:443/s");
        let path = Redirect { path: RedirectPath::Replace(b"/p"[..].into()), ..UNCHANGED };
        check(&path, any(), "h:80", "/s", "http://h:80/p");
        let path = Redirect { path: RedirectPath::Replace(b"p"[..].into()), ..UNCHANGED };
        check(&path, any(), "h", "/s?q", "http://h/p?q");
        let query = Redirect { path: RedirectPath::Replace(b"?p"[..].into()), ..UNCHANGED };
        check(&query, any(), "h", "/s?q", "http://h/?p");
        let port = Redirect { port: Some(443), ..https() };
        check(&port, any(), "h:80", "/p443", "https://h:443/p443");
        let host = Redirect { host: Some("h".into()), ..UNCHANGED };
        check(&host, any(), "other:81", "/301", "http://h/301");
    }

    #[test]
    fn prefixes_and_regexes_rewrite_the_path_and_keep_the_query() {
        let to = |p: &[u8]| Redirect { path: RedirectPath::Prefix(p.into()), ..UNCHANGED };
        let prefix = |p: &[u8]| PathMatch::Prefix(p.into(), false);
        check(&to(b"/new"), prefix(b"/old"), "h", "/old/x?q=1", "http://h/new/x?q=1");
        check(
            &to(b"/other"),
            PathMatch::Exact(b"/exact"[..].into(), false),
            "h",
            "/exact?q=1",
            "http://h/other?q=1",
        );
        check(&to(b"/"), PathMatch::SeparatedPrefix(b"/seg"[..].into(), false), "h", "/seg/x", "http://h//x");
        check(
            &to(b"/all"),
            PathMatch::Regex(Regex::full("/re/.*").unwrap().into()),
            "h",
            "/re/a?b",
            "http://h/all?b",
        );
        check(&to(b"/p?a=1&b="), prefix(b"/q"), "h", "/q/x", "http://h/p?a=1&b=/x");
        let regex = Regex::search("^/v1/([a-z]+)").unwrap();
        let rewrite = Rewrite::new(r"/v2/\1/x", 1).unwrap();
        let redirect = Redirect { path: RedirectPath::Regex(regex, rewrite), ..UNCHANGED };
        check(&redirect, any(), "h", "/v1/abc/d?q=/v1/abc", "http://h/v2/abc/x/d?q=/v1/abc");
        check(&redirect, any(), "h", "/none", "http://h/none");
    }

    #[test]
    fn queries_are_stripped_unless_the_redirect_brings_its_own() {
        let strip = |path: RedirectPath| Redirect { path, strip_query: true, ..UNCHANGED };
        check(&strip(RedirectPath::Keep), any(), "h", "/a?b=c", "http://h/a");
        check(&strip(RedirectPath::Replace(b"/p?x=1"[..].into())), any(), "h", "/a?b", "http://h/p?x=1");
        let own = Redirect { path: RedirectPath::Replace(b"/p?x=1"[..].into()), ..UNCHANGED };
        check(&own, any(), "h", "/a?b", "http://h/p?x=1");
    }

    #[test]
    fn plain_text_is_sent_to_tls_where_it_is_required() {
        let host = |require_tls| {
            let options = VirtualHostOptions { require_tls, ..VirtualHostOptions::default() };
            VirtualHost::new("v", options)
        };
        let mut s = stream("/x?y=z", &[("x-forwarded-proto", "http")]);
        s.request.authority = b"port.test:80".to_vec();
        assert!(!is_for_tls(&host(RequireTls::None), &s));
        assert!(is_for_tls(&host(RequireTls::ExternalOnly), &s));
        assert_eq!(to_tls(&s.request), b"https://port.test:80/x?y=z");
        s.internal = true;
        assert!(!is_for_tls(&host(RequireTls::ExternalOnly), &s));
        assert!(is_for_tls(&host(RequireTls::All), &s));
        s.request.headers.set(Known::X_FORWARDED_PROTO, b"https");
        assert!(!is_for_tls(&host(RequireTls::All), &s));
    }
}
