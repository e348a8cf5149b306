//! What compiling needs beside the resource itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sixfold_core::cluster::{Clusters, DnsServers};
use sixfold_core::metrics;
use sixfold_core::plugin;
use sixfold_core::router::RouteTables;
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use sixfold_core::access_log::MakeSink;

use crate::rds::FilterLists;

/// The surroundings of a compilation. It is made once for a bootstrap and used for every resource.
#[derive(Clone)]
pub struct Context {
    /// Cluster names of the process.
    pub clusters: Arc<Clusters>,
    /// Route tables of the process.
    pub route_tables: Arc<RouteTables>,
    /// Filters of connection managers whose routes come by themselves.
    pub filter_lists: Arc<FilterLists>,
    /// Where statistics are registered.
    pub registry: metrics::Registry,
    /// Values of the runtime layers.
    pub runtime: Arc<Runtime>,
    /// HTTP filters by type.
    pub plugins: plugin::Registry,
    /// What filters may use.
    pub build: plugin::BuildContext,
    /// Opens access logs.
    pub log_sinks: Arc<dyn MakeSink>,
    /// Secrets of the bootstrap and those that SDS has delivered, by name.
    pub secrets: Arc<BTreeMap<String, Secret>>,
    /// `node.id` and `node.cluster`: proxy-status, `add_user_agent`.
    pub node: Node,
    /// The host's own address that is not loopback, for X-Forwarded-For.
    pub local_address: Option<IpAddr>,
    /// Whom DNS clusters ask that do not say so themselves; `None` asks those of the process.
    pub dns_servers: Option<Arc<DnsServers>>,
    /// Names of the static clusters: what `validate_clusters` checks static route tables against. `None` for
    /// resources of an API, which are not checked unless they ask for it.
    pub static_clusters: Option<Arc<BTreeSet<String>>>,
    /// Whether there is an ADS stream for resources to come by.
    pub ads: bool,
}

/// Who this proxy is for its control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `node.id`
    pub id: String,
    /// `node.cluster`
    pub cluster: String,
}
