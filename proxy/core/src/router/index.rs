//! The index of a list of routes.

use super::PathMatch;
use super::apisix::Parameters;
use crate::message::Method;
use crate::route::Route;
use crate::stream::Stream;
use std::sync::Arc;

/// Captures of a match: name and value.
pub(super) type Captures = Vec<(Arc<str>, Vec<u8>)>;

/// What has to be looked at beside the place in the tree before a candidate's path is known to match.
#[derive(Debug)]
pub(super) enum Test {
    /// The route's own [`PathMatch`].
    Path,
    /// APISIX: a path, or a prefix and what must hold of the rest.
    Apisix(Box<Parameters>),
}

/// Routes in ascending order of precedence, and how to find those that a path may mean.
#[derive(Debug)]
pub(super) struct Index {
    routes: Vec<Arc<Route>>,
    tests: Vec<Test>,
}

impl Index {
    /// Envoy's order: the position in the list.
    pub(super) fn of_list(routes: Vec<Arc<Route>>) -> Index {
        let tests = routes.iter().map(|_| Test::Path).collect();
        Index::new(routes, tests)
    }

    /// `routes` in ascending order of precedence with their path tests.
    pub(super) fn new(routes: Vec<Arc<Route>>, tests: Vec<Test>) -> Index {
        Index { routes, tests }
    }

    pub(super) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The first route that the request fulfils.
    pub(super) fn find(&self, path: &[u8], stream: &Stream, captures: &mut Captures) -> Option<&Arc<Route>> {
        self.routes.iter().zip(&self.tests).find_map(|(route, test)| {
            let fits = match test {
                Test::Path => match &route.path {
                    PathMatch::Connect => stream.request.method == Method::CONNECT,
                    path_match => path_match.matches(path),
                },
                Test::Apisix(parameters) => parameters.matches(path, &stream.request.authority),
            };
            if !fits || !route.predicates.iter().all(|p| p.matches(stream)) {
                return None;
            }
            match (test, &route.path) {
                (Test::Apisix(parameters), _) => parameters.capture(path, captures),
                (Test::Path, PathMatch::Template(template)) => template.capture(path, captures),
                _ => {}
            }
            Some(route)
        })
    }
}
