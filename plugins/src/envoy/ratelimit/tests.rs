#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::testing::grpc::{GrpcService, Reply};
use crate::testing::{self, Alone, finish, now, request_header, response_header, stream};
use sixfold_core::cluster::{ClusterCell, ClusterConfig, Clusters};
use sixfold_core::rate_limit::LimitAction;
use sixfold_core::route::{Action, ClusterChoice, Forward, ForwardOptions, PathMatch, Route, RouteLimits};
use sixfold_core::router::{VirtualHost, VirtualHostOptions};
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    GrpcService as ProtoGrpc, HeaderValue, HeaderValueOption,
};
use sixfold_xds_api::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::RateLimitResponse;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    DescriptorStatus, RateLimit as Current,
};
use sixfold_xds_api::pb::envoy::r#type::v3::HttpStatus;
use sixfold_xds_api::pb::google::protobuf::Duration;

fn config() -> ProtoLimit {
    let grpc = EnvoyGrpc { cluster_name: "rls".into(), ..EnvoyGrpc::default() };
    let service =
        ProtoGrpc { target_specifier: Some(TargetSpecifier::EnvoyGrpc(grpc)), ..ProtoGrpc::default() };
    let service = RateLimitServiceConfig { grpc_service: Some(service), transport_api_version: 2 };
    ProtoLimit { domain: "d".into(), rate_limit_service: Some(service), ..ProtoLimit::default() }
}

fn filter(
    config: &ProtoLimit,
    of_route: &[RateLimitPerRoute],
    context: &BuildContext,
) -> Result<Alone, String> {
    let overrides: Vec<Vec<u8>> = of_route.iter().map(Message::encode_to_vec).collect();
    testing::filter_in(&factory(), &config.encode_to_vec(), &overrides, context)
}

/// A policy of one entry, `generic_key=VALUE`.
fn policy(value: &str, stage: u32) -> LimitPolicy {
    let action = LimitAction::Text {
        condition: sixfold_core::rate_limit::LimitCondition::Always,
        key: "generic_key".into(),
        value: sixfold_core::format::Format::envoy(value).unwrap(),
        default: "".into(),
    };
    LimitPolicy { stage, actions: Box::new([action]), ..LimitPolicy::default() }
}

/// The cluster `c`, counted in the context.
fn cluster(context: &BuildContext) -> Arc<ClusterCell> {
    let cell = Clusters::default().cell("c");
    cell.swap(Some(Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &context.metrics).unwrap()));
    cell
}

/// A request with these policies of its route and of its virtual host.
fn routed(cell: &Arc<ClusterCell>, of_route: RouteLimits, of_host: Vec<LimitPolicy>) -> Stream {
    let mut stream = stream("/", &[]);
    let options = ForwardOptions { rate_limits: Some(Arc::new(of_route)), ..ForwardOptions::default() };
    let forward = Forward { cluster: ClusterChoice::Named(cell.clone()), options: Arc::new(options) };
    let path = PathMatch::Prefix(b"/"[..].into(), false);
    stream.route = Some(Arc::new(Route::new(path, Action::Forward(forward))));
    let options = VirtualHostOptions { rate_limits: of_host.into(), ..VirtualHostOptions::default() };
    stream.virtual_host = Some(VirtualHost::new("v", options));
    stream
}

fn of_route(policies: Vec<LimitPolicy>) -> RouteLimits {
    RouteLimits { policies: policies.into(), include_virtual_host: false }
}

fn ok() -> Arc<GrpcService> {
    let ok = RateLimitResponse { overall_code: 1, ..RateLimitResponse::default() }.encode_to_vec();
    GrpcService::new(move |_| Reply::Message(ok.clone()))
}

