//! A model of a control plane, of either protocol: it answers as istiod does, and as badly as it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use sixfold_xds_api::pb::envoy::config::core::v3::ApiConfigSource;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource,
};
use sixfold_xds_api::pb::google::protobuf::Any;

use super::super::{Request, Response};
use super::Key;
use crate::ads::{Channel, Flavor, Kind};
use crate::api::ApiSource;
use crate::rds::Source;

/// A resource of whatever kind.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Toy {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Tells it from every other.
    #[prost(uint64, tag = "2")]
    pub(super) version: u64,
    /// Whether a client must refuse it.
    #[prost(bool, tag = "3")]
    pub(super) bad: bool,
    #[prost(string, optional, tag = "4")]
    pub(super) endpoints: Option<String>,
    #[prost(string, repeated, tag = "5")]
    pub(super) routes: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub(super) clusters: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub(super) secrets: Vec<String>,
    #[prost(string, optional, tag = "8")]
    pub(super) extension: Option<String>,
    /// Whether it fits none of those that name it.
    #[prost(bool, tag = "9")]
    pub(super) misfit: bool,
    /// Version of the extension that it was compiled with, 0 for none: the client's to say.
    #[prost(uint64, tag = "10")]
    pub(super) with: u64,
}

impl Toy {
    /// As the control plane has sent it.
    pub(super) fn sent(&self) -> Toy {
        Toy { with: 0, ..self.clone() }
    }
}

/// What a control plane is made to do.
#[derive(Clone, Copy)]
pub(super) struct Manners {
    pub(super) flavor: Flavor,
    /// Clusters come by a file, endpoints and extensions by streams of their own.
    pub(super) mixed: bool,
    /// Sends types in their order, nothing that is bad, nothing late.
    pub(super) good: bool,
    /// But for endpoints that are asked for, which take seconds.
    pub(super) slow: bool,
}

impl Manners {
    pub(super) fn source(self, kind: Kind) -> Source {
        match kind {
            Kind::Cluster if self.mixed => Source::Path("cds.pb".into()),
            Kind::Endpoints | Kind::Extension if self.mixed => {
                Source::Api(ApiSource::new(&ApiConfigSource::default()))
            }
            _ => Source::Ads,
        }
    }

    pub(super) fn channel(self, kind: Kind) -> Channel {
        Channel::of(kind, &self.source(kind))
    }
}

pub(super) struct Plane {
    pub(super) manners: Manners,
    pub(super) truth: BTreeMap<Key, Toy>,
    streams: BTreeMap<Channel, Stream>,
    /// When the last response comes that was sent by any of them.
    last: Option<Instant>,
    versions: u64,
    pub(super) rng: fastrand::Rng,
}

#[derive(Default)]
struct Stream {
    topics: BTreeMap<Kind, Topic>,
    nonces: u64,
    out: VecDeque<(Instant, Response)>,
}

#[derive(Default)]
struct Topic {
    names: BTreeSet<String>,
    sent: BTreeMap<String, Vec<u8>>,
    nonce: String,
}

impl Plane {
    pub(super) fn new(manners: Manners, seed: u64) -> Plane {
        let rng = fastrand::Rng::with_seed(seed);
        let mut plane =
            Plane { manners, truth: BTreeMap::new(), streams: BTreeMap::new(), last: None, versions: 0, rng };
        let file = manners.channel(Kind::Cluster);
        if file.path().is_some() {
            plane.connect(&file);
            plane.streams.get_mut(&file).unwrap().topics.insert(Kind::Cluster, Topic::default());
        }
        plane
    }

    /// The names of a kind that there are.
    pub(super) fn names(&self, kind: Kind) -> Vec<String> {
        self.truth.keys().filter(|key| key.0 == kind).map(|key| key.1.to_string()).collect()
    }

    /// One of them.
    pub(super) fn any(&mut self, kind: Kind) -> Option<String> {
        let names = self.names(kind);
        self.rng.choice(names)
    }

