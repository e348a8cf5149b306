//! Labels of Istio's metrics: who calls whom, and how it ended.

use super::key::Key;
use super::overrides::Value;
use super::store::{About, METRICS, Metric};
use super::{IstioStats, Reporter};
use serde_json::{Map, Value as Json};
use sixfold_core::cluster::MeshCluster;
use sixfold_core::connection::TlsInfo;
use sixfold_core::flags::ResponseFlags;
use sixfold_core::metrics::LabelSet;
use sixfold_core::stream::Stream;
use sixfold_core::workload::{Peer, Workload};
use std::sync::{Arc, LazyLock};

/// All labels in Envoy's order: the first [`OF_PEERS`] say who calls whom, and of those behind `tcp` has not the two statuses.
pub(super) const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// Labels that say who calls whom: all that messages of gRPC are counted by.
pub(super) const OF_PEERS: usize = 20;

static NAMES: LazyLock<Vec<Arc<str>>> =
    LazyLock::new(|| LABELS.iter().map(|name| Arc::from(*name)).collect());
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
static LATEST: LazyLock<Arc<str>> = LazyLock::new(|| "latest".into());

/// The name of a label.
pub(super) fn name(label: usize) -> Arc<str> {
    NAMES.get(label).cloned().unwrap_or_default()
}

/// Labels with their values before anything of them is changed; the index is that of [`LABELS`].
pub(super) type Standard = Vec<(usize, Arc<str>)>;

/// This proxy's own part of the labels, from its node's metadata. What is not said there is empty.
pub(super) struct Own {
    workload: Arc<str>,
    namespace: Arc<str>,
    service: Arc<str>,
    revision: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
    cluster: Arc<str>,
}

impl Own {
    pub(super) fn new(metadata: &Map<String, Json>) -> Own {
        let text =
            |value: Option<&Json>| -> Arc<str> { value.and_then(Json::as_str).unwrap_or_default().into() };
        let label = |name: &str| text(metadata.get("LABELS").and_then(|labels| labels.get(name)));
        Own {
            workload: text(metadata.get("WORKLOAD_NAME")),
            namespace: text(metadata.get("NAMESPACE")),
            service: label("service.istio.io/canonical-name"),
            revision: label("service.istio.io/canonical-revision"),
            app: label("app"),
            version: label("version"),
            cluster: text(metadata.get("CLUSTER_ID")),
        }
    }
}

/// What of a request or a connection says who calls whom.
pub(super) struct View<'a> {
    reporter: Reporter,
    /// The other side.
    peer: Option<&'a Peer>,
    /// Whom a gateway calls.
    called: Option<&'a Peer>,
    /// What the endpoint's metadata say of the other side, where it has told nothing itself.
    endpoint: &'a str,
    service: Service<'a>,
    /// The other side and this one by their certificates.
    principals: [&'a str; 2],
    number: u64,
}

