//! Which cluster a request or a connection goes to.

use sixfold_core::cluster::Cluster;
use sixfold_core::hash;
use sixfold_core::route::{ClusterChoice, WeightedCluster};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// The cluster of a stream, and the weighted member that named it.
pub(crate) fn choose_cluster<'r>(
    choice: &'r ClusterChoice,
    stream: &Stream,
) -> (Option<Arc<Cluster>>, Option<&'r WeightedCluster>) {
    match choice {
        ClusterChoice::Named(cell) => (cell.load(), None),
        ClusterChoice::Header(target, clusters) => {
            let first = target.values(&stream.request).next();
            let name = first.and_then(|value| std::str::from_utf8(value).ok());
            (name.and_then(|name| clusters.find(name)), None)
        }
        ClusterChoice::Weighted(weighted) => match hash::weighted(weighted, stream) {
            Some(member) => (choose_cluster(&member.cluster, stream).0, Some(member)),
            None => (None, None),
        },
    }
}
