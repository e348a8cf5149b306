#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, now, request_header, response_header, stream};
use prost::Message;
use serde_json::json;
use sixfold_core::cluster::{Cluster, ClusterConfig, MeshCluster};
use sixfold_core::metadata::Metadata;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{HeadPhase, LocalNode};
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::config::{Baggage, WorkloadDiscovery};
use std::sync::Arc;

const ID: &str = "x-envoy-peer-metadata-id";
const METADATA: &str = "x-envoy-peer-metadata";

fn node(name: &str) -> BuildContext {
    let metadata = json!({
        "NAME": format!("{name}-1"), "NAMESPACE": "default", "WORKLOAD_NAME": name, "SECRET": "kept",
        "LABELS": {"app": name, "role": "x"},
    });
    let node = LocalNode {
        id: format!("sidecar~10.0.0.1~{name}-1.default~local").into(),
        metadata: metadata.as_object().unwrap().clone(),
    };
    BuildContext { node: Arc::new(node), ..context() }
}

fn by_headers(skip_external_clusters: bool) -> (DiscoveryMethod, PropagationMethod) {
    let headers = IstioHeaders { skip_external_clusters };
    let discovery = DiscoveryMethod { method_specifier: Some(Discover::IstioHeaders(headers)) };
    (discovery, PropagationMethod { method_specifier: Some(Propagate::IstioHeaders(headers)) })
}

fn caller(skip_external: bool) -> Config {
    let (discovery, propagation) = by_headers(skip_external);
    let address =
        DiscoveryMethod { method_specifier: Some(Discover::WorkloadDiscovery(WorkloadDiscovery {})) };
    Config {
        upstream_discovery: vec![discovery, address],
        upstream_propagation: vec![propagation],
        ..Config::default()
    }
}

fn called() -> Config {
    let (discovery, propagation) = by_headers(false);
    Config {
        downstream_discovery: vec![discovery],
        downstream_propagation: vec![propagation],
        additional_labels: vec!["role".into()],
        ..Config::default()
    }
}

fn filter(config: &Config, node: &BuildContext) -> Alone {
    testing::filter_in(&factory(), &config.encode_to_vec(), &[], node).unwrap()
}

fn cluster(name: &str, said: serde_json::Value) -> Arc<Cluster> {
    let mut metadata = Metadata::default();
    metadata.insert("istio", said);
    let mesh = Some(Arc::new(MeshCluster::new(name, &metadata)));
    let config = ClusterConfig { mesh, ..ClusterConfig::named(name) };
    Cluster::new(config, Vec::new(), None, &Registry::new()).unwrap()
}

/// What a caller sends to a cluster of whom this is said.
fn sent(config: &Config, name: &str, said: serde_json::Value) -> Stream {
    let mut stream = stream("/", &[]);
    stream.upstream.cluster = Some(cluster(name, said));
    assert!(testing::done(filter(config, &node("web")).chain.run(HeadPhase::BeforeProxy, &mut stream)));
    stream
}

#[test]
fn both_sides_of_a_call_learn_who_the_other_is() {
    let mut out = sent(&caller(false), "c", json!({}));
    assert_eq!(request_header(&out, ID), Some("sidecar~10.0.0.1~web-1.default~local"));
    let told = request_header(&out, METADATA).unwrap().to_owned();

    let called = filter(&called(), &node("db"));
    let mut within = stream("/", &[(ID, "sidecar~a"), (METADATA, &told), ("x-app", "1")]);
    assert!(now(called.access(&mut within)).is_none());
    let peer = within.peers.named("downstream_peer").unwrap();
    assert_eq!((&*peer.workload, &*peer.instance, &*peer.namespace), ("web", "web-1", "default"));
    assert!(peer.labels.is_empty(), "it is not told what the caller was not asked to tell");
    assert_eq!((request_header(&within, ID), request_header(&within, METADATA)), (None, None));
    assert!(now(called.header_filter(&mut within)).is_none());
    let answer = response_header(&within, METADATA).unwrap();

    out.response.headers.set(METADATA, answer.as_bytes());
    out.response.headers.set(ID, b"sidecar~b");
    assert!(now(filter(&caller(false), &node("web")).header_filter(&mut out)).is_none());
    assert_eq!(out.peers.named("upstream_peer_obj").unwrap().field("workload"), Some("db"));
    assert_eq!((response_header(&out, ID), response_header(&out, METADATA)), (None, None));
}

#[test]
fn who_tells_nothing_is_told_nothing() {
    let called = filter(&called(), &node("db"));
    for (headers, told) in
        [(&[][..], [false, false]), (&[(ID, "x")], [true, false]), (&[(METADATA, "Cg==")], [false, true])]
    {
        let mut stream = stream("/", headers);
        assert!(now(called.access(&mut stream)).is_none());
        assert!(stream.peers.downstream.is_none());
        assert!(now(called.header_filter(&mut stream)).is_none());
        assert_eq!([ID, METADATA].map(|name| response_header(&stream, name).is_some()), told, "{headers:?}");
    }
}

#[test]
fn clusters_outside_of_the_mesh_may_be_left_alone() {
    let is_told =
        |config: &Config, name: &str, said| request_header(&sent(config, name, said), METADATA).is_some();
    let outside = json!({"external": true});
    assert!(
        is_told(&caller(false), "c", outside.clone())
            && is_told(&caller(false), "PassthroughCluster", json!({}))
    );
    assert!(
        !is_told(&caller(true), "c", outside) && !is_told(&caller(true), "PassthroughCluster", json!({}))
    );
    assert!(is_told(&caller(true), "c", json!({})));
    assert!(!is_told(&caller(false), "c", json!({"disable_mx": true})));
}

#[test]
fn labels_and_baggage_are_known_if_they_are_asked_for() {
    let (with_labels, mut within) =
        (Config { additional_labels: vec!["role".into()], ..caller(false) }, stream("/", &[]));
    let told = sent(&with_labels, "c", json!({}));
    within.request.headers.set(METADATA, request_header(&told, METADATA).unwrap().as_bytes());
    assert!(now(filter(&called(), &node("db")).access(&mut within)).is_none());
    assert_eq!(within.peers.named("downstream_peer").unwrap().labels, [("role".into(), "x".into())]);

    let baggage = DiscoveryMethod { method_specifier: Some(Discover::Baggage(Baggage {})) };
    let config = Config {
        downstream_discovery: vec![baggage.clone()],
        upstream_discovery: vec![baggage],
        ..Config::default()
    };
    let mut within = stream("/", &[("baggage", "k8s.deployment.name=w,service.name=s")]);
    assert!(now(filter(&config, &node("db")).access(&mut within)).is_none());
    assert_eq!(within.peers.named("downstream_peer").unwrap().field("type"), Some("deployment"));
    assert!(request_header(&within, "baggage").is_some(), "it is the application's too");
}
