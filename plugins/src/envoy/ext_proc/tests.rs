#![allow(clippy::unwrap_used, clippy::panic, deprecated)]
use super::*;
use crate::testing::grpc::{GrpcService, Reply as Says};
use crate::testing::{self, Alone, finish, now, request_header, response_header, stream};
use prost::Message;
use sixfold_core::plugin::{BodyFilters, Filtered, HeadPhase, Outcome as Ended};
use sixfold_xds_api::pb::envoy::config::common::mutation_rules::v3::HeaderMutationRules;
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    GrpcService as ProtoGrpc, HeaderValue, HeaderValueOption,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::ext_proc_per_route::Override;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, HeaderMutation, HeadersResponse, ImmediateResponse, ProcessingRequest,
    ProcessingResponse, TrailersResponse,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::RegexMatcher;
use sixfold_xds_api::pb::envoy::r#type::v3::HttpStatus;
use sixfold_xds_api::pb::google::protobuf::BoolValue;
use std::future::poll_fn;

fn config() -> ExternalProcessor {
    let grpc = EnvoyGrpc { cluster_name: "proc".into(), ..EnvoyGrpc::default() };
    let service =
        ProtoGrpc { target_specifier: Some(TargetSpecifier::EnvoyGrpc(grpc)), ..ProtoGrpc::default() };
    ExternalProcessor { grpc_service: Some(service), ..ExternalProcessor::default() }
}

fn filter(
    config: &ExternalProcessor,
    overrides: &[ExtProcPerRoute],
    context: &BuildContext,
) -> Result<Alone, String> {
    let overrides: Vec<Vec<u8>> = overrides.iter().map(Message::encode_to_vec).collect();
    testing::filter_in(&factory(), &config.encode_to_vec(), &overrides, context)
}

fn set(name: &str, value: &str) -> HeaderMutation {
    let header =
        HeaderValue { key: name.into(), raw_value: value.as_bytes().to_vec(), ..HeaderValue::default() };
    let option = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
    HeaderMutation { set_headers: vec![option], remove_headers: vec!["x-gone".into()] }
}

fn common(header_mutation: Option<HeaderMutation>, body: Option<&[u8]>) -> Option<CommonResponse> {
    let body_mutation = body.map(|body| BodyMutation { mutation: Some(Mutation::Body(body.to_vec())) });
    Some(CommonResponse { header_mutation, body_mutation, ..CommonResponse::default() })
}

fn reply(response: Response) -> Says {
    Says::Message(
        ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }.encode_to_vec(),
    )
}

/// A processor that changes a header of both heads, and puts bodies into upper case.
fn shouting() -> Arc<GrpcService> {
    GrpcService::new(|message| {
        let upper =
            |body: HttpBody| BodyResponse { response: common(None, Some(&body.body.to_ascii_uppercase())) };
        reply(match ProcessingRequest::decode(message).unwrap().request.unwrap() {
            Request::RequestHeaders(_) => {
                Response::RequestHeaders(HeadersResponse { response: common(Some(set("x-a", "1")), None) })
            }
            Request::ResponseHeaders(_) => {
                Response::ResponseHeaders(HeadersResponse { response: common(Some(set("x-b", "2")), None) })
            }
            Request::RequestBody(body) => Response::RequestBody(upper(body)),
            Request::ResponseBody(body) => Response::ResponseBody(upper(body)),
            _ => panic!("not asked for"),
        })
    })
}

fn modes(request: i32, response: i32) -> ExternalProcessor {
    let mode = ProcessingMode {
        request_body_mode: request,
        response_body_mode: response,
        ..ProcessingMode::default()
    };
    ExternalProcessor { processing_mode: Some(mode), ..config() }
}

const STREAMED: i32 = 1;
const BUFFERED: i32 = 2;

