//! What must hold of route tables for any bytes at all. The fuzz target in `proxy/fuzz` calls this, and so does
//! a test on stable; a broken promise is a failed assertion.

use super::apisix::{ApisixRoute, ApisixRouter, ApisixRoutes};
use super::{HostRoutes, PathMatch, Template, VirtualHostOptions};
use crate::connection::Connection;
use crate::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget, StringMatcher};
use crate::message::Method;
use crate::regex::Regex;
use crate::route::{Action, Predicate, Route};
use crate::stream::Stream;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Bytes that are taken for decisions.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    /// A path of up to four segments over a, b and /.
    fn path(&mut self, alphabet: &[u8]) -> Vec<u8> {
        let len = usize::from(self.below(8));
        let mut path = vec![b'/'];
        path.extend((0..len).map(|_| alphabet[usize::from(self.byte()) % alphabet.len()]));
        path
    }

    fn predicates(&mut self) -> Vec<Predicate> {
        (0..self.below(8).saturating_sub(5).min(2))
            .map(|_| match self.below(5) {
                0 => Predicate::Methods([Method::GET, Method::POST][..usize::from(self.below(3))].into()),
                1 => Predicate::Query(crate::matcher::QueryMatcher {
                    name: "q".into(),
                    test: None,
                    present: self.below(2) == 0,
                }),
                kind => {
                    let name = ["x-a", "x-b", ":method"][usize::from(self.below(3))];
                    let value = [&b"1"[..], b"2", b"12", b"GET"][usize::from(self.below(4))];
                    let test = match kind {
                        2 => StringMatcher::Prefix(value.into(), false),
                        _ => StringMatcher::Exact(value.into(), false),
                    };
                    Predicate::Header(HeaderMatcher {
                        target: HeaderTarget::of_request(name),
                        test: HeaderMatch::String(test),
                        invert: kind == 4,
                        missing_is_empty: false,
                    })
                }
            })
            .collect()
    }

    fn path_match(&mut self) -> PathMatch {
        let text = self.path(b"ab/abB");
        match self.below(8) {
            0 | 1 => PathMatch::Exact(text.into(), self.below(4) == 0),
            2 => PathMatch::SeparatedPrefix(
                text.strip_suffix(b"/").unwrap_or(&text).into(),
                self.below(4) == 0,
            ),
            3 => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let end = ["", ".*", "[^/]+", "(/.*)?", "[ab]+/.*b", "(a|b/).*"][usize::from(self.below(6))];
                let start = ["", ".*"][usize::from(self.below(8) / 7)];
                Regex::full(&format!("{start}{text}{end}"))
                    .map_or(PathMatch::Connect, |regex| PathMatch::Regex(regex.into()))
            }
            4 => {
                let template = ["/{x}", "/a/*", "/**", "/{x}/b/{y}", "/a/{r=**}"][usize::from(self.below(5))];
                Template::parse(template)
                    .map_or(PathMatch::Connect, |template| PathMatch::Template(template.into()))
            }
            5 if self.below(4) == 0 => PathMatch::Connect,
            _ => PathMatch::Prefix(text.into(), self.below(4) == 0),
        }
    }

    fn request(&mut self) -> Stream {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let mut stream = Stream::new(Arc::new(Connection::plain(local, local)));
        stream.request.method =
            [Method::GET, Method::POST, Method::CONNECT][usize::from(self.below(8) / 3)].clone();
        stream.request.authority = self.host().into_bytes();
        for _ in 0..self.below(3) {
            let name = [&b"x-a"[..], b"X-B"][usize::from(self.below(2))];
            stream.request.headers.push(name, [&b"1"[..], b"2", b"123"][usize::from(self.below(3))]);
        }
        let mut target = self.path(b"ab/abB");
        if self.below(4) == 0 {
            target.extend_from_slice(b"?q=1");
        }
        stream.request.target.set(&target);
        stream
    }

    fn host(&mut self) -> String {
        ["a.b", "b.b", "a.a.b", "b", "a.b:80"][usize::from(self.below(5))].to_owned()
    }
}

