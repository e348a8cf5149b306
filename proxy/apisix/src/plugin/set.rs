//! The plugins of a resource as instances, and the chains that are made of them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use sixfold_core::error::{ConfigError, collect};
use sixfold_core::format::noticing_bodies;
use sixfold_core::plugin::{
    BuildContext, Chain, ChainBuilder, LocalReply, Member as ChainMember, Part, Plugin, Position, RunPolicy,
    Scope, Slot, Step,
};
use sixfold_core::stream::Stream;

use super::{On, PluginConfig};

/// The plugins of one resource, built.
#[derive(Clone, Default)]
pub(crate) struct PluginSet {
    members: Vec<Member>,
}

/// A plugin with what its place in a chain follows from.
#[derive(Clone)]
struct Member {
    name: &'static str,
    index: u16,
    priority: i64,
    run_policy: RunPolicy,
    /// One that does nothing if it is switched off.
    plugin: Arc<Plugin>,
    /// It is there to take the place of the same plugin of a wider resource (`_meta.disable`).
    disabled: bool,
    /// Fingerprint of its configuration.
    print: u64,
}

impl Member {
    fn placed(&self, scope: Scope) -> ChainMember {
        let position = Position::of_priority(self.index, scope, self.priority);
        ChainMember { name: self.name.into(), position, plugin: self.plugin.clone() }
    }
}

impl PluginSet {
    /// Builds the plugins of the resource with the key `resource` (`/apisix/routes/1`), which is what
    /// limiters tell their counters apart by. Plugins that are configured as `before` had them are those of
    /// `before`.
    ///
    /// # Errors
    /// What is wrong with each plugin, in APISIX's words; the field is its name and the path in its configuration.
    pub(crate) fn build(
        plugins: &[PluginConfig],
        resource: &str,
        context: &BuildContext,
        before: Option<&Arc<PluginSet>>,
    ) -> Result<Arc<PluginSet>, ConfigError> {
        let resource: Arc<str> = resource.into();
        let known = before.map(|before| before.members.as_slice()).unwrap_or_default();
        let members = renewed(
            plugins,
            known,
            |member| (member.name, member.print),
            |plugin| {
                let (factory, name) = (&plugin.factory, plugin.factory.name);
                let context = plugin.context(&resource, context);
                let built = match plugin.meta.disable {
                    true => Plugin::default(),
                    false => {
                        let (built, mut of_body) =
                            noticing_bodies(|| factory.build(&plugin.config, &context));
                        of_body.extend(plugin.meta.body_variables.iter().cloned());
                        let refused = |error: ConfigError| {
                            error.reworded(|reason: &str| On::Requests.words(name, reason)).in_key(name)
                        };
                        built.map_err(refused)?.with_body_variables(of_body)
                    }
                };
                Ok(Member {
                    name,
                    index: plugin.index,
                    priority: plugin.meta.priority.unwrap_or(factory.priority),
                    run_policy: factory.run_policy,
                    plugin: Arc::new(built.guarded(&plugin.meta.guard()).of_resource(context.resource)),
                    disabled: plugin.meta.disable,
                    print: plugin.print,
                })
            },
        )?;
        match (members, before) {
            (None, Some(before)) => Ok(before.clone()),
            (members, _) => Ok(PluginSet::of(members.unwrap_or_default())),
        }
    }

    fn of(members: Vec<Member>) -> Arc<PluginSet> {
        // Most resources have none.
        static NONE: LazyLock<Arc<PluginSet>> = LazyLock::new(Arc::default);
        if members.is_empty() { NONE.clone() } else { Arc::new(PluginSet { members }) }
    }

    /// The plugins as parts of a filter of Envoy.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |member: &Member| Part::new(member.name, member.index, member.priority, &member.plugin);
        self.running().map(part).collect()
    }

    /// The plugins as a consumer brings them to a route: one that is switched off takes away the route's.
    pub(crate) fn brought(&self) -> Vec<ChainMember> {
        self.members.iter().map(|member| member.placed(Scope::Route)).collect()
    }

    fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.disabled)
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
}

