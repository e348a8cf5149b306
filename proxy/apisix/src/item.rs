//! One resource, read: schema, plugins and what APISIX checks beyond the schema.
//!
//! What comes out depends on nothing but the resource's value and the plugins that are enabled. What it refers
//! to is checked by whoever sees all resources. Places are those in the resource, lines counted from its first.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sixfold_core::document::{self, Node};
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::expr::Expr;
use sixfold_core::plugin::{Kind as PluginKind, Prepared};
use xxhash_rust::xxh64::xxh64;

use crate::config::EnvVars;
use crate::encryption::is_pem;
use crate::plugin::{Catalog, CredentialConfig, OfConsumer, On, PluginConfig};
use crate::resource::{
    Consumer, ConsumerGroup, Credential, GlobalRule, Id, Kind, PluginConfig as PluginConfigResource, Plugins,
    Proto, Route, Service, Ssl, StreamRoute, Upstream,
};
use crate::schema::{self, Step, Violation, display_path};
use crate::store::Key;
use crate::tls::{NO_CERTIFICATE, of_pair};
use crate::{secret, stream_route, upstream};

/// A resource that is valid by itself.
pub(crate) struct Parsed {
    /// What it refers to.
    pub(crate) references: Vec<Reference>,
    /// Its plugins.
    pub(crate) plugins: Vec<PluginConfig>,
    /// How it authenticates, of a consumer or a credential.
    pub(crate) credentials: Vec<CredentialConfig>,
    /// What is odd and taken all the same, each with its place.
    pub(crate) warnings: Vec<ConfigError>,
    /// Fingerprint of the upstream that it is or brings; 0 without one.
    pub(crate) upstream_print: u64,
    /// Fingerprint of all but upstream, plugins and what is written for people.
    pub(crate) print: u64,
    /// The resource.
    pub(crate) body: Body,
}

/// The kinds of resources that are in use.
pub(crate) enum Body {
    /// It is valid, and nothing here has a use for it.
    Unused,
    /// Of this plugin, with what it has made of it.
    Metadata(&'static str, Option<Prepared>),
    Consumer(Box<Consumer>),
    ConsumerGroup,
    Credential,
    GlobalRule,
    PluginConfig,
    Route(Box<Route>),
    Service(Box<Service>),
    StreamRoute(Box<StreamRoute>),
    Ssl(Box<Ssl>),
    Upstream(Box<Upstream>),
}

/// Another resource that one needs.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) key: Key,
    pub(crate) field: &'static str,
    pub(crate) place: Place,
    /// What is referred to may go all the same: nothing is left of the one that refers then.
    pub(crate) lets_go: bool,
}

/// A resource that is wrong, and what of it can be looked at all the same.
pub(crate) struct Refusal {
    /// Everything that is wrong with it by itself, each with its place.
    pub(crate) errors: Vec<ConfigError>,
    /// What it refers to.
    pub(crate) references: Vec<Reference>,
    /// The plugins whose configurations pass their schemas.
    pub(crate) plugins: Vec<PluginConfig>,
}

/// What resources are read with.
pub(crate) struct Reader<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) environment: &'a EnvVars,
    /// Whether APISIX's words are followed by what helps beyond them.
    pub(crate) hints: bool,
    /// Whether certificates may refer to variables that are not set here: what is written may be for other gateways.
    pub(crate) elsewhere: bool,
}

/// What has been read of a resource.
struct Reading<'a> {
    reader: &'a Reader<'a>,
    node: &'a Node,
    violations: Vec<Violation>,
    references: Vec<Reference>,
    plugins: Vec<PluginConfig>,
    credentials: Vec<CredentialConfig>,
    warnings: Vec<Violation>,
}

impl Reader<'_> {
    /// Reads the value of a resource.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place.
    pub(crate) fn read(&self, key: &Key, node: &Node) -> Result<Parsed, Refusal> {
        let kind = key.kind;
        let (violations, references, plugins, credentials, warnings) = Default::default();
        let mut reading =
            Reading { reader: self, node, violations, references, plugins, credentials, warnings };
        let body = reading.body(key);
        let Reading { violations, references, plugins, credentials, warnings, .. } = reading;
        match body.filter(|_| violations.is_empty()) {
            Some(body) => {
                let (upstream_print, print) = prints(kind, node);
                let warnings = warnings.into_iter().map(|warning| error(warning, node)).collect();
                Ok(Parsed { references, plugins, credentials, warnings, upstream_print, print, body })
            }
            None => {
                let errors = violations.into_iter().map(|mut violation| {
                    violation.hint = violation.hint.filter(|_| self.hints);
                    error(violation, node)
                });
                let errors = errors.collect();
                Err(Refusal { errors, references, plugins })
            }
        }
    }
}

