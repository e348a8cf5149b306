//! The load of the process: who measures it, and what waits until it is over.

use crate::memory;
use crate::refresh::refresh_every;
use crate::worker::Shared;
use sixfold_core::overload::{Act, Overload};
use std::sync::Arc;

/// Measures for as long as the server is there, from now on. Only the first call counts.
pub(crate) fn watch(shared: &Arc<Shared>, overload: Arc<Overload>) {
    let (period, shrinks) = (overload.refresh(), overload.shrinks_every());
    if shared.overload.set(overload).is_ok() {
        look(shared);
        refresh_every("load", period, shared, look);
        if let Some(period) = shrinks {
            refresh_every("shrink-heap", period, shared, shrink);
        }
    }
}

/// Gives memory back to the system, if it is time for that.
fn shrink(shared: &Shared) {
    if let Some(overload) = shared.overload.get().filter(|load| load.is_saturated(Act::ShrinkHeap)) {
        memory::release();
        overload.shrunk();
    }
}

fn look(shared: &Shared) {
    let Some(overload) = shared.overload.get() else { return };
    for (action, percent) in overload.update(memory::anonymous()) {
        tracing::warn!(action, percent, "the load has changed what is done");
    }
    let accepts = !overload.is_saturated(Act::StopAcceptingConnections);
    shared.accepts.send_if_modified(|accepted| std::mem::replace(accepted, accepts) != accepts);
}
