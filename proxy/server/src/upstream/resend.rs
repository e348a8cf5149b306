//! Sending a request once more within one attempt.

use super::UpstreamError;

/// Connections that one attempt may lose before they have seen its request.
const MAX_UNSENT: u32 = 3;

/// Whether a request goes out again within one attempt: it was the connection that failed it, not the endpoint.
#[derive(Default)]
pub(crate) struct Resend {
    unsent: u32,
    on_new: bool,
}

impl Resend {
    /// Whether the next connection is to be a new one.
    pub(crate) fn on_new(&self) -> bool {
        self.on_new
    }

    /// Whether the request goes out again after `error`. `replaces_pooled` says whether it was on a connection of the
    /// pool, and is one that nginx sends again then.
    pub(crate) fn wanted(&mut self, error: &UpstreamError, replaces_pooled: impl FnOnce() -> bool) -> bool {
        match error {
            // Whatever the request is, nothing of it was written. What was written and refused is the retry policy's.
            UpstreamError::Unsent => {
                self.unsent += 1;
                self.unsent <= MAX_UNSENT
            }
            // nginx's `u->peer.cached`: an idle connection that ends says nothing of the endpoint.
            UpstreamError::Closed if !self.on_new => {
                self.on_new = replaces_pooled();
                self.on_new
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_seen_goes_out_again_a_bounded_number_of_times() {
        let mut resend = Resend::default();
        let wanted = (0..5).map(|_| resend.wanted(&UpstreamError::Unsent, || false));
        assert_eq!(wanted.collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(!resend.on_new());
    }

    #[test]
    fn a_pooled_connection_is_replaced_once_and_by_a_new_one() {
        let mut resend = Resend::default();
        assert!(!resend.wanted(&UpstreamError::Closed, || false) && !resend.on_new());
        assert!(resend.wanted(&UpstreamError::Closed, || true) && resend.on_new());
        assert!(
            !resend.wanted(&UpstreamError::Closed, || true),
            "the new one says something of the endpoint"
        );
        assert!(!Resend::default().wanted(&UpstreamError::Protocol, || true));
    }
}
