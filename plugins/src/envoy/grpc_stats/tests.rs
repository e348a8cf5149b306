#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, stream};
use prost::Message;
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::Direction;
use sixfold_xds_api::pb::google::protobuf::BoolValue;

#[test]
fn calls_are_counted_by_their_status_for_their_cluster() {
    let registry = Registry::new();
    let cluster = Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &registry).unwrap();
    let config = FilterConfig { emit_filter_state: true, ..FilterConfig::default() };
    let filter = testing::filter(&factory(), &config.encode_to_vec(), &[]).unwrap();
    let call = |content_type: &str, in_head: Option<&str>, in_trailers: Option<&str>| {
        let mut stream = stream("/shop.Cart/Get", &[("content-type", content_type)]);
        stream.upstream.cluster = Some(cluster.clone());
        for (status, headers) in
            [(in_head, &mut stream.response.headers), (in_trailers, &mut stream.response_trailers)]
        {
            if let Some(status) = status {
                headers.set(Known::GRPC_STATUS, status.as_bytes());
            }
        }
        filter.chain.log(&mut stream);
    };
    let counted =
        || ["0", "14", "success", "failure", "total"].map(|name| registry.sum("cluster.c.grpc.", name));
    call("text/plain", None, Some("0"));
    call("application/grpc", None, None);
    assert!(!registry.samples().iter().any(|sample| sample.name.contains("grpc")), "nothing to show");
    call("application/grpc", None, Some("0"));
    call("application/grpc+proto", Some("14"), None);
    call("application/grpc", None, Some("99"));
    assert_eq!(counted(), [1, 1, 1, 2, 3]);
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

#[test]
fn only_bodies_of_calls_are_looked_at() {
    let config = FilterConfig { emit_filter_state: true, ..FilterConfig::default() };
    let filter = testing::filter(&factory(), &config.encode_to_vec(), &[]).unwrap();
    let looked_at = |content_type: &str| {
        let stream = stream("/", &[("content-type", content_type)]);
        Direction::ALL.map(|direction| filter.chain.filters_of(direction, &stream))
    };
    assert_eq!((looked_at("application/grpc"), looked_at("text/plain")), ([true; 2], [false; 2]));
    let mut call = stream("/", &[("content-type", "application/grpc")]);
    filter.response_body(&mut call, &["\0\0\0\0\x02a", "b\0\0", "\0\0\0"]);
    assert_eq!((call.bytes.request_messages, call.bytes.response_messages), (0, 2));
}
