#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::*;
use crate::config::AdminKey;
use crate::config::AdminRole;
use crate::resource::Kind;
use crate::store::{Key, MemoryStore, StoreExt};
use crate::testing;

const CONFIG: &str = "deployment: {role: traditional, role_traditional: {config_provider: embedded}}\n";

struct Api {
    api: AdminApi,
    key: Option<&'static str>,
}

/// What came back.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    body: String,
}

impl Api {
    fn new(extra: &str) -> Api {
        Api::of(&format!("{CONFIG}{extra}"))
    }

    fn of(text: &str) -> Api {
        let config = Config::parse(text, "config.yaml", &testing::environment()).unwrap();
        let key = AdminKey { name: "a".into(), key: "secret".into(), role: AdminRole::Admin };
        let access = AdminAccess::new(&config, config.admin.as_ref().unwrap(), Some(key));
        let (registry, environment) = (testing::registry(), testing::environment());
        let api = if config.is_standalone_api() {
            let store = Arc::new(StandaloneStore::new(testing::environment()));
            AdminApi::standalone(&config, access, store, registry, environment, Reloads::none(&config))
        } else {
            let store = Arc::new(MemoryStore::default());
            AdminApi::of_store(
                &config,
                access,
                (store, Arc::default(), Arc::default()),
                registry,
                environment,
                Reloads::none(&config),
            )
        };
        Api { api, key: Some("secret") }
    }

