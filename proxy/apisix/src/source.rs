//! The source of configuration: changes of resources in, changes of the model out.
//!
//! A [`Source`] keeps of every resource what others need of it, compiled, and which others hang on it. A change
//! is read, held against everything else, and compiled with what hangs on it: what it costs follows what it
//! touches, but for consumers, whose tables are made anew. What is wrong is refused by itself and keeps its last good value; the rest is taken.

mod batch;
mod candidate;
mod check;
mod feed;
mod figures;
mod in_force;
mod l4;
mod record;
mod roll;
mod single;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::compile::CompileContext;
use sixfold_core::document::Format;
use sixfold_core::error::ConfigError;
use sixfold_core::listener::{L4Table, TcpStats};
use sixfold_core::model::Diff;
use sixfold_core::plugin::{Callout, Registry};
use sixfold_core::router::{RouteTableCell, TableKey};

use self::batch::Batch;
use self::candidate::{Candidate, new_faults};
pub use self::check::{Findings, validate, validate_resources};
pub use self::feed::Feed;
use self::figures::Figures;
use self::in_force::named;
pub use self::in_force::{InForce, RefusedResource, Serves};
use self::record::Builder;
pub(crate) use self::record::ServiceParts;
pub(crate) use self::single::Checker;
use self::state::State;
use crate::admin::StandaloneStore;
use crate::config::{Config, EnvVars, EtcdConfig, Provider, Role};
use crate::file;
use crate::plugin::ChainCache;
use crate::reload::Reloads;
use crate::shared::SharedParts;
use crate::store::{EmbeddedStore, EtcdOptions, EtcdStore, FileStore, Resources, Store};
use crate::tls;

/// The name of the route table that every listener of APISIX's configuration uses.
pub const ROUTE_TABLE: &str = "apisix";

/// Where members of an etcd are named.
pub const ETCD_HOST: &str = "deployment.etcd.host";

/// How long whoever only looks waits for an answer of an etcd.
const LOOK: Duration = Duration::from_secs(5);

/// What a source is given by the process it is part of.
#[derive(Clone)]
pub struct SourceContext {
    /// What any source compiles with.
    pub compile: CompileContext,
    /// The place of the route table.
    pub routes: Arc<RouteTableCell>,
    /// What stream routes have in common.
    pub streams: Streams,
    /// The variables that configuration may refer to.
    pub environment: EnvVars,
}

/// What stream routes have in common.
#[derive(Clone)]
pub struct Streams {
    /// Their place.
    pub table: Arc<L4Table>,
    /// What is counted of them beside what their listeners count.
    pub stats: Arc<TcpStats>,
}

impl SourceContext {
    /// With the place of the route table among those of `compile`.
    pub fn new(compile: CompileContext, environment: EnvVars) -> SourceContext {
        let routes = compile.route_tables.cell(&TableKey::named(ROUTE_TABLE));
        let stats = Arc::new(TcpStats::new(compile.metrics(), "tcp.stream_routes."));
        let streams = Streams { table: Arc::default(), stats };
        SourceContext { compile, routes, streams, environment }
    }

    /// With what [`CompileContext::detached`] says.
    pub fn detached(plugins: Registry, environment: EnvVars) -> SourceContext {
        SourceContext::new(CompileContext::detached(plugins), environment)
    }
}

/// APISIX's configuration, kept so that the next change is cheap.
pub struct Source {
    context: SourceContext,
    config: Config,
    store: Arc<dyn Store>,
    state: State,
    chains: ChainCache,
    shared: SharedParts,
    figures: Figures,
    in_force: Arc<InForce>,
    reloads: Option<Arc<Reloads>>,
    /// The lists of plugins that were taken last of those.
    taken: Option<Arc<Config>>,
    /// Whether everything is to be read by other lists of plugins than it was.
    outdated: bool,
}

/// What a look at the store has come to.
#[derive(Debug, Default)]
pub struct Update {
    /// How the model changes.
    pub diff: Diff,
    /// What is wrong with resources and was not told before: each keeps its last good value, or is left out if
    /// it never had one.
    pub refused: Vec<ConfigError>,
    /// What is odd and taken all the same.
    pub warnings: Vec<ConfigError>,
}