/// What a body of these pieces becomes, or the status of what is answered.
async fn passed(
    plugin: &Alone,
    direction: Direction,
    stream: &mut Stream,
    pieces: &[&str],
) -> Result<String, u16> {
    let (mut filters, mut out) = (BodyFilters::new(direction), Vec::new());
    for (piece, last) in pieces.iter().map(|piece| (*piece, false)).chain([("", true)]) {
        let mut filtered = filters.push(&plugin.chain, stream, piece.as_bytes(), last);
        if matches!(filtered, Filtered::Waiting) {
            filtered = poll_fn(|cx| filters.poll(&plugin.chain, stream, cx)).await;
        }
        match filtered {
            Filtered::Same => out.extend_from_slice(piece.as_bytes()),
            Filtered::Data(data) => out.extend_from_slice(&data),
            Filtered::Respond(reply) => return Err(reply.status),
            other => panic!("{other:?}"),
        }
    }
    Ok(String::from_utf8(out).unwrap())
}

fn bodiless(target: &str, headers: &[(&str, &str)]) -> Stream {
    let mut stream = stream(target, headers);
    stream.timing.request_complete = Some(stream.timing.start);
    stream
}

#[tokio::test]
async fn heads_are_told_and_changed() {
    let service = shouting();
    let context = service.context();
    let plugin = filter(&config(), &[], &context).unwrap();
    let mut s = bodiless("/p?q=1", &[("X-Gone", "1"), ("x-two", "1"), ("x-two", "2")]);
    assert!(finish(plugin.access(&mut s)).await.is_none());
    assert_eq!((request_header(&s, "x-a"), request_header(&s, "x-gone")), (Some("1"), None));
    s.response.status = 200;
    assert!(finish(plugin.header_filter(&mut s)).await.is_none());
    assert_eq!(response_header(&s, "x-b"), Some("2"));
    plugin.log(&mut s);
    let counted = |name| context.metrics.sum("http.h.ext_proc.", name);
    for _ in 0..2000 {
        // The end of the stream is the last of what is seen.
        if counted("streams_closed") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let calls = service.calls.lock();
    assert_eq!((calls.len(), calls[0].messages.len()), (1, 2));
    assert_eq!(calls[0].path, "/envoy.service.ext_proc.v3.ExternalProcessor/Process");
    let first = ProcessingRequest::decode(&*calls[0].messages[0]).unwrap();
    assert!(first.protocol_config.is_some());
    let Some(Request::RequestHeaders(head)) = first.request else { panic!("no head") };
    assert!(head.end_of_stream);
    let told: Vec<_> = head.headers.unwrap().headers.into_iter().map(|header| header.key).collect();
    assert_eq!(told, [":authority", ":path", ":method", ":scheme", "x-gone", "x-two", "x-two"]);
    let second = ProcessingRequest::decode(&*calls[0].messages[1]).unwrap();
    assert!(second.protocol_config.is_none());
    assert_eq!(
        ["streams_started", "stream_msgs_sent", "stream_msgs_received", "streams_closed"].map(counted),
        [1, 2, 2, 1]
    );
}

/// A filter in front has refused the request: the processor has its say about that answer too, once.
#[tokio::test]
async fn an_answer_to_a_request_that_was_not_seen_is_told() {
    let service = shouting();
    let plugin = filter(&config(), &[], &service.context()).unwrap();
    let mut s = bodiless("/", &[]);
    s.response.status = 403;
    s.ends_with_head = true;
    assert!(finish(plugin.header_filter(&mut s)).await.is_none());
    assert_eq!(response_header(&s, "x-b"), Some("2"));
    plugin.log(&mut s);
    let calls = service.calls.lock();
    assert_eq!((calls.len(), calls[0].messages.len()), (1, 1));
    let told = ProcessingRequest::decode(&*calls[0].messages[0]).unwrap().request;
    let Some(Request::ResponseHeaders(head)) = told else { panic!("no head") };
    assert!(head.end_of_stream, "an answer without a body was told to have one");
}

/// A client that sent its body slowly had the stream end, and with it what the processor has to say of the rest.
#[tokio::test]
async fn a_stream_has_no_time_of_its_own() {
    let service = shouting();
    let mut config = config();
    let time = sixfold_xds_api::pb::google::protobuf::Duration { seconds: 2, nanos: 0 };
    config.grpc_service.as_mut().unwrap().timeout = Some(time);
    let plugin = filter(&config, &[], &service.context()).unwrap();
    assert!(finish(plugin.access(&mut bodiless("/", &[]))).await.is_none());
    let calls = service.calls.lock();
    assert_eq!((calls[0].timeout, calls[0].headers.get_str("grpc-timeout")), (Duration::MAX, None));
}

#[tokio::test]
async fn bodies_are_changed_piece_by_piece_or_as_a_whole() {
    for (mode, told) in [(STREAMED, 3), (BUFFERED, 1)] {
        let service = shouting();
        let plugin = filter(&modes(0, mode), &[], &service.context()).unwrap();
        let mut s = bodiless("/", &[]);
        assert!(finish(plugin.access(&mut s)).await.is_none());
        s.response.status = 200;
        s.response.headers.set("content-length", b"6");
        assert!(finish(plugin.header_filter(&mut s)).await.is_none());
        assert_eq!(response_header(&s, "content-length").is_some(), mode == BUFFERED);
        assert_eq!(
            passed(&plugin, Direction::Response, &mut s, &["ab", "cd", "ef"]).await.unwrap(),
            "ABCDEF"
        );
        assert_eq!(service.calls.lock()[0].messages.len(), 2 + told);
    }
}

#[tokio::test]
async fn a_request_that_is_read_whole_is_told_whole() {
    let service = shouting();
    let plugin = filter(&modes(BUFFERED, 0), &[], &service.context()).unwrap();
    let mut s = stream("/", &[("content-length", "3")]);
    let mut chain = Arc::new({
        let mut builder = sixfold_core::plugin::ChainBuilder::new();
        plugin.chain.members().iter().for_each(|member| builder.push(member.clone()));
        builder.build()
    });
    let mut phases = sixfold_core::plugin::RequestPhases::default();
    use sixfold_core::plugin::Passed;
    assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::ReadBody(read) if read.limit == MAX_BODY));
    s.request_body = Some(Bytes::from_static(b"abc"));
    assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::Done));
    assert_eq!(s.request_body.as_deref(), Some(&b"ABC"[..]));
}

