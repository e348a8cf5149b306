//! Envoy's rbac filter (source/extensions/filters/http/rbac/rbac_filter.cc): who may send which request.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::rbac::{Rules, ShadowKeys};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::rbac::v3::Rbac as ProtoRules;
use sixfold_xds_api::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as ProtoRbac, RbacPerRoute};
use sixfold_xds_api::{rbac, refuse};

/// Whose dynamic metadata the results of shadow rules are.
const NAME: &str = "envoy.filters.http.rbac";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.rbac.` and the prefix of the rules.
    pub struct RuleStats { counters: [allowed, denied], gauges: [], histograms: [] }
}

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.rbac.` and the prefix of the shadow rules.
    pub struct ShadowStats { counters: [shadow_allowed, shadow_denied], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(|own: ProtoRbac, overrides, context: &BuildContext| build(&own, overrides, context))
}

/// The most specific configuration holds whole, counted under the prefixes of the filter's own; one without anything in
/// it turns the filter off.
fn build(own: &ProtoRbac, mut overrides: Vec<RbacPerRoute>, context: &BuildContext) -> Built {
    let of_route = overrides.pop();
    let config = match &of_route {
        None => own,
        Some(RbacPerRoute { rbac: Some(of_route) }) => of_route,
        Some(RbacPerRoute { rbac: None }) => return Ok(Plugin::default()),
    };
    let filter = Rbac::new(config, own, context)?;
    if filter.rules.is_none() && filter.shadow.is_none() {
        return Ok(Plugin::default());
    }
    Ok(Plugin::of(filter).access(Rbac::access).build())
}

struct Rbac {
    rules: Option<(Rules, RuleStats)>,
    shadow: Option<Shadow>,
}

/// Rules that only say what they would do.
struct Shadow {
    rules: Rules,
    stats: ShadowStats,
    keys: ShadowKeys,
}

impl Rbac {
    fn new(config: &ProtoRbac, own: &ProtoRbac, context: &BuildContext) -> Result<Rbac, ConfigError> {
        let ProtoRbac {
            rules,
            rules_stat_prefix: _,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix: prefix,
            track_per_rule_stats,
        } = config;
        refuse!(matcher, shadow_matcher, track_per_rule_stats);
        let compiled =
            |value: &Option<ProtoRules>, field| value.as_ref().map(rbac::rules).transpose().in_key(field);
        let scope = |prefix: &str| metrics::scope(&[&context.scope, "rbac", prefix]);
        let rules = compiled(rules, "rules")?
            .map(|rules| (rules, RuleStats::new(&context.metrics, &scope(&own.rules_stat_prefix))));
        let shadow = compiled(shadow_rules, "shadow_rules")?.map(|rules| Shadow {
            rules,
            stats: ShadowStats::new(&context.metrics, &scope(&own.shadow_rules_stat_prefix)),
            keys: ShadowKeys::new(NAME, prefix),
        });
        Ok(Rbac { rules, shadow })
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if let Some(shadow) = &self.shadow {
            shadow.note(stream);
        }
        let Some((rules, stats)) = &self.rules else { return Step::Continue };
        let verdict = rules.judge(stream);
        verdict.hint(stream);
        if verdict.allowed {
            stats.allowed().inc();
            return Step::Continue;
        }
        stats.denied().inc();
        Step::Respond(LocalReply::new(403, "RBAC: access denied", verdict.details()))
    }
}

impl Shadow {
    fn note(&self, stream: &mut Stream) {
        let verdict = self.rules.judge(stream);
        match verdict.allowed {
            true => self.stats.shadow_allowed().inc(),
            false => self.stats.shadow_denied().inc(),
        }
        self.keys.note(&verdict, stream);
    }
}
