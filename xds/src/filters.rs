//! HTTP filters and their settings by route.

mod said;
mod settings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::interned::Interned;
use sixfold_core::plugin::{
    BuildContext, Chain, ChainBuilder, FilterConfig as Given, FilterFactory, Member, Plugin, Position,
    Registry,
};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::route::v3::CorsPolicy;
use sixfold_xds_api::pb::envoy::extensions::filters::http::router::v3::Router;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use sixfold_xds_api::pb::google::protobuf::Any;

use crate::context::Context;
use crate::ecds;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, not_empty};

use said::{Said, check_policy};
pub(crate) use said::{kind_of_settings, reads};
use settings::{Settings, add_settings, cache_key, number, typed_cors};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
/// The field of a level.
const SETTINGS: &str = "typed_per_filter_config";

/// `typed_per_filter_config` of one level: table, virtual host, route or weighted cluster.
pub(crate) type Overrides = HashMap<String, Any>;

/// What one level says about filters.
#[derive(Clone, Copy)]
pub(crate) struct Level<'a> {
    overrides: &'a Overrides,
    /// `cors` of a virtual host or route, the form before `typed_per_filter_config`, and the path of that field.
    cors: Option<(&'a CorsPolicy, &'static str)>,
    /// Of the virtual host or route; empty for a table.
    name: &'a str,
}

impl<'a> Level<'a> {
    pub(crate) fn new(overrides: &'a Overrides) -> Level<'a> {
        Level { overrides, cors: None, name: "" }
    }

    pub(crate) fn with_cors(self, cors: Option<&'a CorsPolicy>, path: &'static str) -> Level<'a> {
        Level { cors: cors.map(|cors| (cors, path)), ..self }
    }

