//! How often a question is asked.

use super::entry::Outcome;
use sixfold_core::cluster::{DnsBackoff, DnsOptions};
use std::time::Duration;

/// No time between questions is longer: whatever is configured, and whatever a record says.
const LONGEST: Duration = Duration::from_secs(86_400);
/// No time between questions is shorter.
const SHORTEST: Duration = Duration::from_millis(1);

/// What a subscriber wants of the time between questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pace {
    options: DnsOptions,
    /// Takes an answer without an address for a failure, as Envoy's LOGICAL_DNS does.
    empty_fails: bool,
}

impl Pace {
    pub(super) fn new(options: &DnsOptions, empty_fails: bool) -> Pace {
        Pace { options: options.clone(), empty_fails }
    }

    /// Time from the end of one question to the next. `failures` is how many have failed one after the other.
    pub(super) fn wait(&self, outcome: &Outcome, failures: u32) -> Duration {
        let DnsOptions { refresh, respect_ttl, min_ttl, jitter, failure, .. } = &self.options;
        let wait = match outcome {
            Outcome::Failed(_) => self.after_failure(*failure, failures),
            Outcome::Empty if self.empty_fails => self.after_failure(*failure, failures),
            Outcome::Answered(Some(ttl)) if *respect_ttl => {
                (*ttl).max(*min_ttl).saturating_add(by_chance(*jitter))
            }
            Outcome::Unasked | Outcome::Empty | Outcome::Answered(_) => {
                refresh.saturating_add(by_chance(*jitter))
            }
        };
        wait.clamp(SHORTEST, LONGEST)
    }

    /// `JitteredExponentialBackOffStrategy`, or the fixed interval.
    fn after_failure(&self, backoff: Option<DnsBackoff>, failures: u32) -> Duration {
        let Some(DnsBackoff { base, max }) = backoff else { return self.options.refresh };
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        by_chance(base.saturating_mul(doubled).min(max))
    }
}

/// Anything below `limit`.
fn by_chance(limit: Duration) -> Duration {
    limit.min(LONGEST).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::DnsError;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn failed() -> Outcome {
        Outcome::Failed(DnsError::Busy("a".into()))
    }

    #[test]
    fn lifetimes_count_where_they_are_respected() {
        let ttl = Outcome::Answered(Some(secs(30)));
        let fixed = DnsOptions::default();
        let respects = DnsOptions { respect_ttl: true, ..DnsOptions::default() };
        let at_least = DnsOptions { min_ttl: secs(40), ..respects.clone() };
        for (options, outcome, expected) in [
            (&fixed, &ttl, 5),
            (&respects, &ttl, 30),
            (&at_least, &ttl, 40),
            // Envoy: a lifetime of 0 is none.
            (&respects, &Outcome::Answered(None), 5),
            (&respects, &Outcome::Empty, 5),
            (&respects, &failed(), 5),
        ] {
            assert_eq!(Pace::new(options, false).wait(outcome, 1), secs(expected), "{outcome:?}");
        }
        let endless = DnsOptions { refresh: Duration::MAX, jitter: Duration::MAX, ..DnsOptions::default() };
        assert_eq!(Pace::new(&endless, false).wait(&Outcome::Empty, 0), LONGEST);
    }

    #[test]
    fn jitter_is_added_to_what_was_answered() {
        let options = DnsOptions { jitter: secs(2), ..DnsOptions::default() };
        let pace = Pace::new(&options, false);
        let waits: Vec<_> = (0..200).map(|_| pace.wait(&Outcome::Answered(None), 0)).collect();
        assert!(waits.iter().all(|wait| (secs(5)..secs(7)).contains(wait)));
        assert!(waits.iter().any(|wait| *wait > secs(6)) && waits.iter().any(|wait| *wait < secs(6)));
        assert_eq!(pace.wait(&failed(), 1), secs(5));
    }

    #[test]
    fn time_between_failures_doubles_to_its_bound() {
        let failure = Some(DnsBackoff { base: secs(2), max: secs(10) });
        let options = DnsOptions { failure, ..DnsOptions::default() };
        let most = |pace: &Pace, outcome: &Outcome, failures| {
            (0..400).map(|_| pace.wait(outcome, failures)).max().unwrap_or_default()
        };
        let pace = Pace::new(&options, false);
        for (failures, limit) in [(1, 2), (2, 4), (3, 8), (4, 10), (40, 10)] {
            let most = most(&pace, &failed(), failures);
            assert!(most < secs(limit) && most > secs(limit).mul_f64(0.9), "{failures}: {most:?}");
        }
        assert_eq!(pace.wait(&Outcome::Empty, 1), secs(5));
        assert!(most(&Pace::new(&options, true), &Outcome::Empty, 1) < secs(2));
    }
}
