//! Variables of nginx and APISIX.

use super::*;
use crate::format::{find_in_body, noticing_bodies};

#[test]
fn apisix_variables() {
    let mut s = stream();
    s.captures.push(("name".into(), b"jack".to_vec()));
    for (template, text) in [
        ("$host-$http_host-${request_method}", "oracle.test-Oracle.test:81-GET"),
        ("$document_uri|$request_uri|$args|$is_args", "/p/q|/p/q?q=1&r=a%20b&flag|q=1&r=a%20b&flag|?"),
        ("$arg_q $arg_r $arg_flag [$arg_none]", "1 a b true []"),
        ("$cookie_sid $cookie_theme [$cookie_none]", "42 \"dark\" []"),
        ("$http_x_a $sent_http_x_r $uri_param_name", "abc r jack"),
        (
            "$remote_addr $remote_port $realip_remote_addr $proxy_protocol_addr",
            "1.2.3.4 5678 10.0.0.1 10.0.0.9",
        ),
        ("$server_addr:$server_port $scheme[$https] $server_protocol", "127.0.0.1:80 http[] HTTP/1.1"),
        ("$request", "GET /p/q?q=1&r=a%20b&flag HTTP/1.1"),
        ("$status $body_bytes_sent $request_time", "200 1234 0.012"),
        (
            "$upstream_addr|$upstream_status|$upstream_response_time|$upstream_connect_time",
            "127.0.0.1:9000, 127.0.0.1:9000|502, 200|-, 0.006|0.000, 0.000",
        ),
        ("$balancer_ip $balancer_port", "127.0.0.1 9000"),
        ("$upstream_scheme://$upstream_host$upstream_uri", "http://Oracle.test:81"),
        ("${none ?? fallback} ${host ?? fallback} ${ host }", "fallback oracle.test oracle.test"),
        ("\\$host $ 5$ ${bad name} ${host", "\\$host $ 5$  ${host"),
        ("$proxy_add_x_forwarded_for", "1.2.3.4"),
        ("$consumer_name", ""),
    ] {
        assert_eq!(value(template, &s), text, "{template}");
    }
    s.set_var("consumer_name", "jack");
    s.set_var("host", "assigned");
    assert_eq!(value("$consumer_name $host", &s), "jack assigned");
    assert_eq!(value("$request_id", &s).len(), 32);
    assert_eq!(value("$apisix_request_id", &s), value("$request_id", &s));
    s.set_var("upstream_uri", "/rewritten?a=1");
    s.set_var("apisix_request_id", "chosen");
    assert_eq!(value("$upstream_uri $apisix_request_id", &s), "/rewritten?a=1 chosen");
    let mut config = ClusterConfig::named("c");
    (config.protocol, config.scheme) = (UpstreamProtocol::Http2, Scheme::Https);
    s.upstream.cluster = Some(cluster(config));
    assert_eq!(value("$upstream_scheme", &s), "grpcs");
    let mut out = Vec::new();
    assert_eq!(Format::apisix("$host $none $arg_q x").unwrap().resolve_count(&s, &mut out), 2);
    let mut out = Vec::new();
    let captures = Format::apisix("/$1/${2}/$3").unwrap();
    assert_eq!(captures.resolve_captures(&s, &[None, Some(b"a"), Some(b"b")], &mut out), 2);
    assert_eq!(out, b"/a/b/");
}

/// They became U+FFFD, so that two values could not be told apart.
#[test]
fn bytes_that_are_no_utf8_keep_their_number_in_json() {
    let mut s = stream();
    let value = json!({"a": "%REQ(b)%"});
    let format = Format::json(&value, JsonOptions::default()).unwrap();
    for (sent, shown) in [(&b"\xff\xc3\xa9a\""[..], "\\u00ff\\u00c3\\u00a9a\\\""), (&b"\xc3\xa9"[..], "é")] {
        s.request.headers.set("b", sent);
        let mut out = Vec::new();
        format.write_log(&s, &mut out);
        assert_eq!(String::from_utf8(out).unwrap().trim(), format!("{{\"a\":\"{shown}\"}}"));
    }
}