/// What reading a store has come to: what is odd, or what is wrong.
type Read = Result<Vec<ConfigError>, Vec<ConfigError>>;

/// What [`load`] answers: the source, and the update that brings an empty model to it.
#[derive(Debug)]
pub struct Loaded {
    /// For changes to come.
    pub source: Source,
    /// To be applied first.
    pub update: Update,
    /// Where the standalone API puts what it is given, if that is where resources come from.
    pub standalone: Option<Arc<StandaloneStore>>,
}

/// Reads config.yaml at `config_path`, without the resources.
///
/// # Errors
/// Everything that is wrong in the file.
pub fn load_config(config_path: &Path, environment: &EnvVars) -> Result<Config, Vec<ConfigError>> {
    let name = config_path.display().to_string();
    let text = file::read(config_path).map_err(|e| vec![e])?;
    Config::parse(&text, &name, environment)
}

/// Reads the resources (`apisix.yaml` or `apisix.json`) beside the config.yaml at `config_path`, which is
/// `config`.
///
/// # Errors
/// What keeps the file from being read at all, and what of `config` can't be put to use. A resource that is
/// wrong is no error: the update tells it, and has all the others.
pub fn load(config: Config, config_path: &Path, context: SourceContext) -> Result<Loaded, Vec<ConfigError>> {
    tls::authorities(&config).map_err(|error| vec![error])?;
    let directory = config_path.parent().unwrap_or(Path::new("."));
    let path = config.resources_path(directory, &context.environment);
    let (store, standalone) = if config.is_standalone_api() {
        let store = standalone(&config, &path, &context.environment)?;
        (store.clone() as Arc<dyn Store>, Some(store))
    } else if let Some(etcd) = &config.deployment.etcd {
        (of_etcd(&config, etcd, Some(&path), &context.compile.build.callout)?, None)
    } else {
        (store(&config, &path, &context.environment)?, None)
    };
    let mut source = Source::new(config, store, context);
    let update = source.pull()?;
    Ok(Loaded { source, update, standalone })
}

/// What the standalone API changes: to begin with what was put last, else the file at `path`, if there is one.
fn standalone(
    config: &Config,
    path: &Path,
    environment: &EnvVars,
) -> Result<Arc<StandaloneStore>, Vec<ConfigError>> {
    let mut store = StandaloneStore::new(environment.clone());
    let directory = path.parent().unwrap_or(Path::new(".")).join(&config.deployment.directory);
    let key = "deployment.role_traditional.config_provider";
    let kept = store.keep_in(directory.join("standalone.json"));
    if !kept.map_err(|reason| vec![config.fault(key, reason)])? && path.exists() {
        let text = file::read(path).map_err(|error| vec![error])?;
        let name = path.display().to_string();
        store.begin_with(Resources { text: &text, format: Format::Yaml, name: &name });
    }
    Ok(Arc::new(store))
}

/// Reads what is in the etcd that `config` names, for who looks at it and does not serve: nothing is written anywhere. No
/// question waits longer than [`LOOK`], and none is asked again.
///
/// # Errors
/// What of `config` can't be put to use, and an etcd that is not reached, which is a fault of [`ETCD_HOST`].
pub fn look_at_etcd(config: &Config, callout: &Arc<dyn Callout>) -> Result<Arc<dyn Store>, Vec<ConfigError>> {
    tls::authorities(config).map_err(|error| vec![error])?;
    let reason = "it is not where the resources are";
    let etcd = config.deployment.etcd.as_ref();
    let etcd = etcd.ok_or_else(|| vec![config.fault("deployment.etcd", reason)])?;
    let etcd = EtcdConfig { startup_retry: 0, timeout: etcd.timeout.min(LOOK), ..etcd.clone() };
    of_etcd(config, &etcd, None, callout)
}

