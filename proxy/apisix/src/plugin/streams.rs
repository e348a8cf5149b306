//! Plugins of stream routes: those that have a part in streams, checked and built for what they do there.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use sixfold_core::error::{ConfigError, collect};
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Registry};

use super::{Catalog, Entry, Meta, PluginConfig, attributes_print, below, names, table};
use crate::config::{EnvVars, PluginNames};
use crate::encryption::EncryptFields;
use crate::resource::Plugins;
use crate::schema::{Schema, Violation};
use crate::secret;
use xxhash_rust::xxh64::xxh64;

/// The plugins of streams that APISIX has, so that a name of one that is not here is told from a typo.
const APISIX: [&str; 6] =
    ["ip-restriction", "limit-conn", "mqtt-proxy", "prometheus", "syslog", "traffic-split"];

/// Those that run where config.yaml lists none.
pub(super) fn by_default() -> impl Iterator<Item = &'static str> {
    APISIX.into_iter().filter(|name| *name != "prometheus")
}

/// The plugins that stream routes may use, by name.
pub(super) type Entries = BTreeMap<&'static str, Entry>;

/// Every plugin of `registry` that has a part in streams and is in `enabled`; `None` enables all.
pub(super) fn entries(
    registry: &Registry,
    enabled: Option<&PluginNames>,
    attributes: &BTreeMap<String, Value>,
) -> Entries {
    let is_enabled = |name: &&str| enabled.is_none_or(|enabled| enabled.contains(*name));
    let entry = |name: &'static str| {
        let (index, factory) = registry.apisix(name)?;
        let schema = Schema::builtin(factory.streams.as_ref()?.schema);
        let attributes = Arc::new(attributes.get(name).cloned().unwrap_or(Value::Null));
        let entry = Entry {
            index,
            factory: factory.clone(),
            schema,
            consumer_schema: None,
            metadata_schema: None,
            attributes,
            encrypted: EncryptFields::default(),
            consumer_encrypted: EncryptFields::default(),
            metadata_encrypted: EncryptFields::default(),
        };
        Some((name, entry))
    };
    registry.apisix_names().filter(is_enabled).filter_map(entry).collect()
}

impl Catalog {
    /// The plugins of streams, by name.
    pub(crate) fn stream_factories(&self) -> impl Iterator<Item = &ApisixFactory> {
        self.streams.values().map(|entry| &*entry.factory)
    }

    /// Checks the plugins of a stream route, in APISIX's words.
    pub(crate) fn check_streams(
        &self,
        plugins: &Plugins,
        environment: &EnvVars,
    ) -> (Vec<PluginConfig>, Vec<Violation>) {
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for (name, config) in plugins {
            match self.check_stream(name, config, environment) {
                Ok(plugin) => accepted.push(plugin),
                Err(violations) => refused.extend(violations.into_iter().map(|fault| below(name, fault))),
            }
        }
        (accepted, refused)
    }

    fn check_stream(
        &self,
        name: &str,
        config: &Value,
        environment: &EnvVars,
    ) -> Result<PluginConfig, Vec<Violation>> {
        let entry = self.streams.get(name).ok_or_else(|| vec![self.unknown_stream(name)])?;
        let print = xxh64(config.to_string().as_bytes(), attributes_print(&entry.attributes));
        let (mut config, meta) = table(name, config)?;
        let right = entry.schema.validate_all(&mut config);
        // What leads to nothing stays as it is written, as in plugins of HTTP.
        let unresolved = secret::resolve_all(&mut config, environment).err().unwrap_or_default();
        let (meta, mut violations) = match meta {
            Ok(meta) => (meta, Vec::new()),
            Err(violations) => (Meta::default(), violations),
        };
        let reworded = |violation: Violation| {
            let message =
                format!("failed to check the configuration of stream plugin [{name}]: {}", violation.message);
            Violation { message, ..violation }
        };
        if !meta.disable {
            violations.extend(right.err().into_iter().flatten().map(reworded));
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        let (factory, attributes) = (entry.factory.clone(), entry.attributes.clone());
        Ok(PluginConfig {
            index: entry.index,
            factory,
            config,
            attributes,
            public_apis: self.public_apis.clone(),
            meta,
            print,
            unresolved: unresolved.into_iter().map(|fault| below(name, fault)).collect(),
        })
    }

    fn unknown_stream(&self, name: &str) -> Violation {
        let hint = if APISIX.contains(&name) {
            Some("not supported yet in streams, or not in the list of stream_plugins".to_owned())
        } else if names::APISIX.contains(&name) {
            Some("it does not work on streams".to_owned())
        } else {
            let known = self.streams.keys().copied().chain(APISIX);
            sixfold_core::error::nearest(name, known).map(|near| format!("did you mean \"{near}\"?"))
        };
        Violation { hint, ..Violation::new(Vec::new(), format!("unknown plugin [{name}]")) }
    }

    /// Of a service's plugins those that its stream routes take over: what is right for HTTP may be wrong there, and is
    /// left out then.
    pub(crate) fn streams_of_service(&self, plugins: &[PluginConfig]) -> Vec<PluginConfig> {
        let of_streams = |plugin: &&PluginConfig| self.streams.contains_key(plugin.factory.name);
        plugins.iter().filter(of_streams).cloned().collect()
    }
}

/// The plugins of a resource as they work on streams.
#[derive(Default)]
pub(crate) struct StreamPlugins {
    members: Vec<Member>,
}

#[derive(Clone)]
struct Member {
    name: &'static str,
    /// Those that look on go first, then the largest priority.
    rank: (bool, i64),
    print: u64,
    /// `None` is one that is switched off: the service's does not run either.
    filter: Option<Arc<dyn ConnectionFilter>>,
}

impl StreamPlugins {
    /// What nearly all resources have.
    pub(crate) fn none() -> Arc<StreamPlugins> {
        static NONE: LazyLock<Arc<StreamPlugins>> = LazyLock::new(Arc::default);
        NONE.clone()
    }

