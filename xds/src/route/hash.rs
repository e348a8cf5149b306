//! What is hashed for consistent-hash balancers.

use sixfold_core::error::{ConfigContext, collect};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::route::{HashInput, HashPolicy};
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::HashPolicy as ProtoPolicy;
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::hash_policy::{
    Cookie, Header, PolicySpecifier,
};

use sixfold_xds_api::values::{Result, not_empty, one_of, optional_duration, regex_rewrite};

/// The hash policies of a field.
pub(super) fn policies(values: &[ProtoPolicy], field: &str) -> Result<Box<[HashPolicy]>> {
    let policies = values.iter().enumerate().map(|(index, value)| policy(value).in_index(index));
    // A policy that hashes nothing is left out.
    collect(policies.filter_map(Result::transpose)).in_key(field).map(Vec::into_boxed_slice)
}

fn policy(value: &ProtoPolicy) -> Result<Option<HashPolicy>> {
    let ProtoPolicy { terminal, policy_specifier } = value;
    let input = match one_of::<ProtoPolicy, _>(policy_specifier, "policy_specifier")? {
        PolicySpecifier::Header(Header { header_name: name, regex_rewrite: rewrite }) => {
            let rewrite = rewrite.as_ref().map(regex_rewrite).transpose().in_key("header.regex_rewrite")?;
            HashInput::Header(HeaderTarget::of_request(name), rewrite)
        }
        PolicySpecifier::Cookie(value) => cookie(value).in_key("cookie")?,
        PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => HashInput::SourceIp,
        PolicySpecifier::ConnectionProperties(_) => return Ok(None),
        PolicySpecifier::QueryParameter(parameter) => {
            HashInput::Query(not_empty(&parameter.name, "query_parameter.name")?.into())
        }
        PolicySpecifier::FilterState(object) => {
            HashInput::FilterState(not_empty(&object.key, "filter_state.key")?.into())
        }
    };
    Ok(Some(HashPolicy { input, terminal: *terminal }))
}

fn cookie(value: &Cookie) -> Result<HashInput> {
    let Cookie { name, ttl, path, attributes } = value;
    Ok(HashInput::Cookie {
        name: not_empty(name, "name")?.into(),
        ttl: optional_duration(ttl, "ttl")?,
        path: path.as_str().into(),
        attributes: attributes
            .iter()
            .map(|attribute| (attribute.name.as_str().into(), attribute.value.as_str().into()))
            .collect(),
    })
}
