//! A route configuration in a file (`path_config_source`).

use prost::{Message, Name};
use sixfold_core::document::{Node, Options};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::route::v3::RouteConfiguration;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::{any, message_from_node};

use sixfold_xds_api::values::Result;

const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The encoded RouteConfiguration in the text of a DiscoveryResponse (YAML or, for a file called `*.json`, JSON), which
/// must be its only resource and have that name, as in Envoy (router/rds_impl.cc).
pub(super) fn route_configuration(text: &str, file: &str, name: &str) -> Result<Vec<u8>> {
    let resources: Vec<RouteConfiguration> = resources_of_file(text, file)?;
    let [value] = &resources[..] else {
        let reason = format!("must be one route configuration, not {}", resources.len());
        return Err(ConfigError::field("resources", reason));
    };
    if value.name != name {
        let reason = format!("must be \"{name}\", which is asked for, not \"{}\"", value.name);
        return Err(ConfigError::field("name", reason).in_index(0).in_key("resources"));
    }
    Ok(value.encode_to_vec())
}

/// The resources in the text of a DiscoveryResponse.
pub(crate) fn resources_of_file<M: Message + Default + Name>(text: &str, file: &str) -> Result<Vec<M>> {
    let options = Options { wide_numbers_as_text: true, ..Options::envoy(file) };
    let node = Node::parse(text, &options)?;
    let DiscoveryResponse { resources, .. } = message_from_node(&node)?;
    let values = resources.iter().enumerate().map(|(index, value)| unwrapped(value).in_index(index));
    values.collect::<Result<_>>().in_key("resources")
}

/// A resource, or the one in a wrapper with its version.
fn unwrapped<M: Message + Default + Name>(resource: &Any) -> Result<M> {
    if resource.type_url != RESOURCE {
        return any::unpack(resource);
    }
    let Resource { resource, .. } = any::unpack(resource)?;
    let resource = resource.ok_or_else(|| ConfigError::field("resource", "is missing"))?;
    any::unpack(&resource).in_key("resource")
}
