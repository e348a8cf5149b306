//! What the tests of several modules share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use prost::{Message, Name};
use sixfold_core::compile::CompileContext;
use sixfold_core::detached::LogCheck;
use sixfold_core::document::{Node as Document, Options};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::plugin::{Chain, FilterFactory, Plugin, Registry, SharedState, Slot, Step};
use sixfold_core::router::RouteTable;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::route::v3::RouteConfiguration;
use sixfold_xds_api::pb::envoy::extensions::filters::http::basic_auth::v3::{BasicAuth, BasicAuthPerRoute};
use sixfold_xds_api::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use sixfold_xds_api::pb::envoy::extensions::filters::http::credential_injector::v3::CredentialInjector;
use sixfold_xds_api::pb::envoy::extensions::http::injected_credentials::generic::v3::Generic;
use sixfold_xds_api::wire::{self, Split};
use sixfold_xds_api::{any, message_from_node};

use crate::bootstrap::ProcessContext;
use crate::context::{Context, Node};
use crate::filters::HttpFilters;
use crate::route;

/// A message from YAML.
pub(crate) fn read<M: Message + Default + Name>(yaml: &str) -> M {
    let options = Options { allow_empty: true, wide_numbers_as_text: true, ..Options::default() };
    let node = Document::parse(yaml, &options).unwrap();
    let node = if node.is_null() { Document::from_json(serde_json::json!({})) } else { node };
    match message_from_node(&node) {
        Ok(message) => message,
        Err(error) => panic!("{error} in {yaml}"),
    }
}

/// Compiles a route configuration from its encoded form, as it comes by an API.
pub(crate) fn table(
    context: &Context,
    filters: &HttpFilters,
    value: &RouteConfiguration,
) -> Result<RouteTable, ConfigError> {
    let encoded = value.encode_to_vec();
    let Split { rest, parts } = wire::split(&encoded, &[2, 3])?;
    route::table(context, filters, &wire::decode(&rest)?, &parts, None)
}

/// No callout, no log file, one filter: gRPC-web's, which does nothing here and refuses settings that are not empty.
pub(crate) fn process() -> ProcessContext {
    let filters =
        [test_filter(), json_filter(), idle_filter(), secret_filter(), users_filter(), cors_filter()];
    let plugins = Registry::new([], filters);
    let compile = CompileContext {
        log_sinks: Arc::new(LogCheck { makes_folders: true }),
        ..CompileContext::detached(plugins)
    };
    ProcessContext::new(compile)
}

/// The context of a resource that came by an API.
pub(crate) fn context() -> Context {
    let ProcessContext { compile, filter_lists, secrets: sds, tracker, unknown } = process();
    Context {
        compile,
        filter_lists,
        runtime: Arc::default(),
        secrets: Arc::default(),
        sds,
        tracker,
        unknown,
        extensions: Arc::default(),
        bootstrap_clusters: Arc::new(["sds".to_owned()].into()),
        tracer: None,
        exporters: Arc::default(),
        node: Node { id: "node".into(), cluster: "local".into(), ..Node::default() },
        dns_servers: None,
        outlier_log: None,
        local_cluster: None,
        locality: None,
        sent_clusters: Arc::default(),
        validate_clusters: false,
        of_stream: true,
        ads: true,
    }
}

const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";

/// How often filters of tests have begun something.
pub(crate) fn begun(shared: &SharedState) -> Arc<AtomicU32> {
    shared.get_or_insert("begun", || AtomicU32::new(0))
}

/// A filter with a handler of `access`, and one of `log` for every override. It counts when it goes into force.
fn test_filter() -> FilterFactory {
    FilterFactory::new(GRPC_WEB.into(), GRPC_WEB.to_owned(), |given, context| {
        if !given.config.is_empty() {
            return Err(ConfigError::field("config", "must be empty"));
        }
        let begun = begun(&context.shared);
        let plugin = Plugin::of(()).access(pass).in_force(move |()| {
            begun.fetch_add(1, Relaxed);
        });
        Ok(given.overrides.iter().fold(plugin, |plugin, _| plugin.log(|(), _, _| {})).build())
    })
}

