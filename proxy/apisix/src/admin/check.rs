//! Looks at a value before it is written, in the order and the words of `apisix/admin`.

use std::net::Ipv6Addr;

use serde_json::Value;
use sixfold_core::error::{ConfigError, MORE_FAULTS, tell_most};
use sixfold_core::plugin::Consumers;

use super::{references, target};
use crate::item::exclusive;
use crate::plugin::NO_AUTH;
use crate::resource::Kind;
use crate::schema::{self, Schema};
use crate::source::Checker;
use crate::store::{Key, Store};

/// What is looked at.
pub(super) struct Subject<'a> {
    pub(super) kind: Kind,
    /// The id that it will have; of a consumer that in the path.
    pub(super) id: Option<&'a str>,
    /// The consumer of a credential, the manager of a secret.
    pub(super) parent: Option<&'a str>,
}

/// What else there is.
pub(super) struct Others<'a> {
    /// Everything that is written.
    pub(super) store: &'a dyn Store,
    /// The consumers in force.
    pub(super) consumers: &'a Consumers,
}

/// Why a value is not written, in APISIX's words; the log says it plainly. Without `others` it is not held against what else
/// there is.
pub(super) fn check(
    checker: &Checker,
    others: Option<&Others<'_>>,
    subject: &Subject<'_>,
    conf: &Value,
) -> Result<(), String> {
    looked_at(checker, others, subject, conf).inspect_err(|reason| tell(checker, subject, conf, reason))
}

/// Tells a feature that is not here from a typo, and more than the first fault: clients compare the answer, so that is
/// APISIX's.
fn tell(checker: &Checker, subject: &Subject<'_>, conf: &Value, reason: &str) {
    let key = key(subject, conf);
    let mut faults = checker.explained_faults(&key, conf);
    if faults.is_empty() {
        faults.push(ConfigError::new(reason).in_resource(key.to_string()));
    }
    let more = |more| tracing::warn!(more, "{MORE_FAULTS}");
    tell_most(&faults, |fault| tracing::warn!("what was sent is refused: {fault}"), more);
}

fn looked_at(
    checker: &Checker,
    others: Option<&Others<'_>>,
    subject: &Subject<'_>,
    conf: &Value,
) -> Result<(), String> {
    let kind = subject.kind;
    if kind == Kind::Route {
        let pairs = [("host", "hosts"), ("remote_addr", "remote_addrs")];
        if let Some(both) = pairs.into_iter().find_map(|(one, other)| exclusive(conf, one, other)) {
            return Err(both.message);
        }
    }
    let schema = schema_of(checker, subject)?;
    let mut filled = conf.clone();
    schema.validate(&mut filled).map_err(|violation| format!("invalid configuration: {violation}"))?;
    let upstream = if kind == Kind::Upstream { Some(conf) } else { conf.get("upstream") };
    if upstream.is_some_and(has_bare_ipv6) {
        return Err("invalid configuration: IPv6 address must be enclosed with '[' and ']'".to_owned());
    }
    if kind == Kind::Consumer
        && subject.id.is_some_and(|id| conf.get("username").and_then(Value::as_str) != Some(id))
    {
        return Err("wrong username".to_owned());
    }
    let key = key(subject, conf);
    let mut faults = checker.faults(&key, conf);
    faults.sort_by_key(|fault| rank(kind, fault));
    let first = |faults: &[ConfigError], ranks: std::ops::Range<u8>| {
        let found = faults.iter().find(|fault| ranks.contains(&rank(kind, fault)));
        found.map_or(Ok(()), |fault| Err(reason(kind, fault)))
    };
    // What it refers to is looked at behind its upstream and before its plugins, but for consumers.
    let plugins_first = matches!(kind, Kind::Consumer | Kind::Credential);
    first(&faults, 0..if plugins_first { u8::MAX } else { PLUGINS })?;
    if let Some(others) = others {
        references::targets(others.store, kind, subject.id, conf)?;
    }
    first(&faults, PLUGINS..u8::MAX)?;
    if let Some(others) = others
        && let Some(fault) = references::disagreement(checker, others.store, &key, conf)?
    {
        return Err(reason(kind, &fault));
    }
    match others {
        Some(others) if kind == Kind::GlobalRule => {
            references::other_global_rules(others.store, subject.id, conf)
        }
        Some(others) if plugins_first => {
            references::duplicate_credentials(checker.registry(), others.consumers, subject, conf)
        }
        _ => Ok(()),
    }
}

/// Whether a node's IPv6 address stands without brackets, which this API alone refuses.
fn has_bare_ipv6(upstream: &Value) -> bool {
    let nodes = upstream.get("nodes").and_then(Value::as_array);
    let host = |node: &Value| node.get("host")?.as_str()?.parse::<Ipv6Addr>().ok();
    nodes.is_some_and(|nodes| nodes.iter().any(|node| host(node).is_some()))
}

/// From here on a fault is one of plugins or of what is looked at behind them.
const PLUGINS: u8 = 2;

fn rank(kind: Kind, fault: &ConfigError) -> u8 {
    let field = fault.field.as_deref().unwrap_or_default();
    let first = field.split(['.', '[']).next().unwrap_or_default();
    match first {
        "upstream" => 0,
        _ if kind == Kind::Upstream => 0,
        "plugins" => PLUGINS,
        "vars" => PLUGINS + 1,
        "" => 1,
        _ => PLUGINS + 2,
    }
}

fn reason(kind: Kind, fault: &ConfigError) -> String {
    let of_plugins = fault.field.as_deref().is_some_and(|field| field.starts_with("plugins"));
    match kind {
        // APISIX says this one by itself.
        Kind::Credential if fault.reason == NO_AUTH => fault.reason.clone(),
        Kind::Consumer | Kind::Credential if of_plugins => {
            format!("invalid plugins configuration: {}", fault.reason)
        }
        _ => fault.reason.clone(),
    }
}

/// The key of what is looked at, for those that compile it.
fn key(subject: &Subject<'_>, conf: &Value) -> Key {
    let id = match subject.kind {
        Kind::Consumer => conf.get("username").and_then(Value::as_str),
        _ => subject.id,
    };
    target::key(subject.kind, subject.parent, id.unwrap_or_default())
}

fn schema_of<'a>(checker: &Checker, subject: &Subject<'a>) -> Result<std::borrow::Cow<'a, Schema>, String> {
    use std::borrow::Cow;
    match subject.kind {
        Kind::Secret => {
            let manager = subject.parent.ok_or("missing secret type")?;
            let schema = schema::secret(manager);
            schema.map(Cow::Borrowed).ok_or_else(|| format!("invalid secret manager: {manager}"))
        }
        Kind::PluginMetadata => {
            let plugin = subject.id.ok_or("missing plugin name")?;
            let (_, factory) = checker.registry().apisix(plugin).ok_or("invalid plugin name")?;
            let schema = factory.metadata_schema.unwrap_or(r#"{"type": "object"}"#);
            Ok(Cow::Owned(Schema::builtin(schema)))
        }
        kind => Ok(Cow::Borrowed(schema::resource(kind))),
    }
}
