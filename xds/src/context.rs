//! What compiling needs beside the resource itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::cluster::DnsServers;
use sixfold_core::compile::CompileContext;
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::ecds::Extensions;
use crate::rds::FilterLists;
use crate::sds::Secrets;
use crate::tracker::Tracker;

/// What every resource of one bootstrap is compiled with. It is made once for a bootstrap.
#[derive(Clone)]
pub struct Context {
    /// What any source compiles with.
    pub compile: CompileContext,
    /// Filters of connection managers whose routes come by themselves.
    pub filter_lists: Arc<FilterLists>,
    /// Values of the runtime layers.
    pub runtime: Arc<Runtime>,
    /// Secrets of the bootstrap by name.
    pub secrets: Arc<BTreeMap<String, Arc<Secret>>>,
    /// Secrets that come by themselves.
    pub sds: Arc<Secrets>,
    /// What came by itself, to be shown, over all bootstraps of the process.
    pub tracker: Arc<Tracker>,
    /// Configurations of filters that come by themselves.
    pub extensions: Arc<Extensions>,
    /// `node.id` and `node.cluster`: proxy-status, `add_user_agent`.
    pub node: Node,
    /// Whom DNS clusters ask that do not say so themselves; `None` asks those of the process.
    pub dns_servers: Option<Arc<DnsServers>>,
    /// Names of the static clusters: what `validate_clusters` checks static route tables against. `None` for
    /// resources of an API, which are not checked unless they ask for it.
    pub static_clusters: Option<Arc<BTreeSet<String>>>,
    /// Names of the clusters of the bootstrap, by which services are reached that resources come from.
    pub bootstrap_clusters: Arc<BTreeSet<String>>,
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
