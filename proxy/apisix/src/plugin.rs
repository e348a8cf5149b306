//! Plugins as resources name them: checked against their schemas when an item is read, built when it is used.

mod credential;
mod meta;
mod names;
mod set;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sixfold_core::error::nearest;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Prepared, PublicApis, Registry};

pub use self::credential::duplicate_key;
pub(crate) use self::credential::{CredentialConfig, NO_AUTH, OfConsumer};
pub(crate) use self::meta::Meta;
use self::meta::MetaFault;
pub(crate) use self::names::{OF_PROCESS, defaults, in_order};
pub(crate) use self::set::{ChainCache, GlobalPlugins, PluginSet, merge, without_group};
pub(crate) use self::streams::StreamPlugins;
use crate::config::{Config, EnabledPlugins, EnvVars};
use crate::encryption::{EncryptFields, Keyring, Turn};
use crate::resource::{Kind, Plugins};
use crate::schema::{self, Schema, Step, Violation};
use crate::secret;
use crate::store::Key;
use xxhash_rust::xxh64::xxh64;

/// The plugins that resources may use.
#[derive(Default)]
pub(crate) struct Catalog {
    plugins: BTreeMap<&'static str, Entry>,
    public_apis: Arc<PublicApis>,
    /// Those that the gateway has and the list of plugins has not.
    disabled: BTreeSet<&'static str>,
    /// What fields are kept encrypted with; `None` where they are not.
    keyring: Option<Arc<Keyring>>,
    /// What private keys are kept encrypted with.
    private_keys: Arc<Keyring>,
    /// Those that stream routes may use.
    streams: streams::Entries,
}

struct Entry {
    /// Index among the registry's plugins, which their state is found by.
    index: u16,
    factory: Arc<ApisixFactory>,
    schema: Schema,
    /// Of what a consumer says of it.
    consumer_schema: Option<Schema>,
    metadata_schema: Option<Schema>,
    attributes: Arc<Value>,
    /// Fields that are kept encrypted, of each of the schemas.
    encrypted: EncryptFields,
    consumer_encrypted: EncryptFields,
    metadata_encrypted: EncryptFields,
}

/// What plugins of a resource run for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Requests,
    Streams,
}

/// What a configuration of a plugin is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Plugin,
    Consumer,
    Metadata,
}

/// A plugin of a resource, its configuration accepted and filled with defaults.
#[derive(Clone)]
pub(crate) struct PluginConfig {
    pub(crate) index: u16,
    pub(crate) factory: Arc<ApisixFactory>,
    pub(crate) config: Value,
    pub(crate) attributes: Arc<Value>,
    /// Of all plugins that may be used.
    pub(crate) public_apis: Arc<PublicApis>,
    pub(crate) meta: Meta,
    /// Fingerprint of the configuration as written, and of what it is built with beside it.
    pub(crate) print: u64,
    /// References that lead to nothing, and stand in the configuration as they are written.
    pub(crate) unresolved: Vec<Violation>,
}

/// What a plugin must have in common with those of other resources: all of one name agree.
#[derive(Debug, Clone)]
pub(crate) struct Agreement {
    pub(crate) name: Arc<str>,
    /// Fingerprint of what is agreed on.
    pub(crate) print: u64,
    /// Where a resource says it.
    pub(crate) field: Box<str>,
    /// Why one that differs is refused.
    pub(crate) reason: &'static str,
}

impl PluginConfig {
    /// What it is built with for the resource with this key (`/apisix/routes/1`).
    fn context(&self, resource: &Arc<str>, context: &BuildContext) -> BuildContext {
        BuildContext {
            resource: resource.clone(),
            attributes: self.attributes.clone(),
            public_apis: self.public_apis.clone(),
            ..context.clone()
        }
    }

    pub(crate) fn agreement(&self) -> Option<Agreement> {
        let (name, of) = self.factory.agreement(&self.config).filter(|_| !self.meta.disable)?;
        let plugin = self.factory.name;
        Some(Agreement {
            name: format!("{plugin} {name}").into(),
            print: xxh64(of.as_bytes(), 0),
            field: format!("plugins.{plugin}.group").into(),
            reason: "group conf mismatched",
        })
    }
}

/// Reads resources as their store keeps them, for whoever hands them on.
pub struct Decryption(Catalog);

impl Decryption {
    /// Of the resources of a gateway with this configuration.
    pub fn new(config: &Config, registry: &Registry) -> Decryption {
        Decryption(Catalog::new(registry, &EnabledPlugins::default(), &BTreeMap::new()).encrypted(config))
    }

