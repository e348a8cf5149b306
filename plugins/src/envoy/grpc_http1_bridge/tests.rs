#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, request_header, response_header, stream};
use sixfold_core::message::Version;

fn filter(config: &str) -> Alone {
    testing::filter_of::<Config, Config>(&factory(), config, &[]).unwrap()
}

async fn answered(
    filter: &Alone,
    kind: &str,
    version: Version,
    trailers: &[(&str, &str)],
) -> (Stream, Vec<u8>) {
    let mut stream = stream("/svc/m?a=b", &[("content-type", kind), ("content-length", "3")]);
    stream.request.version = version;
    assert!(filter.access(&mut stream).await.is_none());
    stream.response.status = 200;
    assert!(filter.header_filter(&mut stream).await.is_none());
    for (name, value) in trailers {
        stream.response_trailers.push(name.as_bytes(), value.as_bytes());
    }
    let body = filter.response_bytes(&mut stream, &[b"\0\0", b"\0\0\x01", b"a"]);
    (stream, body)
}

#[tokio::test]
async fn the_status_of_a_call_is_that_of_the_answer() {
    let filter = filter("{}");
    let (stream, body) =
        answered(&filter, "application/grpc", Version::Http11, &[("grpc-status", "0")]).await;
    assert!(stream.response_head_held().is_some());
    assert_eq!((stream.response.status, body), (200, b"\0\0\0\0\x01a".to_vec()));
    assert_eq!(
        (response_header(&stream, "grpc-status"), response_header(&stream, "content-length")),
        (Some("0"), Some("6"))
    );
    let failed = [("grpc-status", "5"), ("grpc-message", "gone")];
    let (stream, _) = answered(&filter, "application/grpc+proto", Version::Http11, &failed).await;
    assert_eq!((stream.response.status, response_header(&stream, "grpc-message")), (503, Some("gone")));
}

#[tokio::test]
async fn others_are_left_alone() {
    let filter = filter("{}");
    for (kind, version) in [("application/grpc", Version::Http2), ("application/json", Version::Http11)] {
        let (stream, _) = answered(&filter, kind, version, &[("grpc-status", "5")]).await;
        assert_eq!((stream.response.status, stream.response_trailers.len()), (200, 1), "{kind}");
        assert!(stream.response_head_held().is_none());
    }
}

#[tokio::test]
async fn plain_protobuf_is_put_into_a_frame_and_out_of_it() {
    let filter = filter("{upgrade_protobuf_to_grpc: true, ignore_query_parameters: true}");
    let (mut stream, body) =
        answered(&filter, "application/x-protobuf", Version::Http11, &[("grpc-status", "0")]).await;
    assert_eq!(
        (request_header(&stream, "content-type"), stream.request.target.full()),
        (Some("application/grpc"), &b"/svc/m"[..])
    );
    assert_eq!((&body[..], response_header(&stream, "content-length")), (&b"a"[..], Some("1")));
    assert_eq!(filter.request_bytes_waiting(&mut stream, &[b"ab", b"c"]).await, b"\0\0\0\0\x03abc");
}
