//! Memory goes back to the system after the start and after a burst.
//!
//! What reads a configuration is most of the program, and its code stays resident though nothing runs it again. So the
//! process lets go of its code when the start is over; what it needs comes back page by page, from the system's cache
//! of files. With it goes the memory that the configuration was read in, which is most of what is allocated then.
//!
//! glibc keeps what was freed in the arena of each thread, below whatever still lives at its top: a process that once
//! buffered for some hundred slow clients would keep that memory for its life. The control thread looks now and
//! then, and gives back what has lain free for two looks.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

/// Time between two looks; memory is back after three of them at the latest.
pub(crate) const LOOK: Duration = Duration::from_secs(15);
/// Freed memory that may stay, bytes: giving back and asking again costs page faults.
const KEPT: u64 = 8 << 20;

/// Remembers what giving back came to.
#[derive(Default)]
pub(crate) struct Trimmer {
    /// Anonymous bytes after the last time. Code is none of them: what comes back of it is nothing to give back.
    anonymous: u64,
    /// Of these, bytes that the allocator had not given out: stacks, fragments.
    overhead: u64,
    /// There was something to give back at the last look.
    due: bool,
}

impl Trimmer {
    /// Gives back what lay free at the last look already; tells whether it did.
    pub(crate) fn look(&mut self) -> bool {
        let Some(anonymous) = anonymous() else { return false };
        // The cheap question first: most looks end here.
        if anonymous <= self.anonymous + KEPT || anonymous.saturating_sub(allocated()) <= self.overhead + KEPT
        {
            self.due = false;
            return false;
        }
        if !self.due {
            self.due = true;
            return false;
        }
        release();
        let after = self::anonymous().unwrap_or(anonymous);
        tracing::debug!(before = anonymous, after, "gave memory back");
        *self = Trimmer { anonymous: after, overhead: after.saturating_sub(allocated()), due: false };
        true
    }
}

/// Gives back what the start has left: the program's code, and the memory in which the configuration was read. For its
/// end alone: under load all that runs would have to be mapped again.
pub(crate) fn end_start() {
    forget_code();
    release();
}

/// Lets go of the program's code, which the system maps again as far as it is run.
fn forget_code() {
    // Without procfs it stays resident, as it was.
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    code(&maps, &own.to_string_lossy()).for_each(forget);
}

/// Where the code of the program in the file `own` lies, by `/proc/self/smaps`. A debugger's marks are changes, with
/// which it is left alone.
fn code<'m>(maps: &'m str, own: &'m str) -> impl Iterator<Item = Range<usize>> {
    let mut place = None;
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        match (words.next()?, words.next()?) {
            (range, "r-xp") if line.ends_with(own) => {
                let (start, end) = range.split_once('-')?;
                let address = |text| usize::from_str_radix(text, 16).ok();
                place = Some(address(start)?..address(end)?);
            }
            ("Anonymous:", changed) => return place.take().filter(|_| changed == "0"),
            (range, _) if range.contains('-') => place = None,
            _ => {}
        }
        None
    })
}