/// Those of an etcd. What was read last is kept at `path`; who has none only looks.
fn of_etcd(
    config: &Config,
    etcd: &EtcdConfig,
    path: Option<&Path>,
    callout: &Arc<dyn Callout>,
) -> Result<Arc<dyn Store>, Vec<ConfigError>> {
    let options = EtcdOptions {
        etcd: etcd.clone(),
        trusted: config.ssl.trusted_file().map(Path::to_owned),
        may_wait: config.deployment.role == Role::DataPlane && path.is_some(),
        writes: config.admin.is_some() && path.is_some(),
        follows_plugins: config.admin.is_none(),
        plugins: config.plugins.clone(),
    };
    let fault = |error: ConfigError| {
        let error = error.in_key("deployment.etcd");
        config.fault(error.field.as_deref().unwrap_or_default(), error.reason)
    };
    let opened = EtcdStore::open(options, path, callout);
    Ok(Arc::new(opened.map_err(|error| vec![fault(error)])?))
}

/// The resources at `path`, as `config` has them.
fn store(config: &Config, path: &Path, environment: &EnvVars) -> Result<Arc<dyn Store>, Vec<ConfigError>> {
    if config.deployment.provider == Provider::Embedded {
        let key = "deployment.role_traditional.config_provider";
        let opened = EmbeddedStore::open(path).map_err(|reason| vec![config.fault(key, reason)])?;
        return Ok(Arc::new(opened));
    }
    Ok(Arc::new(FileStore::new(path.to_owned(), format(config), environment.clone())))
}

/// Opens what `config`, which was read from `config_path`, keeps its resources in; nothing is read yet.
///
/// # Errors
/// Why that can't be.
pub fn open_store(
    config: &Config,
    config_path: &Path,
    environment: &EnvVars,
) -> Result<Arc<dyn Store>, Vec<ConfigError>> {
    let path = config.resources_path(config_path.parent().unwrap_or(Path::new(".")), environment);
    match config.is_standalone_api() {
        true => Ok(standalone(config, &path, environment)?),
        false => store(config, &path, environment),
    }
}

/// Reads the resources at `path` by themselves, with APISIX's defaults for what their config.yaml would say.
///
/// # Errors
/// As [`load`].
pub fn load_resources(path: &Path, context: SourceContext) -> Result<Loaded, Vec<ConfigError>> {
    let config = Config::standalone("", &context.environment)?;
    let format = Format::from_file_name(&path.to_string_lossy());
    let store = FileStore::new(path.to_owned(), format, context.environment.clone());
    let mut source = Source::new(config, Arc::new(store), context);
    let update = source.pull()?;
    Ok(Loaded { source, update, standalone: None })
}

/// The notation of the file with resources.
fn format(config: &Config) -> Format {
    match config.deployment.provider {
        Provider::Json => Format::Json,
        Provider::Yaml | Provider::Embedded | Provider::Etcd => Format::Yaml,
    }
}

impl Source {
    /// A source of what `store` has; nothing is read yet.
    pub fn new(config: Config, store: Arc<dyn Store>, mut context: SourceContext) -> Source {
        let secure = config.https_listeners.iter().map(|listen| listen.address.port());
        context.compile.build.tls_ports = secure.collect();
        let (state, chains, shared) = Default::default();
        let figures = Figures::new(&config.deployment.provider, context.compile.metrics());
        let in_force = Arc::new(InForce::new(store.clone()));
        let (reloads, taken, outdated) = Default::default();
        Source { context, config, store, state, chains, shared, figures, in_force, reloads, taken, outdated }
    }

    /// Has it follow the lists of plugins of config.yaml.
    pub fn follow(&mut self, reloads: Arc<Reloads>) {
        self.taken = Some(reloads.current());
        self.reloads = Some(reloads);
    }

    /// Who tells that the lists of plugins have changed.
    fn reloads(&self) -> Option<&Arc<Reloads>> {
        self.reloads.as_ref()
    }

    /// The static configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the resources are.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What is in force of them, and what was refused, now and later.
    pub fn in_force(&self) -> &Arc<InForce> {
        &self.in_force
    }

