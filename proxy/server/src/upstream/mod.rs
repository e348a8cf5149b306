//! Connections to endpoints that wait for their next request.

/// The pools of one worker.
#[derive(Default)]
pub struct Pools {}
