//! Route tables, requests and endpoints for the micro benchmarks. The tables are those of the load tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use sixfold_core::cluster::{Address, HostConfig, HostSet};
use sixfold_core::connection::Connection;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget, StringMatcher};
use sixfold_core::regex::Regex;
use sixfold_core::route::{Action, DirectResponse, Ids, Predicate, Route};
use sixfold_core::router::{HostRoutes, PathMatch, RouteTable, TableOptions, VirtualHostOptions};
use sixfold_core::stream::Stream;

/// How the routes of a table are told apart; the n-th of them, from 1, takes [`path`]`(n)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `/svc/N/` as a prefix
    Prefix,
    /// `/svc/N/api` exactly
    Exact,
    /// `/svc/N/.*` as a regex
    Regex,
    /// `/[a-z]+/N/.*` as a regex
    WildRegex,
    /// the prefix `/svc/` and `x-tenant: N` exactly
    Header,
}

pub const TABLES: [Table; 5] = [Table::Prefix, Table::Exact, Table::Regex, Table::WildRegex, Table::Header];

impl Table {
    /// A compiled table of so many routes.
    ///
    /// # Errors
    /// The model refuses it.
    pub fn compile(self, routes: usize) -> Result<RouteTable> {
        let routes = (1..=routes).map(|n| Ok(Arc::new(self.route(n)?))).collect::<Result<Vec<_>>>()?;
        let host = HostRoutes::new("all", VirtualHostOptions::default(), routes);
        let hosts = vec![(vec!["*".to_owned()], host)];
        RouteTable::new("bench", TableOptions::default(), hosts).map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn route(self, n: usize) -> Result<Route> {
        let regex = |source: String| Regex::full(&source).map_err(|error| anyhow::anyhow!("{error}"));
        let path = match self {
            Self::Prefix => PathMatch::Prefix(format!("/svc/{n}/").into_bytes().into(), false),
            Self::Exact => PathMatch::Exact(path(n).into_bytes().into(), false),
            Self::Regex => PathMatch::Regex(regex(format!("/svc/{n}/.*"))?.into()),
            Self::WildRegex => PathMatch::Regex(regex(format!("/[a-z]+/{n}/.*"))?.into()),
            Self::Header => PathMatch::Prefix(b"/svc/".as_slice().into(), false),
        };
        let predicates = if self == Self::Header { vec![tenant(n)?] } else { Vec::new() };
        Ok(Route {
            name: n.to_string().into(),
            ids: Ids::default(),
            path,
            predicates: predicates.into(),
            priority: 0,
            action: Action::Direct(
                DirectResponse { status: 200, body: Bytes::new(), body_format: None }.into(),
            ),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            chain: None,
            metadata: Default::default(),
            stats: None,
            rare: None,
        })
    }
}

fn tenant(n: usize) -> Result<Predicate> {
    let target = HeaderTarget::of_request("x-tenant");
    let test = HeaderMatch::String(StringMatcher::exact(&n.to_string()));
    Ok(Predicate::Header(HeaderMatcher { target, test, invert: false, missing_is_empty: false }))
}

/// A path that the n-th route takes.
pub fn path(n: usize) -> String {
    format!("/svc/{n}/api")
}

/// A request that the n-th route takes.
pub fn request(n: usize) -> Stream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let connection = Connection::plain(address, address);
    let mut stream = Stream::new(Arc::new(connection));
    stream.request.authority = b"bench.test".to_vec();
    stream.request.target.set(path(n).as_bytes());
    stream.request.headers.push(b"user-agent", b"bench");
    stream.request.headers.push(b"accept", b"*/*");
    stream.request.headers.push(b"x-tenant", n.to_string().as_bytes());
    stream
}

/// Endpoints of weights 1, 2, 3, 1, 2, 3 and so on.
pub fn hosts(count: u16) -> HostSet {
    let host = |n: u16| HostConfig {
        weight: u32::from(n % 3) + 1,
        ..HostConfig::new(Address::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + n))))
    };
    HostSet::new((0..count).map(host).collect(), None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_table_finds_the_route_of_a_request() {
        for table in TABLES {
            let compiled = table.compile(50).unwrap();
            for n in [1, 30, 50] {
                let found = compiled.find(&mut request(n)).and_then(|found| found.route);
                assert_eq!(found.map(|route| route.name.to_string()), Some(n.to_string()), "{table:?}");
            }
            assert!(compiled.find(&mut request(51)).unwrap().route.is_none(), "{table:?}");
        }
    }
}