/// What a comparison of index and scan has seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// Lookups.
    pub lookups: u32,
    /// Lookups for which two or more routes had the right path.
    pub contested: u32,
}

/// The first byte chooses the order of precedence, the others make a table and requests.
pub fn tables(data: &[u8]) {
    if let Some((choice, rest)) = data.split_first() {
        let _ = if choice % 2 == 0 { envoy(rest) } else { apisix(rest) };
    }
}

/// A table and requests for it, in Envoy's order: the index must answer what a scan of the list answers.
pub fn envoy(data: &[u8]) -> Seen {
    let mut source = Source(data);
    let count = 1 + source.below(40);
    let routes: Vec<_> = (0..count)
        .map(|_| {
            let mut route = Route::new(source.path_match(), Action::NonForwarding);
            route.predicates = source.predicates().into();
            Arc::new(route)
        })
        .collect();
    let host = HostRoutes::new("fuzz", VirtualHostOptions::default(), routes);
    let mut seen = Seen::default();
    for _ in 0..8 {
        let stream = source.request();
        let path = stream.request.target.path();
        let found = host.index.find(path, &stream, &mut Vec::new());
        let scanned = host.index.scan(path, &stream);
        assert!(same(found, scanned), "{:?}: index {found:?}, scan {scanned:?}", stream.request);
        seen.lookups += 1;
        seen.contested += u32::from(host.routes().iter().filter(|r| r.path.matches(path)).count() > 1);
    }
    seen
}

/// A table and requests for it in APISIX's order, against the rules told one by one.
pub fn apisix(data: &[u8]) -> Seen {
    let mut source = Source(data);
    let router = [ApisixRouter::HostUri, ApisixRouter::Uri, ApisixRouter::UriWithParameter]
        [usize::from(source.below(3))];
    let count = 1 + source.below(30);
    let routes: Vec<(u64, Arc<Route>)> = (0..u64::from(count))
        .map(|i| {
            let mut route = Route::new(PathMatch::Connect, Action::NonForwarding);
            route.ids.route = i.to_string().into();
            route.priority = i64::from(source.below(3));
            route.predicates = source.predicates().into();
            route.ids.uris = (0..=source.below(2)).map(|_| uri(&mut source).into()).collect();
            route.ids.hosts = (0..source.below(3))
                .map(|_| match source.below(3) {
                    0 => ["*.b", "*", "*b", "*.a.b"][usize::from(source.below(4))].to_owned(),
                    _ => source.host(),
                })
                .map(Into::into)
                .collect();
            (i, Arc::new(route))
        })
        .collect();
    let mut seen = Seen::default();
    let ready = |(order, route): &(u64, Arc<Route>)| ApisixRoute::new(route.clone(), *order, router);
    let Ok(all) = routes.iter().map(ready).collect::<Result<Vec<_>, _>>() else { return seen };
    // In several steps, some of which undo others: a table must not tell how it came about.
    let (first, second) = all.split_at(all.len() / 3);
    let gone: Vec<_> = routes.iter().step_by(2).map(|(_, route)| route.clone()).collect();
    let back: Vec<_> = all.iter().step_by(2).cloned().collect();
    let table = ApisixRoutes::new(router).next(&[], second).next(&[], first);
    let table = table.next(&gone, &[]).next(&[], &back);
    for _ in 0..8 {
        let stream = source.request();
        let path = stream.request.target.path();
        let found = table.find(path, &stream, &mut Vec::new());
        let (scanned, candidates) = super::apisix::scan(&routes, router, path, &stream);
        assert!(same(found, scanned), "{:?}: index {found:?}, scan {scanned:?}", stream.request);
        seen.lookups += 1;
        seen.contested += u32::from(candidates > 1);
    }
    seen
}

fn uri(source: &mut Source<'_>) -> String {
    let text = String::from_utf8_lossy(&source.path(b"ab/ab")).into_owned();
    match source.below(6) {
        0 | 1 => text,
        2 | 3 => format!("{text}*"),
        4 => format!("{}/:id", text.trim_end_matches('/')),
        _ => format!("{}/*/b", text.trim_end_matches('/')),
    }
}

fn same(a: Option<&Arc<Route>>, b: Option<&Arc<Route>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}