    /// Decrypts what is kept encrypted of a resource.
    pub fn open(&self, key: &Key, value: &mut Value) {
        self.0.turn(Turn::Open, key, value);
    }
}

/// Fingerprint of the attributes of a plugin; most have none.
fn attributes_print(attributes: &Value) -> u64 {
    if attributes.is_null() { 0 } else { xxh64(attributes.to_string().as_bytes(), 0) }
}

impl Catalog {
    /// Every plugin of `registry` that is in `enabled`.
    pub(crate) fn new(
        registry: &Registry,
        enabled: &EnabledPlugins,
        attributes: &BTreeMap<String, Value>,
    ) -> Catalog {
        let mut plugins = BTreeMap::new();
        let is_enabled = |name: &&str| enabled.http.as_ref().is_none_or(|http| http.contains(name));
        for name in registry.apisix_names().filter(is_enabled) {
            let Some((index, factory)) = registry.apisix(name) else { continue };
            let attributes = Arc::new(attributes.get(name).cloned().unwrap_or(Value::Null));
            let (factory, schema) = (factory.clone(), Schema::builtin(factory.schema));
            let consumer_schema = factory.consumer_schema.map(Schema::builtin);
            let metadata_schema = factory.metadata_schema.map(Schema::builtin);
            let encrypted = EncryptFields::of(factory.schema);
            let of = |schema: Option<&str>| schema.map(EncryptFields::of);
            let consumer_encrypted = of(factory.consumer_schema).unwrap_or_else(|| encrypted.clone());
            let metadata_encrypted = of(factory.metadata_schema).unwrap_or_default();
            let entry = Entry {
                index,
                factory,
                schema,
                consumer_schema,
                metadata_schema,
                attributes,
                encrypted,
                consumer_encrypted,
                metadata_encrypted,
            };
            plugins.insert(name, entry);
        }
        let disabled = registry.apisix_names().filter(|name| !plugins.contains_key(name)).collect();
        let apis =
            PublicApis::new(plugins.values().map(|entry: &Entry| (&*entry.factory, &entry.attributes)));
        let public_apis = Arc::new(apis);
        let streams = streams::entries(registry, enabled.streams.as_ref(), attributes);
        Catalog { plugins, public_apis, disabled, streams, keyring: None, private_keys: Arc::default() }
    }

    /// The same for resources that are kept encrypted as `config` says.
    #[must_use]
    pub(crate) fn encrypted(self, config: &Config) -> Catalog {
        let private_keys = config.data_encryption.keyring.clone();
        Catalog { keyring: config.field_keyring().cloned(), private_keys, ..self }
    }

    /// Encrypts what is kept like that of a resource, or decrypts it.
    pub(crate) fn turn(&self, turn: Turn, key: &Key, value: &mut Value) {
        self.turn_fields(turn, key, value);
        self.private_keys.turn(turn, key.kind, value);
    }

    /// Decrypts the private keys of a resource.
    pub(crate) fn open_private_keys(&self, kind: Kind, value: &mut Value) {
        self.private_keys.turn(Turn::Open, kind, value);
    }

    /// Encrypts those that are not.
    pub(crate) fn seal_private_keys(&self, kind: Kind, value: &mut Value) {
        self.private_keys.turn(Turn::Seal, kind, value);
    }

    /// The same for what plugins say alone.
    pub(crate) fn turn_fields(&self, turn: Turn, key: &Key, value: &mut Value) {
        let Some(keyring) = &self.keyring else { return };
        if key.kind == Kind::StreamRoute {
            // APISIX keeps their plugins as they are sent (admin/stream_routes.lua).
            return;
        }
        if key.kind == Kind::PluginMetadata {
            return self.turn_one(turn, keyring, key.id.as_str(), Of::Metadata, value);
        }
        let of =
            if matches!(key.kind, Kind::Consumer | Kind::Credential) { Of::Consumer } else { Of::Plugin };
        let plugins = value.get_mut("plugins").and_then(Value::as_object_mut);
        for (name, config) in plugins.into_iter().flatten() {
            self.turn_one(turn, keyring, name, of, config);
        }
    }

    fn turn_one(&self, turn: Turn, keyring: &Keyring, name: &str, of: Of, config: &mut Value) {
        let Some(entry) = self.plugins.get(name) else { return };
        let fields = entry.encrypted(of);
        fields.turn(turn, keyring, config);
    }