/// Unmaps the pages of a part of the program's file.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn forget(pages: Range<usize>) {
    // SAFETY: the pages are those of a file, and none was changed: the next look at one finds what is there now.
    unsafe { libc::madvise(pages.start as *mut libc::c_void, pages.len(), libc::MADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn forget(_: Range<usize>) {}

/// Resident bytes of the process.
#[derive(Debug, PartialEq, Eq)]
struct Resident {
    all: u64,
    of_files: u64,
}

impl Resident {
    /// By `/proc/self/statm`, which counts pages of so many bytes.
    fn read(statm: &str, page: u64) -> Option<Resident> {
        let mut counts = statm.split_ascii_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok());
        let mut bytes = || counts.next()?.checked_mul(page);
        Some(Resident { all: bytes()?, of_files: bytes()? })
    }

    fn now() -> Option<Resident> {
        Resident::read(&std::fs::read_to_string("/proc/self/statm").ok()?, page())
    }
}

/// Resident bytes of the process, where the system says.
pub(crate) fn resident() -> Option<u64> {
    Resident::now().map(|resident| resident.all)
}

/// Resident bytes of the process that are of no file: heap and stacks.
pub(crate) fn anonymous() -> Option<u64> {
    Resident::now().map(|resident| resident.all.saturating_sub(resident.of_files))
}

/// What the kernel counts memory in, bytes: 4 KiB in most places, up to 64 KiB on arm64.
#[allow(unsafe_code)]
fn page() -> u64 {
    static PAGE: OnceLock<u64> = OnceLock::new();
    // SAFETY: the function takes a number, and touches nothing.
    *PAGE.get_or_init(|| u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096))
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
pub(crate) fn release() {
    // SAFETY: the function may be called at any time and from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn allocated() -> u64 {
    u64::MAX
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn release() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parking_lot::Mutex;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::channel;

    const BURST: usize = 128 << 20;

    /// Held while a test looks at which code is mapped.
    static CODE: Mutex<()> = Mutex::new(());

    const MAPS: &str = "\
555555954000-55555619b000 r--p 00000000 fd:00 1234 /usr/bin/sixfold
Anonymous:             0 kB
555556000000-555556c00000 r-xp 00846000 fd:00 1234 /usr/bin/sixfold
Size:              12288 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
555556c00000-555556c50000 r--p 01446000 fd:00 1234 /usr/bin/sixfold
Anonymous:           400 kB
7ffff7c00000-7ffff7d00000 r-xp 00026000 fd:00 5678 /usr/lib/libc.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_code_that_is_as_in_its_file_is_let_go_of() {
        let of = |maps: &str| -> Vec<(usize, usize)> {
            code(maps, "/usr/bin/sixfold").map(|pages| (pages.start, pages.end)).collect()
        };
        assert_eq!(of(MAPS), [(0x5555_5600_0000, 0x5555_56c0_0000)]);
        assert_eq!(of(&MAPS.replace("Anonymous:             0", "Anonymous:             4")), []);
        assert_eq!(of("Anonymous: 0 kB\nnonsense\nx r-xp /usr/bin/sixfold\n"), []);
    }

    // A page had 4096 bytes everywhere, and `fixed_heap` saw a sixteenth of what there was.
    #[test]
    fn memory_is_counted_in_the_pages_of_the_kernel() {
        let of = |page| Resident::read("900 30 10 5 0 70 0\n", page).unwrap();
        assert_eq!(of(4096), Resident { all: 30 * 4096, of_files: 10 * 4096 });
        assert_eq!(of(65_536), Resident { all: 30 * 65_536, of_files: 10 * 65_536 });
        assert_eq!(Resident::read("", 4096), None);
        // What the kernel tells every program: AT_PAGESZ.
        let told = std::fs::read("/proc/self/auxv").unwrap();
        let words: Vec<u64> = told.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let size = words.as_chunks::<2>().0.iter().find(|[kind, _]| *kind == libc::AT_PAGESZ);
        assert_eq!(Some(page()), size.map(|[_, size]| *size));
    }

    fn own_code() -> Range<usize> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        code(&maps, &own.to_string_lossy()).next().unwrap()
    }

    /// Maps all code, as if it ran; answers how many bytes it is.
    fn run_all() -> usize {
        let (code, memory) = (own_code(), std::fs::File::open("/proc/self/mem").unwrap());
        for page in code.clone().step_by(page() as usize) {
            memory.read_exact_at(&mut [0], page as u64).unwrap();
        }
        code.len()
    }

    /// The code of the start stayed resident.
    #[test]
    fn code_that_was_let_go_of_is_mapped_again_as_it_is_run() {
        let _held = CODE.lock();
        let code = own_code();
        // Bit 63 of each page's entry says that it is mapped.
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mapped = || {
            let mut entries = vec![0; code.len() / page() as usize * 8];
            pagemap.read_exact_at(&mut entries, (code.start as u64 / page()) * 8).unwrap();
            entries.as_chunks::<8>().0.iter().map(|entry| entry[7] & 0x80 != 0).collect::<Vec<_>>()
        };
        let before = mapped();
        forget_code();
        let after = mapped();
        let gone = before.iter().zip(&after).filter(|(before, after)| **before && !**after).count();
        assert!(gone > 0 && after.contains(&true), "{gone} of {} pages", before.len());
    }

    /// What a configuration was read in stayed resident for ever where it was less than what may stay.
    #[test]
    fn what_the_start_has_left_goes_back_at_its_end() {
        let _held = CODE.lock();
        let pieces: Vec<Vec<u8>> = (0..BURST >> 14).map(|_| vec![1; 1 << 14]).collect();
        let pin = vec![1u8; 1 << 14];
        drop(pieces);
        let before = anonymous().unwrap();
        end_start();
        let after = anonymous().unwrap();
        assert!(before - after > (BURST as u64) * 3 / 4, "{before} {after}");
        drop(pin);
    }

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
        let _held = CODE.lock();
        let mut trimmer = Trimmer::default();
        burst.recv().unwrap();
        let before = anonymous().unwrap();
        assert!(!trimmer.look(), "at the first look it may be needed again at once");
        assert!(trimmer.look());
        let after = anonymous().unwrap();
        assert!(before - after > (BURST as u64) * 3 / 4, "{before} {after}");
        assert!(!trimmer.look() && !trimmer.look(), "nothing is left to give");
        // Code that came back was taken for freed memory, and let go of again while it ran.
        let code = run_all();
        assert!(code as u64 > KEPT, "{code}: too little to be noticed");
        assert!(!trimmer.look() && !trimmer.look(), "code is nothing to give");
        drop(end);
        thread.join().unwrap();
    }
}
