//! Asking an endpoint.

use super::state::{Failure, Verdict};
use crate::connect::{ConnectError, Handshake, connect};
use crate::deadline::{Deadline, within};
use crate::io::{Io, Transport};
use bytes::Bytes;
use sixfold_core::cluster::{
    ActiveCheck, Address, BreakerLimits, Cluster, ClusterCell, ClusterConfig, ClusterPolicy, Clusters,
    EndpointCheck, GrpcProbe, HealthCheck, Host, HostConfig, HttpProbe, Probe, ProbeHeader, Seen, TcpProbe,
    UpstreamProtocol,
};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::Scheme;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{Callout, CalloutError, CalloutRequest, CalloutResponse, OwnHeaders, grpc};
use sixfold_core::tls::ClientTls;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::ReadBuf;

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 1 << 20;
/// What Envoy calls itself.
const USER_AGENT: &[u8] = b"Envoy/HC";

/// An endpoint to be asked, as a cluster of its own: its connections count nowhere, and no circuit breaker holds them
/// back. They end when it is dropped.
pub(super) struct Target {
    cell: Arc<ClusterCell>,
    callout: Arc<dyn Callout>,
    /// Host, where neither the endpoint nor the check has one: the cluster's name.
    cluster: Arc<str>,
    /// The endpoint's own.
    host: Option<Arc<str>>,
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.cell.swap(None));
    }
}

/// How an endpoint is reached.
struct Line {
    address: Address,
    tls: Option<Arc<ClientTls>>,
    scheme: Scheme,
    http2: bool,
    timeout: Duration,
    reuses: bool,
}

impl Target {
    pub(super) fn new(
        cluster: &Cluster,
        check: &HealthCheck,
        host: &Host,
        own: Option<&EndpointCheck>,
        tls: Option<Arc<ClientTls>>,
        callout: Arc<dyn Callout>,
    ) -> Target {
        let config = &cluster.config;
        let http2 = match &check.probe {
            Probe::Http(http) => http.http2,
            Probe::Grpc(_) => true,
            Probe::Tcp(_) => false,
        };
        let port = own.and_then(|own| own.port).or(check.port);
        let address = match own.and_then(|own| own.address.as_ref()) {
            Some(address) => address.clone(),
            None => with_port(&host.address, port),
        };
        let line = Line {
            address,
            tls,
            scheme: config.scheme,
            http2,
            timeout: check.timeout,
            reuses: check.reuse_connection,
        };
        let cell = reach(cluster, host, line);
        let host = own.and_then(|own| own.host.clone());
        Target { cell, callout, cluster: config.name.clone(), host }
    }

    /// A node, which is asked as APISIX does it.
    pub(super) fn of_node(
        cluster: &Cluster,
        check: &ActiveCheck,
        host: &Host,
        callout: Arc<dyn Callout>,
    ) -> Target {
        let line = Line {
            address: with_port(&host.address, check.port),
            tls: check.tls.clone(),
            scheme: if check.tls.is_some() { Scheme::Https } else { Scheme::Http },
            http2: false,
            timeout: check.timeout,
            reuses: false,
        };
        let name = Some(&host.hostname).filter(|name| !name.is_empty());
        let own = || match &host.address {
            Address::Ip(address) => address.ip().to_string().into(),
            other => other.to_string().into(),
        };
        let name = check.host.as_ref().or(name).or(check.address_host.as_ref()).cloned().unwrap_or_else(own);
        let cell = reach(cluster, host, line);
        Target { cell, callout, cluster: cluster.config.name.clone(), host: Some(name) }
    }

    /// What is seen of a node; nothing where it could not be asked. The caller bounds it.
    pub(super) async fn see(&self, check: &ActiveCheck) -> Option<Seen> {
        let Some(probe) = &check.http else {
            return Some(match self.tcp(check.timeout, &TcpProbe::default()).await? {
                Verdict::Passed { .. } => Seen::Connection,
                Verdict::Failed { failure: Failure::Timeout, .. } => Seen::Timeout,
                Verdict::Failed { .. } => Seen::TcpFailure,
            });
        };
        match self.request(check.timeout, probe, None).await {
            Ok(answer) => Some(Seen::Status(answer.status)),
            Err(CalloutError::Timeout) => Some(Seen::Timeout),
            Err(CalloutError::Failed(_) | CalloutError::Unaskable(_)) => Some(Seen::TcpFailure),
            Err(CalloutError::Exhausted(_)) => None,
        }
    }

