//! Notices that a file was written or replaced.
//!
//! The directory is watched, not the file, so that a rename onto the file (how editors, `mv` and Kubernetes'
//! mounted ConfigMaps change one) is seen. Writes within a few milliseconds are one change; a rename is told
//! at once. Where the system offers no notification, and as a safety net where it does, the file is compared
//! once a second with the one that was read, as APISIX does it: a file that could not be read is tried again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use notify::event::{ModifyKind, RenameMode};
use notify::{RecursiveMode, Watcher as _};
use sixfold_core::files::Stamp;

/// How long a file must be left alone before the change is told.
const QUIET: Duration = Duration::from_millis(3);

/// The longest a change waits for quiet.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often the file's time and size are compared.
const POLL: Duration = Duration::from_secs(1);

/// Events that wait; what comes on top of them tells nothing new.
const EVENTS: usize = 64;

/// Watches a file until it is dropped.
#[derive(Debug)]
pub(crate) struct FileWatcher {
    /// The thread ends when nobody is left who could tell it something.
    _events: SyncSender<Event>,
    /// Dropping it ends the notifications.
    _notifier: Option<notify::RecommendedWatcher>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Another file has the name.
    Replaced,
    /// Something was written, and more of it may follow.
    Touched,
}

/// What tells a file from another one, or from none.
pub(crate) type Found = Option<Stamp>;

fn found(path: &Path) -> Found {
    std::fs::metadata(path).and_then(|metadata| Stamp::of(&metadata)).ok()
}

impl FileWatcher {
    /// Calls `changed` on a thread of its own when the file is another one than that which was read, which
    /// `read` tells, and after every notification.
    ///
    /// # Errors
    /// When no thread can be started. A system without notifications is no error: the poll is left.
    pub(crate) fn start(
        path: PathBuf,
        read: impl Fn(&Found) -> bool + Send + 'static,
        changed: impl FnMut() + Send + 'static,
    ) -> std::io::Result<FileWatcher> {
        let (events, received) = sync_channel(EVENTS);
        let notifier = notifier(&path, events.clone());
        std::thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || run(&path, &received, read, changed))?;
        Ok(FileWatcher { _events: events, _notifier: notifier })
    }
}

/// Asks the system for notifications of the directory of `path`.
fn notifier(path: &Path, events: SyncSender<Event>) -> Option<notify::RecommendedWatcher> {
    let name = path.file_name().map(OsString::from);
    let handler = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if event.kind.is_access() && !is_close_after_write(&event.kind) {
            return;
        }
        // A rename within the directory is told once more when both of its ends are known.
        if event.kind == notify::EventKind::Modify(ModifyKind::Name(RenameMode::Both)) {
            return;
        }
        // `..data` is the link that Kubernetes turns when a mounted ConfigMap changes.
        let concerned = event.paths.iter().filter_map(|path| path.file_name());
        let mut concerned = concerned.filter(|it| name.as_deref() == Some(*it) || *it == "..data");
        if event.need_rescan() || concerned.next().is_some() {
            // When the queue is full a look at the file is due already.
            let _ = events.try_send(if is_final(&event.kind) { Event::Replaced } else { Event::Touched });
        }
    };
    let mut watcher = match notify::recommended_watcher(handler) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "no notifications of file changes, comparing times instead");
            return None;
        }
    };
    let directory = directory_of(path);
    if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
        tracing::warn!(%error, directory = %directory.display(), "not watched, comparing times instead");
    }
    Some(watcher)
}

/// A rename: the file is as it is meant to be.
fn is_final(kind: &notify::EventKind) -> bool {
    *kind == notify::EventKind::Modify(ModifyKind::Name(RenameMode::To))
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

fn run(path: &Path, events: &Receiver<Event>, read: impl Fn(&Found) -> bool, mut changed: impl FnMut()) {
    if !read(&found(path)) {
        changed();
    }
    loop {
        match events.recv_timeout(POLL) {
            Ok(Event::Replaced) => changed(),
            Ok(Event::Touched) => {
                if !wait_for_quiet(events) {
                    return;
                }
                changed();
            }
            Err(RecvTimeoutError::Timeout) => {
                if !read(&found(path)) {
                    changed();
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Takes in the events that follow close behind; false when it is time to stop.
fn wait_for_quiet(events: &Receiver<Event>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match events.recv_timeout(QUIET) {
            Ok(Event::Touched) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
            Ok(Event::Replaced) | Err(RecvTimeoutError::Timeout) => break,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::testing::Folder;

    /// A watch by someone who has read the file as it is now, and reads it whenever he is told.
    fn watched(path: &Path) -> (FileWatcher, Receiver<Instant>) {
        let (told, calls) = channel();
        let seen = Arc::new(Mutex::new(found(path)));
        let (known, read) = (seen.clone(), path.to_owned());
        let changed = move || {
            *seen.lock() = found(&read);
            told.send(Instant::now()).unwrap();
        };
        let watcher = FileWatcher::start(path.to_owned(), move |now| *known.lock() == *now, changed);
        (watcher.unwrap(), calls)
    }

    #[test]
    fn a_rename_onto_the_file_is_told_at_once_and_once() {
        let directory = Folder::made("watch-rename");
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
        let directory = Folder::made("watch-appear");
        let path = directory.0.join("apisix.yaml");
        let (_watcher, calls) = watched(&path);
        std::fs::write(&path, "one").unwrap();
        calls.recv_timeout(Duration::from_secs(3)).unwrap();
        std::fs::remove_file(&path).unwrap();
        calls.recv_timeout(Duration::from_secs(3)).unwrap();
    }

    #[test]
    fn without_notifications_the_poll_finds_a_change() {
        let directory = Folder::made("watch-poll");
        let path = directory.0.join("apisix.yaml");
        std::fs::write(&path, "one").unwrap();
        let (events, received) = sync_channel::<Event>(1);
        let (told, calls) = channel();
        let (watched, before) = (path.clone(), found(&path));
        let thread = std::thread::spawn(move || {
            run(&watched, &received, move |now| *now == before, move || told.send(()).unwrap());
        });
        std::fs::write(&path, "longer").unwrap();
        calls.recv_timeout(Duration::from_secs(5)).unwrap();
        // What was not read is told again, though nothing has changed since.
        calls.recv_timeout(Duration::from_secs(5)).unwrap();
        drop(events);
        thread.join().unwrap();
    }
}
