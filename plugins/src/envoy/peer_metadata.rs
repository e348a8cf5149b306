//! Istio's peer metadata (contrib/istio/filters/http/peer_metadata): the two sidecars of a call tell each other by headers which
//! workloads they serve. What they tell is for logs and statistics behind this filter; neither application sees it.

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::peers;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sixfold_core::headers::{self, Headers, Known};
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_core::workload::{Peer, Sent, Workload};
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::Config;
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::config::discovery_method::MethodSpecifier as Discover;
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::config::propagation_method::MethodSpecifier as Propagate;
use sixfold_xds_api::istio_pb::io::istio::http::peer_metadata::config::{
    DiscoveryMethod, IstioHeaders, PropagationMethod,
};
use sixfold_xds_api::workload;

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build).stateless()
}

fn build(config: Config, context: &BuildContext) -> Built {
    let Config {
        downstream_discovery,
        upstream_discovery,
        downstream_propagation,
        upstream_propagation,
        // There are no connections inside of the process that could share it.
        shared_with_upstream: _,
        additional_labels,
    } = config;
    let labels: Box<[Box<str>]> = additional_labels.into_iter().map(String::into_boxed_str).collect();
    let own = Own::new(context, &labels);
    let (to_clients, to_upstreams) = (told(&downstream_propagation), told(&upstream_propagation));
    let filter = PeerMetadata {
        of_clients: Discovery::new(&downstream_discovery, true, &labels),
        of_upstreams: Discovery::new(&upstream_discovery, false, &labels),
        to_clients: to_clients.is_some(),
        skips_external: to_upstreams.is_some_and(|told| told.skip_external_clusters),
        own,
    };
    let (looks, answers) = (filter.of_clients.is_some(), filter.of_upstreams.is_some() || filter.to_clients);
    let mut plugin = Plugin::of(filter);
    if looks {
        plugin = plugin.access(PeerMetadata::meet_client).judging();
    }
    if to_upstreams.is_some() {
        plugin = plugin.before_proxy(PeerMetadata::tell_upstream);
    }
    if answers {
        plugin = plugin.header_filter(PeerMetadata::meet_upstream);
    }
    Ok(plugin.build())
}

/// How peers are told, if they are. There is one way.
fn told(methods: &[PropagationMethod]) -> Option<IstioHeaders> {
    methods.iter().find_map(|PropagationMethod { method_specifier }| {
        method_specifier.as_ref().map(|Propagate::IstioHeaders(headers)| *headers)
    })
}

struct PeerMetadata {
    of_clients: Option<Discovery>,
    of_upstreams: Option<Discovery>,
    to_clients: bool,
    /// Clusters outside of the mesh are told nothing.
    skips_external: bool,
    own: Own,
}

/// How the other side is found out, in this order.
struct Discovery {
    methods: Box<[Method]>,
    labels: Box<[Box<str>]>,
    /// Tells peers with other labels apart in what is remembered.
    number: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Headers,
    Baggage,
}

/// What we tell of ourselves.
struct Own {
    id: Vec<u8>,
    metadata: Vec<u8>,
}

impl Own {
    fn new(context: &BuildContext, labels: &[Box<str>]) -> Own {
        let sent = workload::encode(&context.node.workload(labels));
        // A name that no header can have is not told; what there is to tell is, as ever, in the metadata.
        let id = Some(context.node.id.as_bytes()).filter(|id| headers::control(id).is_none());
        Own { id: id.unwrap_or_default().to_vec(), metadata: STANDARD.encode(sent).into_bytes() }
    }
}

impl Discovery {
    /// Addresses are looked up nowhere: Envoy does so only with its bootstrap extension of workload discovery. Baggage says
    /// something of clients alone.
    fn new(methods: &[DiscoveryMethod], of_clients: bool, labels: &[Box<str>]) -> Option<Discovery> {
        let method = |DiscoveryMethod { method_specifier }: &DiscoveryMethod| match method_specifier {
            Some(Discover::IstioHeaders(_)) => Some(Method::Headers),
            Some(Discover::Baggage(_)) => of_clients.then_some(Method::Baggage),
            Some(Discover::WorkloadDiscovery(_)) | None => None,
        };
        let methods: Box<[Method]> = methods.iter().filter_map(method).collect();
        let number = sixfold_core::workload::identity(&labels);
        (!methods.is_empty()).then(|| Discovery { methods, labels: labels.into(), number })
    }

    /// Who has sent these headers; takes off those that are not for the application.
    fn find(&self, headers: &mut Headers) -> Option<Peer> {
        let found = self.methods.iter().find_map(|method| match method {
            Method::Headers => {
                let id = headers.get(Known::X_ENVOY_PEER_METADATA_ID).unwrap_or_default();
                self.of_header(id, headers.get(Known::X_ENVOY_PEER_METADATA)?)
            }
            Method::Baggage => {
                let text = headers.get_str("baggage")?;
                peers::remembered(0, text.as_bytes(), text.as_bytes(), |_| Some(Workload::of_baggage(text)))
            }
        });
        if self.methods.contains(&Method::Headers) {
            headers.remove(Known::X_ENVOY_PEER_METADATA_ID);
            headers.remove(Known::X_ENVOY_PEER_METADATA);
        }
        found
    }

    fn of_header(&self, id: &[u8], value: &[u8]) -> Option<Peer> {
        peers::remembered(self.number, id, value, |value| {
            workload::decode(&peers::base64(value)?, &self.labels)
        })
    }
}

impl PeerMetadata {
    fn meet_client(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let Some(discovery) = &self.of_clients else { return Step::Continue };
        let headers = &mut stream.request.headers;
        let sent = Sent {
            id: headers.contains(Known::X_ENVOY_PEER_METADATA_ID),
            metadata: headers.contains(Known::X_ENVOY_PEER_METADATA),
        };
        let found = discovery.find(headers);
        let peers = &mut stream.peers;
        peers.sent = sent;
        peers.downstream = peers.downstream.take().or(found);
        Step::Continue
    }

    /// The cluster is known by now, which says whether it is to be told.
    fn tell_upstream(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let mesh = stream.upstream.cluster.as_ref().and_then(|cluster| cluster.config.mesh.as_ref());
        if mesh.is_some_and(|mesh| mesh.tells_nothing || self.skips_external && mesh.external) {
            return Step::Continue;
        }
        let headers = &mut stream.request.headers;
        headers.set(Known::X_ENVOY_PEER_METADATA_ID, &self.own.id);
        headers.set(Known::X_ENVOY_PEER_METADATA, &self.own.metadata);
        Step::Continue
    }

    fn meet_upstream(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if let Some(discovery) = &self.of_upstreams {
            let found = discovery.find(&mut stream.response.headers);
            stream.peers.upstream = stream.peers.upstream.take().or(found);
        }
        let headers = &mut stream.response.headers;
        if self.to_clients && stream.peers.sent.id {
            headers.set(Known::X_ENVOY_PEER_METADATA_ID, &self.own.id);
        }
        if self.to_clients && stream.peers.sent.metadata {
            headers.set(Known::X_ENVOY_PEER_METADATA, &self.own.metadata);
        }
        Step::Continue
    }
}
