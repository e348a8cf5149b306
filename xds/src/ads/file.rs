//! What a file says that resources come by: a DiscoveryResponse, the same as a response of the state of the world.

use std::path::Path;
use std::sync::Arc;

use sixfold_core::document::Node;
use sixfold_core::error::ConfigError;
use sixfold_xds_api::message_from_node;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::values::Result;

use super::kind::Kind;
use super::update::{Content, Resource, Update, plain, state_of};
use crate::places::place_of;
use crate::rds::FileResponse;

/// Where a resource stands in a document: what is found to be wrong with it after it was made a message has its place all the
/// same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    file: Arc<str>,
    document: Arc<Node>,
    /// Its path in the document.
    path: String,
}

impl Origin {
    /// Puts faults of the resource to where they stand.
    pub(crate) fn place(&self, fault: ConfigError) -> ConfigError {
        let at = |field: &str| match field {
            "" => place_of(&self.document, &self.path),
            field if field.starts_with('[') => place_of(&self.document, &format!("{}{field}", self.path)),
            field => place_of(&self.document, &format!("{}.{field}", self.path)),
        };
        fault.placed(at).in_file(&*self.file)
    }
}

/// A fault of a resource, where that is known.
pub(crate) fn placed(origin: Option<&Origin>, fault: ConfigError) -> ConfigError {
    match origin {
        Some(origin) => origin.place(fault),
        None => fault,
    }
}

/// Takes a file apart.
///
/// # Errors
/// The file as a whole can't be used. What is wrong with one resource is in that resource.
pub(super) fn update(kind: Kind, path: &Path, content: &[u8]) -> Result<Update> {
    let file = path.display().to_string();
    let (update, document) = match FileResponse::read(content, &file)? {
        FileResponse::Message(response) => (of_response(kind, response), None),
        FileResponse::Document(node) => (of_node(kind, &node, &file)?, Some(node)),
    };
    let count = update.resources.len();
    // As in Envoy (rds/rds_route_config_subscription.cc).
    if kind == Kind::Routes && count != 1 {
        let fault = ConfigError::field("resources", format!("must be one route configuration, not {count}"));
        return Err(match &document {
            Some(document) => fault.placed(|field| place_of(document, field)),
            None => fault,
        });
    }
    let Some(document) = document.map(Arc::new) else { return Ok(update) };
    let file: Arc<str> = file.into();
    let items = document.get("resources").and_then(Node::as_array).unwrap_or_default();
    let resources = update.resources.into_iter().enumerate().map(|(index, resource)| {
        let is_wrapped = items.get(index).is_some_and(|item| item.get("resource").is_some());
        let path = format!("resources[{index}]{}", if is_wrapped { ".resource" } else { "" });
        let origin = Origin { file: file.clone(), document: document.clone(), path };
        Resource { origin: Some(origin), ..resource }
    });
    Ok(Update { resources: resources.collect(), ..update })
}

/// The encoded route configuration that a file is asked for, and where it stands.
///
/// # Errors
/// The file can't be used, or has another one.
pub(crate) fn routes(path: &Path, content: &[u8], name: &str) -> Result<(Vec<u8>, Option<Origin>)> {
    let Update { resources, .. } = update(Kind::Routes, path, content)?;
    let found =
        resources.into_iter().find_map(|Resource { name: found, content, origin, .. }| match content {
            Content::Value(_) if *found != *name => Some(Err(misnamed(&found, name, origin.as_ref()))),
            Content::Value(value) => Some(Ok((value, origin))),
            Content::Fault(fault) => {
                Some(Err(placed(origin.as_ref(), *fault).in_index(0).in_key("resources")))
            }
            Content::Heartbeat => None,
        });
    found.unwrap_or_else(|| Err(ConfigError::field("resources", "has no content")))
}

/// A file has other routes than those that it is asked for.
pub(super) fn misnamed(found: &str, name: &str, origin: Option<&Origin>) -> ConfigError {
    let reason = format!("must be \"{name}\", which is asked for, not \"{found}\"");
    placed(origin, ConfigError::field("name", reason)).in_index(0).in_key("resources")
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
                Resource { name, version: version.to_owned(), content, ttl: None, origin: None }
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
