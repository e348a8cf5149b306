//! Memory goes back to the system after a burst.
//!
//! glibc keeps what was freed in the arena of each thread, below whatever still lives at its top: a process that once
//! buffered for some hundred slow clients would keep that memory for its life. The control thread looks now and
//! then, and gives back what has lain free for two looks.

use std::time::Duration;

/// Time between two looks; memory is back after three of them at the latest.
pub(crate) const LOOK: Duration = Duration::from_secs(15);
/// Freed memory that may stay, bytes: giving back and asking again costs page faults.
const KEPT: u64 = 8 << 20;
/// What the kernel counts memory in, bytes, on the systems that glibc's figures are compared with.
const PAGE: u64 = 4096;

/// Remembers what giving back came to.
#[derive(Default)]
pub(crate) struct Trimmer {
    /// Resident bytes after the last time.
    resident: u64,
    /// Of these, bytes that the allocator had not given out: code, stacks, fragments.
    overhead: u64,
    /// There was something to give back at the last look.
    due: bool,
}

impl Trimmer {
    /// Gives back what lay free at the last look already; tells whether it did.
    pub(crate) fn look(&mut self) -> bool {
        let Some(resident) = resident() else { return false };
        // The cheap question first: most looks end here.
        if resident <= self.resident + KEPT || resident.saturating_sub(allocated()) <= self.overhead + KEPT {
            self.due = false;
            return false;
        }
        if !self.due {
            self.due = true;
            return false;
        }
        release();
        let after = self::resident().unwrap_or(resident);
        tracing::debug!(before = resident, after, "gave memory back");
        *self = Trimmer { resident: after, overhead: after.saturating_sub(allocated()), due: false };
        true
    }
}

/// Resident bytes of the process.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split(' ').nth(1)?.parse::<u64>().ok()?.checked_mul(PAGE)
}

/// Bytes that the allocator has given out.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn allocated() -> u64 {
    // SAFETY: the function takes no argument, and locks what it reads.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Gives the pages of freed memory back to the system. An arena is locked while its pages go.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn release() {
    // SAFETY: the function may be called at any time and from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn allocated() -> u64 {
    u64::MAX
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn release() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::channel;

    const BURST: usize = 128 << 20;

    /// After a burst a thread's memory stayed resident for ever.
    #[test]
    fn what_a_burst_has_left_goes_back() {
        let (done, burst) = channel();
        let (end, ending) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let pieces: Vec<Vec<u8>> = (0..BURST >> 14).map(|_| vec![1; 1 << 14]).collect();
            // Something at the top of the arena lives on, as always.
            let pin = vec![1u8; 1 << 14];
            drop(pieces);
            done.send(()).unwrap();
            let _ = ending.recv();
            drop(pin);
        });
        let mut trimmer = Trimmer::default();
        burst.recv().unwrap();
        let before = resident().unwrap();
        assert!(!trimmer.look(), "at the first look it may be needed again at once");
        assert!(trimmer.look());
        let after = resident().unwrap();
        assert!(before - after > (BURST as u64) * 3 / 4, "{before} {after}");
        assert!(!trimmer.look() && !trimmer.look(), "nothing is left to give");
        drop(end);
        thread.join().unwrap();
    }
}
