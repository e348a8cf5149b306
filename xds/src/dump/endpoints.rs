//! Endpoints as clusters have them now.

use prost::Message;
use sixfold_core::cluster::{
    Address, Cluster, Clusters, Health, Host, Locality, Member, PriorityLevel, Reasons,
};
use sixfold_core::document::Node;
use sixfold_core::metadata::Metadata;
use sixfold_xds_api::any::pack;
use sixfold_xds_api::json::encode_node;
use sixfold_xds_api::pb::envoy::admin::v3::endpoints_config_dump::{
    DynamicEndpointConfig, StaticEndpointConfig,
};
use sixfold_xds_api::pb::envoy::config::core::v3::address::Address as AddressKind;
use sixfold_xds_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Address as ProtoAddress, HealthStatus, Locality as ProtoLocality, Metadata as ProtoMetadata, Pipe,
    SocketAddress,
};
use sixfold_xds_api::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use sixfold_xds_api::pb::google::protobuf::{Struct, UInt32Value};

use super::sections::{Item, Section};

pub(super) fn section(clusters: &Clusters, wanted: &dyn Fn(&str) -> bool) -> Section {
    let (mut fixed, mut dynamic): (Vec<Item>, Vec<Item>) = (Vec::new(), Vec::new());
    let all = clusters.all().into_iter();
    for cluster in all.filter(|cluster| wanted(assignment_name(cluster))) {
        if cluster.config.added_via_api {
            dynamic.push(Box::new(move || {
                let endpoint_config = Some(pack(&assignment(&cluster)));
                DynamicEndpointConfig { endpoint_config, ..DynamicEndpointConfig::default() }.encode_to_vec()
            }));
        } else {
            fixed.push(Box::new(move || {
                let endpoint_config = Some(pack(&assignment(&cluster)));
                StaticEndpointConfig { endpoint_config, last_updated: None }.encode_to_vec()
            }));
        }
    }
    Section::of_endpoints(fixed, dynamic)
}

fn assignment_name(cluster: &Cluster) -> &str {
    let config = &cluster.config;
    config.eds_service_name.as_deref().unwrap_or(&config.name)
}

fn assignment(cluster: &Cluster) -> ClusterLoadAssignment {
    let hosts = cluster.hosts.load();
    let mut endpoints: Vec<LocalityLbEndpoints> = Vec::new();
    for level in &hosts.levels {
        endpoints.extend(localities(level));
    }
    let overprovisioning = match &hosts.policy {
        Some(policy) => policy.overprovisioning,
        None => cluster.config.balance.overprovisioning,
    };
    ClusterLoadAssignment {
        cluster_name: assignment_name(cluster).to_owned(),
        endpoints,
        policy: Some(Policy {
            drop_overloads: drop_overloads(cluster.drop_overload()),
            overprovisioning_factor: Some(UInt32Value { value: overprovisioning }),
            ..Policy::default()
        }),
        ..ClusterLoadAssignment::default()
    }
}

/// The endpoints of a level by locality, in the order in which these come.
fn localities(level: &PriorityLevel) -> Vec<LocalityLbEndpoints> {
    let mut groups: Vec<(&Locality, LocalityLbEndpoints)> = Vec::new();
    for member in level.members.iter() {
        let locality = member.locality();
        let at = groups.iter().position(|(known, _)| *known == locality);
        let at = at.unwrap_or_else(|| {
            groups.push((locality, group(member)));
            groups.len() - 1
        });
        if let Some((_, group)) = groups.get_mut(at) {
            group.lb_endpoints.push(endpoint(member));
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn group(member: &Member) -> LocalityLbEndpoints {
    let Locality { region, zone, sub_zone } = member.locality();
    LocalityLbEndpoints {
        locality: Some(ProtoLocality {
            region: region.to_string(),
            zone: zone.to_string(),
            sub_zone: sub_zone.to_string(),
        }),
        load_balancing_weight: Some(UInt32Value { value: member.locality_weight().unwrap_or(0) }),
        priority: member.priority,
        ..LocalityLbEndpoints::default()
    }
}

fn endpoint(member: &Member) -> LbEndpoint {
    let Host { address, hostname, .. } = &*member.host;
    let check = member.check.as_deref();
    let health_check_config = HealthCheckConfig {
        port_value: check.and_then(|check| check.port).map_or(0, u32::from),
        hostname: check.and_then(|check| check.host.as_deref()).unwrap_or_default().to_owned(),
        address: check.and_then(|check| check.address.as_ref()).map(proto_address),
        disable_active_health_check: check.is_some_and(|check| check.disabled),
    };
    let endpoint = Endpoint {
        address: Some(proto_address(address)),
        health_check_config: Some(health_check_config),
        hostname: hostname.to_string(),
        ..Endpoint::default()
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        health_status: health(member) as i32,
        metadata: metadata(&member.metadata),
        load_balancing_weight: Some(UInt32Value { value: member.weight }),
    }
}

/// What it comes to, of which discovery has a say.
fn health(member: &Member) -> HealthStatus {
    let reasons = member.reasons();
    match member.health() {
        Health::Healthy => HealthStatus::Healthy,
        Health::Degraded => HealthStatus::Degraded,
        _ if reasons.contains(Reasons::DRAINING) => HealthStatus::Draining,
        _ => HealthStatus::Unhealthy,
    }
}

fn metadata(value: &Metadata) -> Option<ProtoMetadata> {
    let filter_metadata = value.iter().map(|(name, value)| (name.to_owned(), structure(value)));
    let filter_metadata: std::collections::HashMap<_, _> = filter_metadata.collect();
    let is_there = !filter_metadata.is_empty();
    is_there.then(|| ProtoMetadata { filter_metadata, ..ProtoMetadata::default() })
}

fn structure(value: &serde_json::Value) -> Struct {
    let encoded = encode_node("google.protobuf.Struct", &Node::from_json(value.clone()));
    // A namespace is an object, as it came from such a message.
    encoded.ok().and_then(|encoded| Struct::decode(encoded.as_slice()).ok()).unwrap_or_default()
}

/// Requests of a million that are not sent.
fn drop_overloads(of_a_million: u32) -> Vec<DropOverload> {
    let share = FractionalPercent { numerator: of_a_million, denominator: DenominatorType::Million as i32 };
    let drop = DropOverload { category: "drop_overload".to_owned(), drop_percentage: Some(share) };
    if of_a_million == 0 { Vec::new() } else { vec![drop] }
}

fn proto_address(address: &Address) -> ProtoAddress {
    let socket = |address: String, port: u16| {
        AddressKind::SocketAddress(SocketAddress {
            address,
            port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
            ..SocketAddress::default()
        })
    };
    let address = match address {
        Address::Ip(address) => socket(address.ip().to_string(), address.port()),
        Address::Name(name, port) => socket(name.to_string(), *port),
        Address::Unix(path) => {
            AddressKind::Pipe(Pipe { path: path.display().to_string(), ..Pipe::default() })
        }
    };
    ProtoAddress { address: Some(address) }
}
