#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, finish, stream};
use prost::Message;
use serde_json::json;
use sixfold_xds_api::pb::envoy::config::route::v3::HeaderMatcher as ProtoHeader;
use sixfold_xds_api::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use sixfold_xds_api::pb::envoy::extensions::filters::common::fault::v3::fault_delay::HeaderDelay;
use sixfold_xds_api::pb::envoy::extensions::filters::http::fault::v3::fault_abort::HeaderAbort;
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::pb::google::protobuf::UInt32Value;

fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

fn aborts(error: ErrorType, share: u32) -> HttpFault {
    let abort = FaultAbort { percentage: percent(share), error_type: Some(error), ..FaultAbort::default() };
    HttpFault { abort: Some(abort), ..HttpFault::default() }
}

fn delays(kind: FaultDelaySecifier) -> Option<FaultDelay> {
    Some(FaultDelay { percentage: percent(100), fault_delay_secifier: Some(kind) })
}

fn filter(config: &HttpFault) -> Alone {
    testing::filter(&factory(), &config.encode_to_vec(), &[]).unwrap()
}

async fn status(config: &HttpFault, headers: &[(&str, &str)]) -> Option<u16> {
    let filter = filter(config);
    finish(filter.access(&mut stream("/", headers))).await.map(|r| r.status)
}

#[tokio::test]
async fn aborts_answer_as_envoy_does() {
    let mut s = stream("/", &[]);
    let reply = finish(filter(&aborts(ErrorType::HttpStatus(418), 100)).access(&mut s)).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..], reply.flag),
        (418, &b"fault filter abort"[..], Some(Flag::FI))
    );
    assert_eq!(reply.details, "fault_filter_abort");
    let grpc = filter(&aborts(ErrorType::GrpcStatus(14), 100));
    let reply = finish(grpc.access(&mut s)).await.unwrap();
    assert_eq!((reply.status, reply.grpc_status), (200, Some(14)));
    assert_eq!(status(&aborts(ErrorType::HttpStatus(418), 0), &[]).await, None);
}

#[tokio::test]
async fn a_share_of_requests_is_hit() {
    let filter = filter(&aborts(ErrorType::HttpStatus(503), 30));
    let mut hits = 0;
    for _ in 0..3000 {
        hits += u32::from(finish(filter.access(&mut stream("/", &[]))).await.is_some());
    }
    assert!((800..1000).contains(&hits), "{hits}");
}

#[tokio::test(start_paused = true)]
async fn delays_come_before_aborts() {
    let time = sixfold_xds_api::pb::google::protobuf::Duration { seconds: 0, nanos: 100_000_000 };
    let fixed = FaultDelaySecifier::FixedDelay(time);
    let config = HttpFault { delay: delays(fixed), ..aborts(ErrorType::HttpStatus(500), 100) };
    let (start, mut s) = (tokio::time::Instant::now(), stream("/", &[]));
    let reply = finish(filter(&config).access(&mut s)).await.unwrap();
    assert_eq!((start.elapsed().as_millis(), reply.status, reply.flag), (100, 500, Some(Flag::FI)));
    assert!(s.flags.contains(Flag::DI));
}

#[tokio::test]
async fn conditions_restrict_faults() {
    let abort = || aborts(ErrorType::HttpStatus(555), 100);
    let jason = ProtoHeader {
        name: "x-user".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..ProtoHeader::default()
    };
    let by_header = HttpFault { headers: vec![jason], ..abort() };
    assert_eq!(status(&by_header, &[]).await, None);
    assert_eq!(status(&by_header, &[("x-user", "jason")]).await, Some(555));
    let by_node = HttpFault { downstream_nodes: vec!["node-x".into()], ..abort() };
    assert_eq!(status(&by_node, &[]).await, None);
    assert_eq!(status(&by_node, &[("x-envoy-downstream-service-node", "node-x")]).await, Some(555));
    let by_cluster = HttpFault { upstream_cluster: "b".into(), ..abort() };
    assert_eq!(status(&by_cluster, &[]).await, None);
}

