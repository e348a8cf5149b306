//! `rate_limits` of routes, virtual hosts and filters (config/route/v3 RateLimit).

use crate::pb::envoy::config::route::v3::RateLimit;
use crate::pb::envoy::config::route::v3::rate_limit::action::meta_data::Source;
use crate::pb::envoy::config::route::v3::rate_limit::action::{
    ActionSpecifier, DynamicMetaData, GenericKey, HeaderValueMatch, MaskedRemoteAddress, MetaData,
    QueryParameterValueMatch, QueryParameters, RemoteAddressMatch, RequestHeaders,
};
use crate::pb::envoy::config::route::v3::rate_limit::r#override::{
    DynamicMetadata, OverrideSpecifier, RateLimitOverride,
};
use crate::pb::envoy::config::route::v3::rate_limit::{Action, HitsAddend, Override, XRateLimitOption};
use crate::pb::envoy::r#type::matcher::v3::AddressMatcher;
use crate::pb::envoy::r#type::metadata::v3::MetadataKey;
use crate::pb::envoy::r#type::metadata::v3::metadata_key::{PathSegment, path_segment::Segment};
use crate::pb::envoy::r#type::v3::RateLimitUnit;
use crate::pb::google::protobuf::{BoolValue, UInt32Value};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::rate_limit::{
    HitCount, Hits, Limit, LimitAction, LimitCondition, LimitOverride, LimitPolicy, LimitUnit, MetadataSource,
};
use sixfold_core::runtime::{Fraction, Runtime};
use std::sync::Arc;

use crate::values::{Result, bool_or, enum_value, not_empty, one_of, required, u32_or};
use crate::{any, format, matcher, matching, refuse};

/// The policies of a field. `source` is what this proxy is one of (`node.cluster`).
///
/// # Errors
/// The first thing that is wrong with each.
pub fn policies(
    values: &[RateLimit],
    source: &str,
    runtime: &Runtime,
    field: &str,
) -> Result<Box<[LimitPolicy]>> {
    let each = values.iter().enumerate().map(|(index, value)| policy(value, source, runtime).in_index(index));
    collect(each).in_key(field).map(Vec::into_boxed_slice)
}

fn policy(value: &RateLimit, source: &str, runtime: &Runtime) -> Result<LimitPolicy> {
    let RateLimit {
        stage,
        disable_key,
        actions,
        limit,
        hits_addend,
        apply_on_stream_done,
        x_ratelimit_option,
    } = value;
    refuse!(apply_on_stream_done);
    let stage = u32_or(stage, 0);
    if stage > 10 {
        return Err(ConfigError::field("stage", "must be at most 10"));
    }
    if actions.is_empty() {
        return Err(ConfigError::field("actions", "must not be empty"));
    }
    let actions = actions.iter().enumerate().map(|(index, value)| action(value, source).in_index(index));
    Ok(LimitPolicy {
        stage,
        enabled: (!disable_key.is_empty()).then(|| {
            let key = format!("ratelimit.{disable_key}.http_filter_enabled");
            Fraction::new(runtime.integer(&key, 100), 100)
        }),
        actions: collect(actions).in_key("actions")?.into(),
        limit: limit.as_ref().map(limit_override).transpose().in_key("limit")?,
        hits: hits_addend.as_ref().map(hits).transpose().in_key("hits_addend")?.flatten(),
        x_ratelimit: match enum_value(*x_ratelimit_option, "x_ratelimit_option")? {
            XRateLimitOption::Unspecified => None,
            XRateLimitOption::Off => Some(false),
            XRateLimitOption::DraftVersion03 => Some(true),
        },
    })
}

fn hits(value: &HitsAddend) -> Result<Option<Hits>> {
    let HitsAddend { number, format, is_negative_hits } = value;
    let count = match (number, format.as_str()) {
        (Some(_), format) if !format.is_empty() => {
            return Err(ConfigError::field("format", "must not be given together with number"));
        }
        (Some(number), _) => HitCount::Fixed(number.value),
        (None, "") => return Ok(None),
        (None, format) => HitCount::Format(format::text(format).in_key("format")?),
    };
    Ok(Some(Hits { count, is_negative: *is_negative_hits }))
}

