#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};

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
