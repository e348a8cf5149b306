#![allow(clippy::unwrap_used)]

mod apisix;
mod work;

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

#[test]
fn connect_routes_are_met_without_a_path() {
    let routes = vec![named("all", prefix("/"), vec![]), named("connect", PathMatch::Connect, vec![])];
    let host = HostRoutes::new("v", VirtualHostOptions::default(), routes);
    let mut s = stream("", &[]);
    s.request.method = crate::message::Method::CONNECT;
    assert_eq!(host.index.find(b"", &s, &mut Vec::new()).map(|r| &*r.name), Some("connect"));
}
