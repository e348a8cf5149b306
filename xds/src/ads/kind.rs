//! The types of resources that come over a stream.

use sixfold_xds_api::any::name_of_url;

/// A type of resource, in the order in which control planes send them and in which they go into force: what is
/// named before what names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS
    Cluster,
    /// EDS
    Endpoints,
    /// SDS
    Secret,
    /// ECDS
    Extension,
    /// RDS
    Routes,
    /// LDS
    Listener,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Kind; 6] =
        [Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Extension, Kind::Routes, Kind::Listener];

    /// The type URL of requests and responses.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        }
    }

    /// The kind of a type URL, whatever its host is.
    pub fn of_type_url(url: &str) -> Option<Kind> {
        let name = name_of_url(url);
        Kind::ALL.into_iter().find(|kind| name_of_url(kind.type_url()) == name)
    }

    /// Whether a client asks for all there are, and a response of the state of the world holds all there are: what
    /// is absent from it is gone. Of the others it never follows from absence that something is gone.
    pub fn is_wildcard(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }

    /// What people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Cluster => "cluster",
            Kind::Endpoints => "endpoints",
            Kind::Secret => "secret",
            Kind::Extension => "extension",
            Kind::Routes => "routes",
            Kind::Listener => "listener",
        }
    }

    /// The same of several.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Cluster => "clusters",
            Kind::Endpoints => "endpoints",
            Kind::Secret => "secrets",
            Kind::Extension => "extensions",
            Kind::Routes => "routes",
            Kind::Listener => "listeners",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_type() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_type_url(kind.type_url()), Some(kind));
        }
        assert_eq!(Kind::of_type_url("other.host/envoy.config.cluster.v3.Cluster"), Some(Kind::Cluster));
        assert_eq!(Kind::of_type_url("type.googleapis.com/istio.networking.nds.v1.NameTable"), None);
        assert!(Kind::ALL.is_sorted(), "the order of the list is that of the kinds");
    }
}
