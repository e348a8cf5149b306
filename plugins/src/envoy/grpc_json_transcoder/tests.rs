#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::testing::{self, Alone, context, request_header, response_header, stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use sixfold_core::plugin::{BodyFilters, Direction, Filtered, HeadPhase, Outcome};
use sixfold_core::stream::Stream;
use std::future::poll_fn;
use std::time::{Duration, Instant};

/// protos/shop.proto of the conformance kit.
const SHOP: &[u8] = include_bytes!("../../../../proxy/conformance/protos/shop.pb");

fn try_filter(settings: &str, levels: &[&str]) -> Result<Alone, String> {
    let set = STANDARD.encode(SHOP);
    let with = |settings: &str| format!("{{proto_descriptor_bin: \"{set}\", {settings}}}");
    let levels: Vec<String> = levels.iter().map(|level| with(level)).collect();
    let levels: Vec<&str> = levels.iter().map(String::as_str).collect();
    testing::filter_of::<GrpcJsonTranscoder, GrpcJsonTranscoder>(&factory(), &with(settings), &levels)
}

fn filter(settings: &str) -> Alone {
    try_filter(&format!("services: [shop.Shop], match_incoming_request_route: true, {settings}"), &[])
        .unwrap()
}

fn request(method: &str, target: &str, body: &[u8]) -> Stream {
    let mut stream = stream(target, &[("content-type", "application/json"), ("content-length", "9")]);
    stream.request.method = method.parse().unwrap();
    stream.timing.request_complete = body.is_empty().then_some(stream.timing.start);
    stream
}

/// What goes to the upstream of a request with this body, or the answer.
async fn access(filter: &Alone, stream: &mut Stream, body: &[u8]) -> Result<Vec<u8>, LocalReply> {
    match filter.chain.run(HeadPhase::Access, stream).await {
        Outcome::Done => {}
        Outcome::Respond(reply) => return Err(reply),
        _ => panic!("the route is cleared"),
    }
    let (mut filters, mut out) = (BodyFilters::new(Direction::Request), Vec::new());
    let middle = body.len() / 2;
    for (piece, last) in [(&body[..middle], false), (&body[middle..], false), (&b""[..], true)] {
        let mut filtered = filters.push(&filter.chain, stream, piece, last);
        while matches!(filtered, Filtered::Waiting) {
            filtered = poll_fn(|cx| filters.poll(&filter.chain, stream, cx)).await;
        }
        match filtered {
            Filtered::Same => out.extend_from_slice(piece),
            Filtered::Data(data) => out.extend_from_slice(&data),
            Filtered::Respond(reply) => return Err(*reply),
            other => panic!("{other:?}"),
        }
    }
    Ok(out)
}

async fn called(
    filter: &Alone,
    method: &str,
    target: &str,
    body: &str,
) -> (Stream, Result<Vec<u8>, LocalReply>) {
    let mut stream = request(method, target, body.as_bytes());
    let made = access(filter, &mut stream, body.as_bytes()).await;
    (stream, made)
}

fn frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

