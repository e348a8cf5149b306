#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use crate::testing::redis::{RedisServer, connecting, free_port};
use crate::testing::{Alone, build, now, response_header, stream};
use serde_json::{Value, json};
use sixfold_core::plugin::BuildContext;
use std::time::Duration;

/// By then Redis was told, also on a busy machine.
const TOLD: Duration = Duration::from_secs(4);

/// As of another gateway.
fn gateway(config: &Value) -> Alone {
    build("limit-count", config, &connecting().0).unwrap()
}

async fn ask(plugin: &Alone) -> (u16, Option<String>, Option<f64>) {
    let mut s = stream("/", &[("x-user", "a")]);
    let status = plugin.access(&mut s).await.map_or(0, |reply| reply.status);
    now(plugin.header_filter(&mut s));
    let header = |name: &str| response_header(&s, name).map(str::to_owned);
    (status, header("x-ratelimit-remaining"), header("x-ratelimit-reset").map(|text| text.parse().unwrap()))
}

fn config(port: u16, more: Value) -> Value {
    let mut config = json!({"count": 2, "time_window": 60, "policy": "redis", "redis_host": "127.0.0.1",
        "redis_port": port});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[tokio::test]
async fn gateways_share_a_limit() {
    let server = RedisServer::start(&[]);
    for window in ["fixed", "sliding"] {
        // A sliding window must not end in between.
        let config = config(server.port, json!({"window_type": window, "time_window": 100_000}));
        let (one, other) = (gateway(&config), gateway(&config));
        let (status, remaining, reset) = ask(&one).await;
        assert_eq!((status, remaining.as_deref()), (0, Some("1")), "{window}");
        assert!((0.0..=100_000.0).contains(&reset.unwrap()));
        let (status, remaining, _) = ask(&other).await;
        assert_eq!((status, remaining.as_deref()), (0, Some("0")), "{window}");
        let (status, remaining, reset) = ask(&one).await;
        assert_eq!((status, remaining.as_deref()), (503, Some("0")), "{window}");
        assert!(reset.unwrap() > 0.0);
    }
}

#[tokio::test]
async fn rules_are_asked_in_order() {
    let server = RedisServer::start(&[]);
    let mut config = config(
        server.port,
        json!({"rules": [
            {"count": 2, "time_window": 60, "key": "$http_x_user"},
            {"count": 1, "time_window": 60, "key": "$http_x_none"},
            {"count": 9, "time_window": 60, "key": "all$remote_addr", "header_prefix": "all"},
        ]}),
    );
    config.as_object_mut().unwrap().retain(|name, _| name != "count" && name != "time_window");
    let plugin = gateway(&config);
    for expected in [(0, "1", Some("8")), (0, "0", Some("7")), (503, "0", None)] {
        let mut s = stream("/", &[("x-user", "a")]);
        let status = plugin.access(&mut s).await.map_or(0, |reply| reply.status);
        now(plugin.header_filter(&mut s));
        let first = response_header(&s, "x-1-ratelimit-remaining").unwrap();
        assert_eq!((status, first, response_header(&s, "x-all-ratelimit-remaining")), expected);
    }
}

#[tokio::test]
async fn without_redis_nothing_passes_unless_that_is_wanted() {
    let port = free_port();
    let (status, remaining, _) = ask(&gateway(&config(port, json!({})))).await;
    assert_eq!((status, remaining), (500, None));
    let (status, remaining, _) = ask(&gateway(&config(port, json!({"allow_degradation": true})))).await;
    assert_eq!((status, remaining), (0, None));
}

#[tokio::test]
async fn redis_is_told_now_and_then() {
    let server = RedisServer::start(&[]);
    let told = async |window: &str| {
        let more = json!({"count": 10, "time_window": 100_000, "sync_interval": 2, "window_type": window});
        let config = config(server.port, more);
        let (one, other) = (gateway(&config), gateway(&config));
        // Each begins with what Redis knows, which is nothing yet: the other one long before it is told.
        for remaining in ["9", "8", "7"] {
            assert_eq!(ask(&one).await.1.as_deref(), Some(remaining), "{window}");
        }
        assert_eq!(ask(&other).await.1.as_deref(), Some("9"), "{window}");
        tokio::time::sleep(TOLD).await;
        // Both have told and the later one has learned; after another request the first learns, too.
        ask(&one).await;
        ask(&other).await;
        tokio::time::sleep(TOLD).await;
        let (a, b) = (ask(&one).await.1.unwrap(), ask(&other).await.1.unwrap());
        assert!(a == "3" || b == "3", "{window} {a} {b}");
    };
    tokio::join!(told("fixed"), told("sliding"));
}

/// What was let through while Redis was away is told when it is back.
#[tokio::test]
async fn what_was_not_told_is_kept() {
    let port = free_port();
    let more = json!({"count": 10, "sync_interval": 0.2, "redis_timeout": 500});
    let one = gateway(&config(port, more.clone()));
    assert_eq!(ask(&one).await.1.as_deref(), Some("9"));
    let _server = RedisServer::start_at(port, &[]);
    tokio::time::sleep(TOLD).await;
    assert_eq!(ask(&gateway(&config(port, more))).await.1.as_deref(), Some("8"));
}

/// Each interval that Redis did not answer in began a telling of its own, and all of them told the same.
#[tokio::test]
async fn a_redis_that_is_slow_is_told_once() {
    let server = RedisServer::start(&[]);
    let more = json!({"count": 100, "sync_interval": 0.1, "redis_timeout": 5000});
    let one = gateway(&config(server.port, more.clone()));
    ask(&one).await;
    server.stop(true);
    for _ in 0..12 {
        ask(&one).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop(false);
    tokio::time::sleep(TOLD).await;
    assert_eq!(ask(&gateway(&config(server.port, more))).await.1.as_deref(), Some("86"));
}

#[test]
fn intervals_that_are_none_are_refused() {
    let error = |more: Value| {
        let context: BuildContext = connecting().0;
        build("limit-count", &config(1, more), &context).err().unwrap()
    };
    let short = error(json!({"sync_interval": 0.05}));
    assert_eq!(short, "sync_interval: sync_interval should not be smaller than 0.1");
    let long = error(json!({"sync_interval": 60}));
    assert_eq!(long, "sync_interval: sync_interval should be smaller than time_window");
}
