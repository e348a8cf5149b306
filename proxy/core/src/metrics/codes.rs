//! Counts of responses by their status, of which most resources see a few of five hundred.

use super::{Kind, StatDef, shard, shards};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};

/// Statuses that a shard counts apart. Those beyond are in their class's counter alone.
const KEPT: usize = 32;
/// The slot of the first status: no other statistic has one as large.
const BASE: usize = 1 << 16;
/// Where a status lies in its cell, above its count.
const STATUS: u32 = 48;
const COUNT: u64 = (1 << STATUS) - 1;

/// A definition for each status from 100 on.
static DEFS: LazyLock<Vec<StatDef>> = LazyLock::new(|| {
    STATUSES
        .map(|status| StatDef {
            name: Box::leak(format!("upstream_rq_{status}").into_boxed_str()),
            kind: Kind::Counter,
            slot: BASE + usize::from(status),
        })
        .collect()
});

/// The definition of a status.
pub(super) fn def(status: u16) -> Option<&'static StatDef> {
    DEFS.get(usize::from(status.checked_sub(STATUSES.start)?))
}

/// The statuses that have a definition.
const STATUSES: std::ops::Range<u16> = 100..600;

/// The status of a definition made by [`def`].
pub(super) fn status(slot: usize) -> Option<u16> {
    slot.checked_sub(BASE)?.try_into().ok()
}

/// A shard: a status and its count in each cell, in the order in which they came, 0 for a free one.
type Cells = [AtomicU64; KEPT];

/// Counts by status, one shard for each worker behind one for all other threads.
pub(super) struct Codes(Box<[OnceLock<Box<Cells>>]>);

/// A cell with one more of its status.
#[inline]
fn counted(seen: u64, status: u16) -> u64 {
    u64::from(status) << STATUS | ((seen & COUNT) + 1)
}

/// Counts in a shard of several threads, of which another may take the free cell first.
fn inc_shared(cells: &Cells, status: u16) {
    for cell in cells {
        let mut seen = cell.load(Relaxed);
        while seen == 0 || seen >> STATUS == u64::from(status) {
            match cell.compare_exchange_weak(seen, counted(seen, status), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }
}

impl Codes {
    pub(super) fn new() -> Codes {
        Codes((0..shards()).map(|_| OnceLock::new()).collect())
    }

    /// Counts one more of a status. What is none has no statistic of its own.
    pub(super) fn inc(&self, status: u16) {
        if !STATUSES.contains(&status) {
            return;
        }
        let own = shard();
        let (Some(cells), alone) =
            (self.0.get(own).or_else(|| self.0.first()), own != 0 && own < self.0.len())
        else {
            return;
        };
        let cells = cells.get_or_init(|| Box::new([const { AtomicU64::new(0) }; KEPT]));
        if !alone {
            return inc_shared(cells, status);
        }
        for cell in cells.iter() {
            // This thread alone writes here.
            let seen = cell.load(Relaxed);
            if seen == 0 || seen >> STATUS == u64::from(status) {
                return cell.store(counted(seen, status), Relaxed);
            }
        }
    }

    /// How often a status came, over all threads.
    pub(super) fn get(&self, status: u16) -> u64 {
        let cells = self.cells().filter(|cell| cell >> STATUS == u64::from(status));
        cells.map(|cell| cell & COUNT).sum()
    }

    /// Whether none ever came.
    pub(super) fn is_untouched(&self) -> bool {
        self.0.iter().all(|cells| cells.get().is_none())
    }

    /// The statuses that came.
    pub(super) fn seen(&self) -> Vec<u16> {
        let mut seen: Vec<u16> =
            self.cells().map(|cell| (cell >> STATUS) as u16).filter(|status| *status != 0).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn cells(&self) -> impl Iterator<Item = u64> {
        self.0.iter().filter_map(OnceLock::get).flat_map(|cells| cells.iter().map(|cell| cell.load(Relaxed)))
    }
}
