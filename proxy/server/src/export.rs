//! The thread of what is told to services that collect logs, spans and statistics.

use crate::upstream::Pools;
use sixfold_core::export::{Background, Task};
use std::sync::OnceLock;
use tokio::runtime::Handle;

/// Runs tasks on a thread of its own, which starts with the first of them.
#[derive(Default)]
pub struct Exports {
    thread: OnceLock<Option<Handle>>,
}

impl Background for Exports {
    fn spawn(&self, task: Task) {
        if let Some(handle) = self.thread.get_or_init(thread) {
            handle.spawn(task);
        }
    }
}

/// `None` when there can't be one, and nothing is told.
fn thread() -> Option<Handle> {
    let started = Pools::thread("telemetry");
    if let Err(error) = &started {
        tracing::error!(%error, "no thread for telemetry: no collector is told anything");
    }
    started.ok()
}
