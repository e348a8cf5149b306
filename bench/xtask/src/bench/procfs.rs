//! What the kernel knows: CPU time and memory of a process and its children, and the machine.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output;

/// A process, its children, their children and so on.
fn tree(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            && let Ok(parent) = stat_field(id, 1)
        {
            parents.push((id, parent as u32));
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
        next += 1;
    }
    Ok(family)
}

/// A field of `/proc/PID/stat`, counted from 0 after the command's name in parentheses.
fn stat_field(pid: u32, field: usize) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    let value = fields.split_whitespace().nth(field).context("too few fields in stat")?;
    Ok(value.parse()?)
}

/// CPU time of a process tree, all threads, user and system, in microseconds.
///
/// # Errors
/// The process is gone.
pub(super) fn cpu_micros(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for id in tree(pid)? {
        match stat_field(id, 11).and_then(|user| Ok(user + stat_field(id, 12)?)) {
            Ok(used) => ticks += used,
            Err(error) if id == pid => return Err(error),
            Err(_) => {} // a child that has ended since
        }
    }
    // 100 ticks a second on every Linux that this runs on (sysconf(_SC_CLK_TCK)).
    Ok(ticks as f64 * 1e4)
}

/// CPU time of all threads of one process that still run, in microseconds: finer than the clock ticks of
/// [`cpu_micros`], for short times in which no thread ends.
///
/// # Errors
/// The process is gone.
pub(super) fn run_micros(pid: u32) -> Result<f64> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two looks; the process has others.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e3)
}

/// Resident memory of a process tree in megabytes (10^6 bytes).
///
/// # Errors
/// The process is gone.
pub(crate) fn resident_megabytes(pid: u32) -> Result<f64> {
    let mut kilobytes = 0.0;
    for id in tree(pid)? {
        match resident_kilobytes(id) {
            Ok(resident) => kilobytes += resident,
            Err(error) if id == pid => return Err(error),
            Err(_) => {} // a child that has ended since
        }
    }
    Ok(kilobytes * 1024.0 / 1e6)
}

fn resident_kilobytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The load average of the last minute.
///
/// # Errors
/// There is no /proc.
pub(super) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("/proc/loadavg is empty")?.parse()?)
}

/// The machine in one line: processor, cores, memory, kernel.
///
/// # Errors
/// There is no /proc.
pub(super) fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let named =
        |key: &str| cpuinfo.lines().find(|line| line.starts_with(key)).and_then(|l| l.split(": ").nth(1));
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let memory = meminfo.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default();
    let kernel = output(Command::new("uname").arg("-r"))?;
    let model = named("model name").unwrap_or("unknown processor");
    Ok(format!("{model}, {cores} cores, {:.0} GB of memory, Linux {}", memory * 1024.0 / 1e9, kernel.trim()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let me = std::process::id();
        assert!(cpu_micros(me).unwrap() >= 0.0);
        assert!(run_micros(me).unwrap() > 0.0);
        assert!(run_micros(u32::MAX).is_err());
        assert!(resident_megabytes(me).unwrap() > 0.5);
        assert!(cpu_micros(u32::MAX).is_err());
    }
}
