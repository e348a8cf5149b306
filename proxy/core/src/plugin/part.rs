//! Plugins of APISIX as parts of one filter of Envoy.

use super::handlers::Handler;
use super::slot::Stage;
use super::{HeadPhase, Member, Plugin};
use std::sync::Arc;

/// A plugin of APISIX inside a filter of Envoy.
///
/// Envoy's filters have one turn in the request phases. In the turn of their filter the parts do what APISIX does for a
/// route: `rewrite` of all of them, then `access`, each by priority. In the response phases, where filters run in reverse,
/// they keep APISIX's order among themselves.
pub struct Part {
    name: Arc<str>,
    index: u16,
    priority: i64,
    /// Its `rewrite`, if it has one, as a plugin that runs in the filter's turn.
    rewrite: Option<Arc<Plugin>>,
    rest: Arc<Plugin>,
}

impl Part {
    /// The plugin of the `index`-th factory of the registry.
    pub fn new(name: &str, index: u16, priority: i64, plugin: &Plugin) -> Part {
        let is_rewrite = |handler: &&Handler| matches!(handler, Handler::Head(HeadPhase::Rewrite, _));
        let (early, late): (Vec<_>, Vec<_>) = plugin.handlers.iter().partition(is_rewrite);
        let of = |handlers: Vec<&Handler>| Plugin {
            handlers: handlers.into_iter().cloned().map(in_turn).collect(),
            ..Plugin::default()
        };
        let (mut rewrite, mut rest) = ((!early.is_empty()).then(|| of(early)), of(late));
        // What the plugin needs is there from its first turn on.
        let first = rewrite.as_mut().unwrap_or(&mut rest);
        first.owned = plugin.owned.clone();
        first.body_variables.clone_from(&plugin.body_variables);
        first.begins = plugin.begins.clone();
        Part { name: name.into(), index, priority, rewrite: rewrite.map(Arc::new), rest: Arc::new(rest) }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.rewrite.is_none() && self.rest.is_idle()
    }

    /// What it is in the chain, where `filter` stands.
    pub(super) fn placed<'a>(&'a self, filter: &'a Member) -> impl Iterator<Item = Member> + 'a {
        let rewrite = self.rewrite.iter().map(|plugin| (Stage::Rewrite, plugin));
        let rest = Some((Stage::Rest, &self.rest)).filter(|(_, plugin)| !plugin.is_idle());
        rewrite.chain(rest).map(|(stage, plugin)| Member {
            name: format!("{}/{}", filter.name, self.name).into(),
            position: filter.position.part(stage, self.priority, self.index),
            plugin: plugin.clone(),
        })
    }
}

fn in_turn(handler: Handler) -> Handler {
    match handler {
        Handler::Head(HeadPhase::Rewrite, on) => Handler::Head(HeadPhase::Access, on),
        other => other,
    }
}

#[cfg(test)]
mod tests;
