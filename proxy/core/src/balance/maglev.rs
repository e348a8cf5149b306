//! Envoy's MAGLEV (source/extensions/load_balancing_policies/maglev): a table of fixed size.

use super::levels::{Algorithm, LbContext, Weighted};
use super::ring_hash::hash_key;
use crate::cluster::{ClusterStats, HashTable, Member, share};
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// Size of the table.
pub(super) struct Maglev {
    pub(super) table_size: u64,
    pub(super) use_hostname: bool,
    pub(super) stats: Arc<ClusterStats>,
}

/// The host of every slot.
pub(super) struct Table {
    slots: Vec<u32>,
    members: Vec<Arc<Member>>,
}

struct Row {
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    due: f64,
}

const FREE: u32 = u32::MAX;

impl Algorithm for Maglev {
    type Group = Table;
    const HASHED: bool = true;

    fn prepare(&self, mut hosts: Vec<Weighted>, _workers: usize) -> Table {
        // Sorted, so that the table does not depend on the order of endpoints.
        hosts.sort_by(|a, b| {
            hash_key(&a.member, self.use_hostname).cmp(hash_key(&b.member, self.use_hostname))
        });
        hosts.retain(|h| h.weight > 0.0);
        let slots = self.fill(&hosts);
        let shares = share(hosts.len(), slots.iter().copied());
        if let Some((least, most)) = shares {
            self.stats.keep_table(HashTable::Maglev { least, most });
        }
        Table { slots, members: hosts.into_iter().map(|h| h.member).collect() }
    }

    #[inline]
    fn pick<'g>(&self, table: &'g Table, context: LbContext) -> Option<&'g Arc<Member>> {
        // A refused pick turns the hash's bits, as Envoy does by the attempt.
        let hash = if context.refused == 0 {
            context.value
        } else {
            context.value ^ u64::from(context.refused).wrapping_neg()
        };
        let slot = table.slots.get((hash % self.table_size) as usize)?;
        table.members.get(*slot as usize)
    }
}

impl Maglev {
    fn fill(&self, hosts: &[Weighted]) -> Vec<u32> {
        if hosts.is_empty() {
            return Vec::new();
        }
        let size = self.table_size;
        let total: f64 = hosts.iter().map(|h| h.weight).sum();
        let mut rows: Vec<Row> = hosts.iter().map(|h| self.row(h, total)).collect();
        let top = rows.iter().map(|r| r.weight).fold(0.0, f64::max);
        let mut slots = vec![FREE; size as usize];
        let (mut filled, mut turn) = (0, 1.0);
        while filled < size {
            for (index, row) in rows.iter_mut().enumerate() {
                if filled == size || turn * row.weight < row.due {
                    continue;
                }
                row.due += top;
                let mut slot = row.slot(size);
                while slots[slot] != FREE {
                    row.next += 1;
                    slot = row.slot(size);
                }
                slots[slot] = index as u32;
                row.next += 1;
                filled += 1;
            }
            turn += 1.0;
        }
        slots
    }

    fn row(&self, host: &Weighted, total: f64) -> Row {
        let key = hash_key(&host.member, self.use_hostname).as_bytes();
        let size = self.table_size;
        Row {
            offset: xxh64(key, 0) % size,
            skip: xxh64(key, 1) % (size - 1).max(1) + 1,
            next: 0,
            weight: host.weight / total,
            due: 0.0,
        }
    }
}

impl Row {
    fn slot(&self, size: u64) -> usize {
        ((self.offset + self.skip.wrapping_mul(self.next)) % size) as usize
    }
}
