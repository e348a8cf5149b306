//! Filter chains and their conditions.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::hcm::ListenerHttpStats;
use sixfold_core::listener::{FilterChain, FilterChainMatch, NetworkFilter, SourceType};
use sixfold_core::metrics::named_scope;
use sixfold_xds_api::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use sixfold_xds_api::pb::envoy::config::listener::v3::{
    FilterChain as ProtoChain, FilterChainMatch as ProtoMatch,
};

use super::{ChainPlace, fingerprint, network};
use crate::context::Context;
use crate::tls;
use sixfold_xds_api::values::{Result, cidrs, enum_value, port, timeout_or};
use sixfold_xds_api::{metadata, refused};

/// The most a TLS handshake may take without `transport_socket_connect_timeout`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn compile(
    context: &Context,
    listener: &str,
    scope: &str,
    value: &ProtoChain,
    place: ChainPlace,
) -> Result<FilterChain> {
    let ProtoChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    let mut faults = Faults::default();
    faults.take(refused!(use_proxy_proto));
    let server_names = filter_chain_match.as_ref().map_or(&[][..], |matches| &matches.server_names);
    let tls = tls::server(context, transport_socket, server_names, scope).in_key("transport_socket");
    let tls = faults.take(tls);
    let matches = filter_chain_match.as_ref().map(conditions).transpose().in_key("filter_chain_match");
    let matches = faults.take(matches).unwrap_or_default();
    let handshake_timeout =
        faults.take(timeout_or(transport_socket_connect_timeout, None, "transport_socket_connect_timeout"));
    // Maps have no fixed order on the wire. There are none but in metadata: settings of filters are bytes here.
    let encoded = ProtoChain { metadata: None, ..value.clone() }.encode_to_vec();
    let place = ChainPlace { chain: fingerprint(&[listener.as_bytes(), b"\0", &encoded].concat()), ..place };
    let mark = context.extensions.mark();
    let filters = faults.keep(network::filters(context, filters, place).in_key("filters"));
    // Open connections keep the filters they began with: a chain whose filters have changed is another one, and drains.
    let metadata = metadata::namespaces(metadata);
    let of_metadata =
        metadata.iter().fold(String::new(), |all, (name, value)| all + name + &value.to_string());
    let whole = [encoded, context.extensions.brought_since(mark), of_metadata.into_bytes()].concat();
    let (filters, filter) = faults.kept(filters)?;
    show_by_listener(context, scope, &filter);
    faults.end(FilterChain {
        name: name.as_str().into(),
        matches,
        tls,
        handshake_timeout: handshake_timeout.unwrap_or_else(|| default_handshake_timeout(&filter)),
        filters,
        filter,
        metadata: Arc::new(metadata),
        fingerprint: fingerprint(&whole),
    })
}

/// Shows the responses of a connection manager under the listener's name too.
fn show_by_listener(context: &Context, scope: &str, filter: &NetworkFilter) {
    match filter {
        NetworkFilter::Http(manager) => {
            let prefix = named_scope(&[scope, "http", &manager.stat_prefix]);
            if let Some(block) = manager.stats.shared() {
                let shown = move || ListenerHttpStats::apart(&prefix).shared().cloned();
                context.compile.metrics().mirror(block, shown);
            }
        }
        NetworkFilter::Tcp(_) | NetworkFilter::Routed(_) | NetworkFilter::Direct(_) => {}
    }
}

/// Without a timeout of its own a handshake ends with the idle timeout of the connection manager, as in Envoy, and
/// after a minute at the latest: nobody means an hour.
fn default_handshake_timeout(filter: &NetworkFilter) -> Duration {
    match filter {
        NetworkFilter::Http(manager) => {
            let idle = manager.timeouts.idle.filter(|idle| !idle.is_zero());
            idle.map_or(HANDSHAKE_TIMEOUT, |idle| idle.min(HANDSHAKE_TIMEOUT))
        }
        NetworkFilter::Tcp(_) | NetworkFilter::Routed(_) | NetworkFilter::Direct(_) => HANDSHAKE_TIMEOUT,
    }
}

fn conditions(value: &ProtoMatch) -> Result<FilterChainMatch> {
    let ProtoMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    let mut faults = Faults::default();
    faults.take(refused!(address_suffix, suffix_len));
    let destination_port = destination_port.as_ref().map(|value| port(value.value, "destination_port"));
    let matches = FilterChainMatch {
        destination_port: faults.take(destination_port.transpose()),
        destination: faults.take(cidrs(prefix_ranges, "prefix_ranges")),
        server_names: faults.take(collect(server_names.iter().map(|name| server_name(name)))),
        transport: (!transport_protocol.is_empty()).then(|| transport_protocol.as_str().into()),
        application_protocols: application_protocols.iter().map(|name| name.as_str().into()).collect(),
        direct_source: faults.take(cidrs(direct_source_prefix_ranges, "direct_source_prefix_ranges")),
        source_type: match faults.take(enum_value(*source_type, "source_type")) {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source: faults.take(cidrs(source_prefix_ranges, "source_prefix_ranges")),
        source_ports: faults.take(collect(source_ports.iter().map(|value| port(*value, "source_ports")))),
    };
    faults.end(matches)
}

/// A name, a wildcard, or "", which stands for all names as no list does. As in Envoy a star behind the first label is a
/// character like another, which no name has.
fn server_name(name: &str) -> Result<Box<str>> {
    if name.contains('*') && !name.starts_with("*.") {
        let reason =
            format!("\"{name}\": a wildcard must stand for the first labels, as in \"*.example.com\"");
        return Err(ConfigError::field("server_names", reason));
    }
    Ok(name.to_ascii_lowercase().into())
}
