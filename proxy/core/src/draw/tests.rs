#![allow(clippy::unwrap_used)]
use super::*;
use crate::cluster::{Cluster, ClusterConfig, Clusters};
use crate::header_ops::HeaderOps;
use crate::matcher::HeaderTarget;
use crate::metrics::Registry;
use crate::plugin::ChainBuilder;
use crate::route::{Forward, ForwardOptions, HashInput, HashPolicy, PathMatch, Route, WeightedClusters};
use crate::router::{VirtualHost, VirtualHostOptions};
use crate::stream::fixture::stream;
use std::time::Duration;

/// Clusters `a` and `b`.
fn clusters() -> Arc<Clusters> {
    let clusters = Arc::new(Clusters::default());
    for name in ["a", "b"] {
        let cluster = Cluster::new(ClusterConfig::named(name), Vec::new(), None, &Registry::new()).unwrap();
        clusters.cell(name).swap(Some(cluster));
    }
    clusters
}

fn by_header(clusters: &Arc<Clusters>) -> ClusterChoice {
    ClusterChoice::Header(HeaderTarget::of_request("c").into(), clusters.clone())
}

fn member(cluster: ClusterChoice, chain: Option<Arc<Chain>>) -> WeightedCluster {
    WeightedCluster {
        cluster,
        weight: 1,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
        metadata_match: Default::default(),
        chain,
    }
}

fn among(members: Vec<WeightedCluster>) -> WeightedClusters {
    WeightedClusters {
        total: members.len() as u64,
        clusters: members.into(),
        random_header: None,
        use_hash: false,
    }
}

fn routed(choice: ClusterChoice, hash: Vec<HashPolicy>, headers: &[(&str, &str)]) -> Stream {
    let options = ForwardOptions { hash: hash.into(), ..ForwardOptions::default() };
    let forward = Forward { cluster: choice, options: options.into() };
    let mut s = stream("/", headers);
    let path = PathMatch::Prefix(b"/"[..].into(), false);
    s.route = Some(Arc::new(Route::new(path, Action::Forward(forward))));
    s
}

/// Name of the cluster there is, and the name that was said.
fn leads_to(s: &Stream) -> (Option<String>, Option<&str>) {
    let choice = s.route.as_deref().unwrap().leads_to().unwrap();
    (cluster_of(s).map(|cluster| cluster.config.name.to_string()), s.upstream.drawn.cluster_name(choice))
}

#[test]
fn what_headers_say_later_changes_nothing() {
    let clusters = clusters();
    for choice in [
        by_header(&clusters),
        ClusterChoice::Weighted(among(vec![member(by_header(&clusters), None)]).into()),
    ] {
        let mut s = routed(choice, Vec::new(), &[("c", "a")]);
        assert_eq!(leads_to(&s), (None, None), "nothing is settled yet");
        s.upstream.drawn = Drawn::of(&s);
        s.request.headers.set("c", b"b");
        assert_eq!(leads_to(&s), (Some("a".to_owned()), Some("a")));
        s.upstream.drawn = Drawn::of(&s);
        assert_eq!(leads_to(&s), (Some("b".to_owned()), Some("b")));
        // One that nobody knows is known by its name alone, until there is one.
        s.request.headers.set("c", b"d");
        s.upstream.drawn = Drawn::of(&s);
        assert_eq!(leads_to(&s), (None, Some("d")));
        s.request.headers.remove("c");
        s.upstream.drawn = Drawn::of(&s);
        assert_eq!(leads_to(&s), (None, None));
    }
    let mut named = routed(ClusterChoice::Named(clusters.cell("b")), Vec::new(), &[("c", "a")]);
    named.upstream.drawn = Drawn::of(&named);
    assert_eq!((&named.upstream.drawn, leads_to(&named).1), (&Drawn::default(), Some("b")));
}

#[test]
fn the_member_s_chain_is_the_request_s() {
    let clusters = clusters();
    let chain = || Some(Arc::new(ChainBuilder::new().build()));
    let is = |s: &Stream, wanted: &Option<Arc<Chain>>| match (super::chain(s), wanted) {
        (Some(chain), Some(wanted)) => Arc::ptr_eq(chain, wanted),
        (chain, wanted) => chain.is_none() && wanted.is_none(),
    };
    let (of_route, of_member, of_host) = (chain(), chain(), chain());
    let to = |name: &str| ClusterChoice::Named(clusters.cell(name));
    let members = vec![member(to("a"), None), member(to("b"), of_member.clone())];
    let mut s = routed(ClusterChoice::Weighted(among(members).into()), Vec::new(), &[]);
    Arc::get_mut(s.route.as_mut().unwrap()).unwrap().chain = of_route.clone();
    let options = VirtualHostOptions { chain: of_host.clone(), ..VirtualHostOptions::default() };
    s.virtual_host = Some(VirtualHost::new("v", options));
    for (random, wanted) in [(0, &of_route), (1, &of_member), (2, &of_route)] {
        s.random = random;
        s.upstream.drawn = Drawn::of(&s);
        assert!(is(&s, wanted), "{random}");
    }
    s.route = None;
    s.upstream.drawn = Drawn::of(&s);
    assert!(is(&s, &of_host) && cluster_of(&s).is_none());
    s.virtual_host = None;
    assert!(is(&s, &None));
}

/// Envoy makes no cookie for a draw: the client gets one where a balancer asks for the hash, and counts from then on.
#[test]
fn a_draw_by_hash_counts_the_cookies_that_were_sent() {
    let clusters = clusters();
    let to = |name: &str| ClusterChoice::Named(clusters.cell(name));
    let choice = || {
        let members = among(vec![member(to("a"), None), member(to("b"), None)]);
        ClusterChoice::Weighted(WeightedClusters { use_hash: true, ..members }.into())
    };
    let policy = || {
        let ttl = Some(Duration::from_secs(9));
        let input = HashInput::Cookie { name: "k".into(), ttl, path: "".into(), attributes: Box::default() };
        vec![HashPolicy { input, terminal: false }]
    };
    let drawn = |random: u64, headers: &[(&str, &str)]| {
        let mut s = routed(choice(), policy(), headers);
        s.random = random;
        s.upstream.drawn = Drawn::of(&s);
        leads_to(&s).0.unwrap()
    };
    assert_eq!([0, 1, 2, 3].map(|random| drawn(random, &[])), ["a", "b", "a", "b"]);
    let by_cookie = drawn(0, &[("cookie", "k=1")]);
    assert!((0..9).all(|random| drawn(random, &[("cookie", "k=1")]) == by_cookie));
}