fn limit_override(value: &Override) -> Result<LimitOverride> {
    Ok(match one_of::<Override, _>(&value.override_specifier, "override_specifier")? {
        OverrideSpecifier::DynamicMetadata(DynamicMetadata { metadata_key }) => {
            LimitOverride::Dynamic(path(metadata_key).in_key("dynamic_metadata")?)
        }
        OverrideSpecifier::RateLimit(RateLimitOverride { requests_per_unit, unit }) => {
            let unit = match enum_value(*unit, "unit").in_key("rate_limit")? {
                RateLimitUnit::Unknown => LimitUnit::Unknown,
                RateLimitUnit::Second => LimitUnit::Second,
                RateLimitUnit::Minute => LimitUnit::Minute,
                RateLimitUnit::Hour => LimitUnit::Hour,
                RateLimitUnit::Day => LimitUnit::Day,
                RateLimitUnit::Month => LimitUnit::Month,
                RateLimitUnit::Year => LimitUnit::Year,
            };
            LimitOverride::Fixed(Limit { requests_per_unit: *requests_per_unit, unit })
        }
    })
}

#[allow(deprecated)]
fn action(value: &Action, source: &str) -> Result<LimitAction> {
    let specifier = one_of::<Action, _>(&value.action_specifier, "action_specifier")?;
    match specifier {
        ActionSpecifier::SourceCluster(_) => Ok(LimitAction::SourceCluster(source.into())),
        ActionSpecifier::DestinationCluster(_) => Ok(LimitAction::DestinationCluster),
        ActionSpecifier::RequestHeaders(value) => request_header(value).in_key("request_headers"),
        ActionSpecifier::QueryParameters(value) => query_parameter(value).in_key("query_parameters"),
        ActionSpecifier::RemoteAddress(_) => Ok(LimitAction::RemoteAddress),
        ActionSpecifier::GenericKey(value) => generic_key(value).in_key("generic_key"),
        ActionSpecifier::HeaderValueMatch(value) => header_value_match(value).in_key("header_value_match"),
        ActionSpecifier::DynamicMetadata(value) => dynamic_metadata(value).in_key("dynamic_metadata"),
        ActionSpecifier::Metadata(value) => metadata(value).in_key("metadata"),
        ActionSpecifier::Extension(value) => {
            let config = required(&value.typed_config, "typed_config").in_key("extension")?;
            let kind = any::type_name(config).in_key("typed_config").in_key("extension")?;
            Err(refuse::extension("rate limit descriptor", &value.name, &kind).in_key("extension"))
        }
        ActionSpecifier::MaskedRemoteAddress(value) => masked(value).in_key("masked_remote_address"),
        ActionSpecifier::QueryParameterValueMatch(value) => {
            query_value_match(value).in_key("query_parameter_value_match")
        }
        ActionSpecifier::RemoteAddressMatch(value) => address_match(value).in_key("remote_address_match"),
    }
}

fn request_header(value: &RequestHeaders) -> Result<LimitAction> {
    let RequestHeaders { header_name, descriptor_key, skip_if_absent } = value;
    Ok(LimitAction::RequestHeader {
        header: HeaderTarget::of_request(not_empty(header_name, "header_name")?),
        key: not_empty(descriptor_key, "descriptor_key")?.into(),
        skip_if_absent: *skip_if_absent,
    })
}

fn query_parameter(value: &QueryParameters) -> Result<LimitAction> {
    let QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = value;
    Ok(LimitAction::QueryParameter {
        name: not_empty(query_parameter_name, "query_parameter_name")?.as_bytes().into(),
        key: not_empty(descriptor_key, "descriptor_key")?.into(),
        skip_if_absent: *skip_if_absent,
    })
}

/// A text of a condition, under the key that is given or else its own.
fn text(
    condition: LimitCondition,
    (key, own_key): (&str, &str),
    value: &str,
    default: &str,
) -> Result<LimitAction> {
    Ok(LimitAction::Text {
        condition,
        key: if key.is_empty() { own_key } else { key }.into(),
        value: format::text(not_empty(value, "descriptor_value")?).in_key("descriptor_value")?,
        default: default.into(),
    })
}

fn generic_key(value: &GenericKey) -> Result<LimitAction> {
    let GenericKey { descriptor_value, default_value, descriptor_key } = value;
    text(LimitCondition::Always, (descriptor_key, "generic_key"), descriptor_value, default_value)
}

fn header_value_match(value: &HeaderValueMatch) -> Result<LimitAction> {
    let HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers } = value;
    if headers.is_empty() {
        return Err(ConfigError::field("headers", "must not be empty"));
    }
    let tests = matcher::headers(headers, "headers")?.into();
    let condition = LimitCondition::Headers(tests, wanted(expect_match));
    text(condition, (descriptor_key, "header_match"), descriptor_value, default_value)
}

