//! An APISIX gateway: what its config.yaml and its resources need.

use super::machine::Names;
use super::port::Without;
use super::{Report, certificate, machine, port, reach};
use crate::Failure;
use crate::dump;
use crate::envoy::Text;
use crate::fetch;
use crate::gateway::resolver;
use crate::validate::Kind;
use serde_json::Value;
use sixfold_apisix::config::{Config, EnvVars, EtcdConfig, Provider};
use sixfold_apisix::store::etcd_client_tls;
use sixfold_core::listener::BindAddress;
use sixfold_core::tls::{AlpnOffer, Identity, Pem};
use std::collections::BTreeMap;
use std::path::Path;

/// Looks at a config.yaml with its resources, or at an apisix.yaml alone.
pub(super) fn look(report: &mut Report, kind: Kind, text: &Text, path: &Path) -> Result<(), Failure> {
    let config = match kind {
        Kind::Configuration => {
            let (config, _) = Config::examine(&text.text, &text.name, &EnvVars::Process);
            config
        }
        _ => Config::standalone("", &EnvVars::Process).ok(),
    };
    let Some(config) = config else { return Ok(()) };
    let mut names = Names::new(resolver(&config));
    if kind == Kind::Configuration {
        ports(report, &config, path);
        folders(report, &config, path);
        files(report, &config);
    }
    match &config.deployment.etcd {
        Some(etcd) if config.deployment.provider == Provider::Etcd => {
            members(report, &mut names, etcd, config.ssl.trusted_file());
        }
        _ => match dump::resources(text, path, kind) {
            Ok(lists) => resources(report, &mut names, &lists.into()),
            Err(failure) => {
                for reason in failure.0 {
                    report.fault("resources", &text.name, reason, "mend what keeps them from being read");
                }
            }
        },
    }
    Ok(())
}

/// Every address that the gateway listens on.
fn ports(report: &mut Report, config: &Config, path: &Path) {
    let mut check = |key: &str, address: &BindAddress, without: Without| {
        port::check(report, key, (address, without), path);
    };
    let unless_written = |key: &str| if config.is_written(key) { Without::Ends } else { Without::Starts };
    for listen in &config.http_listeners {
        check(&listen.key(), &BindAddress::Ip(listen.address), Without::Ends);
    }
    for listen in &config.https_listeners {
        let is_default = listen.list == "apisix.ssl.listen" && !config.is_written("apisix.ssl");
        let without = if is_default { Without::Starts } else { Without::Ends };
        check(&listen.key(), &BindAddress::Ip(listen.address), without);
    }
    for listen in config.stream_proxy.tcp.iter().chain(&config.stream_proxy.udp) {
        check(&format!("{}[{}]", listen.list, listen.index), &listen.address, Without::Ends);
    }
    let own = [
        ("deployment.admin.admin_listen", config.admin.as_ref().map(|admin| admin.address)),
        ("apisix.control", config.control),
        ("apisix.status", config.status),
        ("plugin_attr.prometheus.export_addr", config.metrics.as_ref().map(|page| page.address)),
    ];
    for (key, address) in own {
        if let Some(address) = address {
            check(key, &BindAddress::Ip(address), unless_written(key));
        }
    }
}

/// Where logs and the store are written.
fn folders(report: &mut Report, config: &Config, path: &Path) {
    let beside = path.parent().unwrap_or(Path::new("."));
    if matches!(config.deployment.provider, Provider::Embedded | Provider::Etcd) {
        let kept = config.resources_path(beside, &EnvVars::Process);
        machine::writable(report, "the store", kept.parent().unwrap_or(beside), true);
    }
    let logs = [("http", &config.http.access_log), ("stream", &config.stream_log)];
    for (section, log) in logs {
        if let Some(folder) = log.as_ref().and_then(|log| log.path.parent()) {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            machine::writable(
                report,
                &format!("nginx_config.{section}.access_log"),
                folder,
                folder.is_relative(),
            );
        }
    }
}

/// Certificates of files that config.yaml names.
fn files(report: &mut Report, config: &Config) {
    if let Some(file) = config.ssl.trusted_file() {
        let about = format!("{} (apisix.ssl.ssl_trusted_certificate)", file.display());
        certificate::authorities(report, &about, &Pem::File(file.to_owned()));
    }
    if let Some(tls) = config.admin.as_ref().and_then(|admin| admin.tls.as_ref()) {
        let about = format!("{} (deployment.admin.admin_api_mtls)", tls.certificate.display());
        let (chain, key) = (Pem::File(tls.certificate.clone()), Pem::File(tls.key.clone()));
        certificate::identity(report, &about, &Identity { chain, key });
        if let Some(file) = &tls.authority {
            let about = format!("{} (deployment.admin.admin_api_mtls.admin_ssl_ca_cert)", file.display());
            certificate::authorities(report, &about, &Pem::File(file.clone()));
        }
    }
    let identity = config.deployment.etcd.as_ref().and_then(|etcd| etcd.tls.identity.as_ref());
    if let Some((chain, key)) = identity {
        let about = format!("{} (deployment.etcd.tls)", chain.display());
        let (chain, key) = (Pem::File(chain.clone()), Pem::File(key.clone()));
        certificate::identity(report, &about, &Identity { chain, key });
    }
}

