//! One stream as the control plane sees it: what it is subscribed to, and what it was sent. No sockets, no clock.

use super::folder::{Resource, Resources};
use prost::{DecodeError, Message};
use sixfold_xds::ads::{Flavor, Kind};
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapped,
};
use sixfold_xds_api::pb::google::rpc::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Types in the order in which a change is sent, as istiod does; others come after them.
const ORDER: [Kind; 6] =
    [Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Extension, Kind::Listener, Kind::Routes];

/// A client's stream.
pub(super) struct Session {
    flavor: Flavor,
    /// `node.id` of its first request.
    pub(super) node: String,
    topics: BTreeMap<String, Topic>,
    nonces: u64,
}

/// One type of a stream.
#[derive(Default)]
struct Topic {
    /// Subscribed to everything there is.
    wildcard: bool,
    names: BTreeSet<String>,
    /// Versions by name.
    sent: BTreeMap<String, String>,
    /// Of the last response.
    nonce: String,
}

/// What a request has led to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Heard {
    /// An encoded response.
    pub(super) response: Option<Vec<u8>>,
    /// The type and the reason of a refusal.
    pub(super) refused: Option<(String, String)>,
}

impl Session {
    pub(super) fn new(flavor: Flavor) -> Session {
        Session { flavor, node: String::new(), topics: BTreeMap::new(), nonces: 0 }
    }

    /// Takes an encoded request.
    pub(super) fn hear(&mut self, message: &[u8], resources: &Resources) -> Result<Heard, DecodeError> {
        Ok(match self.flavor {
            Flavor::Delta => self.hear_delta(DeltaDiscoveryRequest::decode(message)?, resources),
            Flavor::State => self.hear_state(DiscoveryRequest::decode(message)?, resources),
        })
    }

    /// Encoded responses with what differs from what was sent.
    pub(super) fn push(&mut self, resources: &Resources) -> Vec<Vec<u8>> {
        let place = |url: &String| {
            let kind = Kind::of_type_url(url);
            ORDER.iter().position(|known| Some(*known) == kind).unwrap_or(ORDER.len())
        };
        let mut types: Vec<String> = self.topics.keys().cloned().collect();
        types.sort_by_key(place);
        types.iter().filter_map(|type_url| self.response(type_url, &BTreeSet::new(), resources)).collect()
    }

    /// Encoded responses with all that was sent once more.
    pub(super) fn repeat(&mut self, resources: &Resources) -> Vec<Vec<u8>> {
        for topic in self.topics.values_mut() {
            topic.sent.values_mut().for_each(String::clear);
        }
        self.push(resources)
    }

    fn meet(&mut self, node: Option<Node>) {
        if let Some(node) = node {
            self.node = node.id;
        }
    }

    fn hear_delta(&mut self, request: DeltaDiscoveryRequest, resources: &Resources) -> Heard {
        let DeltaDiscoveryRequest {
            node,
            type_url,
            resource_names_subscribe,
            resource_names_unsubscribe,
            initial_resource_versions,
            error_detail,
            ..
        } = request;
        self.meet(node);
        let first = !self.topics.contains_key(&type_url);
        let topic = self.topics.entry(type_url.clone()).or_default();
        if first {
            topic.wildcard = resource_names_subscribe.is_empty();
            topic.sent = initial_resource_versions.into_iter().collect();
        }
        for name in resource_names_unsubscribe {
            topic.wildcard &= name != "*";
            topic.names.remove(&name);
            topic.sent.remove(&name);
        }
        let mut fresh = BTreeSet::new();
        for name in resource_names_subscribe {
            match name.as_str() {
                "*" => topic.wildcard = true,
                _ if first && topic.sent.contains_key(&name) => drop(topic.names.insert(name)),
                // What is subscribed to already is sent again all the same.
                _ => {
                    topic.names.insert(name.clone());
                    fresh.insert(name);
                }
            }
        }
        let answer = first || !fresh.is_empty();
        let response = if answer { self.response_or_none(&type_url, &fresh, resources, first) } else { None };
        Heard { response, refused: refused(&type_url, error_detail) }
    }

