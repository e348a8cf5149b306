//! The resources of an APISIX configuration, wherever they are kept, for who looks at them and does not serve.

use crate::Failure;
use crate::failure::Unread;
use crate::fetch;
use crate::gateway::{callout, resolver};
use bytes::Bytes;
use serde_json::Value;
use sixfold_apisix::ETCD_HOST;
use sixfold_apisix::config::{AdminConfig, Config, EnvVars, Provider};
use sixfold_apisix::resource::Kind;
use sixfold_apisix::store::{EmbeddedStore, Key, MemoryStore, Store, Write};
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::Callout;
use sixfold_server::callout::Callouts;
use sixfold_server::dns::DnsCache;
use std::path::Path;
use std::sync::Arc;

/// The resources of `config`, which was read from `path`. Those of an embedded store that a gateway has open are asked of
/// its Admin API; where there is no store yet, there are none.
pub(crate) fn of(config: &Config, path: &Path) -> Result<Arc<dyn Store>, Unread> {
    match config.deployment.provider {
        Provider::Etcd => of_etcd(config),
        Provider::Embedded => {
            let file = config.resources_path(directory(path), &EnvVars::Process);
            if !file.exists() {
                return Ok(Arc::new(MemoryStore::default()));
            }
            let refused = match EmbeddedStore::open(&file) {
                Ok(store) => return Ok(Arc::new(store)),
                Err(reason) => reason,
            };
            let key = "deployment.role_traditional.config_provider";
            let told = |reason: String| Failure::from(config.fault(key, format!("{refused}, and {reason}")));
            let admin =
                config.admin.as_ref().ok_or_else(|| told("there is no Admin API to ask".to_owned()))?;
            Ok(Arc::new(of_gateway(config, admin, path).map_err(told)?))
        }
        _ => Ok(sixfold_apisix::open_store(config, path, &EnvVars::Process).map_err(Failure::from)?),
    }
}

fn of_etcd(config: &Config) -> Result<Arc<dyn Store>, Unread> {
    let dns = DnsCache::start(resolver(config)).map_err(|error| Failure::new(error.to_string()))?;
    let callout: Arc<dyn Callout> = Arc::new(Callouts::new(dns, callout(config)));
    sixfold_apisix::look_at_etcd(config, &callout).map_err(|errors| {
        let is_away = |error: &ConfigError| error.field.as_deref() == Some(ETCD_HOST);
        match errors.iter().all(is_away) {
            true => Unread::Away(errors.into()),
            false => Unread::Wrong(errors.into()),
        }
    })
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// What the Admin API of a running gateway tells.
fn of_gateway(config: &Config, admin: &AdminConfig, path: &Path) -> Result<MemoryStore, String> {
    let address = fetch::reachable(admin.address);
    if admin.tls.is_some() {
        return Err(format!(
            "its Admin API at {} speaks TLS, which is not asked by: ask it with curl and its certificate, or end the gateway first",
            admin.address
        ));
    }
    let kept = directory(path).join(&config.deployment.directory).join("admin-key");
    let key = match admin.keys.first() {
        Some(key) => key.key.clone(),
        None => std::fs::read_to_string(kept).unwrap_or_default().trim().to_owned(),
    };
    let asked = Asked { address: address.to_string(), key };
    let store = MemoryStore::default();
    let mut writes = Vec::new();
    for kind in Kind::ALL {
        match kind {
            Kind::Credential => {}
            // The Admin API does not tell private keys.
            Kind::Ssl => {
                let left_out = asked.list("ssls")?.len();
                if left_out > 0 {
                    eprintln!(
                        "warning: {left_out} ssls are left out: a running gateway tells no private keys"
                    );
                }
            }
            kind => writes.extend(asked.list(kind.section())?),
        }
    }
    let consumers: Vec<String> =
        writes.iter().filter(|w| w.key.kind == Kind::Consumer).map(|w| w.key.id.to_string()).collect();
    for consumer in consumers {
        writes.extend(asked.list(&format!("consumers/{consumer}/credentials"))?);
    }
    store.commit(writes).map_err(|error| error.to_string())?;
    Ok(store)
}

/// An Admin API and the key for it.
struct Asked {
    address: String,
    key: String,
}

impl Asked {
    /// All resources of a list; none of one that this gateway does not have.
    fn list(&self, section: &str) -> Result<Vec<Write>, String> {
        let target = format!("/apisix/admin/{section}");
        let told = |reason: String| format!("the Admin API at {}: {reason}", self.address);
        let answer = fetch::get(&self.address, &target, &[("X-API-KEY", &self.key)]).map_err(told)?;
        match answer.status {
            200 => {}
            400 | 404 => return Ok(Vec::new()),
            status => return Err(told(format!("{target} answers {status} {}", answer.body.trim_end()))),
        }
        let body: Value = serde_json::from_str(&answer.body).map_err(|error| told(error.to_string()))?;
        let items = body.get("list").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let write = |item: &Value| {
            // Those of an embedded store begin like that, whoever asks.
            let path = item.get("key")?.as_str()?.strip_prefix("/apisix/")?;
            Some(Write::put(Key::of_path(path)?, Bytes::from(item.get("value")?.to_string())))
        };
        let read =
            |item| write(item).ok_or_else(|| told(format!("{target} has what is no resource: {item}")));
        items.iter().map(read).collect()
    }
}
