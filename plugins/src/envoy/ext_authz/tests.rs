#![allow(clippy::unwrap_used, clippy::panic, deprecated)]
use super::*;
use crate::testing::grpc::{GrpcService, Reply};
use crate::testing::{self, Alone, finish, now, request_header, routed, stream};
use serde_json::json;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{CalloutResponse, HeadPhase, Outcome, Passed, RequestPhases};
use sixfold_xds_api::any::json_to_struct;
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    GrpcService as ProtoGrpc, HeaderValue, HeaderValueOption, HttpUri,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationResponse, BufferSettings, CheckSettings, HttpService as ProtoHttp,
};
use sixfold_xds_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use sixfold_xds_api::pb::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::{
    ListStringMatcher, StringMatcher, string_matcher::MatchPattern,
};
use sixfold_xds_api::pb::envoy::r#type::v3::HttpStatus;
use sixfold_xds_api::pb::google::rpc::Status;

/// The filter with a gRPC service.
fn asking_grpc() -> ProtoAuthz {
    let grpc = EnvoyGrpc { cluster_name: "authz".into(), ..EnvoyGrpc::default() };
    let service =
        ProtoGrpc { target_specifier: Some(TargetSpecifier::EnvoyGrpc(grpc)), ..ProtoGrpc::default() };
    ProtoAuthz {
        services: Some(Services::GrpcService(service)),
        transport_api_version: 2,
        ..ProtoAuthz::default()
    }
}

/// The filter with a service that is asked by HTTP.
fn asking_http(response: AuthorizationResponse) -> ProtoAuthz {
    let uri = HttpUri {
        uri: "http://authz.test".into(),
        http_upstream_type: Some(HttpUpstreamType::Cluster("authz".into())),
        ..HttpUri::default()
    };
    let http = ProtoHttp {
        server_uri: Some(uri),
        path_prefix: "/check".into(),
        authorization_response: Some(response),
        ..ProtoHttp::default()
    };
    ProtoAuthz { services: Some(Services::HttpService(http)), ..ProtoAuthz::default() }
}

fn filter(
    config: &ProtoAuthz,
    overrides: &[ExtAuthzPerRoute],
    context: &BuildContext,
) -> Result<Alone, String> {
    let overrides: Vec<Vec<u8>> = overrides.iter().map(Message::encode_to_vec).collect();
    testing::filter_in(&factory(), &config.encode_to_vec(), &overrides, context)
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() };
    HeaderValueOption { header: Some(header), append_action: 2, ..HeaderValueOption::default() }
}

fn response(code: i32, http: HttpResponse) -> Vec<u8> {
    let status = Status { code, ..Status::default() };
    CheckResponse { status: Some(status), http_response: Some(http), ..CheckResponse::default() }
        .encode_to_vec()
}

fn list(names: &[&str]) -> Option<ListStringMatcher> {
    let exact = |name: &&str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact((*name).to_owned())),
        ..StringMatcher::default()
    };
    Some(ListStringMatcher { patterns: names.iter().map(exact).collect() })
}

