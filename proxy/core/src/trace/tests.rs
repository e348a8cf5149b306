#![allow(clippy::unwrap_used)]
use super::*;
use crate::hcm::HttpStats;
use crate::headers::Headers;
use crate::metrics::Registry;
use crate::route::{Action, PathMatch, RareOptions, Route};
use crate::runtime::Fraction;
use crate::stream::fixture;
use parking_lot::Mutex;

fn sampling(random: u64, overall: u64) -> Sampling {
    let of = |share| Fraction::new(share, 10_000);
    Sampling { client: of(10_000), random: of(random), overall: of(overall) }
}

fn headers(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.push(name.as_bytes(), value.as_bytes()));
    headers
}

/// An id whose first eight digits come to this number.
fn id(number: u64) -> String {
    format!("{number:08x}-1111-4222-8333-444444444444")
}

fn decided(sampling: &Sampling, fields: &[(&str, &str)]) -> (Reason, char) {
    let mut headers = headers(fields);
    let reason = sampling.decide(&mut headers);
    let id = headers.get_str(Known::X_REQUEST_ID).unwrap_or_default();
    (reason, id.chars().nth(14).unwrap_or('-'))
}

#[test]
fn chance_is_made_of_the_request_s_id_which_tells_the_decision() {
    let of =
        |random, overall, number: u64| decided(&sampling(random, overall), &[("x-request-id", &id(number))]);
    assert_eq!(of(10_000, 10_000, 5), (Reason::Sampling, '9'));
    assert_eq!((of(100, 10_000, 99), of(100, 10_000, 100)), ((Reason::Sampling, '9'), (Reason::None, '4')));
    assert_eq!(of(10_000, 0, 5), (Reason::None, '4'));
    assert_eq!(decided(&sampling(10_000, 10_000), &[]), (Reason::None, '-'));
    assert_eq!(
        decided(&sampling(10_000, 10_000), &[("x-request-id", "no-uuid-at-all-here")]),
        (Reason::None, '-')
    );
}

#[test]
fn what_an_earlier_proxy_has_decided_holds() {
    let told = |letter: char| id(5).replacen("-4", &format!("-{letter}"), 1);
    let of = |letter, overall| decided(&sampling(0, overall), &[("x-request-id", &told(letter))]);
    assert_eq!((of('9', 10_000), of('a', 10_000)), ((Reason::Sampling, '9'), (Reason::Service, 'a')));
    assert_eq!(of('b', 0), (Reason::None, '4'), "all must pass the overall share");
    let forced = |name| decided(&sampling(0, 10_000), &[("x-request-id", &id(5)), (name, "1")]);
    assert_eq!(forced("x-envoy-force-trace"), (Reason::Service, 'a'));
    assert_eq!(forced("x-client-trace-id"), (Reason::Client, 'b'));
}

const B3: Propagation = Propagation { b3: true, w3c: false, long_ids: true, shares_spans: false };
const W3C: Propagation = Propagation { b3: false, w3c: true, long_ids: true, shares_spans: false };

fn passed(propagation: Propagation, fields: &[(&str, &str)], traced: bool) -> (Span, Headers) {
    let mut headers = headers(fields);
    let span = propagation.span(&headers, traced, SpanKind::Server).unwrap();
    propagation.tell(&mut headers, &span);
    (span, headers)
}

#[test]
fn b3_goes_on_with_a_span_of_its_own() {
    let fields = [
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
        ("x-b3-sampled", "0"),
    ];
    let (span, headers) = passed(B3, &fields, true);
    assert_eq!((span.trace_id, span.sampled), (0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124, false));
    assert_eq!(span.parent_id, Some(0xa2fb_4a1d_1a96_d312));
    assert_eq!(headers.get_str("x-b3-traceid"), Some("463ac35c9f6413ad48485a3953bb6124"));
    assert_eq!(headers.get_str("x-b3-parentspanid"), Some("a2fb4a1d1a96d312"));
    assert_eq!(headers.get_str("x-b3-spanid"), Some(&*format!("{:016x}", span.span_id)));
    assert_eq!(headers.get_str("x-b3-sampled"), Some("0"));
    let shared = Propagation { shares_spans: true, ..B3 };
    assert_eq!(passed(shared, &fields, true).0.span_id, 0xa2fb_4a1d_1a96_d312);
}