#[tokio::test]
async fn a_processor_may_answer_by_itself() {
    let service = GrpcService::new(|_| {
        reply(Response::ImmediateResponse(ImmediateResponse {
            status: Some(HttpStatus { code: 403 }),
            headers: Some(set("x-why", "no")),
            body: b"go away".to_vec(),
            details: "not  now".into(),
            ..ImmediateResponse::default()
        }))
    });
    let plugin = filter(&config(), &[], &service.context()).unwrap();
    let mut s = bodiless("/", &[]);
    let answer = finish(plugin.access(&mut s)).await.unwrap();
    assert_eq!((answer.status, &*answer.body, answer.details.as_ref()), (403, &b"go away"[..], "not_now"));
    assert_eq!(answer.headers.get_str("x-why"), Some("no"));
    // It is done with the request.
    assert!(now(plugin.header_filter(&mut s)).is_none());
    let refusing = ExternalProcessor { disable_immediate_response: true, ..config() };
    let plugin = filter(&refusing, &[], &service.context()).unwrap();
    assert_eq!(finish(plugin.access(&mut bodiless("/", &[]))).await.unwrap().details, "spurious_message");
}

/// One odd header made a bare 500 of a denial, or of a redirect to where one logs in.
#[tokio::test]
async fn an_answer_counts_whatever_its_headers_are() {
    let many = || (0..1_100).map(|_| set("x-many", "1").set_headers.remove(0));
    let rules = HeaderMutationRules {
        disallow_is_error: Some(BoolValue { value: true }),
        disallow_expression: Some(RegexMatcher { regex: "x-not".into(), ..RegexMatcher::default() }),
        ..HeaderMutationRules::default()
    };
    let service = GrpcService::new(move |_| {
        let mut headers = set("x-why", "no");
        let odd = [
            ("x-reason", "no access for bob\n"),
            ("x why", "1"),
            ("", "1"),
            ("x-not", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("x-last", "1"),
        ];
        headers.set_headers.extend(odd.iter().flat_map(|(name, value)| set(name, value).set_headers));
        headers.set_headers.extend(many());
        reply(Response::ImmediateResponse(ImmediateResponse {
            status: Some(HttpStatus { code: 403 }),
            headers: Some(headers),
            body: b"denied".to_vec(),
            ..ImmediateResponse::default()
        }))
    });
    let config = ExternalProcessor { mutation_rules: Some(rules), ..config() };
    let context = service.context();
    let plugin = filter(&config, &[], &context).unwrap();
    let answer = finish(plugin.access(&mut bodiless("/", &[]))).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (403, &b"denied"[..]));
    let told = |name| answer.headers.get_str(name);
    assert_eq!((told("x-why"), told("x-last"), answer.headers.len()), (Some("no"), Some("1"), 3));
    assert_eq!(context.metrics.sum("http.h.ext_proc.", "rejected_header_mutations"), 4);
}