/// A filter whose configuration is JSON: `{"bad": true}` is none, and with `{"alone": true}` of its own it takes nothing from
/// routes. What it keeps is its routes' own.
fn json_filter() -> FilterFactory {
    let name = || "test.Json".to_owned();
    let filter = FilterFactory::new(name(), name(), |given, context| {
        for level in std::iter::once(given.config).chain(given.overrides.iter().copied()) {
            let value: serde_json::Value =
                serde_json::from_slice(level).map_err(|error| ConfigError::new(error.to_string()))?;
            if value["bad"] == true {
                return Err(ConfigError::field("value.bad", format!("of {}", context.resource)));
            }
            if value["alone"] == true && !given.overrides.is_empty() {
                return Err(ConfigError::field("value.alone", "is not"));
            }
        }
        Ok(Plugin::of(()).access(pass).build())
    });
    filter.json().told_apart()
}

/// A filter of policies, of which one with a wrong age is none; all levels count. It has one handler of `log` for every policy,
/// and one of `header_filter` where they are superseded.
fn cors_filter() -> FilterFactory {
    FilterFactory::new(Cors::full_name(), CorsPolicy::full_name(), |given, _| {
        let mut plugin = Plugin::of(()).access(pass);
        for level in given.overrides {
            let CorsPolicy { max_age, .. } = wire::decode(level)?;
            if max_age == "wrong" {
                return Err(ConfigError::field("max_age", "is wrong"));
            }
            plugin = plugin.log(|(), _, _| {});
        }
        if given.superseded {
            plugin = plugin.header_filter(pass);
        }
        Ok(plugin.build())
    })
    .reads_all_levels()
}

/// A filter without handlers.
fn idle_filter() -> FilterFactory {
    let (own, of_route) = ("Compressor", "CompressorPerRoute");
    let kind = |name: &str| format!("envoy.extensions.filters.http.compressor.v3.{name}");
    FilterFactory::new(kind(own), kind(of_route), |_, _| Ok(Plugin::default()))
}

/// A filter whose routes may say what is no good, whether the listener has it or not.
fn users_filter() -> FilterFactory {
    FilterFactory::new(BasicAuth::full_name(), BasicAuthPerRoute::full_name(), |given, _| {
        for level in given.overrides {
            let BasicAuthPerRoute { users } = wire::decode(level)?;
            users.ok_or_else(|| ConfigError::field("users", "is missing"))?;
        }
        Ok(Plugin::default())
    })
}

const INJECTOR: &str = "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector";

/// A filter that names a secret, as Envoy's injector of credentials does, and nothing else of it.
fn secret_filter() -> FilterFactory {
    FilterFactory::new(INJECTOR.into(), None, |given, context| {
        let CredentialInjector { credential, .. } = wire::decode(given.config)?;
        let Generic { credential, .. } = any::unpack(&credential.unwrap().typed_config.unwrap())?;
        context.secrets.text(&credential.unwrap().encode_to_vec()).in_key("credential")?;
        Ok(Plugin::of(()).access(pass).build())
    })
}

/// That filter with a secret of these fields.
pub(crate) fn injector(secret: &str) -> String {
    format!(
        "{{name: credential, typed_config: {{'@type': type.googleapis.com/{INJECTOR}, credential: {{name: g, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic, \
         credential: {{{secret}}}}}}}}}}}"
    )
}

fn pass<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
    Step::Continue
}

/// The plugins of a chain with their handlers: `web [Access]`.
pub(crate) fn shown(chain: &Chain) -> Vec<String> {
    chain.members().iter().map(|member| format!("{} {:?}", member.name, member.plugin)).collect()
}