    fn reply(&self, method: &str, target: &str, headers: &[(&'static str, &str)], body: &str) -> AdminReply {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut all = HeaderMap::new();
        all.extend(
            self.key.map(|key| (http::HeaderName::from_static("x-api-key"), HeaderValue::from_static(key))),
        );
        for (name, value) in headers {
            all.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        self.api.answer(&AdminRequest {
            method: method.parse().unwrap(),
            path: path.to_owned(),
            parameters: pairs.map(|(name, value)| (decode(name), decode(value))).collect(),
            headers: all,
            body: Ok(body.to_owned().into()),
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        })
    }

    /// Below the prefix.
    fn ask(&self, method: &str, target: &str, body: &str) -> Got {
        let reply = self.reply(method, &format!("/apisix/admin{target}"), &[], body);
        Got { status: reply.status.as_u16(), body: String::from_utf8_lossy(&reply.body).into_owned() }
    }

    fn expect(&self, steps: &[(&str, &str, &str, u16, &str)]) {
        for (method, target, body, status, answer) in steps {
            let wanted = Got { status: *status, body: format!("{answer}\n") };
            let Got { status, body: got } = self.ask(method, target, body);
            assert_eq!(Got { status, body: timeless(&got) }, wanted, "{method} {target} {body}");
        }
    }

    fn error(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let got = self.ask(method, target, body);
        let value: Value = serde_json::from_str(&got.body).unwrap_or_default();
        (got.status, value["error_msg"].as_str().unwrap_or(&got.body).to_owned())
    }
}

fn header(reply: &AdminReply, name: &str) -> String {
    let found = reply.headers.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// Times of now as `T`.
fn timeless(text: &str) -> String {
    let mut out = text.to_owned();
    for name in ["create_time", "update_time"] {
        let mut from = 0;
        while let Some(at) = out.get(from..).and_then(|rest| rest.find(&format!("\"{name}\":"))) {
            let start = from + at + name.len() + 3;
            let end = out[start..].find([',', '}']).unwrap() + start;
            // Those that the test has written are small.
            if end - start > 8 {
                out.replace_range(start..end, "T");
            }
            from = start;
        }
    }
    out
}

const UP: &str = r#"{"nodes":{"127.0.0.1:80":1}}"#;

#[test]
fn resources_are_written_read_changed_and_deleted() {
    let stored =
        r#"{"uri":"/a","upstream":{"nodes":{"127.0.0.1:80":1}},"id":"1","create_time":T,"update_time":T}"#;
    let stored2 =
        r#"{"uri":"/b","upstream":{"nodes":{"127.0.0.1:80":1}},"id":"1","create_time":T,"update_time":T}"#;
    let put = r#"{"uri":"/a","upstream":{"nodes":{"127.0.0.1:80":1}}}"#;
    Api::new("").expect(&[
        ("GET", "/routes", "", 200, r#"{"total":0,"list":[]}"#),
        ("GET", "/routes/1", "", 404, r#"{"message":"Key not found"}"#),
        ("PUT", "/routes/1", put, 201, &format!(r#"{{"key":"/apisix/routes/1","value":{stored}}}"#)),
        ("PUT", "/routes/1", put, 200, &format!(r#"{{"key":"/apisix/routes/1","value":{stored}}}"#)),
        (
            "GET",
            "/routes/1",
            "",
            200,
            &format!(r#"{{"key":"/apisix/routes/1","value":{stored},"createdIndex":1,"modifiedIndex":2}}"#),
        ),
        ("PATCH", "/routes/1", r#"{"uri":"/b"}"#, 200, &format!(r#"{{"key":"/apisix/routes/1","value":{stored2}}}"#)),
        (
            "GET",
            "/routes",
            "",
            200,
            &format!(
                r#"{{"total":1,"list":[{{"key":"/apisix/routes/1","value":{stored2},"createdIndex":1,"modifiedIndex":3}}]}}"#
            ),
        ),
        (
            "POST",
            "/upstreams",
            UP,
            201,
            r#"{"key":"/apisix/upstreams/00000000000000000004","value":{"nodes":{"127.0.0.1:80":1},"create_time":T,"update_time":T,"id":"00000000000000000004"}}"#,
        ),
        ("DELETE", "/routes/1", "", 200, r#"{"deleted":"1","key":"/apisix/routes/1"}"#),
        ("DELETE", "/routes/1", "", 404, r#"{"message":"Key not found"}"#),
        ("PATCH", "/routes/1", "{}", 404, r#"{"message":"Key not found"}"#),
    ]);
}

#[test]
fn ids_are_in_the_path_or_the_body() {
    let api = Api::new("");
    for (method, target, body, reason) in [
        ("PUT", "/upstreams", UP, "missing upstream id"),
        ("PUT", "/upstreams/2", r#"{"id":1,"nodes":{}}"#, "wrong upstream id"),
        ("PUT", "/upstreams/1", "", "missing configurations"),
        ("POST", "/upstreams/1", UP, "wrong upstream id, do not need it"),
        ("POST", "/upstreams", r#"{"id":"1","nodes":{}}"#, "wrong upstream id, do not need it"),
        ("DELETE", "/upstreams", "", "missing upstream id"),
        ("PATCH", "/upstreams", "{}", "missing upstream id"),
        ("PATCH", "/upstreams/1", "", "missing new configuration"),
        ("PATCH", "/upstreams/1", "5", "invalid configuration"),
        ("PATCH", "/secrets/vault", "{}", "no secret id"),
        ("PUT", "/secrets/frob/1", "{}", "invalid secret manager: frob"),
        ("PUT", "/plugin_metadata", "{}", "missing plugin name"),
        ("PUT", "/plugin_metadata/frob", "{}", "invalid plugin name"),
        ("PUT", "/plugin_configs", r#"{"plugins":{}}"#, "missing plugin config id"),
        ("PUT", "/consumers/jack", r#"{"username":"john"}"#, "wrong username"),
    ] {
        assert_eq!(api.error(method, target, body), (400, reason.to_owned()), "{method} {target}");
    }
    // A number stays one.
    let got = api.ask("PUT", "/upstreams", r#"{"id":7,"nodes":{"127.0.0.1:80":1}}"#);
    assert!(got.body.contains(r#"{"key":"/apisix/upstreams/7","value":{"id":7,"#), "{got:?}");
    let got = api.ask("PUT", "/upstreams/7", r#"{"id":7,"nodes":{"127.0.0.1:80":1}}"#);
    assert!(got.body.contains(r#""value":{"id":"7""#), "{got:?}");
    // Escapes of the path are resolved.
    assert_eq!(api.ask("GET", "/upstreams/%37", "").status, 200);
}

#[test]
fn methods_and_paths_that_there_are_not() {
    let api = Api::new("");
    for (method, target) in [
        ("POST", "/consumers"),
        ("PATCH", "/consumers/jack"),
        ("POST", "/consumers/jack/credentials"),
        ("PATCH", "/plugin_metadata/x"),
        ("POST", "/plugin_configs"),
        ("POST", "/global_rules"),
        ("POST", "/consumer_groups"),
        ("POST", "/secrets/vault/1"),
        ("PATCH", "/protos/1"),
    ] {
        let (status, reason) = api.error(method, target, "{}");
        assert_eq!(status, 405, "{method} {target}: {reason}");
        assert!(reason.starts_with(&format!("not supported `{method}` method for ")), "{reason}");
    }
    assert_eq!(
        api.error("POST", "/consumers/jack/credentials", "").1,
        "not supported `POST` method for credential"
    );
    assert_eq!(api.error("GET", "/frobs/1", ""), (404, "Unsupported resource type: frobs".to_owned()));
    assert_eq!(api.error("GET", "/configs", ""), (404, "Unsupported resource type: configs".to_owned()));
    assert_eq!(api.error("PUT", "/schema/route", "{}"), (404, "not found".to_owned()));
    let stream = "stream mode is disabled, can not add stream routes";
    assert_eq!(api.error("GET", "/stream_routes", ""), (400, stream.to_owned()));
    for (method, path) in [("GET", "/apisix/admin"), ("HEAD", "/apisix/admin/routes"), ("GET", "/other")] {
        let reply = api.reply(method, path, &[], "");
        assert_eq!((reply.status.as_u16(), reply.content_type), (404, "text/html"), "{method} {path}");
    }
}

#[test]
fn who_may_ask() {
    let mut api = Api::new("");
    let text = "deployment:\n  role: traditional\n  role_traditional: {config_provider: embedded}\n  admin:\n    \
                admin_key: [{name: v, key: two, role: viewer}, {name: '', key: '', role: admin}]\n";
    let denied = |api: &Api, method: &str, target: &str, headers: &[(&'static str, &str)]| {
        let reply = api.reply(method, target, headers, "");
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        (reply.status.as_u16(), body["description"].as_str().unwrap_or_default().to_owned())
    };
    let routes = "/apisix/admin/routes";
    for text in [text, &text.replace("  admin:\n", "  admin:\n    enable_admin_cors: false\n")] {
        api = Api { key: None, ..Api::of(text) };
        assert_eq!(denied(&api, "GET", routes, &[]), (401, "missing apikey".into()));
        assert_eq!(denied(&api, "GET", routes, &[("x-api-key", "")]), (401, "wrong apikey".into()));
        assert_eq!(denied(&api, "GET", routes, &[("x-api-key", "twos")]), (401, "wrong apikey".into()));
        assert_eq!(denied(&api, "GET", routes, &[("x-api-key", "two")]).0, 200);
        assert_eq!(denied(&api, "GET", &format!("{routes}?api_key=two"), &[("x-api-key", "no")]).0, 200);
        assert_eq!(denied(&api, "GET", routes, &[("cookie", "a=b; x_api_key=two")]).0, 200);
        let viewer = denied(&api, "PUT", routes, &[("x-api-key", "two")]);
        assert_eq!(viewer, (401, "invalid method for role viewer".into()));
        // Nothing but the key is needed for these.
        assert_eq!(api.reply("HEAD", "/apisix/admin", &[], "").status, 200);
        let options = api.reply("OPTIONS", "/apisix/admin/routes/1", &[], "");
        assert_eq!(
            (options.status.as_u16(), options.content_type, options.body.len()),
            (200, "text/plain", 0)
        );
        assert_eq!(
            header(&options, "access-control-allow-methods"),
            "POST, GET, PUT, OPTIONS, DELETE, PATCH"
        );
    }
    assert!(
        !api.reply("GET", routes, &[], "")
            .headers
            .iter()
            .any(|(name, _)| name == "access-control-allow-origin")
    );
    let open = Api::of(&text.replace("  admin:\n", "  admin:\n    admin_key_required: false\n"));
    let reply = Api { key: None, ..open }.reply("GET", routes, &[], "");
    assert_eq!(reply.status, 200);
    for (name, value) in [
        ("server", "APISIX/3.18.0"),
        ("x-api-version", "v3"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "*"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(header(&reply, name), value);
    }
    let elsewhere = Api::of(&text.replace("  admin:\n", "  admin:\n    allow_admin: [10.0.0.0/8]\n"));
    let reply = elsewhere.reply("GET", routes, &[], "");
    assert_eq!((reply.status.as_u16(), reply.content_type), (403, "text/html"));
}

#[test]
fn values_are_refused_in_apisixs_words() {
    let api = Api::new("");
    for (target, body, reason) in [
        ("/routes/1", r#"{"uri":"/a","host":"a","hosts":["b"]}"#, "only one of host or hosts is allowed"),
        (
            "/routes/1",
            r#"{"uri":"/a","remote_addr":"1.1.1.1","remote_addrs":["1.1.1.1"]}"#,
            "only one of remote_addr or remote_addrs is allowed",
        ),
        (
            "/routes/1",
            r#"{"uri":1}"#,
            "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","upstream_id":"u","plugins":{"none":{}}}"#,
            "failed to fetch upstream info by upstream id [u], response code: 404",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","service_id":5}"#,
            "failed to fetch service info by service id [5], response code: 404",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","plugins":{},"plugin_config_id":"p"}"#,
            "failed to fetch plugin config info by plugin config id [p], response code: 404",
        ),
        ("/routes/1", r#"{"uri":"/a","plugins":{"none":{}}}"#, "unknown plugin [none]"),
        (
            "/routes/1",
            r#"{"uri":"/a","plugins":{"marker":{}}}"#,
            "failed to check the configuration of plugin marker err: property \"text\" is required",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","plugins":{"marker":{"text":"unbuildable"}}}"#,
            "failed to check the configuration of plugin marker err: can't be built",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","plugins":{},"create_time":1}"#,
            "the property is forbidden:  create_time",
        ),
        (
            "/routes/1",
            r#"{"uri":"/a","upstream":{"nodes":{},"update_time":1}}"#,
            "the property is forbidden:  upstream.update_time",
        ),
        ("/upstreams/1", r#"{"nodes":{"a:80":1},"type":"chash","hash_on":"header"}"#, "missing key"),
        (
            "/upstreams/1",
            r#"{"nodes":[{"host":"::1","port":80,"weight":1}]}"#,
            "invalid configuration: IPv6 address must be enclosed with '[' and ']'",
        ),
        (
            "/upstreams/1",
            r#"{"nodes":{"a:80":1},"tls":{"client_cert_id":"c"}}"#,
            "failed to fetch ssl info by ssl id [c], response code: 404",
        ),
    ] {
        assert_eq!(api.error("PUT", target, body), (400, reason.to_owned()), "{target} {body}");
    }
    let (status, reason) = api.error("PUT", "/routes/1", "{");
    assert_eq!(status, 400);
    assert!(reason.starts_with("invalid request body: "), "{reason}");
    assert!(api.ask("PUT", "/routes/1", "{").body.ends_with("\"req_body\":\"{\"}\n"));
    // What is no duration kept the resource for good.
    for (ttl, reason) in
        [("x", "should be a number"), ("nan", "should be a number"), ("1e10", "too large lease TTL")]
    {
        let told = api.error("PUT", &format!("/routes/1?ttl={ttl}"), r#"{"uri":"/a","plugins":{}}"#);
        assert_eq!(told, (400, format!("invalid argument ttl: {reason}")), "{ttl}");
    }
    let long = format!("{{\"desc\":\"{}\"}}", "x".repeat(MAX_BODY));
    let size = long.len();
    let reason =
        format!("invalid request body: request size {size} is greater than the maximum size 1572864 allowed");
    assert_eq!(api.error("PUT", "/routes/1", &long), (400, reason));
}

#[test]
fn what_is_used_is_not_deleted() {
    let api = Api::new("");
    for (target, body) in [
        ("/upstreams/1", UP),
        ("/upstreams/2", UP),
        ("/services/s", r#"{"upstream_id":1}"#),
        ("/plugin_configs/p", r#"{"plugins":{"other":{}}}"#),
        ("/routes/r", r#"{"uri":"/a","service_id":"s","plugin_config_id":"p","upstream_id":"2"}"#),
        ("/global_rules/g", r#"{"plugins":{"late":{}}}"#),
    ] {
        let got = api.ask("PUT", target, body);
        assert_eq!(got.status, 201, "{target}: {got:?}");
    }
    for (target, reason) in [
        ("/upstreams/1", "can not delete this upstream, service [s] is still using it now"),
        ("/upstreams/2", "can not delete this upstream, route [r] is still using it now"),
        ("/services/s", "can not delete this service directly, route [r] is still using it now"),
        ("/plugin_configs/p", "can not delete this plugin config, route [r] is still using it now"),
    ] {
        assert_eq!(api.error("DELETE", target, ""), (400, reason.to_owned()));
        assert_eq!(api.error("DELETE", &format!("{target}?force=TRUE"), "").0, 400);
    }
    let taken = "plugin 'late' already exists in global rule with id 'g'";
    assert_eq!(api.error("PUT", "/global_rules/h", r#"{"plugins":{"late":{}}}"#), (400, taken.to_owned()));
    assert_eq!(api.ask("PUT", "/global_rules/g", r#"{"plugins":{"late":{"x":1}}}"#).status, 200);
    assert_eq!(api.ask("DELETE", "/upstreams/2?force=true", "").status, 200);
    for target in ["/routes/r", "/services/s", "/upstreams/1", "/plugin_configs/p"] {
        assert_eq!(api.ask("DELETE", target, "").status, 200, "{target}");
    }
}

#[test]
fn parts_are_patched() {
    let api = Api::new("");
    let nodes = |api: &Api| {
        let body: Value = serde_json::from_str(&api.ask("GET", "/routes/1", "").body).unwrap();
        body["value"]["upstream"]["nodes"].clone()
    };
    api.ask(
        "PUT",
        "/routes/1",
        r#"{"uri":"/a","methods":["GET"],"upstream":{"nodes":{"127.0.0.1:80":1,"127.0.0.1:81":1}}}"#,
    );
    assert_eq!(
        api.ask("PATCH", "/routes/1", r#"{"upstream":{"nodes":{"127.0.0.1:81":null,"127.0.0.1:82":2}}}"#)
            .status,
        200
    );
    assert_eq!(nodes(&api), serde_json::json!({"127.0.0.1:80": 1, "127.0.0.1:82": 2}));
    assert_eq!(api.ask("PATCH", "/routes/1/upstream/nodes", r#"{"127.0.0.1:9":1}"#).status, 200);
    assert_eq!(nodes(&api), serde_json::json!({"127.0.0.1:9": 1}));
    assert_eq!(api.ask("PATCH", "/routes/1/methods", r#"["PUT","GET"]"#).status, 200);
    assert_eq!(api.error("PATCH", "/routes/1/uri/x", "1"), (400, "invalid sub-path: /uri".to_owned()));
    let (status, reason) = api.error("PATCH", "/routes/1/uri", "1");
    assert_eq!(status, 400);
    assert!(reason.starts_with("invalid configuration: property \"uri\""), "{reason}");
    // A time may be written, and is refreshed otherwise.
    let got = api.ask("PATCH", "/routes/1", r#"{"create_time":5,"update_time":6}"#);
    assert!(got.body.contains(r#""create_time":5,"update_time":6"#), "{got:?}");
    let got = api.ask("PATCH", "/routes/1", r#"{"desc":"d"}"#);
    assert!(timeless(&got.body).contains(r#""create_time":5,"update_time":T"#), "{got:?}");
    assert_eq!(api.error("PATCH", "/routes/1", r#"{"id":"2"}"#), (400, "wrong route id".to_owned()));
    // Paths of thousands of names took the stack of the thread, and what lay deeper than readers go was never read again.
    let deep = |names: usize, value: &str| {
        api.error("PATCH", &format!("/routes/1/plugins/other/p{names}{}", "/a".repeat(names)), value)
    };
    let too_deep = (400, "invalid sub-path: values are nested deeper than 100".to_owned());
    for (names, value) in [(30_000, "1"), (98, "1"), (96, "[[1]]")] {
        assert_eq!(deep(names, value), too_deep, "{names}");
    }
    assert_eq!(api.ask("PATCH", &format!("/routes/1/plugins/other{}", "/a".repeat(96)), "[[1]]").status, 200);
    assert_eq!(nodes(&api), serde_json::json!({"127.0.0.1:9": 1}));
}

/// A write was answered with 201 that never came into force.
#[test]
fn members_of_a_group_agree_when_they_are_written() {
    let api = Api::new("");
    let route = |count: u32, group: &str| {
        format!(r#"{{"uri":"/a","plugins":{{"agree":{{"count":{count},"group":"{group}"}}}}}}"#)
    };
    let differs =
        (400, "failed to check the configuration of plugin agree err: group conf mismatched".to_owned());
    assert_eq!(api.ask("PUT", "/routes/1", &route(1, "g")).status, 201);
    assert_eq!(api.ask("PUT", "/routes/1", &route(2, "g")).status, 200, "it is alone in its group");
    assert_eq!(api.error("PUT", "/routes/2", &route(1, "g")), differs);
    assert_eq!(api.error("POST", "/services", &route(1, "g").replace("\"uri\":\"/a\",", "")), differs);
    assert_eq!(api.ask("PUT", "/routes/2", &route(1, "other")).status, 201);
    assert_eq!(api.ask("PUT", "/routes/3", &route(2, "g")).status, 201);
    assert_eq!(api.error("PATCH", "/routes/3/plugins/agree/count", "3"), differs);
    let jack = r#"{"username":"jack","plugins":{"agree":{"count":1,"group":"g"}}}"#;
    let of_consumer = (400, format!("invalid plugins configuration: {}", differs.1));
    assert_eq!(api.error("PUT", "/consumers", jack), of_consumer);
}

#[test]
fn consumers_have_credentials_and_groups() {
    let api = Api::new("");
    let none =
        (400, "failed to fetch consumer group info by consumer group id [g], response code: 404".to_owned());
    assert_eq!(api.error("PUT", "/consumers", r#"{"username":"jack","group_id":"g"}"#), none);
    assert_eq!(api.ask("PUT", "/consumer_groups/g", r#"{"plugins":{"other":{}}}"#).status, 201);
    let jack = r#"{"username":"jack","group_id":"g","plugins":{"knock":{"word":"x"}}}"#;
    api.expect(&[
        ("GET", "/consumers/jack/credentials", "", 404, r#"{"message":"Key not found"}"#),
        (
            "PUT",
            "/consumers",
            jack,
            201,
            r#"{"key":"/apisix/consumers/jack","value":{"username":"jack","group_id":"g","plugins":{"knock":{"word":"x"}},"create_time":T,"update_time":T}}"#,
        ),
        (
            "PUT",
            "/consumers/jack/credentials/one",
            r#"{"plugins":{"knock":{"word":"y"}}}"#,
            201,
            r#"{"key":"/apisix/consumers/jack/credentials/one","value":{"plugins":{"knock":{"word":"y"}},"id":"one","create_time":T,"update_time":T}}"#,
        ),
    ]);
    assert!(
        api.ask("GET", "/consumers", "")
            .body
            .starts_with(r#"{"total":1,"list":[{"key":"/apisix/consumers/jack""#)
    );
    assert_eq!(api.ask("GET", "/consumers/jack/credentials/one", "").status, 200);
    assert_eq!(api.ask("GET", "/consumers/john/credentials/one", "").status, 404);
    for (target, body, reason) in [
        (
            "/consumers",
            r#"{"username":"a","plugins":{"knock":{}}}"#,
            "invalid plugins configuration: failed to check the configuration of plugin knock err: property \"word\" is required",
        ),
        (
            "/consumers/jack/credentials/two",
            r#"{"plugins":{"other":{}}}"#,
            "only supports auth type plugins in consumer credential",
        ),
    ] {
        assert_eq!(api.error("PUT", target, body), (400, reason.to_owned()));
    }
    let credential = r#"{"plugins":{"knock":{"word":"z"}}}"#;
    let (status, reason) = api.error("PUT", "/consumers/john/credentials/one", credential);
    assert_eq!((status, reason.as_str()), (404, "consumer not found"));
    let used = "can not delete this consumer group, consumer [jack] is still using it now";
    assert_eq!(api.error("DELETE", "/consumer_groups/g", ""), (400, used.to_owned()));
    // A consumer's credentials go with it.
    assert_eq!(api.ask("DELETE", "/consumers/jack", "").status, 200);
    assert_eq!(api.ask("GET", "/consumers/jack/credentials/one", "").status, 404);
    assert_eq!(api.ask("DELETE", "/consumer_groups/g", "").status, 200);
}

#[test]
fn lists_are_filtered_and_paged() {
    let api = Api::new("");
    for n in (1..=25).rev() {
        let body = format!(
            r#"{{"name":"route-{n}","uri":"/r{n}","labels":{{"l{}":"x"}},"plugins":{{}}{}}}"#,
            n % 2,
            if n == 3 { r#","upstream":{"nodes":{}}"# } else { "" }
        );
        assert_eq!(api.ask("PUT", &format!("/routes/{n}"), &body).status, 201);
    }
    let list = |query: &str| {
        let body: Value =
            serde_json::from_str(&api.ask("GET", &format!("/routes?{query}"), "").body).unwrap();
        let ids: Vec<String> = body["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["value"]["id"].as_str().unwrap().into())
            .collect();
        (body["total"].as_u64().unwrap(), ids)
    };
    assert_eq!(list("").0, 25);
    // By when they were made.
    assert_eq!(list("page=1&page_size=10").1[..2], ["25", "24"]);
    assert_eq!(list("page=3&page_size=10"), (25, ["5", "4", "3", "2", "1"].map(String::from).to_vec()));
    assert_eq!(list("page=4&page_size=10"), (25, Vec::new()));
    assert_eq!(list("page=-1&page_size=10").1.len(), 10);
    assert_eq!(list("page=2").1.len(), 25);
    let got = api.ask("GET", "/routes?page=1&page_size=9", "");
    assert_eq!(got, Got { status: 400, body: "page_size must be between 10 and 500".to_owned() });
    assert_eq!(list("name=route-1$"), (1, vec!["1".to_owned()]));
    assert_eq!(list("name=("), (0, Vec::new()));
    assert_eq!(list("label=l1").0, 13);
    assert_eq!(list("label=").0, 0);
    assert_eq!(list("uri=r2&label=l0").0, 4);
    assert_eq!(list("filter=upstream_id%3D1").0, 0);
    assert_eq!(list("filter=frob%3D1").0, 25);
}

#[test]
fn schemas_are_told() {
    let api = Api::new("");
    let json = |target: &str| -> Value { serde_json::from_str(&api.ask("GET", target, "").body).unwrap() };
    assert_eq!(json("/schema/route")["type"], "object");
    for name in ["upstream_hash_header_schema", "upstream_hash_vars_schema"] {
        assert_eq!(json(&format!("/schema/{name}"))["type"], "string");
    }
    assert_eq!(api.error("GET", "/schema/frob", ""), (400, "not found schema: frob".to_owned()));
    assert!(json("/schema/plugins/marker")["properties"]["_meta"].is_object());
    assert_eq!(json("/schema/plugins/marker"), json("/plugins/marker"));
    assert_eq!(api.error("GET", "/plugins/frob", ""), (404, "plugin not found in subsystem http".to_owned()));
    assert_eq!(
        api.error("GET", "/plugins/marker?subsystem=stream", ""),
        (404, "plugin not found in subsystem stream".to_owned())
    );
    assert_eq!(
        api.error("GET", "/plugins/marker?subsystem=x", ""),
        (400, "unsupported subsystem: x".to_owned())
    );
    assert_eq!(json("/plugins?all=true")["marker"]["priority"], 100);
    assert_eq!(
        json("/plugins/list?here=true"),
        serde_json::json!([
            "knock",
            "other",
            "marker",
            "late",
            "bring",
            "seal",
            "agree",
            "refuse",
            "prometheus"
        ])
    );
    let all = json("/plugins/list");
    assert_eq!((&all[0], &all[1], &all[107]), (&"real-ip".into(), &"ai".into(), &"knock".into()));
    assert_eq!(json("/plugins/list?here=false")[0], "real-ip");
    assert_eq!(api.ask("GET", "/plugins/list?subsystem=x", "").body, "invalid subsystem passed");
    assert_eq!(api.ask("PUT", "/plugins/reload", ""), Got { status: 200, body: "done".to_owned() });
    let reason = "please use PUT method to reload the plugins, GET method is not allowed.";
    assert_eq!(api.error("GET", "/plugins/reload", ""), (405, reason.to_owned()));
    assert_eq!(api.ask("POST", "/schema/validate/routes", r#"{"uri":"/a","plugins":{}}"#).status, 200);
    let (status, reason) = api.error("POST", "/schema/validate/routes", r#"{"uri":1}"#);
    assert_eq!((status, reason.starts_with("property \"uri\"")), (400, true), "{reason}");
    assert_eq!(api.error("POST", "/schema/validate/frobs", "{}").0, 404);
}

#[test]
fn whole_configurations_are_looked_at() {
    let api = Api::new("");
    let ok = r#"{"routes":[{"id":"a","uri":"/a","plugins":{}}],"upstreams":[{"id":1,"nodes":{}}]}"#;
    assert_eq!(api.ask("POST", "/configs/validate", ok), Got { status: 200, body: "{}\n".to_owned() });
    let wrong =
        r#"{"routes":[{"id":"a","uri":"/a","plugins":{}},{"id":"a","uri":1}],"upstreams_conf_version":"x"}"#;
    let body: Value = serde_json::from_str(&api.ask("POST", "/configs/validate", wrong).body).unwrap();
    assert_eq!(body["error_msg"], "Configuration validation failed");
    assert_eq!(
        body["errors"],
        serde_json::json!([
            {"resource_type": "routes", "resource_id": "a", "index": 1, "error": "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number"},
            {"resource_type": "routes", "resource_id": "a", "index": 1, "error": "found duplicate id a in routes"},
            {"resource_type": "upstreams", "error": "upstreams_conf_version must be a number, got string"},
        ])
    );
    let empty = "invalid request body: empty request body";
    assert_eq!(api.error("POST", "/configs/validate", ""), (400, empty.to_owned()));
}

#[test]
fn a_configuration_is_put_as_a_whole() {
    let api = Api::of("deployment: {role: traditional, role_traditional: {config_provider: yaml}}\n");
    let put = |digest: &str, body: &str| {
        let headers: &[(&'static str, &str)] = if digest.is_empty() { &[] } else { &[("x-digest", digest)] };
        let reply = api.reply("PUT", "/apisix/admin/configs", headers, body);
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        (reply.status.as_u16(), body["error_msg"].as_str().unwrap_or_default().to_owned())
    };
    let get = |headers: &[(&'static str, &str)]| api.reply("GET", "/apisix/admin/configs", headers, "");
    let json = || -> Value { serde_json::from_slice(&get(&[]).body).unwrap() };
    assert_eq!((json()["routes_conf_version"].as_u64(), json().as_object().unwrap().len()), (Some(0), 13));
    assert!(!get(&[]).headers.iter().any(|(name, _)| name == "x-digest"));
    let route = |uri: &str, version: &str| {
        format!(r#"{{"routes":[{{"id":"a","uri":"{uri}","plugins":{{}},"modifiedIndex":3}}]{version}}}"#)
    };
    assert_eq!(put("", &route("/a", "")), (400, "missing digest header".into()));
    assert_eq!(put("1", &route("/a", "")), (202, String::new()));
    assert_eq!(put("1", &route("/b", "")), (204, String::new()));
    assert_eq!(header(&get(&[]), "x-digest"), "1");
    assert_eq!((&json()["routes_conf_version"], &json()["routes"][0]["uri"]), (&1.into(), &"/a".into()));
    assert_eq!(put("2", &route("/b", r#","routes_conf_version":10"#)), (202, String::new()));
    let old = "routes_conf_version must be greater than or equal to (10)";
    assert_eq!(put("3", &route("/c", r#","routes_conf_version":9"#)), (400, old.into()));
    // The same version keeps what was there.
    assert_eq!(put("3", &route("/c", r#","routes_conf_version":10"#)), (202, String::new()));
    assert_eq!(json()["routes"][0]["uri"], "/b");
    assert_eq!(
        put("4", r#"{"routes_conf_version":"x"}"#),
        (400, "routes_conf_version must be a number".into())
    );
    let yaml = api.reply(
        "PUT",
        "/apisix/admin/configs",
        &[("x-digest", "5"), ("content-type", "application/yaml")],
        "routes:\n- {id: y, uri: /y, plugins: {}, vars: [[a, '==', b]]}\n",
    );
    assert_eq!(yaml.status, 202);
    let yaml = get(&[("accept", "application/yaml")]);
    assert_eq!(yaml.content_type, "application/yaml");
    let text = String::from_utf8(yaml.body.to_vec()).unwrap();
    let read =
        sixfold_core::document::Node::parse(&text, &sixfold_core::document::Options::default()).unwrap();
    assert_eq!(read.to_json(), json());
    assert_eq!(put("6", "{}"), (202, String::new()));
    assert!(json().get("routes").is_none());
    assert_eq!(api.reply("GET", "/apisix/admin/routes", &[], "").status, 404);
    let head = api.reply("HEAD", "/apisix/admin/configs", &[], "");
    assert_eq!((head.status.as_u16(), header(&head, "x-digest")), (200, "6".to_owned()));
    let validate = api.reply("POST", "/apisix/admin/configs/validate", &[], "{}");
    assert_eq!(validate.status, 200);
}

/// A lease of etcd ends a consumer by itself, and others may have left such, too.
#[test]
fn a_consumer_that_is_made_begins_without_credentials_that_were_left() {
    let api = Api::new("");
    let Content::Store(store, _) = &api.api.content else { panic!("it has none") };
    let left = Key::of_credential("ann", "left");
    store.put(&left, r#"{"plugins": {}}"#.into()).unwrap();
    assert_eq!(api.ask("PUT", "/consumers", r#"{"username": "ann"}"#).status, 201);
    assert_eq!(store.get(&left), Ok(None));
    let credential = r#"{"plugins": {"knock": {"word": "a"}}}"#;
    assert_eq!(api.ask("PUT", "/consumers/ann/credentials/one", credential).status, 201);
    // One that is there keeps its own.
    assert_eq!(api.ask("PUT", "/consumers", r#"{"username": "ann", "desc": "x"}"#).status, 200);
    assert_eq!(api.ask("GET", "/consumers/ann/credentials/one", "").status, 200);
    assert_eq!(api.ask("DELETE", "/consumers/ann", "").status, 200);
    assert_eq!(store.list(Kind::Credential), Ok(Vec::new()));
    assert_eq!(api.ask("PUT", "/consumers/ann/credentials/one", credential).status, 404);
}

#[test]
fn what_plugins_name_and_private_keys_are_kept_encrypted() {
    let api = Api::new("");
    let route = r#"{"uri": "/a", "plugins": {"seal": {"secret": "bar", "other": "bar"}}}"#;
    let of = |got: Got| -> Value { serde_json::from_str(&got.body).unwrap() };
    let sealed = Value::from("+kOEVUuRc5rC5ZwvvAMLwg==");
    for (method, body) in [("PUT", route), ("PATCH", r#"{"desc": "x"}"#)] {
        let answer = of(api.ask(method, "/routes/1", body));
        assert_eq!(answer["value"]["plugins"]["seal"]["secret"], sealed, "{method}");
        assert_eq!(answer["value"]["plugins"]["seal"]["other"], "bar");
    }
    assert_eq!(of(api.ask("GET", "/routes/1", ""))["value"]["plugins"]["seal"]["secret"], "bar");
    assert_eq!(of(api.ask("GET", "/routes", ""))["list"][0]["value"]["plugins"]["seal"]["secret"], "bar");
    let upstream = json!({"nodes": {"127.0.0.1:80": 1}, "scheme": "https"});
    let (cert, key) = testing::certificate(&["a.b"]);
    let mut with_key = upstream;
    with_key["tls"] = json!({"client_cert": cert, "client_key": key});
    // White space before a key kept it in the clear.
    for (target, value) in [
        ("/ssls/9", json!({"sni": "a.b", "cert": cert, "key": format!("\n{key}")})),
        (
            "/routes/9",
            json!({"uri": "/9", "upstream": {"nodes": {"127.0.0.1:80": 1}, "scheme": "https",
            "tls": {"client_cert": cert, "client_key": format!("\n{key}")}}}),
        ),
    ] {
        let put = api.ask("PUT", target, &value.to_string());
        assert!(
            put.status == 201 && put.body.contains("key\":\"") && !put.body.contains("PRIVATE"),
            "{}",
            put.body
        );
        assert!(!api.ask("GET", target, "").body.contains("PRIVATE"), "{target}");
    }
    let answer = of(api.ask("PUT", "/upstreams/1", &with_key.to_string()));
    let kept = answer["value"]["tls"]["client_key"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    assert!(!kept.contains("BEGIN"));
    // Nobody is shown it in the clear later on.
    for (target, at) in [("/upstreams/1", "/value"), ("/upstreams", "/list/0/value")] {
        let shown = of(api.ask("GET", target, ""));
        assert_eq!(shown.pointer(&format!("{at}/tls/client_key")), Some(&kept.clone().into()), "{target}");
    }
    assert_eq!(of(api.ask("PATCH", "/upstreams/1", r#"{"desc": "x"}"#))["value"]["tls"]["client_key"], *kept);
    // The variable may be set where the certificate is shown; this gateway leaves it out meanwhile.
    let elsewhere = json!({"sni": "a.b", "cert": "$ENV://CERT", "key": "$env://KEY"});
    assert_eq!(api.ask("PUT", "/ssls/2", &elsewhere.to_string()).status, 201);
    // Who writes an ssl is told the key as it is kept, who reads it none.
    let ssl = json!({"sni": "a.b", "cert": cert, "key": key, "certs": [cert], "keys": ["$env://KEY"]});
    for (method, body) in [("PUT", ssl.clone()), ("PATCH", json!({"sni": "b.b"}))] {
        let value = of(api.ask(method, "/ssls/1", &body.to_string()))["value"].take();
        assert!(value["key"].as_str().is_some_and(|key| !key.contains("BEGIN")), "{method} {value}");
        assert_eq!(value["keys"], json!(["$env://KEY"]));
    }
    assert!(of(api.ask("GET", "/ssls/1", ""))["value"].get("key").is_none());
    // As it was read from the store of another gateway.
    with_key["tls"]["client_key"] = kept.into();
    assert_eq!(api.ask("PUT", "/upstreams/1", &with_key.to_string()).status, 200);
    let off = Api::new("apisix: {data_encryption: {enable_encrypt_fields: false}}\n");
    let answer = of(off.ask("PUT", "/routes/1", route));
    assert_eq!(answer["value"]["plugins"]["seal"]["secret"], "bar");
    let bare = Api::new("apisix: {data_encryption: {keyring: []}}\n");
    let answer = of(bare.ask("PUT", "/ssls/1", &ssl.to_string()));
    assert!(answer["value"].get("key").is_none() && answer["value"].get("keys").is_some(), "{answer}");
}
