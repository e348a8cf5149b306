//! What Istio's control plane says of a cluster in its metadata, namespace `istio`.

use crate::metadata::Metadata;
use crate::workload::identity;
use serde_json::Value;

/// Clusters of a sidecar that stand for no service, and are called by their own names.
const ITSELF: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

/// A cluster as a mesh sees it. What is not said is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct MeshCluster {
    /// Stands for all that is said here ([`identity`]).
    pub number: u64,
    /// Whether it is outside of the mesh (`external`), as `PassthroughCluster` always is.
    pub external: bool,
    /// Whether its endpoints are told nothing of us (`disable_mx`).
    pub tells_nothing: bool,
    /// Whether its endpoints are offered only what the cluster says (`alpn_override: "false"`).
    pub keeps_alpn: bool,
    /// The service: `services[0].host`.
    pub host: Box<str>,
    /// `services[0].name`, else the first label of the host; the cluster's own name where it stands for no service.
    pub service: Box<str>,
    /// `services[0].namespace`
    pub namespace: Box<str>,
}

impl MeshCluster {
    /// Of a cluster of this name.
    pub fn new(name: &str, metadata: &Metadata) -> MeshCluster {
        let said = metadata.get("istio");
        let text = |of: Option<&Value>, key: &str| -> Box<str> {
            of.and_then(|of| of.get(key)).and_then(Value::as_str).unwrap_or_default().into()
        };
        let flag = |key: &str| said.and_then(|said| said.get(key)).and_then(Value::as_bool).unwrap_or(false);
        let itself = ITSELF.contains(&name);
        let service = said.and_then(|said| said.get("services")?.get(0)).filter(|_| !itself);
        let host = text(service, "host");
        let named = match text(service, "name") {
            _ if itself => name.into(),
            named if named.is_empty() => host.split('.').next().unwrap_or_default().into(),
            named => named,
        };
        let cluster = MeshCluster {
            number: 0,
            external: flag("external") || name == "PassthroughCluster",
            tells_nothing: flag("disable_mx"),
            keeps_alpn: &*text(said, "alpn_override") == "false",
            service: named,
            namespace: text(service, "namespace"),
            host,
        };
        MeshCluster { number: identity(&cluster), ..cluster }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn of(name: &str, said: Value) -> MeshCluster {
        let mut metadata = Metadata::default();
        metadata.insert("istio", said);
        MeshCluster::new(name, &metadata)
    }

    #[test]
    fn the_first_service_is_the_one_that_is_called() {
        let services =
            json!([{"host": "a.ns.svc.cluster.local", "name": "a", "namespace": "ns"}, {"host": "b"}]);
        let cluster =
            of("outbound|80||a", json!({"services": services, "external": true, "alpn_override": "false"}));
        assert_eq!(
            (&*cluster.host, &*cluster.service, &*cluster.namespace),
            ("a.ns.svc.cluster.local", "a", "ns")
        );
        assert!(cluster.external && cluster.keeps_alpn && !cluster.tells_nothing);
        let unnamed = of("c", json!({"services": [{"host": "x.y"}], "disable_mx": true}));
        assert_eq!((&*unnamed.service, unnamed.tells_nothing), ("x", true));
        assert_ne!(unnamed.number, cluster.number);
    }

    #[test]
    fn some_clusters_stand_for_themselves() {
        let passed = of("PassthroughCluster", json!({"services": [{"host": "x.y"}]}));
        assert_eq!((&*passed.service, &*passed.host, passed.external), ("PassthroughCluster", "", true));
        let silent = MeshCluster::new("c", &Metadata::default());
        assert_eq!((&*silent.service, &*silent.host, silent.external), ("", "", false));
    }
}
