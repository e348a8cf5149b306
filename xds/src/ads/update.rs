//! What a response says, the same for both protocols.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::error::ConfigError;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource,
};
use sixfold_xds_api::pb::google::protobuf::{Any, Duration as ProtoDuration};
use sixfold_xds_api::values::duration;
use sixfold_xds_api::{any, wire};

use super::file::Origin;
use super::kind::Kind;

/// A message of a control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// Of the incremental protocol.
    Delta(DeltaDiscoveryResponse),
    /// Of the state of the world.
    State(DiscoveryResponse),
}

/// A response that is for nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a response of type \"{0}\", which nobody has asked for")]
pub struct UnknownType(pub String);

/// What a response says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    pub(super) kind: Kind,
    /// To be given back with the answer.
    pub(super) nonce: String,
    /// Version of the response as a whole.
    pub(super) version: String,
    /// Whether what is not in it is gone.
    pub(super) whole: bool,
    /// Resources in their order.
    pub(super) resources: Vec<Resource>,
    /// Names that are gone.
    pub(super) removed: Vec<Arc<str>>,
    /// `control_plane.identifier`
    pub(super) control_plane: Option<String>,
}

/// One resource of a response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resource {
    pub(super) name: Arc<str>,
    /// For `initial_resource_versions`.
    pub(super) version: String,
    pub(super) content: Content,
    /// After so long without news it is gone; `None` is never.
    pub(super) ttl: Option<Duration>,
    /// Where it stands, if it comes from a document.
    pub(super) origin: Option<Origin>,
}

/// What there is of a resource.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// The encoded message.
    Value(Vec<u8>),
    /// Nothing new: its time to live begins again.
    Heartbeat,
    /// It can't be told what it is.
    Fault(Box<ConfigError>),
}

impl Response {
    /// Takes it apart.
    pub(super) fn update(self) -> Result<Update, UnknownType> {
        match self {
            Response::Delta(response) => delta(response),
            Response::State(response) => state(response),
        }
    }
}

fn delta(response: DeltaDiscoveryResponse) -> Result<Update, UnknownType> {
    let DeltaDiscoveryResponse {
        system_version_info,
        resources,
        type_url,
        removed_resources,
        nonce,
        control_plane,
        ..
    } = response;
    let kind = Kind::of_type_url(&type_url).ok_or(UnknownType(type_url))?;
    Ok(Update {
        kind,
        nonce,
        version: system_version_info,
        whole: false,
        resources: resources.into_iter().map(|resource| wrapped(kind, resource)).collect(),
        removed: removed_resources.into_iter().map(Arc::from).collect(),
        control_plane: control_plane.map(|it| it.identifier),
    })
}

fn state(response: DiscoveryResponse) -> Result<Update, UnknownType> {
    let DiscoveryResponse { version_info, resources, type_url, nonce, control_plane, .. } = response;
    let kind = Kind::of_type_url(&type_url).ok_or(UnknownType(type_url))?;
    let resources = resources.into_iter().map(|value| plain(kind, value, &version_info)).collect();
    let control_plane = control_plane.map(|it| it.identifier);
    Ok(Update { nonce, control_plane, ..state_of(kind, version_info, resources) })
}

/// The state of the world of a type.
pub(super) fn state_of(kind: Kind, version: String, resources: Vec<Resource>) -> Update {
    Update {
        kind,
        nonce: String::new(),
        // One without a name could be any of those that seem to be gone.
        whole: kind.is_wildcard() && resources.iter().all(|resource| !resource.name.is_empty()),
        version,
        resources,
        removed: Vec::new(),
        control_plane: None,
    }
}

/// A resource of the state of the world: the message itself, or wrapped to have a time to live.
pub(super) fn plain(kind: Kind, value: Any, version: &str) -> Resource {
    if any::name_of_url(&value.type_url) == "envoy.service.discovery.v3.Resource" {
        return match ProtoResource::decode(value.value.as_slice()) {
            Ok(resource) => wrapped(kind, resource),
            Err(error) => Resource {
                name: "".into(),
                version: String::new(),
                content: fault(format!("is not a valid envoy.service.discovery.v3.Resource: {error}")),
                ttl: None,
                origin: None,
            },
        };
    }
    let name: Arc<str> = wire::text(&value.value, 1).unwrap_or_default().into();
    let content = match content(kind, value) {
        // Nobody asks for it, and what nobody asks for is passed over.
        Content::Value(_) if name.is_empty() && !kind.is_wildcard() => {
            fault("has no name, or can't be decoded".to_owned())
        }
        content => content,
    };
    Resource { name, version: version.to_owned(), content, ttl: None, origin: None }
}