#[tokio::test]
async fn an_answer_over_grpc_changes_request_and_response() {
    let ok = OkHttpResponse {
        headers: vec![option("x-user", "alice")],
        headers_to_remove: vec!["x-gone".into(), ":path".into()],
        response_headers_to_add: vec![option("x-seen", "yes")],
        dynamic_metadata: match json!({"who": "alice"}) {
            serde_json::Value::Object(map) => Some(json_to_struct(map)),
            _ => None,
        },
        ..OkHttpResponse::default()
    };
    let ok = response(0, HttpResponse::OkResponse(ok));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let context = service.context();
    let filter = filter(&asking_grpc(), &[], &context).unwrap();
    let mut s = routed("/p?q=1", &[("x-user", "mallory"), ("X-Gone", "1"), ("x-two", "1"), ("x-two", "2")]);
    assert!(finish(filter.access(&mut s)).await.is_none());
    assert_eq!((request_header(&s, "x-user"), request_header(&s, "x-gone")), (Some("alice"), None));
    assert_eq!(s.metadata[0].2, json!("alice"));
    assert_eq!(&*s.metadata[1].1, "ext_authz_duration");
    finish(filter.header_filter(&mut s)).await;
    assert_eq!(testing::response_header(&s, "x-seen"), Some("yes"));
    assert_eq!(context.metrics.sum("http.h.ext_authz.", "ok"), 1);

    let calls = service.calls.lock();
    assert_eq!(calls[0].path, "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(calls[0].headers.get_str("grpc-timeout"), Some("200m"));
    let told = CheckRequest::decode(&*calls[0].messages[0]).unwrap().attributes.unwrap();
    let http = told.request.unwrap().http.unwrap();
    assert_eq!(
        (http.method.as_str(), http.path.as_str(), http.host.as_str()),
        ("GET", "/p?q=1", "example.com")
    );
    assert_eq!((http.protocol.as_str(), http.scheme.as_str()), ("HTTP/1.1", "http"));
    assert_eq!(http.headers["x-two"], "1,2");
    assert_eq!((http.headers[":authority"].as_str(), http.headers["x-gone"].as_str()), ("example.com", "1"));
}

/// The length of the service's answer became that of the upstream's.
#[tokio::test]
async fn how_the_service_s_answer_came_says_nothing_of_the_upstream_s() {
    let mut changes = vec![option("x-seen", "1")];
    changes.extend(["content-length", "transfer-encoding", "connection"].map(|name| option(name, "0")));
    let ok = OkHttpResponse { response_headers_to_add: changes, ..Default::default() };
    let ok = response(0, HttpResponse::OkResponse(ok));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let filter = filter(&asking_grpc(), &[], &service.context()).unwrap();
    let mut s = routed("/", &[]);
    assert!(finish(filter.access(&mut s)).await.is_none());
    finish(filter.header_filter(&mut s)).await;
    assert_eq!((s.response.headers.len(), testing::response_header(&s, "x-seen")), (1, Some("1")));
}

/// What had been a path went to the upstream as nothing, and the body as what follows a CONNECT.
#[tokio::test]
async fn no_service_makes_a_connect_of_another_request() {
    let ok = OkHttpResponse { headers: vec![option(":method", "CONNECT")], ..Default::default() };
    let ok = response(0, HttpResponse::OkResponse(ok));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let filter = filter(&asking_grpc(), &[], &service.context()).unwrap();
    let mut s = routed("/", &[]);
    assert_eq!(finish(filter.access(&mut s)).await.unwrap().status, 503);
    assert_eq!(s.request.method, ::http::Method::GET);
}

#[tokio::test]
async fn a_denial_is_what_the_service_makes_of_it() {
    let mut cookies = option("set-cookie", "a=1");
    cookies.append_action = 0;
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![option("x-why", "no"), cookies.clone(), cookies],
        body: "go away".into(),
    };
    let denied = response(7, HttpResponse::DeniedResponse(denied));
    let service = GrpcService::new(move |_| Reply::Message(denied.clone()));
    let context = service.context();
    let config = ProtoAuthz { max_denied_response_body_bytes: 2, ..asking_grpc() };
    let filter = filter(&config, &[], &context).unwrap();
    let reply = finish(filter.access(&mut routed("/", &[]))).await.unwrap();
    assert_eq!((reply.status, &*reply.body, reply.flag), (401, &b"go"[..], Some(Flag::UAEX)));
    assert_eq!(
        (reply.details.as_ref(), reply.headers.get_all("set-cookie").count()),
        ("ext_authz_denied", 2)
    );
    assert_eq!(context.metrics.sum("http.h.ext_authz.", "denied"), 1);
}

/// Whatever the service does but answer, the request does not pass, unless the configuration says so.
#[tokio::test(start_paused = true)]
async fn no_answer_lets_nobody_pass() {
    for broken in [
        || Reply::Status(14),
        || Reply::Silence,
        || Reply::Cut,
        || Reply::Message(b"\xff\xff garbage".to_vec()),
        || Reply::Message(vec![0; 10 << 20]),
        || {
            // One that would let it pass, were it shorter.
            let long = OkHttpResponse {
                headers: vec![option("x-long", &"a".repeat(10 << 20))],
                ..Default::default()
            };
            Reply::Message(response(0, HttpResponse::OkResponse(long)))
        },
    ] as [fn() -> Reply; 6]
    {
        let service = GrpcService::new(move |_| broken());
        let context = service.context();
        let strict = ProtoAuthz {
            status_on_error: Some(HttpStatus { code: 504 }),
            stat_prefix: "waf".into(),
            ..asking_grpc()
        };
        let plugin = filter(&strict, &[], &context).unwrap();
        let reply = finish(plugin.access(&mut routed("/", &[]))).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref(), reply.body.len()), (504, "ext_authz_error", 0));
        assert_eq!(context.metrics.sum("http.h.ext_authz.waf.", "error"), 1);
        let open =
            ProtoAuthz { failure_mode_allow: true, failure_mode_allow_header_add: true, ..asking_grpc() };
        let mut s = routed("/", &[]);
        let plugin = filter(&open, &[], &context).unwrap();
        assert!(finish(plugin.access(&mut s)).await.is_none());
        assert_eq!(request_header(&s, "x-envoy-auth-failure-mode-allowed"), Some("true"));
        assert_eq!(context.metrics.sum("http.h.ext_authz.", "failure_mode_allowed"), 1);
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> CalloutResponse {
    let mut block = Headers::new();
    headers.iter().for_each(|(name, value)| block.push(name.as_bytes(), value.as_bytes()));
    CalloutResponse { status, headers: block, body: body.into() }
}

