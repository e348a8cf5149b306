#![allow(clippy::unwrap_used)]
use super::*;
use crate::draw::Drawn;
use crate::format::Format;
use crate::header_ops::{AppendAction, HeaderAddition};
use crate::headers::HeaderName;
use crate::matcher::HeaderTarget;
use crate::route::{Action, ClusterChoice, ForwardOptions, fixture};
use crate::router::{HostRoutes, RouteTable, TableOptions, Template, VirtualHostOptions, parse_rewrite};
use crate::stream::fixture::stream;

/// Rewrites `target` and answers the new target with `x-envoy-original-path`.
fn path(matched: PathMatch, rewrite: &PathRewrite, target: &str) -> (String, String) {
    let mut s = stream(target, &[("x-envoy-original-path", "/spoof")]);
    if let PathMatch::Template(_) = matched {
        let route = Arc::new(fixture::route(matched));
        let host = HostRoutes::new("v", VirtualHostOptions::default(), vec![route.clone()]);
        let table =
            RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
        s.route = table.find(&mut s).unwrap().route;
        rewrite_path(&route.path, rewrite, true, &mut s);
    } else {
        rewrite_path(&matched, rewrite, true, &mut s);
    }
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    (text(s.request.target.full()), text(s.request.headers.get(Known::X_ENVOY_ORIGINAL_PATH).unwrap()))
}

#[test]
fn prefixes_are_replaced_byte_for_byte() {
    let prefix = |p: &str| PathMatch::Prefix(p.as_bytes().into(), false);
    let seg = |p: &str| PathMatch::SeparatedPrefix(p.as_bytes().into(), false);
    for (matched, to, from, want) in [
        (prefix("/old"), "/new", "/old/x", "/new/x"),
        (prefix("/old"), "/new", "/oldest", "/newest"),
        (prefix("/old"), "/new", "/old?q=1", "/new?q=1"),
        (prefix("/strip"), "/", "/strip/me", "//me"),
        (prefix("/strip"), "/", "/stripx", "/x"),
        (prefix("/dir/"), "/", "/dir/x", "/x"),
        (PathMatch::Exact(b"/exact"[..].into(), false), "/other", "/exact?z", "/other?z"),
        (seg("/seg"), "/s", "/seg/t", "/s/t"),
        (PathMatch::Prefix(b"/CI"[..].into(), true), "/x", "/ci/y", "/x/y"),
        (PathMatch::Regex(Regex::full("/re/.*").unwrap().into()), "/all", "/re/abc?d=e", "/all?d=e"),
        (prefix("/q"), "/p?a=1&", "/q/x?y=z", "/p?a=1&/x?y=z"),
    ] {
        let rewrite = PathRewrite::Prefix(to.as_bytes().into());
        assert_eq!(path(matched, &rewrite, from), (want.to_owned(), from.to_owned()));
    }
}

#[test]
fn regexes_templates_and_formats_rewrite_the_path() {
    let any = || PathMatch::Prefix(b"/"[..].into(), false);
    let regex = |r: &str, to: &str| {
        let regex = Regex::search(r).unwrap();
        let rewrite = Rewrite::new(to, regex.groups()).unwrap();
        PathRewrite::Regex(regex, rewrite)
    };
    let service = regex("^/service/([^/]+)(/.*)$", r"\2/instance/\1");
    let target = "/service/foo/v1/api?q=/service/x";
    assert_eq!(path(any(), &service, target).0, "/v1/api/instance/foo?q=/service/x");
    let none = path(any(), &service, "/service/none");
    assert_eq!(none, ("/service/none".to_owned(), "/service/none".to_owned()));
    assert_eq!(path(any(), &regex("one", "two"), "/one/one?one").0, "/two/two?one");
    assert_eq!(path(any(), &regex("(?i)/xxx/", "/yyy/"), "/two/XxX/b").0, "/two/yyy/b");
    assert_eq!(path(any(), &regex("^/zero$", r"/\0\0"), "/zero").0, "//zero/zero");
    let template = Template::parse("/bar/{country}/{lang}").unwrap();
    let rewrite = PathRewrite::Template(parse_rewrite("/{lang}/x/{country}", &template).unwrap());
    assert_eq!(path(PathMatch::Template(template.into()), &rewrite, "/bar/en/us?q=1").0, "/us/x/en?q=1");
    let format = PathRewrite::Format(Format::envoy("/f/%REQ(x-none)%%REQ(:method)%").unwrap());
    assert_eq!(path(any(), &format, "/a?b").0, "/f/GET?b");
}

