//! How the names of a cluster are resolved.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{Discovery, DnsBackoff, DnsFamily, DnsOptions, DnsServers};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{
    CustomClusterType, DnsLookupFamily, RefreshRate,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Address as ProtoAddress, DnsResolutionConfig, DnsResolverOptions, TypedExtensionConfig, address,
};
use sixfold_xds_api::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as CommonFamily;
use sixfold_xds_api::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use sixfold_xds_api::pb::envoy::extensions::clusters::dns::v3::dns_cluster::RefreshRate as ClusterRate;
use sixfold_xds_api::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use sixfold_xds_api::pb::envoy::extensions::network::dns_resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig;
use sixfold_xds_api::pb::google::protobuf::Duration as ProtoDuration;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{
    Result, back_off, duration_or, enum_value, ip_address, positive_duration, u32_in,
};

use crate::context::Context;

const DNS_CLUSTER: &str = "envoy.extensions.clusters.dns.v3.DnsCluster";
const CARES: &str = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";
const GETADDRINFO: &str = "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig";

/// Interval between look-ups unless the cluster says otherwise.
const REFRESH: Duration = Duration::from_secs(5);

/// The fields of a cluster of type STRICT_DNS or LOGICAL_DNS.
pub(super) fn options(context: &Context, value: &ProtoCluster) -> Result<DnsOptions> {
    let rate =
        |RefreshRate { base_interval, max_interval }: &RefreshRate| backoff(base_interval, max_interval);
    Ok(DnsOptions {
        refresh: positive_duration(&value.dns_refresh_rate, REFRESH, "dns_refresh_rate")?,
        respect_ttl: value.respect_dns_ttl,
        min_ttl: Duration::ZERO,
        jitter: duration_or(&value.dns_jitter, Duration::ZERO, "dns_jitter")?,
        failure: value
            .dns_failure_refresh_rate
            .as_ref()
            .map(rate)
            .transpose()
            .in_key("dns_failure_refresh_rate")?,
        family: match enum_value(value.dns_lookup_family, "dns_lookup_family")? {
            DnsLookupFamily::Auto => DnsFamily::Auto,
            DnsLookupFamily::V4Only => DnsFamily::V4Only,
            DnsLookupFamily::V6Only => DnsFamily::V6Only,
            DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
            DnsLookupFamily::All => DnsFamily::All,
        },
        servers: own_servers(value)?.or_else(|| context.dns_servers.clone()),
    })
}

/// A `cluster_type` that is DNS.
pub(super) fn custom(context: &Context, value: &CustomClusterType) -> Result<Discovery> {
    let CustomClusterType { name, typed_config } = value;
    let config = match (typed_config, name.as_str()) {
        (None, "envoy.cluster.dns") => DnsCluster::default(),
        (Some(config), _) if any::type_name(config).in_key("typed_config")? == DNS_CLUSTER => {
            any::unpack(config).in_key("typed_config")?
        }
        _ => return Err(ConfigError::new(format!("\"{name}\" is not supported"))),
    };
    cluster(context, &config).in_key("typed_config")
}

fn cluster(context: &Context, value: &DnsCluster) -> Result<Discovery> {
    let DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = value;
    let rate =
        |ClusterRate { base_interval, max_interval }: &ClusterRate| backoff(base_interval, max_interval);
    let servers = typed_dns_resolver_config.as_ref().map(extension);
    let options = DnsOptions {
        refresh: positive_duration(dns_refresh_rate, REFRESH, "dns_refresh_rate")?,
        respect_ttl: *respect_dns_ttl,
        min_ttl: duration_or(dns_min_refresh_rate, Duration::ZERO, "dns_min_refresh_rate")?,
        jitter: duration_or(dns_jitter, Duration::ZERO, "dns_jitter")?,
        failure: dns_failure_refresh_rate
            .as_ref()
            .map(rate)
            .transpose()
            .in_key("dns_failure_refresh_rate")?,
        family: match enum_value(*dns_lookup_family, "dns_lookup_family")? {
            CommonFamily::Unspecified | CommonFamily::Auto => DnsFamily::Auto,
            CommonFamily::V4Only => DnsFamily::V4Only,
            CommonFamily::V6Only => DnsFamily::V6Only,
            CommonFamily::V4Preferred => DnsFamily::V4Preferred,
            CommonFamily::All => DnsFamily::All,
        },
        servers: match servers.transpose().in_key("typed_dns_resolver_config")? {
            Some(servers) => shared(servers),
            None => context.dns_servers.clone(),
        },
    };
    Ok(match all_addresses_in_single_endpoint {
        true => Discovery::LogicalDns(options),
        false => Discovery::StrictDns(options),
    })
}