/// The service that is called.
struct Service<'a> {
    host: &'a [u8],
    name: &'a [u8],
    namespace: &'a str,
    /// Whether the cluster says all of it, so that its number does.
    is_of_cluster: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(filter: &IstioStats, stream: &'a Stream) -> View<'a> {
        let cluster = stream.upstream.cluster.as_ref();
        let mesh = cluster.and_then(|cluster| cluster.config.mesh.as_deref());
        let is_client = filter.reporter == Reporter::Source;
        let peers = &stream.peers;
        let peer = if is_client { &peers.upstream } else { &peers.downstream }.as_ref();
        let tls = match is_client {
            true => stream.upstream.connection.as_ref().and_then(|connection| connection.tls.as_ref()),
            false => stream.connection.tls.as_ref(),
        };
        let [theirs, ours] = principals(tls);
        let theirs = match (theirs, peer) {
            ("", Some(peer)) if is_client => &*peer.workload.identity,
            (theirs, _) => theirs,
        };
        let member = stream.upstream.member.as_ref().filter(|_| is_client && peer.is_none());
        let endpoint = member.and_then(|member| member.metadata.get("istio")?.get("workload")?.as_str());
        let host: &[u8] = if filter.host_fallback { &stream.request.authority } else { b"" };
        let route = stream.route.as_ref().map_or("", |route| &*route.name);
        let service = Service::new(route, mesh, host);
        View {
            reporter: filter.reporter,
            peer,
            called: peers.upstream.as_ref().filter(|_| filter.reporter == Reporter::Waypoint),
            endpoint: endpoint.unwrap_or_default(),
            number: mesh.map_or(0, |mesh| mesh.number),
            service,
            principals: [theirs, ours],
        }
    }

    /// Adds all that labels are made of to a key.
    pub(super) fn add_to(&self, filter: u64, key: &mut Key) {
        key.number(filter);
        key.number(self.peer.map_or(0, |peer| peer.number));
        key.number(self.called.map_or(0, |peer| peer.number));
        key.number(self.number);
        key.text(self.endpoint.as_bytes());
        if !self.service.is_of_cluster {
            key.text(self.service.host);
            key.text(self.service.name);
        }
        self.principals.iter().for_each(|principal| key.text(principal.as_bytes()));
    }

    /// The labels that say who calls whom.
    fn peers(&self, own: &Own) -> Standard {
        let endpoint;
        let peer = match self.peer {
            Some(peer) => Some(&*peer.workload),
            None => {
                endpoint = Workload::of_endpoint(self.endpoint);
                endpoint.as_ref()
            }
        };
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
            Reporter::Waypoint => "waypoint",
        };
        let [theirs, ours] = self.principals;
        let namespace = match namespace_of(theirs) {
            "" => peer.map_or("", |peer| &peer.namespace),
            namespace => namespace,
        };
        let other = Side::of_peer(peer, namespace, theirs);
        let (source, destination) = match self.reporter {
            Reporter::Source => (Side::own(own, ours), other),
            Reporter::Destination => (other, Side::own(own, ours)),
            Reporter::Waypoint => (other, Side::called(self.called.map(|peer| &*peer.workload))),
        };
        let (host, name) = (self.service.host, self.service.name);
        let (fallback, service_namespace) = match self.reporter {
            Reporter::Source => (UNKNOWN.clone(), known(first(self.service.namespace, namespace))),
            Reporter::Destination => (own.service.clone(), own.namespace.clone()),
            Reporter::Waypoint => (UNKNOWN.clone(), known(self.service.namespace)),
        };
        let text = |bytes: &[u8]| match bytes {
            b"" => fallback.clone(),
            bytes => String::from_utf8_lossy(bytes).into(),
        };
        let values: [Arc<str>; OF_PEERS] = [
            reporter.into(),
            source.workload,
            source.service,
            source.revision,
            source.namespace,
            source.principal,
            source.app,
            source.version,
            source.cluster,
            destination.workload,
            destination.namespace,
            destination.principal,
            destination.app,
            destination.version,
            text(host),
            destination.service,
            destination.revision,
            text(name),
            service_namespace,
            destination.cluster,
        ];
        values.into_iter().enumerate().collect()
    }

    /// Whether both sides have shown who they are; a caller does not say.
    fn security(&self) -> &'static str {
        match (self.reporter, self.principals) {
            (Reporter::Source, _) => "unknown",
            (_, [theirs, ours]) if !theirs.is_empty() && !ours.is_empty() => "mutual_tls",
            _ => "none",
        }
    }
}

impl<'a> Service<'a> {
    fn new(route: &str, mesh: Option<&'a MeshCluster>, host: &'a [u8]) -> Service<'a> {
        let service = Service { host, name: host, namespace: "", is_of_cluster: false };
        match (route, mesh) {
            ("block_all", _) => Service { name: b"BlackHoleCluster", ..service },
            ("allow_any", _) => Service { name: b"PassthroughCluster", ..service },
            (_, Some(mesh)) if !mesh.host.is_empty() => Service {
                host: mesh.host.as_bytes(),
                name: mesh.service.as_bytes(),
                namespace: &mesh.namespace,
                is_of_cluster: true,
            },
            (_, Some(mesh)) if !mesh.service.is_empty() => {
                Service { name: mesh.service.as_bytes(), namespace: &mesh.namespace, ..service }
            }
            _ => service,
        }
    }
}

/// One side of a call.
struct Side {
    workload: Arc<str>,
    namespace: Arc<str>,
    principal: Arc<str>,
    service: Arc<str>,
    revision: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
    cluster: Arc<str>,
}

impl Side {
    /// This proxy.
    fn own(own: &Own, principal: &str) -> Side {
        Side {
            workload: own.workload.clone(),
            namespace: own.namespace.clone(),
            principal: known(principal),
            service: own.service.clone(),
            revision: own.revision.clone(),
            app: own.app.clone(),
            version: own.version.clone(),
            cluster: own.cluster.clone(),
        }
    }

    /// The other side, as far as it is known.
    fn of_peer(peer: Option<&Workload>, namespace: &str, principal: &str) -> Side {
        let text = |field: fn(&Workload) -> &str| known(peer.map_or("", field));
        let revision = peer.map_or("", |peer| &*peer.revision);
        Side {
            workload: text(|peer| &peer.workload),
            namespace: known(namespace),
            principal: known(principal),
            service: text(|peer| &peer.service),
            revision: if revision.is_empty() { LATEST.clone() } else { revision.into() },
            app: text(|peer| &peer.app),
            version: text(|peer| &peer.version),
            cluster: text(|peer| &peer.cluster),
        }
    }

