//! Schemas of resources and plugins.

use http::StatusCode;
use serde_json::{Map, Value, json};
use sixfold_core::plugin::{ApisixFactory, Kind as PluginKind};

use super::PREFIX;
use super::message::{AdminReply, AdminRequest};
use crate::config::PluginNames;
use crate::plugin;
use crate::resource::Kind;
use crate::schema;
use crate::source::Checker;
use crate::upstream;

/// What of schemas and plugins is asked for.
pub(super) enum Wanted<'a> {
    Schema(&'a str),
    Plugin(Option<&'a str>),
}

impl<'a> Wanted<'a> {
    /// By the segments behind the prefix.
    pub(super) fn of(segments: &[&'a str]) -> Option<Wanted<'a>> {
        match segments {
            ["schema", "plugins", rest @ ..] | ["plugins", rest @ ..] => {
                Some(Wanted::Plugin(rest.first().copied().filter(|name| !name.is_empty())))
            }
            ["schema", rest @ ..] => Some(Wanted::Schema(rest.first().copied().unwrap_or_default())),
            _ => None,
        }
    }

    pub(super) fn answer(&self, checker: &Checker, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
        match self {
            Wanted::Schema(name) => {
                let schema =
                    named(name).ok_or_else(|| AdminReply::bad(format!("not found schema: {name}")))?;
                Ok(AdminReply::json(StatusCode::OK, schema))
            }
            Wanted::Plugin(name) => one_plugin(checker, name.unwrap_or_default(), request),
        }
    }
}

/// The schema of a resource by its name in the singular.
pub(crate) fn named(name: &str) -> Option<&'static Value> {
    let kind = match name {
        "plugins" => return Some(schema::plugins_list().source()),
        "consumer" => Kind::Consumer,
        "consumer_group" => Kind::ConsumerGroup,
        "credential" => Kind::Credential,
        "global_rule" => Kind::GlobalRule,
        "plugin_config" => Kind::PluginConfig,
        "proto" => Kind::Proto,
        "route" => Kind::Route,
        "service" => Kind::Service,
        "ssl" => Kind::Ssl,
        "stream_route" => Kind::StreamRoute,
        "upstream" => Kind::Upstream,
        "upstream_hash_header_schema" => return Some(upstream::HASH_NAME.source()),
        "upstream_hash_vars_schema" => return Some(upstream::HASH_VARIABLE.source()),
        _ => return None,
    };
    Some(schema::resource(kind).source())
}

/// The names that [`named`] knows, of those that the control API shows.
pub(crate) fn names() -> &'static [&'static str] {
    &[
        "consumer",
        "consumer_group",
        "global_rule",
        "plugin_config",
        "plugins",
        "proto",
        "route",
        "service",
        "ssl",
        "stream_route",
        "upstream",
        "upstream_hash_header_schema",
        "upstream_hash_vars_schema",
    ]
}

/// A plugin's schema, with what every plugin may have.
fn of_plugin(schema: &str) -> Value {
    let mut schema: Value = serde_json::from_str(schema).unwrap_or_default();
    if let Value::Object(schema) = &mut schema {
        let properties = schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(properties) = properties {
            properties.insert("_meta".to_owned(), schema::plugin_meta().source().clone());
        }
        schema.insert("$comment".to_owned(), "this is a mark for our injected plugin schema".into());
    }
    schema
}

fn parsed(schema: Option<&str>) -> Option<Value> {
    schema.and_then(|text| serde_json::from_str(text).ok())
}

/// Everything about a plugin, as lists of all plugins have it.
fn described(factory: &ApisixFactory) -> Value {
    let mut all = Map::new();
    all.insert("version".to_owned(), json!(0.1));
    all.insert("priority".to_owned(), factory.priority.into());
    all.insert("schema".to_owned(), of_plugin(factory.schema));
    let more = [
        ("metadata_schema", parsed(factory.metadata_schema)),
        ("consumer_schema", parsed(factory.consumer_schema)),
        ("type", (factory.kind == PluginKind::Auth).then(|| "auth".into())),
    ];
    all.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Value::Object(all)
}

/// All plugins, described.
pub(crate) fn described_plugins(checker: &Checker) -> Value {
    let all = checker.catalog().factories();
    Value::Object(all.map(|factory| (factory.name.to_owned(), described(factory))).collect())
}

/// All plugins of streams, described.
pub(crate) fn described_stream_plugins(checker: &Checker) -> Value {
    let described = |factory: &ApisixFactory| {
        let schema = of_plugin(factory.streams.as_ref()?.schema);
        let about = json!({"version": 0.1, "priority": factory.priority, "schema": schema});
        Some((factory.name.to_owned(), about))
    };
    Value::Object(checker.catalog().stream_factories().filter_map(described).collect())
}

fn one_plugin(checker: &Checker, name: &str, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
    let subsystem = request.parameter("subsystem").unwrap_or("http");
    if !["http", "stream"].contains(&subsystem) {
        return Err(AdminReply::bad(format!("unsupported subsystem: {subsystem}")));
    }
    let http = subsystem == "http";
    if request.parameter("all") == Some("true") {
        let all = if http { described_plugins(checker) } else { described_stream_plugins(checker) };
        return Ok(AdminReply::json(StatusCode::OK, &all));
    }
    let catalog = checker.catalog();
    let factory = match http {
        true => catalog.factories().find(|factory| factory.name == name),
        false => catalog.stream_factories().find(|factory| factory.name == name),
    };
    let factory = factory.ok_or_else(|| {
        AdminReply::error(StatusCode::NOT_FOUND, format!("plugin not found in subsystem {subsystem}"))
    })?;
    let schema = match (request.parameter("schema_type"), &factory.streams) {
        (Some("consumer"), _) => parsed(factory.consumer_schema),
        (_, Some(part)) if !http => Some(of_plugin(part.schema)),
        _ => Some(of_plugin(factory.schema)),
    };
    let schema = schema.ok_or_else(|| AdminReply::bad("not found schema"))?;
    Ok(AdminReply::json(StatusCode::OK, &schema))
}

/// Names, those of plugins that run first in front.
fn by_rank<'a>(factories: impl Iterator<Item = &'a ApisixFactory>) -> Vec<&'a str> {
    let mut ranked: Vec<_> = factories.map(|factory| (factory.priority, factory.name)).collect();
    ranked.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// The names of the plugins that are enabled, those that run first in front: all of APISIX's, and behind them those that it