/// What nginx's logs show of the request as it came, and that was gone or another's: decoded arguments, cookies of one
/// spelling, no user, no number, the line as plugins had left it.
#[test]
fn nginx_logs_show_the_request_as_it_came() {
    let mut s = stream();
    s.request.headers.push(b"Authorization", b"bAsIc  dXNlcjpwYXNz");
    s.request.headers.push(b"Cookie", b"K=1; a=1, k=5 x;p =  q");
    s.request.target = Target::new(b"/p?xa=0&A=1%202&a=3&b");
    s.request.ordinal = 7;
    let sent = s.request.sent.get_or_insert_default();
    sent.method = Some(http::Method::PUT);
    sent.withheld.push(b"Upgrade", b"h2c");
    s.response.chunked = true;
    (s.bytes.head_end, s.bytes.traffic.sent) = (100, 112);
    s.upstream.server = b"up/1".to_vec();
    let log = |format: &str, s: &Stream| {
        let mut out = Vec::new();
        Format::nginx_log(format).unwrap().write_log(s, &mut out);
        String::from_utf8(out).unwrap()
    };
    for (format, text) in [
        ("$request", "PUT /p?xa=0&A=1%202&a=3&b HTTP/1.1"),
        ("$arg_a $arg_xa $arg_b $arg_none", "1%202 0 - -"),
        ("$cookie_k $cookie_sid $cookie_p $cookie_none", "1 42 q -"),
        ("$remote_user $connection_requests $http_upgrade", "user 7 h2c"),
        ("$body_bytes_sent $sent_http_transfer_encoding $upstream_http_server", "12 chunked up/1"),
    ] {
        assert_eq!(log(format, &s), text, "{format}");
    }
    s.request.headers.remove(Known::COOKIE);
    s.request.headers.push(b"Cookie", b"a=1, k=5;z");
    assert_eq!(log("$cookie_k", &s), "5");
    s.request.target = Target::new(b"/a?");
    s.request.sent.get_or_insert_default().target = b"http://h/a?".to_vec();
    assert_eq!(log("[$is_args] $args $request", &s), "[] - PUT http://h/a? HTTP/1.1");
    s.request.target = Target::new(b"/new?k=1");
    s.set_var(crate::stream::SENT_ARGS, "");
    assert_eq!(log("[$is_args] $args $arg_k", &s), "[] - -");
    s.set_var("uri", "/decoded path");
    assert_eq!(log("$document_uri", &s), "/decoded path");
    s.response.headers.push(b"Set-Cookie", b"Sid = 7; Path=/");
    s.source = crate::stream::ResponseSource::Upstream;
    assert_eq!(log("$upstream_cookie_sid $upstream_cookie_si", &s), "7 -");
    s.request.headers.set(Known::X_FORWARDED_FOR, b"9.9.9.9, 1.2.3.4");
    s.upstream.is_told_of_client = true;
    assert_eq!(log("$proxy_add_x_forwarded_for", &s), "9.9.9.9, 1.2.3.4");
}

#[test]
fn variables_of_bodies_and_graphql() {
    let mut s = stream();
    let mut with = |kind: &str, body: &str, template: &str| {
        s.request.method = http::Method::POST;
        s.request.headers.set("content-type", kind.as_bytes());
        s.request_body = Some(Bytes::from(body.to_owned()));
        value(template, &s)
    };
    let form = "application/x-www-form-urlencoded";
    assert_eq!(with(form, "a=1&b=x+y%21", "$post_arg_a $post_arg_b [$post_arg_c]"), "1 x y! []");
    assert_eq!(with("application/json", "{\"a\":1}", "[$post_arg_a]$post_arg.a"), "[]1");
    let json = "{\"a\":{\"b\":[{\"c\":\"x\"},{\"c\":2}]}}";
    assert_eq!(with("application/json", json, "$post_arg.a.b"), "[{\"c\":\"x\"},{\"c\":2}]");
    let multipart = "--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\nv1\r\n--B--\r\n";
    assert_eq!(with("multipart/form-data; boundary=B", multipart, "$post_arg.f"), "v1");
    // As people write them.
    let bare = "--B\nContent-Disposition: form-data; name=\"f\"\n\nv1\r\n\r\nv2\n--B--\n";
    assert_eq!(with("multipart/form-data; boundary=B", bare, "$post_arg.f"), "v1\r\n\r\nv2");
    let get = |path: &str, s: &Stream| {
        Variable::parse(path).get(s).map(|v| String::from_utf8(v.into_owned()).unwrap())
    };
    s.request.headers.set("content-type", b"application/json");
    s.request_body = Some(Bytes::from(json));
    assert_eq!(get("post_arg.a.b[*].c", &s).as_deref(), Some("[\"x\",2]"));
    assert_eq!(get("post_arg.$..c", &s).as_deref(), Some("[\"x\",2]"));
    assert_eq!(get("post_arg.a.b[0].c", &s).as_deref(), Some("[\"x\"]"));
    assert_eq!(get("post_arg.nope.x", &s), None);
    let query = "# c\nquery getUser($id: ID = \"}\") @live { owner: user(id: $id) { name } posts ...F } fragment F on X { y }";
    s.request_body = Some(Bytes::from(json!({ "query": query }).to_string()));
    assert_eq!(
        value("$graphql_operation $graphql_name $graphql_root_fields", &s),
        "query getUser [\"user\",\"posts\"]"
    );
    s.request_body = Some(Bytes::from_static(b"nonsense"));
    assert_eq!(get("graphql_name", &s), None);
    assert_eq!(get("graphql_x", &s), None);
}

