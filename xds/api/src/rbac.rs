//! config/rbac/v3 RBAC: policies of filters for requests and for connections.

use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::rbac::{Action, Condition, Policy, Rules};
use sixfold_core::router::Template;

use crate::matcher;
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::rbac::v3 as proto;
use crate::pb::envoy::config::rbac::v3::permission::Rule;
use crate::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use crate::pb::envoy::r#type::matcher::v3::{MetadataMatcher, PathMatcher, path_matcher};
use crate::refuse;
use crate::values::{Result, cidr, enum_value, one_of, required};

/// Rules.
///
/// # Errors
/// The field and the reason.
pub fn rules(value: &proto::Rbac) -> Result<Rules> {
    let proto::Rbac { action, policies, audit_logging_options } = value;
    refuse!(audit_logging_options);
    let action = match enum_value(*action, "action")? {
        proto::rbac::Action::Allow => Action::Allow,
        proto::rbac::Action::Deny => Action::Deny,
        proto::rbac::Action::Log => Action::Log,
    };
    // In the order of names, so that of two faults it is always the same that is told.
    let mut names: Vec<_> = policies.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let compiled = names.into_iter().map(|(name, value)| {
        let policy = policy(value).in_key(name).in_key("policies")?;
        Ok((Arc::from(name.as_str()), policy))
    });
    Ok(Rules::new(action, compiled.collect::<Result<_>>()?))
}

fn policy(value: &proto::Policy) -> Result<Policy> {
    let proto::Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    refuse!(condition, checked_condition, cel_config);
    Ok(Policy {
        permissions: Condition::Any(several(permissions, permission).in_key("permissions")?),
        principals: Condition::Any(several(principals, principal).in_key("principals")?),
    })
}

/// Conditions of which there must be one.
fn several<T>(values: &[T], compile: fn(&T) -> Result<Condition>) -> Result<Box<[Condition]>> {
    if values.is_empty() {
        return Err(ConfigError::new("must not be empty"));
    }
    values.iter().enumerate().map(|(index, value)| compile(value).in_index(index)).collect()
}

fn permission(value: &proto::Permission) -> Result<Condition> {
    Ok(match one_of::<proto::Permission, _>(&value.rule, "rule")? {
        Rule::AndRules(set) => Condition::All(several(&set.rules, permission).in_key("and_rules.rules")?),
        Rule::OrRules(set) => Condition::Any(several(&set.rules, permission).in_key("or_rules.rules")?),
        Rule::NotRule(rule) => Condition::Not(Box::new(permission(rule).in_key("not_rule")?)),
        Rule::Any(any) => always(*any)?,
        Rule::Header(header) => Condition::Header(matcher::header(header).in_key("header")?.into()),
        Rule::UrlPath(path) => self::path(path)?,
        Rule::DestinationIp(range) => Condition::Destination(cidr(range).in_key("destination_ip")?),
        Rule::DestinationPort(port @ 0..=65_535) => Condition::DestinationPort(*port..*port + 1),
        Rule::DestinationPort(_) => {
            return Err(ConfigError::field("destination_port", "must be at most 65535"));
        }
        Rule::DestinationPortRange(range) => {
            let port = |value: i32, field| match u32::try_from(value) {
                Ok(port @ ..=65_536) => Ok(port),
                _ => Err(ConfigError::field(field, "must be a port").in_key("destination_port_range")),
            };
            Condition::DestinationPort(port(range.start, "start")?..port(range.end, "end")?)
        }
        Rule::RequestedServerName(name) => {
            Condition::ServerName(matcher::string(name).in_key("requested_server_name")?)
        }
        Rule::Metadata(value) => metadata(value)?,
        Rule::SourcedMetadata(value) => sourced(value)?,
        Rule::Matcher(_) => return unsupported("matcher"),
        Rule::UriTemplate(value) => Condition::PathTemplate(template(value).in_key("uri_template")?.into()),
    })
}

fn principal(value: &proto::Principal) -> Result<Condition> {
    Ok(match one_of::<proto::Principal, _>(&value.identifier, "identifier")? {
        Identifier::AndIds(set) => Condition::All(several(&set.ids, principal).in_key("and_ids.ids")?),
        Identifier::OrIds(set) => Condition::Any(several(&set.ids, principal).in_key("or_ids.ids")?),
        Identifier::NotId(id) => Condition::Not(Box::new(principal(id).in_key("not_id")?)),
        Identifier::Any(any) => always(*any)?,
        Identifier::Authenticated(Authenticated { principal_name }) => {
            let name = principal_name.as_ref().map(matcher::string).transpose();
            Condition::Authenticated(name.in_key("principal_name").in_key("authenticated")?)
        }
        Identifier::SourceIp(range) => Condition::Source(cidr(range).in_key("source_ip")?),
        Identifier::DirectRemoteIp(range) => Condition::DirectRemote(cidr(range).in_key("direct_remote_ip")?),
        Identifier::RemoteIp(range) => Condition::Remote(cidr(range).in_key("remote_ip")?),
        Identifier::Header(header) => Condition::Header(matcher::header(header).in_key("header")?.into()),
        Identifier::UrlPath(path) => self::path(path)?,
        Identifier::Metadata(value) => metadata(value)?,
        Identifier::SourcedMetadata(value) => sourced(value)?,
        Identifier::FilterState(_) => return unsupported("filter_state"),
        Identifier::Custom(_) => return unsupported("custom"),
    })
}

