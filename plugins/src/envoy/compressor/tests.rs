#![allow(clippy::unwrap_used)]
use super::*;
use crate::shared::coding::DecodeLibrary;
use crate::testing::{self, Alone, context, response_header, stream};

const GZIP: &str = "{name: text, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}";
const BROTLI: &str = "{name: br, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.brotli.compressor.v3.Brotli}}";

fn built(config: &str, levels: &[&str], context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, CompressorPerRoute>(&factory(), config, levels, context)
}

fn gzip(settings: &str, levels: &[&str]) -> Alone {
    built(&format!("{{compressor_library: {GZIP}, {settings}}}"), levels, &context()).unwrap()
}

/// A response of text to a request with this Accept-Encoding, after its head has passed.
async fn responded(filter: &Alone, accept: &str, headers: &[(&str, &str)]) -> Stream {
    let mut stream = stream("/", &[("accept-encoding", accept)]);
    filter.access(&mut stream).await;
    stream.response.status = 200;
    for (name, value) in headers {
        stream.response.headers.push(name.as_bytes(), value.as_bytes());
    }
    assert!(filter.header_filter(&mut stream).await.is_none());
    stream
}

fn coding(stream: &Stream) -> Option<&str> {
    response_header(stream, "content-encoding")
}

fn plain(coded: &[u8]) -> Vec<u8> {
    let library = "{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip}}";
    DecodeLibrary::new(&testing::read(library)).unwrap().decoder().unwrap().decode(coded).0
}

#[tokio::test]
async fn bodies_are_compressed_as_they_come() {
    let context = context();
    let filter = built(
        &format!("{{compressor_library: {GZIP}, response_direction_config: {{}}}}"),
        &[],
        &BuildContext { scope: "http.in.".into(), ..context.clone() },
    )
    .unwrap();
    let mut stream = responded(
        &filter,
        "gzip",
        &[("content-length", "1000"), ("content-type", "text/plain; charset=utf-8"), ("etag", "\"strong\"")],
    )
    .await;
    assert_eq!((coding(&stream), response_header(&stream, "vary")), (Some("gzip"), Some("Accept-Encoding")));
    assert!(!stream.response.headers.contains("content-length") && !stream.response.headers.contains("etag"));
    let text = "compress me ".repeat(50);
    let coded = filter.response_bytes(&mut stream, &[text.as_bytes(), b"and me"]);
    assert_eq!(plain(&coded), [text.as_bytes(), b"and me"].concat());
    assert!(coded.len() < 100, "{}", coded.len());
    let counted = ["compressed", "not_compressed", "total_uncompressed_bytes", "total_compressed_bytes"];
    let counted = counted.map(|name| context.metrics.sum("http.in.compressor.text.gzip.response.", name));
    assert_eq!(counted, [1, 0, 606, coded.len() as u64]);
}

/// Redirects without a body were said to be compressed.
#[tokio::test]
async fn what_has_no_body_is_not_compressed() {
    let filter = gzip("", &[]);
    let mut stream = stream("/", &[("accept-encoding", "gzip")]);
    filter.access(&mut stream).await;
    stream.response.status = 301;
    stream.ends_with_head = true;
    assert!(filter.header_filter(&mut stream).await.is_none());
    assert_eq!((coding(&stream), response_header(&stream, "vary")), (None, Some("Accept-Encoding")));
}

#[tokio::test]
async fn long_pieces_are_compressed_beside_the_worker() {
    let filter = gzip("", &[]);
    let mut stream = responded(&filter, "gzip", &[]).await;
    let long: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(AT_ONCE + 1).collect();
    let coded = filter.response_bytes_waiting(&mut stream, &[&long, &long]).await;
    assert_eq!(plain(&coded).len(), 2 * long.len());
}

#[tokio::test]
async fn what_can_t_be_compressed_is_left_as_it_is() {
    let filter = gzip(
        "response_direction_config: {disable_on_etag_header: true, uncompressible_response_codes: [206], common_config: {min_content_length: 50}}",
        &[],
    );
    let text = ("content-type", "text/html");
    for (headers, why, varies) in [
        (&[("content-length", "49"), text][..], "too short", false),
        (&[("content-type", "image/png")], "another type", false),
        (&[text, ("cache-control", "private, No-Transform")], "not to be changed", false),
        (&[text, ("etag", "W/\"x\"")], "a validator", false),
        (&[text, ("content-encoding", "br")], "compressed already", false),
        (&[text, ("transfer-encoding", "gzip, chunked")], "compressed on its way", true),
    ] {
        let stream = responded(&filter, "gzip", headers).await;
        assert_ne!(coding(&stream), Some("gzip"), "{why}");
        assert_eq!(response_header(&stream, "vary").is_some(), varies, "{why}");
    }
    for accept in ["", "br", "gzip;q=0", "identity"] {
        let stream = responded(&filter, accept, &[text]).await;
        assert_eq!(
            (coding(&stream), response_header(&stream, "vary")),
            (None, Some("Accept-Encoding")),
            "{accept}"
        );
    }
    let fits = responded(&filter, "gzip", &[("content-length", "50"), text, ("vary", "origin")]).await;
    assert_eq!(
        (coding(&fits), response_header(&fits, "vary")),
        (Some("gzip"), Some("origin, Accept-Encoding"))
    );
}