    fn hear_state(&mut self, request: DiscoveryRequest, resources: &Resources) -> Heard {
        let DiscoveryRequest { node, resource_names, type_url, response_nonce, error_detail, .. } = request;
        self.meet(node);
        let names: BTreeSet<String> = resource_names.into_iter().collect();
        let refused = refused(&type_url, error_detail);
        let first = !self.topics.contains_key(&type_url);
        let topic = self.topics.entry(type_url.clone()).or_default();
        // What is said of an earlier response is said too late.
        if !first && response_nonce != topic.nonce {
            return Heard { refused, ..Heard::default() };
        }
        let by_default = Kind::of_type_url(&type_url).is_some_and(Kind::is_wildcard);
        topic.wildcard = names.contains("*") || by_default && names.is_empty();
        let fresh: BTreeSet<String> = names.difference(&topic.names).cloned().collect();
        topic.sent.retain(|name, _| topic.wildcard || names.contains(name));
        topic.names = names;
        let answer = first || !fresh.is_empty();
        let response = if answer { self.response_or_none(&type_url, &fresh, resources, first) } else { None };
        Heard { response, refused }
    }

    /// The first request for everything is answered although there be nothing.
    fn response_or_none(
        &mut self,
        type_url: &str,
        fresh: &BTreeSet<String>,
        resources: &Resources,
        first: bool,
    ) -> Option<Vec<u8>> {
        let response = self.response(type_url, fresh, resources);
        match response {
            None if first && self.topics.get(type_url)?.wildcard => {
                Some(self.encode(type_url, Vec::new(), Vec::new()))
            }
            response => response,
        }
    }

    /// What differs from what was sent, and of `fresh` all; `None` when nothing does.
    fn response(
        &mut self,
        type_url: &str,
        fresh: &BTreeSet<String>,
        resources: &Resources,
    ) -> Option<Vec<u8>> {
        let topic = self.topics.get_mut(type_url)?;
        let wanted = |name: &String| topic.wildcard || topic.names.contains(name);
        let differs =
            |name: &String, it: &Resource| fresh.contains(name) || topic.sent.get(name) != Some(&it.version);
        let of_type = || resources.of(type_url).filter(|(name, _)| wanted(name));
        let mut changed: Vec<_> = of_type().filter(|(name, it)| differs(name, it)).collect();
        let is_gone = |name: &&String| resources.get(type_url, name).is_none();
        let gone: BTreeSet<String> = topic.sent.keys().chain(fresh).filter(is_gone).cloned().collect();
        if changed.is_empty() && gone.is_empty() {
            return None;
        }
        // Of the state of the world what is absent of everything is gone.
        if self.flavor == Flavor::State && topic.wildcard {
            changed = of_type().collect();
        }
        let changed: Vec<_> = changed.into_iter().map(|(name, it)| (name.clone(), it.clone())).collect();
        topic.sent.retain(|name, _| !gone.contains(name));
        topic.sent.extend(changed.iter().map(|(name, it)| (name.clone(), it.version.clone())));
        // It has no way to say so of names.
        if self.flavor == Flavor::State && changed.is_empty() && !topic.wildcard {
            return None;
        }
        Some(self.encode(type_url, changed, gone.into_iter().collect()))
    }

