//! What the member of weighted clusters says of filters, and what filters can't change of where a request goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::Criteria;
use sixfold_core::format::Format;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::plugin::{Chain, ChainBuilder, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::{Action, ClusterChoice, Forward, WeightedCluster, WeightedClusters};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;

/// Sets a header of the request, and may have the route chosen again.
struct Change(&'static str, &'static str, bool);

impl Change {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let Change(name, value, again) = *self;
        stream.request.headers.set(name, value.as_bytes());
        if again { Step::ClearRoute } else { Step::Continue }
    }
}

/// Answers requests, or marks responses.
struct Act(&'static str);

impl Act {
    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        Step::Respond(LocalReply::new(403, self.0, "refused"))
    }

    fn header_filter(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.response.headers.append("x-mark", self.0.as_bytes());
        Step::Continue
    }
}

fn chain(plugin: Plugin) -> Arc<Chain> {
    let mut builder = ChainBuilder::new();
    builder.add("x", plugin);
    Arc::new(builder.build())
}

fn refuses() -> Arc<Chain> {
    chain(Plugin::of(Act("no")).access(Act::access).build())
}

fn marks(text: &'static str) -> Arc<Chain> {
    chain(Plugin::of(Act(text)).header_filter(Act::header_filter).build())
}

fn changes(name: &'static str, value: &'static str, again: bool) -> Arc<Chain> {
    chain(Plugin::of(Change(name, value, again)).access(Change::access).build())
}

fn member(cluster: ClusterChoice, chain: Option<Arc<Chain>>) -> WeightedCluster {
    WeightedCluster {
        cluster,
        weight: 1,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
        metadata_match: Criteria::default(),
        chain,
    }
}

/// One of them by the number that header `w` holds.
fn by_number(members: Vec<WeightedCluster>) -> ClusterChoice {
    let weighted = WeightedClusters {
        total: members.len() as u64,
        clusters: members.into(),
        random_header: Some(HeaderTarget::of_request("w")),
        use_hash: false,
    };
    ClusterChoice::Weighted(weighted.into())
}

/// Clusters `a` and `b`, which answer their names.
async fn setup() -> Setup {
    let mut setup = Setup::new();
    for name in ["a", "b"] {
        let up = upstream(move |_, _| ok(name)).await;
        setup.cluster(name, &[up.address], |_| {});
    }
    setup
}

fn lead(setup: &mut Setup, choice: ClusterChoice, chain: Option<Arc<Chain>>) {
    let mut all = route("/", Action::Forward(Forward::to(choice)));
    all.chain = chain;
    setup.routes.push(Arc::new(all));
}

async fn with(proxy: SocketAddr, header: &str) -> String {
    ask(proxy, &format!("GET / HTTP/1.1\r\nHost: t\r\n{header}\r\n\r\n")).await
}

/// Requests ran the filters of the route, whatever the member said: rbac let pass what it was to refuse.
#[tokio::test]
async fn filters_run_by_what_the_member_says_in_both_directions() {
    let mut setup = setup().await;
    let lines = Arc::new(Lines::default());
    let format = Arc::new(Format::envoy("%RESPONSE_CODE% %UPSTREAM_CLUSTER%").unwrap());
    setup.access_logs.push(AccessLog { filter: None, format, sink: lines.clone() });
    let to = |name: &str| ClusterChoice::Named(setup.clusters.cell(name));
    let members =
        vec![member(to("a"), Some(marks("member"))), member(to("a"), None), member(to("b"), Some(refuses()))];
    lead(&mut setup, by_number(members), Some(marks("route")));
    let (proxy, _) = setup.serve().await;
    for (header, status, mark) in
        [("w: 0", "200", Some("member")), ("w: 1", "200", Some("route")), ("w: 2", "403", None)]
    {
        let answer = with(proxy, header).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{header}: {answer}");
        let found = answer.lines().find_map(|line| line.strip_prefix("x-mark: "));
        assert_eq!(found, mark, "{header}: {answer}");
    }
    eventually(|| lines.0.lock().len() == 3).await;
    assert_eq!(
        lines.0.lock().iter().map(|line| line.trim()).collect::<Vec<_>>(),
        ["200 a", "200 a", "403 b"]
    );
}

/// A cluster was chosen by the headers that filters had left.
#[tokio::test]
async fn filters_lead_requests_elsewhere_only_by_having_the_route_chosen_again() {
    for again in [false, true] {
        let by_header = |setup: &Setup| {
            ClusterChoice::Header(HeaderTarget::of_request("c").into(), setup.clusters.clone())
        };
        for weighted in [false, true] {
            let mut setup = setup().await;
            setup.chain = changes("c", "b", again);
            let choice = by_header(&setup);
            let choice = if weighted { by_number(vec![member(choice, None)]) } else { choice };
            lead(&mut setup, choice, None);
            let (proxy, _) = setup.serve().await;
            let (sent, none) = (with(proxy, "c: a").await, with(proxy, "d: a").await);
            assert!(sent.ends_with(if again { "\r\n\r\nb" } else { "\r\n\r\na" }), "{again}: {sent}");
            assert!(
                none.starts_with(if again { "HTTP/1.1 200 " } else { "HTTP/1.1 503 " }),
                "{again}: {none}"
            );
        }
        let mut setup = setup().await;
        setup.chain = changes("w", "1", again);
        let members = ["a", "b"].map(|name| member(ClusterChoice::Named(setup.clusters.cell(name)), None));
        lead(&mut setup, by_number(members.into()), None);
        let (proxy, _) = setup.serve().await;
        let answer = with(proxy, "w: 0").await;
        assert!(answer.ends_with(if again { "\r\n\r\nb" } else { "\r\n\r\na" }), "{again}: {answer}");
    }
}

/// The route that is chosen again may have a member of its own, whose filters run behind the one that had it chosen.
#[tokio::test]
async fn a_draw_anew_brings_the_filters_of_its_member() {
    let mut setup = setup().await;
    setup.chain = changes("w", "1", true);
    let mut builder = ChainBuilder::new();
    builder.add("change", Plugin::of(Change("w", "1", true)).access(Change::access).build());
    builder.add("x", Plugin::of(Act("no")).access(Act::access).build());
    let to = |name: &str| ClusterChoice::Named(setup.clusters.cell(name));
    let members = vec![member(to("a"), None), member(to("b"), Some(Arc::new(builder.build())))];
    lead(&mut setup, by_number(members), None);
    let (proxy, _) = setup.serve().await;
    let answer = with(proxy, "w: 0").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
