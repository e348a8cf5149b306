//! APISIX's servers beside the gateway, on surfaces.

use crate::Failure;
use crate::process::plugins;
use bytes::Bytes;
use sixfold_apisix::admin::{
    AdminAccess, AdminApi, AdminReply, AdminRequest, MAX_BODY, StandaloneStore, generate_key,
};
use sixfold_apisix::config::{AdminConfig, AdminKey, AdminRole, Config, EnvVars, Provider};
use sixfold_apisix::control::ControlApi;
use sixfold_apisix::store::Store;
use sixfold_apisix::{InForce, Reloads, SourceContext};
use sixfold_core::cluster::Clusters;
use sixfold_core::files::keep_name;
use sixfold_core::plugin::{Consumers, PluginMetadata};
use sixfold_core::tls::{Identity, Pem, ServerContext, ServerSettings, Validation};
use sixfold_server::surface::{Answer, Content, Query, Reply};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Writes that may wait for the disk at the same time: they wait for it together.
const WRITERS: usize = 64;
/// The longest configuration that is put as a whole, in bytes.
const MAX_STANDALONE_BODY: usize = 32 << 20;

/// What answers requests of one of these servers.
pub(crate) enum Server {
    /// The Admin API, and the longest body that it takes.
    Admin(Box<AdminApi>, usize),
    /// The control API.
    Control(ControlApi),
}

impl Answer for Server {
    fn at_once(&self, _: &Query) -> Option<Reply> {
        None
    }

    fn turned_away(&self, query: &Query) -> Option<Reply> {
        match self {
            Server::Admin(api, _) => api.turned_away(&request(query)).map(reply),
            Server::Control(_) => None,
        }
    }

    fn answer(&self, query: &Query) -> Reply {
        let request = request(query);
        reply(match self {
            Server::Admin(api, _) => api.answer(&request),
            Server::Control(api) => api.answer(&request),
        })
    }

    fn max_body(&self) -> Option<usize> {
        match self {
            Server::Admin(_, limit) => Some(*limit),
            Server::Control(_) => None,
        }
    }

    fn threads(&self) -> usize {
        match self {
            Server::Admin(..) => WRITERS,
            Server::Control(_) => 4,
        }
    }
}

fn request(query: &Query) -> AdminRequest {
    AdminRequest {
        method: query.method.clone(),
        path: query.path.clone(),
        parameters: query.parameters.clone(),
        headers: query.headers.clone(),
        body: query.body.clone(),
        peer: query.peer.ip(),
    }
}

fn reply(reply: AdminReply) -> Reply {
    let AdminReply { status, content_type, body, headers } = reply;
    let body: Bytes = body;
    Reply { status, content_type, body: Content::Whole(body), headers, chunked: false }
}

/// What the APIs are of.
pub(crate) struct Sources<'a> {
    pub(crate) config: &'a Config,
    /// config.yaml.
    pub(crate) path: &'a Path,
    /// Its lists of plugins.
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) store: Arc<dyn Store>,
    /// What is in force of it.
    pub(crate) in_force: Arc<InForce>,
    pub(crate) standalone: Option<Arc<StandaloneStore>>,
    /// Those in force.
    pub(crate) consumers: Arc<Consumers>,
    /// What upstreams have become.
    pub(crate) clusters: Arc<Clusters>,
    /// What plugins are told.
    pub(crate) metadata: Arc<PluginMetadata>,
}

impl Sources<'_> {
    /// The Admin API, or the standalone API.
    pub(crate) fn admin(&self, admin: &AdminConfig) -> Result<Server, Failure> {
        let access = AdminAccess::new(self.config, admin, self.generated_key(admin)?);
        let (config, registry, environment) = (self.config, plugins(), EnvVars::Process);
        Ok(match &self.standalone {
            Some(store) => {
                let (store, reloads) = (store.clone(), self.reloads.clone());
                let api = AdminApi::standalone(config, access, store, registry, environment, reloads);
                Server::Admin(Box::new(api), MAX_STANDALONE_BODY)
            }
            None => {
                let reloads = self.reloads.clone();
                let store = (self.store.clone(), self.consumers.clone(), self.metadata.clone());
                let api = AdminApi::of_store(config, access, store, registry, environment, reloads);
                Server::Admin(Box::new(api), MAX_BODY)
            }
        })
    }

    pub(crate) fn control(&self) -> Server {
        let reloads = self.reloads.clone();
        let sources = (self.in_force.clone(), self.clusters.clone());
        Server::Control(ControlApi::new(self.config, sources, plugins(), EnvVars::Process, reloads))
    }

    /// The key that is made for a gateway whose configuration has none: the one of the file beside the store, which is
    /// written when there is none, and said once.
    fn generated_key(&self, admin: &AdminConfig) -> Result<Option<AdminKey>, Failure> {
        if !admin.key_required || !admin.keys.is_empty() {
            return Ok(None);
        }
        let directory = self.path.parent().unwrap_or(Path::new(".")).join(&self.config.deployment.directory);
        let file = directory.join("admin-key");
        let fault = |reason: String| {
            let reason = format!("no key is given, and {} can't keep one: {reason}", file.display());
            Failure::from(self.config.fault("deployment.admin.admin_key", reason))
        };
        let key = match std::fs::read_to_string(&file) {
            Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
            Ok(_) => return Err(fault("it is empty".to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = generate_key().map_err(fault)?;
                write_key(&file, &key).map_err(|error| fault(error.to_string()))?;
                // Who started it can do without.
                let _ = writeln!(
                    std::io::stdout(),
                    "A key of the Admin API was made: {key} (it is kept in {})",
                    file.display()
                );
                key
            }
            Err(error) => return Err(fault(error.to_string())),
        };
        Ok(Some(AdminKey { name: "generated".to_owned(), key, role: AdminRole::Admin }))
    }
}

/// Writes a key into a new file that only this user can read.
pub(crate) fn write_key(file: &Path, key: &str) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(folder) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let mut made = options.write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(made, "{key}")?;
    made.sync_all()?;
    keep_name(file)
}

/// TLS of the Admin API.
pub(crate) fn tls(config: &Config, admin: &AdminConfig) -> Result<Option<Arc<ServerContext>>, Failure> {
    let Some(tls) = &admin.tls else { return Ok(None) };
    let identity = Identity { chain: Pem::File(tls.certificate.clone()), key: Pem::File(tls.key.clone()) };
    let validation = tls
        .authority
        .clone()
        .map(|authority| Validation { trusted_ca: Some(Pem::File(authority)), ..Validation::default() });
    let context = ServerContext::new(ServerSettings {
        identities: vec![identity],
        require_client_certificate: validation.is_some(),
        validation,
        ..ServerSettings::default()
    });
    let key = "deployment.admin.admin_api_mtls";
    context.map(Some).map_err(|error| Failure::from(config.fault(key, error.to_string())))
}

/// Says where resources are kept, for whoever has not asked for it.
pub(crate) fn say_where(config: &Config, path: &Path, context: &SourceContext) {
    if config.deployment.provider == Provider::Embedded {
        let directory = path.parent().unwrap_or(Path::new("."));
        let file = config.resources_path(directory, &context.environment);
        tracing::info!(file = %file.display(), "resources are kept in the embedded store");
    }
}
