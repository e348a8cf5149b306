//! Istio's metadata_exchange for connections that come here (contrib/istio/filters/network/metadata_exchange). The other end of
//! it is a filter of clusters.

#[cfg(test)]
mod tests;

use crate::envoy;
use prost::Name;
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::plugin::NetworkFilterFactory;
use sixfold_xds_api::istio_pb::envoy::tcp::metadataexchange::config::MetadataExchange;
use sixfold_xds_api::workload;
use std::sync::Arc;

pub(crate) fn factory() -> NetworkFilterFactory {
    NetworkFilterFactory::new(MetadataExchange::full_name(), |config, context| {
        let config = envoy::decode::<MetadataExchange>(config)?;
        workload::exchange(&config, context).map(|exchange| exchange as Arc<dyn ConnectionFilter>)
    })
}
