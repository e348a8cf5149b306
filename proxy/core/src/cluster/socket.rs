//! Which transport an endpoint is spoken to by: plain text, or one of several settings of TLS.

use super::{Cluster, ClusterConfig, Discovery, Member};
use crate::metadata::Metadata;
use crate::tls::ClientTls;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The namespace of endpoints' metadata that matches are looked up in.
const NAMESPACE: &str = "envoy.transport_socket_match";

/// A transport for some endpoints (config/cluster/v3 `transport_socket_matches`).
#[derive(Debug)]
pub struct SocketMatch {
    /// What of the metadata an endpoint must have; nothing matches all.
    pub criteria: Map<String, Value>,
    /// TLS towards it; `None` is plain text.
    pub tls: Option<Arc<ClientTls>>,
}

impl SocketMatch {
    /// As Envoy's `metadataLabelMatch`: each value must be there and equal.
    fn matches(&self, metadata: &Metadata) -> bool {
        let values = metadata.get(NAMESPACE);
        self.criteria.iter().all(|(key, wanted)| values.and_then(|values| values.get(key)) == Some(wanted))
    }
}

impl Cluster {
    /// TLS towards an endpoint; `None` is plain text.
    #[inline]
    pub fn tls_of<'a>(&'a self, member: &'a Member) -> Option<&'a Arc<ClientTls>> {
        match self.config.discovery {
            _ if self.config.socket_matches.is_empty() => self.config.tls.as_ref(),
            // Who finds them is another cluster's too, with other settings.
            Discovery::OriginalDst(_) => self.config.matched(&member.metadata),
            _ => member.tls.as_ref(),
        }
    }
}

impl ClusterConfig {
    /// What a [`Member`] keeps of this: nothing where all endpoints are alike.
    pub(super) fn own_tls(&self, metadata: &Metadata) -> Option<&Arc<ClientTls>> {
        if self.socket_matches.is_empty() { None } else { self.matched(metadata) }
    }

    /// By the first match, else the cluster's own.
    fn matched(&self, metadata: &Metadata) -> Option<&Arc<ClientTls>> {
        match self.socket_matches.iter().find(|socket| socket.matches(metadata)) {
            Some(socket) => socket.tls.as_ref(),
            None => self.tls.as_ref(),
        }
    }

    /// Every TLS that its endpoints may be spoken to by.
    pub fn all_tls(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        self.tls.iter().chain(self.socket_matches.iter().filter_map(|socket| socket.tls.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::{Address, HostConfig};
    use crate::metrics::Registry;
    use serde_json::json;

    fn socket(criteria: Value, tls: Option<&Arc<ClientTls>>) -> SocketMatch {
        let Value::Object(criteria) = criteria else { return socket(json!({}), tls) };
        SocketMatch { criteria, tls: tls.cloned() }
    }

    fn endpoint(port: u16, mode: Option<&str>) -> HostConfig {
        let mut endpoint = HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()));
        if let Some(mode) = mode {
            endpoint.metadata.insert(NAMESPACE, json!({"tlsMode": mode, "other": 1}));
        }
        endpoint
    }

    /// Which of `known` each endpoint is spoken to by.
    fn chosen(cluster: &Cluster, known: &[&Arc<ClientTls>]) -> Vec<Option<usize>> {
        let set = cluster.hosts.load();
        let at = |tls: &Arc<ClientTls>| known.iter().position(|known| Arc::ptr_eq(known, tls));
        set.iter().map(|member| cluster.tls_of(member).and_then(at)).collect()
    }

    #[test]
    fn the_first_match_counts_for_each_endpoint_and_what_its_metadata_says_now() {
        let (own, istio) = (ClientTls::new(None), ClientTls::new(None));
        let config = |matches: Vec<SocketMatch>| ClusterConfig {
            tls: Some(own.clone()),
            socket_matches: matches.into(),
            ..ClusterConfig::named("c")
        };
        let by_mode =
            || vec![socket(json!({"tlsMode": "istio"}), Some(&istio)), socket(json!({"x": 1}), None)];
        let with_rest = || by_mode().into_iter().chain([socket(json!({}), None)]).collect();
        let endpoints = || vec![endpoint(1, Some("istio")), endpoint(2, Some("disabled")), endpoint(3, None)];
        let make = |config, endpoints, previous: Option<&Cluster>| {
            Cluster::new(config, endpoints, previous, &Registry::new()).unwrap()
        };
        let first = make(config(by_mode()), endpoints(), None);
        let known = [&own, &istio];
        assert_eq!(chosen(&first, &known), [Some(1), Some(0), Some(0)]);
        // Other matches and equal endpoints: hosts stay, what they are spoken to by does not.
        let second = make(config(with_rest()), endpoints(), Some(&first));
        assert_eq!(chosen(&second, &known), [Some(1), None, None]);
        assert_eq!(chosen(&first, &known), [Some(1), Some(0), Some(0)]);
        let id = |cluster: &Cluster| cluster.hosts.load().iter().next().unwrap().host.id;
        assert_eq!(id(&first), id(&second));
        second.update_hosts(vec![endpoint(1, None), endpoint(2, Some("istio"))]);
        assert_eq!(chosen(&second, &known), [None, Some(1)]);
        assert_eq!(second.config.all_tls().count(), 2);
    }

    #[test]
    fn endpoints_that_come_by_themselves_are_matched_anew_when_their_cluster_changes() {
        let istio = ClientTls::new(None);
        let make = |matches: Vec<SocketMatch>, previous: Option<&Cluster>| {
            let mut config = ClusterConfig { socket_matches: matches.into(), ..ClusterConfig::named("c") };
            config.discovery = crate::cluster::Discovery::Eds(std::time::Duration::MAX);
            Cluster::new(config, Vec::new(), previous, &Registry::new()).unwrap()
        };
        let plain = make(Vec::new(), None);
        plain.update_hosts(vec![endpoint(1, Some("istio"))]);
        assert_eq!(chosen(&plain, &[&istio]), [None]);
        let mutual = make(vec![socket(json!({"tlsMode": "istio"}), Some(&istio))], Some(&plain));
        assert_eq!(chosen(&mutual, &[&istio]), [Some(0)]);
    }
}
