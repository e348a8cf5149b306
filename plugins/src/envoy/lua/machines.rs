//! The machines of a script: one on each worker, for whoever in Envoy has one state of it.

use super::vm::Vm;
use crate::envoy::shared_key;
use crate::shared::per_thread::PerThread;
use sixfold_core::plugin::BuildContext;
use std::sync::Arc;

/// A script and its machines. What routes say beside it is given to it with each message.
pub(super) struct Machines {
    source: Arc<Source>,
    /// That of a worker, made with the first request that needs it.
    of_worker: PerThread<Result<Arc<Vm>, Option<String>>>,
}

/// A script that was looked at.
struct Source {
    text: Box<str>,
    /// Which functions it has: of requests, and of responses.
    hooks: Result<(bool, bool), String>,
    /// Whether it may ask for more of a message than its head.
    reads_bodies: bool,
}

impl Machines {
    /// Those of a script of the filter itself, the same for all routes that run it, whether they name it or not. `name` is
    /// that among `source_codes`; the default one has none.
    ///
    /// # Errors
    /// Why it can't be loaded.
    pub(super) fn of_filter(
        name: &str,
        source: &str,
        context: &BuildContext,
    ) -> Result<Arc<Machines>, String> {
        let machines = Machines::of_route(source, context)?;
        let whose = [context.filter.as_bytes(), name.as_bytes(), source.as_bytes()].join(&0);
        let key = shared_key("machines of lua", &whose, context);
        Ok(context.shared.get_or_insert(&key, || machines))
    }

    /// Those of a script that one route brings: another one with an equal script has its own.
    ///
    /// # Errors
    /// Why it can't be loaded.
    pub(super) fn of_route(source: &str, context: &BuildContext) -> Result<Machines, String> {
        let source = Source::of(source, context)?;
        let loaded = source.clone();
        let of_worker = PerThread::new(move || Vm::new(&loaded.text).map(Arc::new).map_err(Some));
        Ok(Machines { source, of_worker })
    }

    /// Which functions the script has: of requests, and of responses.
    pub(super) fn hooks(&self) -> (bool, bool) {
        self.source.hooks.clone().unwrap_or_default()
    }

    /// Whether it may ask for more of a message than its head.
    pub(super) fn reads_bodies(&self) -> bool {
        self.source.reads_bodies
    }

    /// That of this worker; without one, why, the first time.
    pub(super) fn here(&self) -> Result<Arc<Vm>, Option<String>> {
        let made = self.of_worker.with(|made| match made {
            Ok(vm) => Ok(vm.clone()),
            Err(error) => Err(error.take()),
        });
        made.unwrap_or(Err(None))
    }
}

impl Source {
    /// Whether a script can be loaded is tried once, however many routes bring it.
    fn of(text: &str, context: &BuildContext) -> Result<Arc<Source>, String> {
        let key = shared_key("script of lua", text.as_bytes(), context);
        let source = context.shared.get_or_insert(&key, || Source {
            text: text.into(),
            hooks: Vm::new(text).map(|vm| vm.hooks()),
            reads_bodies: ["body", "railers"].iter().any(|word| text.contains(word)),
        });
        source.hooks.as_ref().map_err(String::clone)?;
        Ok(source)
    }
}