/// It was left out, and the upstream took the client's word for what the processor had to say.
#[tokio::test]
async fn what_no_message_can_have_is_an_error() {
    for (name, value) in [
        ("x-user", "bob\n"),
        ("x-user", "bob\0"),
        ("x user", "bob"),
        (":path", "/a b"),
        (":path", ""),
        (":method", "CONNECT"),
    ] {
        let service = GrpcService::new(move |message| {
            let response = common(Some(set(name, value)), None);
            reply(match ProcessingRequest::decode(message).unwrap().request.unwrap() {
                Request::RequestHeaders(_) => Response::RequestHeaders(HeadersResponse { response }),
                _ => Response::ResponseHeaders(HeadersResponse { response }),
            })
        });
        let context = service.context();
        let rules = HeaderMutationRules {
            allow_all_routing: Some(BoolValue { value: true }),
            ..HeaderMutationRules::default()
        };
        let config = ExternalProcessor { mutation_rules: Some(rules), failure_mode_allow: true, ..config() };
        let plugin = filter(&config, &[], &context).unwrap();
        let mut s = bodiless("/", &[("x-user", "admin")]);
        let answer = finish(plugin.access(&mut s)).await.unwrap();
        let details = "ext_proc_error_invalid_header_mutation";
        assert_eq!((answer.status, answer.details.as_ref()), (500, details), "{name}: {value}");
        assert_eq!(context.metrics.sum("http.h.ext_proc.", "rejected_header_mutations"), 1);
        if name.starts_with(':') {
            continue;
        }
        // Of a response too.
        let mode = ProcessingMode { request_header_mode: 2, ..ProcessingMode::default() };
        let config = ExternalProcessor { processing_mode: Some(mode), ..config };
        let plugin = filter(&config, &[], &context).unwrap();
        let mut s = bodiless("/", &[]);
        s.response.status = 200;
        assert_eq!(finish(plugin.header_filter(&mut s)).await.unwrap().status, 500);
    }
}

/// A head of any number of fields went to the upstream.
#[tokio::test]
async fn an_answer_changes_so_many_headers() {
    for (count, status) in [(1_000, None), (1_001, Some(500))] {
        let service = GrpcService::new(move |_| {
            let mut changes = set("x-a", "1");
            changes.set_headers = vec![changes.set_headers[0].clone(); count];
            reply(Response::RequestHeaders(HeadersResponse { response: common(Some(changes), None) }))
        });
        let plugin = filter(&config(), &[], &service.context()).unwrap();
        let answer = finish(plugin.access(&mut bodiless("/", &[]))).await;
        assert_eq!(answer.map(|answer| answer.status), status);
    }
}

