//! Envoy's RING_HASH: a Ketama-like ring (source/extensions/load_balancing_policies/ring_hash).

use super::levels::{Algorithm, LbContext, Weighted};
use crate::cluster::{ClusterStats, HashTable, Member, share};
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// Sizes and hash function of the ring.
pub(super) struct RingHash {
    pub(super) min_size: u64,
    pub(super) max_size: u64,
    pub(super) murmur: bool,
    pub(super) use_hostname: bool,
    pub(super) stats: Arc<ClusterStats>,
}

/// Points in the order of their hashes, and the hosts they stand for.
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
    members: Vec<Arc<Member>>,
}

impl Algorithm for RingHash {
    type Group = Ring;
    const HASHED: bool = true;

    fn prepare(&self, hosts: Vec<Weighted>, _workers: usize) -> Ring {
        let total: f64 = hosts.iter().map(|h| h.weight).sum();
        let least = hosts.iter().map(|h| h.weight / total).fold(f64::INFINITY, f64::min);
        let scale = ((least * self.min_size as f64).ceil() / least).min(self.max_size as f64);
        let mut points = Vec::new();
        if total > 0.0 && scale.is_finite() {
            points.reserve_exact(scale.ceil() as usize);
            let (mut have, mut want) = (0.0, 0.0);
            for (index, host) in hosts.iter().enumerate() {
                want += scale * (host.weight / total);
                have = self.add_points(
                    &mut points,
                    hash_key(&host.member, self.use_hostname),
                    index as u32,
                    have,
                    want,
                );
            }
        }
        points.sort_unstable();
        self.show(&points, hosts.len());
        Ring { points, members: hosts.into_iter().map(|h| h.member).collect() }
    }

    fn pick<'g>(&self, ring: &'g Ring, context: LbContext) -> Option<&'g Arc<Member>> {
        let len = ring.points.len().max(1);
        let at = ring.points.partition_point(|(hash, _)| *hash < context.value);
        let (_, index) = ring.points.get((at % len + context.refused as usize) % len)?;
        ring.members.get(*index as usize)
    }
}

impl RingHash {
    fn show(&self, points: &[(u64, u32)], hosts: usize) {
        let shares = share(hosts, points.iter().map(|(_, host)| *host));
        if let Some((least, most)) = shares {
            self.stats.keep_table(HashTable::Ring { size: points.len() as u64, least, most });
        }
    }

    fn add_points(
        &self,
        points: &mut Vec<(u64, u32)>,
        key: &str,
        host: u32,
        mut have: f64,
        want: f64,
    ) -> f64 {
        let mut text = Vec::with_capacity(key.len() + 8);
        text.extend_from_slice(key.as_bytes());
        text.push(b'_');
        let mut digits = itoa::Buffer::new();
        let mut number = 0u64;
        while have < want {
            text.truncate(key.len() + 1);
            text.extend_from_slice(digits.format(number).as_bytes());
            points.push((if self.murmur { murmur2(&text) } else { xxh64(&text, 0) }, host));
            number += 1;
            have += 1.0;
        }
        have
    }
}

/// What stands for a host on rings and in Maglev tables: `envoy.lb` metadata `hash_key`, the hostname, or
/// the address.
pub(super) fn hash_key(member: &Member, use_hostname: bool) -> &str {
    let key = member.metadata.get("envoy.lb").and_then(|m| m.get("hash_key")).and_then(|k| k.as_str());
    match key {
        Some(key) if !key.is_empty() => key,
        _ if use_hostname => &member.host.hostname,
        _ => &member.host.label,
    }
}

/// MurmurHash2, 64 bits, as libstdc++'s `std::hash` has it.
fn murmur2(data: &[u8]) -> u64 {
    const SEED: u64 = 0xC70F_6907;
    const MUL: u64 = 0xC6A4_A793_5BD1_E995;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (data.len() as u64).wrapping_mul(MUL);
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let k = chunk.iter().rev().fold(0u64, |k, b| (k << 8) | u64::from(*b));
        hash = (hash ^ mix(k.wrapping_mul(MUL)).wrapping_mul(MUL)).wrapping_mul(MUL);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let k = rest.iter().rev().fold(0u64, |k, b| (k << 8) | u64::from(*b));
        hash = (hash ^ k).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}
