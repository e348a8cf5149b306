#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use crate::shared::counters::Counters;
use crate::testing::redis::{RedisServer, connecting, free_port};
use crate::testing::{Alone, build, context, now, plugin, stream};
use serde_json::{Value, json};
use sixfold_core::export::{Background, Task};
use sixfold_core::plugin::BuildContext;
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A delay that is none, so that nobody waits.
const SHORT: f64 = 0.0001;

fn begin(plugin: &Alone, headers: &[(&str, &str)]) -> (u16, Stream) {
    let mut s = stream("/?conn=1&burst=0&bad=1.5", headers);
    let status = now(plugin.access(&mut s)).map_or(0, |reply| reply.status);
    (status, s)
}

#[test]
fn so_many_at_once_and_no_more() {
    let config = json!({"conn": 1, "burst": 1, "default_conn_delay": SHORT, "key": "remote_addr"});
    let plugin = plugin("limit-conn", &config);
    let (first, mut running) = begin(&plugin, &[]);
    let (second, other) = begin(&plugin, &[]);
    assert_eq!([first, second, begin(&plugin, &[]).0], [0, 0, 503]);
    // The end of a request makes room, and what was refused took none.
    plugin.log(&mut running);
    let (third, _running) = begin(&plugin, &[]);
    assert_eq!([third, begin(&plugin, &[]).0], [0, 503]);
    // One that ends before its log makes room, too.
    drop(other);
    assert_eq!(begin(&plugin, &[]).0, 0);
}

#[test]
fn keys_tell_clients_apart() {
    for (key, key_type) in [("http_x_user", "var"), ("$http_x_user$arg_none", "var_combination")] {
        let config =
            json!({"conn": 1, "burst": 0, "default_conn_delay": SHORT, "key": key, "key_type": key_type});
        let plugin = plugin("limit-conn", &config);
        let [a, b, c] = ["a", "b", "a"].map(|user| begin(&plugin, &[("x-user", user)]));
        assert_eq!([a.0, b.0, c.0], [0, 0, 503]);
        // Nothing of the key is there: the client's address.
        let [d, e] = [begin(&plugin, &[]), begin(&plugin, &[])];
        assert_eq!([d.0, e.0], [0, 503]);
    }
}

#[test]
fn numbers_may_be_templates_and_never_fail_open() {
    let of = |conn: Value, burst: Value, degrades: bool| {
        let config = json!({"conn": conn, "burst": burst, "default_conn_delay": SHORT, "key": "remote_addr",
            "allow_degradation": degrades});
        let plugin = plugin("limit-conn", &config);
        let [a, b] = [begin(&plugin, &[]), begin(&plugin, &[])];
        [a.0, b.0]
    };
    assert_eq!(of(json!("$arg_conn"), json!("${arg_burst}"), false), [0, 503]);
    for bad in ["$arg_bad", "$arg_none", "-1", "text", "9007199254740992"] {
        assert_eq!(of(json!(bad), json!(0), false), [500, 500], "{bad}");
        assert_eq!(of(json!(1), json!(bad), false), [500, 500], "{bad}");
        assert_eq!(of(json!(bad), json!(0), true), [0, 0], "{bad}");
    }
    assert_eq!(of(json!("0"), json!(0), false), [500, 500]);
}

#[test]
fn rules_apply_where_they_can_be_read() {
    let config = |degrades: bool| {
        json!({"default_conn_delay": SHORT, "allow_degradation": degrades, "rejected_code": 429, "rejected_msg": "full",
        "rules": [
            {"conn": 2, "burst": 0, "key": "user $http_x_user"},
            {"conn": "$http_x_conn", "burst": 0, "key": "tenant $http_x_tenant"},
        ]})
    };
    let plugin = plugin("limit-conn", &config(false));
    let both = [("x-user", "a"), ("x-tenant", "t"), ("x-conn", "1")];
    let (first, _one) = begin(&plugin, &both);
    let (second, refused) = begin(&plugin, &both);
    assert_eq!([first, second], [0, 429]);
    // What the first rule counted before the second refused ends with the request.
    drop(refused);
    let (third, _two) = begin(&plugin, &[("x-user", "a")]);
    assert_eq!([third, begin(&plugin, &[("x-user", "a")]).0], [0, 429]);
    // A rule whose number is wrong does not apply, and where none does that is an error.
    assert_eq!(begin(&plugin, &[("x-tenant", "t"), ("x-conn", "0")]).0, 500);
    assert_eq!(begin(&plugin, &[]).0, 500);
    let degrades = crate::testing::plugin("limit-conn", &config(true));
    assert_eq!(begin(&degrades, &[]).0, 0);
    let mut s = stream("/", &[("x-tenant", "t"), ("x-conn", "1")]);
    let reply = now(plugin.access(&mut s)).unwrap();
    assert_eq!((reply.status, &reply.body[..]), (429, &b"{\"error_msg\":\"full\"}\n"[..]));
}

#[tokio::test(start_paused = true)]
async fn those_over_the_limit_wait() {
    let config = json!({"conn": 2, "burst": 4, "default_conn_delay": 0.5, "key": "remote_addr",
        "only_use_default_delay": true});
    let plugin = plugin("limit-conn", &config);
    let begun = tokio::time::Instant::now();
    let mut running = Vec::new();
    for waited in [0, 0, 500, 1000, 2000, 3000] {
        let mut s = stream("/", &[]);
        assert!(plugin.access(&mut s).await.is_none());
        assert_eq!(begun.elapsed().as_millis(), waited);
        running.push(s);
    }
    assert_eq!(plugin.access(&mut stream("/", &[])).await.unwrap().status, 503);
}

