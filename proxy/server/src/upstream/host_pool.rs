//! The connections of one worker to one endpoint.

use super::dials::Dials;
use super::h1::H1Upstream;
use super::h2::{H2Connection, H2Upstream};
use super::kind::{Kind, Limits};
use super::queue::Queue;
use super::{UpstreamError, Wanted};
use sixfold_core::cluster::Host;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections to one endpoint.
pub(super) struct HostPool {
    host: Arc<Host>,
    /// Connections counted, and the HTTP/1 requests that wait for one of them.
    pub(super) queue: Arc<Queue>,
    kinds: Vec<KindPool>,
}

/// Connections of one kind.
pub(super) struct KindPool {
    kind: Kind,
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    /// Connections to share that are being opened.
    pub(super) dials: Dials,
    /// Told when a stream or a shared connection ends.
    pub(super) room: Arc<Notify>,
    /// ALPN agreed on HTTP/1 the last time: nothing there can be shared.
    pub(super) unshared: bool,
    /// Streams that the last connection allowed.
    pub(super) allowed: u32,
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
    pub(super) used: Instant,
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

impl HostPool {
    pub(super) fn new(host: Arc<Host>) -> HostPool {
        HostPool { host, queue: Arc::default(), kinds: Vec::new() }
    }

    /// The connections that serve a request.
    pub(super) fn kind(&mut self, wanted: &Wanted<'_>) -> &mut KindPool {
        let at = self.kinds.iter().position(|k| k.kind.serves(wanted));
        let at = at.unwrap_or_else(|| {
            self.kinds.push(KindPool::new(Kind::of(wanted)));
            self.kinds.len() - 1
        });
        &mut self.kinds[at]
    }

    /// The same, unless there are none.
    pub(super) fn existing(&mut self, wanted: &Wanted<'_>) -> Option<&mut KindPool> {
        self.kinds.iter_mut().find(|k| k.kind.serves(wanted))
    }

    /// The connections of a kind.
    pub(super) fn of_kind(&mut self, kind: &Kind) -> &mut KindPool {
        let at = self.kinds.iter().position(|k| k.kind.is_same(kind));
        let at = at.unwrap_or_else(|| {
            self.kinds.push(KindPool::new(kind.clone()));
            self.kinds.len() - 1
        });
        &mut self.kinds[at]
    }

    /// Connections without a request.
    pub(super) fn idle(&self) -> usize {
        self.kinds.iter().map(|k| k.idle.len()).sum()
    }

    /// When each of them became so.
    pub(super) fn ages(&self) -> impl Iterator<Item = Instant> {
        self.kinds.iter().flat_map(|k| k.idle.iter().map(|i| i.since))
    }

    /// Takes away connections that have been idle since `moment` or longer.
    pub(super) fn forget(&mut self, moment: Instant) {
        for kind in &mut self.kinds {
            kind.idle.retain(|i| i.since > moment);
        }
    }

    /// Takes away every connection without a request; tells whether there were any.
    pub(super) fn drop_idle(&mut self) -> bool {
        let any = self.idle() > 0;
        self.kinds.iter_mut().for_each(|k| k.idle.clear());
        any
    }

    /// Closes what has had its time; tells whether anything is left.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        let removed = self.host.is_removed();
        for kind in &mut self.kinds {
            kind.sweep(removed, now);
        }
        self.kinds.retain(KindPool::is_used);
        !self.kinds.is_empty() || Arc::strong_count(&self.queue) > 1
    }
}

impl KindPool {
    fn new(kind: Kind) -> KindPool {
        KindPool {
            kind,
            idle: Vec::new(),
            shared: Vec::new(),
            dials: Dials::default(),
            room: Arc::default(),
            unshared: false,
            allowed: u32::MAX,
        }
    }

    /// A connection that is there and can take the request.
    pub(super) fn take(&mut self, wanted: &Wanted<'_>) -> Result<Option<Ready>, UpstreamError> {
        let now = wanted.now;
        while let Some(mut idle) = self.idle.pop() {
            if idle.connection.is_usable() && !idle.limits.expired(idle.connection.opened, idle.since, now) {
                match wanted.begin() {
                    Ok(request) => idle.connection.request = Some(request),
                    Err(error) => {
                        self.idle.push(idle);
                        return Err(error);
                    }
                }
                return Ok(Some(Ready::Whole(idle)));
            }
        }
        // What takes no more requests goes from here at once, and ends with its last stream.
        self.shared.retain_mut(|s| !s.is_ending(now));
        let Some(shared) = self.shared.iter_mut().find(|s| s.has_room()) else { return Ok(None) };
        let request = wanted.begin()?;
        shared.used = now;
        let stream = Box::new(shared.connection.stream(request));
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
    pub(super) fn is_shared(&mut self) -> bool {
        !self.shared.is_empty() || self.dials.under_way() > 0
    }

    fn sweep(&mut self, removed: bool, now: Instant) {
        self.idle.retain_mut(|idle| {
            let expired = idle.limits.expired(idle.connection.opened, idle.since, now);
            let stats = &idle.connection.active.stats;
            if idle.limits.too_old(idle.connection.opened, now) {
                stats.upstream_cx_max_duration_reached().inc();
            } else if expired {
                stats.upstream_cx_idle_timeout().inc();
            }
            !removed && !expired && idle.connection.is_usable()
        });
        // A connection that leaves ends with its last stream.
        self.shared.retain_mut(|s| {
            let idle = s.connection.streams() == 0;
            let expired = idle && s.limits.expired(s.connection.state().opened, s.used, now);
            !removed && !expired && !s.is_ending(now)
        });
    }

    fn is_used(&self) -> bool {
        !self.idle.is_empty()
            || !self.shared.is_empty()
            || self.dials.under_way() > 0
            || Arc::strong_count(&self.room) > 1
    }
}

impl Shared {
    /// Whether the connection takes no more requests.
    fn is_ending(&mut self, now: Instant) -> bool {
        let state = self.connection.state();
        let (old, requests) =
            (self.limits.too_old(state.opened, now), state.requests.load(Relaxed) >= self.limits.requests);
        old || requests || self.connection.is_ending()
    }

    /// Whether one more stream fits in, by our limit and the upstream's.
    fn has_room(&self) -> bool {
        self.connection.streams() < self.limits.streams.min(self.connection.allowed())
    }
}
