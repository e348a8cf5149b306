#![allow(clippy::unwrap_used)]
use crate::shared::counters::Counters;
use crate::testing::{Alone, build, context, now, plugin, response_header, stream};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Status of an answer, 0 for none, and the quota headers.
fn ask(plugin: &Alone, headers: &[(&str, &str)]) -> (u16, [Option<String>; 3]) {
    let mut s = stream("/?n=3&w=60&bad=1.5", headers);
    let status = now(plugin.access(&mut s)).map_or(0, |r| r.status);
    now(plugin.header_filter(&mut s));
    let names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
    (status, names.map(|n| response_header(&s, n).map(str::to_owned)))
}

#[allow(clippy::needless_pass_by_value)]
fn statuses(config: Value, n: usize) -> Vec<u16> {
    let plugin = plugin("limit-count", &config);
    (0..n).map(|_| ask(&plugin, &[]).0).collect()
}

#[test]
fn requests_over_the_count_are_rejected() {
    let config = json!({"count": 2, "time_window": 60, "rejected_code": 429, "rejected_msg": "no"});
    let plugin = plugin("limit-count", &config);
    let texts = |a: &str, b: &str| [Some(a.to_owned()), Some(b.to_owned())];
    for (status, remaining) in [(0, "1"), (0, "0"), (429, "0"), (429, "0")] {
        let (got, headers) = ask(&plugin, &[]);
        assert_eq!((got, &headers[..2]), (status, &texts("2", remaining)[..]));
        assert!(headers[2].as_deref().unwrap().parse::<f64>().unwrap() <= 60.0);
    }
    let mut s = stream("/", &[]);
    let reply = now(plugin.access(&mut s)).unwrap();
    assert_eq!(reply.body, "{\"error_msg\":\"no\"}\n");
    // Its JSON was made for each request, whatever the log shows.
    assert!(format!("{:?}", s.vars).contains("uninit"), "{:?}", s.vars);
    let info: Value = serde_json::from_slice(s.var("rate_limiting_info").unwrap()).unwrap();
    assert!(info["rate_limiting_key"].as_str().unwrap().starts_with("/apisix/routes/1:"));
    assert_eq!((&info["rate_limiting_limit"], &info["rate_limiting_remaining"]), (&json!(2), &json!(0)));
}

#[test]
fn the_first_reset_is_the_window_and_headers_can_be_hidden() {
    let shown = plugin("limit-count", &json!({"count": 5, "time_window": 7}));
    assert_eq!(ask(&shown, &[]).1[2].as_deref(), Some("7"));
    let hidden = json!({"count": 1, "time_window": 7, "show_limit_quota_header": false});
    let hidden = plugin("limit-count", &hidden);
    assert_eq!(ask(&hidden, &[]), (0, [None, None, None]));
    assert_eq!(ask(&hidden, &[]), (503, [None, None, None]));
}

#[test]
fn keys_tell_clients_apart() {
    let by_header = json!({"count": 1, "time_window": 60, "key": "http_x_user"});
    let by_two =
        json!({"count": 1, "time_window": 60, "key": "$http_x_user $arg_n", "key_type": "var_combination"});
    for config in [by_header, by_two] {
        let plugin = plugin("limit-count", &config);
        let status = |user| ask(&plugin, &[("x-user", user)]).0;
        assert_eq!([status("a"), status("b"), status("a")], [0, 0, 503]);
    }
    // Nothing of the key is there: the client's address.
    let plugin = plugin("limit-count", &json!({"count": 1, "time_window": 60, "key": "http_x_user"}));
    assert_eq!([ask(&plugin, &[]).0, ask(&plugin, &[]).0], [0, 503]);
    let constant = json!({"count": 1, "time_window": 60, "key": "all", "key_type": "constant"});
    assert_eq!(statuses(constant, 2), [0, 503]);
}

#[test]
fn numbers_may_be_templates_and_never_fail_open() {
    assert_eq!(statuses(json!({"count": "$arg_n", "time_window": "${arg_w}"}), 4), [0, 0, 0, 503]);
    for bad in ["$arg_bad", "$arg_none", "0", "-1", "text", "9007199254740992"] {
        assert_eq!(statuses(json!({"count": bad, "time_window": 60}), 1), [500], "{bad}");
        assert_eq!(statuses(json!({"count": 1, "time_window": bad}), 1), [500], "{bad}");
        let degrades = json!({"count": bad, "time_window": 60, "allow_degradation": true});
        assert_eq!(statuses(degrades, 1), [0], "{bad}");
    }
}