    /// Decrypts what is kept encrypted of a plugin's configuration.
    fn open(&self, entry: &Entry, of: Of, config: &mut Value) {
        if let Some(keyring) = &self.keyring {
            entry.encrypted(of).turn(Turn::Open, keyring, config);
        }
    }

    /// Fills in what a plugin's configuration leaves to its defaults, as APISIX has it in memory.
    pub(crate) fn fill(&self, name: &str, config: &mut Value) {
        let Some(entry) = self.plugins.get(name) else { return };
        // What could not be filled in stays as it is.
        let _ = entry.schema.validate(config);
        if let Value::Object(config) = config {
            config.entry("_meta").or_insert_with(|| Value::Object(serde_json::Map::new()));
        }
    }

    /// The plugins, by name.
    pub(crate) fn factories(&self) -> impl Iterator<Item = &ApisixFactory> {
        self.plugins.values().map(|entry| &*entry.factory)
    }

    /// Checks the plugins of a resource: those that are right, those that are switched off among them, and every fault of
    /// the others, in APISIX's words.
    pub(crate) fn check(
        &self,
        on: On,
        plugins: &Plugins,
        environment: &EnvVars,
    ) -> (Vec<PluginConfig>, Vec<Violation>) {
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for (name, config) in plugins {
            match self.check_one(on, name, config, environment) {
                Ok(plugin) => accepted.push(plugin),
                Err(violations) => refused.extend(violations.into_iter().map(|fault| below(name, fault))),
            }
        }
        (accepted, refused)
    }

    /// Why there is no plugin of this name, in APISIX's words and what helps beyond them.
    fn unknown(&self, name: &str) -> Violation {
        let hint = if self.disabled.contains(name) {
            Some("it is not in the list of plugins".to_owned())
        } else if name.starts_with("serverless-") {
            Some("Lua is not run; plugins do what it did (docs/plugins/without-lua.md)".to_owned())
        } else if names::APISIX.contains(&name) {
            Some("not supported yet".to_owned())
        } else {
            let known = self.plugins.keys().copied().chain(names::APISIX.iter().copied());
            nearest(name, known).map(|near| format!("did you mean \"{near}\"?"))
        };
        Violation::unknown_plugin(name, hint)
    }

    fn check_one(
        &self,
        on: On,
        name: &str,
        written: &Value,
        environment: &EnvVars,
    ) -> Result<PluginConfig, Vec<Violation>> {
        let (mut config, meta) = table(on, name, written)?;
        let entry = match on {
            On::Requests => self.entry(name)?,
            On::Streams => self.streams.get(name).ok_or_else(|| vec![self.unknown_stream(name)])?,
        };
        let print = xxh64(written.to_string().as_bytes(), self.surroundings(entry));
        self.open(entry, Of::Plugin, &mut config);
        let (meta, mut violations) = match meta {
            Ok(meta) => (meta, Vec::new()),
            Err(violations) => (Meta::default(), violations),
        };
        let right = entry.schema.validate_all(&mut config).map_err(|faults| {
            faults.into_iter().map(|fault| entry.worded(&config, fault)).collect::<Vec<_>>()
        });
        // What leads to nothing stays as it is written.
        let unresolved = secret::resolve_all(&mut config, environment).err().unwrap_or_default();
        if !meta.disable {
            violations.extend(right.err().into_iter().flatten().map(|fault| on.reworded(name, fault)));
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        Ok(PluginConfig {
            index: entry.index,
            factory: entry.factory.clone(),
            config,
            attributes: entry.attributes.clone(),
            public_apis: self.public_apis.clone(),
            meta,
            print,
            unresolved: unresolved.into_iter().map(|fault| below(name, fault)).collect(),
        })
    }

    /// Fingerprint of what an instance is built with beside its own configuration.
    fn surroundings(&self, entry: &Entry) -> u64 {
        let of_plugin = attributes_print(&entry.attributes);
        if entry.factory.reads_endpoints { of_plugin ^ self.public_apis.print() } else { of_plugin }
    }

    /// What a plugin with this configuration must have in common with that of others, if it is right and there is such a
    /// thing.
    pub(crate) fn agreement(&self, name: &str, config: &Value, environment: &EnvVars) -> Option<Agreement> {
        self.check_one(On::Requests, name, config, environment).ok()?.agreement()
    }

    /// Checks the metadata of a plugin; answers what the plugin has made of it, nothing if it has no use for any.
    pub(crate) fn check_metadata(
        &self,
        name: &str,
        metadata: &Value,
        environment: &EnvVars,
    ) -> Result<(&'static str, Option<Prepared>), Vec<Violation>> {
        let entry = self.entry(name)?;
        let mut metadata = metadata.clone();
        self.open(entry, Of::Metadata, &mut metadata);
        if let Some(schema) = &entry.metadata_schema {
            schema.validate_all(&mut metadata)?;
        }
        secret::resolve_all(&mut metadata, environment)?;
        let prepared = entry.factory.read_metadata(&metadata).map_err(|error| {
            let path = error.field.into_iter().map(Step::Key).collect();
            vec![Violation::new(path, error.reason)]
        })?;
        Ok((entry.factory.name, prepared))
    }

    fn entry(&self, name: &str) -> Result<&Entry, Vec<Violation>> {
        self.plugins.get(name).ok_or_else(|| vec![self.unknown(name)])
    }
}

impl Entry {
    fn encrypted(&self, of: Of) -> &EncryptFields {
        match of {
            Of::Plugin => &self.encrypted,
            Of::Consumer => &self.consumer_encrypted,
            Of::Metadata => &self.metadata_encrypted,
        }
    }