/// Every member of an etcd.
fn members(report: &mut Report, names: &mut Names, etcd: &EtcdConfig, trusted: Option<&Path>) {
    for host in &etcd.hosts {
        let key = "deployment.etcd.host";
        let server = (host.name.as_str(), host.port);
        if !host.tls {
            let reached = reach::check(report, names, key, server, None);
            let answer = reached.map(|address| fetch::get(&address.to_string(), "/version", &[]));
            match answer {
                Some(Ok(answer)) if answer.status == 200 && answer.body.contains("etcdserver") => {}
                Some(_) => report.fault(
                    "server",
                    format!("{host} ({key})"),
                    "does not answer as an etcd",
                    "name the port of etcd's clients, 2379 by default",
                ),
                None => {}
            }
            continue;
        }
        match etcd_client_tls(etcd, trusted) {
            Ok(tls) => {
                let tls = tls.context().map(|context| reach::Tls {
                    config: context.config(AlpnOffer::Http2),
                    name: context.server_name(None, &host.name).unwrap_or(&host.name).to_owned(),
                });
                reach::check(report, names, key, server, tls);
            }
            Err(error) => {
                report.fault(
                    "server",
                    format!("{host} ({key})"),
                    error.to_string(),
                    "mend deployment.etcd.tls",
                );
            }
        }
    }
}

/// What resources need: certificates, and names of upstreams.
fn resources(report: &mut Report, names: &mut Names, lists: &Value) {
    let ssls = lists.get("ssls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for ssl in ssls {
        self::ssl(report, ssl);
    }
    let mut hosts = BTreeMap::new();
    find_hosts(lists, "", &mut hosts);
    for (host, key) in hosts {
        names.check(report, &key, &host);
    }
}

fn ssl(report: &mut Report, ssl: &Value) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let about = format!("ssl \"{}\"", text(ssl.get("id")));
    let list = |key| ssl.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let first = (text(ssl.get("cert")), text(ssl.get("key")));
    let others = list("certs").iter().zip(list("keys"));
    let others = others.map(|(chain, key)| (text(Some(chain)), text(Some(key))));
    for (chain, key) in [first].into_iter().chain(others) {
        if [&chain, &key].iter().any(|part| part.starts_with('$')) {
            report.ok("certificate", &about, "is kept elsewhere, and is not looked at");
            continue;
        }
        let identity =
            Identity { chain: Pem::Inline(chain.into_bytes()), key: Pem::Inline(key.into_bytes()) };
        certificate::identity(report, &about, &identity);
    }
    if let Some(ca) = ssl.pointer("/client/ca").and_then(Value::as_str) {
        certificate::authorities(report, &format!("{about} client.ca"), &Pem::Inline(ca.into()));
    }
}

/// Names of nodes wherever an upstream stands, and where the first of each is.
fn find_hosts(value: &Value, place: &str, hosts: &mut BTreeMap<String, String>) {
    let mut add = |host: &str| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.parse::<std::net::IpAddr>().is_err() && !host.is_empty() {
            hosts.entry(host.to_owned()).or_insert_with(|| place.to_owned());
        }
    };
    match value {
        Value::Object(object) => {
            match object.get("nodes") {
                Some(Value::Object(nodes)) => nodes.keys().for_each(|node| add(without_port(node))),
                Some(Value::Array(nodes)) => {
                    nodes.iter().filter_map(|node| node.get("host")?.as_str()).for_each(add);
                }
                _ if object.get("discovery_type").and_then(Value::as_str) == Some("dns") => {
                    object
                        .get("service_name")
                        .and_then(Value::as_str)
                        .map(without_port)
                        .into_iter()
                        .for_each(add);
                }
                _ => {}
            }
            for (key, below) in object {
                let below_place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                find_hosts(below, &below_place, hosts);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let name = item.get("id").and_then(Value::as_str);
                let name = name.map_or_else(|| at.to_string(), |id| format!("\"{id}\""));
                find_hosts(item, &format!("{place}[{name}]"), hosts);
            }
        }
        _ => {}
    }
}

fn without_port(node: &str) -> &str {
    match node.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) => {
            host
        }
        _ => node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_found_wherever_an_upstream_stands() {
        let mut hosts = BTreeMap::new();
        let lists = json!({
            "routes": [{"id": "a", "upstream": {"nodes": {"one.test:80": 1, "127.0.0.1:1": 1, "[::1]:2": 1}}}],
            "upstreams": [{"nodes": [{"host": "two.test", "port": 1}]}, {"service_name": "three.test:53", "discovery_type": "dns"}],
        });
        find_hosts(&lists, "", &mut hosts);
        let found: Vec<_> = hosts.iter().map(|(host, place)| format!("{host} {place}")).collect();
        assert_eq!(
            found,
            ["one.test routes[\"a\"].upstream", "three.test upstreams[1]", "two.test upstreams[0]"]
        );
    }
}
