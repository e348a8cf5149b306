//! Bodies in memory, and the bound on all of them together: what plugins want whole, hold back or keep, and what a retry may
//! need again.

/// The least that a process may buffer, whatever memory it finds.
const LEAST_BUDGET: usize = 64 << 20;
/// Bodies may take this part of the memory there is.
const PART_OF_MEMORY: usize = 4;

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
