//! Addresses that one config.yaml gives to several: nginx or the operating system would say so, and not where.

use std::collections::HashSet;
use std::net::SocketAddr;

use sixfold_core::error::ConfigError;

use super::{Config, ListenAddress};

/// Somebody who listens.
struct Claim {
    key: String,
    address: SocketAddr,
    /// Whether the user's file says so, and not a default.
    written: bool,
    /// Whether connections begin with a PROXY protocol header.
    proxied: bool,
}

/// Refuses what can't listen beside each other. An address that a list has twice is listened on once, and defaults that
/// APISIX gives up are given up: `reports` gets both.
pub(super) fn check(config: &mut Config, reports: &mut Vec<ConfigError>, errors: &mut Vec<ConfigError>) {
    let (http, https) = (config.http_listeners.clone(), config.https_listeners.clone());
    let http = once(config, http, reports, errors);
    let mut https = once(config, https, reports, errors);
    let tls_is_default = !config.is_written("apisix.ssl.listen");
    let mut claims: Vec<Claim> = http.iter().map(|listen| Claim::listener(config, listen)).collect();
    https.retain(|listen| {
        let claim = Claim::listener(config, listen);
        let rival = claims.iter().find(|rival| rival.overlaps(&claim));
        if let (Some(rival), true, "apisix.ssl.listen") = (rival, tls_is_default, listen.list) {
            tell(reports, clash(config, rival, &claim, "; the port is not TLS's then"));
            return false;
        }
        rival.into_iter().for_each(|rival| tell(errors, clash(config, rival, &claim, "")));
        true
    });
    claims.extend(https.iter().map(|listen| Claim::listener(config, listen)));
    (config.http_listeners, config.https_listeners) = (http, https);
    streams(config, &mut claims, errors);
    surfaces(config, &mut claims, reports, errors);
}

/// Tells it unless it was told for the key: a port that is given twice is given twice for IPv6 too.
fn tell(told: &mut Vec<ConfigError>, error: ConfigError) {
    if !told.iter().any(|other| other.field == error.field) {
        told.push(error);
    }
}

/// The list without what is in it already.
fn once(
    config: &Config,
    list: Vec<ListenAddress>,
    reports: &mut Vec<ConfigError>,
    errors: &mut Vec<ConfigError>,
) -> Vec<ListenAddress> {
    let mut kept: Vec<ListenAddress> = Vec::new();
    for listen in list {
        let claim = Claim::listener(config, &listen);
        let mut rivals = kept.iter().map(|kept| Claim::listener(config, kept));
        let Some(rival) = rivals.find(|rival| rival.overlaps(&claim)) else {
            kept.push(listen);
            continue;
        };
        if rival.proxied != claim.proxied {
            tell(errors, clash(config, &rival, &claim, "; one of them takes the PROXY protocol"));
            continue;
        }
        let place = place(config, &rival);
        let reason = format!("{} is listened on already, by {} {place}", claim.address, rival.key);
        tell(reports, config.fault(&claim.key, reason));
        if listen.address.ip().is_unspecified() && !rival.address.ip().is_unspecified() {
            kept.retain(|other| !Claim::listener(config, other).overlaps(&claim));
            kept.push(listen);
        }
    }
    kept
}

/// The addresses of streams over TCP.
fn streams(config: &Config, claims: &mut Vec<Claim>, errors: &mut Vec<ConfigError>) {
    let (mut seen, mut listening) = (HashSet::new(), Vec::new());
    for listen in &config.stream_proxy.tcp {
        let Some(address) = listen.address.ip() else { continue };
        let (written, proxied) = (config.is_written(listen.list), listen.proxy_protocol);
        let claim = Claim { key: listen.key(), address, written, proxied };
        if let Some(rival) = claims.iter().find(|rival| rival.overlaps(&claim)) {
            tell(errors, clash(config, rival, &claim, ""));
        } else if address.port() != 0 && !seen.insert(address) {
            let reason = format!("{address} is given twice");
            tell(errors, config.fault(&claim.key, reason));
        } else {
            listening.push(claim);
        }
    }
    claims.extend(listening);
}

/// The servers beside the gateway.
fn surfaces(
    config: &mut Config,
    claims: &mut Vec<Claim>,
    reports: &mut Vec<ConfigError>,
    errors: &mut Vec<ConfigError>,
) {
    if let Some(page) = &config.metrics {
        let claim = Claim::server(config, "plugin_attr.prometheus.export_addr", page.address);
        let rival = claims.iter().find(|rival| rival.overlaps(&claim));
        errors.extend(rival.map(|rival| clash(config, rival, &claim, "")));
        claims.push(claim);
    }
    let admin = config.admin.as_ref().map(|admin| admin.address);
    if !has_room(config, admin, "deployment.admin.admin_listen", claims, reports, errors) {
        config.admin = None;
    }
    if !has_room(config, config.control, "apisix.control", claims, reports, errors) {
        config.control = None;
    }
    if !has_room(config, config.status, "apisix.status", claims, reports, errors) {
        config.status = None;
    }
}

/// Whether a server can listen where nobody else does. One that nobody has asked for is left out otherwise, as when another
/// process has its port.
fn has_room(
    config: &Config,
    address: Option<SocketAddr>,
    key: &str,
    claims: &mut Vec<Claim>,
    reports: &mut Vec<ConfigError>,
    errors: &mut Vec<ConfigError>,
) -> bool {
    let Some(address) = address else { return true };
    let claim = Claim::server(config, key, address);
    match claims.iter().find(|rival| rival.overlaps(&claim)) {
        Some(rival) if !claim.written => {
            reports.push(clash(config, rival, &claim, "; what would be there is left out then"));
            return false;
        }
        rival => errors.extend(rival.map(|rival| clash(config, rival, &claim, ""))),
    }
    claims.push(claim);
    true
}

impl Claim {
    fn listener(config: &Config, listen: &ListenAddress) -> Claim {
        let written = config.is_written(listen.list);
        Claim { key: listen.key(), address: listen.address, written, proxied: listen.proxy_protocol }
    }

    fn server(config: &Config, key: &str, address: SocketAddr) -> Claim {
        let port = format!("{key}.port");
        let key = if config.is_written(&port) { port } else { key.to_owned() };
        let written = config.is_written(&key);
        Claim { key, address, written, proxied: false }
    }

    /// Whether the operating system lets only one of them listen. IPv6 listens for itself alone.
    fn overlaps(&self, other: &Claim) -> bool {
        let (a, b) = (self.address, other.address);
        let hosts = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && hosts
    }
}

/// The error of the claim that was made later, or of the one that is written if one is a default.
fn clash(config: &Config, first: &Claim, second: &Claim, then: &str) -> ConfigError {
    let (about, other) = if first.written && !second.written { (first, second) } else { (second, first) };
    let place = place(config, other);
    let reason = format!(
        "can't listen on {}: {} {place} listens on {}{then}",
        about.address, other.key, other.address
    );
    config.fault(&about.key, reason)
}

fn place(config: &Config, claim: &Claim) -> String {
    match config.written.place(&claim.key) {
        Some(place) if claim.written => format!("(line {})", place.line),
        _ => "(by default)".to_owned(),
    }
}