#[test]
fn counters_live_as_long_as_their_configuration() {
    let context = context();
    // As a limiter of another resource would.
    let _kept = Counters::of(&context.shared);
    let of = |delay: f64, resource: &str| {
        let config = json!({"conn": 1, "burst": 0, "default_conn_delay": delay, "key": "remote_addr"});
        let context = BuildContext { resource: resource.into(), ..context.clone() };
        begin(&build("limit-conn", &config, &context).unwrap(), &[])
    };
    let [a, b, c, d] = [of(SHORT, "a"), of(SHORT, "a"), of(SHORT, "b"), of(SHORT / 2.0, "a")];
    assert_eq!([a.0, b.0, c.0, d.0], [0, 503, 0, 0]);
}

/// Four workers at once: the limit is the process's, to the request.
#[test]
fn four_workers_hold_exactly_the_limit() {
    let (context, passed) = (context(), AtomicUsize::new(0));
    let config = json!({"conn": 90, "burst": 10, "default_conn_delay": SHORT / 100.0, "key": "remote_addr"});
    let workers: Vec<_> = (0..4).map(|_| build("limit-conn", &config, &context).unwrap()).collect();
    let running: Vec<_> = std::thread::scope(|scope| {
        let work = |plugin| {
            let passed = &passed;
            scope.spawn(move || {
                let all: Vec<Stream> = (0..100)
                    .filter_map(|_| Some(begin(plugin, &[])).filter(|b| b.0 == 0))
                    .map(|b| b.1)
                    .collect();
                passed.fetch_add(all.len(), Relaxed);
                all
            })
        };
        let threads: Vec<_> = workers.iter().map(work).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((passed.load(Relaxed), running.len()), (100, 100));
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config| build("limit-conn", &config, &context()).err().unwrap();
    let policy = json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "a", "policy": "redis"});
    assert!(error(policy).contains("property \"redis_host\" is required"));
    let rules = json!({"default_conn_delay": 1, "rules": [{"conn": 0, "burst": 0, "key": "a"}]});
    assert!(error(rules).starts_with("rules[0].conn: 0 is not a whole number"));
    let none = error(json!({"default_conn_delay": 1, "conn": 1}));
    assert!(none.contains("are required"), "{none}");
}

#[tokio::test]
async fn gateways_share_a_limit() {
    let server = RedisServer::start(&[]);
    let config = json!({"conn": 1, "burst": 1, "default_conn_delay": SHORT, "key": "remote_addr",
        "policy": "redis", "redis_host": "127.0.0.1", "redis_port": server.port});
    let gateway = || build("limit-conn", &config, &connecting().0).unwrap();
    let begin = async |plugin: &Alone| {
        let mut s = stream("/", &[]);
        let status = plugin.access(&mut s).await.map_or(0, |reply| reply.status);
        (status, s)
    };
    let (one, other) = (gateway(), gateway());
    let (first, mut running) = begin(&one).await;
    let (second, left) = begin(&other).await;
    assert_eq!([first, second, begin(&one).await.0, begin(&other).await.0], [0, 0, 503, 503]);
    // The end of each makes room, whether it comes to its log or not.
    one.log(&mut running);
    drop(left);
    for _ in 0..2 {
        let mut tries = 0;
        let (mut status, mut s) = begin(&other).await;
        while status != 0 {
            tries += 1;
            assert!(tries < 100, "no room was made");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            (status, s) = begin(&other).await;
        }
        std::mem::forget(s);
    }
    assert_eq!(begin(&one).await.0, 503);
}

#[tokio::test]
async fn without_redis_nothing_passes_unless_that_is_wanted() {
    for (degrades, status) in [(false, 500), (true, 0)] {
        let config = json!({"conn": 1, "burst": 1, "default_conn_delay": SHORT, "key": "remote_addr",
            "allow_degradation": degrades, "policy": "redis", "redis_host": "127.0.0.1",
            "redis_port": free_port()});
        let plugin = build("limit-conn", &config, &connecting().0).unwrap();
        let reply = plugin.access(&mut stream("/", &[])).await;
        assert_eq!(reply.map_or(0, |reply| reply.status), status);
    }
}

/// Tasks that are never run, as of a Redis that answers nothing.
#[derive(Default)]
struct Unrun(parking_lot::Mutex<Vec<Task>>);

impl Background for Unrun {
    fn spawn(&self, task: Task) {
        self.0.lock().push(task);
    }
}

/// Each request that ended was a task that waited for Redis, with its key, however many there were.
#[tokio::test]
async fn ends_that_redis_is_not_told_of_are_bounded_in_bytes() {
    const KEY: usize = 16 << 10;
    let server = RedisServer::start(&[]);
    let config = json!({"conn": 1_000_000, "burst": 1, "default_conn_delay": SHORT, "key": "http_x",
        "policy": "redis", "redis_host": "127.0.0.1", "redis_port": server.port});
    let unrun = Arc::new(Unrun::default());
    let context = BuildContext { background: unrun.clone(), ..connecting().0 };
    let plugin = build("limit-conn", &config, &context).unwrap();
    let long = "k".repeat(KEY);
    let end = async |count: usize| {
        for _ in 0..count {
            let mut s = stream("/", &[("x", &long)]);
            assert!(plugin.access(&mut s).await.is_none());
        }
        unrun.0.lock().len()
    };
    let most = (8 << 20) / KEY;
    let held = end(most + 100).await;
    assert!(held > most * 8 / 10 && held <= most, "{held} of {most}");
    // There is room again for as many as Redis was told of.
    unrun.0.lock().truncate(held - 10);
    assert_eq!(end(100).await, held);
}