/// A document of 64 MiB would take more than a gigabyte.
#[tokio::test]
async fn large_bodies_are_not_held_as_documents() {
    let mut s = stream();
    let search = async |s: &mut Stream, names: &[&str]| {
        let made = || names.iter().map(|name| Variable::parse(name)).collect::<Vec<_>>();
        let (_, of_body) = noticing_bodies(made);
        s.body_values = None;
        find_in_body(&of_body, s).await;
    };
    let get = |path: &str, s: &Stream| Variable::parse(path).get(s).map(|v| v.len());
    s.request.headers.set("content-type", b"application/json");
    let large = format!("{{\"zeros\":[{}0],\"model\":\"large\"}}", "0,".repeat(300 << 10));
    s.request_body = Some(Bytes::from(large));
    search(&mut s, &["post_arg.model", "post_arg.nope", "post_arg.zeros", "post_arg.zeros[*]"]).await;
    assert_eq!(value("$post_arg.model $post_arg.nope", &s), "large ");
    assert_eq!((get("post_arg.zeros", &s), get("post_arg.zeros[*]", &s)), (None, None));
    s.request.headers.set("content-type", b"application/x-www-form-urlencoded");
    s.request_body = Some(Bytes::from(format!("{}model=large", "a=1&".repeat(300 << 10))));
    search(&mut s, &["post_arg.model", "post_arg.a"]).await;
    assert_eq!(value("$post_arg.model $post_arg.a", &s), "large 1");
    s.request.headers.set("content-type", b"multipart/form-data; boundary=B");
    let part = |name: &str| format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\nv\r\n");
    s.request_body = Some(Bytes::from(format!("{}{}--B--", part("a").repeat(270 << 10), part("model"))));
    search(&mut s, &["post_arg.model"]).await;
    assert_eq!(value("$post_arg.model", &s), "v");
    // One that is long and of few values is held.
    s.request.headers.set("content-type", b"application/json");
    s.request_body = Some(Bytes::from(format!("{{\"a\":[\"{}\"]}}", ",".repeat(300 << 10))));
    search(&mut s, &["post_arg.a"]).await;
    assert_eq!(get("post_arg.a", &s), Some((300 << 10) + 4));
}

/// A line that has five fields of a body has read it once.
#[test]
fn a_template_reads_a_body_once() {
    let mut s = stream();
    s.request.headers.set("content-type", b"application/json");
    s.request_body = Some(Bytes::from_static(b"{\"a\":1,\"b\":2}"));
    let once = crate::lookup::forgotten();
    assert_eq!(value("$post_arg.a $post_arg.b", &s), "1 2");
    assert_eq!(crate::lookup::forgotten() - once, 1);
    let apisix = JsonOptions { dialect: Dialect::Apisix, ..JsonOptions::default() };
    let json = Format::json(&json!({"a": "$post_arg.a", "l": ["$post_arg.b"]}), apisix).unwrap();
    let mut out = Vec::new();
    assert!(json.write_json(&s, &mut out));
    assert_eq!((crate::lookup::forgotten() - once, out), (2, b"{\"a\":\"1\",\"l\":[\"2\"]}".to_vec()));
}

