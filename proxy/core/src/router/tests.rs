#![allow(clippy::unwrap_used)]
use super::*;
use crate::expr::Expr;
use crate::matcher::{CookieMatcher, HeaderMatch, HeaderMatcher, HeaderTarget, QueryMatcher, StringMatcher};
use crate::route::{Predicate, fixture};
use crate::stream::fixture::stream;
use std::cell::Cell;

thread_local! {
    /// Turns the order of candidates round: a mutant that the checks must notice.
    pub(super) static REVERSED: Cell<bool> = const { Cell::new(false) };
}

fn random_bytes(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = vec![0; random.usize(300..900)];
    random.fill(&mut bytes);
    bytes
}

fn compare(check: fn(&[u8]) -> fuzz::Seen, seed: u64) -> fuzz::Seen {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = fuzz::Seen::default();
    while all.lookups < 12_000 {
        let seen = check(&random_bytes(&mut random));
        all.lookups += seen.lookups;
        all.contested += seen.contested;
    }
    all
}

#[test]
fn the_index_answers_what_a_scan_answers() {
    for check in [fuzz::envoy as fn(&[u8]) -> fuzz::Seen, fuzz::apisix] {
        let seen = compare(check, 11);
        assert!(seen.contested * 10 >= seen.lookups * 3, "{seen:?}");
    }
}

#[test]
fn a_reversed_order_of_candidates_would_be_noticed() {
    for check in [fuzz::envoy as fn(&[u8]) -> fuzz::Seen, fuzz::apisix] {
        let noticed = std::thread::spawn(move || {
            REVERSED.set(true);
            compare(check, 11);
        });
        assert!(noticed.join().is_err());
    }
}

#[test]
fn any_bytes_are_fine() {
    fuzz::tables(&[]);
    crate::stable::run("router_tables", &["\0", "\u{1}", "/ab"], fuzz::tables);
}

fn header(name: &str, value: &str) -> Predicate {
    Predicate::Header(HeaderMatcher {
        target: HeaderTarget::of_request(name),
        test: HeaderMatch::String(StringMatcher::exact(value)),
        invert: false,
        missing_is_empty: false,
    })
}

fn named(name: &str, path: PathMatch, predicates: Vec<Predicate>) -> Arc<Route> {
    let mut route = fixture::route(path);
    route.name = name.into();
    route.predicates = predicates.into();
    Arc::new(route)
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.as_bytes().into(), false)
}

fn table(options: TableOptions, hosts: &[(&str, &[&str])]) -> Result<RouteTable, ConfigError> {
    let hosts = hosts.iter().map(|(name, domains)| {
        let host =
            HostRoutes::new(name, VirtualHostOptions::default(), vec![named(name, prefix("/"), vec![])]);
        (domains.iter().map(|d| (*d).to_owned()).collect(), host)
    });
    RouteTable::new("t", options, hosts.collect())
}

fn host_of(table: &RouteTable, host: &str) -> Option<String> {
    let mut s = stream("/", &[]);
    s.request.authority = host.as_bytes().to_vec();
    table.find(&mut s).map(|found| found.virtual_host.name.to_string())
}

#[test]
fn hosts_are_chosen_exactly_then_by_the_longest_end_then_by_the_longest_start() {
    let t = table(
        TableOptions::default(),
        &[
            ("star", &["*"]),
            ("prefix", &["www.foo.*"]),
            ("suffix", &["*.foo.com"]),
            ("exact", &["WWW.Foo.com"]),
            ("com", &["*.bar"]),
            ("long", &["*-x.y.bar"]),
        ],
    )
    .unwrap();
    for (host, want) in [
        ("wWw.foo.com", "exact"),
        ("api.foo.com", "suffix"),
        ("www.foo.co.uk", "prefix"),
        ("foo.com", "star"),
        (".foo.com", "star"),
        ("a.bar", "com"),
        ("a-x.y.bar", "long"),
        ("-x.y.bar", "com"),
        ("www.foo.com:80", "prefix"),
        ("", "star"),
    ] {
        assert_eq!(host_of(&t, host).as_deref(), Some(want), "{host}");
    }
    let options = TableOptions { ignore_port: true, ..TableOptions::default() };
    let t = table(options, &[("v", &["foo.com"]), ("v6", &["[::1]"]), ("port", &["baz.com:80"])]).unwrap();
    for (host, want) in [
        ("foo.com:80", Some("v")),
        ("foo.com:", Some("v")),
        ("foo.com:x", Some("v")),
        ("[::1]:80", Some("v6")),
        ("[::1]", Some("v6")),
        ("baz.com:80", None),
    ] {
        assert_eq!(host_of(&t, host).as_deref(), want, "{host}");
    }
}

