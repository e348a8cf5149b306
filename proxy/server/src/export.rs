//! The thread of what is done beside requests: what is told to services that collect logs, spans and statistics, and what
//! plugins do by themselves.

use crate::upstream::Pools;
use sixfold_core::export::{Background, Ending, Task};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long the end of the process waits for services to take what is left.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Runs tasks on a thread of its own, which starts with the first of them.
#[derive(Default)]
pub struct Exports {
    thread: OnceLock<Option<Handle>>,
    ending: Ending,
}

impl Exports {
    /// Has everything sent that is left; waits at most 2 s for all services.
    pub fn shutdown(&self) {
        if !self.ending.finish(Instant::now() + LAST_WORD) {
            tracing::warn!("services did not take all logs that were left for them in time");
        }
    }
}

impl Background for Exports {
    fn spawn(&self, task: Task) {
        if let Some(handle) = self.thread.get_or_init(thread) {
            handle.spawn(task);
        }
    }

    fn ending(&self) -> Ending {
        self.ending.clone()
    }
}

/// `None` when there can't be one.
fn thread() -> Option<Handle> {
    let started = Pools::thread("background");
    if let Err(error) = &started {
        tracing::error!(%error, "no thread beside requests: no collector is told anything, and no plugin does anything by itself");
    }
    started.ok()
}
