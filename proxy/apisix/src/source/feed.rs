//! The thread that takes changes from a store and has them applied.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sixfold_core::error::{ConfigError, MORE_FAULTS, tell_most};
use sixfold_core::model::Diff;

use super::{Source, Update};
use crate::store::{Notify, Watch};

/// Changes that come within so long are one batch.
const GATHER: Duration = Duration::from_millis(2);

/// Follows a source's store until it is dropped.
pub struct Feed {
    signal: Arc<Signal>,
    /// Dropping it ends the watch.
    _watch: Watch,
}

#[derive(Default)]
struct Signal {
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Default)]
struct State {
    /// There is something to take.
    changed: bool,
    stop: bool,
}

impl Signal {
    fn raise(&self, raise: impl FnOnce(&mut State)) {
        raise(&mut self.state.lock());
        self.woken.notify_one();
    }

    /// Waits for changes; false when it is time to stop.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.changed && !state.stop {
            self.woken.wait(&mut state);
        }
        !state.stop
    }

    /// Lets more changes come, and takes them as told.
    fn gather(&self, until: Instant) {
        let mut state = self.state.lock();
        while !state.stop && !self.woken.wait_until(&mut state, until).timed_out() {}
        state.changed = false;
    }
}

impl Feed {
    /// Takes changes on a thread of its own and hands them to `apply`, which returns when they are in force.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn start(source: Source, apply: impl FnMut(Diff) + Send + 'static) -> std::io::Result<Feed> {
        let signal = Arc::new(Signal::default());
        let raised = signal.clone();
        let store = source.store().clone();
        let notify: Notify = Arc::new(move || raised.raise(|state| state.changed = true));
        if let Some(reloads) = source.reloads() {
            reloads.wakes(notify.clone());
        }
        let watch = store.watch(notify)?;
        let heard = signal.clone();
        std::thread::Builder::new()
            .name("config".to_owned())
            .spawn(move || Follower { source, apply, told: Vec::new() }.run(&heard))?;
        Ok(Feed { signal, _watch: watch })
    }

    /// Looks for changes now.
    pub fn look(&self) {
        self.signal.raise(|state| state.changed = true);
    }
}

impl Drop for Feed {
    /// Ends the thread, and does not wait for that: it may be compiling a large file, or the file's disk may hang, while
    /// the process is to end.
    fn drop(&mut self) {
        self.signal.raise(|state| state.stop = true);
    }
}

struct Follower<A> {
    source: Source,
    apply: A,
    /// Why the store could not be read when it was tried last: told once.
    told: Vec<ConfigError>,
}

impl<A: FnMut(Diff)> Follower<A> {
    fn run(mut self, signal: &Signal) {
        while signal.wait() {
            let gather = if self.source.store().gathers() { GATHER } else { Duration::ZERO };
            signal.gather(Instant::now() + gather);
            self.take();
        }
    }

    fn take(&mut self) {
        match self.source.pull() {
            Ok(update) => {
                self.told.clear();
                let unchanged = update.diff.is_empty();
                update.log();
                let Update { diff, .. } = update;
                (self.apply)(diff);
                if !unchanged {
                    tracing::info!("configuration changed");
                }
            }
            Err(errors) if errors == self.told => {}
            Err(errors) => {
                tell_most(
                    &errors,
                    |error| tracing::error!("configuration not read, the old one stays: {error}"),
                    tell_more,
                );
                self.told = errors;
            }
        }
    }
}

impl Update {
    /// Writes warnings and what was refused to the process's log, as many lines of each as it gets of one change.
    pub fn log(&self) {
        let warning = |warning: &ConfigError| tracing::warn!("{}", placed(warning));
        tell_most(&self.warnings, warning, tell_more);
        // Not every one has had a good value, and those that hang on one may be told with it.
        let refused = |error: &ConfigError| {
            tracing::error!("refused, a last good value stays where there is one: {}", placed(error));
        };
        tell_most(&self.refused, refused, tell_more);
    }
}

/// The error without its place, if that is in a value of a store: nobody has a file with such a line.
fn placed(error: &ConfigError) -> ConfigError {
    let place = error.place.filter(|_| error.file.is_some());
    ConfigError { place, ..error.clone() }
}

fn tell_more(more: usize) {
    tracing::error!(more, "{MORE_FAULTS}");
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Feed")
    }
}