fn wrapped(kind: Kind, resource: ProtoResource) -> Resource {
    let ProtoResource { name, version, resource: value, ttl, .. } = resource;
    let content = match value {
        Some(value) => content(kind, value),
        None if ttl.is_some() => Content::Heartbeat,
        None => fault("has no content".to_owned()),
    };
    Resource { name: name.into(), version, content, ttl: ttl.and_then(positive), origin: None }
}

fn content(kind: Kind, value: Any) -> Content {
    if Kind::of_type_url(&value.type_url) == Some(kind) {
        return Content::Value(value.value);
    }
    let (wanted, found) = (any::name_of_url(kind.type_url()), any::name_of_url(&value.type_url));
    fault(format!("must be of type {wanted}, not {found}"))
}

fn fault(reason: String) -> Content {
    Content::Fault(Box::new(ConfigError::new(reason)))
}

fn positive(value: ProtoDuration) -> Option<Duration> {
    duration(&value).ok().filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster;

    fn cluster(name: &str) -> Any {
        any::pack(&Cluster { name: name.to_owned(), ..Cluster::default() })
    }

    #[test]
    fn the_state_of_the_world_is_whole_for_wildcards_alone() {
        let response = |kind: Kind, resources| DiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            version_info: "7".to_owned(),
            resources,
            ..DiscoveryResponse::default()
        };
        let update =
            Response::State(response(Kind::Cluster, vec![cluster("a"), cluster("b")])).update().unwrap();
        let names: Vec<_> =
            update.resources.iter().map(|resource| (&*resource.name, &*resource.version)).collect();
        assert_eq!((update.whole, names), (true, vec![("a", "7"), ("b", "7")]));
        assert!(!Response::State(response(Kind::Endpoints, vec![])).update().unwrap().whole);
        // What is not there can't be told when one has no name.
        let nameless = Any { value: vec![0xff], ..cluster("a") };
        assert!(!Response::State(response(Kind::Cluster, vec![nameless])).update().unwrap().whole);
    }

    /// Of what is asked for by name it was passed over, and the response acknowledged.
    #[test]
    fn what_cannot_be_told_from_others_is_a_fault() {
        for kind in [Kind::Endpoints, Kind::Routes, Kind::Secret] {
            let broken = Any { type_url: kind.type_url().to_owned(), value: vec![0xff, 0xff] };
            let response = DiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                resources: vec![broken],
                ..DiscoveryResponse::default()
            };
            let resource = Response::State(response).update().unwrap().resources.remove(0);
            assert_eq!(resource.content, fault("has no name, or can't be decoded".to_owned()));
        }
    }

    #[test]
    fn content_of_another_type_is_a_fault_of_its_resource() {
        let wrong =
            ProtoResource { name: "r".into(), resource: Some(cluster("r")), ..ProtoResource::default() };
        let empty = ProtoResource { name: "e".into(), ..ProtoResource::default() };
        let beat = ProtoResource {
            name: "h".into(),
            ttl: Some(ProtoDuration { seconds: 2, nanos: 5 }),
            ..ProtoResource::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: Kind::Routes.type_url().to_owned(),
            resources: vec![wrong, empty, beat],
            ..DeltaDiscoveryResponse::default()
        };
        let update = Response::Delta(response).update().unwrap();
        let reason =
            "must be of type envoy.config.route.v3.RouteConfiguration, not envoy.config.cluster.v3.Cluster";
        assert_eq!(update.resources[0].content, fault(reason.to_owned()));
        assert_eq!(update.resources[1].content, fault("has no content".to_owned()));
        assert_eq!(update.resources[2].content, Content::Heartbeat);
        assert_eq!(update.resources[2].ttl, Some(Duration::new(2, 5)));
    }

    #[test]
    fn a_time_to_live_comes_wrapped() {
        let wrapped = ProtoResource {
            name: "a".into(),
            version: "9".into(),
            resource: Some(cluster("a")),
            ttl: Some(ProtoDuration { seconds: 1, nanos: 0 }),
            ..ProtoResource::default()
        };
        let response = DiscoveryResponse {
            type_url: Kind::Cluster.type_url().to_owned(),
            resources: vec![any::pack(&wrapped)],
            ..DiscoveryResponse::default()
        };
        let resource = Response::State(response).update().unwrap().resources.remove(0);
        assert_eq!((&*resource.name, resource.ttl), ("a", Some(Duration::from_secs(1))));
        assert_eq!(resource.content, Content::Value(cluster("a").value));
        let other = DiscoveryResponse { type_url: "t/x.Y".to_owned(), ..DiscoveryResponse::default() };
        assert_eq!(Response::State(other).update().unwrap_err(), UnknownType("t/x.Y".to_owned()));
    }
}