/// What a consumer brings whose group is not there: nobody knows which plugins run for it, so its requests get no further.
pub(crate) fn without_group() -> ChainMember {
    static PLUGIN: LazyLock<Arc<Plugin>> =
        LazyLock::new(|| Arc::new(Plugin::of(WithoutGroup).access(WithoutGroup::access).build()));
    let position = Position::of_priority(0, Scope::Gateway, 0);
    ChainMember { name: "consumer group".into(), position, plugin: PLUGIN.clone() }
}

struct WithoutGroup;

impl WithoutGroup {
    fn access<'a>(&'a self, _: &'a mut Stream, _: Slot) -> Step<'a> {
        Step::Respond(LocalReply::new(503, "", "consumer_group_not_found"))
    }
}

/// Builds plugins; those that are configured as before are those of `known`, which `print` tells the names and configurations
/// of. `None` if all of them are.
///
/// # Errors
/// What is wrong with each plugin.
pub(super) fn renewed<M: Clone>(
    plugins: &[PluginConfig],
    known: &[M],
    print: impl Fn(&M) -> (&'static str, u64),
    build: impl Fn(&PluginConfig) -> Result<M, ConfigError>,
) -> Result<Option<Vec<M>>, ConfigError> {
    let mut same = known.len() == plugins.len();
    let members = plugins.iter().map(|plugin| {
        let kept = known.iter().find(|member| print(member) == (plugin.factory.name, plugin.print));
        same &= kept.is_some();
        kept.map_or_else(|| build(plugin), |kept| Ok(kept.clone()))
    });
    let members = collect(members)?;
    Ok((!same).then_some(members))
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

/// What runs for every request: the global rules, behind a plugin of the gateway itself.
#[derive(Clone, Default)]
pub(crate) struct GlobalPlugins {
    gateway: Option<Arc<Plugin>>,
    rules: PluginSet,
}

impl GlobalPlugins {
    pub(crate) fn new(gateway: Option<Plugin>, rules: PluginSet) -> GlobalPlugins {
        GlobalPlugins { gateway: gateway.map(Arc::new), rules }
    }

    /// In a chain with the plugins of a route.
    fn placed<'a>(&'a self, route: &'a PluginSet) -> impl Iterator<Item = ChainMember> + 'a {
        let gateway = self.gateway.iter().map(|plugin| ChainMember {
            name: "".into(),
            position: Position::of_priority(0, Scope::Gateway, 0),
            plugin: plugin.clone(),
        });
        let is_alone = |member: &&Member| !route.running().any(|own| own.name == member.name);
        let runs = move |member: &&Member| member.run_policy == RunPolicy::Both || is_alone(member);
        gateway.chain(self.rules.running().filter(runs).map(|member| member.placed(Scope::Global)))
    }
}

/// Chains by the instances they are made of, so that routes with the same plugins share one.
#[derive(Default)]
pub(crate) struct ChainCache {
    chains: HashMap<Vec<(Position, usize)>, Weak<Chain>>,
    /// Chains that were left by the last sweep.
    kept: usize,
}

impl ChainCache {
    /// The chain of a route: the global plugins, then the route's, each group by priority. `None` when there
    /// are none.
    pub(crate) fn chain(&mut self, global: &GlobalPlugins, route: &PluginSet) -> Option<Arc<Chain>> {
        let own = route.running().map(|member| member.placed(Scope::Route));
        let members: Vec<ChainMember> = global.placed(route).chain(own).collect();
        if members.is_empty() {
            return None;
        }
        // Instances stay alive as long as a chain holds them, so an address means one instance.
        let key = |member: &ChainMember| (member.position, Arc::as_ptr(&member.plugin) as usize);
        let mut key: Vec<(Position, usize)> = members.iter().map(key).collect();
        key.sort_unstable();
        if let Some(chain) = self.chains.get(&key).and_then(Weak::upgrade) {
            return Some(chain);
        }
        let mut builder = ChainBuilder::new();
        members.into_iter().for_each(|member| builder.push(member));
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