#[test]
fn rules_apply_in_order() {
    let config = json!({"rules": [
        {"count": 2, "time_window": 60, "key": "$http_x_user"},
        {"count": 1, "time_window": 60, "key": "$http_x_tenant", "header_prefix": "Tenant"},
    ]});
    let plugin = plugin("limit-count", &config);
    let ask = |headers: &[(&str, &str)]| {
        let mut s = stream("/", headers);
        let status = now(plugin.access(&mut s)).map_or(0, |r| r.status);
        now(plugin.header_filter(&mut s));
        let get = |n: &str| response_header(&s, n).map(str::to_owned);
        (status, get("x-1-ratelimit-remaining"), get("x-tenant-ratelimit-remaining"))
    };
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(ask(&[("x-user", "a"), ("x-tenant", "t")]), (0, text("1"), text("0")));
    assert_eq!(ask(&[("x-user", "a"), ("x-tenant", "t")]), (503, text("0"), text("0")));
    assert_eq!(ask(&[("x-tenant", "u")]), (0, None, text("0")));
    assert_eq!(ask(&[]), (500, None, None));
}

#[test]
fn counters_live_as_long_as_their_configuration() {
    let (context, config) = (context(), json!({"count": 1, "time_window": 60}));
    let first = build("limit-count", &config, &context).unwrap();
    assert_eq!(ask(&first, &[]).0, 0);
    let again = build("limit-count", &config, &context).unwrap();
    assert_eq!(ask(&again, &[]).0, 503);
    let changed = build("limit-count", &json!({"count": 1, "time_window": 61}), &context).unwrap();
    assert_eq!(ask(&changed, &[]).0, 0);
    let other = sixfold_core::plugin::BuildContext { resource: "/apisix/routes/2".into(), ..context };
    assert_eq!(ask(&build("limit-count", &config, &other).unwrap(), &[]).0, 0);
}

#[test]
fn groups_share_counters_and_must_agree() {
    let context = context();
    let config = json!({"count": 1, "time_window": 60, "group": "g"});
    let one = build("limit-count", &config, &context).unwrap();
    let other = sixfold_core::plugin::BuildContext { resource: "/apisix/routes/2".into(), ..context };
    let two = build("limit-count", &config, &other).unwrap();
    assert_eq!([ask(&one, &[]).0, ask(&two, &[]).0], [0, 503]);
    // Another configuration is another group; that the resources of one agree is for the source to see.
    let differs = json!({"count": 2, "time_window": 60, "group": "g"});
    assert_eq!(ask(&build("limit-count", &differs, &other).unwrap(), &[]).0, 0);
    let complete = |count: u64| {
        let mut config = json!({"window_type": "fixed", "key": "remote_addr", "key_type": "var", "rejected_code": 503,
            "policy": "local", "allow_degradation": false, "show_limit_quota_header": true, "sync_interval": -1,
            "time_window": 60});
        config["count"] = count.into();
        config
    };
    let agreed = |count: u64, name: &str| {
        let mut config = complete(count);
        config["group"] = name.into();
        super::factory().agreement(&config)
    };
    assert_eq!(agreed(1, "g"), agreed(1, "g"));
    assert_ne!(agreed(1, "g"), agreed(2, "g"));
    assert_eq!(agreed(1, "g").unwrap().0, "g");
    assert_eq!(super::factory().agreement(&complete(1)), None);
}

/// Every resource had a store of its own, each of which could grow to gigabytes.
#[test]
fn all_limits_count_in_one_store() {
    let context = context();
    let of = |count| build("limit-count", &json!({"count": count, "time_window": 60}), &context).unwrap();
    let (_one, store) = (of(1), Arc::downgrade(&Counters::of(&context.shared)));
    let _two = of(2);
    assert!(std::ptr::eq(store.as_ptr(), Arc::as_ptr(&Counters::of(&context.shared))));
}

#[test]
fn bad_configurations_are_refused() {
    let error = |config| build("limit-count", &config, &context()).err().unwrap();
    let rule = |key: &str| json!({"count": 1, "time_window": 1, "key": key});
    for (config, reason) in [
        (json!({"count": 1, "time_window": 1, "policy": "redis"}), "property \"redis_host\" is required"),
        (
            json!({"count": 1, "time_window": 1, "policy": "redis-sentinel"}),
            "property \"redis_sentinels\" is required",
        ),
        (json!({"count": 1}), "are required"),
        (json!({"count": 1, "time_window": 1, "rules": [rule("a")]}), "cannot be specified at the same time"),
        (json!({"group": "g", "rules": [rule("a")]}), "group and rules cannot be specified"),
        (json!({"rules": [rule("a"), rule("a")]}), "duplicate key 'a' in rules"),
        (json!({"count": 0, "time_window": 1}), "0 is not a whole number"),
    ] {
        let said = error(config);
        assert!(said.contains(reason), "{said}");
    }
}