/// Whatever the processor does but answer, nothing hangs and nothing passes, unless the configuration says so.
#[tokio::test(start_paused = true)]
async fn a_processor_that_fails_holds_nobody_for_long() {
    let wrong = || reply(Response::ResponseBody(BodyResponse::default()));
    for (broken, status, details) in [
        ((|| Says::Silence) as fn() -> Says, 504, "ext_proc_error_per-message_timeout_exceeded"),
        (|| Says::Status(13), 500, "ext_proc_error_gRPC_error_13{via_upstream}"),
        (|| Says::Cut, 500, "ext_proc_error_gRPC_error_14"),
        (|| Says::Message(b"\xff\xff".to_vec()), 500, "ext_proc_error_gRPC_error_13{via_upstream}"),
        (|| Says::Message(vec![0; 10 << 20]), 500, "ext_proc_error_gRPC_error_8{via_upstream}"),
        (wrong, 500, "spurious_message"),
    ] {
        let service = GrpcService::new(move |_| broken());
        let context = service.context();
        let plugin = filter(&config(), &[], &context).unwrap();
        let answer = finish(plugin.access(&mut bodiless("/", &[]))).await.unwrap();
        assert_eq!((answer.status, answer.details.as_ref()), (status, details));
        let open = ExternalProcessor { failure_mode_allow: true, ..config() };
        let plugin = filter(&open, &[], &context).unwrap();
        let mut s = bodiless("/", &[]);
        assert!(finish(plugin.access(&mut s)).await.is_none());
        assert!(now(plugin.header_filter(&mut s)).is_none());
        let counted = |name| context.metrics.sum("http.h.ext_proc.", name);
        assert_eq!((counted("failure_mode_allowed"), counted("stream_msgs_received")), (1, 0), "{details}");
        assert_eq!(counted("immediate_responses_sent"), 1, "{details}");
        // Streams that the filter ended itself were counted where all went well alone; of those that the processor failed Envoy
        // counts what goes on regardless.
        let closed = if details.contains("gRPC") { counted("streams_started") / 2 } else { 2 };
        assert_eq!(counted("streams_closed"), closed, "{details}");
    }
}

/// What is answered in the place of a message that ends with trailers.
async fn refused_trailers(plugin: &Alone, direction: Direction) -> Option<Box<LocalReply>> {
    let mut s = bodiless("/", &[]);
    assert!(finish(plugin.access(&mut s)).await.is_none());
    s.response.status = 200;
    assert!(finish(plugin.header_filter(&mut s)).await.is_none());
    let trailers = match direction {
        Direction::Request => &mut s.request_trailers,
        Direction::Response => &mut s.response_trailers,
    };
    trailers.push(b"x-sum", b"1");
    let mut filters = BodyFilters::new(direction);
    poll_fn(|cx| filters.poll_trailers(&plugin.chain, &mut s, cx)).await
}

