//! `deployment`: what a process does, and where resources are.

use std::path::PathBuf;
use std::time::Duration;

use sixfold_core::document::Value;
use sixfold_core::error::ConfigError;

use super::values::seconds;
use super::{Field, Reader};
use crate::config::etcd::{EtcdConfig, EtcdHost, EtcdTls, EtcdUser};
use crate::config::{Deployment, EnvVars, Provider, Role};

/// Where hosts come from beside config.yaml.
const HOSTS: &str = "APISIX_DEPLOYMENT_ETCD_HOST";
/// What systemd, or an image, says of where a service may write (`StateDirectory=` of systemd.exec): folders with colons between.
const STATE: &str = "STATE_DIRECTORY";
/// Where the store is if nobody says anything, below the folder of config.yaml.
const BESIDE: &str = "data";

impl Reader<'_> {
    pub(super) fn deployment(&mut self, deployment: &Field<'_>, environment: &EnvVars) -> Deployment {
        let role_field = deployment.key("role");
        let role = self.text(&role_field);
        let directory_field = deployment.key("embedded").key("directory");
        let directory = directory_field.node.and_then(|_| self.text(&directory_field));
        let directory = directory.map_or_else(|| state_directory(environment), PathBuf::from);
        let (role, section) = match role.as_deref() {
            Some("traditional") => (Role::Traditional, "role_traditional"),
            Some("data_plane") => (Role::DataPlane, "role_data_plane"),
            Some("control_plane") => (Role::ControlPlane, "role_control_plane"),
            other => {
                let other = other.unwrap_or_default();
                self.fault(
                    &role_field,
                    format!(
                        "role \"{other}\" is not supported; data_plane, control_plane and traditional are"
                    ),
                );
                return Deployment { role: Role::DataPlane, provider: Provider::Yaml, directory, etcd: None };
            }
        };
        let provider = self.provider(deployment, section, role);
        let field = deployment.key("etcd");
        let etcd = if provider == Provider::Etcd {
            Some(self.etcd(&field, environment))
        } else {
            if let Some(node) = field.node {
                let reason = "has no effect: etcd is not used, resources come from elsewhere";
                self.reports.push(ConfigError::field(&field.path, reason).at(node.place));
            }
            None
        };
        Deployment { role, provider, directory, etcd }
    }

    fn provider(&mut self, deployment: &Field<'_>, section: &str, role: Role) -> Provider {
        let field = deployment.key(section).key("config_provider");
        let is_default = field.node.is_none_or(|node| node.place.line == 0);
        let traditional = role == Role::Traditional;
        match self.text(&field).as_deref() {
            Some("yaml") if role != Role::ControlPlane => Provider::Yaml,
            Some("json") if role == Role::DataPlane => Provider::Json,
            Some("embedded") if traditional => Provider::Embedded,
            // Nobody has said where an etcd would be, nor that there is one.
            Some("etcd") if traditional && is_default && deployment.key("etcd").node.is_none() => {
                Provider::Embedded
            }
            Some("etcd") => Provider::Etcd,
            None if role == Role::ControlPlane => Provider::Etcd,
            other => {
                let other = other.unwrap_or_default();
                let default = if is_default { ", the default," } else { "" };
                let reason = format!(
                    "config_provider \"{other}\"{default} is not supported in this role: resources are read from a \
                     file beside this one, kept here, or are in an etcd; write `deployment: {{role: data_plane, \
                     role_data_plane: {{config_provider: yaml}}}}` for apisix.yaml, `json` for apisix.json, `etcd` with \
                     `deployment.etcd` in any role, or `deployment: {{role: traditional, role_traditional: \
                     {{config_provider: embedded}}}}` for a store that the Admin API writes"
                );
                self.fault(&field, reason);
                Provider::Yaml
            }
        }
    }

    fn etcd(&mut self, etcd: &Field<'_>, environment: &EnvVars) -> EtcdConfig {
        let (user, password) = (etcd.key("user"), etcd.key("password"));
        let (name, word) = (self.optional_text(&user), self.optional_text(&password));
        if word.is_some() && name.is_none() {
            self.fault(&password, "there is no user that it would be of");
        }
        let prefix = self.optional_text(&etcd.key("prefix")).unwrap_or_else(|| "/apisix".to_owned());
        EtcdConfig {
            hosts: self.etcd_hosts(&etcd.key("host"), environment),
            prefix: prefix.trim_end_matches('/').to_owned(),
            timeout: self.etcd_seconds(&etcd.key("timeout"), 1.0, 30),
            watch_timeout: self.etcd_seconds(&etcd.key("watch_timeout"), 1.0, 50),
            resync_delay: self.etcd_seconds(&etcd.key("resync_delay"), 0.0, 5),
            health_check_timeout: self.etcd_seconds(&etcd.key("health_check_timeout"), 0.0, 10),
            startup_retry: self.required(&etcd.key("startup_retry"), "a number of attempts", 2, |value| {
                match value {
                    Value::Number(number) => number.as_u64().and_then(|count| u32::try_from(count).ok()),
                    _ => None,
                }
            }),
            user: name.map(|name| EtcdUser { name, password: word.unwrap_or_default() }),
            tls: self.etcd_tls(&etcd.key("tls")),
        }
    }

    fn etcd_hosts(&mut self, field: &Field<'_>, environment: &EnvVars) -> Vec<EtcdHost> {
        const WANTED: &str = "an address such as http://127.0.0.1:2379";
        if let Some(text) = environment.get(HOSTS).filter(|text| !text.is_empty()) {
            let hosts: Option<Vec<String>> = serde_json::from_str(&text).ok();
            let hosts = hosts.and_then(|hosts| hosts.iter().map(|host| EtcdHost::read(host)).collect());
            return hosts.unwrap_or_else(|| {
                self.errors
                    .push(ConfigError::field(HOSTS, format!("expected a list in JSON, each {WANTED}")));
                Vec::new()
            });
        }
        if field.node.is_none() {
            return EtcdHost::read("http://127.0.0.1:2379").into_iter().collect();
        }
        let read = |value: &Value| match value {
            Value::String(text) => EtcdHost::read(text),
            _ => None,
        };
        // One is a list of one, as older files have it.
        if field.node.is_some_and(|node| node.as_str().is_some()) {
            return self.optional(field, WANTED, read).into_iter().collect();
        }
        let is_list = |value: &Value| matches!(value, Value::Array(items) if !items.is_empty()).then_some(());
        if self.optional(field, "a list of addresses", is_list).is_none() {
            return Vec::new();
        }
        field.items().iter().filter_map(|item| self.optional(item, WANTED, read)).collect()
    }

    fn etcd_tls(&mut self, tls: &Field<'_>) -> EtcdTls {
        let (cert, key) = (tls.key("cert"), tls.key("key"));
        let identity = match (self.optional_text(&cert), self.optional_text(&key)) {
            (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
            (Some(_), None) => {
                self.fault(&cert, "there is no key for it");
                None
            }
            (None, Some(_)) => {
                self.fault(&key, "there is no cert that it would be for");
                None
            }
            (None, None) => None,
        };
        let verify = tls.key("verify");
        let verify = verify.node.is_none() || self.flag(&verify);
        EtcdTls { identity, verify, sni: self.optional_text(&tls.key("sni")) }
    }

    /// Text that is not empty.
    fn optional_text(&mut self, field: &Field<'_>) -> Option<String> {
        field.node?;
        self.text(field).filter(|text| !text.is_empty())
    }

    fn etcd_seconds(&mut self, field: &Field<'_>, least: f64, default: u64) -> Duration {
        self.required(field, "a number of seconds", Duration::from_secs(default), |value| match value {
            Value::Number(number) => number.as_f64().filter(|value| *value >= least).and_then(seconds),
            _ => None,
        })
    }
}

/// Where a store is that config.yaml names no place for.
fn state_directory(environment: &EnvVars) -> PathBuf {
    let told = environment.get(STATE);
    let first = told.as_deref().and_then(|folders| folders.split(':').next()).map(PathBuf::from);
    first.filter(|folder| folder.is_absolute()).unwrap_or_else(|| BESIDE.into())
}
