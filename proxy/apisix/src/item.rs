//! One resource, read: schema, plugins and what APISIX checks beyond the schema.
//!
//! What comes out depends on nothing but the resource's value and the plugins that are enabled. What it refers
//! to is checked by whoever sees all resources. Places are those in the resource, lines counted from its first.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sixfold_core::document::{self, Node};
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::expr::Expr;
use xxhash_rust::xxh64::xxh64;

use crate::config::EnvVars;
use crate::plugin::{Catalog, PluginConfig};
use crate::resource::{
    GlobalRule, Id, Kind, PluginConfig as PluginConfigResource, Plugins, Route, Service, Ssl, Upstream,
};
use crate::schema::{self, Step, Violation, display_path};
use crate::store::Key;
use crate::{secret, upstream};

/// A resource that is valid by itself.
pub(crate) struct Parsed {
    /// What it refers to.
    pub(crate) references: Vec<Reference>,
    /// Its plugins, those that are switched off left out.
    pub(crate) plugins: Vec<PluginConfig>,
    /// Fingerprint of the upstream that it is or brings; 0 without one.
    pub(crate) upstream_print: u64,
    /// Fingerprint of all but upstream, plugins and what is written for people.
    pub(crate) print: u64,
    /// The resource.
    pub(crate) body: Body,
}

/// The kinds of resources that are in use.
pub(crate) enum Body {
    GlobalRule,
    PluginConfig,
    Route(Box<Route>),
    Service(Box<Service>),
    Ssl(Box<Ssl>),
    Upstream(Box<Upstream>),
}

/// Another resource that one needs.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) key: Key,
    pub(crate) field: &'static str,
    pub(crate) place: Place,
}

/// What resources are read with.
pub(crate) struct Reader<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) environment: &'a EnvVars,
}

impl Reader<'_> {
    /// Reads the value of a resource.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place.
    pub(crate) fn read(&self, kind: Kind, node: &Node) -> Result<Parsed, Vec<ConfigError>> {
        match self.read_value(kind, node) {
            Ok((references, plugins, body)) => {
                let (upstream_print, print) = prints(kind, node);
                Ok(Parsed { references, plugins, upstream_print, print, body })
            }
            Err(violations) => Err(violations.into_iter().map(|v| error(v, node)).collect()),
        }
    }

    fn read_value(
        &self,
        kind: Kind,
        node: &Node,
    ) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
        let mut value = node.to_json();
        if kind == Kind::Route {
            exclusive(&value, "host", "hosts").map_err(|v| vec![v])?;
            exclusive(&value, "remote_addr", "remote_addrs").map_err(|v| vec![v])?;
        }
        schema::resource(kind).validate(&mut value).map_err(|v| vec![v])?;
        match kind {
            Kind::Route => self.route(value, node),
            Kind::Service => self.service(value, node),
            Kind::Upstream => {
                let upstream: Upstream = typed(value)?;
                let mut violations = upstream::check(&upstream);
                violations.extend(self.resolvable(&upstream));
                finish(
                    violations,
                    client_certificate(&upstream, node, &[]),
                    Vec::new(),
                    Body::Upstream(upstream.into()),
                )
            }
            Kind::Ssl => self.ssl(value),
            Kind::PluginConfig => {
                let resource: PluginConfigResource = typed(value)?;
                self.with_plugins(Some(&resource.plugins), Vec::new(), Vec::new(), Body::PluginConfig)
            }
            Kind::GlobalRule => {
                let resource: GlobalRule = typed(value)?;
                self.with_plugins(Some(&resource.plugins), Vec::new(), Vec::new(), Body::GlobalRule)
            }
            other => Err(vec![violation(&[], format!("{} are not supported", other.section()))]),
        }
    }

    fn route(
        &self,
        value: Value,
        node: &Node,
    ) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
        let route: Route = typed(value)?;
        let mut violations = Vec::new();
        for (field, is_there) in
            [("filter_func", route.filter_func.is_some()), ("script", route.script.is_some())]
        {
            if is_there {
                violations.push(violation(&[field], "not supported: Lua is not run"));
            }
        }
        let field = if route.remote_addr.is_some() { "remote_addr" } else { "remote_addrs" };
        for address in route.client_addresses().filter(|address| network(address).is_none()) {
            violations.push(violation(&[field], format!("invalid ip address: {address}")));
        }
        if let Some(vars) = &route.vars
            && let Err(reason) = Expr::new(&Value::Array(vars.clone()))
        {
            violations
                .push(violation(&["vars"], format!("failed to validate the 'vars' expression: {reason}")));
        }
        let mut references = Vec::new();
        reference(&mut references, Kind::Service, route.service_id.as_ref(), "service_id", node);
        reference(&mut references, Kind::Upstream, route.upstream_id.as_ref(), "upstream_id", node);
        reference(
            &mut references,
            Kind::PluginConfig,
            route.plugin_config_id.as_ref(),
            "plugin_config_id",
            node,
        );
        self.inline_upstream(route.upstream.as_ref(), node, &mut references, &mut violations);
        let plugins = route.plugins.clone();
        self.with_plugins(plugins.as_ref(), violations, references, Body::Route(route.into()))
    }

    fn service(
        &self,
        value: Value,
        node: &Node,
    ) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
        let service: Service = typed(value)?;
        let mut violations = Vec::new();
        if service.script.is_some() {
            violations.push(violation(&["script"], "not supported: Lua is not run"));
        }
        let mut references = Vec::new();
        reference(&mut references, Kind::Upstream, service.upstream_id.as_ref(), "upstream_id", node);
        self.inline_upstream(service.upstream.as_ref(), node, &mut references, &mut violations);
        let plugins = service.plugins.clone();
        self.with_plugins(plugins.as_ref(), violations, references, Body::Service(service.into()))
    }

    fn inline_upstream(
        &self,
        upstream: Option<&Upstream>,
        node: &Node,
        references: &mut Vec<Reference>,
        violations: &mut Vec<Violation>,
    ) {
        let Some(upstream) = upstream else { return };
        let found = upstream::check(upstream).into_iter().chain(self.resolvable(upstream));
        violations.extend(found.map(|violation| below("upstream", violation)));
        references.extend(client_certificate(upstream, node, &["upstream"]));
    }

    /// References to secrets in an upstream's certificate.
    fn resolvable(&self, upstream: &Upstream) -> Option<Violation> {
        let tls = upstream.tls.as_ref()?;
        let texts = [("client_cert", &tls.client_cert), ("client_key", &tls.client_key)];
        texts.into_iter().find_map(|(field, text)| {
            let mut text = Value::String(text.clone()?);
            let reason = secret::resolve_all(&mut text, self.environment).err()?;
            Some(violation(&["tls", field], reason))
        })
    }

    fn ssl(&self, mut value: Value) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
        let resolved = secret::resolve_all(&mut value, self.environment);
        resolved.map_err(|reason| vec![violation(&[], reason)])?;
        let ssl: Ssl = typed(value)?;
        let mut violations = Vec::new();
        if ssl.certs.len() != ssl.keys.len() {
            violations.push(violation(&["certs"], "mismatched number of certs and keys"));
        }
        if ssl.ssl_protocols.iter().flatten().any(|protocol| protocol == "TLSv1.1") {
            violations
                .push(violation(&["ssl_protocols"], "TLSv1.1 is not supported; TLSv1.2 and TLSv1.3 are"));
        }
        finish(violations, Vec::new(), Vec::new(), Body::Ssl(ssl.into()))
    }

    fn with_plugins(
        &self,
        plugins: Option<&Plugins>,
        mut violations: Vec<Violation>,
        references: Vec<Reference>,
        body: Body,
    ) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
        let checked = match plugins {
            Some(plugins) => self.catalog.check(plugins, self.environment),
            None => Ok(Vec::new()),
        };
        match checked {
            Ok(plugins) => finish(violations, references, plugins, body),
            Err(refused) => {
                violations.extend(refused.into_iter().map(|violation| below("plugins", violation)));
                Err(violations)
            }
        }
    }
}

