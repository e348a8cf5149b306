#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::shared::encoding::tests::gzip;
use crate::testing::{Alone, context, routed, stream};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use sixfold_core::plugin::{Consumer, HeadPhase, Outcome};
use std::time::Duration;

/// Entries that were logged.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Value>>>);

impl EntrySink for Kept {
    const UNROUTED: Option<&'static str> = Some("no-matched");

    fn take(&self, entry: &[u8], _: Option<&LoggerMetadata>) {
        self.0.lock().push(serde_json::from_slice(entry).unwrap());
    }
}

fn config(changes: Value) -> EntryConfig {
    let mut config = json!({
        "include_req_body": false, "include_resp_body": false,
        "max_req_body_bytes": 524_288, "max_resp_body_bytes": 524_288,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn logger(changes: Value, context: &BuildContext) -> (Alone, Kept) {
    let kept = Kept::default();
    let plugin = Logger::plugin("a-logger", &config(changes), Arc::new(kept.clone()), context).unwrap();
    (Alone::new(plugin.build()), kept)
}

fn set_metadata(context: &BuildContext, metadata: Value) {
    let read = LoggerMetadata::read(serde_json::from_value(metadata).unwrap()).unwrap();
    context.metadata.change("a-logger", Some(Arc::new(read))).put_in_force();
}

fn request(target: &str, headers: &[(&str, &str)]) -> Stream {
    let mut stream = routed(target, headers);
    let mut route = Arc::into_inner(stream.route.take().unwrap()).unwrap();
    (route.ids.route, route.ids.service) = ("r1".into(), "s1".into());
    stream.route = Some(Arc::new(route));
    stream.response.status = 201;
    stream.response.headers.push(b"Content-Type", b"text/plain");
    stream.timing.downstream_tx_end = Some(stream.timing.start + Duration::from_micros(7_250));
    stream
}

#[test]
fn the_default_entry_has_what_apisix_says() {
    let (plugin, kept) = logger(json!({}), &context());
    let headers = [("X-A", "1"), ("x-b", "\"2\""), ("x-a", "3")];
    let mut stream = request("/a%20b?x=1&y&x=%32+&z=", &headers);
    stream.bytes.traffic.received = 120;
    stream.bytes.traffic.sent = 80;
    plugin.log(&mut stream);
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!(
        entry["request"],
        json!({
            "url": "http://example.com:9080/a%20b?x=1&y&x=%32+&z=", "uri": "/a%20b?x=1&y&x=%32+&z=", "method": "GET",
            "headers": {"host": "example.com", "x-a": ["1", "3"], "x-b": "\"2\""},
            "querystring": {"x": ["1", "2 "], "y": true, "z": ""}, "size": 120,
        })
    );
    assert_eq!(
        entry["response"],
        json!({"status": 201, "headers": {"content-type": "text/plain", "connection": "keep-alive"}, "size": 80})
    );
    assert_eq!((&entry["route_id"], &entry["service_id"]), (&json!("r1"), &json!("s1")));
    assert_eq!((&entry["client_ip"], &entry["latency"]), (&json!("10.1.2.3"), &json!(7.25)));
    assert_eq!(entry["apisix_latency"], json!(7.25));
    assert!(entry["server"]["hostname"].is_string() && entry["server"]["version"].is_string());
    for absent in ["upstream", "upstream_latency", "consumer"] {
        assert!(entry.get(absent).is_none(), "{absent}");
    }
    assert!(entry["start_time"].is_u64());
}

#[test]
fn who_has_no_route_is_told_by_its_host() {
    let (plugin, kept) =
        logger(json!({"log_format_extra": {"route_name": "$route_name", "h": "$host"}}), &context());
    plugin.log(&mut stream("/", &[]));
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!(
        (&entry["service_id"], &entry["route_id"], &entry["h"]),
        (&json!("example.com"), &json!("no-matched"), &json!("example.com"))
    );
    assert!(entry.get("route_name").is_none());
}

#[test]
fn formats_of_the_logger_go_before_those_of_its_metadata() {
    let context = context();
    let (plugin, kept) = logger(json!({}), &context);
    let (own, of_own) =
        logger(json!({"log_format": {"own": "$uri", "s": "$status", "n": {"m": 1}}}), &context);
    let entry = |plugin: &Alone, kept: &Kept| {
        let mut stream = request("/a", &[]);
        stream.consumer = Some(Arc::new(Consumer::new("jack".into(), None, Vec::new())));
        stream.set_var("consumer_name", "jack");
        plugin.log(&mut stream);
        kept.0.lock().pop().unwrap()
    };
    let mine = json!({"own": "/a", "s": 201, "n": {"m": 1}, "route_id": "r1", "service_id": "s1"});
    assert_eq!(entry(&own, &of_own), mine);
    set_metadata(
        &context,
        json!({"log_format": {}, "log_format_extra": {"client_ip": "x", "who": "$consumer_name"}}),
    );
    let extended = entry(&plugin, &kept);
    assert_eq!((&extended["client_ip"], &extended["who"]), (&json!("10.1.2.3"), &json!("jack")));
    assert_eq!(extended["consumer"], json!({"username": "jack"}));
    // Live, and no entry of it is said twice.
    set_metadata(&context, json!({"log_format": {"general": "$uri", "route_id": "x", "service_id": "y"}}));
    let general = json!({"general": "/a", "route_id": "r1", "service_id": "s1"});
    assert_eq!((entry(&plugin, &kept), entry(&own, &of_own)), (general, mine));
}

#[tokio::test]
async fn bodies_are_logged_up_to_their_bounds() {
    let (plugin, kept) = logger(
        json!({
            "include_req_body": true, "max_req_body_bytes": 4,
            "include_resp_body": true, "include_resp_body_expr": [["arg_body", "==", "yes"]], "max_resp_body_bytes": 5,
        }),
        &context(),
    );
    let mut s = request("/?body=yes", &[]);
    s.request_body = Some(Bytes::from_static(b"request"));
    let first = plugin.chain.run(HeadPhase::Access, &mut s).await;
    assert!(matches!(first, Outcome::ReadBody(..)), "it is asked for");
    assert!(plugin.access(&mut s).await.is_none());
    assert_eq!(plugin.response_body(&mut s, &["ans", "wer"]), "answer", "it goes on as it is");
    plugin.log(&mut s);
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!((&entry["request"]["body"], &entry["response"]["body"]), (&json!("requ"), &json!("answe")));
    let mut s = request("/?body=no", &[]);
    // One whose body was not read ahead, as of a call of gRPC.
    let _ = plugin.request_bytes_waiting(&mut s, &[b"re", b"quest"]).await;
    plugin.response_body(&mut s, &["answer"]);
    plugin.log(&mut s);
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!((&entry["request"]["body"], entry["response"].get("body")), (&json!("requ"), None));
}

#[tokio::test]
async fn formats_can_have_bodies() {
    let (plugin, kept) = logger(
        json!({"log_format": {"q": "$request_body", "p": {"r": "$resp_body"}}, "include_resp_body": true}),
        &context(),
    );
    let mut s = request("/", &[]);
    let _ = plugin.request_bytes_waiting(&mut s, &[b"a=1", b"&b"]).await;
    plugin.response_body(&mut s, &["x", "y"]);
    plugin.log(&mut s);
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!((&entry["q"], &entry["p"]), (&json!("a=1&b"), &json!({"r": "xy"})));
    let (plugin, kept) = logger(json!({"log_format": {"r": "$resp_body", "q": "$request_body"}}), &context());
    plugin.log(&mut request("/", &[]));
    let entry = kept.0.lock().pop().unwrap();
    assert_eq!((&entry["r"], entry.get("q")), (&json!(""), None));
}

/// Encoded bodies were logged as they are, which is no text.
#[tokio::test]
async fn encodings_of_responses_are_undone_beside_the_worker() {
    let context = context();
    let (plugin, kept) = logger(json!({"include_resp_body": true}), &context);
    for (body, logged) in [(gzip(b"hello \"you\""), "hello \"you\""), (b"no gzip".to_vec(), "no gzip")] {
        let mut s = request("/", &[]);
        s.response.headers.push(b"content-encoding", b"gzip");
        plugin.response_bytes(&mut s, &[&body]);
        plugin.log(&mut s);
        while kept.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let entry = kept.0.lock().pop().unwrap();
        assert_eq!(entry["response"]["body"], json!(logged));
    }
}
