//! Looking at many files again and again, of which one may hang.

use super::{MOST_OWED, NEXT_PATIENCE, PATIENCE, silent};
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Rounds of looks at files. A disk that does not answer is waited for once, for two seconds or for a fifth of one while
/// another is waited for, and its file is left out of further rounds until it does.
#[derive(Default)]
pub struct Rounds {
    /// Paths whose disks owe an answer; each is a thread.
    owed: Arc<Mutex<BTreeSet<PathBuf>>>,
    waits: Waits,
}

/// How long an answer is waited for.
#[derive(Clone, Copy)]
struct Waits {
    /// After so long without one whoever asks may do something with those that have come.
    pause: Duration,
    /// After so long in that pause its disk does not answer.
    first: Duration,
    /// The same while another answer is owed.
    next: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { pause: Duration::from_millis(20), first: PATIENCE, next: NEXT_PATIENCE }
    }
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
        let Waits { pause, first, next } = self.waits;
        let patience = if self.owed.lock().is_empty() { first } else { next };
        let mut is_pause = false;
        loop {
            match answered.recv_timeout(if is_pause { patience } else { pause }) {
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

    /// What no answer takes, however busy the machine is.
    const LONG: Duration = Duration::from_secs(60);

    /// What a round of three files brought, in this order: a path with whether it answered, or nothing for a pause.
    fn round(rounds: &Rounds, hangs: Option<&Arc<Mutex<()>>>) -> Vec<Option<(String, bool)>> {
        let files = ["a", "b", "c"].map(|name| (PathBuf::from(name), hangs.cloned().filter(|_| name == "b")));
        let ask = |path: &Path, hangs: Option<Arc<Mutex<()>>>| {
            hangs.iter().for_each(|hangs| drop(hangs.lock()));
            Ok(path.display().to_string())
        };
        let mut all = Vec::new();
        rounds
            .ask(files, ask, |found| match found {
                Found::Answer(path, answer) => {
                    let name = path.display().to_string();
                    assert!(answer.as_ref().map_or(true, |text| *text == name));
                    all.push(Some((name, answer.is_ok())));
                }
                Found::Pause => all.push(None),
            })
            .unwrap();
        all
    }

    /// The answers alone, by path.
    fn answers(all: Vec<Option<(String, bool)>>) -> Vec<(String, bool)> {
        let mut answers: Vec<_> = all.into_iter().flatten().collect();
        answers.sort();
        answers
    }

    fn told(well: [bool; 3]) -> Vec<(String, bool)> {
        ["a", "b", "c"].map(str::to_owned).into_iter().zip(well).collect()
    }

    /// A file whose disk hung held up all the others that were looked at by the same thread.
    #[test]
    fn a_file_that_hangs_holds_up_no_other() {
        let waits = Waits { pause: LONG, ..Waits::default() };
        let all = round(&Rounds { waits, ..Rounds::default() }, None);
        assert!(all.iter().all(Option::is_some), "answers that come at once leave no pause: {all:?}");
        assert_eq!(answers(all), told([true; 3]));
        let waits = Waits { first: 2 * PATIENCE, next: LONG, ..Waits::default() };
        let (rounds, disk) = (Rounds { waits, ..Rounds::default() }, Arc::new(Mutex::new(())));
        let hung = disk.lock();
        let all = round(&rounds, Some(&disk));
        let silent = all.iter().position(|one| *one == Some(("b".to_owned(), false))).unwrap();
        assert_eq!(all[silent - 1], None, "what came before it is shown in the pause: {all:?}");
        assert!(all[..silent].contains(&Some(("a".to_owned(), true))), "{all:?}");
        assert_eq!(answers(all), told([true, false, true]));
        let start = Instant::now();
        assert_eq!(answers(round(&rounds, None)), told([true, false, true]), "it is not asked again");
        assert!(start.elapsed() < LONG / 2);
        drop(hung);
        while !rounds.owed.lock().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(answers(round(&rounds, None)), told([true; 3]));
    }

    /// What is as it is outside of tests.
    #[test]
    fn while_one_is_owed_others_have_less_time() {
        let Waits { pause, first, next } = Waits::default();
        assert!(pause < next && next < first);
    }
}
