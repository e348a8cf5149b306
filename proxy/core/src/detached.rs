//! Contexts that reach nothing outside of this process: for checking configuration, whose result is thrown
//! away, and for tests.

use crate::access_log::{LogSink, LogTarget, MakeSink};
use crate::compile::CompileContext;
use crate::listener::Listener;
use crate::metrics;
use crate::model::{ApplyError, Diff, Listeners, Model};
use crate::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutStreamFuture, Registry,
};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Opens no log and no listener and sends no callout: every callout times out at once.
pub struct Nowhere;

impl Callout for Nowhere {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

impl MakeSink for Nowhere {
    fn sink(&self, _: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        Ok(Arc::new(Nowhere))
    }

    fn opened_late(&self, _: &std::path::Path) -> Arc<dyn LogSink> {
        Arc::new(Nowhere)
    }
}

/// Opens no log either, and says which could not be opened: for configuration that is checked where it will be used.
pub struct LogCheck {
    /// Whether the folder of a file below the working directory is made at start, as in APISIX's mode.
    pub makes_folders: bool,
}

impl MakeSink for LogCheck {
    fn sink(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        let LogTarget::File(path) = target else { return Nowhere.sink(target) };
        let made = |folder: &std::path::Path| self.makes_folders && folder.is_relative() && !folder.exists();
        if !path.parent().is_some_and(made) {
            target.check()?;
        }
        Nowhere.sink(target)
    }

    fn opened_late(&self, path: &std::path::Path) -> Arc<dyn LogSink> {
        Nowhere.opened_late(path)
    }
}

impl Listeners for Nowhere {
    fn prepare(&mut self, _: &[Arc<str>], _: &[Arc<Listener>]) -> Vec<(Arc<str>, String)> {
        Vec::new()
    }

    fn abandon(&mut self, _: &[Arc<str>]) {}

    fn serves(&self) -> bool {
        false
    }

    async fn remove(&mut self, _: &[Arc<str>]) {}

    async fn upsert(&mut self, _: Arc<Listener>) -> Result<(), String> {
        Ok(())
    }
}

impl Model {
    /// [`Model::apply`] where nobody opens listeners.
    pub fn apply_detached(&self, diff: Diff) -> Vec<ApplyError> {
        match pin!(self.apply(diff, &mut Nowhere)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(errors) => errors,
            // Only listeners could wait.
            Poll::Pending => Vec::new(),
        }
    }
}

impl BuildContext {
    /// For plugins that are built to be thrown away.
    pub fn detached() -> BuildContext {
        BuildContext::new(Arc::new(Nowhere), metrics::Registry::new())
    }
}

impl CompileContext {
    /// For configuration whose result is thrown away: no access log is opened, no callout is sent, and no model sees
    /// what is compiled.
    pub fn detached(plugins: Registry) -> CompileContext {
        CompileContext::new(&Model::default(), plugins, BuildContext::detached(), Arc::new(Nowhere))
    }
}
