#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::redis::{RedisServer, connecting, free_port};
use serde_json::json;
use sixfold_core::plugin::BuildContext;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

static ADD: LazyLock<Script> =
    LazyLock::new(|| Script::new("return {redis.call('INCRBY', KEYS[1], ARGV[1]), 'x'}"));

fn service(policy: &str, config: serde_json::Value, context: &BuildContext) -> Arc<Redis> {
    let config: RedisConfig = serde_json::from_value(config).unwrap();
    config.service(policy, context).unwrap().unwrap()
}

fn at(port: u16) -> serde_json::Value {
    json!({"redis_host": "127.0.0.1", "redis_port": port, "redis_timeout": 3000})
}

async fn add(redis: &Redis, key: &str) -> Result<i64, String> {
    let added = redis.run::<(i64, String)>(&ADD, key.as_bytes(), &["1".to_owned()]).await;
    added.map(|(count, _)| count).map_err(|fault| fault.to_string())
}

async fn command(redis: &Redis, parts: &[&str]) -> Value {
    let mut command = cmd(parts[0]);
    parts[1..].iter().for_each(|part| _ = command.arg(part));
    redis.call(b"", &command).await.unwrap()
}

// Its specification, appendix A, and "Hash tags".
#[test]
fn keys_have_the_slots_of_the_specification() {
    assert_eq!(slot(b"123456789"), 0x31c3);
    assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
    assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
    assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
}

#[tokio::test]
async fn scripts_run_whether_they_are_known_or_not_over_one_connection() {
    let server = RedisServer::start(&[]);
    let (context, wires) = connecting();
    let redis = service("redis", at(server.port), &context);
    assert!(Arc::ptr_eq(&redis, &service("redis", at(server.port), &context)));
    let many = (0..20).map(|_| add(&redis, "k"));
    let mut counts: Vec<i64> = futures_of(many).await.into_iter().map(Result::unwrap).collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=20).collect::<Vec<i64>>());
    command(&redis, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(add(&redis, "k").await, Ok(21));
    assert_eq!(wires.0.load(Relaxed), 1);
    assert_eq!(redis.get::<i64>(b"k").await.unwrap(), Some(21));
    assert_eq!(redis.get::<i64>(b"none").await.unwrap(), None);
    let text = redis.run::<String>(&ADD, b"k", &["1".to_owned()]).await;
    assert!(text.unwrap_err().to_string().contains("malformed redis response"));
}

async fn futures_of<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(|one| Some(Box::pin(one))).collect();
    let mut out = Vec::new();
    std::future::poll_fn(|cx| {
        for one in &mut all {
            if let Some(future) = one
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                out.push(value);
                *one = None;
            }
        }
        if all.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    out
}

/// What comes is kept until the answer is whole: a server that never ends one filled the memory until the time was over.
#[tokio::test]
async fn an_answer_without_an_end_ends_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sends = tokio::spawn(async move {
        let mut sent = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"$2000000000\r\n").await;
            while stream.write_all(&[b'a'; 64 << 10]).await.is_ok() {
                sent += 64 << 10;
                assert!(sent < 256 << 20, "all of it is taken");
            }
        }
    });
    let (context, _) = connecting();
    let mut config = at(port);
    config["redis_timeout"] = 20_000.into();
    let redis = service("redis", config, &context);
    let begun = std::time::Instant::now();
    let fault = add(&redis, "k").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10) && fault != "timeout", "{fault}");
    assert!(!sends.is_finished());
    sends.abort();
}

#[tokio::test]
async fn whoever_logs_in_has_a_database_of_its_own() {
    let settings = ["--requirepass", "secret", "--user", "alice", "on", ">wonder", "~*", "+@all"];
    let server = RedisServer::start(&settings);
    let (context, _) = connecting();
    let of = |more: serde_json::Value| {
        let mut config = at(server.port);
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service("redis", config, &context)
    };
    let alice = of(json!({"redis_username": "alice", "redis_password": "wonder", "redis_database": 1}));
    assert_eq!(add(&alice, "k").await, Ok(1));
    let default = of(json!({"redis_password": "secret"}));
    assert_eq!([add(&default, "k").await, add(&default, "k").await], [Ok(1), Ok(2)]);
    assert_eq!(add(&alice, "k").await, Ok(2));
    for wrong in [json!({"redis_password": "x"}), json!({}), json!({"redis_password": ""})] {
        assert!(add(&of(wrong), "k").await.is_err());
    }
    let database = json!({"redis_password": "secret", "redis_database": 999_999});
    assert!(add(&of(database), "k").await.unwrap_err().contains("DB index"));
}

