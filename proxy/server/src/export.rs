//! The thread of what is told to services that collect logs, spans and statistics.

use crate::upstream::Pools;
use sixfold_core::export::{Background, Task};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::runtime::Handle;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started = runtime.and_then(|runtime| {
        let handle = runtime.handle().clone();
        let run = move || {
            runtime.block_on(async {
                let (pools, _) = Pools::of_thread();
                let mut sweep = tokio::time::interval(SWEEP);
                loop {
                    sweep.tick().await;
                    pools.sweep();
                }
            });
        };
        std::thread::Builder::new().name("telemetry".to_owned()).spawn(run)?;
        Ok(handle)
    });
    if let Err(error) = &started {
        tracing::error!(%error, "no thread for telemetry: no collector is told anything");
    }
    started.ok()
}
