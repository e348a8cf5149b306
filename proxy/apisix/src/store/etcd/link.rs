//! Calls of etcd's API, to whichever member of the cluster answers.
//!
//! They are gRPC over the connections that all outbound calls go through, one cluster for each member, so that it is known
//! which one failed. A member that failed is asked last for a while.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use sixfold_core::cluster::{
    Address, BreakerLimits, Cluster, ClusterConfig, ClusterPolicy, Clusters, HostConfig, TcpKeepalive,
    UpstreamProtocol,
};
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Headers;
use sixfold_core::message::Scheme;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::grpc::{Call, Client as Grpc, Status};
use sixfold_core::plugin::{Callout, OwnHeaders};
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, Pem, Validation, system_authorities,
};
use tokio::sync::Notify;

use super::messages::{AuthenticateRequest, AuthenticateResponse};
use crate::config::{EtcdConfig, EtcdHost, EtcdUser};
use crate::store::StoreError;

/// Bounds connecting to a member where `timeout` is longer: there may be another.
const CONNECT: Duration = Duration::from_secs(5);
/// How long addresses of a name hold.
const FRESH: Duration = Duration::from_secs(30);
/// Bytes of an answer that are taken: a page of resources, or all changes of one transaction.
const MAX_MESSAGE: usize = 256 << 20;
/// A connection whose other end has gone without a word is found dead after 25 s.
const PROBES: TcpKeepalive = TcpKeepalive {
    time: Some(Duration::from_secs(10)),
    interval: Some(Duration::from_secs(5)),
    probes: Some(3),
};

const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// The cluster.
pub(super) struct Link {
    members: Vec<Member>,
    /// The one that answered last.
    current: AtomicUsize,
    user: Option<EtcdUser>,
    token: Mutex<Option<Arc<str>>>,
    timeout: Duration,
    /// How long a member that failed is asked last.
    rest: Duration,
}

struct Member {
    host: EtcdHost,
    cluster: Arc<Cluster>,
    grpc: Grpc,
    /// Until when its addresses hold.
    resolved: Mutex<Option<Instant>>,
    failed: Mutex<Option<Instant>>,
    /// Wakes those who have a call under way when another one finds that it has failed.
    fails: Arc<Notify>,
}

/// Why a call brought no answer.
struct Failure {
    status: Status,
    /// Whether the member may have done what it was asked for.
    sent: bool,
}

/// Whether a call may be sent again without knowing what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Safe,
    /// It may have been done.
    Once,
}

impl Link {
    /// # Errors
    /// Certificates that can't be used; the fields are those of `deployment.etcd`.
    pub(super) fn new(
        config: &EtcdConfig,
        trusted: Option<&Path>,
        callout: &Arc<dyn Callout>,
    ) -> Result<Link, ConfigError> {
        let tls = match config.hosts.iter().any(|host| host.tls) {
            true => Some(client_tls(config, trusted)?),
            false => None,
        };
        let member = |host: &EtcdHost| Member::new(host, config, tls.clone(), callout);
        Ok(Link {
            members: config.hosts.iter().map(member).collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
            user: config.user.clone(),
            token: Mutex::new(None),
            timeout: config.timeout,
            rest: config.health_check_timeout,
        })
    }

    /// One message out and one back.
    pub(super) async fn ask<A: Message + Default>(
        &self,
        path: &str,
        question: &impl Message,
        repeat: Repeat,
    ) -> Result<A, Status> {
        let question = question.encode_to_vec();
        let asked = self.with_member(repeat, async |member: &Member, headers| {
            tokio::time::timeout(self.timeout, member.unary(path, headers, &question)).await.unwrap_or_else(
                |_| Err(Failure { status: status(UNAVAILABLE, "no answer in time"), sent: true }),
            )
        });
        decoded(&asked.await?)
    }

    /// Opens a call whose messages go both ways for as long as it likes, and answers it with what tells when its member is
    /// found to have failed in others.
    pub(super) async fn open(&self, path: &str) -> Result<(Call, Arc<Notify>), Status> {
        self.with_member(Repeat::Safe, async |member: &Member, headers| {
            let client = Grpc { timeout: Duration::MAX, ..member.grpc.clone() };
            let opened = tokio::time::timeout(self.timeout, client.call(path, headers)).await;
            let opened = opened.unwrap_or_else(|_| Err(status(UNAVAILABLE, "no connection in time")));
            let call = opened.map_err(|status| Failure { status, sent: false })?;
            Ok((call, member.fails.clone()))
        })
        .await
    }

    /// The member that is asked now has not kept a call that was opened.
    pub(super) fn has_failed(&self) {
        if let Some(member) = self.members.get(self.current.load(Relaxed)) {
            *member.failed.lock() = Some(Instant::now());
        }
    }

