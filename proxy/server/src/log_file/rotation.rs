//! Rotation of logs by time and by size, as APISIX's plugin log-rotate does it: a file is renamed to
//! `2026-11-30_15-00-00__access.log` beside it, in local time, and begun anew.
//!
//! The thread that writes a log rotates it, so that no line is in two files or in none. Another process may write the same
//! file, one that drains, and another path may lead to it: a file is rotated by who has its lock, and once. Whoever finds that
//! the path is another file than the one it has open goes on with that.

use super::archive::{self, SUFFIX};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use sixfold_core::access_log::LogTarget;
use std::fs::{self, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Between the time and the name of the log.
const BETWEEN: &str = "__";
/// Files that wait to be compressed; what comes then stays as it is.
const WAITING: usize = 16;
/// How long whoever else writes a file has to notice that it was renamed.
const LAST_LINES: Duration = Duration::from_millis(1500);
/// Until a rotation that failed is tried again, in seconds.
const AGAIN: i64 = 60;

/// When logs are rotated, and what is kept of them (`plugin_attr.log-rotate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// `interval`: at the times that are multiples of it, an hour by default; not 0.
    pub interval: Duration,
    /// `max_kept`: old files that are kept of each log, 168 by default.
    pub max_kept: usize,
    /// `max_size`: bytes that a file has when it is rotated before its time; `None`, the default, for any number.
    pub max_size: Option<u64>,
    /// `enable_compression`: old files become `.tar.gz`; not by default.
    pub enable_compression: bool,
}

/// What tells a file from all others, whatever paths lead to it: its device and its number there.
pub(super) type Identity = (u64, u64);

/// Rotates one file.
pub(super) struct Rotator {
    rotation: Rotation,
    path: PathBuf,
    /// The next multiple of the interval, in seconds since 1970.
    due: i64,
    /// Nothing is tried before, after something went wrong.
    not_before: i64,
    /// The file that is open.
    open: Option<Identity>,
    /// To the thread that compresses, once there is one.
    archive: Option<SyncSender<(PathBuf, Instant)>>,
    zone: TimeZone,
}

impl Rotator {
    /// Of a file; nothing else is rotated.
    pub(super) fn new(rotation: Rotation, target: &LogTarget, now: Timestamp) -> Option<Rotator> {
        let LogTarget::File(path) = target else { return None };
        let (path, due) = (path.clone(), next(now.as_second(), rotation.interval));
        let zone = TimeZone::system();
        Some(Rotator { rotation, path, due, not_before: i64::MIN, open: None, archive: None, zone })
    }

    /// This file has been opened.
    pub(super) fn opened(&mut self, file: Option<Identity>) {
        self.open = file;
    }

    /// Whether the path is another file than the one that is open, or none. Who has moved that has rotated it, so that its
    /// time is over.
    pub(super) fn was_moved(&mut self, now: Timestamp) -> bool {
        let was_moved = self.open.is_some() && of_path(&self.path) != self.open;
        if was_moved && now.as_second() >= self.due {
            self.due = next(now.as_second(), self.rotation.interval);
        }
        was_moved
    }

    /// Renames the file if it is time for that; answers whether it is to be opened anew.
    ///
    /// # Errors
    /// The operating system's; it is tried again a minute later.
    pub(super) fn rotate(&mut self, now: Timestamp) -> io::Result<bool> {
        let second = now.as_second();
        if second < self.not_before || !self.is_due(second) {
            return Ok(false);
        }
        let rotated = self.rename(now);
        if rotated.is_err() {
            self.not_before = second.saturating_add(AGAIN);
        } else if second >= self.due {
            self.due = next(second, self.rotation.interval);
        }
        rotated
    }

    fn is_due(&self, now: i64) -> bool {
        if now >= self.due {
            return true;
        }
        let Some(most) = self.rotation.max_size else { return false };
        fs::metadata(&self.path).is_ok_and(|data| data.is_file() && data.len() >= most)
    }

    fn rename(&mut self, now: Timestamp) -> io::Result<bool> {
        if self.was_moved(now) {
            return Ok(true);
        }
        if !fs::metadata(&self.path)?.is_file() {
            return Ok(false);
        }
        let file = OpenOptions::new().append(true).open(&self.path)?;
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            // Whoever has it is about to rename it.
            return Ok(false);
        }
        // A link to the file stays one.
        let path = fs::canonicalize(&self.path)?;
        let locked = Some(identity(&file.metadata()?));
        if of_path(&path) != locked || self.open.is_some() && self.open != locked {
            return Ok(true);
        }
        let time = now.to_zoned(self.zone.clone()).strftime("%Y-%m-%d_%H-%M-%S").to_string();
        let Some(name) = path.file_name() else { return Ok(false) };
        let mut old = std::ffi::OsString::from(time + BETWEEN);
        old.push(name);
        let old = path.with_file_name(old);
        if old.exists() {
            // Of this second there is one, another process's perhaps.
            return Ok(false);
        }
        fs::rename(&path, &old)?;
        match self.rotation.enable_compression {
            true => self.compress(&path, old),
            false => prune(&path, self.rotation.max_kept),
        }
        Ok(true)
    }

    /// Has a thread compress an old file: it takes longer than lines may wait.
    fn compress(&mut self, path: &Path, old: PathBuf) {
        let most = self.rotation.max_kept;
        if self.archive.is_none() {
            let (archive, queue) = sync_channel(WAITING);
            let path = path.to_owned();
            let thread = thread::Builder::new().name("log-archive".to_owned());
            match thread.spawn(move || compress_all(&queue, &path, most)) {
                Ok(_) => self.archive = Some(archive),
                Err(error) => tracing::warn!(%error, "old logs are not compressed"),
            }
        }
        let sent =
            self.archive.as_ref().is_some_and(|archive| archive.try_send((old, Instant::now())).is_ok());
        if !sent {
            prune(path, most);
        }
    }
}