    /// Whom a gateway calls.
    fn called(peer: Option<&Workload>) -> Side {
        let namespace = peer.map_or("", |peer| &*peer.namespace);
        let principal = peer.map_or("", |peer| &*peer.identity);
        let revision = known(peer.map_or("", |peer| &*peer.revision));
        Side { revision, ..Side::of_peer(peer, namespace, principal) }
    }
}

/// How a request ended.
pub(super) struct End {
    pub(super) is_grpc: bool,
    /// 0 where there was no response.
    pub(super) status: u16,
    pub(super) grpc_status: Option<u32>,
    pub(super) flags: ResponseFlags,
}

impl End {
    pub(super) fn add_to(&self, key: &mut Key) {
        let grpc = self.grpc_status.map_or(0, |status| u64::from(status) + 1);
        key.number(u64::from(self.status) | u64::from(self.is_grpc) << 16 | grpc << 17);
        self.flags.iter().for_each(|flag| key.number(flag as u64));
    }
}

impl IstioStats {
    /// What is to be shown of a series of requests, and under which labels.
    pub(super) fn about(&self, view: &View<'_>, end: &End, values: &[Value]) -> Arc<About> {
        let of_peers = view.peers(&self.own);
        let flags = flags_text(end.flags);
        let grpc = end.grpc_status.map_or(Arc::default(), |status| status.to_string().into());
        let behind: [Arc<str>; 5] = [
            if end.is_grpc { "grpc" } else { "http" }.into(),
            end.status.to_string().into(),
            grpc,
            flags.as_str().into(),
            view.security().into(),
        ];
        let mut all = of_peers.clone();
        all.extend((OF_PEERS..).zip(behind));
        self.shown(Metric::HTTP, values, |metric| match metric {
            Metric::RequestMessages | Metric::ResponseMessages => end.is_grpc.then_some(&of_peers),
            _ => Some(&all),
        })
    }

    /// What is to be shown of a series of connections that had these flags when they were first counted, and under which labels.
    pub(super) fn about_connection(
        &self,
        view: &View<'_>,
        flags: ResponseFlags,
        values: &[Value],
    ) -> Arc<About> {
        let mut all = view.peers(&self.own);
        let behind: [(usize, Arc<str>); 3] = [
            (OF_PEERS, "tcp".into()),
            (OF_PEERS + 3, flags_text(flags).as_str().into()),
            (OF_PEERS + 4, view.security().into()),
        ];
        all.extend(behind);
        self.shown(Metric::TCP, values, |_| Some(&all))
    }

    /// Labels of those of these metrics that are counted, each set once.
    fn shown<'l>(
        &self,
        metrics: std::ops::Range<usize>,
        values: &[Value],
        labels: impl Fn(Metric) -> Option<&'l Standard>,
    ) -> Arc<About> {
        let mut shown: Vec<(Metric, LabelSet)> = Vec::new();
        for (metric, _) in METRICS.iter().take(metrics.end).skip(metrics.start) {
            let Some(labels) = labels(*metric).filter(|_| !self.overrides.drops(*metric)) else { continue };
            let set = self.overrides.apply(*metric, labels, values);
            let same = shown.iter().find(|(_, other)| **other == *set).map(|(_, other)| other.clone());
            shown.push((*metric, same.unwrap_or(set)));
        }
        Arc::new(About(shown))
    }
}

/// Flags as labels have them: `-` for none.
fn flags_text(flags: ResponseFlags) -> String {
    let mut text = Vec::new();
    flags.write_short(&mut text);
    match text.is_empty() {
        true => "-".to_owned(),
        false => String::from_utf8(text).unwrap_or_default(),
    }
}

/// The first URI of either certificate.
fn principals(tls: Option<&TlsInfo>) -> [&str; 2] {
    let sides = tls.map(|tls| [&tls.peer, &tls.local]);
    sides.map_or([""; 2], |sides| {
        sides.map(|of| of.as_ref().and_then(|of| of.uri_sans.first()).map_or("", String::as_str))
    })
}

/// The namespace in `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace_of(principal: &str) -> &str {
    let rest = principal.split_once("/ns/").map_or("", |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

fn first<'t>(text: &'t str, other: &'t str) -> &'t str {
    if text.is_empty() { other } else { text }
}

fn known(text: &str) -> Arc<str> {
    if text.is_empty() { UNKNOWN.clone() } else { text.into() }
}