    /// A cluster goes, and so do the references to it.
    pub(super) fn remove_cluster(&mut self, good: bool) {
        let Some(name) = self.any(Kind::Cluster) else { return };
        self.truth.remove(&(Kind::Cluster, name.as_str().into()));
        if !good {
            return;
        }
        let tables = self.truth.iter().filter(|(key, _)| key.0 == Kind::Routes);
        let tables: Vec<Toy> = tables.map(|(_, toy)| toy.clone()).collect();
        for mut table in tables.into_iter().filter(|table| table.clusters.contains(&name)) {
            table.clusters.retain(|cluster| *cluster != name);
            self.put(Kind::Routes, table);
        }
    }

    pub(super) fn put(&mut self, kind: Kind, toy: Toy) {
        self.versions += 1;
        let toy = Toy { version: self.versions, ..toy };
        self.truth.insert((kind, toy.name.as_str().into()), toy);
    }

    /// Has something of each name.
    pub(super) fn have(&mut self, kind: Kind, names: &[String]) {
        for name in names {
            if !self.truth.contains_key(&(kind, name.as_str().into())) {
                self.put(kind, Toy { name: name.clone(), ..Toy::default() });
            }
        }
    }

    pub(super) fn connect(&mut self, channel: &Channel) {
        self.streams.insert(channel.clone(), Stream::default());
    }

    pub(super) fn cut(&mut self, channel: &Channel) {
        self.streams.remove(channel);
    }

    /// Sends what has changed of every type that is subscribed to.
    pub(super) fn push(&mut self, now: Instant) {
        let mut kinds = Kind::ALL.to_vec();
        if !self.manners.good {
            self.rng.shuffle(&mut kinds);
        }
        for kind in kinds {
            self.send(kind, &BTreeSet::new(), now);
        }
    }

    /// Sends everything again, changed or not.
    pub(super) fn repeat(&mut self, now: Instant) {
        let kinds: Vec<Kind> =
            self.streams.values().flat_map(|stream| stream.topics.keys().copied()).collect();
        for kind in kinds {
            let names = self.truth.keys().filter(|key| key.0 == kind).map(|key| key.1.to_string()).collect();
            self.send(kind, &names, now);
        }
    }

