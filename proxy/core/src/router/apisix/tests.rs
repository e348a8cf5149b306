#![allow(clippy::unwrap_used)]
use super::*;
use crate::route::{PathMatch, fixture};
use crate::router::index::Index;

fn route(id: usize, uris: &[&str], hosts: &[&str], priority: i64) -> Arc<Route> {
    let mut route = fixture::route(PathMatch::Connect);
    let own = |list: &[&str]| list.iter().map(|text| (*text).into()).collect();
    (route.ids.route, route.ids.uris, route.ids.hosts) = (id.to_string().into(), own(uris), own(hosts));
    route.priority = priority;
    Arc::new(route)
}

fn ready(route: &Arc<Route>, order: u64) -> ApisixRoute {
    ApisixRoute::new(route.clone(), order, ApisixRouter::HostUri).unwrap()
}

fn all_of(routes: &[Arc<Route>]) -> ApisixRoutes {
    let ready: Vec<_> = routes.iter().zip(0..).map(|(route, order)| ready(route, order)).collect();
    ApisixRoutes::new(ApisixRouter::HostUri).next(&[], &ready)
}

fn indexes(table: &ApisixRoutes) -> Vec<&Arc<Index>> {
    let wild = table.suffixes.iter().flat_map(|(_, map)| map.all());
    table.exact.all().chain(wild).chain([&table.any]).flat_map(Paths::indexes).collect()
}

fn found(table: &ApisixRoutes, host: &str, path: &str) -> Option<String> {
    let mut stream = crate::stream::fixture::stream(path, &[]);
    stream.request.authority = host.as_bytes().to_vec();
    table.find(path.as_bytes(), &stream, &mut Vec::new()).map(|route| route.ids.route.to_string())
}

/// A change of one route sorted all of them again.
#[test]
fn a_change_of_one_route_makes_one_part_anew() {
    for hosts in [&[][..], &["one.test"], &["*.test"]] {
        let mut routes: Vec<_> =
            (0..1000).map(|i| route(i, &[&format!("/shop/{}/item{i}/*", i % 100)], hosts, 0)).collect();
        let before = all_of(&routes);
        let new = route(500, &["/shop/0/other/*"], hosts, 0);
        let after = before.next(std::slice::from_ref(&routes[500]), &[ready(&new, 500)]);
        let kept = indexes(&before);
        let made: Vec<_> =
            indexes(&after).into_iter().filter(|index| !kept.iter().any(|k| Arc::ptr_eq(k, index))).collect();
        assert!(made.len() <= 2 && made.iter().all(|index| index.routes().len() <= 40), "{hosts:?}");
        assert_eq!(found(&before, "one.test", "/shop/0/item500/x").as_deref(), Some("500"));
        assert_eq!(found(&after, "one.test", "/shop/0/item500/x"), None);
        assert_eq!(found(&after, "one.test", "/shop/0/other/x").as_deref(), Some("500"));
        routes[500] = new;
        for (id, route) in routes.iter().enumerate() {
            let path = route.ids.uris[0].replace('*', "x");
            assert_eq!(found(&after, "one.test", &path), Some(id.to_string()), "{path}");
        }
    }
}

#[test]
fn a_change_under_one_of_many_hosts_leaves_the_others() {
    let routes: Vec<_> = (0..500).map(|i| route(i, &["/*"], &[&format!("h{i}.test")], 0)).collect();
    let before = all_of(&routes);
    let new = route(7, &["/new"], &["h7.test"], 0);
    let after = before.next(std::slice::from_ref(&routes[7]), &[ready(&new, 7)]);
    assert_eq!((found(&after, "h7.test", "/"), found(&after, "h8.test", "/").as_deref()), (None, Some("8")));
    let (old, kept) = (indexes(&before), indexes(&after));
    let shared = kept.iter().filter(|index| old.iter().any(|o| Arc::ptr_eq(o, index))).count();
    assert!(shared >= old.len() - 2, "{shared} of {}", old.len());
    let none = after.next(&after.routes().cloned().collect::<Vec<_>>(), &[]);
    assert!(none.exact.is_empty() && none.routes().next().is_none());
}

#[test]
fn levels_do_not_change_the_order() {
    let uris = ["/*", "/a/*", "/a/b/*", "/a/b/c/*", "/a/b/c/d/*", "/a/b/c", "/a*", "/a/b*", "/a/:x/c"];
    let routes: Vec<_> = uris.iter().enumerate().map(|(i, uri)| route(i, &[uri], &[], 0)).collect();
    let table = all_of(&routes);
    let uri = |path: &str| found(&table, "h", path).map(|id| uris[id.parse::<usize>().unwrap()]);
    for (path, want) in [
        ("/a/b/c", "/a/b/c"),
        ("/a/b/c/", "/a/b/c/*"),
        ("/a/b/c/d/e/f", "/a/b/c/d/*"),
        ("/a/b/x", "/a/b/*"),
        ("/a/bx/c", "/a/b*"),
        ("/a/x", "/a/*"),
        ("/ax/b/c", "/a*"),
        ("/b/", "/*"),
        ("/", "/*"),
    ] {
        assert_eq!(uri(path), Some(want), "{path}");
    }
    assert_eq!(uri("b"), None);
}
