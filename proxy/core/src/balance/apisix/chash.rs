//! APISIX's chash: Ketama points by CRC-32, the same as nginx's `hash ... consistent`.

use super::{Picker, gcd};
use crate::cluster::{Address, Choice, Host, Member};
use std::sync::Arc;

/// Points for one unit of weight.
const POINTS: u64 = 160;

/// Points of a ring at most; larger weights are scaled down together.
const MAX_POINTS: u64 = 4 << 20;

/// The ring stands over all nodes, whatever their health.
pub(in super::super) struct Chash;

/// Points in the order of their hashes, and the nodes they stand for.
pub(in super::super) struct Ring {
    points: Vec<(u32, u32)>,
    nodes: Vec<Arc<Member>>,
}

impl Picker for Chash {
    type Group = Ring;
    const KEEPS_DOWN: bool = true;

    fn prepare(&self, nodes: Vec<Arc<Member>>, _workers: usize) -> Ring {
        let weights: Vec<u32> = nodes.iter().map(|n| n.weight).collect();
        let mut points = Vec::new();
        for (index, (node, units)) in nodes.iter().zip(units(&weights)).enumerate() {
            let seed = crc32fast::Hasher::new_with_initial(crc32fast::hash(&node_id(&node.host)));
            let mut previous = 0u32;
            for _ in 0..units * POINTS {
                let mut hasher = seed.clone();
                hasher.update(&previous.to_le_bytes());
                previous = hasher.finalize();
                points.push((previous, index as u32));
            }
        }
        points.sort_unstable();
        Ring { points, nodes }
    }

    fn nodes(ring: &Ring) -> impl Iterator<Item = &Arc<Member>> {
        ring.nodes.iter()
    }

    fn pick<'g>(
        &self,
        ring: &'g Ring,
        choice: &Choice<'_>,
        allowed: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>> {
        let hash = choice.hash.unwrap_or(choice.random) as u32;
        let at = ring.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = ring.points.split_at(at);
        let walk = || after.iter().chain(before).filter_map(|(_, i)| ring.nodes.get(*i as usize));
        let first = walk().next()?;
        if allowed(first) {
            return Some(first);
        }
        // Off the usual way: with no node left the walk would see every point, so that is asked first.
        if !ring.nodes.iter().any(|n| allowed(n)) {
            return None;
        }
        walk().find(|n| allowed(n))
    }
}

/// Weights without their common divisor. When all are 0 there are no points, and no node is ever picked.
fn units(weights: &[u32]) -> impl Iterator<Item = u64> {
    let divisor = weights.iter().copied().fold(0, gcd);
    let sum: u64 = weights.iter().map(|w| u64::from(*w / divisor.max(1))).sum();
    let scale = (sum * POINTS).div_ceil(MAX_POINTS).max(1);
    weights.iter().map(move |w| match divisor {
        0 => 0,
        divisor => u64::from(*w / divisor).div_ceil(scale),
    })
}

/// `host:port` with every colon replaced by NUL.
fn node_id(node: &Host) -> Vec<u8> {
    let text = match &node.address {
        Address::Ip(addr) => format!("{}:{}", addr.ip(), addr.port()),
        other => other.to_string(),
    };
    text.into_bytes().into_iter().map(|b| if b == b':' { 0 } else { b }).collect()
}
