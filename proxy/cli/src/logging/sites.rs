//! How often one place in the code may write to the process's log.
//!
//! What a peer does may make the same line again and again, a million times a second. Each place that logs has
//! a rate of its own; what is beyond it is counted, and the count is told now and then.

use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that one place may write in a second.
const LINES_A_SECOND: u32 = 10;

/// How soon what was left out is told of.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Crates that speak of configuration and of what the operator does: no peer can make them say anything, and
/// a file with a hundred faults has a hundred lines.
const UNLIMITED: [&str; 3] = ["sixfold", "sixfold_apisix", "sixfold_xds"];

/// The target of lines about a panic, which a peer may be able to cause.
pub(super) const PANIC: &str = "sixfold::panic";

/// Limits every place that logs. Cloning shares it.
///
/// Levels below `info` are not limited: who asks for them wants all of them.
#[derive(Clone, Default)]
pub(super) struct Sites(Arc<RwLock<HashMap<Identifier, Arc<Site>>>>);

struct Site {
    metadata: &'static Metadata<'static>,
    state: Mutex<State>,
}

struct State {
    /// When its second began.
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// Lines of one place that were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) place: String,
    pub(super) lines: u64,
}

impl Sites {
    fn is_limited(metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let name = target.split("::").next().unwrap_or(target);
        *metadata.level() <= Level::INFO && (!UNLIMITED.contains(&name) || target == PANIC)
    }

    /// Whether a line of this place may be written now.
    fn admit(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let known = self.0.read().get(&metadata.callsite()).cloned();
        let site = known.unwrap_or_else(|| {
            let state = Mutex::new(State { since: now, lines: 0, left_out: 0 });
            let site = || Arc::new(Site { metadata, state });
            self.0.write().entry(metadata.callsite()).or_insert_with(site).clone()
        });
        let mut state = site.state.lock();
        if now.saturating_duration_since(state.since) >= Duration::from_secs(1) {
            (state.since, state.lines) = (now, 0);
        }
        if state.lines < LINES_A_SECOND {
            state.lines += 1;
            return true;
        }
        state.left_out += 1;
        false
    }

    /// What was left out since the last call.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let sites: Vec<Arc<Site>> = self.0.read().values().cloned().collect();
        let left_out = sites.iter().filter_map(|site| {
            let lines = std::mem::take(&mut site.state.lock().left_out);
            let (file, line) = (site.metadata.file().unwrap_or_default(), site.metadata.line().unwrap_or(0));
            (lines > 0).then(|| LeftOut { place: format!("{file}:{line}"), lines })
        });
        left_out.collect()
    }

    /// Tells of what was left out, and says when to look again: while lines come that are limited.
    pub(super) fn tell(&self) -> Option<Duration> {
        for LeftOut { place, lines } in self.left_out() {
            tracing::warn!(%place, lines, "lines of one place were left out, since there were too many");
        }
        let recent = |site: &Arc<Site>| site.state.lock().since.elapsed() < 2 * TELL_AFTER;
        self.0.read().values().any(recent).then_some(TELL_AFTER)
    }
}

impl<S: Subscriber> Layer<S> for Sites {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        !Sites::is_limited(metadata) || self.admit(metadata, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// Counts events that come through.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(event.metadata().target().to_owned());
        }
    }

    #[test]
    fn a_place_has_its_rate_and_what_is_beyond_is_told_of() {
        let (sites, seen) = (Sites::default(), Seen::default());
        let subscriber = tracing_subscriber::registry().with(sites.clone()).with(seen.clone());
        let (mut limited, mut rounds) = (0, 0);
        tracing::subscriber::with_default(subscriber, || {
            while limited < 1000 {
                tracing::warn!(target: "sixfold_plugins::forward_auth", "failed");
                limited += 1;
            }
            while rounds < 30 {
                tracing::warn!(target: "sixfold_plugins::limit_count", "another place");
                tracing::debug!(target: "sixfold_plugins::limit_count", "asked for");
                tracing::error!(target: "sixfold_apisix::source", "one of many faults");
                rounds += 1;
            }
        });
        let count = |target: &str| seen.0.lock().iter().filter(|seen| *seen == target).count();
        // A slow machine may take more than a second for the loop.
        let passed = count("sixfold_plugins::forward_auth");
        assert!((10..500).contains(&passed), "{passed} of 1000");
        assert_eq!(count("sixfold_apisix::source"), 30);
        assert!(count("sixfold_plugins::limit_count") >= 30 + 10);
        let left_out: u64 = sites.left_out().iter().map(|left| left.lines).sum();
        assert!(left_out >= 1000 - passed as u64);
        assert_eq!(sites.left_out(), [], "told once");
    }

    #[test]
    fn the_next_second_has_room_again() {
        let sites = Sites::default();
        let metadata = tracing::callsite!(name: "x", kind: tracing::metadata::Kind::EVENT, fields: message);
        let metadata = tracing::Callsite::metadata(metadata);
        let start = Instant::now();
        let admitted = |at: Duration| (0..20).filter(|_| sites.admit(metadata, start + at)).count();
        assert_eq!(admitted(Duration::ZERO), 10);
        assert_eq!(admitted(Duration::from_millis(999)), 0);
        assert_eq!(admitted(Duration::from_secs(1)), 10);
        assert_eq!(sites.left_out()[0].lines, 40);
    }
}
