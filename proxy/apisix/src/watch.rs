//! Notices that a file was written or replaced.
//!
//! The directory is watched, not the file, so that a rename onto the file (how editors, `mv` and Kubernetes'
//! mounted ConfigMaps change one) is seen. Changes within a few milliseconds are one change. Where the
//! system offers no notification, and as a safety net where it does, the file's time and size are compared
//! once a second, as APISIX does it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use notify::{RecursiveMode, Watcher as _};

/// How long a file must be left alone before the change is told.
const QUIET: Duration = Duration::from_millis(3);

/// The longest a change waits for quiet.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often the file's time and size are compared.
const POLL: Duration = Duration::from_secs(1);

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct FileWatcher {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
    /// Dropping it ends the notifications.
    _notifier: Option<notify::RecommendedWatcher>,
}

enum Event {
    Touched,
    Stop,
}

/// What tells that a file is another one.
#[derive(PartialEq, Eq, Clone)]
struct Stamp(Option<(SystemTime, u64)>);

impl FileWatcher {
    /// Calls `changed` on a thread of its own after any of `paths` has changed, appeared or gone.
    ///
    /// # Errors
    /// When no thread can be started. A system without notifications is no error: the poll is left.
    pub fn start(
        paths: Vec<PathBuf>,
        changed: impl FnMut() + Send + 'static,
    ) -> std::io::Result<FileWatcher> {
        let (events, received) = channel();
        let notifier = notifier(&paths, events.clone());
        let thread = std::thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || run(&paths, &received, changed))?;
        Ok(FileWatcher { events, thread: Some(thread), _notifier: notifier })
    }
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        // The thread may be gone already if the callback panicked.
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks the system for notifications of the directories of `paths`.
fn notifier(paths: &[PathBuf], events: Sender<Event>) -> Option<notify::RecommendedWatcher> {
    let names: Vec<OsString> = paths.iter().filter_map(|path| path.file_name().map(OsString::from)).collect();
    let handler = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if event.kind.is_access() && !is_close_after_write(&event.kind) {
            return;
        }
        // `..data` is the link that Kubernetes turns when a mounted ConfigMap changes.
        let concerned = event.paths.iter().filter_map(|path| path.file_name());
        let mut concerned = concerned.filter(|name| names.iter().any(|n| n == name) || *name == "..data");
        if event.need_rescan() || concerned.next().is_some() {
            let _ = events.send(Event::Touched);
        }
    };
    let mut watcher = match notify::recommended_watcher(handler) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "no notifications of file changes, comparing times instead");
            return None;
        }
    };
    let mut directories: Vec<&Path> = paths.iter().map(|path| directory_of(path)).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            tracing::warn!(%error, directory = %directory.display(), "not watched, comparing times instead");
        }
    }
    Some(watcher)
}

fn is_close_after_write(kind: &notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(kind, notify::EventKind::Access(AccessKind::Close(AccessMode::Write)))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn run(paths: &[PathBuf], events: &Receiver<Event>, mut changed: impl FnMut()) {
    let mut known = stamps(paths);
    loop {
        match events.recv_timeout(POLL) {
            Ok(Event::Touched) => {
                if !wait_for_quiet(events) {
                    return;
                }
                known = stamps(paths);
                changed();
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = stamps(paths);
                if now != known {
                    known = now;
                    changed();
                }
            }
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Takes in the events that follow close behind; false when it is time to stop.
fn wait_for_quiet(events: &Receiver<Event>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match events.recv_timeout(QUIET) {
            Ok(Event::Touched) => {}
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    true
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        Stamp(metadata.and_then(|m| Some((m.modified().ok()?, m.len()))))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("sixfold-watch-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn watched(path: &Path) -> (FileWatcher, Receiver<Instant>) {
        let (told, calls) = channel();
        let watcher =
            FileWatcher::start(vec![path.to_owned()], move || told.send(Instant::now()).unwrap()).unwrap();
        (watcher, calls)
    }

    #[test]
    fn a_rename_onto_the_file_is_told_at_once_and_once() {
        let directory = Directory::new("rename");
        let path = directory.0.join("apisix.yaml");
        std::fs::write(&path, "one").unwrap();
        let (_watcher, calls) = watched(&path);
        let mut best = Duration::MAX;
        for round in 0..5 {
            let new = directory.0.join("new");
            std::fs::write(&new, format!("two {round}")).unwrap();
            // The write of another file is nobody's business.
            assert!(calls.recv_timeout(Duration::from_millis(50)).is_err());
            let renamed = Instant::now();
            std::fs::rename(&new, &path).unwrap();
            let told = calls.recv_timeout(Duration::from_secs(3)).unwrap();
            best = best.min(told - renamed);
            assert!(calls.recv_timeout(Duration::from_millis(50)).is_err());
        }
        eprintln!("rename to callback, the best of five: {best:?}");
        assert!(best < Duration::from_millis(50), "{best:?}");
    }

    #[test]
    fn a_file_that_appears_and_goes_is_told() {
        let directory = Directory::new("appear");
        let path = directory.0.join("apisix.yaml");
        let (_watcher, calls) = watched(&path);
        std::fs::write(&path, "one").unwrap();
        calls.recv_timeout(Duration::from_secs(3)).unwrap();
        std::fs::remove_file(&path).unwrap();
        calls.recv_timeout(Duration::from_secs(3)).unwrap();
    }

    #[test]
    fn without_notifications_the_poll_finds_a_change() {
        let directory = Directory::new("poll");
        let path = directory.0.join("apisix.yaml");
        std::fs::write(&path, "one").unwrap();
        let (events, received) = channel::<Event>();
        let (told, calls) = channel();
        let paths = vec![path.clone()];
        let thread = std::thread::spawn(move || run(&paths, &received, move || told.send(()).unwrap()));
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, "longer").unwrap();
        calls.recv_timeout(Duration::from_secs(5)).unwrap();
        events.send(Event::Stop).unwrap();
        thread.join().unwrap();
    }
}
