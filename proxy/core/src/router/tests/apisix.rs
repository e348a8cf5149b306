//! APISIX's routers.

use super::*;

fn apisix(router: ApisixRouter, routes: &[(&str, i64, &[&str], &[&str])]) -> RouteTable {
    let routes = routes.iter().map(|(name, priority, uris, hosts)| {
        let mut route = fixture::route(PathMatch::Connect);
        route.name = (*name).into();
        route.priority = *priority;
        let own = |list: &[&str]| list.iter().map(|t| (*t).into()).collect();
        (route.ids.uris, route.ids.hosts) = (own(uris), own(hosts));
        Arc::new(route)
    });
    let routes: Vec<_> =
        routes.zip(0..).map(|(route, order)| ApisixRoute::new(route, order, router).unwrap()).collect();
    RouteTable::apisix("t", TableOptions::default(), ApisixRoutes::new(router).next(&[], &routes))
}

fn apisix_find(table: &RouteTable, host: &str, target: &str) -> (Option<String>, Vec<(String, String)>) {
    let mut s = stream(target, &[]);
    s.request.authority = host.as_bytes().to_vec();
    let route = table.find(&mut s).unwrap().route.map(|r| r.name.to_string());
    let text = |v: Vec<u8>| String::from_utf8(v).unwrap();
    (route, s.captures.drain(..).map(|(n, v)| (n.to_string(), text(v))).collect())
}

#[test]
fn apisix_prefers_exact_paths_then_longer_prefixes_then_priority() {
    let t = apisix(
        ApisixRouter::Uri,
        &[
            ("exact", 0, &["/a/b"], &[]),
            ("short", 9, &["/a*"], &[]),
            ("long", 0, &["/a/*"], &[]),
            ("prior", 5, &["/a/*"], &["other.host"]),
            ("inner", 0, &["/c/*/d"], &[]),
            ("c", 0, &["/c/*"], &[]),
        ],
    );
    for (host, path, want) in [
        ("h", "/a/b", Some("exact")),
        ("h", "/a/c", Some("long")),
        ("other.host", "/a/c", Some("prior")),
        ("Other.host.", "/a/c", Some("prior")),
        ("other.host.:80", "/a/c", Some("prior")),
        ("h", "/ab", Some("short")),
        ("h", "/a", Some("short")),
        ("h", "/c/x/d", Some("inner")),
        ("h", "/c/x/e", Some("c")),
        ("h", "/x", None),
    ] {
        assert_eq!(apisix_find(&t, host, path).0.as_deref(), want, "{host}{path}");
    }
}

#[test]
fn apisix_hosts_dominate_paths_and_fall_through() {
    let t = apisix(
        ApisixRouter::HostUri,
        &[
            ("any", 9, &["/a/b/c"], &[]),
            ("wild", 9, &["/a/b"], &["*.foo.com"]),
            ("near", 0, &["/a*"], &["*.x.foo.com"]),
            ("exact", 0, &["/*"], &["A.x.foo.com"]),
        ],
    );
    for (host, path, want) in [
        ("a.x.foo.com:80", "/a/b", Some("exact")),
        ("b.x.foo.com", "/a/b", Some("near")),
        ("b.x.foo.com", "/b", None),
        ("b.foo.com", "/a/b", Some("wild")),
        ("A.x.foo.com.", "/a/b", Some("exact")),
        ("a.x.foo.com.:9080", "/a/b", Some("exact")),
        ("b.foo.com.", "/a/b", Some("wild")),
        ("b.foo.com", "/a/b/c", Some("any")),
        ("foo.com", "/a/b", None),
    ] {
        assert_eq!(apisix_find(&t, host, path).0.as_deref(), want, "{host}{path}");
    }
}

#[test]
fn apisix_parameters_are_captured() {
    let t = apisix(
        ApisixRouter::UriWithParameter,
        &[
            ("name", 0, &["/user/:name"], &[]),
            ("rest", 0, &["/user/:name/*rest"], &[]),
            ("plain", 0, &["/user/me"], &[]),
        ],
    );
    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    assert_eq!(apisix_find(&t, "h", "/user/jo"), (Some("name".to_owned()), vec![pair("name", "jo")]));
    assert_eq!(apisix_find(&t, "h", "/user/me"), (Some("plain".to_owned()), vec![]));
    let (route, captures) = apisix_find(&t, "h", "/user/jo/a/b");
    assert_eq!(
        (route.as_deref(), &captures[..2]),
        (Some("rest"), &[pair("name", "jo"), pair("rest", "a/b")][..])
    );
    let literal = apisix(ApisixRouter::Uri, &[("colon", 0, &["/user/:name"], &[])]);
    assert_eq!(apisix_find(&literal, "h", "/user/jo").0, None);
    assert_eq!(apisix_find(&literal, "h", "/user/:name").0.as_deref(), Some("colon"));
}
