//! What is told of the tables that hashes choose from (extensions/load_balancing_policies/ring_hash and maglev): those of
//! the table that is in force.

crate::stat_block! {
    /// Under `cluster.NAME.ring_hash_lb.`
    pub struct RingStats {
        counters: [], gauges: [size, min_hashes_per_host, max_hashes_per_host], histograms: [],
    }
}

crate::stat_block! {
    /// Under `cluster.NAME.maglev_lb.`
    pub struct MaglevStats {
        counters: [], gauges: [min_entries_per_host, max_entries_per_host], histograms: [],
    }
}

/// How even a table is: of each host the entries, at least and at most.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HashTable {
    /// A ring of so many entries.
    Ring { size: u64, least: u64, most: u64 },
    /// A Maglev table.
    Maglev { least: u64, most: u64 },
}

/// The least and the most entries that one of `hosts` has among `entries`, which name hosts by their places; `None`
/// without any.
pub(crate) fn share(hosts: usize, entries: impl Iterator<Item = u32>) -> Option<(u64, u64)> {
    let mut counts = vec![0u64; hosts];
    entries.for_each(|host| counts.get_mut(host as usize).into_iter().for_each(|count| *count += 1));
    counts.iter().min().copied().zip(counts.iter().max().copied())
}
