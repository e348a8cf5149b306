//! One side of the protocol: what is asked for, and what is answered to what came, on one stream after the other.
//!
//! Requests are not queued. [`Session::next_request`] makes them from what is wanted and what was asked when the
//! stream has room, so that a slow stream gets the newest and there is nothing to grow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sixfold_core::fast_hash::FastMap;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use sixfold_xds_api::pb::google::rpc::Status;

use super::kind::Kind;

/// Longest error that a control plane is told, in bytes.
const MAX_ERROR: usize = 8 << 10;
/// Answers that wait for the stream to take them.
const MAX_ANSWERS: usize = 256;
/// `google.rpc.Code.INTERNAL`, what Envoy refuses with.
const INTERNAL: i32 = 13;

/// Which protocol is spoken (`api_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// `DELTA_GRPC`: what changes.
    Delta,
    /// `GRPC`: all that there is of a type, or all that was asked for.
    State,
}

/// A message for a control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Of the incremental protocol.
    Delta(DeltaDiscoveryRequest),
    /// Of the state of the world.
    State(DiscoveryRequest),
}

/// An answer to a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) nonce: String,
    pub(super) version: String,
    /// What of it is refused; `None` acknowledges all.
    pub(super) error: Option<String>,
}

/// What is wanted of a control plane, and what it knows of that.
#[derive(Debug)]
pub(super) struct Session {
    flavor: Flavor,
    node: Node,
    /// Sends the node with every message rather than with a stream's first (`set_node_on_first_message_only`).
    node_always: bool,
    topics: BTreeMap<Kind, Topic>,
    answers: VecDeque<Answer>,
    connected: bool,
    node_sent: bool,
}

/// What is wanted of one type.
#[derive(Debug, Default)]
struct Topic {
    /// Names; of a wildcard type all are wanted, whatever stands here.
    wanted: BTreeSet<Arc<str>>,
    /// What was accepted, with its version: told a control plane that it need not be sent again.
    known: FastMap<Arc<str>, String>,
    /// Version of the last response that was accepted (state of the world).
    version: String,
    /// What the other side of this stream knows; `None` before the first request.
    asked: Option<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    names: BTreeSet<Arc<str>>,
    /// What was dropped since it was asked for. When it is wanted again the other side must first hear that it was
    /// not, or it would not send it: subscribing to what one has gets no answer.
    dropped: BTreeSet<Arc<str>>,
    /// What of that was told since the last response. A response that comes now may have crossed it, and then it
    /// was ignored (state of the world).
    unsure: BTreeSet<Arc<str>>,
    /// What the request named that the next response answers (state of the world). A later one may cross it, and is ignored
    /// then: it is certain that the other side knew what was asked before it was last heard.
    named: BTreeSet<Arc<str>>,
    /// The same of the last response.
    answered: BTreeSet<Arc<str>>,
    /// Of the last response.
    nonce: String,
    /// Whether that is not answered yet.
    open: bool,
    /// Whether what is wanted may differ from `names`: thousands of them are not compared for every message.
    changed: bool,
}

impl Session {
    /// Nothing is wanted yet.
    pub(super) fn new(flavor: Flavor, node: Node, node_always: bool) -> Session {
        Session {
            flavor,
            node,
            node_always,
            topics: BTreeMap::new(),
            answers: VecDeque::new(),
            connected: false,
            node_sent: false,
        }
    }

    pub(super) fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Wants everything of a wildcard type.
    pub(super) fn want_all(&mut self, kind: Kind) {
        self.topics.entry(kind).or_default();
    }

    /// Wants a name more, or no longer. What is wanted no longer is no longer known.
    pub(super) fn want(&mut self, kind: Kind, name: &Arc<str>, wanted: bool) {
        let topic = self.topics.entry(kind).or_default();
        let changed = if wanted {
            topic.wanted.insert(name.clone())
        } else {
            topic.known.remove(name);
            topic.wanted.remove(name)
        };
        let Some(asked) = topic.asked.as_mut().filter(|_| changed) else { return };
        asked.changed = true;
        if !wanted && asked.names.contains(name) {
            asked.dropped.insert(name.clone());
        }
    }

    /// Whether a resource was asked for and still is.
    pub(super) fn wants(&self, kind: Kind, name: &str) -> bool {
        kind.is_wildcard() || self.topics.get(&kind).is_some_and(|topic| topic.wanted.contains(name))
    }

    /// Names of a type that are wanted.
    pub(super) fn wanted(&self, kind: Kind) -> &BTreeSet<Arc<str>> {
        static NONE: BTreeSet<Arc<str>> = BTreeSet::new();
        self.topics.get(&kind).map_or(&NONE, |topic| &topic.wanted)
    }