#[tokio::test(start_paused = true)]
async fn requests_may_ask_for_faults() {
    let config = HttpFault {
        delay: delays(FaultDelaySecifier::HeaderDelay(HeaderDelay {})),
        ..aborts(ErrorType::HeaderAbort(HeaderAbort {}), 100)
    };
    assert_eq!(status(&config, &[]).await, None);
    let start = tokio::time::Instant::now();
    let asked = [("x-envoy-fault-delay-request", "40"), ("x-envoy-fault-abort-request", "429")];
    assert_eq!(status(&config, &asked).await, Some(429));
    assert_eq!(start.elapsed().as_millis(), 40);
    assert_eq!(status(&config, &[("x-envoy-fault-abort-grpc-request", "5")]).await, Some(200));
    assert_eq!(status(&config, &[("x-envoy-fault-abort-request", "99")]).await, None);
    let never = [("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-request-percentage", "0")];
    assert_eq!(status(&config, &never).await, None);
    // More milliseconds than Envoy counts have gone by, and what is no number asks for nothing.
    for long in ["9223372036854775808", "18446744073709551615", "18446744073709551616"] {
        let start = tokio::time::Instant::now();
        assert_eq!(status(&config, &[("x-envoy-fault-delay-request", long)]).await, None);
        assert!(start.elapsed().is_zero(), "{long}");
    }
    // More than configured is not to be had.
    let config = aborts(ErrorType::HeaderAbort(HeaderAbort {}), 0);
    let more = [("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-request-percentage", "100")];
    assert_eq!(status(&config, &more).await, None);
}

#[tokio::test]
async fn faults_under_way_are_bounded_and_given_back() {
    let config = HttpFault {
        max_active_faults: Some(UInt32Value { value: 1 }),
        ..aborts(ErrorType::HttpStatus(500), 100)
    };
    let filter = filter(&config);
    let mut first = stream("/", &[]);
    assert!(finish(filter.access(&mut first)).await.is_some());
    assert!(finish(filter.access(&mut stream("/", &[]))).await.is_none());
    drop(first);
    assert!(finish(filter.access(&mut stream("/", &[]))).await.is_some());
}

/// Each configuration counted its own.
#[tokio::test]
async fn faults_of_all_routes_are_bounded_together() {
    let context = sixfold_core::plugin::BuildContext { scope: "http.in.".into(), ..testing::context() };
    let config = HttpFault {
        max_active_faults: Some(UInt32Value { value: 1 }),
        ..aborts(ErrorType::HttpStatus(500), 100)
    };
    let of_route = || testing::filter_in(&factory(), &config.encode_to_vec(), &[], &context).unwrap();
    let (one, other) = (of_route(), of_route());
    let mut first = stream("/", &[]);
    assert!(finish(one.access(&mut first)).await.is_some());
    assert!(finish(other.access(&mut stream("/", &[]))).await.is_none());
    drop(first);
    assert!(finish(other.access(&mut stream("/", &[]))).await.is_some());
}

