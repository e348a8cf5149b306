//! What became of attempts at a cluster's hosts.

use super::Member;
use crate::traffic::Traffic;
use std::sync::Arc;
use std::time::Instant;

/// One attempt at an upstream host.
#[derive(Clone)]
pub struct TriedHost {
    /// The endpoint.
    pub member: Arc<Member>,
    /// When the attempt began; the times below are measured from here, as nginx measures them.
    pub began: Instant,
    /// Status it answered with, or that stands for its failure (in APISIX's mode nginx's 502 and 504); 0 for an
    /// attempt under way and for one that was given up.
    pub status: u16,
    /// Milliseconds to connect; `None` on a connection that was there.
    pub connect_ms: Option<u32>,
    /// When the response's head was there.
    pub head_at: Option<Instant>,
    /// When it ended.
    pub ended_at: Option<Instant>,
    /// Bytes on the wire between us and it.
    pub traffic: Traffic,
    /// Bytes of the response's body.
    pub received: u64,
    /// Bytes on the wire up to the end of the response's head; 0 while there is none.
    pub head_end: u64,
}

impl TriedHost {
    /// Bytes of the response behind its head, with their framing (nginx's `$upstream_response_length`).
    pub fn response_length(&self) -> u64 {
        if self.head_end == 0 { self.received } else { self.traffic.received.saturating_sub(self.head_end) }
    }
}

impl TriedHost {
    /// An attempt that begins.
    pub fn new(member: Arc<Member>, began: Instant) -> TriedHost {
        TriedHost {
            member,
            began,
            status: 0,
            connect_ms: None,
            head_at: None,
            ended_at: None,
            traffic: Traffic::default(),
            received: 0,
            head_end: 0,
        }
    }

    /// Notes its end, unless that was noted before; `status` stands for a response that did not come.
    pub fn end(&mut self, now: Instant, status: u16) {
        if self.ended_at.is_some() {
            return;
        }
        self.ended_at = Some(now);
        if self.status == 0 {
            self.status = status;
        }
    }

    /// Notes the head of its response.
    pub fn head(&mut self, now: Instant, status: u16) {
        self.head_at = Some(now);
        self.status = status;
    }

    /// Milliseconds to the response's head.
    pub fn header_ms(&self) -> Option<u32> {
        self.head_at.map(|at| self.millis_to(at))
    }

    /// Milliseconds until the attempt ended.
    pub fn response_ms(&self) -> Option<u32> {
        self.ended_at.map(|at| self.millis_to(at))
    }

    fn millis_to(&self, at: Instant) -> u32 {
        u32::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u32::MAX)
    }
}