/// What the processor had to say of trailers was overheard unless it was good.
#[tokio::test(start_paused = true)]
async fn trailers_end_a_message_that_the_processor_does_not_let_pass() {
    let mode = ProcessingMode {
        request_header_mode: 2,
        response_header_mode: 2,
        request_trailer_mode: 1,
        response_trailer_mode: 1,
        ..ProcessingMode::default()
    };
    let rules = HeaderMutationRules {
        disallow_all: Some(BoolValue { value: true }),
        disallow_is_error: Some(BoolValue { value: true }),
        ..HeaderMutationRules::default()
    };
    let closed = ExternalProcessor { processing_mode: Some(mode), mutation_rules: Some(rules), ..config() };
    let open = ExternalProcessor { failure_mode_allow: true, ..closed.clone() };
    let changes = |message: &[u8]| {
        let answer = TrailersResponse { header_mutation: Some(set("x-a", "1")) };
        reply(match ProcessingRequest::decode(message).unwrap().request.unwrap() {
            Request::RequestTrailers(_) => Response::RequestTrailers(answer),
            _ => Response::ResponseTrailers(answer),
        })
    };
    let answers = |_: &[u8]| {
        let status = Some(HttpStatus { code: 403 });
        reply(Response::ImmediateResponse(ImmediateResponse { status, ..ImmediateResponse::default() }))
    };
    for direction in Direction::ALL {
        for (says, status, allowed) in [
            (changes as fn(&[u8]) -> Says, 500, false),
            (answers, 403, false),
            (|_| Says::Silence, 504, true),
            (|_| Says::Status(13), 500, true),
            (|_| reply(Response::RequestBody(BodyResponse::default())), 500, true),
        ] {
            let service = GrpcService::new(says);
            let plugin = filter(&closed, &[], &service.context()).unwrap();
            assert_eq!(refused_trailers(&plugin, direction).await.unwrap().status, status, "{direction:?}");
            let plugin = filter(&open, &[], &service.context()).unwrap();
            assert_eq!(
                refused_trailers(&plugin, direction).await.is_none(),
                allowed,
                "{direction:?} {status}"
            );
        }
    }
}

#[tokio::test]
async fn routes_turn_it_off_or_choose_what_is_told() {
    let service = shouting();
    let level = |value| ExtProcPerRoute { r#override: Some(value) };
    let off = filter(&config(), &[level(Override::Disabled(true))], &service.context()).unwrap();
    assert!(now(off.access(&mut bodiless("/", &[]))).is_none());
    let nothing =
        ProcessingMode { request_header_mode: 2, response_header_mode: 2, ..ProcessingMode::default() };
    let overrides = sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::ExtProcOverrides {
        processing_mode: Some(nothing),
        ..Default::default()
    };
    let silent = filter(&config(), &[level(Override::Overrides(overrides))], &service.context()).unwrap();
    let mut s = bodiless("/", &[]);
    assert!(now(silent.access(&mut s)).is_none() && now(silent.header_filter(&mut s)).is_none());
    assert!(service.calls.lock().is_empty());
}

#[tokio::test]
async fn a_route_is_chosen_again_where_the_processor_says_so() {
    let service = GrpcService::new(|_| {
        let response = CommonResponse { clear_route_cache: true, ..CommonResponse::default() };
        reply(Response::RequestHeaders(HeadersResponse { response: Some(response) }))
    });
    let context = service.context();
    let plugin = filter(&config(), &[], &context).unwrap();
    let ended = plugin.chain.run(HeadPhase::Access, &mut bodiless("/", &[])).await;
    assert!(matches!(ended, Ended::ClearRoute(_)));
    let retains = ExternalProcessor { route_cache_action: 2, ..config() };
    let plugin = filter(&retains, &[], &context).unwrap();
    assert!(finish(plugin.access(&mut bodiless("/", &[]))).await.is_none());
}

#[test]
fn what_is_wrong_is_told_by_its_field() {
    let context = testing::context();
    let refused = |config: &ExternalProcessor| filter(config, &[], &context).map(drop).unwrap_err();
    assert_eq!(refused(&ExternalProcessor::default()), "grpc_service: is missing");
    assert_eq!(refused(&modes(5, 0)), "processing_mode.request_body_mode: GRPC is not supported");
    let odd = ExternalProcessor { request_attributes: vec!["request.path".into(), "odd".into()], ..config() };
    assert_eq!(refused(&odd), "request_attributes[1]: the attribute \"odd\" is not supported");
    let both = ExternalProcessor { route_cache_action: 1, disable_clear_route_cache: true, ..config() };
    assert_eq!(
        refused(&both),
        "disable_clear_route_cache: must not be given together with route_cache_action"
    );
}