/// Variables of bodies were nothing while a route was looked for, for nobody had read the body.
#[test]
fn who_looks_for_a_route_is_told_that_the_body_is_wanted() {
    let mut s = stream();
    s.request.method = http::Method::POST;
    s.request.headers.set("content-type", b"application/json; charset=utf-8");
    s.timing.request_complete = None;
    let variable = Variable::parse("post_arg.model");
    crate::lookup::take_wanted_body();
    assert_eq!(variable.get(&s), None);
    assert_eq!(crate::lookup::take_wanted_body(), Some(64 << 20));
    s.request.headers.set("content-length", b"99999999999");
    assert_eq!((variable.get(&s), crate::lookup::take_wanted_body()), (None, None), "it is too long");
    s.request.headers.set("content-length", b"17");
    s.request_body = Some(Bytes::from_static(b"{\"model\":\"large\"}"));
    let _once = crate::lookup::Lookup::begin();
    assert_eq!(variable.get(&s).as_deref(), Some(&b"large"[..]));
    // It is read once for all.
    s.request_body = Some(Bytes::from_static(b"{\"model\":\"small\"}"));
    assert_eq!(variable.get(&s).as_deref(), Some(&b"large"[..]));
    assert_eq!(crate::lookup::take_wanted_body(), None);
    s.request_body = None;
    s.timing.request_complete = Some(s.timing.start);
    assert_eq!((Variable::parse("graphql_name").get(&s), crate::lookup::take_wanted_body()), (None, None));
}

/// The page names what there is, and nothing else; names behind a prefix stand for many.
#[test]
fn the_page_of_variables_names_them_all() {
    let page = include_str!("../../../../../docs/reference/variables.md");
    let rows = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let named: Vec<&str> = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let prefixes: Vec<&str> = named.iter().filter_map(|name| name.strip_suffix("NAME")).collect();
    let is_there =
        |name: &&str| named.contains(name) || prefixes.iter().any(|prefix| name.starts_with(prefix));
    let missing: Vec<_> = crate::format::nginx::names().filter(|name| !is_there(name)).collect();
    assert!(named.len() > 80 && missing.is_empty(), "docs/reference/variables.md lacks {missing:?}");
    let is_known = |name: &&&str| {
        use crate::format::nginx::{declared, find};
        let of_many = name.ends_with("NAME") || name.ends_with(".PATH");
        // Plugins that authenticate say who the consumer is, and whoever passes bytes on how a stream has ended.
        let told = name.starts_with("consumer_") || ["document_uri", "stream_session_reason"].contains(name);
        let is_read =
            find(name).is_some() || declared(name).is_some() || Variable::parse(name).of_body().is_some();
        of_many || told || is_read
    };
    let unknown: Vec<_> = named.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "nobody knows {unknown:?}");
}

/// Long ones were searched by the worker.
#[tokio::test]
async fn long_bodies_are_searched_beside_the_worker_for_what_was_wanted() {
    let filler = "y".repeat(100 << 10);
    let json = format!(r#"{{"f":"{filler}","a":{{"b":[1,{{"c":"x"}}]}},"n":7}}"#);
    let form = format!("f={filler}&a=1&a=2&b=%20");
    let graphql = format!("query last {{ {filler} }}");
    let names = [
        "post_arg.a.b[*]",
        "post_arg.n",
        "post_arg.a",
        "post_arg.none",
        "post_arg_a",
        "post_arg_b",
        "graphql_name",
    ];
    for (kind, body, values) in [
        ("application/json", &json, [r#"[1,{"c":"x"}]"#, "7", r#"{"b":[1,{"c":"x"}]}"#, "-", "-", "-", "-"]),
        ("application/x-www-form-urlencoded", &form, ["-", "-", "1", "-", "1", " ", "-"]),
        ("text/plain", &graphql, ["-", "-", "-", "-", "-", "-", "last"]),
    ] {
        let mut s = stream();
        s.request.headers.set("content-type", kind.as_bytes());
        s.request.method = http::Method::POST;
        s.request_body = Some(body.clone().into());
        let (variables, of_body) = noticing_bodies(|| names.map(Variable::parse));
        assert_eq!(of_body.len(), names.len());
        let get = |s: &crate::stream::Stream| {
            variables.each_ref().map(|variable| match variable.get(s) {
                Some(value) => String::from_utf8_lossy(&value).into_owned(),
                None => "-".to_owned(),
            })
        };
        assert_eq!(get(&s), ["-"; 7], "nothing is searched here");
        // Whoever looks for a route is told what to search for.
        let wanted = {
            let _lookup = crate::lookup::Lookup::begin();
            crate::lookup::take_wants();
            get(&s);
            crate::lookup::take_wants().unwrap().values
        };
        find_in_body(&wanted, &mut s).await;
        assert_eq!(get(&s), values, "{kind}");
        let _lookup = crate::lookup::Lookup::begin();
        get(&s);
        assert!(crate::lookup::take_wants().is_none(), "all is known");
    }
}
