//! Sets of destination ports: what the conditions of listener filters come to.

use std::net::SocketAddr;
use std::ops::Range;

/// Destinations by port. Conditions are worked out when they are compiled, so that a connection asks one sorted list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet {
    /// Ascending, neither touching nor overlapping.
    ranges: Vec<Range<u32>>,
    /// Whether connections without a port belong to it: those of unix sockets.
    portless: bool,
}

/// One past the last port.
const END: u32 = 1 << 16;

impl PortSet {
    /// Every destination.
    pub fn all() -> PortSet {
        PortSet { ranges: std::iter::once(0..END).collect(), portless: true }
    }

    /// Ports from `start` up to but without `end`.
    pub fn range(start: u32, end: u32) -> PortSet {
        let range = start.min(END)..end.min(END);
        PortSet { ranges: if range.is_empty() { Vec::new() } else { vec![range] }, portless: false }
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: PortSet) -> PortSet {
        self.ranges.extend(other.ranges);
        self.ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u32>> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        PortSet { ranges: merged, portless: self.portless || other.portless }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: PortSet) -> PortSet {
        self.complement().union(other.complement()).complement()
    }

    /// What is not in it.
    #[must_use]
    pub fn complement(self) -> PortSet {
        let mut gaps = Vec::with_capacity(self.ranges.len() + 1);
        let mut from = 0;
        for range in self.ranges {
            if from < range.start {
                gaps.push(from..range.start);
            }
            from = range.end;
        }
        if from < END {
            gaps.push(from..END);
        }
        PortSet { ranges: gaps, portless: !self.portless }
    }

    /// Whether a connection to `destination`, `None` for a unix socket, is meant.
    pub fn contains(&self, destination: Option<SocketAddr>) -> bool {
        let Some(port) = destination.map(|address| u32::from(address.port())) else { return self.portless };
        let after = self.ranges.partition_point(|range| range.end <= port);
        self.ranges.get(after).is_some_and(|range| range.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGES: [u16; 8] = [0, 1, 79, 80, 81, 443, 65_534, 65_535];

    /// Which of some destinations are in a set, the last without a port.
    fn members(set: &PortSet) -> Vec<bool> {
        let addresses = EDGES.iter().map(|port| Some(SocketAddr::from(([127, 0, 0, 1], *port))));
        addresses.chain([None]).map(|destination| set.contains(destination)).collect()
    }

    #[test]
    fn sets_made_of_sets_hold_what_the_conditions_say_of_each_destination() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut sets =
            vec![PortSet::default(), PortSet::all(), PortSet::range(80, 80), PortSet::range(80, 81)];
        let bounds = [0, 1, 80, 81, 443, 65_535, 65_536, 70_000];
        for _ in 0..500 {
            let pick = |rng: &mut fastrand::Rng, sets: &[PortSet]| sets[rng.usize(..sets.len())].clone();
            let (a, b) = (pick(&mut rng, &sets), pick(&mut rng, &sets));
            let (in_a, in_b) = (members(&a), members(&b));
            let pairs = in_a.iter().zip(&in_b);
            let (made, expected): (PortSet, Vec<bool>) = match rng.u8(..4) {
                0 => (a.complement(), in_a.iter().map(|a| !a).collect()),
                1 => (a.union(b), pairs.map(|(a, b)| a | b).collect()),
                2 => (a.intersection(b), pairs.map(|(a, b)| a & b).collect()),
                _ => {
                    let (start, end) = (bounds[rng.usize(..8)], bounds[rng.usize(..8)]);
                    let within = |port: &u16| (start..end).contains(&u32::from(*port));
                    (PortSet::range(start, end), EDGES.iter().map(within).chain([false]).collect())
                }
            };
            assert_eq!(members(&made), expected, "{made:?}");
            sets.push(made);
        }
        assert!(sets.iter().any(|set| set.ranges.len() > 1));
    }
}
