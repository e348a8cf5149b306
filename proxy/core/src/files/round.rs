//! Looking at many files again and again, of which one may hang.

use super::{MOST_OWED, NEXT_PATIENCE, PATIENCE, silent};
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// After so long without an answer whoever asks may do something with those that have come.
const PAUSE: Duration = Duration::from_millis(20);

/// Rounds of looks at files. A disk that does not answer is waited for once, for two seconds or for a fifth of one while
/// another is waited for, and its file is left out of further rounds until it does.
#[derive(Default)]
pub struct Rounds {
    /// Paths whose disks owe an answer; each is a thread.
    owed: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// What a round brings.
#[derive(Debug)]
pub enum Found<'a, T> {
    /// What there is to say of a file.
    Answer(&'a Path, Result<T>),
    /// Nothing for a moment.
    Pause,
}

/// What a thread does, which the round and the thread change while they hold the lock.
enum Work {
    Idle,
    Asks(PathBuf),
    /// Nobody waits for it any more.
    Left,
}

type Answers<T> = (PathBuf, Result<T>);

impl Rounds {
    /// Asks the same of each of these files, one after the other, on a thread beside this one.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn ask<I, T>(
        &self,
        files: impl IntoIterator<Item = (PathBuf, I)>,
        ask: impl Fn(&Path, I) -> Result<T> + Copy + Send + 'static,
        mut found: impl FnMut(Found<'_, T>),
    ) -> Result<()>
    where
        I: Send + 'static,
        T: Send + 'static,
    {
        let mut left = VecDeque::new();
        for (path, item) in files {
            if self.owed.lock().contains(&path) {
                found(Found::Answer(&path, Err(silent())));
            } else {
                left.push_back((path, item));
            }
        }
        let left = Arc::new(Mutex::new(left));
        while !left.lock().is_empty() {
            if self.owed.lock().len() >= MOST_OWED {
                let all = std::mem::take(&mut *left.lock());
                all.iter().for_each(|(path, _)| found(Found::Answer(path, Err(silent()))));
                break;
            }
            let (answers, answered) = channel();
            let work = Arc::new(Mutex::new(Work::Idle));
            let thread = Asking { left: left.clone(), work: work.clone(), owed: self.owed.clone(), answers };
            std::thread::Builder::new().name("file".to_owned()).spawn(move || thread.run(ask))?;
            self.take(&answered, &work, &mut found);
        }
        Ok(())
    }

    /// Takes what a thread finds, until it has all or is left to its disk.
    fn take<T>(
        &self,
        answered: &Receiver<Answers<T>>,
        work: &Mutex<Work>,
        found: &mut impl FnMut(Found<'_, T>),
    ) {
        let patience = if self.owed.lock().is_empty() { PATIENCE } else { NEXT_PATIENCE };
        let mut is_pause = false;
        loop {
            match answered.recv_timeout(if is_pause { patience } else { PAUSE }) {
                Ok((path, answer)) => {
                    is_pause = false;
                    found(Found::Answer(&path, answer));
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if !is_pause => {
                    is_pause = true;
                    found(Found::Pause);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let mut work = work.lock();
                    // It may have answered this moment.
                    let Work::Asks(path) = std::mem::replace(&mut *work, Work::Left) else {
                        *work = Work::Idle;
                        continue;
                    };
                    self.owed.lock().insert(path.clone());
                    drop(work);
                    // What came before that.
                    answered.try_iter().for_each(|(path, answer)| found(Found::Answer(&path, answer)));
                    return found(Found::Answer(&path, Err(silent())));
                }
            }
        }
    }
}

/// A thread that asks.
struct Asking<I, T> {
    left: Arc<Mutex<VecDeque<(PathBuf, I)>>>,
    work: Arc<Mutex<Work>>,
    owed: Arc<Mutex<BTreeSet<PathBuf>>>,
    answers: Sender<Answers<T>>,
}

impl<I, T> Asking<I, T> {
    fn run(self, ask: impl Fn(&Path, I) -> Result<T>) {
        loop {
            let Some((path, item)) = self.left.lock().pop_front() else { return };
            *self.work.lock() = Work::Asks(path.clone());
            let answer = ask(&path, item);
            let mut work = self.work.lock();
            if let Work::Left = *work {
                self.owed.lock().remove(&path);
                return;
            }
            *work = Work::Idle;
            if self.answers.send((path, answer)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    /// The answers of a round by path, and how many pauses there were.
    fn round(rounds: &Rounds, hangs: Option<&Arc<Mutex<()>>>) -> (Vec<(String, bool)>, usize) {
        let files = ["a", "b", "c"].map(|name| (PathBuf::from(name), hangs.cloned().filter(|_| name == "b")));
        let ask = |path: &Path, hangs: Option<Arc<Mutex<()>>>| {
            hangs.iter().for_each(|hangs| drop(hangs.lock()));
            Ok(path.display().to_string())
        };
        let (mut all, mut pauses) = (Vec::new(), 0);
        rounds
            .ask(files, ask, |found| match found {
                Found::Answer(path, answer) => {
                    let name = path.display().to_string();
                    assert!(answer.as_ref().map_or(true, |text| *text == name));
                    all.push((name, answer.is_ok()));
                }
                Found::Pause => pauses += 1,
            })
            .unwrap();
        all.sort();
        (all, pauses)
    }

    fn told(well: [bool; 3]) -> Vec<(String, bool)> {
        ["a", "b", "c"].map(str::to_owned).into_iter().zip(well).collect()
    }

    /// A file whose disk hung held up all the others that were looked at by the same thread.
    #[test]
    fn a_file_that_hangs_holds_up_no_other() {
        let (rounds, disk) = (Rounds::default(), Arc::new(Mutex::new(())));
        assert_eq!(round(&rounds, None), (told([true; 3]), 0));
        let hung = disk.lock();
        let (all, pauses) = round(&rounds, Some(&disk));
        assert_eq!(
            (all, pauses),
            (told([true, false, true]), 1),
            "what came before it is shown in the pause"
        );
        let start = Instant::now();
        assert_eq!(round(&rounds, None).0, told([true, false, true]), "it is not asked again");
        assert!(start.elapsed() < PATIENCE);
        drop(hung);
        while !rounds.owed.lock().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(round(&rounds, None).0, told([true; 3]));
    }
}
