//! Administration commands, wired to the server.

use crate::logging::{self, Levels};
use crate::process::{Process, runtime};
use crate::signals::Event;
use http::StatusCode;
use parking_lot::Mutex;
use sixfold_core::cluster::Clusters;
use sixfold_core::listener::BindAddress;
use sixfold_core::tls::{Held, Origin};
use sixfold_server::admin::{
    CertificateStatus, ContextCertificates, Control, DumpRequest, ListenerStatus, RuntimeLayer,
};
use sixfold_server::log_file::LogFiles;
use sixfold_server::server::{DrainRequest, Server, WarmingNames};
use sixfold_server::surface::WriteBody;
use sixfold_xds::ads::Kind;
use sixfold_xds::dump::{self, Dump, Refused, Shown, ShownLayer, Transient};
use sixfold_xds::sds::Secrets;
use sixfold_xds::tracker::Tracker;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// What administration commands act on.
pub(crate) struct Administration {
    server: Server,
    clusters: Arc<Clusters>,
    logs: LogFiles,
    levels: Levels,
    events: SyncSender<Event>,
    configuration: Configuration,
}

/// What is shown of the configuration.
pub(crate) struct Configuration {
    /// The bootstrap in force.
    pub(crate) bootstrap: Arc<Mutex<Shown>>,
    /// What came by itself.
    pub(crate) tracker: Arc<Tracker>,
    /// Secrets that come by themselves.
    pub(crate) secrets: Arc<Secrets>,
}

impl Administration {
    pub(crate) fn new(
        process: &Process,
        levels: Levels,
        events: SyncSender<Event>,
        configuration: Configuration,
    ) -> Administration {
        Administration {
            server: process.server.clone(),
            clusters: process.compile.clusters.clone(),
            logs: process.logs.clone(),
            levels,
            events,
            configuration,
        }
    }
}

impl Control for Administration {
    fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |(name, addresses): &(Arc<str>, Vec<BindAddress>)| ListenerStatus {
            name: name.to_string(),
            addresses: addresses.iter().filter_map(BindAddress::ip).collect(),
        };
        self.server.addresses().iter().map(status).collect()
    }

    fn certificates(&self) -> Vec<ContextCertificates> {
        let status = |Origin { path, certificate }: &Origin| {
            let dns = certificate.dns_sans.iter().map(|name| ("dns", name.clone()));
            let uris = certificate.uri_sans.iter().map(|uri| ("uri", uri.clone()));
            let addresses = certificate.ip_sans.iter().map(|ip| ("ip_address", ip.clone()));
            CertificateStatus {
                path: path.to_string(),
                serial: certificate.serial.clone(),
                names: dns.chain(uris).chain(addresses).collect(),
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            }
        };
        let of_context = |Held { authority, own }: &Held| ContextCertificates {
            authority: authority.as_ref().map(status),
            own: own.iter().map(status).collect(),
        };
        self.server.certificates().iter().map(of_context).collect()
    }

    fn first_expiry(&self) -> Option<i64> {
        self.server.first_expiry()
    }

    fn config_dump(&self, request: DumpRequest) -> Result<WriteBody, (StatusCode, String)> {
        let DumpRequest { resource, mask, name_regex, include_eds } = request;
        let warming = self.server.warming();
        let bootstrap = self.configuration.bootstrap.lock().clone();
        let dump = Dump {
            bootstrap,
            tracker: self.configuration.tracker.clone(),
            secrets: self.configuration.secrets.clone(),
            clusters: self.clusters.clone(),
            transient: Transient { warming_clusters: warming.clusters, warming_listeners: warming.listeners },
        };
        let wanted = |name: &str| name_regex.as_ref().is_none_or(|regex| regex.is_match(name));
        let request = dump::Request { resource, mask, names: Some(&wanted), include_eds };
        dump.find(request).map_err(|refused| match refused {
            Refused::Wrong(reason) => (StatusCode::BAD_REQUEST, reason),
            Refused::NotFound(reason) => (StatusCode::NOT_FOUND, reason),
        })
    }

    fn fail_health_checks(&self, fail: bool) {
        self.server.fail_health_checks(fail);
    }

    fn drain_listeners(&self, keep_open: bool, keep_for_good: bool, inbound_only: bool) {
        let options = &self.server.shared().options;
        let request = DrainRequest {
            inbound_only,
            close_now: !keep_open,
            keep_open: keep_for_good,
            strategy: options.drain_strategy,
            time: Some(options.drain_time),
        };
        if let Ok(runtime) = runtime() {
            runtime.block_on(self.server.drain(request));
        }
    }

    fn waiting(&self) -> WarmingNames {
        let mut waiting = self.server.warming();
        // Those that their source holds back until what they name has come.
        let held = |kind| {
            let all = self.configuration.tracker.of(kind).into_iter();
            all.filter(|(_, tracked)| tracked.waiting.is_some()).map(|(key, _)| key.name)
        };
        waiting.clusters.extend(held(Kind::Cluster));
        waiting.listeners.extend(held(Kind::Listener));
        waiting
    }

    fn runtime(&self) -> Vec<RuntimeLayer> {
        let bootstrap = self.configuration.bootstrap.lock().clone();
        let layer = |ShownLayer { name, values, is_admin }| RuntimeLayer { name, values, is_admin };
        bootstrap.runtime().into_iter().map(layer).collect()
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
