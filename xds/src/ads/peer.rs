//! What is known of the other end of a channel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_core::metrics::Registry;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;

use super::backoff::{Backoff, BackoffConfig};
use super::inbox::Inbox;
use super::key::{Channel, Key};
use super::kind::Kind;
use super::rate::{Bucket, RateLimit};
use super::session::{Flavor, Request, Session};
use super::stats::ControlPlaneStats;
use crate::rds::Source;

/// How a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamConfig {
    /// Which protocol is spoken.
    pub flavor: Flavor,
    /// Sends the node with every message (unless `set_node_on_first_message_only`).
    pub node_always: bool,
    /// Between streams.
    pub backoff: BackoffConfig,
    /// Requests that may be sent; `None` is any number.
    pub rate: Option<RateLimit>,
}

pub(super) struct Peer {
    pub(super) session: Session,
    pub(super) inbox: Inbox,
    pub(super) link: Link,
    pub(super) backoff: Backoff,
    /// What could not be put in force although it was acknowledged: to be told with the next answer of its type.
    pub(super) late: BTreeMap<Kind, Vec<String>>,
    pub(super) stats: ControlPlaneStats,
    bucket: Option<Bucket>,
    /// Whether a request waits for a token.
    limited: bool,
    /// The number of what was last wanted of it: a file must be read again for another one.
    pub(super) asked: u64,
    /// Why routes of a file were refused last, which is read again when that may be no more; none where they need not be.
    pub(super) refused: Option<Vec<String>>,
}

pub(super) enum Link {
    Down {
        until: Instant,
    },
    Opening,
    Up,
    /// It is no stream, but a file.
    File,
}

impl Peer {
    pub(super) fn stream(
        channel: &Channel,
        config: StreamConfig,
        node: Node,
        registry: &Registry,
        random: fastrand::Rng,
        now: Instant,
    ) -> Peer {
        let StreamConfig { flavor, node_always, backoff, rate } = config;
        let session = Session::new(flavor, node, node_always);
        let bucket = rate.map(|rate| Bucket::new(rate, now));
        Peer {
            bucket,
            ..Peer::new(
                session,
                Link::Down { until: now },
                Backoff::new(backoff, random),
                stats(channel, registry),
            )
        }
    }

    pub(super) fn file() -> Peer {
        let session = Session::new(Flavor::State, Node::default(), false);
        let backoff = Backoff::new(BackoffConfig::default(), fastrand::Rng::with_seed(0));
        Peer::new(session, Link::File, backoff, ControlPlaneStats::new(&Registry::new(), ""))
    }

    fn new(session: Session, link: Link, backoff: Backoff, stats: ControlPlaneStats) -> Peer {
        let (inbox, late) = (Inbox::default(), BTreeMap::new());
        let (bucket, refused) = (None, None);
        Peer { session, inbox, link, backoff, late, stats, bucket, limited: false, asked: 0, refused }
    }

    /// Wants a name more, by the number of that wish, or no longer.
    pub(super) fn want(&mut self, kind: Kind, name: &Arc<str>, asked: Option<u64>) {
        self.session.want(kind, name, asked.is_some());
        self.asked = asked.unwrap_or(self.asked);
    }

    /// Names that a file lacks which holds these.
    pub(super) fn lacking(&self, kind: Kind, there: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        match self.link {
            Link::File => self.session.wanted(kind).iter().filter(|name| !there(name)).cloned().collect(),
            _ => self.session.absent(kind, there),
        }
    }

    /// All of a type from a source that are wanted.
    pub(super) fn wanted(&self, kind: Kind, source: &Source) -> Vec<Key> {
        self.session.wanted(kind).iter().map(|name| Key::new(kind, source, name)).collect()
    }

    /// The next message, and whether it is only now that there are too many.
    pub(super) fn next_request(&mut self, now: Instant) -> (Option<Request>, bool) {
        if let Some(bucket) = &mut self.bucket
            && self.session.has_request()
            && !bucket.has_token(now)
        {
            let is_new = !std::mem::replace(&mut self.limited, true);
            if is_new {
                self.stats.counts.rate_limit_enforced().inc();
                self.stats.counts.pending_requests().set(1);
            }
            return (None, is_new);
        }
        self.end_limit();
        // There may be none after all: an answer that a later response has made needless.
        let request = self.session.next_request();
        if request.is_some()
            && let Some(bucket) = &mut self.bucket
        {
            bucket.spend();
        }
        (request, false)
    }

    /// Nothing waits for a token any more.
    fn end_limit(&mut self) {
        if std::mem::take(&mut self.limited) {
            self.stats.counts.pending_requests().set(0);
        }
    }

    /// When a request may be sent that waits.
    pub(super) fn limited_until(&self) -> Option<Instant> {
        self.bucket.as_ref().filter(|_| self.limited)?.next()
    }

    /// Whether nothing is wanted of it.
    pub(super) fn is_idle(&self) -> bool {
        self.session.is_idle()
    }

    pub(super) fn connected(&mut self) {
        self.link = Link::Up;
        self.session.connected();
        self.stats.counts.connected_state().set(1);
    }

    /// Answers after how long the next stream is opened.
    pub(super) fn disconnected(&mut self, now: Instant) -> Duration {
        let wait = self.backoff.next();
        self.link = Link::Down { until: now + wait };
        self.session.disconnected();
        self.inbox.forget_responses();
        self.late.clear();
        self.stats.counts.connected_state().set(0);
        self.end_limit();
        wait
    }

    pub(super) fn reconnect_at(&self) -> Option<Instant> {
        match self.link {
            Link::Down { until } => Some(until),
            _ => None,
        }
    }
}

/// Envoy counts a stream where it counts what comes by it.
fn stats(channel: &Channel, registry: &Registry) -> ControlPlaneStats {
    match channel {
        Channel::Aggregated => ControlPlaneStats::new(registry, "control_plane."),
        Channel::Of(Kind::Cluster, _) => {
            ControlPlaneStats::new(registry, "cluster_manager.cds.control_plane.")
        }
        Channel::Of(Kind::Listener, _) => {
            ControlPlaneStats::new(registry, "listener_manager.lds.control_plane.")
        }
        Channel::Of(..) => ControlPlaneStats::new(&Registry::new(), ""),
    }
}