    /// A fault in the plugin's own words, if it has such.
    fn worded(&self, config: &Value, fault: Violation) -> Violation {
        match self.factory.words(config, &fault.message) {
            Some(words) => Violation { message: words.to_owned(), ..fault },
            None => fault,
        }
    }
}

impl On {
    /// What is wrong with a plugin's configuration, in APISIX's words.
    pub(crate) fn words(self, plugin: &str, reason: &str) -> String {
        match self {
            On::Requests => format!("failed to check the configuration of plugin {plugin} err: {reason}"),
            On::Streams => format!("failed to check the configuration of stream plugin [{plugin}]: {reason}"),
        }
    }

    /// A fault of a plugin's configuration as APISIX words it.
    fn reworded(self, plugin: &str, violation: Violation) -> Violation {
        Violation { message: self.words(plugin, &violation.message), ..violation }
    }
}

/// A fault one step deeper.
fn below(name: &str, mut violation: Violation) -> Violation {
    violation.path.insert(0, Step::Key(name.to_owned()));
    violation
}

/// A plugin's configuration, and its `_meta` or what is wrong with that, in APISIX's words.
type Table = (Value, Result<Meta, Vec<Violation>>);

/// Takes a plugin's configuration for the object that it must be.
fn table(on: On, name: &str, config: &Value) -> Result<Table, Vec<Violation>> {
    let mut config = match config {
        // Lua's empty table.
        Value::Array(items) if items.is_empty() => Value::Object(serde_json::Map::new()),
        config => config.clone(),
    };
    if !config.is_object() {
        let reason = format!("invalid plugin conf {config} for plugin [{name}]");
        return Err(vec![Violation::new(Vec::new(), reason)]);
    }
    let meta = take_meta(on, name, &mut config);
    Ok((config, meta))
}

/// Takes `_meta` out of a configuration and checks it.
fn take_meta(on: On, name: &str, config: &mut Value) -> Result<Meta, Vec<Violation>> {
    let Some(mut meta) = config.as_object_mut().and_then(|map| map.shift_remove("_meta")) else {
        return Ok(Meta::default());
    };
    let of_meta = |violation: Violation| below("_meta", violation);
    let reworded = |violation: Violation| {
        let message = format!("property \"_meta\" validation failed: {}", violation.message);
        on.reworded(name, Violation { message, ..violation })
    };
    let checked = schema::plugin_meta().validate_all(&mut meta);
    checked.map_err(|violations| violations.into_iter().map(of_meta).map(reworded).collect::<Vec<_>>())?;
    Meta::read(&meta).map_err(|fault| {
        let (field, message, is_whole) = match fault {
            MetaFault::Lua => {
                let instead = "`filter` says when a plugin runs (docs/plugins/without-lua.md)";
                ("pre_function", format!("not supported: Lua is not run; {instead}"), false)
            }
            // APISIX says this of a resource's own `vars` too, and nothing of the plugin.
            MetaFault::Filter(e) => {
                ("filter", format!("failed to validate the 'vars' expression: {e}"), true)
            }
        };
        let violation = of_meta(Violation::new(vec![Step::Key(field.to_owned())], message));
        vec![if is_whole { violation } else { reworded(violation) }]
    })
}
