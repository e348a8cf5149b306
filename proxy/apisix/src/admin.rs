//! The Admin API, v3: resources written and read by requests.
//!
//! A write is looked at by the code that reads files, kept as it was sent, and answered when the store has it; the source
//! follows the store. Paths, status codes, envelopes and messages are those of APISIX 3.18 (`apisix/admin`).

mod access;
mod check;
mod list;
mod message;
mod patch;
mod references;
mod resource;
mod schemas;
pub(crate) mod standalone;
mod target;
#[cfg(test)]
mod tests;
mod validate;

use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use sixfold_core::plugin::{Consumers, PluginMetadata, Registry};

pub use self::access::{AdminAccess, generate_key};
pub(crate) use self::list::value as kept_value;
pub use self::message::{AdminReply, AdminRequest, MAX_BODY};
pub(crate) use self::patch::merge;
pub(crate) use self::schemas::{
    described_plugins, described_stream_plugins, named as schema_named, names as schema_names,
};
pub use self::standalone::{Standalone, StandaloneStore};
use self::target::Target;
use crate::config::{ApiVersion, Config, EnvVars};
use crate::reload::Reloads;
use crate::source::Checker;
use crate::store::Store;

/// What every path begins with.
const PREFIX: &str = "/apisix/admin";

/// Answers requests of the Admin API.
pub struct AdminApi {
    access: AdminAccess,
    content: Content,
    make_checker: MakeChecker,
    /// Made for the first request, since many a gateway gets none, and anew with other lists of plugins.
    checker: Mutex<Option<(Arc<Config>, Arc<Checker>)>>,
    /// The form of answers.
    version: ApiVersion,
    /// Whether there are stream routes.
    stream: bool,
    reloads: Arc<Reloads>,
    router: matchit::Router<Endpoint>,
}

/// Makes what looks at resources, by a configuration.
type MakeChecker = Box<dyn Fn(&Config) -> Checker + Send + Sync>;

/// What is written.
enum Content {
    /// Resources one by one.
    Store(Arc<dyn Store>, Arc<Consumers>),
    /// The whole configuration at once.
    Standalone(Standalone),
}

/// What is at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Root,
    Configs,
    Validate,
    PluginsList,
    PluginsReload,
    SchemaValidate,
    Resources,
}

impl AdminApi {
    /// Of the resources in a store, and the consumers and the metadata of plugins among them that are in force.
    pub fn of_store(
        config: &Config,
        access: AdminAccess,
        (store, consumers, metadata): (Arc<dyn Store>, Arc<Consumers>, Arc<PluginMetadata>),
        registry: Registry,
        environment: EnvVars,
        reloads: Arc<Reloads>,
    ) -> AdminApi {
        let content = Content::Store(store, consumers);
        let checker = move |config: &Config| {
            let checker = Checker::new(config.clone(), registry.clone(), environment.clone());
            checker.with_metadata(metadata.clone())
        };
        AdminApi::new(config, access, content, Box::new(checker), reloads)
    }

    /// Of a configuration that is put as a whole.
    pub fn standalone(
        config: &Config,
        access: AdminAccess,
        store: Arc<StandaloneStore>,
        registry: Registry,
        environment: EnvVars,
        reloads: Arc<Reloads>,
    ) -> AdminApi {
        let content = Content::Standalone(Standalone::new(store));
        let checker =
            move |config: &Config| Checker::new(config.clone(), registry.clone(), environment.clone());
        AdminApi::new(config, access, content, Box::new(checker), reloads)
    }