fn finish(
    violations: Vec<Violation>,
    references: Vec<Reference>,
    plugins: Vec<PluginConfig>,
    body: Body,
) -> Result<(Vec<Reference>, Vec<PluginConfig>, Body), Vec<Violation>> {
    if violations.is_empty() { Ok((references, plugins, body)) } else { Err(violations) }
}

/// An address, or a range of them.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn exclusive(value: &Value, one: &str, other: &str) -> Result<(), Violation> {
    if value.get(one).is_some() && value.get(other).is_some() {
        return Err(violation(&[other], format!("only one of {one} or {other} is allowed")));
    }
    Ok(())
}

fn reference(list: &mut Vec<Reference>, kind: Kind, id: Option<&Id>, field: &'static str, node: &Node) {
    if let Some(id) = id {
        let target = Key { kind, id: id.clone() };
        list.push(Reference { key: target, field, place: place(node, &[key(field)]) });
    }
}

fn client_certificate(upstream: &Upstream, node: &Node, prefix: &[&str]) -> Vec<Reference> {
    let id = upstream.tls.as_ref().and_then(|tls| tls.client_cert_id.clone());
    let path: Vec<Step> = prefix.iter().chain(&["tls", "client_cert_id"]).map(|name| key(name)).collect();
    let reference = |id| Reference {
        key: Key { kind: Kind::Ssl, id },
        field: "client_cert_id",
        place: place(node, &path),
    };
    id.map(reference).into_iter().collect()
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Vec<Violation>> {
    serde_json::from_value(value).map_err(|error| vec![violation(&[], error.to_string())])
}

/// A violation at a path of keys.
pub(crate) fn violation(path: &[&str], message: impl Into<String>) -> Violation {
    Violation { path: path.iter().map(|name| key(name)).collect(), message: message.into() }
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
    let error = ConfigError::new(violation.message).at(place(node, &violation.path));
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
