//! Resources in a file (`path_config_source`).

use prost::{Message, Name};
use sixfold_core::document::{Node, Options};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::{any, encode_text, message_from_node};

use sixfold_xds_api::values::Result;

use crate::unknown::Unknown;

const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// What a file holds that resources come by: a DiscoveryResponse. As in Envoy the end of its name says in which form
/// (protobuf/utility.cc, `loadFromFile`).
pub(crate) enum FileResponse {
    /// `.pb`, an encoded message, or `.pb_text`, its text form.
    Message(DiscoveryResponse),
    /// `.json`, or else YAML.
    Document(Node),
}

impl FileResponse {
    pub(crate) fn read(content: &[u8], file: &str) -> Result<FileResponse> {
        let name = file.to_ascii_lowercase();
        let decoded = |encoded: &[u8]| {
            let response = DiscoveryResponse::decode(encoded);
            response.map_err(|error| ConfigError::new(format!("is no DiscoveryResponse: {error}")))
        };
        if name.ends_with(".pb") {
            return decoded(content).map(FileResponse::Message);
        }
        let text = ConfigError::utf8(content.to_vec())?;
        if name.ends_with(".pb_text") {
            let encoded = encode_text(&DiscoveryResponse::full_name(), &text)?;
            return decoded(&encoded).map(FileResponse::Message);
        }
        let options = Options { wide_numbers_as_text: true, ..Options::envoy(file) };
        Node::parse(&text, &options).map(FileResponse::Document)
    }
}

/// The resources in a file.
pub(crate) fn resources_of_file<M: Message + Default + Name>(
    content: &[u8],
    file: &str,
    unknown: &Unknown,
) -> Result<Vec<M>> {
    let DiscoveryResponse { resources, .. } = match FileResponse::read(content, file)? {
        FileResponse::Message(response) => response,
        FileResponse::Document(node) => message_from_node(&node)?,
    };
    let values = resources.iter().enumerate().map(|(index, value)| unwrapped(value, unknown).in_index(index));
    values.collect::<Result<_>>().in_key("resources")
}

/// A resource, or the one in a wrapper with its version.
fn unwrapped<M: Message + Default + Name>(resource: &Any, unknown: &Unknown) -> Result<M> {
    if resource.type_url != RESOURCE {
        unknown.look(&M::full_name(), &resource.value)?;
        return any::unpack(resource);
    }
    let Resource { resource, .. } = any::unpack(resource)?;
    let resource = resource.ok_or_else(|| ConfigError::field("resource", "is missing"))?;
    unknown.look(&M::full_name(), &resource.value)?;
    any::unpack(&resource).in_key("resource")
}
