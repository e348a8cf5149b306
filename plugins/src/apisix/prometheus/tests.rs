#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{build, context, stream, stream_plugin_in};
use serde_json::{Value, json};
use sixfold_core::plugin::Chain;
use sixfold_core::route::{Action, DirectResponse, Ids, Route};
use sixfold_core::router::PathMatch;
use std::time::Duration;

fn route() -> Arc<Route> {
    Arc::new(Route {
        name: "named".into(),
        ids: Ids {
            route: "1".into(),
            service: "s1".into(),
            service_name: "shop".into(),
            uris: ["/other", "/a/*", "/*"].map(Into::into).into(),
            hosts: ["*.test".into()].into(),
        },
        chain: Some(Chain::empty()),
        ..Route::new(
            PathMatch::Prefix(Box::default(), false),
            Action::Direct(
                DirectResponse { status: 200, body: Default::default(), body_format: None }.into(),
            ),
        )
    })
}

fn request(status: u16) -> Stream {
    let mut s = stream("/a/b?x=1", &[("x-tenant", "t\"1")]);
    s.route = Some(route());
    s.response.status = status;
    s.source = sixfold_core::stream::ResponseSource::Gateway;
    s.timing.downstream_tx_end = Some(s.timing.start + Duration::from_millis(7));
    s.bytes.traffic.received = 100;
    s.bytes.traffic.sent = 42;
    s.set_var("consumer_name", "jack");
    s
}

fn text(attributes: Value, config: &Value, requests: &mut [Stream]) -> String {
    let context = BuildContext { attributes: Arc::new(attributes), ..context() };
    let plugin = build("prometheus", config, &context).unwrap();
    for stream in requests {
        plugin.log(stream);
    }
    page(&shared(&context.shared, &context.attributes, &context.metrics).unwrap())
}

fn page(metrics: &Metrics) -> String {
    let mut out = Vec::new();
    metrics.render(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
}

#[test]
fn requests_are_counted_with_apisix_labels() {
    let text = text(Value::Null, &json!({}), &mut [request(200), request(200), request(404)]);
    has(&text, "# TYPE apisix_http_status counter");
    has(
        &text,
        "apisix_http_status{code=\"200\",route=\"1\",matched_uri=\"/a/*\",matched_host=\"*.test\",service=\"s1\",\
         consumer=\"jack\",node=\"\",request_type=\"traditional_http\",request_llm_model=\"\",llm_model=\"\",\
         response_source=\"apisix\"} 2",
    );
    assert!(text.contains("apisix_http_status{code=\"404\""));
    let traffic = "route=\"1\",service=\"s1\",consumer=\"jack\",node=\"\",request_type=\"traditional_http\",\
                   request_llm_model=\"\",llm_model=\"\"";
    has(&text, &format!("apisix_bandwidth{{type=\"egress\",{traffic}}} 126"));
    has(&text, &format!("apisix_bandwidth{{type=\"ingress\",{traffic}}} 300"));
    has(&text, "# TYPE apisix_http_latency histogram");
    has(&text, &format!("apisix_http_latency_bucket{{type=\"request\",{traffic},le=\"5\"}} 0"));
    has(&text, &format!("apisix_http_latency_bucket{{type=\"request\",{traffic},le=\"10\"}} 3"));
    has(&text, &format!("apisix_http_latency_bucket{{type=\"request\",{traffic},le=\"+Inf\"}} 3"));
    has(&text, &format!("apisix_http_latency_sum{{type=\"apisix\",{traffic}}} 21"));
    // Nothing went to an upstream.
    assert!(!text.contains("type=\"upstream\""));
    has(&text, "apisix_http_requests_total 0");
    assert!(text.contains("apisix_nginx_http_current_connections{state=\"writing\"} 0"));
    assert!(text.contains("apisix_node_info{hostname="));
}

#[test]
fn names_extra_labels_and_buckets_can_be_set() {
    let attributes = json!({
        "metric_prefix": "my_", "default_buckets": [3, 8],
        "metrics": {"http_status": {"extra_labels": [{"tenant": "$http_x_tenant"}]}},
    });
    let text = text(attributes, &json!({"prefer_name": true}), &mut [request(200)]);
    assert!(text.contains("my_http_status{code=\"200\",route=\"named\""), "{text}");
    assert!(text.contains("service=\"shop\"") && text.contains("tenant=\"t\\\"1\"} 1"));
    assert_eq!(text.lines().filter(|l| l.contains("_bucket{type=\"request\"")).count(), 3);
}

#[test]
fn requests_without_a_route_have_empty_labels() {
    let mut lost = request(404);
    lost.route = None;
    let text = text(Value::Null, &json!({"prefer_name": true}), &mut [lost]);
    assert!(
        text.contains("code=\"404\",route=\"\",matched_uri=\"\",matched_host=\"\",service=\"\""),
        "{text}"
    );
}

#[test]
fn series_expire() {
    let attributes = json!({"metrics": {"http_status": {"expire": 3600}}});
    assert!(text(attributes, &json!({}), &mut [request(200)]).contains("http_status{"));
}

#[test]
fn bad_settings_are_refused() {
    for attributes in [
        json!({"default_buckets": [5, 1]}),
        json!({"default_buckets": "1"}),
        json!({"metrics": {"bandwidth": {"extra_labels": [{"a": 1}]}}}),
    ] {
        let context = BuildContext { attributes: Arc::new(attributes), ..context() };
        assert!(build("prometheus", &json!({}), &context).is_err());
    }
}

/// Requests of four threads all arrive in the text.
#[test]
fn workers_add_up() {
    let context = context();
    let keeper = shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let plugin = build("prometheus", &json!({}), &context).unwrap();
            scope.spawn(move || (0..250).for_each(|_| plugin.log(&mut request(200))));
        }
    });
    let text = page(&keeper);
    let line = text.lines().find(|l| l.starts_with("apisix_http_status{")).unwrap();
    assert!(line.ends_with(" 1000"), "{line}");
}

