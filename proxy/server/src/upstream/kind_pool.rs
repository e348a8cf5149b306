//! The connections of one kind that a worker has to one endpoint.

use super::dials::Dials;
use super::h1::H1Upstream;
use super::h2::{H2Connection, H2Upstream};
use super::kind::{Kind, Limits};
use super::{UpstreamError, Wanted};
use sixfold_core::cluster::Cluster;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections of one kind.
pub(super) struct KindPool {
    pub(super) kind: Arc<Kind>,
    /// HTTP/1 connections without a request, in the order in which they became so.
    idle: Vec<Idle>,
    /// HTTP/2 connections, with streams and without.
    shared: Vec<Shared>,
    /// Connections to share that are being opened.
    pub(super) dials: Dials,
    /// Told when a stream or a shared connection ends.
    pub(super) room: Arc<Notify>,
    /// ALPN agreed on HTTP/1 the last time: nothing there can be shared.
    pub(super) unshared: bool,
    /// Streams that the last connection allowed.
    pub(super) allowed: u32,
    /// When a request last asked for one.
    pub(super) used: Instant,
}

/// An HTTP/1 connection without a request.
pub(super) struct Idle {
    pub(super) connection: Box<H1Upstream>,
    pub(super) since: Instant,
    pub(super) limits: Limits,
    /// Milliseconds it took to connect, until somebody has been told.
    pub(super) connect_ms: Option<u32>,
}

/// An HTTP/2 connection.
pub(super) struct Shared {
    pub(super) connection: H2Connection,
    pub(super) limits: Limits,
    /// Milliseconds it took to connect, until somebody has been told.
    pub(super) connect_ms: Option<u32>,
}

/// What a request may take at once.
pub(super) enum Ready {
    /// A connection of its own.
    Whole(Idle),
    /// A stream, with its connection's time of connecting for the first to ask.
    Stream(Box<H2Upstream>, Option<u32>),
}

impl KindPool {
    pub(super) fn new(kind: Kind) -> KindPool {
        KindPool {
            kind: Arc::new(kind),
            idle: Vec::new(),
            shared: Vec::new(),
            dials: Dials::default(),
            room: Arc::default(),
            unshared: false,
            allowed: u32::MAX,
            used: Instant::now(),
        }
    }

    /// A connection that is there and can take the request.
    pub(super) fn take(&mut self, wanted: &Wanted<'_>) -> Result<Option<Ready>, UpstreamError> {
        let now = wanted.now;
        let is_kept = |idle: &Idle| idle.connection.active.is_kept(wanted.cluster);
        // Those of before a lower limit lie below, where none is taken.
        if self.idle.first().is_some_and(|oldest| !is_kept(oldest)) {
            self.idle.retain(is_kept);
        }
        while let Some(mut idle) = self.idle.pop() {
            if idle.has_ended(now) || !is_kept(&idle) {
                continue;
            }
            match wanted.begin() {
                Ok(request) => idle.connection.request = Some(request),
                Err(error) => {
                    self.idle.push(idle);
                    return Err(error);
                }
            }
            return Ok(Some(Ready::Whole(idle)));
        }
        // What takes no more requests goes from here at once, and ends with its last stream.
        self.shared.retain_mut(|s| !s.has_ended(now));
        let unkept = self.shared.extract_if(.., |s| !s.is_kept(wanted.cluster));
        unkept.for_each(|s| s.connection.close());
        let Some(shared) = self.shared.iter_mut().find(|s| s.has_room()) else { return Ok(None) };
        let stream = Box::new(shared.connection.stream(wanted.begin()?));
        Ok(Some(Ready::Stream(stream, shared.connect_ms.take())))
    }

    /// Keeps a connection without a request.
    pub(super) fn keep(&mut self, idle: Idle) {
        if idle.limits.max_idle == 0 {
            return;
        }
        if self.idle.len() >= idle.limits.max_idle {
            self.idle.remove(0);
        }
        self.idle.push(idle);
    }

    /// Keeps a connection to share.
    pub(super) fn share(&mut self, shared: Shared) {
        self.allowed = shared.connection.allowed();
        self.unshared = false;
        self.shared.push(shared);
    }

    /// Whether there is a connection that requests share, or will be one.
    pub(super) fn is_shared(&self) -> bool {
        !self.shared.is_empty() || self.dials.under_way() > 0
    }

    /// Connections without a request.
    pub(super) fn idle(&self) -> usize {
        self.ages().count()
    }

    /// Since when each of them has had none.
    pub(super) fn ages(&self) -> impl Iterator<Item = Instant> {
        let whole = self.idle.iter().map(|i| i.since);
        whole.chain(self.shared.iter().filter_map(|s| s.connection.idle_since()))
    }

    /// Whether no connection has a request, nor is being opened.
    pub(super) fn is_at_rest(&self) -> bool {
        self.kind.open() <= self.idle()
    }

    /// Closes connections that have been idle since `moment` or longer.
    pub(super) fn forget(&mut self, moment: Instant) {
        self.idle.retain(|i| i.since > moment);
        let is_old = |s: &mut Shared| s.connection.idle_since().is_some_and(|since| since <= moment);
        self.shared.extract_if(.., is_old).for_each(|s| s.connection.close());
    }

    /// Closes those without a request; another one ends with its last.
    pub(super) fn close(self) {
        let at_rest = self.shared.into_iter().filter(|s| s.connection.streams() == 0);
        at_rest.for_each(|s| s.connection.close());
    }

    /// Closes what has had its time, and all that is idle where nobody will want it.
    pub(super) fn sweep(&mut self, removed: bool, now: Instant) {
        let unwanted = removed || self.kind.is_replaced();
        self.idle.retain_mut(|idle| !unwanted && !idle.has_ended(now));
        // A connection that leaves ends with its last stream.
        self.shared.retain_mut(|s| !unwanted && !s.has_ended(now));
    }

    /// Whether there is any connection of it, or somebody who waits for one.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.kind) > 1 || !self.shared.is_empty() || Arc::strong_count(&self.room) > 1
    }
}

impl Idle {
    /// Whether it takes no request; counts why, so that it is to be dropped then.
    fn has_ended(&mut self, now: Instant) -> bool {
        let connection = &mut self.connection;
        match self.limits.end(connection.opened, connection.requests, Some(self.since), now) {
            Some(end) => {
                end.count(&connection.active.stats);
                true
            }
            None => connection.active.is_outdated() || !connection.is_usable(),
        }
    }
}

impl Shared {
    /// Whether it takes no more requests; counts why, so that it is to be dropped then.
    fn has_ended(&mut self, now: Instant) -> bool {
        let state = self.connection.state();
        let requests = state.requests.load(Relaxed);
        match self.limits.end(state.opened, requests, self.connection.idle_since(), now) {
            Some(end) => {
                end.count(&state.stats);
                true
            }
            None => self.connection.is_ending(),
        }
    }

    /// Whether the limits of `cluster` leave it to take requests. With streams it stays: those that come would have to
    /// wait until they end.
    fn is_kept(&self, cluster: &Cluster) -> bool {
        self.connection.idle_since().is_none() || self.connection.is_kept(cluster)
    }

    /// Whether one more stream fits in, by our limit and the upstream's.
    fn has_room(&self) -> bool {
        self.connection.streams() < self.limits.streams.min(self.connection.allowed())
    }
}
