//! config/rbac/v3 RBAC: policies of filters for requests and for connections.

use std::sync::Arc;

use prost::Name;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::rbac::{Action, Condition, Policy, Rules, SanKind};
use sixfold_core::router::Template;

use crate::matching::{self, Data};
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::rbac::v3 as proto;
use crate::pb::envoy::config::rbac::v3::permission::Rule;
use crate::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use crate::pb::envoy::config::rbac::v3::rbac::{
    AuditLoggingOptions, audit_logging_options::AuditLoggerConfig,
};
use crate::pb::envoy::config::route::v3::HeaderMatcher;
use crate::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as MtlsAuthenticated;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::SubjectAltNameMatcher;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use crate::pb::envoy::r#type::matcher::v3::{
    AddressMatcher, FilterStateMatcher, MetadataMatcher, PathMatcher, filter_state_matcher, path_matcher,
};
use crate::pb::envoy::r#type::v3::Int32Range;
use crate::pb::xds::core::v3::TypedExtensionConfig as TreeExtension;
use crate::pb::xds::r#type::matcher::v3::Matcher;
use crate::values::{Result, cidr, enum_value, not_empty, one_of, required};
use crate::{any, cel, matcher, refuse};

/// Rules, or what the tree in their place says (`rules` and `matcher`); a tree goes first, as in Envoy.
///
/// # Errors
/// The field and the reason. Of a connection there are no headers, so that rules about them are refused.
pub fn engine(
    rules: (&Option<proto::Rbac>, &'static str),
    matcher: (&Option<Matcher>, &'static str),
    data: Data,
) -> Result<Option<Rules>> {
    match (matcher, rules) {
        ((Some(value), field), _) => tree(value, data).map(Some).in_key(field),
        (_, (Some(value), field)) => self::rules(value, data).map(Some).in_key(field),
        _ => Ok(None),
    }
}

fn tree(value: &Matcher, data: Data) -> Result<Rules> {
    Rules::of_tree(|actions| {
        let mut act = |value: &TreeExtension| {
            let TreeExtension { name, typed_config } = value;
            let config = required(typed_config, "typed_config")?;
            let kind = any::type_name(config).in_key("typed_config")?;
            if kind != proto::Action::full_name() {
                return Err(refuse::extension("action", name, &kind));
            }
            let mut compiled = || -> Result<_> {
                let proto::Action { name, action } = any::unpack(config)?;
                Ok(actions.action(not_empty(&name, "name")?, self::action(action)?))
            };
            compiled().in_key("typed_config")
        };
        matching::tree(value, data, &mut act)
    })
}

fn rules(value: &proto::Rbac, data: Data) -> Result<Rules> {
    let proto::Rbac { action, policies, audit_logging_options } = value;
    audit_logging(audit_logging_options).in_key("audit_logging_options")?;
    let action = self::action(*action)?;
    // In the order of names, so that of two faults it is always the same that is told.
    let mut names: Vec<_> = policies.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let compiled = names.into_iter().map(|(name, value)| {
        let policy = policy(value, data).in_key(name).in_key("policies")?;
        Ok((Arc::from(name.as_str()), policy))
    });
    Ok(Rules::new(action, compiled.collect::<Result<_>>()?))
}

/// There is no audit logger, here as in Envoy; without one the condition changes nothing.
fn audit_logging(value: &Option<AuditLoggingOptions>) -> Result<()> {
    let Some(AuditLoggingOptions { audit_condition: _, logger_configs }) = value else { return Ok(()) };
    for (index, value) in logger_configs.iter().enumerate() {
        let AuditLoggerConfig { audit_logger, is_optional } = value;
        if !is_optional {
            let reason = match audit_logger {
                Some(logger) => format!("there is no audit logger \"{}\"", logger.name),
                None => "is missing".to_owned(),
            };
            return Err(ConfigError::field("audit_logger", reason).in_index(index).in_key("logger_configs"));
        }
    }
    Ok(())
}

fn action(value: i32) -> Result<Action> {
    Ok(match enum_value(value, "action")? {
        proto::rbac::Action::Allow => Action::Allow,
        proto::rbac::Action::Deny => Action::Deny,
        proto::rbac::Action::Log => Action::Log,
    })
}

fn policy(value: &proto::Policy, data: Data) -> Result<Policy> {
    let proto::Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    let extras = cel::extras(cel_config);
    let condition = match (condition, checked_condition) {
        (Some(value), _) => Some(cel::expr(value, extras).in_key("condition")?),
        (None, Some(value)) => Some(cel::checked(value, extras).in_key("checked_condition")?),
        (None, None) => None,
    };
    Ok(Policy {
        permissions: Condition::Any(several(permissions, data, permission).in_key("permissions")?),
        principals: Condition::Any(several(principals, data, principal).in_key("principals")?),
        condition,
    })
}

/// Conditions of which there must be one.
fn several<T>(
    values: &[T],
    data: Data,
    compile: fn(&T, Data) -> Result<Condition>,
) -> Result<Box<[Condition]>> {
    if values.is_empty() {
        return Err(ConfigError::new("must not be empty"));
    }
    values.iter().enumerate().map(|(index, value)| compile(value, data).in_index(index)).collect()
}

/// A header of a request; those of connections, which have none, are refused as in Envoy.
fn header(value: &HeaderMatcher, data: Data) -> Result<Condition> {
    if data != Data::Request {
        return Err(ConfigError::field("header", "a connection has no headers"));
    }
    Ok(Condition::Header(matcher::header(value).in_key("header")?.into()))
}

fn permission(value: &proto::Permission, data: Data) -> Result<Condition> {
    Ok(match one_of::<proto::Permission, _>(&value.rule, "rule")? {
        Rule::AndRules(set) => {
            Condition::All(several(&set.rules, data, permission).in_key("and_rules.rules")?)
        }
        Rule::OrRules(set) => Condition::Any(several(&set.rules, data, permission).in_key("or_rules.rules")?),
        Rule::NotRule(rule) => Condition::Not(Box::new(permission(rule, data).in_key("not_rule")?)),
        Rule::Any(any) => always(*any)?,
        Rule::Header(value) => header(value, data)?,
        Rule::UrlPath(path) => self::path(path)?,
        Rule::DestinationIp(range) => Condition::Destination(cidr(range).in_key("destination_ip")?),
        Rule::DestinationPort(port @ 0..=65_535) => Condition::DestinationPort(*port..*port + 1),
        Rule::DestinationPort(_) => {
            return Err(ConfigError::field("destination_port", "must be at most 65535"));
        }
        Rule::DestinationPortRange(range) => ports(range).in_key("destination_port_range")?,
        Rule::RequestedServerName(name) => {
            Condition::ServerName(matcher::string(name).in_key("requested_server_name")?)
        }
        Rule::Metadata(value) => metadata(value)?,
        Rule::SourcedMetadata(value) => sourced(value)?,
        Rule::Matcher(_) => return unsupported("matcher"),
        Rule::UriTemplate(value) => Condition::PathTemplate(template(value).in_key("uri_template")?.into()),
    })
}

fn principal(value: &proto::Principal, data: Data) -> Result<Condition> {
    Ok(match one_of::<proto::Principal, _>(&value.identifier, "identifier")? {
        Identifier::AndIds(set) => Condition::All(several(&set.ids, data, principal).in_key("and_ids.ids")?),
        Identifier::OrIds(set) => Condition::Any(several(&set.ids, data, principal).in_key("or_ids.ids")?),
        Identifier::NotId(id) => Condition::Not(Box::new(principal(id, data).in_key("not_id")?)),
        Identifier::Any(any) => always(*any)?,
        Identifier::Authenticated(Authenticated { principal_name }) => {
            let name = principal_name.as_ref().map(matcher::string).transpose();
            Condition::Authenticated(name.in_key("principal_name").in_key("authenticated")?)
        }
        Identifier::SourceIp(range) => Condition::Source(cidr(range).in_key("source_ip")?),
        Identifier::DirectRemoteIp(range) => Condition::DirectRemote(cidr(range).in_key("direct_remote_ip")?),
        Identifier::RemoteIp(range) => Condition::Remote(cidr(range).in_key("remote_ip")?),
        Identifier::Header(value) => header(value, data)?,
        Identifier::UrlPath(path) => self::path(path)?,
        Identifier::Metadata(value) => metadata(value)?,
        Identifier::SourcedMetadata(value) => sourced(value)?,
        Identifier::FilterState(value) => filter_state(value).in_key("filter_state")?,
        Identifier::Custom(value) => custom(value).in_key("custom")?,
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

fn sourced(value: &proto::SourcedMetadata) -> Result<Condition> {
    let proto::SourcedMetadata { metadata_matcher, metadata_source } = value;
    let compiled = || {
        let source = enum_value(*metadata_source, "metadata_source")?;
        let test = required(metadata_matcher, "metadata_matcher")?;
        let test = matcher::metadata(test).in_key("metadata_matcher")?.into();
        Ok(match source {
            proto::MetadataSource::Dynamic => Condition::Metadata(test),
            proto::MetadataSource::Route => Condition::RouteMetadata(test),
        })
    };
    compiled().in_key("sourced_metadata")
}

/// type/v3/range.proto Int32Range of ports, as far as Envoy takes it.
fn ports(value: &Int32Range) -> Result<Condition> {
    let Int32Range { start, end } = value;
    let port = |value: i32, field| match u32::try_from(value) {
        Ok(port @ ..=65_536) => Ok(port),
        _ => Err(ConfigError::field(field, "must be a port")),
    };
    let (start, end) = (port(*start, "start")?, port(*end, "end")?);
    if start >= end {
        return Err(ConfigError::field("end", "must be greater than start"));
    }
    Ok(Condition::DestinationPort(start..end))
}

fn filter_state(value: &FilterStateMatcher) -> Result<Condition> {
    let FilterStateMatcher { key, matcher: test } = value;
    let key = not_empty(key, "key")?.into();
    Ok(match one_of::<FilterStateMatcher, _>(test, "matcher")? {
        filter_state_matcher::Matcher::StringMatch(test) => {
            Condition::FilterState(key, matcher::string(test).in_key("string_match")?)
        }
        filter_state_matcher::Matcher::AddressMatch(AddressMatcher { ranges, invert_match }) => {
            let ranges = matching::cidrs(ranges).in_key("address_match")?;
            Condition::FilterStateAddress(key, ranges.into(), *invert_match)
        }
    })
}

/// `envoy.rbac.principals.mtls_authenticated`, the only principal of its kind.
fn custom(value: &TypedExtensionConfig) -> Result<Condition> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind != MtlsAuthenticated::full_name() {
        return Err(refuse::extension("principal", name, &kind));
    }
    let compiled = || {
        let MtlsAuthenticated { san_matcher, any_validated_client_certificate } = any::unpack(config)?;
        match &san_matcher {
            Some(value) => san(value).in_key("san_matcher").map(|san| Condition::Verified(Some(san))),
            None if any_validated_client_certificate => Ok(Condition::Verified(None)),
            None => Err(ConfigError::new("one of san_matcher, any_validated_client_certificate is missing")),
        }
    };
    compiled().in_key("typed_config")
}

fn san(value: &SubjectAltNameMatcher) -> Result<(SanKind, StringMatcher)> {
    let SubjectAltNameMatcher { san_type, matcher: test, oid } = value;
    let kind = match enum_value(*san_type, "san_type")? {
        SanType::Dns => SanKind::Dns,
        SanType::Email => SanKind::Email,
        SanType::IpAddress => SanKind::Ip,
        SanType::Uri => SanKind::Uri,
        SanType::OtherName => return Err(ConfigError::field("san_type", "OTHER_NAME is not supported")),
        SanType::Unspecified => return Err(ConfigError::field("san_type", "is missing")),
    };
    refuse!(oid);
    Ok((kind, matcher::string(required(test, "matcher")?).in_key("matcher")?))
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
        let value = read(&format!("action: DENY\npolicies: {{p: {{{policy}}}}}\n"));
        let rules = rules(&value, Data::Request);
        rules.map(|rules| format!("{rules:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_condition_reaches_the_rules() {
        let all = "permissions: [{and_rules: {rules: [{any: true}, {header: {name: x, present_match: true}}, {url_path: {path: {prefix: /a}}}, {destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {destination_port: 80}, {destination_port_range: {start: 1, end: 9}}, {requested_server_name: {exact: s}}, {metadata: {filter: f, path: [{key: a}, {key: b}], value: {or_match: {value_matchers: [{list_match: {one_of: {string_match: {exact: shop}}}}, {double_match: {range: {start: 1, end: 2}}}]}}, invert: true}}, {uri_template: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/{b}/**'}}}]}}, {or_rules: {rules: [{not_rule: {any: true}}]}}], principals: [{and_ids: {ids: [{any: true}, {authenticated: {principal_name: {exact: n}}}, {authenticated: {}}, {source_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {direct_remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {header: {name: x, present_match: true}}, {url_path: {path: {exact: /b}}}, {sourced_metadata: {metadata_matcher: {filter: f, path: [{key: a}], value: {present_match: true}}}}, {sourced_metadata: {metadata_matcher: {filter: f, path: [{key: a}], value: {present_match: true}}, metadata_source: ROUTE}}, {filter_state: {key: k, string_match: {exact: v}}}, {filter_state: {key: k, address_match: {ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}], invert_match: true}}}, {custom: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, san_matcher: {san_type: URI, matcher: {prefix: 'spiffe://'}}}}}]}}, {or_ids: {ids: [{not_id: {any: true}}]}}]";
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
            "RouteMetadata(",
            "FilterState(\"k\", Exact(",
            "FilterStateAddress(\"k\", [10.0.0.0/8], true)",
            "Verified(Some((Uri, Prefix(",
            "Any([",
            "All([",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn headers_of_connections_and_audit_loggers_are_refused() {
        let header =
            "permissions: [{not_rule: {header: {name: x, present_match: true}}}], principals: [{any: true}]";
        let value = read(&format!("policies: {{p: {{{header}}}}}"));
        assert!(rules(&value, Data::Request).is_ok());
        assert_eq!(
            rules(&value, Data::Connection).unwrap_err().to_string(),
            "policies.p.permissions[0].not_rule.header: a connection has no headers"
        );
        let audit = |loggers: &str| {
            let options = format!("audit_condition: ON_DENY, logger_configs: [{loggers}]");
            let value = read(&format!("audit_logging_options: {{{options}}}"));
            rules(&value, Data::Request).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(audit(""), Ok(()));
        assert_eq!(audit("{audit_logger: {name: a}, is_optional: true}"), Ok(()));
        assert_eq!(
            audit("{audit_logger: {name: a}}").unwrap_err(),
            "audit_logging_options.logger_configs[0].audit_logger: there is no audit logger \"a\""
        );
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
                "permissions[0].sourced_metadata.metadata_matcher: is missing",
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
            (
                format!("permissions: [{{any: true}}], {any}, condition: {{}}"),
                "condition: a part of the expression is missing",
            ),
            (
                format!("permissions: [{{destination_port_range: {{start: 5, end: 5}}}}], {any}"),
                "permissions[0].destination_port_range.end: must be greater than start",
            ),
            (
                format!("permissions: [{{matcher: {{name: m}}}}], {any}"),
                "permissions[0].matcher: is not supported",
            ),
            (
                "permissions: [{any: true}], principals: [{filter_state: {key: k}}]".to_owned(),
                "principals[0].filter_state: one of string_match, address_match is missing",
            ),
            (
                "permissions: [{any: true}], principals: [{custom: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config}}}]".to_owned(),
                "principals[0].custom.typed_config: one of san_matcher, any_validated_client_certificate is missing",
            ),
        ] {
            assert_eq!(compiled(&policy).unwrap_err(), format!("policies.p.{expected}"), "{policy}");
        }
    }
}