fn query_value_match(value: &QueryParameterValueMatch) -> Result<LimitAction> {
    let QueryParameterValueMatch {
        descriptor_value,
        default_value,
        descriptor_key,
        expect_match,
        query_parameters,
    } = value;
    if query_parameters.is_empty() {
        return Err(ConfigError::field("query_parameters", "must not be empty"));
    }
    let tests = query_parameters.iter().enumerate().map(|(index, test)| matcher::query(test).in_index(index));
    let tests = collect(tests).in_key("query_parameters")?.into();
    let condition = LimitCondition::Query(tests, wanted(expect_match));
    text(condition, (descriptor_key, "query_match"), descriptor_value, default_value)
}

fn address_match(value: &RemoteAddressMatch) -> Result<LimitAction> {
    let RemoteAddressMatch { descriptor_value, descriptor_key, default_value, address_matcher } = value;
    let AddressMatcher { ranges, invert_match } = required(address_matcher, "address_matcher")?;
    let networks = matching::cidrs(ranges).in_key("address_matcher")?;
    let condition = LimitCondition::Address(networks.into(), !invert_match);
    text(condition, (descriptor_key, "remote_address_match"), descriptor_value, default_value)
}

fn wanted(expect_match: &Option<BoolValue>) -> bool {
    bool_or(expect_match, true)
}

fn masked(value: &MaskedRemoteAddress) -> Result<LimitAction> {
    let MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = value;
    let bits = |value: &Option<UInt32Value>, most: u8, field: &str| {
        let bits = u8::try_from(u32_or(value, u32::from(most))).ok().filter(|bits| *bits <= most);
        bits.ok_or_else(|| ConfigError::field(field, format!("must be at most {most}")))
    };
    Ok(LimitAction::MaskedRemoteAddress {
        v4: bits(v4_prefix_mask_len, 32, "v4_prefix_mask_len")?,
        v6: bits(v6_prefix_mask_len, 128, "v6_prefix_mask_len")?,
    })
}

fn dynamic_metadata(value: &DynamicMetaData) -> Result<LimitAction> {
    let DynamicMetaData { descriptor_key, metadata_key, default_value } = value;
    Ok(LimitAction::Metadata {
        source: MetadataSource::Dynamic,
        path: path(metadata_key)?,
        key: not_empty(descriptor_key, "descriptor_key")?.into(),
        default: default_value.as_str().into(),
        skip_if_absent: false,
    })
}

fn metadata(value: &MetaData) -> Result<LimitAction> {
    let MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent } = value;
    let source = match enum_value(*source, "source")? {
        Source::Dynamic => MetadataSource::Dynamic,
        Source::RouteEntry => MetadataSource::Route,
        Source::ClusterEntry => MetadataSource::Cluster,
        Source::ClusterLocalityEntry => {
            return Err(ConfigError::field("source", "CLUSTER_LOCALITY_ENTRY is not supported"));
        }
    };
    Ok(LimitAction::Metadata {
        source,
        path: path(metadata_key)?,
        key: not_empty(descriptor_key, "descriptor_key")?.into(),
        default: default_value.as_str().into(),
        skip_if_absent: *skip_if_absent,
    })
}