    pub(crate) fn named(self, name: &'a str) -> Level<'a> {
        Level { name, ..self }
    }
}

/// The HTTP filters of a connection manager, before the router.
pub(crate) struct HttpFilters {
    filters: Vec<Filter>,
    build: BuildContext,
    /// Those that there are.
    plugins: Registry,
    /// Equal settings give one chain.
    chains: Mutex<Interned<Vec<u8>, Chain>>,
    /// All filters without settings of a route, for chains in which some are off.
    all: Mutex<Interned<(), [Member]>>,
    /// Filters for which settings of another's type were passed over, and that type: the log is told once.
    passed_over: Mutex<BTreeSet<(String, String)>>,
}

struct Filter {
    /// Its place in `http_filters`, where others may have been left out.
    index: usize,
    name: String,
    config: Vec<u8>,
    disabled: bool,
    factory: Arc<FilterFactory>,
    /// Equal settings give one instance: that of the connection manager serves routes that say nothing about it.
    plugins: Mutex<Interned<Vec<u8>, Plugin>>,
}

/// Compiles `http_filters`, whose statistics stand under `scope`; the last must be the router, whose configuration is answered too. No filters at all are
/// taken, as by Envoy, but then nothing forwards. Those that are wrong are noted in `faults` and left out of the list, so that
/// routes can be looked at all the same.
pub(crate) fn compile(
    context: &Context,
    filters: &[HttpFilter],
    scope: &str,
    faults: &mut Faults,
) -> (HttpFilters, Option<Router>) {
    let mut compiled: Vec<Filter> = Vec::with_capacity(filters.len());
    let (mut router, mut last_is_known) = (None, true);
    let build = context.build(scope);
    for (index, filter) in filters.iter().enumerate() {
        let named = |error| named(&filter.name, error);
        let mut keep =
            |result: Result<One>| faults.keep(result.map_err(named).in_index(index).in_key("http_filters"));
        let one = keep(one(context, filter, index));
        last_is_known = one.is_some();
        if router.is_some() {
            keep(Err(ConfigError::new("must come before the router, which is the last filter")));
        }
        keep(not_empty(&filter.name, "name").map(|_| One::Nothing));
        match one {
            Some(One::Router(config)) => {
                if filter.disabled {
                    keep(Err(ConfigError::field(
                        "disabled",
                        "the router, which is the last filter, can't be",
                    )));
                }
                router = Some(config);
            }
            Some(One::Filter(filter)) => {
                if filter.disabled {
                    // No chain without settings has it, which would tell what is wrong with it.
                    let plugin = filter.plugin(&Settings::default(), &build);
                    keep(plugin.map(|_| One::Nothing).in_key("typed_config"));
                }
                compiled.push(filter);
            }
            Some(One::Nothing) | None => {}
        }
    }
    if router.is_none() && last_is_known && !filters.is_empty() {
        faults.take::<()>(Err(ConfigError::field("http_filters", "the last filter must be the router")));
    }
    let plugins = context.compile.plugins.clone();
    let (chains, all, passed_over) = Default::default();
    (HttpFilters { filters: compiled, build, plugins, chains, all, passed_over }, router)
}

/// Has each fault of a filter say which one it is.
fn named(name: &str, error: ConfigError) -> ConfigError {
    let filter = format!("HTTP filter \"{name}\"");
    error.reworded(|reason| match name.is_empty() || reason.contains(&filter) {
        true => reason.to_owned(),
        false => format!("{reason} ({filter})"),
    })
}

enum One {
    Router(Router),
    Filter(Filter),
    /// One that is left out, or an optional filter that this binary does not have.
    Nothing,
}

fn one(context: &Context, filter: &HttpFilter, index: usize) -> Result<One> {
    let HttpFilter { name, is_optional, disabled, config_type } = filter;
    let discovered;
    let config = match config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(source)) => {
            match ecds::find(context, name, source).in_key("config_discovery")? {
                Some(config) => discovered = config,
                None => {
                    let (factory, plugins) = (ecds::missing(), Mutex::default());
                    let (name, config) = (name.clone(), Vec::new());
                    return Ok(One::Filter(Filter {
                        index,
                        name,
                        config,
                        disabled: *disabled,
                        factory,
                        plugins,
                    }));
                }
            }
            &discovered
        }
        None => return Err(ConfigError::field("typed_config", "is missing")),
    };
    let type_name = any::type_name(config).in_key("typed_config")?;
    if type_name == ROUTER {
        return any::unpack(config).map(One::Router).in_key("typed_config");
    }
    match context.compile.plugins.filter(&type_name) {
        Some(factory) => {
            let (factory, config) = (factory.clone(), resolve(factory, config).in_key("typed_config")?);
            let (name, plugins) = (name.clone(), Mutex::default());
            Ok(One::Filter(Filter { index, name, config, disabled: *disabled, factory, plugins }))
        }
        None if *is_optional => Ok(One::Nothing),
        None => {
            let refused = refuse::extension("HTTP filter", name, &type_name);
            // Of a struct the type stands in a field.
            let refused = match type_name == any::name_of_url(&config.type_url) {
                true => refused,
                false => refused.renamed(|field| format!("{field}.type_url")),
            };
            let how = context.compile.plugins.absent_filter(&type_name);
            Err(match how {
                Some(how) => refused.reworded(|reason| format!("{reason}; {how}")),
                None => refused,
            })
        }
    }
}

/// What a filter is configured by: a message, or the text of its JSON.
fn resolve(factory: &FilterFactory, config: &Any) -> Result<Vec<u8>> {
    match factory.json {
        true => Ok(any::struct_of(config)?.to_string().into_bytes()),
        false => any::resolve(config).map(|(_, bytes)| bytes.into_owned()),
    }
}

