//! What plugins do by themselves, beside any request: fetching keys and tokens before somebody needs them.

use std::future::{Future, pending};
use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle};

/// Has the process's one thread for it run `task` to its end. A task that belongs to a configuration must end with it: it
/// holds what it works for weakly.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    static THREAD: OnceLock<Option<Handle>> = OnceLock::new();
    if let Some(handle) = THREAD.get_or_init(start) {
        handle.spawn(task);
    }
}

fn start() -> Option<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.inspect_err(|error| tracing::error!(%error, "no runtime for plugins")).ok()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(pending::<()>());
    let started = std::thread::Builder::new().name("plugin-tasks".to_owned()).spawn(run);
    started.inspect_err(|error| tracing::error!(%error, "no thread for plugins")).ok()?;
    Some(handle)
}
