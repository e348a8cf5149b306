#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};

fn built(config: &str, context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, &[], context)
}

/// Sends so many requests that get this status, and tells how many were refused.
async fn refused(filter: &Alone, requests: usize, status: u16) -> usize {
    let mut refused = 0;
    for _ in 0..requests {
        let mut stream = stream("/", &[]);
        match filter.access(&mut stream).await {
            Some(reply) => {
                assert_eq!((reply.status, &*reply.details), (503, "denied_by_admission_control"));
                refused += 1;
            }
            None => stream.response.status = status,
        }
        filter.log(&mut stream);
    }
    refused
}

#[tokio::test]
async fn the_fewer_succeed_the_more_are_refused() {
    let context = context();
    let filter = built("{success_criteria: {}}", &context).unwrap();
    assert_eq!(refused(&filter, 200, 200).await, 0);
    let failing = built(
        "{success_criteria: {}, max_rejection_probability: {default_value: {value: 50}, runtime_key: x}}",
        &context,
    )
    .unwrap();
    let of_1000 = refused(&failing, 1000, 503).await;
    assert!((400..600).contains(&of_1000), "{of_1000}");
    let counted = |name| context.metrics.sum("admission_control.", name);
    assert_eq!((counted("rq_success"), counted("rq_rejected")), (200, of_1000 as u64));
    assert_eq!(counted("rq_failure"), 1000 - of_1000 as u64);
}

#[test]
fn the_probability_is_that_of_the_formula() {
    let probability = |config: &str, total: f64, successes: f64| {
        let config: Config = testing::read(config);
        let aggression = runtime_double(&context().runtime, &config.aggression, 1.0);
        let admission = Admission {
            window: Arc::new(Window::new(WINDOW, Instant::now())),
            aggression,
            threshold: 0.95,
            least_rps: 0.0,
            most: 0.8,
            success: Success { http: Box::default(), grpc: None },
            stats: AdmissionStats::new(&context().metrics, "x."),
        };
        (admission.probability(total, successes) * 1000.0).round() as u32
    };
    assert_eq!(probability("{}", 100.0, 95.0), 0);
    assert_eq!(probability("{}", 100.0, 50.0), 469);
    assert_eq!(probability("{}", 100.0, 0.0), 800, "at most");
    assert_eq!(probability("{aggression: {default_value: 2, runtime_key: x}}", 100.0, 90.0), 228);
    assert_eq!(probability("{}", 0.0, 0.0), 0);
}

#[tokio::test]
async fn success_is_what_is_configured() {
    let few =
        built("{success_criteria: {}, rps_threshold: {default_value: 1000, runtime_key: x}}", &context())
            .unwrap();
    assert_eq!(refused(&few, 200, 503).await, 0, "few requests are all let through");
    let criteria = "{success_criteria: {http_criteria: {http_success_status: [{start: 200, end: 300}, {start: 404, end: 405}]}, grpc_criteria: {grpc_success_status: [0, 5]}}}";
    let config: Config = testing::read(criteria);
    let success = Success::new(config.evaluation_criteria.as_ref().unwrap()).unwrap();
    let default = Success { http: std::iter::once(100..500).collect(), grpc: None };
    let holds = |success: &Success, status: u16, grpc: Option<&str>| {
        let mut stream = stream("/", &[]);
        stream.response.status = status;
        if let Some(grpc) = grpc {
            stream.response.headers.push(b"content-type", b"application/grpc");
            stream.response_trailers.push(b"grpc-status", grpc.as_bytes());
        }
        success.holds(&stream)
    };
    let of = |success| {
        [
            (200, None),
            (404, None),
            (500, None),
            (0, None),
            (200, Some("0")),
            (200, Some("5")),
            (200, Some("14")),
        ]
        .map(|(status, grpc)| holds(success, status, grpc))
    };
    assert_eq!(of(&success), [true, true, false, false, true, true, false]);
    assert_eq!(of(&default), [true, true, false, false, true, true, false]);
    assert!(!holds(&success, 401, None) && holds(&default, 401, None));
    let empty = "{success_criteria: {http_criteria: {http_success_status: [{start: 404, end: 404}]}}}";
    assert!(built(empty, &context()).is_ok(), "Envoy's own example has it");
    let refused = |config: &str| built(config, &context()).err().unwrap();
    assert!(refused("{}").starts_with("success_criteria: "), "{}", refused("{}"));
    assert_eq!(
        refused("{success_criteria: {http_criteria: {http_success_status: [{start: 300, end: 200}]}}}"),
        "success_criteria.http_criteria.http_success_status[0]: must be a range of statuses between 100 and 600"
    );
}
