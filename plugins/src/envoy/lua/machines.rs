//! The machines of a script: one on each worker, whichever routes run it.

use super::vm::Vm;
use crate::envoy::shared_key;
use crate::shared::per_thread::PerThread;
use sixfold_core::plugin::BuildContext;
use std::sync::Arc;

/// A script and its machines. What routes say beside it is given to it with each message.
pub(super) struct Machines {
    /// Which functions it has: of requests, and of responses.
    hooks: Result<(bool, bool), String>,
    /// Whether it may ask for more of a message than its head.
    pub(super) reads_bodies: bool,
    /// That of a worker, made with the first request that needs it.
    of_worker: PerThread<Result<Arc<Vm>, Option<String>>>,
}

impl Machines {
    /// Those of a script, the same for all of one connection manager that run it. Whether it can be loaded is tried once.
    ///
    /// # Errors
    /// Why it can't be.
    pub(super) fn of(source: &str, context: &BuildContext) -> Result<Arc<Machines>, String> {
        let key = shared_key("machines of lua", source.as_bytes(), context);
        let machines = context.shared.get_or_insert(&key, || Machines::new(source));
        machines.hooks.as_ref().map_err(String::clone)?;
        Ok(machines)
    }

    fn new(source: &str) -> Machines {
        let text: Box<str> = source.into();
        Machines {
            hooks: Vm::new(source).map(|vm| vm.hooks()),
            reads_bodies: ["body", "railers"].iter().any(|word| source.contains(word)),
            of_worker: PerThread::new(move || Vm::new(&text).map(Arc::new).map_err(Some)),
        }
    }

    /// Which functions the script has: of requests, and of responses.
    pub(super) fn hooks(&self) -> (bool, bool) {
        self.hooks.clone().unwrap_or_default()
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
