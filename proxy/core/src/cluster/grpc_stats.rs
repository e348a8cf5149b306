//! What Envoy's grpc_stats counts of calls, under `cluster.NAME.grpc.` (source/common/grpc/context_impl.cc).

use crate::metrics::{Block, Counter, Kind, Registry, StatDef, block_slot};
use std::sync::Arc;

/// Status codes that gRPC has.
const CODES: usize = 17;
/// Those of one code come first, then these.
const SUCCESS: usize = CODES;
const FAILURE: usize = CODES + 1;
const TOTAL: usize = CODES + 2;

const NAMES: [&str; CODES + 3] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "success",
    "failure", "total",
];

const DEFS: [StatDef; NAMES.len()] = {
    let mut defs = [const { StatDef { name: "", kind: Kind::Counter, slot: 0 } }; NAMES.len()];
    let mut at = 0;
    while at < NAMES.len() {
        defs[at] = StatDef { name: NAMES[at], kind: Kind::Counter, slot: block_slot(at, NAMES.len()) };
        at += 1;
    }
    defs
};

/// Calls by their status. Most clusters serve none, so they are made with the first.
pub(super) struct GrpcStats(Arc<Block>);

impl GrpcStats {
    /// Zeros under `prefix`, with its final dot.
    pub(super) fn new(registry: &Registry, prefix: &str) -> GrpcStats {
        GrpcStats(registry.register(Block::new(prefix, &DEFS)))
    }

    /// Counts a call that ended with this `grpc-status`.
    pub(super) fn count(&self, status: u32) {
        let counter = |at| Counter::new(Some(&self.0), block_slot(at, NAMES.len()));
        if let Some(code) = usize::try_from(status).ok().filter(|code| *code < CODES) {
            counter(code).inc();
        }
        counter(if status == 0 { SUCCESS } else { FAILURE }).inc();
        counter(TOTAL).inc();
    }
}
