//! Files that a configuration names: certificates, bodies, routes, the configuration itself.
//!
//! Whoever may write such a path must neither hold up a thread (a FIFO is opened for as long as nobody writes into
//! it) nor fill the memory.

mod round;

pub use round::{Found, Rounds};

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, SystemTime};

/// How long a disk has to answer [`promptly`].
const PATIENCE: Duration = Duration::from_secs(2);
/// The same while another answer is owed, which has been waited for already.
const NEXT_PATIENCE: Duration = Duration::from_millis(200);
/// Answers that disks may owe; each is a thread.
const MOST_OWED: usize = 256;

/// Tells a file from another one at its path: by its time, size and number, so that a rename onto it and the links of a
/// mounted ConfigMap are seen alike.
#[derive(PartialEq, Eq, Clone, Copy, Debug)]
pub struct Stamp {
    /// When it was written last.
    pub modified: SystemTime,
    length: u64,
    number: u64,
}

impl Stamp {
    /// That of the file with these metadata.
    ///
    /// # Errors
    /// A file system that keeps no times.
    pub fn of(metadata: &Metadata) -> Result<Stamp> {
        Ok(Stamp { modified: metadata.modified()?, length: metadata.len(), number: metadata.ino() })
    }
}

/// What a file is now.
///
/// # Errors
/// Those of [`open`].
pub fn stamp(path: &Path) -> Result<Stamp> {
    Stamp::of(open(path)?.metadata())
}

/// The content of a file that is another one than `before`, `limit` bytes at most, and what tells it from the next.
///
/// # Errors
/// Those of [`open`] and [`Regular::read`].
pub fn read_changed(path: &Path, before: Option<Stamp>, limit: usize) -> Result<Option<(Stamp, Vec<u8>)>> {
    let file = open(path)?;
    let stamp = Stamp::of(file.metadata())?;
    if before == Some(stamp) {
        return Ok(None);
    }
    Ok(Some((stamp, file.read(limit)?)))
}

/// Has the disk keep the name of a file that was made or renamed, which it does apart from what is in it (fsync(2)): before that
/// the file may be gone, or the one of before back, when the machine has lost its power.
///
/// # Errors
/// Those of the operating system; a file system that knows no such order has none.
pub fn keep_name(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        kept => kept,
    }
}

/// A regular file that is open.
#[derive(Debug)]
pub struct Regular(File, Metadata);

/// Opens a file, and never waits for another process.
///
/// # Errors
/// Those of the operating system, and a path that is no regular file.
pub fn open(path: &Path) -> Result<Regular> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(Error::other("is no regular file"));
    }
    Ok(Regular(file, metadata))
}

impl Regular {
    /// What the file was when it was opened.
    pub fn metadata(&self) -> &Metadata {
        &self.1
    }

    /// All of it, `limit` bytes at most.
    ///
    /// # Errors
    /// Those of the operating system, and a file that is larger, which is not read.
    pub fn read(self, limit: usize) -> Result<Vec<u8>> {
        let larger =
            || Error::new(ErrorKind::FileTooLarge, format!("larger than the limit of {limit} bytes"));
        let Regular(file, metadata) = self;
        // Files of /proc say 0.
        let length =
            usize::try_from(metadata.len()).ok().filter(|length| *length <= limit).ok_or_else(larger)?;
        let mut bytes = Vec::with_capacity(length.saturating_add(1));
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit { Err(larger()) } else { Ok(bytes) }
    }
}

/// The content of a file, `limit` bytes at most.
///
/// # Errors
/// Those of [`open`] and [`Regular::read`].
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    open(path)?.read(limit)
}

/// Asks something of a file on a thread of its own. Whoever compiles what came by an API has others to attend to, whom a mount
/// that hangs must not hold up: it is waited for two seconds, a fifth of one while another is waited for in vain, and
/// not at all as long as the same path was asked for and has not answered.
///
/// # Errors
/// Those of `ask`, and a disk that does not answer in time.
pub fn promptly<T: Send + 'static>(
    path: &Path,
    ask: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    static DISKS: Disks = Disks { owed: Mutex::new(BTreeSet::new()) };
    DISKS.ask(path, ask)
}

/// [`promptly`] of [`read`].
///
/// # Errors
/// Those of both.
pub fn read_promptly(path: &Path, limit: usize) -> Result<Vec<u8>> {
    promptly(path, move |path| read(path, limit))
}