#[tokio::test]
async fn connections_are_made_anew_when_they_are_gone_and_closed_when_idle() {
    let port = free_port();
    let server = RedisServer::start_at(port, &[]);
    let (context, wires) = connecting();
    let mut config = at(port);
    config["redis_keepalive_timeout"] = 3000.into();
    let redis = service("redis", config, &context);
    assert_eq!(add(&redis, "k").await, Ok(1));
    drop(server);
    assert!(add(&redis, "k").await.is_err());
    let _server = RedisServer::start_at(port, &[]);
    assert_eq!(add(&redis, "k").await, Ok(1));
    let before = wires.0.load(Relaxed);
    assert_eq!(add(&redis, "k").await, Ok(2));
    assert_eq!(wires.0.load(Relaxed), before);
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert_eq!(add(&redis, "k").await, Ok(3));
    assert_eq!(wires.0.load(Relaxed), before + 1);
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_no_more_than_the_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (context, _) = connecting();
    let mut config = at(listener.local_addr().unwrap().port());
    config["redis_timeout"] = 100.into();
    let begun = std::time::Instant::now();
    assert_eq!(add(&service("redis", config, &context), "k").await, Err("timeout".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Each waited for those before it to try in vain.
#[tokio::test]
async fn requests_do_not_wait_for_each_others_failures() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (context, _) = connecting();
    let mut config = at(listener.local_addr().unwrap().port());
    config["redis_timeout"] = 1000.into();
    config["redis_password"] = "secret".into();
    let redis = service("redis", config, &context);
    let begun = std::time::Instant::now();
    let answers = futures_of((0..30).map(|_| add(&redis, "k"))).await;
    assert!(answers.iter().all(|answer| *answer == Err("timeout".to_owned())), "{answers:?}");
    // One after the other they take half a minute.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nodes_of_a_cluster_are_found_by_their_redirections() {
    // What an earlier run has left of the port would have the node be another.
    let forget = |port: u16| _ = std::fs::remove_file(format!("/tmp/sixfold-nodes-{port}.conf"));
    let (bus, other_bus) = (free_port().to_string(), free_port().to_string());
    let cluster = |port: u16, bus: &str| {
        forget(port);
        let file = format!("sixfold-nodes-{port}.conf");
        let settings = ["--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-config-file", &file];
        RedisServer::start_at(port, &settings)
    };
    let (one, other) = (cluster(free_port(), &bus), cluster(free_port(), &other_bus));
    let (context, _) = connecting();
    let (a, b) = (service("redis", at(one.port), &context), service("redis", at(other.port), &context));
    command(&a, &["CLUSTER", "ADDSLOTSRANGE", "0", "8000"]).await;
    command(&b, &["CLUSTER", "ADDSLOTSRANGE", "8001", "16383"]).await;
    command(&a, &["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &other_bus]).await;
    let nodes = [one.port, free_port()].map(|port| format!("127.0.0.1:{port}"));
    let config = json!({"redis_cluster_nodes": nodes, "redis_cluster_name": "c", "redis_timeout": 3000});
    let redis = service("redis-cluster", config, &context);
    let mut tries = 0;
    while add(&redis, "ready").await.is_err() || add(&redis, "123456789").await.is_err() {
        tries += 1;
        assert!(tries < 100, "the nodes do not meet");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for n in 0..50 {
        assert_eq!(add(&redis, &format!("key-{n}")).await, Ok(1));
    }
    assert!(redis.worker(|worker| worker.slots.len()).unwrap() > 10);
    [one.port, other.port].into_iter().for_each(forget);
}

#[tokio::test]
async fn sentinels_tell_where_the_server_is() {
    let server = RedisServer::start(&[]);
    let port = free_port();
    let file = std::env::temp_dir().join(format!("sixfold-sentinel-{port}.conf"));
    let watched = server.port;
    let text = format!("port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {watched} 1\n");
    std::fs::write(&file, text).unwrap();
    let arguments = [file.to_str().unwrap(), "--sentinel"];
    let sentinel = RedisServer::spawn(port, &arguments);
    let (context, _) = connecting();
    let config = |name: &str| {
        json!({"redis_sentinels": [{"host": "127.0.0.1", "port": free_port()},
            {"host": "127.0.0.1", "port": sentinel.port}], "redis_master_name": name})
    };
    let redis = service("redis-sentinel", config("mymaster"), &context);
    assert_eq!([add(&redis, "k").await, add(&redis, "k").await], [Ok(1), Ok(2)]);
    let unknown = service("redis-sentinel", config("other"), &context);
    assert!(add(&unknown, "k").await.unwrap_err().contains("no server is known for 'other'"));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn addresses_that_are_none_are_refused() {
    let refused = |policy: &str, config: serde_json::Value| {
        let config: RedisConfig = serde_json::from_value(config).unwrap();
        config.service(policy, &connecting().0).err().unwrap().to_string()
    };
    assert!(refused("redis", json!({})).contains("property \"redis_host\" is required"));
    assert_eq!(
        refused("redis", json!({"redis_host": "a", "redis_port": 70000})),
        "redis_port: 70000 is not a port"
    );
    let nodes = json!({"redis_cluster_nodes": ["a:1", "b"]});
    assert_eq!(refused("redis-cluster", nodes), "redis_cluster_nodes[1]: failed to parse address: b");
}
