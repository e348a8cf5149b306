//! Names to addresses: the resolver, and the tasks that keep DNS clusters fresh.

mod discovery;
mod hosts_file;
#[cfg(test)]
mod tests;

pub use discovery::Discoverer;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use sixfold_core::cluster::DnsFamily;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How names are resolved.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Servers to ask over UDP, then TCP; empty takes the system's (`/etc/resolv.conf`, with its search
    /// domains).
    pub servers: Vec<SocketAddr>,
    /// Bounds one question to one server, 5 s by default.
    pub timeout: Duration,
    /// Questions after the first one failed, 2 by default.
    pub attempts: usize,
    /// Shorter lifetimes of records are taken for this, 1 s by default.
    pub min_ttl: Duration,
    /// Longer lifetimes of records are taken for this, one day by default.
    pub max_ttl: Duration,
    /// How long addresses are kept of a name that is said to have none any more, 30 s by default: a server that
    /// lost its zone for a moment shall not empty an upstream (HAProxy's `hold nx`).
    pub hold_empty: Duration,
    /// Names that need no server, `/etc/hosts` by default; looked at every second, beside the workers.
    pub hosts_file: Option<PathBuf>,
}

impl Default for ResolverConfig {
    fn default() -> ResolverConfig {
        ResolverConfig {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(86_400),
            hold_empty: Duration::from_secs(30),
            hosts_file: Some("/etc/hosts".into()),
        }
    }
}

/// Why a name has no answer. That a name does not exist is an answer, and an empty one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The resolver could not be set up.
    #[error("DNS resolver: {0}")]
    Setup(String),
    /// No server answered, or one failed.
    #[error("cannot resolve '{name}': {reason}")]
    Failed {
        /// The name.
        name: String,
        /// What went wrong.
        reason: String,
    },
}

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In the server's order; empty when the name has none.
    pub addresses: Vec<IpAddr>,
    /// How long they are good for, between the configured bounds.
    pub ttl: Duration,
}

/// Resolves names. It keeps no answers: who asks again wants to know.
pub struct Resolver {
    inner: TokioResolver,
    hosts: hosts_file::HostsFile,
    min_ttl: Duration,
    max_ttl: Duration,
    hold_empty: Duration,
}

impl Resolver {
    /// A resolver.
    ///
    /// # Errors
    /// [`DnsError::Setup`] when the system's configuration can't be read.
    pub fn new(config: ResolverConfig) -> Result<Resolver, DnsError> {
        let setup = |e: NetError| DnsError::Setup(e.to_string());
        let mut builder = if config.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(setup)?
        } else {
            let servers = config.servers.iter().map(|s| name_server(*s)).collect();
            let servers = hickory_resolver::config::ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.timeout = config.timeout;
        options.attempts = config.attempts;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        Ok(Resolver {
            inner: builder.build().map_err(setup)?,
            hosts: hosts_file::HostsFile::new(config.hosts_file),
            min_ttl: config.min_ttl,
            max_ttl: config.max_ttl.max(config.min_ttl),
            hold_empty: config.hold_empty,
        })
    }

    /// The addresses of a name, of the families wanted. An address stands for itself.
    ///
    /// # Errors
    /// [`DnsError::Failed`] when no server gave an answer.
    pub async fn resolve(&self, name: &str, family: DnsFamily) -> Result<Answer, DnsError> {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![address], ttl: self.max_ttl });
        }
        let v4 = || self.ask(name, RecordType::A);
        let v6 = || self.ask(name, RecordType::AAAA);
        match family {
            DnsFamily::V4Only => v4().await,
            DnsFamily::V6Only => v6().await,
            DnsFamily::Auto => first(v6().await, v4).await,
            DnsFamily::V4Preferred => first(v4().await, v6).await,
            DnsFamily::All => {
                let (v4, v6) = futures_util::future::join(v4(), v6()).await;
                both(v4, v6)
            }
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer, DnsError> {
        let known = self.hosts.lookup(name);
        if !known.is_empty() {
            let wanted = |a: &IpAddr| a.is_ipv4() == (kind == RecordType::A);
            return Ok(Answer { addresses: known.into_iter().filter(wanted).collect(), ttl: self.max_ttl });
        }
        match self.inner.lookup(name, kind).await {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::A(a) => Some((IpAddr::V4(a.0), record.ttl)),
                    RData::AAAA(a) => Some((IpAddr::V6(a.0), record.ttl)),
                    _ => None,
                });
                let (addresses, ttls): (Vec<_>, Vec<_>) = records.unzip();
                let ttl = ttls.into_iter().min().unwrap_or(0);
                Ok(Answer { addresses, ttl: self.bounded(ttl) })
            }
            Err(e) if e.is_no_records_found() || e.is_nx_domain() => {
                Ok(Answer { addresses: Vec::new(), ttl: self.min_ttl })
            }
            Err(e) => Err(DnsError::Failed { name: name.to_owned(), reason: e.to_string() }),
        }
    }

    fn bounded(&self, ttl: u32) -> Duration {
        Duration::from_secs(u64::from(ttl)).clamp(self.min_ttl, self.max_ttl)
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The preferred family's answer, or the other one's when it is empty or failed.
async fn first<F>(preferred: Result<Answer, DnsError>, other: impl FnOnce() -> F) -> Result<Answer, DnsError>
where
    F: Future<Output = Result<Answer, DnsError>>,
{
    match preferred {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        Ok(_) => other().await,
        // Nothing of the other family does not say that the name has no address.
        Err(e) => other().await.ok().filter(|a| !a.addresses.is_empty()).ok_or(e),
    }
}

fn both(v4: Result<Answer, DnsError>, v6: Result<Answer, DnsError>) -> Result<Answer, DnsError> {
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.ttl = match (v4.addresses.is_empty(), v6.addresses.is_empty()) {
                (false, true) => v4.ttl,
                (true, false) => v6.ttl,
                _ => v4.ttl.min(v6.ttl),
            };
            v4.addresses.extend(v6.addresses);
            Ok(v4)
        }
        (Ok(one), Err(e)) | (Err(e), Ok(one)) => {
            if one.addresses.is_empty() {
                Err(e)
            } else {
                Ok(one)
            }
        }
        (Err(e), Err(_)) => Err(e),
    }
}