fn compress_all(queue: &Receiver<(PathBuf, Instant)>, path: &Path, most: usize) {
    while let Ok((old, since)) = queue.recv() {
        thread::sleep(LAST_LINES.saturating_sub(since.elapsed()));
        if let Err(error) = archive::compress(&old) {
            tracing::warn!(log = %old.display(), %error, "an old log is not compressed");
        }
        prune(path, most);
    }
}

/// The next multiple of an interval.
fn next(now: i64, interval: Duration) -> i64 {
    let interval = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX).max(1);
    now.saturating_add(interval - now.rem_euclid(interval))
}

/// Which file this is of.
pub(super) fn identity(data: &Metadata) -> Identity {
    (data.dev(), data.ino())
}

fn of_path(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|data| identity(&data))
}

/// Removes the oldest of a log's old files.
fn prune(path: &Path, most: usize) {
    let removed = old_files(path).and_then(|mut old| {
        old.sort_unstable();
        let beyond = old.len().saturating_sub(most);
        old.iter().take(beyond).try_for_each(|file| match fs::remove_file(path.with_file_name(file)) {
            // Another process has been quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
    });
    if let Err(error) = removed {
        tracing::warn!(log = %path.display(), %error, "old logs are not removed");
    }
}

/// Names of a log's old files, compressed or not.
fn old_files(path: &Path) -> io::Result<Vec<String>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_old = |file: &str| {
        // The name itself may have what stands between.
        let Some(time) = file.find(BETWEEN) else { return false };
        let is_time =
            file.get(..time).is_some_and(|time| time.starts_with(|first: char| first.is_ascii_digit()));
        let rest = file.get(time + BETWEEN.len()..).unwrap_or_default();
        let rest = rest.strip_suffix(archive::UNFINISHED).unwrap_or(rest);
        is_time && rest.strip_suffix(SUFFIX).unwrap_or(rest) == name
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        found.extend(entry?.file_name().into_string().ok().filter(|file| is_old(file)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("sixfold-rotation-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn log(&self) -> PathBuf {
            self.0.join("access.log")
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.log()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const HOURLY: Rotation = Rotation {
        interval: Duration::from_secs(3600),
        max_kept: 2,
        max_size: None,
        enable_compression: false,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn rotator(folder: &Folder, rotation: Rotation, now: i64) -> Rotator {
        let mut rotator = Rotator::new(rotation, &LogTarget::File(folder.log()), at(now)).unwrap();
        rotator.zone = TimeZone::UTC;
        rotator
    }

    #[test]
    fn files_are_renamed_at_multiples_of_the_interval_and_so_many_are_kept() {
        let folder = Folder::new("interval");
        let mut rotator = rotator(&folder, HOURLY, 7000);
        for second in [7100, 7199, 7200, 7300, 10_800, 18_000] {
            folder.append("line\n");
            let rotates = [7200, 10_800, 18_000].contains(&second);
            assert_eq!(rotator.rotate(at(second)).unwrap(), rotates, "{second}");
        }
        assert_eq!(
            folder.names(),
            ["1970-01-01_03-00-00__access.log", "1970-01-01_05-00-00__access.log"],
            "the oldest is gone"
        );
    }

    #[test]
    fn a_file_of_a_size_is_rotated_before_its_time_but_once_a_second() {
        let folder = Folder::new("size");
        let mut rotator = rotator(&folder, Rotation { max_size: Some(10), ..HOURLY }, 60);
        folder.append("123456789");
        assert!(!rotator.rotate(at(61)).unwrap());
        folder.append("0");
        rotator.opened(of_path(&folder.log()));
        assert!(rotator.rotate(at(62)).unwrap() && rotator.was_moved(at(62)));
        folder.append("1234567890");
        rotator.opened(of_path(&folder.log()));
        assert!(!rotator.rotate(at(62)).unwrap(), "what has this name is not written over");
        assert!(rotator.rotate(at(63)).unwrap());
        assert_eq!(folder.names(), ["1970-01-01_00-01-02__access.log", "1970-01-01_00-01-03__access.log"]);
    }

    /// During an upgrade two processes write a log, and each found it too large: the second one renamed what the first had
    /// begun anew.
    #[test]
    fn two_that_find_a_file_too_large_at_one_moment_rotate_it_once() {
        let folder = Folder::new("twice");
        let rotation = Rotation { max_size: Some(10), ..HOURLY };
        let [mut one, mut other] = [(); 2].map(|()| rotator(&folder, rotation, 60));
        folder.append("1234567890");
        for rotator in [&mut one, &mut other] {
            rotator.opened(of_path(&folder.log()));
            assert!(rotator.is_due(61));
        }
        let theirs = OpenOptions::new().append(true).open(folder.log()).unwrap();
        theirs.lock().unwrap();
        assert!(!one.rename(at(61)).unwrap(), "another one has its lock");
        drop(theirs);
        assert!(one.rename(at(62)).unwrap());
        // Before there is a new one, and after.
        assert!(other.rename(at(63)).unwrap(), "it is to be opened anew");
        folder.append("new\n");
        assert!(other.rename(at(64)).unwrap());
        assert_eq!(folder.names(), ["1970-01-01_00-01-02__access.log", "access.log"]);
    }

    /// Who looked some seconds later rotated the new file, of a few lines.
    #[test]
    fn what_another_process_has_rotated_at_its_time_is_not_due_again() {
        let folder = Folder::new("late");
        let [mut one, mut other] = [(); 2].map(|()| rotator(&folder, HOURLY, 7000));
        folder.append("line\n");
        for rotator in [&mut one, &mut other] {
            rotator.opened(of_path(&folder.log()));
        }
        assert!(one.rotate(at(7200)).unwrap());
        folder.append("new\n");
        assert!(other.was_moved(at(7204)));
        other.opened(of_path(&folder.log()));
        assert!(!other.rotate(at(7205)).unwrap());
        assert!(other.rotate(at(10_800)).unwrap(), "but later it is");
    }

    /// The link was renamed, and the file stayed where it was for whoever has its own path.
    #[test]
    fn two_paths_to_one_file_rotate_the_file() {
        let folder = Folder::new("link");
        folder.append("line\n");
        let link = folder.0.join("link.log");
        std::os::unix::fs::symlink(folder.log(), &link).unwrap();
        let mut by_link = Rotator::new(HOURLY, &LogTarget::File(link.clone()), at(7000)).unwrap();
        by_link.zone = TimeZone::UTC;
        let mut by_path = rotator(&folder, HOURLY, 7000);
        for rotator in [&mut by_link, &mut by_path] {
            rotator.opened(of_path(&folder.log()));
        }
        assert!(by_link.rotate(at(7200)).unwrap());
        folder.append("new\n");
        assert!(by_path.was_moved(at(7201)));
        by_path.opened(of_path(&folder.log()));
        assert!(!by_path.rotate(at(7201)).unwrap());
        assert_eq!(folder.names(), ["1970-01-01_02-00-00__access.log", "access.log", "link.log"]);
        assert_eq!(fs::read(link).unwrap(), b"new\n");
    }

    #[test]
    fn only_files_of_the_same_log_are_taken_for_old_ones() {
        let folder = Folder::new("others");
        let others = [
            "1970-01-01_00-00-00__error.log",
            "1970-01-01_00-00-00__access.log.1",
            "a__access.log",
            "access.log.1",
        ];
        let old = ["1970-01-01_00-00-00__access.log", "1970-01-01_00-00-01__access.log.tar.gz"];
        others.iter().chain(&old).for_each(|name| fs::write(folder.0.join(name), "").unwrap());
        folder.append("line\n");
        let rotation = Rotation { max_kept: 1, ..HOURLY };
        assert!(rotator(&folder, rotation, 7000).rotate(at(7200)).unwrap());
        let mut left = others.to_vec();
        left.push("1970-01-01_02-00-00__access.log");
        left.sort();
        assert_eq!(folder.names(), left);
    }

    #[test]
    fn what_fails_is_tried_again_after_a_while_and_devices_are_left_alone() {
        let folder = Folder::new("fails");
        let mut rotator = rotator(&folder, HOURLY, 7000);
        assert!(rotator.rotate(at(7200)).is_err(), "there is no file");
        folder.append("line\n");
        assert!(!rotator.rotate(at(7201)).unwrap());
        assert!(rotator.rotate(at(7260)).unwrap());
        let null = LogTarget::File("/dev/null".into());
        let mut rotator = Rotator::new(HOURLY, &null, at(7000)).unwrap();
        assert!(!rotator.rotate(at(7200)).unwrap());
        assert!(Rotator::new(HOURLY, &LogTarget::Stdout, at(7000)).is_none());
    }

    #[test]
    fn old_files_are_compressed_beside_and_counted() {
        let folder = Folder::new("compressed");
        let rotation = Rotation { enable_compression: true, max_kept: 1, ..HOURLY };
        let mut rotator = rotator(&folder, rotation, 7000);
        folder.append("first\n");
        assert!(rotator.rotate(at(7200)).unwrap());
        folder.append("second\n");
        assert!(rotator.rotate(at(10_800)).unwrap());
        let start = std::time::Instant::now();
        while folder.names() != ["1970-01-01_03-00-00__access.log.tar.gz"] {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", folder.names());
            thread::sleep(Duration::from_millis(10));
        }
    }
}
