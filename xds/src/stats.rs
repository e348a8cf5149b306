//! Envoy's `stats_config`: tags, and which statistics there are.

use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::metrics::{StatsFilter, TagPattern, TagRules};
use sixfold_xds_api::matcher::strings;
use sixfold_xds_api::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher as Rule;
use sixfold_xds_api::pb::envoy::config::metrics::v3::tag_specifier::TagValue;
use sixfold_xds_api::pb::envoy::config::metrics::v3::{StatsConfig, StatsMatcher, TagSpecifier};
use sixfold_xds_api::values::Result;

/// Compiles the configuration; none has Envoy's defaults.
pub(crate) fn tags(config: Option<&StatsConfig>) -> Result<TagRules> {
    let Some(config) = config else { return Ok(TagRules::default()) };
    let StatsConfig {
        stats_tags,
        use_all_default_tags,
        stats_matcher,
        // Buckets are Envoy's default ones, which is warned of.
        histogram_bucket_settings: _,
        // A tag that is configured always comes before one of the same name by default.
        allow_default_tag_overrides: _,
    } = config;
    if let Some(fault) = without_effect(config) {
        tracing::warn!("stats_config.{fault}");
    }
    let mut rules = TagRules {
        defaults: use_all_default_tags.as_ref().is_none_or(|all| all.value),
        filter: stats_matcher.as_ref().map(filter).transpose().in_key("stats_matcher")?.unwrap_or_default(),
        ..TagRules::default()
    };
    let tags = stats_tags
        .iter()
        .enumerate()
        .map(|(index, tag)| add_tag(&mut rules, tag).in_index(index).in_key("stats_tags"));
    collect(tags)?;
    Ok(rules)
}

/// What is asked for and not done.
pub(crate) fn without_effect(config: &StatsConfig) -> Option<ConfigError> {
    let reason = "has no effect: histograms have Envoy's default buckets";
    let asked = !config.histogram_bucket_settings.is_empty();
    asked.then(|| ConfigError::field("histogram_bucket_settings", reason))
}

fn add_tag(rules: &mut TagRules, tag: &TagSpecifier) -> Result<()> {
    let TagSpecifier { tag_name, tag_value } = tag;
    match tag_value {
        Some(TagValue::Regex(pattern)) if !pattern.is_empty() => {
            let pattern = TagPattern::new(pattern).map_err(|reason| ConfigError::field("regex", reason))?;
            rules.patterns.push((tag_name.clone(), pattern));
        }
        Some(TagValue::FixedValue(value)) => rules.fixed.push((tag_name.clone(), value.clone())),
        // Without a value it names one of the default tags, which are all there or none.
        Some(TagValue::Regex(_)) | None => {}
    }
    Ok(())
}

fn filter(matcher: &StatsMatcher) -> Result<StatsFilter> {
    Ok(match &matcher.stats_matcher {
        None | Some(Rule::RejectAll(false)) => StatsFilter::All,
        Some(Rule::RejectAll(true)) => StatsFilter::Nothing,
        Some(Rule::InclusionList(list)) => StatsFilter::Only(strings(list).in_key("inclusion_list")?),
        Some(Rule::ExclusionList(list)) => StatsFilter::Except(strings(list).in_key("exclusion_list")?),
    })
}
