//! The Date of responses (RFC 9110 section 6.6.1), made once a second by each worker.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// A date, and the moment until which it holds.
struct Made {
    text: String,
    until: Instant,
}

thread_local! {
    static MADE: RefCell<Option<Made>> = const { RefCell::new(None) };
}

/// Calls `with` with the date; `now` is the moment of the last event, which need not be asked for again.
pub(super) fn with_date(now: Instant, with: impl FnOnce(&[u8])) {
    MADE.with_borrow_mut(|made| {
        let made = match made {
            Some(made) if now < made.until => made,
            stale => stale.insert(make(now)),
        };
        with(made.text.as_bytes());
    });
}

fn make(now: Instant) -> Made {
    let clock = SystemTime::now();
    let part = clock.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos());
    let left = Duration::from_secs(1).saturating_sub(Duration::from_nanos(part.into()));
    Made { text: httpdate::fmt_http_date(clock), until: now + left }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn date(now: Instant) -> String {
        let mut text = String::new();
        with_date(now, |date| text = String::from_utf8(date.to_vec()).unwrap());
        text
    }

    #[test]
    fn it_is_now_and_is_made_again_when_the_second_is_over() {
        let start = Instant::now();
        let told = httpdate::parse_http_date(&date(start)).unwrap();
        assert!(SystemTime::now().duration_since(told).unwrap() < Duration::from_secs(2));
        let until = || MADE.with_borrow(|made| made.as_ref().unwrap().until);
        let first = until();
        assert!(first > start && first <= start + Duration::from_secs(1));
        date(first - Duration::from_nanos(1));
        assert_eq!(until(), first, "it still holds");
        date(first);
        assert!(until() > first);
    }
}