    /// A token may be none any more.
    pub(super) fn forget_token(&self) {
        *self.token.lock() = None;
    }

    /// Calls one member after the other until one is there.
    async fn with_member<T>(
        &self,
        repeat: Repeat,
        call: impl AsyncFn(&Member, Headers) -> Result<T, Failure>,
    ) -> Result<T, Status> {
        let mut told = None;
        for index in self.order() {
            let Some(member) = self.members.get(index) else { continue };
            let failure = match self.at(member, &call).await {
                Ok(answer) => {
                    self.current.store(index, Relaxed);
                    *member.failed.lock() = None;
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            if failure.status.code != UNAVAILABLE {
                return Err(failure.status);
            }
            tracing::debug!(member = %member.host, reason = failure.status.message, "no answer of etcd");
            *member.failed.lock() = Some(Instant::now());
            member.fails.notify_waiters();
            member.forget_addresses();
            let reason = format!("{}: {}", member.host, failure.status.message);
            told = Some(status(UNAVAILABLE, reason));
            if failure.sent && repeat == Repeat::Once {
                break;
            }
        }
        Err(told.unwrap_or_else(|| status(UNAVAILABLE, "there is no member")))
    }

    /// Calls one member, with a new token if the old one is none any more.
    async fn at<T>(
        &self,
        member: &Member,
        call: &impl AsyncFn(&Member, Headers) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        member.resolve().await.map_err(|status| Failure { status, sent: false })?;
        let first = call(member, self.headers(member).await?).await;
        match first {
            Err(failure) if self.user.is_some() && is_of_token(&failure.status) => {
                self.forget_token();
                call(member, self.headers(member).await?).await
            }
            other => other,
        }
    }

    async fn headers(&self, member: &Member) -> Result<Headers, Failure> {
        let mut headers = Headers::new();
        // A member that has lost the others says so, instead of waiting for them.
        headers.set("hasleader", b"true");
        let Some(user) = &self.user else { return Ok(headers) };
        let held = self.token.lock().clone();
        let token = match held {
            Some(token) => token,
            None => {
                let question =
                    AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
                let (path, question) = ("/etcdserverpb.Auth/Authenticate", question.encode_to_vec());
                let asked = member.unary(path, headers.clone(), &question);
                let late = |_| Err(Failure { status: status(UNAVAILABLE, "no answer in time"), sent: false });
                let answer = match tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(late) {
                    Ok(answer) => answer,
                    // 9: authentication is not enabled.
                    Err(Failure { status: Status { code: 9, .. }, .. }) => return Ok(headers),
                    Err(failure) => return Err(Failure { sent: false, ..failure }),
                };
                let unread = |status| Failure { status, sent: false };
                let answer: AuthenticateResponse = decoded(&answer).map_err(unread)?;
                let token: Arc<str> = answer.token.into();
                *self.token.lock() = Some(token.clone());
                token
            }
        };
        headers.set("token", token.as_bytes());
        Ok(headers)
    }

    /// The members in the order in which they are asked: the one that answered last, the next ones, and those that have failed
    /// just now.
    fn order(&self) -> Vec<usize> {
        let (count, first) = (self.members.len(), self.current.load(Relaxed));
        let all = (0..count).map(|step| (first + step) % count);
        let rests = |index: &usize| {
            let failed = self.members.get(*index).and_then(|member| *member.failed.lock());
            failed.is_some_and(|failed| failed.elapsed() < self.rest)
        };
        let (resting, fit): (Vec<usize>, Vec<usize>) = all.partition(rests);
        fit.into_iter().chain(resting).collect()
    }
}

impl Member {
    fn new(
        host: &EtcdHost,
        config: &EtcdConfig,
        tls: Option<Arc<ClientTls>>,
        callout: &Arc<dyn Callout>,
    ) -> Result<Member, ConfigError> {
        let policy = ClusterPolicy {
            scheme: if host.tls { Scheme::Https } else { Scheme::Http },
            protocol: UpstreamProtocol::Http2,
            connect_timeout: config.timeout.min(CONNECT),
            breaker: BreakerLimits::UNLIMITED,
            high_breaker: BreakerLimits::UNLIMITED,
            statistics: false,
            tcp_keepalive: Some(PROBES),
            ..ClusterPolicy::default()
        };
        let name = host.to_string();
        let tls = tls.filter(|_| host.tls);
        let settings = ClusterConfig { tls, policy: policy.into(), ..ClusterConfig::named(&name) };
        let cluster = Cluster::new(settings, Vec::new(), None, &Registry::new()).map_err(ConfigError::new)?;
        // A name of its own: no cluster of the configuration is meant.
        let cell = Clusters::default().cell(&name);
        cell.swap(Some(cluster.clone()));
        let grpc = Grpc {
            callout: callout.clone(),
            cluster: cell,
            authority: host.authority(),
            timeout: config.timeout,
            max_message: MAX_MESSAGE,
            own: OwnHeaders::default(),
        };
        let (resolved, failed, fails) = Default::default();
        Ok(Member { host: host.clone(), cluster, grpc, resolved, failed, fails })
    }

    async fn unary(&self, path: &str, headers: Headers, question: &[u8]) -> Result<Bytes, Failure> {
        let unsent = |status| Failure { status: unavailable(status), sent: false };
        let sent = |status| Failure { status: unavailable(status), sent: true };
        let mut call = self.grpc.call(path, headers).await.map_err(unsent)?;
        call.send(question).await.map_err(sent)?;
        call.finish();
        let answer = call.receive().await.map_err(sent)?;
        // The status follows the message.
        call.receive().await.map_err(sent)?;
        answer.ok_or_else(|| Failure { status: status(13, "no message in answer to a call"), sent: true })
    }

    /// Looks the addresses of its name up, unless they are known.
    async fn resolve(&self) -> Result<(), Status> {
        let now = Instant::now();
        if self.resolved.lock().is_some_and(|until| now < until) {
            return Ok(());
        }
        let found = tokio::net::lookup_host((self.host.name.as_str(), self.host.port)).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(found) => found.collect(),
            // What is known serves on while nobody answers.
            Err(_) if self.cluster.hosts.load().total() > 0 => return Ok(()),
            Err(error) => return Err(status(UNAVAILABLE, error.to_string())),
        };
        let hostname: Arc<str> = self.host.name.as_str().into();
        let endpoint = |address: &SocketAddr| HostConfig {
            hostname: hostname.clone(),
            ..HostConfig::new(Address::Ip(*address))
        };
        self.cluster.update_hosts(addresses.iter().map(endpoint).collect());
        *self.resolved.lock() = Some(now + FRESH);
        Ok(())
    }

    fn forget_addresses(&self) {
        *self.resolved.lock() = None;
    }
}

/// TLS towards all members that speak it; `trusted` is the file of authorities, by default the system's.
///
/// # Errors
/// Names the key of `deployment.etcd` and what is wrong with it.
pub fn client_tls(config: &EtcdConfig, trusted: Option<&Path>) -> Result<Arc<ClientTls>, ConfigError> {
    let tls = &config.tls;
    let identity = tls
        .identity
        .as_ref()
        .map(|(chain, key)| Identity { chain: Pem::File(chain.clone()), key: Pem::File(key.clone()) });
    let authorities = || trusted.map(Path::to_owned).or_else(system_authorities);
    let validation = match tls.verify {
        true => Some(Validation { trusted_ca: authorities().map(Pem::File), ..Validation::default() }),
        false => None,
    };
    if validation.as_ref().is_some_and(|validation| validation.trusted_ca.is_none()) {
        return Err(ConfigError::field("tls.verify", "no file of trusted certificates found"));
    }
    let settings = ClientSettings {
        identity,
        auto_san_validation: validation.is_some(),
        validation,
        auto_host_sni: tls.sni.is_none(),
        sni: tls.sni.clone(),
        ..ClientSettings::default()
    };
    let context = ClientContext::new(settings).map_err(|error| error.in_key("tls"))?;
    Ok(ClientTls::new(Some(context)))
}

pub(super) fn status(code: u32, message: impl Into<String>) -> Status {
    Status { code, message: message.into() }
}

/// Whether nobody was reached, or nobody who could answer.
pub(super) fn is_unavailable(status: &Status) -> bool {
    status.code == UNAVAILABLE
}

/// A time that is over is a member that did not answer.
fn unavailable(status: Status) -> Status {
    match status.code {
        4 => Status { code: UNAVAILABLE, ..status },
        _ => status,
    }
}

fn decoded<A: Message + Default>(answer: &Bytes) -> Result<A, Status> {
    A::decode(answer.clone()).map_err(|error| status(13, format!("no answer of etcd: {error}")))
}

/// Whether another token may help.
pub(super) fn is_of_token(status: &Status) -> bool {
    status.code == UNAUTHENTICATED
        || status.message.contains("invalid auth token")
        || status.message.contains("revision of auth store is old")
}

/// In APISIX's words.
pub(super) fn words(status: &Status) -> String {
    let refused = ["authentication failed", "user name is empty"];
    match status.code {
        UNAVAILABLE => "has no healthy etcd endpoint available".to_owned(),
        UNAUTHENTICATED => "insufficient credentials code: 401".to_owned(),
        _ if refused.iter().any(|refused| status.message.contains(refused)) => {
            "insufficient credentials code: 401".to_owned()
        }
        7 => "etcd forbidden code: 403".to_owned(),
        _ => status.message.clone(),
    }
}

impl From<Status> for StoreError {
    fn from(status: Status) -> StoreError {
        StoreError::Unavailable(words(&status))
    }
}