fn unsupported(field: &str) -> Result<Condition> {
    Err(ConfigError::field(field, "is not supported"))
}

/// rbac.proto: `const: true`.
fn always(any: bool) -> Result<Condition> {
    if any { Ok(Condition::Always) } else { Err(ConfigError::field("any", "must be true")) }
}

fn path(value: &PathMatcher) -> Result<Condition> {
    let compiled = || -> Result<StringMatcher> {
        let path_matcher::Rule::Path(path) = one_of::<PathMatcher, _>(&value.rule, "rule")?;
        matcher::string(path).in_key("path")
    };
    Ok(Condition::Path(compiled().in_key("url_path")?))
}

fn metadata(value: &MetadataMatcher) -> Result<Condition> {
    Ok(Condition::Metadata(matcher::metadata(value).in_key("metadata")?.into()))
}

/// Metadata of routes has no place here: nobody is told apart by it.
fn sourced(value: &proto::SourcedMetadata) -> Result<Condition> {
    let proto::SourcedMetadata { metadata_matcher, metadata_source } = value;
    let compiled = || {
        refuse!(metadata_source);
        let test = required(metadata_matcher, "metadata_matcher")?;
        matcher::metadata(test).in_key("metadata_matcher")
    };
    Ok(Condition::Metadata(compiled().in_key("sourced_metadata")?.into()))
}

fn template(value: &TypedExtensionConfig) -> Result<Template> {
    let text = matcher::path_template(value)?;
    Template::parse(&text).map_err(|reason| ConfigError::field("typed_config", reason))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::read;

    fn compiled(policy: &str) -> std::result::Result<String, String> {
        let rules = rules(&read(&format!("action: DENY\npolicies: {{p: {{{policy}}}}}\n")));
        rules.map(|rules| format!("{rules:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_condition_reaches_the_rules() {
        let all = "permissions: [{and_rules: {rules: [{any: true}, {header: {name: x, present_match: true}}, {url_path: {path: {prefix: /a}}}, {destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {destination_port: 80}, {destination_port_range: {start: 1, end: 9}}, {requested_server_name: {exact: s}}, {metadata: {filter: f, path: [{key: a}, {key: b}], value: {or_match: {value_matchers: [{list_match: {one_of: {string_match: {exact: shop}}}}, {double_match: {range: {start: 1, end: 2}}}]}}, invert: true}}, {uri_template: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/{b}/**'}}}]}}, {or_rules: {rules: [{not_rule: {any: true}}]}}], principals: [{and_ids: {ids: [{any: true}, {authenticated: {principal_name: {exact: n}}}, {authenticated: {}}, {source_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {direct_remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {header: {name: x, present_match: true}}, {url_path: {path: {exact: /b}}}, {sourced_metadata: {metadata_matcher: {filter: f, path: [{key: a}], value: {present_match: true}}}}]}}, {or_ids: {ids: [{not_id: {any: true}}]}}]";
        let shown = compiled(all).unwrap();
        for part in [
            "Deny",
            "Always",
            "Header(",
            "Path(Prefix(",
            "Destination(10.0.0.0/8)",
            "DestinationPort(80..81)",
            "DestinationPort(1..9)",
            "ServerName(",
            "PathTemplate(",
            "Not(Always)",
            "Authenticated(Some(",
            "Authenticated(None)",
            "Source(",
            "DirectRemote(",
            "Remote(",
            "Path(Exact(",
            "Metadata(MetadataMatcher { namespace: \"f\", key: \"a\", path: [\"b\"], value: Any([OneOf(Text(",
            "Within(1.0..2.0)",
            "Present(true), invert: false",
            "Any([",
            "All([",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn what_must_be_refused_is_refused_by_name() {
        let any = "principals: [{any: true}]";
        for (policy, expected) in [
            ("permissions: [], principals: [{any: true}]".to_owned(), "permissions: must not be empty"),
            (format!("permissions: [{{any: false}}], {any}"), "permissions[0].any: must be true"),
            (
                format!("permissions: [{{or_rules: {{rules: [{{metadata: {{filter: f}}}}]}}}}], {any}"),
                "permissions[0].or_rules.rules[0].metadata.path: is missing",
            ),
            (
                format!("permissions: [{{sourced_metadata: {{metadata_source: ROUTE}}}}], {any}"),
                "permissions[0].sourced_metadata.metadata_source: is not supported",
            ),
            (
                format!("permissions: [{{destination_port: 65536}}], {any}"),
                "permissions[0].destination_port: must be at most 65535",
            ),
            (
                format!(
                    "permissions: [{{uri_template: {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: 'a'}}}}}}], {any}"
                ),
                "permissions[0].uri_template.typed_config: path_template \"a\": must begin with / and hold visible ASCII characters alone",
            ),
            (format!("permissions: [{{any: true}}], {any}, condition: {{}}"), "condition: is not supported"),
        ] {
            assert_eq!(compiled(&policy).unwrap_err(), format!("policies.p.{expected}"), "{policy}");
        }
    }
}
