#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::bytes::Bytes;
use sixfold_core::cluster::{Cluster, ClusterCell, ClusterConfig, Clusters, HostConfig};
use sixfold_core::headers::Known;
use sixfold_core::model::Model;
use sixfold_core::plugin::{
    Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutStream, CalloutStreamFuture,
};
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use sixfold_xds_api::pb::google::protobuf::Any;
use tokio::sync::oneshot;

use super::*;
use crate::ads::Resources;
use crate::ads::{BackoffConfig, Kind, RateLimit, StreamConfig, Wildcard};
use crate::rds::Source;
use crate::testing::{context, read};

/// Takes every call and says nothing.
struct Silent;

impl Callout for Silent {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(std::future::pending())
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(std::future::pending())
    }
}

struct Nothing;

impl Apply for Nothing {
    async fn apply(&mut self, diff: Diff) -> Vec<ApplyError> {
        panic!("{diff:?}")
    }
}

fn target(callout: impl Callout + 'static, cluster: Arc<ClusterCell>) -> Target {
    let grpc = Grpc {
        callout: Arc::new(callout),
        cluster,
        authority: "xds".to_owned(),
        timeout: Duration::MAX,
        max_message: 1 << 20,
        own: sixfold_core::plugin::OwnHeaders::default(),
    };
    Target { grpc, metadata: Headers::new() }
}

/// The log said that a file is not there, and not which.
#[test]
fn who_cannot_be_reached_is_named() {
    let cell = Clusters::default().cell("xds-grpc");
    let shown = || target(Silent, cell.clone()).shown();
    assert_eq!(shown(), "cluster \"xds-grpc\", which is not there");
    let endpoints = |addresses: &[&str]| {
        let hosts = addresses.iter().map(|address| match address.parse() {
            Ok(ip) => HostConfig::new(Address::Ip(ip)),
            Err(_) => HostConfig::new(Address::Unix((*address).into())),
        });
        let cluster = Cluster::new(ClusterConfig::named("xds-grpc"), hosts.collect(), None, &Registry::new());
        cell.swap(Some(cluster.unwrap()));
    };
    endpoints(&["./etc/istio/proxy/XDS"]);
    assert_eq!(shown(), "cluster \"xds-grpc\", unix:./etc/istio/proxy/XDS");
    endpoints(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"]);
    assert_eq!(shown(), "cluster \"xds-grpc\", 10.0.0.1:1, 10.0.0.2:1, 10.0.0.3:1, ...");
}

/// It stood still while a stream was being opened, half a minute for each attempt.
#[tokio::test]
async fn a_start_waits_no_longer_for_a_control_plane_that_takes_connections_and_nothing_more() {
    let time = Duration::from_millis(50);
    let within = Some(time);
    let stream = StreamConfig {
        flavor: Flavor::Delta,
        node_always: false,
        backoff: BackoffConfig::default(),
        rate: None,
    };
    let all = Wildcard { source: Source::Ads, within };
    let config = AdsConfig {
        node: Node::default(),
        ads: Some(stream),
        wildcards: BTreeMap::from([(Kind::Cluster, all.clone()), (Kind::Listener, all)]),
        statics: BTreeMap::new(),
    };
    let target = target(Silent, Clusters::default().cell("xds"));
    let (registry, start) = (Registry::new(), Instant::now());
    let (done, initialized) = oneshot::channel();
    let resources = Resources::new(context());
    let following =
        follow(config, resources, Some(target), None, &registry, Nothing, move || done.send(()).unwrap());
    let mut following = std::pin::pin!(following);
    tokio::select! {
        () = &mut following => panic!("it follows for ever"),
        came = initialized => came.unwrap(),
    }
    assert!(start.elapsed() >= time && start.elapsed() < OPENING);
    assert_eq!(registry.sum("cluster_manager.cds.", "init_fetch_timeout"), 1);
}

/// A control plane that sends one cluster when it is first asked, and then nothing more.
#[derive(Clone, Default)]
struct OneCluster {
    asked: Arc<Mutex<usize>>,
    answered: bool,
    headers: Headers,
}

impl Callout for OneCluster {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(std::future::pending())
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        let mut stream: Box<OneCluster> = Box::new(self.clone());
        stream.headers.set(Known::CONTENT_TYPE, b"application/grpc");
        Box::pin(async { Ok(stream as Box<dyn CalloutStream>) })
    }
}

impl CalloutStream for OneCluster {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, _: Bytes) {
        *self.asked.lock() += 1;
    }

    fn finish(&mut self) {}

    fn poll_head(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>> {
        if *self.asked.lock() == 0 || std::mem::replace(&mut self.answered, true) {
            return Poll::Pending;
        }
        let type_url = Kind::Cluster.type_url().to_owned();
        let value = read::<ProtoCluster>("name: c").encode_to_vec();
        let resource = Some(Any { type_url: type_url.clone(), value });
        let resource = Resource { name: "c".to_owned(), resource, ..Resource::default() };
        let response = DeltaDiscoveryResponse {
            type_url,
            resources: vec![resource],
            ..DeltaDiscoveryResponse::default()
        };
        let (message, mut piece) = (response.encode_to_vec(), vec![0]);
        piece.extend((message.len() as u32).to_be_bytes());
        piece.extend(message);
        Poll::Ready(Ok(Some(piece.into())))
    }

    fn status(&self) -> u16 {
        200
    }

    fn headers(&self) -> &Headers {
        &self.headers
    }

    fn trailers(&self) -> &Headers {
        &self.headers
    }
}

/// Says when a change begins, which never ends.
struct Endless(Option<oneshot::Sender<()>>);

impl Apply for Endless {
    async fn apply(&mut self, _: Diff) -> Vec<ApplyError> {
        self.0.take().unwrap().send(()).unwrap();
        std::future::pending().await
    }
}

/// It waited for the change, or for whatever came.
#[tokio::test]
async fn a_request_that_waits_for_others_to_be_less_goes_while_a_change_is_applied() {
    let rate = Some(RateLimit { burst: 1, fill_rate: 20.0 });
    let stream =
        StreamConfig { flavor: Flavor::Delta, node_always: false, backoff: BackoffConfig::default(), rate };
    let all = Wildcard { source: Source::Ads, within: None };
    let config = AdsConfig {
        node: Node::default(),
        ads: Some(stream),
        wildcards: BTreeMap::from([(Kind::Cluster, all.clone()), (Kind::Listener, all)]),
        statics: BTreeMap::new(),
    };
    let (context, plane) = (context(), OneCluster::default());
    let model = Model::new(context.compile.clusters.clone(), context.compile.route_tables.clone());
    let own = crate::cluster::compile(&context, &read("name: xds"), false).unwrap();
    let clusters = vec![(own.config.name.clone(), Some(own))];
    assert!(model.apply_detached(Diff { clusters, ..Diff::default() }).is_empty());
    let target = target(plane.clone(), context.compile.clusters.cell("xds"));
    let (begin, begun) = oneshot::channel();
    // In a task of its own, which nobody else wakes.
    let local = tokio::task::LocalSet::new();
    local.spawn_local(async move {
        let (registry, resources) = (Registry::new(), Resources::new(context));
        follow(config, resources, Some(target), None, &registry, Endless(Some(begin)), || {}).await;
    });
    let sent = async {
        begun.await.unwrap();
        assert_eq!(*plane.asked.lock(), 1, "the other one waits");
        while *plane.asked.lock() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    local.run_until(tokio::time::timeout(Duration::from_secs(5), sent)).await.unwrap();
}
