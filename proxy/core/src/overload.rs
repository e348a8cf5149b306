//! What a process does under load (Envoy's overload manager): what is measured, and which actions it sets off how much.
//!
//! Who measures asks for [`Overload::update`] now and then; the hot paths ask [`Overload::acts`], which is one read of a
//! number while there is no load.

use crate::metrics::Registry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What is done under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Requests are answered with 503 as soon as their head is there.
    StopAcceptingRequests,
    /// Clients are told that their connection ends with this response.
    DisableKeepAlive,
    /// Nobody accepts connections.
    StopAcceptingConnections,
    /// Connections are accepted and closed at once.
    RejectConnections,
    /// Memory that is free goes back to the system.
    ShrinkHeap,
    /// Times that clients have become shorter.
    ReduceTimeouts,
}

/// How many there are.
const ACTS: usize = 6;
/// How many times there are that become shorter.
const TIMERS: usize = 3;
/// All of what an action may apply to, in the state of it.
const ALL: u32 = 1_000_000;

/// The most of something that there may be: bytes of the heap, or connections of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The name that triggers and statistics have for it.
    pub name: String,
    /// The most.
    pub max: u64,
}

/// A time that a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Between two requests of a connection (`common_http_protocol_options.idle_timeout`).
    ConnectionIdle,
    /// Between two events of a request (`stream_idle_timeout`, a route's `idle_timeout`).
    StreamIdle,
    /// For the handshake of TLS (`transport_socket_connect_timeout`).
    Handshake,
}

/// What is left of a time under the greatest load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Least {
    /// So much.
    Time(Duration),
    /// This share of it, from 0 to 1.
    Share(f64),
}

impl Least {
    fn of(self, time: Duration) -> Duration {
        let least = match self {
            Least::Time(least) => least,
            Least::Share(share) => time.mul_f64(share.clamp(0.0, 1.0)),
        };
        // The share of a time that a float can't say exactly may be rounded beyond it.
        least.min(time)
    }
}

/// When, by the share of a heap that is used, an action is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// In all cases from here on.
    From(f64),
    /// In a share of the cases that grows between the two.
    Between(f64, f64),
}

impl Threshold {
    /// How much is done at this pressure, from 0 to 1.
    fn at(self, pressure: f64) -> f64 {
        match self {
            Threshold::From(value) => f64::from(u8::from(pressure >= value)),
            Threshold::Between(none, all) if pressure < all => ((pressure - none) / (all - none)).max(0.0),
            Threshold::Between(..) => 1.0,
        }
    }
}

/// What sets an action off.
#[derive(Debug)]
pub struct Trigger {
    /// Index of the heap limit.
    pub heap: usize,
    /// From which share of it on.
    pub threshold: Threshold,
}

/// An action and what sets it off.
#[derive(Debug)]
pub struct Action {
    /// What is done.
    pub act: Act,
    /// Its name in the configuration and in statistics.
    pub name: String,
    /// The strongest of them counts.
    pub triggers: Vec<Trigger>,
}

/// What is configured.
#[derive(Debug, Default)]
pub struct Settings {
    /// Time between two looks.
    pub refresh: Duration,
    /// What the bytes of the heap are compared with.
    pub heaps: Vec<Limit>,
    /// What is done.
    pub actions: Vec<Action>,
    /// Connections of clients at once, over all listeners.
    pub connections: Option<Limit>,
    /// By [`Timer`]: what is left of the times that become shorter.
    pub timers: [Option<Least>; TIMERS],
    /// Time between two rounds in which memory is given back.
    pub shrink: Duration,
}

crate::stat_block! {
    /// Statistics of a monitor, under `overload.NAME.`.
    pub struct MonitorStats { counters: [failed_updates], gauges: [pressure], histograms: [] }
}

crate::stat_block! {
    /// Statistics of an action, under `overload.NAME.`.
    pub struct ActionStats { counters: [], gauges: [active, scale_percent], histograms: [] }
}

crate::stat_block! {
    /// Statistics of giving memory back, under `overload.NAME.`.
    pub struct ShrinkStats { counters: [shrink_count], gauges: [], histograms: [] }
}

