//! Stream routes compiled to the model.

use std::sync::Arc;

use ipnet::IpNet;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::listener::{ConnectAttempts, ConnectionFilter, L4Condition, L4Route, SILENCE, TcpProxy};
use sixfold_core::route::{Action, ClusterChoice, Ids, PathMatch, Route as CoreRoute};

use crate::item::{network, violation};
use crate::resource::{Id, StreamRoute};
use crate::schema::Violation;
use crate::source::{ServiceParts, Streams};
use crate::upstream::Forwarding;

/// What a stream route has by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StreamTemplate {
    name: Arc<str>,
    condition: L4Condition,
}

/// What a stream route is linked with.
pub(crate) struct StreamParts<'a> {
    pub(crate) id: &'a Id,
    pub(crate) service: Option<(&'a Id, &'a ServiceParts)>,
    /// The cluster; one that there is not where neither route nor service name an upstream.
    pub(crate) cluster: Arc<ClusterCell>,
    pub(crate) forwarding: Option<&'a Forwarding>,
    pub(crate) filters: Arc<[Arc<dyn ConnectionFilter>]>,
    pub(crate) streams: &'a Streams,
}

/// What is wrong with a stream route beyond its schema, in APISIX's words.
pub(crate) fn check(route: &StreamRoute) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (field, address) in [("remote_addr", &route.remote_addr), ("server_addr", &route.server_addr)] {
        if let Some(text) = address.as_deref().filter(|text| network(text).is_none()) {
            violations.push(violation(&[field], format!("invalid {field}: {text}")));
        }
    }
    if let Some(protocol) = &route.protocol {
        let hint = "protocols over streams (xRPC) are not part of the gateway: without `protocol` the bytes are passed on \
                    as they are";
        let unknown = violation(&["protocol"], format!("unknown protocol [{}]", protocol.name));
        violations.push(Violation { hint: Some(hint.to_owned()), ..unknown });
    }
    violations
}

impl StreamTemplate {
    /// From a resource that [`check`] has nothing against.
    pub(crate) fn of(route: &StreamRoute) -> StreamTemplate {
        let range = |address: &Option<String>| -> Option<IpNet> { address.as_deref().and_then(network) };
        StreamTemplate {
            name: route.name.as_deref().map(Into::into).unwrap_or_default(),
            condition: L4Condition {
                server_name: route.sni.as_deref().map(|name| name.to_ascii_lowercase().into()),
                remote: range(&route.remote_addr),
                local: range(&route.server_addr),
                // No listener has another one.
                port: route.server_port.map(|port| u16::try_from(port).unwrap_or(0)),
            },
        }
    }

    /// The compiled route.
    ///
    /// # Errors
    /// A key of consistent hashing that can't be read, which is told of every upstream.
    pub(crate) fn link(&self, parts: StreamParts<'_>) -> Result<L4Route, String> {
        let StreamParts { id, service, cluster, forwarding, filters, streams } = parts;
        let hash = forwarding.map(Forwarding::hash_policy).transpose()?.flatten();
        let silence = forwarding.and_then(|forwarding| forwarding.silence);
        let ids = Ids {
            route: id.text().clone(),
            service: service.map(|(id, _)| id.text().clone()).unwrap_or_default(),
            service_name: service.map(|(_, service)| service.name.clone()).unwrap_or_default(),
            ..Ids::default()
        };
        let path = PathMatch::Prefix(Box::default(), false);
        let route = CoreRoute { name: self.name.clone(), ids, ..CoreRoute::new(path, Action::NonForwarding) };
        let proxy = TcpProxy {
            stat_prefix: "stream_routes".into(),
            stats: streams.stats.clone(),
            cluster: ClusterChoice::Named(cluster),
            idle_timeout: Some(silence.unwrap_or(SILENCE)),
            max_duration: None,
            attempts: ConnectAttempts::OfCluster,
            hash: hash.into_iter().collect(),
            metadata_match: Default::default(),
            buffer_limit: 1 << 20,
            access_logs: Vec::new(),
        };
        let condition = self.condition.clone();
        Ok(L4Route { route: Arc::new(route), condition, filters, proxy: Arc::new(proxy) })
    }
}