impl Reading<'_> {
    /// Reads part by part, so that one that is wrong hides none of the others.
    fn body(&mut self, key: &Key) -> Option<Body> {
        let kind = key.kind;
        let mut value = self.node.to_json();
        self.reader.catalog.open_private_keys(kind, &mut value);
        if kind == Kind::Route {
            self.violations.extend(exclusive(&value, "host", "hosts"));
            self.violations.extend(exclusive(&value, "remote_addr", "remote_addrs"));
        }
        let (manager, _) = key.id.as_str().split_once('/').unwrap_or((key.id.as_str(), ""));
        let schema = match kind {
            Kind::Secret => schema::secret(manager),
            kind => Some(schema::resource(kind)),
        };
        let Some(schema) = schema else {
            self.violations.push(violation(&["id"], format!("invalid secret manager: {manager}")));
            return None;
        };
        self.violations.extend(schema.validate_all(&mut value).err().into_iter().flatten());
        let has_plugins = match kind {
            Kind::Route | Kind::StreamRoute | Kind::Service | Kind::PluginConfig | Kind::GlobalRule => true,
            Kind::Consumer | Kind::ConsumerGroup | Kind::Credential => true,
            Kind::Upstream | Kind::Proto | Kind::Secret => false,
            Kind::PluginMetadata => return self.metadata(key.id.as_str(), &value),
            Kind::Ssl => {
                let may_be_elsewhere = self.reader.elsewhere && !secret::names_manager(&value);
                let resolved = secret::resolve_all(&mut value, self.reader.environment);
                if may_be_elsewhere && resolved.is_err() && self.violations.is_empty() {
                    return Some(Body::Unused);
                }
                self.violations.extend(resolved.err().into_iter().flatten());
                false
            }
        };
        let mut of_plugins = Vec::new();
        if let (Some(plugins), true) = (value.get("plugins").and_then(Value::as_object), has_plugins) {
            of_plugins = self.of_plugins(kind, plugins);
        }
        let passed = self.violations.is_empty();
        self.fields(kind, &value);
        let body = if passed {
            self.typed(kind, value)
        } else {
            self.upstream_of_refused(kind, &value);
            None
        };
        self.violations.extend(of_plugins.into_iter().map(|violation| below("plugins", violation)));
        body
    }

    /// Checks the metadata of a plugin.
    fn metadata(&mut self, plugin: &str, value: &Value) -> Option<Body> {
        let Reader { catalog, environment, .. } = self.reader;
        match catalog.check_metadata(plugin, value, environment) {
            Ok((plugin, prepared)) => {
                if prepared.is_none() {
                    let reason = format!("{plugin} has no use for metadata here: it changes nothing");
                    self.warnings.push(violation(&[], reason));
                }
                Some(Body::Metadata(plugin, prepared))
            }
            Err(violations) => {
                self.violations.extend(violations);
                None
            }
        }
    }

    /// Checks the plugins; answers what is wrong with them.
    fn of_plugins(&mut self, kind: Kind, plugins: &Plugins) -> Vec<Violation> {
        let Reader { catalog, environment, .. } = self.reader;
        let said = match kind {
            Kind::Consumer => catalog.check_consumer(plugins, environment),
            Kind::Credential => catalog.check_credential(plugins, environment),
            kind => {
                let on = if kind == Kind::StreamRoute { On::Streams } else { On::Requests };
                let (plugins, refused) = catalog.check(on, plugins, environment);
                OfConsumer { plugins, refused, ..OfConsumer::default() }
            }
        };
        (self.plugins, self.credentials) = (said.plugins, said.credentials);
        let literal = self.plugins.iter_mut().flat_map(|plugin| std::mem::take(&mut plugin.unresolved));
        self.warnings.extend(literal.map(|mut fault| {
            fault.message = format!("{}: it is taken as it is written", fault.message);
            below("plugins", fault)
        }));
        self.warnings.extend(said.unresolved.into_iter().map(|mut fault| {
            fault.message = format!("{}: nobody authenticates with this", fault.message);
            below("plugins", fault)
        }));
        if kind == Kind::ConsumerGroup {
            self.leave_out_authenticators();
        }
        said.refused
    }

    /// A group is known once somebody has authenticated: APISIX takes plugins that do that, and never runs them there. Laid over a
    /// route they would have a request authenticate twice, and be another consumer's by the second.
    fn leave_out_authenticators(&mut self) {
        for plugin in self.plugins.extract_if(.., |plugin| plugin.factory.kind == PluginKind::Auth) {
            let name = plugin.factory.name;
            let reason = format!("{name} does not run in a consumer group: its consumers have authenticated");
            self.warnings.extend((!plugin.meta.disable).then(|| violation(&["plugins", name], reason)));
        }
    }

    /// What is checked of fields beyond the schema, and what they refer to.
    fn fields(&mut self, kind: Kind, value: &Value) {
        let (lua, references): (&[&str], &[(Kind, &'static str)]) = match kind {
            Kind::Route => (
                &["filter_func", "script"],
                &[
                    (Kind::Service, "service_id"),
                    (Kind::Upstream, "upstream_id"),
                    (Kind::PluginConfig, "plugin_config_id"),
                ],
            ),
            Kind::Service => (&["script"], &[(Kind::Upstream, "upstream_id")]),
            Kind::StreamRoute => (&[], &[(Kind::Service, "service_id"), (Kind::Upstream, "upstream_id")]),
            Kind::Consumer => (&[], &[(Kind::ConsumerGroup, "group_id")]),
            _ => return,
        };
        for field in lua.iter().filter(|field| value.get(**field).is_some()) {
            let instead = match *field {
                "filter_func" => "`vars` tells requests apart",
                _ => "plugins do what scripts did",
            };
            let reason = format!("not supported: Lua is not run; {instead} (docs/plugins/without-lua.md)");
            self.unless_told(vec![key(field)], reason);
        }
        for (kind, field) in references {
            let id = value.get(*field).and_then(|id| Id::deserialize(id).ok());
            self.references.extend(id.map(|id| Reference {
                key: Key { kind: *kind, id },
                field,
                place: place(self.node, &[key(field)]),
                lets_go: false,
            }));
        }
        if kind == Kind::Route {
            self.client_addresses(value);
            self.vars(value);
        }
    }

    fn client_addresses(&mut self, value: &Value) {
        let field = if value.get("remote_addr").is_some() { "remote_addr" } else { "remote_addrs" };
        let wrong = |address: &Value| {
            let text = address.as_str().filter(|text| network(text).is_none())?;
            Some(format!("invalid ip address: {text}"))
        };
        let Some(Value::Array(addresses)) = value.get(field) else {
            if let Some(reason) = value.get(field).and_then(wrong) {
                self.unless_told(vec![key(field)], reason);
            }
            return;
        };
        let told = |violation: &Violation| match violation.path.as_slice() {
            [Step::Key(name), Step::Index(index), ..] if name == field => Some(*index),
            _ => None,
        };
        let told: HashSet<usize> = self.violations.iter().filter_map(told).collect();
        for (index, address) in addresses.iter().enumerate().filter(|(index, _)| !told.contains(index)) {
            if let Some(reason) = wrong(address) {
                self.violations.push(Violation::new(vec![key(field), Step::Index(index)], reason));
            }
        }
    }

    fn vars(&mut self, value: &Value) {
        let Some(vars) = value.get("vars").filter(|vars| vars.is_array()) else { return };
        if let Err(reason) = Expr::new(vars) {
            let reason = format!("failed to validate the 'vars' expression: {reason}");
            self.unless_told(vec![key("vars")], reason);
        }
    }

    /// Whether something was told of what is at a path or below it.
    fn told(&self, path: &[Step]) -> bool {
        self.violations.iter().any(|violation| violation.path.starts_with(path))
    }

    fn unless_told(&mut self, path: Vec<Step>, reason: impl Into<String>) {
        if !self.told(&path) {
            self.violations.push(Violation::new(path, reason));
        }
    }

    /// The resource as its type, once it has passed its schema.
    fn typed(&mut self, kind: Kind, value: Value) -> Option<Body> {
        Some(match kind {
            Kind::Route => {
                let route: Route = self.value(value)?;
                self.inline_upstream(route.upstream.as_ref());
                Body::Route(route.into())
            }
            Kind::Service => {
                let service: Service = self.value(value)?;
                self.inline_upstream(service.upstream.as_ref());
                Body::Service(service.into())
            }
            Kind::StreamRoute => {
                let route: StreamRoute = self.value(value)?;
                self.inline_upstream(route.upstream.as_ref());
                self.violations.extend(stream_route::check(&route));
                Body::StreamRoute(route.into())
            }
            Kind::Upstream => {
                let upstream: Upstream = self.value(value)?;
                self.upstream(&upstream, &[]);
                Body::Upstream(upstream.into())
            }
            Kind::Ssl => {
                let ssl: Ssl = self.value(value)?;
                self.ssl(&ssl);
                Body::Ssl(ssl.into())
            }
            Kind::PluginConfig => {
                self.value::<PluginConfigResource>(value)?;
                Body::PluginConfig
            }
            Kind::GlobalRule => {
                self.value::<GlobalRule>(value)?;
                Body::GlobalRule
            }
            Kind::Consumer => Body::Consumer(self.value::<Consumer>(value)?.into()),
            Kind::ConsumerGroup => {
                self.value::<ConsumerGroup>(value)?;
                Body::ConsumerGroup
            }
            Kind::Credential => {
                self.value::<Credential>(value)?;
                Body::Credential
            }
            Kind::Proto => {
                self.value::<Proto>(value)?;
                Body::Unused
            }
            Kind::Secret => {
                let reason = "secret managers are not asked: what refers to this one stays as it is written";
                self.warnings.push(violation(&[], reason));
                Body::Unused
            }
            _ => return None,
        })
    }

    /// Checks the upstream that a wrong resource brings, if the schema has nothing against that.
    fn upstream_of_refused(&mut self, kind: Kind, value: &Value) {
        if matches!(kind, Kind::Route | Kind::StreamRoute | Kind::Service) && !self.told(&[key("upstream")]) {
            let upstream = value.get("upstream").and_then(|value| Upstream::deserialize(value).ok());
            self.inline_upstream(upstream.as_ref());
        }
    }

    fn value<T: DeserializeOwned>(&mut self, value: Value) -> Option<T> {
        let read = serde_json::from_value(value);
        read.map_err(|error| self.violations.push(violation(&[], error.to_string()))).ok()
    }

    fn inline_upstream(&mut self, upstream: Option<&Upstream>) {
        if let Some(upstream) = upstream {
            self.upstream(upstream, &["upstream"]);
        }
    }

    fn upstream(&mut self, upstream: &Upstream, prefix: &[&str]) {
        let found = upstream::check(upstream).into_iter().chain(self.resolvable(upstream));
        let placed = found
            .map(|violation| prefix.iter().rev().fold(violation, |violation, name| below(name, violation)));
        self.violations.extend(placed.collect::<Vec<_>>());
        let odd = upstream::warnings(upstream).into_iter();
        self.warnings.extend(odd.map(|odd| prefix.iter().rev().fold(odd, |it, name| below(name, it))));
        self.references.extend(client_certificate(upstream, self.node, prefix));
    }

    /// References to secrets in an upstream's certificate, and a key that can't be read.
    fn resolvable(&self, upstream: &Upstream) -> Vec<Violation> {
        let Some(tls) = &upstream.tls else { return Vec::new() };
        let texts = [("client_cert", &tls.client_cert), ("client_key", &tls.client_key)];
        let faults = texts.into_iter().filter_map(|(field, text)| {
            let mut text = Value::String(text.clone()?);
            let resolved = secret::resolve_all(&mut text, self.reader.environment);
            let mut faults = resolved.err().unwrap_or_default();
            if faults.is_empty() && field == "client_key" && text.as_str().is_some_and(is_undecrypted) {
                faults.push(Violation { hint: undecrypted(), ..violation(&[], UNDECRYPTED) });
            }
            Some(faults.into_iter().map(move |fault| below("tls", below(field, fault))))
        });
        faults.flatten().collect()
    }

    fn ssl(&mut self, ssl: &Ssl) {
        if ssl.certs.len() != ssl.keys.len() {
            self.violations.push(violation(&["certs"], "mismatched number of certs and keys"));
        }
        let others = ssl.certs.iter().enumerate();
        let others = others.map(|(index, text)| (vec![key("certs"), Step::Index(index)], text));
        let certificates = std::iter::once((vec![key("cert")], &ssl.cert)).chain(others);
        for (pair, (path, _)) in certificates.enumerate().filter(|(_, (_, text))| !has_certificate(text)) {
            let words = of_pair(pair, NO_CERTIFICATE);
            self.violations.push(Violation { hint: no_certificate(), ..Violation::new(path, words) });
        }
        for (pair, _) in ssl.pairs().enumerate().filter(|(_, (_, text))| is_undecrypted(text)) {
            let path = match pair.checked_sub(1) {
                None => vec![key("key")],
                Some(index) => vec![key("keys"), Step::Index(index)],
            };
            let words = of_pair(pair, UNDECRYPTED);
            self.violations.push(Violation { hint: undecrypted(), ..Violation::new(path, words) });
        }
        if ssl.client.as_ref().is_some_and(|client| !has_certificate(&client.ca)) {
            let reason = format!("failed to validate client_cert: {NO_CERTIFICATE}");
            self.violations
                .push(Violation { hint: no_certificate(), ..violation(&["client", "ca"], reason) });
        }
        let protocols = || ssl.ssl_protocols.iter().flatten();
        if protocols().any(|protocol| protocol == "TLSv1.1") {
            let reason = "TLSv1.1 is not supported; TLSv1.2 and TLSv1.3 are";
            let alone = protocols().all(|protocol| protocol == "TLSv1.1");
            let told = if alone { &mut self.violations } else { &mut self.warnings };
            told.push(violation(&["ssl_protocols"], reason));
        }
    }
}

/// What APISIX says of a private key that is neither PEM nor one that was encrypted.
const UNDECRYPTED: &str = "failed to decrypt previous encrypted key";

fn is_undecrypted(key: &str) -> bool {
    !is_pem(key)
}

fn undecrypted() -> Option<String> {
    Some("it is neither PEM nor encrypted by a key of apisix.data_encryption.keyring".to_owned())
}

fn no_certificate() -> Option<String> {
    Some("there is no certificate in PEM form".to_owned())
}

fn has_certificate(text: &str) -> bool {
    ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"]
        .iter()
        .any(|kind| text.contains(&format!("-----BEGIN {kind}-----")))
}

/// An address, or a range of them.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// The violation of a value that has both of two properties.
pub(crate) fn exclusive(value: &Value, one: &str, other: &str) -> Option<Violation> {
    let both = value.get(one).is_some() && value.get(other).is_some();
    both.then(|| violation(&[other], format!("only one of {one} or {other} is allowed")))
}

fn client_certificate(upstream: &Upstream, node: &Node, prefix: &[&str]) -> Vec<Reference> {
    let id = upstream.tls.as_ref().and_then(|tls| tls.client_cert_id.clone());
    let path: Vec<Step> = prefix.iter().chain(&["tls", "client_cert_id"]).map(|name| key(name)).collect();
    let reference = |id| Reference {
        key: Key { kind: Kind::Ssl, id },
        field: "client_cert_id",
        place: place(node, &path),
        lets_go: false,
    };
    id.map(reference).into_iter().collect()
}

/// A violation at a path of keys.
pub(crate) fn violation(path: &[&str], message: impl Into<String>) -> Violation {
    Violation::new(path.iter().map(|name| key(name)).collect(), message)
}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

fn below(name: &str, mut violation: Violation) -> Violation {
    violation.path.insert(0, key(name));
    violation
}

/// Fingerprints of the upstream that a resource is or brings, 0 without one, and of what else counts.
fn prints(kind: Kind, node: &Node) -> (u64, u64) {
    let print = |node: &Node, seed| xxh64(node.to_json().to_string().as_bytes(), seed);
    if kind == Kind::Upstream {
        let print = print(node, 0);
        return (print, print);
    }
    let upstream = node.get("upstream").map_or(0, |upstream| print(upstream, 0));
    let apart = ["upstream", "plugins", "desc", "labels", "create_time", "update_time"];
    let entries = node.as_object().map(document::Object::entries).unwrap_or_default();
    let rest = entries.iter().filter(|entry| !apart.contains(&entry.key.as_str()));
    let rest = rest.fold(0, |seed, entry| print(&entry.value, xxh64(entry.key.as_bytes(), seed)));
    (upstream, rest)
}

fn error(violation: Violation, node: &Node) -> ConfigError {
    let place = place(node, &violation.path);
    fault(violation).at(place)
}

/// A violation as an error whose place nobody knows.
pub(crate) fn fault(violation: Violation) -> ConfigError {
    let reason = match &violation.hint {
        Some(hint) => format!("{}; {hint}", violation.message),
        None => violation.message,
    };
    let error = ConfigError::new(reason).of_kind(violation.kind);
    match display_path(&violation.path) {
        path if path.is_empty() => error,
        path => error.in_key(&path),
    }
}

/// The place of what a path leads to, or of the deepest part of it that is there.
fn place(node: &Node, path: &[Step]) -> Place {
    let Some((step, rest)) = path.split_first() else { return node.place };
    match step {
        Step::Index(index) => match node.as_array().and_then(|items| items.get(*index)) {
            Some(item) => place(item, rest),
            None => node.place,
        },
        Step::Key(name) => match node.as_object().and_then(|object| object.entry(name)) {
            Some(entry) if rest.is_empty() => entry.key_place,
            Some(entry) => place(&entry.value, rest),
            None => node.place,
        },
    }
}
