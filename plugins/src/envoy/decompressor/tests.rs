#![allow(clippy::unwrap_used)]
use super::*;
use crate::shared::encoding::tests::{brotli, gzip};
use crate::testing::{self, Alone, context, request_header, response_header, stream};
use sixfold_core::plugin::{BodyFilters, Direction, Filtered};
use std::future::poll_fn;

const GZIP: &str = "decompressor_library: {name: g, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip}}";
const BROTLI: &str = "decompressor_library: {name: b, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.brotli.decompressor.v3.Brotli}}";

fn built(config: &str, context: &BuildContext) -> Alone {
    testing::filter_of_in::<Config, Config>(&factory(), &format!("{{{config}}}"), &[], context).unwrap()
}

async fn responded(filter: &Alone, headers: &[(&str, &str)]) -> Stream {
    let mut stream = stream("/", &[]);
    filter.access(&mut stream).await;
    stream.response.status = 200;
    for (name, value) in headers {
        stream.response.headers.push(name.as_bytes(), value.as_bytes());
    }
    assert!(filter.header_filter(&mut stream).await.is_none());
    stream
}

#[tokio::test]
async fn responses_lose_their_coding() {
    let context = context();
    let filter = built(GZIP, &context);
    let coded = gzip(b"hello hello");
    let mut stream = responded(&filter, &[("content-encoding", "gzip, br"), ("content-length", "31")]).await;
    assert_eq!(response_header(&stream, "content-encoding"), Some("br"));
    assert!(!stream.response.headers.contains("content-length"));
    let (one, two) = coded.split_at(5);
    assert_eq!(filter.response_bytes(&mut stream, &[one, two]), b"hello hello");
    let length = coded.len().to_string();
    let trailers = &stream.response_trailers;
    assert_eq!(trailers.get("x-envoy-decompressor-g-compressed-bytes"), Some(length.as_bytes()));
    assert_eq!(trailers.get("x-envoy-decompressor-g-uncompressed-bytes"), Some(&b"11"[..]));
    let counted = |name| context.metrics.sum("decompressor.g.gzip.response.", name);
    assert_eq!([counted("decompressed"), counted("total_uncompressed_bytes")], [1, 11]);
    let mut stream = responded(&built(BROTLI, &context), &[("content-encoding", "BR")]).await;
    assert!(!stream.response.headers.contains("content-encoding"));
    assert_eq!(built(BROTLI, &context).response_bytes(&mut stream, &[&brotli(b"hi")]), b"hi");
}

#[tokio::test]
async fn others_stay_as_they_are() {
    let filter = built(GZIP, &context());
    for headers in [
        &[("content-encoding", "br")][..],
        &[],
        &[("content-encoding", "br, gzip")],
        &[("content-encoding", "gzip"), ("cache-control", "no-transform")],
    ] {
        let mut stream = responded(&filter, headers).await;
        assert_eq!(filter.response_bytes(&mut stream, &[b"as it is"]), b"as it is", "{headers:?}");
    }
    let ignores = built(
        &format!(
            "{GZIP}, response_direction_config: {{common_config: {{ignore_no_transform_header: true}}}}"
        ),
        &context(),
    );
    let stream =
        responded(&ignores, &[("content-encoding", "gzip"), ("cache-control", "no-transform")]).await;
    assert!(!stream.response.headers.contains("content-encoding"));
}

#[tokio::test]
async fn upstreams_are_told_which_coding_may_be_used() {
    let told = async |config: &str, accept: &[(&str, &str)]| {
        let mut stream = stream("/", accept);
        built(config, &context()).access(&mut stream).await;
        request_header(&stream, "accept-encoding").map(str::to_owned)
    };
    assert_eq!(told(GZIP, &[]).await.as_deref(), Some("gzip"));
    assert_eq!(told(GZIP, &[("accept-encoding", "br, gzip;q=0.1")]).await.as_deref(), Some("br,gzip"));
    let silent = format!("{GZIP}, request_direction_config: {{advertise_accept_encoding: false}}");
    assert_eq!(told(&silent, &[("accept-encoding", "br")]).await.as_deref(), Some("br"));
    let off = format!(
        "{GZIP}, response_direction_config: {{common_config: {{enabled: {{default_value: false, runtime_key: x}}}}}}"
    );
    assert_eq!(told(&off, &[]).await, None);
}

#[tokio::test]
async fn what_is_not_encoded_ends_where_that_is_seen() {
    let context = context();
    let filter = built(GZIP, &context);
    let mut stream = responded(&filter, &[("content-encoding", "gzip")]).await;
    assert_eq!(filter.response_bytes(&mut stream, &[b"no gzip at all", b"more"]), b"");
    assert_eq!(context.metrics.sum("decompressor.g.gzip.decompressor_library.", "zlib_data_error"), 1);
}

/// The last piece was decompressed on the worker, however long it was.
#[tokio::test]
async fn a_long_piece_is_decompressed_beside_the_worker_and_so_is_the_last() {
    let filter = built(GZIP, &context());
    let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(200_000).collect();
    let coded = gzip(&random);
    let mut stream = responded(&filter, &[("content-encoding", "gzip")]).await;
    let mut filters = BodyFilters::new(Direction::Response);
    assert!(matches!(filters.push(&filter.chain, &mut stream, &coded, true), Filtered::Waiting));
    let filtered = poll_fn(|cx| filters.poll(&filter.chain, &mut stream, cx)).await;
    assert!(matches!(filtered, Filtered::Data(data) if data == random));
    let trailers = &stream.response_trailers;
    let told = |name: &str| trailers.get(name).map(<[u8]>::to_vec);
    assert_eq!(told("x-envoy-decompressor-g-uncompressed-bytes"), Some(b"200000".to_vec()));
    assert_eq!(told("x-envoy-decompressor-g-compressed-bytes"), Some(coded.len().to_string().into_bytes()));
}

#[tokio::test]
async fn requests_lose_theirs_too() {
    let filter = built(GZIP, &context());
    let mut stream = stream("/", &[("content-encoding", "gzip"), ("content-length", "31")]);
    filter.access(&mut stream).await;
    assert!(
        !stream.request.headers.contains("content-encoding")
            && !stream.request.headers.contains("content-length")
    );
    let long = gzip(&std::iter::repeat_with(|| fastrand::u8(..)).take(200_000).collect::<Vec<u8>>());
    assert_eq!(filter.request_bytes_waiting(&mut stream, &[&long]).await.len(), 200_000);
}
