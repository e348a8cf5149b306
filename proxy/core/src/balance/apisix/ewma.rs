//! APISIX's ewma: of two random nodes the one with the lower decayed response time, over all workers.

use super::super::worker::derive;
use super::Picker;
use crate::cluster::{Choice, Host, Member, Outcome};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A score loses 63 % of its weight in this time.
const DECAY: Duration = Duration::from_secs(10);

/// A score that was not touched for so long is forgotten.
const EXPIRY: Duration = Duration::from_secs(60);

/// Scores are kept on the hosts.
pub(in super::super) struct Ewma;

impl Picker for Ewma {
    type Group = Vec<Arc<Member>>;

    fn prepare(&self, nodes: Vec<Arc<Member>>, _workers: usize) -> Vec<Arc<Member>> {
        nodes
    }

    fn nodes(nodes: &Vec<Arc<Member>>) -> impl Iterator<Item = &Arc<Member>> {
        nodes.iter()
    }

    fn pick<'g>(
        &self,
        nodes: &'g Vec<Arc<Member>>,
        choice: &Choice<'_>,
        allowed: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>> {
        let rest: SmallVec<[&Arc<Member>; 16]>;
        let at = |i: u64, len: usize| (derive(choice.random, i) % len.max(1) as u64) as usize;
        let (first, second) = if choice.tried.is_empty() {
            let (a, b) = two(at(0, nodes.len()), at(1, nodes.len().saturating_sub(1)));
            (nodes.get(a), nodes.get(b))
        } else {
            rest = nodes.iter().filter(|n| allowed(n)).collect();
            let (a, b) = two(at(0, rest.len()), at(1, rest.len().saturating_sub(1)));
            (rest.get(a).copied(), rest.get(b).copied())
        };
        let (first, Some(second)) = (first?, second) else { return first };
        let now = Instant::now();
        Some(if score(&first.host, now) > score(&second.host, now) { second } else { first })
    }

    fn report(&self, host: &Host, outcome: &Outcome) {
        // An attempt without an answer says nothing of the response time.
        if outcome.status != 0 {
            touch(host, outcome.elapsed(), Instant::now());
        }
    }
}

/// Two different indexes from one below n and one below n - 1.
fn two(a: usize, b: usize) -> (usize, usize) {
    (a, if b >= a { b + 1 } else { b })
}

fn decayed((score, touched): (f64, Option<Instant>), now: Instant) -> (f64, f64) {
    let age = touched.map(|t| now.saturating_duration_since(t)).filter(|age| *age < EXPIRY);
    match age {
        Some(age) => {
            let weight = (-age.as_secs_f64() / DECAY.as_secs_f64()).exp();
            (score * weight, weight)
        }
        None => (0.0, 0.0),
    }
}

/// The score now, in milliseconds.
fn score(host: &Host, now: Instant) -> f64 {
    decayed(*host.ewma().lock(), now).0
}

/// Takes a response time into the score.
fn touch(host: &Host, elapsed: Duration, now: Instant) {
    let mut entry = host.ewma().lock();
    let (kept, weight) = decayed(*entry, now);
    *entry = (kept + elapsed.as_secs_f64() * 1000.0 * (1.0 - weight), Some(now));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::hosts;

    #[test]
    fn scores_decay_and_expire() {
        let host = hosts(&[1]).remove(0);
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        assert_eq!(score(&host, at(0.0)), 0.0);
        // The first time counts whole.
        touch(&host, Duration::from_millis(100), at(0.0));
        assert_eq!(score(&host, at(0.0)), 100.0);
        let e = (-1.0f64).exp();
        assert!((score(&host, at(10.0)) - 100.0 * e).abs() < 1e-9);
        touch(&host, Duration::from_millis(20), at(10.0));
        assert!((score(&host, at(10.0)) - (100.0 * e + 20.0 * (1.0 - e))).abs() < 1e-9);
        assert!(score(&host, at(69.9)) > 0.0);
        assert_eq!(score(&host, at(70.0)), 0.0);
        touch(&host, Duration::from_millis(7), at(200.0));
        assert_eq!(score(&host, at(200.0)), 7.0);
    }
}
