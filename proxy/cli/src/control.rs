//! Administration commands, wired to the server.

use crate::envoy::Text;
use crate::logging::{self, Levels};
use crate::process::{Process, runtime};
use crate::signals::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sixfold_core::cluster::Clusters;
use sixfold_core::connection::Certificate;
use sixfold_core::listener::{BindAddress, Listener, NetworkFilter};
use sixfold_server::admin::{CertificateStatus, Control, ListenerStatus};
use sixfold_server::log_file::LogFiles;
use sixfold_server::server::{DrainRequest, Server};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// What administration commands act on.
pub(crate) struct Administration {
    server: Server,
    clusters: Arc<Clusters>,
    logs: LogFiles,
    levels: Levels,
    events: SyncSender<Event>,
    /// The bootstrap in force as it was read: parsed again when it is asked for, which takes a tenth of the memory.
    bootstrap: Arc<Mutex<Text>>,
}

impl Administration {
    pub(crate) fn new(
        process: &Process,
        levels: Levels,
        events: SyncSender<Event>,
        bootstrap: Arc<Mutex<Text>>,
    ) -> Administration {
        Administration {
            server: process.server.clone(),
            clusters: process.compile.clusters.clone(),
            logs: process.logs.clone(),
            levels,
            events,
            bootstrap,
        }
    }
}

impl Control for Administration {
    fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |(name, addresses): &(Arc<str>, Vec<BindAddress>)| ListenerStatus {
            name: name.to_string(),
            addresses: addresses
                .iter()
                .filter_map(|address| match address {
                    BindAddress::Ip(address) => Some(*address),
                    BindAddress::Unix(_) => None,
                })
                .collect(),
        };
        self.server.addresses().iter().map(status).collect()
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let status = |certificate: Arc<Certificate>| {
            let dns = certificate.dns_sans.iter().map(|name| ("dns", name.clone()));
            let uris = certificate.uri_sans.iter().map(|uri| ("uri", uri.clone()));
            CertificateStatus {
                path: certificate.subject.clone(),
                serial: certificate.serial.clone(),
                names: dns.chain(uris).collect(),
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            }
        };
        self.server.certificates().into_iter().map(status).collect()
    }

    /// The bootstrap as it was read, and the names of what is in force.
    fn config_dump(&self) -> Vec<Value> {
        let listeners = self.server.model().listeners();
        let tables: BTreeSet<Arc<str>> = listeners.iter().flat_map(|listener| tables(listener)).collect();
        let clusters = self.clusters.all();
        let (added, fixed): (Vec<_>, Vec<_>) = clusters.iter().partition(|c| c.config.added_via_api);
        let cluster = |c: &&Arc<sixfold_core::cluster::Cluster>| json!({"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": c.config.name}});
        let listener = |l: &Arc<Listener>| json!({"listener": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": l.name}});
        let table = |name: &Arc<str>| {
            let kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
            json!({"route_config": {"@type": kind, "name": name}})
        };
        vec![
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
                "bootstrap": self.bootstrap.lock().document().unwrap_or_default(),
            }),
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                "static_clusters": fixed.iter().map(cluster).collect::<Vec<_>>(),
                "dynamic_active_clusters": added.iter().map(cluster).collect::<Vec<_>>(),
            }),
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                "static_listeners": listeners.iter().map(listener).collect::<Vec<_>>(),
            }),
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
                "static_route_configs": tables.iter().map(table).collect::<Vec<_>>(),
            }),
        ]
    }

    fn fail_health_checks(&self, fail: bool) {
        self.server.fail_health_checks(fail);
    }

    fn drain_listeners(&self, graceful: bool, inbound_only: bool) {
        let options = &self.server.shared().options;
        let request = DrainRequest {
            inbound_only,
            close_now: !graceful,
            strategy: options.drain_strategy,
            time: Some(options.drain_time),
        };
        if let Ok(runtime) = runtime() {
            runtime.block_on(self.server.drain(request));
        }
    }

    fn quit(&self) {
        // The process is ending anyway when nobody listens.
        let _ = self.events.send(Event::Terminate);
    }

    fn reopen_logs(&self) {
        self.logs.reopen();
        logging::reopen();
    }

    fn set_log_levels(&self, levels: &[(Option<String>, String)]) -> Result<Vec<(String, String)>, String> {
        self.levels.set(levels)
    }
}

/// Names of the route tables that a listener's connection managers use.
fn tables(listener: &Listener) -> Vec<Arc<str>> {
    let chains = listener.chains.iter().chain(&listener.default_chain);
    let table = |filter: &NetworkFilter| match filter.last() {
        NetworkFilter::Http(manager) => Some(manager.routes.key.name.clone()),
        _ => None,
    };
    chains.filter_map(|chain| table(&chain.filter)).collect()
}
