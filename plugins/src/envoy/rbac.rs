//! Envoy's rbac filter (source/extensions/filters/http/rbac/rbac_filter.cc): who may send which request.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::metrics::{self, Registry};
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::rbac::{Rules, ShadowKeys, Verdict};
use sixfold_core::stream::Stream;
use sixfold_xds_api::matching::Data;
use sixfold_xds_api::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as ProtoRbac, RbacPerRoute};
use sixfold_xds_api::rbac;

/// Whose dynamic metadata the results of shadow rules are.
const NAME: &str = "envoy.filters.http.rbac";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.rbac.` and the prefix of the rules, and of a rule behind `policy.NAME.`.
    pub struct RuleStats { counters: [allowed, denied], gauges: [], histograms: [] }
}

sixfold_core::stat_block! {
    /// The same of shadow rules.
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
    Ok(Plugin::of(filter).access(Rbac::access).judging().build())
}

struct Rbac {
    rules: Option<Counted<RuleStats>>,
    shadow: Option<(Counted<ShadowStats>, ShadowKeys)>,
    /// What is never counted is shown too.
    _idle: (Option<RuleStats>, Option<ShadowStats>),
}

/// Rules and what counts their verdicts.
struct Counted<S> {
    rules: Rules,
    stats: S,
    /// Of each of their policies, where that is asked for (`track_per_rule_stats`).
    each: Box<[S]>,
}

/// Statistics of verdicts.
trait Verdicts: Sized {
    fn new(registry: &Registry, prefix: &str) -> Self;
    fn count(&self, allowed: bool);
}

impl Verdicts for RuleStats {
    fn new(registry: &Registry, prefix: &str) -> RuleStats {
        RuleStats::new(registry, prefix)
    }

    fn count(&self, allowed: bool) {
        if allowed { self.allowed().inc() } else { self.denied().inc() }
    }
}

impl Verdicts for ShadowStats {
    fn new(registry: &Registry, prefix: &str) -> ShadowStats {
        ShadowStats::new(registry, prefix)
    }

    fn count(&self, allowed: bool) {
        if allowed { self.shadow_allowed().inc() } else { self.shadow_denied().inc() }
    }
}

impl<S: Verdicts> Counted<S> {
    fn new(rules: Rules, prefix: &str, by_policy: bool, context: &BuildContext) -> Counted<S> {
        let registry = &context.metrics;
        let of = |words: &[&str]| S::new(registry, &metrics::scope(words));
        let policies = by_policy.then(|| rules.names()).into_iter().flatten();
        let each = policies.map(|name| of(&[&context.scope, "rbac", prefix, "policy", name])).collect();
        Counted { stats: of(&[&context.scope, "rbac", prefix]), each, rules }
    }

    fn judge(&self, stream: &Stream) -> Verdict<'_> {
        let verdict = self.rules.judge(stream);
        self.stats.count(verdict.allowed);
        if verdict.policy.is_some()
            && let Some(stats) = self.each.get(verdict.place)
        {
            stats.count(verdict.allowed);
        }
        verdict
    }
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
            track_per_rule_stats: _,
        } = config;
        let data = Data::Request;
        let rules = rbac::engine((rules, "rules"), (matcher, "matcher"), data)?;
        let shadow = rbac::engine((shadow_rules, "shadow_rules"), (shadow_matcher, "shadow_matcher"), data)?;
        let by_policy = own.track_per_rule_stats;
        let scope = |prefix: &str| metrics::scope(&[&context.scope, "rbac", prefix]);
        let idle = rules.is_none().then(|| RuleStats::new(&context.metrics, &scope(&own.rules_stat_prefix)));
        let shadow_prefix = &own.shadow_rules_stat_prefix;
        let idle_shadow = shadow.is_none().then(|| ShadowStats::new(&context.metrics, &scope(shadow_prefix)));
        Ok(Rbac {
            _idle: (idle, idle_shadow),
            rules: rules.map(|rules| Counted::new(rules, &own.rules_stat_prefix, by_policy, context)),
            shadow: shadow.map(|rules| {
                let counted = Counted::new(rules, shadow_prefix, by_policy, context);
                (counted, ShadowKeys::new(NAME, prefix))
            }),
        })
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if let Some((shadow, keys)) = &self.shadow {
            let verdict = shadow.judge(stream);
            keys.note(&verdict, stream);
        }
        let Some(rules) = &self.rules else { return Step::Continue };
        let verdict = rules.judge(stream);
        verdict.hint(stream);
        match verdict.allowed {
            true => Step::Continue,
            false => Step::Respond(LocalReply::new(403, "RBAC: access denied", verdict.details())),
        }
    }
}