/// A client that chooses a label could take hundreds of megabytes: the bound was a number of series for each
/// thread and metric.
#[test]
fn labels_of_clients_have_a_bound_in_bytes() {
    let extra = json!({"extra_labels": [{"tenant": "$http_x_who"}]});
    let context =
        BuildContext { attributes: Arc::new(json!({"metrics": {"http_status": extra}})), ..context() };
    let plugin = build("prometheus", &json!({}), &context).unwrap();
    let metrics = shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    let long = "x".repeat(64 << 10);
    for nth in 0..1200 {
        let mut request = request(200);
        request.request.headers.push(b"x-who", format!("{nth}{long}").as_bytes());
        plugin.log(&mut request);
    }
    assert!(metrics.budget.used() <= 64 << 20);
    let text = page(&metrics);
    let rest = text.lines().find(|line| line.starts_with("apisix_http_status{code=\"__rest__\"")).unwrap();
    let rest: u64 = rest.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(rest > 0 && rest < 1200, "{rest}");
    has(&text, &format!("apisix_nginx_metric_errors_total {rest}"));
}

#[test]
fn metadata_leaves_labels_empty() {
    let context = context();
    let plugin = build("prometheus", &json!({}), &context).unwrap();
    let metrics = shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    let labels =
        json!({"disabled_labels": {"http_status": ["route", "response_source"], "bandwidth": ["service"]}});
    let read = DisabledLabels::read(serde_json::from_value(labels).unwrap()).unwrap();
    context.metadata.change("prometheus", Some(Arc::new(read))).put_in_force();
    plugin.log(&mut request(200));
    let page = page(&metrics);
    let status = page.lines().find(|line| line.starts_with("apisix_http_status{")).unwrap();
    assert!(
        status.contains("code=\"200\",route=\"\",matched_uri=\"/a/*\"")
            && status.ends_with("response_source=\"\"} 1")
    );
    assert!(page.contains("apisix_bandwidth{type=\"egress\",route=\"1\",service=\"\",consumer=\"jack\""));
    assert!(page.contains("apisix_http_latency_count{type=\"request\",route=\"1\",service=\"s1\""));
}

#[test]
fn a_store_that_is_written_is_told_of_by_the_names_of_etcd() {
    sixfold_core::stat_block! {
        pub struct Store {
            counters: [], gauges: [], numbers: [is_written, reachable, routes, max_modify_index], histograms: [],
        }
    }
    let context = context();
    let metrics = shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    assert!(!page(&metrics).contains("etcd"));
    let store = Store::new(&context.metrics, "apisix_store.");
    for (number, value) in
        [(store.is_written(), 1), (store.reachable(), 1), (store.routes(), 7), (store.max_modify_index(), 9)]
    {
        number.set(value);
    }
    let page = page(&metrics);
    for line in [
        "apisix_etcd_reachable 1",
        "apisix_etcd_modify_indexes{key=\"routes\"} 7",
        "apisix_etcd_modify_indexes{key=\"protos\"} 0",
        "apisix_etcd_modify_indexes{key=\"x_etcd_index\"} 9",
    ] {
        has(&page, line);
    }
}

/// No name on the page told of a resource that is not in force.
#[test]
fn resources_that_were_refused_are_counted() {
    sixfold_core::stat_block! {
        pub struct Config { counters: [], gauges: [], numbers: [is_followed, is_read, routes], histograms: [] }
    }
    let context = context();
    let metrics = shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    assert!(!page(&metrics).contains("config"));
    let config = Config::new(&context.metrics, "apisix_config.");
    config.is_followed().set(1);
    config.routes().set(2);
    let page = page(&metrics);
    for line in [
        "apisix_config_read 0",
        "apisix_config_refused_resources{kind=\"routes\"} 2",
        "apisix_config_refused_resources{kind=\"upstreams\"} 0",
    ] {
        has(&page, line);
    }
}

/// A stream route that another plugin has refused had changed the page.
#[test]
fn the_page_has_streams_once_the_plugin_is_in_force_on_them() {
    let context = context();
    let metrics = || shared(&context.shared, &context.attributes, &context.metrics).unwrap();
    let plugin = stream_plugin_in("prometheus", json!({}), &context);
    assert!(!page(&metrics()).contains("apisix_stream_"));
    plugin.in_force();
    has(&page(&metrics()), "# TYPE apisix_stream_active_connections gauge");
}
