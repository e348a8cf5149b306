#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};
use sixfold_core::plugin::{BodyFilters, Filtered};

fn built(config: &str, levels: &[&str], context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, levels, context)
}

/// How long a response of these pieces takes.
async fn took(filter: &Alone, pieces: &[&[u8]]) -> Duration {
    let began = tokio::time::Instant::now();
    let mut stream = stream("/", &[]);
    assert_eq!(filter.response_bytes_waiting(&mut stream, pieces).await, pieces.concat());
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn bodies_go_no_faster_than_they_may() {
    let context = context();
    let filter = built(
        "{stat_prefix: b, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 10, enable_response_trailers: true}",
        &[],
        &context,
    )
    .unwrap();
    let kilobyte = [b'x'; 1024];
    // What comes in 50 ms is there at once.
    let time = took(&filter, &[&kilobyte[..]; 10]).await.as_secs_f64();
    assert!((0.9..1.0).contains(&time), "{time}");
    let mut request = stream("/", &[]);
    let began = tokio::time::Instant::now();
    filter.request_bytes_waiting(&mut request, &[&kilobyte]).await;
    assert!(began.elapsed() > Duration::from_millis(50), "both directions share it");
    let mut answer = stream("/", &[]);
    filter.response_bytes_waiting(&mut answer, &[&kilobyte]).await;
    assert!(answer.response_trailers.contains("bandwidth-response-delay-ms"));
    let counted = |name| context.metrics.sum("b.http_bandwidth_limit.", name);
    assert_eq!((counted("response_enforced"), counted("response_incoming_total_size")), (11, 11 * 1024));
    assert_eq!((counted("response_pending"), counted("request_pending")), (0, 0));
}

/// However it ends: a client may leave in the middle.
#[tokio::test(start_paused = true)]
async fn a_body_is_pending_from_its_first_piece_to_its_end() {
    let context = context();
    let filter =
        built("{stat_prefix: b, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 10}", &[], &context).unwrap();
    let mut stream = stream("/", &[]);
    let pending = || {
        ["request_pending", "response_pending"]
            .map(|name| context.metrics.sum("b.http_bandwidth_limit.", name))
    };
    for (direction, counted) in [(Direction::Request, [1, 0]), (Direction::Response, [1, 1])] {
        let mut filters = BodyFilters::new(direction);
        for _ in 0..2 {
            assert!(matches!(filters.push(&filter.chain, &mut stream, b"x", false), Filtered::Same));
            assert_eq!(pending(), counted);
        }
    }
    drop(stream);
    assert_eq!(pending(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn trailers_begin_as_they_are_to() {
    let config = |prefix: &str| {
        format!(
            "{{stat_prefix: b, enable_mode: RESPONSE, limit_kbps: 1, enable_response_trailers: true, response_trailer_prefix: \"{prefix}\"}}"
        )
    };
    let filter = built(&config("x-own"), &[], &context()).unwrap();
    let mut answer = stream("/", &[]);
    filter.response_bytes_waiting(&mut answer, &[&[b'x'; 1024]]).await;
    assert!(answer.response_trailers.contains("x-own-bandwidth-response-delay-ms"));
    assert!(answer.response_trailers.contains("x-own-bandwidth-response-filter-delay-ms"));
    assert_eq!(
        built(&config("a b"), &[], &context()).err().unwrap(),
        "response_trailer_prefix: \"a b-bandwidth-request-delay-ms\" is no header name"
    );
}

#[tokio::test(start_paused = true)]
async fn a_route_has_its_own_limit_and_off_is_off() {
    let body = [b'x'; 100 << 10];
    let off = built("{stat_prefix: b}", &[], &context()).unwrap();
    assert!(off.chain.members().iter().all(|member| member.plugin.is_idle()));
    let own = "{stat_prefix: b, enable_mode: RESPONSE, limit_kbps: 1}";
    let filter =
        built(own, &["{stat_prefix: b, enable_mode: RESPONSE, limit_kbps: 100000}"], &context()).unwrap();
    assert!(took(&filter, &[&body]).await < Duration::from_millis(50));
    let requests = built("{stat_prefix: b, enable_mode: REQUEST, limit_kbps: 1}", &[], &context()).unwrap();
    assert_eq!(took(&requests, &[&body]).await, Duration::ZERO);
    let refused = |config: &str, levels: &[&str]| built(config, levels, &context()).err().unwrap();
    assert_eq!(
        refused(own, &["{stat_prefix: b}"]),
        "limit_kbps: is missing: settings of a route must have one"
    );
    assert_eq!(refused("{stat_prefix: b, enable_mode: RESPONSE}", &[]), "limit_kbps: must be at least 1");
}
