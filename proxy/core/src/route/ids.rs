//! What logs and metrics call an APISIX route.

use std::sync::Arc;

/// What the APISIX resources that a route was made of are called, for variables and metrics.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    /// `route_id`
    pub route: Arc<str>,
    /// `service_id`
    pub service: Arc<str>,
    /// `service_name`
    pub service_name: Arc<str>,
    /// Its paths as configured, of `uri` or `uris`.
    pub uris: Box<[Box<str>]>,
    /// Its hosts as configured, or its service's.
    pub hosts: Box<[Box<str>]>,
}

impl Ids {
    /// The configured path that a request to `path` has matched: APISIX's `matched_uri`.
    pub fn matched_uri(&self, path: &[u8]) -> &str {
        best(&self.uris, |uri| match uri.find(['*', ':']) {
            Some(cut) => path.starts_with(&uri.as_bytes()[..cut]).then_some(cut),
            None => (path == uri.as_bytes()).then_some(usize::MAX),
        })
    }

    /// The configured host that a request for `host` (without its port) has matched: APISIX's `matched_host`.
    pub fn matched_host(&self, host: &[u8]) -> &str {
        best(&self.hosts, |pattern| match pattern.strip_prefix('*') {
            Some(end) => {
                let at = host.len().checked_sub(end.len())?;
                host[at..].eq_ignore_ascii_case(end.as_bytes()).then_some(end.len())
            }
            None => host.eq_ignore_ascii_case(pattern.as_bytes()).then_some(usize::MAX),
        })
    }
}

/// The pattern with the highest rank; the only one without a look at it.
fn best(patterns: &[Box<str>], rank: impl Fn(&str) -> Option<usize>) -> &str {
    match patterns {
        [] => "",
        [only] => only,
        several => {
            // Among equals the first one: `max_by_key` takes the last.
            let ranked = several.iter().rev().filter_map(|pattern| Some((rank(pattern)?, pattern)));
            ranked.max_by_key(|(rank, _)| *rank).map_or("", |(_, pattern)| pattern)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_patterns_the_most_specific_one_that_matches_is_told() {
        let ids = Ids {
            uris: ["/a/*", "/a/b", "/*", "/a/:id/x"].map(Into::into).into(),
            hosts: ["*.test", "*.a.test", "h.a.test"].map(Into::into).into(),
            ..Ids::default()
        };
        for (path, uri) in [("/a/b", "/a/b"), ("/a/", "/a/*"), ("/b", "/*"), ("b", "")] {
            assert_eq!(ids.matched_uri(path.as_bytes()), uri, "{path}");
        }
        for (host, pattern) in
            [("H.a.test", "h.a.test"), ("x.A.test", "*.a.test"), ("x.test", "*.test"), ("t", "")]
        {
            assert_eq!(ids.matched_host(host.as_bytes()), pattern, "{host}");
        }
        assert_eq!(Ids::default().matched_uri(b"/"), "");
    }
}
