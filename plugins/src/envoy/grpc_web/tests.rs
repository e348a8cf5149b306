#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, request_header, response_header, stream};
use sixfold_core::stream::Stream;

fn filter() -> Alone {
    testing::filter_of::<Config, Config>(&factory(), "{}", &[]).unwrap()
}

/// A call of this type after its head has passed.
async fn called(filter: &Alone, kind: &str, accept: &str) -> Stream {
    let mut stream = stream("/svc/m", &[("content-type", kind), ("accept", accept), ("content-length", "5")]);
    assert!(filter.access(&mut stream).await.is_none());
    stream
}

/// Its answer after its head has passed.
async fn answered(filter: &Alone, stream: &mut Stream, status: u16, kind: &str) {
    stream.response.status = status;
    stream.response.headers.push(b"content-type", kind.as_bytes());
    assert!(filter.header_filter(stream).await.is_none());
}

#[tokio::test]
async fn calls_become_grpc_and_trailers_a_frame() {
    let filter = filter();
    let mut stream = called(&filter, "application/grpc-web", "*/*").await;
    assert_eq!(request_header(&stream, "content-type"), Some("application/grpc"));
    assert_eq!(
        (request_header(&stream, "te"), request_header(&stream, "content-length")),
        (Some("trailers"), None)
    );
    assert_eq!(request_header(&stream, "grpc-accept-encoding"), Some("identity"));
    assert!(stream.answered_plainly);
    answered(&filter, &mut stream, 200, "application/grpc").await;
    assert_eq!(response_header(&stream, "content-type"), Some("application/grpc-web+proto"));
    stream.response_trailers.push(b"Grpc-Status", b"0");
    let body = filter.response_bytes(&mut stream, &[b"\0\0\0\0\x01a"]);
    assert_eq!(body, b"\0\0\0\0\x01a\x80\0\0\0\x0fgrpc-status:0\r\n");
    assert!(stream.response_trailers.is_empty() && stream.response_head_held().is_none());
}

#[tokio::test]
async fn text_is_base64_both_ways_whatever_the_pieces_are() {
    let filter = filter();
    let mut stream = called(&filter, "application/grpc-web-text", "application/grpc-web-text").await;
    // Two messages, each with its own padding.
    let sent = [STANDARD.encode(b"\0\0\0\0\x01a"), STANDARD.encode(b"\0\0\0\0\x02bc")].concat();
    let pieces: Vec<&[u8]> = sent.as_bytes().chunks(3).collect();
    assert_eq!(filter.request_bytes_waiting(&mut stream, &pieces).await, b"\0\0\0\0\x01a\0\0\0\0\x02bc");
    answered(&filter, &mut stream, 200, "application/grpc+proto").await;
    assert_eq!(response_header(&stream, "content-type"), Some("application/grpc-web-text+proto"));
    stream.response_trailers.push(b"grpc-status", b"0");
    let body = filter.response_bytes(&mut stream, &[b"\0\0\0\0", b"\x04po", b"ng"]);
    assert_eq!(body, b"AAAAAARwb25ngAAAAA9ncnBjLXN0YXR1czowDQo=");
}

/// A response may begin while the request is under way, as those of calls of streams do.
#[tokio::test]
async fn both_bodies_may_be_under_way_at_once() {
    let filter = filter();
    let mut stream = called(&filter, "application/grpc-web-text", "application/grpc-web-text").await;
    let sent = STANDARD.encode(b"\0\0\0\0\x04ping");
    let (first, second) = sent.as_bytes().split_at(6);
    let mut got = Vec::new();
    let mut push = |stream: &mut Stream, data: &[u8], last: bool, is_request: bool| {
        let piece = BodyPiece { data, last };
        let step = match is_request {
            true => GrpcWeb.request_body(stream, slot(), &piece),
            false => GrpcWeb.response_body(stream, slot(), &piece),
        };
        match step {
            BodyStep::Replace(bytes) => got.push(String::from_utf8_lossy(&bytes).into_owned()),
            _ => unreachable!("{is_request}"),
        }
    };
    push(&mut stream, first, false, true);
    answered(&filter, &mut stream, 200, "application/grpc").await;
    push(&mut stream, b"\0\0\0\0", false, false);
    push(&mut stream, second, true, true);
    push(&mut stream, b"\x04pong", true, false);
    assert_eq!(got, ["\0\0\0", "AAAA", "\0\x04ping", "AARwb25n"]);
}

#[tokio::test]
async fn what_is_no_base64_is_refused() {
    let filter = filter();
    for (text, details) in
        [(&b"AAA"[..], "grpc_base_64_decode_failed_bad_size"), (b"A*==", "grpc_base_64_decode_failed")]
    {
        let mut stream = called(&filter, "application/grpc-web-text+proto", "").await;
        match GrpcWeb.request_body(&mut stream, slot(), &BodyPiece { data: text, last: true }) {
            BodyStep::Respond(reply) => assert_eq!((reply.status, &*reply.details), (400, details)),
            _ => unreachable!("{details}"),
        }
    }
}

/// The filter's slot in the chain of [`Alone`], where it stands second.
fn slot() -> Slot {
    Slot::new(1, sixfold_core::plugin::Scope::Route)
}

#[tokio::test]
async fn other_answers_become_a_status_with_a_message() {
    let filter = filter();
    let mut stream = called(&filter, "application/grpc-web", "").await;
    answered(&filter, &mut stream, 503, "text/plain").await;
    assert!(stream.response_head_held().is_some(), "the head waits for the message");
    assert_eq!(filter.response_bytes(&mut stream, &[b"50% \n", b"down"]), b"");
    assert_eq!(response_header(&stream, "grpc-status"), Some("14"));
    assert_eq!(response_header(&stream, "grpc-message"), Some("50%25 %0Adown"));
    let long = vec![b'x'; MAX_MESSAGE];
    let mut stream = called(&filter, "application/grpc-web", "").await;
    answered(&filter, &mut stream, 404, "text/plain").await;
    filter.response_bytes(&mut stream, &[&long, &long]);
    assert_eq!(response_header(&stream, "grpc-message").map(str::len), Some(MAX_MESSAGE));
}

#[tokio::test]
async fn others_are_left_alone() {
    let filter = filter();
    let mut stream = called(&filter, "application/json", "").await;
    assert_eq!(request_header(&stream, "content-length"), Some("5"));
    answered(&filter, &mut stream, 200, "application/json").await;
    stream.response_trailers.push(b"a", b"b");
    assert_eq!(filter.response_bytes(&mut stream, &[b"{}"]), b"{}");
    assert!(!stream.response_trailers.is_empty() && !stream.answered_plainly);
}
