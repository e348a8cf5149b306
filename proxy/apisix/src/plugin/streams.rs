//! Plugins of stream routes: those that have a part in streams, checked and built for what they do there.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use sixfold_core::error::{ConfigError, nearest};
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Registry};

use super::set::renewed;
use super::{Catalog, Entry, On, PluginConfig, names};
use crate::config::PluginNames;
use crate::encryption::EncryptFields;
use crate::schema::{Schema, Violation};

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
    let is_enabled = |name: &&str| enabled.is_none_or(|enabled| enabled.contains(name));
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

    /// Why no stream runs a plugin of this name, as [`Catalog::unknown`].
    pub(super) fn unknown_stream(&self, name: &str) -> Violation {
        let hint = if APISIX.contains(&name) {
            Some("not supported yet in streams, or not in the list of stream_plugins".to_owned())
        } else if names::APISIX.contains(&name) {
            Some("it does not work on streams".to_owned())
        } else {
            let known = self.streams.keys().copied().chain(APISIX);
            nearest(name, known).map(|near| format!("did you mean \"{near}\"?"))
        };
        Violation::unknown_plugin(name, hint)
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
        let resource: Arc<str> = resource.into();
        let known = before.map(|before| before.members.as_slice()).unwrap_or_default();
        let members = renewed(
            plugins,
            known,
            |member| (member.name, member.print),
            |plugin| {
                let name = plugin.factory.name;
                // Nothing else is among the plugins of streams.
                let Some(part) = &plugin.factory.streams else {
                    return Err(ConfigError::new("no plugin of streams"));
                };
                let built = match plugin.meta.disable {
                    true => Ok(None),
                    false => part.build(&plugin.config, &plugin.context(&resource, context)).map(Some),
                };
                let refused = |error: ConfigError| {
                    error.reworded(|reason: &str| On::Streams.words(name, reason)).in_key(name)
                };
                let rank = (!part.looks_on, -plugin.factory.priority);
                Ok(Member { name, rank, print: plugin.print, filter: built.map_err(refused)? })
            },
        )?;
        match (members, before) {
            (None, Some(before)) => Ok(before.clone()),
            (members, _) => Ok(Arc::new(StreamPlugins { members: members.unwrap_or_default() })),
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
