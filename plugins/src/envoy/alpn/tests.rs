#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, stream};
use prost::Message;
use serde_json::json;
use sixfold_core::cluster::{Cluster, ClusterConfig, MeshCluster};
use sixfold_core::metadata::Metadata;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::HeadPhase;
use std::sync::Arc;

fn config() -> FilterConfig {
    let of = |protocol: Protocol, names: &[&str]| AlpnOverride {
        upstream_protocol: protocol as i32,
        alpn_override: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let alpn_override = vec![
        of(Protocol::Http10, &["istio-http/1.0", "istio", "http/1.0"]),
        of(Protocol::Http11, &["istio-http/1.1", "istio", "http/1.1"]),
        of(Protocol::Http2, &["istio-h2", "istio", "h2"]),
    ];
    FilterConfig { alpn_override }
}

fn offered(
    filter: &Alone,
    protocol: UpstreamProtocol,
    version: Version,
    said: serde_json::Value,
) -> Option<AlpnList> {
    let mut metadata = Metadata::default();
    metadata.insert("istio", said);
    let mut cluster = ClusterConfig::named("c");
    cluster.mesh = Some(Arc::new(MeshCluster::new("c", &metadata)));
    cluster.protocol = protocol;
    let mut stream = stream("/", &[]);
    stream.request.version = version;
    stream.upstream.cluster = Some(Cluster::new(cluster, Vec::new(), None, &Registry::new()).unwrap());
    assert!(testing::done(filter.chain.run(HeadPhase::BeforeProxy, &mut stream)));
    stream.upstream.offer
}

#[test]
fn the_version_of_the_upstream_is_offered() {
    let filter = testing::filter(&factory(), &config().encode_to_vec(), &[]).unwrap();
    let list = |names: [&str; 3]| Some(AlpnList::new(names.map(str::as_bytes)));
    let (http11, http2) = (list(["istio-http/1.1", "istio", "http/1.1"]), list(["istio-h2", "istio", "h2"]));
    let of = |protocol, version| offered(&filter, protocol, version, json!({}));
    assert_eq!(of(UpstreamProtocol::Http1, Version::Http2), http11);
    assert_eq!(of(UpstreamProtocol::Http2, Version::Http11), http2);
    assert_eq!(of(UpstreamProtocol::Downstream, Version::Http2), http2);
    assert_eq!(of(UpstreamProtocol::Downstream, Version::Http11), http11);
    let http10 = list(["istio-http/1.0", "istio", "http/1.0"]);
    assert_eq!(of(UpstreamProtocol::Downstream, Version::Http10), http10);
    assert_eq!(of(UpstreamProtocol::Http1, Version::Http10), http11);
}

#[test]
fn clusters_may_keep_what_they_offer() {
    let filter = testing::filter(&factory(), &config().encode_to_vec(), &[]).unwrap();
    let keeps = json!({"alpn_override": "false"});
    assert_eq!(offered(&filter, UpstreamProtocol::Http1, Version::Http11, keeps), None);
    let empty = testing::filter(&factory(), &[], &[]).unwrap();
    assert_eq!(offered(&empty, UpstreamProtocol::Http1, Version::Http11, json!({})), None);
}

#[test]
fn names_that_no_handshake_can_have_are_refused() {
    let built = |name: String| {
        let list = AlpnOverride { upstream_protocol: 1, alpn_override: vec!["h2".into(), name] };
        let config = FilterConfig { alpn_override: vec![list] };
        testing::filter(&factory(), &config.encode_to_vec(), &[]).map(|_| ()).unwrap_err()
    };
    let reason =
        "alpn_override[0].alpn_override: a protocol has between 1 and 255 bytes (RFC 7301 section 3.1)";
    assert_eq!((built(String::new()).as_str(), built("x".repeat(256)).as_str()), (reason, reason));
}
