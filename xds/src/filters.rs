//! HTTP filters and their settings by route.

mod said;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use prost::Message;

use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::interned::Interned;
use sixfold_core::plugin::{
    BuildContext, Chain, ChainBuilder, FilterConfig as Given, FilterFactory, Member, Plugin, Position,
    Registry,
};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::route::v3::CorsPolicy;
use sixfold_xds_api::pb::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy as TypedCors;
use sixfold_xds_api::pb::envoy::extensions::filters::http::router::v3::Router;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use sixfold_xds_api::pb::google::protobuf::Any;

use crate::context::Context;
use crate::ecds;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, not_empty};
use sixfold_xds_api::wire::decode;

use said::{Said, check_unused};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";

/// `typed_per_filter_config` of one level: table, virtual host, route or weighted cluster.
pub(crate) type Overrides = HashMap<String, Any>;

/// What one level says about filters.
#[derive(Clone, Copy)]
pub(crate) struct Level<'a> {
    overrides: &'a Overrides,
    /// `cors` of a virtual host or route, the form before `typed_per_filter_config`.
    cors: Option<&'a CorsPolicy>,
    /// Of the virtual host or route; empty for a table.
    name: &'a str,
}

impl<'a> Level<'a> {
    pub(crate) fn new(overrides: &'a Overrides) -> Level<'a> {
        Level { overrides, cors: None, name: "" }
    }

    pub(crate) fn with_cors(self, cors: Option<&'a CorsPolicy>) -> Level<'a> {
        Level { cors, ..self }
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

/// What the levels together say about one filter.
#[derive(Default)]
struct Settings {
    configs: Vec<Vec<u8>>,
    /// The most specific level that says so.
    disabled: Option<bool>,
    /// Whose settings they are, if that makes a difference: names down to the most specific level that has some.
    owner: String,
    /// Tells settings of a route without a name from those of every other.
    nameless: u64,
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
        let mut keep = |result: Result<One>| faults.keep(result.in_index(index).in_key("http_filters"));
        let one = keep(one(context, filter, index));
        last_is_known = one.is_some();
        if router.is_some() {
            keep(Err(ConfigError::new("must come before the router, which is the last filter")));
        }
        // Envoy takes a name twice: what routes say by it is for all of the name.
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
    (HttpFilters { filters: compiled, build, plugins, chains: Mutex::default() }, router)
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
    let factory = context.compile.plugins.filter(&type_name);
    let (type_name, config) = resolve(factory, config).in_key("typed_config")?;
    if type_name == ROUTER {
        return decode(&config).map(One::Router).in_key("typed_config");
    }
    match factory {
        Some(factory) => {
            let (factory, config) = (factory.clone(), config.into_owned());
            let (name, plugins) = (name.clone(), Mutex::default());
            Ok(One::Filter(Filter { index, name, config, disabled: *disabled, factory, plugins }))
        }
        None if *is_optional => Ok(One::Nothing),
        None => {
            let refused = refuse::extension("HTTP filter", name, &type_name);
            let how = context.compile.plugins.absent_filter(&type_name);
            Err(match how {
                Some(how) => refused.reworded(|reason| format!("{reason}; {how}")),
                None => refused,
            })
        }
    }
}

/// Type and bytes of what a filter is configured by: a message, or the text of its JSON.
fn resolve<'a>(factory: Option<&Arc<FilterFactory>>, config: &'a Any) -> Result<(String, Cow<'a, [u8]>)> {
    match factory.filter(|factory| factory.json) {
        Some(factory) => {
            let json = any::struct_of(config)?;
            Ok((factory.config_type.clone(), json.to_string().into_bytes().into()))
        }
        None => any::resolve(config),
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

    fn build_chain(&self, levels: &[Level<'_>], resource: &str) -> Result<Arc<Chain>> {
        let settings = self.settings(levels).in_key("typed_per_filter_config")?;
        let key = cache_key(&settings);
        if let Some(chain) = self.chains.lock().get(&key) {
            return Ok(chain);
        }
        let build = BuildContext { resource: resource.into(), ..self.build.clone() };
        let mut chain = ChainBuilder::new().reverse_response();
        let mut faults = Faults::default();
        for (index, (filter, settings)) in self.filters.iter().zip(&settings).enumerate() {
            // A level that configures a filter also turns on one that is off for the listener.
            if settings.disabled.unwrap_or(filter.disabled && settings.configs.is_empty()) {
                continue;
            }
            let plugin = filter.plugin(settings, &build).map_err(|error| {
                let reason = format!("HTTP filter \"{}\": {}", filter.name, error.reason);
                let error = ConfigError { reason, ..error };
                if settings.configs.is_empty() {
                    error.in_key("typed_config").in_index(filter.index).in_key("http_filters")
                } else {
                    error.in_key(&filter.name).in_key("typed_per_filter_config")
                }
            });
            // A filter that no level says anything about is broken in the chain without levels too, where it is told.
            let told = !levels.is_empty() && settings.configs.is_empty() && !filter.disabled;
            let plugin = if told { plugin.ok() } else { faults.keep(plugin) };
            let Some(plugin) = plugin else { continue };
            let position = Position::of_filter(u16::try_from(index).unwrap_or(u16::MAX));
            chain.push(Member { name: filter.name.as_str().into(), position, plugin });
        }
        faults.end(())?;
        let chain = Arc::new(chain.build());
        self.chains.lock().insert(key, &chain);
        Ok(chain)
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

    fn settings(&self, levels: &[Level<'_>]) -> Result<Vec<Settings>> {
        let mut faults = Faults::default();
        // What the levels above say has been looked at with them. In the order of their names, so that of two faults it is
        // always the same that is told.
        let newest = levels.last().map(|level| level.overrides.iter().collect::<BTreeMap<_, _>>());
        for (name, config) in newest.unwrap_or_default() {
            if !self.filters.iter().any(|filter| filter.name == *name && !filter.is_missing()) {
                faults.take(check_unused(&self.plugins, &self.build, config).in_key(name));
            }
        }
        let settings = self.filters.iter().map(|filter| filter.settings(levels).in_key(&filter.name));
        let settings = faults.take(collect(settings));
        faults.end(settings)
    }
}

impl Filter {
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
        let plugin =
            Arc::new(self.factory.build(&Given { config: &self.config, overrides: &overrides }, &build)?);
        self.plugins.lock().insert(key, &plugin);
        Ok(plugin)
    }

    fn settings(&self, levels: &[Level<'_>]) -> Result<Settings> {
        let mut settings = Settings::default();
        let mut names = String::new();
        for (index, level) in levels.iter().enumerate() {
            if !level.name.is_empty() {
                names.push('/');
                names.push_str(level.name);
            }
            let Some(config) = level.overrides.get(&self.name) else { continue };
            if self.factory.told_apart {
                settings.owner.clone_from(&names);
                // The first level is the table's.
                settings.nameless = if index > 0 && level.name.is_empty() { number() } else { 0 };
            }
            let said = Said::new(config)?;
            settings.disabled = Some(said.disabled);
            if !self.is_missing() {
                settings.configs.extend(said.settings(&self.factory)?);
            }
        }
        // Envoy looks at the older field only where no level has the newer one.
        if settings.configs.is_empty() && self.factory.override_type.as_deref() == Some(CORS_POLICY) {
            settings.configs.extend(levels.iter().filter_map(|level| level.cors).map(typed_cors));
        }
        Ok(settings)
    }
}

/// `cors` of a virtual host or route as the settings of the filter, encoded. They have the same fields.
fn typed_cors(value: &CorsPolicy) -> Vec<u8> {
    let CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value.clone();
    let policy = TypedCors {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        filter_enabled: enabled_specifier.map(|EnabledSpecifier::FilterEnabled(enabled)| enabled),
    };
    policy.encode_to_vec()
}

/// Two lists of settings with one key are equal.
fn cache_key(settings: &[Settings]) -> Vec<u8> {
    let mut key = Vec::new();
    for settings in settings {
        key.push(settings.disabled.map_or(2, u8::from));
        add_settings(settings, &mut key);
    }
    key
}

/// One that was not there before.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

fn add_settings(settings: &Settings, key: &mut Vec<u8>) {
    key.extend((settings.owner.len() as u64).to_le_bytes());
    key.extend(settings.owner.as_bytes());
    key.extend(settings.nameless.to_le_bytes());
    key.extend((settings.configs.len() as u64).to_le_bytes());
    for config in &settings.configs {
        key.extend((config.len() as u64).to_le_bytes());
        key.extend(config);
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
