//! Endpoints of a cluster: `load_assignment`, and what EDS delivers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{Address, EdsHealth, EndpointCheck, HostConfig, Locality};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_xds_api::pb::envoy::config::core::v3::{HealthStatus, Locality as ProtoLocality};
use sixfold_xds_api::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};

use sixfold_xds_api::metadata;
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{
    Endpoint as Where, Result, address, enum_value, fractional_percent, required, timeout_or, u32_in,
};

/// Percents by which an endpoint may be overloaded before the next priority helps out.
const OVERPROVISIONING: u32 = 140;

/// A compiled assignment.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadAssignment {
    /// The endpoints in the configuration's order.
    pub hosts: Vec<HostConfig>,
    /// Overprovisioning factor, percent; 140 by default.
    pub overprovisioning: u32,
    /// Requests of a million that are dropped; 0 by default.
    pub drop_overload: u32,
    /// After so long without another assignment there are no endpoints; `None` is never.
    pub stale_after: Option<Duration>,
}

/// Compiles an assignment; none at all is an empty one.
///
/// # Errors
/// The field and the reason.
pub fn compile(value: Option<&ClusterLoadAssignment>) -> std::result::Result<LoadAssignment, ConfigError> {
    let mut load = LoadAssignment {
        hosts: Vec::new(),
        overprovisioning: OVERPROVISIONING,
        drop_overload: 0,
        stale_after: None,
    };
    let Some(ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy }) = value else {
        return Ok(load);
    };
    refuse!(named_endpoints);
    let localities = endpoints
        .iter()
        .enumerate()
        .map(|(index, value)| locality(value, &mut load.hosts).in_index(index).in_key("endpoints"));
    collect(localities)?;
    if let Some(policy) = policy {
        apply_policy(policy, &mut load).in_key("policy")?;
    }
    Ok(load)
}

fn apply_policy(value: &Policy, load: &mut LoadAssignment) -> Result<()> {
    let Policy { drop_overloads, overprovisioning_factor, endpoint_stale_after, weighted_priority_health } =
        value;
    refuse!(weighted_priority_health);
    load.stale_after = timeout_or(endpoint_stale_after, None, "endpoint_stale_after")?;
    load.drop_overload = match &drop_overloads[..] {
        [] => 0,
        [DropOverload { category: _, drop_percentage }] => {
            let share = drop_percentage.as_ref().map_or(Ok(0), millionths).in_key("drop_percentage");
            share.in_index(0).in_key("drop_overloads")?
        }
        _ => return Err(ConfigError::field("drop_overloads", "must be one at most, as in Envoy")),
    };
    load.overprovisioning =
        u32_in(overprovisioning_factor, OVERPROVISIONING, 1..=u32::MAX, "overprovisioning_factor")?;
    Ok(())
}

/// A fraction in millionths; more than all is refused.
fn millionths(value: &FractionalPercent) -> Result<u32> {
    let (numerator, denominator) = fractional_percent(value)?;
    let share = numerator.saturating_mul(1_000_000) / denominator.max(1);
    match u32::try_from(share) {
        Ok(share @ ..=1_000_000) => Ok(share),
        _ => Err(ConfigError::new(format!("must be at most 100%, not {numerator} of {denominator}"))),
    }
}