    /// Builds the plugins of the resource with the key `resource` (`/apisix/stream_routes/1`). Those that are configured
    /// as `before` had them are those of `before`.
    ///
    /// # Errors
    /// What is wrong with each plugin, in APISIX's words.
    pub(crate) fn build(
        plugins: &[PluginConfig],
        resource: &str,
        context: &BuildContext,
        before: Option<&Arc<StreamPlugins>>,
    ) -> Result<Arc<StreamPlugins>, ConfigError> {
        if plugins.is_empty() {
            return Ok(StreamPlugins::none());
        }
        let known = before.map(|before| before.members.as_slice()).unwrap_or_default();
        let resource: Arc<str> = resource.into();
        let mut same = known.len() == plugins.len();
        let members = plugins.iter().filter_map(|plugin| {
            let (factory, part) = (&plugin.factory, plugin.factory.streams.as_ref()?);
            if let Some(kept) = known.iter().find(|m| m.name == factory.name && m.print == plugin.print) {
                return Some(Ok(kept.clone()));
            }
            same = false;
            let attributes = plugin.attributes.clone();
            let context = BuildContext { resource: resource.clone(), attributes, ..context.clone() };
            let built = match plugin.meta.disable {
                true => Ok(None),
                false => part.build(&plugin.config, &context).map(Some),
            };
            let name = factory.name;
            let member = built.map(|filter| Member {
                name,
                rank: (!part.looks_on, -factory.priority),
                print: plugin.print,
                filter,
            });
            Some(member.map_err(|error| {
                let words = format!("failed to check the configuration of stream plugin [{name}]: ");
                error.reworded(|reason: &str| format!("{words}{reason}")).in_key(name)
            }))
        });
        let members = collect(members.collect::<Vec<_>>())?;
        match before {
            Some(before) if same => Ok(before.clone()),
            _ => Ok(Arc::new(StreamPlugins { members })),
        }
    }

    /// The same for a service, where a plugin that can't be built is left out.
    pub(crate) fn of_service(
        plugins: &[PluginConfig],
        resource: &str,
        context: &BuildContext,
        before: Option<&Arc<StreamPlugins>>,
    ) -> Arc<StreamPlugins> {
        let buildable = |plugin: &&PluginConfig| {
            let one = std::slice::from_ref(*plugin);
            StreamPlugins::build(one, resource, context, before).is_ok()
        };
        let plugins: Vec<PluginConfig> = plugins.iter().filter(buildable).cloned().collect();
        StreamPlugins::build(&plugins, resource, context, before).unwrap_or_else(|_| StreamPlugins::none())
    }

    /// What runs for a route: its own plugins, and those of the service that it lacks.
    pub(crate) fn filters(&self, service: Option<&StreamPlugins>) -> Arc<[Arc<dyn ConnectionFilter>]> {
        let lacks = |member: &&Member| !self.members.iter().any(|own| own.name == member.name);
        let more = service.into_iter().flat_map(|service| service.members.iter().filter(lacks));
        let mut all: Vec<&Member> = self.members.iter().chain(more).collect();
        all.sort_by_key(|member| member.rank);
        all.into_iter().filter_map(|member| member.filter.clone()).collect()
    }
}
