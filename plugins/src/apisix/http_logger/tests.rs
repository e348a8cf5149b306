#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{Service, build, context_with, stream};
use serde_json::{Value, json};
use sixfold_core::plugin::CalloutResponse;
use sixfold_core::stream::Stream;

fn context(status: u16) -> (BuildContext, Arc<Service>) {
    let answer = CalloutResponse { status, headers: Headers::new(), body: Bytes::from_static(b"full") };
    context_with(Some(answer))
}

fn ended(target: &str) -> Stream {
    let mut stream = stream(target, &[]);
    stream.response.status = 200;
    stream
}

async fn settle(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn entries_are_posted_as_the_configuration_says() {
    let (context, service) = context(200);
    let format = json!({"u": "$uri"});
    let log = |config: Value, paths: &[&str]| {
        let mut whole = json!({"uri": "http://127.0.0.1:1980/log?a=b", "log_format": format});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let plugin = build("http-logger", &whole, &context).unwrap();
        paths.iter().for_each(|path| plugin.log(&mut ended(path)));
        plugin
    };
    let mut kept = Vec::new();
    kept.push(log(json!({"batch_max_size": 1, "auth_header": "Basic 123"}), &["/a"]));
    kept.push(log(json!({"batch_max_size": 2}), &["/a", "/b"]));
    kept.push(log(json!({"batch_max_size": 2, "concat_method": "new_line"}), &["/a", "/b"]));
    kept.push(log(json!({}), &["/a"]));
    settle(1).await;
    assert_eq!(service.asked.lock().len(), 3, "fewer than a batch wait");
    settle(6).await;
    let asked = service.asked.lock();
    let bodies: Vec<_> = asked.iter().map(|request| String::from_utf8_lossy(&request.body)).collect();
    let entry = |path: &str| format!("{{\"u\":\"{path}\",\"route_id\":\"no-matched\"}}");
    let (a, b) = (entry("/a"), entry("/b"));
    let mut wanted = [a.clone(), format!("[{a},{b}]"), format!("{a}\n{b}"), format!("[{a}]")];
    wanted[..3].sort();
    let mut first: Vec<_> = bodies[..3].to_vec();
    first.sort();
    assert_eq!(
        (first, &bodies[3]),
        (wanted[..3].iter().map(Into::into).collect(), &wanted[3].as_str().into())
    );
    let single =
        asked.iter().find(|request| request.body.starts_with(b"{") && !request.body.contains(&b'\n'));
    let headers = &single.unwrap().headers;
    let header = |name: &str| headers.get_str(name);
    assert_eq!(
        (header("host"), header("content-type"), header("authorization")),
        (Some("127.0.0.1"), Some("application/json"), Some("Basic 123"))
    );
    assert!(asked.iter().any(|request| request.headers.get_str("content-type") == Some("text/plain")));
    assert!(asked.iter().all(|request| request.uri == "http://127.0.0.1:1980/log?a=b"));
}

#[tokio::test(start_paused = true)]
async fn what_a_server_refuses_is_sent_again_and_then_dropped() {
    let (context, service) = context(500);
    let config = json!({"uri": "http://127.0.0.1:1980/", "batch_max_size": 1, "max_retry_count": 1});
    let plugin = build("http-logger", &config, &context).unwrap();
    plugin.log(&mut ended("/a"));
    settle(5).await;
    assert_eq!(service.asked.lock().len(), 2);
    assert_eq!(batches::all(&context.shared).dropped(), 1);
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_what_waits_under_the_first_route() {
    let (context, _) = context(200);
    let plugin = build("http-logger", &json!({"uri": "http://127.0.0.1:1980"}), &context).unwrap();
    // One that is configured alike, as after another resource has changed.
    let again = build("http-logger", &json!({"uri": "http://127.0.0.1:1980"}), &context).unwrap();
    let mut routed = crate::testing::routed("/a", &[]);
    let mut route = Arc::into_inner(routed.route.take().unwrap()).unwrap();
    route.ids.route = "r1".into();
    routed.route = Some(Arc::new(route));
    plugin.log(&mut routed);
    again.log(&mut ended("/b"));
    let shown = batches::all(&context.shared).shown();
    let labels: Vec<_> =
        shown.iter().map(|one| (&*one.name, &*one.route, &*one.server, one.entries)).collect();
    assert_eq!(labels, [("http logger", "r1", "127.0.0.1", 2)]);
    settle(11).await;
    assert_eq!(batches::all(&context.shared).shown()[0].entries, 0);
    drop((plugin, again));
    settle(1).await;
    assert!(batches::all(&context.shared).shown().is_empty());
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config: Value| build("http-logger", &config, &context(200).0).err().unwrap();
    let expression =
        json!({"uri": "http://a/", "include_req_body": true, "include_req_body_expr": [["x", "<>", 1]]});
    assert_eq!(
        error(expression),
        "include_req_body_expr: failed to validate the 'include_req_body_expr' expression: invalid operator '<>'"
    );
}
