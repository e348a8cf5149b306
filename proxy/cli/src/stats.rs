//! Envoy's `stats_config`: tags, and which statistics there are.

use crate::Failure;
use regex::Regex as Pattern;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::metrics::{StatsFilter, TagRules};
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher as Rule;
use sixfold_xds_api::pb::envoy::config::metrics::v3::tag_specifier::TagValue;
use sixfold_xds_api::pb::envoy::config::metrics::v3::{StatsConfig, StatsMatcher};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;

fn wrong(field: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new(format!("stats_config: {field}: {reason}"))
}

/// Compiles the configuration; none has Envoy's defaults.
pub(crate) fn tags(config: Option<StatsConfig>) -> Result<TagRules, Failure> {
    let Some(config) = config else { return Ok(TagRules::default()) };
    let mut rules =
        TagRules { defaults: config.use_all_default_tags.is_none_or(|all| all.value), ..TagRules::default() };
    for tag in config.stats_tags {
        match tag.tag_value {
            Some(TagValue::Regex(pattern)) if !pattern.is_empty() => {
                let pattern = Pattern::new(&pattern).map_err(|e| wrong("stats_tags: regex", e))?;
                rules.patterns.push((tag.tag_name, pattern));
            }
            Some(TagValue::FixedValue(value)) => rules.fixed.push((tag.tag_name, value)),
            // Without a value it names one of the default tags, which are all there or none.
            Some(TagValue::Regex(_)) | None => {}
        }
    }
    if let Some(matcher) = config.stats_matcher {
        rules.filter = filter(matcher)?;
    }
    Ok(rules)
}

fn filter(matcher: StatsMatcher) -> Result<StatsFilter, Failure> {
    Ok(match matcher.stats_matcher {
        None | Some(Rule::RejectAll(false)) => StatsFilter::All,
        Some(Rule::RejectAll(true)) => StatsFilter::Nothing,
        Some(Rule::InclusionList(list)) => StatsFilter::Only(matchers(&list)?),
        Some(Rule::ExclusionList(list)) => StatsFilter::Except(matchers(&list)?),
    })
}

fn matchers(list: &ListStringMatcher) -> Result<Vec<StringMatcher>, Failure> {
    list.patterns
        .iter()
        .map(|pattern| matcher::string(pattern).map_err(|e| wrong("stats_matcher", e)))
        .collect()
}
