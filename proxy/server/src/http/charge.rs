//! What Envoy's router counts of the requests of a cluster, a route and a virtual cluster (source/common/router/router.cc
//! `chargeUpstreamCode`, source/common/http/codes.cc).

use sixfold_core::cluster::{Cluster, ResponseKind};
use sixfold_core::metrics::responses::Responses;
use sixfold_core::route::RouteStats;
use sixfold_core::stream::Stream;

/// Finds the virtual cluster of a request, by the head that the client sent.
pub(super) fn enter(stream: &mut Stream) {
    let Some(host) = &stream.virtual_host else { return };
    let clusters = &host.options.virtual_clusters;
    let found = clusters.iter().position(|c| c.headers.iter().all(|m| m.matches(&stream.request)));
    stream.virtual_cluster = found.and_then(|at| u32::try_from(at).ok());
}

/// Statistics of the route and of the virtual cluster.
pub(super) fn routes(stream: &Stream) -> [Option<&RouteStats>; 2] {
    let route = stream.route.as_ref().and_then(|route| route.stats.as_deref());
    let clusters = stream.virtual_host.as_ref().map(|host| &host.options.virtual_clusters);
    let virtual_cluster = stream.virtual_cluster.and_then(|at| clusters?.get(at as usize));
    [route, virtual_cluster.map(|cluster| &*cluster.stats)]
}

/// Counts a response of a status: the upstream's, or ours in the place of one. Those to health checks are not counted.
pub(super) fn response(stream: &Stream, status: u16) {
    let Some(cluster) = stream.upstream.cluster.as_ref().filter(|_| !stream.health_check) else { return };
    cluster.stats.responses().count(status);
    if let Some(responses) = cluster.stats.responses_of(origin(stream)) {
        responses.count(status);
    }
    by_endpoint(stream, cluster, |responses| responses.count(status));
    routes(stream).into_iter().flatten().for_each(|stats| stats.responses.count(status));
}

/// Counts a response in whose place another attempt is made.
pub(super) fn retried(stream: &Stream, status: u16) {
    let cluster = stream.upstream.cluster.as_ref();
    if let Some(responses) = cluster.and_then(|c| c.stats.responses_of(ResponseKind::Retry)) {
        responses.count(status);
    }
}

/// Counts the milliseconds that a response took.
pub(super) fn time(stream: &Stream, millis: u64) {
    let Some(cluster) = stream.upstream.cluster.as_ref().filter(|_| !stream.health_check) else { return };
    cluster.stats.responses().record(millis);
    if let Some(responses) = cluster.stats.responses_of(origin(stream)) {
        responses.record(millis);
    }
    by_endpoint(stream, cluster, |responses| responses.record(millis));
    routes(stream).into_iter().flatten().for_each(|stats| stats.responses.record(millis));
}

/// Counts a response to a request of our own: to Envoy it is an internal one.
pub(crate) fn response_to_own(cluster: &Cluster, status: u16) {
    cluster.stats.responses().count(status);
    if let Some(responses) = cluster.stats.responses_of(ResponseKind::Internal) {
        responses.count(status);
    }
}

/// Counts the milliseconds that such a response took.
pub(crate) fn time_of_own(cluster: &Cluster, millis: u64) {
    cluster.stats.responses().record(millis);
    if let Some(responses) = cluster.stats.responses_of(ResponseKind::Internal) {
        responses.record(millis);
    }
}

/// Counts by what the endpoint is: one of a zone, a canary.
fn by_endpoint(stream: &Stream, cluster: &Cluster, count: impl Fn(&Responses)) {
    let Some(member) = &stream.upstream.member else { return };
    cluster.stats.of_zone(member, &count);
    if let Some(responses) = cluster.stats.responses_of(ResponseKind::Canary).filter(|_| member.is_canary()) {
        count(responses);
    }
}

fn origin(stream: &Stream) -> ResponseKind {
    if stream.internal { ResponseKind::Internal } else { ResponseKind::External }
}
