//! What compiling needs beside the resource itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sixfold_core::access_log::LogTarget;
use sixfold_core::cluster::{DnsServers, Locality};
use sixfold_core::compile::CompileContext;
use sixfold_core::error::{ConfigError, nearest};
use sixfold_core::plugin::{BuildContext, TrafficDirection};
use sixfold_core::runtime::Runtime;
use sixfold_core::trace::Provider;
use sixfold_xds_api::pb::envoy::config::core::v3::Node as ProtoNode;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use sixfold_xds_api::values::Result;

use crate::ecds::Extensions;
use crate::exporters::Exporters;
use crate::rds::FilterLists;
use crate::sds::{Secrets, SecretsOf};
use crate::tracker::Tracker;
use crate::unknown::Unknown;

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
    /// What is done about fields that nobody here knows.
    pub unknown: Arc<Unknown>,
    /// Configurations of filters that come by themselves.
    pub extensions: Arc<Extensions>,
    /// Who is told of spans where a connection manager does not say (`tracing` of the bootstrap).
    pub tracer: Option<Arc<Provider>>,
    /// The ways out to collectors, which equal configurations share.
    pub exporters: Arc<Exporters>,
    /// `node.id` and `node.cluster`: proxy-status, `add_user_agent`.
    pub node: Node,
    /// Whom DNS clusters ask that do not say so themselves; `None` asks those of the process.
    pub dns_servers: Option<Arc<DnsServers>>,
    /// The cluster of this proxy and those like it (`cluster_manager.local_cluster_name`).
    pub local_cluster: Option<Arc<str>>,
    /// Where this proxy is (`node.locality`).
    pub locality: Option<Locality>,
    /// Where outlier detection logs.
    pub outlier_log: Option<LogTarget>,
    /// Names of the clusters of the bootstrap, by which services are reached that resources come from.
    pub bootstrap_clusters: Arc<BTreeSet<String>>,
    /// Names of the clusters that a control plane has sent.
    pub sent_clusters: Arc<SentClusters>,
    /// Whether the clusters of a route table must be known where it does not say so (`validate_clusters`): true of
    /// those within listeners, false of those that come by themselves.
    pub validate_clusters: bool,
    /// Whether the resource comes by the stream of a control plane.
    pub of_stream: bool,
    /// Whether there is an ADS stream for resources to come by.
    pub ads: bool,
}

impl Context {
    /// The same for what stands in a listener whose connections go this way.
    pub(crate) fn of_listener(&self, direction: TrafficDirection) -> Context {
        let mut context = self.clone();
        context.compile.build.direction = direction;
        context
    }

    /// What filters are built with whose statistics stand under `scope`.
    pub(crate) fn build(&self, scope: &str) -> BuildContext {
        let secrets = Arc::new(SecretsOf::new(self));
        BuildContext { scope: scope.into(), secrets, ..self.compile.build.clone() }
    }

    /// Whether there is a cluster of this name, be it that it still warms up.
    ///
    /// # Errors
    /// There is none, with the name that was meant.
    pub(crate) fn has_cluster(&self, name: &str) -> Result<()> {
        let sent = self.sent_clusters.0.lock();
        if self.bootstrap_clusters.contains(name) || sent.contains(name) {
            return Ok(());
        }
        let known = self.bootstrap_clusters.iter().map(String::as_str).chain(sent.iter().map(|name| &**name));
        Err(unknown_cluster(name, "", known))
    }

    /// Whether the bootstrap has a cluster of this name.
    ///
    /// # Errors
    /// It has none, with the name that was meant.
    pub(crate) fn has_static_cluster(&self, name: &str) -> Result<()> {
        if self.bootstrap_clusters.contains(name) {
            return Ok(());
        }
        let known = self.bootstrap_clusters.iter().map(String::as_str);
        Err(unknown_cluster(name, " in static_resources", known))
    }
}

const UNKNOWN_CLUSTER: &str = "unknown cluster";

/// The error of a name that none of the `known` clusters has; `place` says where it must be, if not anywhere (` in x`).
pub(crate) fn unknown_cluster<'a>(
    name: &str,
    place: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> ConfigError {
    let hint = nearest(name, known).map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
    ConfigError::new(format!("{UNKNOWN_CLUSTER} \"{name}\"{place}{hint}"))
}

/// Whether that is what is wrong.
pub(crate) fn is_unknown_cluster(fault: &ConfigError) -> bool {
    fault.reason.starts_with(UNKNOWN_CLUSTER)
}

/// Names of the clusters that a control plane has sent, in force or on their way there.
#[derive(Default)]
pub struct SentClusters(Mutex<BTreeSet<Arc<str>>>);

impl SentClusters {
    pub(crate) fn add(&self, name: &Arc<str>) {
        self.0.lock().insert(name.clone());
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

/// Who this proxy is for its control plane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `node.id`
    pub id: String,
    /// `node.cluster`
    pub cluster: String,
    /// All of `node`, for services that ask who tells them something.
    pub whole: Arc<ProtoNode>,
}
