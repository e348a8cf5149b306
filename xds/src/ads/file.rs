//! What a file says that resources come by: a DiscoveryResponse, the same as a response of the state of the world.

use std::path::Path;
use std::sync::Arc;

use prost::{Message, Name};
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::values::Result;
use sixfold_xds_api::{encode_text, message_from_node};

use super::kind::Kind;
use super::update::{Content, Resource, Update, plain, state_of};

/// Takes a file apart. As in Envoy the end of its name says what it holds: an encoded message (`.pb`), one in protobuf's
/// text form (`.pb_text`), JSON (`.json`), or YAML.
///
/// # Errors
/// The file as a whole can't be used. What is wrong with one resource is in that resource.
pub(super) fn update(kind: Kind, path: &Path, content: Vec<u8>) -> Result<Update> {
    let file = path.display().to_string();
    let ends = |end: &str| file.to_ascii_lowercase().ends_with(end);
    if ends(".pb") {
        let response = DiscoveryResponse::decode(content.as_slice());
        let response =
            response.map_err(|error| ConfigError::new(format!("is no DiscoveryResponse: {error}")))?;
        return Ok(of_response(kind, response));
    }
    let text = ConfigError::utf8(content)?;
    if ends(".pb_text") {
        let encoded = encode_text(&DiscoveryResponse::full_name(), &text)?;
        return update(kind, Path::new(".pb"), encoded);
    }
    let node = Node::parse(&text, &Options { wide_numbers_as_text: true, ..Options::envoy(&file) })?;
    of_node(kind, &node, &file)
}

fn of_response(kind: Kind, response: DiscoveryResponse) -> Update {
    let DiscoveryResponse { version_info, resources, .. } = response;
    let resources = resources.into_iter().map(|value| plain(kind, value, &version_info)).collect();
    state_of(kind, version_info, resources)
}

/// A resource that can't be decoded is refused by itself, where it can be told what it is called.
fn of_node(kind: Kind, node: &Node, file: &str) -> Result<Update> {
    let faults = match message_from_node::<DiscoveryResponse>(node) {
        Ok(response) => return Ok(of_response(kind, response)),
        Err(error) => error.into_all(),
    };
    let is_of_resource =
        |fault: &ConfigError| fault.field.as_ref().is_some_and(|field| field.starts_with("resources["));
    if let Some(fault) = faults.iter().find(|fault| !is_of_resource(fault)) {
        return Err(fault.clone());
    }
    let version = text(node, "version_info").or_else(|| text(node, "versionInfo")).unwrap_or_default();
    let items = node.get("resources").and_then(Node::as_array).unwrap_or_default();
    let mut resources = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let resource = match message_from_node::<Any>(item) {
            Ok(value) => plain(kind, value, version),
            Err(error) => {
                let error = error.in_file(file);
                let name = name(item).ok_or_else(|| error.clone().in_index(index).in_key("resources"))?;
                let content = Content::Fault(Box::new(error));
                Resource { name, version: version.to_owned(), content, ttl: None }
            }
        };
        resources.push(resource);
    }
    Ok(state_of(kind, version.to_owned(), resources))
}

/// The name of a resource, or of the one in it.
fn name(item: &Node) -> Option<Arc<str>> {
    let of = |node: &Node| {
        ["name", "cluster_name", "clusterName"].into_iter().find_map(|key| text(node, key).map(Arc::from))
    };
    of(item).or_else(|| of(item.get("resource")?))
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.get(key)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
