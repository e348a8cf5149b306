//! Envoy's `stats_config`: tags, and which statistics there are.

use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::metrics::{DefaultTags, StatsFilter, TagPattern, TagRules};
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
        defaults: match use_all_default_tags.as_ref().is_none_or(|all| all.value) {
            true => DefaultTags::All,
            false => DefaultTags::Named(Vec::new()),
        },
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

/// Tags that Envoy finds by itself (source/common/config/well_known_names.cc), also of what has no statistics here.
const DEFAULT_TAGS: [&str; 47] = [
    "cipher_suite",
    "envoy.clientssl_prefix",
    "envoy.cluster_name",
    "envoy.connection_limit_prefix",
    "envoy.dns_filter_prefix",
    "envoy.dynamo_operation",
    "envoy.dynamo_partition_id",
    "envoy.dynamo_table",
    "envoy.ext_authz_prefix",
    "envoy.fault_downstream_cluster",
    "envoy.google_grpc_client_prefix",
    "envoy.grpc_bridge_method",
    "envoy.grpc_bridge_service",
    "envoy.http_conn_manager_prefix",
    "envoy.http_user_agent",
    "envoy.listener_address",
    "envoy.local_http_ratelimit_prefix",
    "envoy.local_listener_ratelimit_prefix",
    "envoy.local_network_ratelimit_prefix",
    "envoy.mongo_callsite",
    "envoy.mongo_cmd",
    "envoy.mongo_collection",
    "envoy.mongo_prefix",
    "envoy.proxy_protocol_prefix",
    "envoy.proxy_protocol_version",
    "envoy.ratelimit_prefix",
    "envoy.rbac_http_prefix",
    "envoy.rbac_policy_name",
    "envoy.rbac_prefix",
    "envoy.rds_route_config",
    "envoy.redis_prefix",
    "envoy.response_code",
    "envoy.response_code_class",
    "envoy.route",
    "envoy.scoped_rds_config",
    "envoy.ssl_cipher",
    "envoy.ssl_curve",
    "envoy.ssl_sigalg",
    "envoy.ssl_version",
    "envoy.tcp_prefix",
    "envoy.thrift_prefix",
    "envoy.tls_certificate",
    "envoy.udp_prefix",
    "envoy.virtual_cluster",
    "envoy.virtual_host",
    "envoy.worker_id",
    "envoy.xds_resource_name",
];

fn add_tag(rules: &mut TagRules, tag: &TagSpecifier) -> Result<()> {
    let TagSpecifier { tag_name, tag_value } = tag;
    match tag_value {
        Some(TagValue::Regex(pattern)) if !pattern.is_empty() => {
            let pattern = TagPattern::new(pattern).map_err(|reason| ConfigError::field("regex", reason))?;
            rules.patterns.push((tag_name.clone(), pattern));
        }
        Some(TagValue::FixedValue(value)) => rules.fixed.push((tag_name.clone(), value.clone())),
        // Without a value it names one of the default tags.
        Some(TagValue::Regex(_)) | None => match &mut rules.defaults {
            _ if !DEFAULT_TAGS.contains(&tag_name.as_str()) => {
                return Err(ConfigError::field("tag_name", "is no default tag, and there is no regex"));
            }
            DefaultTags::All => {}
            DefaultTags::Named(labels) => labels.push(tag_name.replace('.', "_")),
        },
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_xds_api::pb::google::protobuf::BoolValue;

    #[test]
    fn tags_without_a_value_are_default_ones() {
        let config = |name: &str| StatsConfig {
            stats_tags: vec![TagSpecifier { tag_name: name.to_owned(), tag_value: None }],
            use_all_default_tags: Some(BoolValue { value: false }),
            ..StatsConfig::default()
        };
        let tagged = |name: &str| tags(Some(&config(name))).map(|rules| rules.split("cluster.a.x"));
        assert_eq!(tagged("envoy.cluster_name").unwrap().name, "cluster.x");
        for name in ["mine", "envoy.clustername", "envoy.ssl_cipher_suite"] {
            let error = tagged(name).unwrap_err().to_string();
            assert_eq!(error, "stats_tags[0].tag_name: is no default tag, and there is no regex", "{name}");
        }
        assert!(tagged("envoy.mongo_cmd").is_ok() && tagged("cipher_suite").is_ok());
    }
}