fn host(rewrite: HostRewrite, append: bool, headers: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
    let mut s = stream("/service/x?y", headers);
    s.request.authority = b"old.host".to_vec();
    let forward = fixture::forward(ForwardOptions {
        host_rewrite: Some(rewrite.into()),
        append_x_forwarded_host: append,
        ..ForwardOptions::default()
    });
    rewrite_host(&forward, true, &mut s);
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    (text(&s.request.authority), s.request.headers.iter().map(|(n, v)| (text(n), text(v))).collect())
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn hosts_are_rewritten_and_the_old_one_announced() {
    let literal = |h: &str| HostRewrite::Literal(h.as_bytes().into());
    let original = || pair("x-envoy-original-host", "old.host");
    assert_eq!(host(literal("new.host"), false, &[]), ("new.host".to_owned(), vec![original()]));
    for (sent, want) in
        [(None, "old.host"), (Some("first.host"), "first.host,old.host"), (Some("old.host"), "old.host")]
    {
        let headers: Vec<_> = sent.iter().map(|v| ("x-forwarded-host", *v)).collect();
        let got = host(literal("old.host"), true, &headers).1;
        assert_eq!(got, [pair("x-forwarded-host", want), original()]);
    }
    let header = || HostRewrite::Header(HeaderTarget::of_request("x-new-host"));
    assert_eq!(host(header(), false, &[]), ("old.host".to_owned(), vec![]));
    assert_eq!(host(header(), false, &[("x-new-host", "first"), ("x-new-host", "second")]).0, "first");
    let path = HostRewrite::Header(HeaderTarget::of_request(":path"));
    assert_eq!(host(path, false, &[]), ("/service/x?y".to_owned(), vec![original()]));
    let format = || HostRewrite::Format(Format::envoy("%REQ(x-tenant)%.internal").unwrap());
    assert_eq!(host(format(), false, &[("x-tenant", "acme")]).0, "acme.internal");
    assert_eq!(host(format(), false, &[]).0, "-.internal");
    let regex =
        |r: &str| HostRewrite::PathRegex(Regex::search(r).unwrap(), Rewrite::new(r"\1.h", 1).unwrap());
    assert_eq!(host(regex("^/([a-z]+)/.*$"), false, &[]).0, "service.h");
    assert_eq!(host(regex("^/([0-9]+)/.*$"), false, &[]).0, "/service/x");
}

fn ops(name: &str, value: &str) -> HeaderOps {
    let addition = HeaderAddition {
        name: HeaderName::new(name).unwrap(),
        value: Format::text(value),
        action: AppendAction::OverwriteIfExistsOrAdd,
        keep_empty: false,
    };
    HeaderOps { remove: Box::default(), add: Box::new([addition]) }
}

#[test]
fn the_least_specific_level_wins_unless_told_otherwise() {
    for (most_specific_wins, want) in [(false, "table"), (true, "route")] {
        let mut route = fixture::route(PathMatch::Prefix(b"/"[..].into(), false));
        route.request_headers = ops("x-level", "route");
        route.response_headers = ops("x-level", "route");
        let options = VirtualHostOptions {
            request_headers: ops("x-level", "vhost"),
            response_headers: ops("x-level", "vhost"),
            ..VirtualHostOptions::default()
        };
        let virtual_host = VirtualHost::new("v", options);
        let options = TableOptions {
            request_headers: ops("x-level", "table"),
            response_headers: ops("x-level", "table"),
            most_specific_wins,
            ..TableOptions::default()
        };
        let mut s = stream("/", &[]);
        s.virtual_host = Some(virtual_host);
        let route = Arc::new(route);
        s.route = Some(route.clone());
        let virtual_host = s.virtual_host.clone();
        Levels { table: Some(&options), virtual_host: virtual_host.as_ref(), route: Some(&route) }
            .apply(&mut s, Side::Request);
        assert_eq!(s.request.headers.get("x-level"), Some(want.as_bytes()));
        finalize_response(Some(&options), &mut s);
        assert_eq!(s.response.headers.get("x-level"), Some(want.as_bytes()));
    }
}

/// Answers of our own had no header changes of the weighted cluster that the request was for.
#[test]
fn a_weighted_cluster_changes_answers_of_our_own() {
    let member = |name: &str| WeightedCluster {
        cluster: ClusterChoice::Named(crate::cluster::Clusters::default().cell(name)),
        weight: 1,
        request_headers: HeaderOps::default(),
        response_headers: ops("x-member", name),
        host_rewrite: None,
        metadata_match: Default::default(),
        chain: None,
    };
    let weighted = crate::route::WeightedClusters {
        clusters: ["a", "b"].map(member).into(),
        total: 2,
        random_header: None,
        use_hash: false,
    };
    let mut route = fixture::route(PathMatch::Prefix(b"/"[..].into(), false));
    route.action = Action::Forward(Forward::to(ClusterChoice::Weighted(weighted.into())));
    let mut s = stream("/", &[]);
    s.route = Some(Arc::new(route));
    for (random, expected) in [(0, "a"), (1, "b")] {
        s.random = random;
        s.upstream.drawn = Drawn::of(&s);
        s.response.headers.clear();
        finalize_response(None, &mut s);
        assert_eq!(s.response.headers.get("x-member"), Some(expected.as_bytes()));
    }
}

#[test]
fn malformed_envoy_headers_are_refused_where_they_are_checked() {
    let options = RouterOptions {
        strict_check_headers: vec![
            HeaderName::from(Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS),
            HeaderName::from(Known::X_ENVOY_RETRY_ON),
        ],
        ..RouterOptions::default()
    };
    let check = |name: &str, value: &str| strict_check(&options, &stream("/", &[(name, value)]));
    let reply = check("x-envoy-upstream-rq-timeout-ms", "abc").unwrap();
    assert_eq!(reply.body, "invalid header 'x-envoy-upstream-rq-timeout-ms' with value 'abc'");
    assert_eq!(reply.details, "request_headers_failed_strict_check{x-envoy-upstream-rq-timeout-ms}");
    assert_eq!((reply.status, reply.flag), (400, Some(Flag::IH)));
    assert!(check("x-envoy-retry-on", "5xx,bogus").is_some());
    assert!(check("x-envoy-upstream-rq-timeout-ms", "100").is_none());
    assert!(check("x-envoy-max-retries", "abc").is_none());
}

#[test]
fn apisix_tells_the_upstream_the_clients_address() {
    let mut s =
        stream("/", &[("X-Forwarded-For", "1.1.1.1"), ("X-Real-IP", "9.9.9.9"), ("Connection", "close")]);
    apisix_headers(false, &mut s);
    let headers = &s.request.headers;
    assert_eq!(headers.get(Known::X_REAL_IP), Some(&b"10.1.2.3"[..]));
    assert_eq!(headers.get(Known::X_FORWARDED_FOR), Some(&b"1.1.1.1, 10.1.2.3"[..]));
    assert!(!headers.contains(Known::CONNECTION));
}

#[test]
fn apisix_sends_the_path_as_it_came_unless_a_plugin_changed_it() {
    let options = crate::hcm::PathOptions {
        apisix: Some(crate::hcm::ApisixPath::default()),
        ..crate::hcm::PathOptions::default()
    };
    let mut s = stream("/a%2Fb//c", &[]);
    crate::path::prepare(&options, &mut s);
    assert_eq!(s.request.target.full(), b"/a/b/c");
    apisix_headers(false, &mut s);
    assert_eq!(s.request.target.full(), b"/a%2Fb//c");
    let mut s = stream("/a%2Fb//c", &[]);
    crate::path::prepare(&options, &mut s);
    s.request.target.set(b"/new");
    apisix_headers(false, &mut s);
    assert_eq!(s.request.target.full(), b"/new");
}