#[tokio::test]
async fn a_service_that_is_asked_by_http_is_told_little_and_heard_by_lists() {
    let lists = AuthorizationResponse {
        allowed_upstream_headers: list(&["x-user"]),
        allowed_upstream_headers_to_append: list(&["x-more"]),
        allowed_client_headers_on_success: list(&["x-seen"]),
        allowed_client_headers: list(&["x-why"]),
        dynamic_metadata_from_headers: list(&["x-user"]),
    };
    let config = ProtoAuthz { allowed_headers: list(&["x-told"]), ..asking_http(lists) };
    let headers = [
        ("X-User", "alice"),
        ("x-more", "2"),
        ("x-seen", "yes"),
        ("x-not", "1"),
        ("x-envoy-auth-headers-to-remove", "x-gone, host"),
    ];
    let (context, service) = testing::context_with(Some(answer(200, &headers, "")));
    let plugin = filter(&config, &[], &context).unwrap();
    let told = [
        ("x-told", "1"),
        ("x-secret", "1"),
        ("authorization", "t"),
        ("x-user", "eve"),
        ("x-more", "1"),
        ("x-gone", "1"),
    ];
    let mut s = routed("/p<>\\?q=1", &told);
    assert!(finish(plugin.access(&mut s)).await.is_none());
    let asked = service.asked.lock().pop().unwrap();
    // Rules of the service for what needs no escape here did not match.
    assert_eq!(asked.target.as_deref(), Some(&br"/check/p<>\?q=1"[..]));
    let names: Vec<_> =
        asked.headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    let wanted = [
        "host",
        "x-told",
        "authorization",
        "x-envoy-internal",
        "x-envoy-expected-rq-timeout-ms",
        "content-length",
    ];
    assert_eq!(names.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>(), wanted);
    assert_eq!((request_header(&s, "x-user"), request_header(&s, "x-gone")), (Some("alice"), None));
    assert_eq!(s.request.headers.get_all("x-more").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!((&*s.metadata[0].1, &s.metadata[0].2), ("x-user", &json!("alice")));
    finish(plugin.header_filter(&mut s)).await;
    assert_eq!(
        (testing::response_header(&s, "x-seen"), testing::response_header(&s, "x-not")),
        (Some("yes"), None)
    );

    let headers =
        [("x-why", "no"), ("x-not", "1"), ("location", "/login"), ("x-envoy-auth-headers-to-remove", "a")];
    *service.answer.lock() = Some(answer(302, &headers, "moved"));
    let reply = finish(plugin.access(&mut routed("/", &[]))).await.unwrap();
    let names: Vec<_> =
        reply.headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(
        (reply.status, &*reply.body, names),
        (302, &b"moved"[..], vec!["x-why".to_owned(), "location".into()])
    );
    *service.answer.lock() = Some(answer(503, &[], ""));
    assert_eq!(finish(plugin.access(&mut routed("/", &[]))).await.unwrap().status, 403);
    assert_eq!(finish(plugin.access(&mut routed("/", &[]))).await.unwrap().details, "ext_authz_error");
}

/// With `failure_mode_allow` a client could choose a path that nobody is asked about.
#[tokio::test]
async fn what_can_not_be_asked_about_does_not_pass() {
    let config = ProtoAuthz { failure_mode_allow: true, ..asking_http(AuthorizationResponse::default()) };
    let plugin = filter(&config, &[], &testing::context()).unwrap();
    let long = format!("/{}", "a".repeat(70_000));
    for path in [&*long, "/<"] {
        assert_eq!(finish(plugin.access(&mut routed(path, &[]))).await.unwrap().status, 403);
    }
    assert!(finish(plugin.access(&mut routed("/", &[]))).await.is_none());
}

#[tokio::test]
async fn the_body_is_asked_for_once_and_cut_at_the_limit() {
    let ok = response(0, HttpResponse::OkResponse(OkHttpResponse::default()));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let settings = BufferSettings { max_request_bytes: 4, allow_partial_message: true, pack_as_bytes: true };
    let config = ProtoAuthz { with_request_body: Some(settings), ..asking_grpc() };
    let plugin = filter(&config, &[], &service.context()).unwrap();
    let told = |service: &GrpcService| {
        let call = service.calls.lock().pop().unwrap();
        let told = CheckRequest::decode(&*call.messages[0]).unwrap().attributes.unwrap();
        let http = told.request.unwrap().http.unwrap();
        (http.raw_body, http.headers.get("x-envoy-auth-partial-body").cloned())
    };
    for (read_ahead, body, seen, cut) in [
        (&b"123456"[..], None, &b"1234"[..], Some("true")),
        (b"", Some(&b"12"[..]), b"12", Some("false")),
        (b"", Some(b""), b"", None),
        // Of an upgrade there is none.
        (b"", None, b"", None),
    ] {
        let mut chain = Arc::new(plugin_chain(&plugin));
        let mut s = routed("/", &[("x-envoy-auth-partial-body", "spoofed")]);
        let mut phases = RequestPhases::default();
        let wanted = ReadBody { limit: 4, on_overflow: Overflow::Pass };
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::ReadBody(read) if read == wanted));
        s.read_ahead = Some(Box::new(bytes::Bytes::from_static(read_ahead)));
        s.request_body = body.map(bytes::Bytes::from_static);
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::Done));
        assert_eq!(told(&service), (seen.to_vec(), cut.map(str::to_owned)));
    }
}