    /// Whether nothing is wanted at all.
    pub(super) fn is_idle(&self) -> bool {
        self.topics.iter().all(|(kind, topic)| !kind.is_wildcard() && topic.wanted.is_empty())
    }

    /// Whether something is to be told.
    pub(super) fn has_request(&mut self) -> bool {
        self.connected && (!self.answers.is_empty() || self.untold().is_some())
    }

    /// Names of a type that the last response has nothing of, though the request named them that it answers, but for those
    /// that are `there` or were accepted before. The incremental protocol says by itself what there is not.
    pub(super) fn absent(&self, kind: Kind, there: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let topic = self.topics.get(&kind).filter(|_| self.flavor == Flavor::State);
        let Some((topic, asked)) = topic.and_then(|topic| Some((topic, topic.asked.as_ref()?))) else {
            return Vec::new();
        };
        let named = asked.names.intersection(&asked.answered);
        let absent = named.filter(|name| !topic.known.contains_key(*name) && !there(name));
        absent.cloned().collect()
    }

    /// Remembers the version of a resource that was accepted, or that it is gone.
    pub(super) fn know(&mut self, kind: Kind, name: &Arc<str>, version: Option<String>) {
        let Some(topic) = self.topics.get_mut(&kind) else { return };
        match version {
            Some(version) => topic.known.insert(name.clone(), version),
            None => topic.known.remove(name),
        };
    }

    /// A stream has begun: everything is asked for again.
    pub(super) fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
    }

    /// The stream has ended.
    pub(super) fn disconnected(&mut self) {
        self.connected = false;
        self.node_sent = false;
        self.answers.clear();
        self.topics.values_mut().for_each(|topic| topic.asked = None);
    }

    /// A response with resources of these names has come; until it is answered no other request of its type goes
    /// out on the state of the world, where every request answers something.
    pub(super) fn received<'a>(
        &mut self,
        kind: Kind,
        nonce: &str,
        names: impl Iterator<Item = &'a Arc<str>>,
    ) {
        let Some(topic) = self.topics.get_mut(&kind) else { return };
        let Some(asked) = &mut topic.asked else { return };
        asked.nonce = nonce.to_owned();
        asked.open = true;
        if self.flavor == Flavor::State {
            asked.dropped.append(&mut asked.unsure);
            asked.answered = std::mem::replace(&mut asked.named, asked.names.clone());
        }
        if !asked.dropped.is_empty() {
            for name in names.filter(|name| topic.wanted.contains(*name)) {
                asked.dropped.remove(name);
            }
        }
    }

    /// Answers a response of this stream.
    pub(super) fn answer(&mut self, answer: Answer) {
        let Some(topic) = self.topics.get_mut(&answer.kind) else { return };
        if answer.error.is_none() {
            topic.version.clone_from(&answer.version);
        }
        if topic.asked.is_some() {
            self.answers.push_back(Answer { error: answer.error.map(cut), ..answer });
        }
    }

    /// Whether more responses may be answered. A control plane that sends and does not read is not read either.
    pub(super) fn has_room(&self) -> bool {
        self.answers.len() < MAX_ANSWERS
    }

    /// Nonce of the last response of a type on this stream.
    fn last_nonce(&self, kind: Kind) -> Option<&String> {
        Some(&self.topics.get(&kind)?.asked.as_ref()?.nonce)
    }

    /// Refuses a part of what the last response of a type has brought, whether that is answered or not.
    pub(super) fn refuse(&mut self, kind: Kind, error: String) {
        let topic = self.topics.get(&kind);
        let Some(asked) = topic.and_then(|topic| topic.asked.as_ref()) else { return };
        let (nonce, version) = (asked.nonce.clone(), String::new());
        if !nonce.is_empty() {
            self.answers.push_back(Answer { kind, nonce, version, error: Some(cut(error)) });
        }
    }

    /// The next message, if there is one to be sent. Changes of what is wanted go before answers, as Envoy sends
    /// them: what a response has led to is then on its way when that is acknowledged.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        if !self.connected {
            return None;
        }
        // It is asked after everything that comes, and has mostly nothing to say.
        let request = match self.untold() {
            Some(kind) => match self.flavor {
                Flavor::Delta => self.delta_change(kind).map(Request::Delta)?,
                Flavor::State => self.state_change(kind).map(Request::State)?,
            },
            None => self.next_answer()?,
        };
        Some(self.with_node(request))
    }

    /// The first type of which something is to be told by itself.
    fn untold(&mut self) -> Option<Kind> {
        let flavor = self.flavor;
        let mut topics = self.topics.iter_mut();
        topics.find_map(|(kind, topic)| topic.must_tell(*kind, flavor).then_some(*kind))
    }

    fn next_answer(&mut self) -> Option<Request> {
        let Answer { kind, nonce, version: _, error } = loop {
            let answer = self.answers.pop_front()?;
            // In the state of the world what is said of a response is ignored when a later one has come, and another may
            // have come while this waited for the stream.
            if self.flavor == Flavor::Delta || self.last_nonce(answer.kind) == Some(&answer.nonce) {
                break answer;
            }
        };
        let error_detail = error.map(|message| Status { code: INTERNAL, message, ..Status::default() });
        let type_url = kind.type_url().to_owned();
        Some(match self.flavor {
            Flavor::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url,
                response_nonce: nonce,
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }),
            Flavor::State => {
                let topic = self.topics.get_mut(&kind)?;
                let (wanted, asked) = (&topic.wanted, topic.asked.get_or_insert_default());
                asked.told(wanted, self.flavor);
                asked.open &= asked.nonce != nonce;
                Request::State(DiscoveryRequest {
                    type_url,
                    version_info: topic.version.clone(),
                    resource_names: texts(&asked.names),
                    response_nonce: nonce,
                    error_detail,
                    ..DiscoveryRequest::default()
                })
            }
        })
    }

    /// A change of what is wanted, spontaneous: it has no nonce and answers nothing.
    fn delta_change(&mut self, kind: Kind) -> Option<DeltaDiscoveryRequest> {
        let topic = self.topics.get_mut(&kind)?;
        let mut request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        match &mut topic.asked {
            None => {
                request.resource_names_subscribe = texts(&topic.wanted);
                request.initial_resource_versions =
                    topic.known.iter().map(|(name, version)| (name.to_string(), version.clone())).collect();
                topic.asked = Some(Asked { names: topic.wanted.clone(), ..Asked::default() });
            }
            Some(asked) => {
                let before = asked.told(&topic.wanted, self.flavor);
                request.resource_names_subscribe = texts(asked.names.difference(&before));
                request.resource_names_unsubscribe = texts(before.difference(&asked.names));
            }
        }
        Some(request)
    }

    fn state_change(&mut self, kind: Kind) -> Option<DiscoveryRequest> {
        let topic = self.topics.get_mut(&kind)?;
        let nonce = match &mut topic.asked {
            None => {
                let (names, named) = (topic.wanted.clone(), topic.wanted.clone());
                topic.asked = Some(Asked { names, named, ..Asked::default() });
                String::new()
            }
            Some(asked) => {
                asked.told(&topic.wanted, self.flavor);
                asked.nonce.clone()
            }
        };
        let names = topic.asked.as_ref().map(|asked| texts(&asked.names));
        Some(DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            version_info: topic.version.clone(),
            resource_names: names.unwrap_or_default(),
            response_nonce: nonce,
            ..DiscoveryRequest::default()
        })
    }

    fn with_node(&mut self, mut request: Request) -> Request {
        if self.node_always || !std::mem::replace(&mut self.node_sent, true) {
            let node = Some(self.node.clone());
            match &mut request {
                Request::Delta(request) => request.node = node,
                Request::State(request) => request.node = node,
            }
        }
        request
    }
}

