//! Where the route of a request leads: settled once, when the route is found. Envoy makes the member of weighted clusters that is
//! drawn, and the name of a cluster that a header holds, a part of the route (common/router/weighted_cluster_specifier.cc,
//! header_cluster_specifier.cc): filters run by what the member says of them, and can't lead the request elsewhere unless
//! they have the route chosen again.

use crate::cluster::Cluster;
use crate::hash;
use crate::plugin::Chain;
use crate::route::{Action, ClusterChoice, WeightedCluster};
use crate::stream::Stream;
use std::sync::Arc;

/// What was settled when the route of a request was found; nothing if its cluster stands in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Place of the member of weighted clusters.
    pub(crate) member: Option<u32>,
    /// The cluster that a header names, whether there is one or not.
    pub(crate) name: Option<Box<str>>,
}

impl Drawn {
    /// Draws for the route of the stream, by the request as it is now.
    pub fn of(stream: &Stream) -> Drawn {
        let route = stream.route.as_deref();
        let Some(Action::Forward(forward)) = route.map(|route| &route.action) else {
            return Drawn::default();
        };
        let ClusterChoice::Weighted(weighted) = &forward.cluster else {
            return Drawn { member: None, name: name(&forward.cluster, stream) };
        };
        // No cookie is made for it: the first request of a client goes anywhere.
        let hash = if weighted.use_hash { hash::hash_of_sent(&forward.hash, stream) } else { None };
        match hash::weighted(weighted, hash, stream) {
            Some((place, member)) => {
                Drawn { member: u32::try_from(place).ok(), name: name(&member.cluster, stream) }
            }
            None => Drawn::default(),
        }
    }

    /// The member of weighted clusters, if the route's choice is one among them.
    pub fn member<'r>(&self, choice: &'r ClusterChoice) -> Option<&'r WeightedCluster> {
        let ClusterChoice::Weighted(weighted) = choice else { return None };
        weighted.clusters.get(usize::try_from(self.member?).ok()?)
    }

    /// The cluster of the route's choice, as it is now.
    pub fn cluster(&self, choice: &ClusterChoice) -> Option<Arc<Cluster>> {
        match choice {
            ClusterChoice::Named(cell) => cell.load(),
            ClusterChoice::Header(_, clusters) => clusters.find(self.name.as_deref()?),
            ClusterChoice::Weighted(_) => self.cluster(&self.member(choice)?.cluster),
        }
    }

    /// Its name, whether there is one of that name or not.
    pub fn cluster_name<'a>(&'a self, choice: &'a ClusterChoice) -> Option<&'a str> {
        match choice {
            ClusterChoice::Named(cell) => Some(&cell.name),
            ClusterChoice::Header(..) => self.name.as_deref(),
            ClusterChoice::Weighted(_) => self.cluster_name(&self.member(choice)?.cluster),
        }
    }
}

/// The cluster that the stream's route leads to; `None` where it leads to none, or there is none of that name.
pub fn cluster_of(stream: &Stream) -> Option<Arc<Cluster>> {
    stream.upstream.drawn.cluster(stream.route.as_deref()?.leads_to()?)
}

/// The chain that the stream's request runs, if it is not the connection manager's: the route's with what the member says that
/// it leads to; without a route, what there is for that (APISIX's global rules).
pub fn chain(stream: &Stream) -> Option<&Arc<Chain>> {
    let Some(route) = stream.route.as_deref() else {
        return stream.virtual_host.as_deref()?.options.chain.as_ref();
    };
    let member = route.leads_to().and_then(|choice| stream.upstream.drawn.member(choice));
    member.and_then(|member| member.chain.as_ref()).or(route.chain.as_ref())
}

/// What a header names.
fn name(choice: &ClusterChoice, stream: &Stream) -> Option<Box<str>> {
    let ClusterChoice::Header(target, _) = choice else { return None };
    let value = target.values(&stream.request).next()?;
    Some(String::from_utf8_lossy(value).into())
}

#[cfg(test)]
mod tests;