/// The load of a process, and what it does under it.
pub struct Overload {
    settings: Settings,
    monitors: Vec<MonitorStats>,
    actions: Vec<ActionStats>,
    shrinking: Option<ShrinkStats>,
    /// By [`Act`]: in how many of [`ALL`] cases it is done.
    states: [AtomicU32; ACTS],
    connections: Arc<AtomicU64>,
    connection_stats: Option<MonitorStats>,
}

impl Overload {
    /// Without load.
    pub fn new(settings: Settings, registry: &Registry) -> Overload {
        let prefix = |name: &str| format!("overload.{name}.");
        Overload {
            monitors: settings.heaps.iter().map(|h| MonitorStats::new(registry, &prefix(&h.name))).collect(),
            actions: settings.actions.iter().map(|a| ActionStats::new(registry, &prefix(&a.name))).collect(),
            shrinking: settings
                .actions
                .iter()
                .find(|action| action.act == Act::ShrinkHeap)
                .map(|action| ShrinkStats::new(registry, &prefix(&action.name))),
            connection_stats: settings
                .connections
                .as_ref()
                .map(|limit| MonitorStats::new(registry, &prefix(&limit.name))),
            settings,
            states: Default::default(),
            connections: Arc::default(),
        }
    }

    /// How often somebody has to look.
    pub fn refresh(&self) -> Duration {
        self.settings.refresh
    }

    /// Takes note of the bytes that are used; `None` if nobody can tell. Answers what is done more or less than before, in
    /// percent.
    pub fn update(&self, used: Option<u64>) -> Vec<(&str, u32)> {
        if let (Some(limit), Some(stats)) = (&self.settings.connections, &self.connection_stats) {
            stats.pressure().set(self.connections.load(Relaxed) * 100 / limit.max.max(1));
        }
        let Some(used) = used else {
            self.monitors.iter().for_each(|stats| stats.failed_updates().inc());
            return Vec::new();
        };
        let pressures = self.settings.heaps.iter().map(|heap| used as f64 / heap.max.max(1) as f64);
        let pressures: Vec<f64> = pressures.collect();
        for (stats, pressure) in self.monitors.iter().zip(&pressures) {
            stats.pressure().set((pressure * 100.0) as u64);
        }
        let mut changed = Vec::new();
        for (action, stats) in self.settings.actions.iter().zip(&self.actions) {
            let states = action.triggers.iter().map(|trigger| {
                trigger.threshold.at(pressures.get(trigger.heap).copied().unwrap_or_default())
            });
            let state = states.fold(0.0, f64::max);
            stats.active().set((state >= 1.0).into());
            stats.scale_percent().set((state * 100.0) as u64);
            let state = (state * f64::from(ALL)) as u32;
            if self.states[action.act as usize].swap(state, Relaxed) != state {
                changed.push((action.name.as_str(), state / (ALL / 100)));
            }
        }
        changed
    }

    /// Whether it is done now, to this one.
    #[inline]
    pub fn acts(&self, act: Act) -> bool {
        let state = self.states[act as usize].load(Relaxed);
        state > 0 && (state >= ALL || fastrand::u32(..ALL) < state)
    }

    /// The time between two rounds in which memory is given back, if that is ever done.
    pub fn shrinks_every(&self) -> Option<Duration> {
        self.shrinking.as_ref().map(|_| self.settings.shrink)
    }

    /// Notes that memory has been given back.
    pub fn shrunk(&self) {
        self.shrinking.iter().for_each(|stats| stats.shrink_count().inc());
    }

    /// What there is now of a time, and what is left of it under the greatest load; `None` where it is always whole.
    #[inline]
    pub fn shortened(&self, timer: Timer, time: Duration) -> Option<Shortened> {
        let least = self.settings.timers[timer as usize]?.of(time);
        let state = self.states[Act::ReduceTimeouts as usize].load(Relaxed).min(ALL);
        let now = time.saturating_sub((time - least).mul_f64(f64::from(state) / f64::from(ALL)));
        Some(Shortened { now, least, again: self.settings.refresh })
    }

    /// Whether it is done to all.
    pub fn is_saturated(&self, act: Act) -> bool {
        self.states[act as usize].load(Relaxed) >= ALL
    }