fn locality(value: &LocalityLbEndpoints, hosts: &mut Vec<HostConfig>) -> Result<()> {
    let LocalityLbEndpoints {
        locality,
        // For people: nothing here is chosen by it or shows it.
        metadata: _,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = value;
    refuse!(proximity, lb_config);
    if *priority > 128 {
        return Err(ConfigError::field("priority", "must be at most 128"));
    }
    let locality = locality.as_ref().map(place).unwrap_or_default();
    let locality = (locality != *Locality::unknown()).then(|| Arc::new(locality));
    let endpoints = lb_endpoints
        .iter()
        .enumerate()
        .map(|(index, value)| endpoint(value).in_index(index).in_key("lb_endpoints"));
    for mut host in collect(endpoints)? {
        host.priority = *priority;
        host.locality = locality.clone();
        host.locality_weight = load_balancing_weight.as_ref().map(|weight| weight.value);
        hosts.push(host);
    }
    Ok(())
}

/// A locality; one without names is none in particular.
pub(crate) fn place(value: &ProtoLocality) -> Locality {
    let ProtoLocality { region, zone, sub_zone } = value;
    Locality {
        region: region.as_str().into(),
        zone: zone.as_str().into(),
        sub_zone: sub_zone.as_str().into(),
    }
}

fn endpoint(value: &LbEndpoint) -> Result<HostConfig> {
    let LbEndpoint { health_status, metadata: endpoint_metadata, load_balancing_weight, host_identifier } =
        value;
    let weight = u32_in(load_balancing_weight, 1, 1..=u32::MAX, "load_balancing_weight")?;
    let endpoint = match required(host_identifier, "endpoint")? {
        HostIdentifier::Endpoint(endpoint) => endpoint,
        HostIdentifier::EndpointName(_) => {
            return Err(ConfigError::field("endpoint_name", "is not supported"));
        }
    };
    let mut host = host(endpoint).in_key("endpoint")?;
    host.weight = weight;
    host.metadata = metadata::namespaces(endpoint_metadata);
    host.health = match enum_value(*health_status, "health_status")? {
        HealthStatus::Unknown => EdsHealth::Unknown,
        HealthStatus::Healthy => EdsHealth::Healthy,
        HealthStatus::Unhealthy => EdsHealth::Unhealthy,
        HealthStatus::Draining => EdsHealth::Draining,
        HealthStatus::Timeout => EdsHealth::Timeout,
        HealthStatus::Degraded => EdsHealth::Degraded,
    };
    Ok(host)
}

fn host(value: &Endpoint) -> Result<HostConfig> {
    let Endpoint { address: place, health_check_config, hostname, additional_addresses, observability_name } =
        value;
    refuse!(additional_addresses, observability_name);
    let check = health_check_config.as_ref().map(check).transpose().in_key("health_check_config")?;
    let (address, name) = match address(place, "address")? {
        Where::Pipe(path) => (Address::Unix(path.into()), String::new()),
        Where::Socket(host, port) => match host.parse::<IpAddr>() {
            Ok(ip) => (Address::Ip(SocketAddr::new(ip, port)), String::new()),
            Err(_) => (Address::Name(host.clone(), port), host),
        },
    };
    let hostname = if hostname.is_empty() { &name } else { hostname };
    let check = check.flatten().map(Arc::new);
    Ok(HostConfig { hostname: hostname.as_str().into(), check, ..HostConfig::new(address) })
}

/// How an endpoint is checked other than the cluster's others. The address must be one of IP or a pipe: it is not looked up.
fn check(value: &HealthCheckConfig) -> Result<Option<EndpointCheck>> {
    let HealthCheckConfig { port_value, hostname, address: place, disable_active_health_check } = value;
    let port = u16::try_from(*port_value)
        .map_err(|_| ConfigError::field("port_value", format!("must be at most 65535, not {port_value}")))?;
    let own = match place {
        None => None,
        Some(_) => Some(match address(place, "address")? {
            Where::Pipe(path) => Address::Unix(path.into()),
            Where::Socket(host, port) => match host.parse::<IpAddr>() {
                Ok(ip) => Address::Ip(SocketAddr::new(ip, port)),
                Err(_) => return Err(ConfigError::field("address", format!("\"{host}\" is no IP address"))),
            },
        }),
    };
    let check = EndpointCheck {
        port: (port != 0).then_some(port),
        host: (!hostname.is_empty()).then(|| hostname.as_str().into()),
        address: own,
        disabled: *disable_active_health_check,
    };
    Ok((check != EndpointCheck::default()).then_some(check))
}