    /// The next response of a stream that is read, if one is due.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        is_read: impl Fn(&Channel) -> bool,
    ) -> Option<(Channel, Response)> {
        let due = |(channel, stream): (&Channel, &Stream)| Some((stream.out.front()?.0, channel.clone()));
        let next = self.streams.iter().filter(|(channel, _)| is_read(channel)).filter_map(due).min();
        let (_, channel) = next.filter(|(due, _)| *due <= now)?;
        let (_, response) = self.streams.get_mut(&channel)?.out.pop_front()?;
        Some((channel, response))
    }

    pub(super) fn next_due(&self, is_read: impl Fn(&Channel) -> bool) -> Option<Instant> {
        let read = self.streams.iter().filter(|(channel, _)| is_read(channel));
        read.filter_map(|(_, stream)| stream.out.front()).map(|(due, _)| *due).min()
    }

    pub(super) fn request(&mut self, channel: &Channel, request: Request, now: Instant) {
        let Some(stream) = self.streams.get_mut(channel) else { return };
        let begins = stream.topics.is_empty();
        match request {
            Request::Delta(request) => {
                let kind = Kind::of_type_url(&request.type_url).unwrap();
                let first = !stream.topics.contains_key(&kind);
                let topic = stream.topics.entry(kind).or_default();
                // An acknowledgement; and what is said of another response than the last is ignored.
                if !request.response_nonce.is_empty() {
                    assert!(request.resource_names_subscribe.is_empty(), "an answer that subscribes");
                    return;
                }
                for name in &request.resource_names_unsubscribe {
                    topic.names.remove(name);
                    topic.sent.remove(name);
                }
                // What is subscribed to already is not answered.
                let fresh: BTreeSet<String> = request
                    .resource_names_subscribe
                    .into_iter()
                    .filter(|name| topic.names.insert(name.clone()))
                    .collect();
                if first {
                    assert_eq!(request.node.is_some(), begins);
                    topic.sent = request
                        .initial_resource_versions
                        .into_keys()
                        .map(|name| (name, Vec::new()))
                        .collect();
                }
                self.send(kind, &fresh, now);
            }
            Request::State(request) => {
                let kind = Kind::of_type_url(&request.type_url).unwrap();
                let first = !stream.topics.contains_key(&kind);
                let topic = stream.topics.entry(kind).or_default();
                assert!(
                    !first || kind.is_wildcard() || !request.resource_names.is_empty(),
                    "a wildcard by mistake"
                );
                if !first && request.response_nonce != topic.nonce {
                    return;
                }
                let names: BTreeSet<String> = request.resource_names.into_iter().collect();
                let fresh: BTreeSet<String> = names.difference(&topic.names).cloned().collect();
                topic.sent.retain(|name, _| kind.is_wildcard() || names.contains(name));
                topic.names = names;
                if first || !fresh.is_empty() {
                    self.send(kind, &fresh, now);
                }
            }
        }
    }

    /// Sends what differs from what was sent; `fresh` names whether they differ or not.
    fn send(&mut self, kind: Kind, fresh: &BTreeSet<String>, now: Instant) {
        let late = match self.manners {
            Manners { slow: true, .. } if kind == Kind::Endpoints && !fresh.is_empty() => {
                self.rng.u64(..4000)
            }
            Manners { good: true, .. } => self.rng.u64(..20),
            _ => self.rng.u64(..1500),
        };
        let channel = self.manners.channel(kind);
        let is_file = channel.path().is_some();
        let flavor = if is_file { Flavor::State } else { self.manners.flavor };
        let Some(stream) = self.streams.get_mut(&channel) else { return };
        let Some(topic) = stream.topics.get_mut(&kind) else { return };
        let have: BTreeMap<String, Vec<u8>> = self
            .truth
            .range((kind, Arc::from(""))..)
            .take_while(|(key, _)| key.0 == kind)
            .map(|(key, toy)| (key.1.to_string(), toy.encode_to_vec()))
            .filter(|(name, _)| kind.is_wildcard() || topic.names.contains(name))
            .collect();
        let changed = |(name, value): &(&String, &Vec<u8>)| {
            topic.sent.get(*name) != Some(*value) || fresh.contains(*name)
        };
        let mut new: BTreeMap<String, Vec<u8>> =
            have.iter().filter(changed).map(|(name, value)| (name.clone(), value.clone())).collect();
        let gone: Vec<String> = topic.sent.keys().filter(|name| !have.contains_key(*name)).cloned().collect();
        // In the state of the world a secret that there is not is one that a response lacks.
        let lacks = flavor == Flavor::State && kind == Kind::Secret && !fresh.is_empty();
        if new.is_empty() && gone.is_empty() && !lacks {
            return;
        }
        if flavor == Flavor::State && kind.is_wildcard() {
            new.clone_from(&have);
        }
        topic.sent.retain(|name, _| have.contains_key(name));
        topic.sent.extend(new.clone());
        stream.nonces += 1;
        topic.nonce = stream.nonces.to_string();
        let (nonce, type_url) = (topic.nonce.clone(), kind.type_url().to_owned());
        let any = |value: Vec<u8>| Any { type_url: type_url.clone(), value };
        let response = match flavor {
            Flavor::Delta => Response::Delta(DeltaDiscoveryResponse {
                resources: new
                    .into_iter()
                    .map(|(name, value)| ProtoResource {
                        name,
                        resource: Some(any(value)),
                        ..ProtoResource::default()
                    })
                    .collect(),
                removed_resources: gone,
                nonce,
                type_url: type_url.clone(),
                ..DeltaDiscoveryResponse::default()
            }),
            Flavor::State => Response::State(DiscoveryResponse {
                resources: new.into_values().map(any).collect(),
                nonce,
                version_info: stream.nonces.to_string(),
                type_url: type_url.clone(),
                ..DiscoveryResponse::default()
            }),
        };
        let mut due = (now + Duration::from_millis(late)).max(stream.out.back().map_or(now, |(due, _)| *due));
        if self.manners.good && self.manners.mixed && kind != Kind::Endpoints {
            // Over all of them.
            due = due.max(self.last.map_or(now, |last| last + Duration::from_millis(1)));
            self.last = Some(due);
        }
        stream.out.push_back((due, response));
    }
}
