#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, stream};
use prost::Message;
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::metrics::{Registry, Sample, Value};
use sixfold_core::plugin::Direction;
use sixfold_xds_api::pb::google::protobuf::BoolValue;
use std::sync::Arc;

/// A call to this path that ends with these statuses, in its head and in its trailers.
async fn call(filter: &Alone, cluster: &Arc<Cluster>, path: &str, content_type: &str, statuses: [&str; 2]) {
    let mut stream = stream(path, &[("content-type", content_type)]);
    assert!(filter.access(&mut stream).await.is_none());
    // What the router makes of it is of no matter any more.
    stream.request.target.set(b"/rewritten");
    stream.upstream.cluster = Some(cluster.clone());
    stream.response.status = 200;
    for (status, headers) in
        statuses.iter().zip([&mut stream.response.headers, &mut stream.response_trailers])
    {
        if !status.is_empty() {
            headers.set(Known::GRPC_STATUS, status.as_bytes());
        }
    }
    assert!(filter.header_filter(&mut stream).await.is_none());
    filter.trailers(&mut stream);
    filter.log(&mut stream);
}

fn cluster(registry: &Registry) -> Arc<Cluster> {
    Cluster::new(ClusterConfig::named("c"), Vec::new(), None, registry).unwrap()
}

/// Calls of any path were, and of other statuses than gRPC has those that are no number not at all.
#[tokio::test]
async fn calls_of_methods_are_counted_by_their_status_for_their_cluster() {
    let registry = Registry::new();
    let (cluster, grpc) = (cluster(&registry), "application/grpc");
    let filter = testing::filter(&factory(), &[], &[]).unwrap();
    let shown = || {
        let all = registry.samples().into_iter().filter(|sample| sample.name.contains(".grpc."));
        let of = |sample: Sample| (sample.name.replace("cluster.c.grpc.", ""), sample.value);
        all.map(of).collect::<Vec<_>>()
    };
    call(&filter, &cluster, "/shop.Cart/Get", "text/plain", ["", "0"]).await;
    call(&filter, &cluster, "/shop.Cart/Get", grpc, ["", ""]).await;
    for path in ["/grpc", "/a/b/c/d", "/", "/a?b/c"] {
        call(&filter, &cluster, path, grpc, ["", "0"]).await;
    }
    assert_eq!(shown(), []);
    call(&filter, &cluster, "/shop.Cart/Get", grpc, ["", "0"]).await;
    call(&filter, &cluster, "//shop.Cart/Get/?x=/y", "application/grpc+proto", ["14", ""]).await;
    for status in ["99", "99", "what", "12345678901"] {
        call(&filter, &cluster, "/shop.Cart/Get", grpc, ["", status]).await;
    }
    let expected = [("0", 1), ("14", 1), ("99", 2), ("failure", 5), ("success", 1), ("total", 6)];
    assert_eq!(shown(), expected.map(|(name, count)| (name.to_owned(), Value::Counter(count))));
}

#[test]
fn statistics_of_single_methods_are_refused() {
    let all = |value| FilterConfig {
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(BoolValue { value })),
        ..FilterConfig::default()
    };
    let built = |config: FilterConfig| testing::filter(&factory(), &config.encode_to_vec(), &[]).map(|_| ());
    assert_eq!(built(all(false)), Ok(()));
    assert_eq!(built(all(true)).unwrap_err(), "stats_for_all_methods: is not supported");
    let upstream = FilterConfig { enable_upstream_stats: true, ..FilterConfig::default() };
    assert_eq!(built(upstream).unwrap_err(), "enable_upstream_stats: is not supported");
}

#[test]
fn messages_are_counted_as_they_begin() {
    let mut frame = Frame::default();
    let message = |length: u8| [&[0, 0, 0, 0, length][..], &vec![7; usize::from(length)]].concat();
    let bytes = [message(3), message(0), message(9)].concat();
    for cut in 0..bytes.len() {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(frame.count(first) + frame.count(second), 3, "cut at {cut}");
        assert_eq!((frame.left, frame.seen), (0, 0));
    }
    assert_eq!((frame.count(&[1, 0xff, 0xff, 0xff, 0xff, 1]), frame.left), (1, u64::from(u32::MAX) - 1));
}

#[tokio::test]
async fn only_bodies_of_calls_are_looked_at() {
    let registry = Registry::new();
    let cluster = cluster(&registry);
    let counted = |tells: bool| {
        let config = FilterConfig { emit_filter_state: tells, ..FilterConfig::default() };
        testing::filter(&factory(), &config.encode_to_vec(), &[]).unwrap()
    };
    let looked_at = |content_type: &str| {
        let stream = stream("/", &[("content-type", content_type)]);
        Direction::ALL.map(|direction| counted(false).chain.filters_of(direction, &stream))
    };
    assert_eq!((looked_at("application/grpc"), looked_at("text/plain")), ([true; 2], [false; 2]));
    for (tells, answer, told) in
        [(true, "application/grpc", (1, 2)), (false, "application/grpc", (0, 0)), (true, "text/html", (1, 0))]
    {
        let filter = counted(tells);
        let mut call = stream("/shop.Cart/Get", &[("content-type", "application/grpc")]);
        call.upstream.cluster = Some(cluster.clone());
        assert!(filter.access(&mut call).await.is_none());
        filter.request_bytes_waiting(&mut call, &[b"\0\0\0\0\x01a"]).await;
        call.response.status = 200;
        call.response.headers.set(Known::CONTENT_TYPE, answer.as_bytes());
        assert!(filter.header_filter(&mut call).await.is_none());
        filter.response_body(&mut call, &["\0\0\0\0\x02a", "b\0\0", "\0\0\0"]);
        assert_eq!((call.bytes.request_messages, call.bytes.response_messages), told, "{tells} {answer}");
    }
    let messages = ["request_message_count", "response_message_count"];
    assert_eq!(messages.map(|name| registry.sum("cluster.c.grpc.", name)), [3, 4]);
}
