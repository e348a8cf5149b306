//! What is measured.

use super::peers::Peer;

/// How many routes the large tables have.
pub(super) const ROUTES: usize = 5_000;

/// What a client speaks to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Tls13,
    H2c,
    /// HTTP/2 over TLS 1.3
    H2,
    /// A unary call: POST with a length-prefixed message, HTTP/2 on both sides, `grpc-status` in trailers
    Grpc,
}

impl Protocol {
    pub(super) fn has_tls(self) -> bool {
        matches!(self, Self::Tls13 | Self::H2)
    }

    /// Whether streams share a connection.
    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2 | Self::Grpc)
    }
}

/// The route table; the n-th of many routes is told by `n`, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    One,
    /// `/svc/N/` as a prefix
    Prefix,
    /// `/svc/N/api` exactly
    Exact,
    /// `/svc/N/.*` as a regex
    Regex,
    /// `/[a-z]+/N/.*` as a regex: nothing literal to begin with but the slash
    WildRegex,
    /// the prefix `/svc/` and `x-tenant: N` exactly
    Header,
}

/// One case: a table, what is asked of it, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub name: &'static str,
    pub title: &'static str,
    pub table: Table,
    pub protocol: Protocol,
    pub path: &'static str,
    /// Bytes that each request sends
    pub upload: Option<usize>,
    /// Requests a second at which the latency is taken; every peer of the case must be able to serve it.
    pub rate: u32,
    pub peers: &'static [Peer],
}

const ALL: &[Peer] = &[Peer::Sixfold, Peer::Envoy, Peer::Nginx, Peer::Haproxy, Peer::TcpForward];
const HTTP: &[Peer] = &[Peer::Sixfold, Peer::Envoy, Peer::Nginx, Peer::Haproxy];
/// Only these two take the same file: an ordered list of routes, the first match wins.
const SAME_FILE: &[Peer] = &[Peer::Sixfold, Peer::Envoy];

const fn among_many(name: &'static str, title: &'static str, table: Table, path: &'static str) -> Case {
    Case { name, title, table, protocol: Protocol::Http1, path, upload: None, rate: 2_000, peers: SAME_FILE }
}

/// Bytes of the bodies.
pub(super) const SHORT: usize = 100 << 10;
pub(super) const LONG: usize = 1 << 20;

const fn download(name: &'static str, title: &'static str, protocol: Protocol, path: &'static str) -> Case {
    Case { name, title, table: Table::One, protocol, path, upload: None, rate: 1_000, peers: HTTP }
}

const fn upload(name: &'static str, title: &'static str, protocol: Protocol, bytes: usize) -> Case {
    let rate = if bytes == SHORT { 1_000 } else { 100 };
    let path = "/upload";
    Case { name, title, table: Table::One, protocol, path, upload: Some(bytes), rate, peers: HTTP }
}

const FIRST: &str = "/svc/1/api";
/// The header case asks for this tenant too.
const MIDDLE: &str = "/svc/3000/api";
const LAST: &str = "/svc/5000/api";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "one",
        title: "1 route, HTTP/1.1",
        table: Table::One,
        protocol: Protocol::Http1,
        path: MIDDLE,
        upload: None,
        rate: 8_000,
        peers: ALL,
    },
    among_many("prefix-1", "5,000 prefix routes, the 1st", Table::Prefix, FIRST),
    among_many("prefix-3000", "5,000 prefix routes, the 3,000th", Table::Prefix, MIDDLE),
    among_many("prefix-5000", "5,000 prefix routes, the 5,000th", Table::Prefix, LAST),
    among_many("exact-1", "5,000 exact routes, the 1st", Table::Exact, FIRST),
    among_many("exact-3000", "5,000 exact routes, the 3,000th", Table::Exact, MIDDLE),
    among_many("exact-5000", "5,000 exact routes, the 5,000th", Table::Exact, LAST),
    among_many("regex-1", "5,000 regex routes, the 1st", Table::Regex, FIRST),
    among_many("regex-3000", "5,000 regex routes, the 3,000th", Table::Regex, MIDDLE),
    among_many("regex-5000", "5,000 regex routes, the 5,000th", Table::Regex, LAST),
    among_many("wild-regex-1", "5,000 regexes without a literal prefix, the 1st", Table::WildRegex, FIRST),
    among_many(
        "wild-regex-3000",
        "5,000 regexes without a literal prefix, the 3,000th",
        Table::WildRegex,
        MIDDLE,
    ),
    among_many(
        "wild-regex-5000",
        "5,000 regexes without a literal prefix, the 5,000th",
        Table::WildRegex,
        LAST,
    ),
    among_many(
        "header",
        "5,000 routes on one prefix told apart by a header, the 3,000th",
        Table::Header,
        MIDDLE,
    ),
    Case {
        name: "tls",
        title: "1 route, HTTP/1.1 over TLS 1.3",
        table: Table::One,
        protocol: Protocol::Tls13,
        path: MIDDLE,
        upload: None,
        rate: 6_000,
        peers: HTTP,
    },
    Case {
        name: "h2c",
        title: "1 route, HTTP/2 without TLS",
        table: Table::One,
        protocol: Protocol::H2c,
        path: MIDDLE,
        upload: None,
        rate: 6_000,
        peers: HTTP,
    },
    Case {
        name: "grpc",
        title: "1 route, gRPC unary calls",
        table: Table::One,
        protocol: Protocol::Grpc,
        path: "/bench.Greeter/Hello",
        upload: None,
        rate: 4_000,
        peers: HTTP,
    },
    Case { peers: ALL, ..download("body", "1 route, a body of 100 KiB", Protocol::Http1, "/body") },
    Case {
        rate: 100,
        peers: ALL,
        ..download("body-1m", "1 route, a body of 1 MiB", Protocol::Http1, "/body-1m")
    },
    upload("upload", "1 route, 100 KiB are sent", Protocol::Http1, SHORT),
    upload("upload-1m", "1 route, 1 MiB is sent", Protocol::Http1, LONG),
    download("body-tls", "1 route, a body of 100 KiB over TLS 1.3", Protocol::Tls13, "/body"),
    Case {
        rate: 100,
        ..download("body-1m-tls", "1 route, a body of 1 MiB over TLS 1.3", Protocol::Tls13, "/body-1m")
    },
    upload("upload-tls", "1 route, 100 KiB are sent over TLS 1.3", Protocol::Tls13, SHORT),
    upload("upload-1m-tls", "1 route, 1 MiB is sent over TLS 1.3", Protocol::Tls13, LONG),
    download("body-h2", "1 route, a body of 100 KiB by HTTP/2 over TLS 1.3", Protocol::H2, "/body"),
    Case {
        rate: 100,
        ..download("body-1m-h2", "1 route, a body of 1 MiB by HTTP/2 over TLS 1.3", Protocol::H2, "/body-1m")
    },
    upload("upload-h2", "1 route, 100 KiB are sent by HTTP/2 over TLS 1.3", Protocol::H2, SHORT),
    upload("upload-1m-h2", "1 route, 1 MiB is sent by HTTP/2 over TLS 1.3", Protocol::H2, LONG),
];

impl Table {
    /// The number of routes.
    pub(super) fn len(self) -> usize {
        if self == Self::One { 1 } else { ROUTES }
    }

    /// A path that the n-th route takes.
    pub(super) fn path_of(n: usize) -> String {
        format!("/svc/{n}/api")
    }
}
