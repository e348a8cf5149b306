//! Listener filters: what looks at the first bytes.

use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::listener::{ListenerFilter, PortSet};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use sixfold_xds_api::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use sixfold_xds_api::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{
    MatchSet, Rule,
};
use sixfold_xds_api::pb::envoy::config::listener::v3::{
    ListenerFilter as ProtoFilter, ListenerFilterChainMatchPredicate as Predicate,
};
use sixfold_xds_api::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use sixfold_xds_api::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use sixfold_xds_api::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, enum_value, one_of};

/// The filters of a listener. One that hands connections over by their original destination
/// (`use_original_dst`) has to know it, and as in Envoy it asks after all others.
pub(super) fn filters(values: &[ProtoFilter], use_original_dst: bool) -> Result<Vec<ListenerFilter>> {
    let filters = values.iter().enumerate().map(|(index, value)| filter(value).in_index(index));
    let mut filters = collect(filters).in_key("listener_filters")?;
    if use_original_dst && !filters.contains(&ListenerFilter::OriginalDst) {
        filters.push(ListenerFilter::OriginalDst);
    }
    Ok(filters)
}

fn filter(value: &ProtoFilter) -> Result<ListenerFilter> {
    let ProtoFilter { name, filter_disabled, config_type } = value;
    let filter = kind(name, config_type)?;
    Ok(match filter_disabled {
        None => filter,
        Some(value) => ListenerFilter::Except(ports(value).in_key("filter_disabled")?, Box::new(filter)),
    })
}

/// The destinations for which a condition holds. All of Envoy's conditions are about the port.
fn ports(value: &Predicate) -> Result<PortSet> {
    match one_of::<Predicate, _>(&value.rule, "rule")? {
        Rule::OrMatch(MatchSet { rules }) => {
            let rules = several(rules).in_key("or_match")?;
            Ok(rules.into_iter().fold(PortSet::default(), PortSet::union))
        }
        Rule::AndMatch(MatchSet { rules }) => {
            let rules = several(rules).in_key("and_match")?;
            Ok(rules.into_iter().fold(PortSet::all(), PortSet::intersection))
        }
        Rule::NotMatch(rule) => Ok(ports(rule).in_key("not_match")?.complement()),
        Rule::AnyMatch(true) => Ok(PortSet::all()),
        Rule::AnyMatch(false) => Err(ConfigError::field("any_match", "must be true")),
        Rule::DestinationPortRange(range) => {
            let port = |value: i32, field| match u32::try_from(value) {
                Ok(value @ ..=65_536) => Ok(value),
                _ => Err(ConfigError::field(field, "must be a port").in_key("destination_port_range")),
            };
            Ok(PortSet::range(port(range.start, "start")?, port(range.end, "end")?))
        }
    }
}

fn several(rules: &[Predicate]) -> Result<Vec<PortSet>> {
    if rules.len() < 2 {
        return Err(ConfigError::field("rules", "must hold at least two rules"));
    }
    let rules = rules.iter().enumerate().map(|(index, rule)| ports(rule).in_index(index));
    rules.collect::<Result<_>>().in_key("rules")
}

fn kind(name: &str, config_type: &Option<ConfigType>) -> Result<ListenerFilter> {
    let config = match config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::field("config_discovery", "is not supported"));
        }
        None => return Err(ConfigError::field("typed_config", "is missing")),
    };
    match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            tls_inspector(&any::unpack(config).in_key("typed_config")?).in_key("typed_config")
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            Ok(ListenerFilter::HttpInspector)
        }
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => Ok(ListenerFilter::OriginalDst),
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
            let OriginalSrc { bind_port, mark } =
                &any::unpack::<OriginalSrc>(config).in_key("typed_config")?;
            let refused = || {
                refuse!(bind_port);
                Ok(())
            };
            refused().in_key("typed_config")?;
            Ok(ListenerFilter::OriginalSrc(*mark))
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            proxy_protocol(&any::unpack(config).in_key("typed_config")?).in_key("typed_config")
        }
        other => Err(refuse::extension("listener filter", name, other)),
    }
}

fn tls_inspector(value: &TlsInspector) -> Result<ListenerFilter> {
    let TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        // How much is read at first; all that is needed is read in the end.
        initial_read_buffer_size: _,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    } = value;
    let enable_ja3_fingerprinting = &bool_or(enable_ja3_fingerprinting, false);
    let enable_ja4_fingerprinting = &bool_or(enable_ja4_fingerprinting, false);
    refuse!(
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size
    );
    Ok(ListenerFilter::TlsInspector)
}

fn proxy_protocol(value: &ProxyProtocol) -> Result<ListenerFilter> {
    let ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix,
        tlv_location,
    } = value;
    refuse!(rules, pass_through_tlvs, stat_prefix, tlv_location);
    let mut versions = (true, true);
    for version in disallowed_versions {
        match enum_value(*version, "disallowed_versions")? {
            Version::V1 => versions.0 = false,
            Version::V2 => versions.1 = false,
        }
    }
    if versions == (false, false) {
        return Err(ConfigError::field("disallowed_versions", "leaves no version"));
    }
    let optional = *allow_requests_without_proxy_protocol;
    Ok(ListenerFilter::ProxyProtocol { optional, versions, unspecified: false })
}