/// Whether a filter can be made of a configuration that has come by itself.
pub(crate) fn check(context: &Context, name: &str, config: &Any) -> Result<()> {
    let config_type = Some(ConfigType::TypedConfig(config.clone()));
    let filter = HttpFilter { name: name.to_owned(), is_optional: false, disabled: false, config_type };
    if let One::Filter(filter) = one(context, &filter, 0)? {
        let plugin = filter.plugin(&Settings::default(), &context.build(""));
        plugin.in_key("typed_config")?;
    }
    Ok(())
}

impl HttpFilters {
    /// The chain of requests without settings of their own.
    pub(crate) fn base_chain(&self) -> Result<Arc<Chain>> {
        self.build_chain(&[], "")
    }

    /// The chain with the settings of these levels, the least specific first; `None` when no level says anything.
    pub(crate) fn chain(&self, levels: &[Level<'_>], resource: &str) -> Result<Option<Arc<Chain>>> {
        if levels.iter().all(|level| level.overrides.is_empty() && level.cors.is_none()) {
            return Ok(None);
        }
        self.build_chain(levels, resource).map(Some)
    }

    /// A level is looked at with the last of its chains: what wider ones say has been told by theirs.
    fn build_chain(&self, levels: &[Level<'_>], resource: &str) -> Result<Arc<Chain>> {
        let build = BuildContext { resource: resource.into(), ..self.build.clone() };
        let mut faults = self.check_level(levels, &build);
        let settings: Vec<_> =
            self.filters.iter().map(|filter| filter.settings(levels, &self.plugins)).collect();
        let key = cache_key(&settings);
        let known = self.chains.lock().get(&key);
        if let Some(chain) = known {
            return faults.end(chain);
        }
        let (mut chain, mut broken) = (ChainBuilder::new().reverse_response(), BTreeSet::new());
        let (mut off, mut all_are_on) = (Vec::new(), true);
        for (index, (filter, settings)) in self.filters.iter().zip(&settings).enumerate() {
            // A level that configures a filter also turns on one that is off for the listener.
            let is_off = settings.disabled.unwrap_or(filter.disabled && settings.configs.is_empty());
            all_are_on &= !is_off;
            if is_off && settings.configs.is_empty() {
                continue;
            }
            let plugin = match filter.plugin(settings, &build) {
                Ok(plugin) => plugin,
                Err(error) => {
                    // What a level says is for all filters of the name, and told once.
                    if !is_off && (broken.insert(&filter.name) || levels.is_empty()) {
                        faults.take(self.fault(filter, levels, error, &build));
                    }
                    // The chain goes with the fault, whoever tells it; it must not let through what the filter would not.
                    refusing(&build)?
                }
            };
            let member = filter.member(index, plugin);
            if is_off { off.push(member) } else { chain.push(member) }
        }
        if !all_are_on {
            chain.off(off, self.all(&build)?);
        }
        faults.end(())?;
        let chain = Arc::new(chain.build());
        if broken.is_empty() {
            self.chains.lock().insert(key, &chain);
        }
        Ok(chain)
    }

    /// All filters as they are for routes that say nothing of them. What is wrong with one is told elsewhere.
    fn all(&self, build: &BuildContext) -> Result<Arc<[Member]>> {
        let mut known = self.all.lock();
        if let Some(all) = known.get(&()) {
            return Ok(all);
        }
        let of = |(index, filter): (usize, &Filter)| {
            let plugin = filter.plugin(&Settings::default(), build).or_else(|_| refusing(build))?;
            Ok(filter.member(index, plugin))
        };
        let all: Arc<[Member]> = self.filters.iter().enumerate().map(of).collect::<Result<_>>()?;
        known.insert((), &all);
        Ok(all)
    }

    /// Tells of a filter that can't be built with what these levels say. A fault is that of the narrowest level alone if
    /// that says something about the filter; every other was told by a wider one, or as the filter's own.
    fn fault(
        &self,
        filter: &Filter,
        levels: &[Level<'_>],
        error: ConfigError,
        build: &BuildContext,
    ) -> Result<()> {
        let Some((newest, wider)) = levels.split_last() else {
            let error = error.in_key("typed_config").in_index(filter.index).in_key("http_filters");
            return Err(named(&filter.name, error));
        };
        let was_good = || filter.plugin(&filter.settings(wider, &self.plugins), build).is_ok();
        if let Some(config) = newest.overrides.get(&filter.name) {
            // What can't be read was told before.
            let Ok(said) = Said::new(config) else { return Ok(()) };
            let fault = match was_good() {
                true => said.at(Err(error)),
                false => said.check(&self.plugins, build),
            };
            return fault.in_key(&filter.name).in_key(SETTINGS);
        }
        match newest.cors {
            Some((policy, path)) if filter.takes_policies() && was_good() => {
                let is_good = check_policy(&self.plugins, &typed_cors(policy), build).is_ok();
                if is_good { Err(error.in_key(path)) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Notes what is wrong with settings of the narrowest level that no filter here reads: Envoy finds who checks them by
    /// their type. In the order of their names, so that of two faults it is always the same that is told first.
    fn check_level(&self, levels: &[Level<'_>], build: &BuildContext) -> Faults {
        let mut faults = Faults::default();
        let Some(level) = levels.last() else { return faults };
        for (name, config) in level.overrides.iter().collect::<BTreeMap<_, _>>() {
            let passed_over =
                faults.take(self.check_unread(name, config, build).in_key(name).in_key(SETTINGS));
            if let Some(kind) = passed_over
                && self.passed_over.lock().insert((name.clone(), kind.clone()))
            {
                let names: Vec<_> =
                    levels.iter().map(|level| level.name).filter(|name| !name.is_empty()).collect();
                let place = if names.is_empty() { build.resource.to_string() } else { names.join("/") };
                tracing::warn!(
                    "settings of type {kind} for the HTTP filter \"{name}\" are passed over, of \"{place}\" first: it \
                     takes none of that type"
                );
            }
        }
        if let Some((policy, path)) = level.cors {
            faults.take(check_policy(&self.plugins, &typed_cors(policy), build).in_key(path));
        }
        faults
    }

    /// Answers the type of settings that the filter of their name passes over.
    fn check_unread(&self, name: &str, config: &Any, build: &BuildContext) -> Result<Option<String>> {
        let said = Said::new(config)?;
        let (mut is_there, mut is_read) = (false, false);
        // Envoy takes a name twice: what routes say by it is for all of the name, each of which takes what is of its type.
        for filter in self.filters.iter().filter(|filter| filter.name == *name && !filter.is_missing()) {
            is_there = true;
            is_read |= said.taken_by(&filter.factory)?.is_some();
        }
        if is_read {
            return Ok(None);
        }
        said.check(&self.plugins, build)?;
        Ok(said.kind().filter(|_| is_there))
    }

    /// Whether connection managers with equal filters may share them.
    pub(crate) fn are_stateless(&self) -> bool {
        self.filters.iter().all(|filter| filter.factory.stateless)
    }

    /// Everything that tells lists of filters apart.
    pub(crate) fn identity(&self) -> impl Hash + Eq {
        let of = |f| {
            let Filter { name, config, disabled, factory, .. }: &Filter = f;
            (name.as_str(), factory.config_type.as_str(), config.as_slice(), *disabled)
        };
        (self.build.direction, self.filters.iter().map(of).collect::<Vec<_>>())
    }
}

/// What stands in the place of a filter that can't be built: nothing passes it.
fn refusing(build: &BuildContext) -> Result<Arc<Plugin>> {
    ecds::missing().build(&Given::default(), build).map(Arc::new)
}

impl Filter {
    /// It at its place in the list.
    fn member(&self, index: usize, plugin: Arc<Plugin>) -> Member {
        let position = Position::of_filter(u16::try_from(index).unwrap_or(u16::MAX));
        Member { name: self.name.as_str().into(), position, plugin }
    }

    /// Whether its configuration is to come by itself and has not: nobody knows what it takes from routes.
    fn is_missing(&self) -> bool {
        self.factory.config_type.is_empty()
    }

    fn plugin(&self, settings: &Settings, build: &BuildContext) -> Result<Arc<Plugin>> {
        let mut key = Vec::new();
        add_settings(settings, &mut key);
        if let Some(plugin) = self.plugins.lock().get(&key) {
            return Ok(plugin);
        }
        let mut build = BuildContext { filter: self.name.as_str().into(), ..build.clone() };
        if self.factory.told_apart {
            build.resource = format!("{}{}", self.name, settings.owner).into();
        }
        let overrides: Vec<&[u8]> = settings.configs.iter().map(Vec::as_slice).collect();
        let given = Given { config: &self.config, overrides: &overrides, superseded: settings.superseded };
        let plugin = Arc::new(self.factory.build(&given, &build)?);
        self.plugins.lock().insert(key, &plugin);
        Ok(plugin)
    }

    /// What of the levels is for this filter. Settings of another's type put wider ones out of force, as in Envoy, but for filters
    /// that read all levels. What can't be read is told of its level.
    fn settings(&self, levels: &[Level<'_>], plugins: &Registry) -> Settings {
        let mut settings = Settings::default();
        let mut names = String::new();
        for (index, level) in levels.iter().enumerate() {
            if !level.name.is_empty() {
                names.push('/');
                names.push_str(level.name);
            }
            let Some(Ok(said)) = level.overrides.get(&self.name).map(Said::new) else { continue };
            settings.disabled = Some(said.disabled);
            if self.is_missing() {
                continue;
            }
            let config = match said.taken_by(&self.factory) {
                Ok(Some(config)) => config,
                Ok(None) if said.is_something(plugins) => {
                    settings.supersede(&self.factory);
                    continue;
                }
                _ => continue,
            };
            settings.superseded = false;
            settings.configs.push(config);
            if self.factory.told_apart {
                settings.owner.clone_from(&names);
                // The first level is the table's.
                settings.nameless = if index > 0 && level.name.is_empty() { number() } else { 0 };
            }
        }
        // Envoy looks at the older field only where no level has the newer one.
        if settings.configs.is_empty() && self.takes_policies() {
            let policies = levels.iter().filter_map(|level| level.cors);
            settings.configs.extend(policies.map(|(policy, _)| typed_cors(policy)));
        }
        settings
    }

    /// Whether it reads `cors` of virtual hosts and routes.
    fn takes_policies(&self) -> bool {
        self.factory.override_type.as_deref() == Some(CORS_POLICY)
    }
}

/// Options of the router filter that the model carries.
pub(crate) fn router_options(router: &Router) -> Result<sixfold_core::hcm::RouterOptions> {
    let Router {
        // Both switch statistics of single responses; they are always kept.
        dynamic_stats: _,
        suppress_grpc_request_failure_code_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = router;
    refuse!(
        upstream_log,
        suppress_grpc_request_failure_code_stats,
        start_child_span,
        upstream_log_options,
        upstream_http_filters,
        reject_connect_request_early_data
    );
    const STRICT: [&str; 5] = [
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-max-retries",
        "x-envoy-retry-grpc-on",
        "x-envoy-retry-on",
    ];
    let strict = strict_check_headers.iter().map(|name| {
        if STRICT.contains(&name.to_ascii_lowercase().as_str()) {
            return sixfold_xds_api::values::header_name(name, "strict_check_headers");
        }
        Err(ConfigError::field("strict_check_headers", format!("\"{name}\" can't be checked")))
    });
    Ok(sixfold_core::hcm::RouterOptions {
        suppress_envoy_headers: *suppress_envoy_headers,
        respect_expected_timeout: *respect_expected_rq_timeout,
        strict_check_headers: strict.collect::<Result<_>>()?,
    })
}