/// They were refused.
#[test]
fn stars_in_odd_places_are_characters_and_the_empty_domain_is_an_empty_host() {
    let t = table(TableOptions::default(), &[("empty", &[""]), ("mid", &["a.*.com"]), ("both", &["*.b.*"])])
        .unwrap();
    for (host, want) in [
        ("", Some("empty")),
        ("a.*.com", Some("mid")),
        ("a.x.com", None),
        ("x.b.*", Some("both")),
        ("x.b.com", None),
    ] {
        assert_eq!(host_of(&t, host).as_deref(), want, "{host}");
    }
}

#[test]
fn bad_domains_are_refused_with_their_virtual_host() {
    for (domains, words) in [
        (
            &["a.com", "A.com"][..],
            "virtual_hosts[0].domains[1]: duplicate domain \"A.com\", also of virtual host \"v\"",
        ),
        (&["*", "*"], "virtual_hosts[0].domains[1]: only a single wildcard domain is permitted"),
    ] {
        let error = table(TableOptions::default(), &[("v", domains)]).unwrap_err();
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn no_other_virtual_host_is_tried() {
    let only = named("only", prefix("/only"), vec![]);
    let hosts = vec![
        (vec!["foo.com".to_owned()], HostRoutes::new("v", VirtualHostOptions::default(), vec![only])),
        (
            vec!["*".to_owned()],
            HostRoutes::new("s", VirtualHostOptions::default(), vec![named("s", prefix("/"), vec![])]),
        ),
    ];
    let t = RouteTable::new("t", TableOptions::default(), hosts).unwrap();
    let mut s = stream("/else", &[]);
    s.request.authority = b"foo.com".to_vec();
    let found = t.find(&mut s).unwrap();
    assert_eq!((&*found.virtual_host.name, found.route.is_none()), ("v", true));
}

#[test]
fn path_parameters_are_ignored_where_the_table_says_so() {
    let exact = named("r", PathMatch::Exact(b"/foo/bar"[..].into(), false), vec![]);
    for (ignore, want) in [(true, true), (false, false)] {
        let host = HostRoutes::new("v", VirtualHostOptions::default(), vec![exact.clone()]);
        let options = TableOptions { ignore_path_parameters: ignore, ..TableOptions::default() };
        let t = RouteTable::new("t", options, vec![(vec!["*".to_owned()], host)]).unwrap();
        let mut s = stream("/foo;v=1/bar;x?q", &[]);
        assert_eq!(t.find(&mut s).unwrap().route.is_some(), want);
        assert_eq!(s.request.target.full(), b"/foo;v=1/bar;x?q");
    }
}

/// A request with 1,400 values of a header that 5,000 routes match by a prefix or a regex held its worker for 100 ms:
/// every route looked at every value.
#[test]
fn values_of_a_header_are_looked_at_once_whatever_the_number_of_routes() {
    use crate::matcher::TESTED;
    let tests: [fn(usize) -> StringMatcher; 2] = [
        |i| StringMatcher::Prefix(format!("tenant-{i}/").into_bytes().into(), false),
        |i| StringMatcher::Regex(Regex::full(&format!("tenant-{i}/[a-z]+")).unwrap()),
    ];
    for test in tests {
        let routes = (0..5000).map(|i| {
            let matcher = HeaderMatcher {
                target: HeaderTarget::of_request("x-tenant"),
                test: HeaderMatch::String(test(i)),
                invert: false,
                missing_is_empty: false,
            };
            named(&i.to_string(), prefix("/"), vec![Predicate::Header(matcher)])
        });
        let host = HostRoutes::new("v", VirtualHostOptions::default(), routes.collect());
        for n in [350, 700, 1400] {
            let mut s = stream("/", &[]);
            (0..n).for_each(|i| s.request.headers.push(b"x-tenant", format!("other-{i}").as_bytes()));
            let before = TESTED.get();
            assert!(host.index.find(b"/", &s, &mut Vec::new()).is_none());
            assert_eq!(TESTED.get(), before, "no route is a candidate");
            s.request.headers.push(b"x-tenant", b"tenant-3000/a");
            let found = host.index.find(b"/", &s, &mut Vec::new()).unwrap();
            assert_eq!(&*found.name, "3000");
            assert!(TESTED.get() - before <= n + 1, "one pass over the values");
        }
    }
}

#[test]
fn routes_on_one_path_are_told_apart_by_a_header() {
    let mut routes: Vec<_> = (0..5000)
        .map(|i| named(&i.to_string(), prefix("/"), vec![header("x-tenant", &format!("t{i}"))]))
        .collect();
    routes.insert(2500, named("middle", prefix("/m"), vec![]));
    routes.push(named("last", prefix("/"), vec![]));
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let find = |target: &str, headers: &[(&str, &str)]| {
        let s = stream(target, headers);
        let found = host.index.find(s.request.target.path(), &s, &mut Vec::new());
        found.map(|r| r.name.to_string())
    };
    assert_eq!(find("/x", &[("x-tenant", "t4000")]).as_deref(), Some("4000"));
    assert_eq!(find("/m", &[("x-tenant", "t4000")]).as_deref(), Some("middle"));
    assert_eq!(find("/m", &[("x-tenant", "t100")]).as_deref(), Some("100"));
    assert_eq!(
        find("/x", &[("x-tenant", "t9"), ("x-tenant", "t7"), ("x-tenant", "t9")]).as_deref(),
        Some("7")
    );
    assert_eq!(find("/x", &[("x-tenant", "none")]).as_deref(), Some("last"));
    assert_eq!(find("/x", &[]).as_deref(), Some("last"));
}

#[test]
fn regexes_without_a_literal_prefix_are_found_by_what_they_hold() {
    let mut routes: Vec<_> = (0..3000)
        .map(|i| {
            let regex = Regex::full(&format!(".*/(x|y)/needle{i}/.*")).unwrap();
            named(&i.to_string(), PathMatch::Regex(regex.into()), vec![])
        })
        .collect();
    routes.push(named("any", PathMatch::Regex(Regex::full(".*b").unwrap().into()), vec![]));
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let find = |target: &str| {
        let s = stream(target, &[]);
        host.index.find(s.request.target.path(), &s, &mut Vec::new()).map(|r| r.name.to_string())
    };
    assert_eq!(find("/a/x/needle2718/c").as_deref(), Some("2718"));
    assert_eq!(find("/x/needle12/y/needle7/").as_deref(), Some("7"));
    assert_eq!(find("/a/b").as_deref(), Some("any"));
    assert_eq!(find("/needle"), None);
}

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

#[test]
fn connect_routes_are_met_without_a_path() {
    let routes = vec![named("all", prefix("/"), vec![]), named("connect", PathMatch::Connect, vec![])];
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let mut s = stream("", &[]);
    s.request.method = crate::message::Method::CONNECT;
    assert_eq!(host.index.find(b"", &s, &mut Vec::new()).map(|r| &*r.name), Some("connect"));
}

/// Each of 5,000 routes joined the 1,000 lines of a header anew that its `vars` ask for.
#[test]
fn lines_that_many_routes_ask_for_are_joined_once() {
    use crate::expr::Expr;
    use crate::format::JOINED;
    let asks = |i: usize| {
        let vars =
            serde_json::json!([["http_x_tenant", "~~", format!("-{i}$")], ["http_accept", "!", "==", "x"]]);
        named(&i.to_string(), prefix("/"), vec![Predicate::Vars(Expr::new(&vars).unwrap())])
    };
    let host = HostRoutes::new("v", VirtualHostOptions::default(), (0..50).map(asks).collect());
    let table = RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
    let mut s = stream("/", &[("accept", "a"), ("accept", "b")]);
    (0..1000).for_each(|_| s.request.headers.push(b"x-tenant", b"t"));
    s.request.headers.push(b"x-tenant", b"t-49");
    for tenant in ["49", "7"] {
        let before = JOINED.get();
        let found = table.find(&mut s).unwrap().route.unwrap();
        assert_eq!((&*found.name, JOINED.get() - before), (tenant, 2), "one joining for each of two names");
        // What was joined for one look-up is not what another finds.
        s.request.headers.push(b"x-tenant", b"t-7");
    }
}

/// A path of 30 KB that holds the literals of 5,000 regexes held its worker for half a second: each of them ran over
/// all of it.
#[test]
fn a_long_path_for_many_regexes_has_no_route_instead_of_a_worker() {
    use crate::regex::work;
    let regex = |i: usize| {
        named(
            &i.to_string(),
            PathMatch::Regex(Regex::full(&format!("/.*s{i}e/.*[0-9]x")).unwrap().into()),
            vec![],
        )
    };
    let mut routes: Vec<_> = (0..5000).map(regex).collect();
    routes.push(named("rest", PathMatch::Prefix(b"/"[..].into(), false), vec![]));
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let table = RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
    let find = |path: &str| {
        let found = table.find(&mut stream(path, &[])).unwrap();
        assert!(!work::is_spent(), "what is left is no matter of who comes next");
        found.route.map(|route| route.name.to_string())
    };
    let all: String = (0..5000).map(|i| format!("/s{i}e")).collect();
    assert_eq!(find(&format!("{all}/")), None, "not the route behind those that were not tried");
    assert_eq!(find("/s77e/1x").as_deref(), Some("77"));
    assert_eq!(find(&format!("{}/s4999e/1x", "/a".repeat(15_000))).as_deref(), Some("4999"));
    assert_eq!(find(&"/a".repeat(15_000)).as_deref(), Some("rest"));
}

/// A table of these expressions, and of a route for everything behind them.
fn table_of(expressions: impl Iterator<Item = String>) -> RouteTable {
    let regex =
        |source: String| named(&source, PathMatch::Regex(Regex::full(&source).unwrap().into()), vec![]);
    let mut routes: Vec<_> = expressions.map(regex).collect();
    routes.push(named("rest", PathMatch::Prefix(b"/"[..].into(), false), vec![]));
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap()
}

/// How many expressions of a table are compiled.
fn compiled(table: &RouteTable) -> usize {
    let is_compiled = |route: &&Arc<Route>| matches!(&route.path, PathMatch::Regex(r) if r.is_compiled());
    table.routes().filter(is_compiled).count()
}

/// The first request to a table compiled every expression that it could mean, though it made them hundreds.
#[test]
fn what_one_request_compiles_is_bounded() {
    let table = table_of((0..600).map(|i| format!("/.*{i:04x}(?:y|z)*[0-9]")));
    let path = format!("/{}x", (0..600).map(|i| format!("{i:04x}")).collect::<String>());
    let find = || {
        let found = table.find(&mut stream(&path, &[])).unwrap();
        (found.route.map(|route| route.name.to_string()), found.cut_short)
    };
    assert_eq!((compiled(&table), find()), (0, (None, true)));
    assert!((100..590).contains(&compiled(&table)), "{}", compiled(&table));
    assert_eq!(find(), (Some("rest".to_owned()), false), "what is compiled stays so");
}

/// Requests for a new table would have had no route until all that each of them may mean was compiled.
#[test]
fn what_every_request_may_have_to_try_is_compiled_with_the_table() {
    let alike = |n: usize| table_of((0..n).map(|i| format!("/(?:a|b{{1,2}}c)*(?:s{i}|t{i})")));
    assert_eq!(compiled(&alike(30)), 0);
    let table = alike(1_000);
    assert_eq!(compiled(&table), 1_000);
    let found = table.find(&mut stream("/ab", &[])).unwrap();
    assert_eq!(found.route.unwrap().name.as_ref(), "rest");
    assert_eq!(compiled(&table_of((0..1_000).map(|i| format!("/{i}/.*")))), 0, "what needs no automaton");
}

/// As many routes for one path, each with what it asks for beside that, of the two first requests for the last of them.
fn first_route_found(
    predicate: impl Fn(usize) -> Predicate,
    headers: &[(&str, &str)],
) -> [Option<String>; 2] {
    let last = 599;
    let any = || PathMatch::Prefix(b"/"[..].into(), false);
    let routes = (0..=last).map(|i| named(&i.to_string(), any(), vec![predicate(i)])).collect();
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let table = RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
    [(); 2].map(|()| {
        let found = table.find(&mut stream("/?q=t-a599", headers)).unwrap();
        found.route.map(|route| route.name.to_string())
    })
}

/// The first requests after each update had no route, where something else than paths told many routes apart.
#[test]
fn no_request_lacks_a_route_because_its_table_is_new() {
    let test = |i: usize| StringMatcher::Regex(Regex::full(&format!("t-(?:a|b)+{i}")).unwrap());
    let of_header = |i| {
        let test = HeaderMatch::String(test(i));
        let target = HeaderTarget::of_request("x-tenant");
        Predicate::Header(HeaderMatcher { target, test, invert: false, missing_is_empty: false })
    };
    let of_query =
        |i| Predicate::Query(QueryMatcher { name: "q".into(), test: Some(test(i)), present: true });
    let of_cookie = |i| Predicate::Cookie(CookieMatcher { name: "c".into(), test: test(i), invert: false });
    let vars = |pattern: String| {
        Predicate::Vars(Expr::new(&serde_json::json!([["http_x_tenant", "~~", pattern]])).unwrap())
    };
    let headers = [("x-tenant", "t-a599"), ("cookie", "c=t-a599")];
    let wanted = [Some("599".to_owned()), Some("599".to_owned())];
    assert_eq!(first_route_found(of_header, &headers), wanted);
    assert_eq!(first_route_found(of_query, &headers), wanted);
    assert_eq!(first_route_found(of_cookie, &headers), wanted);
    assert_eq!(first_route_found(|i| vars(format!("^t-(?:a|b)+{i}$")), &headers), wanted);
    // Patterns that backtrack are compiled for short texts when they are loaded, for longer ones later.
    let long = format!("{}t-a599", "x".repeat(100));
    assert_eq!(first_route_found(|i| vars(format!("(?<=x)t-a{i}$")), &[("x-tenant", &long)]), wanted);
}

/// Each of the lists that a request goes through on its way down a tree may leave a little to it, and all of them too much.
#[test]
fn what_the_nodes_of_one_way_leave_to_compile_is_bounded_together() {
    let of = |depth: usize, i: usize| format!("{}(?:a|b)*{i}x", "/d".repeat(depth));
    let table = table_of((0..20).flat_map(|depth| (0..30).map(move |i| of(depth + 1, i))));
    assert!((400..600).contains(&compiled(&table)), "{}", compiled(&table));
    let aside = table_of((0..20).flat_map(|way| (0..30).map(move |i| format!("/{way:02}/(?:a|b)*{i}x"))));
    assert_eq!(compiled(&aside), 0, "no request meets two of these");
}

/// Each of thousands of conditions read the whole query, or all cookies, of a request anew.
#[test]
fn conditions_on_queries_and_cookies_do_not_read_them_again_for_each_route() {
    use crate::matcher::STEPS;
    let query = |i| {
        let test = Some(StringMatcher::Exact(b"z"[..].into(), false));
        Predicate::Query(QueryMatcher { name: format!("q{i}").into(), test, present: true })
    };
    let cookie = |i| {
        let test = StringMatcher::Exact(b"z"[..].into(), false);
        Predicate::Cookie(CookieMatcher { name: format!("q{i}").into(), test, invert: false })
    };
    let vars = |name: &str, i| {
        Predicate::Vars(Expr::new(&serde_json::json!([[format!("{name}_q{i}"), "==", "z"]])).unwrap())
    };
    let (target, line) = (format!("/?{}", "a=b&c=%41&".repeat(2_000)), "a=b; c=d; ".repeat(2_000));
    let predicates: [Box<dyn Fn(usize) -> Predicate>; 4] = [
        Box::new(query),
        Box::new(cookie),
        Box::new(move |i| vars("arg", i)),
        Box::new(move |i| vars("cookie", i)),
    ];
    for predicate in predicates {
        let any = || PathMatch::Prefix(b"/"[..].into(), false);
        let routes = (0..1_000).map(|i| named(&i.to_string(), any(), vec![predicate(i)])).collect();
        let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
        let table =
            RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
        let before = STEPS.get();
        assert!(table.find(&mut stream(&target, &[("cookie", &line)])).unwrap().route.is_none());
        let steps = STEPS.get() - before;
        assert!(steps < 200_000, "{steps} steps for 1,000 conditions on 4,000 parts");
    }
}
