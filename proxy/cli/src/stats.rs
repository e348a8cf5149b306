//! Envoy's `stats_config`: tags, and which statistics there are.

use crate::Failure;
use regex::Regex as Pattern;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::metrics::{StatsFilter, TagRules};
use sixfold_core::regex::Regex;
use sixfold_xds_api::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher as Rule;
use sixfold_xds_api::pb::envoy::config::metrics::v3::tag_specifier::TagValue;
use sixfold_xds_api::pb::envoy::config::metrics::v3::{StatsConfig, StatsMatcher};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::{ListStringMatcher, StringMatcher as Proto};

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
        Some(Rule::InclusionList(list)) => StatsFilter::Only(matchers(list)?),
        Some(Rule::ExclusionList(list)) => StatsFilter::Except(matchers(list)?),
    })
}

fn matchers(list: ListStringMatcher) -> Result<Vec<StringMatcher>, Failure> {
    list.patterns.into_iter().map(string_matcher).collect()
}

fn string_matcher(proto: Proto) -> Result<StringMatcher, Failure> {
    let ignore_case = proto.ignore_case;
    let bytes = |text: String| text.into_bytes().into_boxed_slice();
    Ok(match proto.match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatcher::Exact(bytes(text), ignore_case),
        Some(MatchPattern::Prefix(text)) => StringMatcher::Prefix(bytes(text), ignore_case),
        Some(MatchPattern::Suffix(text)) => StringMatcher::Suffix(bytes(text), ignore_case),
        Some(MatchPattern::Contains(text)) => StringMatcher::contains(&text, ignore_case),
        Some(MatchPattern::SafeRegex(regex)) => StringMatcher::Regex(
            Regex::full(&regex.regex).map_err(|e| wrong("stats_matcher: safe_regex", e))?,
        ),
        _ => return Err(wrong("stats_matcher", "this kind of matcher is not supported")),
    })
}
