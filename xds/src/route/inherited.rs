//! What routes take from the levels above them. Compiling one shows it nothing else of those levels, so that equal routes below
//! equal ones of these are the same route.

use sixfold_xds_api::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use sixfold_xds_api::pb::envoy::config::route::v3::{
    CorsPolicy, HedgePolicy, RouteConfiguration, VirtualHost as ProtoHost,
};
use sixfold_xds_api::pb::google::protobuf::{BoolValue, UInt32Value};

use crate::filters::{Level, Overrides};

/// Of a table.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct OfTable<'a> {
    pub(super) overrides: &'a Overrides,
    pub(super) max_direct_body: Option<&'a UInt32Value>,
    pub(super) validate_clusters: Option<&'a BoolValue>,
    pub(super) mirrors: &'a [RequestMirrorPolicy],
}

/// Of a virtual host.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct OfHost<'a> {
    pub(super) name: &'a str,
    pub(super) hedge: Option<&'a HedgePolicy>,
    pub(super) mirrors: &'a [RequestMirrorPolicy],
    overrides: &'a Overrides,
    cors: Option<&'a CorsPolicy>,
}

impl<'a> OfTable<'a> {
    pub(super) fn new(table: &'a RouteConfiguration) -> OfTable<'a> {
        OfTable {
            overrides: &table.typed_per_filter_config,
            max_direct_body: table.max_direct_response_body_size_bytes.as_ref(),
            validate_clusters: table.validate_clusters.as_ref(),
            mirrors: &table.request_mirror_policies,
        }
    }
}

impl<'a> OfHost<'a> {
    pub(super) fn new(host: &'a ProtoHost) -> OfHost<'a> {
        OfHost {
            name: &host.name,
            hedge: host.hedge_policy.as_ref(),
            mirrors: &host.request_mirror_policies,
            overrides: &host.typed_per_filter_config,
            cors: host.cors.as_ref(),
        }
    }

    /// What it says about filters.
    pub(super) fn level(self) -> Level<'a> {
        Level::new(self.overrides).with_cors(self.cors, "cors").named(self.name)
    }
}
