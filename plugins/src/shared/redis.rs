//! Redis, for limits that several gateways share: one server, a cluster, or whichever server sentinels name.
//!
//! Each worker has one connection to a server, over which it sends whatever its requests ask without waiting for the answers
//! before (`redis_keepalive_pool` bounds how many a worker may have, and one is never more). Nothing is asked that needs
//! more than one key, so that a cluster takes it too.

mod bounded;
mod connection;
mod settings;
#[cfg(test)]
mod tests;

use crate::shared::per_thread::PerThread;
use aws_lc_rs::digest;
use connection::Place;
pub(crate) use redis::{Cmd, Value, cmd};
use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, from_redis_value};
pub(crate) use settings::RedisConfig;
use settings::{Address, Login, Sentinels, Servers, Settings};
use sixfold_core::plugin::{Callout, CalloutError};
use std::collections::HashMap;
use std::sync::Arc;

/// Redirections that are followed for one command.
const MAX_REDIRECTS: usize = 5;

/// Slots of a cluster (its specification, "Key distribution model").
const SLOTS: u16 = 16_384;

/// A service that speaks Redis' protocol.
pub(crate) struct Redis {
    settings: Settings,
    callout: Arc<dyn Callout>,
    workers: PerThread<Worker>,
}

/// What one worker knows.
#[derive(Default)]
struct Worker {
    places: HashMap<Address, Arc<Place>>,
    /// Which node of a cluster has a slot, as far as that was told.
    slots: HashMap<u16, Address>,
    /// The server that the sentinels have named.
    named: Option<Address>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedisFault {
    /// No connection.
    #[error("{0}")]
    Unreachable(#[from] CalloutError),
    /// Not within the time.
    #[error("timeout")]
    Timeout,
    /// The server says so, or the connection broke.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// An answer of another shape.
    #[error("malformed redis response: {0}")]
    Malformed(String),
    /// No sentinel knows a server for the name.
    #[error("redis connection failed, err: {0}")]
    Unnamed(String),
}

impl RedisFault {
    /// Whether another server, or a new connection, may do.
    fn is_lost(&self) -> bool {
        match self {
            RedisFault::Unreachable(_) | RedisFault::Timeout => true,
            RedisFault::Redis(error) => {
                error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
            }
            RedisFault::Malformed(_) | RedisFault::Unnamed(_) => false,
        }
    }
}

/// A script, which servers know by its digest once they have had it.
pub(crate) struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    /// Of one key, `KEYS[1]`.
    pub(crate) fn new(text: &'static str) -> Script {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Script { text, sha: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    fn command(&self, how: &str, what: &str, key: &[u8], arguments: &[String]) -> Cmd {
        let mut command = cmd(how);
        command.arg(what).arg(1).arg(key);
        arguments.iter().for_each(|argument| _ = command.arg(argument));
        command
    }
}

impl Redis {
    fn new(settings: Settings, callout: Arc<dyn Callout>) -> Redis {
        Redis { settings, callout, workers: PerThread::new(Worker::default) }
    }