/// Why there is no answer.
fn silent() -> Error {
    Error::new(ErrorKind::TimedOut, "its disk does not answer")
}

/// The disks of this machine.
struct Disks {
    /// Paths whose disks owe an answer that nobody waits for any more.
    owed: Mutex<BTreeSet<PathBuf>>,
}

impl Disks {
    fn ask<T: Send + 'static>(
        &'static self,
        path: &Path,
        ask: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let patience = {
            let owed = self.owed.lock();
            if owed.contains(path) || owed.len() >= MOST_OWED {
                return Err(silent());
            }
            if owed.is_empty() { PATIENCE } else { NEXT_PATIENCE }
        };
        let (answer, answered) = sync_channel(1);
        let of = path.to_owned();
        std::thread::Builder::new().name("file".to_owned()).spawn(move || {
            // Nobody listens any more after that time.
            let _ = answer.send(ask(&of));
            self.owed.lock().remove(&of);
        })?;
        if let Ok(answer) = answered.recv_timeout(patience) {
            return answer;
        }
        let mut owed = self.owed.lock();
        // It may have come this moment.
        answered.try_recv().unwrap_or_else(|_| {
            owed.insert(path.to_owned());
            Err(silent())
        })
    }
}

/// [`read`] of text.
///
/// # Errors
/// Its own, and what is not UTF-8.
pub fn read_text(path: &Path, limit: usize) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Certificates were read by the thread that follows the control plane: a mount that hung kept it from hearing anything.
    #[test]
    fn a_disk_that_hangs_is_waited_for_once() {
        use std::sync::mpsc::channel;
        let disks: &'static Disks = Box::leak(Box::new(Disks { owed: Mutex::default() }));
        let (path, other) = (Path::new("/hangs/a"), Path::new("/hangs/b"));
        let (go_on, hung) = channel::<()>();
        let start = std::time::Instant::now();
        let error = disks.ask(path, move |_| hung.recv().map_err(Error::other)).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::TimedOut, "its disk does not answer")
        );
        assert!(start.elapsed() >= PATIENCE);
        let start = std::time::Instant::now();
        (0..100).for_each(|_| assert!(disks.ask(path, |_| Ok(())).is_err()));
        assert!(start.elapsed() < 50 * NEXT_PATIENCE, "{:?}", start.elapsed());
        // On a busy machine such an answer may come too late; it does not every time.
        while disks.ask(other, |_| Ok(())).is_err() {
            assert!(start.elapsed() < 100 * NEXT_PATIENCE, "others still are");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mut hanging, mut waited) = (Vec::new(), Vec::new());
        for name in ["/hangs/c", "/hangs/d", "/hangs/e", "/hangs/f"] {
            let (second, hangs) = channel::<()>();
            hanging.push(second);
            let start = std::time::Instant::now();
            let asked = disks.ask(Path::new(name), move |_| hangs.recv().map_err(Error::other));
            assert!(asked.is_err());
            waited.push(start.elapsed());
        }
        assert!(waited.iter().min().unwrap() < &PATIENCE, "{waited:?}");
        drop((go_on, hanging));
        // As soon as the disk has answered it is asked again.
        while !disks.owed.lock().is_empty() {
            std::thread::yield_now();
        }
        assert!(disks.ask(path, |_| Ok(())).is_ok());
    }

    /// A FIFO held up its reader until somebody wrote, and a device or a file with a hole filled the memory.
    #[test]
    fn what_would_wait_or_never_end_is_refused() {
        let folder = std::env::temp_dir().join(format!("sixfold-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (pipe, sparse) = (folder.join("pipe"), folder.join("sparse"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for (path, reason) in [
            (pipe.as_path(), "is no regular file"),
            (Path::new("/dev/zero"), "is no regular file"),
            (folder.as_path(), "is a directory"),
        ] {
            assert_eq!(read(path, 10).unwrap_err().to_string(), reason);
        }
        File::create(&sparse).unwrap().set_len(3 << 30).unwrap();
        assert_eq!(read(&sparse, 10).unwrap_err().to_string(), "larger than the limit of 10 bytes");
        std::fs::write(&sparse, "0123456789").unwrap();
        assert_eq!(read_text(&sparse, 10).unwrap(), "0123456789");
        assert_eq!(read(&sparse, 9).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(!read_text(Path::new("/proc/self/stat"), 1 << 16).unwrap().is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
