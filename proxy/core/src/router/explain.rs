//! Why a request meets the route that it meets, for people who ask.
//!
//! The answer is that of [`RouteTable::find`], which serves. What is told beside it are the routes that come before it in the
//! order of precedence, and the first thing that each of them asks for and the request has not, by the same tests that
//! a look-up makes. A look-up does none of this.

use super::domains::Domain;
use super::index::{Index, Test};
use super::{Found, Hosts, RouteTable};
use crate::route::Route;
use crate::stream::Stream;
use std::sync::Arc;

/// What a look-up found, and what it passed over.
#[derive(Debug)]
pub struct Explained {
    /// What [`RouteTable::find`] answers.
    pub found: Option<Found>,
    /// The domain of the virtual host that the request's host has met; `None` in APISIX's tables.
    pub domain: Option<Domain>,
    /// Routes before the one that was found, in the order of precedence; all of them if none was.
    pub passed: Vec<Passed>,
    /// Routes of other hosts, which were not looked at.
    pub elsewhere: usize,
}

/// A route that was passed over.
#[derive(Debug)]
pub struct Passed {
    /// The route.
    pub route: Arc<Route>,
    /// Why.
    pub reason: Lost,
}

/// The first thing that a route asks for and a request has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Its path; of a route for CONNECT the method, of APISIX's the host too where that is a condition.
    Path,
    /// The condition with this index among its predicates.
    Condition(usize),
    /// Nothing: it was not tried, since expressions may not scan any more for this request.
    Untried,
}

impl RouteTable {
    /// What [`RouteTable::find`] does for the request of `stream`, and why.
    pub fn explain(&self, stream: &mut Stream) -> Explained {
        let found = self.find(stream);
        let route = found.as_ref().and_then(|found| found.route.as_ref());
        let path = self.path(stream);
        match &self.hosts {
            Hosts::Domains(domains) => {
                let met = domains.lookup(&stream.request.authority, self.options.ignore_port);
                let all: usize = domains.all().iter().map(|host| host.routes().len()).sum();
                let (domain, passed, own) = match met {
                    Some((domain, host)) => {
                        let list = host.list(stream);
                        let passed = list.map(|list| list.passed_over(&path, stream, route));
                        let own = list.map_or(0, |list| list.routes().len());
                        (Some(domain), passed.unwrap_or_default(), own)
                    }
                    None => (None, Vec::new(), 0),
                };
                Explained { found, domain, passed, elsewhere: all - own }
            }
            Hosts::Apisix(hosts) => {
                let mut passed = Vec::new();
                let mut looked_at = 0;
                for index in hosts.indexes(stream) {
                    looked_at += index.routes().len();
                    let before = passed.len();
                    passed.extend(index.passed_over(&path, stream, route));
                    if passed.len() - before < index.routes().len() {
                        // The route that was found lies here.
                        break;
                    }
                }
                let elsewhere = hosts.routes().count().saturating_sub(looked_at);
                Explained { found, domain: None, passed, elsewhere }
            }
        }
    }
}

impl Index {
    /// The routes before `found`, or all of them, with what keeps each from being met.
    fn passed_over(&self, path: &[u8], stream: &Stream, found: Option<&Arc<Route>>) -> Vec<Passed> {
        // A route of APISIX with several URIs is there several times.
        let is_found = |route: &Arc<Route>, test: &Test| {
            found.is_some_and(|found| Arc::ptr_eq(found, route)) && test.holds(route, path, stream)
        };
        let before = self.with_tests().take_while(|(route, test)| !is_found(route, test));
        before
            .map(|(route, test)| {
                let reason = if !test.holds(route, path, stream) {
                    Lost::Path
                } else {
                    let failed = route.predicates.iter().position(|predicate| !predicate.matches(stream));
                    failed.map_or(Lost::Untried, Lost::Condition)
                };
                Passed { route: route.clone(), reason }
            })
            .collect()
    }
}
