//! The Admin API's settings.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use sixfold_core::document::Value;
use sixfold_core::error::ConfigError;

use super::{Field, Reader};
use crate::config::{AdminConfig, AdminKey, AdminRole, AdminTls, ApiVersion, ProxyMode, Role};

/// The keys of APISIX's documentation and of thousands of installations: the administrator's and the viewer's.
const KNOWN_KEYS: [&str; 2] = ["edd1c9f034335f136f87ad84b625c8f1", "4054f7cf07e344346cd3f287985e76a2"];

impl Reader<'_> {
    /// `None` when it is not served: `apisix.enable_admin` is off, or the process serves traffic alone.
    pub(super) fn admin(
        &mut self,
        apisix: &Field<'_>,
        admin: &Field<'_>,
        role: Role,
        mode: ProxyMode,
    ) -> Option<AdminConfig> {
        let enabled = self.flag(&apisix.key("enable_admin")) || role == Role::ControlPlane;
        if !enabled || role == Role::DataPlane {
            return None;
        }
        let listen = admin.key("admin_listen");
        let ip = listen.key("ip");
        let ip = ip.node.and_then(|_| self.ip(&ip)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = listen.key("port");
        let port = port.node.and_then(|_| self.port(&port)).unwrap_or(9180);
        let tls = self.flag_or(&admin.key("https_admin"), false);
        let allow = self.networks(&admin.key("allow_admin"));
        Some(AdminConfig {
            address: SocketAddr::new(ip, port),
            key_required: self.flag_or(&admin.key("admin_key_required"), true),
            keys: self.admin_keys(&admin.key("admin_key")),
            cors: self.flag_or(&admin.key("enable_admin_cors"), true),
            allow,
            tls: tls.then(|| self.admin_tls(admin)).flatten(),
            version: match self.text(&admin.key("admin_api_version")).as_deref() {
                Some("v3") | None => ApiVersion::V3,
                Some(_) => ApiVersion::V2,
            },
            stream: mode.has_streams(),
        })
    }

    /// Tells that whoever `allow_admin` lets in does not reach the address, which is ours and not APISIX's.
    pub(super) fn warn_of_loopback(&mut self, admin: &AdminConfig, field: &Field<'_>) {
        let lets_others_in = match &admin.allow {
            Some(networks) => networks.iter().any(|network| !network.network().is_loopback()),
            None => true,
        };
        if admin.address.ip().is_loopback() && lets_others_in {
            let reason = "others are let in, and the Admin API listens on 127.0.0.1 alone: admin_listen.ip says where else";
            let allowed = field.key("allow_admin");
            let error = ConfigError::field(&allowed.path, reason);
            self.reports.push(allowed.node.map_or(error.clone(), |node| error.at(node.place)));
        }
    }

    pub(super) fn flag_or(&mut self, field: &Field<'_>, default: bool) -> bool {
        if field.node.is_some() { self.flag(field) } else { default }
    }

    fn admin_keys(&mut self, list: &Field<'_>) -> Vec<AdminKey> {
        let Some(node) = list.node else { return Vec::new() };
        if !matches!(&node.value, Value::Array(_)) {
            if !matches!(&node.value, Value::Object(object) if object.is_empty()) {
                self.fault(list, "expected a list of {name, key, role}");
            }
            return Vec::new();
        }
        let mut keys = Vec::new();
        for row in list.items() {
            let (name, key, role) = (row.key("name"), row.key("key"), row.key("role"));
            let key_text = key.node.and_then(|_| self.text(&key)).unwrap_or_default();
            let name = name.node.and_then(|_| self.text(&name)).unwrap_or_default();
            let role = match role.node.and_then(|_| self.text(&role)).as_deref() {
                Some("viewer") => AdminRole::Viewer,
                _ => AdminRole::Admin,
            };
            if KNOWN_KEYS.contains(&key_text.as_str()) {
                let reason =
                    "everybody knows this key: it is that of APISIX's documentation; write another one";
                let error = ConfigError::field(&key.path, reason);
                self.reports.push(key.node.map_or(error.clone(), |node| error.at(node.place)));
            }
            // APISIX makes a key for an empty one, too.
            if !key_text.is_empty() {
                keys.push(AdminKey { name, key: key_text, role });
            }
        }
        keys
    }

    fn admin_tls(&mut self, admin: &Field<'_>) -> Option<AdminTls> {
        let mtls = admin.key("admin_api_mtls");
        let mut file = |key: &str| {
            let field = mtls.key(key);
            let path = field.node.and_then(|_| self.text(&field)).filter(|path| !path.is_empty());
            path.map(PathBuf::from)
        };
        let (certificate, key) = (file("admin_ssl_cert"), file("admin_ssl_cert_key"));
        let authority = file("admin_ssl_ca_cert");
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(AdminTls { certificate, key, authority }),
            _ => {
                let reason = "https_admin needs admin_api_mtls.admin_ssl_cert and admin_ssl_cert_key";
                self.fault(&admin.key("https_admin"), reason);
                None
            }
        }
    }
}
