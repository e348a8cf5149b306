//! Transport sockets: plain text or TLS, and towards endpoints the PROXY protocol before either.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::{Message, Name};
use sixfold_core::cluster::SocketMatch;
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::proxy_protocol::Version;
use sixfold_core::tls::{ClientTls, ServerTls};
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use sixfold_xds_api::pb::envoy::config::core::v3::proxy_protocol_config::Version as ProtoVersion;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    ProxyProtocolConfig, TransportSocket, transport_socket::ConfigType,
};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, UpstreamTlsContext,
};
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::values::{Result, enum_value, required};
use sixfold_xds_api::{any, refuse};

use super::AutomaticNames;
use crate::cluster::Protocol;
use crate::context::Context;
use crate::sds;

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// The transport socket of a filter chain for these server names; `None` is plain text. `scope` is what its statistics
/// begin with.
pub(crate) fn server(
    context: &Context,
    socket: &Option<TransportSocket>,
    server_names: &[String],
    scope: &str,
) -> Result<Option<Arc<ServerTls>>> {
    let Some((config, kind)) = typed(socket)? else { return Ok(None) };
    let Some(tls) = of_type::<DownstreamTlsContext>(socket, config, &kind)? else { return Ok(None) };
    sds::server(context, &tls, server_names, scope).map(Some).in_key("typed_config")
}

/// How the endpoints of a cluster are spoken to.
#[derive(Default)]
pub(crate) struct Transports {
    /// TLS of those that nothing of `matches` is for; `None` is plain text.
    pub(crate) tls: Option<Arc<ClientTls>>,
    /// By their metadata.
    pub(crate) matches: Arc<[SocketMatch]>,
    /// How all of them are told whose connection they are given.
    pub(crate) proxy_protocol: Option<Version>,
}

/// What one transport socket says.
#[derive(Default)]
struct Transport {
    tls: Option<Arc<ClientTls>>,
    proxy_protocol: Option<Version>,
}

impl Transports {
    /// Those of a cluster. `scope` is what their statistics begin with.
    pub(crate) fn of(
        context: &Context,
        value: &Cluster,
        protocol: &Protocol,
        scope: &str,
    ) -> Result<Transports> {
        const MATCHES: &str = "transport_socket_matches";
        let mut faults = Faults::default();
        let own = transport(context, &value.transport_socket, protocol, scope).in_key("transport_socket");
        let own = faults.take(own);
        let matches = matches(context, &value.transport_socket_matches, protocol, scope).in_key(MATCHES);
        let matches = faults.take(matches);
        faults.end(())?;
        // Nobody is spoken to by the cluster's own where there is none and a match is for everybody.
        let spared = value.transport_socket.is_none() && matches.iter().any(|(m, _)| m.criteria.is_empty());
        let all = matches.iter().map(|(_, version)| *version);
        let mut all = all.chain((!spared).then_some(own.proxy_protocol));
        let proxy_protocol = all.next().flatten();
        if all.any(|other| other != proxy_protocol) {
            let reason = "all transport sockets of a cluster must use the PROXY protocol alike";
            return Err(ConfigError::field(MATCHES, reason));
        }
        let matches = matches.into_iter().map(|(socket, _)| socket).collect();
        Ok(Transports { tls: own.tls, matches, proxy_protocol })
    }
}

/// The transport socket beneath; `None` is plain text.
fn client(
    context: &Context,
    socket: &Option<TransportSocket>,
    protocol: &Protocol,
    scope: &str,
) -> Result<Option<Arc<ClientTls>>> {
    let Some((config, kind)) = typed(socket)? else { return Ok(None) };
    let Some(tls) = of_type::<UpstreamTlsContext>(socket, config, &kind)? else { return Ok(None) };
    let names = AutomaticNames { sni: protocol.auto_sni, san_validation: protocol.auto_san_validation };
    sds::client(context, &tls, names, scope).map(Some).in_key("typed_config")
}

/// One towards endpoints.
fn transport(
    context: &Context,
    socket: &Option<TransportSocket>,
    protocol: &Protocol,
    scope: &str,
) -> Result<Transport> {
    if let Some((config, kind)) = typed(socket)?
        && kind == ProxyProtocolUpstreamTransport::full_name()
    {
        let wrapped = || {
            let wrapped: ProxyProtocolUpstreamTransport = any::unpack(config)?;
            let ProxyProtocolUpstreamTransport {
                config,
                transport_socket,
                allow_unspecified_address,
                tlv_as_pool_key,
            } = &wrapped;
            refuse!(allow_unspecified_address, tlv_as_pool_key);
            required(transport_socket, "transport_socket")?;
            let version = config.as_ref().map(version).transpose().in_key("config")?.unwrap_or(Version::V1);
            let tls = client(context, transport_socket, protocol, scope).in_key("transport_socket")?;
            Ok(Transport { tls, proxy_protocol: Some(version) })
        };
        return wrapped().in_key("typed_config");
    }
    let tls = client(context, socket, protocol, scope)?;
    Ok(Transport { tls, proxy_protocol: None })
}

fn version(value: &ProxyProtocolConfig) -> Result<Version> {
    let ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = value;
    refuse!(pass_through_tlvs, added_tlvs);
    Ok(match enum_value(*version, "version")? {
        ProtoVersion::V1 => Version::V1,
        ProtoVersion::V2 => Version::V2,
    })
}

/// Transports of endpoints by their metadata.
fn matches(
    context: &Context,
    values: &[TransportSocketMatch],
    protocol: &Protocol,
    scope: &str,
) -> Result<Vec<(SocketMatch, Option<Version>)>> {
    let mut names = BTreeSet::new();
    let matches = values.iter().enumerate().map(|(index, value)| {
        let TransportSocketMatch { name, r#match: criteria, transport_socket } = value;
        let mut compiled = || {
            if !names.insert(name.as_str()) {
                return Err(ConfigError::field("name", format!("\"{name}\" is given twice")));
            }
            let criteria = match criteria.clone().map(any::struct_to_json) {
                Some(serde_json::Value::Object(criteria)) => criteria,
                _ => serde_json::Map::new(),
            };
            required(transport_socket, "transport_socket")?;
            let Transport { tls, proxy_protocol } =
                transport(context, transport_socket, protocol, scope).in_key("transport_socket")?;
            Ok((SocketMatch { criteria, tls }, proxy_protocol))
        };
        compiled().in_index(index)
    });
    collect(matches)
}

/// The settings of a socket and their type.
fn typed(socket: &Option<TransportSocket>) -> Result<Option<(&Any, String)>> {
    let Some(TransportSocket { name: _, config_type }) = socket else { return Ok(None) };
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let kind = any::type_name(config).in_key("typed_config")?;
    Ok(Some((config, kind)))
}

/// The TLS settings, `None` if it is plain text.
fn of_type<M: Message + Default + Name>(
    socket: &Option<TransportSocket>,
    config: &Any,
    kind: &str,
) -> Result<Option<M>> {
    if kind == RAW_BUFFER {
        return Ok(None);
    }
    if kind != M::full_name() {
        let name = socket.as_ref().map_or("", |socket| socket.name.as_str());
        return Err(refuse::extension("transport socket", name, kind));
    }
    any::unpack(config).map(Some).in_key("typed_config")
}
