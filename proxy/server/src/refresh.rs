//! Files that are read beside the workers: a disk may stall, and whoever needs what they hold must not wait for it.

use std::sync::Arc;
use std::time::Duration;

/// Calls `look` every `period` on a thread called `name`, for as long as somebody holds `target`. A system without a
/// thread for it is told of, and what `target` has stays as it is.
pub(crate) fn refresh_every<T: Send + Sync + 'static>(
    name: &str,
    period: Duration,
    target: &Arc<T>,
    mut look: impl FnMut(&T) + Send + 'static,
) {
    let target = Arc::downgrade(target);
    let looking = move || {
        loop {
            std::thread::sleep(period);
            let Some(target) = target.upgrade() else { return };
            look(&target);
        }
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(looking) {
        tracing::warn!(%error, name, "no thread that looks at a file again: its changes will not be seen");
    }
}