/// does not have. With `here=true` those that are part of this gateway, with `here=false` the others; this is ours.
pub(super) fn plugins_list(
    checker: &Checker,
    enabled: Option<&PluginNames>,
    request: &AdminRequest,
) -> Result<AdminReply, AdminReply> {
    match request.parameter("subsystem").unwrap_or("http") {
        "http" => {}
        "stream" => {
            let names = by_rank(checker.catalog().stream_factories());
            return Ok(AdminReply::json(StatusCode::OK, &json!(names)));
        }
        _ => return Err(AdminReply::text(StatusCode::BAD_REQUEST, "invalid subsystem passed")),
    }
    let here = by_rank(checker.catalog().factories());
    let of_apisix = plugin::in_order(enabled);
    let names = match request.parameter("here") {
        Some("true") => here,
        Some("false") => of_apisix.into_iter().filter(|name| !here.contains(name)).collect(),
        _ => {
            let own = here.into_iter().filter(|name| !of_apisix.contains(name));
            of_apisix.iter().copied().chain(own).collect()
        }
    };
    Ok(AdminReply::json(StatusCode::OK, &json!(names)))
}

/// Holds a body against the schema of a resource, and nothing else.
pub(super) fn validate(path: &str, request: &AdminRequest) -> Result<AdminReply, AdminReply> {
    let path = path.strip_prefix(PREFIX).and_then(|path| path.strip_prefix("/schema/validate/"));
    let name = path.unwrap_or_default().split('/').next().unwrap_or_default();
    let kind = match name {
        "credentials" => Some(Kind::Credential),
        name => Kind::from_section(name),
    };
    let kind = kind.ok_or_else(|| {
        AdminReply::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {name}"))
    })?;
    let mut body = request.json()?.unwrap_or_default();
    let checked = schema::resource(kind).validate(&mut body);
    checked.map_err(|violation| AdminReply::bad(violation.to_string()))?;
    Ok(AdminReply::empty(StatusCode::OK))
}