    fn new(
        config: &Config,
        access: AdminAccess,
        content: Content,
        make_checker: MakeChecker,
        reloads: Arc<Reloads>,
    ) -> AdminApi {
        let paths: &[(&str, Endpoint)] = match &content {
            Content::Store(..) => &[
                ("", Endpoint::Root),
                ("/configs/validate", Endpoint::Validate),
                ("/plugins/list", Endpoint::PluginsList),
                ("/plugins/reload", Endpoint::PluginsReload),
                ("/schema/validate/{*resource}", Endpoint::SchemaValidate),
                ("/{*path}", Endpoint::Resources),
            ],
            Content::Standalone(_) => &[
                ("", Endpoint::Root),
                ("/configs", Endpoint::Configs),
                ("/configs/validate", Endpoint::Validate),
            ],
        };
        let mut router = matchit::Router::new();
        for (path, endpoint) in paths {
            // They are told apart above.
            let _ = router.insert(format!("{PREFIX}{path}"), *endpoint);
        }
        let stream = config.admin.as_ref().is_some_and(|admin| admin.stream);
        let version = config.admin.as_ref().map_or(ApiVersion::V3, |admin| admin.version);
        let checker = Mutex::default();
        AdminApi { access, content, make_checker, checker, stream, reloads, version, router }
    }

    /// What looks at resources by the lists of plugins that were read last.
    fn checker(&self) -> Arc<Checker> {
        let current = self.reloads.current();
        let mut kept = self.checker.lock();
        match &*kept {
            Some((of, checker)) if Arc::ptr_eq(of, &current) => checker.clone(),
            _ => {
                let checker = Arc::new((self.make_checker)(&current));
                *kept = Some((current, checker.clone()));
                checker
            }
        }
    }

    /// The answer to a request. It may wait for the disk.
    pub fn answer(&self, request: &AdminRequest) -> AdminReply {
        self.access.finish(self.admitted(request))
    }

    /// The answer to a request that its head alone is enough for, who has no key above all: nothing of its body is kept.
    pub fn turned_away(&self, request: &AdminRequest) -> Option<AdminReply> {
        self.endpoint(request).err().map(|refusal| self.access.finish(refusal))
    }

    /// What a request is for.
    ///
    /// # Errors
    /// The answer that its head alone is enough for.
    fn endpoint(&self, request: &AdminRequest) -> Result<Endpoint, AdminReply> {
        if !self.access.allows(request.peer) {
            return Err(AdminReply::page(StatusCode::FORBIDDEN));
        }
        let path = request.decoded_path();
        if request.method == Method::OPTIONS && path.starts_with(PREFIX) {
            return Err(AdminReply::options());
        }
        let endpoint = self.router.at(&path).ok().map(|found| *found.value);
        let Some(endpoint) =
            endpoint.map(|endpoint| endpoint.for_method(&request.method, &self.content)).and_then(|e| e)
        else {
            return Err(AdminReply::page(StatusCode::NOT_FOUND));
        };
        if endpoint != Endpoint::Root
            && let Err(reason) = self.access.check(request)
        {
            return Err(AdminReply::unauthorized(reason));
        }
        Ok(endpoint)
    }

    fn admitted(&self, request: &AdminRequest) -> AdminReply {
        let endpoint = match self.endpoint(request) {
            Ok(endpoint) => endpoint,
            Err(refusal) => return refusal,
        };
        let path = request.decoded_path();
        let answered = match endpoint {
            Endpoint::Root => Ok(AdminReply::empty(StatusCode::OK)),
            Endpoint::Configs => self.configs(request),
            Endpoint::Validate => self.validate_configs(request),
            Endpoint::PluginsList => {
                schemas::plugins_list(&self.checker(), self.reloads.current().plugins.http.as_ref(), request)
            }
            Endpoint::PluginsReload => self.reload(request),
            Endpoint::SchemaValidate => schemas::validate(&path, request),
            Endpoint::Resources => self.resources(&path, request),
        };
        answered.unwrap_or_else(|refusal| refusal)
    }

    fn configs(&self, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        match &self.content {
            Content::Standalone(standalone) => standalone.answer(&self.checker(), request),
            Content::Store(..) => Ok(AdminReply::page(StatusCode::NOT_FOUND)),
        }
    }

