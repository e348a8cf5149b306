//! What one look-up may cost.

use super::*;

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