/// A request that is sent anew is asked about with its body again, whatever an earlier answer has left.
#[tokio::test]
async fn what_an_earlier_answer_left_is_no_body() {
    let added = OkHttpResponse {
        response_headers_to_add: vec![option("x-seen", "yes")],
        ..OkHttpResponse::default()
    };
    let ok = response(0, HttpResponse::OkResponse(added));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let settings = BufferSettings { max_request_bytes: 4, ..BufferSettings::default() };
    let config = ProtoAuthz { with_request_body: Some(settings), ..asking_grpc() };
    let plugin = filter(&config, &[], &service.context()).unwrap();
    let mut s = routed("/", &[]);
    for _ in 0..2 {
        s.request_body = None;
        let mut chain = Arc::new(plugin_chain(&plugin));
        let mut phases = RequestPhases::default();
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::ReadBody(_)));
        s.request_body = Some(bytes::Bytes::from_static(b"12"));
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::Done));
    }
    assert_eq!(service.calls.lock().len(), 2);
}

/// The filter's chain as one that can be shared.
fn plugin_chain(alone: &Alone) -> sixfold_core::plugin::Chain {
    let mut builder = sixfold_core::plugin::ChainBuilder::new();
    alone.chain.members().iter().for_each(|member| builder.push(member.clone()));
    builder.build()
}

