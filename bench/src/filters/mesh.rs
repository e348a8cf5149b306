//! Istio's own filters: who the peer is, and the metrics of who calls whom.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use sixfold_core::cluster::{Cluster, ClusterConfig, MeshCluster};
use sixfold_core::connection::{Connection, TlsInfo, UpstreamConnection};
use sixfold_core::headers::Known;
use sixfold_core::metadata::Metadata;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{BuildContext, LocalNode, TrafficDirection};
use sixfold_core::stream::Stream;
use sixfold_core::traffic::Traffic;
use sixfold_core::workload::Peer;
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::Config as PeerMetadata;
use sixfold_xds_api::istio_pb::stats::PluginConfig as Stats;

use super::{Ready, chain, context, request, run};

pub(super) fn metadata() -> Result<Ready> {
    let [id, told] = told_by_caller()?;
    let config = json!({"downstream_propagation": [{"istio_headers": {}}],
        "downstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}]});
    let chain = chain::<PeerMetadata>(config, &node("server", TrafficDirection::Inbound))?;
    let request = move || {
        let mut stream = inbound();
        stream.request.headers.set(Known::X_ENVOY_PEER_METADATA_ID, &id);
        stream.request.headers.set(Known::X_ENVOY_PEER_METADATA, &told);
        stream
    };
    Ok(Ready { chain, request: Box::new(request) })
}

pub(super) fn stats_of_called() -> Result<Ready> {
    let context = node("server", TrafficDirection::Inbound);
    let chain = chain::<Stats>(json!({"disable_host_header_fallback": true}), &context)?;
    let (peer, cluster) = (peer("frontend"), cluster("inbound|9080||")?);
    let request = move || {
        let mut stream = inbound();
        stream.upstream.cluster = Some(Arc::clone(&cluster));
        stream.peers.downstream = Some(peer.clone());
        stream
    };
    Ok(Ready { chain, request: Box::new(request) })
}

pub(super) fn stats_of_caller() -> Result<Ready> {
    let chain = chain::<Stats>(json!({}), &node("frontend", TrafficDirection::Outbound))?;
    let (peer, cluster) = (peer("server"), cluster("outbound|9080||server.default.svc.cluster.local")?);
    let connection = upstream();
    let request = move || {
        let mut stream = inbound();
        stream.connection = Arc::new(Connection::plain(stream.connection.remote, stream.connection.local));
        stream.upstream.cluster = Some(Arc::clone(&cluster));
        stream.upstream.connection = Some(Arc::clone(&connection));
        stream.peers.upstream = Some(peer.clone());
        stream
    };
    Ok(Ready { chain, request: Box::new(request) })
}

/// The two headers that the caller's sidecar adds.
fn told_by_caller() -> Result<[Vec<u8>; 2]> {
    let config = json!({"upstream_propagation": [{"istio_headers": {}}]});
    let chain = chain::<PeerMetadata>(config, &node("frontend", TrafficDirection::Outbound))?;
    let mut stream = inbound();
    ensure!(run(&chain, &mut stream), "the caller's filter lets no request pass");
    let told = |name| stream.request.headers.get(name).unwrap_or_default().to_vec();
    Ok([told(Known::X_ENVOY_PEER_METADATA_ID), told(Known::X_ENVOY_PEER_METADATA)])
}

/// A call that has been answered, but for who is on the other side.
fn inbound() -> Stream {
    let mut stream = request("/productpage", &[]);
    stream.bytes.traffic = Traffic { sent: 300, received: 100, ..Traffic::default() };
    stream.timing.downstream_tx_end = Some(stream.timing.start);
    stream
}

/// The connection to the server's sidecar, over mutual TLS.
fn upstream() -> Arc<UpstreamConnection> {
    let connection = request("/", &[]).connection;
    let tls = connection.tls.as_ref();
    let of =
        |tls: &TlsInfo| TlsInfo { peer: tls.local.clone(), local: tls.peer.clone(), ..TlsInfo::default() };
    UpstreamConnection::new(tls.map(of))
}

/// What istiod makes a proxy say of itself.
fn metadata_of(name: &str) -> serde_json::Map<String, Value> {
    let metadata = json!({
        "NAME": format!("{name}-v1-7d4b9c6f5-x2x7k"), "NAMESPACE": "default", "WORKLOAD_NAME": format!("{name}-v1"),
        "CLUSTER_ID": "Kubernetes", "MESH_ID": "cluster.local", "ISTIO_VERSION": "1.29.6",
        "OWNER": format!("kubernetes://apis/apps/v1/namespaces/default/deployments/{name}-v1"),
        "LABELS": {"app": name, "version": "v1", "service.istio.io/canonical-name": name,
            "service.istio.io/canonical-revision": "v1"},
    });
    if let Value::Object(metadata) = metadata { metadata } else { serde_json::Map::new() }
}

fn node(name: &str, direction: TrafficDirection) -> BuildContext {
    let id = format!("sidecar~10.0.0.1~{name}-v1-7d4b9c6f5-x2x7k.default~default.svc.cluster.local");
    let node = LocalNode { id: id.into(), metadata: metadata_of(name) };
    BuildContext { node: Arc::new(node), direction, ..context() }
}

fn peer(name: &str) -> Peer {
    Peer::new(LocalNode { id: "".into(), metadata: metadata_of(name) }.workload(&[]))
}

/// The cluster of the server.
fn cluster(name: &str) -> Result<Arc<Cluster>> {
    let mut metadata = Metadata::default();
    let service = "server.default.svc.cluster.local";
    let services = json!([{"host": service, "name": service, "namespace": "default"}]);
    metadata.insert("istio", json!({"services": services}));
    let mesh = Some(Arc::new(MeshCluster::new(name, &metadata)));
    let config = ClusterConfig { mesh, ..ClusterConfig::named(name) };
    Cluster::new(config, Vec::new(), None, &Registry::new()).map_err(|error| anyhow!("{error}"))
}
