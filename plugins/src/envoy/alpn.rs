//! Istio's alpn filter (contrib/istio/filters/http/alpn): by what is offered in the handshake the sidecar of an endpoint learns which
//! version of HTTP is spoken within.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::message::Version;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_core::tls::AlpnList;
use sixfold_xds_api::istio_pb::istio::envoy::config::filter::http::alpn::v2alpha1::FilterConfig;
use sixfold_xds_api::istio_pb::istio::envoy::config::filter::http::alpn::v2alpha1::filter_config::{
    AlpnOverride, Protocol,
};

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build).stateless()
}

/// Of two lists for one version the first counts, as in Envoy.
fn build(config: FilterConfig, _: &BuildContext) -> Built {
    let FilterConfig { alpn_override } = config;
    let mut alpn = Alpn::default();
    for (index, AlpnOverride { upstream_protocol, alpn_override }) in alpn_override.iter().enumerate() {
        let place = match Protocol::try_from(*upstream_protocol) {
            Ok(Protocol::Http10) => &mut alpn.http10,
            Ok(Protocol::Http11) => &mut alpn.http11,
            Ok(Protocol::Http2) => &mut alpn.http2,
            Err(_) => {
                let unknown = ConfigError::field("upstream_protocol", "is unknown");
                return Err(unknown).in_index(index).in_key("alpn_override");
            }
        };
        let fits = |protocol: &String| (1..=255).contains(&protocol.len());
        if !alpn_override.iter().all(fits) {
            let reason = "a protocol has between 1 and 255 bytes (RFC 7301 section 3.1)";
            return Err(ConfigError::field("alpn_override", reason)).in_index(index).in_key("alpn_override");
        }
        let list = || AlpnList::new(alpn_override.iter().map(String::as_bytes));
        *place = place.take().or_else(|| (!alpn_override.is_empty()).then(list));
    }
    Ok(Plugin::of(alpn).before_proxy(Alpn::offer).build())
}

/// What is offered for each version.
#[derive(Default)]
struct Alpn {
    http10: Option<AlpnList>,
    http11: Option<AlpnList>,
    http2: Option<AlpnList>,
}

impl Alpn {
    fn offer(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let Some(cluster) = &stream.upstream.cluster else { return Step::Continue };
        if cluster.config.mesh.as_ref().is_some_and(|mesh| mesh.keeps_alpn) {
            return Step::Continue;
        }
        let list = match (cluster.config.protocol, stream.request.version) {
            (UpstreamProtocol::Http2 | UpstreamProtocol::Auto, _)
            | (UpstreamProtocol::Downstream, Version::Http2) => &self.http2,
            (UpstreamProtocol::Downstream, Version::Http10) => &self.http10,
            (UpstreamProtocol::Http1 | UpstreamProtocol::Downstream, _) => &self.http11,
        };
        stream.upstream.offer.clone_from(list);
        Step::Continue
    }
}