fn backoff(base: &Option<ProtoDuration>, max: &Option<ProtoDuration>) -> Result<DnsBackoff> {
    let (base, max) = back_off(base, max)?;
    // Envoy's rule; and a time that is none asks without end.
    if base <= Duration::from_millis(1) {
        return Err(ConfigError::field("base_interval", "must be longer than 0.001s"));
    }
    Ok(DnsBackoff { base, max })
}

/// Whom the cluster's names are asked of, if it says so.
fn own_servers(value: &ProtoCluster) -> Result<Option<Arc<DnsServers>>> {
    let ProtoCluster {
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        ..
    } = value;
    let old = DnsServers {
        addresses: addresses(dns_resolvers, "dns_resolvers")?,
        tcp_only: *use_tcp_for_dns_lookups,
        ..ordinary()
    };
    servers(typed_dns_resolver_config, dns_resolution_config, old)
}

/// Whom to ask by the fields that clusters and bootstraps have in common, the newer ones first; `old` is what the
/// oldest say. `None` are those of the process.
pub(crate) fn servers(
    typed: &Option<TypedExtensionConfig>,
    resolution: &Option<DnsResolutionConfig>,
    old: DnsServers,
) -> Result<Option<Arc<DnsServers>>> {
    let servers = match (typed, resolution) {
        (Some(typed), _) => extension(typed).in_key("typed_dns_resolver_config")?,
        (None, Some(DnsResolutionConfig { resolvers, dns_resolver_options })) => DnsServers {
            addresses: addresses(resolvers, "resolvers").in_key("dns_resolution_config")?,
            ..with_options(dns_resolver_options.as_ref())
        },
        (None, None) => old,
    };
    Ok(shared(servers))
}

/// Servers of the process need no mention.
fn shared(servers: DnsServers) -> Option<Arc<DnsServers>> {
    (servers != ordinary()).then(|| Arc::new(servers))
}

/// The system's.
pub(crate) fn ordinary() -> DnsServers {
    DnsServers { search: true, ..DnsServers::default() }
}

fn with_options(options: Option<&DnsResolverOptions>) -> DnsServers {
    match options {
        Some(DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain }) => {
            DnsServers { tcp_only: *use_tcp_for_dns_lookups, search: !no_default_search_domain, ..ordinary() }
        }
        None => ordinary(),
    }
}

fn extension(value: &TypedExtensionConfig) -> Result<DnsServers> {
    let TypedExtensionConfig { name, typed_config } = value;
    let Some(config) = typed_config else { return Err(ConfigError::field("typed_config", "is missing")) };
    match any::type_name(config).in_key("typed_config")?.as_str() {
        CARES => any::unpack(config).and_then(|config| cares(&config)).in_key("typed_config"),
        GETADDRINFO => {
            // Nobody blocks a thread here.
            let GetAddrInfoDnsResolverConfig { num_retries, num_resolver_threads: _ } =
                any::unpack(config).in_key("typed_config")?;
            let tries = num_retries.map(|retries| retries.value.saturating_add(1));
            Ok(DnsServers { tries, ..ordinary() })
        }
        other => Err(refuse::extension("DNS resolver", name, other)),
    }
}

fn cares(value: &CaresDnsResolverConfig) -> Result<DnsServers> {
    let CaresDnsResolverConfig {
        resolvers,
        use_resolvers_as_fallback,
        filter_unroutable_families,
        dns_resolver_options,
        // Every question has a socket of its own: no channel lives long, or serves many.
        udp_max_queries: _,
        query_timeout_seconds,
        query_tries,
        rotate_nameservers,
        edns0_max_payload_size,
        max_udp_channel_duration: _,
        reinit_channel_on_timeout: _,
        qcache_max_ttl,
    } = value;
    refuse!(filter_unroutable_families, edns0_max_payload_size, qcache_max_ttl);
    let timeout = match query_timeout_seconds.map(|seconds| seconds.value) {
        Some(0) => return Err(ConfigError::field("query_timeout_seconds", "must be at least 1, not 0")),
        seconds => seconds.map(Duration::from_secs),
    };
    let tries = match query_tries {
        Some(_) => Some(u32_in(query_tries, 1, 1..=u32::MAX, "query_tries")?),
        None => None,
    };
    Ok(DnsServers {
        addresses: addresses(resolvers, "resolvers")?,
        fallback: *use_resolvers_as_fallback,
        timeout,
        tries,
        rotate: *rotate_nameservers,
        ..with_options(dns_resolver_options.as_ref())
    })
}

fn addresses(values: &[ProtoAddress], field: &str) -> Result<Vec<SocketAddr>> {
    let address = |(index, value): (usize, &ProtoAddress)| match &value.address {
        Some(address::Address::SocketAddress(address)) => {
            ip_address(address).in_key("socket_address").in_index(index).in_key(field)
        }
        _ => Err(ConfigError::new("must be an IP address").in_index(index).in_key(field)),
    };
    values.iter().enumerate().map(address).collect()
}