/// Four workers at once: the limit is the process's, to the request.
#[test]
fn four_workers_let_exactly_the_count_through() {
    let context = context();
    let config = json!({"count": 1000, "time_window": 600});
    let passed = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..4).map(|_| build("limit-count", &config, &context).unwrap()).collect();
    std::thread::scope(|scope| {
        for plugin in workers {
            let passed = passed.clone();
            scope.spawn(move || {
                for _ in 0..1000 {
                    if ask(&plugin, &[]).0 == 0 {
                        passed.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.load(Relaxed), 1000);
}

/// Metadata changes while the limit stays.
#[test]
fn headers_are_called_as_metadata_says() {
    let context = context();
    let plugin = build("limit-count", &json!({"count": 2, "time_window": 60}), &context).unwrap();
    let registry = crate::registry();
    let factory = registry.apisix("limit-count").unwrap().1;
    let names =
        json!({"limit_header": "X-My-Limit", "remaining_header": "X-My-Left", "reset_header": "X-My-Reset"});
    let prepared = factory.read_metadata(&names).unwrap();
    context.metadata.change("limit-count", prepared).put_in_force();
    let mut s = stream("/", &[]);
    assert!(now(plugin.access(&mut s)).is_none());
    now(plugin.header_filter(&mut s));
    assert_eq!((response_header(&s, "x-my-limit"), response_header(&s, "x-my-left")), (Some("2"), Some("1")));
    assert_eq!(response_header(&s, "x-ratelimit-limit"), None);
    context.metadata.change("limit-count", None).put_in_force();
    assert_eq!(ask(&plugin, &[]).1[1].as_deref(), Some("0"));
    assert!(
        factory
            .read_metadata(&json!({"limit_header": "a b", "remaining_header": "b", "reset_header": "c"}))
            .is_err()
    );
}

/// Rules had names of their own, whatever the metadata said.
#[test]
fn headers_of_rules_are_called_as_metadata_says_too() {
    let context = context();
    let rule = |prefix: Option<&str>| {
        let mut rule =
            json!({"count": 9, "time_window": 60, "key": format!("$http_{}", prefix.unwrap_or("a"))});
        rule["header_prefix"] = prefix.map_or(Value::Null, Value::from);
        rule.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        rule
    };
    let config = json!({"rules": [rule(None), rule(Some("u"))]});
    let plugin = build("limit-count", &config, &context).unwrap();
    let shown = |plugin: &Alone| {
        let mut s = stream("/", &[("a", "1"), ("u", "2")]);
        now(plugin.access(&mut s));
        now(plugin.header_filter(&mut s));
        let names = s.response.headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    let usual =
        ["1", "u"].map(|p| format!("X-{p}-RateLimit-Limit X-{p}-RateLimit-Remaining X-{p}-RateLimit-Reset"));
    assert_eq!(shown(&plugin), usual.join(" "));
    let texts = json!({"limit_header": "X-AI-RateLimit-Limit", "remaining_header": "Left",
        "reset_header": "X-RateLimit-RateLimit-"});
    let prepared = crate::registry().apisix("limit-count").unwrap().1.read_metadata(&texts).unwrap();
    context.metadata.change("limit-count", prepared).put_in_force();
    let told = "X-AI-1-RateLimit-Limit Left X-1-RateLimit-RateLimit- X-AI-u-RateLimit-Limit X-u-RateLimit-RateLimit-";
    assert_eq!(shown(&plugin), told);
    assert_eq!(shown(&build("limit-count", &config, &context).unwrap()), told, "one that comes later");
    let bad = json!({"rules": [rule(Some("a b"))]});
    let error = build("limit-count", &bad, &context).err().unwrap();
    assert!(error.starts_with("rules[0].header_prefix: "), "{error}");
}

#[test]
fn times_are_floored_to_a_hundredth() {
    let mut text = Vec::new();
    for (millis, said) in
        [(0, "0"), (9, "0"), (60_000, "60"), (59_999, "59.99"), (1_509, "1.5"), (1_040, "1.04")]
    {
        let time = std::time::Duration::from_millis(millis);
        assert_eq!(super::hundredths(&mut text, time), said.as_bytes());
        assert_eq!(super::seconds(time).to_string(), said);
    }
}
