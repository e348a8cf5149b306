//! What resources refer to, and who refers to them.

use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{Consumers, Registry};

use super::check::Subject;
use super::list;
use super::resource::id_text;
use crate::plugin::{Agreement, On, duplicate_key};
use crate::resource::Kind;
use crate::source::Checker;
use crate::store::{Key, Store, StoreError};

/// Why what a resource refers to can't be that.
pub(super) fn targets(store: &dyn Store, kind: Kind, id: Option<&str>, conf: &Value) -> Result<(), String> {
    let upstream = (Kind::Upstream, "upstream_id", "upstream");
    let service = (Kind::Service, "service_id", "service");
    let plugin_config = (Kind::PluginConfig, "plugin_config_id", "plugin config");
    let group = (Kind::ConsumerGroup, "group_id", "consumer group");
    let fields: &[(Kind, &str, &str)] = match kind {
        Kind::Route => &[upstream, service, plugin_config],
        Kind::Service => &[upstream],
        Kind::Consumer => &[group],
        Kind::StreamRoute => &[upstream, service],
        _ => &[],
    };
    let own = if kind == Kind::Upstream { Some(conf) } else { conf.get("upstream") };
    let certificate = own.and_then(|upstream| upstream.get("tls")?.get("client_cert_id"));
    if let Some(id) = certificate.and_then(id_text) {
        client_certificate(store, &id)?;
    }
    for (kind, field, name) in fields {
        let Some(id) = conf.get(field).and_then(id_text) else { continue };
        let fault = |what: &str| format!("failed to fetch {name} info by {name} id [{id}]{what}");
        match store.get(&Key::new(*kind, id.as_str())) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(fault(", response code: 404")),
            Err(error) => return Err(fault(&format!(": {error}"))),
        }
    }
    if kind == Kind::StreamRoute { superior(store, id, conf) } else { Ok(()) }
}

fn client_certificate(store: &dyn Store, id: &str) -> Result<(), String> {
    let fault = |what: &str| format!("failed to fetch ssl info by ssl id [{id}]{what}");
    let kept = store.get(&Key::new(Kind::Ssl, id)).map_err(|error| fault(&format!(": {error}")))?;
    let kept = kept.ok_or_else(|| fault(", response code: 404"))?;
    let is_client = list::value(&kept).get("type").and_then(Value::as_str) == Some("client");
    if is_client { Ok(()) } else { Err(fault(", wrong ssl type")) }
}

/// The stream route that one is below.
fn superior(store: &dyn Store, id: Option<&str>, conf: &Value) -> Result<(), String> {
    let protocol = conf.get("protocol").unwrap_or(&Value::Null);
    let Some(superior) = protocol.get("superior_id").and_then(id_text) else { return Ok(()) };
    if id == Some(superior.as_str()) {
        return Err("stream route can not set itself as superior_id".to_owned());
    }
    let kept = store.get(&Key::new(Kind::StreamRoute, superior.as_str()));
    let kept = kept.map_err(|error| format!("failed to fetch stream routes[{superior}]: {error}"))?;
    let kept =
        kept.ok_or_else(|| format!("failed to fetch stream routes[{superior}], response code: 404"))?;
    let name = |protocol: &Value| protocol.get("name").and_then(Value::as_str).map(str::to_owned);
    let of_superior = list::value(&kept).get("protocol").and_then(name);
    match (name(protocol), of_superior) {
        (Some(own), Some(other)) if own != other => Err(format!(
            "protocol mismatch: subordinate protocol [{own}] does not match superior protocol [{other}]"
        )),
        _ => Ok(()),
    }
}

/// Another global rule that has one of the plugins.
pub(super) fn other_global_rules(store: &dyn Store, id: Option<&str>, conf: &Value) -> Result<(), String> {
    let Some(plugins) = conf.get("plugins").and_then(Value::as_object) else { return Ok(()) };
    for (key, kept) in store.list(Kind::GlobalRule).map_err(|error| error.to_string())? {
        if id == Some(key.id.as_str()) {
            continue;
        }
        let rule = list::value(&kept);
        let others = rule.get("plugins").and_then(Value::as_object);
        if let Some(name) =
            plugins.keys().find(|name| others.is_some_and(|others| others.contains_key(*name)))
        {
            return Err(format!("plugin '{name}' already exists in global rule with id '{}'", key.id));
        }
    }
    Ok(())
}

/// What a plugin must have in common with that of another resource, and has not.
pub(super) fn disagreement(
    checker: &Checker,
    store: &dyn Store,
    key: &Key,
    conf: &Value,
) -> Result<Option<ConfigError>, String> {
    let of_plugins = |value: &Value| value.get("plugins").and_then(Value::as_object).cloned();
    let own: Vec<(String, Agreement)> = of_plugins(conf)
        .into_iter()
        .flatten()
        .filter_map(|(plugin, config)| Some((plugin.clone(), checker.agreement(&plugin, &config)?)))
        .collect();
    if own.is_empty() {
        return Ok(None);
    }
    for kind in Kind::ALL {
        for (other, kept) in store.list(kind).map_err(|error| error.to_string())? {
            let Some(plugins) = of_plugins(&list::value(&kept)).filter(|_| other != *key) else { continue };
            let differs = own.iter().find(|(plugin, own)| {
                let theirs = plugins.get(plugin).and_then(|config| checker.agreement(plugin, config));
                theirs.is_some_and(|theirs| theirs.name == own.name && theirs.print != own.print)
            });
            if let Some((plugin, own)) = differs {
                return Ok(Some(ConfigError::field(&own.field, On::Requests.words(plugin, own.reason))));
            }
        }
    }
    Ok(None)
}