    /// Takes what has changed in the store since the last call, the first time everything.
    ///
    /// # Errors
    /// Why the store could not tell it. What was read before stays in force.
    pub fn pull(&mut self) -> Result<Update, Vec<ConfigError>> {
        let current = self.reloads.as_ref().map(|reloads| reloads.current());
        if let Some(current) = current
            && self.taken.as_ref().is_none_or(|taken| !Arc::ptr_eq(taken, &current))
        {
            self.config.take_plugins(&current);
            (self.taken, self.outdated) = (Some(current), true);
        }
        let (store, outdated) = (self.store.clone(), self.outdated);
        let taken = self.take(|batch| match outdated {
            true => store.everything(batch),
            false => store.changes(batch),
        });
        self.outdated &= taken.is_err();
        // What a store said last is taken while it is away, too.
        let away = self.store.away().map(ConfigError::new);
        self.figures.told(taken.is_ok() && away.is_none());
        match &taken {
            Err(errors) => self.in_force.unread(errors),
            Ok(_) => self.in_force.unread(away.as_slice()),
        }
        taken
    }

    /// Takes what `read` hands over of the store; it answers what is odd about that.
    ///
    /// # Errors
    /// Those of `read`, and what can't be put to use. What was read before stays in force.
    fn take(&mut self, read: impl FnOnce(&mut Batch<'_>) -> Read) -> Result<Update, Vec<ConfigError>> {
        let (candidate, warnings) = self.candidate(read)?;
        let refused = new_faults(&candidate.refused, &self.state);
        let mut refused: Vec<ConfigError> =
            refused.into_iter().map(|fault| named(&*self.store, fault)).collect();
        refused.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        self.in_force.follow(&candidate, &self.state);
        self.figures.refused(&self.in_force.refused_number());
        Ok(Update { diff: candidate.accept(&mut self.state), refused, warnings })
    }

    /// What the changes compile to; nothing is different before it is accepted.
    fn candidate(
        &mut self,
        read: impl FnOnce(&mut Batch<'_>) -> Read,
    ) -> Result<(Candidate, Vec<ConfigError>), Vec<ConfigError>> {
        let mut batch = Batch::new(
            &self.state,
            Builder { config: &self.config, context: &self.context, shared: &self.shared },
        );
        let mut warnings = read(&mut batch)?;
        match Candidate::new(&mut batch, &mut self.chains) {
            Ok(candidate) => {
                let shown = batch.revisions.iter();
                self.figures
                    .changed(shown.map(|(kind, revision)| (*kind, self.store.shown_revision(*revision))));
                let odd = std::mem::take(&mut batch.warnings);
                warnings.extend(odd.into_iter().map(|fault| named(&*self.store, fault)));
                Ok((candidate, warnings))
            }
            Err(error) => {
                let resources = new_faults(&batch.refused, &self.state);
                let resources = resources.into_iter().map(|fault| named(&*self.store, fault));
                Err(error.into_all().into_iter().chain(resources).collect())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
impl Source {
    pub(crate) fn server_tls(&self) -> Option<&Arc<sixfold_core::tls::ServerTls>> {
        self.state.listening.as_ref().map(crate::listener::Listening::tls)
    }

    pub(crate) fn route(&self, id: &str) -> Option<&Arc<sixfold_core::route::Route>> {
        self.state.routes.get(&crate::resource::Id::from(id))
    }

    pub(crate) fn stream_route(&self, id: &str) -> Option<&Arc<sixfold_core::listener::L4Route>> {
        self.state.stream_routes.get(&crate::resource::Id::from(id)).map(|linked| &linked.route)
    }

    pub(crate) fn stream_table(&self) -> &Arc<L4Table> {
        &self.context.streams.table
    }

    pub(crate) fn cluster(&self, name: &str) -> &Arc<sixfold_core::cluster::Cluster> {
        let built = self
            .state
            .resources
            .of(crate::resource::Kind::Route)
            .filter_map(|(_, h)| h.record.cluster.as_ref());
        built
            .map(|built| &built.cluster)
            .find(|cluster| &*cluster.config.name == name)
            .expect("a route's own")
    }

    pub(crate) fn chain_of(&self, route: &str) -> Option<Arc<sixfold_core::plugin::Chain>> {
        self.route(route)?.chain.clone()
    }

    pub(crate) fn global_chain(&self) -> Option<&Arc<sixfold_core::plugin::Chain>> {
        self.state.global.chain.as_ref()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("source of APISIX's configuration")
    }
}