    /// Runs a script on a key.
    ///
    /// # Errors
    /// See [`RedisFault`].
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        key: &[u8],
        arguments: &[String],
    ) -> Result<T, RedisFault> {
        let known = self.call(key, &script.command("EVALSHA", &script.sha, key, arguments)).await;
        let answer = match known {
            Err(RedisFault::Redis(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.call(key, &script.command("EVAL", script.text, key, arguments)).await
            }
            other => other,
        };
        read(answer?)
    }

    /// What is kept under a key; `None` for nothing.
    ///
    /// # Errors
    /// See [`RedisFault`].
    pub(crate) async fn get<T: FromRedisValue>(&self, key: &[u8]) -> Result<Option<T>, RedisFault> {
        let mut command = cmd("GET");
        command.arg(key);
        read(self.call(key, &command).await?)
    }

    /// Sends a command about `key` to the server that has it.
    ///
    /// # Errors
    /// See [`RedisFault`].
    pub(crate) async fn call(&self, key: &[u8], command: &Cmd) -> Result<Value, RedisFault> {
        match &self.settings.servers {
            Servers::One(address) => self.at(address, &self.settings.login, command, false).await,
            Servers::Cluster(nodes) => self.in_cluster(nodes, key, command).await,
            Servers::Sentinels(sentinels) => self.by_sentinels(sentinels, command).await,
        }
    }

    /// Where a slot is, is learned from the nodes' redirections, and forgotten when its node is gone.
    async fn in_cluster(&self, nodes: &[Address], key: &[u8], command: &Cmd) -> Result<Value, RedisFault> {
        let slot = slot(key);
        let mut next = self.worker(|worker| worker.slots.get(&slot).cloned()).flatten();
        let first = fastrand::usize(..nodes.len().max(1));
        let mut seeds = nodes.iter().cycle().skip(first).take(nodes.len()).peekable();
        let (mut redirects, mut asking) = (0, false);
        loop {
            let Some(address) = next.take().or_else(|| seeds.next().cloned()) else {
                return Err(RedisFault::Unnamed("no node of the cluster answers".to_owned()));
            };
            let fault = match self.at(&address, &self.settings.login, command, asking).await {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            asking = false;
            if let RedisFault::Redis(error) = &fault
                && let Some(to) = error.redirect_node().and_then(|(to, _)| address.redirected(to))
                && redirects < MAX_REDIRECTS
            {
                redirects += 1;
                asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
                if !asking {
                    self.worker(|worker| worker.slots.insert(slot, to.clone()));
                }
                next = Some(to);
            } else if fault.is_lost() {
                self.worker(|worker| worker.slots.retain(|_, node| *node != address));
                if seeds.peek().is_none() {
                    return Err(fault);
                }
            } else {
                return Err(fault);
            }
        }
    }

    async fn by_sentinels(&self, sentinels: &Sentinels, command: &Cmd) -> Result<Value, RedisFault> {
        if let Some(address) = self.worker(|worker| worker.named.clone()).flatten() {
            match self.at(&address, &self.settings.login, command, false).await {
                // It is not what it was: another one may be by now.
                Err(fault) if fault.is_lost() => _ = self.worker(|worker| worker.named = None),
                other => return other,
            }
        }
        let address = self.named_by(sentinels).await?;
        let answer = self.at(&address, &self.settings.login, command, false).await;
        if answer.is_ok() {
            self.worker(|worker| worker.named = Some(address));
        }
        answer
    }

    /// The server that the first sentinel to answer names.
    async fn named_by(&self, sentinels: &Sentinels) -> Result<Address, RedisFault> {
        let mut faults = Vec::new();
        for sentinel in &sentinels.addresses {
            match self.ask_sentinel(sentinel, sentinels).await {
                Ok(address) => return Ok(address),
                Err(fault) => faults.push(fault.to_string()),
            }
        }
        Err(RedisFault::Unnamed(faults.join(", ")))
    }

    async fn ask_sentinel(&self, sentinel: &Address, of: &Sentinels) -> Result<Address, RedisFault> {
        let mut command = cmd("SENTINEL");
        command.arg(if of.replica { "replicas" } else { "get-master-addr-by-name" }).arg(&of.name);
        let answer = self.at(sentinel, &of.login, &command, false).await?;
        let unknown = || RedisFault::Unnamed(format!("no server is known for '{}'", of.name));
        if !of.replica {
            let (host, port) = read::<Option<(String, u16)>>(answer)?.ok_or_else(unknown)?;
            return Ok(Address { host, port });
        }
        let replicas: Vec<HashMap<String, String>> = read(answer)?;
        let address = |replica: &HashMap<String, String>| {
            let is_there = !replica.get("flags").is_some_and(|flags| flags.contains("down"));
            let port = replica.get("port")?.parse().ok()?;
            is_there.then(|| Some(Address { host: replica.get("ip")?.clone(), port })).flatten()
        };
        let there: Vec<Address> = replicas.iter().filter_map(address).collect();
        fastrand::choice(&there).cloned().ok_or_else(unknown)
    }

    /// Sends a command to one server, again where it was an old connection that failed it.
    async fn at(
        &self,
        address: &Address,
        login: &Login,
        command: &Cmd,
        asking: bool,
    ) -> Result<Value, RedisFault> {
        let place = self.worker(|worker| worker.places.entry(address.clone()).or_default().clone());
        let place = place.unwrap_or_default();
        loop {
            let open = place.open(self, address, login).await?;
            let fault = match open.send(command, asking, self.settings.read_timeout).await {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            let is_gone = matches!(&fault, RedisFault::Redis(e) if e.is_unrecoverable_error());
            if is_gone || matches!(fault, RedisFault::Timeout) {
                place.forget(&open).await;
            }
            if !is_gone || !open.was_there {
                return Err(fault);
            }
        }
    }

    /// Looks at what this worker knows; `None` where it is being looked at already, which is never for long.
    fn worker<T>(&self, look: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        self.workers.with(look)
    }
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, RedisFault> {
    from_redis_value(value).map_err(|error| RedisFault::Malformed(error.to_string()))
}

/// The slot of a key: CRC16 (XMODEM) of it, or of its first `{…}` that holds something.
fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = memchr::memchr(b'}', rest).filter(|close| *close > 0)?;
        rest.get(..close)
    });
    let crc = tag.unwrap_or(key).iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS
}