/// Another consumer in force whose requests would be told by the same.
pub(super) fn duplicate_credentials(
    registry: &Registry,
    consumers: &Consumers,
    subject: &Subject<'_>,
    conf: &Value,
) -> Result<(), String> {
    let Some(plugins) = conf.get("plugins").and_then(Value::as_object) else { return Ok(()) };
    let (own, credential) = match subject.kind {
        Kind::Credential => (subject.parent, subject.id),
        _ => (conf.get("username").and_then(Value::as_str), None),
    };
    let found = duplicate_key(plugins, own.unwrap_or_default(), credential, registry, consumers);
    found.map_or(Ok(()), Err)
}

/// Who keeps a resource from being deleted, in APISIX's words.
pub(super) fn users(store: &dyn Store, key: &Key) -> Result<Option<String>, StoreError> {
    let field = |field: &'static str| move |value: &Value| value.get(field).and_then(id_text);
    let find = |kind: Kind, of: &dyn Fn(&Value) -> Option<String>| -> Result<Option<String>, StoreError> {
        let all = store.list(kind)?;
        let user =
            all.into_iter().find(|(_, kept)| of(&list::value(kept)).as_deref() == Some(key.id.as_str()));
        Ok(user.map(|(key, _)| key.id.to_string()))
    };
    let told = |user: Option<String>, words: &str, name: &str| {
        user.map(|id| format!("can not delete this {words} {name} [{id}] is still using it now"))
    };
    match key.kind {
        Kind::Upstream => users_of_upstream(store, key.id.as_str()),
        Kind::Service => {
            let words = "service directly,";
            let route = told(find(Kind::Route, &field("service_id"))?, words, "route");
            match route {
                Some(route) => Ok(Some(route)),
                None => Ok(told(find(Kind::StreamRoute, &field("service_id"))?, words, "stream_route")),
            }
        }
        Kind::PluginConfig => {
            Ok(told(find(Kind::Route, &field("plugin_config_id"))?, "plugin config,", "route"))
        }
        Kind::ConsumerGroup => {
            Ok(told(find(Kind::Consumer, &field("group_id"))?, "consumer group,", "consumer"))
        }
        Kind::Proto => {
            let proto = |value: &Value| {
                value.get("plugins")?.get("grpc-transcode")?.get("proto_id").and_then(id_text)
            };
            let route = told(find(Kind::Route, &proto)?, "proto,", "route");
            match route {
                Some(route) => Ok(Some(route)),
                None => Ok(told(find(Kind::Service, &proto)?, "proto,", "service")),
            }
        }
        Kind::StreamRoute => {
            let superior = |value: &Value| value.get("protocol")?.get("superior_id").and_then(id_text);
            let below = find(Kind::StreamRoute, &superior)?;
            Ok(below.map(|id| {
                format!(
                    "can not delete this stream route directly, stream route [{id}] is still using it as superior_id"
                )
            }))
        }
        _ => Ok(None),
    }
}

/// Those that send to an upstream, and the plugins that may.
fn users_of_upstream(store: &dyn Store, id: &str) -> Result<Option<String>, StoreError> {
    let kinds = [
        (Kind::Route, "route", true),
        (Kind::Service, "service", true),
        (Kind::PluginConfig, "plugin_config", false),
        (Kind::Consumer, "consumer", false),
        (Kind::ConsumerGroup, "consumer_group", false),
        (Kind::GlobalRule, "global_rules", false),
    ];
    let is_it = |value: Option<&Value>| value.and_then(id_text).as_deref() == Some(id);
    for (kind, name, direct) in kinds {
        for (key, kept) in store.list(kind)? {
            let value = list::value(&kept);
            let user = key.id.as_str();
            if splits_to(&value, &is_it) {
                return Ok(Some(format!(
                    "can not delete this upstream, plugin in {name} [{user}] is still using it now"
                )));
            }
            if direct && is_it(value.get("upstream_id")) {
                return Ok(Some(format!(
                    "can not delete this upstream, {name} [{user}] is still using it now"
                )));
            }
        }
    }
    Ok(None)
}

/// Whether the plugin traffic-split of a resource sends to an upstream.
fn splits_to(value: &Value, is_it: &dyn Fn(Option<&Value>) -> bool) -> bool {
    let rules =
        value.get("plugins").and_then(|plugins| plugins.get("traffic-split")?.get("rules")?.as_array());
    let upstreams = rules.into_iter().flatten().filter_map(|rule| rule.get("weighted_upstreams")?.as_array());
    upstreams.flatten().any(|upstream| is_it(upstream.get("upstream_id")))
}