    fn encode(
        &mut self,
        type_url: &str,
        changed: Vec<(String, Arc<Resource>)>,
        gone: Vec<String>,
    ) -> Vec<u8> {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        if let Some(topic) = self.topics.get_mut(type_url) {
            topic.nonce.clone_from(&nonce);
        }
        let type_url = type_url.to_owned();
        match self.flavor {
            Flavor::Delta => DeltaDiscoveryResponse {
                system_version_info: nonce.clone(),
                resources: changed
                    .into_iter()
                    .map(|(name, it)| Wrapped {
                        name,
                        version: it.version.clone(),
                        resource: Some(it.value.clone()),
                        ..Wrapped::default()
                    })
                    .collect(),
                removed_resources: gone,
                nonce,
                type_url,
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec(),
            Flavor::State => DiscoveryResponse {
                version_info: nonce.clone(),
                resources: changed.into_iter().map(|(_, it)| it.value.clone()).collect(),
                nonce,
                type_url,
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
        }
    }
}

fn refused(type_url: &str, error: Option<Status>) -> Option<(String, String)> {
    error.map(|error| (type_url.to_owned(), error.message))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_xds_api::pb::google::protobuf::Any;

    fn resources(all: &[(Kind, &str, &str)]) -> Resources {
        let mut resources = Resources::default();
        for (kind, name, value) in all {
            resources
                .put(name, Any { type_url: kind.type_url().to_owned(), value: value.as_bytes().to_vec() });
        }
        resources
    }

    fn delta(kind: Kind, subscribe: &[&str], unsubscribe: &[&str], known: &[(&str, &str)]) -> Vec<u8> {
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: texts(subscribe),
            resource_names_unsubscribe: texts(unsubscribe),
            initial_resource_versions: known
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        }
        .encode_to_vec()
    }

    /// Names, with a minus where they are gone.
    fn shown(response: Option<Vec<u8>>) -> Vec<String> {
        let Some(response) = response else { return vec!["nothing".to_owned()] };
        let response = DeltaDiscoveryResponse::decode(response.as_slice()).unwrap();
        let gone = response.removed_resources.iter().map(|name| format!("-{name}"));
        response.resources.iter().map(|it| it.name.clone()).chain(gone).collect()
    }

    #[test]
    fn a_delta_stream_hears_what_changes_of_what_it_asks_for() {
        let before =
            resources(&[(Kind::Cluster, "a", "1"), (Kind::Cluster, "b", "1"), (Kind::Routes, "r", "1")]);
        let mut session = Session::new(Flavor::Delta);
        let hear = |session: &mut Session, message: Vec<u8>, resources: &Resources| {
            shown(session.hear(&message, resources).unwrap().response)
        };
        assert_eq!(hear(&mut session, delta(Kind::Cluster, &[], &[], &[]), &before), ["a", "b"]);
        assert_eq!(
            hear(&mut session, delta(Kind::Listener, &[], &[], &[]), &before),
            [""; 0],
            "there are none"
        );
        assert_eq!(hear(&mut session, delta(Kind::Routes, &["r", "s"], &[], &[]), &before), ["r", "-s"]);
        assert!(session.push(&before).is_empty());
        let after =
            resources(&[(Kind::Cluster, "b", "2"), (Kind::Routes, "r", "1"), (Kind::Routes, "t", "1")]);
        let pushed: Vec<_> = session.push(&after).into_iter().map(|it| shown(Some(it))).collect();
        assert_eq!(pushed, [["b", "-a"]]);
        assert_eq!(hear(&mut session, delta(Kind::Routes, &["t"], &["r"], &[]), &after), ["t"]);
        let repeated: Vec<_> = session.repeat(&after).into_iter().map(|it| shown(Some(it))).collect();
        assert_eq!(repeated, [["b"], ["t"]]);
        // A new stream that has it already.
        let version = after.get(Kind::Routes.type_url(), "t").unwrap().version.clone();
        let mut session = Session::new(Flavor::Delta);
        let known = [("t", version.as_str()), ("gone", "1")];
        assert_eq!(hear(&mut session, delta(Kind::Routes, &["t", "gone"], &[], &known), &after), ["-gone"]);
    }

    #[test]
    fn a_stream_of_the_state_of_the_world_hears_all_of_it() {
        let before =
            resources(&[(Kind::Cluster, "a", "1"), (Kind::Cluster, "b", "1"), (Kind::Routes, "r", "1")]);
        let mut session = Session::new(Flavor::State);
        let request = |kind: Kind, names: &[&str], nonce: &str| {
            DiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
                response_nonce: nonce.to_owned(),
                ..DiscoveryRequest::default()
            }
            .encode_to_vec()
        };
        let count = |response: &Option<Vec<u8>>| {
            response.as_ref().map(|it| DiscoveryResponse::decode(it.as_slice()).unwrap().resources.len())
        };
        let mut hear = |message: Vec<u8>| count(&session.hear(&message, &before).unwrap().response);
        assert_eq!(hear(request(Kind::Cluster, &[], "")), Some(2));
        assert_eq!(hear(request(Kind::Cluster, &[], "1")), None, "that is its acknowledgement");
        assert_eq!(hear(request(Kind::Routes, &["r"], "")), Some(1));
        assert_eq!(hear(request(Kind::Routes, &["r", "s"], "1")), None, "of another response than the last");
        let after = resources(&[(Kind::Cluster, "a", "2"), (Kind::Routes, "r", "1")]);
        let pushed: Vec<_> = session.push(&after).into_iter().map(|it| count(&Some(it))).collect();
        assert_eq!(pushed, [Some(1)]);
    }
}