#[test]
fn a_new_trace_has_no_parent() {
    let (span, headers) = passed(B3, &[("x-b3-traceid", "bad"), ("x-b3-spanid", "0000000000000001")], true);
    assert!(span.sampled && span.parent_id.is_none() && span.trace_id >> 64 != 0);
    assert_eq!(headers.get_str("x-b3-parentspanid"), None);
    let short = Propagation { long_ids: false, ..B3 };
    assert_eq!(passed(short, &[], false).1.get_str("x-b3-traceid").unwrap().len(), 16);
    assert!(passed(B3, &[("b3", "1")], false).0.sampled);
    let single = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90";
    let (span, _) = passed(B3, &[("b3", single)], false);
    assert_eq!((span.parent_id, span.sampled), (Some(0xe457_b5a2_e4d8_6bd1), true));
}

// The caller's went on unchanged, beside others that named another span.
#[test]
fn the_single_header_of_b3_is_told_in_the_same_form() {
    let parent = "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312";
    for (told, sampled) in [("", "1"), ("-1", "1"), ("-d", "1"), ("-0", "0"), ("-1-05e3ac9a4f6e3b90", "1")] {
        let (span, headers) = passed(B3, &[("b3", &format!("{parent}{told}"))], true);
        let own =
            format!("463ac35c9f6413ad48485a3953bb6124-{:016x}-{sampled}-a2fb4a1d1a96d312", span.span_id);
        assert_eq!(headers.get_str("b3"), Some(&*own));
        assert_eq!(headers.len(), 1, "nothing of the other form");
    }
    for junk in ["", "junk", "463ac35c9f6413ad48485a3953bb6124"] {
        assert!(B3.span(&headers(&[("b3", junk)]), true, SpanKind::Server).is_none(), "{junk}");
    }
    let short = Propagation { long_ids: false, ..B3 };
    for decided in ["0", "1"] {
        let (span, headers) = passed(short, &[("b3", decided)], true);
        let own = format!("{0:016x}-{0:016x}-{decided}", span.span_id);
        assert_eq!((headers.get_str("b3"), headers.len()), (Some(&*own), 1));
    }
    let both = [
        ("b3", parent),
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "b2fb4a1d1a96d312"),
    ];
    let (span, headers) = passed(B3, &both, true);
    assert_eq!(span.parent_id, Some(0xa2fb_4a1d_1a96_d312));
    assert_eq!(headers.get_str("x-b3-spanid"), Some("b2fb4a1d1a96d312"), "as in Envoy");
}

