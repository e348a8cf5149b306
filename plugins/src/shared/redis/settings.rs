//! How a service is reached, as APISIX's limiters say it (`apisix/utils/redis-schema.lua`).

use super::Redis;
use redis::RedisConnectionInfo;
use serde::Deserialize;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::plugin::{BuildContext, VerifyTls};
use std::sync::Arc;
use std::time::Duration;

/// The fields of a policy; those of the others are not looked at. Schemas fill in their defaults.
#[derive(Debug, Deserialize)]
pub(crate) struct RedisConfig {
    redis_host: Option<String>,
    redis_port: Option<u64>,
    redis_username: Option<String>,
    redis_password: Option<String>,
    redis_database: Option<i64>,
    /// Milliseconds to connect, and for each answer.
    redis_timeout: Option<u64>,
    redis_ssl: Option<bool>,
    redis_ssl_verify: Option<bool>,
    /// Milliseconds.
    redis_keepalive_timeout: Option<u64>,
    redis_cluster_nodes: Option<Vec<String>>,
    redis_cluster_ssl: Option<bool>,
    redis_cluster_ssl_verify: Option<bool>,
    redis_sentinels: Option<Vec<SentinelConfig>>,
    redis_master_name: Option<String>,
    redis_role: Option<String>,
    /// Milliseconds, of sentinels and of the servers that they name.
    redis_connect_timeout: Option<u64>,
    redis_read_timeout: Option<u64>,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SentinelConfig {
    host: String,
    port: u64,
}

/// How a service is reached. What is equal in all of it shares its connections.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) servers: Servers,
    pub(super) login: Login,
    pub(super) tls: Option<VerifyTls>,
    pub(super) connect_timeout: Duration,
    pub(super) read_timeout: Duration,
    /// How long a connection is kept over which nothing is sent.
    pub(super) idle: Duration,
}

#[derive(Debug)]
pub(super) enum Servers {
    One(Address),
    /// Any of the nodes tells where the others are.
    Cluster(Vec<Address>),
    Sentinels(Sentinels),
}

#[derive(Debug)]
pub(super) struct Sentinels {
    pub(super) addresses: Vec<Address>,
    pub(super) name: String,
    /// Whether a replica is wanted, and not the master.
    pub(super) replica: bool,
    pub(super) login: Login,
}

/// Who connects.
#[derive(Debug, Default)]
pub(super) struct Login {
    username: Option<String>,
    password: Option<String>,
    database: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl RedisConfig {
    /// The service of a limiter's `policy`, shared with all that reach it alike; `None` for `local`.
    ///
    /// # Errors
    /// Addresses and names that are none.
    pub(crate) fn service(
        &self,
        policy: &str,
        context: &BuildContext,
    ) -> Result<Option<Arc<Redis>>, ConfigError> {
        let settings = match policy {
            "redis" => self.one()?,
            "redis-cluster" => self.cluster()?,
            "redis-sentinel" => self.sentinels()?,
            _ => return Ok(None),
        };
        let callout = context.callout.clone();
        let name = format!("redis {settings:?}");
        Ok(Some(context.shared.get_or_insert(&name, || Redis::new(settings, callout))))
    }

    fn one(&self) -> Result<Settings, ConfigError> {
        let host = required(&self.redis_host, "redis_host")?.clone();
        let port = port(self.redis_port.unwrap_or(6379)).in_key("redis_port")?;
        let (ssl, verify) = (self.redis_ssl, self.redis_ssl_verify);
        let login = Login::new(&self.redis_username, &self.redis_password, self.redis_database);
        Ok(self.settings(Servers::One(Address { host, port }), login, tls(ssl, verify)))
    }

    fn cluster(&self) -> Result<Settings, ConfigError> {
        let nodes = required(&self.redis_cluster_nodes, "redis_cluster_nodes")?;
        let node = |(index, text): (usize, &String)| Address::parse(text).in_index(index);
        let nodes = collect(nodes.iter().enumerate().map(node)).in_key("redis_cluster_nodes")?;
        let login = Login::new(&None, &self.redis_password, None);
        let tls = tls(self.redis_cluster_ssl, self.redis_cluster_ssl_verify);
        Ok(self.settings(Servers::Cluster(nodes), login, tls))
    }

    fn sentinels(&self) -> Result<Settings, ConfigError> {
        let sentinels = required(&self.redis_sentinels, "redis_sentinels")?;
        let address = |(index, sentinel): (usize, &SentinelConfig)| {
            let port = port(sentinel.port).in_key("port").in_index(index)?;
            Ok(Address { host: sentinel.host.clone(), port })
        };
        let sentinels = Sentinels {
            addresses: collect(sentinels.iter().enumerate().map(address)).in_key("redis_sentinels")?,
            name: required(&self.redis_master_name, "redis_master_name")?.clone(),
            replica: self.redis_role.as_deref() == Some("slave"),
            login: Login::new(&self.sentinel_username, &self.sentinel_password, None),
        };
        let login = Login::new(&self.redis_username, &self.redis_password, self.redis_database);
        Ok(self.settings(Servers::Sentinels(sentinels), login, None))
    }

    fn settings(&self, servers: Servers, login: Login, tls: Option<VerifyTls>) -> Settings {
        let millis = |of: Option<u64>, default| Duration::from_millis(of.unwrap_or(default));
        Settings {
            servers,
            login,
            tls,
            connect_timeout: millis(self.redis_connect_timeout.or(self.redis_timeout), 1000),
            read_timeout: millis(self.redis_read_timeout.or(self.redis_timeout), 1000),
            idle: millis(self.redis_keepalive_timeout, 10_000),
        }
    }
}

impl Login {
    /// Without a password nobody logs in, whatever the name is.
    fn new(username: &Option<String>, password: &Option<String>, database: Option<i64>) -> Login {
        let password = password.clone().filter(|password| !password.is_empty());
        let username = username.clone().filter(|_| password.is_some());
        Login { username, password, database: database.unwrap_or(0) }
    }

    pub(super) fn info(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name().set_db(self.database);
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }
}

impl Address {
    /// `host:port`; a host of IPv6 stands in brackets.
    fn parse(text: &str) -> Result<Address, ConfigError> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            (!host.is_empty()).then(|| Address { host: host.to_owned(), port })
        });
        parsed.ok_or_else(|| ConfigError::new(format!("failed to parse address: {text}")))
    }

    /// Where a node sends a client on: one that does not know its own name means the one that was asked.
    pub(super) fn redirected(&self, to: &str) -> Option<Address> {
        let (host, port) = to.rsplit_once(':')?;
        let host = if host.is_empty() { &self.host } else { host };
        Some(Address { host: host.to_owned(), port: port.parse().ok()? })
    }
}

fn required<'a, T>(value: &'a Option<T>, field: &str) -> Result<&'a T, ConfigError> {
    value.as_ref().ok_or_else(|| ConfigError::new(format!("property \"{field}\" is required")))
}

fn port(port: u64) -> Result<u16, ConfigError> {
    u16::try_from(port).map_err(|_| ConfigError::new(format!("{port} is not a port")))
}

fn tls(ssl: Option<bool>, verify: Option<bool>) -> Option<VerifyTls> {
    let verified = if verify == Some(true) { VerifyTls::Yes } else { VerifyTls::No };
    (ssl == Some(true)).then_some(verified)
}
