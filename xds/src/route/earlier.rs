//! What a table takes over from the version before it, so that a change of one route of thousands compiles one.
//!
//! Routes are told apart by their encoded form, which says all about them but what they inherit: by the same filters
//! and in the same context, an equal route below equal levels is the same route. Whether its clusters are still there where
//! they must be (`validate_clusters`) is asked again.

use std::sync::Arc;

use sixfold_core::fast_hash::FastMap;
use sixfold_core::route::Route;
use sixfold_core::router::{HostRoutes, RouteTable};
use sixfold_xds_api::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

use super::inherited::{OfHost, OfTable};

/// An earlier version of a route configuration, and its table for the same filters in the same context.
pub(crate) struct Earlier<'a> {
    pub(crate) value: &'a RouteConfiguration,
    /// Its encoded routes, by virtual host.
    pub(crate) routes: &'a [Vec<&'a [u8]>],
    pub(crate) table: &'a RouteTable,
}

/// A virtual host of it.
pub(super) struct EarlierHost<'a> {
    value: &'a VirtualHost,
    encoded: &'a [&'a [u8]],
    compiled: &'a Arc<HostRoutes>,
}

impl<'a> Earlier<'a> {
    /// Its virtual hosts by name; none if those of `next` inherit something else from the table.
    pub(super) fn hosts(&self, next: &RouteConfiguration) -> FastMap<&'a str, EarlierHost<'a>> {
        let Earlier { value, routes, table } = *self;
        if OfTable::new(value) != OfTable::new(next) {
            return FastMap::default();
        }
        let hosts = value.virtual_hosts.iter().zip(routes).zip(table.virtual_hosts());
        hosts
            .map(|((value, encoded), compiled)| (&*value.name, EarlierHost { value, encoded, compiled }))
            .collect()
    }
}

impl EarlierHost<'_> {
    /// All of it, if nothing has changed.
    pub(super) fn whole(&self, next: &VirtualHost, routes: &[&[u8]]) -> Option<Arc<HostRoutes>> {
        (self.value == next && self.encoded == routes).then(|| self.compiled.clone())
    }

    /// Its routes by their encoded form; none if those of `next` inherit something else.
    pub(super) fn routes(&self, next: &VirtualHost) -> FastMap<&[u8], &Arc<Route>> {
        if OfHost::new(self.value) != OfHost::new(next) {
            return FastMap::default();
        }
        self.encoded.iter().copied().zip(self.compiled.routes()).collect()
    }
}
