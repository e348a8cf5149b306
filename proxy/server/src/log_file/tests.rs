#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::disk::MOST_OWED;
use super::output::{FLUSH_AT, MOST_WAITING};
use super::*;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::thread;

const LIMIT: Duration = Duration::from_secs(20);

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sixfold-log-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn open(files: &LogFiles, target: &LogTarget) -> Arc<dyn LogSink> {
    let sink = files.sink(target).unwrap();
    sink.open().unwrap();
    sink
}

fn wait_for(path: &Path, text: &str) {
    wait_until(text, || std::fs::read_to_string(path).unwrap_or_default() == text);
}

fn fifo(path: &Path) {
    let _ = std::fs::remove_file(path);
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn lines_are_written_by_interval_by_size_and_at_the_end() {
    let path = directory("write").join("a.log");
    let _ = std::fs::remove_file(&path);
    let files = LogFiles::new(Duration::from_secs(3600), &Registry::new());
    let sink = open(&files, &LogTarget::File(path.clone()));
    sink.write(b"first\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "written before the interval");
    let long = format!("{}\n", "x".repeat(FLUSH_AT));
    sink.write(long.as_bytes());
    wait_for(&path, &format!("first\n{long}"));
    sink.write(b"last\n");
    // Waits for the disk of a busy machine no longer than the end of a process does.
    files.shutdown();
    wait_for(&path, &format!("first\n{long}last\n"));

    let path = path.with_file_name("b.log");
    let files = LogFiles::new(Duration::from_millis(5), &Registry::new());
    let sink = open(&files, &LogTarget::File(path.clone()));
    sink.write(b"soon\n");
    wait_for(&path, "soon\n");
}

#[test]
fn a_log_that_nobody_holds_is_written_and_closed() {
    let path = directory("close").join("a.log");
    let _ = std::fs::remove_file(&path);
    let files = LogFiles::new(Duration::from_secs(3600), &Registry::new());
    let sink = open(&files, &LogTarget::File(path.clone()));
    sink.write(b"last\n");
    drop(sink);
    wait_for(&path, "last\n");
    assert!(files.all().is_empty());
}

#[test]
fn reopening_goes_on_in_a_new_file() {
    let path = directory("reopen").join("a.log");
    let files = LogFiles::new(Duration::from_millis(5), &Registry::new());
    let sink = open(&files, &LogTarget::File(path.clone()));
    sink.write(b"old\n");
    wait_for(&path, "old\n");
    let moved = path.with_extension("1");
    std::fs::rename(&path, &moved).unwrap();
    files.reopen();
    wait_until("a new file", || path.exists());
    sink.write(b"new\n");
    wait_for(&path, "new\n");
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "old\n");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

/// Compiling a configuration opened its logs, and so made files of one that was only looked at.
#[test]
fn a_log_is_opened_when_it_goes_into_force() {
    let path = directory("closed").join("a.log");
    let _ = std::fs::remove_file(&path);
    let files = LogFiles::new(Duration::from_millis(1), &Registry::new());
    let target = LogTarget::File(path.clone());
    let sink = files.sink(&target).unwrap();
    sink.write(b"of nothing in force\n");
    files.reopen();
    files.shutdown();
    assert!(target.check().is_ok() && !path.exists());
    sink.open().unwrap();
    sink.open().unwrap();
    sink.write(b"line\n");
    wait_for(&path, "line\n");
    assert!(target.check().is_ok());
    assert!(LogTarget::File(directory("closed")).check().is_err());
    assert!(LogTarget::File(path.join("below")).check().is_err());
    // What goes away in between is told of when it is opened.
    std::fs::create_dir_all(directory("closed").join("gone")).unwrap();
    let target = LogTarget::File(directory("closed").join("gone/a.log"));
    let gone = files.sink(&target).unwrap();
    std::fs::remove_dir(directory("closed").join("gone")).unwrap();
    assert_eq!(gone.open(), target.check());
    // Looked at, a FIFO is not waited for.
    let pipe = path.with_extension("pipe");
    fifo(&pipe);
    assert!(LogTarget::File(pipe).check().is_ok());
}

#[test]
fn equal_targets_share_a_file_and_bad_ones_are_refused() {
    let files = LogFiles::new(Duration::from_secs(1), &Registry::new());
    let target = LogTarget::File(directory("share").join("a.log"));
    let (one, two) = (open(&files, &target), open(&files, &target));
    assert!(Arc::ptr_eq(&one, &two));
    let missing = LogTarget::File("/does/not/exist.log".into());
    let error = files.sink(&missing).err().unwrap();
    assert!(error.starts_with("can't open /does/not/exist.log: "), "{error}");
}

/// An output that does not go on before it is told to, and says when it has begun to wait.
struct Stalled {
    begun: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    written: mpsc::Sender<usize>,
}

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.begun.send(());
        let _ = self.go_on.recv();
        let _ = self.written.send(bytes.len());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stalled_disk_drops_lines_and_blocks_nobody() {
    let stats = Arc::new(FileStats::new(&Registry::new(), "filesystem."));
    let ((begun, stalls), (release, go_on), (wrote, written)) =
        (mpsc::channel(), mpsc::channel(), mpsc::channel());
    let file = Box::new(Stalled { begun, go_on, written: wrote });
    let target = LogTarget::File("stalled.log".into());
    let output =
        Output::with_file("stalled", &target, Some(file), Flush::AtOnce, stats.clone(), None).unwrap();
    let line = [b'x'; 1 << 10];
    output.write(&line);
    stalls.recv_timeout(LIMIT).unwrap();
    // Would wait for ever if it waited for the writer, which the test itself holds up.
    let lines = 2 * MOST_WAITING / line.len();
    (0..lines).for_each(|_| output.write(&line));
    let dropped = stats.write_dropped().get();
    assert!(dropped >= (MOST_WAITING / line.len()) as u64, "{dropped} dropped");
    assert!(!output.flush(Instant::now()), "nothing is written yet");
    drop(release);
    assert!(output.flush(Instant::now() + LIMIT));
    let bytes: usize = written.try_iter().sum();
    assert_eq!(bytes / line.len(), 1 + lines - dropped as usize, "what had room is written");
}

/// One thread wrote all files, so that one that stalled held up the others.
#[test]
fn a_stalled_log_holds_up_no_other() {
    let directory = directory("apart");
    let files = LogFiles::new(Duration::from_millis(1), &Registry::new());
    let pipe = directory.join("pipe");
    fifo(&pipe);
    let stalled = open(&files, &LogTarget::File(pipe));
    stalled.write(b"nobody reads\n");
    let path = directory.join("b.log");
    let _ = std::fs::remove_file(&path);
    let other = open(&files, &LogTarget::File(path.clone()));
    other.write(b"line\n");
    wait_for(&path, "line\n");
}

/// Opening a FIFO waits for its reader; that held up the start for ever.
#[test]
fn a_fifo_waits_for_its_reader_without_holding_up_the_start() {
    let pipe = directory("fifo").join("pipe");
    fifo(&pipe);
    let files = LogFiles::new(Duration::from_millis(1), &Registry::new());
    let sink = open(&files, &LogTarget::File(pipe.clone()));
    sink.write(b"early\n");
    for expected in ["early", "later"] {
        // Lines from before the writer saw that its reader was gone may come first.
        let mut lines = BufReader::new(File::open(&pipe).unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == expected), "{expected}");
        // The reader leaves and another one comes: only what is written in between is lost.
        drop(lines);
        let failed = files.0.stats.write_failed().get();
        wait_until("a failed write", || {
            sink.write(b"lost\n");
            files.0.stats.write_failed().get() > failed
        });
        sink.write(b"later\n");
    }
}

/// A disk that hangs while the test holds `hung`, for targets that begin with `/hung`.
#[derive(Default)]
struct Hanging {
    hung: Mutex<()>,
    asked: AtomicUsize,
}

impl Hanging {
    fn answer(&self, target: &LogTarget) {
        if matches!(target, LogTarget::File(path) if path.starts_with("/hung")) {
            self.asked.fetch_add(1, Relaxed);
            drop(self.hung.lock());
        }
    }
}

impl Disk for Hanging {
    fn check(&self, target: &LogTarget) -> Result<(), String> {
        self.answer(target);
        if matches!(target, LogTarget::File(path) if path.ends_with("opens-late")) {
            Ok(())
        } else {
            target.check()
        }
    }

    fn open(&self, target: &LogTarget, flush: Flush, stats: Arc<FileStats>) -> Result<Output, String> {
        self.answer(target);
        Output::with_file("hanging", target, Some(Box::new(io::sink())), flush, stats, None)
            .map_err(|error| error.to_string())
    }
}

fn hung(name: &str) -> LogTarget {
    LogTarget::File(PathBuf::from("/hung").join(name))
}

/// Whoever opened a log waited for its disk: the control thread, which hears of SIGTERM too, for ever.
#[test]
fn a_disk_that_hangs_is_an_error_and_is_asked_once() {
    let disk = Arc::new(Hanging::default());
    let files = LogFiles::on(disk.clone(), Duration::from_millis(1), &Registry::new());
    let (late, other) = (files.sink(&hung("opens-late")).unwrap(), files.sink(&LogTarget::Stdout).unwrap());
    let stalls = disk.hung.lock();
    let reason = |error: String| assert!(error.ends_with(": its disk does not answer in 2 s"), "{error}");
    let begin = Instant::now();
    let logs: Vec<_> = (0..50).map(|_| files.sink(&hung("opens-late")).unwrap()).collect();
    logs.iter().for_each(|log| log.start_opening());
    for log in &logs {
        reason(log.open().unwrap_err());
    }
    reason(files.sink(&hung("a")).err().unwrap());
    reason(files.sink(&hung("a")).err().unwrap());
    // Neither is waited for twice.
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    assert_eq!(disk.asked.load(Relaxed), 3, "a check before, an opening and a check");
    assert_eq!(other.open(), Ok(()), "another disk");
    late.write(b"nowhere\n");
    // It may hang for longer than a control plane has names.
    let names = (0..MOST_OWED).map(|nth| files.file(&hung(&format!("{nth}"))));
    let refused = names.filter(|file| file.ask(&file.checking, LogFile::check).is_err()).count();
    assert_eq!(refused, 2);
    drop(stalls);
    wait_until("it is there", || late.open().is_ok());
    wait_until("nothing owed", || files.0.owed.load(Relaxed) == 0);
    drop((late, logs, other));
    wait_until("all closed", || files.all().is_empty());
}

/// Each log of a change was waited for by itself, 2 s where its mount hangs.
#[test]
fn disks_are_asked_for_all_logs_of_a_change_at_once() {
    let disk = Arc::new(Hanging::default());
    let files = LogFiles::on(disk.clone(), Duration::from_millis(1), &Registry::new());
    let stalls = disk.hung.lock();
    let begin = Instant::now();
    let names: Vec<_> = (0..4).map(|nth| hung(&format!("{nth}"))).collect();
    files.expect(&names);
    assert!(begin.elapsed() < PATIENCE, "it waits");
    assert!(names.iter().all(|name| files.sink(name).is_err()));
    assert!(begin.elapsed() < PATIENCE * 2, "{:?}", begin.elapsed());
    assert_eq!(disk.asked.load(Relaxed), names.len());
    // Whoever waits for one finds room when many are expected.
    let many: Vec<_> = (0..MOST_OWED).map(|nth| hung(&format!("late-{nth}"))).collect();
    files.expect(&many);
    assert_eq!(files.0.owed.load(Relaxed), MOST_EXPECTED);
    drop(stalls);
    wait_until("nothing owed", || files.0.owed.load(Relaxed) == 0);
}