/// Keys of the runtime, named or the usual ones, take the place of what the configuration and requests say.
#[tokio::test(start_paused = true)]
async fn runtime_keys_hold_in_place_of_the_configuration() {
    let values = [
        ("mine", json!(0)),
        ("fault.http.abort.http_status", json!(555)),
        ("fault.http.delay.fixed_delay_percent", json!({"numerator": 100, "denominator": "HUNDRED"})),
        ("fault.http.delay.fixed_duration_ms", json!(70)),
        ("few", json!(0)),
    ];
    let runtime = Runtime::new(values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
    let context = sixfold_core::plugin::BuildContext { runtime: Arc::new(runtime), ..testing::context() };
    let answer = async |config: &HttpFault, headers: &[(&str, &str)]| {
        let filter = testing::filter_in(&factory(), &config.encode_to_vec(), &[], &context).unwrap();
        finish(filter.access(&mut stream("/", headers))).await.map(|reply| reply.status)
    };
    let aborted = aborts(ErrorType::HttpStatus(418), 100);
    assert_eq!(answer(&aborted, &[]).await, Some(555));
    let none = HttpFault { abort_percent_runtime: "mine".into(), ..aborted.clone() };
    assert_eq!(answer(&none, &[]).await, None);
    let full = HttpFault { max_active_faults_runtime: "few".into(), ..aborted };
    assert_eq!(answer(&full, &[]).await, None);
    let kind = FaultDelaySecifier::HeaderDelay(HeaderDelay {});
    let percentage = percent(0);
    let delay = Some(FaultDelay { percentage, fault_delay_secifier: Some(kind) });
    let (start, config) = (tokio::time::Instant::now(), HttpFault { delay, ..HttpFault::default() });
    // The request asks for 5 ms and none of it.
    let asks = [("x-envoy-fault-delay-request", "5"), ("x-envoy-fault-delay-request-percentage", "0")];
    assert_eq!(answer(&config, &asks).await, None);
    assert_eq!(start.elapsed().as_millis(), 70);
}

#[tokio::test]
async fn the_most_specific_configuration_holds() {
    let of = |status| aborts(ErrorType::HttpStatus(status), 100).encode_to_vec();
    let (base, host, route) = (of(500), of(501), of(502));
    let filter = testing::filter(&factory(), &base, &[host, route]).unwrap();
    assert_eq!(finish(filter.access(&mut stream("/", &[]))).await.unwrap().status, 502);
}

#[test]
fn the_type_is_the_messages() {
    assert_eq!(factory().config_type, "envoy.extensions.filters.http.fault.v3.HTTPFault");
    assert_eq!(factory().override_type, Some(factory().config_type));
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config: &HttpFault| testing::filter(&factory(), &config.encode_to_vec(), &[]).err().unwrap();
    assert!(error(&aborts(ErrorType::HttpStatus(100), 100)).starts_with("abort.http_status"));
    assert!(
        error(&HttpFault { delay: Some(FaultDelay::default()), ..HttpFault::default() }).starts_with("delay")
    );
    let rate = HttpFault { response_rate_limit: Some(Default::default()), ..HttpFault::default() };
    assert_eq!(error(&rate), "response_rate_limit: is not supported");
    let percent = HttpFault { response_rate_limit_percent_runtime: "key".into(), ..HttpFault::default() };
    assert_eq!(error(&percent), "response_rate_limit_percent_runtime: is not supported");
    assert!(testing::filter(&factory(), &[0xFF], &[]).is_err());
}

/// The filter had no statistics.
#[tokio::test(start_paused = true)]
async fn faults_are_counted() {
    let context = sixfold_core::plugin::BuildContext { scope: "http.in.".into(), ..testing::context() };
    let mut config = aborts(ErrorType::HttpStatus(418), 100);
    config.delay = delays(FaultDelaySecifier::HeaderDelay(HeaderDelay {}));
    config.max_active_faults = Some(UInt32Value { value: 1 });
    let filter = testing::filter_in(&factory(), &config.encode_to_vec(), &[], &context).unwrap();
    let shown = |name: &str| context.metrics.sum("http.in.fault.", name);
    let mut first = stream("/", &[("x-envoy-fault-delay-request", "5")]);
    assert!(finish(filter.access(&mut first)).await.is_some());
    assert_eq!((shown("delays_injected"), shown("aborts_injected"), shown("active_faults")), (1, 1, 1));
    // As long as the first is there another one is too much.
    assert!(finish(filter.access(&mut stream("/", &[]))).await.is_none());
    assert_eq!((shown("aborts_injected"), shown("faults_overflow")), (1, 1));
    drop(first);
    assert_eq!((shown("active_faults"), shown("response_rl_injected")), (0, 0));
}