#[tokio::test]
async fn validators_stay_weak_or_go() {
    let text = ("content-type", "text/html");
    let filter = gzip("", &[]);
    let stream = responded(&filter, "gzip", &[text, ("etag", "W/\"x\"")]).await;
    assert_eq!((coding(&stream), response_header(&stream, "etag")), (Some("gzip"), Some("W/\"x\"")));
    let weakens =
        gzip("response_direction_config: {weaken_etag_on_compress: true, disable_on_etag_header: true}", &[]);
    let stream = responded(&weakens, "gzip", &[text, ("etag", "\"x\"")]).await;
    assert_eq!((coding(&stream), response_header(&stream, "etag")), (Some("gzip"), Some("W/\"x\"")));
}

#[tokio::test]
async fn the_header_says_what_was_done() {
    let filter = gzip(
        "response_direction_config: {status_header_enabled: true, uncompressible_response_codes: [206]}",
        &[],
    );
    let shown = async |headers: &[(&str, &str)]| {
        let stream = responded(&filter, "gzip", headers).await;
        response_header(&stream, STATUS_HEADER).map(str::to_owned)
    };
    let text = ("content-type", "text/html");
    assert_eq!(
        shown(&[text, ("content-length", "1000")]).await.as_deref(),
        Some("gzip;Compressed;OriginalLength=1000")
    );
    assert_eq!(shown(&[text, ("content-length", "1")]).await.as_deref(), Some("gzip;ContentLengthTooSmall"));
    assert_eq!(shown(&[("content-type", "image/png")]).await.as_deref(), Some("gzip;ContentTypeNotAllowed"));
}

#[tokio::test]
async fn a_route_turns_it_on_off_and_to_another_library() {
    let text = [("content-type", "text/html")];
    let off = "response_direction_config: {common_config: {enabled: {default_value: false, runtime_key: x}}}";
    let coded = async |settings: &str, levels: &[&str]| {
        coding(&responded(&gzip(settings, levels), "gzip, br", &text).await).map(str::to_owned)
    };
    assert_eq!(coded("", &["disabled: true"]).await, None);
    assert_eq!(coded(off, &[]).await, None);
    assert_eq!(coded(off, &["overrides: {response_direction_config: {}}"]).await.as_deref(), Some("gzip"));
    let brotli = format!("overrides: {{compressor_library: {BROTLI}}}");
    assert_eq!(coded("", &["disabled: true", &brotli]).await.as_deref(), Some("br"));
    let removes =
        gzip("", &["overrides: {response_direction_config: {remove_accept_encoding_header: true}}"]);
    let stream = responded(&removes, "gzip", &text).await;
    assert!(!stream.request.headers.contains("accept-encoding") && coding(&stream) == Some("gzip"));
}

#[tokio::test]
async fn requests_are_compressed_where_that_is_configured() {
    let filter = gzip("request_direction_config: {}", &[]);
    let mut post = stream("/", &[("content-length", "600"), ("content-type", "application/json")]);
    post.request.method = Method::POST;
    filter.access(&mut post).await;
    let headers = &post.request.headers;
    assert_eq!((headers.get("content-encoding"), headers.get("content-length")), (Some(&b"gzip"[..]), None));
    let mut get = stream("/", &[]);
    filter.access(&mut get).await;
    assert!(!get.request.headers.contains("content-encoding"));
}

#[test]
fn a_library_is_needed() {
    let refused = |config: &str, levels: &[&str]| built(config, levels, &context()).err().unwrap();
    assert_eq!(refused("{}", &[]), "compressor_library: is missing");
    let own = format!("{{compressor_library: {GZIP}}}");
    assert_eq!(refused(&own, &["{}"]), "one of disabled and overrides is missing");
    assert_eq!(refused(&own, &["disabled: false"]), "disabled: must be true");
}