    /// Asks once; `None` where it could not be asked. The caller bounds it.
    pub(super) async fn check(&self, check: &HealthCheck) -> Option<Verdict> {
        match &check.probe {
            Probe::Http(probe) => self.http(check, probe).await,
            Probe::Tcp(probe) => self.tcp(check.timeout, probe).await,
            Probe::Grpc(probe) => Some(self.grpc(check, probe).await),
        }
    }

    fn host<'a>(&'a self, configured: &'a str) -> &'a str {
        match &self.host {
            Some(own) => own,
            None if configured.is_empty() => &self.cluster,
            None => configured,
        }
    }

    async fn http(&self, check: &HealthCheck, probe: &HttpProbe) -> Option<Verdict> {
        Some(match self.request(check.timeout, probe, Some(USER_AGENT)).await {
            Ok(answer) => judge(probe, answer.status, &answer.headers, &answer.body),
            Err(CalloutError::Timeout) => Verdict::late(),
            Err(CalloutError::Exhausted(_)) => return None,
            Err(error) => Verdict::silent(error.to_string()),
        })
    }

    async fn request(
        &self,
        timeout: Duration,
        probe: &HttpProbe,
        agent: Option<&[u8]>,
    ) -> Result<CalloutResponse, CalloutError> {
        let mut headers = Headers::new();
        headers.set(Known::HOST, self.host(&probe.host).as_bytes());
        if let Some(agent) = agent {
            headers.set(Known::USER_AGENT, agent);
        }
        add(&mut headers, &probe.add);
        for name in &probe.remove {
            headers.remove(name);
        }
        let request = CalloutRequest {
            // The cluster says where to; the rest is in the headers.
            uri: format!("http://check{}", probe.path),
            target: None,
            cluster: Some(self.cell.clone()),
            retries: 0,
            method: probe.method.clone(),
            headers,
            body: Bytes::copy_from_slice(&probe.send),
            timeout,
            verify_tls: true,
            max_body: MAX_ANSWER,
            keepalive: None,
        };
        self.callout.send(request).await
    }

    async fn grpc(&self, check: &HealthCheck, probe: &GrpcProbe) -> Verdict {
        let client = grpc::Client {
            callout: self.callout.clone(),
            cluster: self.cell.clone(),
            authority: self.host(&probe.authority).to_owned(),
            timeout: check.timeout,
            max_message: MAX_ANSWER,
            // Envoy's checks are none of its client's.
            own: OwnHeaders::default(),
        };
        let mut headers = Headers::new();
        headers.set(Known::USER_AGENT, USER_AGENT);
        add(&mut headers, &probe.metadata);
        match client.unary("/grpc.health.v1.Health/Check", headers, &health_request(&probe.service)).await {
            Ok(answer) => match serving(&answer) {
                Some(1) => Verdict::Passed { degraded: false },
                status => Verdict::failed(format!("serving status {}", status.unwrap_or(0))),
            },
            // Nobody there, or nobody in time.
            Err(grpc::Status { code: 4, .. }) => Verdict::late(),
            Err(status @ grpc::Status { code: 14, .. }) => Verdict::silent(status.to_string()),
            Err(status) => Verdict::failed(status.to_string()),
        }
    }

    async fn tcp(&self, timeout: Duration, probe: &TcpProbe) -> Option<Verdict> {
        let Some(cluster) = self.cell.load() else { return Some(Verdict::silent("no cluster")) };
        let hosts = cluster.hosts.load_full();
        let Some(member) = hosts.iter().next() else { return Some(Verdict::silent("no endpoint")) };
        let handshake = Handshake { tls: cluster.tls_of(member), ..Handshake::default() };
        let connected = connect(&cluster, &member.host, handshake, timeout).await;
        let mut io = match connected {
            Ok(connected) => connected.io,
            Err(ConnectError::Timeout) => return Some(Verdict::late()),
            Err(ConnectError::Exhausted(_)) => return None,
            Err(error) => return Some(Verdict::silent(error.to_string())),
        };
        let mut deadline = Deadline::after(timeout);
        Some(match converse(&mut io, &mut deadline, probe).await {
            Ok(true) => Verdict::Passed { degraded: false },
            Ok(false) => Verdict::failed("another answer"),
            Err(error) => Verdict::silent(error.to_string()),
        })
    }
}