    /// A place for one more connection of a client; `Err` when all are taken.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn connect(&self) -> Result<Option<Place>, Full> {
        let Some(limit) = &self.settings.connections else { return Ok(None) };
        if self.connections.fetch_add(1, Relaxed) >= limit.max {
            self.connections.fetch_sub(1, Relaxed);
            self.connection_stats.iter().for_each(|stats| stats.failed_updates().inc());
            return Err(Full);
        }
        Ok(Some(Place(self.connections.clone())))
    }
}

impl fmt::Debug for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// A time that becomes shorter under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortened {
    /// What there is of it now.
    pub now: Duration,
    /// The least that it may be.
    pub least: Duration,
    /// After how long it may be another one.
    pub again: Duration,
}

/// There is no place for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The place of one connection, for as long as it is held.
#[derive(Debug)]
pub struct Place(Arc<AtomicU64>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overload(threshold: Threshold) -> Overload {
        let settings = Settings {
            refresh: Duration::from_secs(1),
            heaps: vec![Limit { name: "heap".to_owned(), max: 1000 }],
            actions: vec![Action {
                act: Act::StopAcceptingRequests,
                name: "stop".to_owned(),
                triggers: vec![Trigger { heap: 0, threshold }],
            }],
            connections: Some(Limit { name: "connections".to_owned(), max: 2 }),
            ..Settings::default()
        };
        Overload::new(settings, &Registry::new())
    }

    #[test]
    fn an_action_is_taken_from_its_threshold_on() {
        let overload = overload(Threshold::From(0.9));
        let acts = |used| {
            overload.update(used);
            overload.acts(Act::StopAcceptingRequests)
        };
        assert_eq!(
            [Some(899), Some(900), Some(2000), None, Some(0)].map(acts),
            [false, true, true, true, false]
        );
        assert!(!overload.acts(Act::DisableKeepAlive));
    }

    #[test]
    fn a_scaled_action_is_taken_the_more_the_nearer_its_end_is() {
        let overload = overload(Threshold::Between(0.5, 0.9));
        let share = |used| {
            overload.update(Some(used));
            (0..4000).filter(|_| overload.acts(Act::StopAcceptingRequests)).count()
        };
        assert_eq!((share(500), share(900), share(0)), (0, 4000, 0));
        assert!((800..1200).contains(&share(600)), "a quarter");
        assert!(!overload.is_saturated(Act::StopAcceptingRequests));
    }

    #[test]
    fn places_are_given_back() {
        let overload = overload(Threshold::From(1.0));
        let (one, two) = (overload.connect(), overload.connect());
        assert!(one.is_ok() && two.is_ok() && overload.connect().is_err());
        drop(one);
        assert!(overload.connect().is_ok_and(|place| place.is_some()));
    }

    #[test]
    fn times_become_shorter_with_the_load() {
        let settings = Settings {
            heaps: vec![Limit { name: "heap".to_owned(), max: 1000 }],
            actions: vec![Action {
                act: Act::ReduceTimeouts,
                name: "reduce".to_owned(),
                triggers: vec![Trigger { heap: 0, threshold: Threshold::Between(0.5, 0.9) }],
            }],
            timers: [Some(Least::Time(Duration::from_secs(2))), Some(Least::Share(0.1)), None],
            ..Settings::default()
        };
        let overload = Overload::new(settings, &Registry::new());
        let now = |used, timer| {
            overload.update(Some(used));
            overload.shortened(timer, Duration::from_secs(10)).map(|time| time.now.as_secs_f64().round())
        };
        assert_eq!(
            [0, 700, 900, 2000].map(|used| now(used, Timer::ConnectionIdle)),
            [10.0, 6.0, 2.0, 2.0].map(Some)
        );
        assert_eq!(now(900, Timer::StreamIdle), Some(1.0));
        assert_eq!(now(900, Timer::Handshake), None);
        // Of a time that a float can't say exactly all is the time itself.
        let whole = Settings { timers: [Some(Least::Share(1.0)), None, None], ..Settings::default() };
        let time = Duration::new(4_000_000_000, 300);
        let left = Overload::new(whole, &Registry::new()).shortened(Timer::ConnectionIdle, time);
        assert_eq!(left.map(|left| (left.now, left.least)), Some((time, time)));
        let short = overload.shortened(Timer::ConnectionIdle, Duration::from_secs(1));
        assert_eq!(
            short.map(|time| (time.now, time.least)),
            Some((Duration::from_secs(1), Duration::from_secs(1)))
        );
    }
}
