//! The plugins of a resource as instances, and the chains that are made of them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sixfold_core::plugin::{BuildContext, Chain, ChainBuilder, Plugin};

use super::PluginConfig;

/// Plugins that stay out of a global rule when the route has them itself (their `run_policy` is
/// `prefer_route` in APISIX).
const PREFER_ROUTE: [&str; 2] = ["prometheus", "skywalking"];

/// How many places of a stream one plugin of a chain may take.
const SLOTS: usize = 2;

/// The plugins of one resource, built.
#[derive(Clone, Default)]
pub(crate) struct PluginSet {
    members: Vec<Member>,
}

/// A plugin with its place in the order.
#[derive(Clone)]
struct Member {
    name: &'static str,
    priority: i64,
    plugin: Arc<dyn Plugin>,
    /// Fingerprint of its configuration.
    print: u64,
}

impl PluginSet {
    /// Builds the plugins of the resource with the key `resource` (`/apisix/routes/1`), which is what
    /// limiters tell their counters apart by. Plugins that are configured as `before` had them are those of
    /// `before`.
    ///
    /// # Errors
    /// The plugin's name and its message.
    pub(crate) fn build(
        plugins: &[PluginConfig],
        resource: &str,
        context: &BuildContext,
        before: Option<&Arc<PluginSet>>,
    ) -> Result<Arc<PluginSet>, (&'static str, String)> {
        let resource: Arc<str> = resource.into();
        let known = before.map(|before| before.members.as_slice()).unwrap_or_default();
        let mut same = known.len() == plugins.len();
        let members = plugins.iter().map(|plugin| {
            let factory = &plugin.factory;
            let kept = known.iter().find(|kept| kept.name == factory.name() && kept.print == plugin.print);
            if let Some(kept) = kept {
                return Ok(kept.clone());
            }
            same = false;
            let context = BuildContext {
                resource: resource.clone(),
                attributes: plugin.attributes.clone(),
                ..context.clone()
            };
            let built =
                factory.build(&plugin.config, &context).map_err(|message| (factory.name(), message))?;
            Ok(Member {
                name: factory.name(),
                priority: plugin.meta.priority.unwrap_or(factory.priority()),
                plugin: plugin.meta.wrap(built),
                print: plugin.print,
            })
        });
        let members = members.collect::<Result<_, _>>()?;
        match before {
            Some(before) if same => Ok(before.clone()),
            _ => Ok(Arc::new(PluginSet { members })),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }

    /// The plugins of several global rules as one: a plugin that two of them have is in neither.
    pub(crate) fn of_global_rules<'a>(rules: impl Iterator<Item = &'a PluginSet>) -> PluginSet {
        let mut members: Vec<Member> = Vec::new();
        let mut repeated: Vec<&str> = Vec::new();
        for member in rules.flat_map(|rule| &rule.members) {
            if members.iter().any(|other| other.name == member.name) {
                repeated.push(member.name);
            } else {
                members.push(member.clone());
            }
        }
        for name in &repeated {
            tracing::error!(plugin = name, "in more than one global rule, so it runs in none");
        }
        members.retain(|member| !repeated.contains(&member.name));
        PluginSet { members }
    }

    /// The same with a plugin of the gateway itself in front of all others.
    pub(crate) fn guarded_by(mut self, guard: Option<Arc<dyn Plugin>>) -> PluginSet {
        self.members.extend(guard.map(|plugin| Member { name: "", priority: i64::MAX, plugin, print: 0 }));
        self
    }

    /// By priority, largest first; the order of equal ones is that of their names, so that it stays.
    fn sorted(&self) -> Vec<&Member> {
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.sort_by_key(|member| (std::cmp::Reverse(member.priority), member.name));
        members
    }
}

/// The plugins of a route: its own, then those of the plugin config that it lacks, then those of the service.
pub(crate) fn merge<'a>(sets: impl Iterator<Item = &'a PluginSet>) -> PluginSet {
    let mut merged = PluginSet::default();
    for set in sets {
        let missing: Vec<Member> = set.members.iter().filter(|m| !merged.has(m.name)).cloned().collect();
        merged.members.extend(missing);
    }
    merged
}

/// Chains by the instances they are made of, so that routes with the same plugins share one.
#[derive(Default)]
pub(crate) struct ChainCache {
    chains: HashMap<Vec<usize>, Weak<Chain>>,
    /// Chains that were left by the last sweep.
    kept: usize,
}

impl ChainCache {
    /// The chain of a route: the global plugins, then the route's, each group by priority. `None` when there
    /// are none.
    pub(crate) fn chain(&mut self, global: &PluginSet, route: &PluginSet) -> Option<Arc<Chain>> {
        let global = global.sorted();
        let global =
            global.iter().filter(|member| !(PREFER_ROUTE.contains(&member.name) && route.has(member.name)));
        let members: Vec<&Member> = global.copied().chain(route.sorted()).collect();
        if members.is_empty() {
            return None;
        }
        // Instances stay alive as long as a chain holds them, so an address means one instance.
        let key: Vec<usize> = members.iter().map(|m| Arc::as_ptr(&m.plugin).cast::<()>() as usize).collect();
        if let Some(chain) = self.chains.get(&key).and_then(Weak::upgrade) {
            return Some(chain);
        }
        let mut builder = ChainBuilder::new();
        for (place, member) in members.iter().enumerate() {
            builder.push_at(place * SLOTS, member.plugin.clone());
        }
        let chain = Arc::new(builder.build());
        self.chains.insert(key, Arc::downgrade(&chain));
        Some(chain)
    }

    /// Forgets chains that nobody holds, once they may be as many as the others.
    pub(crate) fn sweep(&mut self) {
        if self.chains.len() > 2 * self.kept + 16 {
            self.chains.retain(|_, chain| chain.strong_count() > 0);
            self.kept = self.chains.len();
        }
    }
}