/// Values of the only entries of the descriptors of the last call.
fn told(service: &GrpcService) -> Vec<String> {
    let call = service.calls.lock().pop().unwrap();
    assert_eq!(call.path, "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let request = RateLimitRequest::decode(&*call.messages[0]).unwrap();
    request.descriptors.iter().map(|descriptor| descriptor.entries[0].value.clone()).collect()
}

#[tokio::test]
async fn policies_of_route_and_virtual_host_are_chosen_among() {
    let service = ok();
    let context = service.context();
    let cell = cluster(&context);
    let level = |vh_rate_limits| RateLimitPerRoute { vh_rate_limits, ..RateLimitPerRoute::default() };
    for (vh_rate_limits, include, own, wanted) in [
        (0, false, true, &["route"][..]),
        (0, false, false, &["host"]),
        (0, true, true, &["route", "host"]),
        (1, false, true, &["route", "host"]),
        (2, false, false, &[]),
        (2, true, false, &["host"]),
    ] {
        let plugin = filter(&config(), &[level(vh_rate_limits)], &context).unwrap();
        let policies = if own { vec![policy("route", 0), policy("other stage", 1)] } else { Vec::new() };
        let limits = RouteLimits { policies: policies.into(), include_virtual_host: include };
        let mut s = routed(&cell, limits, vec![policy("host", 0)]);
        assert!(finish(plugin.access(&mut s)).await.is_none());
        let found = if service.calls.lock().is_empty() { Vec::new() } else { told(&service) };
        assert_eq!(found, wanted, "{vh_rate_limits} {include} {own}");
    }
    assert_eq!(context.metrics.sum("cluster.c.ratelimit.", "ok"), 5);
    // What leads nowhere is not asked about.
    assert!(now(filter(&config(), &[], &context).unwrap().access(&mut stream("/", &[]))).is_none());
}

/// A length of the service's became that of the upstream's response, or made it one that could not be written.
#[tokio::test]
async fn the_service_does_not_say_how_a_response_is_framed() {
    let option = |name: &str| HeaderValue { key: name.into(), value: "0".into(), ..HeaderValue::default() };
    let names = ["content-length", "Transfer-Encoding", "connection", "x-seen"];
    let ok = RateLimitResponse {
        overall_code: 1,
        response_headers_to_add: names.map(option).into(),
        ..RateLimitResponse::default()
    };
    let service = GrpcService::new(move |_| Reply::Message(ok.encode_to_vec()));
    let context = service.context();
    let plugin = filter(&config(), &[], &context).unwrap();
    let mut s = routed(&cluster(&context), of_route(vec![policy("a", 0)]), Vec::new());
    assert!(finish(plugin.access(&mut s)).await.is_none());
    s.response.headers.append("content-length", b"5");
    finish(plugin.header_filter(&mut s)).await;
    assert_eq!(s.response.headers.len(), 2);
    assert_eq!(
        (response_header(&s, "content-length"), response_header(&s, "x-seen")),
        (Some("5"), Some("0"))
    );
}

#[tokio::test]
async fn one_beyond_its_limit_gets_the_services_words() {
    let limit = |requests_per_unit, unit, limit_remaining, name: &str| DescriptorStatus {
        code: 2,
        current_limit: Some(Current { name: name.into(), requests_per_unit, unit }),
        limit_remaining,
        duration_until_reset: Some(Duration { seconds: 7, nanos: 0 }),
        quota: None,
    };
    let header = |key: &str, value: &str| HeaderValue {
        key: key.into(),
        value: value.into(),
        ..HeaderValue::default()
    };
    let answer = RateLimitResponse {
        overall_code: 2,
        statuses: vec![limit(10, 2, 3, "a"), limit(20, 3, 1, ""), DescriptorStatus::default()],
        response_headers_to_add: vec![header("x-why", "slow down")],
        raw_body: b"later".to_vec(),
        ..RateLimitResponse::default()
    };
    let answer = answer.encode_to_vec();
    let service = GrpcService::new(move |_| Reply::Message(answer.clone()));
    let context = service.context();
    let cell = cluster(&context);
    let added = HeaderValueOption { header: Some(header("x-own", "1")), ..HeaderValueOption::default() };
    let config = ProtoLimit {
        enable_x_ratelimit_headers: 1,
        enable_retry_after_header: true,
        rate_limited_as_resource_exhausted: true,
        rate_limited_status: Some(HttpStatus { code: 302 }),
        response_headers_to_add: vec![added],
        ..config()
    };
    let plugin = filter(&config, &[], &context).unwrap();
    let mut s = routed(&cell, of_route(vec![policy("x", 0)]), Vec::new());
    let reply = finish(plugin.access(&mut s)).await.unwrap();
    assert_eq!((reply.status, reply.grpc_status, reply.flag), (429, Some(8), Some(Flag::RL)));
    assert_eq!((reply.details.as_ref(), &*reply.body), ("request_rate_limited", &b"later"[..]));
    for (name, value) in [
        ("x-why", "slow down"),
        ("x-envoy-ratelimited", "true"),
        ("x-own", "1"),
        ("x-ratelimit-limit", "20, 10;w=60;name=\"a\", 20;w=3600"),
        ("x-ratelimit-remaining", "1"),
        ("x-ratelimit-reset", "7"),
        ("retry-after", "7"),
    ] {
        assert_eq!(reply.headers.get_str(name), Some(value), "{name}");
    }
    assert_eq!(context.metrics.sum("cluster.c.ratelimit.", "over_limit"), 1);
    assert!(s.response.headers.is_empty());
}

#[tokio::test]
async fn an_answer_changes_request_and_response() {
    let header = |key: &str| HeaderValue { key: key.into(), value: "1".into(), ..HeaderValue::default() };
    let answer = RateLimitResponse {
        overall_code: 1,
        response_headers_to_add: vec![header("x-response")],
        request_headers_to_add: vec![header("x-request")],
        ..RateLimitResponse::default()
    };
    let answer = answer.encode_to_vec();
    let service = GrpcService::new(move |_| Reply::Message(answer.clone()));
    let context = service.context();
    let cell = cluster(&context);
    let plugin = filter(&config(), &[], &context).unwrap();
    let mut s = routed(&cell, of_route(vec![policy("x", 0)]), Vec::new());
    assert!(finish(plugin.access(&mut s)).await.is_none());
    assert_eq!(request_header(&s, "x-request"), Some("1"));
    finish(plugin.header_filter(&mut s)).await;
    assert_eq!(response_header(&s, "x-response"), Some("1"));
}

/// Policies of routes have a key of the runtime each that turns them off.
#[tokio::test]
async fn policies_are_turned_off_by_their_keys() {
    use sixfold_core::runtime::Runtime;
    use sixfold_xds_api::pb::envoy::config::route::v3::RateLimit as Policy;
    let service = ok();
    let context = service.context();
    let cell = cluster(&context);
    let off = "ratelimit.off.http_filter_enabled".to_owned();
    let runtime = Runtime::new([(off, serde_json::json!(0))].into());
    let policies = |key: &str| {
        let yaml =
            format!("{{disable_key: '{key}', actions: [{{generic_key: {{descriptor_value: 'v{key}'}}}}]}}");
        let value: Policy = testing::read(&yaml);
        sixfold_xds_api::rate_limit::policies(&[value], "", &runtime, "rate_limits").unwrap()
    };
    let plugin = filter(&config(), &[], &context).unwrap();
    let both = policies("off").into_iter().chain(policies("on")).chain(policies("")).collect();
    let mut s = routed(&cell, of_route(both), Vec::new());
    assert!(finish(plugin.access(&mut s)).await.is_none());
    assert_eq!(told(&service), ["von", "v"]);
    let mut s = routed(&cell, of_route(policies("off").into_vec()), Vec::new());
    assert!(now(plugin.access(&mut s)).is_none());
}

/// A service that is down holds up nobody, unless the configuration says so.
#[tokio::test]
async fn no_answer_lets_everybody_pass_unless_told_otherwise() {
    for broken in [
        || Reply::Status(14),
        || Reply::Cut,
        || Reply::Message(b"\xff\xff".to_vec()),
        || Reply::Message(vec![0; 10 << 20]),
    ] as [fn() -> Reply; 4]
    {
        let service = GrpcService::new(move |_| broken());
        let context = service.context();
        let cell = cluster(&context);
        let mut s = routed(&cell, of_route(vec![policy("x", 0)]), Vec::new());
        assert!(finish(filter(&config(), &[], &context).unwrap().access(&mut s)).await.is_none());
        let strict = ProtoLimit { failure_mode_deny: true, ..config() };
        let reply = finish(filter(&strict, &[], &context).unwrap().access(&mut s)).await.unwrap();
        assert_eq!(
            (reply.status, reply.flag, reply.details.as_ref()),
            (500, Some(Flag::RLSE), "rate_limiter_error")
        );
        assert_eq!(context.metrics.sum("cluster.c.ratelimit.", "error"), 2);
        assert_eq!(context.metrics.sum("cluster.c.ratelimit.", "failure_mode_allowed"), 1);
    }
}

#[tokio::test]
async fn requests_are_told_apart_by_where_they_come_from() {
    let service = ok();
    let context = service.context();
    let cell = cluster(&context);
    for (kind, internal, asked) in [
        ("internal", true, true),
        ("internal", false, false),
        ("external", true, false),
        ("both", true, true),
    ] {
        let plugin = filter(&ProtoLimit { request_type: kind.into(), ..config() }, &[], &context).unwrap();
        let mut s = routed(&cell, of_route(vec![policy("x", 0)]), Vec::new());
        s.internal = internal;
        assert!(finish(plugin.access(&mut s)).await.is_none());
        assert_eq!(service.calls.lock().drain(..).count() == 1, asked, "{kind} {internal}");
    }
}

#[test]
fn what_is_wrong_is_told_by_its_field() {
    let context = testing::context();
    let refused = |config: &ProtoLimit| filter(config, &[], &context).map(drop).unwrap_err();
    assert_eq!(refused(&ProtoLimit { domain: String::new(), ..config() }), "domain: must not be empty");
    assert_eq!(
        refused(&ProtoLimit { rate_limit_service: None, ..config() }),
        "rate_limit_service: is missing"
    );
    let backwards = Some(Duration { seconds: -1, nanos: 0 });
    assert!(refused(&ProtoLimit { timeout: backwards, ..config() }).starts_with("timeout: "));
    assert_eq!(refused(&ProtoLimit { stage: 11, ..config() }), "stage: must be at most 10");
    let odd = refused(&ProtoLimit { request_type: "some".into(), ..config() });
    assert_eq!(odd, "request_type: must be internal, external or both, not \"some\"");
    let of_route = RateLimitPerRoute { override_option: 1, ..RateLimitPerRoute::default() };
    let error = filter(&config(), &[of_route], &context).map(drop).unwrap_err();
    assert_eq!(error, "override_option: is not supported");
}

/// What a request counts for is said by the filter's own policies alone.
#[tokio::test]
async fn policies_of_the_filter_go_before_those_of_routes() {
    use sixfold_xds_api::pb::envoy::config::route::v3::RateLimit as Policy;
    use sixfold_xds_api::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, RemoteAddress};
    use sixfold_xds_api::pb::envoy::config::route::v3::rate_limit::{Action as ProtoAction, HitsAddend};
    let action = ProtoAction { action_specifier: Some(ActionSpecifier::RemoteAddress(RemoteAddress {})) };
    let hits = HitsAddend { number: Some(UInt64Value { value: 3 }), ..HitsAddend::default() };
    let own = Policy { actions: vec![action], hits_addend: Some(hits), ..Policy::default() };
    let service = ok();
    let context = service.context();
    let cell = cluster(&context);
    let of_route_with_hits = || {
        let hits = sixfold_core::rate_limit::Hits {
            count: sixfold_core::rate_limit::HitCount::Fixed(5),
            is_negative: false,
        };
        of_route(vec![LimitPolicy { hits: Some(hits), ..policy("route", 0) }])
    };
    for (limits, value, hits) in [(vec![own], "10.1.2.3", Some(3)), (Vec::new(), "route", None)] {
        let plugin = filter(&ProtoLimit { rate_limits: limits, ..config() }, &[], &context).unwrap();
        let mut s = routed(&cell, of_route_with_hits(), Vec::new());
        assert!(finish(plugin.access(&mut s)).await.is_none());
        let call = service.calls.lock().pop().unwrap();
        let request = RateLimitRequest::decode(&*call.messages[0]).unwrap();
        let told = &request.descriptors[0];
        assert_eq!((told.entries[0].value.as_str(), told.hits_addend.map(|hits| hits.value)), (value, hits));
    }
}
