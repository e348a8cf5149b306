//! Connections to share that are being opened, and the requests that wait for one of them.
//!
//! Nobody holds a lock while one opens: those who wait hear of its end together, and when it fails they fail
//! together.

use super::UpstreamError;
use std::sync::Arc;
use tokio::sync::watch;

type End = Option<Result<(), UpstreamError>>;

/// The dials of one kind of connection.
#[derive(Default)]
pub(super) struct Dials(Vec<Dial>);

struct Dial {
    end: watch::Receiver<End>,
    /// Held by everyone who waits.
    waiting: Arc<()>,
}

/// Waits for a dial.
pub(super) struct Waiting {
    end: watch::Receiver<End>,
    _one: Arc<()>,
}

/// Tells those who wait how it went. Dropped without a word it tells of a failure.
pub(super) struct Dialing(watch::Sender<End>);

impl Dials {
    /// Waits for a dial that has room for one more request; a connection takes `room` of them.
    pub(super) fn join(&mut self, room: u32) -> Option<Waiting> {
        self.0.retain(Dial::is_under_way);
        let room = usize::try_from(room.max(1)).unwrap_or(usize::MAX);
        let dial = self.0.iter().find(|d| Arc::strong_count(&d.waiting) <= room)?;
        Some(Waiting { end: dial.end.clone(), _one: dial.waiting.clone() })
    }

    /// Notes a dial that begins now, with one who waits.
    pub(super) fn begin(&mut self) -> (Dialing, Waiting) {
        let (sender, end) = watch::channel(None);
        let dial = Dial { end: end.clone(), waiting: Arc::default() };
        let waiting = Waiting { end, _one: dial.waiting.clone() };
        self.0.push(dial);
        (Dialing(sender), waiting)
    }

    /// How many there are.
    pub(super) fn under_way(&self) -> usize {
        self.0.iter().filter(|d| d.is_under_way()).count()
    }
}

impl Dial {
    fn is_under_way(&self) -> bool {
        self.end.borrow().is_none() && self.end.has_changed().is_ok()
    }
}

impl Waiting {
    /// The end of the dial.
    pub(super) async fn end(mut self) -> Result<(), UpstreamError> {
        match self.end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Err(UpstreamError::Closed)),
            // The worker stops.
            Err(_) => Err(UpstreamError::Closed),
        }
    }
}

impl Dialing {
    /// Tells everyone who waits.
    pub(super) fn end(self, how: Result<(), UpstreamError>) {
        self.0.send_replace(Some(how));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_a_dial_up_to_its_room_and_its_end() {
        let mut dials = Dials::default();
        assert!(dials.join(9).is_none());
        let (dialing, first) = dials.begin();
        let second = dials.join(2).unwrap();
        assert!(dials.join(2).is_none(), "a connection takes two");
        drop(second);
        let third = dials.join(2).unwrap();
        dialing.end(Err(UpstreamError::ConnectTimeout));
        assert_eq!(first.end().await, Err(UpstreamError::ConnectTimeout));
        assert_eq!(third.end().await, Err(UpstreamError::ConnectTimeout));
        assert_eq!(dials.under_way(), 0);
        assert!(dials.join(2).is_none());
    }

    #[tokio::test]
    async fn a_dial_that_is_given_up_fails_those_who_wait() {
        let mut dials = Dials::default();
        let (dialing, waiting) = dials.begin();
        drop(dialing);
        assert_eq!(waiting.end().await, Err(UpstreamError::Closed));
        assert_eq!(dials.under_way(), 0);
    }
}