#[tokio::test]
async fn routes_turn_it_off_and_add_what_the_service_is_told() {
    let ok = response(0, HttpResponse::OkResponse(OkHttpResponse::default()));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let context = service.context();
    let level = |value| ExtAuthzPerRoute { r#override: Some(value) };
    let settings = |pairs: &[(&str, &str)]| {
        let extensions = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        level(Override::CheckSettings(CheckSettings {
            context_extensions: extensions,
            ..CheckSettings::default()
        }))
    };
    let off = filter(&asking_grpc(), &[settings(&[]), level(Override::Disabled(true))], &context).unwrap();
    assert!(now(off.access(&mut routed("/", &[]))).is_none());
    let levels = [settings(&[("of", "host"), ("only", "host")]), settings(&[("of", "route")])];
    let on = filter(&asking_grpc(), &levels, &context).unwrap();
    assert!(finish(on.access(&mut routed("/", &[]))).await.is_none());
    let call = service.calls.lock().pop().unwrap();
    let told = CheckRequest::decode(&*call.messages[0]).unwrap().attributes.unwrap().context_extensions;
    assert_eq!((told["of"].as_str(), told["only"].as_str()), ("route", "host"));
    // What leads nowhere is not asked about.
    assert!(now(on.access(&mut stream("/", &[]))).is_none());
    assert!(service.calls.lock().is_empty());
}

/// Where the most specific level is of another filter's type, the filter is on and reads bodies as itself says; extensions and
/// the service of wider levels count.
#[tokio::test]
async fn settings_of_another_type_turn_it_on_again() {
    let ok = response(0, HttpResponse::OkResponse(OkHttpResponse::default()));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let context = service.context();
    let own = asking_grpc().encode_to_vec();
    let build = |levels: &[ExtAuthzPerRoute]| {
        let levels: Vec<Vec<u8>> = levels.iter().map(Message::encode_to_vec).collect();
        let levels: Vec<&[u8]> = levels.iter().map(Vec::as_slice).collect();
        let given = FilterConfig { config: &own, overrides: &levels, superseded: true };
        Alone::new(factory().build(&given, &context).unwrap())
    };
    let level = |value| ExtAuthzPerRoute { r#override: Some(value) };
    let body = BufferSettings { max_request_bytes: 9, ..BufferSettings::default() };
    let settings = CheckSettings {
        context_extensions: [("of".to_owned(), "table".to_owned())].into(),
        with_request_body: Some(body),
        ..CheckSettings::default()
    };
    let off = [level(Override::CheckSettings(settings)), level(Override::Disabled(true))];
    for levels in [&off[..], &off[..1]] {
        assert!(finish(build(levels).access(&mut routed("/", &[]))).await.is_none());
        let call = service.calls.lock().pop().unwrap();
        let told = CheckRequest::decode(&*call.messages[0]).unwrap().attributes.unwrap().context_extensions;
        assert_eq!(told["of"], "table");
    }
}

#[tokio::test]
async fn a_changed_request_gets_its_route_again() {
    let ok = OkHttpResponse { headers: vec![option("x-to", "b")], ..OkHttpResponse::default() };
    let ok = response(0, HttpResponse::OkResponse(ok));
    let service = GrpcService::new(move |_| Reply::Message(ok.clone()));
    let config = ProtoAuthz { clear_route_cache: true, ..asking_grpc() };
    let plugin = filter(&config, &[], &service.context()).unwrap();
    let outcome = plugin.chain.run(HeadPhase::Access, &mut routed("/", &[])).await;
    assert!(matches!(outcome, Outcome::ClearRoute(_)));
}

#[test]
fn parameters_of_the_query_are_changed_by_name() {
    let changed = |target: &str| {
        let answer = Answer {
            query_set: vec![
                ("new".into(), "1".into()),
                ("b".into(), "3".into()),
                ("bad".into(), "a b".into()),
            ],
            query_remove: vec!["gone".into()],
            ..Answer::default()
        };
        let mut s = stream(target, &[]);
        answer.apply(&mut s.request);
        String::from_utf8(s.request.target.full().to_vec()).unwrap()
    };
    assert_eq!(changed("/p?b=2&a=1&c&gone=1&a=3"), "/p?a=1&a=3&b=3&c=&new=1");
    assert_eq!(changed("/p"), "/p?b=3&new=1");
}

#[test]
fn what_is_wrong_is_told_by_its_field() {
    let context = testing::context();
    let refused = |config: &ProtoAuthz, overrides: &[ExtAuthzPerRoute]| {
        filter(config, overrides, &context).map(drop).unwrap_err()
    };
    assert!(refused(&ProtoAuthz::default(), &[]).contains("grpc_service"));
    let old = ProtoAuthz { transport_api_version: 1, ..asking_grpc() };
    assert_eq!(refused(&old, &[]), "transport_api_version: V2 is not supported, V3 is");
    let shadow = ProtoAuthz { shadow_mode: true, ..asking_grpc() };
    assert_eq!(refused(&shadow, &[]), "shadow_mode: is not supported");
    let Some(Services::HttpService(service)) = asking_http(AuthorizationResponse::default()).services else {
        panic!("it asks over HTTP")
    };
    let no_path = ProtoHttp { path_prefix: "check".into(), ..service };
    let no_path = ProtoAuthz { services: Some(Services::HttpService(no_path)), ..asking_grpc() };
    assert_eq!(refused(&no_path, &[]), "http_service.path_prefix: must begin with /");
    let nothing = ProtoAuthz { with_request_body: Some(BufferSettings::default()), ..asking_grpc() };
    assert_eq!(refused(&nothing, &[]), "with_request_body.max_request_bytes: must be greater than 0");
    let settings = CheckSettings {
        disable_request_body_buffering: true,
        with_request_body: Some(BufferSettings { max_request_bytes: 1, ..BufferSettings::default() }),
        ..CheckSettings::default()
    };
    let both = ExtAuthzPerRoute { r#override: Some(Override::CheckSettings(settings)) };
    let reason =
        "check_settings.with_request_body: must not be given together with disable_request_body_buffering";
    assert_eq!(refused(&asking_grpc(), &[both]), reason);
    assert!(refused(&asking_grpc(), &[ExtAuthzPerRoute::default()]).contains("check_settings"));
}