#[tokio::test]
async fn a_request_becomes_a_call() {
    let filter = filter("");
    let (stream, made) = called(&filter, "GET", "/v1/items/7?full=true&tags=a&tags=b", "").await;
    assert_eq!(made.unwrap(), frame(b"\x10\x07\x18\x01\x2a\x01a\x2a\x01b"));
    assert_eq!(stream.request.target.full(), b"/shop.Shop/GetItem");
    assert_eq!(stream.request.method, "POST");
    for (name, value) in [
        ("content-type", Some("application/grpc")),
        ("te", Some("trailers")),
        ("content-length", None),
        ("x-envoy-original-path", Some("/v1/items/7?full=true&tags=a&tags=b")),
        ("x-envoy-original-method", Some("GET")),
    ] {
        assert_eq!(request_header(&stream, name), value, "{name}");
    }
    let (_, made) = called(&filter, "POST", "/v1/shelves/s1/items", r#"{"name":"n","counts":{"a":1}}"#).await;
    assert_eq!(made.unwrap(), frame(b"\x12\x0a\x12\x01n\x3a\x05\x0a\x01a\x10\x01\x0a\x02s1"));
}

#[tokio::test]
async fn others_pass_as_they_are() {
    let filter = filter("");
    for (method, target) in [("GET", "/else"), ("PUT", "/v1/find"), ("GET", "/v1/items/7?no.such=1")] {
        let (stream, made) = called(&filter, method, target, "").await;
        assert!(made.unwrap().is_empty());
        assert_eq!(stream.request.target.full(), target.as_bytes());
    }
    let mut call = request("GET", "/v1/items/7", b"");
    call.request.headers.set("content-type", b"application/grpc");
    assert!(access(&filter, &mut call, b"").await.unwrap().is_empty());
    assert_eq!(call.request.method, "GET");
}

#[tokio::test]
async fn what_is_wrong_is_told_where_it_is() {
    let filter = filter("");
    for (target, body, text) in [
        ("/v1/items/x", "{}", "id: invalid value \"x\" for type TYPE_INT64"),
        (
            "/v1/items/1",
            r#"{"parts":[{},{"level":true}]}"#,
            "parts[1].level: invalid value true for type TYPE_INT32",
        ),
        (
            "/v1/items/1",
            r#"{"any":{"@type":"type.googleapis.com/shop.Part","level":"x"}}"#,
            "level: invalid value \"x\" for type TYPE_INT32",
        ),
        ("/v1/items/1", "[]", ": Root element must be a message."),
        ("/v1/items/%ff", "{}", "id: the value is not UTF-8"),
    ] {
        let (_, made) = called(&filter, "PATCH", target, body).await;
        let reply = made.unwrap_err();
        assert_eq!((reply.status, String::from_utf8_lossy(&reply.body)), (400, text.into()));
    }
    let deep = format!("{{\"extra\":{}1{}}}", "{\"a\":".repeat(200), "}".repeat(200));
    let (_, made) = called(&filter, "PATCH", "/v1/items/1", &deep).await;
    assert_eq!(made.unwrap_err().status, 400);
    let filter = self::filter("max_request_body_size: 3");
    let (_, made) = called(&filter, "PATCH", "/v1/items/1", "{}  ").await;
    let reply = made.unwrap_err();
    assert_eq!(
        (reply.status, &*reply.details),
        (413, "grpc_json_transcode_failure{request_buffer_size_limit_reached}")
    );
}

#[tokio::test]
async fn elements_of_an_array_are_messages_of_a_stream() {
    let filter = filter("max_request_body_size: 16");
    let (_, made) = called(&filter, "POST", "/v1/put/n", r#"[{"id":1}, {"id":2}]"#).await;
    assert_eq!(made.unwrap(), [frame(b"\x08\x01\x12\x01n"), frame(b"\x08\x02")].concat());
    let (_, made) = called(&filter, "POST", "/v1/put/n", "{}").await;
    assert_eq!(made.unwrap_err().body, "Expected an array instead of an object");
    let (_, made) =
        called(&filter, "POST", "/v1/put/n", r#"[{"name":"0123456789012345678901234567890123"}]"#).await;
    assert_eq!(made.unwrap_err().status, 413);
}

/// A query may bind one field as often as it has room for.
#[tokio::test]
async fn weaving_takes_time_by_the_length_of_the_query() {
    let filter = filter("");
    let mut took = [Duration::MAX; 2];
    for _ in 0..3 {
        for (took, times) in took.iter_mut().zip([20_000, 40_000]) {
            let target = format!("/v1/items/1?{}", "id=1&".repeat(times));
            let begun = Instant::now();
            let (_, made) = called(&filter, "PATCH", &target, r#"{"id":1}"#).await;
            *took = begun.elapsed().min(*took);
            assert!(!made.unwrap().is_empty());
        }
    }
    assert!(took[1] < took[0] * 3, "{took:?}");
}

/// Elements that are long together wait for a thread, and those after them for these.
#[tokio::test]
async fn long_elements_are_transcoded_beside_the_worker() {
    let filter = filter("");
    let name = "x".repeat(100);
    let element = format!("{{\"id\":1,\"name\":\"{name}\"}}");
    let body = format!("[{}]", vec![element.as_str(); 3 * AT_ONCE / 100].join(","));
    let mut stream = request("POST", "/v1/put/n", b"{");
    assert!(matches!(filter.chain.run(HeadPhase::Access, &mut stream).await, Outcome::Done));
    let mut filters = BodyFilters::new(Direction::Request);
    let first = filters.push(&filter.chain, &mut stream, body.as_bytes(), false);
    assert!(matches!(first, Filtered::Waiting), "{first:?}");
    let Filtered::Data(made) = poll_fn(|cx| filters.poll(&filter.chain, &mut stream, cx)).await else {
        panic!("nothing was made")
    };
    assert!(made.len() > 2 * AT_ONCE);
}

#[tokio::test]
async fn values_are_taken_as_envoy_takes_them() {
    let filter = filter("");
    for (target, body, told) in [
        (
            "/v1/items/1?size=9",
            "{}",
            Some("size: invalid value \"9\" for type type.googleapis.com/shop.Size"),
        ),
        ("/v1/items/1?size=1", "{}", None),
        ("/v1/items/1", r#"{"data":"AA="}"#, Some("data: invalid value \"AA=\" for type TYPE_BYTES")),
        ("/v1/items/1", r#"{"data":"AA=="}"#, None),
        ("/v1/items/1", r#"{"data":"AA"}"#, None),
        ("/v1/items/1", r#"{"data":" A A = =\n"}"#, None),
        ("/v1/items/1", r#"{"data":"-_-_"}"#, None),
        ("/v1/items/1", r#"{"data":"-_+/"}"#, Some("data: invalid value \"-_+/\" for type TYPE_BYTES")),
        ("/v1/items/1", r#"{"note":5}"#, Some("note.value: invalid value 5 for type TYPE_STRING")),
    ] {
        let (_, made) = called(&filter, "PATCH", target, body).await;
        let fault = made.err().map(|reply| String::from_utf8_lossy(&reply.body).into_owned());
        assert_eq!(fault.as_deref(), told, "{target} {body}");
    }
}

/// The message of a frame as its reader has it, written anew.
fn item(framed: &[u8]) -> Vec<u8> {
    let item = DescriptorPool::decode(SHOP).unwrap().get_message_by_name("shop.Item").unwrap();
    DynamicMessage::decode(item, &framed[FRAME_HEAD..]).unwrap().encode_to_vec()
}

/// What a name stands for twice is written twice, which readers of messages join; but the keys of a map are its own.
#[tokio::test]
async fn members_may_stand_twice() {
    let filter = filter("");
    let twice = |body: &'static str, once: &'static str| {
        let filter = &filter;
        async move {
            let (_, made) = called(filter, "PATCH", "/v1/items/1", body).await;
            let (_, expected) = called(filter, "PATCH", "/v1/items/1", once).await;
            assert_eq!(item(&made.unwrap()), item(&expected.unwrap()), "{body}");
        }
    };
    twice(r#"{"tags":["a"],"tags":"b"}"#, r#"{"tags":["a","b"]}"#).await;
    twice(r#"{"mainPart":{"text":"a"},"main_part":{"level":2}}"#, r#"{"mainPart":{"text":"a","level":2}}"#)
        .await;
    twice(r#"{"name":"a","name":"b"}"#, r#"{"name":"b"}"#).await;
    twice(r#"{"counts":{"a":1},"counts":{"a":2}}"#, r#"{"counts":{"a":2}}"#).await;
    for (body, place) in [
        (r#"{"counts":{"a":1,"b":2,"a":3}}"#, "counts[1]: Repeated map key: 'a'"),
        (r#"{"extra":{"a":1,"a":3}}"#, "extra.fields[0]: Repeated map key: 'a'"),
        (
            r#"{"extra":{"a":[{"b":1},{"b":1,"b":2}]}}"#,
            "extra.fields[0].value.list_value.values[1].struct_value.fields[0]: Repeated map key: 'b'",
        ),
    ] {
        let (_, made) = called(&filter, "PATCH", "/v1/items/1", body).await;
        let told = String::from_utf8(made.unwrap_err().body.to_vec()).unwrap();
        assert_eq!(told, format!("{place} is already set."));
    }
}

/// The bounds are Envoy's; the array that has the messages of a stream counts too.
#[tokio::test]
async fn depth_of_bodies_is_bounded() {
    let filter = filter("");
    for (method, target, least) in [("PATCH", "/v1/items/1", 99), ("POST", "/v1/put/n", 98)] {
        for (deep, fits) in [(least, true), (least + 1, false)] {
            let body = format!("{{\"nope\":{}{}}}", "[".repeat(deep), "]".repeat(deep));
            let body = if method == "POST" { format!("[{body}]") } else { body };
            let (_, made) = called(&filter, method, target, &body).await;
            assert_eq!(made.map_err(|reply| reply.status).is_ok(), fits, "{method} {deep}");
        }
    }
    // What is known is written as deep as it may be read.
    for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
        let body = format!("{{\"extra\":{{\"a\":{}1{}}}}}", open.repeat(98), close.repeat(98));
        let (_, made) = called(&filter, "PATCH", "/v1/items/1", &body).await;
        assert!(made.is_ok());
    }
}

/// A message may hold itself: a query that said so a thousand times ended the process.
#[tokio::test]
async fn depth_of_what_is_bound_is_bounded() {
    let filter = filter("");
    for (times, status) in [(32, None), (33, Some(400)), (10_000, Some(400))] {
        let within = "fields.value.struct_value.".repeat(times);
        let target = format!("/v1/items/1?extra.{within}fields.value.string_value=x");
        let (_, made) = called(&filter, "PATCH", &target, "{}").await;
        assert_eq!(made.err().map(|reply| reply.status), status, "{times}");
    }
}

/// What path and query bind of an `Any` is looked at as members of the body are.
#[tokio::test]
async fn an_any_has_a_type_that_is_known() {
    let filter = filter("");
    let missing = "any: invalid value Missing @type for any field in shop.Item for type Any";
    let part = r#"{"any":{"@type":"type.googleapis.com/shop.Part","text":"a"}}"#;
    let duration = r#"{"any":{"@type":"type.googleapis.com/google.protobuf.Duration"}}"#;
    for (query, body, expected) in [
        ("any.type_url=x", "{}", Err(missing)),
        ("any.type_url=x", r#"{"any":null}"#, Err(missing)),
        ("any.type_url=x", r#"{"any":{}}"#, Err(missing)),
        ("any.type_url=x", part, Ok(part)),
        (
            "any.value=1s",
            duration,
            Ok(r#"{"any":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1s"}}"#),
        ),
    ] {
        let (_, made) = called(&filter, "PATCH", &format!("/v1/items/1?{query}"), body).await;
        match expected {
            Ok(as_body) => {
                let (_, alone) = called(&filter, "PATCH", "/v1/items/1", as_body).await;
                assert_eq!(made.unwrap(), alone.unwrap(), "{query} {body}");
            }
            Err(told) => assert_eq!(made.unwrap_err().body, told, "{query} {body}"),
        }
    }
}

#[tokio::test]
async fn a_long_body_is_transcoded_beside_the_worker() {
    let filter = filter("");
    let name = "x".repeat(2 * AT_ONCE);
    let (_, made) = called(&filter, "PATCH", "/v1/items/1", &format!("{{\"name\":\"{name}\"}}")).await;
    assert_eq!(made.unwrap().len(), FRAME_HEAD + 1 + 3 + name.len() + 2);
}

async fn answered(
    filter: &Alone,
    target: &str,
    pieces: &[&[u8]],
    trailers: &[(&str, &str)],
) -> (Stream, String) {
    let (mut stream, made) = called(filter, "GET", target, "").await;
    made.unwrap();
    stream.response.status = 200;
    stream.response.headers.set("content-type", b"application/grpc");
    assert!(filter.header_filter(&mut stream).await.is_none());
    for (name, value) in trailers {
        stream.response_trailers.push(name.as_bytes(), value.as_bytes());
    }
    let body = filter.response_bytes_waiting(&mut stream, pieces).await;
    (stream, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn a_message_becomes_json_with_the_status_of_the_call() {
    let filter = filter("print_options: {always_print_primitive_fields: false}");
    let message = frame(b"\x08\x07\x12\x05seven");
    let (stream, body) =
        answered(&filter, "/v1/items/1", &[&message[..3], &message[3..]], &[("grpc-status", "5")]).await;
    assert_eq!(stream.response_head_held(), Some(1 << 20), "the head waits");
    assert_eq!((body.as_str(), stream.response.status), (r#"{"id":"7","name":"seven"}"#, 404));
    for (name, value) in
        [("content-type", "application/json"), ("content-length", "25"), ("grpc-status", "5")]
    {
        assert_eq!(response_header(&stream, name), Some(value), "{name}");
    }
    let long = "y".repeat(2 * AT_ONCE);
    let mut message = vec![0x12];
    prost::encoding::encode_varint(long.len() as u64, &mut message);
    message.extend_from_slice(long.as_bytes());
    let (stream, body) = answered(&filter, "/v1/items/1", &[&frame(&message)], &[("grpc-status", "0")]).await;
    assert_eq!((body, stream.response.status), (format!("{{\"name\":\"{long}\"}}"), 200));
}

#[tokio::test]
async fn messages_of_a_stream_come_as_soon_as_they_are_whole() {
    let one = frame(b"\x08\x01");
    for (framing, expected) in [
        ("", r#"[{"id":"1"},{"id":"1"}]"#),
        ("stream_newline_delimited: true", "{\"id\":\"1\"}\n{\"id\":\"1\"}\n"),
        ("stream_sse_style_delimited: true", "data: {\"id\":\"1\"}\n\ndata: {\"id\":\"1\"}\n\n"),
    ] {
        let filter = filter(&format!("print_options: {{{framing}}}"));
        let both = [&one[..], &one].concat();
        for at in 0..both.len() {
            let pieces = [&both[..at], &both[at..]];
            let (stream, body) = answered(&filter, "/v1/find", &pieces, &[("grpc-status", "0")]).await;
            assert_eq!(body, expected);
            assert_eq!(stream.response_head_held(), None, "the head does not wait");
        }
    }
}

/// Its head came with its end.
#[tokio::test]
async fn a_stream_of_bodies_waits_for_the_type_that_is_in_the_first_of_them() {
    let filter = filter("");
    let one = frame(b"\x0a\x08text/css\x12\x02{}");
    for (pieces, waits) in
        [([&one[..9], b""], true), ([&one[..9], &one[9..]], false), ([&one[..], &one[..3]], false)]
    {
        let (mut stream, made) = called(&filter, "GET", "/v1/pages/1", "").await;
        made.unwrap();
        stream.response.status = 200;
        stream.response.headers.set("content-type", b"application/grpc");
        assert!(filter.header_filter(&mut stream).await.is_none());
        let mut filters = BodyFilters::new(Direction::Response);
        for piece in pieces {
            filters.push(&filter.chain, &mut stream, piece, false);
        }
        assert_eq!(stream.response_head_held().is_some(), waits);
        let is_known = response_header(&stream, "content-type") == Some("text/css");
        assert_eq!(is_known, !waits);
    }
}

#[test]
fn configurations_are_looked_at() {
    let error = |settings: &str| try_filter(settings, &[]).map(drop).unwrap_err();
    assert!(try_filter("services: []", &["services: []"]).is_ok());
    assert_eq!(
        error("services: [shop.Shop, no.Such]"),
        "services[1]: the descriptors have no service \"no.Such\""
    );
    assert_eq!(
        error("services: [shop.Shop], max_request_body_size: 0"),
        "max_request_body_size: must be greater than 0"
    );
    let bad = |config: &str| {
        testing::filter_of::<GrpcJsonTranscoder, GrpcJsonTranscoder>(&factory(), config, &[])
            .map(drop)
            .unwrap_err()
    };
    assert!(
        bad("{services: [a], proto_descriptor_bin: \"/w==\"}")
            .starts_with("proto_descriptor_bin: is no set of file descriptors")
    );
    assert!(
        bad("{services: [a], proto_descriptor: /no/such.pb}").starts_with("proto_descriptor: /no/such.pb: ")
    );
    assert_eq!(bad("{services: [a]}"), "one of proto_descriptor and proto_descriptor_bin is missing");
}

#[test]
fn bytes_that_wait_are_told() {
    let context = sixfold_core::plugin::BuildContext { scope: "http.h.".into(), ..context() };
    let mut kept = Kept::new(TranscoderStats::new(&context.metrics, &context.scope));
    kept.of_request(3);
    kept.of_response(4);
    kept.of_request(1);
    let shown = |name: &str| {
        let gauge = match name {
            "request" => kept.stats.transcoder_request_buffer_bytes(),
            _ => kept.stats.transcoder_response_buffer_bytes(),
        };
        gauge.get()
    };
    assert_eq!((shown("request"), shown("response")), (1, 4));
    let stats = kept.stats.clone();
    drop(kept);
    assert_eq!(stats.transcoder_response_buffer_bytes().get(), 0);
}

/// Those of one message too, which wait for its end.
#[tokio::test]
async fn bytes_that_are_held_are_told() {
    let context = sixfold_core::plugin::BuildContext { scope: "http.h.".into(), ..context() };
    let set = STANDARD.encode(SHOP);
    let settings = format!(
        "{{proto_descriptor_bin: \"{set}\", services: [shop.Shop], match_incoming_request_route: true}}"
    );
    let config = testing::read::<GrpcJsonTranscoder>(&settings).encode_to_vec();
    let filter = testing::filter_in(&factory(), &config, &[], &context).unwrap();
    let mut stream = request("PATCH", "/v1/items/1", b"{");
    assert!(matches!(filter.chain.run(HeadPhase::Access, &mut stream).await, Outcome::Done));
    let mut filters = BodyFilters::new(Direction::Request);
    let mut told = Vec::new();
    for (piece, last) in [("{\"id\"", false), (":1", false), ("}", true)] {
        filters.push(&filter.chain, &mut stream, piece.as_bytes(), last);
        told.push(context.metrics.sum("http.h.", "transcoder_request_buffer_bytes"));
    }
    assert_eq!(told, [5, 7, 0]);
}
