#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::cluster::Clusters;
use sixfold_core::plugin::{Callout, CalloutFuture, CalloutRequest, CalloutStreamFuture};
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use tokio::sync::oneshot;

use super::*;
use crate::ads::Resources;
use crate::ads::{BackoffConfig, Kind, StreamConfig, Wildcard};
use crate::rds::Source;
use crate::testing::context;

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
    let grpc = Grpc {
        callout: Arc::new(Silent),
        cluster: Clusters::default().cell("xds"),
        authority: "xds".to_owned(),
        timeout: Duration::MAX,
        max_message: 1 << 20,
    };
    let target = Target { grpc, metadata: Headers::new() };
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