    fn validate_configs(&self, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        let body = validate::body(request, MAX_BODY)?;
        let errors = validate::faults(&self.checker(), &body, usize::MAX);
        if errors.is_empty() {
            return Ok(AdminReply::json(StatusCode::OK, &serde_json::json!({})));
        }
        let errors: Vec<Value> = errors.into_iter().map(validate::Fault::shown).collect();
        let body = serde_json::json!({"error_msg": "Configuration validation failed", "errors": errors});
        Err(AdminReply::json(StatusCode::BAD_REQUEST, &body))
    }

    fn reload(&self, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        if request.method != Method::PUT {
            let reason = format!(
                "please use PUT method to reload the plugins, {} method is not allowed.",
                request.method
            );
            return Err(AdminReply::error(StatusCode::METHOD_NOT_ALLOWED, reason));
        }
        match self.reloads.reload() {
            Ok(()) => Ok(AdminReply::text(StatusCode::OK, "done")),
            Err(reason) => Err(AdminReply::error(StatusCode::SERVICE_UNAVAILABLE, reason)),
        }
    }

    /// Everything below the prefix that is no path of its own.
    fn resources(&self, path: &str, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        let Content::Store(store, consumers) = &self.content else {
            return Ok(AdminReply::page(StatusCode::NOT_FOUND));
        };
        let segments: Vec<&str> =
            path.strip_prefix(PREFIX).unwrap_or_default().trim_start_matches('/').split('/').collect();
        if let ["stream_routes", ..] = segments.as_slice()
            && !self.stream
        {
            let reason = "stream mode is disabled, can not add stream routes";
            return Err(AdminReply::error(StatusCode::BAD_REQUEST, reason));
        }
        if let Some(schema) = schemas::Wanted::of(&segments) {
            if request.method != Method::GET {
                return Err(AdminReply::error(StatusCode::NOT_FOUND, "not found"));
            }
            let answered = schema.answer(&self.checker(), request);
            let versioned = |reply: AdminReply| reply.versioned(ApiVersion::V3, self.version, ("", ""));
            return answered.map(versioned).map_err(versioned);
        }
        let target = Target::of(&segments).map_err(|resource| {
            AdminReply::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {resource}"))
        })?;
        let body = request.json()?;
        let ttl = request.ttl()?;
        let checker = self.checker();
        let resources = resource::Resources { store: &**store, checker: &checker, consumers };
        let answered = resources.answer(&target, request, body, ttl);
        let action = match request.method {
            Method::PUT => "set",
            Method::POST => "create",
            Method::PATCH => "compareAndSwap",
            Method::DELETE => "delete",
            _ => "get",
        };
        let key = path.replacen(PREFIX, store.prefix(), 1);
        let versioned = |reply: AdminReply| reply.versioned(self.version, self.version, (action, &key));
        answered.map(versioned).map_err(versioned)
    }
}

impl Endpoint {
    /// What answers a method at this path: another than those that the path takes falls to the resources, if it takes one
    /// that these have.
    fn for_method(self, method: &Method, content: &Content) -> Option<Endpoint> {
        let is = |methods: &[Method]| methods.contains(method);
        let usual = [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH];
        let own = match self {
            Endpoint::Root => is(&[Method::HEAD]),
            Endpoint::Configs => is(&[Method::GET, Method::PUT, Method::HEAD]),
            Endpoint::Validate | Endpoint::SchemaValidate => is(&[Method::POST]),
            Endpoint::PluginsList => is(&[Method::GET]),
            Endpoint::PluginsReload | Endpoint::Resources => is(&usual),
        };
        let to_resources = self != Endpoint::Root && matches!(content, Content::Store(..)) && is(&usual);
        match own {
            true => Some(self),
            false => to_resources.then_some(Endpoint::Resources),
        }
    }
}

impl std::fmt::Debug for AdminApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminApi")
    }
}