impl Topic {
    /// Whether something of what is wanted is to be told by itself.
    fn must_tell(&mut self, kind: Kind, flavor: Flavor) -> bool {
        match &mut self.asked {
            // An empty first request would be taken for a wildcard.
            None => kind.is_wildcard() || !self.wanted.is_empty(),
            // The answer will carry the names; before it the control plane would ignore them.
            Some(asked) if flavor == Flavor::State && asked.open => false,
            Some(asked) => asked.must_tell(&self.wanted),
        }
    }
}

impl Asked {
    fn must_tell(&mut self, wanted: &BTreeSet<Arc<str>>) -> bool {
        self.changed = self.changed && self.names != *wanted;
        self.changed || !self.dropped.is_empty()
    }

    /// Takes for asked what is wanted, but for what was dropped meanwhile, which is left to the next request.
    /// Answers what was asked before.
    fn told(&mut self, wanted: &BTreeSet<Arc<str>>, flavor: Flavor) -> BTreeSet<Arc<str>> {
        let dropped = std::mem::take(&mut self.dropped);
        // What was dropped and is wanted again is left to the next request.
        self.changed = !dropped.is_empty();
        let names = wanted.difference(&dropped).cloned().collect();
        if flavor == Flavor::State {
            self.named.retain(|name| !dropped.contains(name));
            self.unsure.extend(dropped);
        }
        std::mem::replace(&mut self.names, names)
    }
}

fn texts<'a>(names: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}

/// Cuts a long text between characters.
fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests;
