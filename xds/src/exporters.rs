//! The ways out to collectors of logs and spans. A mesh names the same ones in every listener: equal configurations share one,
//! with its stream and what waits for it, as they do in Envoy (`GrpcAccessLoggerCache`, `TracerManagerImpl`).

use std::sync::Arc;

use parking_lot::Mutex;
use sixfold_core::export::Exporter;
use sixfold_core::interned::Interned;
use sixfold_core::trace::Provider;

/// What a way out is known by: the full name of its configuration, and that encoded.
type Key = (&'static str, Vec<u8>);

/// Those of one bootstrap, each for as long as something that is compiled holds it.
#[derive(Default)]
pub struct Exporters {
    logs: Mutex<Interned<Key, Exporter>>,
    tracers: Mutex<Interned<Vec<u8>, Provider>>,
}

impl Exporters {
    /// The one for logs of this configuration of type `kind`, else a new one.
    pub(crate) fn log(
        &self,
        kind: &'static str,
        config: Vec<u8>,
        make: impl FnOnce() -> Exporter,
    ) -> Arc<Exporter> {
        self.logs.lock().get_or_insert_with((kind, config), make)
    }

    /// The one for spans of this configuration, else a new one.
    pub(crate) fn tracer(&self, config: Vec<u8>, make: impl FnOnce() -> Provider) -> Arc<Provider> {
        self.tracers.lock().get_or_insert_with(config, make)
    }
}
