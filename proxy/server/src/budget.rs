//! Bodies in memory, and the bound on all of them together: what plugins want whole or hold back, and what a retry may
//! need again.

use bytes::Bytes;
use sixfold_core::budget::ByteBudget;
use std::sync::Arc;

/// The least that a process may buffer, whatever memory it finds.
const LEAST_BUDGET: usize = 64 << 20;
/// Bodies may take this part of the memory there is.
const PART_OF_MEMORY: usize = 4;
/// What a buffer takes with its first bytes.
const FIRST: usize = 4 << 10;

/// The budget for the memory that this process may use: a quarter of it, at least 64 MiB. The bound of its cgroup
/// goes before what the machine has. Read once, at the start.
pub fn default_budget() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let of_group = group.iter().find_map(|path| read(path).trim().parse::<usize>().ok());
    budget_of(of_group, machine_memory(&read("/proc/meminfo")))
}

fn budget_of(group: Option<usize>, machine: Option<usize>) -> usize {
    let memory = [group, machine].into_iter().flatten().min();
    (memory.unwrap_or(0) / PART_OF_MEMORY).max(LEAST_BUDGET)
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn machine_memory(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl Reservation {
    /// Nothing yet.
    pub(crate) fn empty(budget: &Arc<ByteBudget>) -> Reservation {
        Reservation { budget: budget.clone(), bytes: 0 }
    }

    /// Makes it so many bytes; `false`, and it stays as it was, when there is no room for the difference.
    #[must_use]
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.budget.take(bytes - self.bytes) {
            return false;
        }
        self.budget.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A body that grows within the budget.
#[derive(Debug)]
pub(crate) struct Buffered {
    bytes: Vec<u8>,
    held: Reservation,
}

impl Buffered {
    /// Nothing yet; takes no memory.
    pub(crate) fn new(budget: &Arc<ByteBudget>) -> Buffered {
        Buffered { bytes: Vec::new(), held: Reservation::empty(budget) }
    }

    /// Adds a piece; `false`, and nothing is added, when the process holds too much already.
    #[must_use]
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        let needed = self.bytes.len() + piece.len();
        if needed > self.held.bytes {
            let grown = needed.max(self.held.bytes * 2).max(FIRST);
            if !self.held.resize(grown) {
                return false;
            }
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        true
    }

    /// What was added.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole body, and its place in the budget: keep that for as long as the body.
    pub(crate) fn finish(self) -> (Bytes, Reservation) {
        (self.bytes.into(), self.held)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bodies_grow_within_the_budget_and_give_it_back() {
        let budget = Arc::new(ByteBudget::new(64 << 10));
        let (mut one, mut two) = (Buffered::new(&budget), Buffered::new(&budget));
        assert_eq!(budget.used(), 0);
        for piece in 0..10u8 {
            assert!(one.push(&[piece; 3000]));
        }
        assert!(budget.used() >= 30_000 && budget.used() < 2 * 30_000);
        assert!(two.push(&[7; 20_000]) && !two.push(&[7; 20_000]), "there is no room for both");
        assert_eq!(two.as_slice().len(), 20_000, "a refused piece leaves what was there");
        let (body, held) = one.finish();
        assert_eq!((body.len(), body[29_999]), (30_000, 9));
        drop(held);
        assert!(two.push(&[7; 20_000]));
        drop(two);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_budget_follows_the_memory_there_is() {
        let machine = machine_memory("MemFree: 1 kB\nMemTotal:       16384000 kB\n").unwrap();
        assert_eq!(machine, 16_384_000 * 1024);
        assert_eq!(budget_of(None, Some(machine)), machine / 4);
        assert_eq!(budget_of(Some(1 << 30), Some(machine)), 256 << 20);
        // A cgroup without a bound says "max", or a number beyond all memory.
        assert_eq!(budget_of(Some(usize::MAX), Some(machine)), machine / 4);
        assert_eq!(budget_of(Some(100 << 20), None), LEAST_BUDGET);
        assert_eq!(budget_of(None, machine_memory("")), LEAST_BUDGET);
        assert!(default_budget() >= LEAST_BUDGET);
    }
}