/// A cluster of one endpoint.
fn reach(cluster: &Cluster, host: &Host, line: Line) -> Arc<ClusterCell> {
    let config = &cluster.config;
    let policy = ClusterPolicy {
        scheme: line.scheme,
        protocol: if line.http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 },
        profile: config.profile,
        http1: config.http1.clone(),
        http2: config.http2.clone(),
        header_rules: config.header_rules,
        source_address: config.source_address,
        tcp_keepalive: config.tcp_keepalive,
        connect_timeout: line.timeout,
        idle_timeout: None,
        max_idle: 1,
        max_requests_per_connection: (!line.reuses).then_some(1),
        breaker: BreakerLimits::UNLIMITED,
        high_breaker: BreakerLimits::UNLIMITED,
        statistics: false,
        ..ClusterPolicy::default()
    };
    let alone = ClusterConfig { tls: line.tls, policy: policy.into(), ..ClusterConfig::named(&config.name) };
    let endpoint = HostConfig { hostname: host.hostname.clone(), ..HostConfig::new(line.address) };
    let cell = Clusters::default().cell(&config.name);
    match Cluster::new(alone, vec![endpoint], None, &Registry::new()) {
        Ok(cluster) => drop(cell.swap(Some(cluster))),
        // Of the default balancer nothing can be wrong.
        Err(error) => tracing::error!(cluster = %config.name, error, "its endpoints can't be checked"),
    }
    cell
}

/// An address, with another port perhaps.
fn with_port(address: &Address, port: Option<u16>) -> Address {
    match (address, port) {
        (Address::Ip(address), Some(port)) => Address::Ip(SocketAddr::new(address.ip(), port)),
        (address, _) => address.clone(),
    }
}

fn add(headers: &mut Headers, added: &[ProbeHeader]) {
    for ProbeHeader { name, value, replaces } in added {
        match replaces {
            true => headers.set(name, value),
            false => headers.append(name, value),
        }
    }
}

/// Says what is to be said, and hears whether the answer has what it must have.
async fn converse(io: &mut Io, deadline: &mut Deadline, probe: &TcpProbe) -> io::Result<bool> {
    let mut sent = 0;
    while let Some(rest) = probe.send.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += within(deadline, |_, cx| io.poll_write(cx, rest)).await??;
    }
    within(deadline, |_, cx| io.poll_flush(cx)).await??;
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while !contains_all(&heard, &probe.receive) {
        if heard.len() > MAX_ANSWER {
            return Ok(false);
        }
        let mut buffer = ReadBuf::new(&mut buffer);
        within(deadline, |_, cx| io.poll_read(cx, &mut buffer)).await??;
        if buffer.filled().is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        heard.extend_from_slice(buffer.filled());
    }
    Ok(true)
}

/// What an answer says of its endpoint (`HttpActiveHealthCheckSession::healthCheckResult`).
pub(super) fn judge(probe: &HttpProbe, status: u16, headers: &Headers, body: &[u8]) -> Verdict {
    let within = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&status));
    // Of an answer that is well otherwise it says nothing.
    let fails = !within(&probe.expected);
    let exclude = fails && headers.contains("x-envoy-immediate-health-check-fail");
    let failed = |retriable, reason: String| Verdict::Failed {
        failure: Failure::Active,
        status,
        retriable,
        exclude,
        reason,
    };
    if fails {
        return failed(!exclude && within(&probe.retriable), format!("status {status}"));
    }
    if !contains_all(body, &probe.receive) {
        return failed(false, "another body".to_owned());
    }
    if let Some(service) = &probe.service {
        let named = headers.get("x-envoy-upstream-healthchecked-cluster").unwrap_or_default();
        if !service.matches(named) {
            return failed(false, format!("it is of service '{}'", String::from_utf8_lossy(named)));
        }
    }
    Verdict::Passed { degraded: headers.contains("x-envoy-degraded") }
}

/// Whether pieces come in this order.
pub(super) fn contains_all(text: &[u8], pieces: &[Vec<u8>]) -> bool {
    let mut rest = text;
    pieces.iter().all(|piece| match memchr::memmem::find(rest, piece) {
        Some(at) => {
            rest = rest.get(at + piece.len()..).unwrap_or_default();
            true
        }
        None => false,
    })
}

/// `grpc.health.v1.HealthCheckRequest`: one field, the service.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0A);
        let mut length = service.len();
        while length > 0x7F {
            message.push(0x80 | (length & 0x7F) as u8);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// `grpc.health.v1.HealthCheckResponse.status`, its only field: 1 is SERVING.
pub(super) fn serving(message: &[u8]) -> Option<u8> {
    match message {
        [0x08, status @ 0..=0x7F] => Some(*status),
        // Proto3 leaves 0 out: UNKNOWN.
        _ => None,
    }
}
