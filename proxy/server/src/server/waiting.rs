//! Parts that wait for something before they take their places.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinSet};

/// Candidates, by name: a later one takes the place of one that waits.
pub(super) struct Waiting<T> {
    candidates: HashMap<Arc<str>, Candidate<T>>,
    /// What they wait for; ends with the candidate's name and number.
    ends: JoinSet<(Arc<str>, u64)>,
    numbers: u64,
}

struct Candidate<T> {
    /// Tells it from others of its name.
    number: u64,
    part: T,
    end: AbortHandle,
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Waiting<T> {
        Waiting { candidates: HashMap::new(), ends: JoinSet::new(), numbers: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    pub(super) fn names(&self) -> BTreeSet<Arc<str>> {
        self.candidates.keys().cloned().collect()
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.candidates.get_mut(name).map(|candidate| &mut candidate.part)
    }

    /// Keeps `part` until `end`.
    pub(super) fn hold(&mut self, name: Arc<str>, part: T, end: impl Future<Output = ()> + Send + 'static) {
        let number = self.numbers;
        self.numbers += 1;
        let key = name.clone();
        let end = self.ends.spawn(async move {
            end.await;
            (key, number)
        });
        if let Some(before) = self.candidates.insert(name, Candidate { number, part, end }) {
            before.end.abort();
        }
    }

    /// Takes back the one of that name.
    pub(super) fn take(&mut self, name: &str) -> Option<T> {
        let candidate = self.candidates.remove(name)?;
        candidate.end.abort();
        Some(candidate.part)
    }

    /// The next that need not wait any longer. Never ends while nothing waits; may be dropped.
    pub(super) async fn next(&mut self) -> (Arc<str>, T) {
        loop {
            match self.ends.join_next().await {
                Some(Ok((name, number)))
                    if self.candidates.get(&name).is_some_and(|c| c.number == number) =>
                {
                    if let Some(part) = self.take(&name) {
                        return (name, part);
                    }
                }
                // Taken back in the meantime.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}