#[test]
fn trace_contexts_of_w3c_go_on() {
    let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (span, headers) = passed(W3C, &[("traceparent", told), ("tracestate", "a=1")], false);
    assert!(span.sampled && &*span.state == "a=1");
    let sent = headers.get_str("traceparent").unwrap();
    assert_eq!(sent, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{:016x}-01", span.span_id));
    assert_eq!(headers.get_str("tracestate"), Some("a=1"));
    for bad in [
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-1-2-3",
        "",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    ] {
        let (span, headers) = passed(W3C, &[("traceparent", bad), ("tracestate", "a=1")], true);
        assert!(span.parent_id.is_none() && span.sampled, "{bad}");
        assert_eq!(headers.get_str("tracestate"), Some(""));
    }
    let both = Propagation { w3c: true, ..B3 };
    let (span, headers) = passed(both, &[("traceparent", told)], false);
    assert_eq!(span.parent_id, Some(0x00f0_67aa_0ba9_02b7));
    assert!(headers.contains("x-b3-traceid"));
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<String>>>);

impl LogSink for Collector {
    fn write(&self, line: &[u8]) {
        self.0.lock().push(String::from_utf8_lossy(line).into_owned());
    }
}

struct Names;

impl SpanFormat for Names {
    fn write_span(&self, tracing: &Tracing, stream: &Stream, _: &Span, part: Part, out: &mut Vec<u8>) {
        let tags = tracing.tags(stream, part);
        let tag = |name: &str| tags.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
        let text = format!("{part:?} {} {} {}", tracing.operation(stream), tag("http.url"), tag("error"));
        out.extend_from_slice(text.as_bytes());
    }
}

#[test]
fn what_is_traced_is_told_when_it_has_ended() {
    let collector = Collector::default();
    let provider = Provider { propagation: B3, format: Box::new(Names), sink: Arc::new(collector.clone()) };
    let tracing = |random, provider| Tracing {
        kind: SpanKind::Client,
        sampling: sampling(random, 10_000),
        by_request_id: true,
        max_path: 4,
        tags: Vec::new(),
        spawns_upstream: true,
        provider,
        is_silent: false,
    };
    let (provider, registry) = (Arc::new(provider), Registry::new());
    let stats = HttpStats::new(&registry, "http.t.");
    let request = |tracing: &Tracing| {
        let mut stream = fixture::stream("/abcdef", &[("x-request-id", &id(7))]);
        stats.count_trace(tracing.begin(&mut stream));
        stream.upstream.attempts = 1;
        stream.response.status = 503;
        tracing.finish(&stream);
        stream
    };
    let told = request(&tracing(10_000, Some(provider.clone())));
    let span = told.trace.as_ref().unwrap();
    assert_eq!(
        told.request.headers.get_str("x-b3-spanid"),
        Some(&*format!("{:016x}", span.upstream_id.unwrap()))
    );
    assert_eq!(
        *collector.0.lock(),
        ["Upstream egress oracle.test  true", "Request egress oracle.test http://oracle.test/abc true"]
    );
    let untold = request(&tracing(0, Some(provider)));
    assert!(untold.trace.is_none() && collector.0.lock().len() == 2);
    assert_eq!(untold.request.headers.get_str("x-b3-sampled"), Some("0"));
    let alone = request(&tracing(10_000, None));
    assert!(alone.trace.is_none() && !alone.request.headers.contains("x-b3-traceid"));
}

fn of_chance(random: u64, tags: Vec<CustomTag>) -> Tracing {
    Tracing {
        kind: SpanKind::Server,
        sampling: sampling(random, 10_000),
        by_request_id: true,
        max_path: 256,
        tags,
        spawns_upstream: false,
        provider: None,
        is_silent: false,
    }
}

fn asked(tracing: Option<RouteTracing>) -> Stream {
    let mut stream = fixture::stream("/", &[("x-request-id", &id(5))]);
    let rare = RareOptions { tracing, ..RareOptions::default() }.boxed();
    let path = PathMatch::Prefix(b"/"[..].into(), false);
    stream.route = Some(Arc::new(Route { rare, ..Route::new(path, Action::NonForwarding) }));
    stream
}

// What a route said of tracing was read and never looked at.
#[test]
fn a_route_has_shares_of_its_own_before_the_connection_manager_s() {
    let of_route =
        |random, overall| Some(RouteTracing { sampling: sampling(random, overall), tags: Vec::new() });
    let begun = |tracing: &Tracing, of_route| tracing.begin(&mut asked(of_route));
    let (all, none) = (of_chance(10_000, Vec::new()), of_chance(0, Vec::new()));
    assert_eq!((begun(&all, None), begun(&none, None)), (Reason::Sampling, Reason::None));
    assert_eq!(begun(&all, of_route(0, 10_000)), Reason::None);
    assert_eq!(begun(&all, of_route(10_000, 0)), Reason::None);
    assert_eq!(begun(&none, of_route(10_000, 10_000)), Reason::Sampling);
    let tracer = Tracing { by_request_id: false, ..none };
    assert_eq!(begun(&tracer, of_route(0, 0)), Reason::Sampling, "the tracer decides");
}

#[test]
fn tags_of_a_route_go_before_the_connection_manager_s() {
    let tag = |name: &str, value: &str| CustomTag {
        name: name.into(),
        source: crate::custom_tag::TagSource::Text(value.into()),
    };
    let tracing = of_chance(0, vec![tag("a", "1"), tag("b", "1")]);
    let tags = vec![tag("b", "2"), tag("c", "2"), tag("component", "2")];
    let stream = asked(Some(RouteTracing { sampling: sampling(0, 0), tags }));
    let mut told = tracing.tags(&stream, Part::Request);
    told.retain(|(name, _)| ["a", "b", "c", "component"].contains(&&**name));
    told.sort();
    let expected = [("a", "1"), ("b", "2"), ("c", "2"), ("component", "2")];
    assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}