/// Namespace and keys of type/metadata/v3 MetadataKey.
fn path(value: &Option<MetadataKey>) -> Result<Box<[Arc<str>]>> {
    let MetadataKey { key, path } = required(value, "metadata_key")?;
    let keys = path.iter().enumerate().map(|(index, PathSegment { segment })| match segment {
        Some(Segment::Key(key)) => Ok(Arc::from(key.as_str())),
        Some(Segment::Index(_)) => {
            Err(ConfigError::field("index", "is not supported").in_index(index).in_key("path"))
        }
        None => Err(ConfigError::field("key", "is missing").in_index(index).in_key("path")),
    });
    let namespace = not_empty(key, "key").map(Arc::from);
    let path: Vec<Arc<str>> =
        std::iter::once(namespace).chain(keys).collect::<Result<_>>().in_key("metadata_key")?;
    if path.len() < 2 {
        return Err(ConfigError::field("metadata_key.path", "must not be empty"));
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::testing::read;

    fn compile(yaml: &str) -> Result<LimitPolicy> {
        policy(&read(yaml), "me", &Runtime::default())
    }

    #[test]
    fn every_action_is_compiled() {
        let yaml = "{stage: 1, disable_key: k, actions: [{source_cluster: {}}, {destination_cluster: {}}, \
            {request_headers: {header_name: ':path', descriptor_key: p, skip_if_absent: true}}, \
            {query_parameters: {query_parameter_name: q, descriptor_key: q}}, {remote_address: {}}, \
            {masked_remote_address: {v4_prefix_mask_len: 16}}, {generic_key: {descriptor_value: v}}, \
            {header_value_match: {descriptor_value: v, headers: [{name: a}], expect_match: false}}, \
            {query_parameter_value_match: {descriptor_value: v, query_parameters: [{name: a}]}}, \
            {remote_address_match: {descriptor_value: v, address_matcher: {ranges: [{address_prefix: 10.0.0.1, prefix_len: 8}]}}}, \
            {dynamic_metadata: {descriptor_key: d, metadata_key: {key: n, path: [{key: a}, {key: b}]}}}, \
            {metadata: {descriptor_key: d, source: ROUTE_ENTRY, metadata_key: {key: n, path: [{key: a}]}}}], \
            limit: {rate_limit: {requests_per_unit: 5, unit: HOUR}}, hits_addend: {number: 3}, x_ratelimit_option: 'OFF'}";
        let policy = compile(yaml).unwrap();
        assert_eq!((policy.stage, policy.enabled.is_some(), policy.actions.len()), (1, true, 12));
        assert_eq!(policy.x_ratelimit, Some(false));
        let keys = |action: &LimitAction| match action {
            LimitAction::Text { key, .. } => Some(key.to_string()),
            _ => None,
        };
        let own: Vec<String> = policy.actions.iter().filter_map(keys).collect();
        assert_eq!(own, ["generic_key", "header_match", "query_match", "remote_address_match"]);
        assert!(matches!(
            policy.limit,
            Some(LimitOverride::Fixed(Limit { requests_per_unit: 5, unit: LimitUnit::Hour }))
        ));
        assert!(matches!(policy.hits, Some(Hits { count: HitCount::Fixed(3), is_negative: false })));
    }

    /// It was refused, while every other list of ranges cut it as Envoy does.
    #[test]
    fn what_is_too_long_for_an_address_is_cut() {
        let yaml = "{actions: [{remote_address_match: {descriptor_value: v, address_matcher: {ranges: [{address_prefix: 10.0.0.1, prefix_len: 80}]}}}]}";
        let policy = compile(yaml).unwrap();
        let LimitAction::Text { condition: LimitCondition::Address(ranges, true), .. } = &policy.actions[0]
        else {
            panic!("an address");
        };
        assert_eq!(ranges[0].to_string(), "10.0.0.1/32");
    }

    #[test]
    fn what_is_wrong_is_told_by_its_field() {
        for (yaml, wanted) in [
            ("{}", "actions: must not be empty"),
            ("{stage: 11, actions: [{remote_address: {}}]}", "stage: must be at most 10"),
            (
                "{apply_on_stream_done: true, actions: [{remote_address: {}}]}",
                "apply_on_stream_done: is not supported",
            ),
            ("{actions: [{generic_key: {}}]}", "actions[0].generic_key.descriptor_value: must not be empty"),
            (
                "{actions: [{request_headers: {header_name: a}}]}",
                "actions[0].request_headers.descriptor_key: must not be empty",
            ),
            (
                "{actions: [{header_value_match: {descriptor_value: v}}]}",
                "actions[0].header_value_match.headers: must not be empty",
            ),
            (
                "{actions: [{masked_remote_address: {v4_prefix_mask_len: 33}}]}",
                "actions[0].masked_remote_address.v4_prefix_mask_len: must be at most 32",
            ),
            (
                "{actions: [{metadata: {descriptor_key: d, source: CLUSTER_LOCALITY_ENTRY, metadata_key: {key: n, path: [{key: a}]}}}]}",
                "actions[0].metadata.source: CLUSTER_LOCALITY_ENTRY is not supported",
            ),
            (
                "{actions: [{remote_address_match: {descriptor_value: v, address_matcher: {ranges: [{address_prefix: '::1', prefix_len: 80}, {address_prefix: ten}]}}}]}",
                "actions[0].remote_address_match.address_matcher.ranges[1].address_prefix: \"ten\" is no IP address",
            ),
            (
                "{actions: [{metadata: {descriptor_key: d, metadata_key: {key: n}}}]}",
                "actions[0].metadata.metadata_key.path: must not be empty",
            ),
            (
                "{actions: [{extension: {name: e, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}]}",
                "actions[0].extension.typed_config: rate limit descriptor \"e\" of type google.protobuf.Empty is not supported",
            ),
        ] {
            assert_eq!(compile(yaml).map(drop).unwrap_err().to_string(), wanted, "{yaml}");
        }
    }
}
