//! An Envoy bootstrap: its listeners, certificates, files, control planes and names.

use super::machine::Names;
use super::port::Without;
use super::{Report, certificate, machine, port, reach};
use crate::Failure;
use crate::envoy::Text;
use crate::process::plugins;
use serde_json::Value;
use sixfold_core::compile::CompileContext;
use sixfold_core::detached::LogCheck;
use sixfold_core::files;
use sixfold_core::tls::{AlpnOffer, Identity, Pem};
use sixfold_server::dns::ResolverConfig;
use sixfold_xds::bootstrap::{Compiled, ProcessContext};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Looks at a bootstrap.
pub(super) fn look(report: &mut Report, text: &Text, path: &Path) -> Result<(), Failure> {
    let mut found = Found::default();
    let document = text.document()?;
    found.walk(&document, "", false);
    let compile = CompileContext {
        log_sinks: Arc::new(LogCheck { makes_folders: false }),
        ..CompileContext::detached(plugins())
    };
    let context = ProcessContext::new(compile);
    let mut names = Names::new(ResolverConfig::default());
    // What keeps it from being compiled has been told.
    let compiled = text.load(&context).ok();
    if let Some(compiled) = &compiled {
        ports(report, compiled, path);
    }
    for (place, (chain, key)) in &found.identities {
        let identity = Identity { chain: chain.clone(), key: key.clone() };
        certificate::identity(report, place, &identity);
    }
    for (place, pem) in &found.authorities {
        certificate::authorities(report, place, pem);
    }
    for (file, place) in &found.files {
        let about = format!("{} ({place})", file.display());
        match files::open(file) {
            Ok(_) => report.ok("file", about, "is readable"),
            Err(error) => {
                report.fault("file", about, error.to_string(), "put it there, or let this user read it")
            }
        }
    }
    for (file, place) in &found.logs {
        if file.starts_with("/dev") {
            continue;
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        machine::writable(report, place, folder, false);
    }
    clusters(report, &mut names, &document, &found.control_planes, compiled.as_ref());
    Ok(())
}

fn ports(report: &mut Report, compiled: &Compiled, path: &Path) {
    for listener in compiled.diff.listeners.iter().filter_map(|(_, listener)| listener.as_ref()) {
        for address in listener.addresses.iter().filter(|_| listener.bind) {
            port::check(report, &format!("listener \"{}\"", listener.name), (address, Without::Ends), path);
        }
    }
    if let Some(admin) = &compiled.admin {
        port::check(report, "admin.address", (&admin.address, Without::Ends), path);
    }
}

/// What of a document is to be looked at.
#[derive(Default)]
struct Found {
    identities: BTreeMap<String, (Pem, Pem)>,
    authorities: BTreeMap<String, Pem>,
    files: BTreeMap<PathBuf, String>,
    logs: BTreeMap<PathBuf, String>,
    /// Clusters that configuration is asked of.
    control_planes: BTreeSet<String>,
}

/// A field by its name in the definitions or in JSON.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| value.get(camel(name)))
}

/// `a_bc` as `aBc`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let (head, tail) = part.split_at(part.len().min(1));
        text + &head.to_ascii_uppercase() + tail
    })
}

/// PEM of a DataSource; none of one that is not looked at: a variable, or bytes.
fn pem(source: &Value) -> Option<Pem> {
    let text = |name| field(source, name).and_then(Value::as_str);
    let inline = text("inline_string").map(|text| Pem::Inline(text.into()));
    inline.or_else(|| text("filename").map(|file| Pem::File(file.into())))
}

impl Found {
    fn walk(&mut self, value: &Value, place: &str, is_source: bool) {
        match value {
            Value::Object(object) => {
                self.look(value, place, is_source);
                for (key, below) in object {
                    let is_source = is_source
                        || ["ads_config", "adsConfig", "api_config_source", "apiConfigSource"]
                            .contains(&key.as_str());
                    let below_place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                    self.walk(below, &below_place, is_source);
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.walk(item, &format!("{place}[{at}]"), is_source);
                }
            }
            _ => {}
        }
    }

