//! What compiling configuration needs of the process, whichever source the configuration comes from.

use crate::access_log::MakeSink;
use crate::cluster::Clusters;
use crate::metrics;
use crate::model::Model;
use crate::plugin::{BuildContext, Registry};
use crate::router::RouteTables;
use crate::tls::ClientCache;
use std::net::IpAddr;
use std::sync::Arc;

/// The process as configuration sees it. A source adds what it alone needs in a type that contains this one.
#[derive(Clone)]
pub struct CompileContext {
    /// The names of clusters.
    pub clusters: Arc<Clusters>,
    /// The places of route tables.
    pub route_tables: Arc<RouteTables>,
    /// The plugins there are: APISIX's by name, Envoy's HTTP filters by type.
    pub plugins: Registry,
    /// What plugins are built with; `resource` and `attributes` are filled in for each.
    pub build: BuildContext,
    /// Opens access logs.
    pub log_sinks: Arc<dyn MakeSink>,
    /// TLS towards endpoints that is in use: what says the same is compiled once.
    pub tls_clients: Arc<ClientCache>,
    /// The host's own address, for X-Forwarded-For: not a loopback one if it has another.
    pub local_address: Option<IpAddr>,
}

impl CompileContext {
    /// For configuration that goes into `model`.
    pub fn new(
        model: &Model,
        plugins: Registry,
        build: BuildContext,
        log_sinks: Arc<dyn MakeSink>,
    ) -> CompileContext {
        let (clusters, route_tables) = (model.clusters().clone(), model.route_tables().clone());
        let build = BuildContext { clusters: clusters.clone(), log_sinks: log_sinks.clone(), ..build };
        let tls_clients = Arc::default();
        CompileContext { clusters, route_tables, plugins, build, log_sinks, tls_clients, local_address: None }
    }

    /// Where everything that is compiled registers its statistics: the same place as for plugins.
    pub fn metrics(&self) -> &metrics::Registry {
        &self.build.metrics
    }
}