    fn look(&mut self, value: &Value, place: &str, is_source: bool) {
        let chain = field(value, "certificate_chain").and_then(pem);
        let key = field(value, "private_key").and_then(pem);
        if let (Some(chain), Some(key)) = (chain, key) {
            self.identities.insert(place.to_owned(), (chain, key));
        }
        if let Some(pem) = field(value, "trusted_ca").and_then(pem) {
            self.authorities.insert(format!("{place}.trusted_ca"), pem);
        }
        let path = field(value, "path").and_then(Value::as_str);
        let kind = value.get("@type").and_then(Value::as_str).unwrap_or_default();
        if kind.ends_with("FileAccessLog") {
            self.logs.extend(path.map(|path| (path.into(), place.to_owned())));
        }
        let source = field(value, "path_config_source").and_then(|source| source.get("path")?.as_str());
        self.files.extend(source.map(|path| (path.into(), place.to_owned())));
        let asked = field(value, "envoy_grpc").and_then(|grpc| field(grpc, "cluster_name")?.as_str());
        if is_source {
            self.control_planes.extend(asked.map(str::to_owned));
        }
    }
}

/// Endpoints of static clusters: whether names have addresses, and whether control planes answer.
fn clusters(
    report: &mut Report,
    names: &mut Names,
    document: &Value,
    control_planes: &BTreeSet<String>,
    compiled: Option<&Compiled>,
) {
    let statics = field(document, "static_resources").and_then(|statics| statics.get("clusters")?.as_array());
    for cluster in statics.into_iter().flatten() {
        let name = cluster.get("name").and_then(Value::as_str).unwrap_or_default();
        let mut endpoints = Vec::new();
        addresses(cluster, &mut endpoints);
        for (host, port) in endpoints {
            if control_planes.contains(name) {
                control_plane(report, names, name, (&host, port), compiled);
            } else if port != 0 && host.parse::<std::net::IpAddr>().is_err() {
                names.check(report, &format!("cluster \"{name}\""), &host);
            }
        }
    }
    for name in control_planes {
        let is_there = |cluster: &Value| cluster.get("name").and_then(Value::as_str) == Some(name);
        if !statics.is_some_and(|clusters| clusters.iter().any(is_there)) {
            let advice = "add it to static_resources.clusters";
            report.fault(
                "server",
                format!("cluster \"{name}\""),
                "configuration is asked of it, and it is not there",
                advice,
            );
        }
    }
}

fn control_plane(
    report: &mut Report,
    names: &mut Names,
    name: &str,
    (host, port): (&str, u16),
    compiled: Option<&Compiled>,
) {
    let key = format!("control plane \"{name}\"");
    if port == 0 {
        return reach::check_unix(report, &key, host);
    }
    let cluster = compiled.and_then(|compiled| {
        let clusters = compiled.diff.clusters.iter();
        clusters.filter(|(of, _)| &**of == name).find_map(|(_, cluster)| cluster.as_ref())
    });
    let context = cluster.and_then(|cluster| cluster.config.tls.as_ref()?.context());
    let tls = context.map(|context| reach::Tls {
        config: context.config(AlpnOffer::Http2),
        name: context.server_name(None, host).unwrap_or(host).to_owned(),
    });
    reach::check(report, names, &key, (host, port), tls);
}

/// Addresses of endpoints below a value; a unix socket has port 0.
fn addresses(value: &Value, found: &mut Vec<(String, u16)>) {
    match value {
        Value::Object(object) => {
            if let Some(endpoint) = value.get("endpoint").and_then(|endpoint| endpoint.get("address")) {
                let socket = field(endpoint, "socket_address");
                let host = socket.and_then(|socket| socket.get("address")?.as_str());
                let port = socket.and_then(|socket| field(socket, "port_value")?.as_u64());
                let port = port.and_then(|port| u16::try_from(port).ok());
                found.extend(host.zip(port).map(|(host, port)| (host.to_owned(), port)));
                let pipe = endpoint.get("pipe").and_then(|pipe| pipe.get("path")?.as_str());
                found.extend(pipe.map(|path| (path.to_owned(), 0)));
            }
            object.values().for_each(|below| addresses(below, found));
        }
        Value::Array(items) => items.iter().for_each(|item| addresses(item, found)),
        _ => {}
    }
}
